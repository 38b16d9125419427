#include "rcconn.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define IN_BYTES 65536u

uint64_t fm_rc_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void fm_rc_conn_init(struct fm_rc_conn *c, unsigned timeout_ms)
{
	memset(c, 0, sizeof *c);
	c->fd = -1;
	c->timeout_ns = timeout_ms * 1000000ull;
}

static void hang_up(struct fm_rc_conn *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->state = FM_RC_CLOSED;
	c->in_len = c->out_at = c->out_len = c->skip = 0;
	c->ping = 0;
	c->spoke = false;
}

void fm_rc_conn_fini(struct fm_rc_conn *c)
{
	hang_up(c);
	free(c->in);
	free(c->out);
	c->in = c->out = NULL;
	c->npending = 0;
}

void fm_rc_conn_fail(struct fm_rc_conn *c, int error, fm_rc_handler *h, void *arg)
{
	struct fm_rc_pending lost[FM_RC_OUTSTANDING];
	unsigned n = c->npending;

	/* A connection that once worked may just have grown old: at once again, the first time. */
	uint64_t rest_ms = c->failures == 0 && c->spoke && error != -EPROTO && error != -ETIMEDOUT ? 0 : c->failures < 6 ? 20ull << c->failures : 1000;

	hang_up(c);
	c->error = error;
	c->failures++;
	c->losses++;
	c->retry_ns = fm_rc_now() + rest_ms * 1000000;
	memcpy(lost, c->pending, n * sizeof lost[0]);
	c->npending = 0;
	for (unsigned i = 0; i < n; i++)
		h(arg, c, lost[i].tag, NULL, 0);
}

bool fm_rc_conn_usable(const struct fm_rc_conn *c, uint64_t now)
{
	return c->state != FM_RC_CLOSED || now >= c->retry_ns;
}

void fm_rc_conn_begin(struct fm_rc_conn *c, uint64_t now)
{
	if (c->npending || c->ping || c->state == FM_RC_CONNECTING)
		c->heard_ns = now;
}

/* --- sending */

static int dial(struct fm_rc_conn *c)
{
	int one = 1;

	c->heard_ns = fm_rc_now();
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0)
		return -errno;
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	c->state = FM_RC_CONNECTING;
	if (connect(c->fd, (const struct sockaddr *)&c->address, sizeof c->address) < 0 && errno != EINPROGRESS)
		return -errno;
	return 0;
}

/* Room for len more bytes to send. */
static unsigned char *room(struct fm_rc_conn *c, size_t len)
{
	if (c->out_at == c->out_len)
		c->out_at = c->out_len = 0;
	if (c->out_len + len > c->out_cap) {
		size_t cap = c->out_cap ? c->out_cap : 8192;
		unsigned char *p;

		while (cap < c->out_len + len)
			cap *= 2;
		p = realloc(c->out, cap);
		if (!p)
			return NULL;
		c->out = p;
		c->out_cap = cap;
	}
	c->out_len += len;
	return c->out + c->out_len - len;
}

unsigned char *fm_rc_conn_ask(struct fm_rc_conn *c, uint32_t tag, size_t len)
{
	unsigned char *p;

	if (c->npending == FM_RC_OUTSTANDING || len > FM_RC_FRAME_MAX)
		return NULL;
	p = room(c, FM_RC_FRAME + len);
	if (!p)
		return NULL;
	if (c->npending == 0)
		c->heard_ns = fm_rc_now(); /* from here on it owes us something */
	fm_rc_frame(p, ++c->nonce, (uint32_t)len);
	c->pending[c->npending++] = (struct fm_rc_pending){.nonce = c->nonce, .tag = tag};
	return p + FM_RC_FRAME;
}

static int transmit(struct fm_rc_conn *c)
{
	while (c->out_at < c->out_len) {
		ssize_t n = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		c->out_at += (size_t)n;
		c->heard_ns = fm_rc_now();
	}
	return 0;
}

void fm_rc_conn_flush(struct fm_rc_conn *c, fm_rc_handler *h, void *arg)
{
	int e = 0;

	if (c->state == FM_RC_CLOSED && c->npending)
		e = dial(c);
	if (e == 0 && c->state == FM_RC_READY)
		e = transmit(c);
	if (e)
		fm_rc_conn_fail(c, e, h, arg);
}

void fm_rc_conn_forget(struct fm_rc_conn *c, uint32_t tag)
{
	for (unsigned i = 0; i < c->npending;)
		if (c->pending[i].tag == tag)
			c->pending[i] = c->pending[--c->npending];
		else
			i++;
}

void fm_rc_conn_forget_all(struct fm_rc_conn *c)
{
	c->npending = 0;
}

/* --- receiving */

/* Whose reply is it? Takes the request off the list. */
static bool take_pending(struct fm_rc_conn *c, uint64_t nonce, uint32_t *tag)
{
	for (unsigned i = 0; i < c->npending; i++)
		if (c->pending[i].nonce == nonce) {
			*tag = c->pending[i].tag;
			c->pending[i] = c->pending[--c->npending];
			return true;
		}
	return false;
}

static bool is_pending(const struct fm_rc_conn *c, uint64_t nonce)
{
	for (unsigned i = 0; i < c->npending; i++)
		if (c->pending[i].nonce == nonce)
			return true;
	return false;
}

/* Hand out the whole replies that are there. Returns 0 or -errno. */
static int parse(struct fm_rc_conn *c, fm_rc_handler *h, void *arg)
{
	size_t at = 0, want = IN_BYTES;
	int e = 0;

	while (e == 0) {
		size_t have = c->in_len - at;
		uint64_t nonce;
		uint32_t length, tag;

		if (c->skip) {
			size_t n = c->skip < have ? c->skip : have;

			at += n;
			c->skip -= n;
			if (c->skip)
				break;
			continue;
		}
		if (have < FM_RC_FRAME)
			break;
		fm_rc_frame_read(c->in + at, &nonce, &length);
		if (length > FM_RC_FRAME_MAX || nonce == 0 || nonce > c->nonce)
			return -EPROTO; /* never asked: this is no RAMCloud */
		if (!is_pending(c, nonce)) {
			if (nonce == c->ping)
				c->ping = 0;
			c->spoke = true;
			c->skip = length;
			at += FM_RC_FRAME;
			continue;
		}
		if (length > FM_RC_REPLY_MAX)
			return -EPROTO;
		if (have < FM_RC_FRAME + length) {
			if (want < FM_RC_FRAME + length)
				want = FM_RC_FRAME + length;
			break;
		}
		c->spoke = true;
		c->error = 0;
		c->failures = 0;
		if (take_pending(c, nonce, &tag))
			e = h(arg, c, tag, c->in + at + FM_RC_FRAME, length);
		if (c->fd < 0)
			return 0; /* the handler dropped it */
		at += FM_RC_FRAME + length;
	}
	c->in_len -= at;
	memmove(c->in, c->in + at, c->in_len);
	if (e == 0 && want > c->in_cap) {
		unsigned char *p = realloc(c->in, want);

		if (!p)
			return -ENOMEM;
		c->in = p;
		c->in_cap = want;
	}
	return e;
}

static int receive(struct fm_rc_conn *c, uint64_t now, fm_rc_handler *h, void *arg)
{
	ssize_t n;

	if (!c->in) {
		c->in = malloc(IN_BYTES);
		if (!c->in)
			return -ENOMEM;
		c->in_cap = IN_BYTES;
	}
	n = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return c->spoke || c->in_len == 0 ? -ECONNRESET : -EPROTO;
	c->heard_ns = now;
	c->in_len += (size_t)n;
	return parse(c, h, arg);
}

static int connected(struct fm_rc_conn *c, uint64_t now)
{
	socklen_t len = sizeof(int);
	int e = 0;

	if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0)
		return -errno;
	if (e)
		return -e;
	c->state = FM_RC_READY;
	c->heard_ns = now;
	return transmit(c);
}

/* It owes a reply, and is silent. */
static int nudge(struct fm_rc_conn *c, uint64_t now)
{
	unsigned char ask[FM_RC_SMALL], *p;
	size_t n;

	if (now < c->heard_ns || now - c->heard_ns < c->timeout_ns / 2)
		return 0;
	if (now - c->heard_ns >= c->timeout_ns)
		return c->state == FM_RC_READY && !c->spoke && c->in_len ? -EPROTO : -ETIMEDOUT;
	if (c->state != FM_RC_READY || c->ping)
		return 0;
	n = fm_rc_ping(ask);
	p = room(c, FM_RC_FRAME + n);
	if (!p)
		return 0;
	c->ping = ++c->nonce;
	fm_rc_frame(p, c->ping, (uint32_t)n);
	memcpy(p + FM_RC_FRAME, ask, n);
	/* Not by transmit(): that we could send is no sign of life. */
	while (c->out_at < c->out_len) {
		ssize_t sent = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);

		if (sent < 0 && errno != EINTR)
			return errno == EAGAIN ? 0 : -errno;
		c->out_at += sent > 0 ? (size_t)sent : 0;
	}
	return 0;
}

bool fm_rc_conn_poll(const struct fm_rc_conn *c, struct pollfd *p)
{
	if (c->fd < 0 || c->npending == 0)
		return false;
	*p = (struct pollfd){
	    .fd = c->fd,
	    .events = (short)(POLLIN | (c->state == FM_RC_CONNECTING || c->out_at < c->out_len ? POLLOUT : 0)),
	};
	return true;
}

void fm_rc_conn_turn(struct fm_rc_conn *c, short revents, uint64_t now, fm_rc_handler *h, void *arg)
{
	int e = 0;

	if (c->fd < 0)
		return;
	if (c->state == FM_RC_CONNECTING && revents)
		e = connected(c, now);
	else if (revents & (POLLIN | POLLERR | POLLHUP))
		e = receive(c, now, h, arg);
	if (e == 0 && c->state == FM_RC_READY && c->out_at < c->out_len)
		e = transmit(c);
	if (e == 0 && c->fd >= 0 && c->npending)
		e = nudge(c, now);
	if (e)
		fm_rc_conn_fail(c, e, h, arg);
}
