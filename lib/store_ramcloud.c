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
#include "store_ramcloud_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rcuri.h"

#define JUNK_MAX  (1u << 20)
#define JUNK_NS   (1000 * MS)

/* --- open and close */

static int rc_check(const char *uri, const struct fm_store_options *o, char *why)
{
	struct fm_rc_uri u;

	if (o->replicas > 1) {
		snprintf(why, FM_STORE_WHY, "--replicas: %u: RAMCloud keeps copies of its own (--replicas of its servers)", o->replicas);
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
	s->cluster.handler = rc_on_master;
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

struct rc_region *rc_region_of(struct rc_store *s, uint64_t id)
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
	return rc_region_of((struct rc_store *)store, region) ? 0 : -ENOMEM;
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

/* --- requests */

static void all(struct fm_store_req *r, unsigned n, enum fm_store_result result)
{
	for (unsigned i = 0; i < n; i++)
		r[i].result = result;
}

static void rc_get(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct rc_store *s = (struct rc_store *)store;

	rc_call(s);
	for (unsigned at = 0; at < n; at += BATCH) {
		unsigned k = n - at < BATCH ? n - at : BATCH;

		rc_begin(s, region, FM_RC_READ);
		all(r + at, k, FM_STORE_DOWN);
		if (!s->region)
			continue;
		for (unsigned i = 0; i < k; i++)
			rc_add_item(s, r[at + i].page, r[at + i].gen, r[at + i].buf);
		rc_finish(s);
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

	rc_finish(s);
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
	rc_begin(s, r->id, FM_RC_REMOVE);
	while (r->njunk && s->n < BATCH) {
		const struct junk *j = &r->junk[--r->njunk];

		rc_add_item(s, j->page, j->gen, NULL);
	}
	sweep(s);
}

/* Copies that no word will name: those before; and the new ones that may have been written after all (unsure), when that failed. */
static void delete_stale(struct rc_store *s, uint64_t region, const struct fm_store_req *r, const bool *unsure, unsigned n)
{
	rc_begin(s, region, FM_RC_REMOVE);
	for (unsigned i = 0; i < n; i++) {
		if (s->n + 2 > BATCH) {
			sweep(s);
			rc_begin(s, region, FM_RC_REMOVE);
		}
		if (r[i].moving)
			continue;
		if (r[i].old_gen)
			rc_add_item(s, r[i].page, r[i].old_gen, NULL);
		if (r[i].result != FM_STORE_OK && unsure[i])
			rc_add_item(s, r[i].page, r[i].gen, NULL);
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
	rc_call(s);
	rc_begin(s, region, FM_RC_WRITE);
	if (!s->region || !s->value) {
		s->region = NULL;
		return;
	}
	/* Sealed once: what is sent again is the same. */
	for (unsigned i = 0; i < n; i++) {
		rc_add_item(s, r[i].page, r[i].gen, NULL);
		s->item[i].value_len = fm_value_encode(s->region->seal, r[i].page, r[i].gen, r[i].buf, s->value[i], &s->scratch);
		if (s->item[i].value_len < 0)
			rc_settle(&s->item[i], FM_STORE_DOWN);
	}
	rc_pump(s);
}

static void rc_put_end(struct fm_store *store)
{
	struct rc_store *s = (struct rc_store *)store;
	struct fm_store_req *r = s->put;
	bool unsure[BATCH], full = false;
	unsigned n = s->nput;

	s->put = NULL;
	s->nput = 0;
	if (!r || !s->region)
		return;
	rc_call(s); /* its caller did something else meanwhile */
	rc_finish(s);
	for (unsigned i = 0; i < n; i++) {
		r[i].result = s->item[i].result;
		unsure[i] = s->item[i].unsure;
		full |= r[i].result == FM_STORE_FULL;
	}
	delete_stale(s, s->region->id, r, unsure, n);
	/* Only when all went well is there time for those of before. */
	if (!full && fm_rc_now() < s->deadline_ns)
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

	rc_call(s);
	for (unsigned at = 0; at < n; at += BATCH) {
		unsigned k = n - at < BATCH ? n - at : BATCH;

		rc_begin(s, region, FM_RC_REMOVE);
		all(r + at, k, FM_STORE_DOWN);
		if (!s->region)
			continue;
		for (unsigned i = 0; i < k; i++)
			rc_add_item(s, r[at + i].page, r[at + i].gen, NULL);
		rc_finish(s);
		for (unsigned i = 0; i < k; i++) {
			r[at + i].result = s->item[i].result;
			if (r[at + i].result != FM_STORE_OK && r[at + i].once)
				keep_junk(s->region, r[at + i].page, r[at + i].gen);
		}
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
