/* lib/stats: the histogram's buckets and percentiles, sums over shards, clearing. */
#include "stats.h"
#include "tap.h"

#include <stdlib.h>
#include <string.h>

static void test_buckets(void)
{
	bool bounds = true, monotone = true, error = true;
	uint64_t lower = 0;

	for (unsigned b = 0; b < FM_HIST_BUCKETS; b++) {
		uint64_t upper = fm_hist_upper(b);

		if (upper < lower)
			monotone = false;
		if (fm_hist_bucket(lower) != b || fm_hist_bucket(upper) != b)
			bounds = false;
		if (b < FM_HIST_BUCKETS - 1 && fm_hist_bucket(upper + 1) != b + 1)
			bounds = false;
		if ((upper - lower) * 8 >= lower && upper != lower)
			error = false;
		lower = upper + 1;
	}
	ok(bounds, "each bucket holds its lowest and its greatest value, and the next value is the next bucket's");
	ok(monotone, "bounds grow");
	ok(error, "a bucket is narrower than 12.5 %% of its lowest value");
	ok(lower == 1ull << 37, "the buckets end at 2^37");
	ok(fm_hist_bucket(1ull << 37) == FM_HIST_BUCKETS - 1, "2^37 is in the last bucket");
	ok(fm_hist_bucket(UINT64_MAX) == FM_HIST_BUCKETS - 1, "the greatest value is in the last bucket");
	ok(fm_hist_upper(FM_HIST_BUCKETS + 5) == fm_hist_upper(FM_HIST_BUCKETS - 1), "a bucket out of range counts as the last");
}

static void test_percentiles(void)
{
	static uint64_t h[FM_HIST_BUCKETS];

	ok(fm_hist_percentile(h, 500) == 0, "no values: 0");
	h[fm_hist_bucket(7700)] = 1;
	ok(fm_hist_percentile(h, 1) == fm_hist_percentile(h, 1000), "one value: every percentile is the same");
	ok(fm_hist_percentile(h, 500) >= 7700 && fm_hist_percentile(h, 500) < 7700 * 9 / 8, "and near it");
	h[fm_hist_bucket(7700)] = 990;
	h[fm_hist_bucket(50000)] = 10;
	ok(fm_hist_percentile(h, 990) < 9000, "p99 of 990 + 10 is the smaller");
	ok(fm_hist_percentile(h, 991) >= 50000, "p99.1 is the greater");
	ok(fm_hist_percentile(h, 0) < 9000, "permille 0 is the smallest");
	memset(h, 0, sizeof h);
	h[3] = UINT64_MAX / 2;
	h[5] = UINT64_MAX / 2;
	ok(fm_hist_percentile(h, 500) == 3 && fm_hist_percentile(h, 999) == 5, "huge counts do not overflow");
	ok(fm_hist_count(h) == UINT64_MAX - 1, "count");
	memset(h, 0, sizeof h);
	h[FM_HIST_BUCKETS - 1] = 1;
	ok(fm_hist_percentile(h, 500) == (1ull << 37) - 1, "a value beyond the end gives the last bound");
}

static void test_sums(void)
{
	struct fm_region_hdr *hdr = aligned_alloc(64, sizeof *hdr);
	struct fm_shard_shm *sh = aligned_alloc(64, 2 * sizeof *sh);
	struct fm_stats st;

	memset(hdr, 0, sizeof *hdr);
	memset(sh, 0, 2 * sizeof *sh);
	fm_bump(&sh[0].stats.faults, 3);
	fm_bump(&sh[1].stats.faults, 4);
	fm_bump(&sh[1].stats.store_errors, 5);
	fm_bump(&hdr->evict.store_errors, 6);
	fm_bump(&hdr->evict.evictions, 7);
	fm_hist_add(sh[0].stats.latency, 1000);
	fm_hist_add(sh[1].stats.latency, 1000);
	atomic_store(&sh[0].stats.latency_max_ns, 1000);
	fm_stats_sum(hdr, sh, 2, true, &st);
	ok(st.faults == 7 && st.shard_store_errors == 5 && st.evict_store_errors == 6 && st.evictions == 7, "sums");
	ok(st.latency[fm_hist_bucket(1000)] == 2 && st.latency_max_ns == 1000, "latency adds up");

	fm_stats_clear(hdr, sh, 2);
	ok(fm_ld(&hdr->baseline.clear_count) == 1, "clear counts itself");
	fm_bump(&sh[1].stats.faults, 10);
	fm_hist_add(sh[1].stats.latency, 2000);
	fm_stats_sum(hdr, sh, 2, true, &st);
	ok(st.faults == 10 && st.evictions == 0 && st.shard_store_errors == 0 && st.evict_store_errors == 0,
	   "after a clear only what came later counts");
	ok(fm_hist_count(st.latency) == 1 && st.latency[fm_hist_bucket(2000)] == 1, "latency too");
	ok(st.latency_max_ns == 0, "the maximum of before the clear is not shown");
	atomic_store(&sh[1].stats.latency_max_ns, 2000);
	atomic_store(&sh[1].stats.clear_seen, 1);
	fm_stats_sum(hdr, sh, 2, true, &st);
	ok(st.latency_max_ns == 2000, "the maximum of after it is");
	fm_stats_sum(hdr, sh, 2, false, &st);
	ok(st.faults == 17 && fm_hist_count(st.latency) == 3, "since the beginning");
	atomic_store(&hdr->baseline.faults, 1000);
	fm_stats_sum(hdr, sh, 2, true, &st);
	ok(st.faults == 0, "never below 0");
	free(hdr);
	free(sh);
}

int main(void)
{
	test_buckets();
	test_percentiles();
	test_sums();
	return tap_done();
}
