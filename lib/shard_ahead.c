/* Pages that are brought in before anybody asks for them: see prefetch.h for which, here is how. */
#include "shard_impl.h"

#include "crash.h"

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
	FM_CRASH_POINT("ahead-reserved");
	busy = fm_word_busy(w, state);
	/* Named before it is ours: see fm_shard_recover(). */
	atomic_store(&s->shm->inflight[s->nfill], page + 1);
	FM_CRASH_POINT("ahead-named");
	if (!fm_page_cas(word, w, busy)) {
		atomic_store(&s->shm->inflight[s->nfill], 0);
		shard_unreserve(s);
		return STEP_END;
	}
	FM_CRASH_POINT("ahead-busy");
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
		if (f.source == FILL_STORE)
			s->stage.want = fm_prefetch_next(&s->prefetch, &a);
	}
	fm_bump(&s->stats->prefetch_hits, s->prefetch.hits - hits);
	fm_bump(&s->stats->prefetch_wasted, s->prefetch.wasted - wasted);
}

/*
 * Why bytes that were got before the page was ours are right. A generation is issued once for a page, by the swap to WRITEBACK, and what the store
 * holds under it is written once after that. So as long as the word has this generation, no write-back has begun since it was got, and the
 * store's bytes are what they were: in place (dir:) as well, where those of a newer generation would overwrite them. The word may have
 * come and gone in between (a page-in, left clean, discarded and lost): it is back at REMOTE with this generation only if the same copy
 * counts. A copy that was moved has another epoch in its word.
 */
static uint64_t which(uint64_t w)
{
	return (w & (FM_GEN_MAX << FM_GEN_SHIFT | FM_EP_MASK)) | FM_REMOTE;
}

const unsigned char *shard_staged(struct fm_shard *s, const struct fill *f)
{
	struct stage *t = &s->stage;

	for (unsigned i = 0; i < t->n; i++) {
		unsigned k = (t->next + i) % t->n;

		if (t->at[k].page != f->page || t->at[k].w != which(f->w))
			continue;
		t->at[k].w = 0;
		t->next = k + 1;
		t->penalty = 0;
		return t->buf + (size_t)k * FM_PAGE_SIZE;
	}
	return NULL;
}

/* What was got for nothing is counted, and makes the next ones wait: two streams that take turns would have each other's bytes thrown away. */
static void clear_stage(struct fm_shard *s)
{
	struct stage *t = &s->stage;
	unsigned wasted = 0;

	for (unsigned i = 0; i < t->n; i++)
		wasted += t->at[i].w != 0;
	if (wasted && wasted == t->n) {
		t->penalty = t->penalty < 32 ? t->penalty * 2 + 1 : 63;
		t->skip = t->penalty;
	}
	fm_bump(&s->stats->prefetch_wasted, wasted);
	t->n = t->next = 0;
}

/* Note the pages that are to be got, in ascending order: so that they can be installed by one ioctl. */
static void choose(struct fm_shard *s, const struct fm_ahead *want)
{
	uint64_t first = s->shm->first_page, end = first + s->shm->pages;
	struct stage *t = &s->stage;

	for (unsigned i = 0; i <= want->n && t->n < FM_FILL; i++) {
		int64_t page = want->page + (int64_t)(want->stride < 0 ? want->n - i : i) * want->stride;
		uint64_t w;

		if (page < (int64_t)first || page >= (int64_t)end)
			continue;
		w = atomic_load(&s->words[page]);
		if (fm_word_state(w) == FM_REMOTE)
			t->at[t->n++] = (struct staged){.page = (uint32_t)page, .w = which(w)};
	}
}

void shard_stage_begin(struct fm_shard *s)
{
	struct stage *t = &s->stage;
	const struct fm_ahead want = t->want;
	unsigned char *buf;

	t->want.n = 0;
	for (unsigned i = 0; i < t->n; i++)
		if (t->at[i].w && t->at[i].page == want.page)
			return; /* there is still enough */
	clear_stage(s);
	if (t->skip) {
		t->skip--;
		return;
	}
	choose(s, &want);
	buf = t->used;
	t->used = t->buf;
	t->buf = buf;
	for (unsigned i = 0; i < t->n; i++)
		t->req[i] = (struct fm_store_req){.page = t->at[i].page,
						  .gen = fm_word_gen(t->at[i].w),
						  .epoch = fm_word_epoch(t->at[i].w),
						  .buf = t->buf + (size_t)i * FM_PAGE_SIZE};
	t->asked = t->n;
	if (t->asked)
		fm_store_get_begin(s->o.store, s->o.map->hdr->id, t->req, t->asked);
}

void shard_stage_end(struct fm_shard *s)
{
	struct stage *t = &s->stage;

	if (!t->asked)
		return;
	fm_store_get_end(s->o.store, s->o.map->hdr->id, t->req, t->asked);
	t->asked = 0;
	fm_bump(&s->stats->store_gets, t->n);
	/* What failed is no matter: the fault asks again, and is told. */
	for (unsigned i = 0; i < t->n; i++)
		if (t->req[i].result != FM_STORE_OK)
			t->at[i].w = 0;
}
