/*
 * `ramcloud:`: pages in a stock RAMCloud cluster, a table for each region.
 *
 * Theory of operation. Object: table `fm<region, 16 hex digits>`, key page and generation (8 bytes each, little endian), value as value.h
 * makes it. An object is written once and never changed: so it does no harm that MULTI_OP has no memory of what it did. A write that is sent
 * again, or executed late by a server whose connection was lost, puts the same bytes (sealed once) under the same key; a remove that comes
 * twice or late removes what no word names any more, and no generation is issued twice. At worst an object nobody names stays until its
 * region ends and the table goes.
 *
 * Replicas, recovery and where a tablet lies are RAMCloud's business. What it says is believed: an object that the owner of its tablet does
 * not have, or that is wrong again and again, is LOST; everything else waits.
 *
 * A call waits for what is under way: a reply, a connection, the coordinator; each of these ends by itself. For what lies in the future (a
 * server that rests after a failure, a tablet that recovers, a delay that was asked for) it waits only a moment, then says DOWN, and its caller
 * asks again: other pages must not wait for that one. The dates are kept here, so asking often costs the servers nothing.
 */
#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rccluster.h"
#include "rcuri.h"
#include "shm.h"
#include "value.h"

#define BATCH     FM_EVICT_BATCH
#define KEY       16u
#define PER_READ  16u /* objects of one request: small, for a server's workers share the work, and its stack is small */
#define PER_WRITE 16u
#define PER_MOST  64u /* removes */
#define MS        1000000ull
#define AGAIN_NS  (1 * MS)
#define FULL_NS   (250 * MS) /* a server that refuses a page for so long is full */
#define PATIENCE_NS      (20 * MS)  /* a page-in */
#define PUT_PATIENCE_NS  (100 * MS) /* the evictor has more */
#define WRONG_MOST 4      /* a value that is wrong so often is wrong where it is stored */
#define JUNK_MAX  (1u << 20)
#define JUNK_NS   (1000 * MS)

/* A copy that could not be deleted. */
struct junk {
	uint64_t page, gen;
};

struct rc_region {
	struct rc_region *next;
	uint64_t id;
	struct fm_seal *seal;
	struct fm_rc_table *table;
	struct junk *junk;
	unsigned njunk, junk_cap;
	uint64_t junk_ns; /* when to try again */
};

enum state { WAIT, SENT, DONE };

/* One object of the batch. */
struct item {
	uint64_t page, gen;
	unsigned char key[KEY];
	uint64_t hash;
	void *buf;
	int value_len;      /* PUT: of value[] */
	enum state state;
	bool full;          /* PUT: refused for want of room */
	unsigned refused;   /* times that its server said RETRY */
	unsigned wrong;     /* GET: values that were not this page's */
	uint64_t not_before_ns;
	struct fm_rc_server *server; /* of the pump under way */
	enum fm_store_result result;
};

struct rpc {
	bool used;
	struct fm_rc_server *server;
	unsigned n;
	uint8_t item[PER_MOST];
};

/* A table of a region that ended, still to be dropped. */
struct drop {
	struct drop *next;
	uint64_t region;
};

struct rc_store {
	struct fm_store store;
	struct fm_rc_cluster cluster;
	struct fm_key *key; /* NULL: checksums only */
	struct rc_region *regions;
	struct drop *drops;
	bool monitored, up;
	unsigned looks;
	/* of the batch that runs */
	struct rc_region *region;
	enum fm_rc_multi kind;
	uint64_t begun_ns;
	unsigned n;
	struct item item[BATCH];
	struct rpc rpc[BATCH];
	struct fm_store_req *put; /* between put_begin and put_end */
	unsigned nput;
	unsigned char (*value)[FM_VALUE_MAX]; /* BATCH of them, made by the first put */
	struct fm_value_scratch scratch;
};

/* --- open and close */

static int rc_check(const char *uri, const struct fm_store_options *o, char *why)
{
	struct fm_rc_uri u;

	if (o->replicas > 1) {
		snprintf(why, FM_STORE_WHY, "--replicas: %u: RAMCloud keeps copies of its own (set them at the coordinator)", o->replicas);
		return -EINVAL;
	}
	return fm_rc_uri_parse(uri, &u, why);
}

static void free_region(struct rc_store *s, struct rc_region *r)
{
	fm_rc_cluster_forget(&s->cluster, r->table);
	fm_seal_free(r->seal);
	free(r->junk);
	free(r);
}

static int on_master(void *arg, struct fm_rc_conn *conn, uint32_t tag, const unsigned char *p, size_t len);
static int drop_one(struct rc_store *s, uint64_t until_ns, char *why);

static void rc_close(struct fm_store *store)
{
	struct rc_store *s = (struct rc_store *)store;
	uint64_t until = fm_rc_now() + 500 * MS;
	char why[FM_RC_WHY];

	while (s->drops && drop_one(s, until, why) == 0)
		;
	while (s->drops) {
		struct drop *d = s->drops;

		s->drops = d->next;
		free(d);
	}
	while (s->regions) {
		struct rc_region *r = s->regions;

		s->regions = r->next;
		free_region(s, r);
	}
	fm_rc_cluster_fini(&s->cluster);
	fm_key_close(s->key);
	free(s->value);
	free(s);
}

/* Does the coordinator answer? By a question that any may be asked. */
static int probe(struct rc_store *s, uint64_t until_ns, char *why)
{
	struct fm_rc_table *t = fm_rc_cluster_table(&s->cluster, "fmhosts");
	int e = t ? fm_rc_cluster_do(&s->cluster, FM_RC_OP_ID, t, until_ns, why) : -ENOMEM;

	return e == -ENODATA ? 0 : e;
}

static int rc_open(const char *uri, const struct fm_store_options *o, struct fm_store **out, char *why)
{
	struct rc_store *s = calloc(1, sizeof *s);
	struct fm_rc_uri u;
	int e;

	if (!s)
		return -ENOMEM;
	s->store.ops = &fm_store_ramcloud;
	e = fm_rc_uri_parse(uri, &u, why);
	fm_rc_cluster_init(&s->cluster, &u);
	s->cluster.handler = on_master;
	s->cluster.arg = s;
	if (e == 0 && !o->no_seal) {
		if (!o->key_file) {
			snprintf(why, FM_STORE_WHY, "a network store needs --key-file (made when missing) or --no-seal");
			e = -EINVAL;
		} else if (o->cluster && !o->make_cluster && access(o->key_file, F_OK) < 0) {
			/* Only the daemon's first handle makes one: with another key than its, what is put could never be read. */
			e = -errno;
			snprintf(why, FM_STORE_WHY, "%.180s: the key that pages are sealed with: %s", o->key_file, strerror(-e));
		} else {
			e = fm_key_open(o->key_file, &s->key, why);
		}
	}
	if (e == 0 && o->must_answer) {
		e = probe(s, fm_rc_now() + 5000 * MS, why);
		/* Not a wrong option, whatever it is. */
		if (e == -EINVAL)
			e = -EPROTO;
	}
	if (e) {
		rc_close(&s->store);
		return e;
	}
	*out = &s->store;
	return 0;
}

static void rc_set_idle(struct fm_store *store, void (*idle)(void *), void *arg)
{
	struct rc_store *s = (struct rc_store *)store;

	s->cluster.idle = idle;
	s->cluster.idle_arg = arg;
}

/* --- regions */

static void table_name(char name[FM_RC_NAME], uint64_t region)
{
	snprintf(name, FM_RC_NAME, "fm%016llx", (unsigned long long)region);
}

static struct rc_region *region_of(struct rc_store *s, uint64_t id)
{
	char name[FM_RC_NAME];
	struct rc_region *r;

	for (r = s->regions; r; r = r->next)
		if (r->id == id)
			return r;
	r = calloc(1, sizeof *r);
	if (!r)
		return NULL;
	r->id = id;
	table_name(name, id);
	r->table = fm_rc_cluster_table(&s->cluster, name);
	if (!r->table) {
		free(r);
		return NULL;
	}
	if (fm_seal_new(s->key, id, s->key ? fm_seal_best() : FM_SEAL_CHECKSUM, &r->seal)) {
		fm_rc_cluster_forget(&s->cluster, r->table);
		free(r);
		return NULL;
	}
	r->next = s->regions;
	s->regions = r;
	return r;
}

static int rc_region_begin(struct fm_store *store, uint64_t region)
{
	return region_of((struct rc_store *)store, region) ? 0 : -ENOMEM;
}

static void rc_forget(struct fm_store *store, uint64_t region)
{
	struct rc_store *s = (struct rc_store *)store;

	for (struct rc_region **link = &s->regions, *r; (r = *link); link = &r->next)
		if (r->id == region) {
			*link = r->next;
			free_region(s, r);
			return;
		}
}

/* Drop the table of one region that ended. */
static int drop_one(struct rc_store *s, uint64_t until_ns, char *why)
{
	struct drop *d = s->drops;
	struct fm_rc_table *t;
	char name[FM_RC_NAME];
	int e;

	table_name(name, d->region);
	t = fm_rc_cluster_table(&s->cluster, name);
	if (!t)
		return -ENOMEM;
	e = fm_rc_cluster_do(&s->cluster, FM_RC_OP_DROP, t, until_ns, why);
	if (e)
		return e;
	fm_rc_cluster_forget(&s->cluster, t);
	s->drops = d->next;
	free(d);
	return 0;
}

static int rc_region_end(struct fm_store *store, uint64_t region)
{
	struct rc_store *s = (struct rc_store *)store;
	struct drop *d = calloc(1, sizeof *d), **link = &s->drops;
	uint64_t until = fm_rc_now() + 200 * MS;
	char why[FM_RC_WHY];

	rc_forget(store, region);
	if (!d)
		return -ENOMEM;
	d->region = region;
	while (*link)
		link = &(*link)->next;
	*link = d;
	/* What cannot be done now, the monitor does later. */
	while (s->drops && drop_one(s, until, why) == 0)
		;
	return 0;
}

/* --- batches */

static void put_u64(unsigned char *to, uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		to[i] = (unsigned char)(v >> (8 * i));
}

static void add_item(struct rc_store *s, uint64_t page, uint64_t gen, void *buf)
{
	struct item *i = &s->item[s->n++];

	*i = (struct item){.page = page, .gen = gen, .buf = buf, .result = FM_STORE_DOWN};
	put_u64(i->key, page);
	put_u64(i->key + 8, gen);
}

static void begin(struct rc_store *s, uint64_t region, enum fm_rc_multi kind)
{
	s->region = region_of(s, region);
	s->kind = kind;
	s->n = 0;
	s->begun_ns = fm_rc_now();
	if (s->region)
		s->region->table->absent = false; /* it may have been made since */
	fm_rc_cluster_begin(&s->cluster);
}

static void settle(struct item *i, enum fm_store_result result)
{
	i->state = DONE;
	i->result = result;
}

static void again(struct item *i, uint64_t not_before_ns)
{
	i->state = WAIT;
	i->not_before_ns = not_before_ns;
}

static void all_again(struct rc_store *s, const struct rpc *r, unsigned from, uint64_t not_before_ns)
{
	for (unsigned k = from; k < r->n; k++)
		again(&s->item[r->item[k]], not_before_ns);
}

/* What a master says of one object. */
static void on_part(struct rc_store *s, struct item *i, const struct fm_rc_part *part, uint64_t now)
{
	struct fm_rc_table *t = s->region->table;

	switch (part->status) {
	case FM_RC_OK:
		if (s->kind != FM_RC_READ ||
		    (part->key_len == KEY && memcmp(part->key, i->key, KEY) == 0 &&
		     fm_value_decode(s->region->seal, i->page, i->gen, part->value, part->value_len, i->buf, &s->scratch) == 0))
			settle(i, FM_STORE_OK);
		else if (++i->wrong < WRONG_MOST)
			again(i, now);
		else
			settle(i, FM_STORE_LOST);
		break;
	case FM_RC_NO_OBJECT:
		settle(i, s->kind == FM_RC_READ ? FM_STORE_LOST : s->kind == FM_RC_REMOVE ? FM_STORE_OK : FM_STORE_DOWN);
		break;
	case FM_RC_UNKNOWN_TABLET:
	case FM_RC_NO_TABLE:
		fm_rc_cluster_stale(t, now);
		again(i, now + AGAIN_NS);
		break;
	case FM_RC_RETRY:
		i->full = s->kind == FM_RC_WRITE;
		if (i->full && now - s->begun_ns > FULL_NS)
			settle(i, FM_STORE_FULL);
		else
			again(i, now + (AGAIN_NS << (i->refused < 5 ? i->refused++ : 5)));
		break;
	case FM_RC_NO_SPACE:
		settle(i, s->kind == FM_RC_WRITE ? FM_STORE_FULL : FM_STORE_DOWN);
		break;
	default:
		settle(i, FM_STORE_DOWN);
	}
}

/* A whole request was refused. */
static void on_refusal(struct rc_store *s, struct rpc *r, uint32_t status, const unsigned char *p, size_t len, uint64_t now)
{
	uint64_t at = now + 10 * MS;
	uint32_t low, high;

	if (status == FM_RC_RETRY) {
		fm_rc_retry(p, len, &low, &high);
		at = now + fm_rc_cluster_delay(&s->cluster, low, high);
		if (s->kind == FM_RC_WRITE && len > 16 && memmem(p + 16, len - 16, "capacity", 8))
			for (unsigned k = 0; k < r->n; k++)
				s->item[r->item[k]].full = true;
	} else {
		fm_rc_cluster_stale(s->region->table, now);
	}
	if (status != FM_RC_UNKNOWN_TABLET)
		r->server->not_before_ns = at;
	all_again(s, r, 0, status == FM_RC_UNKNOWN_TABLET ? now + AGAIN_NS : at);
}

static int on_master(void *arg, struct fm_rc_conn *conn, uint32_t tag, const unsigned char *p, size_t len)
{
	struct rc_store *s = arg;
	struct rpc *r = &s->rpc[tag];
	uint64_t now = fm_rc_now();
	struct fm_rc_parts parts;
	struct fm_rc_part part;
	uint32_t status;
	unsigned k = 0;
	int e;

	(void)conn;
	r->used = false;
	if (!p) {
		/* Its tablets will be another's soon, if it is dead. */
		fm_rc_cluster_stale(s->region->table, now);
		all_again(s, r, 0, now);
		return 0;
	}
	e = fm_rc_status(p, len, &status);
	if (e == 0 && status != FM_RC_OK) {
		on_refusal(s, r, status, p, len, now);
		return 0;
	}
	if (e == 0)
		e = fm_rc_multi_reply(&parts, p, len, s->kind);
	if (e == 0 && parts.left > r->n)
		e = -EPROTO;
	while (e == 0 && (e = fm_rc_multi_next(&parts, &part)) == 1) {
		on_part(s, &s->item[r->item[k++]], &part, now);
		e = 0;
		if (k == r->n)
			return 0;
	}
	/* Cut short, or nonsense from here on. */
	all_again(s, r, k, k ? now : now + AGAIN_NS);
	return e;
}

static unsigned free_rpc(const struct rc_store *s)
{
	unsigned k = 0;

	while (k < BATCH && s->rpc[k].used)
		k++;
	return k;
}

static size_t part_bytes(const struct rc_store *s, const struct item *i)
{
	return s->kind == FM_RC_WRITE ? FM_RC_WRITE_PART + KEY + (size_t)i->value_len : FM_RC_KEY_PART + KEY;
}

/* One request with all of those that server v can be asked of. */
static void send_some(struct rc_store *s, struct fm_rc_server *v)
{
	unsigned most = s->kind == FM_RC_READ ? PER_READ : s->kind == FM_RC_WRITE ? PER_WRITE : PER_MOST, k = free_rpc(s);
	struct rpc *r = &s->rpc[k];
	size_t len = FM_RC_MULTI_HEADER;
	unsigned char *to;

	if (k == BATCH)
		return;
	*r = (struct rpc){.server = v};
	for (unsigned i = 0; i < s->n && r->n < most; i++)
		if (s->item[i].server == v) {
			r->item[r->n++] = (uint8_t)i;
			len += part_bytes(s, &s->item[i]);
			s->item[i].server = NULL;
		}
	to = fm_rc_conn_ask(&v->conn, k, len);
	if (!to) {
		all_again(s, r, 0, fm_rc_now() + AGAIN_NS);
		return;
	}
	r->used = true;
	to += fm_rc_multi_begin(to, r->n, s->kind);
	for (unsigned j = 0; j < r->n; j++) {
		struct item *i = &s->item[r->item[j]];

		i->state = SENT;
		if (s->kind == FM_RC_WRITE) {
			to += fm_rc_multi_write(to, s->region->table->id, i->key, KEY, (uint32_t)i->value_len);
			memcpy(to, s->value[i - s->item], (size_t)i->value_len);
			to += i->value_len;
		} else {
			to += fm_rc_multi_key(to, s->region->table->id, i->key, KEY);
		}
	}
}

/* Send what can be sent now. Returns the earliest time at which more can be done; UINT64_MAX: when something comes. */
static uint64_t pump(struct rc_store *s)
{
	struct fm_rc_table *t = s->region->table;
	uint64_t now = fm_rc_now(), next = UINT64_MAX, at;
	bool gap = false;

	if (!fm_rc_cluster_need(&s->cluster, t, s->kind == FM_RC_WRITE)) {
		if (!fm_rc_cluster_hopeful(&s->cluster, now, s->kind == FM_RC_READ ? PATIENCE_NS : PUT_PATIENCE_NS))
			return UINT64_MAX - 1; /* far away */
		return s->cluster.op != FM_RC_OP_NONE ? UINT64_MAX : t->fetch_ns > now ? t->fetch_ns : now + MS;
	}
	if (!t->fresh) { /* there is no such table, and so nothing in it */
		for (unsigned i = 0; i < s->n; i++)
			if (s->item[i].state == WAIT)
				settle(&s->item[i], s->kind == FM_RC_READ ? FM_STORE_LOST : FM_STORE_OK);
		return UINT64_MAX;
	}
	for (unsigned i = 0; i < s->n; i++) {
		struct item *it = &s->item[i];
		struct fm_rc_server *v = NULL;

		it->server = NULL;
		if (it->state != WAIT)
			continue;
		at = it->not_before_ns;
		it->hash = fm_rc_key_hash(t->id, it->key, KEY);
		if (!fm_rc_cluster_owner(t, it->hash, &v) || !v) {
			gap = true;
			at = t->fetch_ns;
		} else if (!fm_rc_cluster_usable(&s->cluster, v, now)) {
			uint64_t rest = v->conn.state == FM_RC_CLOSED ? v->conn.retry_ns : 0;

			at = rest > v->not_before_ns ? rest : v->not_before_ns;
			if (at <= now)
				at = UINT64_MAX - 1; /* its name is being looked up */
		} else if (at <= now) {
			it->server = v;
			continue;
		}
		if (at < next)
			next = at;
	}
	for (unsigned i = 0; i < s->n; i++)
		while (s->item[i].server)
			send_some(s, s->item[i].server);
	for (struct fm_rc_server *v = s->cluster.servers; v; v = v->next)
		if (v->conn.npending)
			fm_rc_conn_flush(&v->conn, on_master, s);
	if (gap && now >= t->fetch_ns)
		t->fresh = false;
	return next;
}

/* Wait until each object has its answer, or is known to have none soon. */
static void finish(struct rc_store *s)
{
	uint64_t deadline = s->begun_ns + 2 * s->cluster.coord.timeout_ns, patience, next, now;

	patience = s->kind == FM_RC_READ ? PATIENCE_NS : PUT_PATIENCE_NS;
	for (;;) {
		unsigned sent = 0, waiting = 0;

		next = pump(s);
		for (unsigned i = 0; i < s->n; i++) {
			sent += s->item[i].state == SENT;
			waiting += s->item[i].state == WAIT;
		}
		now = fm_rc_now();
		if ((!sent && !waiting) || now >= deadline)
			break;
		if (!sent && next != UINT64_MAX && next > now + patience)
			break;
		fm_rc_cluster_wait(&s->cluster, next < deadline ? next : deadline);
	}
	/* What is still under way is read and thrown away when it comes. */
	for (struct fm_rc_server *v = s->cluster.servers; v; v = v->next)
		fm_rc_conn_forget_all(&v->conn);
	for (unsigned i = 0; i < BATCH; i++)
		s->rpc[i].used = false;
	for (unsigned i = 0; i < s->n; i++)
		if (s->item[i].state != DONE)
			settle(&s->item[i], s->item[i].full ? FM_STORE_FULL : FM_STORE_DOWN);
}

static void all(struct fm_store_req *r, unsigned n, enum fm_store_result result)
{
	for (unsigned i = 0; i < n; i++)
		r[i].result = result;
}

static void rc_get(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct rc_store *s = (struct rc_store *)store;

	for (unsigned at = 0; at < n; at += BATCH) {
		unsigned k = n - at < BATCH ? n - at : BATCH;

		begin(s, region, FM_RC_READ);
		all(r + at, k, FM_STORE_DOWN);
		if (!s->region)
			continue;
		for (unsigned i = 0; i < k; i++)
			add_item(s, r[at + i].page, r[at + i].gen, r[at + i].buf);
		finish(s);
		for (unsigned i = 0; i < k; i++)
			r[at + i].result = s->item[i].result;
	}
}

static void keep_junk(struct rc_region *r, uint64_t page, uint64_t gen)
{
	if (r->njunk == r->junk_cap) {
		unsigned cap = r->junk_cap ? 2 * r->junk_cap : 256;
		struct junk *more = cap <= JUNK_MAX ? realloc(r->junk, cap * sizeof *more) : NULL;

		if (!more)
			return; /* it stays until the region ends */
		r->junk = more;
		r->junk_cap = cap;
	}
	r->junk[r->njunk++] = (struct junk){page, gen};
}

/* Delete the objects of the batch; those that could not be are tried again later. */
static void sweep(struct rc_store *s)
{
	struct rc_region *r = s->region;

	finish(s);
	for (unsigned i = 0; i < s->n; i++)
		if (s->item[i].result != FM_STORE_OK) {
			keep_junk(r, s->item[i].page, s->item[i].gen);
			r->junk_ns = fm_rc_now() + JUNK_NS;
		}
}

static void sweep_junk(struct rc_store *s)
{
	struct rc_region *r = s->region;

	if (!r->njunk || fm_rc_now() < r->junk_ns)
		return;
	begin(s, r->id, FM_RC_REMOVE);
	while (r->njunk && s->n < BATCH) {
		const struct junk *j = &r->junk[--r->njunk];

		add_item(s, j->page, j->gen, NULL);
	}
	sweep(s);
}

/* Copies that no word will name: those before; and the new ones that may have been written after all, when that failed. */
static void delete_stale(struct rc_store *s, uint64_t region, const struct fm_store_req *r, unsigned n)
{
	begin(s, region, FM_RC_REMOVE);
	for (unsigned i = 0; i < n; i++) {
		if (s->n + 2 > BATCH) {
			sweep(s);
			begin(s, region, FM_RC_REMOVE);
		}
		if (r[i].moving)
			continue;
		if (r[i].old_gen)
			add_item(s, r[i].page, r[i].old_gen, NULL);
		if (r[i].result != FM_STORE_OK)
			add_item(s, r[i].page, r[i].gen, NULL);
	}
	if (s->n)
		sweep(s);
}

static void rc_put_begin(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct rc_store *s = (struct rc_store *)store;

	s->put = r;
	s->nput = n;
	all(r, n, FM_STORE_DOWN);
	if (!s->value)
		s->value = malloc(BATCH * sizeof *s->value);
	begin(s, region, FM_RC_WRITE);
	if (!s->region || !s->value) {
		s->region = NULL;
		return;
	}
	/* Sealed once: what is sent again is the same. */
	for (unsigned i = 0; i < n; i++) {
		add_item(s, r[i].page, r[i].gen, NULL);
		s->item[i].value_len = fm_value_encode(s->region->seal, r[i].page, r[i].gen, r[i].buf, s->value[i], &s->scratch);
		if (s->item[i].value_len < 0)
			settle(&s->item[i], FM_STORE_DOWN);
	}
	pump(s);
}

static void rc_put_end(struct fm_store *store)
{
	struct rc_store *s = (struct rc_store *)store;
	struct fm_store_req *r = s->put;
	unsigned n = s->nput;

	s->put = NULL;
	s->nput = 0;
	if (!r || !s->region)
		return;
	fm_rc_cluster_begin(&s->cluster);
	s->begun_ns = fm_rc_now();
	finish(s);
	for (unsigned i = 0; i < n; i++)
		r[i].result = s->item[i].result;
	delete_stale(s, s->region->id, r, n);
	sweep_junk(s);
}

static void rc_put(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	for (unsigned at = 0; at < n; at += BATCH) {
		rc_put_begin(store, region, r + at, n - at < BATCH ? n - at : BATCH);
		rc_put_end(store);
	}
}

static void rc_del(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct rc_store *s = (struct rc_store *)store;

	for (unsigned at = 0; at < n; at += BATCH) {
		unsigned k = n - at < BATCH ? n - at : BATCH;

		begin(s, region, FM_RC_REMOVE);
		all(r + at, k, FM_STORE_DOWN);
		if (!s->region)
			continue;
		for (unsigned i = 0; i < k; i++)
			add_item(s, r[at + i].page, r[at + i].gen, NULL);
		finish(s);
		for (unsigned i = 0; i < k; i++)
			r[at + i].result = s->item[i].result;
	}
}

/* --- the rest */

static void rc_monitor(struct fm_store *store)
{
	struct rc_store *s = (struct rc_store *)store;
	uint64_t until = fm_rc_now() + 80 * MS;
	char why[FM_RC_WHY];

	s->monitored = true;
	s->up = probe(s, until, why) == 0;
	if (s->up && s->looks++ % 4 == 0)
		fm_rc_cluster_do(&s->cluster, FM_RC_OP_SERVERS, NULL, until, why);
	while (s->up && s->drops && drop_one(s, until, why) == 0)
		;
}

static int rc_usage(struct fm_store *store, uint64_t *used, uint64_t *limit)
{
	struct rc_store *s = (struct rc_store *)store;
	char why[FM_RC_WHY];

	*used = *limit = 0; /* the protocol does not tell */
	if (!s->monitored) {
		int e = probe(s, fm_rc_now() + 5000 * MS, why);

		if (e)
			return e;
		fm_rc_cluster_do(&s->cluster, FM_RC_OP_SERVERS, NULL, fm_rc_now() + 1000 * MS, why);
		return 0;
	}
	return s->up ? 0 : -EHOSTDOWN;
}

static unsigned rc_servers(const struct fm_store *store)
{
	return ((const struct rc_store *)store)->cluster.masters;
}

const struct fm_store_ops fm_store_ramcloud = {
    .scheme = "ramcloud:",
    .by_generation = true,
    .check = rc_check,
    .open = rc_open,
    .close = rc_close,
    .monitor = rc_monitor,
    .set_idle = rc_set_idle,
    .region_begin = rc_region_begin,
    .get = rc_get,
    .put = rc_put,
    .put_begin = rc_put_begin,
    .put_end = rc_put_end,
    .del = rc_del,
    .forget = rc_forget,
    .region_end = rc_region_end,
    .usage = rc_usage,
    .servers = rc_servers,
};
