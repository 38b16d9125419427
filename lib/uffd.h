/*
 * userfaultfd: the ioctls that move pages, and the one place where their errors are understood.
 */
#ifndef FM_UFFD_H
#define FM_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What an ioctl on a userfaultfd came to. */
enum fm_uffd_result {
	FM_UFFD_DONE = 0,     /* all of the range */
	FM_UFFD_RETRY,        /* EAGAIN: an event (REMOVE, UNMAP, REMAP) is unread or its sender still runs; drain events, try again */
	FM_UFFD_PRESENT,      /* EEXIST: there is a page already */
	FM_UFFD_NO_RANGE,     /* ENOENT: unmapped or unregistered meanwhile */
	FM_UFFD_NO_PROCESS,   /* ESRCH: the client's memory is gone (exit or exec) */
	FM_UFFD_NO_MEMORY,    /* ENOMEM: out of memory or at the client's cgroup limit; try again later */
	FM_UFFD_NOT_POSSIBLE, /* anything else: EINVAL and the like; a bug or a kernel without the feature */
};

/* Kernel calls, replaceable so that a test can inject errors and delays. */
struct fm_uffd_ops {
	int (*ioctl)(int fd, unsigned long request, void *arg); /* as ioctl(2) */
	ssize_t (*read)(int fd, void *buf, size_t n);           /* as read(2) */
};
extern const struct fm_uffd_ops fm_uffd_kernel; /* the real ones */

struct fm_uffd {
	int fd;
	const struct fm_uffd_ops *ops;
	bool no_wake; /* COPY, ZEROPAGE and the end of a write protection leave the waiters asleep: the caller sees to that */
};

/* Classify the errno (> 0) of a userfaultfd ioctl; 0 is FM_UFFD_DONE. Pure. Source: ioctl_userfaultfd(2), kernel 6.18 fs/userfaultfd.c. */
enum fm_uffd_result fm_uffd_classify(int error);

/* Features that registration needs, and those that it uses when there. */
#define FM_UFFD_NEEDED 0x1069ull /* PAGEFAULT_FLAG_WP, EVENT_REMOVE, MISSING_SHMEM, EVENT_UNMAP, WP_HUGETLBFS_SHMEM */
#define FM_UFFD_REMAP  0x4ull
#define FM_UFFD_TID    0x100ull /* events name the thread */
#define FM_UFFD_POISON 0x4000ull

/*
 * A userfaultfd of our own process (O_CLOEXEC | O_NONBLOCK): by the system call, else by /dev/userfaultfd. Returns a descriptor
 * that the caller owns, or -errno (-EPERM: not allowed; -ENOSYS: no such system call). Any thread.
 */
int fm_uffd_open(void);

/*
 * Which features has this kernel? Opens a userfaultfd of our own and closes it. Returns 0 and *features, or -errno as
 * fm_uffd_open(). Any thread.
 */
int fm_uffd_probe(uint64_t *features);

/* Name of a feature bit that is needed, for messages: "EVENT_REMOVE". */
const char *fm_uffd_feature_name(uint64_t bit);

/*
 * UFFDIO_API on a fresh userfaultfd with the needed features, EVENT_REMAP, and POISON when the kernel offers it (offered: from
 * fm_uffd_probe). Returns 0 or -errno. Any thread.
 */
int fm_uffd_api(const struct fm_uffd *u, uint64_t offered);

/* Register [hva, hva + bytes) for missing and write-protect faults. Returns 0 or -errno (-EINVAL: not shmem; -EBUSY: another uffd). */
int fm_uffd_register(const struct fm_uffd *u, uint64_t hva, uint64_t bytes);

/* Unregister the range; wakes its waiters. Returns 0 or -errno. */
int fm_uffd_unregister(const struct fm_uffd *u, uint64_t hva, uint64_t bytes);

/*
 * Install pages: copy `bytes` from src to hva, write-protected when wp, and wake the waiters of what was done. Caller owns the
 * pages. *done: bytes installed from the start, also when the result is not DONE (then the page at *done is the one that
 * failed). Continues by itself after partial progress.
 */
enum fm_uffd_result fm_uffd_copy(const struct fm_uffd *u, uint64_t hva, const void *src, uint64_t bytes, bool wp, uint64_t *done);

/* Install writable zero pages; otherwise as fm_uffd_copy. */
enum fm_uffd_result fm_uffd_zeropage(const struct fm_uffd *u, uint64_t hva, uint64_t bytes, uint64_t *done);

/* Write-protect (on) or unprotect and wake (off) the pages of a range. Caller owns them all. */
enum fm_uffd_result fm_uffd_writeprotect(const struct fm_uffd *u, uint64_t hva, uint64_t bytes, bool on);

/* Wake whoever waits in the range. Changes no mapping: needs no ownership. */
enum fm_uffd_result fm_uffd_wake(const struct fm_uffd *u, uint64_t hva, uint64_t bytes);

/* Poison a page: access raises SIGBUS; wakes its waiters. Caller owns it. NOT_POSSIBLE on kernels before 6.6. */
enum fm_uffd_result fm_uffd_poison(const struct fm_uffd *u, uint64_t hva, uint64_t bytes);

/*
 * Does the client's memory still exist? false after exit and after exec, when no descriptor tells. Changes nothing: it
 * write-protects a range that no registration can contain. Any thread.
 */
bool fm_uffd_mm_alive(const struct fm_uffd *u);

/*
 * Is no thread of the client in the middle of an unmap, a discard or a move, with its event unread or itself not yet on its way? Changes
 * nothing, as fm_uffd_mm_alive(). true also when the memory is gone. Any thread.
 */
bool fm_uffd_is_quiet(const struct fm_uffd *u);

#endif
