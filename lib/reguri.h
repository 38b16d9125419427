/*
 * URIs of registries, and the records kept there: text from outside, parsed without trusting it. Pure; any thread.
 *
 *   none
 *   zookeeper://host[:port][,host[:port]...][/chroot][?option&option...]
 *
 * Options: grace=SECONDS (a host that is gone for so long is dead, and what it stored is collected; 60; 0: this host collects
 * nothing), timeout=MS (of the session with ZooKeeper; 10000), auth=/FILE (who we are, user:password; without it everything is open to
 * everybody).
 */
#ifndef FM_REGURI_H
#define FM_REGURI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FM_REGISTRY_WHY    256  /* bytes of a why buffer */
#define FM_REGISTRY_URI    512  /* bytes of a URI with its NUL */
#define FM_REGISTRY_RECORD 1024 /* bytes of a region's record with its NUL */

struct fm_registry_uri {
	char connect[FM_REGISTRY_URI + 256]; /* "host:port,...[/chroot]" as libzookeeper takes it; "": none */
	char servers[FM_REGISTRY_URI];       /* as given, without chroot and options, for messages */
	char chroot[FM_REGISTRY_URI];        /* "/a/b", or "" */
	char auth[256];                      /* path of a file (regauth.h), or "" */
	unsigned grace_s;                    /* 0..86400 */
	unsigned timeout_ms;                 /* 1000..600000 */
};

/* What /fm/regions/<id> says of a region. */
struct fm_registry_record {
	uint64_t host;    /* id of the host whose region it is */
	uint64_t pages;   /* its size */
	uint64_t epoch;   /* placement epoch it began in */
	uint64_t created; /* seconds since 1970 */
	char store[512];  /* URI of the store that has its pages */
};

/* Parse uri (NUL-terminated); resolves no name. Returns 0, or -EINVAL with one line in why. */
int fm_registry_uri_parse(const char *uri, struct fm_registry_uri *out, char *why);

/*
 * Format a record as `key=value` lines into to (FM_REGISTRY_RECORD bytes). Returns its length, or -EINVAL when the store's URI
 * cannot stand in one.
 */
int fm_registry_record_format(const struct fm_registry_record *r, char *to);

/*
 * Parse a record. Lines with unknown keys are passed over. Returns 0, or -EINVAL: host=, pages= or store= is missing, or a value
 * is not one.
 */
int fm_registry_record_parse(const char *text, size_t len, struct fm_registry_record *out);

/* The id in 16 lower-case hex digits, exactly. Returns true and *id (never 0), or false. */
bool fm_registry_id_parse(const char *text, size_t len, uint64_t *id);

#endif
