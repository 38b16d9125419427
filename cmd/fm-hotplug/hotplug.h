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

#define ID_MAX 40 /* bytes of a device's or backend's id with its NUL */

struct options {
	const char *vm;       /* as given */
	const char *id;       /* of a device; NULL: chosen, or all */
	const char *run_dir;
	uint64_t pages;       /* to add */
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
	char name[24];      /* printable, without blanks */
};

/* Find the VM. need_qmp: fail when it has no QMP socket. Ended by vm_close() in every case. */
int vm_open(struct vm *vm, const char *arg, bool need_qmp);
void vm_close(struct vm *vm);
/* Has its command line a virtio-gpu device with blob=on? */
bool vm_has_blob(const struct vm *vm);
/* fm_qmp_call() that says what failed: "VM: what: why". */
int vm_call(struct vm *vm, const char *what, const char *command, json_t *args, json_t **result);

/* A memory backend (query-memdev). */
struct backend {
	char id[ID_MAX];
	uint64_t bytes;
	bool share;
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
	int node;
	int slot;         /* -1: none */
	bool hotplugged;
};
int vm_devices(struct vm *vm, struct device **list, size_t *n);

/* --- memory.c: a backend's memory in the QEMU process --- */

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
/* Does it consist of single pages? After far_attach(), by which it stays so. file: of memory_check(). */
int memory_check_folios(struct vm *vm, const char *what, const struct memory *m, int file);
/* Does something about this VM forbid far memory at all (VFIO, udmabuf; its memory is shared with another process)? */
int memory_check_vm(struct vm *vm);
/* Shared memory of QEMU's backends by its maps alone, for a VM without QMP: an array of *n, to be freed. */
int memory_list(struct vm *vm, struct memory **list, size_t *n);

/* --- far.c: fm-faultd, and the regions of a VM --- */

/* Userfaultfds made in the VM for one region. */
struct uffds {
	unsigned n;
	struct fm_attached a[FM_ATTACH_MAX];
};

/* Connect to fm-faultd. *fd: the caller's. */
int far_connect(const char *run_dir, int *fd);
/* Make the userfaultfds that a region of this memory needs, and forbid it huge pages. */
int far_attach(int ctl, struct vm *vm, const struct memory *m, struct uffds *u);
/* Close our copies; undo: those in the VM too. Does nothing for a zeroed one. */
void far_release(struct vm *vm, struct uffds *u, bool undo);
/* Register memory. file, remote: of memory_check(). *id: of the region; 0 when fm-faultd died after it had made it. */
int far_register(int ctl, struct vm *vm, const char *run_dir, const char *backend, const struct memory *m, int file, int remote,
		 const struct uffds *u, uint64_t *id);
/* Have fm-faultd bring a region home and let go of it. */
int far_detach(int ctl, uint64_t id);

/* A region of the VM, as its state file has it. */
struct far_region {
	uint64_t id;
	uint64_t pages, resident, remote;
	uint64_t hva;
	char backend[FM_NAME_MAX];
	int uffd[FM_MAX_SHARDS]; /* numbers in the VM */
	unsigned nuffd;
};
/* Regions of the VM: an array of *n, to be freed; none when the run directory cannot be read. */
void far_regions(const char *run_dir, const struct vm *vm, struct far_region **list, size_t *n);
const struct far_region *far_find(const struct far_region *list, size_t n, const char *backend);
/* Wait until region id is gone from the run directory. */
bool far_wait_gone(const char *run_dir, uint64_t id, unsigned timeout_ms);

/* --- the commands: exit code --- */
int cmd_add(const struct options *o);
int cmd_attach(const struct options *o);
int cmd_list(const struct options *o);
int cmd_remove(const struct options *o);
int cmd_detach(const struct options *o);

#endif
