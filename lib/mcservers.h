/*
 * The servers of a memcached store as one handle sees them: a connection to each, beside the host's common table of servers and
 * placement epochs (cluster.h). fm-faultd's main thread looks after that table: it asks every server for its figures once a
 * second, decides which are up, down or dead, and opens a new epoch when those that can take pages are others than before.
 *
 * Everybody reads the table; fm-faultd's main thread alone writes it. A struct fm_mc_servers belongs to one thread.
 */
#ifndef FM_MCSERVERS_H
#define FM_MCSERVERS_H

#include <stdbool.h>
#include <stdint.h>

#include "cluster.h"
#include "mcconn.h"
#include "mcuri.h"
#include "place.h"
#include "shm.h"
#include "store.h"

#define FM_MC_BATCH FM_EVICT_BATCH /* requests of a batch */

/* This handle's side of a server; its index is the slot in the cluster's table. */
struct fm_mc_server {
	struct fm_mc_address address;
	struct fm_mc_conn conn;
	struct fm_mc_servers *all;
	uint64_t asked_ns;         /* CLOCK_MONOTONIC: asked for its figures then, and it has not answered yet; 0: not */
	uint64_t refused_ns;       /* keeper: CLOCK_MONOTONIC: connections were refused from then on, whenever it looked; 0: not */
	uint64_t refused_last_ns;  /* ... and the last one */
	uint8_t sent[2 * FM_MC_BATCH]; /* requests of this batch, in the order of their replies; the store knows more of them */
	unsigned nsent, next;      /* ... how many, and the first whose reply is to come */
};

struct fm_mc_servers {
	struct fm_mc_uri uri;
	struct fm_cluster_shm *cluster, *own_cluster; /* own: when nobody gave us one */
	bool keeper;                                  /* we write the table: it is our own, or we are fm-faultd's main thread */
	unsigned n;                                   /* slots that this handle knows */
	bool epoch_due;                               /* monitor: a new epoch could not be opened yet */
	char refusal[FM_STORE_WHY];                   /* why a server was refused last */
	uint64_t hash[FM_PLACE_SERVERS];
	struct fm_mc_server server[FM_SERVERS];
};

/*
 * Open: s->uri is parsed, the rest zero. Fills the table that o names when it says so, or one of its own from the URI when it names none, and
 * opens the first epoch when there is none. Connects to nothing. Returns 0, or -errno with one line in why (FM_STORE_WHY bytes);
 * fm_mc_servers_close() in any case.
 */
int fm_mc_servers_open(struct fm_mc_servers *s, const struct fm_store_options *o, char *why);
void fm_mc_servers_close(struct fm_mc_servers *s);

/*
 * Connect to all servers at once. Returns 0; or when must_answer -errno with why: -EPROTO (a member is not fit), -EINVAL (two are one
 * process), or what was wrong with the connection. Waits 3 s at most for each that is silent, all at once.
 */
int fm_mc_servers_contact(struct fm_mc_servers *s, bool must_answer, char *why);

/* Know the servers that joined the table since we last looked. */
void fm_mc_servers_sync(struct fm_mc_servers *s);

/* Bitmap of all slots that this handle knows. */
static inline uint64_t fm_mc_servers_all(const struct fm_mc_servers *s)
{
	return s->n == 64 ? UINT64_MAX : (1ull << s->n) - 1;
}

/* The server of a connection of ours. */
static inline struct fm_mc_server *fm_mc_server_of(struct fm_mc_conn *c)
{
	return (struct fm_mc_server *)((char *)c - offsetof(struct fm_mc_server, conn));
}

/* Its entry in the table. */
static inline struct fm_server_shm *fm_mc_server_shm(const struct fm_mc_server *v)
{
	return &v->all->cluster->server[v - v->all->server];
}

/* fm_mc_greeter: is the server behind a new connection of ours fit? Leaves the reason in refusal when not. */
int fm_mc_server_greet(void *arg, struct fm_mc_conn *c);

/* May the two be one process under two names, by what they said of themselves? */
bool fm_mc_server_same(const struct fm_mc_server *a, const struct fm_mc_server *b);

/*
 * Has it refused connections for so long that it is taken for dead, and what was in its memory for gone? The monitor's verdict alone: what one
 * thread was refused now and then says nothing of the time between.
 */
static inline bool fm_mc_server_dead(const struct fm_mc_server *v)
{
	return atomic_load(&fm_mc_server_shm(v)->state) == FM_SERVER_DEAD;
}

/* Did the daemon's last look find it silent? Then others are asked first. */
static inline bool fm_mc_server_looks_down(const struct fm_mc_server *v)
{
	return atomic_load(&fm_mc_server_shm(v)->state) != FM_SERVER_UP;
}

/* See fm_store_memcached_probe(). */
int fm_mc_servers_probe(struct fm_mc_servers *s, const char *address, char *why);

/* fm_store_monitor() and fm_store_usage() of such a store. */
void fm_mc_servers_monitor(struct fm_mc_servers *s);
int fm_mc_servers_usage(struct fm_mc_servers *s, uint64_t *used_bytes, uint64_t *limit_bytes);

#endif
