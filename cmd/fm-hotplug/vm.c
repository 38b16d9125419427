#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hotplug.h"
#include "qemu.h"

#define GREETING_MS 5000 /* QEMU greets in its main loop, which may be busy */
#define CMDLINE_MAX (1u << 20)
#define PATHS       4

static int pid_of(const char *arg)
{
	char *end;
	long v;

	errno = 0;
	v = strtol(arg, &end, 10);
	return end == arg || *end || errno || v <= 0 || v > 0x7fffffff ? -1 : (int)v;
}

char *vm_cmdline(int pid, size_t *len)
{
	char path[32], *buf = malloc(CMDLINE_MAX);
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	*len = 0;
	while (buf && fd >= 0 && *len < CMDLINE_MAX && (n = read(fd, buf + *len, CMDLINE_MAX - *len)) > 0)
		*len += (size_t)n;
	if (fd >= 0)
		close(fd);
	return buf;
}

/* As the process itself would open it: relative to its working directory, in its own view of the files. */
static void path_of_process(int pid, const char *path, char *out, size_t cap)
{
	if (*path == '/' && access(path, F_OK) == 0)
		snprintf(out, cap, "%s", path);
	else
		snprintf(out, cap, "/proc/%d/%s/%s", pid, *path == '/' ? "root" : "cwd", path + (*path == '/'));
}

/* The socket is libvirt's, which keeps it. */
static void say_domain(const char *arg, int pid)
{
	char name[256] = "";
	size_t len;
	char *cmdline = vm_cmdline(pid, &len);

	if (!cmdline || !fm_qemu_option(cmdline, len, "name", "guest", name, sizeof name))
		strcpy(name, "its name");
	free(cmdline);
	fm_warn("%s: the QMP socket belongs to libvirt: name the domain instead: fm-hotplug '%s' ...", arg, name);
}

/* Find a QMP socket on the command line of vm->pid, and connect. */
static int open_by_pid(struct vm *vm, enum vm_asks asks)
{
	char paths[PATHS][FM_QEMU_PATH], path[PATHS * FM_QEMU_PATH + 32], why[FM_QMP_WHY] = "";
	size_t len;
	char *cmdline = vm_cmdline(vm->pid, &len);
	bool by_fd = false;
	unsigned n = cmdline ? fm_qemu_qmp_paths(cmdline, len, paths, PATHS, &by_fd) : 0;
	int r = -ENOENT;

	free(cmdline);
	for (unsigned i = 0; i < n && r; i++) {
		path_of_process(vm->pid, paths[i], path, sizeof path);
		r = fm_qmp_open(path, GREETING_MS, &vm->qmp, why);
		if (r == 0 && fm_qmp_peer(vm->qmp) != vm->pid) {
			fm_qmp_close(vm->qmp);
			vm->qmp = NULL;
			snprintf(why, sizeof why, "another process listens on this socket");
			r = -ENOENT;
		}
		if (r)
			fm_info("%s: QMP socket %s: %s", vm->arg, path, why);
	}
	if (vm->qmp || asks == ASK_IF_POSSIBLE || (asks == ASK_IF_IT_CAN && !n && !by_fd))
		return FM_EXIT_OK;
	if (n)
		fm_warn("%s: QMP socket %s: %s", vm->arg, path, why);
	else if (by_fd)
		say_domain(vm->arg, vm->pid);
	else
		fm_warn("%s: no QMP socket on its command line: start the VM with -qmp unix:PATH,server=on,wait=off (--attach works without)",
			vm->arg);
	return n ? FM_EXIT_PEER : FM_EXIT_FAILED;
}

/* Who listens at the other end; 0: not known. */
static int listener(int fd)
{
	struct ucred peer = {.pid = 0};
	socklen_t len = sizeof peer;

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 ? 0 : peer.pid;
}

/* Why nobody greets on a QMP socket that process pid listens on, if that can be told: false: it cannot. */
static bool say_silent(const char *path, int pid)
{
	char paths[PATHS][FM_QEMU_PATH];
	int tracer = pid ? fm_attach_tracer(pid) : 0;
	bool by_fd = false;
	char *cmdline;
	size_t len;

	if (tracer) {
		fm_warn("%s: no greeting: process %d traces QEMU (a debugger or strace): end that first", path, tracer);
		return true;
	}
	/* libvirt makes the socket, hands it to QEMU and keeps the one connection. */
	cmdline = pid ? vm_cmdline(pid, &len) : NULL;
	if (cmdline)
		fm_qemu_qmp_paths(cmdline, len, paths, PATHS, &by_fd);
	free(cmdline);
	if (by_fd)
		say_domain(path, pid);
	return by_fd;
}

static int open_by_path(struct vm *vm)
{
	char why[FM_QMP_WHY];
	int pid = 0, fd, r = fm_qmp_connect(vm->arg, GREETING_MS, &fd, why);

	if (!r) {
		pid = listener(fd);
		r = fm_qmp_open_fd(fd, GREETING_MS, &vm->qmp, why);
	}
	if (r == -ETIMEDOUT && say_silent(vm->arg, pid))
		return FM_EXIT_PEER;
	if (r) {
		fm_warn("%s: %s", vm->arg, why);
		return FM_EXIT_PEER;
	}
	vm->pid = fm_qmp_peer(vm->qmp);
	if (vm->pid > 0)
		return FM_EXIT_OK;
	fm_warn("%s: the process of this QEMU cannot be seen: is it in another pid namespace?", vm->arg);
	return FM_EXIT_FAILED;
}

/* What people call the VM, in a region's name: printable, no blanks. */
static void set_name(struct vm *vm)
{
	json_t *result = NULL;
	const char *s = NULL;
	size_t n = 0;

	if (vm->qmp && fm_qmp_call(vm->qmp, "query-name", NULL, &result, FM_QMP_REPLY_MS) == 0)
		s = json_string_value(json_object_get(result, "name"));
	for (; s && *s && n < sizeof vm->name - 1; s++)
		vm->name[n++] = *s > 0x20 && *s < 0x7f ? *s : '_';
	vm->name[n] = '\0';
	if (!n)
		snprintf(vm->name, sizeof vm->name, "vm-%d", vm->pid);
	json_decref(result);
}

int vm_open(struct vm *vm, const struct options *o, enum vm_asks asks)
{
	const char *arg = o->vm;
	uint64_t start;
	struct stat st;
	int r;

	*vm = (struct vm){.arg = arg, .run_dir = o->run_dir};
	if (!strncmp(arg, "pid:", 4)) {
		vm->pid = pid_of(arg + 4);
		if (vm->pid < 0) {
			fm_warn("VM '%s': not pid:N", arg);
			return FM_EXIT_USAGE;
		}
		r = fm_proc_start(vm->pid, &start);
		if (r) {
			fm_warn("%s: %s", arg, r == -ESRCH ? "no such process: the VM is gone" : strerror(-r));
			return FM_EXIT_PEER;
		}
		r = open_by_pid(vm, asks);
	} else if (!strchr(arg, '/') && (stat(arg, &st) < 0 || !S_ISSOCK(st.st_mode))) {
		return domain_open(vm);
	} else {
		r = open_by_path(vm);
	}
	if (r == FM_EXIT_OK)
		set_name(vm);
	return r;
}

void vm_close(struct vm *vm)
{
	fm_qmp_close(vm->qmp);
	vm->qmp = NULL;
	domain_close(vm);
}

int vm_human(struct vm *vm, const char *line, char **text)
{
	int r;

	if (vm->domain)
		return domain_human(vm, line, text);
	r = fm_qmp_human(vm->qmp, line, text, FM_QMP_REPLY_MS);
	if (!r)
		return FM_EXIT_OK;
	fm_warn("%s: %s: %s", vm->arg, line, fm_qmp_why(vm->qmp));
	return FM_EXIT_FAILED;
}

int vm_call(struct vm *vm, const char *what, const char *command, json_t *args, json_t **result)
{
	int r = fm_qmp_call(vm->qmp, command, args, result, FM_QMP_REPLY_MS);

	if (r == 0)
		return FM_EXIT_OK;
	fm_warn("%s: %s: %s", vm->arg, what, fm_qmp_why(vm->qmp));
	return r == -EREMOTEIO ? FM_EXIT_FAILED : FM_EXIT_PEER;
}

/* A migration that has ended leaves its option behind. */
static int check_incoming(struct vm *vm)
{
	char *value = malloc(CMDLINE_MAX);
	size_t len;
	char *cmdline = vm_cmdline(vm->pid, &len);
	bool yes = !value || !cmdline || fm_qemu_option(cmdline, len, "incoming", NULL, value, CMDLINE_MAX);

	free(cmdline);
	free(value);
	if (!yes)
		return FM_EXIT_OK;
	fm_warn("%s: the VM was started with -incoming, and without a QMP socket it cannot be asked whether that migration has ended: start it with "
		"-qmp unix:PATH,server=on,wait=off",
		vm->arg);
	return FM_EXIT_FAILED;
}

int vm_check_status(struct vm *vm)
{
	json_t *result = NULL;
	const char *status;
	int r;

	if (vm->domain)
		return domain_check_status(vm);
	if (!vm->qmp)
		return check_incoming(vm);
	r = vm_call(vm, "query-status", "query-status", NULL, &result);
	if (r)
		return r;
	status = json_string_value(json_object_get(result, "status"));
	if (status && !strcmp(status, "inmigrate")) {
		fm_warn("%s: the VM waits for an incoming migration: try again when that has ended", vm->arg);
		r = FM_EXIT_FAILED;
	}
	json_decref(result);
	return r;
}

/* What QEMU calls something. Its ids are letters, digits, '-', '.' and '_'; what else it says must not get to a terminal, nor look like two words. */
static void copy_text(char *to, size_t cap, const json_t *json, const char *key)
{
	const char *s = json_string_value(json_object_get(json, key));
	const char *slash = s ? strrchr(s, '/') : NULL; /* "/objects/ID" */

	snprintf(to, cap, "%s", slash ? slash + 1 : s ? s : "");
	for (; *to; to++)
		if (*to <= ' ' || *to > '~')
			*to = '_';
}

static uint64_t integer(const json_t *json, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(json, key));
}

/* Ask for an array of things of size bytes each; *list zeroed, with room for all. */
static int query(struct vm *vm, const char *command, size_t size, void **list, json_t **result)
{
	int r = vm_call(vm, command, command, NULL, result);

	*list = NULL;
	if (r)
		return r;
	*list = json_is_array(*result) ? calloc(json_array_size(*result) + 1, size) : NULL;
	if (*list)
		return FM_EXIT_OK;
	fm_warn("%s: %s: %s", vm->arg, command, json_is_array(*result) ? strerror(ENOMEM) : "not a list");
	json_decref(*result);
	return FM_EXIT_FAILED;
}

int vm_backends(struct vm *vm, struct backend **list, size_t *n)
{
	json_t *result = NULL, *b;
	void *memory;
	size_t i;
	int r;

	if (vm->domain)
		return domain_backends(vm, list, n);
	r = query(vm, "query-memdev", sizeof **list, &memory, &result);

	*list = memory;
	*n = 0;
	if (r)
		return r;
	json_array_foreach(result, i, b) {
		copy_text((*list)[i].id, ID_MAX, b, "id");
		(*list)[i].bytes = integer(b, "size");
		(*list)[i].share = json_is_true(json_object_get(b, "share"));
	}
	*n = i;
	json_decref(result);
	return FM_EXIT_OK;
}

int vm_devices(struct vm *vm, struct device **list, size_t *n)
{
	json_t *result = NULL, *e, *data;
	void *memory;
	size_t i;
	int r;

	if (vm->domain)
		return domain_devices(vm, list, n);
	r = query(vm, "query-memory-devices", sizeof **list, &memory, &result);

	*list = memory;
	*n = 0;
	if (r)
		return r;
	json_array_foreach(result, i, e) {
		struct device *d = &(*list)[i];
		json_t *slot;

		data = json_object_get(e, "data");
		slot = json_object_get(data, "slot");
		copy_text(d->type, sizeof d->type, e, "type");
		copy_text(d->id, ID_MAX, data, "id");
		copy_text(d->backend, ID_MAX, data, "memdev");
		d->gpa = integer(data, json_object_get(data, "memaddr") ? "memaddr" : "addr");
		d->bytes = integer(data, "size");
		d->max_bytes = json_object_get(data, "max-size") ? integer(data, "max-size") : d->bytes;
		d->requested = integer(data, "requested-size");
		d->node = (int)integer(data, "node");
		d->slot = slot ? (int)json_integer_value(slot) : -1;
		d->hotplugged = !json_object_get(data, "hotplugged") || json_is_true(json_object_get(data, "hotplugged"));
	}
	*n = i;
	json_decref(result);
	return FM_EXIT_OK;
}
