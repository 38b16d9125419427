/*
 * Several ranges are discarded at once, one of them the region's beginning: no other page goes, and the shard knows afterwards that it has nothing to walk
 * over. (A slot that is not in use ends at page 0: a range that begins there must not be taken for its continuation.)
 */
#include "protocol.h"

#define USED 500u /* of shard 0 */

static atomic_bool hold;
static atomic_uint sent;

/* Events are read when all have been sent. */
static ssize_t held_read(int fd, void *buf, size_t len)
{
	for (unsigned ms = 0; ms < 60000 && atomic_load(&hold); ms++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	return read(fd, buf, len);
}

static const struct fm_uffd_ops held_kernel = {.ioctl = bad_ioctl, .read = held_read};

struct range {
	unsigned first, n;
};

static void *discarder(void *arg)
{
	const struct range *r = arg;

	atomic_fetch_add(&sent, 1);
	madvise(t.memory + r->first * WORDS, r->n * FM_PAGE_SIZE, MADV_REMOVE);
	return NULL;
}

/* In this order, and read together. */
static void discard_all(struct range *r, unsigned n)
{
	pthread_t thread[4];

	atomic_store(&hold, true);
	atomic_store(&sent, 0);
	for (unsigned i = 0; i < n; i++) {
		pthread_create(&thread[i], NULL, discarder, &r[i]);
		/* Its event is queued soon after it says so; the order matters to the test, not to what must come of it. */
		while (atomic_load(&sent) == i)
			;
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	}
	atomic_store(&hold, false);
	for (unsigned i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	/* They go on when their events are read, which is before they are noted. */
	for (unsigned ms = 0; ms < 5000 && (atomic_load(&t.map.shards[0].reading) || atomic_load(&t.map.shards[0].discarding)); ms++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	is_u64(atomic_load(&t.map.shards[0].discarding), 0, "all are walked over");
}

static bool in(const struct range *r, unsigned n, unsigned page)
{
	for (unsigned i = 0; i < n; i++)
		if (page >= r[i].first && page < r[i].first + r[i].n)
			return true;
	return false;
}

static void run(enum fm_kind kind)
{
	struct range gone[] = {{300, 10}, {200, 10}, {400, 10}, {0, 4}, {450, 10}, {4, 4}};
	unsigned away = 0, old = 0, lost = 0;

	memset(&t, 0, sizeof t);
	memset(&mem.copy, 0, sizeof mem.copy);
	mem.wrong = 0;
	if (!start(&held_kernel, PAGES)) {
		ok(false, "started");
		exit(tap_done());
	}
	t.map.hdr->kind = kind;
	for (unsigned p = 0; p < USED; p++)
		t.memory[p * WORDS] = 1 + p;
	while (fm_ld(&t.map.hdr->resident)) {
		fm_evict_drain(&t.evictor, &t.evict);
		fm_evict_batch(&t.evictor, &t.evict, FM_EVICT_MOST);
	}
	/* The first two leave their traces in two slots. */
	discard_all(gone, 2);
	discard_all(gone + 2, 2);
	discard_all(gone + 4, 2);
	for (unsigned p = 0; p < USED; p++)
		away += fm_word_state(atomic_load(&t.map.words[p])) == FM_REMOTE;
	is_u64(away, USED - 48, "kind %u: the other pages are where they were", kind);
	for (unsigned p = 0; p < USED; p++) {
		uint64_t got = t.memory[p * WORDS];

		old += in(gone, 6, p) && got != 0;
		lost += !in(gone, 6, p) && got != 1 + p;
	}
	is_u64(lost, 0, "kind %u: pages that nobody discarded, and are gone", kind);
	is_u64(old, 0, "kind %u: pages that were discarded, and are back", kind);
	is_u64(mem.wrong, 0, "kind %u: nothing was asked for that the store did not have", kind);
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_stop(t.shard[i]);
	finish();
}

int main(void)
{
	uint64_t features;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("ranges that are discarded at once", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	run(FM_KIND_VM);
	run(FM_KIND_MAP);
	return tap_done();
}
