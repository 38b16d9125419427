/*
 * Inside of the ramcloud: store: what its two files share. store_ramcloud.c has the regions, their tables and what a caller asks for; rcbatch.c runs a
 * batch: which master is asked what, and what is made of the answers. One thread a store.
 */
#ifndef FM_STORE_RAMCLOUD_IMPL_H
#define FM_STORE_RAMCLOUD_IMPL_H

#include "rccluster.h"
#include "shm.h"
#include "store.h"
#include "value.h"

#define BATCH    FM_EVICT_BATCH
#define KEY      16u
#define PER_MOST 64u /* objects of one request, whatever it does */
#define MS       1000000ull

/* A copy that could not be deleted. */
struct junk {
	uint64_t page, gen;
};

struct rc_region {
	struct rc_region *next;
	uint64_t id;
	struct fm_seal *seal;
	struct fm_rc_table *table;
	struct junk *junk;
	unsigned njunk, junk_cap;
	uint64_t junk_ns; /* when to try again */
};

enum state { WAIT, SENT, DONE };

/* One object of the batch. */
struct item {
	uint64_t page, gen;
	unsigned char key[KEY];
	uint64_t hash;
	void *buf;
	int value_len;      /* PUT: of value[] */
	enum state state;
	bool full;          /* PUT: refused for want of room */
	bool unsure;        /* PUT: it may have been written, whatever the result */
	unsigned refused;   /* times that its server said RETRY */
	unsigned wrong;     /* GET: values that were not this page's */
	uint64_t not_before_ns;
	struct fm_rc_server *server; /* of the pump under way */
	enum fm_store_result result;
};

struct rpc {
	bool used;
	struct fm_rc_server *server;
	uint64_t map; /* number of the map by which it is that server's */
	unsigned n;
	uint8_t item[PER_MOST];
};

/* A table of a region that ended, still to be dropped. */
struct drop {
	struct drop *next;
	uint64_t region;
};

struct rc_store {
	struct fm_store store;
	struct fm_rc_cluster cluster;
	struct fm_key *key; /* NULL: checksums only */
	struct rc_region *regions;
	struct drop *drops;
	bool monitored, up;
	unsigned looks;
	/* of the batch that runs */
	struct rc_region *region;
	enum fm_rc_multi kind;
	uint64_t begun_ns, deadline_ns; /* of the call, which may be of several batches */
	unsigned n;
	struct item item[BATCH];
	struct rpc rpc[BATCH];
	struct fm_store_req *put; /* between put_begin and put_end */
	unsigned nput;
	unsigned char (*value)[FM_VALUE_MAX]; /* BATCH of them, made by the first put */
	struct fm_value_scratch scratch;
};

/* The region of that id, made when it is new; NULL: no memory. */
struct rc_region *rc_region_of(struct rc_store *s, uint64_t id);

/* A call begins: it ends within twice the timeout, whatever batches it is of. Silences from before do not count. */
void rc_call(struct rc_store *s);
/* Begin an empty batch; s->region is NULL when there is no memory for it. Then add its objects: at most BATCH. */
void rc_begin(struct rc_store *s, uint64_t region, enum fm_rc_multi kind);
void rc_add_item(struct rc_store *s, uint64_t page, uint64_t gen, void *buf);
/* An object's result is known. */
void rc_settle(struct item *i, enum fm_store_result result);
/* Send what can be sent now. Returns the earliest time at which more can be done; UINT64_MAX: when something comes. */
uint64_t rc_pump(struct rc_store *s);
/* Wait until each object has its answer, or is known to have none soon. */
void rc_finish(struct rc_store *s);
/* fm_rc_handler of the masters' replies. */
int rc_on_master(void *arg, struct fm_rc_conn *conn, uint32_t tag, const unsigned char *p, size_t len);

#endif
