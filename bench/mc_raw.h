/*
 * A raw memcached client, as a good C programmer writes one: text protocol, one blocking connection, no library. Keys and values
 * are as long as fm's, so that the server has the same work. Not part of fm, and includes nothing of it.
 */
#ifndef BENCH_MC_RAW_H
#define BENCH_MC_RAW_H

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include "touch.h"

#define RAW_HEAD  40u           /* fm's header and tag */
#define RAW_VALUE (RAW_HEAD + PAGE)
#define RAW_KEY   38            /* fm's 37 characters and a NUL */
#define RAW_LINE  128

/* Connect to /path.sock or 127.0.0.1:port. */
static inline int raw_connect(const char *address)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr_in in = {.sin_family = AF_INET};
	const char *port = strrchr(address, ':');
	int one = 1, fd = socket(*address == '/' ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

	if (*address == '/') {
		snprintf(un.sun_path, sizeof un.sun_path, "%s", address);
		r = connect(fd, (struct sockaddr *)&un, sizeof un);
	} else {
		in.sin_port = htons((uint16_t)atoi(port ? port + 1 : "0"));
		in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		r = connect(fd, (struct sockaddr *)&in, sizeof in);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	}
	if (fd < 0 || r < 0)
		err(1, "%s", address);
	return fd;
}

static inline void raw_key(char key[RAW_KEY], size_t page)
{
	snprintf(key, RAW_KEY, "rw%016llx%08x%011llx", 1ull, (unsigned)page, 1ull);
}

static inline void raw_send(int fd, const char *bytes, size_t n)
{
	while (n) {
		ssize_t k = send(fd, bytes, n, MSG_NOSIGNAL);

		if (k <= 0)
			err(1, "send");
		bytes += k;
		n -= (size_t)k;
	}
}

/* Send all of iov; changes it. */
static inline void raw_sendv(int fd, struct iovec *iov, size_t n)
{
	while (n) {
		struct msghdr m = {.msg_iov = iov, .msg_iovlen = n};
		ssize_t k = sendmsg(fd, &m, MSG_NOSIGNAL);

		if (k <= 0)
			err(1, "sendmsg");
		while (n && (size_t)k >= iov->iov_len) {
			k -= (ssize_t)iov->iov_len;
			iov++;
			n--;
		}
		if (n) {
			iov->iov_base = (char *)iov->iov_base + k;
			iov->iov_len -= (size_t)k;
		}
	}
}

/* Get one value of RAW_VALUE bytes; buf has RAW_VALUE + RAW_LINE bytes. Returns the page in it. */
static inline unsigned char *raw_get(int fd, size_t page, char *buf)
{
	char request[RAW_LINE], key[RAW_KEY];
	size_t have = 0, want = 0;
	char *end = NULL;

	raw_key(key, page);
	raw_send(fd, request, (size_t)snprintf(request, sizeof request, "get %s\r\n", key));
	while (!want || have < want) {
		ssize_t k = recv(fd, buf + have, RAW_VALUE + RAW_LINE - have, 0);

		if (k <= 0)
			err(1, "recv");
		have += (size_t)k;
		if (!end && (end = memchr(buf, '\n', have))) {
			if (memcmp(buf, "VALUE ", 6) != 0 || memcmp(buf + 6, key, RAW_KEY - 1) != 0)
				errx(1, "page %zu is not there", page);
			want = (size_t)(end + 1 - buf) + RAW_VALUE + strlen("\r\nEND\r\n");
		}
	}
	return (unsigned char *)end + 1 + RAW_HEAD;
}

#define RAW_GROUP  32u /* requests a call */
#define RAW_WINDOW 64u /* outstanding at most */

/* Read the acknowledgements of n sets. */
static inline void raw_stored(int fd, size_t n)
{
	static char buf[RAW_WINDOW * 8];
	size_t left = n * 8;

	while (left) {
		ssize_t k = recv(fd, buf, left < sizeof buf ? left : sizeof buf, 0);

		if (k <= 0)
			err(1, "recv");
		/* Each is "STORED\r\n", cut anywhere: its letters tell one that is something else. */
		for (ssize_t i = 0; i < k; i++)
			if (buf[i] != "STORED\r\n"[(n * 8 - left + (size_t)i) % 8])
				errx(1, "not stored: %.*s", (int)(k - i), buf + i);
		left -= (size_t)k;
	}
}

/* Set the pages [0, n), n a multiple of RAW_GROUP, whose bytes are at from; RAW_WINDOW outstanding. */
static inline void raw_set_stream(int fd, unsigned char *from, size_t n)
{
	static char line[RAW_GROUP][RAW_LINE], head[RAW_HEAD], end[] = "\r\n";
	struct iovec iov[RAW_GROUP * 4];
	size_t acked = 0;

	for (size_t at = 0; at < n; at += RAW_GROUP) {
		for (size_t i = 0; i < RAW_GROUP; i++) {
			char key[RAW_KEY];
			int len;

			raw_key(key, at + i);
			len = snprintf(line[i], RAW_LINE, "set %s 0 0 %u\r\n", key, RAW_VALUE);
			iov[4 * i] = (struct iovec){line[i], (size_t)len};
			iov[4 * i + 1] = (struct iovec){head, RAW_HEAD};
			iov[4 * i + 2] = (struct iovec){from + (at + i) * PAGE, PAGE};
			iov[4 * i + 3] = (struct iovec){end, 2};
		}
		raw_sendv(fd, iov, (size_t)RAW_GROUP * 4);
		if (at + RAW_GROUP - acked >= RAW_WINDOW) {
			raw_stored(fd, RAW_GROUP);
			acked += RAW_GROUP;
		}
	}
	raw_stored(fd, n - acked);
}

/* Ask for RAW_GROUP values from page at on. */
static inline void raw_ask(int fd, size_t at)
{
	static char line[8 + RAW_GROUP * (RAW_KEY + 1)];
	char *to = stpcpy(line, "get");

	for (size_t i = 0; i < RAW_GROUP; i++) {
		*to++ = ' ';
		raw_key(to, at + i);
		to += RAW_KEY - 1;
	}
	to = stpcpy(to, "\r\n");
	raw_send(fd, line, (size_t)(to - line));
}

/* Get the pages [0, n) and look at the first word of each; RAW_WINDOW outstanding. Returns the number of wrong ones. */
static inline unsigned raw_get_stream(int fd, size_t n)
{
	const size_t cap = 256 * 1024;
	char *buf = malloc(cap);
	size_t asked = 0, have = 0, page = 0;
	unsigned wrong = 0;

	if (!buf)
		err(1, "malloc");
	while (page < n) {
		size_t at = 0;
		ssize_t k;

		while (asked < n && asked - page <= RAW_WINDOW - RAW_GROUP) {
			raw_ask(fd, asked);
			asked += RAW_GROUP;
		}
		k = recv(fd, buf + have, cap - have, 0);
		if (k <= 0)
			err(1, "recv");
		have += (size_t)k;
		for (;;) {
			char *end = memchr(buf + at, '\n', have - at < RAW_LINE ? have - at : RAW_LINE);
			uint64_t got;
			size_t used;

			if (!end)
				break;
			used = (size_t)(end + 1 - (buf + at));
			if (memcmp(buf + at, "END\r\n", 5) == 0) {
				at += used;
				continue;
			}
			if (memcmp(buf + at, "VALUE ", 6) != 0)
				errx(1, "page %zu is not there", page);
			if (have - at < used + RAW_VALUE + 2)
				break;
			memcpy(&got, end + 1 + RAW_HEAD, sizeof got);
			wrong += got != pattern(page++);
			at += used + RAW_VALUE + 2;
		}
		memmove(buf, buf + at, have - at);
		have -= at;
	}
	free(buf);
	return wrong;
}

#endif
