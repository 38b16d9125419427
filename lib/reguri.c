#include "reguri.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SCHEME       "zookeeper://"
#define DEFAULT_PORT 2181

static int refuse(char *why, const char *what, size_t len, const char *reason)
{
	snprintf(why, FM_REGISTRY_WHY, "%.*s: %s", len > 120 ? 120 : (int)len, what, reason);
	return -EINVAL;
}

/* A number of decimal digits in [low, high]. */
static int number(const char *text, size_t len, uint64_t low, uint64_t high, uint64_t *out)
{
	uint64_t n = 0;

	if (len == 0 || len > 20)
		return -EINVAL;
	for (size_t i = 0; i < len; i++) {
		uint64_t digit = (uint64_t)(text[i] - '0');

		if (text[i] < '0' || text[i] > '9' || n > (UINT64_MAX - digit) / 10)
			return -EINVAL;
		n = n * 10 + digit;
	}
	if (n < low || n > high)
		return -EINVAL;
	*out = n;
	return 0;
}

/* --- URI */

static int add_server(struct fm_registry_uri *u, const char *text, size_t len, char *why)
{
	const char *host = text, *port = NULL;
	size_t host_len = len, used = strlen(u->connect);
	uint64_t n = DEFAULT_PORT;

	if (len == 0)
		return refuse(why, SCHEME, sizeof SCHEME - 1, "empty server address (zookeeper://host:port,...)");
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)text[i] <= ' ' || (unsigned char)text[i] >= 0x7f)
			return refuse(why, text, i, "not a server address");
	if (*text == '[') {
		const char *end = memchr(text, ']', len);

		/* libzookeeper wants an IPv6 address without its brackets. */
		if (!end || end == text + 1 || (end + 1 < text + len && end[1] != ':'))
			return refuse(why, text, len, "not a server address ([v6]:port)");
		host = text + 1;
		host_len = (size_t)(end - host);
		port = end + 1 < text + len ? end + 2 : NULL;
	} else {
		const char *colon = memchr(text, ':', len);

		if (colon) {
			host_len = (size_t)(colon - text);
			port = colon + 1;
		}
	}
	if (host_len == 0 || host_len > 253)
		return refuse(why, text, len, "not a server address (host:port)");
	if (port && number(port, (size_t)(text + len - port), 1, 65535, &n))
		return refuse(why, text, len, "a server is host:port, a port is 1 to 65535");
	snprintf(u->connect + used, sizeof u->connect - used, "%s%.*s:%u", used ? "," : "", (int)host_len, host, (unsigned)n);
	return 0;
}

static int add_chroot(struct fm_registry_uri *u, const char *text, size_t len, char *why)
{
	const char *part = text + 1;

	if (len <= 1)
		return 0; /* "/" is none */
	for (size_t i = 1; i <= len; i++) {
		size_t n = (size_t)(text + i - part);

		if (i < len && ((unsigned char)text[i] <= ' ' || (unsigned char)text[i] >= 0x7f || text[i] == ','))
			return refuse(why, text, len, "not a path of a znode");
		if (i < len && text[i] != '/')
			continue;
		if (n == 0 || (n == 1 && *part == '.') || (n == 2 && part[0] == '.' && part[1] == '.'))
			return refuse(why, text, len, "not a path of a znode (/a/b)");
		part = text + i + 1;
	}
	memcpy(u->chroot, text, len);
	u->chroot[len] = '\0';
	return 0;
}

static int add_option(struct fm_registry_uri *u, const char *text, size_t len, char *why)
{
	uint64_t n;

	if (len > 6 && memcmp(text, "grace=", 6) == 0) {
		if (number(text + 6, len - 6, 0, 86400, &n))
			return refuse(why, text, len, "must be grace=0..86400 (seconds)");
		u->grace_s = (unsigned)n;
	} else if (len > 8 && memcmp(text, "timeout=", 8) == 0) {
		if (number(text + 8, len - 8, 1000, 600000, &n))
			return refuse(why, text, len, "must be timeout=1000..600000 (milliseconds)");
		u->timeout_ms = (unsigned)n;
	} else if (len > 5 && memcmp(text, "auth=", 5) == 0) {
		if (text[5] != '/' || len - 5 >= sizeof u->auth)
			return refuse(why, text, len, "must be auth=/path/of/a/file");
		memcpy(u->auth, text + 5, len - 5);
		u->auth[len - 5] = '\0';
	} else {
		return refuse(why, text, len, "unknown option (grace=, timeout=, auth=)");
	}
	return 0;
}

/* Split at each sep and hand the parts on. */
static int each(struct fm_registry_uri *u, const char *text, size_t len, char sep, char *why,
		int (*one)(struct fm_registry_uri *, const char *, size_t, char *))
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

int fm_registry_uri_parse(const char *uri, struct fm_registry_uri *u, char *why)
{
	const char *at, *options, *end, *chroot;
	size_t len;
	int r;

	memset(u, 0, sizeof *u);
	u->grace_s = 60;
	u->timeout_ms = 10000;
	if (strcmp(uri, "none") == 0)
		return 0;
	if (strncmp(uri, SCHEME, sizeof SCHEME - 1) != 0)
		return refuse(why, uri, strlen(uri), "unknown registry; known are none zookeeper://host:port[,...][/chroot]");
	if (strlen(uri) >= FM_REGISTRY_URI)
		return refuse(why, uri, 60, "longer than 511 bytes");
	at = uri + sizeof SCHEME - 1;
	options = strchr(at, '?');
	end = options ? options : at + strlen(at);
	chroot = memchr(at, '/', (size_t)(end - at));
	len = (size_t)((chroot ? chroot : end) - at);
	memcpy(u->servers, at, len);
	r = each(u, at, len, ',', why, add_server);
	if (r == 0 && chroot)
		r = add_chroot(u, chroot, (size_t)(end - chroot), why);
	if (r == 0 && options)
		r = each(u, options + 1, strlen(options + 1), '&', why, add_option);
	if (r == 0 && strlen(u->connect) + strlen(u->chroot) >= sizeof u->connect)
		return refuse(why, uri, strlen(uri), "too long");
	if (r == 0)
		strcat(u->connect, u->chroot);
	return r;
}

/* --- records */

int fm_registry_record_format(const struct fm_registry_record *r, char *to)
{
	if (!*r->store || strpbrk(r->store, "\r\n"))
		return -EINVAL;
	return snprintf(to, FM_REGISTRY_RECORD, "host=%016" PRIx64 "\npages=%" PRIu64 "\nstore=%.511s\nepoch=%" PRIu64 "\ncreated=%" PRIu64 "\n",
			r->host, r->pages, r->store, r->epoch, r->created);
}

bool fm_registry_id_parse(const char *text, size_t len, uint64_t *id)
{
	uint64_t n = 0;

	if (len != 16)
		return false;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c >= '0' && c <= '9')
			n = n << 4 | (uint64_t)(c - '0');
		else if (c >= 'a' && c <= 'f')
			n = n << 4 | (uint64_t)(c - 'a' + 10);
		else
			return false;
	}
	*id = n;
	return n != 0;
}

enum key { K_HOST, K_PAGES, K_STORE, K_EPOCH, K_CREATED, K_NUM };
static const char *const keys[] = {
    [K_HOST] = "host=", [K_PAGES] = "pages=", [K_STORE] = "store=", [K_EPOCH] = "epoch=", [K_CREATED] = "created="};
_Static_assert(sizeof keys / sizeof keys[0] == K_NUM, "a name for each key");

static int take(struct fm_registry_record *out, enum key k, const char *v, size_t n)
{
	switch (k) {
	case K_HOST:
		return fm_registry_id_parse(v, n, &out->host) ? 0 : -EINVAL;
	case K_PAGES:
		return number(v, n, 1, UINT64_MAX, &out->pages);
	case K_STORE:
		if (n == 0 || n >= sizeof out->store)
			return -EINVAL;
		/* It is printed in messages: no control characters. */
		for (size_t i = 0; i < n; i++)
			if ((unsigned char)v[i] < ' ' || v[i] == 0x7f)
				return -EINVAL;
		memcpy(out->store, v, n);
		out->store[n] = '\0';
		return 0;
	case K_EPOCH:
		return number(v, n, 0, UINT64_MAX, &out->epoch);
	case K_CREATED:
		return number(v, n, 0, UINT64_MAX, &out->created);
	case K_NUM:
		break;
	}
	return -EINVAL;
}

int fm_registry_record_parse(const char *text, size_t len, struct fm_registry_record *out)
{
	memset(out, 0, sizeof *out);
	while (len) {
		const char *end = memchr(text, '\n', len);
		size_t n = end ? (size_t)(end - text) : len;

		for (enum key k = 0; k < K_NUM; k++) {
			size_t kn = strlen(keys[k]);

			if (n >= kn && memcmp(text, keys[k], kn) == 0 && take(out, k, text + kn, n - kn))
				return -EINVAL;
		}
		text += n + (end != NULL);
		len -= n + (end != NULL);
	}
	return out->host && out->pages && *out->store ? 0 : -EINVAL;
}
