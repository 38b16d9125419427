/*
 * The eviction path: moves cold pages of regions out to the store. Mechanism only; which pages, says policy.h.
 *
 * Theory of operation. A batch of victims is owned by the evictor from the compare-and-swap that makes them WRITEBACK (dirty
 * ones) or DROPPING (clean ones) on. Dirty ones are write-protected, read from the memfd, and put to the store under a new
 * generation; only the store's acknowledgement makes them DROPPING. A write meanwhile raises a write-protect fault, by which
 * the fault shard takes the page back, and the evictor's swap to DROPPING fails: that page stays. What is DROPPING is punched
 * out of the memfd and becomes REMOTE, or EMPTY when all zero or discarded. PUNCH_HOLE wakes nobody, so the evictor wakes
 * whoever set the waiter flag. In a region with a grace (grace.h) a dirty page is not dropped after its acknowledgement: it becomes
 * CLEAN with FM_F_GRACE, nobody's, and goes later by fm_evict_due(). Each page owned stands in the region file's evict_inflight, so that fm-faultd can put things
 * right after a SIGKILL at any instant. All functions: evictor thread only.
 */
#ifndef FM_EVICT_H
#define FM_EVICT_H

#include "grace.h"
#include "policy.h"
#include "shmfile.h"
#include "store.h"
#include "uffd.h"
#include "victims.h"

#define FM_EVICT_MOST 512

/* What the evictor holds for all regions. */
struct fm_evictor {
	struct fm_daemon_shm *daemon;
	struct fm_store *store;
	unsigned char *buf; /* FM_EVICT_BATCH pages, page-aligned */
	uint64_t evictions; /* of all regions since it began: the time that victims.h goes by */
};

/* The evictor's view of one region. */
struct fm_evict_region {
	struct fm_region_map map; /* with words, writable */
	int memfd;
	struct fm_uffd uffd[FM_MAX_SHARDS];
	struct fm_victims *victims; /* resident pages that may leave */
	struct fm_queue *deletes; /* EMPTY pages whose store copy is to be deleted */
	struct fm_grace *grace;   /* pages that were written back and are still here */
	uint64_t evictions;       /* since it began */
	uint32_t lost_seen[FM_MAX_SHARDS]; /* ring_lost as last seen */
	bool gone;                 /* the client's memory is gone: leave it alone */
	bool draining;             /* see struct fm_view */
	uint64_t stalled_until_ns; /* CLOCK_MONOTONIC: nothing could leave; try again then */
	uint64_t no_deletes_until_ns; /* the store refused some */
	uint64_t swept_ns;         /* last sweep */
	uint64_t purge_at;         /* next page of fm_evict_purge() */
	uint64_t move_at;          /* next page of fm_evict_move() */
};

/* Make an evictor over a daemon's shared page and a store (both stay the caller's). Returns 0 or -ENOMEM. */
int fm_evictor_init(struct fm_evictor *e, struct fm_daemon_shm *daemon, struct fm_store *store);
void fm_evictor_fini(struct fm_evictor *e);

/*
 * Begin with a region: map, memfd and uffd are set by the caller and become the evictor's; queues are made and filled by one
 * sweep over the page words. Returns 0 or -ENOMEM (nothing is closed).
 */
int fm_evict_begin(struct fm_evictor *e, struct fm_evict_region *r);

/* Let go of a region: closes its descriptors, unmaps it, frees its queues. */
void fm_evict_end(struct fm_evictor *e, struct fm_evict_region *r);

/* Read the shards' rings: newly resident pages to the queue, discarded ones to the deletes; then do some deletes. */
void fm_evict_drain(struct fm_evictor *e, struct fm_evict_region *r);

/* Look at every page word and queue what should be: after a lost ring entry. Touches no hole of the state file. */
void fm_evict_sweep(struct fm_evictor *e, struct fm_evict_region *r);

/*
 * Evict up to n pages, FM_EVICT_MOST at most, with never more than FM_EVICT_BATCH owned at a time: while the store works on a
 * batch, the next is taken and read, so a call of several batches costs less a page. Returns how many left the host. 0 with
 * stalled_until_ns set: nothing can leave now (store full or down, or every page busy).
 */
unsigned fm_evict_batch(struct fm_evictor *e, struct fm_evict_region *r, unsigned n);

/*
 * Drop up to n of the pages whose grace is over, which are still what was stored; those that a device has written meanwhile become
 * DIRTY and are queued. Returns how many left the host. A page is punched right after it was compared: see DESIGN.md on what may
 * happen in between.
 */
unsigned fm_evict_due(struct fm_evictor *e, struct fm_evict_region *r, unsigned n);

/* When the first page's grace is over, CLOCK_MONOTONIC ns; 0: no page waits. */
uint64_t fm_evict_due_ns(const struct fm_evict_region *r);

/* Forget the pages in their grace that were written since, and queue them: after this fm_grace_count() is right. */
void fm_evict_recount_grace(struct fm_evict_region *r);

/*
 * The region has ended and its store lists no keys (struct fm_store_ops): delete the next of its keys by the page words. Returns
 * true when there are none left; false: call again. Touches no hole of the state file. Nobody else may use the region any more.
 */
bool fm_evict_purge(struct fm_evictor *e, struct fm_evict_region *r);

/*
 * Move what the store holds of this region by older placement epochs to the newest: some pages a call. *moved: pages re-written.
 * *left: counts up for each page that could not be moved now (a shard has it, a server does not answer). Returns true at the end of
 * the region, and begins anew at the next call. The pages stay readable all the while; no ownership is taken: the same generation is put
 * by the new epoch before the word says so. Touches no hole of the state file.
 */
bool fm_evict_move(struct fm_evictor *e, struct fm_evict_region *r, unsigned *moved, uint64_t *left);

/* Time for stalled_until_ns. */
uint64_t fm_now_ns(void);

#endif
