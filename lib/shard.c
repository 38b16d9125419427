#include "shard_impl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "crash.h"
#include "evict.h"
#include "sandbox.h"
#include "uapi.h"

#define WAIT_NS   2000000 /* longest time between two reads of events while something is pending */

void shard_tell(struct fm_shard *s, unsigned news)
{
	uint64_t one = 1;

	if ((atomic_fetch_or(&s->news, news) & news) != news && write(s->o.news_eventfd, &one, sizeof one) < 0) {
		/* full: it is readable anyhow */
	}
}

unsigned fm_shard_attention(struct fm_shard *s)
{
	return atomic_exchange(&s->news, 0);
}

static void wake_evictor(struct fm_shard *s)
{
	uint64_t one = 1;

	/* Looked at first: it is awake as a rule, and the line is every shard's. */
	if (atomic_load(&s->o.daemon->evictor_sleeping) && atomic_exchange(&s->o.daemon->evictor_sleeping, 0) &&
	    write(s->o.evictor_eventfd, &one, sizeof one) < 0) {
		/* full: it is readable anyhow */
	}
}

void shard_ring(struct fm_shard *s, uint32_t page)
{
	struct fm_shard_shm *m = s->shm;
	uint32_t head = fm_ld(&m->ring_head);
	uint32_t used = head - atomic_load_explicit(&m->ring_tail, memory_order_acquire);

	if (used >= FM_RING) {
		/* The evictor then looks at all the words: slower, nothing lost. */
		atomic_store_explicit(&m->ring_lost, fm_ld(&m->ring_lost) + 1, memory_order_release);
		return;
	}
	FM_CRASH_POINT("ring-begin");
	m->ring[head % FM_RING] = page;
	atomic_store_explicit(&m->ring_head, head + 1, memory_order_release);
	/* What awaits a delete takes room in the store, and there may be no other reason to look at it. */
	if (used == FM_RING / 2 || fm_word_state(atomic_load(&s->words[page])) == FM_EMPTY)
		wake_evictor(s);
}

void shard_note(struct fm_shard *s, const struct pending *p)
{
	for (unsigned i = 0; i < s->npending; i++)
		if (s->pending[i].page == p->page) {
			s->pending[i].write |= p->write;
			s->pending[i].wp |= p->wp;
			s->pending[i].quiet &= p->quiet;
			return;
		}
	if (s->npending == FM_PENDING) {
		s->overflow = true;
		return;
	}
	s->pending[s->npending++] = *p;
}

/* Which pages of the region are in [start, end) of the client's addresses? Returns false for none. */
static bool pages_of(const struct fm_shard *s, uint64_t start, uint64_t end, uint64_t *first, uint64_t *last_end)
{
	uint64_t base = fm_ld(&s->shm->hva), limit = base + s->shm->pages * FM_PAGE_SIZE;

	if (start < base)
		start = base;
	if (end > limit)
		end = limit;
	if (start >= end)
		return false;
	*first = s->shm->first_page + (start - base) / FM_PAGE_SIZE;
	*last_end = s->shm->first_page + (end - base + FM_PAGE_SIZE - 1) / FM_PAGE_SIZE;
	return true;
}

static void on_unmap(struct fm_shard *s, uint64_t start, uint64_t end)
{
	uint64_t first, last;

	if (!pages_of(s, start, end, &first, &last))
		return;
	/* When all of a region goes at once, its store copies and its memfd go with it: no need to walk a terabyte of words. Whether that is
	 * so, the maker finds out: an event may name pages that were unmapped before. */
	if (s->o.map->nshards > 1 || last - first < s->shm->pages)
		shard_discard(s, first, last, true);
	shard_tell(s, FM_SHARD_UNMAPPED);
}

/* Access to that page shall raise SIGBUS. */
static void poison_at(struct fm_shard *s, uint64_t hva)
{
	/* A leftover of write protection in the page table would count as a page. */
	fm_uffd_writeprotect(&s->o.uffd, hva, FM_PAGE_SIZE, false);
	if (fm_uffd_poison(&s->o.uffd, hva, FM_PAGE_SIZE) == FM_UFFD_PRESENT)
		fm_uffd_wake(&s->o.uffd, hva, FM_PAGE_SIZE);
}

static void on_remap(struct fm_shard *s, uint64_t from, uint64_t to, uint64_t len)
{
	uint64_t base = fm_ld(&s->shm->hva), bytes = s->shm->pages * FM_PAGE_SIZE;

	if (from <= base && from + len >= base + bytes) {
		to += base - from;
		atomic_store(&s->shm->hva, to);
		/* Faults at the new place that were read before this event were not understood: let them come again. Those at the old
		 * place will find nothing there. */
		fm_uffd_wake(&s->o.uffd, to, bytes);
		fm_uffd_wake(&s->o.uffd, base, bytes);
		return;
	}
	if (from >= base + bytes || from + len <= base)
		return;
	/* A part moved away. Its pages are no longer where the state says: SIGBUS at their faults, never other bytes. */
	atomic_fetch_or(&s->o.map->hdr->flags, FM_REGION_MOVED); /* for those after us, too */
	fm_uffd_wake(&s->o.uffd, to, len);
	shard_tell(s, FM_SHARD_MOVED);
}

static void on_event(struct fm_shard *s, const struct uffd_msg *m, uint64_t now)
{
	uint64_t base = fm_ld(&s->shm->hva), first, last;

	switch (m->event) {
	case UFFD_EVENT_PAGEFAULT: {
		uint64_t at = m->arg.pagefault.address - base;
		struct pending p = {
		    .write = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE,
		    .wp = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP,
		    .t0_ns = now,
		};

		fm_bump(&s->stats->faults, 1);
		shard_near_fault(s, m->arg.pagefault.feat.ptid, now);
		if (at / FM_PAGE_SIZE >= s->shm->pages) {
			/* A mapping that is moving: see on_remap(). */
			if (fm_ld(&s->o.map->hdr->flags) & FM_REGION_MOVED)
				poison_at(s, m->arg.pagefault.address & ~(uint64_t)(FM_PAGE_SIZE - 1));
			return;
		}
		p.page = (uint32_t)(s->shm->first_page + at / FM_PAGE_SIZE);
		shard_note(s, &p);
		return;
	}
	case UFFD_EVENT_REMOVE:
		if (pages_of(s, m->arg.remove.start, m->arg.remove.end, &first, &last))
			shard_discard(s, first, last, false);
		return;
	case UFFD_EVENT_UNMAP:
		on_unmap(s, m->arg.remove.start, m->arg.remove.end);
		return;
	case UFFD_EVENT_REMAP:
		on_remap(s, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
		return;
	default:
		return;
	}
}

static_assert(sizeof(struct uffd_msg) == sizeof((struct fm_shard_shm *)0)->events[0], "room for events");

static void handle_events(struct fm_shard *s, unsigned n)
{
	struct uffd_msg *msgs = (struct uffd_msg *)(void *)s->shm->events;
	uint64_t now = n ? fm_now_ns() : 0;

	/* What is discarded first: it is noted in shared memory, in case we are killed before the rest is done. */
	for (unsigned i = 0; i < n; i++)
		if (msgs[i].event != UFFD_EVENT_PAGEFAULT) {
			on_event(s, &msgs[i], now);
			FM_CRASH_POINT("events-noted");
			msgs[i].event = 0;
		}
	for (unsigned i = 0; i < n; i++)
		if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
			on_event(s, &msgs[i], now);
}

/*
 * What a shard before this one had read and not noted, since it was killed. One that it had noted, too, may be noted once more: no page of such
 * a range has left since, and what is here stays.
 */
static void note_old_events(struct fm_shard *s)
{
	struct uffd_msg *msgs = (struct uffd_msg *)(void *)s->shm->events;

	for (unsigned i = 0; i < FM_BATCH; i++) {
		if (msgs[i].event && msgs[i].event != UFFD_EVENT_PAGEFAULT)
			on_event(s, &msgs[i], 0);
		msgs[i].event = 0;
	}
}

bool fm_shard_has_old_events(const struct fm_shard_shm *s)
{
	const struct uffd_msg *msgs = (const struct uffd_msg *)(const void *)s->events;

	for (unsigned i = 0; i < FM_BATCH; i++)
		if (msgs[i].event && msgs[i].event != UFFD_EVENT_PAGEFAULT)
			return true;
	return false;
}

/* Wait for an event; -1: for as long as it takes. Reads nothing. Returns whether there is one. */
static bool wait_event(struct fm_shard *s, int timeout_ms)
{
	struct pollfd p = {.fd = s->o.uffd.fd, .events = POLLIN};

	if (poll(&p, 1, timeout_ms) > 0 && (p.revents & POLLERR)) {
		/* Not O_NONBLOCK any more: the client shares the descriptor's flags, and has changed them. It must not make us spin. */
		struct timespec nap = {.tv_nsec = 1000000};

		fcntl(s->o.uffd.fd, F_SETFL, O_RDWR | O_NONBLOCK);
		nanosleep(&nap, NULL);
	}
	return p.revents & POLLIN;
}

/*
 * Read and note the events that are there. A client goes on as soon as its event is read, and the evictor must know when one may have been
 * read that is not noted yet: so the read is not the one that waits, and `reading` is set around both.
 */
static unsigned read_events(struct fm_shard *s)
{
	ssize_t n;

	atomic_store(&s->shm->reading, 1);
	n = s->o.uffd.ops->read(s->o.uffd.fd, s->shm->events, sizeof s->shm->events);
	if (n > 0)
		FM_CRASH_POINT("events-read");
	n = n > 0 ? n / (ssize_t)sizeof(struct uffd_msg) : 0;
	handle_events(s, (unsigned)n);
	atomic_store(&s->shm->reading, 0);
	return (unsigned)n;
}

unsigned shard_read_events(struct fm_shard *s)
{
	return wait_event(s, 0) ? read_events(s) : 0;
}

/* Serve what is pending as far as it can be served now. */
static void serve(struct fm_shard *s)
{
	unsigned kept = 0, n = s->npending;

	shard_near_begin(s);
	s->nfill = 0;
	s->waits_room = s->waits_store = s->waits_eventual = false;
	for (unsigned i = 0; i < n; i++) {
		/* A full turn leaves the rest for the next one; so does a discard that has not passed the page yet. */
		if (s->nfill == FM_FILL || shard_is_discarding(s->shm, s->pending[i].page) || !shard_take(s, &s->pending[i]))
			s->pending[kept++] = s->pending[i];
	}
	s->npending = kept;
	if (s->nfill) {
		shard_ahead(s);
		shard_fill(s); /* may note faults */
	}
	if (s->overflow && s->npending < FM_PENDING / 2) {
		s->overflow = false;
		fm_uffd_wake(&s->o.uffd, fm_ld(&s->shm->hva), s->shm->pages * FM_PAGE_SIZE);
	}
}

/* Above a high mark somebody must evict. */
static void check_marks(struct fm_shard *s)
{
	struct fm_daemon_shm *d = s->o.daemon;
	struct fm_region_hdr *h = s->o.map->hdr;
	uint64_t limit = fm_ld(&d->limit_pages), own = fm_ld(&h->limit_pages);

	if ((limit != FM_LIMIT_NONE && fm_ld(&d->resident) > fm_policy_marks(limit).high) ||
	    (own && fm_ld(&h->resident) > fm_policy_marks(own).high))
		wake_evictor(s);
}

/* Something is pending that cannot be served yet: wait for a reason to try again, but not long. */
static void wait_a_little(struct fm_shard *s, uint32_t room_seq)
{
	struct timespec t = {.tv_nsec = WAIT_NS};

	if (s->waits_room) {
		wake_evictor(s);
		atomic_fetch_add(&s->o.daemon->room_waiters, 1);
		syscall(SYS_futex, &s->o.daemon->room_seq, FUTEX_WAIT, room_seq, &t, NULL, 0);
		atomic_fetch_sub(&s->o.daemon->room_waiters, 1);
	} else if (s->waits_store) {
		nanosleep(&t, NULL);
	} else if (s->waits_eventual) {
		sched_yield();
	}
}

static void *shard_main(void *arg)
{
	struct fm_shard *s = arg;
	/* A daemon before us may have left some. */
	enum discard_left left = fm_ld(&s->shm->discarding) ? DISCARD_MORE : DISCARD_NONE;

	while (!atomic_load(&s->stop)) {
		/* Read before serving: room made from here on is seen by the wait. */
		uint32_t room_seq = atomic_load(&s->o.daemon->room_seq);
		bool events, home, counting = shard_counts(s);

		shard_home_see(s);
		if (s->npending || left == DISCARD_MORE || shard_home_busy(s) || counting) {
			shard_near_settle(s);
			events = wait_event(s, 0);
		} else {
			events = wait_event(s, shard_near_timeout(s, left == DISCARD_LATER ? 20 : -1));
			if (!events)
				shard_near_late(s);
		}
		/* A busy shard would have it again before anybody else could. */
		while (atomic_load(&s->pausing))
			nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
		pthread_mutex_lock(&s->turn);
		if (events)
			read_events(s);
		/* Who discards all the time would keep the wait above from ever being late. */
		if (!s->npending)
			shard_near_settle(s);
		left = shard_discard_some(s);
		home = shard_home_some(s, left);
		if (s->npending) {
			serve(s);
			check_marks(s);
		}
		counting = shard_count_some(s, events || s->npending);
		if (s->stage.want.n && !s->npending && left == DISCARD_NONE && !home && !counting && !wait_event(s, 0)) {
			shard_stage_begin(s);
			shard_stage_end(s);
		}
		pthread_mutex_unlock(&s->turn);
		shard_near_served(s);
		if (counting)
			continue;
		if (s->npending && left != DISCARD_MORE)
			wait_a_little(s, room_seq);
		else if (home)
			nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
	}
	shard_near_settle(s);
	atomic_store(&s->stopped, true);
	return NULL;
}

static void idle(void *arg)
{
	shard_read_events(arg);
}

static void on_stop_signal(int sig)
{
	(void)sig; /* its only work is to end a poll(2) */
}

int fm_shard_start(const struct fm_shard_options *o, struct fm_shard **out)
{
	struct sigaction sa = {.sa_handler = on_stop_signal};
	struct fm_shard *s = calloc(1, sizeof *s);
	pthread_attr_t attr;
	sigset_t block, old;
	int r;

	if (!s)
		return -ENOMEM;
	s->o = *o;
	s->shm = &o->map->shards[o->index];
	s->stats = &s->shm->stats;
	s->words = o->map->words;
	fcntl(o->uffd.fd, F_SETFL, O_RDWR | O_NONBLOCK);
	s->buf = aligned_alloc(FM_PAGE_SIZE, (size_t)3 * FM_FILL * FM_PAGE_SIZE);
	if (!s->buf) {
		free(s);
		return -ENOMEM;
	}
	s->stage.buf = s->buf + (size_t)FM_FILL * FM_PAGE_SIZE;
	s->stage.used = s->stage.buf + (size_t)FM_FILL * FM_PAGE_SIZE;
	fm_prefetch_init(&s->prefetch);
	shard_near_init(s);
	pthread_mutex_init(&s->turn, NULL);
	if (o->count && fm_shard_count(s)) {
		pthread_mutex_destroy(&s->turn);
		free(s->buf);
		free(s);
		return -ENOMEM;
	}
	note_old_events(s);
	atomic_store(&s->shm->reading, 0); /* a daemon before us may have died there */
	/* A slow server must not keep events unread. */
	fm_store_set_idle(o->store, idle, s);
	sigaction(FM_STOP_SIGNAL, &sa, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 * 1024);
	/* The thread takes only the stop signal: all others are the main thread's. */
	sigfillset(&block);
	sigdelset(&block, FM_SANDBOX_SIGNAL);
	sigdelset(&block, FM_STOP_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &block, &old);
	r = pthread_create(&s->thread, &attr, shard_main, s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (r) {
		pthread_mutex_destroy(&s->turn);
		free(s->count.seen);
		free(s->buf);
		free(s);
		return -r;
	}
	*out = s;
	return 0;
}

void fm_shard_ask_stop(struct fm_shard *s)
{
	atomic_store(&s->stop, true);
	pthread_kill(s->thread, FM_STOP_SIGNAL);
}

void fm_shard_stop(struct fm_shard *s)
{
	struct timespec nap = {.tv_nsec = 20000};

	atomic_store(&s->stop, true);
	/* A signal that comes just before the poll is lost: so again until the thread says that it has left. */
	while (!atomic_load(&s->stopped)) {
		pthread_kill(s->thread, FM_STOP_SIGNAL);
		nanosleep(&nap, NULL);
		if (nap.tv_nsec < 1000000)
			nap.tv_nsec *= 2;
	}
	pthread_join(s->thread, NULL);
	shard_near_end(s);
	pthread_mutex_destroy(&s->turn);
	close(s->o.uffd.fd);
	fm_store_close(s->o.store);
	free(s->count.seen);
	free(s->buf);
	free(s);
}

void fm_shard_pause(struct fm_shard *s)
{
	struct timespec nap = {.tv_nsec = 100000};

	/* A client that plays with the descriptor's flags may have us wait in a read(2): the signal ends it. */
	atomic_fetch_add(&s->pausing, 1);
	while (pthread_mutex_trylock(&s->turn)) {
		pthread_kill(s->thread, FM_STOP_SIGNAL);
		nanosleep(&nap, NULL);
	}
	atomic_fetch_sub(&s->pausing, 1);
}

void fm_shard_resume(struct fm_shard *s)
{
	pthread_mutex_unlock(&s->turn);
}
