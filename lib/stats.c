#include "stats.h"

#include <assert.h>
#include <string.h>

#define SUB_BITS 3 /* 8 buckets an octave */

static_assert(FM_HIST_BUCKETS % (1 << SUB_BITS) == 0, "whole octaves");

unsigned fm_hist_bucket(uint64_t ns)
{
	unsigned octave, b;

	if (ns < 1u << SUB_BITS)
		return (unsigned)ns;
	octave = 63u - (unsigned)__builtin_clzll(ns);
	b = ((octave - SUB_BITS + 1) << SUB_BITS) | ((unsigned)(ns >> (octave - SUB_BITS)) & ((1u << SUB_BITS) - 1));
	return b < FM_HIST_BUCKETS ? b : FM_HIST_BUCKETS - 1;
}

uint64_t fm_hist_upper(unsigned bucket)
{
	unsigned shift;

	if (bucket >= FM_HIST_BUCKETS)
		bucket = FM_HIST_BUCKETS - 1;
	if (bucket < 1u << SUB_BITS)
		return bucket;
	shift = (bucket >> SUB_BITS) - 1;
	return ((uint64_t)((1u << SUB_BITS) + (bucket & ((1u << SUB_BITS) - 1)) + 1) << shift) - 1;
}

uint64_t fm_hist_count(const uint64_t hist[FM_HIST_BUCKETS])
{
	uint64_t n = 0;

	for (unsigned b = 0; b < FM_HIST_BUCKETS; b++)
		n += hist[b];
	return n;
}

uint64_t fm_hist_percentile(const uint64_t hist[FM_HIST_BUCKETS], unsigned permille)
{
	uint64_t total = fm_hist_count(hist), rank, seen = 0;
	unsigned b;

	if (!total)
		return 0;
	/* ceil(total * permille / 1000) without overflow */
	rank = total / 1000 * permille + (total % 1000 * permille + 999) / 1000;
	if (!rank)
		rank = 1;
	for (b = 0; b < FM_HIST_BUCKETS - 1; b++) {
		seen += hist[b];
		if (seen >= rank)
			break;
	}
	return fm_hist_upper(b);
}

/*
 * The counters that a baseline keeps, in one place: X(field of the sums and of the baseline, field where it is counted).
 */
#define SHARD_COUNTERS(X)                                                                                                  \
	X(faults, faults)                                                                                                  \
	X(faults_zero, faults_zero)                                                                                        \
	X(faults_store, faults_store)                                                                                      \
	X(faults_wp, faults_wp)                                                                                            \
	X(faults_stale, faults_stale)                                                                                      \
	X(held, held)                                                                                                      \
	X(store_gets, store_gets)                                                                                          \
	X(shard_store_errors, store_errors)                                                                                \
	X(pages_lost, pages_lost)                                                                                          \
	X(discarded, discarded)                                                                                            \
	X(prefetched, prefetched)                                                                                          \
	X(zeroed_ahead, zeroed_ahead)                                                                                      \
	X(prefetch_hits, prefetch_hits)                                                                                    \
	X(prefetch_wasted, prefetch_wasted)
#define EVICT_COUNTERS(X)                                                                                                  \
	X(evictions, evictions)                                                                                            \
	X(evictions_clean, evictions_clean)                                                                                \
	X(evictions_zero, evictions_zero)                                                                                  \
	X(cancelled, cancelled)                                                                                            \
	X(store_puts, store_puts)                                                                                          \
	X(store_deletes, store_deletes)                                                                                    \
	X(evict_store_errors, store_errors)

static uint64_t minus(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

void fm_stats_sum(const struct fm_region_hdr *hdr, const struct fm_shard_shm *shards, unsigned nshards, bool since_clear,
		  struct fm_stats *out)
{
	const struct fm_baseline *base = &hdr->baseline;
	uint64_t clears = fm_ld(&base->clear_count);

	memset(out, 0, sizeof *out);
	for (unsigned i = 0; i < nshards; i++) {
		const struct fm_shard_stats *s = &shards[i].stats;

#define X(sum, field) out->sum += fm_ld(&s->field);
		SHARD_COUNTERS(X)
#undef X
		for (unsigned b = 0; b < FM_HIST_BUCKETS; b++)
			out->latency[b] += fm_ld(&s->latency[b]);
		/* A maximum of before the clear is not one of after it. */
		if (fm_ld(&s->clear_seen) == clears && fm_ld(&s->latency_max_ns) > out->latency_max_ns)
			out->latency_max_ns = fm_ld(&s->latency_max_ns);
	}
#define X(sum, field) out->sum = fm_ld(&hdr->evict.field);
	EVICT_COUNTERS(X)
#undef X
	if (!since_clear)
		return;
#define X(sum, field) out->sum = minus(out->sum, fm_ld(&base->sum));
	SHARD_COUNTERS(X)
	EVICT_COUNTERS(X)
#undef X
	for (unsigned b = 0; b < FM_HIST_BUCKETS; b++)
		out->latency[b] = minus(out->latency[b], fm_ld(&base->latency[b]));
}

void fm_stats_clear(struct fm_region_hdr *hdr, const struct fm_shard_shm *shards, unsigned nshards)
{
	struct fm_baseline *base = &hdr->baseline;
	struct fm_stats now;

	fm_stats_sum(hdr, shards, nshards, false, &now);
#define X(sum, field) atomic_store_explicit(&base->sum, now.sum, memory_order_relaxed);
	SHARD_COUNTERS(X)
	EVICT_COUNTERS(X)
#undef X
	for (unsigned b = 0; b < FM_HIST_BUCKETS; b++)
		atomic_store_explicit(&base->latency[b], now.latency[b], memory_order_relaxed);
	atomic_store_explicit(&base->clear_count, fm_ld(&base->clear_count) + 1, memory_order_release);
}
