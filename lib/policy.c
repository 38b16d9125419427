#include "policy.h"

#include <errno.h>
#include <stdlib.h>

static uint64_t min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

struct fm_marks fm_policy_marks(uint64_t limit)
{
	struct fm_marks m;
	uint64_t gap;

	if (limit == FM_LIMIT_NONE)
		return (struct fm_marks){.low = limit, .high = limit, .hard = limit};
	if (limit < FM_LIMIT_MIN)
		limit = FM_LIMIT_MIN;
	/* Room for a few batches between the marks, but no more of a small budget than a quarter, twice. */
	gap = limit / 32;
	if (gap < min(limit / 4, 64))
		gap = min(limit / 4, 64);
	if (gap > 4096)
		gap = 4096;
	m.hard = limit;
	m.high = limit - gap;
	m.low = limit - 2 * gap;
	return m;
}

/* Of two regions that could give: does a before b? The older page leaves, wherever it is, as if all were one region. */
static bool gives_before(const struct fm_view *a, const struct fm_view *b)
{
	return a->age != b->age ? a->age > b->age : a->resident > b->resident;
}

int fm_policy_pick(const struct fm_view *v, unsigned n, uint64_t total, uint64_t limit, bool draining, uint64_t *take)
{
	struct fm_marks g = fm_policy_marks(limit);
	int best = -1;

	for (unsigned i = 0; i < n; i++) {
		struct fm_marks m;

		if (!v[i].limit || !v[i].queued || v[i].stalled)
			continue;
		m = fm_policy_marks(v[i].limit);
		if (v[i].resident > (v[i].draining ? m.low : m.high)) {
			*take = v[i].resident - m.low;
			return (int)i;
		}
	}
	if (limit == FM_LIMIT_NONE || total <= (draining ? g.low : g.high))
		return -1;
	for (unsigned i = 0; i < n; i++)
		if (v[i].queued && !v[i].stalled && v[i].resident && (best < 0 || gives_before(&v[i], &v[best])))
			best = (int)i;
	if (best >= 0)
		*take = total - g.low;
	return best;
}

#define CHUNK 1020
struct chunk {
	struct chunk *next;
	uint32_t pages[CHUNK];
};

struct fm_queue {
	struct chunk *head, *tail; /* pop from head, push to tail; NULL when empty */
	struct chunk *spare;       /* one chunk kept, so a queue that breathes does not allocate */
	unsigned first, last;      /* next to pop in head; next free in tail */
	uint64_t count, pages;
	uint64_t *in; /* bitmap: is the page queued? */
};

struct fm_queue *fm_queue_new(uint64_t pages)
{
	struct fm_queue *q = calloc(1, sizeof *q);

	if (!q)
		return NULL;
	q->pages = pages;
	/* Large ones come from mmap: only what is touched is there. */
	q->in = calloc(pages / 64 + 1, sizeof *q->in);
	if (!q->in) {
		free(q);
		return NULL;
	}
	return q;
}

void fm_queue_free(struct fm_queue *q)
{
	if (!q)
		return;
	while (q->head) {
		struct chunk *c = q->head;

		q->head = c->next;
		free(c);
	}
	free(q->spare);
	free(q->in);
	free(q);
}

int fm_queue_push(struct fm_queue *q, uint32_t page)
{
	uint64_t bit = 1ull << (page % 64);

	if (page >= q->pages || (q->in[page / 64] & bit))
		return 0;
	if (!q->tail || q->last == CHUNK) {
		struct chunk *c = q->spare ? q->spare : malloc(sizeof *c);

		if (!c)
			return -ENOMEM;
		q->spare = NULL;
		c->next = NULL;
		if (q->tail)
			q->tail->next = c;
		else {
			q->head = c;
			q->first = 0;
		}
		q->tail = c;
		q->last = 0;
	}
	q->tail->pages[q->last++] = page;
	q->in[page / 64] |= bit;
	q->count++;
	return 0;
}

bool fm_queue_pop(struct fm_queue *q, uint32_t *page)
{
	struct chunk *c = q->head;

	if (!q->count)
		return false;
	*page = c->pages[q->first++];
	q->in[*page / 64] &= ~(1ull << (*page % 64));
	q->count--;
	if (q->first == CHUNK || !q->count) {
		q->head = c->next;
		if (!q->head)
			q->tail = NULL;
		q->first = 0;
		if (q->spare)
			free(c);
		else
			q->spare = c;
	}
	return true;
}

uint64_t fm_queue_count(const struct fm_queue *q)
{
	return q->count;
}
