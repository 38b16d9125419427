/* Pages are stored on memcached servers, and deleted: see store_memcached.c for the theory. */
#include "store_memcached_impl.h"

#include <errno.h>
#include <string.h>

#define PUSH_FIRST 4
#define PUSH_EVERY 16

static void on_put(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	struct mc_store *s = arg;
	struct fm_mc_server *v = fm_mc_server_of(c);

	(void)item;
	if (v->next < v->nsent)
		mc_settle(s, v,
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
	unsigned copies = mc_placed(s, region, r->page, r->old_epoch, place);
	size_t n;

	mc_key_of(key, region, r->page, r->old_gen);
	n = fm_mc_delete(line, sizeof line, key);
	for (unsigned c = 0; c < copies; c++) {
		struct fm_mc_server *v = &s->servers.server[place[c]];

		if (!v->conn.error && fm_mc_usable(&v->conn) && fm_mc_add(&v->conn, line, n, 1) == 0)
			v->sent[v->nsent++] = (uint8_t)(i | SENT_BESIDE);
		else
			mc_note_stale(v);
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

		if ((any_up && fm_mc_server_looks_down(v)) || !mc_can_ask(s, i, v))
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
		mc_settle(s, v, reply == FM_MC_DELETED || reply == FM_MC_NOT_FOUND ? GOOD : UNKNOWN);
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

/* Delete copies of request i with that generation from its servers of that epoch, but not from those of the epoch *but (NULL: all). The reply counts in mc_run() like any other. */
static void send_delete(struct mc_store *s, uint64_t region, unsigned i, uint64_t gen, uint32_t epoch, const uint32_t *but)
{
	char key[KEY_BYTES], line[FM_MC_KEY_MAX + 64];
	uint8_t place[FM_PLACE_REPLICAS], keep[FM_PLACE_REPLICAS];
	unsigned copies = mc_placed(s, region, s->req[i].page, epoch, place);
	unsigned kept = but ? mc_placed(s, region, s->req[i].page, *but, keep) : 0;
	size_t n;

	mc_key_of(key, region, s->req[i].page, gen);
	n = fm_mc_delete(line, sizeof line, key);
	if (copies < s->servers.n && !mc_known_servers(s, epoch))
		fm_cluster_all_stale(s->servers.cluster); /* it may be on others than these */
	for (unsigned c = 0; c < copies; c++) {
		struct fm_mc_server *v = &s->servers.server[place[c]];

		if (is_kept(s, v, keep, kept)) {
			mc_set_outcome(s, i, v, GOOD);
			continue;
		}
		/* One that looks down is not waited for, unless it has just answered. */
		if (fm_mc_server_looks_down(v) && v->conn.state != FM_MC_READY) {
			mc_set_outcome(s, i, v, fm_mc_server_dead(v) ? GONE : UNKNOWN);
			mc_note_stale(v);
			continue;
		}
		if (!mc_can_ask(s, i, v) || fm_mc_add(&v->conn, line, n, 1)) {
			mc_note_stale(v);
			continue;
		}
		mc_set_outcome(s, i, v, ASKED);
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

void mc_put_begin(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mc_store *s = (struct mc_store *)store;

	mc_begin(s, region, r, n);
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

void mc_put_end(struct fm_store *store)
{
	struct mc_store *s = (struct mc_store *)store;
	bool clean = false;

	mc_run(s, MC_PUT, on_put);
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
		mc_run(s, MC_DELETE, on_delete);
}

void mc_put(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	for (unsigned at = 0; at < n; at += BATCH) {
		mc_put_begin(store, region, r + at, n - at < BATCH ? n - at : BATCH);
		mc_put_end(store);
	}
}

void mc_del(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mc_store *s = (struct mc_store *)store;

	for (unsigned at = 0; at < n; at += BATCH) {
		unsigned k = n - at < BATCH ? n - at : BATCH;

		mc_begin(s, region, r + at, k);
		for (unsigned i = 0; i < k; i++)
			send_delete(s, region, i, r[at + i].gen, r[at + i].epoch, r[at + i].moving ? &r[at + i].old_epoch : NULL);
		mc_run(s, MC_DELETE, on_delete);
		for (unsigned i = 0; i < k; i++) {
			bool good = true;

			for (unsigned c = 0; c < s->copies[i]; c++)
				good &= s->outcome[i][c] == GOOD || s->outcome[i][c] == GONE;
			r[at + i].result = good ? FM_STORE_OK : FM_STORE_DOWN;
		}
	}
}
