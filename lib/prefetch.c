#include "prefetch.h"

#include <stdlib.h>

#define FIRST_WINDOW 2u
#define SLACK        4 /* steps behind a window that a fault may skip: pages that were here already */
#define LEAST        3 /* equal differences that make a trend */
#define QUIET        512 /* faults of others after which a stream with a trend is taken for ended */

void fm_prefetch_init(struct fm_prefetch *p)
{
	*p = (struct fm_prefetch){.cap = FM_PREFETCH_MAX};
}

/* The majority of the last n differences, or 0. */
static int32_t majority(const struct fm_prefetch_stream *s, unsigned n)
{
	int32_t candidate = 0;
	unsigned lead = 0, count = 0;

	for (unsigned i = 1; i <= n; i++) {
		int32_t d = s->delta[(s->at + FM_PREFETCH_HISTORY - i) % FM_PREFETCH_HISTORY];

		if (lead == 0)
			candidate = d;
		lead += d == candidate ? 1 : -1u;
	}
	for (unsigned i = 1; i <= n; i++)
		count += s->delta[(s->at + FM_PREFETCH_HISTORY - i) % FM_PREFETCH_HISTORY] == candidate;
	return count >= LEAST && count > n / 2 ? candidate : 0;
}

static int32_t trend(const struct fm_prefetch_stream *s)
{
	for (unsigned n = LEAST; n <= s->ndelta; n++) {
		int32_t d = majority(s, n);

		if (d)
			return d;
	}
	return 0;
}

static void used(struct fm_prefetch *p, struct fm_prefetch_stream *s, unsigned n)
{
	if (n > s->unproven)
		n = s->unproven;
	p->hits += n;
	s->unproven -= n;
}

static void waste(struct fm_prefetch *p, struct fm_prefetch_stream *s)
{
	if (!s->unproven)
		return;
	p->wasted += s->unproven;
	s->unproven = 0;
	p->cap = p->cap > 1 ? p->cap / 2 : 1;
}

/* How many steps is the page ahead of the stream's last fault? 0: it is not on its way. */
static unsigned steps(const struct fm_prefetch_stream *s, uint32_t page)
{
	int64_t d = (int64_t)page - s->last, k;

	if (!s->used || !s->stride || d % s->stride)
		return 0;
	k = d / s->stride;
	return k >= 1 && k <= (int64_t)s->reached + SLACK ? (unsigned)k : 0;
}

static uint32_t distance(const struct fm_prefetch_stream *s, uint32_t page)
{
	return s->last > page ? s->last - page : page - s->last;
}

/* Whose worth is the least gives its place to a new stream. */
static uint64_t worth(const struct fm_prefetch *p, const struct fm_prefetch_stream *s)
{
	return s->stride && p->clock - s->used < QUIET ? s->used + (1ull << 63) : s->used;
}

/*
 * The stream of a fault that none foretold: the nearest of those that have no trend yet, else a new one in the place of the one that was
 * quiet for longest. A stream with a trend is not drawn aside by what happens near it, and it causes few faults: so it outlives those
 * without one.
 */
static struct fm_prefetch_stream *stream_of(struct fm_prefetch *p, uint32_t page)
{
	struct fm_prefetch_stream *near = NULL, *oldest = &p->stream[0];

	for (struct fm_prefetch_stream *s = p->stream; s < p->stream + FM_PREFETCH_STREAMS; s++) {
		if (s->used && !s->stride && distance(s, page) <= FM_PREFETCH_NEAR && (!near || distance(s, page) < distance(near, page)))
			near = s;
		if (worth(p, s) < worth(p, oldest))
			oldest = s;
	}
	if (near)
		return near;
	if (oldest->used)
		waste(p, oldest);
	*oldest = (struct fm_prefetch_stream){.last = page};
	return oldest;
}

static void note(struct fm_prefetch_stream *s, int32_t delta)
{
	s->delta[s->at] = delta;
	s->at = (s->at + 1) % FM_PREFETCH_HISTORY;
	if (s->ndelta < FM_PREFETCH_HISTORY)
		s->ndelta++;
}

/*
 * A fault in the middle of a window, k steps on: that page was not brought in, or is gone again, unused. What lies before it was used.
 * No reason to bring in more: the budget may be too small for it, or somebody else came by.
 */
static void within(struct fm_prefetch *p, struct fm_prefetch_stream *s, unsigned k)
{
	used(p, s, k - 1);
	if (s->unproven) {
		s->unproven--;
		p->wasted++;
	}
	s->window = s->window > 1 ? s->window / 2 : 1;
	s->reached -= k;
}

/* The first fault behind a window, k steps on. */
static void behind(struct fm_prefetch *p, struct fm_prefetch_stream *s, unsigned k)
{
	int32_t was = s->stride;

	if (s->unproven) {
		used(p, s, s->unproven);
		p->cap = p->cap * 2 < FM_PREFETCH_MAX ? p->cap * 2 : FM_PREFETCH_MAX;
	}
	note(s, was * (int32_t)(k - s->reached));
	s->stride = trend(s);
	s->window = s->stride == was ? s->window * 2 : s->stride ? FIRST_WINDOW : 0;
	s->reached = 0;
}

struct fm_ahead fm_prefetch_fault(struct fm_prefetch *p, uint32_t page)
{
	struct fm_prefetch_stream *s = NULL;
	unsigned k = 0;
	bool more = true;

	for (unsigned i = 0; i < FM_PREFETCH_STREAMS && !k; i++) {
		k = steps(&p->stream[i], page);
		s = &p->stream[i];
	}
	if (k && k <= s->reached) {
		within(p, s, k);
		more = false;
	} else if (k) {
		behind(p, s, k);
	} else {
		s = stream_of(p, page);
		if (s->used && page != s->last) {
			note(s, (int32_t)((int64_t)page - s->last));
			s->stride = trend(s);
			s->window = s->stride ? FIRST_WINDOW : 0;
		}
	}
	if (s->window > p->cap)
		s->window = p->cap;
	s->used = ++p->clock;
	s->last = page;
	return (struct fm_ahead){
	    .page = page,
	    .stride = s->stride,
	    .n = more && s->stride ? s->window : 0,
	    .stream = (unsigned)(s - p->stream),
	};
}

void fm_prefetch_took(struct fm_prefetch *p, const struct fm_ahead *a, unsigned reached, unsigned brought)
{
	struct fm_prefetch_stream *s = &p->stream[a->stream];

	s->reached = reached;
	s->unproven += brought;
}

struct fm_ahead fm_prefetch_next(const struct fm_prefetch *p, const struct fm_ahead *a)
{
	const struct fm_prefetch_stream *s = &p->stream[a->stream];
	int64_t page = s->last + ((int64_t)s->reached + 1) * s->stride;
	struct fm_ahead next = {.page = (uint32_t)page, .stride = s->stride, .stream = a->stream};

	if (!s->stride || s->reached < FM_PREFETCH_SURE || page < 0 || page > UINT32_MAX)
		return next;
	/* A window that ended early had no room: nor will the next one. */
	next.n = s->reached < s->window ? s->reached : s->window * 2;
	if (next.n > p->cap)
		next.n = p->cap;
	return next;
}
