/*
 * Inside of the eviction path: what evict.c (regions, queues, the turns of batches), evict_take.c, evict_put.c and evict_leave.c (a batch's three
 * parts) and evict_due.c (pages whose grace is over) share. Nobody else includes it.
 */
#ifndef FM_EVICT_IMPL_H
#define FM_EVICT_IMPL_H

#include "evict.h"

/* A page of the batch. w: the word as the evictor wrote it last. */
struct victim {
	uint32_t page;
	unsigned shard;
	uint64_t w;
	uint64_t old_gen; /* of the copy that the store may have held before this batch; 0 none */
	uint32_t old_epoch;
	bool had_stored;  /* the store may have held a copy before this batch */
	bool ours;        /* still owned */
	bool was_clean;
	bool cooling;     /* given to the grace: nobody's, but its copy in the store counts */
	bool zero;
	bool acknowledged; /* the store has the new copy, and has deleted the old one */
};

/* Two of them take turns: while the store works on the one, the other is taken, protected and read. */
#define FM_EVICT_HALF (FM_EVICT_BATCH / 2)
struct batch {
	unsigned half;      /* 0 or 1: its part of evict_inflight */
	unsigned char *buf; /* slot i is victim i's */
	struct victim v[FM_EVICT_HALF];
	unsigned n;
	unsigned failed;  /* the store refused, or the range was busy: the page went back to the queue */
	uint64_t grace_ns;     /* of the region; 0 none */
	uint64_t protected_ns; /* when all of them were write-protected */
	uint64_t hva[FM_MAX_SHARDS]; /* where the shards were mapped before that */
	struct fm_store_req req[FM_EVICT_HALF]; /* what the store was asked to put */
	unsigned who[FM_EVICT_HALF], nreq;      /* ... and whose pages these are */
};

/* Queue a page whose word is w, if there is something to do for it. */
void evict_queue_word(struct fm_evict_region *r, uint32_t page, uint64_t w);

/* Index of the shard that serves the page. */
unsigned evict_shard_of(const struct fm_evict_region *r, uint32_t page);

/* Is the page in a range that the client discarded a moment ago? Then it is the shard's for the time being: see shard_discard.c. */
bool evict_is_discarded(const struct fm_shard_shm *m, uint32_t page);

/*
 * Has the shard noted every event that it had read when this was called? It does within microseconds; false: it is stopped, or very slow
 * (waits for 10 ms).
 */
bool evict_has_noted(const struct fm_shard_shm *m);

/*
 * Punch the pages of the batch that are ours (DROPPING), publish REMOTE or EMPTY, wake their waiters, count, and take the batch out of
 * evict_inflight. Returns how many left the host.
 */
unsigned evict_leave(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b);

/* The next batch of at most n pages, up to the point where only the store is wanted. Returns whether there is one. */
bool evict_prepare(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b, unsigned n);

/* WRITEBACK -> DIRTY, and back to the queue. It may stay write-protected: a DIRTY page may be. */
void evict_give_back(struct fm_evict_region *r, struct batch *b, struct victim *v);

/* Give the pages to the store; zero ones need none. */
void evict_put_begin(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b);

/* Wait for the store's acknowledgements: each page that has its own may leave from here on. */
void evict_put_end(struct fm_evictor *e, struct fm_evict_region *r, struct batch *b);

/* Time passes in evictions: a region's own when it has a budget of its own, else those of all. */
void evict_tell_time(struct fm_evictor *e, struct fm_evict_region *r);

/* The client's address of a victim's page. */
uint64_t evict_hva(const struct fm_evict_region *r, const struct victim *v);

#endif
