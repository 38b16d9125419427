#include "rccollect.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rccluster.h"

#define MS      1000000ull
#define AGAIN   (10 * MS)
#define KEY     8u
#define VALUE   12u

struct fm_rccollect {
	struct fm_rc_cluster cluster;
	struct fm_rc_table *hosts;
	/* of the one request under way */
	enum fm_rc_multi kind;
	unsigned char value[VALUE];
	uint64_t hash, map; /* of its key; number of the map by which it was sent */
	int result; /* -EINPROGRESS: no answer yet; -EAGAIN: ask again */
};

static void put(unsigned char *to, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (unsigned char)(v >> (8 * i));
}

static uint64_t get(const unsigned char *p, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

/* Leave that master alone until at_ns. */
static void rest(struct fm_rccollect *c, const struct fm_rc_conn *conn, uint64_t at_ns)
{
	for (struct fm_rc_server *v = c->cluster.servers; v; v = v->next)
		if (&v->conn == conn)
			v->not_before_ns = at_ns;
}

static int on_reply(void *arg, struct fm_rc_conn *conn, uint32_t tag, const unsigned char *p, size_t len)
{
	struct fm_rccollect *c = arg;
	uint64_t now = fm_rc_now();
	struct fm_rc_parts parts;
	struct fm_rc_part part;
	uint32_t status, low, high;

	(void)tag;
	c->result = -EAGAIN;
	if (!p) {
		fm_rc_cluster_stale(c->hosts, 0);
		return 0;
	}
	if (fm_rc_status(p, len, &status))
		return -EPROTO;
	if (status == FM_RC_RETRY) {
		fm_rc_retry(p, len, &low, &high);
		rest(c, conn, now + fm_rc_cluster_delay(&c->cluster, low, high));
		return 0;
	}
	part.status = status;
	if (status == FM_RC_OK && (fm_rc_multi_reply(&parts, p, len, c->kind) || fm_rc_multi_next(&parts, &part) != 1))
		return -EPROTO;
	if (part.status == FM_RC_OK && c->kind == FM_RC_READ && part.value_len == VALUE) {
		memcpy(c->value, part.value, VALUE);
		c->result = 1;
	} else if (part.status == FM_RC_NO_OBJECT || (part.status == FM_RC_OK && c->kind == FM_RC_WRITE)) {
		c->result = 0;
	} else {
		if (part.status != FM_RC_UNKNOWN_TABLET)
			rest(c, conn, now + AGAIN);
		if (part.status != FM_RC_RETRY)
			fm_rc_cluster_denied(c->hosts, c->map, c->hash);
	}
	return 0;
}

struct fm_rccollect *fm_rccollect_open(const char *uri, char *why)
{
	struct fm_rccollect *c = calloc(1, sizeof *c);
	struct fm_rc_uri u;

	if (!c) {
		snprintf(why, FM_RC_WHY, "out of memory");
		return NULL;
	}
	if (fm_rc_uri_parse(uri, &u, why)) {
		free(c);
		return NULL;
	}
	u.span = 1;
	fm_rc_cluster_init(&c->cluster, &u);
	c->cluster.handler = on_reply;
	c->cluster.arg = c;
	c->hosts = fm_rc_cluster_table(&c->cluster, "fmhosts");
	if (!c->hosts) {
		fm_rccollect_close(c);
		snprintf(why, FM_RC_WHY, "out of memory");
		return NULL;
	}
	return c;
}

void fm_rccollect_close(struct fm_rccollect *c)
{
	if (!c)
		return;
	fm_rc_cluster_fini(&c->cluster);
	free(c);
}

/* Send the request for that key, if it can be sent now. */
static void send_one(struct fm_rccollect *c, const unsigned char key[KEY])
{
	size_t len = FM_RC_MULTI_HEADER + (c->kind == FM_RC_WRITE ? FM_RC_WRITE_PART + KEY + VALUE : FM_RC_KEY_PART + KEY);
	struct fm_rc_server *v = NULL;
	uint64_t now = fm_rc_now();
	unsigned char *to;

	c->hash = fm_rc_key_hash(c->hosts->id, key, KEY);
	c->map = c->hosts->map;
	if (!fm_rc_cluster_owner(c->hosts, c->hash, &v) || !v) {
		if (now >= c->hosts->fetch_ns)
			fm_rc_cluster_stale(c->hosts, now);
		return;
	}
	to = fm_rc_cluster_usable(&c->cluster, v, now) ? fm_rc_conn_ask(&v->conn, 0, len) : NULL;
	if (!to)
		return;
	to += fm_rc_multi_begin(to, 1, c->kind);
	if (c->kind == FM_RC_WRITE) {
		to += fm_rc_multi_write(to, c->hosts->id, key, KEY, VALUE);
		memcpy(to, c->value, VALUE);
	} else {
		fm_rc_multi_key(to, c->hosts->id, key, KEY);
	}
	c->result = -EINPROGRESS;
	fm_rc_conn_flush(&v->conn, on_reply, c);
}

/* One object, read or written. 0, 1 (read: it is there) or -ETIMEDOUT. */
static int one(struct fm_rccollect *c, enum fm_rc_multi kind, uint64_t host, unsigned timeout_ms)
{
	uint64_t until = fm_rc_now() + timeout_ms * MS;
	unsigned char key[KEY];

	put(key, host, KEY);
	c->kind = kind;
	c->result = -EAGAIN;
	c->hosts->absent = false;
	fm_rc_cluster_begin(&c->cluster);
	while (c->result < 0 && fm_rc_now() < until) {
		if (c->result == -EAGAIN && fm_rc_cluster_need(&c->cluster, c->hosts, kind == FM_RC_WRITE)) {
			if (!c->hosts->fresh)
				return 0; /* no such table */
			send_one(c, key);
		}
		fm_rc_cluster_wait(&c->cluster, until);
	}
	for (struct fm_rc_server *v = c->cluster.servers; v; v = v->next)
		fm_rc_conn_forget_all(&v->conn);
	return c->result < 0 ? -ETIMEDOUT : c->result;
}

int fm_rccollect_beat(struct fm_rccollect *c, uint64_t host, uint32_t ttl_s, unsigned timeout_ms)
{
	put(c->value, fm_rc_now(), 8);
	put(c->value + 8, ttl_s, 4);
	return one(c, FM_RC_WRITE, host, timeout_ms);
}

int fm_rccollect_beats(struct fm_rccollect *c, uint64_t host, unsigned timeout_ms, uint64_t *beat, uint32_t *ttl_s)
{
	int r = one(c, FM_RC_READ, host, timeout_ms);

	if (r == 1) {
		*beat = get(c->value, 8);
		*ttl_s = (uint32_t)get(c->value + 8, 4);
	}
	return r;
}

int fm_rccollect_drop(struct fm_rccollect *c, uint64_t region, unsigned timeout_ms, char *why)
{
	char name[FM_RC_NAME];
	struct fm_rc_table *t;
	int e;

	snprintf(name, sizeof name, "fm%016llx", (unsigned long long)region);
	t = fm_rc_cluster_table(&c->cluster, name);
	if (!t) {
		snprintf(why, FM_RC_WHY, "out of memory");
		return -ENOMEM;
	}
	e = fm_rc_cluster_do(&c->cluster, FM_RC_OP_DROP, t, fm_rc_now() + timeout_ms * MS, why);
	fm_rc_cluster_forget(&c->cluster, t);
	return e;
}
