/*
 * What the client has discarded (REMOVE) or unmapped.
 *
 * Theory of operation. A range is noted in shared memory as soon as its event is read: the client goes on at that moment, and the event is not
 * sent again if we die. Then the shard walks over the range's words in pieces, and goes on reading events in between. Faults on pages
 * that the walk has not passed wait, and the evictor leaves the range alone; so what is REMOTE when the walk comes to it was so before the
 * discard, and becomes EMPTY.
 *
 * A page that is still in the memfd is another matter. MADV_DONTNEED keeps a shared page's bytes, and the client may have written new ones
 * since: it must never be punched here. MADV_REMOVE sends its event first and punches a moment later. The two look the same. So the page
 * stays, DIRTY, and the range is kept from the evictor for GRACE_NS, in which the client's own punch comes if one does; then the walk comes
 * again and makes EMPTY what is a hole by now. (QEMU punches before the event: no grace for VMs.)
 */
#include "shard_impl.h"

#include <fcntl.h>
#include <unistd.h>

#include "crash.h"
#include "evict.h"

#define PIECE    1024 /* words of a piece: a few ms when all of them are to be punched */
#define GRACE_NS 500000000ull

/* A page of this turn that is not installed yet: its fill must end EMPTY. */
static void discard_fill(struct fm_shard *s, struct fill *f)
{
	uint64_t w = f->w | FM_F_DISCARD;

	if (f->done || f->discarded)
		return;
	/* In the word too: if we are killed, the next daemon must not bring the old copy back. */
	shard_publish(s, f->page, f->w, w);
	f->w = w;
	f->discarded = true;
}

enum how { REMOVED, UNMAPPED, SETTLE };

/* One page that nobody owns (or the evictor has in WRITEBACK): BUSY -> EMPTY, or DIRTY when it is here and must stay. */
static bool discard_one(struct fm_shard *s, uint32_t page, uint64_t w, enum how how)
{
	enum fm_pstate from = fm_word_state(w);
	uint64_t busy = fm_word_busy(w, from == FM_WRITEBACK ? FM_DIRTY : from);
	uint64_t offset = s->o.map->hdr->memfd_offset + (uint64_t)page * FM_PAGE_SIZE;
	bool keep = false;

	if (shard_counts(s))
		shard_count_page(s, page);
	shard_single_begin(s, page);
	FM_CRASH_POINT("discard-named");
	if (!fm_page_cas(&s->words[page], w, busy)) {
		shard_single_end(s);
		return false;
	}
	FM_CRASH_POINT("discard-busy");
	if (from != FM_REMOTE) {
		keep = how != UNMAPPED && fm_memfd_has(s->o.memfd, offset);
		if (how == UNMAPPED &&
		    fallocate(s->o.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, FM_PAGE_SIZE) < 0)
			keep = true;
	}
	FM_CRASH_POINT("discard-punched");
	if (keep) {
		/* Its protection is in doubt now: dirty, so that it is never dropped unsaved. */
		shard_publish(s, page, busy, fm_word_to(busy, FM_DIRTY, FM_F_ZERO, 0));
	} else {
		shard_publish(s, page, busy, fm_word_to(busy, FM_EMPTY, FM_F_ZERO, 0));
		if (from == FM_REMOTE)
			atomic_fetch_sub(&s->o.map->hdr->remote, 1);
		else
			shard_unreserve(s);
		fm_bump(&s->stats->discarded, 1);
		if (busy & FM_F_STORED)
			shard_ring(s, page);
	}
	FM_CRASH_POINT("discard-published");
	shard_single_end(s);
	return true;
}

static void discard_page(struct fm_shard *s, uint32_t page, enum how how)
{
	for (;;) {
		uint64_t w = atomic_load(&s->words[page]);

		switch (fm_word_state(w)) {
		case FM_EMPTY:
		case FM_LOST: /* its poison stays in the page table: so does its state */
		case FM_BUSY: /* in a turn that told it already: see shard_discard() */
			return;
		case FM_DROPPING:
			if (how == SETTLE || (w & FM_F_DISCARD) || fm_page_cas(&s->words[page], w, w | FM_F_DISCARD))
				return;
			continue;
		case FM_REMOTE:
			if (how == SETTLE || discard_one(s, page, w, how))
				return;
			continue;
		case FM_DIRTY:
		case FM_CLEAN:
		case FM_WRITEBACK:
			if (discard_one(s, page, w, how))
				return;
			continue;
		}
	}
}

bool shard_is_discarding(const struct fm_shard_shm *m, uint32_t page)
{
	if (!atomic_load(&m->discarding))
		return false;
	for (unsigned i = 0; i < FM_DISCARDS; i++)
		if (page < atomic_load(&m->discard[i].end) && page >= atomic_load(&m->discard[i].at))
			return true;
	return false;
}

/* Move *cursor on towards end, a piece at most, over pages with words that are not in a hole of the state file. Returns whether it is there. */
static bool piece(struct fm_shard *s, _Atomic uint64_t *cursor, uint64_t end, enum how how)
{
	uint64_t base = s->o.map->hdr->words_offset, p = fm_ld(cursor), stop = end;

	/* Reading a hole through the mapping would fill it. */
	if (end - p > PIECE) {
		off_t data = lseek(s->o.map->fd, (off_t)(base + p * 8), SEEK_DATA);

		if (data < 0 || (uint64_t)data >= base + end * 8)
			p = end;
		else if ((uint64_t)data > base + p * 8)
			p = ((uint64_t)data - base) / 8;
		if (end - p > PIECE)
			stop = p + PIECE;
	}
	for (; p < stop; p++) {
		discard_page(s, (uint32_t)p, how);
		atomic_store_explicit(cursor, p + 1, memory_order_release);
		FM_CRASH_POINT("discard-walked-page");
	}
	atomic_store_explicit(cursor, p, memory_order_release);
	return p >= end;
}

static void finish(struct fm_shard *s, struct fm_discard_shm *d)
{
	atomic_store(&d->end, 0);
	FM_CRASH_POINT("discard-ended");
	atomic_fetch_sub(&s->shm->discarding, 1);
}

static enum discard_left walk(struct fm_shard *s, struct fm_discard_shm *d)
{
	uint64_t end = fm_ld(&d->end), until = fm_ld(&d->until_ns);
	bool unmapped = fm_ld(&d->unmapped);

	if (!until) {
		if (!piece(s, &d->at, end, unmapped ? UNMAPPED : REMOVED))
			return DISCARD_MORE;
		if (unmapped || s->o.map->hdr->kind == FM_KIND_VM) {
			finish(s, d);
			return DISCARD_NONE;
		}
		FM_CRASH_POINT("discard-walked");
		atomic_store(&d->until_ns, fm_now_ns() + GRACE_NS);
		FM_CRASH_POINT("discard-settling");
		return DISCARD_LATER;
	}
	if (fm_now_ns() < until)
		return DISCARD_LATER;
	if (!piece(s, &d->first, end, SETTLE))
		return DISCARD_MORE;
	finish(s, d);
	return DISCARD_NONE;
}

enum discard_left shard_discard_some(struct fm_shard *s)
{
	enum discard_left left = DISCARD_NONE, l;

	if (!fm_ld(&s->shm->discarding))
		return DISCARD_NONE;
	for (unsigned i = 0; i < FM_DISCARDS; i++)
		if (fm_ld(&s->shm->discard[i].end)) {
			l = walk(s, &s->shm->discard[i]);
			left = l > left ? l : left;
		}
	return left;
}

/* A slot that is free, or becomes so by ending the grace of the range that has had most of it. */
static struct fm_discard_shm *free_slot(struct fm_shard *s)
{
	for (;;) {
		struct fm_discard_shm *oldest = NULL;

		for (unsigned i = 0; i < FM_DISCARDS; i++) {
			struct fm_discard_shm *d = &s->shm->discard[i];

			if (!fm_ld(&d->end))
				return d;
			if (fm_ld(&d->until_ns) && (!oldest || fm_ld(&d->until_ns) < fm_ld(&oldest->until_ns)))
				oldest = d;
		}
		if (oldest)
			atomic_store(&oldest->until_ns, 1);
		shard_discard_some(s);
	}
}

/* Does the range join one that is being walked over? Programs and balloons discard page after page. */
static bool join(struct fm_shard *s, uint64_t first, uint64_t end, bool unmapped)
{
	for (unsigned i = 0; i < FM_DISCARDS && fm_ld(&s->shm->discarding); i++) {
		struct fm_discard_shm *d = &s->shm->discard[i];

		/* A slot that is not in use ends at 0, where a range may begin. */
		if (first && fm_ld(&d->end) == first && !fm_ld(&d->until_ns) && fm_ld(&d->unmapped) == unmapped) {
			atomic_store(&d->end, end);
			return true;
		}
	}
	return false;
}

void shard_discard(struct fm_shard *s, uint64_t first, uint64_t end, bool unmapped)
{
	if (!join(s, first, end, unmapped)) {
		struct fm_discard_shm *d = free_slot(s);

		atomic_store(&d->first, first);
		atomic_store(&d->at, first);
		atomic_store(&d->unmapped, unmapped);
		atomic_store(&d->until_ns, 0);
		atomic_fetch_add(&s->shm->discarding, 1);
		FM_CRASH_POINT("discard-counted");
		atomic_store(&d->end, end);
		FM_CRASH_POINT("discard-noted");
	}
	/* Pages of the turn that runs must know at once. */
	for (unsigned i = 0; i < s->nfill; i++)
		if (s->fill[i].page >= first && s->fill[i].page < end)
			discard_fill(s, &s->fill[i]);
}
