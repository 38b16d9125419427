/*
 * fm-hotplug VM +SIZE, and -SIZE: a virtio-mem device grows or shrinks. The guest's driver plugs and unplugs blocks by itself until the device has
 * the size that was asked for; QEMU discards what is unplugged, by which fm-faultd frees it here and in the store.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "hotplug.h"
#include "size.h"

/* The device of that id, or, without one, the only one there is. */
static int find_device(struct vm *vm, const char *id, struct device *out)
{
	struct device *list;
	unsigned found = 0;
	size_t n;
	int r = vm_devices(vm, &list, &n);

	if (r)
		return r;
	for (size_t i = 0; i < n; i++)
		if (id ? !strcmp(list[i].id, id) : !strcmp(list[i].type, "virtio-mem")) {
			*out = list[i];
			found++;
		}
	free(list);
	if (!found && id)
		fm_warn("%s: device '%s': no memory device of this id: see --list", vm->arg, id);
	else if (!found)
		fm_warn("%s: it has no virtio-mem device: add one with --virtio-mem", vm->arg);
	else if (found > 1)
		fm_warn("%s: it has %u virtio-mem devices: say which with --id", vm->arg, found);
	else if (strcmp(out->type, "virtio-mem"))
		fm_warn("%s: device '%s': it is a %s, whose size cannot change: only a virtio-mem device's can", vm->arg, out->id, out->type);
	else
		return FM_EXIT_OK;
	return FM_EXIT_FAILED;
}

static int new_size(const struct options *o, const struct device *d, uint64_t *bytes)
{
	/* From what the guest was asked for: it may still be on its way there, and a step back takes back that. */
	uint64_t by = o->pages * FM_PAGE_SIZE, from = d->requested;
	char have[16], text[16], max[16], asked[40] = "";

	if (o->shrink ? by <= from : from <= d->max_bytes && by <= d->max_bytes - from) {
		*bytes = o->shrink ? from - by : from + by;
		return FM_EXIT_OK;
	}
	if (from != d->bytes)
		snprintf(asked, sizeof asked, ", is asked for %s", from ? fm_size_format(from / FM_PAGE_SIZE, text) : "0");
	fm_warn("%s: device '%s': it has %s%s and can have 0 to %s", o->vm, d->id, d->bytes ? fm_size_format(d->bytes / FM_PAGE_SIZE, have) : "0",
		asked, fm_size_format(d->max_bytes / FM_PAGE_SIZE, max));
	return FM_EXIT_FAILED;
}

static int ask(struct vm *vm, const struct device *d, uint64_t bytes)
{
	char path[ID_MAX + 32];

	if (vm->domain)
		return domain_resize(vm, d->id, bytes);
	snprintf(path, sizeof path, "/machine/peripheral/%s", d->id);
	return vm_call(vm, d->id, "qom-set",
		       json_pack("{s:s, s:s, s:I}", "path", path, "property", "requested-size", "value", (json_int_t)bytes), NULL);
}

/* Until the guest has done it. */
static int wait_size(struct vm *vm, const struct options *o, struct device *d, uint64_t bytes)
{
	static const struct timespec pause = {.tv_nsec = 100000000};
	char id[ID_MAX], have[16], want[16];
	int r;

	memcpy(id, d->id, sizeof id);
	for (unsigned ms = 0; d->bytes != bytes; ms += 100) {
		if (ms >= o->timeout_ms) {
			fm_warn("%s: device '%s': the guest has come to %s of %s in %u s, and may go on: %s", vm->arg, id,
				d->bytes ? fm_size_format(d->bytes / FM_PAGE_SIZE, have) : "0",
				bytes ? fm_size_format(bytes / FM_PAGE_SIZE, want) : "0", o->timeout_ms / 1000,
				o->shrink ? "its kernel uses the rest; memory in zone Movable can be given back"
					  : "has it the virtio_mem driver?");
			return FM_EXIT_FAILED;
		}
		nanosleep(&pause, NULL);
		r = find_device(vm, id, d);
		if (r)
			return r;
	}
	return FM_EXIT_OK;
}

int cmd_resize(const struct options *o)
{
	struct device d = {.id = ""};
	struct vm vm = {0};
	uint64_t bytes = 0;
	char size[16];
	int ctl = -1, r;

	/* QEMU waits in the kernel for fm-faultd when it discards far memory. */
	r = far_connect(o->run_dir, &ctl);
	if (!r)
		r = vm_open(&vm, o, ASK);
	if (!r)
		r = vm_check_status(&vm);
	if (!r)
		r = find_device(&vm, o->id, &d);
	if (!r)
		r = new_size(o, &d, &bytes);
	if (!r)
		r = ask(&vm, &d, bytes);
	if (!r && o->wait)
		r = wait_size(&vm, o, &d, bytes);
	if (!r)
		printf("%s: %s\n", d.id, bytes ? fm_size_format(bytes / FM_PAGE_SIZE, size) : "0");
	vm_close(&vm);
	if (ctl >= 0)
		close(ctl);
	return r;
}
