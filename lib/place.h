/*
 * Placement: which servers hold a page. Rendezvous (highest random weight) hashing, D. Thaler and C. Ravishankar, "Using
 * name-based mappings to increase hit rates", 1998: each server gets a score from (server, region, page), and the R highest
 * hold the page. Every host that knows the same servers computes the same; a server that joins takes 1/n of the pages, evenly
 * from all others, and one that leaves gives its pages evenly to the rest; no other page moves.
 *
 * All functions are pure: any thread, no allocation. Their results are part of the stored layout: never change them.
 */
#ifndef FM_PLACE_H
#define FM_PLACE_H

#include <stdint.h>

#define FM_PLACE_SERVERS  64u
#define FM_PLACE_REPLICAS 8u

/*
 * A placement epoch: the set of servers that pages written in this epoch lie on. A change of membership opens a new one. The
 * table of servers only grows or has its slots filled anew once no epoch in use names them, so that epochs can share it.
 */
struct fm_epoch {
	uint32_t number;      /* a page's word holds it modulo 1024 */
	uint64_t servers;     /* bit i: server i of hash takes part */
	const uint64_t *hash; /* fm_place_server() of each server, FM_PLACE_SERVERS entries; unused ones are not read */
};

/*
 * A server's hash, from the text that names it for ever ("host:port", "/path/to.sock"; NUL-terminated). The same text gives
 * the same hash on every host. Two servers of one epoch must differ: the caller refuses a list that names one twice.
 */
uint64_t fm_place_server(const char *name);

/*
 * The servers of a page in an epoch, best first, into out as indices of the epoch's table. replicas: 1 .. FM_PLACE_REPLICAS
 * (more count as that many). Returns how many there are: replicas, or all the epoch has when that is fewer; all differ.
 */
unsigned fm_place(const struct fm_epoch *e, uint64_t region, uint64_t page, unsigned replicas, uint8_t *out);

#endif
