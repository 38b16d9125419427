/*
 * A connection to one RAMCloud server or coordinator: many requests outstanding, replies in any order, never blocks in a system call.
 *
 * Each request has a tag of the caller's. Its reply, or the loss of the connection, is told once; unless the request was forgotten: then its
 * reply is read and thrown away. A server that is silent for half the timeout while it owes a reply is pinged (it answers that even when
 * all its workers are busy), and one that is silent for the whole of it is dropped. One thread a connection.
 */
#ifndef FM_RCCONN_H
#define FM_RCCONN_H

#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rcwire.h"

#define FM_RC_OUTSTANDING 320u
#define FM_RC_REPLY_MAX   (1u << 20) /* longest reply that anything asked here can have */

enum fm_rc_state { FM_RC_CLOSED, FM_RC_CONNECTING, FM_RC_READY };

struct fm_rc_pending {
	uint64_t nonce;
	uint32_t tag;
};

struct fm_rc_conn {
	struct sockaddr_in address;
	uint64_t timeout_ns;
	int fd;
	enum fm_rc_state state;
	int error;          /* -errno of the last failure; 0: none since it last spoke */
	unsigned failures;  /* in a row */
	uint64_t losses;    /* all of them */
	uint64_t retry_ns;  /* CLOCK_MONOTONIC: no new attempt before */
	uint64_t heard_ns;  /* last byte, either way */
	uint64_t nonce;     /* of the last request */
	uint64_t ping;      /* nonce of the ping under way; 0 none */
	bool spoke;         /* it has sent a whole reply since the connection was made */
	struct fm_rc_pending pending[FM_RC_OUTSTANDING];
	unsigned npending;
	unsigned char *out; /* out[out_at, out_len) is not sent yet */
	size_t out_at, out_len, out_cap;
	unsigned char *in; /* in[0, in_len) is not parsed yet */
	size_t in_len, in_cap;
	size_t skip; /* bytes of a reply that nobody wants, still to come */
};

/*
 * A reply of len bytes at p; or p NULL: the connection is lost, error (-errno) says why, and no reply will come. Returns 0, or -errno: the
 * reply makes no sense, drop the connection. It may send on other connections, and forget, but not on this one while p is NULL.
 */
typedef int fm_rc_handler(void *arg, struct fm_rc_conn *c, uint32_t tag, const unsigned char *p, size_t len);

uint64_t fm_rc_now(void);

void fm_rc_conn_init(struct fm_rc_conn *c, unsigned timeout_ms);
/* Close and free. Nothing is told. */
void fm_rc_conn_fini(struct fm_rc_conn *c);
/* May a request be sent now? Not while it rests after a failure. A closed one is connected by the first request. */
bool fm_rc_conn_usable(const struct fm_rc_conn *c, uint64_t now);
/* No thread looked at it for a while: what it did not say meanwhile does not count. */
void fm_rc_conn_begin(struct fm_rc_conn *c, uint64_t now);

/*
 * Begin a request of len bytes: make room for it and its frame. Returns where the len bytes go, to be written before the next call, or NULL:
 * no memory, or too many are outstanding.
 */
unsigned char *fm_rc_conn_ask(struct fm_rc_conn *c, uint32_t tag, size_t len);
/* Send what can be sent without waiting. */
void fm_rc_conn_flush(struct fm_rc_conn *c, fm_rc_handler *h, void *arg);
/* Nobody waits any more for the replies to these requests (tag: one; all: any). */
void fm_rc_conn_forget(struct fm_rc_conn *c, uint32_t tag);
void fm_rc_conn_forget_all(struct fm_rc_conn *c);

/* Is there something to wait for? Then fill in p. */
bool fm_rc_conn_poll(const struct fm_rc_conn *c, struct pollfd *p);
/* After poll(2): read, write, parse, ping, give up. */
void fm_rc_conn_turn(struct fm_rc_conn *c, short revents, uint64_t now, fm_rc_handler *h, void *arg);
/* Drop it because of error (-errno): tells every request. It rests for a moment that grows to 1 s before the next attempt. */
void fm_rc_conn_fail(struct fm_rc_conn *c, int error, fm_rc_handler *h, void *arg);

#endif
