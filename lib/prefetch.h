/*
 * Which pages will be wanted next: guesses from the order of faults. Pure; knows pages by number only.
 *
 * Theory of operation. Faults are told apart into access streams: a fault belongs to the stream that foretold it, else to the one whose last
 * fault was nearest. A stream's trend is the majority of the differences between its last faults (Boyer-Moore, over few of them and
 * then over more: Leap, USENIX ATC 2020), so a fault out of step does not end it. Once there is a trend, each fault that continues
 * it asks for a window of pages ahead. Pages that were brought in cause no fault, so nobody tells whether they are used; but when the next fault of
 * the stream is the first page behind its window, all of the window was: these are hits, and the next window has twice the size. When the
 * stream is never heard of again, or goes elsewhere, they are counted as wasted, and every stream's windows become smaller.
 */
#ifndef FM_PREFETCH_H
#define FM_PREFETCH_H

#include <stdbool.h>
#include <stdint.h>

#define FM_PREFETCH_STREAMS 16
#define FM_PREFETCH_HISTORY 8    /* differences remembered of a stream */
#define FM_PREFETCH_MAX     62u  /* pages of a window at most */
#define FM_PREFETCH_NEAR    512u /* pages: a fault farther from a stream's last one is not its */

struct fm_prefetch_stream {
	uint64_t used;  /* when it had its last fault, in faults; 0: slot not in use */
	uint32_t last;  /* page of that */
	int32_t delta[FM_PREFETCH_HISTORY];
	unsigned ndelta, at;
	int32_t stride;  /* 0: no trend */
	unsigned window; /* pages of the last window, as asked for */
	unsigned reached; /* steps of stride from `last` that the last window covers */
	unsigned unproven; /* pages brought in by it of which nothing is known yet */
};

/* All zero is a good beginning, but for cap: fm_prefetch_init(). One thread. */
struct fm_prefetch {
	struct fm_prefetch_stream stream[FM_PREFETCH_STREAMS];
	uint64_t clock;
	unsigned cap; /* windows are not greater; halved by waste, doubled by hits */
	uint64_t hits, wasted; /* pages brought in ahead: used; not used, as far as can be told */
};

/* Pages that are wanted soon: page + stride, page + 2 * stride, ... n of them. */
struct fm_ahead {
	uint32_t page; /* the fault's */
	int32_t stride;
	unsigned n;      /* 0: none */
	unsigned stream; /* for fm_prefetch_took() */
};

void fm_prefetch_init(struct fm_prefetch *p);

/* There was a fault on a page. What should be brought in after it? Not all of it need exist. */
struct fm_ahead fm_prefetch_fault(struct fm_prefetch *p, uint32_t page);

/*
 * Tell what came of it: the first `reached` steps need no more fault (they were there, or were brought in), and `brought` of them were
 * brought in. Only for a fault that fm_prefetch_fault() wanted something for, before the next call of that.
 */
void fm_prefetch_took(struct fm_prefetch *p, const struct fm_ahead *a, unsigned reached, unsigned brought);

/*
 * After fm_prefetch_took(): where will the stream's next fault be, and what will be wanted after it, if all goes on as it does? n is 0
 * until windows have proved right a few times (FM_PREFETCH_SURE pages).
 */
#define FM_PREFETCH_SURE 8u
struct fm_ahead fm_prefetch_next(const struct fm_prefetch *p, const struct fm_ahead *a);

#endif
