/*
 * A RAMCloud cluster as one thread sees it: its coordinator, its tables' maps and the connections to its masters.
 *
 * Nothing here waits but in fm_rc_cluster_wait(), and there 5 ms at most. What is needed of the coordinator is asked one at a time: the
 * caller says again and again what it needs, and looks whether it is there.
 *
 * The coordinator's address comes from ZooKeeper, and is read anew whenever its connection is lost; the znode outlives a dead coordinator. A
 * table's map is forgotten when a master says that a key is not its own, or is lost.
 */
#ifndef FM_RCCLUSTER_H
#define FM_RCCLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "rcconn.h"
#include "rclookup.h"
#include "rcuri.h"

#define FM_RC_SLICE_MS 5

/* A master. */
struct fm_rc_server {
	struct fm_rc_server *next;
	struct fm_rc_place place;
	bool known;                  /* conn's address is set */
	struct fm_rc_lookup *lookup; /* of its name */
	uint64_t lookup_ns;          /* do not look it up before */
	uint64_t losses;             /* conn's, when it was looked up */
	uint64_t not_before_ns;      /* it asked to be left alone until then; or its name cannot be resolved */
	struct fm_rc_conn conn;
};

struct fm_rc_range {
	uint64_t start, end;         /* hashes; end is inclusive */
	struct fm_rc_server *server; /* NULL: nobody now (recovering), or nobody that can be reached over tcp */
};

struct fm_rc_table {
	struct fm_rc_table *next;
	char name[FM_RC_NAME];
	uint64_t id;         /* 0: not known */
	bool absent;         /* the coordinator says: there is no such table */
	bool fresh;          /* the map can be used */
	bool gaps;           /* ... but some tablet has no master now */
	bool denied;         /* since it was taken a master said that a tablet is not its own */
	uint64_t map;        /* its number */
	uint64_t fetch_ns;   /* CLOCK_MONOTONIC: do not ask for the map before */
	unsigned misses;     /* maps in a row that were of no use */
	struct fm_rc_range *range;
	unsigned n;
};

enum fm_rc_op { FM_RC_OP_NONE, FM_RC_OP_ID, FM_RC_OP_CREATE, FM_RC_OP_CONFIG, FM_RC_OP_DROP, FM_RC_OP_SERVERS };

struct fm_rc_cluster {
	struct fm_rc_uri uri;
	/* the coordinator */
	struct fm_rc_conn coord;
	bool known; /* its address is set */
	struct fm_rc_lookup *lookup;
	uint64_t lookup_ns;     /* begun; or when none runs: do not begin before */
	uint64_t not_before_ns; /* it asked to be left alone until then */
	enum fm_rc_op op;       /* under way */
	struct fm_rc_table *op_table; /* NULL: whoever asked has gone */
	uint64_t op_ns;         /* it began */
	uint32_t op_status;     /* of the last op that was answered */
	uint64_t ops;           /* answered so far */
	int error;              /* -errno of the last failure to reach it; 0 it answered since */
	char why[FM_RC_WHY];
	unsigned masters;       /* up, as the last server list said */
	uint64_t heard_ns;      /* last answer */

	struct fm_rc_server *servers;
	struct fm_rc_table *tables;
	fm_rc_handler *handler; /* of masters' replies */
	void *arg;
	void (*idle)(void *); /* called every 5 ms while waiting; may be NULL */
	void *idle_arg;
	uint64_t idle_ns;
	uint64_t rnd;
};

/* uri as parsed; nothing is connected yet. */
void fm_rc_cluster_init(struct fm_rc_cluster *c, const struct fm_rc_uri *uri);
void fm_rc_cluster_fini(struct fm_rc_cluster *c);

/* A caller begins to wait: silences from before do not count. */
void fm_rc_cluster_begin(struct fm_rc_cluster *c);

/* The table of that name, known or not; NULL: no memory. It stays until fm_rc_cluster_forget(). */
struct fm_rc_table *fm_rc_cluster_table(struct fm_rc_cluster *c, const char *name);
void fm_rc_cluster_forget(struct fm_rc_cluster *c, struct fm_rc_table *t);

/*
 * Bring t nearer to having a fresh map, or to being known to be absent (which create forbids: it is made). Cheap when there is nothing to
 * do. Returns true when it is one of both.
 */
bool fm_rc_cluster_need(struct fm_rc_cluster *c, struct fm_rc_table *t, bool create);
/* t's map was wrong, or has a gap. */
void fm_rc_cluster_stale(struct fm_rc_table *t, uint64_t not_before_ns);
/*
 * The master that has that hash by t's map of that number says that it has not. Once: the map is asked for anew. When it still says so, then nobody has
 * that tablet for the time being, whatever the map says: other tablets go on.
 */
void fm_rc_cluster_denied(struct fm_rc_table *t, uint64_t map, uint64_t hash);
/* Who has that hash by t's fresh map? Returns false when the map has no such hash; *out NULL: nobody just now. */
bool fm_rc_cluster_owner(const struct fm_rc_table *t, uint64_t hash, struct fm_rc_server **out);
/* Can the master be asked now? Looks its name up when need be. */
bool fm_rc_cluster_usable(struct fm_rc_cluster *c, struct fm_rc_server *v, uint64_t now);
/* Will the coordinator answer something within patience_ns, as far as can be seen? */
bool fm_rc_cluster_hopeful(const struct fm_rc_cluster *c, uint64_t now, uint64_t patience_ns);

/* Poll all connections that owe something, 5 ms at most and not beyond until_ns; handle what comes. */
void fm_rc_cluster_wait(struct fm_rc_cluster *c, uint64_t until_ns);

/*
 * Have the coordinator do one thing (DROP, SERVERS, ID; t NULL for SERVERS) and wait for it until until_ns. Returns 0, -ENODATA (ID: no
 * such table), -EAGAIN (it asked to be left alone for longer: try again), or -errno with one line in why (FM_RC_WHY bytes).
 */
int fm_rc_cluster_do(struct fm_rc_cluster *c, enum fm_rc_op op, struct fm_rc_table *t, uint64_t until_ns, char *why);

/* A time in [min, max] microseconds, ns. */
uint64_t fm_rc_cluster_delay(struct fm_rc_cluster *c, uint32_t min_us, uint32_t max_us);

#endif
