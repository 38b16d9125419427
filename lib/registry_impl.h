/* Inside of the registry: registry.c has its thread, registry_orders.c the orders left with it, registry_nodes.c what is done in ZooKeeper. */
#ifndef FM_REGISTRY_IMPL_H
#define FM_REGISTRY_IMPL_H

#include <pthread.h>
#ifndef THREADED
#define THREADED /* else zookeeper.h has no synchronous calls */
#endif
#include <zookeeper/zookeeper.h>

#include "registry.h"

#define FM_REGISTRY_DATA 65536 /* longest data of a znode that is read */
#define FM_FOLLOW_NS     500000000u
#define FM_FOLLOW_MAX_NS 16000000000u

/* What somebody asks of the registry's thread. */
enum fm_order_kind { FM_ORDER_REGION_NEW, FM_ORDER_CLAIM, FM_ORDER_CLAIM_LOST, FM_ORDER_CLAIM_DONE, FM_ORDER_MEMBERS };

struct fm_order {
	struct fm_order *next;
	enum fm_order_kind kind;
	bool done;                         /* result is set; the asker frees it */
	bool left;                         /* nobody waits any more: the registry's thread frees it, and undoes what it did */
	bool keep;                         /* ... but it is carried out, however long the registry is away */
	int result;                        /* 0 or -errno */
	struct fm_registry_record rec;     /* REGION_NEW */
	struct fm_registry_claim claim;    /* CLAIM: out; CLAIM_LOST, CLAIM_DONE: in */
	bool collected;                    /* CLAIM_DONE */
	struct fm_mine *mine;              /* REGION_NEW: the entry to be, until it is listed */
	struct fm_members_change change;   /* MEMBERS */
	struct fm_members *publish;        /* MEMBERS: instead of a change; owned */
	char why[FM_REGISTRY_WHY];         /* MEMBERS: out */
};

/* A region of this host. */
struct fm_mine {
	struct fm_mine *next;
	uint64_t id;
	bool dirty;                    /* its record is to be written again */
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

/* A watched znode. */
struct fm_watched {
	bool dirty;      /* read it (again) */
	bool changed;    /* text is news */
	bool read;       /* it was, at least once */
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
	const struct ACL_vector *acl; /* of what we make */
	char auth[256];               /* who we are: user:password; "": nobody */
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
	struct fm_watched members;
	bool settles, settled_dirty; /* settled_dirty: this host's node and records are to be written again */
	uint64_t settled;            /* what they say */
	bool follow;
	uint64_t follow_ns, follow_every_ns; /* CLOCK_MONOTONIC: when to look for the oldest epoch next, and how long after that again */
	uint64_t oldest, behind;     /* see struct fm_registry_news */
	/* news */
	bool told_here, here_changed, new_session, oldest_changed;
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

/* Wait for something, at most until then (CLOCK_MONOTONIC). Under the mutex. */
void fm_registry_wait_until(struct fm_registry *r, uint64_t until_ns);
/* Free an order that is in no list. */
void fm_registry_order_free(struct fm_order *o);

/* All of the following: the registry's thread only, without the mutex; they return a ZooKeeper result (ZOK, ZNONODE, ...). */

/* Is it the connection that failed, not the request? */
bool fm_registry_is_away(int rc);
/* A new or restored session: make everything that this host wants to be there. */
int fm_registry_setup(struct fm_registry *r);
/* Look at hosts and regions: who is gone, and is what is ours in its place? */
int fm_registry_look_round(struct fm_registry *r);
int fm_registry_remove_record(struct fm_registry *r, uint64_t id);
/* Carry out an order; o->result is set when the return value does not tell of being away. */
int fm_registry_carry_out(struct fm_registry *r, struct fm_order *o);
/* Undo an order that was carried out after its asker had left. Best effort. */
void fm_registry_undo(struct fm_registry *r, struct fm_order *o);
/* Leave word that this host will be back. */
int fm_registry_leave_word(struct fm_registry *r);

/* registry_members.c */

/* Read the membership and watch it on. */
int fm_registry_read_members(struct fm_registry *r);
/* Carry out an order of kind MEMBERS. */
int fm_registry_order_members(struct fm_registry *r, struct fm_order *o);
/* Write what fm_registry_settled() was told. */
int fm_registry_write_settled(struct fm_registry *r);
/* See fm_registry_follow(). */
int fm_registry_look_settled(struct fm_registry *r);

/* registry_nodes.c, for registry_members.c */

#define FM_PATH_BYTES 64
char *fm_registry_path(char to[FM_PATH_BYTES], const char *folder, uint64_t id);
/* Create a persistent node, or one with other flags. */
int fm_registry_create(struct fm_registry *r, const char *path, const char *text, int flags);
/* Read path into r->data, NUL-terminated. *len: bytes. */
int fm_registry_get(struct fm_registry *r, const char *path, int *len, struct Stat *stat);
/* The ids among the children of path, ascending; *ids is the caller's. Other names are passed over. */
int fm_registry_list(struct fm_registry *r, const char *path, uint64_t **ids, size_t *n);
/* Data of this host's node. Takes the mutex. */
#define FM_HOST_TEXT 1100
void fm_registry_host_text(struct fm_registry *r, char *to);

/* registry.c: orders, by any thread but the registry's. */

struct fm_order *fm_registry_order_new(enum fm_order_kind kind);
/* Leave it, and do not wait: it frees itself. */
void fm_registry_order_leave(struct fm_registry *r, struct fm_order *o);
/* Leave it and wait for it. Returns true when it was carried out: then the caller has it back; else it is gone. */
bool fm_registry_order_wait(struct fm_registry *r, struct fm_order *o, unsigned deadline_ms);
/* Its result; frees it. */
int fm_registry_order_finish(struct fm_order *o);

/* Under the mutex: is id a region of ours, or one whose record is about to be removed? */
bool fm_registry_is_mine(const struct fm_registry *r, uint64_t id);
/* Under the mutex: forget a region of ours and have its record removed. */
void fm_registry_end_locked(struct fm_registry *r, uint64_t id);
/* Wake who polls. */
void fm_registry_ring(struct fm_registry *r);
uint64_t fm_registry_now(void);

#endif
