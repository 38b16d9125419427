/*
 * URIs of memcached clusters:
 *
 *   memcached://host:port[,host:port...][?option&option...]
 *   memcached:/path/to.sock[,/other.sock...][?option...]
 *   memcached:--SERVER=host:port [--SERVER=...]     libmemcached's own option string
 *
 * Options: lossy=1 (take servers that evict when full), timeout=MS (a server that moves no byte for so long is given up for
 * the moment; 1000),
 * gone=SECONDS (a server whose address refuses connections for so long is dead, and what it held lost; 10), away=SECONDS (a server that
 * does not answer for so long is left out of placement until it answers again; 30).
 */
#ifndef FM_MCURI_H
#define FM_MCURI_H

#include <stdbool.h>
#include <stdint.h>

#include "mcconn.h"

#define FM_MC_SERVERS 64

struct fm_mc_uri {
	char server[FM_MC_SERVERS][FM_MC_ADDRESS]; /* as given, with the default port 11211 added where one is missing */
	unsigned nservers;
	bool lossy;
	unsigned timeout_ms; /* 10..60000 */
	unsigned gone_s;     /* 1..86400 */
	unsigned away_s;     /* 1..86400 */
};

/*
 * Parse uri (NUL-terminated). Resolves no name, touches nothing outside. Returns 0, or -EINVAL with one line in why (256 bytes): no
 * server, a server named twice, too many, a bad address or option. Any thread.
 */
int fm_mc_uri_parse(const char *uri, struct fm_mc_uri *out, char *why);

#endif
