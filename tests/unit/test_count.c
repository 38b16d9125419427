/*
 * Counting a region's pages anew while its faults are served (lib/shard_count.c): whatever the clients fault in and discard meanwhile, the
 * difference that is found is the one that was there when the count began.
 *
 *   test_count [ROUNDS [SEED]]
 */
#define PAGES 16384u /* many pieces a shard */
#include "protocol.h"

static void nap(unsigned us)
{
	nanosleep(&(struct timespec){.tv_nsec = (long)us * 1000}, NULL);
}

static void pause_all(void)
{
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_pause(t.shard[i]);
}

static void resume_all(void)
{
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_resume(t.shard[i]);
}

static struct {
	unsigned rounds, timeouts, wrong_found, moved, failed;
} sum;

/* Wait until all shards have counted; false after a minute. */
static bool counted(struct fm_count *now)
{
	int r = 0;

	for (unsigned us = 0; us < 60000000 && r != (int)SHARDS; us += 200) {
		*now = (struct fm_count){0};
		r = 0;
		for (unsigned i = 0; i < SHARDS; i++) {
			int k = fm_shard_counted(t.shard[i], now);

			sum.failed += k < 0;
			r += k;
			fm_shard_count_begun(t.shard[i]);
		}
		nap(200);
	}
	return r == (int)SHARDS;
}

static void round_of(uint64_t *rnd)
{
	struct fm_region_hdr *h = t.map.hdr;
	struct fm_count truth = {0}, now, later = {0};
	uint64_t here = next_random(rnd) % 100, away = next_random(rnd) % 100, before, gone;

	halt_evictor();
	pause_all();
	/* What a death may leave: counters that are too high. */
	atomic_fetch_add(&h->resident, here);
	atomic_fetch_add(&t.daemon->resident, here);
	atomic_fetch_add(&h->remote, away);
	before = fm_ld(&h->resident);
	gone = fm_ld(&h->remote);
	/* Pages come ahead of faults only where there is room. */
	if (next_random(rnd) % 2)
		atomic_store(&t.daemon->limit_pages, FM_LIMIT_NONE);
	sum.failed += fm_count_words(&t.map, 0, PAGES, &truth) != 0;
	for (unsigned i = 0; i < SHARDS; i++)
		sum.failed += fm_shard_count(t.shard[i]) != 0;
	resume_all();
	sum.timeouts += !counted(&now);
	sum.wrong_found += before - now.resident != here || gone - now.remote != away || now.resident != truth.resident;
	pause_all();
	sum.failed += fm_count_words(&t.map, 0, PAGES, &later) != 0;
	sum.moved += later.resident != truth.resident || later.remote != truth.remote;
	atomic_fetch_sub(&h->resident, before - now.resident);
	atomic_fetch_sub(&t.daemon->resident, before - now.resident);
	atomic_fetch_sub(&h->remote, gone - now.remote);
	sum.wrong_found += fm_ld(&h->resident) != later.resident || fm_ld(&h->remote) != later.remote;
	atomic_store(&t.daemon->limit_pages, PAGES / 4);
	resume_all();
	run_evictor();
	nap((unsigned)(next_random(rnd) % 20000));
	sum.rounds++;
}

static void run(const char *name, const struct trouble *what, unsigned rounds, uint64_t seed)
{
	uint64_t rnd = seed;

	printf("# %s: seed %" PRIu64 "\n", name, seed);
	memset(&sum, 0, sizeof sum);
	begin(name, what, seed);
	for (unsigned i = 0; i < rounds; i++)
		round_of(&rnd);
	halt_clients();
	halt_evictor();
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_stop(t.shard[i]);
	is_u64(atomic_load(&t.wrong) + mem.wrong, 0, "%s: wrong words in %lu operations", name, atomic_load(&t.ops));
	is_u64(sum.timeouts + sum.failed, 0, "%s: %u counts come to their end", name, sum.rounds);
	is_u64(sum.wrong_found, 0, "%s: each finds what is too much, and that alone", name);
	ok(sum.moved > rounds / 4, "%s: during %u of them pages came or went", name, sum.moved);
	is_u64(fm_ld(&t.daemon->resident), fm_ld(&t.map.hdr->resident), "%s: the host's sum is the region's", name);
	finish();
}

int main(int argc, char **argv)
{
	static const struct trouble none = {0}, bad = {.put_full = 20, .get_down = 20, .delete_down = 50, .eagain = 100, .partial = 300, .slow_read = 20};
	unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 30;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() % 1000, features;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("counting", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	run("plain", &none, rounds, seed);
	run("bad store and kernel", &bad, rounds, seed + 1);
	return tap_done();
}
