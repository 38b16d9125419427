#include "shard_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "evict.h"

/* What zero pages are copied from. In .bss: untouched, so it takes no memory. */
static unsigned char zeros[FM_FILL * FM_PAGE_SIZE] __attribute__((aligned(4096)));

bool fm_memfd_has(int memfd, uint64_t offset)
{
	/* Unlike a read through a mapping, this allocates nothing. */
	return lseek(memfd, (off_t)offset, SEEK_DATA) == (off_t)offset;
}

static bool local_page(const struct fm_shard *s, uint32_t page)
{
	return fm_memfd_has(s->o.memfd, s->o.map->hdr->memfd_offset + (uint64_t)page * FM_PAGE_SIZE);
}

/* Count one page more, if both budgets have room for it under their hard marks. */
static bool reserve(struct fm_shard *s)
{
	struct fm_daemon_shm *d = s->o.daemon;
	struct fm_region_hdr *h = s->o.map->hdr;
	uint64_t limit = fm_ld(&d->limit_pages), own = fm_ld(&h->limit_pages);
	bool hold = atomic_load_explicit(s->o.hold, memory_order_relaxed);
	uint64_t mine = atomic_fetch_add(&h->resident, 1) + 1, total = atomic_fetch_add(&d->resident, 1) + 1;

	if (hold && (total > fm_policy_marks(limit).hard || (own && mine > fm_policy_marks(own).hard))) {
		atomic_fetch_sub(&h->resident, 1);
		atomic_fetch_sub(&d->resident, 1);
		return false;
	}
	return true;
}

static void unreserve(struct fm_shard *s)
{
	atomic_fetch_sub(&s->o.map->hdr->resident, 1);
	atomic_fetch_sub(&s->o.daemon->resident, 1);
}

/* Publish a page that is ours: nobody else changes a BUSY word, so the swap cannot fail. */
static void publish(struct fm_shard *s, uint32_t page, uint64_t from, uint64_t to)
{
	if (!fm_page_cas(&s->words[page], from, to))
		abort(); /* a broken invariant: somebody wrote a page that is ours */
}

static void single_begin(struct fm_shard *s, uint32_t page)
{
	atomic_store(&s->shm->inflight[FM_BATCH - 1], page + 1);
}

static void single_end(struct fm_shard *s)
{
	atomic_store(&s->shm->inflight[FM_BATCH - 1], 0);
}

static void served(struct fm_shard *s, uint64_t t0_ns, uint64_t now_ns)
{
	uint64_t d = now_ns - t0_ns, clears = fm_ld(&s->o.map->hdr->baseline.clear_count);

	fm_hist_add(s->stats->latency, d);
	if (fm_ld(&s->stats->clear_seen) != clears) {
		atomic_store_explicit(&s->stats->latency_max_ns, 0, memory_order_relaxed);
		atomic_store_explicit(&s->stats->clear_seen, clears, memory_order_relaxed);
	}
	if (d > fm_ld(&s->stats->latency_max_ns))
		atomic_store_explicit(&s->stats->latency_max_ns, d, memory_order_relaxed);
}

/* A write met the protection of a page that is here: take it (back), unprotect, DIRTY. */
static bool unprotect(struct fm_shard *s, const struct pending *p, uint64_t w)
{
	enum fm_pstate from = fm_word_state(w);
	uint64_t busy = fm_word_busy(w, from == FM_WRITEBACK ? FM_DIRTY : from);
	enum fm_uffd_result res;

	single_begin(s, p->page);
	if (!fm_page_cas(&s->words[p->page], w, busy)) {
		single_end(s);
		return false;
	}
	res = fm_uffd_writeprotect(&s->o.uffd, shard_hva(s, p->page), FM_PAGE_SIZE, false);
	/* Whatever it came to, it may have taken effect: dirty. */
	publish(s, p->page, busy, fm_word_to(busy, FM_DIRTY, FM_F_ZERO, 0));
	single_end(s);
	if (res == FM_UFFD_DONE) {
		fm_bump(&s->stats->faults_wp, 1);
		served(s, p->t0_ns, fm_now_ns());
		return true;
	}
	if (res == FM_UFFD_NO_PROCESS)
		shard_tell(s, FM_SHARD_NO_PROCESS);
	if (res == FM_UFFD_NOT_POSSIBLE)
		shard_tell(s, FM_SHARD_REFUSED);
	s->waits_eventual |= res == FM_UFFD_RETRY;
	s->waits_store |= res == FM_UFFD_NO_MEMORY || res == FM_UFFD_NOT_POSSIBLE;
	return res == FM_UFFD_NO_RANGE || res == FM_UFFD_NO_PROCESS;
}

/*
 * A missing fault on a page that should be here. Either it is stale (read before a page-in that it did not cause), or somebody
 * outside punched the page (QEMU discards with fallocate() first): then it is zeros now.
 */
static bool probe(struct fm_shard *s, const struct pending *p, uint64_t w)
{
	enum fm_pstate from = fm_word_state(w);
	uint64_t busy = fm_word_busy(w, from == FM_WRITEBACK ? FM_DIRTY : from), done;
	enum fm_uffd_result res;

	if (local_page(s, p->page)) {
		/* A wake changes no mapping: no ownership needed. If the page goes meanwhile, the waiter faults anew. */
		fm_bump(&s->stats->faults_stale, 1);
		fm_uffd_wake(&s->o.uffd, shard_hva(s, p->page), FM_PAGE_SIZE);
		return true;
	}
	single_begin(s, p->page);
	if (!fm_page_cas(&s->words[p->page], w, busy)) {
		single_end(s);
		return false;
	}
	res = fm_uffd_zeropage(&s->o.uffd, shard_hva(s, p->page), FM_PAGE_SIZE, &done);
	publish(s, p->page, busy, fm_word_to(busy, FM_DIRTY, FM_F_ZERO, 0));
	single_end(s);
	if (res == FM_UFFD_PRESENT)
		fm_uffd_wake(&s->o.uffd, shard_hva(s, p->page), FM_PAGE_SIZE);
	if (res == FM_UFFD_DONE) {
		fm_bump(&s->stats->faults_zero, 1);
		served(s, p->t0_ns, fm_now_ns());
	}
	s->waits_eventual |= res == FM_UFFD_RETRY;
	s->waits_store |= res == FM_UFFD_NO_MEMORY || res == FM_UFFD_NOT_POSSIBLE;
	return res != FM_UFFD_RETRY && res != FM_UFFD_NO_MEMORY && res != FM_UFFD_NOT_POSSIBLE;
}

static bool repoison(struct fm_shard *s, uint32_t page)
{
	enum fm_uffd_result res = fm_uffd_poison(&s->o.uffd, shard_hva(s, page), FM_PAGE_SIZE);

	if (res == FM_UFFD_PRESENT)
		fm_uffd_wake(&s->o.uffd, shard_hva(s, page), FM_PAGE_SIZE);
	s->waits_store = true; /* not there before Linux 6.6: the fault waits for good, looked at now and then */
	return res == FM_UFFD_DONE || res == FM_UFFD_PRESENT || res == FM_UFFD_NO_RANGE || res == FM_UFFD_NO_PROCESS;
}

bool shard_take(struct fm_shard *s, const struct pending *p)
{
	fm_word *word = &s->words[p->page];
	uint64_t w, busy;
	struct fill *f;

	for (;;) {
		w = atomic_load(word);
		switch (fm_word_state(w)) {
		case FM_EMPTY:
		case FM_REMOTE:
			if (!reserve(s)) {
				if (!s->waits_room)
					fm_bump(&s->stats->held, 1);
				s->waits_room = true;
				return false;
			}
			f = &s->fill[s->nfill];
			busy = fm_word_busy(w, fm_word_state(w));
			/* Named before it is ours: see fm_shard_recover(). */
			atomic_store(&s->shm->inflight[s->nfill], p->page + 1);
			if (!fm_page_cas(word, w, busy)) {
				atomic_store(&s->shm->inflight[s->nfill], 0);
				unreserve(s);
				continue;
			}
			*f = (struct fill){
			    .page = p->page,
			    .source = fm_word_state(w) == FM_EMPTY ? FILL_ZERO : FILL_STORE,
			    .write = p->write,
			    .w = busy,
			    .t0_ns = p->t0_ns,
			};
			s->nfill++;
			return true;
		case FM_DIRTY:
		case FM_CLEAN:
		case FM_WRITEBACK:
			if (p->wp ? unprotect(s, p, w) : probe(s, p, w))
				return true;
			if (atomic_load(word) != w && !s->waits_eventual && !s->waits_store)
				continue; /* lost a race for the word: look again */
			return false;
		case FM_DROPPING:
			/* The evictor wakes it after the punch; then it faults anew. */
			if (fm_page_cas(word, w, w | FM_F_WAITER))
				return true;
			continue;
		case FM_LOST:
			return repoison(s, p->page);
		case FM_BUSY:
			return true; /* noted twice in this turn: the first one's wake serves both */
		}
	}
}

/* How a page is installed. */
enum mode { MODE_ZERO_RW, MODE_ZERO_WP, MODE_DATA_RW, MODE_DATA_WP };

static enum mode mode_of(const struct fill *f)
{
	if (f->source == FILL_ZERO)
		return f->write ? MODE_ZERO_RW : MODE_ZERO_WP;
	return f->write ? MODE_DATA_RW : MODE_DATA_WP;
}

/* The page is in place: DIRTY when writable, CLEAN when write-protected. */
static void installed(struct fm_shard *s, struct fill *f, uint64_t now)
{
	uint64_t to;

	if (f->write)
		to = fm_word_to(f->w, FM_DIRTY, FM_F_ZERO, 0);
	else
		to = fm_word_to(f->w, FM_CLEAN, FM_F_ZERO, f->source == FILL_ZERO ? FM_F_ZERO : 0);
	publish(s, f->page, f->w, to);
	f->done = true;
	if (f->source == FILL_STORE) {
		atomic_fetch_sub(&s->o.map->hdr->remote, 1);
		fm_bump(&s->stats->faults_store, 1);
	} else {
		fm_bump(&s->stats->faults_zero, 1);
	}
	served(s, f->t0_ns, now);
	shard_ring(s, f->page);
}

/* Discarded between BUSY and COPY: no copy counts any more. The waiter faults anew and gets zeros. */
static void drop_discarded(struct fm_shard *s, struct fill *f)
{
	bool was_remote = fm_word_origin(f->w) == FM_REMOTE;

	publish(s, f->page, f->w, fm_word_to(f->w, FM_EMPTY, FM_F_ZERO, 0));
	f->done = true;
	unreserve(s);
	if (was_remote)
		atomic_fetch_sub(&s->o.map->hdr->remote, 1);
	if (f->w & FM_F_STORED)
		shard_ring(s, f->page);
	fm_uffd_wake(&s->o.uffd, shard_hva(s, f->page), FM_PAGE_SIZE);
}

/* Not installed: back to where it came from; again: the fault stays noted. */
static void roll_back(struct fm_shard *s, struct fill *f, bool again)
{
	struct pending p = {.page = f->page, .write = f->write, .t0_ns = f->t0_ns};

	if (f->discarded) { /* its old copy must not come back */
		drop_discarded(s, f);
		return;
	}
	publish(s, f->page, f->w, fm_word_to(f->w, fm_word_origin(f->w), 0, 0));
	f->done = true;
	unreserve(s);
	if (again)
		shard_note(s, &p);
}

/* Somebody outside put a page there while we thought there was none: what is there counts. */
static void found_present(struct fm_shard *s, struct fill *f)
{
	publish(s, f->page, f->w, fm_word_to(f->w, FM_DIRTY, FM_F_ZERO, 0));
	f->done = true;
	if (fm_word_origin(f->w) == FM_REMOTE)
		atomic_fetch_sub(&s->o.map->hdr->remote, 1);
	fm_bump(&s->stats->faults_stale, 1);
	shard_ring(s, f->page);
	/* It may be write-protected: the next write fault unprotects it. */
	fm_uffd_wake(&s->o.uffd, shard_hva(s, f->page), FM_PAGE_SIZE);
}

static void lose(struct fm_shard *s, struct fill *f)
{
	enum fm_uffd_result res;

	do {
		res = fm_uffd_poison(&s->o.uffd, shard_hva(s, f->page), FM_PAGE_SIZE);
	} while (res == FM_UFFD_RETRY && (shard_read_events(s), !f->discarded) && !atomic_load(&s->stop));
	if (f->discarded) {
		drop_discarded(s, f);
		return;
	}
	publish(s, f->page, f->w, fm_word_to(f->w, FM_LOST, FM_F_ZERO, 0));
	f->done = true;
	unreserve(s);
	atomic_fetch_sub(&s->o.map->hdr->remote, 1);
	fm_bump(&s->stats->pages_lost, 1);
	shard_tell(s, FM_SHARD_LOST);
}

/* Get all REMOTE pages of the turn in one call. */
static void get_pages(struct fm_shard *s)
{
	struct fm_store_req req[FM_FILL];
	struct fill *who[FM_FILL];
	unsigned n = 0;
	bool down = false;

	for (unsigned i = 0; i < s->nfill; i++) {
		struct fill *f = &s->fill[i];

		if (f->source != FILL_STORE)
			continue;
		f->slot = n;
		who[n] = f;
		req[n] = (struct fm_store_req){
		    .page = f->page, .gen = fm_word_gen(f->w), .epoch = fm_word_epoch(f->w), .buf = s->buf + (size_t)n * FM_PAGE_SIZE};
		n++;
	}
	if (!n)
		return;
	fm_store_get(s->o.store, s->o.map->hdr->id, req, n);
	fm_bump(&s->stats->store_gets, n);
	for (unsigned i = 0; i < n; i++) {
		if (req[i].result == FM_STORE_OK)
			continue;
		fm_bump(&s->stats->store_errors, 1);
		if (req[i].result == FM_STORE_LOST) {
			lose(s, who[i]);
		} else {
			down = true;
			s->waits_store = true;
			roll_back(s, who[i], true);
		}
	}
	if (down)
		atomic_fetch_or(&s->o.map->hdr->flags, FM_REGION_STORE_DOWN);
	else if (fm_ld(&s->o.map->hdr->flags) & FM_REGION_STORE_DOWN)
		atomic_fetch_and(&s->o.map->hdr->flags, ~(uint64_t)FM_REGION_STORE_DOWN);
}

static enum fm_uffd_result install(struct fm_shard *s, const struct fill *f, unsigned k, uint64_t *done)
{
	uint64_t hva = shard_hva(s, f->page), bytes = (uint64_t)k * FM_PAGE_SIZE;
	enum mode m = mode_of(f);

	if (m == MODE_ZERO_RW)
		return fm_uffd_zeropage(&s->o.uffd, hva, bytes, done);
	/* A page of zeros for reading is copied, not ZEROPAGE'd and then protected: a write in between would be missed. */
	return fm_uffd_copy(&s->o.uffd, hva, m == MODE_ZERO_WP ? zeros : s->buf + (size_t)f->slot * FM_PAGE_SIZE, bytes,
			    m == MODE_ZERO_WP || m == MODE_DATA_WP, done);
}

static int by_page(const void *a, const void *b)
{
	const struct fill *x = a, *y = b;

	return x->page < y->page ? -1 : x->page > y->page;
}

/* Fills from i on that go by one ioctl. */
static unsigned run(const struct fm_shard *s, unsigned i)
{
	const struct fill *f = &s->fill[i];
	unsigned k = 1;

	while (i + k < s->nfill && !f[k].done && !f[k].discarded && f[k].page == f->page + k && mode_of(&f[k]) == mode_of(f) &&
	       (f->source == FILL_ZERO || f[k].slot == f->slot + k))
		k++;
	return k;
}

void shard_fill(struct fm_shard *s)
{
	unsigned i = 0;

	if (s->nfill > 1)
		qsort(s->fill, s->nfill, sizeof s->fill[0], by_page);
	get_pages(s);
	while (i < s->nfill) {
		struct fill *f = &s->fill[i];
		enum fm_uffd_result res;
		uint64_t done, now;
		unsigned k;

		if (f->done) {
			i++;
			continue;
		}
		if (f->discarded) {
			drop_discarded(s, f);
			continue;
		}
		k = run(s, i);
		res = install(s, f, k, &done);
		now = fm_now_ns();
		for (unsigned j = 0; j < done / FM_PAGE_SIZE; j++)
			installed(s, f + j, now);
		i += (unsigned)(done / FM_PAGE_SIZE);
		if (res == FM_UFFD_DONE)
			continue;
		f = &s->fill[i];
		switch (res) {
		case FM_UFFD_RETRY:
			/* An event is unread, or its sender has not run yet. Reading may discard pages of this very turn. */
			if (atomic_load(&s->stop))
				roll_back(s, f, true);
			else if (!shard_read_events(s))
				sched_yield();
			break;
		case FM_UFFD_PRESENT:
			found_present(s, f);
			break;
		case FM_UFFD_NO_PROCESS:
			shard_tell(s, FM_SHARD_NO_PROCESS);
			roll_back(s, f, false);
			break;
		case FM_UFFD_NO_RANGE:
			roll_back(s, f, false);
			break;
		case FM_UFFD_NO_MEMORY:
		default:
			if (res == FM_UFFD_NOT_POSSIBLE)
				shard_tell(s, FM_SHARD_REFUSED);
			s->waits_store = true;
			roll_back(s, f, true);
			break;
		}
	}
	for (i = 0; i < s->nfill; i++)
		atomic_store(&s->shm->inflight[i], 0);
	s->nfill = 0;
}

/* A page of this turn that is not installed yet? Then its fill must end EMPTY. */
static bool discard_fill(struct fm_shard *s, uint32_t page)
{
	for (unsigned i = 0; i < s->nfill; i++)
		if (s->fill[i].page == page && !s->fill[i].done) {
			s->fill[i].discarded = true;
			return true;
		}
	return false;
}

/* One page that nobody owns (or the evictor has in WRITEBACK): BUSY -> EMPTY, or DIRTY when it cannot be punched. */
static bool discard_one(struct fm_shard *s, uint32_t page, uint64_t w)
{
	enum fm_pstate from = fm_word_state(w);
	uint64_t busy = fm_word_busy(w, from == FM_WRITEBACK ? FM_DIRTY : from);
	uint64_t offset = s->o.map->hdr->memfd_offset + (uint64_t)page * FM_PAGE_SIZE;
	bool keep = false;

	single_begin(s, page);
	if (!fm_page_cas(&s->words[page], w, busy)) {
		single_end(s);
		return false;
	}
	/*
	 * MADV_REMOVE sends its event before it punches. A local page is punched here and now: were it left to the client, the
	 * evictor could store the old bytes in between, and they would come back.
	 */
	if (from != FM_REMOTE)
		keep = fallocate(s->o.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, FM_PAGE_SIZE) < 0;
	if (keep) {
		/* Its protection is in doubt now: dirty, so that it is never dropped unsaved. */
		publish(s, page, busy, fm_word_to(busy, FM_DIRTY, FM_F_ZERO, 0));
	} else {
		publish(s, page, busy, fm_word_to(busy, FM_EMPTY, FM_F_ZERO, 0));
		if (from == FM_REMOTE)
			atomic_fetch_sub(&s->o.map->hdr->remote, 1);
		else
			unreserve(s);
		fm_bump(&s->stats->discarded, 1);
		if (busy & FM_F_STORED)
			shard_ring(s, page);
	}
	single_end(s);
	return true;
}

static void discard_page(struct fm_shard *s, uint32_t page)
{
	for (;;) {
		uint64_t w = atomic_load(&s->words[page]);

		switch (fm_word_state(w)) {
		case FM_EMPTY:
		case FM_LOST: /* its poison stays in the page table: so does its state */
			return;
		case FM_BUSY:
			discard_fill(s, page);
			return;
		case FM_DROPPING:
			if ((w & FM_F_DISCARD) || fm_page_cas(&s->words[page], w, w | FM_F_DISCARD))
				return;
			continue;
		case FM_DIRTY:
		case FM_CLEAN:
		case FM_REMOTE:
		case FM_WRITEBACK:
			if (discard_one(s, page, w))
				return;
			continue;
		}
	}
}

void shard_discard(struct fm_shard *s, uint64_t first, uint64_t end)
{
	uint64_t base = s->o.map->hdr->words_offset;

	for (uint64_t p = first; p < end;) {
		uint64_t stop = end;

		/* Long ranges may lie over holes of the state file, which reading through the mapping would fill. */
		if (end - p > 4096) {
			off_t data = lseek(s->o.map->fd, (off_t)(base + p * 8), SEEK_DATA), hole;

			if (data < 0)
				return;
			if ((uint64_t)data > base + p * 8)
				p = ((uint64_t)data - base) / 8;
			hole = lseek(s->o.map->fd, (off_t)(base + p * 8), SEEK_HOLE);
			if (hole > 0 && ((uint64_t)hole - base) / 8 < end)
				stop = ((uint64_t)hole - base) / 8;
		}
		for (; p < stop && p < end; p++)
			discard_page(s, (uint32_t)p);
	}
}
