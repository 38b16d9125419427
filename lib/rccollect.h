/*
 * What other hosts leave in a RAMCloud: signs of life, and the tables of dead hosts' regions. Blocking, for a thread that may wait; one thread a
 * handle.
 *
 * RAMCloud's objects do not expire, so a sign of life is one that changes: table `fmhosts`, key the host's id (8 bytes, little endian), value
 * a number that grows (8 bytes) and the seconds after which a host that has not changed it is dead (4 bytes).
 */
#ifndef FM_RCCOLLECT_H
#define FM_RCCOLLECT_H

#include <stdint.h>

struct fm_rccollect;

/* Returns a handle for the store of that URI, not connected yet, or NULL with one line in why (256 bytes). */
struct fm_rccollect *fm_rccollect_open(const char *uri, char *why);
void fm_rccollect_close(struct fm_rccollect *c);

/* Leave this host's sign of life. Returns 0 or -errno. Waits timeout_ms at most. */
int fm_rccollect_beat(struct fm_rccollect *c, uint64_t host, uint32_t ttl_s, unsigned timeout_ms);

/* Read another host's. Returns 1 and both values, 0 when there is none, or -errno: not known. */
int fm_rccollect_beats(struct fm_rccollect *c, uint64_t host, unsigned timeout_ms, uint64_t *beat, uint32_t *ttl_s);

/* Drop the table of a region; it need not be there. Returns 0, or -errno with one line in why (256 bytes). */
int fm_rccollect_drop(struct fm_rccollect *c, uint64_t region, unsigned timeout_ms, char *why);

#endif
