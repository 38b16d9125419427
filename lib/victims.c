#include "victims.h"

#include <errno.h>
#include <stdlib.h>

#define LOT    (FM_VICTIM_CLASSES - 1)
#define LATER  FM_VICTIM_CLASSES /* queue of the pages that were chosen and could not leave; they keep their class */
#define QUEUES (FM_VICTIM_CLASSES + 1)
#define CHUNK  1014 /* bytes of page numbers in a piece of a queue: 1 KiB with the rest */
#define LONGEST 5   /* bytes of a page number */

/* How lifetimes are learned; DESIGN.md has the measurements. */
#define RATIO_MAX   4.0  /* of a class's lifetime to the next lower one's */
#define LIFE_MAX    32.0 /* of any class: no page waits until its time has gone around */
#define STEP        1.2  /* a lifetime's change */
#define MARGIN      1.3  /* costs that differ less are equal */
#define KEEP        0.6  /* of the sums, from one look to the next */
#define KEEP_FEW  0.96 /* ... of a class that cannot be judged yet */
#define ENOUGH      48.0 /* evictions of a class to judge it by */
#define LOOKS       8    /* at the sums while a budget's worth of pages is evicted */
#define COST_MAX    32.0 /* of an eviction whose page came back at once; 1: after a budget's worth */
#define LOT_OF      8    /* one of so many is drawn ... */
#define LOT_HORIZON 8    /* ... if it comes back within so many budgets */

/*
 * What is known of a page, in 16 bits: | time 11 | class 3 | place 2 |. Time: when it was queued, or left, in units of 2^shift evictions,
 * 16 to 31 of them a budget: so it goes around after 66 budgets or more, and a page that was gone for longer looks hotter than it is.
 */
enum place { UNKNOWN, QUEUED, POPPED, LEFT };
#define PLACE_MASK  3u
#define CLASS_SHIFT 2
#define CLASS_MASK  7u
#define TIME_SHIFT  5
#define TIME_MASK   0x7ffu
#define ROOM_BITS   5 /* of the budget in units of time, at most */

/*
 * Page numbers, each as the difference to the one before it (the first: to 0), the sign in the lowest bit, 7 bits a byte, the low ones first:
 * one byte for neighbours, three in a region of 4 GiB whatever their order.
 */
struct chunk {
	struct chunk *next;
	uint16_t used; /* bytes */
	unsigned char bytes[CHUNK];
};

/* First in, first out. */
struct fifo {
	struct chunk *head, *tail; /* pop from head, push to tail; NULL when empty */
	unsigned first;            /* where the next to pop begins in head */
	uint32_t before, latest;   /* page numbers: the one before that, 0 at the beginning of a chunk; the one pushed last, likewise */
};

struct fm_victims {
	struct fifo queue[QUEUES];
	struct chunk *spare; /* one kept, so that queues that breathe do not allocate */
	uint16_t *page;      /* see enum place */
	uint64_t pages, count, refaults;
	uint64_t now, room; /* evictions; pages */
	unsigned shift;
	uint64_t look_at;                  /* time of the next learn() */
	double life[FM_VICTIM_CLASSES];
	double ratio[FM_VICTIM_CLASSES];   /* of the lifetime to the next lower class's; not of LOT */
	double left[FM_VICTIM_CLASSES];    /* evictions, fading */
	double cost[FM_VICTIM_CLASSES];    /* of these, fading */
	uint64_t random;
};

struct fm_victims *fm_victims_new(uint64_t pages)
{
	struct fm_victims *v = calloc(1, sizeof *v);

	if (!v)
		return NULL;
	/* Large ones come from mmap: only what is touched is there. */
	v->page = calloc(pages ? pages : 1, sizeof *v->page);
	if (!v->page) {
		free(v);
		return NULL;
	}
	v->pages = pages;
	v->room = 1;
	v->random = 88172645463325252u;
	for (unsigned c = 0; c < FM_VICTIM_CLASSES; c++)
		v->life[c] = v->ratio[c] = 1;
	v->life[LOT] = 2;
	return v;
}

void fm_victims_free(struct fm_victims *v)
{
	if (!v)
		return;
	for (unsigned c = 0; c < QUEUES; c++)
		while (v->queue[c].head) {
			struct chunk *k = v->queue[c].head;

			v->queue[c].head = k->next;
			free(k);
		}
	free(v->spare);
	free(v->page);
	free(v);
}

/* --- queues */

static int enqueue(struct fm_victims *v, struct fifo *q, uint32_t page)
{
	int64_t d;
	uint64_t x;

	if (!q->tail || q->tail->used + LONGEST > CHUNK) {
		struct chunk *c = v->spare ? v->spare : malloc(sizeof *c);

		if (!c)
			return -ENOMEM;
		v->spare = NULL;
		c->next = NULL;
		c->used = 0;
		if (q->tail) {
			q->tail->next = c;
		} else {
			q->head = c;
			q->first = q->before = 0;
		}
		q->tail = c;
		q->latest = 0;
	}
	d = (int64_t)page - q->latest;
	x = d < 0 ? (uint64_t)-d << 1 | 1 : (uint64_t)d << 1;
	for (; x >= 0x80; x >>= 7)
		q->tail->bytes[q->tail->used++] = (unsigned char)(x | 0x80);
	q->tail->bytes[q->tail->used++] = (unsigned char)x;
	q->latest = page;
	return 0;
}

/* The first page of a queue that is not empty; *end: where the next one begins. */
static uint32_t peek(const struct fifo *q, unsigned *end)
{
	unsigned at = q->first, shift = 0;
	uint64_t x = 0;

	do {
		x |= (uint64_t)(q->head->bytes[at] & 0x7f) << shift;
		shift += 7;
	} while (q->head->bytes[at++] & 0x80);
	*end = at;
	return x & 1 ? q->before - (uint32_t)(x >> 1) : q->before + (uint32_t)(x >> 1);
}

static uint32_t first(const struct fifo *q)
{
	unsigned end;

	return peek(q, &end);
}

static void dequeue(struct fm_victims *v, struct fifo *q)
{
	struct chunk *c = q->head;

	q->before = peek(q, &q->first);
	if (q->first < c->used)
		return;
	q->head = c->next;
	if (!q->head)
		q->tail = NULL;
	q->first = q->before = 0;
	if (v->spare)
		free(c);
	else
		v->spare = c;
}

/* --- what is known of a page */

static uint32_t time_of(const struct fm_victims *v)
{
	return (uint32_t)(v->now >> v->shift) & TIME_MASK;
}

static void note(struct fm_victims *v, uint32_t page, unsigned class, enum place place)
{
	v->page[page] = (uint16_t)(time_of(v) << TIME_SHIFT | class << CLASS_SHIFT | (uint32_t)place);
}

static enum place place_of(const struct fm_victims *v, uint32_t page)
{
	return (enum place)(v->page[page] & PLACE_MASK);
}

static unsigned class_of(const struct fm_victims *v, uint32_t page)
{
	return v->page[page] >> CLASS_SHIFT & CLASS_MASK;
}

/* Evictions since it was queued, or left. */
static uint64_t since(const struct fm_victims *v, uint32_t page)
{
	return (uint64_t)((time_of(v) - (v->page[page] >> TIME_SHIFT)) & TIME_MASK) << v->shift;
}

void fm_victims_time(struct fm_victims *v, uint64_t now, uint64_t room)
{
	v->now = now;
	v->room = room ? room : 1;
	v->shift = 0;
	while (v->room >> v->shift >> ROOM_BITS)
		v->shift++;
}

/* --- learning */

static double cost_of(const struct fm_victims *v, unsigned class)
{
	return v->cost[class] / v->left[class];
}

/* A step up or down, when the costs say so, within 1 and max. */
static void adjust(double *x, double cost, double reference, double max)
{
	if (cost > reference * MARGIN)
		*x *= STEP;
	else if (cost * MARGIN < reference)
		*x /= STEP;
	if (*x > max)
		*x = max;
	if (*x < 1)
		*x = 1;
}

/* The greatest ratio of lifetimes over n classes. */
static double ratio_max(unsigned n)
{
	double x = 1;

	while (n--)
		x *= RATIO_MAX;
	return x;
}

static void learn(struct fm_victims *v)
{
	double left = 0, cost = 0;
	int below = -1; /* the next lower class that can be judged */

	for (unsigned c = 0; c < LOT; c++) {
		bool enough = v->left[c] >= ENOUGH;

		if (c && enough && below >= 0)
			adjust(&v->ratio[c], cost_of(v, c), cost_of(v, (unsigned)below), ratio_max(c - (unsigned)below));
		if (c)
			v->life[c] = v->life[c - 1] * v->ratio[c];
		if (v->life[c] > LIFE_MAX)
			v->life[c] = LIFE_MAX;
		if (enough)
			below = (int)c;
		left += v->left[c];
		cost += v->cost[c];
	}
	if (left >= ENOUGH && v->left[LOT] >= ENOUGH)
		adjust(&v->life[LOT], cost_of(v, LOT), cost / left, LIFE_MAX);
	for (unsigned c = 0; c < FM_VICTIM_CLASSES; c++) {
		double keep = v->left[c] >= ENOUGH ? KEEP : KEEP_FEW;

		v->left[c] *= keep;
		v->cost[c] *= keep;
	}
}

static bool drawn(struct fm_victims *v)
{
	v->random ^= v->random << 13, v->random ^= v->random >> 7, v->random ^= v->random << 17;
	return (v->random >> 32) % LOT_OF == 0;
}

/* The class of a page that comes back d evictions after it left, from the class it had. */
static unsigned class_after(struct fm_victims *v, unsigned was, uint64_t d)
{
	unsigned is = was == LOT ? 2 : was, by_distance = 0;

	if (d < LOT_HORIZON * v->room && drawn(v))
		return LOT;
	while (by_distance < LOT - 1 && d << by_distance < 2 * v->room)
		by_distance++;
	if (d >= 8 * v->room)
		return 0;
	return by_distance > is ? is + 1 : by_distance < is ? is - 1 : is;
}

/* --- calls */

static int queue_in(struct fm_victims *v, unsigned queue, uint32_t page, unsigned class)
{
	int e = enqueue(v, &v->queue[queue], page);

	if (e)
		return e;
	note(v, page, class, QUEUED);
	v->count++;
	return 0;
}

static int came_back(struct fm_victims *v, uint32_t page, uint64_t d)
{
	unsigned was = class_of(v, page);

	v->cost[was] += 1 / ((double)d / (double)v->room + 1 / COST_MAX);
	v->refaults += d < v->room;
	was = class_after(v, was, d);
	return queue_in(v, was, page, was);
}

int fm_victims_push(struct fm_victims *v, uint32_t page)
{
	if (page >= v->pages)
		return 0;
	switch (place_of(v, page)) {
	case QUEUED:
		return 0;
	case POPPED:
		return queue_in(v, LATER, page, class_of(v, page));
	case LEFT:
		return came_back(v, page, since(v, page));
	case UNKNOWN:
	default:
		return queue_in(v, 0, page, 0);
	}
}

int fm_victims_used(struct fm_victims *v, uint32_t page)
{
	if (page >= v->pages || place_of(v, page) != POPPED)
		return 0;
	v->left[class_of(v, page)]++;
	return came_back(v, page, since(v, page));
}

void fm_victims_left(struct fm_victims *v, uint32_t page)
{
	unsigned class;

	if (page >= v->pages || place_of(v, page) != POPPED)
		return;
	class = class_of(v, page);
	v->left[class]++;
	note(v, page, class, LEFT);
}

/*
 * The queue whose first page is next; -1: all are empty. Of equals the lowest: while nothing leaves no time passes, and then LATER is
 * the last. So pages that cannot leave do not stand before those that can.
 */
static int next_queue(const struct fm_victims *v, double *age)
{
	int best = -1;

	for (unsigned c = 0; c < QUEUES; c++) {
		double a;

		if (!v->queue[c].head)
			continue;
		a = (double)since(v, first(&v->queue[c])) / (c == LATER ? 1 : v->life[c]);
		if (best < 0 || a > *age) {
			best = (int)c;
			*age = a;
		}
	}
	return best;
}

bool fm_victims_pop(struct fm_victims *v, uint32_t *page)
{
	double age = 0;
	int c;

	if (v->now >= v->look_at || v->look_at - v->now > v->room) {
		learn(v);
		v->look_at = v->now + v->room / LOOKS + 16;
	}
	c = next_queue(v, &age);
	if (c < 0)
		return false;
	*page = first(&v->queue[c]);
	dequeue(v, &v->queue[c]);
	note(v, *page, class_of(v, *page), POPPED);
	v->count--;
	return true;
}

uint64_t fm_victims_count(const struct fm_victims *v)
{
	return v->count;
}

uint64_t fm_victims_age(const struct fm_victims *v)
{
	double age = 0;

	return next_queue(v, &age) < 0 ? 0 : (uint64_t)age;
}

uint64_t fm_victims_refaults(const struct fm_victims *v)
{
	return v->refaults;
}

double fm_victims_lifetime(const struct fm_victims *v, unsigned class)
{
	return v->life[class < FM_VICTIM_CLASSES ? class : 0];
}
