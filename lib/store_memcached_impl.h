/*
 * Inside of the memcached: store: what its files share. store_memcached.c has opening, regions, and what a batch is: where its pages are, and
 * what came of asking there; mcget.c asks for pages; mcput.c stores and deletes them. Nobody else includes it. One thread a store.
 */
#ifndef FM_STORE_MEMCACHED_IMPL_H
#define FM_STORE_MEMCACHED_IMPL_H

#include <stdbool.h>

#include "mcservers.h"
#include "place.h"
#include "store.h"
#include "value.h"

#define BATCH     FM_MC_BATCH
#define KEY_BYTES 40
#define SENT_BESIDE 0x80 /* in sent[]: a request whose reply says nothing about the page's outcome */

_Static_assert(BATCH <= SENT_BESIDE, "an index and a bit share a byte of sent[]");

/* What came of one request on one of its servers. */
enum outcome { UNTRIED = 0, ASKED, GOOD, MISSING, WRONG, GONE, FULL, UNKNOWN };

/* The seal of a region, made by mc_region_begin(). */
struct sealed_region {
	struct sealed_region *next;
	uint64_t region;
	struct fm_seal *seal;
};

struct mc_store {
	struct fm_store store;
	struct fm_key *key; /* NULL: checksums only */
	struct sealed_region *seals;
	void (*idle)(void *);
	void *idle_arg;
	/* of the batch that runs */
	struct fm_seal *seal;
	struct fm_store_req *req;
	uint64_t region;
	unsigned n, copies[BATCH];
	uint8_t place[BATCH][FM_PLACE_REPLICAS];
	uint8_t outcome[BATCH][FM_PLACE_REPLICAS];
	char key_text[BATCH][KEY_BYTES];
	struct fm_value_scratch scratch;
	struct fm_mc_servers servers;
};

/* Begin a batch: where the pages are, their keys, no outcome yet. */
void mc_begin(struct mc_store *s, uint64_t region, struct fm_store_req *r, unsigned n);

enum mc_what { MC_GET, MC_PUT, MC_DELETE };

/* Run what was sent; then every request without a reply has an outcome too. */
void mc_run(struct mc_store *s, enum mc_what what, fm_mc_handler *handler);

/* Can the server be asked now? If not, the request's outcome there says so. */
bool mc_can_ask(struct mc_store *s, unsigned i, struct fm_mc_server *v);

void mc_set_outcome(struct mc_store *s, unsigned i, const struct fm_mc_server *v, enum outcome o);

/* The reply to the oldest request that v was sent, or that there will be none. */
void mc_settle(struct mc_store *s, struct fm_mc_server *v, enum outcome o);

/* What the server was sent, or was not, it may do late or never: then it has a key that no word names. */
void mc_note_stale(const struct fm_mc_server *v);

/* The key of a page's value; returns its length. */
size_t mc_key_of(char key[KEY_BYTES], uint64_t region, uint64_t page, uint64_t gen);

/* The servers of an epoch; 0: that epoch is not known. */
uint64_t mc_known_servers(const struct mc_store *s, uint32_t tag);

/*
 * Where the copies of a page are by an epoch, best first. An epoch that is not known (its table was lost with daemon.state) leaves
 * every server as a candidate.
 */
unsigned mc_placed(struct mc_store *s, uint64_t region, uint64_t page, uint32_t tag, uint8_t out[FM_PLACE_REPLICAS]);

/* struct fm_store_ops. */
void mc_get(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n);
void mc_get_begin(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n);
void mc_get_end(struct fm_store *store);
void mc_put(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n);
void mc_put_begin(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n);
void mc_put_end(struct fm_store *store);
void mc_del(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n);

#endif
