/*
 * A shard that has read a discard and stands still before it notes it. Its client goes on at once, and writes a page of that range that is still
 * here, unseen by anybody: the page is not protected. The evictor must leave it alone: the walk over the range would find it away, and
 * throw the write away with it.
 */
#include "protocol.h"

#define FIRST 16u
#define N     32u

static atomic_bool stands, release;

static ssize_t standing_read(int fd, void *buf, size_t len)
{
	const struct uffd_msg *m = buf;
	ssize_t n = read(fd, buf, len);

	if (n > 0 && m->event == UFFD_EVENT_REMOVE) {
		atomic_store(&stands, true);
		for (unsigned ms = 0; ms < 60000 && !atomic_load(&release); ms++)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	return n;
}

static const struct fm_uffd_ops standing_kernel = {.ioctl = bad_ioctl, .read = standing_read};

int main(void)
{
	struct fm_shard_shm *m;
	uint64_t features, before;
	unsigned wrong = 0, away = 0;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("a discard that is not noted yet", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	if (!start(&standing_kernel, PAGES)) {
		ok(false, "started");
		exit(tap_done());
	}
	m = &t.map.shards[0];
	for (unsigned p = 0; p < FIRST + N; p++)
		t.memory[p * WORDS] = 1 + p;
	/* Comes back when its event is read: the pages keep their bytes. */
	madvise(t.memory + FIRST * WORDS, N * FM_PAGE_SIZE, MADV_DONTNEED);
	for (unsigned ms = 0; ms < 60000 && !atomic_load(&stands); ms++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	ok(atomic_load(&stands) && atomic_load(&m->reading) && !atomic_load(&m->discarding), "the discard is read, and not noted");
	for (unsigned p = FIRST; p < FIRST + N; p++)
		t.memory[p * WORDS] = 1000 + p;
	before = mem.puts;
	for (unsigned i = 0; i < 10; i++) {
		fm_evict_drain(&t.evictor, &t.evict);
		fm_evict_batch(&t.evictor, &t.evict, 64);
	}
	for (unsigned p = FIRST; p < FIRST + N; p++)
		away += fm_word_state(atomic_load(&t.map.words[p])) == FM_REMOTE;
	is_u64(away, 0, "pages of it that left");
	is_u64(mem.puts - before, 0, "pages that were stored meanwhile: it cannot be told which are discarded");
	atomic_store(&release, true);
	for (unsigned ms = 0; ms < 60000 && (atomic_load(&m->reading) || atomic_load(&m->discarding)); ms++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	for (unsigned p = FIRST; p < FIRST + N; p++)
		wrong += t.memory[p * WORDS] != 1000 + p;
	is_u64(wrong, 0, "pages that lost what was written after the discard");
	for (unsigned i = 0; i < 1000 && mem.puts - before < FIRST + N; i++) {
		fm_evict_drain(&t.evictor, &t.evict);
		fm_evict_batch(&t.evictor, &t.evict, 64);
	}
	ok(mem.puts - before >= FIRST + N, "they leave afterwards");
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_stop(t.shard[i]);
	finish();
	return tap_done();
}
