/*
 * Names of RAMCloud things: our store URIs, and RAMCloud's service locators.
 *
 *   ramcloud:zk:host:port[,host:port...][?options]     the coordinator is found in ZooKeeper
 *   ramcloud:tcp:host=H,port=P[?options]               the coordinator itself
 *
 * Options, joined by `&`: cluster=NAME (main), span=N (8), timeout=MS (1000).
 *
 * A service locator is `proto:key=value,key=value` and alternatives of that joined by `;`, the best first. Spaces round the punctuation do
 * not count, a value may stand in double quotes, and a backslash takes `" , ;` their meaning. Pure; any thread.
 */
#ifndef FM_RCURI_H
#define FM_RCURI_H

#include <stddef.h>
#include <stdint.h>

#define FM_RC_HOST    256 /* bytes of a host's name with its NUL */
#define FM_RC_CLUSTER 64
#define FM_RC_WHY     256

struct fm_rc_place {
	char host[FM_RC_HOST]; /* name or IPv4 address */
	uint16_t port;
};

struct fm_rc_uri {
	char zookeeper[1024];     /* for zookeeper_init(); "": there is none */
	char node[FM_RC_CLUSTER + 32]; /* path of the coordinator's znode */
	struct fm_rc_place fixed; /* without ZooKeeper: the coordinator */
	unsigned span;            /* tablets of a table */
	unsigned timeout_ms;      /* a server that says nothing for so long is given up for the moment */
};

/* Returns 0, or -EINVAL with one line in why (FM_RC_WHY bytes). */
int fm_rc_uri_parse(const char *uri, struct fm_rc_uri *out, char *why);

/*
 * The first alternative of a service locator that is reached over TCP. Returns 0, -EINVAL (not a locator, or a tcp one without host or port), or
 * -EPROTONOSUPPORT (a locator without a tcp alternative).
 */
int fm_rc_locator(const char *text, size_t len, struct fm_rc_place *out);

#endif
