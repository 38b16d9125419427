/*
 * Inside of fm-hotplug. Each step says itself, in one line on stderr, why it failed and returns an exit code of enum fm_exit;
 * callers undo what they did and pass the code on.
 */
#ifndef HOTPLUG_H
#define HOTPLUG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "attach.h"
#include "log.h"
#include "proc.h"
#include "qmp.h"
#include "shmfile.h"

#define ID_MAX 64 /* bytes of a device's or backend's id with its NUL; as fm_ctl_register.vm_id has */

struct options {
	const char *vm;       /* as given */
	const char *id;       /* of a device; NULL: chosen, or all */
	const char *run_dir;
	uint64_t pages;       /* to add, or to grow or shrink by */
	uint64_t max_pages;   /* of a virtio-mem device: that it can grow to; 0: see add_max_pages() */
	bool shrink;
	int node;             /* NUMA node of the guest; -1: 0 */
	bool virtio_mem;
	bool wait;            /* for the guest */
	unsigned timeout_ms;  /* how long to wait for it */
};

/* --- vm.c: the VM and what QEMU tells about it --- */

struct vm {
	const char *arg;    /* as the user named it */
	int pid;
	struct fm_qmp *qmp; /* NULL: it has none that can be reached */
	struct domain *domain; /* of libvirt (then without qmp); NULL: none */
	const char *run_dir;
	char name[24];      /* printable, without blanks */
};

/* What is to be asked of QEMU. */
enum vm_asks {
	ASK_IF_POSSIBLE,  /* it will do without: what is far already can be listed and brought home in any case */
	ASK_IF_IT_CAN,    /* a VM that has a QMP socket must answer on it, and one of libvirt is to be named: there is more to check then */
	ASK,
};
/*
 * Find the VM of o->vm, which must live as long as *vm. asks: with pid:N; the other names need QMP or libvirt in any case. Ended
 * by vm_close() in every case.
 */
int vm_open(struct vm *vm, const struct options *o, enum vm_asks asks);
void vm_close(struct vm *vm);
/* The text of /proc/PID/cmdline, *len bytes of it: to be freed. */
char *vm_cmdline(int pid, size_t *len);
/* A line for QEMU's human monitor. *text: its output, to be freed. Says what failed. */
int vm_human(struct vm *vm, const char *line, char **text);
/* fm_qmp_call() that says what failed: "VM: what: why". */
int vm_call(struct vm *vm, const char *what, const char *command, json_t *args, json_t **result);

/*
 * Refuse a VM that waits for an incoming migration: QEMU itself registers its memory then, or writes where it was discarded. One
 * that cannot be asked is refused when it was started for that.
 */
int vm_check_status(struct vm *vm);

/* A memory backend (query-memdev). */
struct backend {
	char id[ID_MAX];
	uint64_t bytes;
	bool share;
	bool is_file; /* see vm_mark_files() */
};
/* All backends: an array of *n, to be freed. */
int vm_backends(struct vm *vm, struct backend **list, size_t *n);

/* A memory device (query-memory-devices). */
struct device {
	char id[ID_MAX];
	char backend[ID_MAX];
	char type[16];    /* "dimm", "virtio-mem", ... */
	uint64_t gpa;
	uint64_t bytes;   /* plugged */
	uint64_t max_bytes; /* of guest addresses taken: more than bytes for a virtio-mem device */
	uint64_t requested; /* a virtio-mem device: what the guest is asked to take */
	int node;
	int slot;         /* -1: none */
	bool hotplugged;
};
int vm_devices(struct vm *vm, struct device **list, size_t *n);

/* --- virsh.c: libvirt's client as a child process --- */

#define VIRSH_WHY       512   /* bytes of a message for people, with its NUL */
#define VIRSH_MS        30000 /* a deadline for questions */
#define VIRSH_CHANGE_MS 60000 /* ... for changes of a domain */

/*
 * Run `virsh ARGS...` (up to 16, NULL-terminated) on $LIBVIRT_DEFAULT_URI or qemu:///system. input: NULL, or the text of its /dev/stdin.
 * output: NULL, or what it printed, to be freed. Returns 0; or with why set: -EREMOTEIO (it failed: its own words), -ENOENT (no virsh
 * here), -ETIMEDOUT (it was killed; what it had begun may still happen), another -errno.
 */
int virsh(const char *const *args, const char *input, char **output, char why[VIRSH_WHY], unsigned timeout_ms);

/* --- domain.c: a domain of libvirt. vm->domain must be set but for the first two --- */

struct fm_domxml;
/* Find the domain of vm->arg, running or not; *x: its XML, to be freed. Sets vm->domain. */
int domain_find(struct vm *vm, struct fm_domxml *x);
/* Find the running domain of vm->arg and its process. Sets vm->domain, pid and name. */
int domain_open(struct vm *vm);
void domain_close(struct vm *vm);
/* Its XML as it is now, to be freed. */
int domain_xml(struct vm *vm, struct fm_domxml *x);
/* As vm_backends() and vm_devices(). An alias "ua-ID" is shown as ID. */
int domain_backends(struct vm *vm, struct backend **list, size_t *n);
int domain_devices(struct vm *vm, struct device **list, size_t *n);
/* As vm_human(): it taints the domain, and says so. */
int domain_human(struct vm *vm, const char *line, char **text);
/* As vm_check_status(). */
int domain_check_status(struct vm *vm);
int domain_attach_device(struct vm *vm, const char *xml);
/*
 * Ask the guest to give the device back and wait for that. When it does not: FM_EXIT_FAILED and *why_not, libvirt's words ("": it
 * has not answered); nothing is said then.
 */
int domain_unplug(struct vm *vm, const char *id, unsigned timeout_ms, const char **why_not);
/* Ask a virtio-mem device for another size. */
int domain_resize(struct vm *vm, const char *id, uint64_t bytes);
/* fm-hotplug DOMAIN SIZE, with signals blocked and fm-faultd connected. */
int domain_add(const struct options *o, struct vm *vm, int ctl);

/* --- devices.c: devices that forbid far memory --- */

struct forbidden {
	const char *what, *why; /* for people */
};
/* *what: static, or NULL: it has none. */
int vm_forbidden(struct vm *vm, const struct forbidden **what);

/*
 * Set is_file of those backends whose memory is the content of a file before it is RAM: others read it (ivshmem), or it is to be found there when the VM
 * has ended (nvdimm, virtio-pmem). Pages that are far are not in the file.
 */
int vm_mark_files(struct vm *vm, struct backend *list, size_t n);
/* May the VM have such a backend? By its command line, for a VM without QMP. */
bool vm_may_have_files(int pid);

/* --- memory.c: a backend's memory in the QEMU process --- */

#define MEMORY_BY_INODE "memfd-" /* with the number of its file's inode: the name of a backend whose id nobody tells */

struct memory {
	uint64_t hva;    /* of its first byte */
	uint64_t bytes;
	uint64_t offset; /* in the file of the byte at hva */
	struct fm_mapping mapping; /* the first mapping of it */
};

/* Where a backend that the guest sees is. */
int memory_find(struct vm *vm, const struct backend *b, struct memory *m);
/* Where a backend is that was made after before[] was taken. */
int memory_find_new(struct vm *vm, uint64_t bytes, const struct fm_mapping *before, size_t nbefore, struct memory *m);
/*
 * Can it be paged? what: names it in messages. *far: set when it is registered already (then 0 is returned, silently). *file:
 * its file, opened; the caller owns it; remote: its number in the VM or -1.
 */
int memory_check(struct vm *vm, const char *what, const struct memory *m, bool *far, int *file, int *remote);
/*
 * Keep other fm-hotplug away from it until far_register() has registered it, or file is closed: before anything is done to it.
 * file, *far: as with memory_check(), since which somebody may have registered it.
 */
int memory_claim(struct vm *vm, const char *what, const struct memory *m, int file, bool *far);
/* Does it consist of single pages? After memory_claim(), and far_attach(), by which it stays so. file: of memory_check(). */
int memory_check_folios(struct vm *vm, const char *what, const struct memory *m, int file);
/*
 * Does something about this VM forbid far memory at all (an incoming migration, a device; its memory is shared with another
 * process)?
 */
int memory_check_vm(struct vm *vm);
/* Is some of [hva, hva + bytes) registered with a userfaultfd? True also when that cannot be told. */
bool memory_registered(const struct vm *vm, uint64_t hva, uint64_t bytes);
/* Shared memory of QEMU's backends by its maps alone: an array of *n, to be freed. */
int memory_list(struct vm *vm, struct memory **list, size_t *n);

struct far_region;
/* Find the backends of regions that were attached without QMP, by their addresses. Silent; what it cannot tell stays. */
void memory_name_regions(struct vm *vm, struct far_region *list, size_t n);

/* --- far.c: fm-faultd, and the regions of a VM --- */

/* Userfaultfds made in the VM for one region. */
struct uffds {
	uint64_t hva, bytes; /* the memory that they are for */
	unsigned n;
	struct fm_attached a[FM_ATTACH_MAX];
};

/* Connect to fm-faultd. *fd: the caller's. */
int far_connect(const char *run_dir, int *fd);
/* Make the userfaultfds that a region of this memory needs, and forbid it huge pages. */
int far_attach(int ctl, struct vm *vm, const struct memory *m, struct uffds *u);
/*
 * Close our copies; undo: those in the VM too, unless the memory is registered (still, or after all): when fm-faultd dies, they are
 * all that keeps it so, and pages that are away from being zeros. Does nothing for a zeroed one.
 */
void far_release(struct vm *vm, struct uffds *u, bool undo);
/* Register memory, by which its claim ends. file, remote: of memory_check(). *id: of the region; 0 when fm-faultd died after it had made it. */
int far_register(int ctl, struct vm *vm, const char *run_dir, const char *backend, const struct memory *m, int file, int remote,
		 const struct uffds *u, uint64_t *id);
/*
 * Have fm-faultd bring a region home and let go of it. When fm-faultd dies past the way back, the next one ends it; that is waited for a while.
 */
int far_detach(int ctl, const char *run_dir, uint64_t id);

/* A region of the VM, as its state file has it. */
struct far_region {
	uint64_t id;
	uint64_t pages, resident, remote;
	uint64_t hva;
	char backend[FM_NAME_MAX]; /* attached without QMP: MEMORY_BY_INODE and a number */
	char found[FM_NAME_MAX];   /* then: the backend that it is, "": not known */
	int uffd[FM_MAX_SHARDS]; /* numbers in the VM */
	unsigned nuffd;
};
/* Regions of the VM: an array of *n, to be freed; none when the run directory cannot be read. */
void far_regions(const char *run_dir, struct vm *vm, struct far_region **list, size_t *n);
/* Is it the one of this backend? */
bool far_is(const struct far_region *f, const char *backend);
const struct far_region *far_find(const struct far_region *list, size_t n, const char *backend);
/* Wait until region id is gone from the run directory. */
bool far_wait_gone(const char *run_dir, uint64_t id, unsigned timeout_ms);

/* --- add.c --- */

/*
 * Find the memory of the new backend, of bytes_new bytes and not in before[], and hand it to fm-faultd. *u: of far_release(), also
 * when this fails.
 */
int add_register(int ctl, struct vm *vm, const char *run_dir, const char *backend, uint64_t bytes_new, const struct fm_mapping *before,
		 size_t n, struct uffds *u, uint64_t *region);

/* How large a virtio-mem device shall be able to grow, when so many pages are left for all: as told, else up to four times its size. */
uint64_t add_max_pages(const struct options *o, uint64_t left_pages);

/* --- the commands: exit code --- */
int cmd_add(const struct options *o);
int cmd_attach(const struct options *o);
int cmd_list(const struct options *o);
int cmd_remove(const struct options *o);
int cmd_detach(const struct options *o);
int cmd_print_xml(const struct options *o);
int cmd_resize(const struct options *o);

#endif
