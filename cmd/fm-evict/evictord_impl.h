/*
 * Inside of the evictor process: what daemon.c (start, loop, end), regions.c (fm-faultd's messages about regions), tasks.c (requests to
 * evict), moves.c (passes to a new placement epoch) and budget.c (which region gives pages, and when) share. One thread. Nobody else includes it.
 */
#ifndef EVICTORD_IMPL_H
#define EVICTORD_IMPL_H

#include <stdbool.h>
#include <stdint.h>

#include "ctl.h"
#include "evict.h"

/* A request to evict from one region. */
struct task {
	struct task *next;
	struct fm_ctl_evict ask;
	uint64_t done;
	unsigned idle; /* rounds without progress */
	uint64_t moved_ns; /* when pages left last, or it began */
};

struct slot {
	struct slot *next;
	bool purging; /* ended: its keys are being deleted */
	bool moved;   /* its words were looked at in this pass */
	/*
	 * Pages in their grace that we would like to have: with a grace, what can leave in a second is what began to cool a grace before. Grows
	 * while fills are held for want of room, and shrinks again.
	 */
	uint64_t ahead;
	uint64_t held_seen;  /* the shards' sum of `held` at the last look */
	uint64_t ahead_ns;   /* when ahead was changed last */
	uint64_t recount_ns; /* when the pages in their grace were looked at last */
	bool starting;       /* as r.draining, but for beginning to write back: pages in their grace count as gone */
	struct fm_evict_region r;
};

struct evictord {
	int fd;      /* control connection */
	int wake_fd; /* eventfd */
	struct fm_daemon_shm *daemon;
	struct fm_evictor evictor;
	struct slot *slots;
	unsigned nslots;
	struct fm_view *views; /* nslots of them, in the order of slots: what could leave now */
	struct fm_view *starts; /* ... and what could be written back, so that it leaves now or after its grace */
	struct task *tasks;
	bool draining;
	bool starting; /* see struct slot */
	bool eof;
	unsigned regions_due; /* that fm-faultd is about to tell us */
	bool blind;           /* there is a region that we know nothing of */
	/* A pass over all words, moving pages to the newest placement epoch. */
	uint64_t pass_epoch;   /* 0: none runs */
	uint64_t pass_left;    /* pages that could not be moved in it */
	uint64_t pass_moved;   /* ... and those that were */
	uint64_t pass_rest_ns; /* before the next one */
	uint64_t move_next_ns; /* not before */
};

/* regions.c. The region of that id, or NULL. */
struct slot *evictord_find(const struct evictord *d, uint64_t id);
/* Does fm-faultd count it anew just now? That takes some ms. */
bool evictord_is_counting(const struct slot *s);
/* May pages be taken from it? */
bool evictord_can_evict(const struct slot *s);
/* Receive one message of fm-faultd, and do what it says. Sets d->eof at the end of the connection. */
void evictord_message(struct evictord *d);
/* Delete some keys of the regions that ended. Returns whether there is more of that to do. */
bool evictord_purges(struct evictord *d);

/* tasks.c. Take a request; it is answered when it is done, at once when there is no such region. */
void evictord_task_add(struct evictord *d, const struct fm_ctl_evict *ask);
/* Answer the requests for a region with what was done so far. */
void evictord_tasks_end(struct evictord *d, uint64_t region);
/* Batches for requests: one each. Returns true when some are left, and *moved when pages left. */
bool evictord_tasks(struct evictord *d, uint64_t now, bool *moved);

/*
 * moves.c. Some of a pass that moves pages to the newest epoch, at a bounded rate: it must not crowd out faults and evictions. Returns whether
 * there is more to do.
 */
bool evictord_moves(struct evictord *d, uint64_t now);

/* budget.c. One round of all there is to do. Returns how long to sleep, ms: 0 not at all, -1 until woken. */
int evictord_work(struct evictord *d);

#endif
