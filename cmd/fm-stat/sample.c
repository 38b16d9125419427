#include "sample.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "log.h"

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Budgets say "none" in two ways: 0 and UINT64_MAX. */
static uint64_t limit(uint64_t pages)
{
	return pages == UINT64_MAX ? 0 : pages;
}

static void read_region(const struct fm_region_map *m, struct sample_region *r)
{
	static const unsigned permille[] = { 500, 900, 990, 999 };
	const struct fm_region_hdr *h = m->hdr;

	r->id = h->id;
	memcpy(r->name, h->name, sizeof r->name);
	r->name[sizeof r->name - 1] = '\0';
	r->pid = h->pid;
	r->kind = h->kind;
	r->created_ns = h->created_ns;
	r->pages = m->pages;
	r->resident_pages = fm_ld(&h->resident);
	r->remote_pages = fm_ld(&h->remote);
	r->limit_pages = limit(fm_ld(&h->limit_pages));
	r->grace_ms = fm_ld(&h->grace_ms);
	r->cooling_pages = fm_ld(&h->cooling);
	r->late_writes = fm_ld(&h->evict.late_writes);
	r->flags = fm_ld(&h->flags);
	fm_stats_sum(h, m->shards, m->nshards, false, &r->total);
	fm_stats_sum(h, m->shards, m->nshards, true, &r->stats);
	/* The greatest value is exact, percentiles are bounds of buckets: none may seem greater. */
	r->latency_max_ns = r->stats.latency_max_ns;
	if (!r->latency_max_ns)
		r->latency_max_ns = fm_hist_percentile(r->stats.latency, 1000);
	for (size_t i = 0; i < 4; i++) {
		r->latency_ns[i] = fm_hist_percentile(r->stats.latency, permille[i]);
		if (r->latency_ns[i] > r->latency_max_ns)
			r->latency_ns[i] = r->latency_max_ns;
	}
}

/* A file whose owner ended, or is being made just now, is no error. */
static bool comes_and_goes(int err)
{
	return err == -ENOENT || err == -ENODATA;
}

/* A store that is one thing, as a directory is. */
static void read_store(const struct fm_daemon_shm *d, struct sample *s)
{
	struct sample_store *t = &s->stores[0];

	snprintf(t->uri, sizeof t->uri, "%.*s", (int)sizeof d->store_uri - 1, d->store_uri);
	t->up = fm_ld(&d->store_up) != 0;
	t->state = t->up ? "up" : "down";
	t->used_bytes = fm_ld(&d->store_used_bytes);
	t->limit_bytes = fm_ld(&d->store_limit_bytes);
	t->errors = fm_ld(&d->store_errors);
	t->servers = fm_ld(&d->store_servers);
	s->nstores = 1;
}

static const char *const server_states[] = {
	[FM_SERVER_NONE] = "none",
	[FM_SERVER_UP] = "up",
	[FM_SERVER_DOWN] = "down",
	[FM_SERVER_DEAD] = "dead",
};

static const char *const server_roles[] = {
	[FM_SERVER_MEMBER] = "member",
	[FM_SERVER_DRAINED] = "drained",
	[FM_SERVER_LEFT] = "left",
};

static void read_registry(const struct fm_registry_shm *r, struct sample *s)
{
	s->registry = fm_ld(&r->configured) != 0;
	s->registry_here = fm_ld(&r->here) != 0;
	s->registry_epoch = fm_ld(&r->epoch);
	s->registry_settled = fm_ld(&r->settled);
	s->registry_oldest = fm_ld(&r->oldest);
	s->registry_behind = fm_ld(&r->behind);
}

/* Each server of a cluster, but those that have left and hold nothing of ours any more. */
static void read_cluster(const struct fm_cluster_shm *c, struct sample *s)
{
	unsigned n = fm_ld(&c->nservers);

	s->epoch = fm_ld(&c->epoch_now);
	s->pages_left = fm_ld(&c->settled) >= s->epoch ? 0 : fm_ld(&c->pages_left);
	s->pages_moved = fm_ld(&c->pages_moved);
	for (unsigned i = 0; i < FM_EPOCHS; i++)
		s->epochs += fm_ld(&c->epoch[i].number) != 0;
	for (unsigned i = 0; i < n && i < FM_SERVERS; i++) {
		const struct fm_server_shm *v = &c->server[i];
		uint32_t state = fm_ld(&v->state), role = fm_ld(&v->role);
		struct sample_store *t;

		if (role == FM_SERVER_LEFT && !fm_cluster_in_use(c, i))
			continue;
		t = &s->stores[s->nstores++];

		snprintf(t->uri, sizeof t->uri, "memcached:%s%.*s", *v->address == '/' ? "" : "//", (int)sizeof v->address - 1, v->address);
		t->up = state == FM_SERVER_UP;
		t->state = state <= FM_SERVER_DEAD ? server_states[state] : "?";
		t->role = role <= FM_SERVER_LEFT ? server_roles[role] : "?";
		t->drained = role != FM_SERVER_MEMBER;
		t->full = fm_ld(&v->flags) & FM_SERVER_FULL;
		t->used_bytes = fm_ld(&v->used_bytes);
		t->limit_bytes = fm_ld(&v->limit_bytes);
		t->items = fm_ld(&v->items);
		t->restarts = fm_ld(&v->restarts);
		t->rtt_ns = fm_ld(&v->rtt_ns);
	}
}

/* Returns 0, or -EACCES: "does not run" would be a guess. */
static int read_daemon(int dirfd, bool warn, struct sample *s)
{
	struct fm_daemon_map m = { .fd = -1 };
	const char *why = "";
	int err, alive;
	uint64_t start;

	alive = fm_shmfile_daemon_alive(dirfd, &s->daemon_pid);
	if (alive == -EACCES)
		return alive;
	if (alive < 0 && warn)
		fm_warn("%s: %s", FM_DAEMON_LOCK, strerror(-alive));
	err = fm_shmfile_daemon_map(dirfd, 0, &m, &why);
	if (err) {
		if (warn && err != -EACCES && !comes_and_goes(err))
			fm_warn("%s: %s", FM_DAEMON_STATE, err == -EPROTO ? why : strerror(-err));
		return err == -EACCES ? err : 0;
	}
	if (alive > 0) {
		if (!s->daemon_pid) /* in a pid namespace out of sight: what it calls itself */
			s->daemon_pid = m.shm->pid;
		start = m.shm->start_ns;
		s->uptime_s = s->mono_ns > start ? (s->mono_ns - start) / 1000000000u : 0;
	}
	s->limit_pages = limit(fm_ld(&m.shm->limit_pages));
	s->resident_pages = fm_ld(&m.shm->resident);
	read_registry(&m.shm->registry, s);
	if (fm_ld(&m.shm->cluster.epoch_now))
		read_cluster(&m.shm->cluster, s);
	else
		read_store(m.shm, s);
	fm_shmfile_daemon_unmap(&m);
	return 0;
}

int sample_take(int dirfd, bool warn, struct sample *s)
{
	struct fm_region_map m = { .fd = -1 };
	uint64_t *ids = NULL, resident = 0;
	char name[FM_REGION_FILE_MAX];
	const char *why = "";
	size_t n = 0;
	int err;

	*s = (struct sample){ .mono_ns = clock_ns(CLOCK_MONOTONIC), .realtime_ns = clock_ns(CLOCK_REALTIME) };
	err = read_daemon(dirfd, warn, s);
	if (err)
		return err;
	err = fm_shmfile_list(dirfd, &ids, &n);
	if (err)
		return err;
	s->regions = calloc(n ? n : 1, sizeof *s->regions);
	if (!s->regions) {
		free(ids);
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		err = fm_shmfile_region_map(dirfd, fm_shmfile_region_name(ids[i], name), 0, &m, &why);
		if (err) {
			if (warn && !comes_and_goes(err))
				fm_warn("%s: %s", name, err == -EPROTO ? why : strerror(-err));
			continue;
		}
		read_region(&m, &s->regions[s->nregions]);
		resident += s->regions[s->nregions++].resident_pages;
		fm_shmfile_region_unmap(&m);
	}
	free(ids);
	if (!s->nstores)
		s->resident_pages = resident;
	return 0;
}

void sample_free(struct sample *s)
{
	free(s->regions);
	*s = (struct sample){ 0 };
}

const struct sample_region *sample_find(const struct sample *earlier, const struct sample_region *r)
{
	for (size_t i = 0; earlier && i < earlier->nregions; i++) {
		const struct sample_region *e = &earlier->regions[i];

		if (e->id == r->id && e->created_ns == r->created_ns)
			return e;
	}
	return NULL;
}

int sample_clear(int dirfd, size_t *cleared, char file[FM_REGION_FILE_MAX], const char **why)
{
	struct fm_region_map m = { .fd = -1 };
	char name[FM_REGION_FILE_MAX];
	const char *reason = "";
	uint64_t *ids = NULL;
	size_t n = 0;
	int first, err;

	*cleared = 0;
	first = fm_shmfile_list(dirfd, &ids, &n);
	if (first) {
		strcpy(file, ".");
		*why = strerror(-first);
		return first;
	}
	for (size_t i = 0; i < n; i++) {
		err = fm_shmfile_region_map(dirfd, fm_shmfile_region_name(ids[i], name), FM_SHMFILE_WRITE, &m, &reason);
		if (err == 0) {
			fm_stats_clear(m.hdr, m.shards, m.nshards);
			fm_shmfile_region_unmap(&m);
			++*cleared;
		} else if (!comes_and_goes(err) && !first) {
			first = err;
			strcpy(file, name);
			*why = err == -EPROTO ? reason : strerror(-err);
		}
	}
	free(ids);
	return first;
}
