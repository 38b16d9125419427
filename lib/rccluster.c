#include "rccluster.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MS          1000000ull
#define AGAIN_NS    (100 * MS) /* between two looks for the coordinator */
#define GAP_NS      (10 * MS)  /* between two looks at a tablet that recovers, at first */
#define GAP_MAX_NS  (160 * MS)
#define LOOKUP_NS   (300 * MS) /* a lookup that takes longer is not waited for */
#define ERROR_NS    (1000 * MS)
#define POLLED      160
#define TABLETS_MAX 65536u
#define DELAY_MAX_US 30000000u

void fm_rc_cluster_init(struct fm_rc_cluster *c, const struct fm_rc_uri *uri)
{
	memset(c, 0, sizeof *c);
	c->uri = *uri;
	c->rnd = fm_rc_now() | 1;
	fm_rc_conn_init(&c->coord, uri->timeout_ms);
	snprintf(c->why, sizeof c->why, "the coordinator was not asked yet");
}

static void free_table(struct fm_rc_table *t)
{
	free(t->range);
	free(t);
}

void fm_rc_cluster_fini(struct fm_rc_cluster *c)
{
	fm_rc_conn_fini(&c->coord);
	fm_rc_lookup_drop(c->lookup);
	while (c->servers) {
		struct fm_rc_server *v = c->servers;

		c->servers = v->next;
		fm_rc_conn_fini(&v->conn);
		fm_rc_lookup_drop(v->lookup);
		free(v);
	}
	while (c->tables) {
		struct fm_rc_table *t = c->tables;

		c->tables = t->next;
		free_table(t);
	}
}

void fm_rc_cluster_begin(struct fm_rc_cluster *c)
{
	uint64_t now = fm_rc_now();

	fm_rc_conn_begin(&c->coord, now);
	for (struct fm_rc_server *v = c->servers; v; v = v->next)
		fm_rc_conn_begin(&v->conn, now);
	c->idle_ns = now;
}

uint64_t fm_rc_cluster_delay(struct fm_rc_cluster *c, uint32_t min_us, uint32_t max_us)
{
	uint64_t span;

	/* Stock coordinators ask for 10 s at most; nobody makes pages wait for an hour. */
	if (max_us > DELAY_MAX_US)
		max_us = DELAY_MAX_US;
	if (min_us > max_us)
		min_us = max_us;
	span = (uint64_t)max_us - min_us + 1;

	c->rnd ^= c->rnd << 13;
	c->rnd ^= c->rnd >> 7;
	c->rnd ^= c->rnd << 17;
	return (min_us + c->rnd % span) * 1000;
}

/* --- tables */

struct fm_rc_table *fm_rc_cluster_table(struct fm_rc_cluster *c, const char *name)
{
	struct fm_rc_table *t;

	for (t = c->tables; t; t = t->next)
		if (strcmp(t->name, name) == 0)
			return t;
	t = calloc(1, sizeof *t);
	if (!t)
		return NULL;
	snprintf(t->name, sizeof t->name, "%s", name);
	t->next = c->tables;
	c->tables = t;
	return t;
}

void fm_rc_cluster_forget(struct fm_rc_cluster *c, struct fm_rc_table *t)
{
	for (struct fm_rc_table **link = &c->tables; *link; link = &(*link)->next)
		if (*link == t) {
			*link = t->next;
			break;
		}
	if (c->op_table == t)
		c->op_table = NULL;
	free_table(t);
}

void fm_rc_cluster_stale(struct fm_rc_table *t, uint64_t not_before_ns)
{
	t->fresh = false;
	if (t->fetch_ns < not_before_ns)
		t->fetch_ns = not_before_ns;
}

void fm_rc_cluster_denied(struct fm_rc_table *t, uint64_t map, uint64_t hash)
{
	if (map != t->map || !t->fresh)
		return;
	t->denied = true;
	if (t->misses == 0) { /* the map may just be old */
		t->fresh = false;
		return;
	}
	for (unsigned i = 0; i < t->n; i++)
		if (hash >= t->range[i].start && hash <= t->range[i].end)
			t->range[i].server = NULL;
}

bool fm_rc_cluster_owner(const struct fm_rc_table *t, uint64_t hash, struct fm_rc_server **out)
{
	for (unsigned i = 0; i < t->n; i++)
		if (hash >= t->range[i].start && hash <= t->range[i].end) {
			*out = t->range[i].server;
			return true;
		}
	return false;
}

/* --- masters */

static struct fm_rc_server *server_at(struct fm_rc_cluster *c, const struct fm_rc_place *place)
{
	struct fm_rc_server *v;

	for (v = c->servers; v; v = v->next)
		if (v->place.port == place->port && strcmp(v->place.host, place->host) == 0)
			return v;
	v = calloc(1, sizeof *v);
	if (!v)
		return NULL;
	v->place = *place;
	fm_rc_conn_init(&v->conn, c->uri.timeout_ms);
	v->known = fm_rc_numeric(place, &v->conn.address) == 0;
	v->next = c->servers;
	c->servers = v;
	return v;
}

/*
 * Where is it, now that it has no connection? A name may mean another address whenever the connection was lost, and is looked up anew; until that is
 * known the old address is tried, and when the name service fails it is all there is.
 */
static void look_up(struct fm_rc_server *v, uint64_t now)
{
	struct sockaddr_in address;
	char why[FM_RC_WHY];
	int e;

	if (!v->lookup) {
		if ((v->known && v->losses == v->conn.losses) || now < v->lookup_ns)
			return;
		v->losses = v->conn.losses;
		if (fm_rc_numeric(&v->place, &address) == 0)
			return;
		v->lookup = fm_rc_lookup_start(NULL, NULL, &v->place);
	}
	e = v->lookup ? fm_rc_lookup_poll(v->lookup, &address, why) : -ENOMEM;
	if (e == -EINPROGRESS)
		return;
	fm_rc_lookup_drop(v->lookup);
	v->lookup = NULL;
	if (e) {
		v->lookup_ns = now + 1000 * MS;
		if (!v->known)
			v->not_before_ns = v->lookup_ns;
		v->losses = v->conn.losses - 1; /* it is not looked up yet */
		return;
	}
	v->losses = v->conn.losses;
	v->known = true;
	if (address.sin_addr.s_addr != v->conn.address.sin_addr.s_addr) {
		v->conn.retry_ns = v->conn.failures = 0; /* another one: nothing is held against it */
		v->not_before_ns = 0;
	}
	v->conn.address = address;
}

bool fm_rc_cluster_usable(struct fm_rc_cluster *c, struct fm_rc_server *v, uint64_t now)
{
	(void)c;
	if (v->conn.state == FM_RC_CLOSED)
		look_up(v, now);
	return now >= v->not_before_ns && v->known && fm_rc_conn_usable(&v->conn, now);
}

/* --- the coordinator's answers */

/* Take a table's map. An empty one: there is no table of that id any more. */
static int take_map(struct fm_rc_cluster *c, struct fm_rc_table *t, const unsigned char *p, size_t len, uint64_t now)
{
	struct fm_rc_message m, count;
	struct fm_rc_tablet tablet;
	struct fm_rc_range *range;
	unsigned n = 0;
	int r = fm_rc_message(&m, p, len);

	if (r)
		return r;
	count = m;
	while ((r = fm_rc_next_tablet(&count, &tablet)) == 1)
		if (++n > TABLETS_MAX)
			return -EPROTO;
	if (r)
		return r;
	if (n == 0) {
		t->id = 0; /* its name may belong to another by now */
		t->fetch_ns = now + GAP_NS;
		return 0;
	}
	range = calloc(n, sizeof *range);
	if (!range)
		return -ENOMEM;
	t->gaps = false;
	n = 0;
	while (fm_rc_next_tablet(&m, &tablet) == 1) {
		struct fm_rc_place place;

		if (tablet.table != t->id)
			continue;
		range[n].start = tablet.start;
		range[n].end = tablet.end;
		if (!tablet.recovering && tablet.locator && fm_rc_locator((const char *)tablet.locator, tablet.locator_len, &place) == 0)
			range[n].server = server_at(c, &place);
		t->gaps |= !range[n].server;
		n++;
	}
	free(t->range);
	t->range = range;
	t->n = n;
	t->fresh = true;
	t->map++;
	t->misses = t->gaps || t->denied ? t->misses + 1 : 0;
	t->denied = false;
	/* The next one, should this be wrong: not at once. */
	t->fetch_ns = now + (t->misses > 4 ? GAP_MAX_NS : GAP_NS << t->misses);
	return 0;
}

static void take_servers(struct fm_rc_cluster *c, const unsigned char *p, size_t len)
{
	struct fm_rc_server_entry e;
	struct fm_rc_message m;
	unsigned n = 0;

	if (fm_rc_message(&m, p, len))
		return;
	while (fm_rc_next_server(&m, &e) == 1)
		n += e.status == 0 && (e.services & FM_RC_SERVES_MASTER);
	c->masters = n;
}

static int answered(struct fm_rc_cluster *c, struct fm_rc_table *t, enum fm_rc_op op, const unsigned char *p, size_t len, uint64_t now)
{
	switch (op) {
	case FM_RC_OP_ID:
	case FM_RC_OP_CREATE:
		if (c->op_status == FM_RC_NO_TABLE) {
			if (t)
				t->absent = true;
			return 0;
		}
		if (!t)
			return 0;
		t->absent = false;
		return fm_rc_table_id(p, len, &t->id);
	case FM_RC_OP_CONFIG:
		return t ? take_map(c, t, p, len, now) : 0;
	case FM_RC_OP_SERVERS:
		take_servers(c, p, len); /* nothing depends on it */
		return 0;
	case FM_RC_OP_DROP:
	case FM_RC_OP_NONE:
		break;
	}
	return 0;
}

/* The coordinator's address may be another one by now. */
static void coordinator_lost(struct fm_rc_cluster *c, int error, const char *why)
{
	char at[INET_ADDRSTRLEN] = "";

	c->op = FM_RC_OP_NONE;
	c->op_table = NULL;
	c->error = error;
	if (why) {
		snprintf(c->why, sizeof c->why, "%s", why);
	} else {
		inet_ntop(AF_INET, &c->coord.address.sin_addr, at, sizeof at);
		snprintf(c->why, sizeof c->why, "tcp:host=%s,port=%u: %s%s", at, ntohs(c->coord.address.sin_port),
			 error == -EPROTO ? "is no RAMCloud coordinator" : "the coordinator cannot be reached: ",
			 error == -EPROTO ? "" : strerror(-error));
	}
	c->known = false;
	c->lookup_ns = fm_rc_now() + AGAIN_NS;
}

static int on_coordinator(void *arg, struct fm_rc_conn *conn, uint32_t tag, const unsigned char *p, size_t len)
{
	struct fm_rc_cluster *c = arg;
	struct fm_rc_table *t = c->op_table;
	enum fm_rc_op op = (enum fm_rc_op)tag;
	uint64_t now = fm_rc_now();
	uint32_t low, high;
	int e;

	if (!p) {
		coordinator_lost(c, conn->error, NULL);
		return 0;
	}
	c->op = FM_RC_OP_NONE;
	c->op_table = NULL;
	if (fm_rc_status(p, len, &c->op_status))
		return -EPROTO;
	c->heard_ns = now;
	c->error = 0;
	if (c->op_status == FM_RC_RETRY) {
		fm_rc_retry(p, len, &low, &high);
		c->not_before_ns = now + fm_rc_cluster_delay(c, low, high);
		snprintf(c->why, sizeof c->why, "the coordinator asks to wait%s%.*s", len > 17 ? ": " : "", len > 17 ? (int)(len - 17 < 100 ? len - 17 : 100) : 0,
			 len > 17 ? (const char *)p + 16 : "");
		return 0;
	}
	if (c->op_status != FM_RC_OK && !(c->op_status == FM_RC_NO_TABLE && op == FM_RC_OP_ID)) {
		snprintf(c->why, sizeof c->why, "the coordinator refuses: status %u", c->op_status);
		c->not_before_ns = now + AGAIN_NS;
		return 0;
	}
	c->ops++;
	e = answered(c, t, op, p, len, now);
	if (e)
		coordinator_lost(c, e, NULL);
	return e;
}

/* Is there a coordinator to ask? Looks it up when need be. */
static bool coordinator(struct fm_rc_cluster *c, uint64_t now)
{
	const char *zk = *c->uri.zookeeper ? c->uri.zookeeper : NULL;
	struct sockaddr_in address;
	char why[FM_RC_WHY];
	int e;

	if (!c->known && !c->lookup) {
		if (now < c->lookup_ns)
			return false;
		if (!zk && fm_rc_numeric(&c->uri.fixed, &c->coord.address) == 0) {
			c->known = true;
		} else {
			c->lookup = fm_rc_lookup_start(zk, c->uri.node, &c->uri.fixed);
			c->lookup_ns = c->lookup ? now : now + AGAIN_NS;
			return false;
		}
	}
	if (!c->known) {
		e = fm_rc_lookup_poll(c->lookup, &address, why);
		if (e == -EINPROGRESS)
			return false;
		fm_rc_lookup_drop(c->lookup);
		c->lookup = NULL;
		if (e) {
			coordinator_lost(c, e, why);
			return false;
		}
		if (memcmp(&address, &c->coord.address, sizeof address) != 0) {
			c->coord.address = address;
			c->coord.retry_ns = c->coord.failures = 0; /* another one: nothing is held against it */
			c->not_before_ns = 0;
		}
		c->known = true;
	}
	return fm_rc_conn_usable(&c->coord, now);
}

/* Ask one thing. Returns false when it cannot be asked now. */
static bool ask(struct fm_rc_cluster *c, enum fm_rc_op op, struct fm_rc_table *t)
{
	unsigned char request[FM_RC_SMALL], *to;
	uint64_t now = fm_rc_now();
	size_t n = 0;

	if (c->op != FM_RC_OP_NONE || now < c->not_before_ns || !coordinator(c, now))
		return false;
	switch (op) {
	case FM_RC_OP_ID:
		n = fm_rc_get_table_id(request, t->name);
		break;
	case FM_RC_OP_CREATE:
		n = fm_rc_create_table(request, t->name, c->uri.span);
		break;
	case FM_RC_OP_CONFIG:
		n = fm_rc_get_table_config(request, t->id);
		break;
	case FM_RC_OP_DROP:
		n = fm_rc_drop_table(request, t->name);
		break;
	case FM_RC_OP_SERVERS:
		n = fm_rc_get_server_list(request);
		break;
	case FM_RC_OP_NONE:
		return false;
	}
	to = fm_rc_conn_ask(&c->coord, op, n);
	if (!to)
		return false;
	memcpy(to, request, n);
	c->op = op;
	c->op_table = t;
	c->op_ns = now;
	fm_rc_conn_flush(&c->coord, on_coordinator, c);
	return true;
}

bool fm_rc_cluster_need(struct fm_rc_cluster *c, struct fm_rc_table *t, bool create)
{
	if (t->fresh)
		return true;
	if (t->absent && !create)
		return true;
	if (fm_rc_now() < t->fetch_ns)
		return false;
	ask(c, t->id ? FM_RC_OP_CONFIG : create ? FM_RC_OP_CREATE : FM_RC_OP_ID, t);
	return false;
}

bool fm_rc_cluster_hopeful(const struct fm_rc_cluster *c, uint64_t now, uint64_t patience_ns)
{
	uint64_t at = c->not_before_ns;

	if (c->op != FM_RC_OP_NONE)
		return true; /* its connection's silence is bounded */
	if (c->lookup)
		return now - c->lookup_ns < LOOKUP_NS;
	if (!c->known && at < c->lookup_ns)
		at = c->lookup_ns;
	if (c->coord.state == FM_RC_CLOSED && at < c->coord.retry_ns)
		at = c->coord.retry_ns;
	return at <= now + patience_ns;
}

/* --- waiting */

void fm_rc_cluster_wait(struct fm_rc_cluster *c, uint64_t until_ns)
{
	struct pollfd p[POLLED];
	struct fm_rc_conn *who[POLLED];
	uint64_t now = fm_rc_now(), left = until_ns > now ? until_ns - now : 0;
	struct timespec t = {.tv_nsec = (long)(left < FM_RC_SLICE_MS * MS ? left : FM_RC_SLICE_MS * MS)};
	unsigned n = 0;

	if (fm_rc_conn_poll(&c->coord, &p[n]))
		who[n++] = &c->coord;
	for (struct fm_rc_server *v = c->servers; v && n < POLLED; v = v->next)
		if (fm_rc_conn_poll(&v->conn, &p[n]))
			who[n++] = &v->conn;
	ppoll(p, n, &t, NULL);
	now = fm_rc_now();
	if (c->idle && now - c->idle_ns >= FM_RC_SLICE_MS * MS) {
		c->idle(c->idle_arg);
		c->idle_ns = now;
	}
	for (unsigned i = 0; i < n; i++) {
		if (who[i] == &c->coord)
			fm_rc_conn_turn(who[i], p[i].revents, now, on_coordinator, c);
		else
			fm_rc_conn_turn(who[i], p[i].revents, now, c->handler, c->arg);
	}
	/* It answers pings, but not this: another coordinator may. */
	if (c->op != FM_RC_OP_NONE && now - c->op_ns > 10 * c->coord.timeout_ns)
		fm_rc_conn_fail(&c->coord, -ETIMEDOUT, on_coordinator, c);
}

int fm_rc_cluster_do(struct fm_rc_cluster *c, enum fm_rc_op op, struct fm_rc_table *t, uint64_t until_ns, char *why)
{
	uint64_t ops = c->ops, begun = fm_rc_now();
	bool asked = false;

	fm_rc_cluster_begin(c);
	for (;;) {
		uint64_t now = fm_rc_now();

		if (asked && c->op == FM_RC_OP_NONE && c->ops > ops)
			return op == FM_RC_OP_ID && c->op_status == FM_RC_NO_TABLE ? -ENODATA : 0;
		/* An error that lasts is an answer. */
		if (now >= until_ns || (c->error && now - begun > ERROR_NS))
			break;
		if (c->op == FM_RC_OP_NONE) {
			/* What another asked before is answered: now ours. */
			ops = c->ops;
			asked = ask(c, op, t);
		}
		now = fm_rc_now();
		fm_rc_cluster_wait(c, until_ns < now + MS ? until_ns : now + FM_RC_SLICE_MS * MS);
	}
	if (c->error == 0 && c->not_before_ns > fm_rc_now()) {
		snprintf(why, FM_RC_WHY, "%s", c->why);
		return -EAGAIN;
	}
	if (c->error == 0) {
		snprintf(why, FM_RC_WHY, "the coordinator does not answer");
		return -ETIMEDOUT;
	}
	snprintf(why, FM_RC_WHY, "%s", c->why);
	return c->error;
}
