/* Inside of the registry: registry.c has its thread and the orders left with it, registry_nodes.c what is done in ZooKeeper. */
#ifndef FM_REGISTRY_IMPL_H
#define FM_REGISTRY_IMPL_H

#include <pthread.h>
#ifndef THREADED
#define THREADED /* else zookeeper.h has no synchronous calls */
#endif
#include <zookeeper/zookeeper.h>

#include "registry.h"

#define FM_REGISTRY_DATA 65536 /* longest data of a znode that is read */

/* What somebody asks of the registry's thread. */
enum fm_order_kind { FM_ORDER_REGION_NEW, FM_ORDER_CLAIM, FM_ORDER_CLAIM_LOST, FM_ORDER_CLAIM_DONE, FM_ORDER_STORE_SET };

struct fm_order {
	struct fm_order *next;
	enum fm_order_kind kind;
	bool done;                         /* result is set; the asker frees it */
	bool left;                         /* nobody waits any more: the registry's thread frees it, and undoes what it did */
	int result;                        /* 0 or -errno */
	struct fm_registry_record rec;     /* REGION_NEW */
	struct fm_registry_claim claim;    /* CLAIM: out; CLAIM_LOST, CLAIM_DONE: in */
	bool collected;                    /* CLAIM_DONE */
	struct fm_mine *mine;              /* REGION_NEW: the entry to be, until it is listed */
	const char *name;                  /* STORE_SET: static */
	char *text;                        /* STORE_SET: owned */
	int version;                       /* STORE_SET */
};

/* A region of this host. */
struct fm_mine {
	struct fm_mine *next;
	uint64_t id;
	char text[FM_REGISTRY_RECORD]; /* of its record */
};

/* A region of any host, as the last look round found it. */
struct fm_seen {
	uint64_t id, host; /* host 0: its record cannot be read */
};

/* A host with regions but without a node. */
struct fm_gone {
	uint64_t host;
	uint64_t since_ns; /* CLOCK_MONOTONIC: seen to be gone all the time since */
	bool seen;         /* of the look round under way */
};

/* One watched znode below /fm/store. */
struct fm_watched {
	const char *path;
	bool dirty;      /* read it (again) */
	bool changed;    /* text is news */
	bool exists;
	int64_t mzxid;   /* of what was read last */
	int version;
	char *text;      /* news, owned; NULL when there is no such znode */
	char *told;      /* what the last poll handed out, owned */
};

struct fm_registry {
	struct fm_registry_uri uri;
	uint64_t host_id;
	char host_text[1024];
	int event_fd;
	pthread_t thread;

	/* --- under the mutex */
	pthread_mutex_t mutex;
	pthread_cond_t cond; /* CLOCK_MONOTONIC; for all who wait */
	bool stop, stopped;  /* end; leave word that we will be back */
	bool ended;          /* the thread uses nothing of this any more */
	bool connected;      /* the session is connected */
	bool lost;           /* the session is over: make another */
	unsigned link;       /* counts the changes of connected and lost */
	bool here;
	bool all_kept;
	uint64_t away_ns;    /* CLOCK_MONOTONIC: not here since */
	int fatal;           /* -errno: why the registry cannot be used as it was named; 0: it may come yet */
	char why[FM_REGISTRY_WHY];
	struct fm_order *orders, *running;
	struct fm_mine *mine;
	uint64_t *ends; /* records to be removed */
	size_t nends, ends_cap;
	struct fm_watched members, epoch;
	/* news */
	bool told_here, here_changed, new_session;
	unsigned remade;
	uint64_t remade_id;

	/* --- the registry's thread alone */
	zhandle_t *zh;
	bool had_session;
	uint64_t session; /* id of the session that is */
	uint64_t scan_ns; /* CLOCK_MONOTONIC: when to look round next */
	struct fm_seen *seen; /* by id, ascending */
	size_t nseen;
	struct fm_gone *gone;
	size_t ngone;
	uint64_t cursor; /* the region claimed last */
	char data[FM_REGISTRY_DATA];
};

/* All of the following: the registry's thread only, without the mutex; they return a ZooKeeper result (ZOK, ZNONODE, ...). */

/* Is it the connection that failed, not the request? */
bool fm_registry_is_away(int rc);
/* A new or restored session: make everything that this host wants to be there. */
int fm_registry_setup(struct fm_registry *r);
/* Look at hosts and regions: who is gone, and is what is ours in its place? */
int fm_registry_look_round(struct fm_registry *r);
/* Read a watched znode and watch it on. */
int fm_registry_read(struct fm_registry *r, struct fm_watched *w);
int fm_registry_remove_record(struct fm_registry *r, uint64_t id);
/* Carry out an order; o->result is set when the return value does not tell of being away. */
int fm_registry_carry_out(struct fm_registry *r, struct fm_order *o);
/* Undo an order that was carried out after its asker had left. Best effort. */
void fm_registry_undo(struct fm_registry *r, struct fm_order *o);
/* Leave word that this host will be back. */
int fm_registry_leave_word(struct fm_registry *r);

/* Under the mutex: is id a region of ours, or one whose record is about to be removed? */
bool fm_registry_is_mine(const struct fm_registry *r, uint64_t id);
/* Under the mutex: forget a region of ours and have its record removed. */
void fm_registry_end_locked(struct fm_registry *r, uint64_t id);
/* Wake who polls. */
void fm_registry_ring(struct fm_registry *r);
uint64_t fm_registry_now(void);

#endif
