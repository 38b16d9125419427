/*
 * fm-hotplug --list VM: what memory it has, and how much of it is here.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hotplug.h"
#include "size.h"

static const char *size_text(uint64_t pages, char buf[16])
{
	return pages ? fm_size_format(pages, buf) : "0";
}

static void row(const char *id, const char *kind, uint64_t pages, int node, const struct far_region *f)
{
	char size[16], resident[16], remote[16], node_text[16] = "-";

	if (node >= 0)
		snprintf(node_text, sizeof node_text, "%d", node);
	printf("%-20s %-10s %8s %5s  %-4s %9s %9s\n", id, kind, size_text(pages, size), node_text, f ? "yes" : "no",
	       f ? size_text(f->resident, resident) : "-", f ? size_text(f->remote, remote) : "-");
}

static const struct device *device_of(const struct device *d, size_t n, const char *backend)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(d[i].backend, backend))
			return &d[i];
	return NULL;
}

static int list_qmp(struct vm *vm, const struct far_region *f, size_t nf)
{
	struct backend *b = NULL;
	struct device *d = NULL;
	size_t nb, nd;
	int r = vm_backends(vm, &b, &nb);

	if (!r)
		r = vm_devices(vm, &d, &nd);
	if (!r) {
		for (size_t i = 0; i < nb; i++)
			if (!device_of(d, nd, b[i].id))
				row(b[i].id, "boot", b[i].bytes / FM_PAGE_SIZE, -1, far_find(f, nf, b[i].id));
		for (size_t i = 0; i < nd; i++)
			row(*d[i].id ? d[i].id : "-", d[i].type, d[i].bytes / FM_PAGE_SIZE, d[i].node,
			    far_find(f, nf, d[i].backend));
	}
	free(b);
	free(d);
	return r;
}

int cmd_list(const struct options *o)
{
	struct far_region *f = NULL;
	struct vm vm;
	size_t nf;
	int r = vm_open(&vm, o, false);

	if (!r) {
		far_regions(o->run_dir, &vm, &f, &nf);
		printf("%-20s %-10s %8s %5s  %-4s %9s %9s\n", "ID", "KIND", "SIZE", "NODE", "FAR", "RESIDENT", "REMOTE");
		if (vm.qmp || vm.domain)
			r = list_qmp(&vm, f, nf);
		else
			for (size_t i = 0; i < nf; i++)
				row(f[i].backend, "-", f[i].pages, -1, &f[i]);
	}
	free(f);
	vm_close(&vm);
	return r;
}
