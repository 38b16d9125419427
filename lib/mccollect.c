#include "mccollect.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define IN_BYTES   65536
#define DELETES    256 /* in flight at most */
#define PASSES     8   /* listings of one server at most */
#define BUSY_TRIES 100 /* waits of 100 ms for somebody else's listing to end */
#define REGION_KEY 18  /* "fm" and the region's id */
#define PAGE_KEY   37  /* ... page and generation */

/* A connection that is read line by line. */
struct line_conn {
	int fd;
	const struct fm_mccollect *limits; /* timeout and stop */
	size_t at, len;                    /* buf[at, len) is not read yet */
	char buf[IN_BYTES];
};

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static bool stopped(const struct fm_mccollect *c)
{
	return c->stop && c->stop(c->arg);
}

/* Wait until the descriptor is ready. Returns 0, -ETIMEDOUT, -ECANCELED or another -errno. */
static int wait_for(struct line_conn *l, short events)
{
	uint64_t until = now_ms() + (l->limits->timeout_ms ? l->limits->timeout_ms : 5000);
	struct pollfd p = {.fd = l->fd, .events = events};

	for (;;) {
		uint64_t now = now_ms();
		int n;

		if (stopped(l->limits))
			return -ECANCELED;
		if (now >= until)
			return -ETIMEDOUT;
		n = poll(&p, 1, until - now < 100 ? (int)(until - now) : 100);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

static int line_open(struct line_conn *l, const struct fm_mc_address *a, const struct fm_mccollect *limits)
{
	socklen_t n = sizeof(int);
	int e = 0;

	l->at = l->len = 0;
	l->limits = limits;
	l->fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (l->fd < 0)
		return -errno;
	if (connect(l->fd, (const struct sockaddr *)&a->sa, a->sa_len) == 0)
		return 0;
	if (errno != EINPROGRESS && errno != EAGAIN)
		return -errno;
	e = wait_for(l, POLLOUT);
	if (e == 0 && getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &e, &n) < 0)
		e = errno;
	return e > 0 ? -e : e;
}

static void line_close(struct line_conn *l)
{
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
}

static int line_send(struct line_conn *l, const char *bytes, size_t n)
{
	while (n) {
		ssize_t k = send(l->fd, bytes, n, MSG_NOSIGNAL);
		int e = 0;

		if (k < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		if (k < 0)
			e = wait_for(l, POLLOUT);
		if (e)
			return e;
		if (k > 0) {
			bytes += k;
			n -= (size_t)k;
		}
	}
	return 0;
}

/* The next line, without its end, into the buffer: valid until the next call. */
static int line_read(struct line_conn *l, const char **line, size_t *len)
{
	size_t seen = 0;

	for (;;) {
		char *from = l->buf + l->at, *end = memchr(from + seen, '\n', l->len - l->at - seen);
		ssize_t n;
		int e;

		if (end) {
			*line = from;
			*len = (size_t)(end - from);
			l->at += *len + 1;
			if (*len && from[*len - 1] == '\r')
				--*len;
			return 0;
		}
		seen = l->len - l->at;
		memmove(l->buf, from, seen);
		l->at = 0;
		l->len = seen;
		if (seen == sizeof l->buf)
			return -EPROTO;
		n = recv(l->fd, l->buf + l->len, sizeof l->buf - l->len, 0);
		if (n == 0)
			return -ECONNRESET;
		if (n > 0) {
			l->len += (size_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		e = wait_for(l, POLLIN);
		if (e)
			return e;
	}
}

static bool is(const char *line, size_t len, const char *what)
{
	return len == strlen(what) && memcmp(line, what, len) == 0;
}

static bool begins(const char *line, size_t len, const char *what)
{
	return len >= strlen(what) && memcmp(line, what, strlen(what)) == 0;
}

/* --- listing and deleting */

const char *fm_mccollect_key(const char *line, size_t len, uint64_t region, size_t *key_len)
{
	char want[4 + REGION_KEY + 1];
	const char *end;

	snprintf(want, sizeof want, "key=fm%016" PRIx64, region);
	if (!begins(line, len, want))
		return NULL;
	line += 4;
	len -= 4;
	end = memchr(line, ' ', len);
	*key_len = end ? (size_t)(end - line) : len;
	for (size_t i = 0; i < *key_len; i++)
		if (!((line[i] >= '0' && line[i] <= '9') || (line[i] >= 'a' && line[i] <= 'z')))
			return NULL; /* of the region by its beginning, but no key of ours */
	return *key_len > FM_MC_KEY_MAX ? NULL : line;
}

static bool hex(const char *from, unsigned digits, uint64_t *out)
{
	*out = 0;
	for (; digits; digits--, from++) {
		unsigned d = *from >= '0' && *from <= '9' ? (unsigned)(*from - '0') : *from >= 'a' && *from <= 'f' ? (unsigned)(*from - 'a') + 10 : 16;

		if (d > 15)
			return false;
		*out = *out << 4 | d;
	}
	return true;
}

const char *fm_mccollect_parse(const char *line, size_t len, uint64_t *region, uint64_t *page, uint64_t *gen, size_t *key_len)
{
	if (!begins(line, len, "key=fm") || len < 4 + PAGE_KEY || (len > 4 + PAGE_KEY && line[4 + PAGE_KEY] != ' ') || !hex(line + 6, 16, region) ||
	    !hex(line + 22, 8, page) || !hex(line + 30, 11, gen))
		return NULL;
	*key_len = PAGE_KEY;
	return line + 4;
}

/* The key of a line, when it is to be deleted. */
static const char *wanted(const struct fm_mccollect *c, const char *line, size_t len, size_t *key_len)
{
	uint64_t region, page, gen;
	const char *key;

	if (!c->garbage)
		return fm_mccollect_key(line, len, c->region, key_len);
	key = fm_mccollect_parse(line, len, &region, &page, &gen, key_len);
	return key && c->garbage(c->arg, region, page, gen) ? key : NULL;
}

/* Deletes in flight on the second connection. */
struct deleter {
	struct line_conn conn;
	unsigned inflight;
	uint64_t deleted;
};

static int await_deletes(struct deleter *d)
{
	const char *line;
	size_t len;

	while (d->inflight) {
		int e = line_read(&d->conn, &line, &len);

		if (e)
			return e;
		if (is(line, len, "DELETED"))
			d->deleted++;
		else if (!is(line, len, "NOT_FOUND"))
			return -EPROTO;
		d->inflight--;
	}
	return 0;
}

static int send_delete(struct deleter *d, const char *key, size_t len)
{
	char text[FM_MC_KEY_MAX + 16];
	int n = snprintf(text, sizeof text, "delete %.*s\r\n", (int)len, key), e;

	if (d->inflight == DELETES) {
		e = await_deletes(d);
		if (e)
			return e;
	}
	e = line_send(&d->conn, text, (size_t)n);
	d->inflight += e == 0;
	return e;
}

/* One listing: delete what it names of the region, or what is garbage. -EAGAIN: somebody else's listing is under way. */
static int one_pass(struct line_conn *l, struct deleter *d, const struct fm_mccollect *c, uint64_t *found, const char **what)
{
	static const char ask[] = "lru_crawler metadump all\r\n";
	const char *line;
	size_t len, key_len;
	int e = line_send(l, ask, sizeof ask - 1);

	while (e == 0) {
		const char *key;

		e = line_read(l, &line, &len);
		if (e || is(line, len, "END"))
			break;
		if (begins(line, len, "BUSY") || begins(line, len, "LOCKED"))
			return -EAGAIN;
		if (!begins(line, len, "key=")) {
			*what = "does not list its keys (an old version, or started with -o no_lru_crawler?)";
			return -EPROTO;
		}
		key = wanted(c, line, len, &key_len);
		if (key) {
			++*found;
			e = send_delete(d, key, key_len);
		}
	}
	return e ? e : await_deletes(d);
}

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
}

int fm_mccollect_server(const struct fm_mc_address *a, struct fm_mccollect *c, char *why)
{
	struct line_conn *l = malloc(sizeof *l);
	struct deleter *d = malloc(sizeof *d);
	const char *what = NULL;
	unsigned busy = 0, passes = 0;
	uint64_t found;
	int e = -ENOMEM;

	if (!l || !d)
		goto free_both;
	l->fd = d->conn.fd = -1;
	d->inflight = 0;
	d->deleted = 0;
	e = line_open(l, a, c);
	if (e == 0)
		e = line_open(&d->conn, a, c);
	/* A listing walks lists that change meanwhile, and may miss a key: until one finds none. */
	while (e == 0) {
		found = 0;
		e = one_pass(l, d, c, &found, &what);
		if (e == -EAGAIN) {
			e = stopped(c) ? -ECANCELED : ++busy > BUSY_TRIES ? -EBUSY : 0;
			nap();
			continue;
		}
		if (e == 0 && (found == 0 || c->garbage))
			break;
		if (e == 0 && ++passes == PASSES)
			e = -EBUSY;
	}
	c->deleted += d->deleted;
	line_close(l);
	line_close(&d->conn);
free_both:
	if (e)
		snprintf(why, 256, "%.120s: %s", a->text, what ? what : strerror(-e));
	free(l);
	free(d);
	return e;
}

/* --- signs of life */

/* One request, and the first line of its reply; reply: 64 bytes. */
static int ask_once(const struct fm_mc_address *a, const char *text, unsigned timeout_ms, char *reply)
{
	struct fm_mccollect limits = {.timeout_ms = timeout_ms};
	struct line_conn *l = malloc(sizeof *l);
	const char *line = "";
	size_t len = 0;
	int e;

	if (!l)
		return -ENOMEM;
	e = line_open(l, a, &limits);
	if (e == 0)
		e = line_send(l, text, strlen(text));
	if (e == 0)
		e = line_read(l, &line, &len);
	if (e == 0)
		snprintf(reply, 64, "%.*s", len > 63 ? 63 : (int)len, line);
	line_close(l);
	free(l);
	return e;
}

int fm_mccollect_beat(const struct fm_mc_address *a, uint64_t host, unsigned ttl_s, unsigned timeout_ms)
{
	char text[128], reply[64];
	int e;

	snprintf(text, sizeof text, "set fmhost%016" PRIx64 " 0 %u 1\r\n1\r\n", host, ttl_s);
	e = ask_once(a, text, timeout_ms, reply);
	return e ? e : strcmp(reply, "STORED") == 0 ? 0 : -ENOSPC;
}

int fm_mccollect_beats(const struct fm_mc_address *a, uint64_t host, unsigned timeout_ms)
{
	char text[128], reply[64];
	int e;

	snprintf(text, sizeof text, "get fmhost%016" PRIx64 "\r\n", host);
	e = ask_once(a, text, timeout_ms, reply);
	if (e)
		return e;
	return strncmp(reply, "VALUE ", 6) == 0 ? 1 : strcmp(reply, "END") == 0 ? 0 : -EPROTO;
}
