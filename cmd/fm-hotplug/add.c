/*
 * fm-hotplug VM SIZE: a memory backend, registered before the guest can see it, and a device that shows it to the guest.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hotplug.h"
#include "size.h"

struct add {
	const struct options *o;
	struct vm vm;
	int ctl;               /* to fm-faultd, -1: none */
	char id[ID_MAX];       /* of the device */
	char backend[ID_MAX];
	uint64_t max_pages;    /* of the backend */
	struct uffds uffds;
	uint64_t region;
};

/* As JSON has it. Below 2^44: see FM_REGION_PAGES_MAX. */
static json_int_t bytes(uint64_t pages)
{
	return (json_int_t)pages * FM_PAGE_SIZE;
}

uint64_t add_max_pages(const struct options *o, uint64_t left_pages)
{
	uint64_t block = (128u << 20) / FM_PAGE_SIZE, most = left_pages - left_pages % block;

	if (!o->virtio_mem)
		return o->pages;
	if (o->max_pages)
		return o->max_pages;
	if (most > FM_REGION_PAGES_MAX)
		most = FM_REGION_PAGES_MAX - FM_REGION_PAGES_MAX % block;
	if (most > 4 * o->pages)
		most = 4 * o->pages;
	return most > o->pages ? most : o->pages;
}

static bool id_taken(const struct device *d, size_t nd, const struct backend *b, size_t nb, const char *id, const char *backend)
{
	for (size_t i = 0; i < nd; i++)
		if (!strcmp(d[i].id, id))
			return true;
	for (size_t i = 0; i < nb; i++)
		if (!strcmp(b[i].id, backend) || !strcmp(b[i].id, id))
			return true;
	return false;
}

/* Choose or check the ids. */
static int choose_id(struct add *a, const struct device *d, size_t nd)
{
	struct backend *b;
	size_t nb;
	int r = vm_backends(&a->vm, &b, &nb);

	if (r)
		return r;
	for (unsigned i = 0; i < 10000; i++) {
		if (a->o->id)
			snprintf(a->id, sizeof a->id, "%s", a->o->id);
		else
			snprintf(a->id, sizeof a->id, "fm%u", i);
		snprintf(a->backend, sizeof a->backend, "mem-%.*s", ID_MAX - 8, a->id);
		if (!id_taken(d, nd, b, nb, a->id, a->backend) || a->o->id)
			break;
	}
	if (id_taken(d, nd, b, nb, a->id, a->backend)) {
		fm_warn("%s: id '%s': taken already: choose another with --id", a->vm.arg, a->id);
		r = FM_EXIT_FAILED;
	}
	free(b);
	return r;
}

/* Is there a slot, and room below maxmem? QEMU before 7.1 does not tell: then its own refusal must do. */
static int check_room(struct add *a, const struct device *d, size_t nd)
{
	char want_text[16], left_text[16];
	json_t *result = NULL;
	uint64_t slots, max, boot, used = 0, left, want = a->o->max_pages ? a->o->max_pages : a->o->pages;
	unsigned nslots = 0;
	bool told;

	a->max_pages = want;
	if (fm_qmp_call(a->vm.qmp, "qom-get", json_pack("{s:s, s:s}", "path", "/machine", "property", "memory"), &result,
			FM_QMP_REPLY_MS))
		return FM_EXIT_OK;
	told = json_is_integer(json_object_get(result, "size"));
	slots = (uint64_t)json_integer_value(json_object_get(result, "slots"));
	max = (uint64_t)json_integer_value(json_object_get(result, "max-size"));
	boot = (uint64_t)json_integer_value(json_object_get(result, "size"));
	json_decref(result);
	if (!told)
		return FM_EXIT_OK;
	if (max <= boot) {
		fm_warn("%s: memory hotplug: the VM was started without it: add slots=N,maxmem=SIZE to its -m option", a->vm.arg);
		return FM_EXIT_FAILED;
	}
	for (size_t i = 0; i < nd; i++) {
		used += d[i].max_bytes;
		nslots += d[i].slot >= 0;
	}
	if (!a->o->virtio_mem && nslots >= slots) {
		fm_warn("%s: DIMM slots: all %" PRIu64 " are taken: start the VM with more (-m ...,slots=N), or use --virtio-mem",
			a->vm.arg, slots);
		return FM_EXIT_FAILED;
	}
	left = max - boot > used ? max - boot - used : 0;
	if (want > left / FM_PAGE_SIZE) {
		fm_warn("%s: size '%s': only %s left below the VM's maxmem: add less, or start the VM with a larger -m ...,maxmem=SIZE",
			a->vm.arg, fm_size_format(want, want_text),
			left / FM_PAGE_SIZE ? fm_size_format(left / FM_PAGE_SIZE, left_text) : "nothing is");
		return FM_EXIT_FAILED;
	}
	a->max_pages = add_max_pages(a->o, left / FM_PAGE_SIZE);
	return FM_EXIT_OK;
}

/* Everything that can be refused before the VM is changed. */
static int check(struct add *a)
{
	struct device *d;
	size_t nd;
	int r = memory_check_vm(&a->vm);

	if (!r)
		r = vm_devices(&a->vm, &d, &nd);
	if (r)
		return r;
	r = choose_id(a, d, nd);
	if (!r)
		r = check_room(a, d, nd);
	free(d);
	return r;
}

static int object_add(struct add *a)
{
	json_t *args = json_pack("{s:s, s:s, s:I, s:b}", "qom-type", "memory-backend-memfd", "id", a->backend, "size",
				 bytes(a->max_pages), "share", 1);

	/* No swap or commit charge for memory that the guest was not given yet. */
	if (a->o->virtio_mem && args)
		json_object_set_new(args, "reserve", json_false());
	return vm_call(&a->vm, "new memory backend", "object-add", args, NULL);
}

/*
 * Without a device QEMU unmaps it, by which fm-faultd sees that the region has ended. It refuses when there is a device after all: its answer to
 * device_add came too late, or not at all.
 */
static void object_del(struct add *a)
{
	if (fm_qmp_call(a->vm.qmp, "object-del", json_pack("{s:s}", "id", a->backend), NULL, FM_QMP_REPLY_MS))
		fm_info("%s: memory backend '%s' stays: %s", a->vm.arg, a->backend, fm_qmp_why(a->vm.qmp));
	else if (a->region)
		far_wait_gone(a->o->run_dir, a->region, 5000);
}

int add_register(int ctl, struct vm *vm, const char *run_dir, const char *backend, uint64_t bytes_new, const struct fm_mapping *before,
		 size_t n, struct uffds *u, uint64_t *region)
{
	struct memory m;
	int file = -1, remote, r;
	bool far = false;

	r = memory_find_new(vm, bytes_new, before, n, &m);
	if (!r)
		r = memory_check(vm, backend, &m, &far, &file, &remote);
	if (!r && !far)
		r = memory_claim(vm, backend, &m, file, &far);
	if (!r && far) {
		fm_warn("%s: %s: somebody else has registered it", vm->arg, backend);
		r = FM_EXIT_FAILED;
	}
	if (!r)
		r = far_attach(ctl, vm, &m, u);
	if (!r)
		r = memory_check_folios(vm, backend, &m, file);
	if (!r)
		r = far_register(ctl, vm, run_dir, backend, &m, file, remote, u, region);
	if (file >= 0)
		close(file);
	return r;
}

static json_t *device_args(const struct add *a, const char *bus)
{
	json_t *args;

	if (a->o->virtio_mem)
		args = json_pack("{s:s, s:s, s:s, s:I}", "driver", "virtio-mem-pci", "id", a->id, "memdev", a->backend,
				 "requested-size", bytes(a->o->pages));
	else
		args = json_pack("{s:s, s:s, s:s}", "driver", "pc-dimm", "id", a->id, "memdev", a->backend);
	if (args && a->o->node >= 0)
		json_object_set_new(args, "node", json_integer(a->o->node));
	if (args && bus) {
		json_object_set_new(args, "bus", json_string(bus));
		/* A guest looks at slot 0 of a port only; QEMU before 8.1 fills the others too when it may choose. */
		json_object_set_new(args, "addr", json_string("0"));
	}
	return args;
}

/* Say why QEMU made no device, or that this is not known. r: of fm_qmp_call(). */
static int say_device(struct add *a, int r)
{
	fm_warn("%s: device '%s': %s%s", a->vm.arg, a->id, fm_qmp_why(a->vm.qmp),
		r == -EREMOTEIO ? "" : ": it may be plugged nevertheless, as far memory: see --list; --remove takes it out");
	return r == -EREMOTEIO ? FM_EXIT_FAILED : FM_EXIT_PEER;
}

/* On q35 a PCI device can be plugged into a free root port only. Try each; 0 when one took it, else the last refusal. */
static int device_add_port(struct add *a)
{
	json_t *list = NULL, *e;
	int r = -EREMOTEIO;
	size_t i;

	if (fm_qmp_call(a->vm.qmp, "qom-list", json_pack("{s:s}", "path", "/machine/peripheral"), &list, FM_QMP_REPLY_MS))
		return FM_EXIT_FAILED;
	json_array_foreach(list, i, e) {
		const char *type = json_string_value(json_object_get(e, "type"));
		const char *name = json_string_value(json_object_get(e, "name"));

		if (!type || !name || strcmp(type, "child<pcie-root-port>"))
			continue;
		r = fm_qmp_call(a->vm.qmp, "device_add", device_args(a, name), NULL, FM_QMP_REPLY_MS);
		if (r != -EREMOTEIO)
			break;
	}
	json_decref(list);
	if (r != -EREMOTEIO)
		return r ? say_device(a, r) : FM_EXIT_OK;
	fm_warn("%s: virtio-mem device: no free PCI port that takes a device now: start the VM with -device pcie-root-port,id=ID,slot=N",
		a->vm.arg);
	return FM_EXIT_FAILED;
}

static int device_add(struct add *a)
{
	const char *why;
	int r = fm_qmp_call(a->vm.qmp, "device_add", device_args(a, NULL), NULL, FM_QMP_REPLY_MS);

	if (r == 0)
		return FM_EXIT_OK;
	why = fm_qmp_why(a->vm.qmp);
	if (r == -EREMOTEIO && a->o->virtio_mem && strstr(why, "does not support hotplugging"))
		return device_add_port(a);
	return say_device(a, r);
}

/* All that changes the VM. When it fails, nothing is left behind, unless QEMU does not answer: then the device may be there, and is far. */
static int plug(struct add *a)
{
	struct fm_mapping *before;
	size_t n;
	int r = fm_proc_maps(a->vm.pid, &before, &n);

	if (r) {
		fm_warn("%s: maps of process %d: %s", a->vm.arg, a->vm.pid, strerror(-r));
		return FM_EXIT_FAILED;
	}
	r = object_add(a);
	if (r)
		goto free_before;
	r = add_register(a->ctl, &a->vm, a->o->run_dir, a->backend, a->max_pages * FM_PAGE_SIZE, before, n, &a->uffds, &a->region);
	if (!r)
		r = device_add(a);
	if (!r)
		goto free_before;
	object_del(a);
free_before:
	free(before);
	far_release(&a->vm, &a->uffds, r != FM_EXIT_OK);
	return r;
}

/* Wait for the guest's answer to the new DIMM, which Linux gives when it has taken it (ACPI _OST). */
static int wait_guest(struct add *a)
{
	static const char *const ost[] = {"ACPI_DEVICE_OST", NULL};
	json_t *data = NULL;
	const char *name;
	json_int_t status;
	int r = fm_qmp_wait_event(a->vm.qmp, ost, "device", a->id, &name, &data, a->o->timeout_ms);

	if (r == -ETIMEDOUT) {
		fm_warn("%s: the guest has not answered to %s in %u s: is it booted? It can still take the memory", a->vm.arg, a->id,
			a->o->timeout_ms / 1000);
		return FM_EXIT_OK;
	}
	if (r) {
		fm_warn("%s: wait for the guest: %s", a->vm.arg, fm_qmp_why(a->vm.qmp));
		return FM_EXIT_PEER;
	}
	status = json_integer_value(json_object_get(json_object_get(data, "info"), "status"));
	json_decref(data);
	if (status == 0)
		return FM_EXIT_OK;
	fm_warn("%s: the guest refused %s (ACPI status %lld): see its kernel log; --remove takes the device out again", a->vm.arg,
		a->id, (long long)status);
	return FM_EXIT_FAILED;
}

static bool guest_runs(struct vm *vm)
{
	json_t *result = NULL;
	bool yes = fm_qmp_call(vm->qmp, "query-status", NULL, &result, FM_QMP_REPLY_MS) == 0 &&
		   json_is_true(json_object_get(result, "running"));

	json_decref(result);
	return yes;
}

static void print_added(struct add *a)
{
	struct device *d;
	char size[16];
	size_t n;

	if (vm_devices(&a->vm, &d, &n))
		return;
	for (size_t i = 0; i < n; i++)
		if (!strcmp(d[i].id, a->id))
			printf("%s: %s at 0x%" PRIx64 ", node %d, region %016" PRIx64 "\n", a->id,
			       fm_size_format(a->o->pages, size), d[i].gpa, d[i].node, a->region);
	fflush(stdout);
	free(d);
}

int cmd_add(const struct options *o)
{
	struct add a = {.o = o, .ctl = -1};
	sigset_t ends, before;
	int r;

	/* An interruption between two steps would leave half a device behind. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGHUP);
	sigprocmask(SIG_BLOCK, &ends, &before);
	r = far_connect(o->run_dir, &a.ctl);
	if (!r)
		r = vm_open(&a.vm, o, ASK);
	if (!r && a.vm.domain) {
		r = domain_add(o, &a.vm, a.ctl);
		goto close_vm;
	}
	if (!r)
		r = check(&a);
	if (!r)
		r = plug(&a);
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (!r) {
		print_added(&a);
		if (o->wait && !o->virtio_mem && guest_runs(&a.vm))
			r = wait_guest(&a);
	}
close_vm:
	vm_close(&a.vm);
	if (a.ctl >= 0)
		close(a.ctl);
	return r;
}
