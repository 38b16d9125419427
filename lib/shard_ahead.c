/* Pages that are brought in before anybody asks for them: see prefetch.h for which, here is how. */
#include "shard_impl.h"

/* Pages that may be here more without passing the high mark of a budget. Of a small one no more than a sixteenth goes to guesses. */
static uint64_t room(uint64_t limit, uint64_t resident)
{
	uint64_t high = fm_policy_marks(limit).high, left;

	if (limit == FM_LIMIT_NONE)
		return UINT64_MAX;
	left = high > resident ? high - resident : 0;
	return left < limit / 16 ? left : limit / 16;
}

static uint64_t room_ahead(const struct fm_shard *s)
{
	const struct fm_daemon_shm *d = s->o.daemon;
	const struct fm_region_hdr *h = s->o.map->hdr;
	uint64_t all = room(fm_ld(&d->limit_pages), fm_ld(&d->resident)), own = fm_ld(&h->limit_pages);

	own = own ? room(own, fm_ld(&h->resident)) : UINT64_MAX;
	return own < all ? own : all;
}

/* What the walk along a window makes of a page. */
enum step {
	STEP_TAKEN, /* it is ours now, and in s->fill */
	STEP_OVER,  /* it is here */
	STEP_END,   /* its fault must tell more (one of this very turn will), or there is no room */
};

static enum step take_ahead(struct fm_shard *s, uint32_t page, enum fill_source source, bool write)
{
	fm_word *word = &s->words[page];
	uint64_t w = atomic_load(word), busy;
	enum fm_pstate state = fm_word_state(w);

	if (state == FM_DIRTY || state == FM_CLEAN || state == FM_WRITEBACK)
		return STEP_OVER;
	if (state != (source == FILL_ZERO ? FM_EMPTY : FM_REMOTE) || s->nfill == FM_FILL || shard_is_discarding(s->shm, page) ||
	    !shard_reserve(s))
		return STEP_END;
	if (shard_counts(s))
		shard_count_page(s, page);
	busy = fm_word_busy(w, state);
	/* Named before it is ours: see fm_shard_recover(). */
	atomic_store(&s->shm->inflight[s->nfill], page + 1);
	if (!fm_page_cas(word, w, busy)) {
		atomic_store(&s->shm->inflight[s->nfill], 0);
		shard_unreserve(s);
		return STEP_END;
	}
	s->fill[s->nfill++] = (struct fill){.page = page, .source = source, .write = write, .ahead = true, .w = busy};
	return STEP_TAKEN;
}

void shard_ahead(struct fm_shard *s)
{
	uint64_t first = s->shm->first_page, end = first + s->shm->pages, left = s->npending ? 0 : room_ahead(s);
	uint64_t hits = s->prefetch.hits, wasted = s->prefetch.wasted;
	unsigned faults = s->nfill;

	for (unsigned i = 0; i < faults; i++) {
		const struct fill f = s->fill[i];
		struct fm_ahead a = {.n = 0};
		bool write;
		unsigned k, brought = 0;

		/* What is brought home is in order, and is no fault. */
		if (!f.quiet)
			a = fm_prefetch_fault(&s->prefetch, f.page);
		if (!a.n)
			continue;
		/* A page that is installed for reading costs a writer another fault; one for writing costs a write-back, guessed wrong. */
		write = f.write && (f.source == FILL_ZERO || a.n >= FM_PREFETCH_MAX / 4);
		for (k = 1; k <= a.n && brought < left; k++) {
			int64_t page = (int64_t)a.page + (int64_t)k * a.stride;
			enum step step;

			if (page < (int64_t)first || page >= (int64_t)end)
				break;
			step = take_ahead(s, (uint32_t)page, f.source, write);
			if (step == STEP_END)
				break;
			brought += step == STEP_TAKEN;
		}
		left -= brought;
		fm_prefetch_took(&s->prefetch, &a, k - 1, brought);
	}
	fm_bump(&s->stats->prefetch_hits, s->prefetch.hits - hits);
	fm_bump(&s->stats->prefetch_wasted, s->prefetch.wasted - wasted);
}
