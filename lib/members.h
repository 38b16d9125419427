/*
 * The membership of a store: which servers all hosts of a cluster put pages on. The text of the registry's /fm/store/members
 * (INTERFACES.md), its changes, and nothing else. Pure; any thread.
 *
 * Each change makes a new membership epoch, one more than the last. A drained server stays listed, with the epoch in which it was
 * drained, until no host has pages by an older epoch: then it leaves.
 */
#ifndef FM_MEMBERS_H
#define FM_MEMBERS_H

#include <stddef.h>
#include <stdint.h>

#include "cluster.h"

#define FM_MEMBERS_TEXT 16384 /* bytes of the text with its NUL */
#define FM_MEMBERS_WHY  256   /* bytes of a why buffer */

struct fm_member {
	char address[FM_SERVER_ADDRESS]; /* host:port or /path.sock */
	enum fm_server_role role;        /* FM_SERVER_MEMBER or FM_SERVER_DRAINED */
	uint64_t since;                  /* epoch in which it took this role; 0 unknown */
};

struct fm_members {
	uint64_t epoch;    /* >= 1 */
	unsigned replicas; /* copies of each page, as the first host was told; 0 unknown */
	unsigned n;
	struct fm_member member[FM_SERVERS];
};

/*
 * Parse text. Lines without a blank that have a '=' are key=value, of which unknown ones are passed over. Returns 0, or -EINVAL with one line
 * in why (FM_MEMBERS_WHY bytes): no epoch, no server, a server twice, too many, a line that is none.
 */
int fm_members_parse(const char *text, size_t len, struct fm_members *out, char *why);

/* Format them into to (FM_MEMBERS_TEXT bytes). Returns the length: always fits. */
size_t fm_members_format(const struct fm_members *m, char *to);

/* The index of a server by its address, or -1. */
int fm_members_find(const struct fm_members *m, const char *address);

enum fm_members_op {
	FM_MEMBERS_ADD,   /* a new member, or a drained one again */
	FM_MEMBERS_DRAIN, /* takes no new pages */
	FM_MEMBERS_LEAVE, /* a drained one that has been since `settled` or longer: off the list */
};

struct fm_members_change {
	enum fm_members_op op;
	char address[FM_SERVER_ADDRESS];
	uint64_t settled; /* LEAVE: no host has pages by an older epoch than this */
};

/*
 * Make a change, and a new epoch. Returns 1; 0 when there was nothing to do; or -errno with why: -ENOENT (no such server), -EBUSY (the
 * last member cannot be drained), -ENOSPC (the list is full), -EINVAL (ADD: not an address).
 */
int fm_members_change(struct fm_members *m, const struct fm_members_change *c, char *why);

#endif
