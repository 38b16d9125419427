#include "mcconn.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "resolve.h"

#define IN_BYTES  (128u * 1024)
#define SLICE_MS  5
#define MAX_CONNS 64
#define TRICKLE   4 /* time-outs that a batch may take in all */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- addresses */

static int unix_address(struct fm_mc_address *a, char *why)
{
	struct sockaddr_un *un = (struct sockaddr_un *)&a->sa;

	if (strlen(a->text) >= sizeof un->sun_path) {
		snprintf(why, 256, "%.120s: a socket's path has at most 107 bytes", a->text);
		return -EINVAL;
	}
	un->sun_family = AF_UNIX;
	strcpy(un->sun_path, a->text);
	a->sa_len = sizeof *un;
	return 0;
}

int fm_mc_address(const char *text, size_t len, struct fm_mc_address *a, char *why)
{
	char host[FM_MC_ADDRESS], *port;
	int r, gai = 0;

	memset(a, 0, sizeof *a);
	if (len == 0 || len >= sizeof a->text) {
		snprintf(why, 256, "%.*s: %s", len > 100 ? 100 : (int)len, text, len ? "address too long" : "empty server address");
		return -EINVAL;
	}
	memcpy(a->text, text, len);
	if (*a->text == '/')
		return unix_address(a, why);
	strcpy(host, a->text);
	port = strrchr(host, ':');
	if (!port || port == host || !port[1] || strspn(port + 1, "0123456789") != strlen(port + 1) || atol(port + 1) < 1 ||
	    atol(port + 1) > 65535) {
		snprintf(why, 256, "%.120s: a server is host:port or /path/to.sock", a->text);
		return -EINVAL;
	}
	*port++ = '\0';
	if (*host == '[' && host[strlen(host) - 1] == ']') {
		memmove(host, host + 1, strlen(host));
		host[strlen(host) - 1] = '\0';
	}
	r = fm_resolve(host, port, &a->sa, &a->sa_len, &gai);
	if (r == -EHOSTUNREACH)
		snprintf(why, 256, "%.120s: cannot be resolved: %s", a->text, gai_strerror(gai));
	else if (r)
		snprintf(why, 256, "%.120s: cannot be resolved: %s", a->text, r == -ETIMEDOUT ? "the name service does not answer" : strerror(-r));
	return r ? -EHOSTUNREACH : 0;
}

/* --- life of a connection */

void fm_mc_init(struct fm_mc_conn *c, const struct fm_mc_address *address)
{
	*c = (struct fm_mc_conn){.address = address, .fd = -1};
}

static void hang_up(struct fm_mc_conn *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->state = FM_MC_CLOSED;
	c->in_at = c->in_len = 0;
}

void fm_mc_fini(struct fm_mc_conn *c)
{
	hang_up(c);
	free(c->in);
	free(c->out);
	c->in = c->out = NULL;
}

void fm_mc_fail(struct fm_mc_conn *c, int error)
{
	uint64_t rest_ms = c->failures < 5 ? 20ull << c->failures : 1000;

	hang_up(c);
	c->error = error;
	c->failures++;
	c->retry_ns = now_ns() + rest_ms * 1000000;
}

bool fm_mc_usable(const struct fm_mc_conn *c)
{
	return c->state == FM_MC_READY || now_ns() >= c->retry_ns;
}

void fm_mc_begin(struct fm_mc_conn *c)
{
	c->error = 0;
	c->expect = c->settled = c->parts = 0;
	c->out_at = c->out_len = 0;
}

char *fm_mc_reserve(struct fm_mc_conn *c, size_t n)
{
	if (c->out_len + n > c->out_cap) {
		size_t cap = c->out_cap ? c->out_cap : 8192;
		char *p;

		while (cap < c->out_len + n)
			cap *= 2;
		p = realloc(c->out, cap);
		if (!p)
			return NULL;
		c->out = p;
		c->out_cap = cap;
	}
	return c->out + c->out_len;
}

void fm_mc_commit(struct fm_mc_conn *c, size_t n, unsigned replies)
{
	c->out_len += n;
	c->expect += replies;
}

int fm_mc_add(struct fm_mc_conn *c, const void *bytes, size_t n, unsigned replies)
{
	char *to = fm_mc_reserve(c, n);

	if (!to)
		return -ENOMEM;
	memcpy(to, bytes, n);
	fm_mc_commit(c, n, replies);
	return 0;
}

static void dial(struct fm_mc_conn *c)
{
	int one = 1;

	if (!c->in)
		c->in = malloc(IN_BYTES);
	c->fd = c->in ? socket(c->address->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;
	if (c->fd < 0) {
		fm_mc_fail(c, c->in ? -errno : -ENOMEM);
		return;
	}
	if (c->address->sa.ss_family != AF_UNIX)
		setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	c->state = FM_MC_CONNECTING;
	if (connect(c->fd, (const struct sockaddr *)&c->address->sa, c->address->sa_len) < 0 && errno != EINPROGRESS)
		fm_mc_fail(c, -errno);
}

/* Connected: before anything else, ask the server who it is. The batch's own bytes wait. */
static void greet(struct fm_mc_conn *c)
{
	static const char hello[] = "stats\r\nstats settings\r\n";
	const struct timeval slice = {.tv_usec = SLICE_MS * 1000};
	socklen_t len = sizeof(int);
	int e = 0;

	/* From here on only what says so waits: see fm_mc_run(). */
	fcntl(c->fd, F_SETFL, O_RDWR);
	setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &slice, sizeof slice);
	if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0 || e) {
		fm_mc_fail(c, e ? -e : -errno);
		return;
	}
	memset(&c->hello, 0, sizeof c->hello);
	c->greeting = 2;
	c->state = FM_MC_GREETING;
	if (send(c->fd, hello, sizeof hello - 1, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)sizeof hello - 1)
		fm_mc_fail(c, -ECONNRESET); /* a fresh socket takes 25 bytes */
}

static uint64_t to_u64(const struct fm_mc_item *i)
{
	uint64_t n = 0;

	for (size_t k = 0; k < i->data_len && i->data[k] >= '0' && i->data[k] <= '9'; k++)
		n = n * 10 + (uint64_t)(i->data[k] - '0');
	return n;
}

static bool named(const struct fm_mc_item *i, const char *name)
{
	return i->key_len == strlen(name) && memcmp(i->key, name, i->key_len) == 0;
}

void fm_mc_learn(struct fm_mc_hello *h, const struct fm_mc_item *i)
{
	unsigned a, b, d;
	char text[32];

	if (named(i, "pid"))
		h->pid = to_u64(i);
	else if (named(i, "uptime"))
		h->start_s -= to_u64(i);
	else if (named(i, "time"))
		h->start_s += to_u64(i);
	else if (named(i, "limit_maxbytes"))
		h->limit_bytes = to_u64(i);
	else if (named(i, "bytes"))
		h->used_bytes = to_u64(i);
	else if (named(i, "curr_items"))
		h->items = to_u64(i);
	else if (named(i, "item_size_max"))
		h->item_max_bytes = to_u64(i);
	else if (named(i, "evictions")) /* a number in stats, on or off in stats settings */
		h->evicts |= i->data_len == 2 && memcmp(i->data, "on", 2) == 0;
	else if (named(i, "version")) {
		snprintf(text, sizeof text, "%.*s", i->data_len > 20 ? 20 : (int)i->data_len, i->data);
		if (sscanf(text, "%3u.%3u.%3u", &a, &b, &d) == 3)
			h->version = a * 10000 + b * 100 + d;
	}
}

/* --- the loop */

static bool is_final(enum fm_mc_reply r)
{
	return r != FM_MC_VALUE && r != FM_MC_STAT && r != FM_MC_VERSION;
}

/* One parsed reply. Returns false when the connection was dropped. */
static bool on_reply(const struct fm_mc_run *r, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	/* A greeting has a hundred, an answer one for each page asked: a server that sends them without end is mad. */
	if (!is_final(reply) && ++c->parts > 4096) {
		fm_mc_fail(c, -EPROTO);
		return false;
	}
	if (c->state == FM_MC_GREETING) {
		int e = 0;

		if (reply == FM_MC_STAT)
			fm_mc_learn(&c->hello, item);
		else if (reply != FM_MC_END)
			e = -EPROTO;
		else if (--c->greeting == 0) {
			e = r->greeter ? r->greeter(r->arg, c) : 0;
			if (e == 0)
				c->state = FM_MC_READY;
		}
		if (e)
			fm_mc_fail(c, e);
		return e == 0;
	}
	if (c->settled == c->expect) { /* nobody asked: what follows cannot be told apart any more */
		fm_mc_fail(c, -EPROTO);
		return false;
	}
	r->handler(r->arg, c, reply, item);
	if (is_final(reply))
		c->settled++;
	return true;
}

/* flags: MSG_DONTWAIT, or 0 to wait for SLICE_MS. Returns whether anything came. */
static bool receive(const struct fm_mc_run *r, struct fm_mc_conn *c, int flags)
{
	ssize_t n;

	if (c->in_at) {
		memmove(c->in, c->in + c->in_at, c->in_len - c->in_at);
		c->in_len -= c->in_at;
		c->in_at = 0;
	}
	n = recv(c->fd, c->in + c->in_len, IN_BYTES - c->in_len, flags);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		fm_mc_fail(c, n < 0 ? -errno : -ECONNRESET);
		return false;
	}
	c->in_len += (size_t)n;
	for (;;) {
		struct fm_mc_item item;
		size_t used;
		enum fm_mc_reply reply = fm_mc_parse(c->in + c->in_at, c->in_len - c->in_at, &used, &item);

		if (reply == FM_MC_MORE)
			break;
		if (reply == FM_MC_GARBAGE) {
			fm_mc_fail(c, -EPROTO);
			return false;
		}
		c->in_at += used;
		if (!on_reply(r, c, reply, &item))
			return false;
	}
	return true;
}

static bool transmit(struct fm_mc_conn *c)
{
	ssize_t n = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n < 0) {
		fm_mc_fail(c, -errno);
		return false;
	}
	c->out_at += (size_t)n;
	if (c->out_at == c->out_len)
		c->out_at = c->out_len = 0; /* what follows finds the same memory, still in the cache */
	return true;
}

static bool wants_send(const struct fm_mc_conn *c)
{
	return c->state == FM_MC_READY && c->out_at < c->out_len;
}

bool fm_mc_finished(const struct fm_mc_conn *c)
{
	return c->error || (c->state == FM_MC_READY && c->out_at == c->out_len && c->settled == c->expect);
}

void fm_mc_push(struct fm_mc_conn *c)
{
	if (!c->error && wants_send(c))
		transmit(c);
}

/* What poll(2) said of a connection. Returns whether anything moved. */
static bool attend(const struct fm_mc_run *r, struct fm_mc_conn *c, short revents)
{
	bool progress = false;

	if (c->state == FM_MC_CONNECTING && revents) {
		greet(c);
		return true;
	}
	if (revents & (POLLIN | POLLERR | POLLHUP))
		progress = receive(r, c, MSG_DONTWAIT);
	if (!c->error && wants_send(c))
		progress |= transmit(c);
	return progress;
}

void fm_mc_run(const struct fm_mc_run *r)
{
	uint64_t moved[MAX_CONNS], start = now_ns(), idle = start, now = start;

	for (unsigned i = 0; i < r->n; i++) {
		moved[i] = start;
		if (r->conns[i]->state == FM_MC_CLOSED && !r->conns[i]->error)
			dial(r->conns[i]);
		/* Send at once: the usual case needs no poll(2) before it. */
		if (wants_send(r->conns[i]))
			transmit(r->conns[i]);
	}
	for (;;) {
		struct pollfd p[MAX_CONNS];
		unsigned n = 0, at[MAX_CONNS];
		bool patient = now - start < r->yield_ns, one = false, any = false;

		for (unsigned i = 0; i < r->n; i++) {
			struct fm_mc_conn *c = r->conns[i];

			if (fm_mc_finished(c))
				continue;
			at[n] = i;
			p[n++] = (struct pollfd){
			    .fd = c->fd,
			    .events = (short)(POLLIN | (c->state == FM_MC_CONNECTING || wants_send(c) ? POLLOUT : 0)),
			};
		}
		if (!n)
			return;
		/* The usual wait is for one server's reply: recv(2) does that by itself. */
		if (n == 1 && p[0].events == POLLIN)
			any = one = receive(r, r->conns[at[0]], patient ? MSG_DONTWAIT : 0);
		else
			poll(p, n, patient ? 0 : SLICE_MS);
		now = now_ns();
		if (r->idle && now - idle >= SLICE_MS * 1000000u) {
			idle = now;
			r->idle(r->idle_arg);
		}
		for (unsigned k = 0; k < n; k++) {
			struct fm_mc_conn *c = r->conns[at[k]];

			if (one || attend(r, c, p[k].revents)) {
				any = true;
				moved[at[k]] = now;
				if (c->state == FM_MC_READY)
					c->failures = 0;
				if (fm_mc_finished(c))
					c->rtt_ns = now - start;
			}
			/* One that lets a byte through now and then must not keep its pages from their other servers. */
			if (!fm_mc_finished(c) && (now - moved[at[k]] > r->timeout_ns || now - start > TRICKLE * r->timeout_ns))
				fm_mc_fail(c, -ETIMEDOUT);
		}
		if (r->leave_ns && now - start > r->leave_ns)
			return;
		if (patient && !any)
			sched_yield();
	}
}
