/*
 * Userfaultfds made inside another process that knows nothing of them: a stock QEMU.
 *
 * A userfaultfd belongs to the address space of its maker, so a thread of the process is stopped for some ten microseconds
 * and made to call userfaultfd(2) (see inject.h); pidfd_getfd(2) then brings the descriptors over. A process that may not call
 * it (vm.unprivileged_userfaultfd=0) is handed /dev/userfaultfd through a socket pair and makes them from that.
 *
 * The stopped window runs in a child process of its own, which is out of the caller's session, above the OOM killer where that
 * is permitted, and has all signals blocked: a caller that is killed does not take the VM with it.
 */
#ifndef FM_ATTACH_H
#define FM_ATTACH_H

#include <stdbool.h>
#include <stdint.h>

#define FM_ATTACH_MAX 16 /* userfaultfds of one call */

/* One userfaultfd: two descriptors of the same file. */
struct fm_attached {
	int fd;     /* ours; close-on-exec, the caller owns it */
	int remote; /* its number in the other process, where it stays open until that process ends: see fm_attach_close() */
};

/* Memory of the other process. */
struct fm_attach_range {
	uint64_t hva, bytes; /* page-aligned; mapped without a gap */
};

/* How it went. All fields are set, whatever the call returns. */
struct fm_attach_report {
	uint64_t stopped_ns; /* the thread was seen stopped -> it was let go; 0: it was not stopped */
	uint64_t wait_ns;    /* asked to stop -> seen stopped; the thread still ran for most of it */
	unsigned calls;      /* system calls made in it */
	bool by_device;      /* through /dev/userfaultfd */
	int tracer;          /* pid of the process that traces it, with -EBUSY */
	const char *step;    /* what failed, for people: "stop the thread"; static string, "" on success */
};

/*
 * Make n userfaultfds (O_CLOEXEC, O_NONBLOCK, faults of the kernel included) in process pid, all in one stop. n: 1 to
 * FM_ATTACH_MAX. out: n entries, set on success. UFFDIO_API is left to the caller. report may be NULL. Forks; the thread that
 * calls must not have changed SIGCHLD to SA_NOCLDWAIT and reap children of other threads meanwhile. Any thread.
 *
 * small: NULL, or the memory that they are for: it is told in the same stop to take no huge pages from now on (MADV_NOHUGEPAGE;
 * a kernel without huge pages is content). Then no page fault and no UFFDIO_COPY through its mapping makes a folio larger than a
 * page (measured, Linux 6.18). What it has already stays: see fm_proc_large_folios().
 *
 * Returns 0, or -errno with nothing left behind in the process but that advice:
 *   -ESRCH     gone, or it ended meanwhile
 *   -EPERM     not allowed to trace it (needs root or CAP_SYS_PTRACE; kernel.yama.ptrace_scope 3 forbids it to all)
 *   -EBUSY     traced already; report->tracer
 *   -EACCES    it may not make a userfaultfd, and /dev/userfaultfd could not be given to it
 *   -ENOSYS    the kernel, or a seccomp filter of the process, has no userfaultfd(2)
 *   -ENOEXEC   no `syscall` instruction was found in it, or it is a 32-bit program
 *   -ETIMEDOUT it did not stop within 10 s: in uninterruptible sleep, or frozen by its cgroup
 *   -EMFILE, -ENOMEM (also: small has a gap), -EINVAL (n), -EIO (the helper died)
 */
int fm_attach_uffds(int pid, const struct fm_attach_range *small, unsigned n, struct fm_attached *out,
		    struct fm_attach_report *report);

/*
 * Close n descriptors of process pid, numbers remote[]; those that are no userfaultfd (any more) are passed over. For a
 * userfaultfd that could not be registered: one with memory registered must stay open, or its pages turn to zeros. Returns and
 * report as fm_attach_uffds().
 */
int fm_attach_close(int pid, const int *remote, unsigned n, struct fm_attach_report *report);

/* The process that traces process pid; 0: none, or pid is gone. Any thread. */
int fm_attach_tracer(int pid);

/* One line on what an error of these calls means and what to do about it. Static string; "" for one not in the list. Pure. */
const char *fm_attach_why(int error);

#endif
