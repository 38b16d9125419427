/* Unit tests of lib/victims: which page leaves; and its misses beside FIFO's and the optimum's, counted on traces with fixed seeds. */
#include "victims.h"

#include "../../bench/policy_sim.h"
#include "tap.h"

#define PAGES 8192u
#define STEPS (40 * (size_t)PAGES)

/* Pages that never come back leave in the order in which they came. */
static void test_order(void)
{
	struct fm_victims *v = fm_victims_new(100000);
	uint32_t page = 0;
	uint64_t bad = 0;

	ok(v && !fm_victims_pop(v, &page) && fm_victims_count(v) == 0 && fm_victims_age(v) == 0, "nothing is queued at first");
	for (uint32_t i = 0; i < 100000; i += 3) {
		fm_victims_time(v, i, 5000);
		bad += fm_victims_push(v, i) != 0;
	}
	is_u64(fm_victims_count(v), 33334, "many pages, over many pieces of a queue");
	ok(fm_victims_age(v) <= 99999 && fm_victims_age(v) > 99999 - 5000 / 16, "the oldest is as old as the evictions since it came, to a sixteenth of the budget");
	for (uint32_t i = 0; i < 100000; i += 3)
		bad += fm_victims_push(v, i) != 0;
	is_u64(fm_victims_count(v), 33334, "a page that is queued is not queued again");
	fm_victims_push(v, 100000);
	fm_victims_push(v, UINT32_MAX);
	is_u64(fm_victims_count(v), 33334, "a page beyond the bound is not queued");
	for (uint32_t i = 0; i < 100000; i += 3)
		bad += !fm_victims_pop(v, &page) || page != i;
	is_u64(bad, 0, "first in, first out");
	ok(!fm_victims_pop(v, &page) && fm_victims_count(v) == 0, "empty again");
	fm_victims_left(v, 100000);
	fm_victims_used(v, 100000);
	ok(fm_victims_push(v, 7) == 0 && fm_victims_pop(v, &page) && page == 7, "one that did not leave may be queued again");
	fm_victims_left(v, 7);
	fm_victims_left(v, 7);
	fm_victims_used(v, 7);
	is_u64(fm_victims_count(v), 0, "one that left is not queued by what is said of it late");
	fm_victims_free(v);
	fm_victims_free(NULL);

	/* 2^32 - 2 pages: what is known of them is there only as far as it is touched. */
	v = fm_victims_new(0xfffffffeu);
	if (ok(v != NULL, "a region of 16 TiB")) {
		fm_victims_time(v, 1ull << 50, 1ull << 32);
		fm_victims_push(v, 0xfffffffdu);
		fm_victims_push(v, 0);
		ok(fm_victims_pop(v, &page) && page == 0xfffffffdu && fm_victims_pop(v, &page) && page == 0, "its last and first page");
	}
	fm_victims_free(v);
}

/* New pages only, through every length around that of a piece of a queue: first in, first out. */
static void test_model(void)
{
	enum { N = 400000 };
	struct fm_victims *v = fm_victims_new(N);
	struct sim_rng r = {42};
	uint32_t head = 0, tail = 0;
	uint64_t bad = 0;

	fm_victims_time(v, 0, N);
	for (int i = 0; i < N; i++) {
		/* Drifts between empty and full. */
		bool push = sim_random(&r) % 100 < (i / 5000 % 2 ? 60 : 40);
		uint32_t got = 0;

		if (push)
			bad += fm_victims_push(v, head++) != 0;
		else if (tail == head)
			bad += fm_victims_pop(v, &got);
		else
			bad += !fm_victims_pop(v, &got) || got != tail++;
		bad += fm_victims_count(v) != head - tail;
	}
	is_u64(bad, 0, "400,000 random pushes and pops of new pages, in their order");
	fm_victims_free(v);
}

/* The n-th page of 2^bits: four neighbours each, then one as far away as can be: every page once, differences of every length and both signs. */
static uint32_t far_page(uint32_t n, unsigned bits)
{
	uint32_t x = n & 3;

	for (unsigned b = 2; b < bits; b++)
		x |= (n >> b & 1) << (bits + 1 - b);
	return x;
}

/* New pages in any order: first in, first out. */
static void test_far(void)
{
	static const unsigned sizes[] = {8, 16, 24, 32};

	for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
		unsigned bits = sizes[k];
		uint32_t n = bits > 16 ? 100000 : 1u << bits, head = 0, tail = 0;
		struct fm_victims *v = fm_victims_new(1ull << bits);
		struct sim_rng r = {7 + k};
		uint64_t bad = 0;

		fm_victims_time(v, 0, n);
		while (tail < n) {
			uint32_t got = 0;

			if (head < n && sim_random(&r) % 5 < (tail / 1000 % 2 ? 4 : 2))
				bad += fm_victims_push(v, far_page(head++, bits)) != 0;
			else if (tail < head)
				bad += !fm_victims_pop(v, &got) || got != far_page(tail++, bits);
			else
				bad += fm_victims_pop(v, &got);
			bad += fm_victims_count(v) != head - tail;
		}
		is_u64(bad, 0, "pages of 2^%u as far from each other as can be, in their order", bits);
		fm_victims_free(v);
	}
}

/* A page that comes back soon is told from one that does not: both kinds beside each other, long enough to learn. */
static void test_hot(void)
{
	enum { HOT = 100, ROOM = 1000, N = 200000 };
	struct fm_victims *v = fm_victims_new(N);
	bool *in = calloc(N, sizeof *in);
	uint64_t clock = 0, hot_misses = 0, count = 0, before = 0;
	struct sim_rng r = {9};
	uint32_t cold = HOT;

	fm_victims_time(v, 0, ROOM);
	for (size_t i = 0; i < 4 * (size_t)(N - HOT); i++) {
		/* Each hot page once in 400 steps, which is 100 new pages. */
		uint32_t p = i % 4 ? (uint32_t)(sim_random(&r) % HOT) : cold++, out;

		if (p >= N || in[p])
			continue;
		hot_misses += p < HOT;
		if (count == ROOM && fm_victims_pop(v, &out)) {
			in[out] = false;
			count--;
			fm_victims_time(v, ++clock, ROOM);
			fm_victims_left(v, out);
		}
		in[p] = true;
		count++;
		fm_victims_push(v, p);
		if (cold == N / 2)
			before = hot_misses;
	}
	/* FIFO: each of 100 hot pages misses once in 1033 evictions or so. The second half of the run: over 100,000 evictions. */
	ok(hot_misses - before < 100000 / 1033 * 100 / 4, "pages that are used all the time miss less than a quarter as often as by FIFO (%" PRIu64 ")",
	   hot_misses - before);
	ok(fm_victims_refaults(v) > 0 && fm_victims_refaults(v) <= hot_misses, "their returns are counted");
	ok(fm_victims_lifetime(v, 4) > fm_victims_lifetime(v, 0), "they have got a longer lifetime");
	is_u64((uint64_t)fm_victims_lifetime(v, 0), 1, "new pages' is 1");
	free(in);
	fm_victims_free(v);
}

/* Pages that are used between the choice and the eviction go up a class as if they had left. */
static void test_used(void)
{
	struct fm_victims *v = fm_victims_new(64);
	uint32_t page = 0;

	fm_victims_time(v, 0, 32);
	for (uint32_t i = 0; i < 4; i++)
		fm_victims_push(v, i);
	fm_victims_pop(v, &page);
	is_u64(page, 0, "the first is chosen");
	fm_victims_time(v, 1, 32);
	fm_victims_used(v, page);
	is_u64(fm_victims_count(v), 4, "it is queued again when it was used");
	is_u64(fm_victims_refaults(v), 1, "and counts as one that came back at once");
	fm_victims_used(v, page);
	is_u64(fm_victims_count(v), 4, "once");
	fm_victims_free(v);
}

/* Pages that cannot leave (the store is full, they are dirty) do not keep those from leaving that can. */
static void test_refused(void)
{
	struct fm_victims *v = fm_victims_new(64);
	uint64_t clock = 0;
	bool seen[40] = {false};
	unsigned pops;
	uint32_t page = 0;

	fm_victims_time(v, 0, 32);
	/* Pages 0 to 7 come back, and have a class; 8 to 39 are new. */
	for (uint32_t i = 0; i < 8; i++)
		fm_victims_push(v, i);
	while (fm_victims_pop(v, &page)) {
		fm_victims_time(v, ++clock, 32);
		fm_victims_left(v, page);
	}
	for (uint32_t i = 0; i < 40; i++)
		fm_victims_push(v, i);
	for (pops = 0; pops < 40 && fm_victims_pop(v, &page); pops++) {
		seen[page] = true;
		fm_victims_push(v, page);
	}
	for (page = 0; page < 40 && seen[page]; page++)
		;
	is_u64(page, 40, "each of 40 pages is chosen once before one of those that did not leave is again");
	is_u64(fm_victims_count(v), 40, "and none is lost");
	fm_victims_free(v);
}

struct figure {
	double worst, mean; /* of ours to FIFO's, over the shares */
	uint64_t ours;      /* all misses */
};

/* Replay with room for 25, 50 and 75 % of the pages, or for one share. Frees the trace. */
static struct figure replay(struct trace t, uint64_t only, uint32_t batch)
{
	struct figure f = {.mean = 1};
	unsigned n = 0;

	for (uint64_t share = only ? only : 25; share <= (only ? only : 75); share += 25, n++) {
		uint32_t room = (uint32_t)(t.pages * share / 100);
		uint64_t ours = sim_ours(&t, room, batch);
		double ratio = (double)ours / (double)sim_fifo(&t, room);

		f.ours += ours;
		f.mean *= ratio;
		if (ratio > f.worst)
			f.worst = ratio;
	}
	f.mean = pow(f.mean, 1.0 / n);
	free(t.at);
	return f;
}

static void never_worse(const char *name, struct trace t)
{
	struct figure f = replay(t, 0, 1);

	ok(f.worst <= 1.02, "%s: never worse than FIFO by more than 2 %% (%.3f)", name, f.worst);
}

static void test_traces(void)
{
	struct figure f;

	never_worse("scan", sim_scan(PAGES));
	never_worse("uniform", sim_uniform(PAGES, STEPS, 2));
	never_worse("zipf 0.7", sim_zipfian(PAGES, STEPS, 0.7, 2));
	never_worse("phases", sim_phases(PAGES, STEPS, 8, 2));
	never_worse("mixed", sim_mixed(PAGES, STEPS, 2));
	/* FIFO is as good as anything can be on these: a policy that keeps what it takes for hot is not. */
	never_worse("window of 20 %", sim_window(PAGES, STEPS, PAGES / 5, 2));
	never_worse("window of 30 %", sim_window(PAGES, STEPS, PAGES * 3 / 10, 2));
	never_worse("window of 60 %", sim_window(PAGES, STEPS, PAGES * 6 / 10, 2));

	f = replay(sim_polluted(PAGES, STEPS, 2), 0, 1);
	ok(f.mean <= 0.80 && f.worst <= 0.85, "scan-polluted zipf: 20 %% fewer misses than FIFO (%.3f, at worst %.3f)", f.mean, f.worst);
	f = replay(sim_polluted(PAGES, STEPS, 2), 0, 64);
	ok(f.mean <= 0.85, "also when 64 pages leave at a time (%.3f)", f.mean);
	f = replay(sim_zipfian(PAGES, STEPS, 0.99, 2), 25, 1);
	ok(f.mean <= 0.87, "zipf: fewer misses (%.3f)", f.mean);
	f = replay(sim_loop(PAGES, STEPS), 50, 1);
	ok(f.mean <= 0.80, "loop over twice what fits, of which FIFO hits nothing (%.3f)", f.mean);
	is_u64(replay(sim_loop(PAGES, STEPS), 50, 1).ours, f.ours, "the same again in the next run");
}

/* The references are what they are called. */
static void test_references(void)
{
	struct trace t = sim_loop(10, 100);
	uint64_t bad = 0;

	is_u64(sim_fifo(&t, 9), 100, "FIFO never hits in a loop over more than fits");
	/* 10 to fill; then of 9 accesses 8 hit. */
	is_u64(sim_optimum(&t, 9), 20, "the optimum misses the ninth access of a loop over ten");
	is_u64(sim_fifo(&t, 10), 10, "and what fits is missed once");
	free(t.at);
	t = sim_mixed(1024, 20000, 3);
	for (uint32_t room = 64; room < 1024; room += 192) {
		uint64_t least = sim_optimum(&t, room);

		bad += sim_fifo(&t, room) < least || sim_random_out(&t, room, 1) < least || sim_ours(&t, room, 1) < least;
	}
	is_u64(bad, 0, "nothing is better than the optimum");
	free(t.at);
}

int main(void)
{
	test_order();
	test_model();
	test_far();
	test_hot();
	test_used();
	test_refused();
	test_references();
	test_traces();
	return tap_done();
}
