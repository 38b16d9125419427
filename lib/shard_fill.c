#include "shard_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "crash.h"
#include "evict.h"

/* What zero pages are copied from. In .bss: untouched, so it takes no memory. */
static unsigned char zeros[FM_FILL * FM_PAGE_SIZE] __attribute__((aligned(4096)));

#define RETRY_NS 5000000 /* longest time of a turn spent on EAGAIN */

bool fm_memfd_has(int memfd, uint64_t offset)
{
	/* Unlike a read through a mapping, this allocates nothing. */
	return lseek(memfd, (off_t)offset, SEEK_DATA) == (off_t)offset;
}

static bool local_page(const struct fm_shard *s, uint32_t page)
{
	return fm_memfd_has(s->o.memfd, s->o.map->hdr->memfd_offset + (uint64_t)page * FM_PAGE_SIZE);
}

bool shard_reserve(struct fm_shard *s)
{
	struct fm_daemon_shm *d = s->o.daemon;
	struct fm_region_hdr *h = s->o.map->hdr;
	uint64_t limit = fm_ld(&d->limit_pages), own = fm_ld(&h->limit_pages);
	bool hold = atomic_load_explicit(s->o.hold, memory_order_relaxed);
	int64_t mine, total;

	if (atomic_load_explicit(s->o.unbounded, memory_order_relaxed)) {
		atomic_fetch_add(&h->resident, 1);
		return true;
	}
	mine = (int64_t)atomic_fetch_add(&h->resident, 1) + 1;
	total = (int64_t)atomic_fetch_add(&d->resident, 1) + 1;
	/* Signed: while a region ends, its evictor may count down what was taken off before. */
	if (hold && ((total > 0 && (uint64_t)total > fm_policy_marks(limit).hard) ||
		     (own && mine > 0 && (uint64_t)mine > fm_policy_marks(own).hard))) {
		atomic_fetch_sub(&h->resident, 1);
		atomic_fetch_sub(&d->resident, 1);
		return false;
	}
	return true;
}

void shard_unreserve(struct fm_shard *s)
{
	atomic_fetch_sub(&s->o.map->hdr->resident, 1);
	if (!atomic_load_explicit(s->o.unbounded, memory_order_relaxed))
		atomic_fetch_sub(&s->o.daemon->resident, 1);
}

void shard_publish(struct fm_shard *s, uint32_t page, uint64_t from, uint64_t to)
{
	if (!fm_page_cas(&s->words[page], from, to))
		abort(); /* a broken invariant: somebody wrote a page that is ours */
}

void shard_single_begin(struct fm_shard *s, uint32_t page)
{
	atomic_store(&s->shm->inflight[FM_BATCH - 1], page + 1);
}

void shard_single_end(struct fm_shard *s)
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

	/*
	 * Somebody waits for room, and this page is on its way out: the write waits until it has left. Else a few threads that write
	 * all that is here again and again, each page more often than once in its grace, would keep the others out for ever.
	 */
	if ((w & FM_F_GRACE) && atomic_load_explicit(s->o.hold, memory_order_relaxed) &&
	    !atomic_load_explicit(s->o.unbounded, memory_order_relaxed) &&
	    (s->waits_room || atomic_load(&s->o.daemon->room_waiters))) {
		s->waits_store = true;
		return false;
	}
	shard_single_begin(s, p->page);
	FM_CRASH_POINT("unprotect-named");
	if (!fm_page_cas(&s->words[p->page], w, busy)) {
		shard_single_end(s);
		return false;
	}
	FM_CRASH_POINT("unprotect-busy");
	res = fm_uffd_writeprotect(&s->o.uffd, shard_hva(s, p->page), FM_PAGE_SIZE, false);
	FM_CRASH_POINT("unprotect-done");
	/* Whatever it came to, it may have taken effect: dirty. */
	shard_publish(s, p->page, busy, fm_word_to(busy, FM_DIRTY, FM_F_ZERO, 0));
	FM_CRASH_POINT("unprotect-published");
	shard_single_end(s);
	if (res == FM_UFFD_DONE) {
		shard_near_installed(s, p->page);
		if (from == FM_CLEAN && !(w & FM_F_GRACE))
			fm_track_written(&s->track[w & FM_F_ZERO ? FILL_ZERO : FILL_STORE]);
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
	shard_single_begin(s, p->page);
	FM_CRASH_POINT("probe-named");
	if (!fm_page_cas(&s->words[p->page], w, busy)) {
		shard_single_end(s);
		return false;
	}
	FM_CRASH_POINT("probe-busy");
	res = fm_uffd_zeropage(&s->o.uffd, shard_hva(s, p->page), FM_PAGE_SIZE, &done);
	FM_CRASH_POINT("probe-done");
	shard_publish(s, p->page, busy, fm_word_to(busy, FM_DIRTY, FM_F_ZERO, 0));
	FM_CRASH_POINT("probe-published");
	shard_single_end(s);
	if (res == FM_UFFD_PRESENT)
		fm_uffd_wake(&s->o.uffd, shard_hva(s, p->page), FM_PAGE_SIZE);
	if (res == FM_UFFD_DONE) {
		shard_near_installed(s, p->page);
		fm_bump(&s->stats->faults_zero, 1);
		served(s, p->t0_ns, fm_now_ns());
	}
	s->waits_eventual |= res == FM_UFFD_RETRY;
	s->waits_store |= res == FM_UFFD_NO_MEMORY || res == FM_UFFD_NOT_POSSIBLE;
	return res != FM_UFFD_RETRY && res != FM_UFFD_NO_MEMORY && res != FM_UFFD_NOT_POSSIBLE;
}

/* Poison a page that is ours. A punch leaves the write protection's marker in the page table, which would count as a page. */
static enum fm_uffd_result poison(struct fm_shard *s, uint32_t page)
{
	uint64_t hva = shard_hva(s, page);
	enum fm_uffd_result res = fm_uffd_writeprotect(&s->o.uffd, hva, FM_PAGE_SIZE, false);

	return res == FM_UFFD_DONE ? fm_uffd_poison(&s->o.uffd, hva, FM_PAGE_SIZE) : res;
}

/* A fault on a page that is lost: it was read before the poison was there, or the page could not be poisoned. */
static bool repoison(struct fm_shard *s, uint32_t page, uint64_t w)
{
	uint64_t busy = fm_word_busy(w, FM_LOST);
	enum fm_uffd_result res;

	shard_single_begin(s, page);
	if (!fm_page_cas(&s->words[page], w, busy)) {
		shard_single_end(s);
		return false;
	}
	res = poison(s, page);
	shard_publish(s, page, busy, fm_word_to(busy, FM_LOST, 0, 0));
	shard_single_end(s);
	s->waits_store = true; /* no poison before Linux 6.6: the fault waits for good, looked at now and then */
	if (res == FM_UFFD_PRESENT)
		fm_uffd_wake(&s->o.uffd, shard_hva(s, page), FM_PAGE_SIZE); /* poisoned already */
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
			if (shard_counts(s))
				shard_count_page(s, p->page);
			if (!shard_reserve(s)) {
				if (!s->waits_room)
					fm_bump(&s->stats->held, 1);
				s->waits_room = true;
				return false;
			}
			FM_CRASH_POINT("fill-reserved");
			f = &s->fill[s->nfill];
			busy = fm_word_busy(w, fm_word_state(w));
			/* Named before it is ours: see fm_shard_recover(). */
			atomic_store(&s->shm->inflight[s->nfill], p->page + 1);
			FM_CRASH_POINT("fill-named");
			if (!fm_page_cas(word, w, busy)) {
				atomic_store(&s->shm->inflight[s->nfill], 0);
				shard_unreserve(s);
				continue;
			}
			FM_CRASH_POINT("fill-busy");
			*f = (struct fill){
			    .page = p->page,
			    .source = fm_word_state(w) == FM_EMPTY ? FILL_ZERO : FILL_STORE,
			    .w = busy,
			    .t0_ns = p->t0_ns,
			};
			f->write = p->write || !fm_track_wanted(&s->track[f->source]);
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
			if (fm_page_cas(word, w, w | FM_F_WAITER)) {
				FM_CRASH_POINT("waiter-flagged");
				return true;
			}
			continue;
		case FM_LOST:
			return repoison(s, p->page, w);
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
	shard_publish(s, f->page, f->w, to);
	FM_CRASH_POINT("fill-published");
	f->done = true;
	if (!f->write)
		fm_track_protected(&s->track[f->source]);
	if (f->source == FILL_STORE) {
		atomic_fetch_sub(&s->o.map->hdr->remote, 1);
		if (!f->quiet)
			fm_bump(&s->stats->faults_store, 1);
		fm_bump(&s->stats->prefetched, f->ahead);
	} else {
		fm_bump(&s->stats->faults_zero, 1);
		fm_bump(&s->stats->zeroed_ahead, f->ahead);
	}
	if (!f->quiet && !f->ahead) {
		shard_near_installed(s, f->page);
		served(s, f->t0_ns, now);
	}
	shard_ring(s, f->page);
}

/* Discarded between BUSY and COPY: no copy counts any more. The waiter faults anew and gets zeros. */
static void drop_discarded(struct fm_shard *s, struct fill *f)
{
	bool was_remote = fm_word_origin(f->w) == FM_REMOTE;

	shard_publish(s, f->page, f->w, fm_word_to(f->w, FM_EMPTY, FM_F_ZERO | FM_F_DISCARD, 0));
	f->done = true;
	shard_unreserve(s);
	if (was_remote)
		atomic_fetch_sub(&s->o.map->hdr->remote, 1);
	if (f->w & FM_F_STORED)
		shard_ring(s, f->page);
	fm_uffd_wake(&s->o.uffd, shard_hva(s, f->page), FM_PAGE_SIZE);
}

/* Not installed: back to where it came from; again: the fault stays noted. */
static void roll_back(struct fm_shard *s, struct fill *f, bool again)
{
	struct pending p = {.page = f->page, .write = f->write, .quiet = f->quiet, .t0_ns = f->t0_ns};

	if (f->discarded) { /* its old copy must not come back */
		drop_discarded(s, f);
		return;
	}
	shard_publish(s, f->page, f->w, fm_word_to(f->w, fm_word_origin(f->w), 0, 0));
	f->done = true;
	shard_unreserve(s);
	if (again && !f->ahead)
		shard_note(s, &p);
}

/* Somebody outside put a page there while we thought there was none: what is there counts. */
static void found_present(struct fm_shard *s, struct fill *f)
{
	shard_publish(s, f->page, f->w, fm_word_to(f->w, FM_DIRTY, FM_F_ZERO | FM_F_DISCARD, 0));
	f->done = true;
	if (fm_word_origin(f->w) == FM_REMOTE)
		atomic_fetch_sub(&s->o.map->hdr->remote, 1);
	fm_bump(&s->stats->faults_stale, !f->ahead);
	shard_ring(s, f->page);
	/* It may be write-protected: the next write fault unprotects it. */
	fm_uffd_wake(&s->o.uffd, shard_hva(s, f->page), FM_PAGE_SIZE);
}

/*
 * The kernel answers EAGAIN as long as one of the client's threads is about to discard something: for good, when several do nothing else. A turn
 * has other pages, and others wait for it to end (fm_shard_pause()): so it gives up what it could not install by then, and the next one tries
 * again. *since: when this turn met the first EAGAIN; 0 before.
 */
static bool gives_up(const struct fm_shard *s, uint64_t *since)
{
	uint64_t now = fm_now_ns();

	if (!*since)
		*since = now;
	return atomic_load(&s->stop) || atomic_load(&s->pausing) || now - *since > RETRY_NS;
}

static void lose(struct fm_shard *s, struct fill *f)
{
	const struct pending p = {.page = f->page, .write = f->write, .quiet = f->quiet, .t0_ns = f->t0_ns};
	enum fm_uffd_result res;
	uint64_t since = 0;

	do {
		res = poison(s, f->page);
	} while (res == FM_UFFD_RETRY && (shard_read_events(s), !f->discarded) && !gives_up(s, &since));
	FM_CRASH_POINT("lost-poisoned");
	if (f->discarded) {
		drop_discarded(s, f);
		return;
	}
	shard_publish(s, f->page, f->w, fm_word_to(f->w, FM_LOST, FM_F_ZERO, 0));
	f->done = true;
	shard_unreserve(s);
	atomic_fetch_sub(&s->o.map->hdr->remote, 1);
	FM_CRASH_POINT("lost-published");
	fm_bump(&s->stats->pages_lost, 1);
	shard_tell(s, FM_SHARD_LOST);
	if (res == FM_UFFD_RETRY)
		shard_note(s, &p); /* its fault is there still: see repoison() */
}

/* A turn's pages go in two passes: what somebody waits for, and zeros, first; then what is fetched ahead, while that somebody runs. */
static bool is_later(const struct fill *f)
{
	return f->ahead && f->source == FILL_STORE;
}

/* Get all REMOTE pages of the pass in one call. */
static void get_pages(struct fm_shard *s, bool later)
{
	struct fm_store_req req[FM_FILL];
	struct fill *who[FM_FILL];
	unsigned n = 0;
	bool down = false;

	for (unsigned i = 0; i < s->nfill; i++) {
		struct fill *f = &s->fill[i];

		if (f->source != FILL_STORE || is_later(f) != later || f->done || f->discarded || f->src)
			continue;
		f->src = s->buf + (size_t)n * FM_PAGE_SIZE;
		who[n] = f;
		req[n] = (struct fm_store_req){
		    .page = f->page, .gen = fm_word_gen(f->w), .epoch = fm_word_epoch(f->w), .buf = s->buf + (size_t)n * FM_PAGE_SIZE};
		n++;
	}
	if (!n)
		return;
	fm_store_get(s->o.store, s->o.map->hdr->id, req, n);
	FM_CRASH_POINT("fill-got");
	fm_bump(&s->stats->store_gets, n);
	for (unsigned i = 0; i < n; i++) {
		if (req[i].result == FM_STORE_OK)
			continue;
		if (later) {
			/* Whoever wants it will ask, and then be told. */
			roll_back(s, who[i], false);
			continue;
		}
		fm_bump(&s->stats->store_errors, 1);
		if (req[i].result == FM_STORE_LOST) {
			lose(s, who[i]);
		} else {
			down = true;
			s->waits_store = true;
			roll_back(s, who[i], true);
		}
	}
	if (later)
		return;
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
	return fm_uffd_copy(&s->o.uffd, hva, m == MODE_ZERO_WP ? zeros : f->src, bytes,
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

	while (i + k < s->nfill && !f[k].done && !f[k].discarded && is_later(&f[k]) == is_later(f) && f[k].page == f->page + k && mode_of(&f[k]) == mode_of(f) &&
	       (f->source == FILL_ZERO || f[k].src == f->src + (size_t)k * FM_PAGE_SIZE))
		k++;
	return k;
}

static void fill_pass(struct fm_shard *s, bool later)
{
	unsigned i = 0;
	bool one_by_one = false;
	uint64_t since = 0;

	get_pages(s, later);
	while (i < s->nfill) {
		struct fill *f = &s->fill[i];
		enum fm_uffd_result res;
		uint64_t done, now;
		unsigned k;

		if (f->done || is_later(f) != later) {
			i++;
			continue;
		}
		if (f->discarded) {
			drop_discarded(s, f);
			continue;
		}
		k = one_by_one ? 1 : run(s, i);
		one_by_one = false;
		res = install(s, f, k, &done);
		FM_CRASH_POINT("fill-installed");
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
			if (gives_up(s, &since)) {
				s->waits_eventual = true;
				roll_back(s, f, true);
			} else if (!shard_read_events(s)) {
				sched_yield();
			}
			break;
		case FM_UFFD_PRESENT:
			found_present(s, f);
			break;
		case FM_UFFD_NO_PROCESS:
			shard_tell(s, FM_SHARD_NO_PROCESS);
			roll_back(s, f, false);
			break;
		case FM_UFFD_NO_RANGE:
			/* A run over the border of two mappings (mprotect() of a part is enough) is refused as a whole. */
			if (k - done / FM_PAGE_SIZE > 1) {
				one_by_one = true;
				break;
			}
			roll_back(s, f, false);
			fm_uffd_wake(&s->o.uffd, shard_hva(s, f->page), FM_PAGE_SIZE);
			break;
		case FM_UFFD_NO_MEMORY:
		default:
			if (res == FM_UFFD_NOT_POSSIBLE)
				shard_tell(s, FM_SHARD_REFUSED);
			s->waits_store |= !f->ahead;
			roll_back(s, f, true);
			break;
		}
	}
}

void shard_fill(struct fm_shard *s)
{
	unsigned i, later = 0, missing = 0;

	if (s->nfill > 1)
		qsort(s->fill, s->nfill, sizeof s->fill[0], by_page);
	for (i = 0; i < s->nfill; i++) {
		struct fill *f = &s->fill[i];

		later += is_later(f);
		if (f->source == FILL_STORE)
			missing += !(f->src = shard_staged(s, f));
	}
	if (later || s->stage.want.n)
		shard_near_lasts(s);
	fill_pass(s, false);
	/* All is here: the store can begin with what comes after it. */
	if (later && !missing && s->stage.want.n)
		shard_stage_begin(s);
	if (later)
		fill_pass(s, true);
	shard_stage_end(s);
	FM_CRASH_POINT("fill-turn-done");
	for (i = 0; i < s->nfill; i++) {
		atomic_store(&s->shm->inflight[i], 0);
		FM_CRASH_POINT("fill-unnamed");
	}
	s->nfill = 0;
}
