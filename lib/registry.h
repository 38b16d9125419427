/*
 * The registry: what the hosts of a cluster know of each other, in ZooKeeper. INTERFACES.md has the znodes.
 *
 * Theory of operation. One thread of the registry's own talks to ZooKeeper; the callbacks of ZooKeeper's client only take note
 * under a mutex and wake that thread. Who calls a function below leaves an order with it and waits for the result, never longer
 * than the deadline given: what comes to pass later is undone by the registry's thread. What this host wants to be in the registry
 * (its host node, a record for each of its regions) is kept here, and is put right after each reconnection, and in a new session
 * when the old one expired.
 *
 * The registry is away from the moment the connection is lost until it is made again and everything is in place; meanwhile only
 * new regions have to wait.
 *
 * Functions that take a struct fm_registry may be called by any thread, but fm_registry_poll() and fm_registry_close() by one.
 */
#ifndef FM_REGISTRY_H
#define FM_REGISTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "members.h"
#include "reguri.h"

struct fm_registry;

/* How to open one. */
struct fm_registry_options {
	const struct fm_registry_uri *uri; /* copied; not `none` */
	uint64_t host_id;                  /* not 0; at any time one process alone uses it */
	const char *host_text;             /* data of the host's node, copied; at most 900 bytes */
	const char *auth;                  /* user:password, copied; what we make can then only be used by who gives the same; NULL: by all */
	bool settles;                      /* the host has pages by the store's membership: its node says by which (fm_registry_settled()) */
	bool must_answer;                  /* fail when it cannot be used within the deadline; else it is away at first */
};

/* What changed since the last fm_registry_poll(). */
struct fm_registry_news {
	bool here;            /* now: connected, and everything in place; else away */
	bool here_changed;    /* ... is not as it was told last */
	bool new_session;     /* the old session had expired: everything was made again */
	unsigned remade;      /* records of regions of ours that somebody had removed, and that were made again */
	uint64_t remade_id;   /* one of these */
	bool members_changed; /* /fm/store/members */
	const char *members;  /* its data, NUL-terminated, valid until the next poll; NULL: no such znode */
	int members_version;  /* version of the znode */
	bool oldest_changed;  /* see fm_registry_follow() */
	uint64_t oldest;      /* no host has pages by an older membership epoch; at most the epoch of then; 0 unknown */
	uint64_t behind;      /* a host that has pages by that one; 0: none is behind the membership */
	char why[FM_REGISTRY_WHY]; /* away: the reason; else "" */
};

/* A region whose host is dead: somebody must delete its keys. */
struct fm_registry_claim {
	uint64_t id;   /* of the region */
	uint64_t host; /* ... that it was on; our own: a region that ended while its record could not be removed */
	bool orphan;   /* of our own host */
	struct fm_registry_record record;
};

/*
 * Start, and wait for the registry at most deadline_ms. Returns 0 and *out, or -errno with one line in why: only when it
 * must answer -ENOENT (the chroot does not exist), -EACCES (what is there is not open to us) and -EHOSTUNREACH (no server answers, a name cannot be resolved); -ENOMEM, -EAGAIN
 * (no thread).
 */
int fm_registry_open(const struct fm_registry_options *o, unsigned deadline_ms, struct fm_registry **out, char *why);

/*
 * End the session: the host's node disappears. stopped: first leave word that this host will be back, so that nobody collects
 * what its regions stored. Waits at most deadline_ms for ZooKeeper; a thread that hangs longer is left to the end of the process,
 * which must be near then. NULL is allowed.
 */
void fm_registry_close(struct fm_registry *r, bool stopped, unsigned deadline_ms);

/* A descriptor, the registry's own, that is readable when fm_registry_poll() has something to tell. */
int fm_registry_fd(const struct fm_registry *r);

/* Tell what changed. Never waits. */
void fm_registry_poll(struct fm_registry *r, struct fm_registry_news *news);

/* Connected and everything in place, as far as is known now? Never waits. */
bool fm_registry_here(struct fm_registry *r);

/*
 * A region of this host begins: record it under a fresh random id that no other region has (rec->host is set). Waits at most
 * deadline_ms, and when the registry has been away longer than that already, not at all. Returns 0 and *id, or -EAGAIN (away; nothing remains recorded),
 * -ENOMEM, -EINVAL (rec cannot be formatted).
 */
int fm_registry_region_new(struct fm_registry *r, const struct fm_registry_record *rec, unsigned deadline_ms, uint64_t *id);

/* A region of this host that began before this registry was opened: make sure that it has a record. Does not wait. 0, -ENOMEM or -EINVAL. */
int fm_registry_region_keep(struct fm_registry *r, uint64_t id, const struct fm_registry_record *rec);

/* Every region of this host is known by now: records of ours of other regions may be claimed. */
void fm_registry_all_kept(struct fm_registry *r);

/* A region of this host ended, and its keys are deleted: remove its record, as soon as the registry is here. Does not wait. */
void fm_registry_region_end(struct fm_registry *r, uint64_t id);

/*
 * Take one region whose host has been gone for longer than the grace time: this host alone has it until fm_registry_claim_done().
 * One at a time. Returns 0 and *claim, -ENOENT (none), -EAGAIN (away, or not within deadline_ms), -ENOMEM.
 */
int fm_registry_claim(struct fm_registry *r, unsigned deadline_ms, struct fm_registry_claim *claim);

/* Is the host of a claimed region back, or the registry away? Then its keys must not be touched. */
bool fm_registry_claim_lost(struct fm_registry *r, const struct fm_registry_claim *claim, unsigned deadline_ms);

/* Give it back. collected: its keys are gone, remove its record too; else it is tried again later. */
void fm_registry_claim_done(struct fm_registry *r, const struct fm_registry_claim *claim, bool collected);

/*
 * Make a change of the store's membership, from whatever it is by then: read, changed and written in one version step, and tried again
 * when another host was faster. Waits at most deadline_ms; 0: does not wait, and the result is not known. Returns 0 (done, or there was
 * nothing to do; the next fm_registry_poll() tells the membership that holds now, unless the connection broke just then), or -errno with one line in why (FM_REGISTRY_WHY bytes): those of fm_members_change(); -ESTALE (no host has published one
 * yet), -EPROTO (what stands there is not one), -EIO (ZooKeeper refused); -EAGAIN (away, or not within deadline_ms: it may have been
 * done, and may be asked for again), -ENOMEM.
 */
int fm_registry_members_change(struct fm_registry *r, const struct fm_members_change *c, unsigned deadline_ms, char *why);

/*
 * There is no membership: make it this one, unless another host is faster. Its epoch becomes a greater one when the registry has known
 * that one already. Does not wait: the news tell. Returns 0 or -ENOMEM.
 */
int fm_registry_members_publish(struct fm_registry *r, const struct fm_members *m);

/*
 * No page of this host is placed by an older membership epoch than that: say so in its node, and in the records of those n of its
 * regions. Does not wait; written again in a new session. Regions that begin later say the same from their beginning. A smaller epoch than
 * before takes it back.
 */
void fm_registry_settled(struct fm_registry *r, uint64_t epoch, const uint64_t *ids, size_t n);

/* Look every 0.5 to 16 s (less often while nothing happens) which is the oldest membership epoch that any host, alive or not, still has pages by; the news tell. */
void fm_registry_follow(struct fm_registry *r, bool on);

#endif
