/* Pages whose grace is over: see grace.h and fm_evict_due(). */
#include "evict_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "crash.h"

/* Few at a time: what a device writes between the comparison and the punch is lost. */
#define DUE_BATCH 16

/* What may change in the word of a page in its grace without the page having been touched: where its copy is. */
#define COPY_BITS (FM_EP_MASK | FM_F_STORED)

uint64_t fm_evict_due_ns(const struct fm_evict_region *r)
{
	const struct fm_grace_page *p = fm_grace_first(r->grace);

	return p ? p->due_ns : 0;
}

static bool untouched(struct fm_evict_region *r, const struct fm_grace_page *p)
{
	return !((atomic_load(&r->map.words[p->page]) ^ p->word) & ~COPY_BITS);
}

/* Written, or discarded, since it was written back. */
static void touched(struct fm_evict_region *r, uint32_t page)
{
	uint64_t w = atomic_load(&r->map.words[page]);

	if (fm_word_is_resident(w))
		fm_victims_used(r->victims, page);
	evict_queue_word(r, page, w);
}

static bool keep(void *arg, const struct fm_grace_page *p)
{
	struct fm_evict_region *r = arg;

	if (untouched(r, p))
		return true;
	touched(r, p->page);
	return false;
}

void fm_evict_recount_grace(struct fm_evict_region *r)
{
	fm_grace_filter(r->grace, keep, r);
	atomic_store(&r->map.hdr->cooling, fm_grace_count(r->grace));
}

static int by_page(const void *a, const void *b)
{
	const struct fm_grace_page *x = a, *y = b;

	return x->page < y->page ? -1 : x->page > y->page;
}

/* Take out up to n whose time is up and that were not written, in the order of their pages. */
static unsigned due(struct fm_evict_region *r, struct fm_grace_page *p, unsigned n, uint64_t now)
{
	const struct fm_grace_page *first;
	unsigned k = 0;

	while (k < n && (first = fm_grace_first(r->grace)) && first->due_ns <= now) {
		fm_grace_pop(r->grace, &p[k]);
		if (!untouched(r, &p[k]))
			touched(r, p[k].page);
		else if (evict_is_discarded(&r->map.shards[evict_shard_of(r, p[k].page)], p[k].page))
			fm_victims_push(r->victims, p[k].page);
		else
			k++;
	}
	if (k > 1)
		qsort(p, k, sizeof *p, by_page);
	return k;
}

/* Is the page in the memfd still what was stored? */
static bool same(struct fm_evictor *e, struct fm_evict_region *r, const struct fm_grace_page *p)
{
	uint64_t hash[2];
	ssize_t n;

	do {
		n = pread(r->memfd, e->buf, FM_PAGE_SIZE, (off_t)(r->map.hdr->memfd_offset + (uint64_t)p->page * FM_PAGE_SIZE));
	} while (n < 0 && errno == EINTR);
	if (n != (ssize_t)FM_PAGE_SIZE)
		return false;
	fm_page_hash(e->buf, hash);
	return hash[0] == p->hash[0] && hash[1] == p->hash[1];
}

/* CLEAN in its grace -> DROPPING, or DIRTY when a device wrote it, unless a fault took it. */
static void decide(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b, const struct fm_grace_page *p)
{
	fm_word *word = &r->map.words[p->page];
	uint64_t w = atomic_load(word), nw;
	struct victim v = {.page = p->page, .shard = evict_shard_of(r, p->page), .zero = p->word & FM_F_ZERO};

	/* Before the page is ours: whoever cleans up after us looks at the pages named here. */
	atomic_store(&r->map.hdr->evict_inflight[b->n], p->page + 1);
	FM_CRASH_POINT("due-named");
	/* Compared while it is write-protected and nobody's: a write by its client from here on changes the word first. */
	if ((w ^ p->word) & ~COPY_BITS) {
		touched(r, p->page);
		return;
	}
	/* Its copy may have gone with a server of that epoch: written back anew. */
	if (!(w & FM_F_ZERO) && fm_word_epoch(w) != FM_EPOCH_TAG(atomic_load(&e->daemon->cluster.epoch_now))) {
		fm_victims_push(r->victims, p->page);
		return;
	}
	if (!same(e, r, p)) {
		const struct fm_shard_shm *m = &r->map.shards[v.shard];

		/* Unless its client has just discarded it, and punched it. */
		if (fm_page_cas(word, w, fm_word_to(w, FM_DIRTY, FM_F_ZERO, 0)) && evict_has_noted(m) && !evict_is_discarded(m, p->page))
			fm_bump(&r->map.hdr->evict.late_writes, 1);
		fm_victims_push(r->victims, p->page);
		return;
	}
	FM_CRASH_POINT("due-compared");
	nw = fm_word_to(w, FM_DROPPING, 0, 0);
	if (!fm_page_cas(word, w, nw)) {
		fm_victims_push(r->victims, p->page);
		return;
	}
	FM_CRASH_POINT("due-owned");
	v.w = nw;
	v.ours = true;
	b->v[b->n++] = v;
}

unsigned fm_evict_due(struct fm_evictor *e, struct fm_evict_region *r, unsigned n)
{
	struct fm_grace_page p[DUE_BATCH];
	unsigned left = 0, k;

	while (left < n && (k = due(r, p, n - left < DUE_BATCH ? n - left : DUE_BATCH, fm_now_ns()))) {
		struct batch b = {.n = 0};

		for (unsigned i = 0; i < k; i++)
			decide(e, r, &b, &p[i]);
		if (b.n < FM_EVICT_HALF)
			atomic_store(&r->map.hdr->evict_inflight[b.n], 0);
		left += evict_leave(e, r, &b);
	}
	atomic_store(&r->map.hdr->cooling, fm_grace_count(r->grace));
	return left;
}
