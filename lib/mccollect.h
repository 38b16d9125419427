/*
 * Deleting what a dead host left in a memcached server: its regions' keys are listed by the server itself (`lru_crawler metadump
 * all`) and deleted, until a listing finds none. And a sign of life that a host leaves in its store's servers: as long as it is
 * there, its host reaches the store, and is not dead, whatever the registry says.
 *
 * Everything here waits for servers, on one thread: not for a thread that serves faults. Sources: doc/protocol.txt of memcached 1.6.
 */
#ifndef FM_MCCOLLECT_H
#define FM_MCCOLLECT_H

#include <stdbool.h>
#include <stdint.h>

#include "mcconn.h"

/* What to delete, how long to wait, and what was done. */
struct fm_mccollect {
	uint64_t region;
	/* Instead of region: is a key one that no page word names, and none ever will? Each that the server has is asked about. NULL: region */
	bool (*garbage)(void *arg, uint64_t region, uint64_t page, uint64_t gen);
	unsigned timeout_ms;     /* a server that moves no byte for so long is given up; 0 is 5000 */
	bool (*stop)(void *arg); /* asked every 100 ms or so: give up? NULL: no */
	void *arg; /* of both */
	uint64_t deleted; /* out: keys deleted, added to */
};

/*
 * Delete every key of c->region on one server; or with c->garbage those that one listing has and that it says so of. Returns 0 (none is left), or -errno with one line in why (256 bytes): -ECONNREFUSED and -ENOENT
 * (no server there: what it held is gone with it), -ETIMEDOUT, -ECANCELED (stop), -EPROTO (it cannot list its keys, or is no
 * memcached), -EBUSY (keys keep coming, or another listing does not end).
 */
int fm_mccollect_server(const struct fm_mc_address *a, struct fm_mccollect *c, char *why);

/*
 * Is a line of a listing (without its end) about a key of region? Returns the key, into the line, and *key_len; or NULL. Pure; any thread.
 */
const char *fm_mccollect_key(const char *line, size_t len, uint64_t region, size_t *key_len);

/* Read a line of a listing about any page's key: region, page and generation. Returns the key, as above. Pure; any thread. */
const char *fm_mccollect_parse(const char *line, size_t len, uint64_t *region, uint64_t *page, uint64_t *gen, size_t *key_len);

/* Leave a sign of life of host on a server, for ttl_s seconds (1..2592000). Returns 0 or -errno. */
int fm_mccollect_beat(const struct fm_mc_address *a, uint64_t host, unsigned ttl_s, unsigned timeout_ms);

/* Is a sign of life of host there? Returns 1, 0, or -errno. */
int fm_mccollect_beats(const struct fm_mc_address *a, uint64_t host, unsigned timeout_ms);

#endif
