/*
 * A kernel that answers EAGAIN to every fill: threads of the client that discard and do nothing else. The page cannot come, but the shard's turn must end:
 * who mends after an evictor's death waits for it (fm_shard_pause()), and so does who wants memory home. And when the storm is over, it comes.
 */
#include "protocol.h"

#define LOST_PAGE 7u

static atomic_bool storm;
static atomic_uint refused[2]; /* of COPY and ZEROPAGE; of POISON */

static int storm_ioctl(int fd, unsigned long request, void *arg)
{
	if (!atomic_load(&storm) || (request != UFFDIO_COPY && request != UFFDIO_ZEROPAGE && request != UFFDIO_POISON))
		return ioctl(fd, request, arg);
	atomic_fetch_add(&refused[request == UFFDIO_POISON], 1);
	errno = EAGAIN;
	return -1;
}

static const struct fm_uffd_ops storm_kernel = {.ioctl = storm_ioctl, .read = read};

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static void *writer(void *arg)
{
	(void)arg;
	for (unsigned p = 16; p < 48; p++)
		t.memory[p * WORDS] = p;
	return NULL;
}

static void *reader(void *arg)
{
	/* No SIGBUS: an error. */
	*(int *)arg = madvise(t.memory + LOST_PAGE * WORDS, FM_PAGE_SIZE, MADV_POPULATE_READ) < 0 ? errno : 0;
	return NULL;
}

static bool refused_again(unsigned which)
{
	unsigned before = atomic_load(&refused[which]);

	for (unsigned ms = 0; ms < 60000 && atomic_load(&refused[which]) < before + 3; ms++)
		nap();
	return atomic_load(&refused[which]) >= before + 3;
}

/* Who else works in the shard's turn gets it: a hang here ends the test. */
static void turns(const char *what, unsigned which)
{
	unsigned paused = 0;

	for (unsigned i = 0; i < 20; i++) {
		fm_shard_pause(t.shard[0]);
		fm_shard_resume(t.shard[0]);
		paused++;
	}
	is_u64(paused, 20, "%s: the shard can be paused", what);
	ok(refused_again(which), "%s: and tries again", what);
	alarm(60);
	while (!fm_shard_home(t.shard[0], FM_HOME_FETCH))
		;
	while (!fm_shard_home(t.shard[0], FM_HOME_NO))
		;
	ok(refused_again(which), "%s: it hears that its pages are wanted home, and that they are not", what);
	alarm(60);
}

int main(void)
{
	uint64_t features;
	pthread_t thread;
	unsigned wrong = 0;
	int error = 0;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("a storm of discards", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	alarm(60);
	if (!start(&storm_kernel, PAGES)) {
		ok(false, "started");
		exit(tap_done());
	}
	atomic_store(&storm, true);
	pthread_create(&thread, NULL, writer, NULL);
	turns("a first touch", 0);
	atomic_store(&storm, false);
	pthread_join(thread, NULL);
	for (unsigned p = 16; p < 48; p++)
		wrong += t.memory[p * WORDS] != p;
	is_u64(wrong, 0, "when the storm is over, pages come");

	if (!(features & UFFD_FEATURE_POISON)) {
		tap_skip("a lost page in a storm", "this kernel has no UFFDIO_POISON");
	} else {
		/* A word that names a copy which the store does not have. */
		atomic_fetch_add(&t.map.hdr->remote, 1);
		atomic_store(&t.map.words[LOST_PAGE], fm_word_to(0, FM_REMOTE, 0, FM_F_STORED) + (1ull << FM_GEN_SHIFT));
		atomic_store(&storm, true);
		pthread_create(&thread, NULL, reader, &error);
		turns("a lost page", 1);
		atomic_store(&storm, false);
		pthread_join(thread, NULL);
		ok(error == EFAULT || error == EHWPOISON, "when the storm is over, its reader is told (%s)", strerror(error));
		/* Its word says so a moment after the poison is there. */
		while (fm_word_state(atomic_load(&t.map.words[LOST_PAGE])) == FM_BUSY)
			nap();
		is_u64(fm_word_state(atomic_load(&t.map.words[LOST_PAGE])), FM_LOST, "the page is lost");
	}
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_stop(t.shard[i]);
	finish();
	return tap_done();
}
