/*
 * Statistics: log-scaled latency histograms, and the sums a reader makes of a region's counters.
 *
 * Buckets: values 0..7 ns have one each; from there on every octave [2^e, 2^(e+1)) is cut in 8 equal ones, so a bucket's
 * upper bound is less than 12.5 % above any value in it. The octaves end at 2^37; the last bucket takes all above too.
 */
#ifndef FM_STATS_H
#define FM_STATS_H

#include "shm.h"

/* The bucket that ns belongs to: 0..FM_HIST_BUCKETS - 1, never falling as ns grows. Pure; any thread. */
unsigned fm_hist_bucket(uint64_t ns);

/*
 * The greatest value of a bucket (inclusive), ns; of the last one 2^37 - 1, although greater values are counted there.
 * bucket >= FM_HIST_BUCKETS counts as the last. Pure; any thread.
 */
uint64_t fm_hist_upper(unsigned bucket);

/* Count one value in a histogram of FM_HIST_BUCKETS that only the calling thread writes. */
static inline void fm_hist_add(_Atomic uint64_t *hist, uint64_t ns)
{
	_Atomic uint64_t *b = &hist[fm_hist_bucket(ns)];

	fm_bump(b, 1);
}

/* The number of values in a copy of a histogram. Pure; any thread. */
uint64_t fm_hist_count(const uint64_t hist[FM_HIST_BUCKETS]);

/*
 * A percentile of a copy of a histogram: the upper bound, ns, of the bucket that holds the value of that rank.
 * permille: 1..1000 (500 is the median, 999 is p99.9). Returns 0 for an empty histogram. Pure; any thread.
 */
uint64_t fm_hist_percentile(const uint64_t hist[FM_HIST_BUCKETS], unsigned permille);

/* Sums over a region's shards and its evictor. Fields as in struct fm_shard_stats and struct fm_evict_stats. */
struct fm_stats {
	uint64_t faults, faults_zero, faults_store, faults_wp, faults_stale, held, store_gets, shard_store_errors, pages_lost,
	    discarded, prefetched, zeroed_ahead, prefetch_hits, prefetch_wasted;
	uint64_t evictions, evictions_clean, evictions_zero, cancelled, store_puts, store_deletes, evict_store_errors;
	uint64_t latency_max_ns; /* since the last clear, 0 none */
	uint64_t latency[FM_HIST_BUCKETS];
};

/*
 * Sum up a region. hdr, shards: mapped, and nshards of them; only read. since_clear: subtract the baseline (a difference
 * below 0, seen when a clear runs meanwhile, gives 0), else everything since the region began (latency_max_ns is always
 * since the last clear). Any thread, any process; the daemons may write meanwhile.
 */
void fm_stats_sum(const struct fm_region_hdr *hdr, const struct fm_shard_shm *shards, unsigned nshards, bool since_clear,
		  struct fm_stats *out);

/*
 * Begin anew: write the sums of now as the baseline, clear_count last. hdr must be mapped writable. Any process;
 * readers and daemons may run meanwhile.
 */
void fm_stats_clear(struct fm_region_hdr *hdr, const struct fm_shard_shm *shards, unsigned nshards);

#endif
