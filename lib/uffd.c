#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uapi.h"

static int kernel_ioctl(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg);
}

const struct fm_uffd_ops fm_uffd_kernel = {.ioctl = kernel_ioctl, .read = read};

enum fm_uffd_result fm_uffd_classify(int error)
{
	switch (error) {
	case 0:
		return FM_UFFD_DONE;
	case EAGAIN:
	case EINTR:
		return FM_UFFD_RETRY;
	case EEXIST:
		return FM_UFFD_PRESENT;
	case ENOENT:
		return FM_UFFD_NO_RANGE;
	case ESRCH:
		return FM_UFFD_NO_PROCESS;
	case ENOMEM:
		return FM_UFFD_NO_MEMORY;
	default:
		return FM_UFFD_NOT_POSSIBLE;
	}
}

static int call(const struct fm_uffd *u, unsigned long request, void *arg)
{
	return u->ops->ioctl(u->fd, request, arg) < 0 ? errno : 0;
}

int fm_uffd_open(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), e = errno, dev;

	if (fd >= 0)
		return fd;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -e;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	close(dev);
	return fd < 0 ? -e : fd;
}

int fm_uffd_probe(uint64_t *features)
{
	struct uffdio_api api = {.api = UFFD_API};
	int fd = fm_uffd_open(), e;

	if (fd < 0)
		return fd;
	e = ioctl(fd, UFFDIO_API, &api) < 0 ? errno : 0;
	close(fd);
	*features = api.features;
	return -e;
}

const char *fm_uffd_feature_name(uint64_t bit)
{
	switch (bit) {
	case UFFD_FEATURE_PAGEFAULT_FLAG_WP:
		return "PAGEFAULT_FLAG_WP";
	case UFFD_FEATURE_EVENT_REMAP:
		return "EVENT_REMAP";
	case UFFD_FEATURE_EVENT_REMOVE:
		return "EVENT_REMOVE";
	case UFFD_FEATURE_EVENT_UNMAP:
		return "EVENT_UNMAP";
	case UFFD_FEATURE_MISSING_SHMEM:
		return "MISSING_SHMEM";
	case UFFD_FEATURE_WP_HUGETLBFS_SHMEM:
		return "WP_HUGETLBFS_SHMEM";
	case UFFD_FEATURE_POISON:
		return "POISON";
	default:
		return "unknown";
	}
}

_Static_assert(FM_UFFD_NEEDED == (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM |
				  UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM),
	       "the needed features");
_Static_assert(FM_UFFD_REMAP == UFFD_FEATURE_EVENT_REMAP && FM_UFFD_POISON == UFFD_FEATURE_POISON && FM_UFFD_TID == UFFD_FEATURE_THREAD_ID,
	       "the optional ones");

int fm_uffd_api(const struct fm_uffd *u, uint64_t offered)
{
	struct uffdio_api api = {.api = UFFD_API, .features = FM_UFFD_NEEDED | (offered & (FM_UFFD_REMAP | FM_UFFD_POISON | FM_UFFD_TID))};

	return -call(u, UFFDIO_API, &api);
}

int fm_uffd_register(const struct fm_uffd *u, uint64_t hva, uint64_t bytes)
{
	struct uffdio_register reg = {
	    .range = {.start = hva, .len = bytes},
	    .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};

	return -call(u, UFFDIO_REGISTER, &reg);
}

int fm_uffd_unregister(const struct fm_uffd *u, uint64_t hva, uint64_t bytes)
{
	struct uffdio_range range = {.start = hva, .len = bytes};
	int e = call(u, UFFDIO_UNREGISTER, &range);

	/*
	 * The kernel wakes the waiters before it takes the mapping out; a fault that holds the mapping's own lock only (Linux 6.7) may begin to
	 * wait in between, and would do so for ever (seen on 6.18). None can any more when the call returns.
	 */
	if (e == 0)
		call(u, UFFDIO_WAKE, &range);
	return -e;
}

/*
 * COPY and ZEROPAGE report partial progress as EAGAIN with the bytes in their output field; that is not the EAGAIN of an unread
 * event, whose output is <= 0 (or untouched on old kernels: so it is zeroed first).
 */
enum fm_uffd_result fm_uffd_copy(const struct fm_uffd *u, uint64_t hva, const void *src, uint64_t bytes, bool wp, uint64_t *done)
{
	*done = 0;
	while (*done < bytes) {
		struct uffdio_copy c = {
		    .dst = hva + *done,
		    .src = (uint64_t)(uintptr_t)src + *done,
		    .len = bytes - *done,
		    .mode = (wp ? UFFDIO_COPY_MODE_WP : 0) | (u->no_wake ? UFFDIO_COPY_MODE_DONTWAKE : 0),
		};
		int e = call(u, UFFDIO_COPY, &c);

		if (e == 0)
			c.copy = (int64_t)c.len;
		if (c.copy > 0)
			*done += (uint64_t)c.copy;
		else if (e)
			return fm_uffd_classify(e);
	}
	return FM_UFFD_DONE;
}

enum fm_uffd_result fm_uffd_zeropage(const struct fm_uffd *u, uint64_t hva, uint64_t bytes, uint64_t *done)
{
	*done = 0;
	while (*done < bytes) {
		struct uffdio_zeropage z = {
		    .range = {.start = hva + *done, .len = bytes - *done},
		    .mode = u->no_wake ? UFFDIO_ZEROPAGE_MODE_DONTWAKE : 0,
		};
		int e = call(u, UFFDIO_ZEROPAGE, &z);

		if (e == 0)
			z.zeropage = (int64_t)z.range.len;
		if (z.zeropage > 0)
			*done += (uint64_t)z.zeropage;
		else if (e)
			return fm_uffd_classify(e);
	}
	return FM_UFFD_DONE;
}

enum fm_uffd_result fm_uffd_writeprotect(const struct fm_uffd *u, uint64_t hva, uint64_t bytes, bool on)
{
	struct uffdio_writeprotect w = {
	    .range = {.start = hva, .len = bytes},
	    .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : u->no_wake ? UFFDIO_WRITEPROTECT_MODE_DONTWAKE : 0,
	};

	return fm_uffd_classify(call(u, UFFDIO_WRITEPROTECT, &w));
}

enum fm_uffd_result fm_uffd_wake(const struct fm_uffd *u, uint64_t hva, uint64_t bytes)
{
	struct uffdio_range range = {.start = hva, .len = bytes};

	return fm_uffd_classify(call(u, UFFDIO_WAKE, &range));
}

enum fm_uffd_result fm_uffd_poison(const struct fm_uffd *u, uint64_t hva, uint64_t bytes)
{
	struct uffdio_poison p = {.range = {.start = hva, .len = bytes}};

	return fm_uffd_classify(call(u, UFFDIO_POISON, &p));
}

/* What comes of protecting a page that can never be mapped: errno. */
static int protect_nothing(const struct fm_uffd *u)
{
	struct uffdio_writeprotect w = {
	    .range = {.start = (1ull << 47) - 3 * 4096, .len = 4096},
	    .mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	return call(u, UFFDIO_WRITEPROTECT, &w);
}

bool fm_uffd_mm_alive(const struct fm_uffd *u)
{
	return protect_nothing(u) != ESRCH;
}

bool fm_uffd_is_quiet(const struct fm_uffd *u)
{
	return protect_nothing(u) != EAGAIN; /* userfaultfd_ctx.mmap_changing */
}
