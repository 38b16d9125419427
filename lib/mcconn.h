/*
 * A connection to one memcached: never blocks in a system call, always has a deadline, and many run side by side.
 *
 * Why not libmemcached for this path: a fault shard must read its events at least every 10 ms while a server is slow, so it
 * must sit in the poll(2) itself; and write-back needs pipelined sets of which each has its own acknowledgement, which
 * libmemcached's buffering cannot give (it reports success for sets that were lost).
 *
 * A batch: fm_mc_begin(), fm_mc_add() for each piece of the requests, fm_mc_run() over all connections of the batch. One thread
 * a connection.
 */
#ifndef FM_MCCONN_H
#define FM_MCCONN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "mcwire.h"

#define FM_MC_ADDRESS 128 /* bytes of a server's address as text, with its NUL */

/* Where a server is. */
struct fm_mc_address {
	char text[FM_MC_ADDRESS]; /* "host:port", "[v6]:port" or "/path.sock" */
	struct sockaddr_storage sa;
	socklen_t sa_len;
};

/* What a server said of itself when the connection was made. */
struct fm_mc_hello {
	uint64_t pid, start_s; /* together they name one life of the server; start_s may be off by one */
	uint64_t limit_bytes, used_bytes, items, item_max_bytes;
	unsigned version; /* 1.6.18 is 10618 */
	bool evicts;      /* throws values away when full */
};

enum fm_mc_state { FM_MC_CLOSED, FM_MC_CONNECTING, FM_MC_GREETING, FM_MC_READY };

struct fm_mc_conn {
	const struct fm_mc_address *address;
	int fd;
	enum fm_mc_state state;
	int error;            /* -errno of the last failure; 0: none since the last batch began */
	uint64_t retry_ns;    /* CLOCK_MONOTONIC: no new attempt before */
	unsigned failures;    /* in a row */
	unsigned expect;      /* final replies still to come in this batch */
	unsigned settled;     /* final replies that came */
	unsigned parts;       /* replies of this batch that are not final */
	struct fm_mc_hello hello;
	uint64_t rtt_ns;      /* from the start of the last batch to its last reply */
	unsigned greeting;    /* ENDs of the greeting still to come */
	char *out;            /* requests not sent yet: out[out_at, out_len) of out_cap */
	size_t out_at, out_len, out_cap;
	char *in; /* in[in_at, in_len) not parsed yet */
	size_t in_at, in_len;
};

/*
 * Parse an address: host:port, [v6]:port or an absolute path. Resolves names (may wait for DNS). Returns 0, or -EINVAL,
 * -EHOSTUNREACH (no such host) with one line in why (256 bytes).
 */
int fm_mc_address(const char *text, size_t len, struct fm_mc_address *out, char *why);

/* Make a connection structure, closed. address outlives it. */
void fm_mc_init(struct fm_mc_conn *c, const struct fm_mc_address *address);
/* Close, free. */
void fm_mc_fini(struct fm_mc_conn *c);
/* Drop the connection because of error (-errno); the next batch makes another, after a moment that grows to 1 s. */
void fm_mc_fail(struct fm_mc_conn *c, int error);

/* May it be tried now, or is it resting after a failure? */
bool fm_mc_usable(const struct fm_mc_conn *c);

/* Begin a batch. */
void fm_mc_begin(struct fm_mc_conn *c);
/*
 * Send what was appended so far, if the server takes it now: it can begin while the rest of the batch is being made. Without
 * a connection nothing happens; fm_mc_run() makes it. Errors are left to fm_mc_run(), too.
 */
void fm_mc_push(struct fm_mc_conn *c);
/* Room for n bytes at the end of the requests, to be written in place and then counted by fm_mc_commit(). NULL: no memory. */
char *fm_mc_reserve(struct fm_mc_conn *c, size_t n);
void fm_mc_commit(struct fm_mc_conn *c, size_t n, unsigned replies);
/* Append bytes of a request; replies: final replies that it will bring (END counts, VALUE does not). Returns 0 or -ENOMEM. */
int fm_mc_add(struct fm_mc_conn *c, const void *bytes, size_t n, unsigned replies);

/* Take one STAT line of `stats` or `stats settings` into h. start_s must be 0 before a whole `stats`. */
void fm_mc_learn(struct fm_mc_hello *h, const struct fm_mc_item *item);

/* Called for each reply (not STAT and VERSION of the greeting). c->settled is the number of final replies before this one. */
typedef void fm_mc_handler(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item);
/* Called once on each new connection, when the server has introduced itself. Returns 0, or -errno to refuse it. */
typedef int fm_mc_greeter(void *arg, struct fm_mc_conn *c);
/* Called at least every 5 ms while waiting. */
typedef void fm_mc_idle(void *arg);

struct fm_mc_run {
	struct fm_mc_conn **conns;
	unsigned n;
	uint64_t timeout_ns; /* for each connection, from the last byte that moved */
	uint64_t leave_ns;   /* leave after so long, whatever is unfinished: it may be run again, without fm_mc_begin(). 0: stay */
	uint64_t yield_ns;   /* before it sleeps, let others run and look again for so long: replies come one by one, each with a wake-up */
	fm_mc_handler *handler;
	fm_mc_greeter *greeter; /* may be NULL */
	fm_mc_idle *idle;       /* may be NULL */
	void *arg;              /* of handler and greeter */
	void *idle_arg;
};

/* Has it all its replies, or failed? */
bool fm_mc_finished(const struct fm_mc_conn *c);
/* Run until each connection has all its replies, or has failed (c->error). */
void fm_mc_run(const struct fm_mc_run *r);

#endif
