/* Unit tests of lib/policy: the marks of a budget, whose pages leave next, and the queue they leave in. */
#include "policy.h"

#include <stdlib.h>
#include <time.h>

#include "tap.h"

static void test_marks(void)
{
	struct fm_marks m = fm_policy_marks(FM_LIMIT_NONE);
	uint64_t bad = 0;

	ok(m.low == FM_LIMIT_NONE && m.high == FM_LIMIT_NONE && m.hard == FM_LIMIT_NONE, "no budget, no marks");
	for (uint64_t limit = 1; limit < 1ull << 52; limit += 1 + limit / 7) {
		uint64_t counts = limit < FM_LIMIT_MIN ? FM_LIMIT_MIN : limit;

		m = fm_policy_marks(limit);
		if (!(m.low < m.high && m.high < m.hard && m.hard == counts && m.low >= counts / 2 && m.hard - m.high <= 4096))
			bad = limit;
	}
	is_u64(bad, 0, "0 < half <= low < high < hard = the budget, at most 4096 pages apart");
	m = fm_policy_marks(1);
	is_u64(m.hard, FM_LIMIT_MIN, "a budget of one page counts as the least one");
	m = fm_policy_marks(64);
	ok(m.hard == 64 && m.high == 48 && m.low == 32, "a small budget gives away a quarter, twice");
	m = fm_policy_marks(1u << 20);
	is_u64(m.hard - m.low, 8192, "a large one two times 4096 pages");
}

static void test_pick(void)
{
	struct fm_view v[3] = {
	    {.resident = 100, .queued = 100},
	    {.resident = 900, .queued = 900},
	    {.resident = 500, .queued = 500},
	};
	struct fm_marks g = fm_policy_marks(1000);
	uint64_t take = 7;

	is_u64(fm_policy_pick(v, 3, 100000, FM_LIMIT_NONE, true, &take), -1, "without a budget nobody gives");
	is_u64(fm_policy_pick(v, 0, 100000, 1000, true, &take), -1, "no regions");
	is_u64(fm_policy_pick(v, 3, g.high, 1000, false, &take), -1, "at the high mark nothing begins");
	is_u64(fm_policy_pick(v, 3, g.high + 1, 1000, false, &take), 1, "above it the largest gives");
	is_u64(take, g.high + 1 - g.low, "down to the low mark");
	is_u64(fm_policy_pick(v, 3, g.low + 1, 1000, true, &take), 1, "once begun it goes on below the high mark");
	is_u64(take, 1, "one page is left to give");
	is_u64(fm_policy_pick(v, 3, g.low, 1000, true, &take), -1, "down to the low mark and no further");
	v[1].stalled = true;
	is_u64(fm_policy_pick(v, 3, 2000, 1000, true, &take), 2, "a stalled one gives its turn to the next largest");
	v[2].queued = 0;
	is_u64(fm_policy_pick(v, 3, 2000, 1000, true, &take), 0, "so does one with nothing queued");
	v[0].stalled = true;
	is_u64(fm_policy_pick(v, 3, 2000, 1000, true, &take), -1, "nobody can give");

	/* The age of its next page decides before its size does. */
	v[0].stalled = v[1].stalled = false;
	v[2].queued = 500;
	v[0].age = 7;
	is_u64(fm_policy_pick(v, 3, 2000, 1000, true, &take), 0, "the region whose page is the oldest gives, however small it is");
	v[2].age = 8;
	is_u64(fm_policy_pick(v, 3, 2000, 1000, true, &take), 2, "an older one goes before it");
	v[2].stalled = true;
	is_u64(fm_policy_pick(v, 3, 2000, 1000, true, &take), 0, "unless stalled");
	v[2].queued = 0;
	v[0].age = v[2].age = 0;

	/* A region above its own budget comes first, even when the host has room. */
	v[0] = (struct fm_view){.resident = 60, .queued = 60, .limit = 64};
	v[1].stalled = false;
	is_u64(fm_policy_pick(v, 3, 1, FM_LIMIT_NONE, false, &take), 0, "above its own high mark it gives");
	is_u64(take, 60 - 32, "down to its own low mark");
	v[0].resident = 40;
	is_u64(fm_policy_pick(v, 3, 1, FM_LIMIT_NONE, false, &take), -1, "between its marks it does not begin");
	v[0].draining = true;
	is_u64(fm_policy_pick(v, 3, 1, FM_LIMIT_NONE, false, &take), 0, "but goes on");
	v[0].stalled = true;
	is_u64(fm_policy_pick(v, 3, 1, FM_LIMIT_NONE, false, &take), -1, "unless stalled");
}

/* A budget of its own and the host's: draining must end, never ask for 0 pages and never name a region that has none. */
static void test_pick_ends(void)
{
	uint64_t bad = 0;

	for (uint64_t limit = 1; limit < 3000; limit += 37)
		for (uint64_t own = 0; own < 400; own += 57) {
			struct fm_view v[2] = {{.resident = 700, .limit = own, .draining = true}, {.resident = 650, .draining = true}};
			unsigned rounds = 0;
			int i;

			for (;;) {
				uint64_t take = 0, total = v[0].resident + v[1].resident;

				v[0].queued = v[0].resident;
				v[1].queued = v[1].resident;
				i = fm_policy_pick(v, 2, total, limit, true, &take);
				if (i < 0)
					break;
				if (take == 0 || v[i].resident == 0 || rounds++ > 5000) {
					bad = limit;
					break;
				}
				take = take < 16 ? take : 16;
				v[i].resident -= take < v[i].resident ? take : v[i].resident;
			}
			if (v[0].resident + v[1].resident > (limit < FM_LIMIT_MIN ? FM_LIMIT_MIN : limit) ||
			    (own && v[0].resident > (own < FM_LIMIT_MIN ? FM_LIMIT_MIN : own)))
				bad = limit;
		}
	is_u64(bad, 0, "draining ends, and then the budgets hold");
}

static void test_queue(void)
{
	struct fm_queue *q = fm_queue_new(100000);
	uint32_t page = 0;
	uint64_t bad = 0;

	ok(q && !fm_queue_pop(q, &page) && fm_queue_count(q) == 0, "a new queue is empty");
	for (uint32_t i = 0; i < 100000; i += 3)
		bad += fm_queue_push(q, i) != 0;
	is_u64(fm_queue_count(q), 33334, "many pages, over many chunks");
	for (uint32_t i = 0; i < 100000; i += 3)
		bad += fm_queue_push(q, i) != 0;
	is_u64(fm_queue_count(q), 33334, "a page that is queued is not queued again");
	fm_queue_push(q, 100000);
	fm_queue_push(q, UINT32_MAX);
	is_u64(fm_queue_count(q), 33334, "a page beyond the bound is not queued");
	for (uint32_t i = 0; i < 100000; i += 3)
		bad += !fm_queue_pop(q, &page) || page != i;
	is_u64(bad, 0, "first in, first out");
	ok(!fm_queue_pop(q, &page) && fm_queue_count(q) == 0, "empty again");
	ok(fm_queue_push(q, 7) == 0 && fm_queue_pop(q, &page) && page == 7, "and good for another round");
	fm_queue_free(q);
	fm_queue_free(NULL);

	/* 2^32 - 2 pages: the bitmap is there only as far as it is touched. */
	q = fm_queue_new(0xfffffffeu);
	if (ok(q != NULL, "a queue for a region of 16 TiB")) {
		fm_queue_push(q, 0xfffffffdu);
		fm_queue_push(q, 0);
		ok(fm_queue_pop(q, &page) && page == 0xfffffffdu && fm_queue_pop(q, &page) && page == 0, "its last and first page");
	}
	fm_queue_free(q);
}

/* Against a plain model: a ring and a flag a page, through every length around the size of a chunk. */
static void test_queue_model(unsigned seed)
{
	enum { N = 4096 };
	static uint32_t ring[N];
	static bool in[N];
	struct fm_queue *q = fm_queue_new(N);
	uint64_t head = 0, tail = 0, bad = 0;

	srand(seed);
	for (int i = 0; i < 400000; i++) {
		/* Drifts between empty and full. */
		bool push = rand() % 100 < (i / 5000 % 2 ? 60 : 40);
		uint32_t page = (uint32_t)rand() % N, got = 0;

		if (push) {
			bad += fm_queue_push(q, page) != 0;
			if (!in[page])
				in[ring[head++ % N] = page] = true;
		} else if (tail == head) {
			bad += fm_queue_pop(q, &got);
		} else {
			bad += !fm_queue_pop(q, &got) || got != ring[tail % N];
			in[ring[tail++ % N]] = false;
		}
		bad += fm_queue_count(q) != head - tail;
	}
	is_u64(bad, 0, "400,000 random pushes and pops as in the model (seed %u)", seed);
	fm_queue_free(q);
}

int main(int argc, char **argv)
{
	test_marks();
	test_pick();
	test_pick_ends();
	test_queue();
	test_queue_model(argc > 1 ? (unsigned)atoi(argv[1]) : (unsigned)time(NULL));
	return tap_done();
}
