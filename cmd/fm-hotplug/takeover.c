/*
 * fm-hotplug --attach VM: the memory that a running VM has already.
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

/* How many backends were ... */
struct tally {
	unsigned taken, far, refused;
	int code; /* of the first refusal */
};

static void refused(struct tally *t, int code)
{
	if (!t->refused++)
		t->code = code;
}

/* Take over one backend. */
static void take(int ctl, struct vm *vm, const char *run_dir, const char *id, const struct memory *m, struct tally *t)
{
	struct uffds u = {0};
	int file, remote, r;
	uint64_t region;
	char size[16];
	sigset_t ends, before;
	bool far;

	/* An interruption would leave userfaultfds open in QEMU: between two backends it is soon enough. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGHUP);
	sigprocmask(SIG_BLOCK, &ends, &before);
	r = memory_check(vm, id, m, &far, &file, &remote);
	if (!r && !far)
		r = memory_claim(vm, id, m, file, &far);
	if (r || far) {
		if (file >= 0)
			close(file);
		if (r)
			refused(t, r);
		else
			t->far++;
		goto restore;
	}
	r = far_attach(ctl, vm, m, &u);
	if (!r)
		r = memory_check_folios(vm, id, m, file);
	if (!r)
		r = far_register(ctl, vm, run_dir, id, m, file, remote, &u, &region);
	close(file);
	far_release(vm, &u, r != FM_EXIT_OK);
	if (r) {
		refused(t, r);
		goto restore;
	}
	t->taken++;
	printf("%s: %s, region %016" PRIx64 "\n", id, fm_size_format(m->bytes / FM_PAGE_SIZE, size), region);
	fflush(stdout); /* it is so, whatever ends us now */
restore:
	sigprocmask(SIG_SETMASK, &before, NULL);
}

static int take_backends(int ctl, struct vm *vm, const char *run_dir, struct tally *t)
{
	struct backend *list;
	struct memory m;
	size_t n;
	int code, r = vm_backends(vm, &list, &n);

	if (r)
		return r;
	r = vm_mark_files(vm, list, n);
	for (size_t i = 0; i < n && !r; i++) {
		if (!list[i].share) {
			fm_warn("%s: %s: it is private (share=off): start the VM with share=on for its memory backend", vm->arg,
				list[i].id);
			refused(t, FM_EXIT_FAILED);
			continue;
		}
		if (list[i].is_file) {
			fm_warn("%s: %s: it is the file of an ivshmem, nvdimm or virtio-pmem device, in which far pages would be missing", vm->arg,
				list[i].id);
			refused(t, FM_EXIT_FAILED);
			continue;
		}
		code = memory_find(vm, &list[i], &m);
		if (code)
			refused(t, code);
		else
			take(ctl, vm, run_dir, list[i].id, &m, t);
	}
	free(list);
	return r;
}

/* Without QMP nobody tells a backend's id: its file's inode stands for it. */
static int take_mappings(int ctl, struct vm *vm, const char *run_dir, struct tally *t)
{
	struct memory *list;
	char id[32];
	size_t n;
	int r;

	if (vm_may_have_files(vm->pid)) {
		fm_warn("%s: it has an ivshmem, nvdimm or virtio-pmem device, in whose file far pages would be missing, and without a QMP socket nobody "
			"tells which memory it is: start the VM with -qmp unix:PATH,server=on,wait=off",
			vm->arg);
		return FM_EXIT_FAILED;
	}
	r = memory_list(vm, &list, &n);
	if (r)
		return r;
	for (size_t i = 0; i < n; i++) {
		snprintf(id, sizeof id, MEMORY_BY_INODE "%" PRIu64, list[i].mapping.ino);
		take(ctl, vm, run_dir, id, &list[i], t);
	}
	free(list);
	return FM_EXIT_OK;
}

int cmd_attach(const struct options *o)
{
	struct tally t = {0};
	struct vm vm = {0};
	int ctl = -1, r;

	r = far_connect(o->run_dir, &ctl);
	if (!r)
		r = vm_open(&vm, o, ASK_IF_IT_CAN);
	if (!r)
		r = memory_check_vm(&vm);
	if (!r)
		r = (vm.qmp || vm.domain ? take_backends : take_mappings)(ctl, &vm, o->run_dir, &t);
	if (!r && !t.taken && !t.refused) {
		fm_warn("%s: %s", o->vm,
			t.far ? "all its memory is attached already"
			      : "its memory is private: start the VM with -object memory-backend-memfd,id=ID,size=SIZE,share=on "
				"-machine memory-backend=ID");
		r = FM_EXIT_FAILED;
	}
	vm_close(&vm);
	if (ctl >= 0)
		close(ctl);
	return r ? r : t.code;
}
