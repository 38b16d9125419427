/*
 * A region is let go of (FM_HOME_LEAVE) while a thread of its client waits in the kernel for its discard to be read: as long as that is so, the
 * shard must not say that it has left. Nobody would read the event after that, and the thread would wait for ever.
 */
#include "protocol.h"

static atomic_bool deaf, discarded;

static ssize_t deaf_read(int fd, void *buf, size_t len)
{
	if (!atomic_load(&deaf))
		return read(fd, buf, len);
	errno = EAGAIN;
	return -1;
}

static const struct fm_uffd_ops deaf_kernel = {.ioctl = bad_ioctl, .read = deaf_read};

static void *discarder(void *arg)
{
	(void)arg;
	madvise(t.memory, 16 * FM_PAGE_SIZE, MADV_REMOVE);
	atomic_store(&discarded, true);
	return NULL;
}

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

int main(void)
{
	struct fm_uffd real;
	uint64_t features;
	pthread_t thread;
	unsigned ms;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("a region that is left", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	if (!start(&deaf_kernel, PAGES)) {
		ok(false, "started");
		exit(tap_done());
	}
	real = (struct fm_uffd){.fd = t.uffd[0], .ops = &fm_uffd_kernel};
	for (unsigned p = 0; p < 32; p++)
		t.memory[p * WORDS] = 1 + p;
	atomic_store(&deaf, true);
	pthread_create(&thread, NULL, discarder, NULL);
	while (fm_uffd_is_quiet(&real))
		nap();
	while (!fm_shard_home(t.shard[0], FM_HOME_LEAVE))
		;
	for (ms = 0; ms < 300 && !fm_shard_home_done(t.shard[0]); ms++)
		nap();
	ok(!fm_shard_home_done(t.shard[0]) && !atomic_load(&discarded), "not left while a discard is unread");
	atomic_store(&deaf, false);
	for (ms = 0; ms < 60000 && !(fm_shard_home_done(t.shard[0]) && atomic_load(&discarded)); ms++)
		nap();
	ok(fm_shard_home_done(t.shard[0]) && atomic_load(&discarded), "left when it was read, and its client goes on");
	pthread_join(thread, NULL);
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_stop(t.shard[i]);
	is_u64(t.memory[0], 0, "what was discarded is zeros");
	is_u64(t.memory[20 * WORDS], 21, "what was not is as it was");
	finish();
	return tap_done();
}
