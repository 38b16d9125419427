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

/*
 * What the guest says of a DIMM by ACPI _OST (ACPI 6.5, 6.3.5; QEMU's query-acpi-ospm-status). source: of the notification it answers: 1
 * device check, 3 eject request; status: 0 success, 0x84 ejection in progress.
 */
static const char *ost_text(json_int_t source, json_int_t status)
{
	if (source == 0)
		return "-"; /* nothing yet */
	if (status == 0x84)
		return "leaving";
	return status == 0 ? "taken" : "refused";
}

static const char *guest_of_dimm(const json_t *ost, const char *id)
{
	const json_t *e;
	size_t i;

	json_array_foreach(ost, i, e) {
		const char *device = json_string_value(json_object_get(e, "device"));

		if (device && !strcmp(device, id))
			return ost_text(json_integer_value(json_object_get(e, "source")),
					json_integer_value(json_object_get(e, "status")));
	}
	return "-";
}

/* A virtio-mem device: has the guest taken what it was asked to? */
static const char *guest_of_virtio_mem(const struct device *d, char text[40])
{
	char size[16], requested[16];

	if (d->bytes == d->requested)
		return d->bytes ? "taken" : "-";
	snprintf(text, 40, "%s/%s", size_text(d->bytes / FM_PAGE_SIZE, size), size_text(d->requested / FM_PAGE_SIZE, requested));
	return text;
}

static void row(const char *id, const char *kind, uint64_t pages, int node, const struct far_region *f, const char *guest)
{
	char size[16], resident[16], remote[16], node_text[16] = "-";

	if (node >= 0)
		snprintf(node_text, sizeof node_text, "%d", node);
	printf("%-20s %-10s %8s %5s  %-4s %9s %9s  %s\n", id, kind, size_text(pages, size), node_text, f ? "yes" : "no",
	       f ? size_text(f->resident, resident) : "-", f ? size_text(f->remote, remote) : "-", guest);
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
	json_t *ost = NULL;
	char text[40];
	size_t nb, nd;
	int r = vm_backends(vm, &b, &nb);

	if (!r)
		r = vm_devices(vm, &d, &nd);
	/* A domain's monitor is left alone, and not every machine has this. */
	if (!r && vm->qmp && fm_qmp_call(vm->qmp, "query-acpi-ospm-status", NULL, &ost, FM_QMP_REPLY_MS))
		ost = NULL;
	if (!r) {
		for (size_t i = 0; i < nb; i++)
			if (!device_of(d, nd, b[i].id))
				row(b[i].id, "boot", b[i].bytes / FM_PAGE_SIZE, -1, far_find(f, nf, b[i].id), "-");
		for (size_t i = 0; i < nd; i++)
			row(*d[i].id ? d[i].id : "-", d[i].type, d[i].bytes / FM_PAGE_SIZE, d[i].node,
			    far_find(f, nf, d[i].backend),
			    strcmp(d[i].type, "virtio-mem") ? guest_of_dimm(ost, d[i].id) : guest_of_virtio_mem(&d[i], text));
	}
	json_decref(ost);
	free(b);
	free(d);
	return r;
}

int cmd_list(const struct options *o)
{
	struct far_region *f = NULL;
	struct vm vm;
	size_t nf;
	int r = vm_open(&vm, o, ASK_IF_POSSIBLE);

	if (!r) {
		far_regions(o->run_dir, &vm, &f, &nf);
		printf("%-20s %-10s %8s %5s  %-4s %9s %9s  %s\n", "ID", "KIND", "SIZE", "NODE", "FAR", "RESIDENT", "REMOTE", "GUEST");
		if (vm.qmp || vm.domain)
			r = list_qmp(&vm, f, nf);
		else
			for (size_t i = 0; i < nf; i++)
				row(f[i].backend, "-", f[i].pages, -1, &f[i], "-");
	}
	free(f);
	vm_close(&vm);
	return r;
}
