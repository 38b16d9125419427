/* Pages are asked for on memcached servers: see store_memcached.c for the theory. */
#include "store_memcached_impl.h"

#include <string.h>

#define DOUBTS    3 /* times to ask again for a value that was wrong */

/* Values come in the order of their keys; the keys left out are not there. */
static void on_get(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	struct mc_store *s = arg;
	struct fm_mc_server *v = fm_mc_server_of(c);

	if (reply == FM_MC_END) {
		for (; v->next < v->nsent; v->next++)
			mc_set_outcome(s, v->sent[v->next], v, MISSING);
		return;
	}
	if (reply != FM_MC_VALUE)
		return; /* an error: what is open becomes UNKNOWN */
	while (v->next < v->nsent) {
		unsigned i = v->sent[v->next++];
		struct fm_store_req *r = &s->req[i];

		if (item->key_len != strlen(s->key_text[i]) || memcmp(item->key, s->key_text[i], item->key_len) != 0) {
			mc_set_outcome(s, i, v, MISSING);
			continue;
		}
		if (fm_value_decode(s->seal, r->page, r->gen, item->data, item->data_len, r->buf, &s->scratch) == 0) {
			r->result = FM_STORE_OK;
			mc_set_outcome(s, i, v, GOOD);
			/* Longer ones are not compressed. */
			r->raw_len = r->raw && item->data_len <= FM_VALUE_PAGE ? (uint32_t)item->data_len : 0;
			if (r->raw_len)
				memcpy(r->raw, item->data, r->raw_len);
		} else {
			mc_set_outcome(s, i, v, WRONG); /* stale, moved or torn: as good as none, unless it was torn on its way */
		}
		return;
	}
}

/* Ask one server of a page that was not asked yet; those that look down only when down is set. */
static bool ask_one(struct mc_store *s, unsigned i, bool down)
{
	for (unsigned c = 0; c < s->copies[i]; c++) {
		struct fm_mc_server *v = &s->servers.server[s->place[i][c]];

		if (s->outcome[i][c] != UNTRIED || (!down && fm_mc_server_looks_down(v)) || !mc_can_ask(s, i, v))
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

	if (mc_known_servers(s, r->epoch))
		return;
	while (left && r->result == FM_STORE_LOST) {
		struct fm_epoch e = {.number = r->epoch, .servers = left, .hash = s->servers.hash};

		mc_begin(s, region, r, 1);
		s->copies[0] = fm_place(&e, region, r->page, FM_PLACE_REPLICAS, s->place[0]);
		for (unsigned c = 0; c < s->copies[0]; c++)
			left &= ~(1ull << s->place[0][c]);
		while (ask_next(s))
			mc_run(s, MC_GET, on_get);
		if (r->result == FM_STORE_OK)
			return;
		judge(s, 0);
	}
	r->may_return = true; /* or on one that nobody has told us of */
}

/* Ask, but wait for nothing. */
void mc_get_begin(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mc_store *s = (struct mc_store *)store;

	mc_begin(s, region, r, n);
	s->region = region;
	for (unsigned i = 0; i < n; i++)
		r[i].result = FM_STORE_DOWN;
	if (!s->seal || !ask_next(s))
		return;
	for (unsigned k = 0; k < s->servers.n; k++)
		fm_mc_push(&s->servers.server[k].conn);
}

void mc_get_end(struct fm_store *store)
{
	struct mc_store *s = (struct mc_store *)store;
	struct fm_store_req *r = s->req;
	unsigned n = s->n;

	if (!s->seal)
		return;
	for (unsigned again = 0; again <= DOUBTS; again++) {
		do {
			mc_run(s, MC_GET, on_get);
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

void mc_get(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	for (unsigned at = 0; at < n; at += BATCH) {
		mc_get_begin(store, region, r + at, n - at < BATCH ? n - at : BATCH);
		mc_get_end(store);
	}
}
