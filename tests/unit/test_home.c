/*
 * A region comes home under load (fm_shard_home(), as fm-faultd's detach does it): brought in, given up and sent out again, brought in and
 * unregistered, while the clients of protocol.h read, write and discard. A page that is a hole when its range is unregistered is zeros from then
 * on: each round ends with all of them compared.
 *
 *   test_home [ROUNDS [SEED]]
 */
#include "protocol.h"

static void nap(unsigned us)
{
	nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000}, NULL);
}

static bool all_done(void)
{
	for (unsigned i = 0; i < SHARDS; i++)
		if (!fm_shard_home_done(t.shard[i]))
			return false;
	return true;
}

static void ask(enum fm_home what)
{
	for (unsigned i = 0; i < SHARDS; i++)
		while (!fm_shard_home(t.shard[i], what))
			;
}

/* Ask, and wait until it is done. Returns false after a minute. */
static bool have(enum fm_home what)
{
	ask(what);
	for (unsigned ms = 0; ms < 60000 && !all_done(); ms++)
		nap(1000);
	return all_done();
}

static void set_unbounded(bool on)
{
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_pause(t.shard[i]);
	if (on)
		atomic_fetch_sub(&t.daemon->resident, fm_ld(&t.map.hdr->resident));
	else
		atomic_fetch_add(&t.daemon->resident, fm_ld(&t.map.hdr->resident));
	atomic_store(&t.unbounded, on);
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_resume(t.shard[i]);
}

static unsigned count(enum fm_pstate state)
{
	unsigned n = 0;

	for (unsigned p = 0; p < PAGES; p++)
		n += fm_word_state(atomic_load(&t.map.words[p])) == state;
	return n;
}

static struct {
	unsigned rounds, came, timeouts, away, news;
	unsigned long wrong, ops, removed, counted;
} sum;

static void round_trip(const char *name, const struct trouble *what, uint64_t seed)
{
	uint64_t rnd = seed;
	unsigned away, news = 0;

	begin(name, what, seed);
	nap(10000 + (unsigned)(next_random(&rnd) % 20000));
	/* Home, or only half of the way, and out again; the last time for good. */
	for (unsigned i = 0; i < 3; i++) {
		halt_evictor();
		away = count(FM_REMOTE);
		set_unbounded(true);
		if (i < 2 && next_random(&rnd) % 2) {
			ask(FM_HOME_FETCH);
			nap((unsigned)(next_random(&rnd) % 1000));
		} else {
			sum.timeouts += !have(FM_HOME_FETCH);
			sum.came += away;
			sum.away += count(FM_REMOTE);
		}
		if (i == 2)
			break;
		ask(FM_HOME_NO);
		set_unbounded(false);
		run_evictor();
		nap((unsigned)(next_random(&rnd) % 10000));
	}
	sum.timeouts += !have(FM_HOME_LEAVE);
	for (unsigned i = 0; i < SHARDS; i++) {
		news |= fm_shard_attention(t.shard[i]) & ~(unsigned)(FM_SHARD_HOME | FM_SHARD_LEFT);
		fm_shard_stop(t.shard[i]);
	}
	/* Nobody serves it any more: whoever still waits for that, waits for ever. */
	nap(5000);
	halt_clients();
	sum.rounds++;
	sum.news |= news;
	sum.wrong += atomic_load(&t.wrong) + mem.wrong;
	sum.ops += atomic_load(&t.ops);
	sum.removed += atomic_load(&t.removed);
	sum.counted += fm_ld(&t.daemon->resident);
	finish();
}

static void run(const char *name, const struct trouble *what, unsigned rounds, uint64_t seed)
{
	printf("# %s: seed %" PRIu64 "\n", name, seed);
	memset(&sum, 0, sizeof sum);
	for (unsigned i = 0; i < rounds; i++)
		round_trip(name, what, seed + i * 1000003ull);
	is_u64(sum.timeouts, 0, "%s: what is asked is done, in %u rounds", name, sum.rounds);
	is_u64(sum.away, 0, "%s: of %u pages that were away none was when the shards said so", name, sum.came);
	is_u64(sum.wrong, 0, "%s: wrong words in %lu operations, %lu pages discarded", name, sum.ops, sum.removed);
	is_u64(sum.news, 0, "%s: no page lost, no ioctl refused", name);
	is_u64(sum.counted, 0, "%s: an unbounded region is not in the host's sum", name);
	ok(sum.came > rounds && sum.ops && sum.removed, "%s: there were pages to bring home, and clients at work", name);
}

int main(int argc, char **argv)
{
	static const struct trouble none = {0}, bad_store = {.eager = true, .put_full = 50, .get_down = 50, .delete_down = 200},
				    bad_kernel_too = {.put_full = 20, .get_down = 20, .delete_down = 50, .eagain = 100, .partial = 300, .slow_read = 100},
				    with_grace = {.eager = true, .put_full = 20, .get_down = 20, .delete_down = 50, .eagain = 100, .partial = 300, .slow_read = 100, .grace_ms = 3};
	unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 25;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() % 1000, features;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("coming home", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	run("plain", &none, rounds, seed);
	run("bad store", &bad_store, rounds, seed + 1);
	run("bad store and kernel", &bad_kernel_too, rounds, seed + 2);
	run("grace", &with_grace, rounds, seed + 3);
	return tap_done();
}
