/*
 * A VM that is a domain of libvirt on this host: found by its name or UUID, asked and changed through libvirt.
 *
 * A domain's monitor belongs to libvirt, and a command that goes around it marks the domain as tainted. So nothing is asked of the
 * monitor that the domain's XML, QEMU's command line and its mappings tell; see domain_human() for what is left.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "domxml.h"
#include "hotplug.h"
#include "qemu.h"

#define BACKENDS_MAX 64 /* on a command line */
#define USER_ALIAS   "ua-" /* libvirt: what an alias that its user chose begins with */
#define POLL_MS      100

struct domain {
	char uuid[FM_DOMXML_UUID];
	char option[FM_DOMXML_UUID + 16]; /* "--domain=UUID": a name could be taken for an id, or an option */
	bool warned;                      /* of the taint */
	char *cmdline;                    /* of QEMU, cmdline_len bytes */
	size_t cmdline_len;
};

/* --- XML --- */

static int parse(const char *arg, char *text, struct fm_domxml *x)
{
	int r = fm_domxml_parse(text, strlen(text), x);

	free(text);
	if (!r)
		return FM_EXIT_OK;
	fm_warn("%s: the domain's XML: %s", arg, r == -ENOMEM ? strerror(ENOMEM) : "not understood");
	return FM_EXIT_FAILED;
}

int domain_xml(struct vm *vm, struct fm_domxml *x)
{
	const char *const args[] = {"dumpxml", vm->domain->option, NULL};
	char why[VIRSH_WHY], *text;

	if (virsh(args, NULL, &text, why, VIRSH_MS)) {
		fm_warn("%s: %s", vm->arg, why);
		return FM_EXIT_PEER;
	}
	return parse(vm->arg, text, x);
}

/* As the user named it; *x must be this very domain. */
static int find_by_name(const char *arg, struct fm_domxml *x)
{
	const char *args[] = {"dumpxml", NULL, NULL};
	char option[FM_DOMXML_NAME + 16], why[VIRSH_WHY], *text;
	int r;

	if (strlen(arg) >= FM_DOMXML_NAME) {
		fm_warn("VM '%.40s...': too long for a domain's name", arg);
		return FM_EXIT_USAGE;
	}
	snprintf(option, sizeof option, "--domain=%s", arg);
	args[1] = option;
	r = virsh(args, NULL, &text, why, VIRSH_MS);
	if (r == -EREMOTEIO && (strstr(why, "Domain not found") || strstr(why, "failed to get domain"))) {
		fm_warn("%s: libvirt has no domain of this name or UUID (virsh list --all), nor is it a QMP socket or pid:N", arg);
		return FM_EXIT_PEER;
	}
	if (r) {
		fm_warn("%s: libvirt: %s%s", arg, why, strstr(why, "connect socket") ? ": does libvirtd run?" : "");
		return FM_EXIT_PEER;
	}
	r = parse(arg, text, x);
	if (r || !strcmp(arg, x->name) || fm_domxml_is_uuid(arg, x->uuid))
		return r;
	fm_warn("%s: an id, not a name: the domain of that id now is '%s'; give its name", arg, x->name);
	fm_domxml_free(x);
	return FM_EXIT_USAGE;
}

/* --- its process --- */

static bool is_its_process(int pid, const char *uuid, char **cmdline, size_t *len)
{
	char value[64];
	char *text = vm_cmdline(pid, len);

	if (text && fm_qemu_option(text, *len, "uuid", NULL, value, sizeof value) && fm_domxml_is_uuid(value, uuid)) {
		*cmdline = text;
		return true;
	}
	free(text);
	return false;
}

static int read_pid(const char *dir, const char *middle, const char *name)
{
	char path[512], text[16] = "";
	ssize_t n;
	int fd;

	if (!dir || snprintf(path, sizeof path, "%s%s/%s.pid", dir, middle, name) >= (int)sizeof path)
		return -1;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	return n > 0 ? atoi(text) : -1;
}

/* Does a process call itself like a QEMU? Asked first: reading a command line may wait for the process's memory. */
static bool looks_like_qemu(const char *pid)
{
	char path[64], comm[32] = "";
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof path, "/proc/%.20s/comm", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, comm, sizeof comm - 1);
		close(fd);
	}
	return n > 0 && (!strncmp(comm, "qemu", 4) || strstr(comm, "kvm"));
}

/* Another runtime folder than the usual ones: the process that has the UUID on its command line, if there is one alone. */
static int scan(const char *uuid, char **cmdline, size_t *len)
{
	struct dirent *e;
	int found = -1;
	DIR *d = opendir("/proc");

	while (d && (e = readdir(d))) {
		char *text;
		size_t n;

		if (!isdigit((unsigned char)*e->d_name) || !looks_like_qemu(e->d_name) ||
		    !is_its_process(atoi(e->d_name), uuid, &text, &n))
			continue;
		if (found >= 0) {
			free(text);
			free(*cmdline);
			*cmdline = NULL;
			found = -1;
			break;
		}
		found = atoi(e->d_name);
		*cmdline = text;
		*len = n;
	}
	if (d)
		closedir(d);
	return found;
}

static int find_process(struct vm *vm, const struct fm_domxml *x)
{
	struct domain *d = vm->domain;
	const struct {
		const char *dir, *middle;
	} dirs[] = {{"/run", "/libvirt/qemu"}, {"/var/run", "/libvirt/qemu"}, {getenv("XDG_RUNTIME_DIR"), "/libvirt/qemu/run"}};

	for (unsigned i = 0; i < sizeof dirs / sizeof *dirs; i++) {
		int pid = read_pid(dirs[i].dir, dirs[i].middle, x->name);

		if (pid > 0 && is_its_process(pid, d->uuid, &d->cmdline, &d->cmdline_len)) {
			vm->pid = pid;
			return FM_EXIT_OK;
		}
	}
	vm->pid = scan(d->uuid, &d->cmdline, &d->cmdline_len);
	if (vm->pid > 0)
		return FM_EXIT_OK;
	fm_warn("%s: its QEMU process is not found: does the domain run on this host, and in this pid namespace? Run fm-hotplug there",
		vm->arg);
	return FM_EXIT_PEER;
}

/* "qemu+ssh://host/system": a domain of another host has no process here, or, while it migrates, the wrong one. */
static int check_uri(const struct vm *vm)
{
	const char *uri = getenv("LIBVIRT_DEFAULT_URI"), *host;

	if (!uri)
		uri = getenv("VIRSH_DEFAULT_CONNECT_URI");
	host = uri ? strstr(uri, "://") : NULL;
	if (!host || host[3] == '/')
		return FM_EXIT_OK;
	fm_warn("%s: LIBVIRT_DEFAULT_URI '%s': another host: run fm-hotplug there", vm->arg, uri);
	return FM_EXIT_USAGE;
}

int domain_find(struct vm *vm, struct fm_domxml *x)
{
	struct domain *d;
	int r = check_uri(vm);

	if (!r)
		r = find_by_name(vm->arg, x);
	if (r)
		return r;
	d = calloc(1, sizeof *d);
	if (!d) {
		fm_warn("%s: %s", vm->arg, strerror(ENOMEM));
		fm_domxml_free(x);
		return FM_EXIT_FAILED;
	}
	memcpy(d->uuid, x->uuid, sizeof d->uuid);
	snprintf(d->option, sizeof d->option, "--domain=%s", d->uuid);
	vm->domain = d;
	return FM_EXIT_OK;
}

int domain_open(struct vm *vm)
{
	struct fm_domxml x;
	size_t n;
	int r = domain_find(vm, &x);

	if (r)
		return r;
	if (!x.running) {
		fm_warn("%s: the domain is shut off: start it first", vm->arg);
		r = FM_EXIT_PEER;
	} else {
		r = find_process(vm, &x);
	}
	for (n = 0; n < sizeof vm->name - 1 && x.name[n]; n++)
		vm->name[n] = x.name[n] > 0x20 && x.name[n] < 0x7f ? x.name[n] : '_';
	vm->name[n] = '\0';
	fm_domxml_free(&x);
	return r;
}

void domain_close(struct vm *vm)
{
	if (vm->domain)
		free(vm->domain->cmdline);
	free(vm->domain);
	vm->domain = NULL;
}

/* --- its memory --- */

/* An alias as users see it: without "ua-", unless a device without it has the same. */
static const char *shown(const struct fm_domxml *x, const char *alias)
{
	if (strncmp(alias, USER_ALIAS, sizeof USER_ALIAS - 1))
		return alias;
	for (size_t i = 0; i < x->nmemory; i++)
		if (!strcmp(x->memory[i].alias, alias + sizeof USER_ALIAS - 1))
			return alias;
	return alias + sizeof USER_ALIAS - 1;
}

int domain_devices(struct vm *vm, struct device **list, size_t *n)
{
	struct fm_domxml x;
	int r = domain_xml(vm, &x);

	*list = NULL;
	*n = 0;
	if (r)
		return r;
	*list = calloc(x.nmemory + 1, sizeof **list);
	for (size_t i = 0; *list && i < x.nmemory; i++) {
		const struct fm_domxml_memory *m = &x.memory[i];
		struct device *d = &(*list)[i];

		snprintf(d->id, sizeof d->id, "%.*s", ID_MAX - 1, shown(&x, m->alias));
		snprintf(d->backend, sizeof d->backend, "mem%.*s", ID_MAX - 4, m->alias);
		snprintf(d->type, sizeof d->type, "%.*s", (int)sizeof d->type - 1, m->model);
		d->gpa = m->gpa;
		d->bytes = strcmp(m->model, "virtio-mem") ? m->bytes : m->current;
		d->max_bytes = m->bytes;
		d->requested = m->requested;
		d->node = m->node;
		d->slot = m->slot;
		d->hotplugged = true; /* libvirt unplugs those that the domain was started with, too */
	}
	*n = *list ? x.nmemory : 0;
	fm_domxml_free(&x);
	if (*list)
		return FM_EXIT_OK;
	fm_warn("%s: %s", vm->arg, strerror(ENOMEM));
	return FM_EXIT_FAILED;
}

/* Boot memory by QEMU's command line, devices by the XML. */
int domain_backends(struct vm *vm, struct backend **list, size_t *n)
{
	struct fm_qemu_backend boot[BACKENDS_MAX];
	unsigned nboot = fm_qemu_backends(vm->domain->cmdline, vm->domain->cmdline_len, boot, BACKENDS_MAX);
	struct fm_domxml x;
	int r = domain_xml(vm, &x);

	*list = NULL;
	*n = 0;
	if (r)
		return r;
	*list = calloc(nboot + x.nmemory + 1, sizeof **list);
	for (unsigned i = 0; *list && i < nboot; i++) {
		struct backend *b = &(*list)[*n];

		/* One of a device that the domain was started with: it may have been unplugged since. */
		if (!strncmp(boot[i].id, "mem", 3))
			continue;
		snprintf(b->id, sizeof b->id, "%.*s", ID_MAX - 1, boot[i].id);
		b->bytes = boot[i].bytes;
		b->share = boot[i].share;
		++*n;
	}
	for (size_t i = 0; *list && i < x.nmemory; i++) {
		struct backend *b = &(*list)[(*n)++];
		const char *access = *x.memory[i].access ? x.memory[i].access : x.access;

		snprintf(b->id, sizeof b->id, "mem%.*s", ID_MAX - 4, x.memory[i].alias);
		b->bytes = x.memory[i].bytes;
		b->share = !strcmp(access, "shared");
	}
	fm_domxml_free(&x);
	if (*list)
		return FM_EXIT_OK;
	fm_warn("%s: %s", vm->arg, strerror(ENOMEM));
	return FM_EXIT_FAILED;
}

int domain_human(struct vm *vm, const char *line, char **text)
{
	const char *const args[] = {"qemu-monitor-command", vm->domain->option, "--hmp", line, NULL};
	char why[VIRSH_WHY];

	if (!vm->domain->warned)
		fm_warn("%s: several memory backends of one size: QEMU's monitor is asked which is which, which libvirt notes as a taint "
			"(custom-monitor) of the domain",
			vm->arg);
	vm->domain->warned = true;
	if (!virsh(args, NULL, text, why, VIRSH_MS))
		return FM_EXIT_OK;
	fm_warn("%s: %s: %s", vm->arg, line, why);
	return FM_EXIT_FAILED;
}

/* --- changes --- */

int domain_check_status(struct vm *vm)
{
	const char *const args[] = {"domstate", vm->domain->option, "--reason", NULL};
	char why[VIRSH_WHY], *text;
	bool incoming;

	if (virsh(args, NULL, &text, why, VIRSH_MS)) {
		fm_warn("%s: %s", vm->arg, why);
		return FM_EXIT_PEER;
	}
	incoming = !strncmp(text, "paused (migrat", 14);
	free(text);
	if (!incoming)
		return FM_EXIT_OK;
	fm_warn("%s: the domain is being migrated: try again when that has ended", vm->arg);
	return FM_EXIT_FAILED;
}

int domain_attach_device(struct vm *vm, const char *xml)
{
	const char *const args[] = {"attach-device", vm->domain->option, "/dev/stdin", "--live", NULL};
	char why[VIRSH_WHY];
	int r = virsh(args, xml, NULL, why, VIRSH_CHANGE_MS);

	if (!r)
		return FM_EXIT_OK;
	fm_warn("%s: attach-device: %s%s", vm->arg, why,
		r == -ETIMEDOUT ? " It may still add the device, as ordinary memory: see --list" : "");
	return r == -EREMOTEIO ? FM_EXIT_FAILED : FM_EXIT_PEER;
}

/* The alias of the memory device that users see as id; false: it is there no more. */
static int alias_of(struct vm *vm, const char *id, char alias[FM_DOMXML_NAME], bool *there)
{
	struct fm_domxml x;
	int r = domain_xml(vm, &x);

	*there = false;
	if (r)
		return r;
	for (size_t i = 0; i < x.nmemory && !*there; i++) {
		if (strcmp(shown(&x, x.memory[i].alias), id))
			continue;
		memcpy(alias, x.memory[i].alias, FM_DOMXML_NAME);
		*there = true;
	}
	fm_domxml_free(&x);
	return FM_EXIT_OK;
}

int domain_unplug(struct vm *vm, const char *id, unsigned timeout_ms, const char **why_not)
{
	static char why[VIRSH_WHY];
	static const struct timespec pause = {.tv_nsec = POLL_MS * 1000000};
	const char *args[] = {"detach-device-alias", vm->domain->option, "--alias", NULL, "--live", NULL};
	char alias[FM_DOMXML_NAME] = "";
	bool there;
	int r = alias_of(vm, id, alias, &there);

	*why_not = NULL;
	if (r || !there)
		return r;
	args[3] = alias;
	r = virsh(args, NULL, NULL, why, VIRSH_CHANGE_MS);
	if (r) {
		*why_not = why;
		return r == -EREMOTEIO ? FM_EXIT_FAILED : FM_EXIT_PEER;
	}
	for (unsigned ms = 0;; ms += POLL_MS) {
		r = alias_of(vm, id, alias, &there);
		if (r || !there)
			return r;
		if (ms >= timeout_ms)
			break;
		nanosleep(&pause, NULL);
	}
	*why_not = "";
	return FM_EXIT_FAILED;
}

int domain_resize(struct vm *vm, const char *id, uint64_t bytes)
{
	char size[48], alias[FM_DOMXML_NAME] = "", why[VIRSH_WHY];
	const char *const args[] = {"update-memory-device", vm->domain->option, "--live", "--alias", alias, "--requested-size", size, NULL};
	bool there;
	int r = alias_of(vm, id, alias, &there);

	if (r)
		return r;
	if (!there) {
		fm_warn("%s: device '%s': no memory device of this id: see --list", vm->arg, id);
		return FM_EXIT_FAILED;
	}
	snprintf(size, sizeof size, "%lluKiB", (unsigned long long)bytes / 1024);
	r = virsh(args, NULL, NULL, why, VIRSH_CHANGE_MS);
	if (!r)
		return FM_EXIT_OK;
	fm_warn("%s: device '%s': %s", vm->arg, id, why);
	return r == -EREMOTEIO ? FM_EXIT_FAILED : FM_EXIT_PEER;
}
