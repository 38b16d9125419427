/*
 * The fault path: one shard of a region is one userfaultfd, one range of pages and one thread that serves their faults.
 *
 * Theory of operation. A turn reads up to FM_BATCH events, notes which pages are wanted, takes each as BUSY, gets all REMOTE
 * ones from the store in one call, installs them (one ioctl a contiguous run), publishes their states and tells the evictor by
 * a ring. What cannot be served now (no room under the hard mark, the page is being dropped, the store is down, an event must
 * be read first) stays noted, and the shard goes on reading events all the while: an unread REMOVE or UNMAP blocks the client
 * in the kernel and makes every ioctl of the region return EAGAIN, the evictor's too. Nothing is allocated or logged here.
 */
#ifndef FM_SHARD_H
#define FM_SHARD_H

#include "shmfile.h"
#include "store.h"
#include "uffd.h"

/* What a shard tells the thread that made it, by bits of fm_shard_attention(). */
enum fm_shard_news {
	FM_SHARD_UNMAPPED = 1 << 0,   /* some of its pages were unmapped: look whether any are left */
	FM_SHARD_NO_PROCESS = 1 << 1, /* the client's memory is gone */
	FM_SHARD_MOVED = 1 << 2,      /* a part of it was moved by mremap(): those pages raise SIGBUS from now on */
	FM_SHARD_REFUSED = 1 << 3,    /* an ioctl failed in a way that should not be; the fault is tried again and again */
	FM_SHARD_LOST = 1 << 4,       /* a page was lost */
	FM_SHARD_HOME = 1 << 5,       /* fm_shard_home(FM_HOME_FETCH): no page of it is in the store alone any more */
	FM_SHARD_LEFT = 1 << 6,       /* fm_shard_home(FM_HOME_LEAVE): its range is unregistered, and no event is left unread */
	FM_SHARD_COUNTED = 1 << 7,    /* fm_shard_count(): done */
};

struct fm_shard_options {
	const struct fm_region_map *map; /* with words, writable; outlives the shard */
	unsigned index;                  /* which of its shards */
	struct fm_daemon_shm *daemon;    /* writable; outlives the shard */
	struct fm_uffd uffd;             /* registered; becomes the shard's and is closed with it */
	int memfd;                       /* stays the caller's; outlives the shard */
	struct fm_store *store;          /* becomes the shard's and is closed with it */
	int evictor_eventfd;             /* written when daemon->evictor_sleeping; stays the caller's */
	int news_eventfd;                /* written when there are news; stays the caller's */
	const atomic_bool *hold;         /* are fills held back above the hard mark? false while nobody evicts */
	const atomic_bool *near;         /* may it go to the CPU of a thread that faults alone? See near.h */
	bool eager;                      /* for tests: put off every wake-up that can be put off, wherever the thread is */
	const atomic_bool *unbounded;    /* no budget holds for this region, nor is it counted in the daemon's; changed while paused */
	bool count;                      /* fm_shard_count() before anything else */
};

struct fm_shard;

/*
 * Make a shard and start its thread. Returns 0 and *out, or -errno; on failure uffd and store stay the caller's. The word states
 * must be consistent (no BUSY page): see fm_shard_recover().
 */
int fm_shard_start(const struct fm_shard_options *o, struct fm_shard **out);

/*
 * End the thread (within a few ms unless it waits for the store), give BUSY pages back, close uffd and store, free. Waiters go on
 * waiting for another fm-faultd.
 */
void fm_shard_stop(struct fm_shard *s);

/* Have it end, without waiting for that: so that many end at the same time, before fm_shard_stop() of each. */
void fm_shard_ask_stop(struct fm_shard *s);

/* Are there events that a shard before had read, and not noted when it was killed? The next one does. No shard of it runs. */
bool fm_shard_has_old_events(const struct fm_shard_shm *s);

/* What a shard does besides serving faults. */
enum fm_home {
	FM_HOME_NO = 0, /* nothing */
	FM_HOME_FETCH,  /* bring in what is only in the store; tells FM_SHARD_HOME. The evictor must not touch the region */
	FM_HOME_LEAVE,  /* after that: unregister its range, and read what events there are; tells FM_SHARD_LEFT */
};

/*
 * Have the shard do that. Returns whether it has taken note; if not (it waits for a slow store), call again. The thread that made the
 * shard.
 */
bool fm_shard_home(struct fm_shard *s, enum fm_home what);

/* Is what fm_shard_home() asked for last done? The news only say when to look. The thread that made the shard. */
bool fm_shard_home_done(const struct fm_shard *s);

/* News since the last call, enum fm_shard_news. The thread that made the shard. */
unsigned fm_shard_attention(struct fm_shard *s);

/*
 * Hold the shard between two turns, so that nothing it owns is in flight; and let it go on. The caller keeps it short: the client
 * waits. For mending what a dead evictor left.
 */
void fm_shard_pause(struct fm_shard *s);
void fm_shard_resume(struct fm_shard *s);

/*
 * Are the ranges that a dead fm-faultd noted as being discarded ranges of their shards? Else the file is damaged: the walk would leave its words, or throw
 * pages away that nobody discarded. No shard of it runs.
 */
bool fm_shard_discards_are_sound(const struct fm_region_map *m);

/* Does a word say that its page is not here? Fills no hole of the file. Returns 1, 0, or -errno of reading it. No shard of it runs. */
int fm_region_any_away(const struct fm_region_map *m);

/*
 * Mend a region after its fm-faultd died: BUSY pages named in the shards' in-flight tables go to what the memfd says (a COPY is
 * atomic): there is a page -> DIRTY, there is none -> where they came from, or EMPTY when discarded meanwhile. No shard of the region may run.
 */
void fm_shard_recover(const struct fm_region_map *m, int memfd);

/*
 * Mend a region after its evictor died: WRITEBACK -> DIRTY; DROPPING -> DIRTY when it was not punched, else REMOTE or EMPTY. No evictor may run;
 * shards may be paused or not there. The caller wakes the waiters of the range afterwards. The region's counters are too high then, never too
 * low: see fm_shard_count().
 */
void fm_evict_recover(const struct fm_region_map *m, int memfd);

/* Pages by what their words say. */
struct fm_count {
	uint64_t resident; /* in a resident state, or BUSY from one */
	uint64_t remote;   /* REMOTE */
};

/* Add the pages [first, end) of the region to *c; fills no hole of the file. Returns 0, or -errno of reading it. Any thread. */
int fm_count_words(const struct fm_region_map *m, uint64_t first, uint64_t end, struct fm_count *c);

/*
 * Have the shard count its pages as they are now, in between serving faults (which are not held up by it); it tells FM_SHARD_COUNTED. From now until
 * then nobody else may change the class of a page: the region is marked FM_REGION_COUNTING for the evictor. The shard is paused. Begins
 * anew when it counts already. Returns 0 or -ENOMEM.
 */
int fm_shard_count(struct fm_shard *s);

/* Has it begun? Call again until it has: it may sleep, and is woken by this. The thread that made the shard. */
bool fm_shard_count_begun(struct fm_shard *s);

/* Is it done? Returns 1 and adds what it counted to *sum; 0: not yet; -errno: the state file cannot be read. The thread that made the shard. */
int fm_shard_counted(const struct fm_shard *s, struct fm_count *sum);

#endif
