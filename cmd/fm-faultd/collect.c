/*
 * The collector: a thread that deletes what dead hosts left in the store, and leaves a sign of life of this host there.
 *
 * A host whose node has been gone from the registry for the grace time may still live: only cut off from ZooKeeper. So each host
 * leaves a key in its store's servers that expires unless it is renewed, and a host that can still do that is not collected: it
 * reaches the pages it would lose.
 */
#include "faultd.h"

#include <errno.h>
#include <limits.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "evict.h"
#include "log.h"
#include "mccollect.h"
#include "mcuri.h"
#include "rccollect.h"
#include "registry.h"

#define TURN_MS    500
#define ORDER_MS   1000
#define BEAT_MS    1000
#define SERVER_MS  5000
#define REGION_NS  (600 * 1000000000ull) /* for one region on all its servers; then others come first */
#define LOST_NS    2000000000u           /* how often it is looked whether a host is back */
#define MAX_SERVERS (FM_MC_SERVERS + FM_SERVERS)
#define WATCHED    64                    /* hosts whose signs of life in a RAMCloud are remembered */
#define TTL_MOST_S 3600
#define AGAIN_NS   1000000000u           /* after a sign of life that could not be left */
#define BEATS      3                     /* servers that get a sign of life */

struct collector {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t cond; /* CLOCK_MONOTONIC */
	bool stop;           /* under the mutex */
	struct fm_registry *registry;
	uint64_t host_id;
	unsigned ttl_s;
	const struct fm_cluster_shm *cluster; /* our store's servers; none when it is of another kind */
	bool member;                          /* our store is the registry's memcached: servers */
	const atomic_bool *incomplete;        /* ... of which we do not know all */
	/* of the region under way */
	const struct fm_registry_claim *claim;
	uint64_t until_ns, look_ns;
	bool lost;
	/* of a RAMCloud */
	struct fm_rccollect *own; /* where our own sign of life goes; NULL: our store is another */
	struct {
		uint64_t host, beat, since_ns; /* its sign of life (0 none), and since when it is the same */
		uint32_t ttl_s;                /* that it promised last; 0: it was never seen to */
	} seen[WATCHED];
	unsigned nseen;
};

static bool stopping(struct collector *c)
{
	bool stop;

	pthread_mutex_lock(&c->mutex);
	stop = c->stop;
	pthread_mutex_unlock(&c->mutex);
	return stop;
}

/* --- signs of life */

/* Where a server of our table is. The table only grows, and where a server is never changes. */
static void address_of(const struct fm_server_shm *shm, struct fm_mc_address *a)
{
	memset(a, 0, sizeof *a);
	memcpy(a->text, shm->address, sizeof a->text);
	memcpy(&a->sa, shm->sockaddr, sizeof a->sa);
	a->sa_len = shm->sockaddr_len;
}

/* On members that are up, as far as is known: others look on every server of the membership. Returns whether one has it, if there are any. */
static bool beat(struct collector *c)
{
	unsigned done = 0, n = atomic_load(&c->cluster->nservers);

	if (c->own)
		return fm_rccollect_beat(c->own, c->host_id, c->ttl_s, BEAT_MS) == 0;
	for (unsigned i = 0; i < n && i < FM_SERVERS && done < BEATS && !stopping(c); i++) {
		const struct fm_server_shm *shm = &c->cluster->server[i];
		struct fm_mc_address a;

		if (atomic_load(&shm->role) != FM_SERVER_MEMBER || atomic_load(&shm->state) != FM_SERVER_UP)
			continue;
		address_of(shm, &a);
		done += fm_mccollect_beat(&a, c->host_id, c->ttl_s, BEAT_MS) == 0;
	}
	return done || !n;
}

/* A server that may have keys of a region. */
struct place {
	struct fm_mc_address a;
	bool must; /* not done before it was looked at; else it is one that has left, and no page was left there */
};

/*
 * May the host be taken for dead, as far as signs of life in its store tell? Not as long as one of the servers where it could leave them does not say: it may
 * be there. Returns 0; -EBUSY with why.
 */
static int shows_no_life(const struct place *p, unsigned n, uint64_t host, char *why)
{
	unsigned silent = UINT_MAX;

	for (unsigned i = 0; i < n; i++) {
		int r = fm_mccollect_beats(&p[i].a, host, BEAT_MS);

		if (r == 1) {
			snprintf(why, 256, "the host still reaches the store, though not the registry");
			return -EBUSY;
		}
		/* Where nobody listens, nothing was left. */
		if (r && r != -ECONNREFUSED && r != -ENOENT && p[i].must)
			silent = i;
	}
	if (silent == UINT_MAX)
		return 0;
	snprintf(why, 256, "%.100s: does not say whether the host still reaches the store", p[silent].a.text);
	return -EBUSY;
}

/* --- one region */

/* Add a server to p[0, *n), unless it is there. Returns 0 or -errno. */
static int add_place(const char *text, bool must, struct place *p, unsigned *n, char *why)
{
	unsigned k = 0;
	int e;

	while (k < *n && strcmp(p[k].a.text, text) != 0)
		k++;
	if (k < *n) {
		p[k].must |= must;
		return 0;
	}
	if (*n == MAX_SERVERS)
		return must ? -ENOSPC : 0;
	e = fm_mc_address(text, strlen(text), &p[*n].a, why);
	p[*n].must = must;
	*n += e == 0;
	return must ? e : 0;
}

/*
 * Where keys of that region may be: on the members of the store and those that are drained, as the registry has them and as we do; and on the
 * servers that the record's URI names, unless its host was seen to have no page on any but the registry's.
 */
static int find_places(const struct collector *c, const struct fm_registry_record *rec, struct place *p, unsigned *n, char *why)
{
	struct fm_mc_uri *u = malloc(sizeof *u);
	unsigned added = atomic_load(&c->cluster->nservers);
	int e = u ? fm_mc_uri_parse(rec->store, u, why) : -ENOMEM;

	for (unsigned i = 0; e == 0 && i < u->nservers; i++)
		e = add_place(u->server[i], rec->epoch == 0, p, n, why);
	for (unsigned i = 0; e == 0 && i < added && i < FM_SERVERS; i++)
		e = add_place(c->cluster->server[i].address, atomic_load(&c->cluster->server[i].role) != FM_SERVER_LEFT, p, n, why);
	free(u);
	return e;
}

static bool give_up(void *arg)
{
	struct collector *c = arg;
	uint64_t now = fm_now_ns();

	if (stopping(c) || now > c->until_ns)
		return true;
	if (now > c->look_ns) {
		c->lost |= fm_registry_claim_lost(c->registry, c->claim, ORDER_MS);
		c->look_ns = fm_now_ns() + LOST_NS;
	}
	return c->lost;
}

/*
 * Has the host changed its sign of life for as long as it said it would? It is looked at again and again. One that is not there is one that does
 * not change: the host may live and leave it in a moment, for the table may have been lost or dropped. -EBUSY, with why: not known yet.
 */
static int stays_dead(struct collector *c, struct fm_rccollect *rc, uint64_t host, char *why)
{
	uint64_t beat = 0, now;
	uint32_t ttl_s = 0;
	unsigned i = 0;
	int r = fm_rccollect_beats(rc, host, BEAT_MS, &beat, &ttl_s);

	snprintf(why, 256, "whether the host still reaches the store is not known yet");
	if (r < 0)
		return -EBUSY;
	now = fm_now_ns();
	while (i < WATCHED && c->seen[i].host && c->seen[i].host != host)
		i++;
	if (i == WATCHED)
		i = c->nseen++ % WATCHED;
	if (c->seen[i].host != host)
		c->seen[i].ttl_s = 0;
	if (c->seen[i].host != host || c->seen[i].beat != beat) {
		c->seen[i].host = host;
		c->seen[i].beat = beat;
		c->seen[i].since_ns = now;
	}
	if (r == 1)
		c->seen[i].ttl_s = ttl_s > TTL_MOST_S ? TTL_MOST_S : ttl_s;
	ttl_s = c->seen[i].ttl_s;
	if (r == 0 && ttl_s < c->ttl_s)
		ttl_s = c->ttl_s;
	return now - c->seen[i].since_ns > ttl_s * 1000000000ull ? 0 : -EBUSY;
}

static int collect_ramcloud(struct collector *c, const struct fm_registry_claim *claim, char *why)
{
	struct fm_rccollect *rc = fm_rccollect_open(claim->record.store, why);
	int e = rc ? 0 : -EINVAL;

	if (e == 0 && !claim->orphan)
		e = stays_dead(c, rc, claim->host, why);
	if (e == 0 && fm_registry_claim_lost(c->registry, claim, ORDER_MS)) {
		snprintf(why, 256, "the host is back, or the registry away");
		e = -ECANCELED;
	}
	if (e == 0)
		e = fm_rccollect_drop(rc, claim->id, SERVER_MS, why);
	fm_rccollect_close(rc);
	return e;
}

/* Returns 0, or -errno with why: it is tried again later. */
static int collect(struct collector *c, const struct fm_registry_claim *claim, uint64_t *deleted, char *why)
{
	struct fm_mccollect m = {.region = claim->id, .timeout_ms = SERVER_MS, .stop = give_up, .arg = c};
	struct place *p;
	unsigned n = 0;
	int e;

	if (strncmp(claim->record.store, "dir:", 4) == 0)
		return 0; /* files of that host: nobody else has them */
	if (strncmp(claim->record.store, "ramcloud:", 9) == 0)
		return collect_ramcloud(c, claim, why);
	if (strncmp(claim->record.store, "memcached:", 10) != 0) {
		snprintf(why, 256, "%.100s: is not a store that can be collected", claim->record.store);
		return -EOPNOTSUPP;
	}
	/* Its signs of life may be on any server of the membership, and so may its keys: who does not know these must not judge. */
	if (!claim->orphan && (!c->member || atomic_load(c->incomplete))) {
		snprintf(why, 256, "%s", c->member ? "a server of the store cannot be resolved here" : "its servers are not this host's store");
		return -EBUSY;
	}
	p = calloc(MAX_SERVERS, sizeof *p);
	snprintf(why, 256, "out of memory");
	e = p ? find_places(c, &claim->record, p, &n, why) : -ENOMEM;
	c->claim = claim;
	c->until_ns = fm_now_ns() + REGION_NS;
	c->look_ns = 0;
	c->lost = false;
	if (e == 0 && !claim->orphan)
		e = shows_no_life(p, n, claim->host, why);
	for (unsigned i = 0; i < n && e == 0; i++) {
		e = fm_mccollect_server(&p[i].a, &m, why);
		if (e == -ECONNREFUSED || e == -ENOENT || (!p[i].must && e != -ECANCELED))
			e = 0; /* no server: what it held is gone with it */
	}
	if (e == -ECANCELED && c->lost)
		snprintf(why, 256, "the host is back, or the registry away");
	*deleted = m.deleted;
	free(p);
	return e;
}

static void one_region(struct collector *c)
{
	struct fm_registry_claim claim;
	uint64_t deleted = 0;
	char why[256] = "";
	int e;

	if (fm_registry_claim(c->registry, ORDER_MS, &claim))
		return;
	e = collect(c, &claim, &deleted, why);
	fm_registry_claim_done(c->registry, &claim, e == 0);
	if (e)
		fm_info("host %016" PRIx64 ": region %016" PRIx64 ": not collected yet: %s", claim.host, claim.id, why);
	else
		fm_warn("host %016" PRIx64 "%s: region %016" PRIx64 ": collected: %" PRIu64 " keys deleted", claim.host,
			claim.orphan ? " (this one)" : " is gone", claim.id, deleted);
}

/* --- the thread */

static void *collector_thread(void *arg)
{
	struct collector *c = arg;
	uint64_t beat_ns = 0;

	while (!stopping(c)) {
		struct timespec t;

		if (fm_now_ns() >= beat_ns) {
			uint64_t begun = fm_now_ns();

			beat_ns = beat(c) ? begun + c->ttl_s * 250000000ull : fm_now_ns() + AGAIN_NS;
		}
		one_region(c);
		clock_gettime(CLOCK_MONOTONIC, &t);
		t.tv_nsec += TURN_MS * 1000000l;
		t.tv_sec += t.tv_nsec / 1000000000;
		t.tv_nsec %= 1000000000;
		pthread_mutex_lock(&c->mutex);
		while (!c->stop && pthread_cond_timedwait(&c->cond, &c->mutex, &t) == 0)
			;
		pthread_mutex_unlock(&c->mutex);
	}
	return NULL;
}

int collector_start(struct faultd *d, uint64_t host_id, unsigned grace_s, struct collector **out)
{
	struct collector *c = calloc(1, sizeof *c);
	pthread_condattr_t attr;
	int e;

	if (!c)
		return -ENOMEM;
	c->registry = d->registry;
	c->cluster = &d->daemon->cluster;
	c->member = strncmp(d->store_uri, "memcached:", 10) == 0;
	c->incomplete = &d->members_incomplete;
	c->host_id = host_id;
	c->ttl_s = grace_s == 0 ? 60 : grace_s < 4 ? 4 : grace_s;
	if (strncmp(d->store_uri, "ramcloud:", 9) == 0) {
		char why[256];

		c->own = fm_rccollect_open(d->store_uri, why);
		if (!c->own) {
			free(c);
			return -ENOMEM;
		}
	}
	pthread_mutex_init(&c->mutex, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->cond, &attr);
	pthread_condattr_destroy(&attr);
	e = pthread_create(&c->thread, NULL, collector_thread, c);
	if (e) {
		fm_rccollect_close(c->own);
		free(c);
		return -e;
	}
	*out = c;
	return 0;
}

bool collector_stop(struct collector *c)
{
	struct timespec nap = {.tv_nsec = 10000000};
	int e = EBUSY;

	if (!c)
		return true;
	pthread_mutex_lock(&c->mutex);
	c->stop = true;
	pthread_cond_signal(&c->cond);
	pthread_mutex_unlock(&c->mutex);
	/* It may wait for a name to be resolved: the process ends without it then. (pthread_timedjoin_np() goes by the wall clock.) */
	for (int tries = 0; tries < 200 && (e = pthread_tryjoin_np(c->thread, NULL)) == EBUSY; tries++)
		nanosleep(&nap, NULL);
	if (e)
		return false;
	pthread_cond_destroy(&c->cond);
	pthread_mutex_destroy(&c->mutex);
	fm_rccollect_close(c->own);
	free(c);
	return true;
}
