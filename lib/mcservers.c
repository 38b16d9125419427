#include "mcservers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "mccollect.h"

#define OLDEST      10404 /* 1.4.4 knows everything used here */
#define CONTACT_NS  3000000000u
#define LOOK_NS     20000000u /* ... when nobody must answer: memory may wait for us. One that does not is tried again with its first batch */
#define UNSEEN_NS   5000000000u
#define START_APART 2 /* the clock that start times are counted from ticks in seconds: so far apart is the same life */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- the table */

void fm_mc_servers_sync(struct fm_mc_servers *s)
{
	unsigned n = atomic_load(&s->cluster->nservers);

	for (; s->n < n; s->n++) {
		const struct fm_server_shm *shm = &s->cluster->server[s->n];
		struct fm_mc_server *v = &s->server[s->n];

		memcpy(v->address.text, shm->address, sizeof v->address.text);
		memcpy(&v->address.sa, shm->sockaddr, sizeof v->address.sa);
		v->address.sa_len = shm->sockaddr_len;
		v->all = s;
		fm_mc_init(&v->conn, &v->address);
		s->hash[s->n] = fm_place_server(v->address.text);
	}
}

/* The slot of a server by where it is, or -1. */
static int find_sockaddr(const struct fm_cluster_shm *c, const struct fm_mc_address *a)
{
	for (unsigned i = 0; i < atomic_load(&c->nservers); i++)
		if (c->server[i].sockaddr_len == a->sa_len && memcmp(c->server[i].sockaddr, &a->sa, a->sa_len) == 0)
			return (int)i;
	return -1;
}

/* A slot for a server that has none. Returns it, or -ENOSPC with why. */
static int new_slot(struct fm_cluster_shm *c, const struct fm_mc_address *a, enum fm_server_role role, char *why)
{
	unsigned n = atomic_load(&c->nservers);
	struct fm_server_shm *shm = &c->server[n];

	if (n == FM_SERVERS) {
		snprintf(why, FM_STORE_WHY, "%.100s: the table of %d servers is full", a->text, FM_SERVERS);
		return -ENOSPC;
	}
	memset(shm, 0, sizeof *shm);
	memcpy(shm->address, a->text, sizeof shm->address);
	memcpy(shm->sockaddr, &a->sa, sizeof a->sa);
	shm->sockaddr_len = a->sa_len;
	atomic_store(&shm->role, role);
	atomic_store(&shm->state, FM_SERVER_UP); /* until the contrary is seen */
	atomic_store(&shm->since_ns, now_ns());
	atomic_store(&c->nservers, n + 1);
	return (int)n;
}

/* Two names for one server would put both copies of a page there. */
static int refuse_alias(const struct fm_cluster_shm *c, const char *address, unsigned slot, char *why)
{
	snprintf(why, FM_STORE_WHY, "%.100s: is the same server as %.100s", address, c->server[slot].address);
	return -EINVAL;
}

int fm_store_memcached_add(struct fm_cluster_shm *c, const char *address, char *why)
{
	int slot = fm_cluster_find(c, address), r;
	struct fm_mc_address a;

	if (slot >= 0) {
		atomic_store(&c->server[slot].role, FM_SERVER_MEMBER);
		return slot;
	}
	r = fm_mc_address(address, strlen(address), &a, why);
	if (r)
		return r;
	slot = find_sockaddr(c, &a);
	return slot >= 0 ? refuse_alias(c, address, (unsigned)slot, why) : new_slot(c, &a, FM_SERVER_MEMBER, why);
}

/* The slot of a server of the membership, made when it has none. */
static int member_slot(struct fm_cluster_shm *c, const struct fm_member *e, char *why)
{
	int slot = fm_cluster_find(c, e->address), r;
	struct fm_mc_address a;

	if (slot >= 0)
		return slot;
	r = fm_mc_address(e->address, strlen(e->address), &a, why);
	if (r)
		return r;
	slot = find_sockaddr(c, &a);
	return slot >= 0 ? slot : new_slot(c, &a, e->role, why);
}

unsigned fm_store_memcached_apply(struct fm_cluster_shm *c, const struct fm_members *m, char *why)
{
	uint32_t role[FM_SERVERS];
	unsigned missing = 0;

	for (unsigned i = 0; i < FM_SERVERS; i++)
		role[i] = FM_SERVER_LEFT;
	for (unsigned i = 0; i < m->n; i++) {
		int slot = member_slot(c, &m->member[i], why);

		if (slot < 0)
			missing += m->member[i].role == FM_SERVER_MEMBER;
		else if (m->member[i].role < role[slot])
			role[slot] = m->member[i].role;
	}
	for (unsigned i = 0; i < atomic_load(&c->nservers); i++)
		if (atomic_load(&c->server[i].role) != role[i])
			atomic_store(&c->server[i].role, role[i]);
	return missing;
}

/* Put servers into the table, the registry's or the URI's, and open the first epoch when there is none. */
static int fill_cluster(struct fm_mc_servers *s, const struct fm_store_options *o, char *why)
{
	uint32_t replicas = o->replicas ? o->replicas : 1;
	uint64_t members = 0;

	if (o->members) {
		fm_store_memcached_apply(s->cluster, o->members, why);
	} else if (!o->registry || !atomic_load(&s->cluster->nservers)) {
		for (unsigned i = 0; i < s->uri.nservers; i++) {
			int slot = fm_store_memcached_add(s->cluster, s->uri.server[i], why);

			if (slot < 0)
				return slot;
		}
	}
	for (unsigned i = 0; i < atomic_load(&s->cluster->nservers); i++)
		if (atomic_load(&s->cluster->server[i].role) == FM_SERVER_MEMBER)
			members |= 1ull << i;
	if (!members)
		return -EHOSTUNREACH; /* no member's name can be resolved: why says so of one */
	if (!fm_cluster_servers(s->cluster, FM_EPOCH_TAG(atomic_load(&s->cluster->epoch_now))))
		fm_cluster_open_epoch(s->cluster, members);
	else
		s->epoch_due = fm_cluster_set_replicas(s->cluster, replicas); /* what is stored gets as many copies */
	atomic_store(&s->cluster->replicas, replicas);
	return 0;
}

int fm_mc_servers_open(struct fm_mc_servers *s, const struct fm_store_options *o, char *why)
{
	int r = 0;

	s->cluster = o->cluster;
	s->keeper = o->make_cluster || !o->cluster;
	if (!s->cluster) {
		s->cluster = s->own_cluster = calloc(1, sizeof *s->cluster);
		if (!s->cluster)
			return -ENOMEM;
	}
	/* The table is made once, by the daemon; other handles find it there. */
	if (s->keeper)
		r = fill_cluster(s, o, why);
	if (r == 0)
		fm_mc_servers_sync(s);
	return r;
}

void fm_mc_servers_close(struct fm_mc_servers *s)
{
	for (unsigned i = 0; i < s->n; i++)
		fm_mc_fini(&s->server[i].conn);
	free(s->own_cluster);
}

/* --- contact */

int fm_mc_server_greet(void *arg, struct fm_mc_conn *c)
{
	struct fm_mc_servers *s = fm_mc_server_of(c)->all;
	const struct fm_mc_hello *h = &c->hello;

	(void)arg;
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

/* The life that the server is in, as it said last. Returns true when that is another than before, in which it has nothing. */
static bool note_life(const struct fm_mc_server *v)
{
	struct fm_server_shm *shm = fm_mc_server_shm(v);
	const struct fm_mc_hello *h = &v->conn.hello;
	uint64_t start = atomic_load(&shm->start_s), apart = start > h->start_s ? start - h->start_s : h->start_s - start;
	bool another = atomic_load(&shm->pid) && (atomic_load(&shm->pid) != h->pid || apart > START_APART);

	/* First what outlives us: who sees the new life only must not take it for the one that had the copies. */
	if (another) {
		atomic_fetch_or(&shm->flags, FM_SERVER_MISSED);
		atomic_fetch_and(&shm->flags, ~(uint32_t)FM_SERVER_STALE); /* it is empty */
		atomic_fetch_add(&shm->restarts, 1);
	}
	atomic_store(&shm->pid, h->pid);
	if (!start || another)
		atomic_store(&shm->start_s, h->start_s);
	return another;
}

static void ignore(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	(void)arg;
	(void)c;
	(void)reply;
	(void)item;
}

/* Why a connection was refused by fm_mc_server_greet(): what was kept may be another server's, so it is asked again, alone. */
static void refusal(struct fm_mc_servers *s, struct fm_mc_conn *c, char *why)
{
	struct fm_mc_run run = {.conns = &c, .n = 1, .timeout_ns = CONTACT_NS, .handler = ignore, .greeter = fm_mc_server_greet};

	*s->refusal = '\0';
	c->retry_ns = 0;
	fm_mc_begin(c);
	fm_mc_run(&run);
	if (*s->refusal)
		snprintf(why, FM_STORE_WHY, "%s", s->refusal);
	else
		snprintf(why, FM_STORE_WHY, "%.100s: does not speak memcached's protocol", c->address->text);
}

/*
 * One process under two names? Where pid and start time are the same (which two containers may have, too), a key that is written by the
 * one name and found by the other tells.
 */
static bool same_server(const struct fm_mc_conn *a, const struct fm_mc_conn *b)
{
	const struct fm_mc_hello *x = &a->hello, *y = &b->hello;
	uint64_t apart = x->start_s > y->start_s ? x->start_s - y->start_s : y->start_s - x->start_s, token;

	if (a->state != FM_MC_READY || b->state != FM_MC_READY || x->pid != y->pid || apart > START_APART)
		return false;
	if (getrandom(&token, sizeof token, 0) != (ssize_t)sizeof token)
		return false;
	return fm_mccollect_beat(a->address, token, 10, 1000) == 0 && fm_mccollect_beats(b->address, token, 1000) == 1;
}

static int check_same(struct fm_mc_servers *s, const struct fm_mc_conn *c, unsigned n, char *why)
{
	for (unsigned i = 0; i < n; i++)
		if (same_server(c, &s->server[i].conn))
			return refuse_alias(s->cluster, c->address->text, i, why);
	return 0;
}

int fm_mc_servers_contact(struct fm_mc_servers *s, bool must_answer, char *why)
{
	struct fm_mc_conn *conns[FM_SERVERS];
	struct fm_mc_run run = {
	    .conns = conns,
	    .n = s->n,
	    .timeout_ns = must_answer ? CONTACT_NS : LOOK_NS,
	    .handler = ignore,
	    .greeter = fm_mc_server_greet,
	};
	int e = 0;

	for (unsigned i = 0; i < s->n; i++) {
		conns[i] = &s->server[i].conn;
		fm_mc_begin(conns[i]);
	}
	fm_mc_run(&run);
	for (unsigned i = 0; i < s->n; i++) {
		struct fm_mc_conn *c = conns[i];

		/* Which life it is in must be known before it gets a page. */
		if (!c->error && s->keeper)
			s->epoch_due |= note_life(&s->server[i]);
		if (!must_answer || atomic_load(&fm_mc_server_shm(&s->server[i])->role) != FM_SERVER_MEMBER)
			continue;
		if (c->error == -EPROTO) {
			refusal(s, c, why);
			return -EPROTO;
		}
		if (c->error && !e) {
			e = c->error;
			snprintf(why, FM_STORE_WHY, "%.100s: cannot be reached: %s", c->address->text, strerror(-e));
		}
		if (check_same(s, c, i, why))
			return -EINVAL;
	}
	return e;
}

int fm_mc_servers_probe(struct fm_mc_servers *s, const char *address, char *why)
{
	struct fm_mc_server *v = calloc(1, sizeof *v);
	struct fm_mc_conn *c = v ? &v->conn : NULL;
	struct fm_mc_run run = {.conns = &c, .n = 1, .timeout_ns = CONTACT_NS, .handler = ignore, .greeter = fm_mc_server_greet};
	int e, slot;

	snprintf(why, FM_STORE_WHY, "out of memory");
	if (!v)
		return -ENOMEM;
	v->all = s;
	fm_mc_servers_sync(s);
	e = fm_mc_address(address, strlen(address), &v->address, why);
	slot = e ? -1 : find_sockaddr(s->cluster, &v->address);
	if (slot >= 0 && strcmp(s->cluster->server[slot].address, address) != 0)
		e = refuse_alias(s->cluster, address, (unsigned)slot, why);
	if (e == 0) {
		fm_mc_init(c, &v->address);
		fm_mc_begin(c);
		fm_mc_run(&run);
		e = c->error;
		if (e == -EPROTO)
			refusal(s, c, why);
		else if (e)
			snprintf(why, FM_STORE_WHY, "%.100s: cannot be reached: %s", address, strerror(-e));
		else if (slot < 0)
			e = check_same(s, c, s->n, why);
		fm_mc_fini(c);
	}
	free(v);
	return e;
}

bool fm_mc_server_same(const struct fm_mc_server *a, const struct fm_mc_server *b)
{
	const struct fm_server_shm *x = fm_mc_server_shm(a), *y = fm_mc_server_shm(b);
	uint64_t pid = atomic_load(&x->pid), start = atomic_load(&x->start_s), other = atomic_load(&y->start_s);

	return pid && pid == atomic_load(&y->pid) && (start > other ? start - other : other - start) <= START_APART;
}

/* --- up, down, dead */

/* It did not answer the monitor, for v->conn.error. Returns whether it has refused connections, each time, for ?gone=. */
static bool refuses(struct fm_mc_server *v)
{
	int e = v->conn.error;
	uint64_t now = now_ns(), last = v->refused_last_ns;

	if (e != -ECONNREFUSED && e != -ENOENT) {
		v->refused_ns = 0;
		return false;
	}
	/* Nobody has looked meanwhile: it may have been there. */
	if (!v->refused_ns || now - last > UNSEEN_NS)
		v->refused_ns = now;
	v->refused_last_ns = now;
	return now - v->refused_ns > v->all->uri.gone_s * 1000000000ull;
}

static void on_stats(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	(void)arg;
	if (reply == FM_MC_STAT)
		fm_mc_learn(&c->hello, item);
}

/*
 * Ask every server for its figures. v->nsent: was asked, and has answered or failed. We are not kept for long: who takes his time is waited
 * for in the next looks, and has failed when the store would not wait for him any longer either.
 */
static void look_around(struct fm_mc_servers *s)
{
	struct fm_mc_conn *conns[FM_SERVERS];
	struct fm_mc_run r = {
	    .conns = conns, .timeout_ns = UINT64_MAX / 8, .leave_ns = 100000000, .handler = on_stats, .greeter = fm_mc_server_greet};

	fm_mc_servers_sync(s);
	for (unsigned k = 0; k < s->n; k++) {
		struct fm_mc_server *v = &s->server[k];

		v->nsent = v->next = 0;
		if (v->asked_ns) {
			conns[r.n++] = &v->conn;
			continue;
		}
		fm_mc_begin(&v->conn);
		/* Who has left, and has nothing any more, may be gone for good. */
		if (atomic_load(&fm_mc_server_shm(v)->role) == FM_SERVER_LEFT && !fm_cluster_in_use(s->cluster, k))
			continue;
		/* A connection that is new says all of it in its greeting; twice would double its start time. */
		if (!fm_mc_usable(&v->conn) || (v->conn.state == FM_MC_READY && fm_mc_add(&v->conn, "stats\r\n", 7, 1)))
			continue;
		v->asked_ns = now_ns();
		v->conn.hello.start_s = 0;
		conns[r.n++] = &v->conn;
	}
	fm_mc_run(&r);
	for (unsigned i = 0; i < r.n; i++) {
		struct fm_mc_server *v = fm_mc_server_of(conns[i]);

		if (!fm_mc_finished(&v->conn) && now_ns() - v->asked_ns > s->uri.timeout_ms * 1000000ull)
			fm_mc_fail(&v->conn, -ETIMEDOUT);
		if (!fm_mc_finished(&v->conn))
			continue;
		if (!v->conn.error)
			v->conn.rtt_ns = now_ns() - v->asked_ns;
		v->asked_ns = 0;
		v->nsent = 1;
	}
}

/* What the last look says of one server. Returns true when it has begun a new life, with empty hands. */
static bool judge(struct fm_mc_server *v)
{
	struct fm_server_shm *shm = fm_mc_server_shm(v);
	const struct fm_mc_hello *h = &v->conn.hello;
	uint32_t was = atomic_load(&shm->state), is = was;
	bool restarted = false;

	if (v->nsent && !v->conn.error) {
		is = FM_SERVER_UP;
		v->refused_ns = 0;
		restarted = note_life(v);
		atomic_store(&shm->used_bytes, h->used_bytes);
		atomic_store(&shm->limit_bytes, h->limit_bytes);
		atomic_store(&shm->items, h->items);
		atomic_store(&shm->rtt_ns, v->conn.rtt_ns);
	} else if (v->conn.error) {
		is = refuses(v) ? FM_SERVER_DEAD : was == FM_SERVER_DEAD ? FM_SERVER_DEAD : FM_SERVER_DOWN;
	}
	if (is != was) {
		/* DEAD counts from when it went down. */
		if (is != FM_SERVER_DEAD)
			atomic_store(&shm->since_ns, now_ns());
		atomic_store(&shm->state, is);
	}
	return restarted;
}

void fm_mc_servers_monitor(struct fm_mc_servers *s)
{
	struct fm_cluster_shm *c = s->cluster;
	bool settled = atomic_load(&c->settled) >= atomic_load(&c->epoch_now);
	uint64_t members = 0, now;
	uint32_t missed[FM_SERVERS];

	look_around(s);
	for (unsigned k = 0; k < s->n; k++)
		s->epoch_due |= judge(&s->server[k]);
	now = now_ns(); /* later than any since_ns: one that lies ahead would look like an age */
	for (unsigned k = 0; k < s->n; k++) {
		struct fm_server_shm *shm = &c->server[k];

		/* It is back, and lacks copies: all are made again. Not before a pass that runs has ended, which may just make them. */
		s->epoch_due |= settled && atomic_load(&shm->state) == FM_SERVER_UP && (atomic_load(&shm->flags) & FM_SERVER_MISSED);
		if (atomic_load(&shm->role) != FM_SERVER_MEMBER || atomic_load(&shm->state) == FM_SERVER_DEAD ||
		    (atomic_load(&shm->state) == FM_SERVER_DOWN &&
		     now - atomic_load(&shm->since_ns) > s->uri.away_s * 1000000000ull))
			continue;
		members |= 1ull << k;
	}
	fm_cluster_retire(c);
	/* With nobody left there is nowhere to move to: then all wait. */
	if (members && (s->epoch_due || members != fm_cluster_servers(c, FM_EPOCH_TAG(atomic_load(&c->epoch_now))))) {
		/* First: what is missed from here on is not mended by this epoch for sure. */
		for (unsigned k = 0; k < s->n; k++)
			missed[k] = atomic_fetch_and(&c->server[k].flags, ~(uint32_t)FM_SERVER_MISSED) & FM_SERVER_MISSED;
		s->epoch_due = fm_cluster_open_epoch(c, members) != 0;
		for (unsigned k = 0; k < s->n && s->epoch_due; k++)
			atomic_fetch_or(&c->server[k].flags, missed[k]);
	}
}

int fm_mc_servers_usage(struct fm_mc_servers *s, uint64_t *used_bytes, uint64_t *limit_bytes)
{
	bool down = false;

	/* The monitor of a shared table has just looked. */
	if (s->own_cluster) {
		look_around(s);
		for (unsigned k = 0; k < s->n; k++)
			judge(&s->server[k]);
	}
	*used_bytes = *limit_bytes = 0;
	for (unsigned k = 0; k < s->n; k++) {
		const struct fm_server_shm *shm = &s->cluster->server[k];

		if (atomic_load(&shm->role) != FM_SERVER_MEMBER && !fm_cluster_in_use(s->cluster, k))
			continue; /* nothing of ours is there: it may be switched off */
		down |= atomic_load(&shm->state) != FM_SERVER_UP;
		*used_bytes += fm_ld(&shm->used_bytes);
		*limit_bytes += fm_ld(&shm->limit_bytes);
	}
	return down ? -EHOSTDOWN : 0;
}
