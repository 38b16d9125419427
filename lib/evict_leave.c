/* What is DROPPING is punched, published and counted. */
#include "evict_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "crash.h"

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
			fm_uffd_wake(&r->uffd[v->shard], evict_hva(r, v), FM_PAGE_SIZE);
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
	evict_tell_time(e, r);
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
