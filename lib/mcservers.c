#include "mcservers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OLDEST 10404 /* 1.4.4 knows everything used here */

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

/* Put the URI's servers into the table, and open the first epoch when there is none. */
static int fill_cluster(struct fm_mc_servers *s, char *why)
{
	uint64_t members = 0;

	for (unsigned i = 0; i < s->uri.nservers; i++) {
		int slot = fm_store_memcached_add(s->cluster, s->uri.server[i], why);

		if (slot < 0)
			return slot;
		members |= 1ull << slot;
	}
	fm_mc_servers_sync(s);
	if (!atomic_load(&s->cluster->epoch_now))
		fm_cluster_open_epoch(s->cluster, members);
	return 0;
}

int fm_mc_servers_open(struct fm_mc_servers *s, struct fm_cluster_shm *cluster, bool make, char *why)
{
	int r = 0;

	s->cluster = cluster;
	s->keeper = make || !cluster;
	if (!cluster) {
		s->cluster = s->own_cluster = calloc(1, sizeof *s->cluster);
		if (!s->cluster)
			return -ENOMEM;
	}
	/* The table is made once, by the daemon; other handles find it there. */
	if (s->keeper)
		r = fill_cluster(s, why);
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
	/* The clock that start is counted from ticks in seconds: one or two apart is the same life. */
	bool another = atomic_load(&shm->pid) && (atomic_load(&shm->pid) != h->pid || apart > 2);

	if (another)
		atomic_fetch_add(&shm->restarts, 1);
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

int fm_mc_servers_contact(struct fm_mc_servers *s, bool must_answer, char *why)
{
	struct fm_mc_conn *conns[FM_SERVERS];
	struct fm_mc_run run = {.conns = conns, .n = s->n, .timeout_ns = 3000000000u, .handler = ignore, .greeter = fm_mc_server_greet};
	int e = 0;

	for (unsigned i = 0; i < s->n; i++) {
		conns[i] = &s->server[i].conn;
		fm_mc_begin(conns[i]);
	}
	fm_mc_run(&run);
	for (unsigned i = 0; i < s->n; i++) {
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
		/* Which life it is in must be known before it gets a page. */
		if (!c->error && s->keeper)
			s->epoch_due |= note_life(fm_mc_server_of(c));
	}
	return must_answer ? e : 0;
}

/* --- up, down, dead */

bool fm_mc_server_dead(const struct fm_mc_server *v)
{
	return (v->refused_ns && now_ns() - v->refused_ns > v->all->uri.gone_s * 1000000000ull) ||
	       atomic_load(&fm_mc_server_shm(v)->state) == FM_SERVER_DEAD;
}

bool fm_mc_server_silent(struct fm_mc_server *v)
{
	int e = v->conn.error;

	if (e != -ECONNREFUSED && e != -ENOENT) {
		v->refused_ns = 0;
		return false;
	}
	if (v->refused_ns)
		return fm_mc_server_dead(v);
	v->refused_ns = now_ns();
	return false;
}

static void on_stats(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	(void)arg;
	if (reply == FM_MC_STAT)
		fm_mc_learn(&c->hello, item);
}

/* Ask every server for its figures. v->nsent: was asked. */
static void look_around(struct fm_mc_servers *s)
{
	struct fm_mc_conn *conns[FM_SERVERS];
	struct fm_mc_run r = {.conns = conns, .timeout_ns = 100000000, .handler = on_stats, .greeter = fm_mc_server_greet};

	fm_mc_servers_sync(s);
	for (unsigned k = 0; k < s->n; k++) {
		struct fm_mc_server *v = &s->server[k];

		v->nsent = v->next = 0;
		fm_mc_begin(&v->conn);
		/* A connection that is new says all of it in its greeting; twice would double its start time. */
		if (!fm_mc_usable(&v->conn) || (v->conn.state == FM_MC_READY && fm_mc_add(&v->conn, "stats\r\n", 7, 1)))
			continue;
		v->nsent = 1;
		v->conn.hello.start_s = 0;
		conns[r.n++] = &v->conn;
	}
	fm_mc_run(&r);
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
		is = fm_mc_server_silent(v) ? FM_SERVER_DEAD : was == FM_SERVER_DEAD ? FM_SERVER_DEAD : FM_SERVER_DOWN;
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
		if (atomic_load(&shm->role) == FM_SERVER_DRAINED || atomic_load(&shm->state) == FM_SERVER_DEAD ||
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

		down |= atomic_load(&shm->state) != FM_SERVER_UP;
		*used_bytes += fm_ld(&shm->used_bytes);
		*limit_bytes += fm_ld(&shm->limit_bytes);
	}
	return down ? -EHOSTDOWN : 0;
}
