/*
 * fm-hotplug DOMAIN SIZE: a memory device added by libvirt and then taken over; and --print-xml DOMAIN: what a domain needs for that.
 *
 * libvirt makes the backend and the device in one go, so that the guest sees the memory some milliseconds before it is far. What it
 * writes there meanwhile is adopted, as with --attach.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "domxml.h"
#include "hotplug.h"
#include "size.h"

#define XML_MAX      1024
#define BLOCK_KIB    2048 /* virtio-mem: the unit in which the guest takes and gives, libvirt's and QEMU's default */
#define UNDO_MS      10000
#define SLOTS        16   /* proposed by --print-xml */
#define MAX_FACTOR   8    /* ... maxMemory, of the memory there is */

/* --- what a domain must have --- */

enum lack {
	LACKS_SOURCE = 1, /* memory that is no memfd or file */
	LACKS_SHARED = 2,
	LACKS_MAX = 4,
	LACKS_CELL = 8,
};

static unsigned lacks(const struct fm_domxml *x)
{
	unsigned lack = 0;

	if (strcmp(x->source, "memfd") && strcmp(x->source, "file"))
		lack |= LACKS_SOURCE;
	if (strcmp(x->access, "shared") || x->cell_private)
		lack |= LACKS_SHARED;
	if (!x->max_bytes || !x->slots)
		lack |= LACKS_MAX;
	if (!x->ncells)
		lack |= LACKS_CELL;
	return lack;
}

static int check_xml(const char *arg, const struct fm_domxml *x)
{
	unsigned lack = lacks(x);

	if (x->hugepages)
		fm_warn("%s: <memoryBacking> has <hugepages>, which cannot be paged: remove it, then start the domain anew", arg);
	else if (x->locked)
		fm_warn("%s: <memoryBacking> has <locked>: its memory stays on the host: remove it, then start the domain anew", arg);
	else if (lack)
		fm_warn("%s: the domain's XML lacks%s%s%s%s: add what fm-hotplug --print-xml prints, then start the domain anew", arg,
			lack & (LACKS_SOURCE | LACKS_SHARED) ? " <memoryBacking> with <source type='memfd'/> and <access mode='shared'/>"
							     : "",
			lack & (LACKS_SOURCE | LACKS_SHARED) && lack & (LACKS_MAX | LACKS_CELL) ? "," : "",
			lack & LACKS_MAX ? " <maxMemory slots='N'>" : "", lack & LACKS_CELL ? " a NUMA <cell>" : "");
	else
		return FM_EXIT_OK;
	return FM_EXIT_FAILED;
}

/* *max_pages: of the new device. */
static int check_room(const struct options *o, const struct fm_domxml *x, uint64_t *max_pages)
{
	uint64_t used = 0, left, want = (o->max_pages ? o->max_pages : o->pages) * FM_PAGE_SIZE;
	unsigned slots = 0;
	char text[16];

	for (size_t i = 0; i < x->nmemory; i++) {
		used += x->memory[i].bytes;
		slots += x->memory[i].slot >= 0;
	}
	if (!o->virtio_mem && slots >= x->slots) {
		fm_warn("%s: DIMM slots: all %u are taken: raise <maxMemory slots=> and start the domain anew, or use --virtio-mem", o->vm,
			x->slots);
		return FM_EXIT_FAILED;
	}
	used += x->cell_bytes;
	left = x->max_bytes > used ? x->max_bytes - used : 0;
	if (want > left) {
		fm_warn("%s: size '%s': only %s left below the domain's <maxMemory>: add less, or raise it and start the domain anew", o->vm,
			fm_size_format(want / FM_PAGE_SIZE, text),
			left / FM_PAGE_SIZE ? fm_size_format(left / FM_PAGE_SIZE, (char[16]){""}) : "nothing is");
		return FM_EXIT_FAILED;
	}
	*max_pages = add_max_pages(o, left / FM_PAGE_SIZE);
	if (o->node >= (int)x->ncells) {
		fm_warn("%s: node '%d': the domain has %u NUMA cells", o->vm, o->node, x->ncells);
		return FM_EXIT_FAILED;
	}
	return FM_EXIT_OK;
}

/* With <source type='file'> it depends on libvirt's folder: judge by the memory the domain has. */
static int check_files(struct vm *vm, const struct fm_domxml *x)
{
	struct memory *list;
	int file = -1, remote, r;
	bool far;
	size_t n;

	if (strcmp(x->source, "file"))
		return FM_EXIT_OK;
	r = memory_list(vm, &list, &n);
	if (!r && n)
		r = memory_check(vm, "its memory", &list[0], &far, &file, &remote);
	if (file >= 0)
		close(file);
	free(list);
	return r;
}

static int check_tracer(struct vm *vm)
{
	int tracer = fm_attach_tracer(vm->pid);

	if (!tracer)
		return FM_EXIT_OK;
	fm_warn("%s: attach to process %d: process %d traces it (a debugger or strace): end that first", vm->arg, vm->pid, tracer);
	return FM_EXIT_FAILED;
}

/* --- adding --- */

/* Choose or check the id: *alias is libvirt's, "ua-" before it. */
static int choose_id(const struct options *o, const struct fm_domxml *x, char id[ID_MAX], char alias[ID_MAX])
{
	bool taken = true;

	/* libvirt passes over an alias with other characters, and takes one of its own. */
	if (o->id && strchr(o->id, '.')) {
		fm_warn("%s: id '%s': libvirt allows no '.' in it", o->vm, o->id);
		return FM_EXIT_USAGE;
	}
	for (unsigned i = 0; i < 10000 && taken; i++) {
		if (o->id)
			snprintf(id, ID_MAX, "%s", o->id);
		else
			snprintf(id, ID_MAX, "fm%u", i);
		snprintf(alias, ID_MAX, "ua-%.*s", ID_MAX - 4, id);
		taken = false;
		for (size_t k = 0; k < x->nmemory; k++)
			taken |= !strcmp(x->memory[k].alias, alias) || !strcmp(x->memory[k].alias, id);
		if (o->id)
			break;
	}
	if (!taken)
		return FM_EXIT_OK;
	fm_warn("%s: id '%s': taken already: choose another with --id", o->vm, id);
	return FM_EXIT_FAILED;
}

static void device_xml(const struct options *o, uint64_t max_pages, const char *alias, char xml[XML_MAX])
{
	uint64_t kib = o->pages * (FM_PAGE_SIZE / 1024);
	char mem[160] = "";

	if (o->virtio_mem)
		snprintf(mem, sizeof mem, "<block unit='KiB'>%u</block><requested unit='KiB'>%" PRIu64 "</requested>", BLOCK_KIB, kib);
	snprintf(xml, XML_MAX,
		 "<memory model='%s' access='shared'><target><size unit='KiB'>%" PRIu64 "</size><node>%d</node>%s</target>"
		 "<alias name='%s'/></memory>\n",
		 o->virtio_mem ? "virtio-mem" : "dimm", max_pages * (FM_PAGE_SIZE / 1024), o->node < 0 ? 0 : o->node, mem, alias);
}

/* The memory is there, but could not be made far. */
static void undo(struct vm *vm, const char *id)
{
	const char *why;

	if (domain_unplug(vm, id, UNDO_MS, &why))
		fm_warn("%s: device '%s': it stays plugged as ordinary memory: --attach makes it far, --remove takes it out", vm->arg, id);
}

static int plug(const struct options *o, struct vm *vm, int ctl, uint64_t max_pages, const char *id, const char *alias)
{
	char xml[XML_MAX], backend[ID_MAX + 4], size[16];
	struct fm_mapping *before;
	struct uffds u = {0};
	struct device *d;
	uint64_t region = 0;
	size_t n, nd;
	int r = fm_proc_maps(vm->pid, &before, &n);

	if (r) {
		fm_warn("%s: maps of process %d: %s", vm->arg, vm->pid, strerror(-r));
		return FM_EXIT_FAILED;
	}
	device_xml(o, max_pages, alias, xml);
	snprintf(backend, sizeof backend, "mem%s", alias);
	r = domain_attach_device(vm, xml);
	if (r)
		goto free_before;
	r = add_register(ctl, vm, o->run_dir, backend, max_pages * FM_PAGE_SIZE, before, n, &u, &region);
	far_release(vm, &u, r != FM_EXIT_OK);
	if (r) {
		undo(vm, id);
		goto free_before;
	}
	r = domain_devices(vm, &d, &nd);
	for (size_t i = 0; !r && i < nd; i++)
		if (!strcmp(d[i].id, id))
			printf("%s: %s at 0x%" PRIx64 ", node %d, region %016" PRIx64 "\n", id, fm_size_format(o->pages, size), d[i].gpa,
			       d[i].node, region);
	fflush(stdout);
	free(d);
free_before:
	free(before);
	return r;
}

int domain_add(const struct options *o, struct vm *vm, int ctl)
{
	char id[ID_MAX], alias[ID_MAX];
	struct fm_domxml x;
	uint64_t max_pages = o->pages;
	int r = domain_xml(vm, &x);

	if (r)
		return r;
	r = check_xml(vm->arg, &x);
	if (!r)
		r = check_room(o, &x, &max_pages);
	if (!r)
		r = choose_id(o, &x, id, alias);
	if (!r)
		r = memory_check_vm(vm);
	if (!r)
		r = check_files(vm, &x);
	if (!r)
		r = check_tracer(vm);
	fm_domxml_free(&x);
	return r ? r : plug(o, vm, ctl, max_pages, id, alias);
}

/* --- --print-xml --- */

static void print_lacks(const struct fm_domxml *x, unsigned lack)
{
	uint64_t memory = x->cell_bytes ? x->cell_bytes : x->memory_bytes;

	printf("<!-- virsh edit %s: inside of <domain>; then shut the domain off and start it anew -->\n", x->uuid);
	if (lack & LACKS_MAX)
		printf("<maxMemory slots='%u' unit='KiB'>%" PRIu64 "</maxMemory>\n", SLOTS, memory / 1024 * MAX_FACTOR);
	if (lack & (LACKS_SOURCE | LACKS_SHARED)) {
		if (x->has_backing)
			puts("<!-- instead of the <memoryBacking> that is there -->");
		puts("<memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>");
	}
	if (x->cell_private)
		puts("<!-- remove memAccess='private' from <cell> -->");
	if (!(lack & LACKS_CELL))
		return;
	if (x->has_cpu)
		puts("<!-- into the <cpu> that is there: only <numa> -->");
	printf("<cpu>\n  <numa>\n    <cell id='0' cpus='0-%u' memory='%" PRIu64 "' unit='KiB'/>\n  </numa>\n</cpu>\n",
	       x->vcpus ? x->vcpus - 1 : 0, memory / 1024);
}

int cmd_print_xml(const struct options *o)
{
	struct vm vm = {.arg = o->vm};
	struct fm_domxml x;
	unsigned lack;
	int r;

	if (strchr(o->vm, '/') || !strncmp(o->vm, "pid:", 4)) {
		fm_warn("VM '%s': --print-xml is for libvirt domains: give a name or UUID", o->vm);
		return FM_EXIT_USAGE;
	}
	r = domain_find(&vm, &x);
	if (r)
		return r;
	lack = lacks(&x);
	if (x.hugepages || x.locked)
		lack |= LACKS_SOURCE;
	if (lack)
		print_lacks(&x, lack);
	else
		printf("<!-- %s has all that far memory needs -->\n", x.uuid);
	fm_domxml_free(&x);
	domain_close(&vm);
	return FM_EXIT_OK;
}
