/*
 * Inside of the fault path: what shard.c (thread and events) and shard_fill.c (pages) share. Nobody else includes it.
 */
#ifndef FM_SHARD_IMPL_H
#define FM_SHARD_IMPL_H

#include <pthread.h>

#include "near.h"
#include "page.h"
#include "policy.h"
#include "prefetch.h"
#include "shard.h"
#include "stats.h"
#include "track.h"

#define FM_PENDING  512            /* faults noted at most; more are woken later and fault again */
#define FM_FILL     (FM_BATCH - 1) /* pages filled a turn; the last in-flight slot is for single pages */

/* A fault that was read and is not served yet. */
struct pending {
	uint32_t page;
	bool write; /* some waiter wants to write */
	bool wp;    /* some waiter ran into the write protection */
	bool quiet; /* nobody waits: it is brought home, see shard_home.c */
	uint64_t t0_ns;
};

enum fill_source { FILL_ZERO, FILL_STORE };

/* A page that is BUSY and ours in this turn. */
struct fill {
	uint32_t page;
	enum fill_source source;
	bool write;
	bool quiet;
	bool ahead;     /* nobody has asked for it yet: it may fail without a word */
	const unsigned char *src; /* its bytes, FILL_STORE */
	bool discarded; /* a REMOVE came before it was installed: ends EMPTY */
	bool done;      /* published, one way or the other */
	uint64_t w;     /* its word, BUSY */
	uint64_t t0_ns;
};

/* Counting the shard's pages anew: see shard_count.c. Begun by the maker while the shard is paused; the rest is the shard's. */
struct shard_count {
	atomic_bool on, begun, done;
	bool failed;          /* the state file could not be read */
	uint64_t at;          /* next piece of the words */
	uint64_t *seen;       /* a bit for each piece that was counted; NULL: never needed */
	struct fm_count sum;
};

/* See shard_near.c. The shard's thread only. */
struct shard_near {
	struct fm_near policy;
	struct shard_waker *waker; /* NULL: never needed */
	int cpu;          /* that it was sent to; -1: none */
	bool waker_there; /* so was the waker */
	unsigned faults;  /* read in this turn */
	uint32_t tid;     /* of all of them; 0: of several threads */
	uint32_t alone;   /* of the only one that this turn is for; 0: it is for more */
	bool lasts;       /* there was work after that thread was woken */
	bool due;         /* it is still to be woken */
	uint32_t open_tid; /* a wake-up that the waker was asked for, and that may not have been made: of whom; 0: none */
	uint64_t hva;      /* ... at which page */
	uint64_t asked_ns;
	uint64_t fault_ns, woken_ns; /* when the turn's fault was read; when the thread was woken last */
	uint64_t gap_ns;             /* from that to this fault */
};

/*
 * Bytes that were got from the store before anybody asked for them, while the client was busy with the window before. The pages are REMOTE and
 * nobody's all the while, and count for nothing: what is here is only a copy of what the store had under a generation. It is
 * used when the page is BUSY from REMOTE, of this very generation and epoch; see shard_ahead.c for why that is enough.
 */
struct stage {
	struct fm_ahead want; /* n = 0: nothing is to be got */
	struct staged {
		uint32_t page;
		uint64_t w; /* the word whose bytes these are; 0: none, or used */
	} at[FM_FILL];
	unsigned n, next; /* entries; the one to be looked at first */
	struct fm_store_req req[FM_FILL];
	unsigned asked;   /* requests that the store works on: it may be asked for nothing else meanwhile */
	unsigned skip, penalty; /* windows to be passed by, since what was got was not used; how many the next time */
	unsigned char *buf;  /* FM_FILL pages: entry i's bytes are the i-th */
	unsigned char *used; /* the buffer before it: its pages may be on their way to the client still, while this one is written */
};

struct fm_shard {
	struct fm_shard_options o;
	struct fm_shard_shm *shm;
	struct fm_shard_stats *stats;
	fm_word *words; /* of the region */
	pthread_t thread;
	pthread_mutex_t turn; /* held from reading events to publishing all of them */
	atomic_bool stop, stopped;
	_Atomic unsigned pausing; /* somebody wants `turn`: it is not taken again before he has it */
	_Atomic unsigned news;
	struct pending pending[FM_PENDING];
	unsigned npending;
	bool overflow; /* faults were dropped: wake the whole range when there is room */
	struct fill fill[FM_FILL];
	unsigned nfill;
	struct fm_prefetch prefetch;
	struct stage stage;
	struct fm_track track[2]; /* by enum fill_source */
	struct shard_near near;
	bool waits_room;     /* this turn left something for want of room */
	bool waits_store;    /* ... for want of the store */
	bool waits_eventual; /* ... for something else that passes by itself */
	/* enum fm_home in the lowest 2 bits, and how often that has changed: as asked, taken note of, done. */
	_Atomic uint64_t home, home_seen, home_done;
	uint64_t home_at;    /* next word of the pass, of the region */
	bool home_found;     /* the pass has found a page that is away */
	bool home_refused;   /* the kernel does not unregister it: said */
	struct shard_count count;
	unsigned char *buf;  /* FM_FILL pages, and then the stage's, twice */
};

/* Try to serve one fault. Returns true when it is served, taken into s->fill, or needs nothing; false: keep it pending. */
bool shard_take(struct fm_shard *s, const struct pending *p);

/* Get, install and publish all of s->fill; reads events itself while an ioctl says EAGAIN. */
void shard_fill(struct fm_shard *s);

/* Read and handle events without blocking. Returns how many there were; *t0_ns when they were read. shard.c. */
unsigned shard_read_events(struct fm_shard *s);

/* Note a fault (again). shard.c. */
void shard_note(struct fm_shard *s, const struct pending *p);

/*
 * Note that the pages [first, end) of the region are discarded; unmapped: their mapping is gone too, so the local page is punched. The walk is
 * done in pieces by shard_discard_some(); faults on pages that it has not passed yet wait. shard_discard.c.
 */
void shard_discard(struct fm_shard *s, uint64_t first, uint64_t end, bool unmapped);
/* Walk on over some discarded pages. */
enum discard_left { DISCARD_NONE, DISCARD_LATER, DISCARD_MORE };
enum discard_left shard_discard_some(struct fm_shard *s);
/* Is the page in a range that the walk has not passed? */
bool shard_is_discarding(const struct fm_shard_shm *m, uint32_t page);

/* What fm_shard_home() asks for, a bit of it; left: of shard_discard_some(). Returns whether to come again without waiting. shard_home.c. */
bool shard_home_some(struct fm_shard *s, enum discard_left left);
/* Take note of what is asked; is there something of it to do? */
void shard_home_see(struct fm_shard *s);
bool shard_home_busy(const struct fm_shard *s);

static inline bool shard_counts(const struct fm_shard *s)
{
	return atomic_load_explicit(&s->count.on, memory_order_relaxed);
}
/* While shard_counts(): before a page's state is changed. shard_count.c. */
void shard_count_page(struct fm_shard *s, uint32_t page);
/* Count some; busy: there are faults to serve. Returns whether to come again without waiting. */
bool shard_count_some(struct fm_shard *s, bool busy);

/* Publish a page that is ours: nobody else changes a BUSY word, so the swap cannot fail. */
void shard_publish(struct fm_shard *s, uint32_t page, uint64_t from, uint64_t to);
/* Name the one page that is owned outside of s->fill, and take the name back. */
void shard_single_begin(struct fm_shard *s, uint32_t page);
void shard_single_end(struct fm_shard *s);
void shard_unreserve(struct fm_shard *s);
/* Count one page more, if both budgets have room for it under their hard marks. */
bool shard_reserve(struct fm_shard *s);

/*
 * All faults of the turn that can be served are in s->fill: add pages that will probably be wanted next, as far as there is room below the
 * high marks, so that nothing is evicted for them. shard_ahead.c.
 */
void shard_ahead(struct fm_shard *s);

/* Being on the CPU of the thread that faults: shard_near.c. */
void shard_near_init(struct fm_shard *s);
void shard_near_end(struct fm_shard *s);                  /* the thread has ended */
void shard_near_fault(struct fm_shard *s, uint32_t tid, uint64_t now_ns); /* an event was read */
void shard_near_begin(struct fm_shard *s);                /* what is pending is about to be served */
void shard_near_lasts(struct fm_shard *s);                /* ... and something of it when the thread runs already */
void shard_near_installed(struct fm_shard *s, uint32_t page); /* what a thread waits for is there; while no_wake: it sleeps on */
void shard_near_served(struct fm_shard *s);               /* the turn is over */
void shard_near_settle(struct fm_shard *s);               /* wake who may not have been woken */
void shard_near_late(struct fm_shard *s);                 /* ... since nothing came for a while */
/* How long a poll(2) may take that would wait for ms (-1: for ever). */
int shard_near_timeout(const struct fm_shard *s, int ms);

/*
 * Get what s->stage.want says, in two halves: the store does its part while what was got before is installed, from where it lies. No other use of
 * the store in between. The second half may note faults. shard_ahead.c.
 */
void shard_stage_begin(struct fm_shard *s);
void shard_stage_end(struct fm_shard *s);
/* The bytes of a page that is BUSY from REMOTE, if they were got ahead; NULL: they were not. Once. Valid until the second shard_stage_begin() from here. */
const unsigned char *shard_staged(struct fm_shard *s, const struct fill *f);

/* Tell the maker. */
void shard_tell(struct fm_shard *s, unsigned news);

/* Tell the evictor that a page became resident or awaits a delete. */
void shard_ring(struct fm_shard *s, uint32_t page);

/* Client's address of a page of the region. */
static inline uint64_t shard_hva(const struct fm_shard *s, uint32_t page)
{
	return fm_ld(&s->shm->hva) + (page - s->shm->first_page) * FM_PAGE_SIZE;
}

#define FM_STOP_SIGNAL SIGUSR1 /* to a shard's thread: ends a read(2) */

/* Is there a page in the memfd? */
bool fm_memfd_has(int memfd, uint64_t offset);

#endif
