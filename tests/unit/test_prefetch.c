/* The prefetcher's guesses, without pages: a client is played that faults on what is not here. */
#include "../../lib/prefetch.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tap.h"

#define PAGES 65536

static struct fm_prefetch p;
static bool here[PAGES];
static unsigned faults, brought, used_ahead;
static bool ahead[PAGES];
static uint64_t rnd;

static uint64_t next_random(void)
{
	rnd ^= rnd << 13, rnd ^= rnd >> 7, rnd ^= rnd << 17;
	return rnd;
}

static void begin(void)
{
	fm_prefetch_init(&p);
	memset(here, 0, sizeof here);
	memset(ahead, 0, sizeof ahead);
	faults = brought = used_ahead = 0;
}

/* The client touches a page; all of what is asked for is brought in, room for it being there. */
static struct fm_ahead touch(int64_t page, unsigned room)
{
	struct fm_ahead a = {.n = 0};
	unsigned k, n = 0;

	if (page < 0 || page >= PAGES)
		return a;
	used_ahead += ahead[page];
	ahead[page] = false;
	if (here[page])
		return a;
	faults++;
	here[page] = true;
	a = fm_prefetch_fault(&p, (uint32_t)page);
	for (k = 1; k <= a.n && n < room; k++) {
		int64_t at = page + (int64_t)k * a.stride;

		if (at < 0 || at >= PAGES)
			break;
		if (!here[at]) {
			here[at] = ahead[at] = true;
			n++;
		}
	}
	brought += n;
	if (a.n)
		fm_prefetch_took(&p, &a, k - 1, n);
	return a;
}

static void test_stream(const char *name, int64_t first, int64_t stride, unsigned n)
{
	begin();
	for (unsigned i = 0; i < n; i++)
		touch(first + i * stride, UINT32_MAX);
	ok(faults < n / 8, "%s: %u faults for %u pages", name, faults, n);
	ok(p.wasted == 0 && p.hits + FM_PREFETCH_MAX >= brought && p.hits <= used_ahead, "%s: all were hits (%u of %u known)", name,
	   (unsigned)p.hits, brought);
}

static void test_growth(void)
{
	unsigned last = 0, grew = 1;

	begin();
	for (unsigned i = 0; i < 3; i++)
		is_u64(touch(100 + i, UINT32_MAX).n, 0, "no guess after %u faults", i + 1);
	for (unsigned i = 3; i < 400; i++) {
		struct fm_ahead a = touch(100 + i, UINT32_MAX);

		if (a.n) {
			grew &= last == 0 || a.n == (last * 2 < FM_PREFETCH_MAX ? last * 2 : FM_PREFETCH_MAX);
			last = a.n;
		}
	}
	ok(grew && last == FM_PREFETCH_MAX, "windows double, up to %u", FM_PREFETCH_MAX);
}

static void test_random(void)
{
	begin();
	for (unsigned i = 0; i < 20000; i++)
		touch((int64_t)(next_random() % PAGES), UINT32_MAX);
	ok(brought < 20, "random touches: %u pages brought in for %u faults", brought, faults);
}

/* Streams at the same time, with random touches in between. */
static void test_mixed(void)
{
	int64_t at[4] = {0, 20000, 40000, 65000};
	static const int64_t stride[4] = {1, 3, 1, -1};
	unsigned steps = 0, strays = 0;

	begin();
	for (unsigned i = 0; i < 8000; i++) {
		unsigned w = (unsigned)(next_random() % 5);

		if (w == 4) {
			strays++;
			touch((int64_t)(next_random() % PAGES), UINT32_MAX);
			continue;
		}
		touch(at[w], UINT32_MAX);
		at[w] += stride[w];
		steps++;
	}
	ok(faults - strays < steps / 4, "four streams at once: %u faults for %u steps", faults - strays, steps);
	ok(p.wasted * 5 < p.hits, "... %u hits, %u wasted", (unsigned)p.hits, (unsigned)p.wasted);
}

/* Short runs at random places: each begins a stream that leads nowhere. */
static void test_waste(void)
{
	unsigned early = 0, late = 0;

	begin();
	for (unsigned i = 0; i < 2000; i++) {
		int64_t at = (int64_t)(next_random() % 60000);

		if (i == 1000)
			memset(here, 0, sizeof here);
		if (i == 100)
			early = brought;
		if (i == 1900)
			late = brought;
		for (int64_t k = 0; k < 5; k++)
			touch(at + k, UINT32_MAX);
	}
	late = brought - late;
	ok(late < early, "short runs: %u pages in vain for the first hundred, %u for the last", early, late);
	ok(p.cap <= 8 && p.wasted > p.hits, "... windows are small by then (%u), and the waste is known", p.cap);
	begin();
	p.cap = 1;
	for (int64_t i = 0; i < 2000; i++)
		touch(i, UINT32_MAX);
	ok(p.cap == FM_PREFETCH_MAX && faults < 2000 / 8, "... a long one makes them great again (%u faults)", faults);
}

/* Room for a few pages only: less is brought in, and the stream goes on behind it. */
static void test_room(void)
{
	begin();
	for (int64_t i = 0; i < 1000; i++)
		touch(i, 3);
	ok(faults < 1000 / 3 && p.wasted == 0, "with room for 3 at a time: %u faults", faults);
	begin();
	for (int64_t i = 0; i < 1000; i++)
		touch(i, 0);
	ok(faults == 1000 && p.wasted == 0 && p.hits == 0, "without room nothing is counted");
}

/* Pages that go before they are used (a budget that is too small) are no hits. */
static void test_thrash(void)
{
	begin();
	for (int64_t i = 0; i < 2000; i++) {
		touch(i, UINT32_MAX);
		memset(&here[i + 1], 0, sizeof here[0] * 100);
		memset(&ahead[i + 1], 0, sizeof ahead[0] * 100);
	}
	ok(p.hits <= p.wasted && brought < 3 * 2000, "thrown out before use: %u hits, %u wasted, %u brought in for 2000", (unsigned)p.hits,
	   (unsigned)p.wasted, brought);
}

/* Where the next fault will be: said before it, and right, once windows are large. */
static void test_next(void)
{
	uint32_t at[] = {100, 60000};
	int32_t stride[] = {1, -3};

	for (unsigned k = 0; k < 2; k++) {
		struct fm_ahead a, next = {0};
		unsigned right = 0, said = 0, most = 0;
		uint32_t page = at[k];

		fm_prefetch_init(&p);
		for (unsigned i = 0; i < 50; i++) {
			a = fm_prefetch_fault(&p, page);
			said += next.n > 0;
			right += next.n && next.page == page && next.n >= a.n;
			next.n = 0;
			if (a.n) {
				fm_prefetch_took(&p, &a, a.n, a.n);
				next = fm_prefetch_next(&p, &a);
				most = next.n > most ? next.n : most;
			}
			page += (uint32_t)((int32_t)(a.n + 1) * stride[k]);
		}
		ok(said > 35 && right == said, "stride %d: the next fault was foretold %u times, %u times right", stride[k], said, right);
		is_u64(most, FM_PREFETCH_MAX, "with all of its window");
		a = fm_prefetch_fault(&p, page);
		fm_prefetch_took(&p, &a, 3, 3);
		is_u64(fm_prefetch_next(&p, &a).n, 0, "no room for a window: none");
	}
}

static void test_edges(void)
{
	uint64_t bad = 0;

	fm_prefetch_init(&p);
	for (unsigned i = 0; i < 200000; i++) {
		uint64_t r = next_random();
		uint32_t page = r % 3 == 0 ? (uint32_t)(r >> 32) : r % 3 == 1 ? UINT32_MAX - 2 - i % 100 : i % 100;
		struct fm_ahead a = fm_prefetch_fault(&p, page);

		bad += a.page != page || a.n > FM_PREFETCH_MAX || (a.n && !a.stride) || a.stream >= FM_PREFETCH_STREAMS;
		if (a.n)
			fm_prefetch_took(&p, &a, (unsigned)(r >> 8) % (a.n + 1), (unsigned)(r >> 16) % (a.n + 1));
		if (a.n)
			bad += fm_prefetch_next(&p, &a).n > FM_PREFETCH_MAX;
		bad += p.cap < 1 || p.cap > FM_PREFETCH_MAX;
	}
	is_u64(bad, 0, "any page numbers: guesses stay in bounds");
}

int main(int argc, char **argv)
{
	rnd = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL) | 1;
	printf("# seed %llu\n", (unsigned long long)rnd);
	test_growth();
	test_stream("forwards", 10, 1, 4000);
	test_stream("backwards", 60000, -1, 4000);
	test_stream("every seventh page", 3, 7, 4000);
	test_stream("every hundredth page, backwards", 65000, -100, 600);
	test_random();
	test_mixed();
	test_waste();
	test_room();
	test_thrash();
	test_next();
	test_edges();
	return tap_done();
}
