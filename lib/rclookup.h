/*
 * Looking up where a RAMCloud server is, on a thread of its own: ZooKeeper's client and name services wait in calls that a fault shard
 * must not make. One lookup a thread; whoever asked looks now and then whether it is done.
 */
#ifndef FM_RCLOOKUP_H
#define FM_RCLOOKUP_H

#include <netinet/in.h>

#include "rcuri.h"

struct fm_rc_lookup;

/*
 * Begin. zookeeper: "host:port,...", node: path of the znode that holds the coordinator's service locator; or zookeeper NULL or "": resolve
 * place. All are copied. Returns a handle, to be given to fm_rc_lookup_drop(), or NULL (no memory, no thread).
 */
struct fm_rc_lookup *fm_rc_lookup_start(const char *zookeeper, const char *node, const struct fm_rc_place *place);

/*
 * Is it done? Returns -EINPROGRESS; 0 and the address; -ENOENT (no such znode), -EHOSTUNREACH (nobody answers, or no such host), -EPROTO (what is
 * there is no locator, or one without tcp), -ENOMEM, with one line in why (FM_RC_WHY bytes). It never waits.
 */
int fm_rc_lookup_poll(struct fm_rc_lookup *l, struct sockaddr_in *out, char *why);

/* Done with it; also when it still runs: then it ends by itself. NULL is allowed. */
void fm_rc_lookup_drop(struct fm_rc_lookup *l);

/* An address that needs no lookup: place's host is an IPv4 address in numbers. */
int fm_rc_numeric(const struct fm_rc_place *place, struct sockaddr_in *out);

#endif
