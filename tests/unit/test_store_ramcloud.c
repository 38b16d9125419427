/*
 * The ramcloud: store over masters that exist only here, in a time that is only here: how long its calls take, and what they ask, when the servers refuse
 * or are silent. (Its protocol and its behaviour towards processes: tests/bats/ramcloud.bats.)
 */
#include "rccluster.h"
#include "store.h"

#include <stdlib.h>
#include <string.h>

#include "tap.h"

#define MS    1000000ull
#define PAGES 64u
#define T     (1000 * MS) /* the timeout */

/* --- instead of lib/rcconn.c and lib/rccluster.c */

static enum { GOOD, SILENT, FULL, CAPACITY } mood;
static uint64_t now = 1000 * 1000 * MS;
static unsigned writes, removes;   /* objects asked for */
static uint64_t removed_from_gen, removed_to_gen;
static struct fm_rc_server server;
static struct fm_rc_table table = {.id = 1, .fresh = true};
static struct request {
	bool used;
	uint64_t due_ns;
	unsigned char bytes[70000];
} request[512];

uint64_t fm_rc_now(void)
{
	return now;
}

unsigned char *fm_rc_conn_ask(struct fm_rc_conn *c, uint32_t tag, size_t len)
{
	struct request *q = &request[tag];

	if (len > sizeof q->bytes)
		abort();
	*q = (struct request){.used = true, .due_ns = now + MS / 2};
	c->npending++;
	return q->bytes;
}

void fm_rc_conn_flush(struct fm_rc_conn *c, fm_rc_handler *h, void *arg)
{
	(void)c;
	(void)h;
	(void)arg;
}

void fm_rc_conn_forget_all(struct fm_rc_conn *c)
{
	for (unsigned i = 0; i < 512; i++)
		request[i].used = false;
	c->npending = 0;
}

void fm_rc_cluster_init(struct fm_rc_cluster *c, const struct fm_rc_uri *uri)
{
	memset(c, 0, sizeof *c);
	c->uri = *uri;
	c->coord.timeout_ns = T;
	c->servers = &server;
}

void fm_rc_cluster_fini(struct fm_rc_cluster *c)
{
	(void)c;
}

void fm_rc_cluster_begin(struct fm_rc_cluster *c)
{
	(void)c;
}

uint64_t fm_rc_cluster_delay(struct fm_rc_cluster *c, uint32_t min_us, uint32_t max_us)
{
	(void)c;
	(void)max_us;
	return min_us * 1000ull;
}

struct fm_rc_table *fm_rc_cluster_table(struct fm_rc_cluster *c, const char *name)
{
	(void)c;
	(void)name;
	return &table;
}

void fm_rc_cluster_forget(struct fm_rc_cluster *c, struct fm_rc_table *t)
{
	(void)c;
	(void)t;
}

void fm_rc_cluster_stale(struct fm_rc_table *t, uint64_t not_before_ns)
{
	(void)t;
	(void)not_before_ns;
}

void fm_rc_cluster_denied(struct fm_rc_table *t, uint64_t map, uint64_t hash)
{
	(void)t;
	(void)map;
	(void)hash;
}

bool fm_rc_cluster_need(struct fm_rc_cluster *c, struct fm_rc_table *t, bool create)
{
	(void)c;
	(void)t;
	(void)create;
	return true;
}

bool fm_rc_cluster_owner(const struct fm_rc_table *t, uint64_t hash, struct fm_rc_server **out)
{
	(void)t;
	(void)hash;
	*out = &server;
	return true;
}

bool fm_rc_cluster_usable(struct fm_rc_cluster *c, struct fm_rc_server *v, uint64_t at)
{
	(void)c;
	return at >= v->not_before_ns;
}

bool fm_rc_cluster_hopeful(const struct fm_rc_cluster *c, uint64_t at, uint64_t patience_ns)
{
	(void)c;
	(void)at;
	(void)patience_ns;
	return true;
}

int fm_rc_cluster_do(struct fm_rc_cluster *c, enum fm_rc_op op, struct fm_rc_table *t, uint64_t until_ns, char *why)
{
	(void)c;
	(void)op;
	(void)t;
	(void)until_ns;
	(void)why;
	return 0;
}

static uint64_t number(const unsigned char *p, unsigned n)
{
	uint64_t v = 0;

	while (n--)
		v = v << 8 | p[n];
	return v;
}

static size_t reply_to(const unsigned char *q, unsigned char *p)
{
	unsigned n = (unsigned)number(q + 4, 4), kind = (unsigned)number(q + 8, 4), status = mood == FULL ? FM_RC_RETRY : FM_RC_OK;

	memset(p, 0, 8 + 12 * (size_t)n);
	*(kind == FM_RC_WRITE ? &writes : &removes) += n;
	if (kind == FM_RC_REMOVE) {
		removed_from_gen = number(q + 12 + 22 + 8, 8);
		removed_to_gen = number(q + 12 + (n - 1) * 38ul + 22 + 8, 8);
	}
	if (mood == CAPACITY) {
		/* 1 ms */
		memcpy(p, (unsigned char[]){FM_RC_RETRY, 0, 0, 0, 0xe8, 3, 0, 0, 0xe8, 3, 0, 0, 25, 0, 0, 0}, 16);
		memcpy(p + 16, "Memory capacity exceeded", 25);
		return 41;
	}
	p[4] = (unsigned char)n;
	for (unsigned i = 0; i < n; i++)
		p[8 + 12 * i] = (unsigned char)status;
	return 8 + 12 * (size_t)n;
}

/* Time passes here alone. */
void fm_rc_cluster_wait(struct fm_rc_cluster *c, uint64_t until_ns)
{
	unsigned char reply[2048];

	now = until_ns < now ? now : until_ns < now + MS ? until_ns : now + MS;
	for (unsigned i = 0; i < 512; i++)
		if (request[i].used && request[i].due_ns <= now && mood != SILENT) {
			request[i].used = false;
			server.conn.npending--;
			c->handler(c->arg, &server.conn, i, reply, reply_to(request[i].bytes, reply));
		}
}

/* --- */

static struct fm_store *store;
static struct fm_store_req req[PAGES];
static unsigned char page[4096] = {1};

static uint64_t put(uint64_t gen, uint64_t old_gen)
{
	uint64_t begun = now;

	writes = removes = 0;
	for (unsigned i = 0; i < PAGES; i++)
		req[i] = (struct fm_store_req){.page = i, .gen = gen, .old_gen = old_gen, .buf = page};
	fm_store_put(store, 7, req, PAGES);
	return now - begun;
}

static uint64_t del(uint64_t gen, bool once)
{
	uint64_t begun = now;

	writes = removes = 0;
	for (unsigned i = 0; i < PAGES; i++)
		req[i] = (struct fm_store_req){.page = i, .gen = gen, .once = once};
	fm_store_delete(store, 7, req, PAGES);
	return now - begun;
}

static bool all_are(enum fm_store_result result)
{
	for (unsigned i = 0; i < PAGES; i++)
		if (req[i].result != result)
			return false;
	return true;
}

int main(void)
{
	struct fm_store_options o = {.no_seal = true};
	char why[FM_STORE_WHY];

	if (!ok(fm_store_open("ramcloud:tcp:host=127.0.0.1,port=1", &o, &store, why) == 0, "a store"))
		return tap_done();

	put(1, 0);
	ok(all_are(FM_STORE_OK) && writes == PAGES && removes == 0, "a first put removes nothing");
	put(2, 1);
	ok(all_are(FM_STORE_OK) && writes == PAGES && removes == PAGES && removed_from_gen == 1 && removed_to_gen == 1, "a second one removes the copies of before");

	mood = SILENT;
	ok(put(3, 2) <= 2 * T + 10 * MS, "a put to silent servers ends within twice the timeout, removes included");
	ok(all_are(FM_STORE_DOWN), "... DOWN");
	ok(del(2, false) <= 2 * T + 10 * MS && all_are(FM_STORE_DOWN), "a delete does");
	mood = GOOD;
	now += 2 * T;
	put(4, 3);
	ok(all_are(FM_STORE_OK) && removes == 3 * PAGES, "what may have been written, and what could not be removed, is removed later");

	mood = FULL;
	ok(put(5, 4) <= 400 * MS, "a put that is refused object by object, and its removes, too, ends soon");
	ok(all_are(FM_STORE_FULL), "... FULL");
	is_u64(removes, PAGES, "... each remove is tried once, and none of what was refused");
	now += 2 * T;
	put(6, 5);
	is_u64(removes, PAGES, "while writes are refused, what is left from before is not tried");
	ok(del(4, true) <= 20 * MS && all_are(FM_STORE_DOWN) && removes == PAGES, "a delete that is refused ends at once");
	ok(del(4, false) <= 20 * MS, "another");
	mood = GOOD;
	now += 2 * T;
	put(7, 6);
	ok(all_are(FM_STORE_OK), "there is room again");
	/* Two batches of what is left: 4 and 5 of the puts, 4 of the delete that nobody repeats. */
	put(8, 7);
	put(9, 8);
	now += 2 * T;
	is_u64(put(10, 9) < T ? removes : 0, PAGES, "... and nothing is left in the end");

	mood = CAPACITY;
	ok(put(11, 10) <= 400 * MS, "a put that is refused as a whole ends soon");
	ok(all_are(FM_STORE_FULL), "... FULL");

	fm_store_close(store);
	return tap_done();
}
