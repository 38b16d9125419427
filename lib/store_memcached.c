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
#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cluster.h"
#include "mcconn.h"
#include "mcuri.h"
#include "page.h"
#include "place.h"
#include "shm.h"
#include "value.h"

#define BATCH     FM_EVICT_BATCH
#define KEY_BYTES 40
#define OLDEST    10404 /* 1.4.4 knows everything used here */

/* This handle's side of a server; its index is the slot in the cluster's table. */
struct server {
	struct fm_mc_address address;
	struct fm_mc_conn conn;
	uint64_t refused_ns;  /* connections were refused from then on; 0: not */
	uint8_t sent[BATCH];  /* requests of this batch, in the order of their replies */
	unsigned nsent, next; /* ... how many, and the first whose reply is to come */
};

/* What came of one request on one of its servers. */
enum outcome { UNTRIED = 0, ASKED, GOOD, MISSING, GONE, FULL, UNKNOWN };

/* The seal of a region, made when the region is first met. */
struct sealed_region {
	struct sealed_region *next;
	uint64_t region;
	struct fm_seal *seal;
};

struct mc_store {
	struct fm_store store;
	struct fm_mc_uri uri;
	unsigned replicas;
	struct fm_key *key; /* NULL: checksums only */
	struct sealed_region *seals;
	char refusal[FM_STORE_WHY]; /* why a server was refused last */
	struct fm_cluster_shm *cluster, *own_cluster; /* own: when nobody gave us one */
	unsigned nservers;                            /* slots that this handle knows */
	bool epoch_due;                               /* monitor: a new epoch could not be opened yet */
	uint64_t hash[FM_PLACE_SERVERS];
	void (*idle)(void *);
	void *idle_arg;
	/* of the batch that runs */
	struct fm_seal *seal;
	struct fm_store_req *req;
	unsigned n, copies[BATCH];
	uint8_t place[BATCH][FM_PLACE_REPLICAS];
	uint8_t outcome[BATCH][FM_PLACE_REPLICAS];
	char key_text[BATCH][KEY_BYTES];
	unsigned char value[FM_VALUE_MAX + 2];
	struct fm_value_scratch scratch;
	struct server server[FM_SERVERS];
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct server *server_of(struct fm_mc_conn *c)
{
	return (struct server *)((char *)c - offsetof(struct server, conn));
}

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

/* A new connection has told who it is: will it do? */
static int greet(void *arg, struct fm_mc_conn *c)
{
	struct mc_store *s = arg;
	const struct fm_mc_hello *h = &c->hello;

	*s->refusal = '\0';
	if (h->version < OLDEST)
		snprintf(s->refusal, sizeof s->refusal, "%.100s: not a memcached of 1.4.4 or newer", c->address->text);
	else if (h->evicts && !s->uri.lossy)
		snprintf(s->refusal, sizeof s->refusal,
			 "%.100s: throws pages away when it is full: start it with -M, or accept that by ?lossy=1", c->address->text);
	else if (h->item_max_bytes && h->item_max_bytes < 8192)
		snprintf(s->refusal, sizeof s->refusal, "%.100s: item size limit %llu is too small: start it with -I 1m",
			 c->address->text, (unsigned long long)h->item_max_bytes);
	return *s->refusal ? -EPROTO : 0;
}

static void ignore(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	(void)arg;
	(void)c;
	(void)reply;
	(void)item;
}

/* --- servers */

/* Know the servers that joined the table since we last looked. */
static void sync_servers(struct mc_store *s)
{
	unsigned n = atomic_load(&s->cluster->nservers);

	for (; s->nservers < n; s->nservers++) {
		const struct fm_server_shm *shm = &s->cluster->server[s->nservers];
		struct server *v = &s->server[s->nservers];

		memcpy(v->address.text, shm->address, sizeof v->address.text);
		memcpy(&v->address.sa, shm->sockaddr, sizeof v->address.sa);
		v->address.sa_len = shm->sockaddr_len;
		fm_mc_init(&v->conn, &v->address);
		s->hash[s->nservers] = fm_place_server(v->address.text);
	}
}

int fm_store_memcached_add(struct fm_cluster_shm *c, const char *address, char *why)
{
	unsigned n = atomic_load(&c->nservers);
	struct fm_server_shm *shm = &c->server[n];
	int known = fm_cluster_find(c, address), r;
	struct fm_mc_address a;

	if (known >= 0) {
		atomic_store(&c->server[known].role, FM_SERVER_MEMBER);
		return known;
	}
	if (n == FM_SERVERS) {
		snprintf(why, FM_STORE_WHY, "%.100s: the table of %d servers is full", address, FM_SERVERS);
		return -ENOSPC;
	}
	r = fm_mc_address(address, strlen(address), &a, why);
	if (r)
		return r;
	/* Two names for one server would put both copies of a page there. */
	for (unsigned i = 0; i < n; i++)
		if (c->server[i].sockaddr_len == a.sa_len && memcmp(c->server[i].sockaddr, &a.sa, a.sa_len) == 0) {
			snprintf(why, FM_STORE_WHY, "%.100s: is the same server as %.100s", address, c->server[i].address);
			return -EINVAL;
		}
	memset(shm, 0, sizeof *shm);
	memcpy(shm->address, a.text, sizeof shm->address);
	memcpy(shm->sockaddr, &a.sa, sizeof a.sa);
	shm->sockaddr_len = a.sa_len;
	atomic_store(&shm->state, FM_SERVER_UP); /* until the contrary is seen */
	atomic_store(&shm->since_ns, now_ns());
	atomic_store(&c->nservers, n + 1);
	return (int)n;
}

static uint64_t all_servers(const struct mc_store *s)
{
	return s->nservers == 64 ? UINT64_MAX : (1ull << s->nservers) - 1;
}

/* Put the URI's servers into the table, and open the first epoch when there is none. */
static int fill_cluster(struct mc_store *s, char *why)
{
	uint64_t members = 0;

	for (unsigned i = 0; i < s->uri.nservers; i++) {
		int slot = fm_store_memcached_add(s->cluster, s->uri.server[i], why);

		if (slot < 0)
			return slot;
		members |= 1ull << slot;
	}
	sync_servers(s);
	if (!atomic_load(&s->cluster->epoch_now))
		fm_cluster_open_epoch(s->cluster, members);
	return 0;
}

/* Connect to all servers at once; those that are up must be fit, and when must_answer all must be up. */
static int first_contact(struct mc_store *s, bool must_answer, char *why)
{
	struct fm_mc_conn *conns[FM_SERVERS];
	struct fm_mc_run run = {.conns = conns, .n = s->nservers, .timeout_ns = 3000000000u, .handler = ignore, .greeter = greet, .arg = s};
	int e = 0;

	for (unsigned i = 0; i < s->nservers; i++) {
		conns[i] = &s->server[i].conn;
		fm_mc_begin(conns[i]);
	}
	fm_mc_run(&run);
	for (unsigned i = 0; i < s->nservers; i++) {
		struct fm_mc_conn *c = conns[i];

		if (c->error == -EPROTO && must_answer) {
			/* Ask it alone again for the reason: it may have been another server's that was kept. */
			struct fm_mc_run one = run;

			*s->refusal = '\0';
			c->retry_ns = 0;
			fm_mc_begin(c);
			one.conns = &conns[i];
			one.n = 1;
			fm_mc_run(&one);
			if (*s->refusal)
				snprintf(why, FM_STORE_WHY, "%s", s->refusal);
			else
				snprintf(why, FM_STORE_WHY, "%.100s: does not speak memcached's protocol", c->address->text);
			return -EPROTO;
		}
		if (c->error && !e) {
			e = c->error;
			snprintf(why, FM_STORE_WHY, "%.100s: cannot be reached: %s", c->address->text, strerror(-e));
		}
	}
	return must_answer ? e : 0;
}

static void mc_close(struct fm_store *store)
{
	struct mc_store *s = (struct mc_store *)store;

	for (unsigned i = 0; i < s->nservers; i++)
		fm_mc_fini(&s->server[i].conn);
	while (s->seals) {
		struct sealed_region *r = s->seals;

		s->seals = r->next;
		fm_seal_free(r->seal);
		free(r);
	}
	fm_key_close(s->key);
	free(s->own_cluster);
	free(s);
}

static int mc_open(const char *uri, const struct fm_store_options *o, struct fm_store **out, char *why)
{
	struct mc_store *s = calloc(1, sizeof *s);
	int r;

	if (!s)
		return -ENOMEM;
	s->store.ops = &fm_store_memcached;
	s->replicas = o->replicas ? o->replicas : 1;
	s->cluster = o->cluster;
	r = fm_mc_uri_parse(uri, &s->uri, why);
	if (r == 0 && !s->cluster) {
		s->cluster = s->own_cluster = calloc(1, sizeof *s->cluster);
		if (!s->cluster)
			r = -ENOMEM;
	}
	/* The table is made once, by the daemon; other handles find it there. */
	if (r == 0 && (s->own_cluster || o->make_cluster))
		r = fill_cluster(s, why);
	if (r == 0)
		sync_servers(s);
	if (r == 0 && !o->no_seal) {
		if (!o->key_file) {
			snprintf(why, FM_STORE_WHY, "a network store needs --key-file (made when missing) or --no-seal");
			r = -EINVAL;
		} else {
			r = fm_key_open(o->key_file, &s->key, why);
		}
	}
	if (r == 0)
		r = first_contact(s, o->must_answer, why);
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

static struct fm_seal *seal_of(struct mc_store *s, uint64_t region)
{
	struct sealed_region *r;

	for (r = s->seals; r; r = r->next)
		if (r->region == region)
			return r->seal;
	r = calloc(1, sizeof *r);
	if (!r)
		return NULL;
	r->region = region;
	if (fm_seal_new(s->key, region, s->key ? fm_seal_best() : FM_SEAL_CHECKSUM, &r->seal)) {
		free(r);
		return NULL;
	}
	r->next = s->seals;
	s->seals = r;
	return r->seal;
}

static size_t key_of(char key[KEY_BYTES], uint64_t region, uint64_t page, uint64_t gen)
{
	return (size_t)snprintf(key, KEY_BYTES, "fm%016llx%08llx%011llx", (unsigned long long)region, (unsigned long long)page,
				(unsigned long long)gen);
}

/*
 * Where the copies of a page are by an epoch, best first. An epoch that is not known (its table was lost with daemon.state) leaves
 * every server as a candidate.
 */
static unsigned placed(struct mc_store *s, uint64_t region, uint64_t page, uint32_t tag, uint8_t out[FM_PLACE_REPLICAS])
{
	uint64_t servers = fm_cluster_servers(s->cluster, tag) & all_servers(s);
	struct fm_epoch e = {.number = tag, .servers = servers ? servers : all_servers(s), .hash = s->hash};

	return fm_place(&e, region, page, servers ? s->replicas : FM_PLACE_REPLICAS, out);
}

static void begin(struct mc_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	sync_servers(s);
	s->seal = seal_of(s, region);
	s->req = r;
	s->n = n;
	memset(s->outcome, UNTRIED, sizeof s->outcome);
	for (unsigned i = 0; i < n; i++) {
		s->copies[i] = placed(s, region, r[i].page, r[i].epoch, s->place[i]);
		key_of(s->key_text[i], region, r[i].page, r[i].gen);
	}
	for (unsigned k = 0; k < s->nservers; k++) {
		s->server[k].nsent = s->server[k].next = 0;
		fm_mc_begin(&s->server[k].conn);
	}
}

static void set_outcome(struct mc_store *s, unsigned i, const struct server *v, enum outcome o)
{
	unsigned k = (unsigned)(v - s->server);

	for (unsigned c = 0; c < s->copies[i]; c++)
		if (s->place[i][c] == k)
			s->outcome[i][c] = (uint8_t)o;
}

static bool is_dead(const struct mc_store *s, const struct server *v)
{
	return (v->refused_ns && now_ns() - v->refused_ns > s->uri.gone_s * 1000000000ull) ||
	       atomic_load(&s->cluster->server[v - s->server].state) == FM_SERVER_DEAD;
}

/* Why a server did not answer: is it dead, and its memory with it? */
static enum outcome silence(struct mc_store *s, struct server *v)
{
	int e = v->conn.error;

	if (e == -ECONNREFUSED || e == -ENOENT) {
		if (!v->refused_ns)
			v->refused_ns = now_ns();
		else if (is_dead(s, v))
			return GONE;
	} else {
		v->refused_ns = 0;
	}
	return UNKNOWN;
}

/* Run what was sent; then every request without a reply has an outcome too. */
static void run(struct mc_store *s, fm_mc_handler *handler)
{
	struct fm_mc_conn *conns[FM_SERVERS];
	struct fm_mc_run r = {
	    .conns = conns,
	    .timeout_ns = s->uri.timeout_ms * 1000000ull,
	    .handler = handler,
	    .greeter = greet,
	    .idle = s->idle,
	    .arg = s,
	    .idle_arg = s->idle_arg,
	};

	for (unsigned k = 0; k < s->nservers; k++)
		if (s->server[k].nsent)
			conns[r.n++] = &s->server[k].conn;
	fm_mc_run(&r);
	for (unsigned k = 0; k < s->nservers; k++) {
		struct server *v = &s->server[k];
		enum outcome o = UNKNOWN;

		if (!v->nsent)
			continue;
		if (v->conn.error)
			o = silence(s, v);
		else
			v->refused_ns = 0;
		for (; v->next < v->nsent; v->next++)
			set_outcome(s, v->sent[v->next], v, o);
		v->nsent = v->next = 0;
		if (!v->conn.error)
			fm_mc_begin(&v->conn);
	}
}

/* Can the server be asked now? If not, what does that say of the request? */
static bool can_ask(struct mc_store *s, unsigned i, struct server *v)
{
	if (!v->conn.error && fm_mc_usable(&v->conn))
		return true;
	set_outcome(s, i, v, is_dead(s, v) ? GONE : UNKNOWN);
	return false;
}

/* Did the daemon's last look find it silent? Then others are asked first. */
static bool looks_down(const struct mc_store *s, const struct server *v)
{
	return atomic_load(&s->cluster->server[v - s->server].state) != FM_SERVER_UP;
}

/* --- get */

/* Values come in the order of their keys; the keys left out are not there. */
static void on_get(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	struct mc_store *s = arg;
	struct server *v = server_of(c);

	if (reply == FM_MC_END) {
		for (; v->next < v->nsent; v->next++)
			set_outcome(s, v->sent[v->next], v, MISSING);
		return;
	}
	if (reply != FM_MC_VALUE)
		return; /* an error: what is open becomes UNKNOWN */
	while (v->next < v->nsent) {
		unsigned i = v->sent[v->next++];
		struct fm_store_req *r = &s->req[i];

		if (item->key_len != strlen(s->key_text[i]) || memcmp(item->key, s->key_text[i], item->key_len) != 0) {
			set_outcome(s, i, v, MISSING);
			continue;
		}
		if (fm_value_decode(s->seal, r->page, r->gen, item->data, item->data_len, r->buf, &s->scratch) == 0) {
			r->result = FM_STORE_OK;
			set_outcome(s, i, v, GOOD);
		} else {
			set_outcome(s, i, v, MISSING); /* wrong, stale, moved or torn: as good as none */
		}
		return;
	}
}

/* Ask one server of a page that was not asked yet; those that look down only when down is set. */
static bool ask_one(struct mc_store *s, unsigned i, bool down)
{
	for (unsigned c = 0; c < s->copies[i]; c++) {
		struct server *v = &s->server[s->place[i][c]];

		if (s->outcome[i][c] != UNTRIED || (!down && looks_down(s, v)) || !can_ask(s, i, v))
			continue;
		if (fm_mc_add(&v->conn, v->nsent ? " " : "get ", v->nsent ? 1 : 4, 0) ||
		    fm_mc_add(&v->conn, s->key_text[i], strlen(s->key_text[i]), 0))
			return false;
		s->outcome[i][c] = ASKED;
		v->sent[v->nsent++] = (uint8_t)i;
		return true;
	}
	return false;
}

/* Ask the next server of each page that has no answer yet. Returns whether anything was sent. */
static bool ask_next(struct mc_store *s)
{
	bool any = false;

	for (unsigned i = 0; i < s->n; i++)
		if (s->req[i].result != FM_STORE_OK && (ask_one(s, i, false) || ask_one(s, i, true)))
			any = true;
	for (unsigned k = 0; k < s->nservers; k++)
		if (s->server[k].nsent)
			fm_mc_add(&s->server[k].conn, "\r\n", 2, 1);
	return any;
}

static void mc_get(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mc_store *s = (struct mc_store *)store;

	for (unsigned at = 0; at < n; at += BATCH) {
		unsigned k = n - at < BATCH ? n - at : BATCH;

		begin(s, region, r + at, k);
		for (unsigned i = 0; i < k; i++)
			r[at + i].result = FM_STORE_DOWN;
		if (!s->seal)
			continue;
		while (ask_next(s))
			run(s, on_get);
		for (unsigned i = 0; i < k; i++) {
			bool lost = r[at + i].result != FM_STORE_OK;

			for (unsigned c = 0; lost && c < s->copies[i]; c++)
				lost = s->outcome[i][c] == MISSING || s->outcome[i][c] == GONE;
			if (lost)
				r[at + i].result = FM_STORE_LOST;
		}
	}
}

/* --- put */

static void on_put(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	struct mc_store *s = arg;
	struct server *v = server_of(c);

	(void)item;
	if (v->next == v->nsent)
		return;
	set_outcome(s, v->sent[v->next++], v,
		    reply == FM_MC_STORED				 ? GOOD
		    : reply == FM_MC_FULL || reply == FM_MC_TOO_LARGE ? FULL
								 : UNKNOWN);
}

static int send_put(struct mc_store *s, unsigned i)
{
	const struct fm_store_req *r = &s->req[i];
	char line[FM_MC_KEY_MAX + 64];
	bool any_up = false;
	int len = fm_value_encode(s->seal, r->page, r->gen, r->buf, s->value, &s->scratch);
	size_t n;

	if (len < 0)
		return len;
	/* Sealed once: every replica gets the same bytes. */
	memcpy(s->value + len, "\r\n", 2);
	n = fm_mc_set(line, sizeof line, s->key_text[i], (size_t)len);
	for (unsigned c = 0; c < s->copies[i]; c++)
		any_up |= !looks_down(s, &s->server[s->place[i][c]]);
	for (unsigned c = 0; c < s->copies[i]; c++) {
		struct server *v = &s->server[s->place[i][c]];

		if ((any_up && looks_down(s, v)) || !can_ask(s, i, v))
			continue;
		if (fm_mc_add(&v->conn, line, n, 0) || fm_mc_add(&v->conn, s->value, (size_t)len + 2, 1))
			return -ENOMEM;
		s->outcome[i][c] = ASKED;
		v->sent[v->nsent++] = (uint8_t)i;
	}
	return 0;
}

static void on_delete(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	struct mc_store *s = arg;
	struct server *v = server_of(c);

	(void)item;
	if (v->next < v->nsent)
		set_outcome(s, v->sent[v->next++], v, reply == FM_MC_DELETED || reply == FM_MC_NOT_FOUND ? GOOD : UNKNOWN);
}

/* Delete copies of request i with that generation from its servers of that epoch, but not from those of the epoch *but (NULL: all). The reply counts in run() like any other. */
static void send_delete(struct mc_store *s, uint64_t region, unsigned i, uint64_t gen, uint32_t epoch, const uint32_t *but)
{
	char key[KEY_BYTES], line[FM_MC_KEY_MAX + 64];
	uint8_t place[FM_PLACE_REPLICAS], keep[FM_PLACE_REPLICAS];
	unsigned copies = placed(s, region, s->req[i].page, epoch, place);
	unsigned kept = but ? placed(s, region, s->req[i].page, *but, keep) : 0;
	size_t n;

	key_of(key, region, s->req[i].page, gen);
	n = fm_mc_delete(line, sizeof line, key);
	for (unsigned c = 0; c < copies; c++) {
		struct server *v = &s->server[place[c]];

		if (memchr(keep, place[c], kept)) {
			set_outcome(s, i, v, GOOD);
			continue;
		}
		if (!can_ask(s, i, v) || fm_mc_add(&v->conn, line, n, 1))
			continue;
		set_outcome(s, i, v, ASKED);
		v->sent[v->nsent++] = (uint8_t)i;
	}
}

/* A put is done when every live server of the page has it, and there is one. */
static enum fm_store_result put_result(const struct mc_store *s, unsigned i)
{
	unsigned good = 0, full = 0;

	for (unsigned c = 0; c < s->copies[i]; c++) {
		good += s->outcome[i][c] == GOOD;
		full += s->outcome[i][c] == FULL;
	}
	return full ? FM_STORE_FULL : good ? FM_STORE_OK : FM_STORE_DOWN;
}

static void mc_put(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mc_store *s = (struct mc_store *)store;

	for (unsigned at = 0; at < n; at += BATCH) {
		unsigned k = n - at < BATCH ? n - at : BATCH;
		bool clean = false;

		begin(s, region, r + at, k);
		for (unsigned i = 0; i < k && s->seal; i++)
			if (send_put(s, i))
				s->outcome[i][0] = UNKNOWN;
		run(s, on_put);
		for (unsigned i = 0; i < k; i++)
			r[at + i].result = put_result(s, i);
		/* Copies that no word will name: the one before, once this one is acknowledged; or this one, when it failed. */
		for (unsigned i = 0; i < k; i++) {
			bool good = r[at + i].result == FM_STORE_OK;
			uint64_t gen = good ? r[at + i].old_gen : r[at + i].gen;

			if (gen && !r[at + i].moving) {
				send_delete(s, region, i, gen, good ? r[at + i].old_epoch : r[at + i].epoch, NULL);
				clean = true;
			}
		}
		if (clean)
			run(s, on_delete);
	}
}

static void mc_del(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mc_store *s = (struct mc_store *)store;

	for (unsigned at = 0; at < n; at += BATCH) {
		unsigned k = n - at < BATCH ? n - at : BATCH;

		begin(s, region, r + at, k);
		for (unsigned i = 0; i < k; i++)
			send_delete(s, region, i, r[at + i].gen, r[at + i].epoch, r[at + i].moving ? &r[at + i].old_epoch : NULL);
		run(s, on_delete);
		for (unsigned i = 0; i < k; i++) {
			bool good = true;

			for (unsigned c = 0; c < s->copies[i]; c++)
				good &= s->outcome[i][c] == GOOD || s->outcome[i][c] == GONE;
			r[at + i].result = good ? FM_STORE_OK : FM_STORE_DOWN;
		}
	}
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

static void on_stats(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	(void)arg;
	if (reply == FM_MC_STAT)
		fm_mc_learn(&c->hello, item);
}

/* Ask every server for its figures. v->nsent: was asked. */
static void look_around(struct mc_store *s)
{
	struct fm_mc_conn *conns[FM_SERVERS];
	struct fm_mc_run r = {.conns = conns, .timeout_ns = 100000000, .handler = on_stats, .greeter = greet, .arg = s};

	sync_servers(s);
	for (unsigned k = 0; k < s->nservers; k++) {
		struct server *v = &s->server[k];

		v->nsent = v->next = 0;
		fm_mc_begin(&v->conn);
		if (!fm_mc_usable(&v->conn) || fm_mc_add(&v->conn, "stats\r\n", 7, 1))
			continue;
		v->nsent = 1;
		v->conn.hello.start_s = 0;
		conns[r.n++] = &v->conn;
	}
	fm_mc_run(&r);
}

/* What the last look says of one server. Returns true when it has begun a new life, with empty hands. */
static bool judge(struct mc_store *s, struct server *v)
{
	struct fm_server_shm *shm = &s->cluster->server[v - s->server];
	const struct fm_mc_hello *h = &v->conn.hello;
	uint32_t was = atomic_load(&shm->state), is = was;
	bool restarted = false;

	if (v->nsent && !v->conn.error) {
		uint64_t start = atomic_load(&shm->start_s), apart = start > h->start_s ? start - h->start_s : h->start_s - start;

		is = FM_SERVER_UP;
		v->refused_ns = 0;
		/* The clock that start is counted from ticks in seconds: one or two apart is the same life. */
		restarted = atomic_load(&shm->pid) && (atomic_load(&shm->pid) != h->pid || apart > 2);
		if (restarted)
			atomic_fetch_add(&shm->restarts, 1);
		atomic_store(&shm->pid, h->pid);
		if (!start || restarted)
			atomic_store(&shm->start_s, h->start_s);
		atomic_store(&shm->used_bytes, h->used_bytes);
		atomic_store(&shm->limit_bytes, h->limit_bytes);
		atomic_store(&shm->items, h->items);
		atomic_store(&shm->rtt_ns, v->conn.rtt_ns);
	} else if (v->conn.error) {
		is = silence(s, v) == GONE ? FM_SERVER_DEAD : was == FM_SERVER_DEAD ? FM_SERVER_DEAD : FM_SERVER_DOWN;
	}
	if (is != was) {
		/* DEAD counts from when it went down. */
		if (is != FM_SERVER_DEAD)
			atomic_store(&shm->since_ns, now_ns());
		atomic_store(&shm->state, is);
	}
	return restarted;
}

static void mc_monitor(struct fm_store *store)
{
	struct mc_store *s = (struct mc_store *)store;
	struct fm_cluster_shm *c = s->cluster;
	uint64_t members = 0, now;

	look_around(s);
	now = now_ns();
	for (unsigned k = 0; k < s->nservers; k++) {
		struct fm_server_shm *shm = &c->server[k];

		s->epoch_due |= judge(s, &s->server[k]);
		if (atomic_load(&shm->role) == FM_SERVER_DRAINED || atomic_load(&shm->state) == FM_SERVER_DEAD ||
		    (atomic_load(&shm->state) == FM_SERVER_DOWN &&
		     now - atomic_load(&shm->since_ns) > s->uri.away_s * 1000000000ull))
			continue;
		members |= 1ull << k;
	}
	fm_cluster_retire(c);
	/* With nobody left there is nowhere to move to: then all wait. */
	if (members && (s->epoch_due || members != fm_cluster_servers(c, FM_EPOCH_TAG(atomic_load(&c->epoch_now)))))
		s->epoch_due = fm_cluster_open_epoch(c, members) != 0;
}

static int mc_usage(struct fm_store *store, uint64_t *used, uint64_t *limit)
{
	struct mc_store *s = (struct mc_store *)store;
	bool down = false;

	/* The monitor of a shared table has just looked. */
	if (s->own_cluster) {
		look_around(s);
		for (unsigned k = 0; k < s->nservers; k++)
			judge(s, &s->server[k]);
	}
	*used = *limit = 0;
	for (unsigned k = 0; k < s->nservers; k++) {
		const struct fm_server_shm *shm = &s->cluster->server[k];

		down |= atomic_load(&shm->state) != FM_SERVER_UP;
		*used += fm_ld(&shm->used_bytes);
		*limit += fm_ld(&shm->limit_bytes);
	}
	return down ? -EHOSTDOWN : 0;
}

const struct fm_store_ops fm_store_memcached = {
    .scheme = "memcached:",
    .check = mc_check,
    .open = mc_open,
    .close = mc_close,
    .set_idle = mc_set_idle,
    .get = mc_get,
    .put = mc_put,
    .del = mc_del,
    .forget = mc_forget,
    .region_end = mc_region_end,
    .usage = mc_usage,
    .monitor = mc_monitor,
    .lists_no_keys = true,
};
