/* A batch of victims is taken, write-protected and read. */
#include "evict_impl.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "crash.h"

static int by_page(const void *a, const void *b)
{
	const struct victim *x = a, *y = b;

	return x->page < y->page ? -1 : x->page > y->page;
}

/* Pages come in the order in which they came in: most often that of their numbers. */
static bool in_order(const struct batch *b)
{
	for (unsigned i = 1; i < b->n; i++)
		if (b->v[i - 1].page > b->v[i].page)
			return false;
	return true;
}

/* Length of the run of owned victims from i on that lie side by side in one shard and are all clean, or all dirty. */
static unsigned run(const struct batch *b, unsigned i)
{
	unsigned k = 1;

	while (i + k < b->n && b->v[i + k].ours && b->v[i + k].page == b->v[i].page + k &&
	       b->v[i + k].shard == b->v[i].shard && b->v[i + k].was_clean == b->v[i].was_clean)
		k++;
	return k;
}

/*
 * Pop up to n pages and take them: DIRTY -> WRITEBACK, CLEAN -> DROPPING. One whose grace runs is left to fm_evict_due(), which queues
 * it again when it was written; one in a grace that no record tells of (another evictor's) is written back anew. So is a clean one whose copy lies
 * where an older epoch says: that epoch ended because a server was restarted, or is dead, and this may be the only copy that is left.
 */
static void take(struct fm_evict_region *r, struct batch *b, unsigned n, uint32_t epoch)
{
	uint64_t look = fm_victims_count(r->victims);
	unsigned kept = 0;
	uint32_t page;

	b->n = b->failed = 0;
	while (b->n < n && look-- && fm_victims_pop(r->victims, &page))
		b->v[b->n++] = (struct victim){.page = page, .shard = evict_shard_of(r, page)};
	if (!in_order(b))
		qsort(b->v, b->n, sizeof b->v[0], by_page);
	for (unsigned i = 0; i < b->n; i++) {
		struct victim v = b->v[i];
		fm_word *word = &r->map.words[v.page];
		uint64_t w = atomic_load(word), nw;

		if (fm_grace_has(r->grace, v.page))
			continue;
		if (evict_is_discarded(&r->map.shards[v.shard], v.page)) {
			fm_victims_push(r->victims, v.page);
			b->failed++;
			continue;
		}
		/* Before the page is ours: whoever cleans up after us looks at the pages named here. */
		atomic_store(&r->map.hdr->evict_inflight[b->half * FM_EVICT_HALF + kept], v.page + 1);
		FM_CRASH_POINT("take-named");
		do {
			v.was_clean = fm_word_state(w) == FM_CLEAN && !(w & FM_F_GRACE) && (w & FM_F_ZERO || fm_word_epoch(w) == epoch);
			v.had_stored = w & FM_F_STORED;
			v.old_gen = v.had_stored ? fm_word_gen(w) : 0;
			v.old_epoch = fm_word_epoch(w);
			v.zero = v.was_clean && (w & FM_F_ZERO);
			if (v.was_clean)
				nw = fm_word_to(w, FM_DROPPING, 0, 0);
			else if ((fm_word_state(w) == FM_DIRTY || fm_word_state(w) == FM_CLEAN) && fm_word_gen(w) < FM_GEN_MAX)
				nw = fm_word_at_epoch(fm_word_to(w, FM_WRITEBACK, FM_F_ZERO, FM_F_STORED), epoch) +
				     (1ull << FM_GEN_SHIFT);
			else
				break;
			if (fm_page_cas(word, w, nw)) {
				FM_CRASH_POINT("take-owned");
				v.w = nw;
				v.ours = true;
				break;
			}
			w = atomic_load(word);
		} while (1);
		if (v.ours)
			b->v[kept++] = v;
		else if (fm_word_state(w) == FM_BUSY)
			fm_victims_push(r->victims, v.page); /* a shard has it for a moment */
	}
	if (kept < FM_EVICT_HALF)
		atomic_store(&r->map.hdr->evict_inflight[b->half * FM_EVICT_HALF + kept], 0);
	b->n = kept;
}

void evict_give_back(struct fm_evict_region *r, struct batch *b, struct victim *v)
{
	if (!fm_page_cas(&r->map.words[v->page], v->w, fm_word_to(v->w, FM_DIRTY, 0, 0)))
		fm_bump(&r->map.hdr->evict.cancelled, 1);
	fm_victims_push(r->victims, v->page);
	v->ours = false;
	b->failed++;
}

/* Protect k pages from victim i on. EAGAIN lasts until the shard has read the event and its sender has run: usually microseconds. */
static enum fm_uffd_result protect(struct fm_evict_region *r, struct batch *b, unsigned i, unsigned k)
{
	struct timespec nap = {.tv_nsec = 50000};
	enum fm_uffd_result res;

	for (int tries = 0;; tries++) {
		res = fm_uffd_writeprotect(&r->uffd[b->v[i].shard], evict_hva(r, &b->v[i]), (uint64_t)k * FM_PAGE_SIZE, true);
		if (res != FM_UFFD_RETRY || tries == 20)
			return res;
		nanosleep(&nap, NULL);
	}
}

/* WRITEBACK -> DIRTY of a page whose mapping is gone: it is the shard's to discard. Not queued, and no reason to wait. */
static void let_go(struct fm_evict_region *r, struct victim *v)
{
	fm_page_cas(&r->map.words[v->page], v->w, fm_word_to(v->w, FM_DIRTY, 0, 0));
	v->ours = false;
}

static void write_protect(struct fm_evict_region *r, struct batch *b)
{
	for (unsigned i = 0, k; i < b->n; i += k) {
		enum fm_uffd_result res;

		k = 1;
		if (b->v[i].was_clean)
			continue;
		k = run(b, i);
		FM_CRASH_POINT("protect-begin");
		res = protect(r, b, i, k);
		FM_CRASH_POINT("protect-run");
		/* Before Linux 6.4 a run over the border of two mappings was refused as a whole. */
		if (res == FM_UFFD_NO_RANGE && k > 1) {
			k = 1;
			res = protect(r, b, i, 1);
		}
		if (res == FM_UFFD_DONE)
			continue;
		if (res == FM_UFFD_NO_PROCESS)
			r->gone = true;
		for (unsigned j = 0; j < k; j++) {
			if (res == FM_UFFD_NO_RANGE)
				let_go(r, &b->v[i + j]);
			else
				evict_give_back(r, b, &b->v[i + j]);
		}
	}
}

/*
 * A discard may have been read since the look in take(). Its client goes on at once, and what it writes before the protection is on raises no
 * fault: the walk would then find a page that has left, and have that write thrown away with it. But such an event was read before the
 * protection was on: so once everything read until now is noted, a page that no note names was not written to unseen. An event that is
 * read later finds the page protected, and its client's writes wait for the walk.
 */
static void spare_discarded(struct fm_evict_region *r, struct batch *b)
{
	unsigned shard = UINT_MAX;
	bool noted = true;

	for (unsigned i = 0; i < b->n; i++) {
		const struct victim *v = &b->v[i];

		if (!v->ours || v->was_clean)
			continue;
		if (v->shard != shard) {
			shard = v->shard;
			noted = evict_has_noted(&r->map.shards[shard]);
			/* Moved meanwhile: what was protected may be what mremap() left behind. */
			noted = noted && fm_ld(&r->map.shards[shard].hva) == b->hva[shard];
		}
		if (!noted || evict_is_discarded(&r->map.shards[shard], v->page))
			evict_give_back(r, b, &b->v[i]);
	}
}

/* Read the dirty pages into their slots of buf (slot i is victim i) and find the ones that are all zero. */
static void read_pages(struct fm_evict_region *r, struct batch *b)
{
	for (unsigned i = 0, k; i < b->n; i += k) {
		unsigned char *to = b->buf + (size_t)i * FM_PAGE_SIZE;
		size_t len, got = 0;

		k = 1;
		if (!b->v[i].ours || b->v[i].was_clean)
			continue;
		k = run(b, i);
		len = (size_t)k * FM_PAGE_SIZE;
		while (got < len) {
			ssize_t n = pread(r->memfd, to + got, len - got,
					  (off_t)(r->map.hdr->memfd_offset + (uint64_t)b->v[i].page * FM_PAGE_SIZE + got));

			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				break;
			got += (size_t)n;
		}
		for (unsigned j = 0; j < k; j++) {
			if (got < (size_t)(j + 1) * FM_PAGE_SIZE)
				evict_give_back(r, b, &b->v[i + j]); /* not readable: it stays */
			else
				b->v[i + j].zero = fm_page_is_zero(to + (size_t)j * FM_PAGE_SIZE);
		}
	}
}

bool evict_prepare(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b, unsigned n)
{
	take(r, b, n < FM_EVICT_HALF ? n : FM_EVICT_HALF, FM_EPOCH_TAG(atomic_load(&e->daemon->cluster.epoch_now)));
	b->grace_ns = fm_ld(&r->map.hdr->grace_ms) * 1000000u;
	for (unsigned i = 0; i < FM_MAX_SHARDS; i++)
		b->hva[i] = i < r->map.nshards ? fm_ld(&r->map.shards[i].hva) : 0;
	write_protect(r, b);
	b->protected_ns = b->grace_ns ? fm_now_ns() : 0;
	spare_discarded(r, b);
	read_pages(r, b);
	return b->n > 0;
}
