#include "evict_impl.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
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

void evict_tell_time(struct fm_evictor *e, struct fm_evict_region *r)
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
	evict_tell_time(e, r);
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

	if (fm_now_ns() < r->no_deletes_until_ns)
		return;
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
			r->no_deletes_until_ns = fm_now_ns() + 100000000; /* what the store refuses at once must not keep us busy */
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

	evict_tell_time(e, r);
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

uint64_t evict_hva(const struct fm_evict_region *r, const struct victim *v)
{
	const struct fm_shard_shm *s = &r->map.shards[v->shard];

	return fm_ld(&s->hva) + ((uint64_t)v->page - s->first_page) * FM_PAGE_SIZE;
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
			more = evict_prepare(e, r, now, n - asked);
			asked += now->n;
			if (!more)
				failed += now->failed;
		}
		if (before)
			evict_put_end(e, r, before);
		if (more)
			evict_put_begin(e, r, now);
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
