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
#include <unistd.h>

#include "mcservers.h"
#include "page.h"
#include "value.h"

#define BATCH     FM_MC_BATCH
#define KEY_BYTES 40
#define SENT_BESIDE 0x80 /* in sent[]: a request whose reply says nothing about the page's outcome */
#define PUSH_FIRST 4
#define PUSH_EVERY 16
#define YIELD_NS  100000
#define DOUBTS    3 /* times to ask again for a value that was wrong */
#define MANY      8 /* pages of a get that are worth more than the sleeps between their arrivals */

_Static_assert(BATCH <= SENT_BESIDE, "an index and a bit share a byte of sent[]");

/* What came of one request on one of its servers. */
enum outcome { UNTRIED = 0, ASKED, GOOD, MISSING, WRONG, GONE, FULL, UNKNOWN };

/* The seal of a region, made by mc_region_begin(). */
struct sealed_region {
	struct sealed_region *next;
	uint64_t region;
	struct fm_seal *seal;
};

struct mc_store {
	struct fm_store store;
	struct fm_key *key; /* NULL: checksums only */
	struct sealed_region *seals;
	void (*idle)(void *);
	void *idle_arg;
	/* of the batch that runs */
	struct fm_seal *seal;
	struct fm_store_req *req;
	uint64_t region;
	unsigned n, copies[BATCH];
	uint8_t place[BATCH][FM_PLACE_REPLICAS];
	uint8_t outcome[BATCH][FM_PLACE_REPLICAS];
	char key_text[BATCH][KEY_BYTES];
	struct fm_value_scratch scratch;
	struct fm_mc_servers servers;
};

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

static size_t key_of(char key[KEY_BYTES], uint64_t region, uint64_t page, uint64_t gen)
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

/* The servers of an epoch; 0: that epoch is not known. */
static uint64_t known_servers(const struct mc_store *s, uint32_t tag)
{
	return fm_cluster_servers(s->servers.cluster, tag) & fm_mc_servers_all(&s->servers);
}

/*
 * Where the copies of a page are by an epoch, best first. An epoch that is not known (its table was lost with daemon.state) leaves
 * every server as a candidate.
 */
static unsigned placed(struct mc_store *s, uint64_t region, uint64_t page, uint32_t tag, uint8_t out[FM_PLACE_REPLICAS])
{
	uint64_t servers = known_servers(s, tag);
	struct fm_epoch e = {.number = tag, .servers = servers ? servers : fm_mc_servers_all(&s->servers), .hash = s->servers.hash};

	return fm_place(&e, region, page, servers ? fm_cluster_replicas(s->servers.cluster, tag) : FM_PLACE_REPLICAS, out);
}

static void begin(struct mc_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	fm_mc_servers_sync(&s->servers);
	s->seal = seal_of(s, region);
	s->req = r;
	s->n = n;
	memset(s->outcome, UNTRIED, sizeof s->outcome);
	for (unsigned i = 0; i < n; i++) {
		s->copies[i] = placed(s, region, r[i].page, r[i].epoch, s->place[i]);
		key_of(s->key_text[i], region, r[i].page, r[i].gen);
	}
	for (unsigned k = 0; k < s->servers.n; k++) {
		s->servers.server[k].nsent = s->servers.server[k].next = 0;
		fm_mc_begin(&s->servers.server[k].conn);
	}
}

static void set_outcome(struct mc_store *s, unsigned i, const struct fm_mc_server *v, enum outcome o)
{
	unsigned k = (unsigned)(v - s->servers.server);

	for (unsigned c = 0; c < s->copies[i]; c++)
		if (s->place[i][c] == k)
			s->outcome[i][c] = (uint8_t)o;
}

static fm_mc_handler on_get, on_put;

/* The reply to the oldest request that v was sent, or that there will be none. */
static void settle(struct mc_store *s, struct fm_mc_server *v, enum outcome o)
{
	uint8_t i = v->sent[v->next++];

	if (!(i & SENT_BESIDE))
		set_outcome(s, i, v, o);
}

/* What it was sent, or was not, it may do late or never: then it has a key that no word names. */
static void note_stale(const struct fm_mc_server *v)
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

/* Run what was sent; then every request without a reply has an outcome too. */
static void run(struct mc_store *s, fm_mc_handler *handler)
{
	struct fm_mc_conn *conns[FM_SERVERS];
	struct fm_mc_run r = {
	    .conns = conns,
	    .timeout_ns = s->servers.uri.timeout_ms * 1000000ull,
	    .yield_ns = handler == on_put || (handler == on_get && s->n >= MANY) ? YIELD_NS : 0,
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
		if (v->next < v->nsent && handler != on_get)
			note_stale(v);
		while (v->next < v->nsent)
			settle(s, v, o);
		v->nsent = v->next = 0;
		if (!v->conn.error)
			fm_mc_begin(&v->conn);
	}
}

/* Can the server be asked now? If not, what does that say of the request? */
static bool can_ask(struct mc_store *s, unsigned i, struct fm_mc_server *v)
{
	if (!v->conn.error && fm_mc_usable(&v->conn))
		return true;
	set_outcome(s, i, v, fm_mc_server_dead(v) ? GONE : UNKNOWN);
	return false;
}

/* --- get */

/* Values come in the order of their keys; the keys left out are not there. */
static void on_get(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	struct mc_store *s = arg;
	struct fm_mc_server *v = fm_mc_server_of(c);

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
			/* Longer ones are not compressed. */
			r->raw_len = r->raw && item->data_len <= FM_VALUE_PAGE ? (uint32_t)item->data_len : 0;
			if (r->raw_len)
				memcpy(r->raw, item->data, r->raw_len);
		} else {
			set_outcome(s, i, v, WRONG); /* stale, moved or torn: as good as none, unless it was torn on its way */
		}
		return;
	}
}

/* Ask one server of a page that was not asked yet; those that look down only when down is set. */
static bool ask_one(struct mc_store *s, unsigned i, bool down)
{
	for (unsigned c = 0; c < s->copies[i]; c++) {
		struct fm_mc_server *v = &s->servers.server[s->place[i][c]];

		if (s->outcome[i][c] != UNTRIED || (!down && fm_mc_server_looks_down(v)) || !can_ask(s, i, v))
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
	for (unsigned k = 0; k < s->servers.n; k++)
		if (s->servers.server[k].nsent)
			fm_mc_add(&s->servers.server[k].conn, "\r\n", 2, 1);
	return any;
}

/* No copy of request i was right: is it lost? */
static void judge(struct mc_store *s, unsigned i)
{
	struct fm_store_req *r = &s->req[i];

	r->may_return = false;
	for (unsigned c = 0; c < s->copies[i]; c++) {
		enum outcome o = (enum outcome)s->outcome[i][c];

		if (o != MISSING && o != WRONG && o != GONE) {
			r->result = FM_STORE_DOWN;
			return;
		}
		/* Who drains it says that it will not come back. */
		r->may_return |= o == GONE && atomic_load(&fm_mc_server_shm(&s->servers.server[s->place[i][c]])->role) == FM_SERVER_MEMBER;
	}
	r->result = FM_STORE_LOST;
}

/*
 * Nothing was right, and something was wrong: that may have happened on its way here. Before the page is lost, who had it is asked again.
 * Returns whether there is anybody to ask.
 */
static bool doubt(struct mc_store *s)
{
	bool any = false;

	for (unsigned i = 0; i < s->n; i++)
		for (unsigned c = 0; c < s->copies[i] && s->req[i].result != FM_STORE_OK; c++)
			if (s->outcome[i][c] == WRONG) {
				s->outcome[i][c] = UNTRIED;
				any = true;
			}
	return any;
}

/*
 * A page seems lost, and its epoch is not known: it may be on any server, and only the first few were asked.
 */
static void search(struct mc_store *s, uint64_t region, struct fm_store_req *r)
{
	uint64_t left = fm_mc_servers_all(&s->servers);

	if (known_servers(s, r->epoch))
		return;
	while (left && r->result == FM_STORE_LOST) {
		struct fm_epoch e = {.number = r->epoch, .servers = left, .hash = s->servers.hash};

		begin(s, region, r, 1);
		s->copies[0] = fm_place(&e, region, r->page, FM_PLACE_REPLICAS, s->place[0]);
		for (unsigned c = 0; c < s->copies[0]; c++)
			left &= ~(1ull << s->place[0][c]);
		while (ask_next(s))
			run(s, on_get);
		if (r->result == FM_STORE_OK)
			return;
		judge(s, 0);
	}
	r->may_return = true; /* or on one that nobody has told us of */
}

/* Ask, but wait for nothing. */
static void mc_get_begin(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mc_store *s = (struct mc_store *)store;

	begin(s, region, r, n);
	s->region = region;
	for (unsigned i = 0; i < n; i++)
		r[i].result = FM_STORE_DOWN;
	if (!s->seal || !ask_next(s))
		return;
	for (unsigned k = 0; k < s->servers.n; k++)
		fm_mc_push(&s->servers.server[k].conn);
}

static void mc_get_end(struct fm_store *store)
{
	struct mc_store *s = (struct mc_store *)store;
	struct fm_store_req *r = s->req;
	unsigned n = s->n;

	if (!s->seal)
		return;
	for (unsigned again = 0; again <= DOUBTS; again++) {
		do {
			run(s, on_get);
		} while (ask_next(s));
		if (again == DOUBTS || !doubt(s))
			break;
	}
	for (unsigned i = 0; i < n; i++)
		if (r[i].result != FM_STORE_OK)
			judge(s, i);
	for (unsigned i = 0; i < n; i++)
		if (r[i].result == FM_STORE_LOST)
			search(s, s->region, &r[i]);
}

static void mc_get(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	for (unsigned at = 0; at < n; at += BATCH) {
		mc_get_begin(store, region, r + at, n - at < BATCH ? n - at : BATCH);
		mc_get_end(store);
	}
}

/* --- put */

static void on_put(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	struct mc_store *s = arg;
	struct fm_mc_server *v = fm_mc_server_of(c);

	(void)item;
	if (v->next < v->nsent)
		settle(s, v,
		       reply == FM_MC_STORED				 ? GOOD
		       : reply == FM_MC_FULL || reply == FM_MC_TOO_LARGE ? FULL
									 : UNKNOWN);
}

/*
 * Delete the copy that request i supersedes, in the same pipeline: no word will name it any more, whatever comes of the put. What
 * comes of the delete changes nothing either.
 */
static void send_delete_old(struct mc_store *s, uint64_t region, unsigned i)
{
	const struct fm_store_req *r = &s->req[i];
	char key[KEY_BYTES], line[FM_MC_KEY_MAX + 64];
	uint8_t place[FM_PLACE_REPLICAS];
	unsigned copies = placed(s, region, r->page, r->old_epoch, place);
	size_t n;

	key_of(key, region, r->page, r->old_gen);
	n = fm_mc_delete(line, sizeof line, key);
	for (unsigned c = 0; c < copies; c++) {
		struct fm_mc_server *v = &s->servers.server[place[c]];

		if (!v->conn.error && fm_mc_usable(&v->conn) && fm_mc_add(&v->conn, line, n, 1) == 0)
			v->sent[v->nsent++] = (uint8_t)(i | SENT_BESIDE);
		else
			note_stale(v);
	}
}

/* One generation is sealed to one value: a page that is moved has it already. Returns its length, or -EINVAL. */
static int encode(struct mc_store *s, const struct fm_store_req *r, void *to)
{
	if (!r->moving)
		return fm_value_encode(s->seal, r->page, r->gen, r->buf, to, &s->scratch);
	if (!r->raw_len)
		return fm_value_encode_again(s->seal, r->page, r->gen, r->buf, to);
	memcpy(to, r->raw, r->raw_len);
	return (int)r->raw_len;
}

/* The value is made where it will be sent from: once, for every replica gets the same bytes. */
static int send_put(struct mc_store *s, unsigned i)
{
	const struct fm_store_req *r = &s->req[i];
	const char *made = NULL;
	bool any_up = false;
	size_t n = 0;

	for (unsigned c = 0; c < s->copies[i]; c++)
		any_up |= !fm_mc_server_looks_down(&s->servers.server[s->place[i][c]]);
	for (unsigned c = 0; c < s->copies[i]; c++) {
		struct fm_mc_server *v = &s->servers.server[s->place[i][c]];
		char *to;

		if ((any_up && fm_mc_server_looks_down(v)) || !can_ask(s, i, v))
			continue;
		to = fm_mc_reserve(&v->conn, FM_MC_SET_MAX + FM_VALUE_MAX + 2);
		if (!to)
			return -ENOMEM;
		if (made) {
			memcpy(to, made, n);
		} else {
			/* The line's length does not depend on the value's. */
			char line[FM_MC_SET_MAX];
			int len;

			n = fm_mc_set(line, sizeof line, s->key_text[i], 0);
			len = encode(s, r, to + n);
			if (len < 0)
				return len;
			n = fm_mc_set(line, sizeof line, s->key_text[i], (size_t)len);
			memcpy(to, line, n);
			to[n + (size_t)len] = '\r';
			to[n + (size_t)len + 1] = '\n';
			n += (size_t)len + 2;
			made = to;
		}
		fm_mc_commit(&v->conn, n, 1);
		s->outcome[i][c] = ASKED;
		v->sent[v->nsent++] = (uint8_t)i;
	}
	return 0;
}

static void on_delete(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	struct mc_store *s = arg;
	struct fm_mc_server *v = fm_mc_server_of(c);

	(void)item;
	if (v->next < v->nsent)
		settle(s, v, reply == FM_MC_DELETED || reply == FM_MC_NOT_FOUND ? GOOD : UNKNOWN);
}

/*
 * Is v one of the servers that a moved page stays on? Under whatever name: what is deleted by the one name of a process is gone by the
 * other. Two processes may be taken for one (containers); then a copy is left behind.
 */
static bool is_kept(const struct mc_store *s, const struct fm_mc_server *v, const uint8_t *keep, unsigned kept)
{
	for (unsigned i = 0; i < kept; i++)
		if (v == &s->servers.server[keep[i]] || fm_mc_server_same(v, &s->servers.server[keep[i]]))
			return true;
	return false;
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
	if (copies < s->servers.n && !known_servers(s, epoch))
		fm_cluster_all_stale(s->servers.cluster); /* it may be on others than these */
	for (unsigned c = 0; c < copies; c++) {
		struct fm_mc_server *v = &s->servers.server[place[c]];

		if (is_kept(s, v, keep, kept)) {
			set_outcome(s, i, v, GOOD);
			continue;
		}
		/* One that looks down is not waited for, unless it has just answered. */
		if (fm_mc_server_looks_down(v) && v->conn.state != FM_MC_READY) {
			set_outcome(s, i, v, fm_mc_server_dead(v) ? GONE : UNKNOWN);
			note_stale(v);
			continue;
		}
		if (!can_ask(s, i, v) || fm_mc_add(&v->conn, line, n, 1)) {
			note_stale(v);
			continue;
		}
		set_outcome(s, i, v, ASKED);
		v->sent[v->nsent++] = (uint8_t)i;
	}
}

/* A put is done when every live server of the page has it, and there is one. The others miss it, and get it when they are back. */
static enum fm_store_result put_result(struct mc_store *s, unsigned i)
{
	unsigned good = 0, full = 0;

	for (unsigned c = 0; c < s->copies[i]; c++) {
		good += s->outcome[i][c] == GOOD;
		full += s->outcome[i][c] == FULL;
	}
	for (unsigned c = 0; c < s->copies[i]; c++) {
		_Atomic uint32_t *flags = &fm_mc_server_shm(&s->servers.server[s->place[i][c]])->flags;

		if (s->outcome[i][c] == FULL)
			atomic_fetch_or(flags, FM_SERVER_FULL);
		else if (s->outcome[i][c] == GOOD && (atomic_load(flags) & FM_SERVER_FULL))
			atomic_fetch_and(flags, ~(uint32_t)FM_SERVER_FULL);
		if (s->outcome[i][c] != GOOD && good && !full)
			atomic_fetch_or(flags, FM_SERVER_MISSED);
	}
	return full ? FM_STORE_FULL : good ? FM_STORE_OK : FM_STORE_DOWN;
}

static void mc_put_begin(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mc_store *s = (struct mc_store *)store;

	begin(s, region, r, n);
	s->region = region;
	for (unsigned i = 0; i < n && s->seal; i++) {
		if (send_put(s, i))
			s->outcome[i][0] = UNKNOWN;
		if (r[i].old_gen && !r[i].moving)
			send_delete_old(s, region, i);
		/* The servers work on these while the next ones are sealed; on the first few at once, they have nothing else. */
		if (i == PUSH_FIRST - 1 || i % PUSH_EVERY == PUSH_EVERY - 1)
			for (unsigned k = 0; k < s->servers.n; k++)
				fm_mc_push(&s->servers.server[k].conn);
	}
	for (unsigned k = 0; k < s->servers.n; k++)
		fm_mc_push(&s->servers.server[k].conn);
}

static void mc_put_end(struct fm_store *store)
{
	struct mc_store *s = (struct mc_store *)store;
	bool clean = false;

	run(s, on_put);
	for (unsigned i = 0; i < s->n; i++) {
		struct fm_store_req *r = &s->req[i];

		r->result = put_result(s, i);
		/* Another server of the page may have it, but no word will name it. */
		if (r->result != FM_STORE_OK && !r->moving) {
			send_delete(s, s->region, i, r->gen, r->epoch, NULL);
			clean = true;
		}
	}
	if (clean)
		run(s, on_delete);
}

static void mc_put(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	for (unsigned at = 0; at < n; at += BATCH) {
		mc_put_begin(store, region, r + at, n - at < BATCH ? n - at : BATCH);
		mc_put_end(store);
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
