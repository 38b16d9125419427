/*
 * `memcached:`: pages in a cluster of stock memcached servers, each page on R of them.
 *
 * Theory of operation. A value is immutable: its key holds region, page and the whole generation, so a put or a delete that
 * arrives late (a killed evictor's socket buffer, a stalled server) can only touch a value that no word names any more. Which
 * servers hold a page follows from rendezvous hashing. A put is done when every live one of its servers has acknowledged this very
 * page; a get asks them in order of preference and takes the first value that proves to be exactly this page of this generation
 * (value.h). Only when every one of them has answered "not here" or something wrong, or is known to be dead (its address
 * refuses connections for a while: what was in its memory is gone), is the page LOST; a server that does not answer keeps the page waiting.
 */
#include "store_memcached_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


#define YIELD_NS  100000
#define MANY      8 /* pages of a get that are worth more than the sleeps between their arrivals */

/* --- open and close */

static int mc_check(const char *uri, const struct fm_store_options *o, char *why)
{
	struct fm_mc_uri *u = malloc(sizeof *u);
	int r;

	if (!u)
		return -ENOMEM;
	r = fm_mc_uri_parse(uri, u, why);
	if (r == 0 && o->replicas > u->nservers) {
		snprintf(why, FM_STORE_WHY, "--replicas: %u: more than the %u server%s of the store", o->replicas, u->nservers,
			 u->nservers == 1 ? "" : "s");
		r = -EINVAL;
	}
	if (r == 0 && o->replicas > FM_PLACE_REPLICAS) {
		snprintf(why, FM_STORE_WHY, "--replicas: %u: at most %u", o->replicas, FM_PLACE_REPLICAS);
		r = -EINVAL;
	}
	free(u);
	return r;
}

static void mc_close(struct fm_store *store)
{
	struct mc_store *s = (struct mc_store *)store;

	fm_mc_servers_close(&s->servers);
	while (s->seals) {
		struct sealed_region *r = s->seals;

		s->seals = r->next;
		fm_seal_free(r->seal);
		free(r);
	}
	fm_key_close(s->key);
	free(s);
}

static int mc_open(const char *uri, const struct fm_store_options *o, struct fm_store **out, char *why)
{
	struct mc_store *s = calloc(1, sizeof *s);
	int r;

	if (!s)
		return -ENOMEM;
	s->store.ops = &fm_store_memcached;
	r = fm_mc_uri_parse(uri, &s->servers.uri, why);
	if (r == 0)
		r = fm_mc_servers_open(&s->servers, o, why);
	if (r == 0 && !o->no_seal) {
		if (!o->key_file) {
			snprintf(why, FM_STORE_WHY, "a network store needs --key-file (made when missing) or --no-seal");
			r = -EINVAL;
		} else if (o->cluster && !o->make_cluster && access(o->key_file, F_OK) < 0) {
			/* Only the daemon's first handle makes one: with another key than its, what is put could never be read. */
			r = -errno;
			snprintf(why, FM_STORE_WHY, "%.180s: the key that pages are sealed with: %s", o->key_file, strerror(-r));
		} else {
			r = fm_key_open(o->key_file, &s->key, why);
		}
	}
	if (r == 0 && !o->again)
		r = fm_mc_servers_contact(&s->servers, o->must_answer, why);
	if (r) {
		mc_close(&s->store);
		return r;
	}
	*out = &s->store;
	return 0;
}

static void mc_set_idle(struct fm_store *store, void (*idle)(void *), void *arg)
{
	struct mc_store *s = (struct mc_store *)store;

	s->idle = idle;
	s->idle_arg = arg;
}

/* --- batches */

static struct fm_seal *seal_of(const struct mc_store *s, uint64_t region)
{
	struct sealed_region *r;

	for (r = s->seals; r; r = r->next)
		if (r->region == region)
			return r->seal;
	return NULL;
}

/* Not at the first use: that is the fault path, and a seal maps and locks memory. */
static int mc_region_begin(struct fm_store *store, uint64_t region)
{
	struct mc_store *s = (struct mc_store *)store;
	struct sealed_region *r;
	int e;

	if (seal_of(s, region))
		return 0;
	r = calloc(1, sizeof *r);
	if (!r)
		return -ENOMEM;
	r->region = region;
	e = fm_seal_new(s->key, region, s->key ? fm_seal_best() : FM_SEAL_CHECKSUM, &r->seal);
	if (e) {
		free(r);
		return e;
	}
	r->next = s->seals;
	s->seals = r;
	return 0;
}

static char *hex(char *to, uint64_t v, unsigned digits)
{
	for (unsigned i = digits; i-- > 0; v >>= 4)
		to[i] = "0123456789abcdef"[v & 15];
	return to + digits;
}

size_t mc_key_of(char key[KEY_BYTES], uint64_t region, uint64_t page, uint64_t gen)
{
	char *to = key;

	*to++ = 'f';
	*to++ = 'm';
	to = hex(to, region, 16);
	to = hex(to, page, 8);
	to = hex(to, gen, 11);
	*to = '\0';
	return (size_t)(to - key);
}

uint64_t mc_known_servers(const struct mc_store *s, uint32_t tag)
{
	return fm_cluster_servers(s->servers.cluster, tag) & fm_mc_servers_all(&s->servers);
}

unsigned mc_placed(struct mc_store *s, uint64_t region, uint64_t page, uint32_t tag, uint8_t out[FM_PLACE_REPLICAS])
{
	uint64_t servers = mc_known_servers(s, tag);
	struct fm_epoch e = {.number = tag, .servers = servers ? servers : fm_mc_servers_all(&s->servers), .hash = s->servers.hash};

	return fm_place(&e, region, page, servers ? fm_cluster_replicas(s->servers.cluster, tag) : FM_PLACE_REPLICAS, out);
}

void mc_begin(struct mc_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	fm_mc_servers_sync(&s->servers);
	s->seal = seal_of(s, region);
	s->req = r;
	s->n = n;
	memset(s->outcome, UNTRIED, sizeof s->outcome);
	for (unsigned i = 0; i < n; i++) {
		s->copies[i] = mc_placed(s, region, r[i].page, r[i].epoch, s->place[i]);
		mc_key_of(s->key_text[i], region, r[i].page, r[i].gen);
	}
	for (unsigned k = 0; k < s->servers.n; k++) {
		s->servers.server[k].nsent = s->servers.server[k].next = 0;
		fm_mc_begin(&s->servers.server[k].conn);
	}
}

void mc_set_outcome(struct mc_store *s, unsigned i, const struct fm_mc_server *v, enum outcome o)
{
	unsigned k = (unsigned)(v - s->servers.server);

	for (unsigned c = 0; c < s->copies[i]; c++)
		if (s->place[i][c] == k)
			s->outcome[i][c] = (uint8_t)o;
}

void mc_settle(struct mc_store *s, struct fm_mc_server *v, enum outcome o)
{
	uint8_t i = v->sent[v->next++];

	if (!(i & SENT_BESIDE))
		mc_set_outcome(s, i, v, o);
}

void mc_note_stale(const struct fm_mc_server *v)
{
	_Atomic uint32_t *flags = &fm_mc_server_shm(v)->flags;

	if (!(atomic_load(flags) & FM_SERVER_STALE))
		atomic_fetch_or(flags, FM_SERVER_STALE);
}

/* It refused a connection: is there nothing to wait for? One that has left the store is looked after by nobody. */
static bool is_gone(const struct fm_mc_server *v)
{
	bool refused = v->conn.error == -ECONNREFUSED || v->conn.error == -ENOENT;
	unsigned slot = (unsigned)(v - v->all->server);

	return refused && (fm_mc_server_dead(v) || (atomic_load(&fm_mc_server_shm(v)->role) == FM_SERVER_LEFT &&
						    !fm_cluster_in_use(v->all->cluster, slot)));
}

void mc_run(struct mc_store *s, enum mc_what what, fm_mc_handler *handler)
{
	struct fm_mc_conn *conns[FM_SERVERS];
	struct fm_mc_run r = {
	    .conns = conns,
	    .timeout_ns = s->servers.uri.timeout_ms * 1000000ull,
	    .yield_ns = what == MC_PUT || (what == MC_GET && s->n >= MANY) ? YIELD_NS : 0,
	    .handler = handler,
	    .greeter = fm_mc_server_greet,
	    .idle = s->idle,
	    .arg = s,
	    .idle_arg = s->idle_arg,
	};

	for (unsigned k = 0; k < s->servers.n; k++)
		if (s->servers.server[k].nsent)
			conns[r.n++] = &s->servers.server[k].conn;
	fm_mc_run(&r);
	for (unsigned k = 0; k < s->servers.n; k++) {
		struct fm_mc_server *v = &s->servers.server[k];
		enum outcome o = UNKNOWN;

		if (!v->nsent)
			continue;
		if (v->conn.error)
			o = is_gone(v) ? GONE : UNKNOWN;
		if (v->next < v->nsent && what != MC_GET)
			mc_note_stale(v);
		while (v->next < v->nsent)
			mc_settle(s, v, o);
		v->nsent = v->next = 0;
		if (!v->conn.error)
			fm_mc_begin(&v->conn);
	}
}

bool mc_can_ask(struct mc_store *s, unsigned i, struct fm_mc_server *v)
{
	if (!v->conn.error && fm_mc_usable(&v->conn))
		return true;
	mc_set_outcome(s, i, v, fm_mc_server_dead(v) ? GONE : UNKNOWN);
	return false;
}

/* --- the rest */

static void mc_forget(struct fm_store *store, uint64_t region)
{
	struct mc_store *s = (struct mc_store *)store;

	for (struct sealed_region **link = &s->seals, *r; (r = *link); link = &r->next)
		if (r->region == region) {
			*link = r->next;
			fm_seal_free(r->seal);
			free(r);
			return;
		}
}

static int mc_region_end(struct fm_store *store, uint64_t region)
{
	mc_forget(store, region);
	return 0; /* its keys were deleted one by one: the store cannot list them */
}

static void mc_monitor(struct fm_store *store)
{
	fm_mc_servers_monitor(&((struct mc_store *)store)->servers);
}

int fm_store_memcached_probe(struct fm_store *store, const char *address, char *why)
{
	return fm_mc_servers_probe(&((struct mc_store *)store)->servers, address, why);
}

static int mc_usage(struct fm_store *store, uint64_t *used, uint64_t *limit)
{
	return fm_mc_servers_usage(&((struct mc_store *)store)->servers, used, limit);
}

const struct fm_store_ops fm_store_memcached = {
    .scheme = "memcached:",
    .check = mc_check,
    .open = mc_open,
    .close = mc_close,
    .set_idle = mc_set_idle,
    .region_begin = mc_region_begin,
    .get = mc_get,
    .get_begin = mc_get_begin,
    .get_end = mc_get_end,
    .put = mc_put,
    .put_begin = mc_put_begin,
    .put_end = mc_put_end,
    .del = mc_del,
    .forget = mc_forget,
    .region_end = mc_region_end,
    .usage = mc_usage,
    .monitor = mc_monitor,
    .by_generation = true,
    .lists_no_keys = true,
};
