/* Bytes got ahead of a fault: used for the very copy that they are of, or not at all. */
#include "shard_impl.h"

#include "tap.h"

#include <stdlib.h>

#define PAGES 1024

static struct fm_shard s;
static struct fm_shard_shm shm;
static struct fm_shard_stats stats;
static struct fm_region_hdr hdr;
static struct fm_region_map map = {.hdr = &hdr};
static fm_word words[PAGES];
static unsigned asked;
static uint64_t fails; /* this page's get fails */

/* A page's bytes say which copy it is: page, generation, epoch. */
static void get(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	(void)store;
	(void)region;
	for (unsigned i = 0; i < n; i++) {
		uint64_t *to = r[i].buf;

		asked++;
		to[0] = r[i].page;
		to[1] = r[i].gen;
		to[2] = r[i].epoch;
		r[i].result = r[i].page == fails ? FM_STORE_DOWN : FM_STORE_OK;
	}
}

static const struct fm_store_ops ops = {.get = get};
static struct fm_store store = {.ops = &ops};

static uint64_t remote(uint64_t gen, uint32_t epoch)
{
	return fm_word_at_epoch(gen << FM_GEN_SHIFT | FM_F_STORED | FM_REMOTE, epoch);
}

static void begin(void)
{
	free(s.buf);
	memset(&s, 0, sizeof s);
	memset(&shm, 0, sizeof shm);
	memset(&stats, 0, sizeof stats);
	s.o.map = &map;
	s.o.store = &store;
	s.shm = &shm;
	s.stats = &stats;
	s.words = words;
	s.buf = aligned_alloc(FM_PAGE_SIZE, (size_t)2 * FM_FILL * FM_PAGE_SIZE);
	if (!s.buf)
		abort();
	s.stage.buf = s.buf;
	s.stage.used = s.buf + (size_t)FM_FILL * FM_PAGE_SIZE;
	shm.first_page = 100;
	shm.pages = PAGES - 100;
	for (unsigned i = 0; i < PAGES; i++)
		words[i] = remote(7, 3);
	asked = 0;
	fails = UINT64_MAX;
}

static void stage(uint32_t page, int32_t stride, unsigned n)
{
	s.stage.want = (struct fm_ahead){.page = page, .stride = stride, .n = n};
	shard_stage_begin(&s);
	shard_stage_end(&s);
}

/* Is there something for the page, taken from a word w, and is it right? */
static bool has(uint32_t page, uint64_t w)
{
	struct fill f = {.page = page, .source = FILL_STORE, .w = fm_word_busy(w, FM_REMOTE)};
	const unsigned char *src = shard_staged(&s, &f);
	const uint64_t *got = (const void *)src;

	return src && got[0] == page && got[1] == fm_word_gen(w) && got[2] == fm_word_epoch(w);
}

static void test_use(void)
{
	unsigned right = 0;

	begin();
	stage(200, 1, 9);
	is_u64(asked, 10, "the fault's page, and those after it");
	is_u64(s.stage.want.n, 0, "once");
	for (uint32_t p = 200; p < 210; p++)
		right += has(p, remote(7, 3));
	is_u64(right, 10, "all are there");
	ok(!has(205, remote(7, 3)), "once each");
	ok(!has(210, remote(7, 3)), "no other");
	stage(210, 1, 9);
	is_u64(stats.prefetch_wasted, 0, "none was wasted");
	is_u64(stats.store_gets, 20, "all are counted");
}

static void test_stale(void)
{
	begin();
	fails = 203;
	words[204] = (remote(7, 3) & ~FM_PS_MASK) | FM_DIRTY;
	stage(200, 1, 9);
	is_u64(asked, 9, "what is here is not asked for");
	ok(!has(200, remote(8, 3)), "a newer generation's word does not get it");
	ok(!has(200, remote(6, 3)), "nor an older one's");
	ok(!has(201, remote(7, 4)), "nor that of a copy that was moved");
	ok(!has(203, remote(7, 3)), "what failed is not there");
	ok(!has(204, remote(7, 3)), "nor what was not asked for");
	ok(has(200, remote(7, 3) & ~FM_F_STORED), "flags do not matter");
}

/* The next bytes come while the ones before are still being installed. */
static void test_overlap(void)
{
	struct fill f = {.page = 200, .w = fm_word_busy(remote(7, 3), FM_REMOTE)};
	const unsigned char *src;
	const uint64_t *got;

	begin();
	stage(200, 1, 9);
	src = shard_staged(&s, &f);
	got = (const void *)src;
	s.stage.want = (struct fm_ahead){.page = 300, .stride = 1, .n = 62};
	for (uint32_t p = 201; p < 210; p++)
		has(p, remote(7, 3));
	shard_stage_begin(&s);
	shard_stage_end(&s);
	ok(src && got[0] == 200 && got[1] == 7, "what was handed out stays while the next is got");
	ok(has(300, remote(7, 3)), "which is there, too");
}

static void test_order(void)
{
	struct fill a = {.page = 391, .w = fm_word_busy(remote(7, 3), FM_REMOTE)}, b = a;
	const unsigned char *src;

	begin();
	stage(400, -1, 20);
	b.page = 392;
	src = shard_staged(&s, &a);
	ok(src && shard_staged(&s, &b) == src + FM_PAGE_SIZE, "backwards, too, they lie in ascending order");
	begin();
	stage(110, -7, 30);
	is_u64(asked, 2, "none before the shard's first page");
	begin();
	stage(PAGES - 3, 1, 62);
	is_u64(asked, 3, "none behind its last");
}

static void test_waste(void)
{
	unsigned most = 0;

	begin();
	stage(200, 1, 9);
	stage(200, 1, 30);
	is_u64(asked, 10, "what is still of use is not thrown away");
	stage(500, 1, 9);
	is_u64(stats.prefetch_wasted, 10, "what is thrown away unused is counted");
	is_u64(asked, 10, "and the next window passed by");
	for (unsigned i = 0; i < 1000; i++)
		stage(100 + i % 2 * 500, 1, 9);
	most = asked;
	ok(most < 400, "two streams that take turns: %u pages got for 1000 windows of 10", most);
	s.stage.skip = 0;
	stage(300, 1, 9);
	for (unsigned p = 300; p < 310; p++)
		has(p, remote(7, 3));
	is_u64(s.stage.penalty, 0, "use makes good");
}

int main(void)
{
	test_use();
	test_stale();
	test_overlap();
	test_order();
	test_waste();
	return tap_done();
}
