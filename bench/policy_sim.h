/*
 * Replaying traces of page numbers: what bench/policy and the unit test of lib/victims share. Traces depend on their seed
 * alone, and only misses are counted: the same figures on every machine.
 */
#ifndef BENCH_POLICY_SIM_H
#define BENCH_POLICY_SIM_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "victims.h"

/* A trace: n accesses to pages 0..pages - 1. */
struct trace {
	uint32_t *at;
	size_t n;
	uint32_t pages;
};

struct sim_rng {
	uint64_t x;
};

static inline uint64_t sim_random(struct sim_rng *r)
{
	/* xorshift64* */
	r->x ^= r->x >> 12, r->x ^= r->x << 25, r->x ^= r->x >> 27;
	return r->x * 0x2545f4914f6cdd1dull;
}

static inline double sim_unit(struct sim_rng *r)
{
	return (double)(sim_random(r) >> 11) / 9007199254740992.0;
}

/* Zipf over 0..n-1 by a table of sums; ranks are spread over the pages by a permutation. */
struct sim_zipf {
	double *sum;
	uint32_t *page;
	uint32_t n;
};

static inline void sim_shuffle(struct sim_rng *r, uint32_t *v, uint32_t n)
{
	for (uint32_t i = n; i > 1; i--) {
		uint32_t k = (uint32_t)(sim_random(r) % i), t = v[i - 1];

		v[i - 1] = v[k], v[k] = t;
	}
}

static inline struct sim_zipf sim_zipf_new(struct sim_rng *r, uint32_t n, double theta)
{
	struct sim_zipf z = {.sum = malloc(n * sizeof(double)), .page = malloc(n * sizeof(uint32_t)), .n = n};
	double s = 0;

	if (!z.sum || !z.page)
		abort();
	for (uint32_t i = 0; i < n; i++) {
		s += 1 / pow(i + 1, theta);
		z.sum[i] = s;
		z.page[i] = i;
	}
	sim_shuffle(r, z.page, n);
	return z;
}

static inline uint32_t sim_zipf_next(struct sim_rng *r, const struct sim_zipf *z)
{
	double u = sim_unit(r) * z->sum[z->n - 1];
	uint32_t lo = 0, hi = z->n - 1;

	while (lo < hi) {
		uint32_t mid = (lo + hi) / 2;

		if (z->sum[mid] < u)
			lo = mid + 1;
		else
			hi = mid;
	}
	return z->page[lo];
}

static inline void sim_zipf_free(struct sim_zipf *z)
{
	free(z->sum);
	free(z->page);
}

static inline struct trace sim_trace(size_t n, uint32_t pages)
{
	struct trace t = {.at = malloc(n * sizeof(uint32_t)), .n = n, .pages = pages};

	if (!t.at)
		abort();
	return t;
}

/* --- the traces; all over about `pages` pages */

/* Round and round. */
static inline struct trace sim_loop(uint32_t pages, size_t n)
{
	struct trace t = sim_trace(n, pages);

	for (size_t i = 0; i < n; i++)
		t.at[i] = (uint32_t)(i % pages);
	return t;
}

/* Each page once. */
static inline struct trace sim_scan(uint32_t pages)
{
	return sim_loop(pages, pages);
}

static inline struct trace sim_zipfian(uint32_t pages, size_t n, double theta, uint64_t seed)
{
	struct sim_rng r = {seed};
	struct sim_zipf z = sim_zipf_new(&r, pages, theta);
	struct trace t = sim_trace(n, pages);

	for (size_t i = 0; i < n; i++)
		t.at[i] = sim_zipf_next(&r, &z);
	sim_zipf_free(&z);
	return t;
}

static inline struct trace sim_uniform(uint32_t pages, size_t n, uint64_t seed)
{
	struct sim_rng r = {seed};
	struct trace t = sim_trace(n, pages);

	for (size_t i = 0; i < n; i++)
		t.at[i] = (uint32_t)(sim_random(&r) % pages);
	return t;
}

/* Zipf over a half of the pages; now and then a scan goes over the other half, a stretch of it at a time. */
static inline struct trace sim_polluted(uint32_t pages, size_t n, uint64_t seed)
{
	struct sim_rng r = {seed};
	uint32_t half = pages / 2, stretch = pages / 10, scan = 0;
	struct sim_zipf z = sim_zipf_new(&r, half, 0.99);
	struct trace t = sim_trace(n, pages);
	size_t i = 0;

	while (i < n) {
		for (uint32_t k = 0; k < 9 * stretch && i < n; k++)
			t.at[i++] = sim_zipf_next(&r, &z);
		for (uint32_t k = 0; k < stretch && i < n; k++)
			t.at[i++] = half + scan++ % (pages - half);
	}
	sim_zipf_free(&z);
	return t;
}

/* The popular pages are others every n / phases accesses. */
static inline struct trace sim_phases(uint32_t pages, size_t n, unsigned phases, uint64_t seed)
{
	struct sim_rng r = {seed};
	struct sim_zipf z = sim_zipf_new(&r, pages, 0.99);
	struct trace t = sim_trace(n, pages);

	for (size_t i = 0; i < n; i++) {
		if (i % (n / phases) == n / phases - 1)
			sim_shuffle(&r, z.page, pages);
		t.at[i] = sim_zipf_next(&r, &z);
	}
	sim_zipf_free(&z);
	return t;
}

/* A window that slides: each page is used for a while, and then never again. */
static inline struct trace sim_window(uint32_t pages, size_t n, uint32_t width, uint64_t seed)
{
	struct sim_rng r = {seed};
	struct trace t = sim_trace(n, pages);

	for (size_t i = 0; i < n; i++)
		t.at[i] = (uint32_t)((double)i * (pages - width) / (double)n) + (uint32_t)(sim_random(&r) % width);
	return t;
}

/* By turns: zipf, a loop over a tenth of the pages more than fits, uniform, a scan. */
static inline struct trace sim_mixed(uint32_t pages, size_t n, uint64_t seed)
{
	struct sim_rng r = {seed};
	struct sim_zipf z = sim_zipf_new(&r, pages, 0.99);
	struct trace t = sim_trace(n, pages);
	uint32_t loop = 0, scan = 0;
	size_t turn = pages / 2;

	for (size_t i = 0; i < n; i++) {
		switch (i / turn % 6) {
		case 0:
		case 2:
			t.at[i] = sim_zipf_next(&r, &z);
			break;
		case 1:
		case 3:
			/* two of three accesses are zipf's, the third a loop's */
			t.at[i] = i % 3 ? sim_zipf_next(&r, &z) : loop++ % (pages / 2);
			break;
		case 4:
			t.at[i] = (uint32_t)(sim_random(&r) % pages);
			break;
		default:
			t.at[i] = scan++ % pages;
			break;
		}
	}
	sim_zipf_free(&z);
	return t;
}

/* --- the policies; each returns the number of misses with room for `room` pages */

static inline uint64_t sim_fifo(const struct trace *t, uint32_t room)
{
	uint32_t *ring = malloc(room * sizeof *ring);
	bool *in = calloc((size_t)t->pages + 1, sizeof *in);
	uint64_t misses = 0;

	if (!ring || !in)
		abort();
	for (size_t i = 0; i < t->n; i++) {
		uint32_t p = t->at[i];

		if (in[p])
			continue;
		if (misses >= room)
			in[ring[misses % room]] = false;
		ring[misses++ % room] = p;
		in[p] = true;
	}
	free(ring);
	free(in);
	return misses;
}

static inline uint64_t sim_random_out(const struct trace *t, uint32_t room, uint64_t seed)
{
	struct sim_rng r = {seed};
	uint32_t *slot = malloc(room * sizeof *slot);
	bool *in = calloc((size_t)t->pages + 1, sizeof *in);
	uint64_t misses = 0;

	if (!slot || !in)
		abort();
	for (size_t i = 0; i < t->n; i++) {
		uint32_t p = t->at[i], k;

		if (in[p])
			continue;
		k = (uint32_t)misses;
		if (misses >= room) {
			k = (uint32_t)(sim_random(&r) % room);
			in[slot[k]] = false;
		}
		slot[k] = p;
		in[p] = true;
		misses++;
	}
	free(slot);
	free(in);
	return misses;
}

/* A heap of (key, page), greatest key first. */
struct sim_heap {
	struct sim_item {
		uint64_t key;
		uint32_t page;
	} *v;
	size_t n;
};

static inline void sim_heap_push(struct sim_heap *h, uint64_t key, uint32_t page)
{
	size_t i = h->n++;

	while (i && h->v[(i - 1) / 2].key < key) {
		h->v[i] = h->v[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	h->v[i] = (struct sim_item){key, page};
}

static inline struct sim_item sim_heap_pop(struct sim_heap *h)
{
	struct sim_item top = h->v[0], last = h->v[--h->n];
	size_t i = 0;

	for (;;) {
		size_t c = 2 * i + 1;

		if (c >= h->n)
			break;
		if (c + 1 < h->n && h->v[c + 1].key > h->v[c].key)
			c++;
		if (h->v[c].key <= last.key)
			break;
		h->v[i] = h->v[c];
		i = c;
	}
	h->v[i] = last;
	return top;
}

/* Belady's optimum: out goes what is used last. Sees the future; nothing can be better. */
static inline uint64_t sim_optimum(const struct trace *t, uint32_t room)
{
	uint64_t *next = malloc(t->n * sizeof *next), *seen = malloc(t->pages * sizeof *seen), misses = 0;
	struct sim_heap h = {.v = malloc((t->n + 1) * sizeof *h.v)};
	uint64_t *in = calloc((size_t)t->pages + 1, sizeof *in); /* next use + 1 of a page that is here; 0: it is not */
	uint32_t count = 0;

	if (!next || !seen || !h.v || !in)
		abort();
	for (uint32_t p = 0; p < t->pages; p++)
		seen[p] = t->n + p; /* never again */
	for (size_t i = t->n; i-- > 0;) {
		next[i] = seen[t->at[i]];
		seen[t->at[i]] = i;
	}
	for (size_t i = 0; i < t->n; i++) {
		uint32_t p = t->at[i];

		if (!in[p]) {
			misses++;
			if (count == room) {
				struct sim_item out;

				do
					out = sim_heap_pop(&h); /* entries of earlier uses are stale */
				while (in[out.page] != out.key + 1);
				in[out.page] = 0;
				count--;
			}
			count++;
		}
		in[p] = next[i] + 1;
		sim_heap_push(&h, next[i], p);
	}
	free(next);
	free(seen);
	free(h.v);
	free(in);
	return misses;
}

/* Ours, told only of misses and evictions, as the evictor is. batch: pages evicted at a time (1: as the others here). */
static inline uint64_t sim_ours(const struct trace *t, uint32_t room, uint32_t batch)
{
	struct fm_victims *v = fm_victims_new(t->pages);
	bool *in = calloc((size_t)t->pages + 1, sizeof *in);
	uint64_t misses = 0, clock = 0;
	uint32_t count = 0, page;

	if (!v || !in)
		abort();
	fm_victims_time(v, 0, room);
	for (size_t i = 0; i < t->n; i++) {
		uint32_t p = t->at[i];

		if (in[p])
			continue;
		misses++;
		for (uint32_t k = 0; count == room - k && k < batch && fm_victims_pop(v, &page); k++) {
			in[page] = false;
			count--;
			fm_victims_time(v, ++clock, room);
			fm_victims_left(v, page);
		}
		in[p] = true;
		count++;
		fm_victims_push(v, p);
	}
	fm_victims_free(v);
	free(in);
	return misses;
}

#endif
