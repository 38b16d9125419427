/*
 * Wake-ups that are put off (shard_near.c), on a machine that never lets the thread run to which they are left, while another thread of the
 * client discards pages all the time: who waits for a page gets it all the same.
 */
#include "protocol.h"

#include <sys/syscall.h>

#define TOUCHES 40u

/* The waker never gets to run: its wake-ups are not made. */
static int starving_ioctl(int fd, unsigned long request, void *arg)
{
	return request == UFFDIO_WAKE && syscall(SYS_sched_getscheduler, 0) == SCHED_IDLE ? 0 : ioctl(fd, request, arg);
}

static const struct fm_uffd_ops starving_kernel = {.ioctl = starving_ioctl, .read = read};

static atomic_uint touched;

/* In no order that prefetch knows. */
static void *toucher(void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < TOUCHES; i++) {
		t.memory[(uint64_t)(i * i * 7 % 251) * WORDS] = i;
		atomic_fetch_add(&touched, 1);
	}
	return NULL;
}

int main(void)
{
	uint64_t features, until;
	pthread_t thread;
	unsigned done;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("wake-ups that are put off", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	trouble.eager = true;
	if (!start(&starving_kernel, PAGES)) {
		ok(false, "started");
		exit(tap_done());
	}
	pthread_create(&thread, NULL, toucher, NULL);
	for (until = fm_now_ns() + 20000000000u; atomic_load(&touched) < TOUCHES && fm_now_ns() < until;) {
		madvise(t.memory + 300ull * WORDS, FM_PAGE_SIZE, MADV_DONTNEED);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	done = atomic_load(&touched);
	pthread_join(thread, NULL); /* nothing is discarded any more: now it comes to its end in any case */
	is_u64(done, TOUCHES, "pages that were waited for and came while others were discarded");
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_stop(t.shard[i]);
	finish();
	return tap_done();
}
