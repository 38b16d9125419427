#include "mcuri.h"

#include <errno.h>
#include <libmemcached/memcached.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_PORT 11211

static int refuse(char *why, const char *what, size_t len, const char *reason)
{
	snprintf(why, 256, "%.*s: %s", len > 120 ? 120 : (int)len, what, reason);
	return -EINVAL;
}

static int add_server(struct fm_mc_uri *u, const char *text, size_t len, char *why)
{
	bool has_port = false, digits = true;
	const char *port = NULL;
	char *to;

	if (len == 0)
		return refuse(why, text, strcspn(text, "?"), "empty server address (host:port or /path/to.sock)");
	if (len > FM_MC_ADDRESS - 8)
		return refuse(why, text, len, "server address too long");
	if (u->nservers == FM_MC_SERVERS)
		return refuse(why, text, len, "more than 64 servers");
	for (size_t i = 0; i < len; i++) {
		if ((unsigned char)text[i] <= ' ' || text[i] == 0x7f)
			return refuse(why, text, len, "not a server address");
		if (text[i] == ':') {
			has_port = true;
			port = text + i + 1;
		} else if (text[i] == ']') {
			has_port = false;
		}
	}
	to = u->server[u->nservers];
	memcpy(to, text, len);
	to[len] = '\0';
	if (*text != '/') {
		if (!has_port)
			snprintf(to + len, FM_MC_ADDRESS - len, ":%d", DEFAULT_PORT);
		else {
			long n = strtol(port, NULL, 10);

			for (const char *p = port; p < text + len; p++)
				digits &= *p >= '0' && *p <= '9';
			if (!digits || port == text + len || port - 1 == text || n < 1 || n > 65535)
				return refuse(why, text, len, "a server is host:port or /path/to.sock");
		}
	}
	for (unsigned i = 0; i < u->nservers; i++)
		if (strcmp(u->server[i], to) == 0)
			return refuse(why, text, len, "the server is named twice");
	u->nservers++;
	return 0;
}

static int number(const char *text, size_t len, unsigned low, unsigned high, unsigned *out)
{
	unsigned n = 0;

	if (len == 0 || len > 8)
		return -1;
	for (size_t i = 0; i < len; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -1;
		n = n * 10 + (unsigned)(text[i] - '0');
	}
	*out = n;
	return n >= low && n <= high ? 0 : -1;
}

static bool is_option(const char *text, size_t len, const char *name, const char **value, size_t *value_len)
{
	size_t n = strlen(name);

	if (len < n || memcmp(text, name, n) != 0)
		return false;
	*value = text + n;
	*value_len = len - n;
	return true;
}

static int add_option(struct fm_mc_uri *u, const char *text, size_t len, char *why)
{
	const char *v;
	unsigned lossy;
	size_t n;

	if (is_option(text, len, "lossy=", &v, &n)) {
		if (number(v, n, 0, 1, &lossy))
			return refuse(why, text, len, "must be lossy=0 or lossy=1");
		u->lossy = lossy;
	} else if (is_option(text, len, "timeout=", &v, &n)) {
		if (number(v, n, 10, 60000, &u->timeout_ms))
			return refuse(why, text, len, "must be timeout=10..60000 (milliseconds)");
	} else if (is_option(text, len, "gone=", &v, &n)) {
		if (number(v, n, 1, 86400, &u->gone_s))
			return refuse(why, text, len, "must be gone=1..86400 (seconds)");
	} else if (is_option(text, len, "away=", &v, &n)) {
		if (number(v, n, 1, 86400, &u->away_s))
			return refuse(why, text, len, "must be away=1..86400 (seconds)");
	} else {
		return refuse(why, text, len, "unknown option (lossy=, timeout=, gone=, away=)");
	}
	return 0;
}

/* Split at each sep and hand the parts on. */
static int each(struct fm_mc_uri *u, const char *text, size_t len, char sep, char *why,
		int (*one)(struct fm_mc_uri *, const char *, size_t, char *))
{
	for (;;) {
		const char *end = memchr(text, sep, len);
		size_t n = end ? (size_t)(end - text) : len;
		int r = one(u, text, n, why);

		if (r || !end)
			return r;
		text = end + 1;
		len -= n + 1;
	}
}

struct collect {
	struct fm_mc_uri *u;
	char *why;
	int r;
};

static memcached_return_t collect_one(const memcached_st *m, const memcached_instance_st *i, void *arg)
{
	struct collect *c = arg;
	char text[FM_MC_ADDRESS + 16];
	const char *host = memcached_server_name(i);

	(void)m;
	if (c->r)
		return MEMCACHED_SUCCESS;
	if (*host == '/')
		snprintf(text, sizeof text, "%.120s", host);
	else
		snprintf(text, sizeof text, strchr(host, ':') ? "[%.110s]:%u" : "%.110s:%u", host, (unsigned)memcached_server_port(i));
	c->r = add_server(c->u, text, strlen(text), c->why);
	return MEMCACHED_SUCCESS;
}

/* libmemcached reads its own option string; what we need of it are the servers. */
static int from_options(struct fm_mc_uri *u, const char *text, char *why)
{
	memcached_server_fn fn[] = {collect_one};
	struct collect c = {.u = u, .why = why};
	char error[200] = "";
	memcached_st *m;

	if (libmemcached_check_configuration(text, strlen(text), error, sizeof error) != MEMCACHED_SUCCESS)
		return refuse(why, text, strlen(text), "not an option string of libmemcached (as in --SERVER=127.0.0.1:11211)");
	m = memcached(text, strlen(text));
	if (!m)
		return refuse(why, text, strlen(text), "not an option string of libmemcached");
	memcached_server_cursor(m, fn, &c, 1);
	memcached_free(m);
	return c.r;
}

int fm_mc_uri_parse(const char *uri, struct fm_mc_uri *u, char *why)
{
	static const char scheme[] = "memcached:";
	const char *at = uri + sizeof scheme - 1, *options;
	size_t len;
	int r;

	memset(u, 0, sizeof *u);
	/* A record in the registry may say anything. */
	if (strncmp(uri, scheme, sizeof scheme - 1) != 0)
		return refuse(why, uri, strlen(uri), "needs memcached://host:port,... or memcached:/path/to.sock,...");
	u->timeout_ms = 1000;
	u->gone_s = 10;
	u->away_s = 30;
	if (strncmp(at, "--", 2) == 0) {
		r = from_options(u, at, why);
	} else {
		if (strncmp(at, "//", 2) == 0)
			at += 2;
		else if (*at != '/')
			return refuse(why, uri, strlen(uri), "needs memcached://host:port,... or memcached:/path/to.sock,...");
		options = strchr(at, '?');
		len = options ? (size_t)(options - at) : strlen(at);
		r = each(u, at, len, ',', why, add_server);
		if (r == 0 && options)
			r = each(u, options + 1, strlen(options + 1), '&', why, add_option);
	}
	if (r == 0 && u->nservers == 0)
		return refuse(why, uri, strlen(uri), "names no server");
	return r;
}
