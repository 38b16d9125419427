#include "rcuri.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "reguri.h"

#define SCHEME "ramcloud:"

/* --- service locators */

struct text {
	const char *p, *end;
};

static void spaces(struct text *t)
{
	while (t->p < t->end && (*t->p == ' ' || *t->p == '\t'))
		t->p++;
}

/* Up to one of the stop characters; escapes resolved. Returns false when it does not fit, or a quote has no end. */
static bool word(struct text *t, const char *stop, char *to, size_t cap)
{
	bool quoted = false;
	size_t n = 0, keep = 0; /* spaces behind keep do not count */

	spaces(t);
	if (t->p < t->end && *t->p == '"')
		quoted = true, t->p++;
	for (;; t->p++) {
		if (t->p == t->end || (quoted ? *t->p == '"' : strchr(stop, *t->p) != NULL))
			break;
		if (*t->p == '\\' && t->p + 1 < t->end && strchr("\",;\\", t->p[1]))
			t->p++;
		if (!*t->p || n + 1 >= cap)
			return false;
		to[n++] = *t->p;
		if (quoted || (*t->p != ' ' && *t->p != '\t'))
			keep = n;
	}
	to[keep] = '\0';
	if (!quoted)
		return true;
	if (t->p == t->end)
		return false;
	t->p++;
	spaces(t);
	return t->p == t->end || strchr(stop, *t->p);
}

static bool port_of(const char *text, uint16_t *out)
{
	unsigned n = 0;

	if (!*text || strlen(text) > 5 || strspn(text, "0123456789") != strlen(text))
		return false;
	for (; *text; text++)
		n = n * 10 + (unsigned)(*text - '0');
	*out = (uint16_t)n;
	return n >= 1 && n <= 65535;
}

int fm_rc_locator(const char *text, size_t len, struct fm_rc_place *out)
{
	struct text t = {text, text + len};
	char proto[32], key[64], value[FM_RC_HOST];
	bool any = false;

	while (t.p < t.end) {
		bool tcp;

		memset(out, 0, sizeof *out);
		spaces(&t);
		if (t.p == t.end || *t.p == ';') {
			t.p += t.p < t.end;
			continue;
		}
		if (!word(&t, ":;,=", proto, sizeof proto) || !*proto || t.p == t.end || *t.p != ':')
			return -EINVAL;
		t.p++;
		tcp = strcmp(proto, "tcp") == 0;
		any = true;
		for (;;) {
			spaces(&t);
			if (t.p == t.end || *t.p == ';')
				break;
			if (!word(&t, "=,;:", key, sizeof key) || !*key || t.p == t.end || *t.p != '=')
				return -EINVAL;
			t.p++;
			if (!word(&t, ",;", value, sizeof value))
				return -EINVAL;
			if (tcp && strcmp(key, "host") == 0)
				strcpy(out->host, value);
			if (tcp && strcmp(key, "port") == 0 && !port_of(value, &out->port))
				return -EINVAL;
			if (t.p < t.end && *t.p == ',')
				t.p++;
		}
		if (tcp)
			return *out->host && out->port ? 0 : -EINVAL;
		t.p += t.p < t.end;
	}
	return any ? -EPROTONOSUPPORT : -EINVAL;
}

/* --- URIs */

static int refuse(char *why, const char *what, size_t len, const char *reason)
{
	snprintf(why, FM_RC_WHY, "%.*s: %s", len > 100 ? 100 : (int)len, what, reason);
	return -EINVAL;
}

static bool number(const char *text, size_t len, unsigned low, unsigned high, unsigned *out)
{
	unsigned n = 0;

	if (len == 0 || len > 6)
		return false;
	for (size_t i = 0; i < len; i++) {
		if (text[i] < '0' || text[i] > '9')
			return false;
		n = n * 10 + (unsigned)(text[i] - '0');
	}
	*out = n;
	return n >= low && n <= high;
}

static int option(struct fm_rc_uri *u, const char *text, size_t len, char *why)
{
	if (len > 8 && memcmp(text, "cluster=", 8) == 0) {
		for (size_t i = 8; i < len; i++)
			if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.", text[i]))
				return refuse(why, text, len, "a cluster's name has letters, digits and _-. only");
		if (len - 8 >= FM_RC_CLUSTER)
			return refuse(why, text, len, "a cluster's name has at most 63 bytes");
		if (text[8] == '.')
			return refuse(why, text, len, "a cluster's name does not begin with a dot");
		snprintf(u->node, sizeof u->node, "/ramcloud/%.*s/coordinator", (int)len - 8, text + 8);
	} else if (len > 5 && memcmp(text, "span=", 5) == 0) {
		if (!number(text + 5, len - 5, 1, 256, &u->span))
			return refuse(why, text, len, "must be span=1..256 (tablets of a region)");
	} else if (len > 8 && memcmp(text, "timeout=", 8) == 0) {
		if (!number(text + 8, len - 8, 10, 60000, &u->timeout_ms))
			return refuse(why, text, len, "must be timeout=10..60000 (milliseconds)");
	} else {
		return refuse(why, text, len, "unknown option (cluster=, span=, timeout=)");
	}
	return 0;
}

static int zookeeper(struct fm_rc_uri *u, const char *text, size_t len, char *why)
{
	struct fm_registry_uri r;
	char uri[FM_REGISTRY_URI + 16];

	if (memchr(text, '/', len))
		return refuse(why, text, len, "servers are host:port[,host:port...]; the cluster's name is given by ?cluster=NAME");
	if (snprintf(uri, sizeof uri, "zookeeper://%.*s", (int)len, text) >= FM_REGISTRY_URI)
		return refuse(why, text, len, "too long");
	if (fm_registry_uri_parse(uri, &r, why))
		return -EINVAL;
	snprintf(u->zookeeper, sizeof u->zookeeper, "%s", r.connect);
	return 0;
}

int fm_rc_uri_parse(const char *uri, struct fm_rc_uri *u, char *why)
{
	const char *at = uri + strlen(SCHEME), *options, *end;
	bool quoted = false;

	memset(u, 0, sizeof *u);
	strcpy(u->node, "/ramcloud/main/coordinator");
	u->span = 8;
	u->timeout_ms = 1000;
	if (strncmp(uri, SCHEME, strlen(SCHEME)) != 0)
		return refuse(why, uri, strlen(uri), "not a ramcloud: URI");
	if (strlen(uri) >= FM_REGISTRY_URI)
		return refuse(why, uri, 60, "longer than 511 bytes");
	for (options = at; *options && (quoted || *options != '?'); options++)
		quoted ^= *options == '"';
	end = options;
	while (*options) {
		size_t n = strcspn(++options, "&");

		if (option(u, options, n, why))
			return -EINVAL;
		options += n;
	}
	if (strncmp(at, "zk:", 3) == 0)
		return zookeeper(u, at + 3, (size_t)(end - at) - 3, why);
	if (strncmp(at, "tcp:", 4) == 0) {
		if (fm_rc_locator(at, (size_t)(end - at), &u->fixed))
			return refuse(why, uri, strlen(uri), "must be ramcloud:tcp:host=HOST,port=1..65535");
		return 0;
	}
	return refuse(why, uri, strlen(uri), "a coordinator is zk:host:port[,host:port...] or tcp:host=HOST,port=PORT");
}
