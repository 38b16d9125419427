/*
 * Stores: where pages go that are not on this host. `get / put / delete` in batches, each page with its own result.
 *
 * A handle belongs to one thread. Regions are told apart by their 64-bit ids; a page's copy is named by region, page number and
 * generation, and is immutable: a put of a new generation never changes what a get of the old one may return half-way.
 */
#ifndef FM_STORE_H
#define FM_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cluster.h"
#include "members.h"

/* What became of one page of a batch. */
enum fm_store_result {
	FM_STORE_OK = 0,
	FM_STORE_FULL, /* put: no room; nothing was stored, try again later */
	FM_STORE_DOWN, /* no answer: try again later */
	FM_STORE_LOST, /* get: there is no right copy of this page and generation anywhere, and there will be none */
};

struct fm_store_req {
	uint64_t page;    /* page number in the region */
	uint64_t gen;     /* generation, >= 1 */
	uint64_t old_gen; /* put: a copy of this generation may be there, and is deleted, whatever comes of the put; 0 none */
	uint32_t epoch;     /* tag of the placement epoch (page.h) of gen; of no meaning to dir: */
	uint32_t old_epoch; /* ... of old_gen */
	bool moving;        /* put: a copy of this very generation may be there by another epoch: when the put fails, delete nothing.
			     * delete: only from the servers of epoch that are none of old_epoch's */
	bool may_return;    /* get, out: LOST only because a server is taken for dead, or is not known: it may come back, and have it */
	bool once;          /* delete: nobody asks again: what cannot be deleted now is the store's to delete later, if it can */
	void *buf;      /* 4096 bytes: filled by get, read by put, unused by delete */
	/*
	 * moving: the page is stored again under the generation that it has, and must be sealed to the very bytes that it was (seal.h). get: 4096 bytes where a
	 * value goes, as it was found, of which encoding would not make the same again; NULL: not wanted. put: raw_len bytes there, 0 none.
	 */
	void *raw;
	uint32_t raw_len;
	enum fm_store_result result;
};

struct fm_store;

/* How to open a store. All zero: one copy, no key: fit for dir:. */
struct fm_store_options {
	unsigned replicas;    /* copies of each page on distinct servers; 0 is 1 */
	const char *key_file; /* network stores seal with it, and make it when missing; NULL none */
	bool no_seal;         /* network stores: in the clear, with a checksum */
	struct fm_cluster_shm *cluster; /* the host's table of servers and epochs; NULL: the handle makes one of its own from the URI */
	bool make_cluster;    /* put the URI's servers into cluster: the daemon's first handle */
	const struct fm_members *members; /* with make_cluster: the registry's membership, instead of the URI's servers; NULL: not known */
	bool registry;        /* with make_cluster: a registry decides; until it is known, a table that has servers stays as it is */
	bool again;           /* one handle more of a store that was found to be fit: it is not looked at again, and nothing is waited for */
	bool must_answer;     /* every member must answer now; else one that is away is waited for later */
};

/* What a kind of store must do; see the functions of the same names below. */
struct fm_store_ops {
	const char *scheme; /* "dir:" */
	bool by_generation;  /* each generation of a page has a place of its own: copies that no word names must be deleted */
	bool lists_no_keys;  /* region_end cannot find what is stored: the keys are deleted one by one before it */
	int (*check)(const char *uri, const struct fm_store_options *o, char *why);
	int (*open)(const char *uri, const struct fm_store_options *o, struct fm_store **out, char *why);
	void (*close)(struct fm_store *s);
	void (*monitor)(struct fm_store *s); /* see fm_store_monitor(); NULL: nothing to look after */
	void (*set_idle)(struct fm_store *s, void (*idle)(void *), void *arg); /* NULL: never waits where it could be called */
	int (*region_begin)(struct fm_store *s, uint64_t region); /* NULL: nothing to prepare */
	void (*get)(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n);
	void (*get_begin)(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n); /* NULL, with get_end: get does it all */
	void (*get_end)(struct fm_store *s);
	void (*put)(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n);
	void (*put_begin)(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n); /* NULL, with put_end: put does it all */
	void (*put_end)(struct fm_store *s);
	void (*del)(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n);
	void (*forget)(struct fm_store *s, uint64_t region);
	int (*region_end)(struct fm_store *s, uint64_t region);
	int (*usage)(struct fm_store *s, uint64_t *used_bytes, uint64_t *limit_bytes);
	unsigned (*servers)(const struct fm_store *s); /* NULL: not known, or in the cluster's table */
};

/* First member of every kind's own structure. */
struct fm_store {
	const struct fm_store_ops *ops;
};

#define FM_STORE_WHY 256 /* bytes of a why buffer */

/*
 * o: NULL is all zero. Are uri and options well-formed, and do they fit each other? Touches nothing outside. Returns 0, or -EINVAL with one line in
 * why ("what: why", FM_STORE_WHY bytes).
 */
int fm_store_check(const char *uri, const struct fm_store_options *o, char *why);

/*
 * Open a handle. Returns 0 and *out (owned by the caller, fm_store_close), or -errno with one line in why. -EINVAL: bad URI or
 * options.
 */
int fm_store_open(const char *uri, const struct fm_store_options *o, struct fm_store **out, char *why);

/*
 * Have idle(arg) called at least every 5 ms while a call below waits for a server (a fault shard must read its events
 * meanwhile). It must not use the handle. A store that waits in the kernel (a disk) cannot call it.
 */
static inline void fm_store_set_idle(struct fm_store *s, void (*idle)(void *), void *arg)
{
	if (s->ops->set_idle)
		s->ops->set_idle(s, idle, arg);
}

/* Close a handle; NULL is allowed. What is stored stays. */
void fm_store_close(struct fm_store *s);

/*
 * This handle will be used for that region: make what it needs (the region's key), so that nothing is made on the fault path. Before
 * the first get, put or delete of the region. Returns 0 or -errno.
 */
static inline int fm_store_region_begin(struct fm_store *s, uint64_t region)
{
	return s->ops->region_begin ? s->ops->region_begin(s, region) : 0;
}

/*
 * Read, write or delete n pages of a region. Each request's result is set. A put that is FM_STORE_OK was acknowledged by the
 * store itself. A delete that is FM_STORE_OK left no copy of the page with a generation up to gen. The page protocol makes
 * sure that nobody else puts or deletes the same page meanwhile.
 */
static inline void fm_store_get(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	s->ops->get(s, region, r, n);
}
/*
 * A get in two halves, so that the store does its part while the caller does something else: r and what it points to are the store's until
 * fm_store_get_end(), with the same arguments, which waits for the results of all (FM_EVICT_BATCH at most). No other call on the handle in between.
 */
static inline void fm_store_get_begin(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	if (s->ops->get_begin)
		s->ops->get_begin(s, region, r, n);
}
static inline void fm_store_get_end(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	if (s->ops->get_begin)
		s->ops->get_end(s);
	else
		s->ops->get(s, region, r, n);
}
static inline void fm_store_put(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	s->ops->put(s, region, r, n);
}
/*
 * A put in two halves, so that the caller can do other work while the store does its: r and what it points to are the store's until
 * fm_store_put_end(), which waits until each request (at most FM_EVICT_BATCH) has its result. No other call on the handle in between.
 */
static inline void fm_store_put_begin(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	(s->ops->put_begin ? s->ops->put_begin : s->ops->put)(s, region, r, n);
}
static inline void fm_store_put_end(struct fm_store *s)
{
	if (s->ops->put_end)
		s->ops->put_end(s);
}
static inline void fm_store_delete(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	s->ops->del(s, region, r, n);
}

/* This handle will not be used for that region any more: close what is cached for it. */
static inline void fm_store_forget(struct fm_store *s, uint64_t region)
{
	s->ops->forget(s, region);
}

/* The region ended: free everything stored for it. Returns 0 (also when there was nothing) or -errno. */
static inline int fm_store_region_end(struct fm_store *s, uint64_t region)
{
	return s->ops->region_end(s, region);
}

/*
 * Look after the store, about once a second: which servers are up, and whether a new placement epoch is due. Writes options.cluster.
 * fm-faultd's main thread only. May wait for a slow server, 100 ms at most.
 */
static inline void fm_store_monitor(struct fm_store *s)
{
	if (s->ops->monitor)
		s->ops->monitor(s);
}

/* Bytes used and the most there can be (0: not known). Returns 0, or -errno when the store does not answer. */
static inline int fm_store_usage(struct fm_store *s, uint64_t *used_bytes, uint64_t *limit_bytes)
{
	return s->ops->usage(s, used_bytes, limit_bytes);
}

/* Servers that were up when the store was last looked at; 0: not known. Waits for nothing. */
static inline unsigned fm_store_servers(const struct fm_store *s)
{
	return s->ops->servers ? s->ops->servers(s) : 0;
}

/*
 * Add a memcached server to the table, or make a drained one a member again; the next fm_store_monitor() opens an epoch with it. Returns its
 * slot, or -errno with one line in why. fm-faultd's main thread only. May wait for DNS.
 */
int fm_store_memcached_add(struct fm_cluster_shm *c, const char *address, char *why);

/*
 * May a server at address join the memcached store s? It must answer, be fit, and be none of the store's servers under another
 * name. Returns 0 or -errno with one line in why. fm-faultd's main thread only. May wait for DNS, and some seconds for the server.
 */
int fm_store_memcached_probe(struct fm_store *s, const char *address, char *why);

/*
 * Give the servers of the table the roles that the membership says; those that it does not name have left. A server whose address is that
 * of one in the table under another name is that one. Returns how many members could not be added (no such host, the table is full), of
 * which why has the last. fm-faultd's main thread only. May wait for DNS.
 */
unsigned fm_store_memcached_apply(struct fm_cluster_shm *c, const struct fm_members *m, char *why);

/*
 * The paths that handles of the store open or connect to later on: dir:'s directory, or the Unix sockets in the cluster's table. Into out, cap
 * of them at most; they point into uri and c. Returns their number.
 */
size_t fm_store_paths(const char *uri, const struct fm_cluster_shm *c, const char **out, size_t cap);

extern const struct fm_store_ops fm_store_dir, fm_store_memcached, fm_store_ramcloud;

/* Are all 4096 bytes zero? page is 8-byte aligned. */
bool fm_page_is_zero(const void *page);

#endif
