/*
 * Which pages leave: policy apart from mechanism. Nothing here looks at a page, a descriptor or a clock.
 *
 * Here: how much leaves, and which region gives. Which of its pages: victims.h.
 */
#ifndef FM_POLICY_H
#define FM_POLICY_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Marks of a local budget, pages. The evictor starts above high, works down to low; fills wait above hard. A budget below
 * FM_LIMIT_MIN counts as that: one instruction may need several pages at once, and must be able to finish.
 */
#define FM_LIMIT_MIN  16
#define FM_LIMIT_NONE UINT64_MAX
struct fm_marks {
	uint64_t low, high, hard;
};
struct fm_marks fm_policy_marks(uint64_t limit_pages);

/* What the policy sees of a region. */
struct fm_view {
	uint64_t resident; /* pages */
	uint64_t limit;    /* its own budget; 0 none */
	uint64_t queued;   /* pages that could leave */
	uint64_t age;      /* of the next to leave: fm_victims_age() */
	bool draining;     /* has passed its own high mark and not reached its low one */
	bool stalled;      /* nothing of it can leave now */
};

/*
 * Choose the region to evict from next. total, limit: resident pages and budget of all regions together (FM_LIMIT_NONE none);
 * draining: the global high mark was passed and the low one not reached. Returns an index into v and *take (>= 1) pages, or -1:
 * nothing to do. Pure.
 */
int fm_policy_pick(const struct fm_view *v, unsigned n, uint64_t total, uint64_t limit, bool draining, uint64_t *take);

/* A queue of page numbers below a bound, each in it at most once. 4 bytes a queued page, 1 bit a page of the region. */
struct fm_queue;

/* Returns a queue for pages 0..pages-1 that the caller frees, or NULL (no memory). */
struct fm_queue *fm_queue_new(uint64_t pages);
void fm_queue_free(struct fm_queue *q);
/* Append a page; nothing happens when it is queued already. Returns 0 or -ENOMEM. One thread a queue. */
int fm_queue_push(struct fm_queue *q, uint32_t page);
/* Take the oldest page. Returns false when there is none. */
bool fm_queue_pop(struct fm_queue *q, uint32_t *page);
uint64_t fm_queue_count(const struct fm_queue *q);

#endif
