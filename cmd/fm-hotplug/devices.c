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
