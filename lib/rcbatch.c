/* One batch of objects of the ramcloud: store: see store_ramcloud_impl.h, and store_ramcloud.c for the theory. */
#include "store_ramcloud_impl.h"

#include <errno.h>
#include <string.h>

#define PER_READ  16u /* objects of one request: small, for a server's workers share the work, and its stack is small */
#define PER_WRITE 16u
#define AGAIN_NS  (1 * MS)
#define FULL_NS   (250 * MS) /* a server that refuses a page for so long is full */
#define PATIENCE_NS      (20 * MS)  /* a page-in */
#define PUT_PATIENCE_NS  (100 * MS) /* the evictor has more */
#define WRONG_MOST 4      /* a value that is wrong so often is wrong where it is stored */

static void put_u64(unsigned char *to, uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		to[i] = (unsigned char)(v >> (8 * i));
}

void rc_add_item(struct rc_store *s, uint64_t page, uint64_t gen, void *buf)
{
	struct item *i = &s->item[s->n++];

	*i = (struct item){.page = page, .gen = gen, .buf = buf, .result = FM_STORE_DOWN};
	put_u64(i->key, page);
	put_u64(i->key + 8, gen);
}

void rc_begin(struct rc_store *s, uint64_t region, enum fm_rc_multi kind)
{
	s->region = rc_region_of(s, region);
	s->kind = kind;
	s->n = 0;
	if (s->region)
		s->region->table->absent = false; /* it may have been made since */
}

void rc_call(struct rc_store *s)
{
	s->begun_ns = fm_rc_now();
	s->deadline_ns = s->begun_ns + 2 * s->cluster.coord.timeout_ns;
	fm_rc_cluster_begin(&s->cluster);
}

void rc_settle(struct item *i, enum fm_store_result result)
{
	i->state = DONE;
	i->result = result;
}

static void again(struct item *i, uint64_t not_before_ns)
{
	i->state = WAIT;
	i->not_before_ns = not_before_ns;
}

/* Those of a request that was not answered, or not so that it could be understood. */
static void all_again(struct rc_store *s, const struct rpc *r, unsigned from, uint64_t not_before_ns)
{
	for (unsigned k = from; k < r->n; k++) {
		s->item[r->item[k]].unsure = true;
		again(&s->item[r->item[k]], not_before_ns);
	}
}

/*
 * For want of room. A write may be done in a moment, and is given up when it was refused for some time. A remove costs room too, and is given up
 * at once: it can be made up for at any time, and whoever waits for it has better to do in a full cluster.
 */
static void refused(struct rc_store *s, struct item *i, uint64_t again_ns, uint64_t now)
{
	i->full = s->kind == FM_RC_WRITE;
	if (s->kind == FM_RC_REMOVE)
		rc_settle(i, FM_STORE_DOWN);
	else if (i->full && now - s->begun_ns > FULL_NS)
		rc_settle(i, FM_STORE_FULL);
	else
		again(i, again_ns);
}

/* What a master says of one object. */
static void on_part(struct rc_store *s, const struct rpc *r, struct item *i, const struct fm_rc_part *part, uint64_t now)
{
	switch (part->status) {
	case FM_RC_OK:
		if (s->kind != FM_RC_READ ||
		    (part->key_len == KEY && memcmp(part->key, i->key, KEY) == 0 &&
		     fm_value_decode(s->region->seal, i->page, i->gen, part->value, part->value_len, i->buf, &s->scratch) == 0))
			rc_settle(i, FM_STORE_OK);
		else if (++i->wrong < WRONG_MOST)
			again(i, now);
		else
			rc_settle(i, FM_STORE_LOST);
		break;
	case FM_RC_NO_OBJECT:
		rc_settle(i, s->kind == FM_RC_READ ? FM_STORE_LOST : s->kind == FM_RC_REMOVE ? FM_STORE_OK : FM_STORE_DOWN);
		break;
	case FM_RC_UNKNOWN_TABLET:
	case FM_RC_NO_TABLE:
		fm_rc_cluster_denied(s->region->table, r->map, i->hash);
		again(i, now + AGAIN_NS);
		break;
	case FM_RC_RETRY:
		refused(s, i, now + (AGAIN_NS << (i->refused < 5 ? i->refused++ : 5)), now);
		break;
	case FM_RC_NO_SPACE:
		rc_settle(i, s->kind == FM_RC_WRITE ? FM_STORE_FULL : FM_STORE_DOWN);
		break;
	default:
		rc_settle(i, FM_STORE_DOWN);
	}
}

/* A whole request was refused. */
static void on_refusal(struct rc_store *s, struct rpc *r, uint32_t status, const unsigned char *p, size_t len, uint64_t now)
{
	uint64_t at = now + 10 * MS;
	uint32_t low, high;
	bool full = false;

	if (status == FM_RC_RETRY) {
		fm_rc_retry(p, len, &low, &high);
		at = now + fm_rc_cluster_delay(&s->cluster, low, high);
		full = len > 16 && memmem(p + 16, len - 16, "capacity", 8);
	} else {
		for (unsigned k = 0; k < r->n; k++)
			fm_rc_cluster_denied(s->region->table, r->map, s->item[r->item[k]].hash);
	}
	if (status != FM_RC_UNKNOWN_TABLET)
		r->server->not_before_ns = at;
	else
		at = now + AGAIN_NS;
	for (unsigned k = 0; k < r->n; k++)
		if (full)
			refused(s, &s->item[r->item[k]], at, now);
		else
			again(&s->item[r->item[k]], at);
}

int rc_on_master(void *arg, struct fm_rc_conn *conn, uint32_t tag, const unsigned char *p, size_t len)
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
		on_part(s, r, &s->item[r->item[k++]], &part, now);
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
	*r = (struct rpc){.server = v, .map = s->region->table->map};
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

uint64_t rc_pump(struct rc_store *s)
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
				rc_settle(&s->item[i], s->kind == FM_RC_READ ? FM_STORE_LOST : FM_STORE_OK);
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
			fm_rc_conn_flush(&v->conn, rc_on_master, s);
	if (gap && now >= t->fetch_ns)
		t->fresh = false;
	return next;
}

void rc_finish(struct rc_store *s)
{
	uint64_t patience, next, now;

	patience = s->kind == FM_RC_READ ? PATIENCE_NS : PUT_PATIENCE_NS;
	for (;;) {
		unsigned sent = 0, waiting = 0;

		next = rc_pump(s);
		for (unsigned i = 0; i < s->n; i++) {
			sent += s->item[i].state == SENT;
			waiting += s->item[i].state == WAIT;
		}
		now = fm_rc_now();
		if ((!sent && !waiting) || now >= s->deadline_ns)
			break;
		if (!sent && next != UINT64_MAX && next > now + patience)
			break;
		fm_rc_cluster_wait(&s->cluster, next < s->deadline_ns ? next : s->deadline_ns);
	}
	/* What is still under way is read and thrown away when it comes. */
	for (struct fm_rc_server *v = s->cluster.servers; v; v = v->next)
		fm_rc_conn_forget_all(&v->conn);
	for (unsigned i = 0; i < BATCH; i++)
		s->rpc[i].used = false;
	for (unsigned i = 0; i < s->n; i++)
		if (s->item[i].state != DONE) {
			s->item[i].unsure |= s->item[i].state == SENT;
			rc_settle(&s->item[i], s->item[i].full ? FM_STORE_FULL : FM_STORE_DOWN);
		}
}
