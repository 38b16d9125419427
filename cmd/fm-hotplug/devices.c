/*
 * Devices of a VM that far memory cannot be given to: what they do to memory cannot be seen in its mappings, or only later.
 */
#include <ctype.h>
#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "domxml.h"
#include "hotplug.h"
#include "qemu.h"

#define MEMDEVS_MAX 64 /* on a command line */

static const char pins[] = "it pins the guest's memory, which can then not be paged: remove it";
static const char maps[] = "its process maps the guest's memory and would read missing pages as zeros: remove it";

static const struct forbidden blob_gpu = {"virtio-gpu device with blob=on", pins};
static const struct forbidden vfio = {"VFIO or vDPA device", pins};
static const struct forbidden vhost_user = {"vhost-user device", maps};

/* Does the option list end with, or go on after, a value that means yes? */
static bool says_yes(const char *value)
{
	static const char *const yes[] = {"on", "yes", "true", "y"};

	for (unsigned i = 0; i < sizeof yes / sizeof *yes; i++) {
		size_t n = strlen(yes[i]);

		if (!strncmp(value, yes[i], n) && (value[n] == '\0' || value[n] == ','))
			return true;
	}
	return false;
}

/* One argument: "virtio-gpu-pci,id=v,blob=on", or the same as a JSON object, as libvirt writes it. */
static bool is_blob_device(const char *arg)
{
	const char *blob;
	json_t *json;
	bool yes;

	if (!strstr(arg, "-gpu") && !strstr(arg, "-vga"))
		return false;
	if (*arg == '{') {
		json = json_loads(arg, 0, NULL);
		yes = json_is_true(json_object_get(json, "blob"));
		json_decref(json);
		return yes;
	}
	blob = strstr(arg, ",blob=");
	return blob && says_yes(blob + strlen(",blob="));
}

/* One argument of -device or -netdev. Its process maps the memory when the guest's driver starts: the mappings tell too late. */
static bool is_vhost_user(const char *arg)
{
	static const char *const starts[] = {"vhost-user", "driver=vhost-user", "type=vhost-user"};
	static const char *const keys[] = {"driver", "type"};
	const char *value;
	json_t *json;
	bool yes = false;

	if (*arg == '{') {
		json = json_loads(arg, 0, NULL);
		for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++) {
			value = json_string_value(json_object_get(json, keys[i]));
			yes |= value && !strncmp(value, starts[0], strlen(starts[0]));
		}
		json_decref(json);
		return yes;
	}
	for (unsigned i = 0; i < sizeof starts / sizeof *starts; i++) {
		value = strstr(arg, starts[i]);
		yes |= value && (value == arg || (i && value[-1] == ','));
	}
	return yes;
}

static bool takes_devices(const char *option)
{
	option += *option == '-';
	option += *option == '-';
	return !strcmp(option, "device") || !strcmp(option, "netdev") || !strcmp(option, "nic");
}

static const struct forbidden *by_cmdline(int pid)
{
	const struct forbidden *found = NULL;
	const char *option = "";
	size_t len;
	char *buf = vm_cmdline(pid, &len);

	for (char *a = buf, *end; buf && a < buf + len && !found; option = a, a = end + 1) {
		end = memchr(a, '\0', len - (size_t)(a - buf));
		if (!end)
			break;
		if (is_blob_device(a))
			found = &blob_gpu;
		else if (takes_devices(option) && is_vhost_user(a))
			found = &vhost_user;
	}
	free(buf);
	return found;
}

/* Those that were plugged into the running VM. */
static const struct forbidden *by_qom(struct fm_qmp *qmp, const char *path)
{
	static const char wanted[] = "child<vhost-user";
	json_t *list = NULL, *e;
	bool yes = false;
	size_t i;

	if (fm_qmp_call(qmp, "qom-list", json_pack("{s:s}", "path", path), &list, FM_QMP_REPLY_MS))
		return NULL;
	json_array_foreach(list, i, e) {
		const char *type = json_string_value(json_object_get(e, "type"));

		yes |= type && !strncmp(type, wanted, sizeof wanted - 1);
	}
	json_decref(list);
	return yes ? &vhost_user : NULL;
}

/* Network backends are no objects: a NIC is a virtio-net-pci whatever is behind it. */
static int by_network(struct vm *vm, const struct forbidden **what)
{
	char *text;
	int r = vm_human(vm, "info network", &text);

	if (r)
		return r;
	if (strstr(text, ",type=vhost-user,"))
		*what = &vhost_user;
	free(text);
	return FM_EXIT_OK;
}

/* Descriptors of the process. */
static const struct forbidden *by_descriptors(int pid)
{
	static const struct {
		const char *target;
		const struct forbidden *what;
	} kinds[] = {
	    {"/dev/vfio/", &vfio},      {"anon_inode:[vfio", &vfio}, {"anon_inode:vfio", &vfio},
	    {"/dev/vhost-vdpa", &vfio}, {"/dev/iommu", &vfio},       {"/dev/udmabuf", &blob_gpu},
	};
	char path[32], target[64];
	const struct forbidden *found = NULL;
	struct dirent *e;
	ssize_t n;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	d = opendir(path);
	while (d && !found && (e = readdir(d))) {
		if (!isdigit((unsigned char)e->d_name[0]) || (n = readlinkat(dirfd(d), e->d_name, target, sizeof target - 1)) < 0)
			continue;
		target[n] = '\0';
		for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
			if (!strncmp(target, kinds[i].target, strlen(kinds[i].target)))
				found = kinds[i].what;
	}
	if (d)
		closedir(d);
	return found;
}

int vm_forbidden(struct vm *vm, const struct forbidden **what)
{
	struct fm_domxml x;
	int r;

	*what = by_descriptors(vm->pid);
	if (!*what)
		*what = by_cmdline(vm->pid);
	if (!*what && vm->qmp)
		*what = by_qom(vm->qmp, "/machine/peripheral");
	if (!*what && vm->qmp)
		*what = by_qom(vm->qmp, "/machine/peripheral-anon");
	if (!*what && vm->qmp)
		return by_network(vm, what);
	if (*what || !vm->domain)
		return FM_EXIT_OK;
	r = domain_xml(vm, &x);
	if (r)
		return r;
	if (x.vhost_user)
		*what = &vhost_user;
	fm_domxml_free(&x);
	return FM_EXIT_OK;
}

/* --- files --- */

static bool is_file_device(const char *driver)
{
	static const char *const starts[] = {"ivshmem", "nvdimm", "virtio-pmem"};

	for (unsigned i = 0; i < sizeof starts / sizeof *starts; i++)
		if (!strncmp(driver, starts[i], strlen(starts[i])))
			return true;
	return false;
}

static void mark(struct backend *list, size_t n, const char *id)
{
	for (size_t i = 0; i < n; i++)
		list[i].is_file |= !strcmp(list[i].id, id);
}

static unsigned memdevs(int pid, struct fm_qemu_memdev list[MEMDEVS_MAX])
{
	size_t len;
	char *buf = vm_cmdline(pid, &len);
	unsigned n = buf ? fm_qemu_memdevs(buf, len, list, MEMDEVS_MAX) : 0;

	free(buf);
	return n;
}

/* Those that were plugged into the running VM; an nvdimm is a memory device, too. */
static void mark_by_qom(struct fm_qmp *qmp, const char *parent, struct backend *backends, size_t n)
{
	json_t *list = NULL, *e, *memdev;
	char path[256];
	size_t i;

	if (fm_qmp_call(qmp, "qom-list", json_pack("{s:s}", "path", parent), &list, FM_QMP_REPLY_MS))
		return;
	json_array_foreach(list, i, e) {
		const char *type = json_string_value(json_object_get(e, "type")), *id;

		if (!type || strncmp(type, "child<", 6) || !is_file_device(type + 6))
			continue;
		snprintf(path, sizeof path, "%s/%s", parent, json_string_value(json_object_get(e, "name")));
		memdev = NULL;
		if (fm_qmp_call(qmp, "qom-get", json_pack("{s:s, s:s}", "path", path, "property", "memdev"), &memdev, FM_QMP_REPLY_MS))
			continue;
		id = json_string_value(memdev) ? strrchr(json_string_value(memdev), '/') : NULL;
		if (id)
			mark(backends, n, id + 1);
		json_decref(memdev);
	}
	json_decref(list);
}

int vm_mark_files(struct vm *vm, struct backend *list, size_t n)
{
	struct fm_qemu_memdev on_line[MEMDEVS_MAX];
	unsigned nline = memdevs(vm->pid, on_line);
	struct device *d;
	size_t nd;
	int r = vm_devices(vm, &d, &nd);

	if (r)
		return r;
	for (unsigned i = 0; i < nline; i++)
		if (is_file_device(on_line[i].driver))
			mark(list, n, on_line[i].backend);
	for (size_t i = 0; i < nd; i++)
		if (is_file_device(d[i].type))
			mark(list, n, d[i].backend);
	free(d);
	if (vm->qmp) {
		mark_by_qom(vm->qmp, "/machine/peripheral", list, n);
		mark_by_qom(vm->qmp, "/machine/peripheral-anon", list, n);
	}
	return FM_EXIT_OK;
}

bool vm_may_have_files(int pid)
{
	struct fm_qemu_memdev list[MEMDEVS_MAX];
	unsigned n = memdevs(pid, list);

	for (unsigned i = 0; i < n; i++)
		if (is_file_device(list[i].driver))
			return true;
	return n == MEMDEVS_MAX;
}
