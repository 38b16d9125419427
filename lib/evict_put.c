/* A batch goes to the store; what has its acknowledgement may leave. */
#include "evict_impl.h"

#include "crash.h"

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
			req[n++] = (struct fm_store_req){.page = v->page, .gen = fm_word_gen(v->w), .epoch = fm_word_epoch(v->w), .once = true};
		else if (!v->acknowledged && v->old_gen)
			req[n++] = (struct fm_store_req){.page = v->page, .gen = v->old_gen, .epoch = v->old_epoch, .once = true};
	}
	if (n) {
		FM_CRASH_POINT("mc-stale-begin");
		fm_store_delete(e->store, r->map.hdr->id, req, n);
		FM_CRASH_POINT("mc-stale-deleted");
	}
}

void evict_put_begin(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b)
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

void evict_put_end(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b)
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
		evict_give_back(r, b, v);
	}
	fm_bump(&r->map.hdr->evict.store_puts, put);
	/* Before what may take long in a store that refuses. */
	if (b->nreq)
		store_flag(r, bad, bad ? 0 : FM_REGION_STORE_FULL | FM_REGION_STORE_DOWN);
	if (by_gen)
		drop_stale(e, r, b);
}
