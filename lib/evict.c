#include "evict_impl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "crash.h"

uint64_t fm_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int fm_evictor_init(struct fm_evictor *e, struct fm_daemon_shm *daemon, struct fm_store *store)
{
	e->daemon = daemon;
	e->store = store;
	e->buf = aligned_alloc(FM_PAGE_SIZE, (size_t)FM_EVICT_BATCH * FM_PAGE_SIZE);
	return e->buf ? 0 : -ENOMEM;
}

void fm_evictor_fini(struct fm_evictor *e)
{
	free(e->buf);
	e->buf = NULL;
}

/* Time passes in evictions: a region's own when it has a budget of its own, else those of all. */
static void tell_time(struct fm_evictor *e, struct fm_evict_region *r)
{
	uint64_t own = fm_ld(&r->map.hdr->limit_pages), all = fm_ld(&e->daemon->limit_pages);

	if (own)
		fm_victims_time(r->victims, r->evictions, own);
	else
		fm_victims_time(r->victims, e->evictions, all == FM_LIMIT_NONE ? r->map.pages : all);
}

void evict_queue_word(struct fm_evict_region *r, uint32_t page, uint64_t w)
{
	/* Out of memory loses a hint, not a page: a later sweep finds it. */
	if (fm_word_state(w) == FM_EMPTY) {
		if (w & FM_F_STORED)
			fm_queue_push(r->deletes, page);
	} else if (fm_word_state(w) != FM_REMOTE && fm_word_state(w) != FM_LOST) {
		fm_victims_push(r->victims, page);
	}
}

void fm_evict_sweep(struct fm_evictor *e, struct fm_evict_region *r)
{
	const struct fm_region_map *m = &r->map;
	off_t base = (off_t)m->hdr->words_offset, end = base + (off_t)m->pages * 8, at = base;

	(void)e;
	while (at < end) {
		off_t data = lseek(m->fd, at, SEEK_DATA), hole;

		if (data < 0 || data >= end)
			break;
		hole = lseek(m->fd, data, SEEK_HOLE);
		if (hole < 0 || hole > end)
			hole = end;
		for (uint64_t p = (uint64_t)(data - base) / 8; p < (uint64_t)(hole - base) / 8; p++) {
			uint64_t w = fm_ld(&m->words[p]);

			if (w)
				evict_queue_word(r, (uint32_t)p, w);
		}
		at = hole;
	}
	r->swept_ns = fm_now_ns();
}

int fm_evict_begin(struct fm_evictor *e, struct fm_evict_region *r)
{
	r->victims = fm_victims_new(r->map.pages);
	r->deletes = fm_queue_new(r->map.pages);
	r->grace = fm_grace_new(r->map.pages);
	if (!r->victims || !r->deletes || !r->grace) {
		fm_victims_free(r->victims);
		fm_queue_free(r->deletes);
		fm_grace_free(r->grace);
		r->victims = NULL;
		r->deletes = NULL;
		r->grace = NULL;
		return -ENOMEM;
	}
	for (unsigned i = 0; i < r->map.nshards; i++) {
		struct fm_shard_shm *s = &r->map.shards[i];

		/* What the rings said until now, the sweep sees in the words. */
		r->lost_seen[i] = atomic_load_explicit(&s->ring_lost, memory_order_acquire);
		atomic_store_explicit(&s->ring_tail, atomic_load_explicit(&s->ring_head, memory_order_acquire),
				      memory_order_release);
	}
	atomic_store(&r->map.hdr->cooling, 0);
	tell_time(e, r);
	fm_evict_sweep(e, r);
	return 0;
}

void fm_evict_end(struct fm_evictor *e, struct fm_evict_region *r)
{
	fm_store_forget(e->store, r->map.hdr->id);
	for (unsigned i = 0; i < r->map.nshards; i++)
		close(r->uffd[i].fd);
	close(r->memfd);
	fm_victims_free(r->victims);
	fm_queue_free(r->deletes);
	fm_grace_free(r->grace);
	fm_shmfile_region_unmap(&r->map);
}

static void do_deletes(struct fm_evictor *e, struct fm_evict_region *r)
{
	struct fm_store_req req[FM_EVICT_BATCH];
	uint64_t words[FM_EVICT_BATCH];
	uint32_t page;
	unsigned n = 0;

	while (n < FM_EVICT_BATCH && fm_queue_pop(r->deletes, &page)) {
		uint64_t w = atomic_load(&r->map.words[page]);

		/* Taken again meanwhile: then its next eviction replaces the copy, or finds it EMPTY once more. */
		if (fm_word_state(w) != FM_EMPTY || !(w & FM_F_STORED))
			continue;
		words[n] = w;
		req[n++] = (struct fm_store_req){.page = page, .gen = fm_word_gen(w), .epoch = fm_word_epoch(w)};
	}
	if (!n)
		return;
	/* Only the evictor puts, so no newer copy can appear while these are deleted. */
	FM_CRASH_POINT("delete-begin");
	fm_store_delete(e->store, r->map.hdr->id, req, n);
	FM_CRASH_POINT("delete-done");
	for (unsigned i = 0; i < n; i++) {
		if (req[i].result != FM_STORE_OK) {
			fm_bump(&r->map.hdr->evict.store_errors, 1);
			fm_queue_push(r->deletes, (uint32_t)req[i].page);
			continue;
		}
		fm_bump(&r->map.hdr->evict.store_deletes, 1);
		/* When the swap fails, a shard has the page; the flag then stays and only costs one delete too many. */
		fm_page_cas(&r->map.words[req[i].page], words[i], words[i] & ~FM_F_STORED);
		FM_CRASH_POINT("delete-published");
	}
}

void fm_evict_drain(struct fm_evictor *e, struct fm_evict_region *r)
{
	bool lost = false;

	tell_time(e, r);
	for (unsigned i = 0; i < r->map.nshards; i++) {
		struct fm_shard_shm *s = &r->map.shards[i];
		uint32_t head = atomic_load_explicit(&s->ring_head, memory_order_acquire);
		uint32_t tail = fm_ld(&s->ring_tail), n = fm_ld(&s->ring_lost);

		for (; tail != head; tail++) {
			uint32_t page = s->ring[tail % FM_RING];

			if (page < r->map.pages)
				evict_queue_word(r, page, atomic_load(&r->map.words[page]));
		}
		atomic_store_explicit(&s->ring_tail, tail, memory_order_release);
		if (n != r->lost_seen[i]) {
			r->lost_seen[i] = n;
			lost = true;
		}
	}
	if (lost)
		fm_evict_sweep(e, r);
	do_deletes(e, r);
}

unsigned evict_shard_of(const struct fm_evict_region *r, uint32_t page)
{
	unsigned i = 0;

	while (i + 1 < r->map.nshards && page >= r->map.shards[i + 1].first_page)
		i++;
	return i;
}

static uint64_t hva_of(const struct fm_evict_region *r, const struct victim *v)
{
	const struct fm_shard_shm *s = &r->map.shards[v->shard];

	return fm_ld(&s->hva) + ((uint64_t)v->page - s->first_page) * FM_PAGE_SIZE;
}

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

bool evict_is_discarded(const struct fm_shard_shm *m, uint32_t page)
{
	if (!atomic_load(&m->discarding))
		return false;
	for (unsigned i = 0; i < FM_DISCARDS; i++)
		if (page < atomic_load(&m->discard[i].end) && page >= atomic_load(&m->discard[i].first))
			return true;
	return false;
}

/*
 * Pop up to n pages and take them: DIRTY -> WRITEBACK, CLEAN -> DROPPING. One whose grace runs is left to fm_evict_due(), which queues
 * it again when it was written; one in a grace that no record tells of (another evictor's) is written back anew.
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
			v.was_clean = fm_word_state(w) == FM_CLEAN && !(w & FM_F_GRACE);
			v.had_stored = w & FM_F_STORED;
			v.old_gen = v.had_stored ? fm_word_gen(w) : 0;
			v.old_epoch = fm_word_epoch(w);
			v.zero = v.was_clean && (w & FM_F_ZERO);
			if (v.was_clean)
				nw = fm_word_to(w, FM_DROPPING, 0, 0);
			else if ((fm_word_state(w) == FM_DIRTY || (w & FM_F_GRACE)) && fm_word_gen(w) < FM_GEN_MAX)
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

/* WRITEBACK -> DIRTY, and back to the queue. It may stay write-protected: a DIRTY page may be. */
static void give_back(struct fm_evict_region *r, struct batch *b, struct victim *v)
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
		res = fm_uffd_writeprotect(&r->uffd[b->v[i].shard], hva_of(r, &b->v[i]), (uint64_t)k * FM_PAGE_SIZE, true);
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
				give_back(r, b, &b->v[i + j]);
		}
	}
}

bool evict_has_noted(const struct fm_shard_shm *m)
{
	struct timespec nap = {.tv_nsec = 50000};

	for (int tries = 0; atomic_load(&m->reading); tries++) {
		if (tries == 200)
			return false;
		if (tries < 10)
			sched_yield();
		else
			nanosleep(&nap, NULL);
	}
	return true;
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
			give_back(r, b, &b->v[i]);
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
				give_back(r, b, &b->v[i + j]); /* not readable: it stays */
			else
				b->v[i + j].zero = fm_page_is_zero(to + (size_t)j * FM_PAGE_SIZE);
		}
	}
}

/* WRITEBACK -> CLEAN for as long as the region's grace, unless a write took the page back. */
static void begin_grace(struct fm_evict_region *r, const struct batch *b, struct victim *v, const void *bytes, bool by_gen)
{
	struct fm_grace_page p = {
	    .page = v->page,
	    .word = fm_word_to(v->w, FM_CLEAN, 0, FM_F_GRACE | (v->zero ? FM_F_ZERO : 0)),
	    .due_ns = b->protected_ns + b->grace_ns,
	};

	if (v->zero && (!v->had_stored || by_gen)) /* see stored() */
		p.word &= ~FM_F_STORED;
	fm_page_hash(bytes, p.hash);
	v->ours = false;
	if (!fm_page_cas(&r->map.words[v->page], v->w, p.word)) {
		fm_bump(&r->map.hdr->evict.cancelled, 1);
		fm_victims_used(r->victims, v->page);
		return;
	}
	FM_CRASH_POINT("grace-published");
	v->cooling = true;
	/* Without a record it is written back once more. */
	if (fm_grace_push(r->grace, &p))
		fm_victims_push(r->victims, v->page);
}

/* WRITEBACK -> DROPPING, unless a write took the page back. */
static void stored(struct fm_evict_region *r, const struct batch *b, struct victim *v, const void *bytes, bool by_gen)
{
	uint64_t nw;

	if (b->grace_ns) {
		begin_grace(r, b, v, bytes, by_gen);
		return;
	}
	nw = fm_word_to(v->w, FM_DROPPING, 0, v->zero ? FM_F_ZERO : 0);
	/* Nothing was sent for a zero page: it must not cost a delete. (by_gen: drop_stale() deletes what there was.) */
	if (v->zero && (!v->had_stored || by_gen))
		nw &= ~FM_F_STORED;
	if (fm_page_cas(&r->map.words[v->page], v->w, nw)) {
		FM_CRASH_POINT("stored-published");
		v->w = nw;
	} else {
		v->ours = false;
		fm_bump(&r->map.hdr->evict.cancelled, 1);
		fm_victims_used(r->victims, v->page);
	}
}

static void store_flag(struct fm_evict_region *r, uint64_t set, uint64_t clear)
{
	uint64_t f = fm_ld(&r->map.hdr->flags);

	if ((f & set) != set)
		atomic_fetch_or(&r->map.hdr->flags, set);
	if (f & clear)
		atomic_fetch_and(&r->map.hdr->flags, ~clear);
}

/*
 * The word's generation has moved on, and the copies that no word names any more must go: the old one of a page that is zero now,
 * or was taken back by a write before its new one was acknowledged; and the new one of a page taken back after that. A store
 * that lists its keys frees them with the region; another would keep them for good.
 */
static void drop_stale(struct fm_evictor *e, struct fm_evict_region *r, const struct batch *b)
{
	struct fm_store_req req[FM_EVICT_BATCH];
	unsigned n = 0;

	for (unsigned i = 0; i < b->n; i++) {
		const struct victim *v = &b->v[i];

		if (v->was_clean)
			continue;
		if (v->acknowledged && !v->ours && !v->cooling)
			req[n++] = (struct fm_store_req){.page = v->page, .gen = fm_word_gen(v->w), .epoch = fm_word_epoch(v->w)};
		else if (!v->acknowledged && v->old_gen)
			req[n++] = (struct fm_store_req){.page = v->page, .gen = v->old_gen, .epoch = v->old_epoch};
	}
	if (n) {
		FM_CRASH_POINT("mc-stale-begin");
		fm_store_delete(e->store, r->map.hdr->id, req, n);
		FM_CRASH_POINT("mc-stale-deleted");
	}
}

/* Give the pages to the store; zero ones need none. */
static void put_begin(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b)
{
	b->nreq = 0;
	for (unsigned i = 0; i < b->n; i++) {
		struct victim *v = &b->v[i];
		unsigned char *bytes = b->buf + (size_t)i * FM_PAGE_SIZE;

		if (!v->ours || v->was_clean)
			continue;
		if (v->zero) {
			stored(r, b, v, bytes, e->store->ops->by_generation);
			continue;
		}
		b->who[b->nreq] = i;
		b->req[b->nreq++] = (struct fm_store_req){
		    .page = v->page,
		    .gen = fm_word_gen(v->w),
		    .old_gen = v->old_gen,
		    .epoch = fm_word_epoch(v->w),
		    .old_epoch = v->old_epoch,
		    .buf = bytes,
		};
	}
	if (b->nreq)
		fm_store_put_begin(e->store, r->map.hdr->id, b->req, b->nreq);
	FM_CRASH_POINT("put-begun");
}

/* Wait for the store's acknowledgements: each page that has its own may leave from here on. */
static void put_end(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b)
{
	bool by_gen = e->store->ops->by_generation;
	unsigned put = 0;
	uint64_t bad = 0;

	if (b->nreq)
		fm_store_put_end(e->store);
	FM_CRASH_POINT("put-acknowledged");
	for (unsigned i = 0; i < b->nreq; i++) {
		struct victim *v = &b->v[b->who[i]];

		if (b->req[i].result == FM_STORE_OK) {
			put++;
			v->acknowledged = true;
			stored(r, b, v, b->req[i].buf, by_gen);
			continue;
		}
		bad |= b->req[i].result == FM_STORE_FULL ? FM_REGION_STORE_FULL : FM_REGION_STORE_DOWN;
		fm_bump(&r->map.hdr->evict.store_errors, 1);
		give_back(r, b, v);
	}
	fm_bump(&r->map.hdr->evict.store_puts, put);
	if (by_gen)
		drop_stale(e, r, b);
	if (b->nreq)
		store_flag(r, bad, bad ? 0 : FM_REGION_STORE_FULL | FM_REGION_STORE_DOWN);
}

static void punch(struct fm_evict_region *r, struct batch *b)
{
	for (unsigned i = 0, k; i < b->n; i += k) {
		k = 1;
		if (!b->v[i].ours)
			continue;
		while (i + k < b->n && b->v[i + k].ours && b->v[i + k].page == b->v[i].page + k)
			k++;
		/* Fails only when the client sealed its file meanwhile. The page then stays where it is, write-protected and equal
		 * to the stored copy, and costs the client memory, not its bytes. */
		while (fallocate(r->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 (off_t)(r->map.hdr->memfd_offset + (uint64_t)b->v[i].page * FM_PAGE_SIZE),
				 (off_t)k * FM_PAGE_SIZE) < 0 &&
		       errno == EINTR)
			;
		FM_CRASH_POINT("punched-run");
	}
}

/* DROPPING -> REMOTE or EMPTY; wake those who ran into it. Returns how many pages left. */
static unsigned finish(struct fm_evict_region *r, struct batch *b)
{
	struct fm_region_hdr *h = r->map.hdr;
	unsigned left = 0, remote = 0, clean = 0, zero = 0, owned = 0;

	/* Counted before the pages can be faulted back in and counted off. */
	for (unsigned i = 0; i < b->n; i++)
		owned += b->v[i].ours;
	FM_CRASH_POINT("leave-begin");
	atomic_fetch_add(&h->remote, owned);

	for (unsigned i = 0; i < b->n; i++) {
		struct victim *v = &b->v[i];
		fm_word *word = &r->map.words[v->page];
		uint64_t w, nw;
		bool empty;

		if (!v->ours)
			continue;
		do {
			w = atomic_load(word); /* a shard may have set the waiter or the discard flag */
			empty = w & (FM_F_ZERO | FM_F_DISCARD);
			nw = fm_word_to(w, empty ? FM_EMPTY : FM_REMOTE, FM_F_WAITER | FM_F_ZERO | FM_F_DISCARD, 0);
		} while (!fm_page_cas(word, w, nw));
		FM_CRASH_POINT("leave-published");
		if (w & FM_F_WAITER)
			fm_uffd_wake(&r->uffd[v->shard], hva_of(r, v), FM_PAGE_SIZE);
		if (empty && (nw & FM_F_STORED))
			fm_queue_push(r->deletes, v->page);
		FM_CRASH_POINT("leave-woken");
		fm_victims_left(r->victims, v->page);
		left++;
		remote += !empty;
		zero += v->zero;
		clean += v->was_clean && !v->zero;
	}
	atomic_fetch_sub(&h->remote, owned - remote);
	fm_bump(&h->evict.evictions, left);
	fm_bump(&h->evict.evictions_zero, zero);
	fm_bump(&h->evict.evictions_clean, clean);
	return left;
}

static void make_room(struct fm_evictor *e, struct fm_evict_region *r, unsigned left)
{
	atomic_fetch_sub(&r->map.hdr->resident, left);
	FM_CRASH_POINT("room-counted");
	atomic_fetch_sub(&e->daemon->resident, left);
	FM_CRASH_POINT("room-made");
	if (atomic_load(&e->daemon->room_waiters)) {
		atomic_fetch_add(&e->daemon->room_seq, 1);
		syscall(SYS_futex, &e->daemon->room_seq, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	}
}

unsigned evict_leave(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b)
{
	_Atomic uint32_t *inflight = &r->map.hdr->evict_inflight[b->half * FM_EVICT_HALF];
	unsigned left;

	punch(r, b);
	left = finish(r, b);
	e->evictions += left;
	r->evictions += left;
	tell_time(e, r);
	if (left)
		make_room(e, r, left);
	atomic_store(&r->map.hdr->cooling, fm_grace_count(r->grace));
	/* Counted: from here on a crash finds nothing of it to mend. */
	for (unsigned i = 0; i < FM_EVICT_HALF && fm_ld(&inflight[i]); i++) {
		atomic_store(&inflight[i], 0);
		FM_CRASH_POINT("leave-unnamed");
	}
	return left;
}

/* The next batch of at most n pages, up to the point where only the store is wanted. Returns whether there is one. */
static bool prepare(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b, unsigned n)
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

unsigned fm_evict_batch(struct fm_evictor *e, struct fm_evict_region *r, unsigned n)
{
	struct batch b[2], *now = &b[0], *before = NULL;
	unsigned left = 0, failed = 0, asked = 0;

	for (unsigned i = 0; i < 2; i++) {
		b[i].half = i;
		b[i].buf = e->buf + (size_t)i * FM_EVICT_HALF * FM_PAGE_SIZE;
	}
	if (n > FM_EVICT_MOST)
		n = FM_EVICT_MOST;
	for (;;) {
		bool more = false;

		/* What the store refuses it refuses again: no more of it in this call. */
		if (asked < n && !failed && !r->gone) {
			more = prepare(e, r, now, n - asked);
			asked += now->n;
			if (!more)
				failed += now->failed;
		}
		if (before)
			put_end(e, r, before);
		if (more)
			put_begin(e, r, now);
		if (before) {
			left += evict_leave(e, r, before);
			failed += before->failed;
		}
		if (!more)
			break;
		before = now;
		now = &b[1 - now->half];
	}
	if (!left && failed)
		r->stalled_until_ns = fm_now_ns() + 20000000;
	return left;
}
