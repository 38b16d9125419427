/* What fm-stat prints: one look at a run directory, private to the process. */
#ifndef FM_STAT_SAMPLE_H
#define FM_STAT_SAMPLE_H

#include "shmfile.h"
#include "stats.h"

struct sample_region {
	uint64_t id;
	char name[FM_NAME_MAX];
	int32_t pid;
	uint32_t kind;
	uint64_t created_ns; /* CLOCK_REALTIME */
	uint64_t pages;
	uint64_t resident_pages;
	uint64_t remote_pages;
	uint64_t limit_pages; /* 0 none */
	uint64_t flags;       /* enum fm_region_flag */
	uint64_t grace_ms, cooling_pages;
	uint64_t late_writes; /* since the region began */
	struct fm_stats stats; /* since the last clear */
	struct fm_stats total; /* since the region began: what rates are made of */
	uint64_t latency_ns[4]; /* p50, p90, p99, p99.9 since the last clear */
	uint64_t latency_max_ns;
};

/* A store: a directory, or one server of a cluster. */
struct sample_store {
	char uri[FM_URI_MAX];
	bool up;
	const char *state; /* "up", "down", "dead" */
	const char *role;  /* "member", "drained", "left"; NULL: not a server of a cluster */
	bool drained;      /* takes no new pages */
	bool full;         /* refused a page for want of room */
	uint64_t used_bytes, limit_bytes; /* limit 0 unknown */
	uint64_t errors, items, restarts, rtt_ns;
	uint64_t servers; /* up, of a store that is one thing; 0 unknown */
};

struct sample {
	uint64_t mono_ns;     /* CLOCK_MONOTONIC of the look */
	uint64_t realtime_ns; /* CLOCK_REALTIME of it */
	int32_t daemon_pid;   /* 0: not running */
	uint64_t uptime_s;    /* 0: not running */
	uint64_t limit_pages; /* 0 none */
	uint64_t resident_pages;
	struct sample_store stores[FM_SERVERS]; /* the servers of a cluster, or the one store */
	unsigned nstores;                       /* 0: daemon.state could not be read */
	uint64_t epoch;                         /* newest placement epoch; 0: the store has none */
	unsigned epochs;                        /* in use */
	uint64_t pages_left, pages_moved;       /* see struct fm_cluster_shm */
	bool registry, registry_here;           /* there is one; it is connected */
	uint64_t registry_epoch, registry_settled, registry_oldest, registry_behind; /* see struct fm_registry_shm */
	struct sample_region *regions; /* in order of their ids */
	size_t nregions;
};

/*
 * Look at the run directory dirfd. Files that cannot be read are left out, with a warning when warn is set. Returns 0 and *s,
 * to be freed with sample_free(); or -errno.
 */
int sample_take(int dirfd, bool warn, struct sample *s);

/* Free what a sample holds. Does nothing for a zeroed one. */
void sample_free(struct sample *s);

/* The same region in an earlier sample, or NULL. earlier: may be NULL. */
const struct sample_region *sample_find(const struct sample *earlier, const struct sample_region *r);

/*
 * Begin all counters of all regions in the run directory anew. Returns 0 and the number of regions in *cleared, or the first
 * error, after the other regions were cleared: file is set to the file that could not be, and *why to the reason.
 */
int sample_clear(int dirfd, size_t *cleared, char file[FM_REGION_FILE_MAX], const char **why);

#endif
