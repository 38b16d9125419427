/*
 * fm-hotplug --remove VM ID, and --detach VM [ID].
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hotplug.h"

#define GONE_MS 10000 /* fm-faultd frees a region's pages in the store */

/* Find the device; *plugged: false when the guest has given it back already and only its backend is left. */
static int find_device(struct vm *vm, const char *id, struct device *out, bool *plugged)
{
	struct backend *backends = NULL;
	struct device *list = NULL;
	char left[ID_MAX + 4];
	size_t n, nb = 0;
	bool found = false;
	int r = vm_devices(vm, &list, &n);

	if (!r)
		r = vm_backends(vm, &backends, &nb);
	*plugged = false;
	for (size_t i = 0; !r && i < n; i++)
		if (!strcmp(list[i].id, id)) {
			*out = list[i];
			*plugged = found = true;
		}
	snprintf(left, sizeof left, "mem-%.*s", ID_MAX - 1, id);
	for (size_t i = 0; i < nb && !found; i++)
		if (!strcmp(backends[i].id, left)) {
			memcpy(out->backend, backends[i].id, ID_MAX);
			found = true;
		}
	free(list);
	free(backends);
	if (r)
		return r;
	if (!found)
		fm_warn("%s: device '%s': no memory device of this id: see --list", vm->arg, id);
	else if (*plugged && !out->hotplugged)
		fm_warn("%s: device '%s': the VM was started with it: it cannot be unplugged", vm->arg, id);
	else
		return FM_EXIT_OK;
	return FM_EXIT_FAILED;
}

/* Ask the guest to give the device back, and wait. */
static int unplug(struct vm *vm, const struct options *o)
{
	static const char *const names[] = {"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR", NULL};
	const char *name;
	int r = vm_call(vm, o->id, "device_del", json_pack("{s:s}", "id", o->id), NULL);

	if (r)
		return r;
	/* DEVICE_UNPLUG_GUEST_ERROR calls it "device" too. */
	r = fm_qmp_wait_event(vm->qmp, names, "device", o->id, &name, NULL, o->timeout_ms);
	if (r == 0 && name == names[0])
		return FM_EXIT_OK;
	if (r == 0)
		fm_warn("%s: device '%s': the guest refuses to give it back: take its memory offline there (fm-online --offline), then try again",
			vm->arg, o->id);
	else if (r == -ETIMEDOUT)
		fm_warn("%s: device '%s': the guest did not give it back within %u s: take its memory offline there (fm-online --offline), then "
			"try again; it stays plugged until then",
			vm->arg, o->id, o->timeout_ms / 1000);
	else
		fm_warn("%s: device '%s': %s", vm->arg, o->id, fm_qmp_why(vm->qmp));
	return r == 0 || r == -ETIMEDOUT ? FM_EXIT_FAILED : FM_EXIT_PEER;
}

/* The same through libvirt, which drops the backend too. */
static int unplug_domain(struct vm *vm, const struct options *o)
{
	const char *why;
	int r = domain_unplug(vm, o->id, o->timeout_ms, &why);

	if (r && why && *why)
		fm_warn("%s: device '%s': %s: take its memory offline in the guest (fm-online --offline), then try again", vm->arg, o->id,
			why);
	else if (r && why)
		fm_warn("%s: device '%s': the guest did not give it back within %u s: take its memory offline there (fm-online --offline), then "
			"try again; it stays plugged until then",
			vm->arg, o->id, o->timeout_ms / 1000);
	return r;
}

/* The device is gone: drop its backend, and see the region end. */
static int drop_backend(struct vm *vm, const struct options *o, const char *backend, const struct far_region *f)
{
	int r = vm->domain ? FM_EXIT_OK : vm_call(vm, backend, "object-del", json_pack("{s:s}", "id", backend), NULL);

	if (r || !f)
		return r;
	if (!far_wait_gone(o->run_dir, f->id, GONE_MS)) {
		fm_warn("fm-faultd: region %016llx is still there after %d s: is it running?", (unsigned long long)f->id,
			GONE_MS / 1000);
		return FM_EXIT_PEER;
	}
	/* Else its file is gone for another reason. */
	if (!memory_registered(vm, f->hva, f->pages * FM_PAGE_SIZE))
		fm_attach_close(vm->pid, f->uffd, f->nuffd, NULL);
	return FM_EXIT_OK;
}

int cmd_remove(const struct options *o)
{
	struct far_region *regions = NULL;
	const struct far_region *f = NULL;
	struct device d = {.id = ""};
	struct vm vm = {0};
	bool plugged = false;
	int ctl = -1, r;
	size_t n = 0;

	r = vm_open(&vm, o, ASK);
	if (!r)
		r = find_device(&vm, o->id, &d, &plugged);
	if (!r) {
		far_regions(o->run_dir, &vm, &regions, &n);
		f = far_find(regions, n, d.backend);
		/* QEMU waits in the kernel for fm-faultd when it unmaps far memory. */
		if (f)
			r = far_connect(o->run_dir, &ctl);
	}
	if (!r && plugged)
		r = vm.domain ? unplug_domain(&vm, o) : unplug(&vm, o);
	if (!r)
		r = drop_backend(&vm, o, d.backend, f);
	if (!r)
		printf("%s: removed\n", o->id);
	free(regions);
	vm_close(&vm);
	if (ctl >= 0)
		close(ctl);
	return r;
}

/* The backend that an id means: a backend's own, or the one of a device. */
static int resolve(struct vm *vm, const char *id, char backend[ID_MAX])
{
	struct device *list = NULL;
	size_t n = 0;
	int r = vm->qmp || vm->domain ? vm_devices(vm, &list, &n) : FM_EXIT_OK;

	snprintf(backend, ID_MAX, "%s", id);
	for (size_t i = 0; i < n; i++)
		if (!strcmp(list[i].id, id))
			snprintf(backend, ID_MAX, "%s", list[i].backend);
	free(list);
	return r;
}

static int detach_one(int ctl, struct vm *vm, const struct far_region *f)
{
	const char *name = *f->found ? f->found : *f->backend ? f->backend : "-";
	int r = far_detach(ctl, vm->run_dir, f->id);

	if (r)
		return r;
	/* When fm-faultd did not say so itself, its file may be gone for another reason. */
	if (memory_registered(vm, f->hva, f->pages * FM_PAGE_SIZE)) {
		fm_warn("%s: %s: its region is gone, but it is still registered: fm-faultd's run directory was removed?", vm->arg,
			name);
		return FM_EXIT_FAILED;
	}
	fm_attach_close(vm->pid, f->uffd, f->nuffd, NULL);
	printf("%s: detached\n", name);
	return FM_EXIT_OK;
}

int cmd_detach(const struct options *o)
{
	struct far_region *regions = NULL;
	char backend[ID_MAX] = "";
	struct vm vm = {0};
	unsigned done = 0;
	int ctl = -1, r;
	size_t n = 0;

	r = far_connect(o->run_dir, &ctl);
	if (!r)
		r = vm_open(&vm, o, ASK_IF_POSSIBLE);
	if (!r && o->id)
		r = resolve(&vm, o->id, backend);
	if (!r)
		far_regions(o->run_dir, &vm, &regions, &n);
	for (size_t i = 0; i < n && !r; i++)
		if (!o->id || far_is(&regions[i], backend)) {
			r = detach_one(ctl, &vm, &regions[i]);
			done++;
		}
	if (!r && !done) {
		fm_warn("%s: %s: no far memory: see --list", o->vm, o->id ? o->id : "VM");
		r = FM_EXIT_FAILED;
	}
	free(regions);
	vm_close(&vm);
	if (ctl >= 0)
		close(ctl);
	return r;
}
