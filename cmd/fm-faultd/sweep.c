/*
 * The sweeper: a thread that deletes keys which no page word names any more, on servers that a put or a delete may not have reached.
 *
 * Theory of operation. Whoever puts or deletes, and cannot know that it was done, sets the server's STALE flag in daemon.state: one bit, however much was
 * missed. When that server has been up for a moment, the sweeper has it list its keys and deletes those whose generation is smaller than the one
 * in their page's word, and those of regions that ended. A word's generation never falls, so nobody will ever ask for them: there is no
 * race to lose, with the evictor or with anybody. What a word names is never touched, even where it does not belong.
 *
 * The regions that ended while a server was STALE are remembered in the run directory (`ended`) until each such server was swept.
 */
#include "faultd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "evict.h"
#include "log.h"
#include "mccollect.h"

#define ENDED_FILE "ended"
#define ENDED_MAX  4096
#define LINE       17 /* an id and a newline */
#define TURN_MS    500
#define QUIET_NS   3000000000ull  /* up, and known to be stale, for so long: what its sockets still held is done */
#define EVERY_NS   60000000000ull /* a listing of all keys is no small matter */
#define AGAIN_NS   10000000000ull /* after a failure */
#define CANNOT_NS  600000000000ull /* after one that will not pass: it lists no keys */
#define SERVER_MS  5000

/* A region that ended. */
struct ended {
	uint64_t id;
	uint64_t left; /* bit i: server i may have keys of it */
};

struct sweep {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t cond; /* CLOCK_MONOTONIC */
	int run_fd, ended_fd;
	struct fm_cluster_shm *cluster;
	/* under the mutex */
	bool stop;
	uint64_t sweeping; /* bit i: server i lists its keys */
	struct ended ended[ENDED_MAX];
	unsigned nended;
	/* the thread's own */
	uint64_t seen_ns[FM_SERVERS]; /* CLOCK_MONOTONIC: stale since; 0 not */
	uint64_t next_ns[FM_SERVERS]; /* not before */
	struct fm_region_map *map; /* of all regions, by id */
	size_t nmaps;
	uint64_t *gone; /* regions that had ended when the listing began */
	unsigned ngone;
};

/* --- the regions that ended */

/* Under the mutex. In place: what half a list costs is some keys that stay. */
static void save(const struct sweep *s)
{
	char line[LINE + 1];

	for (unsigned i = 0; i < s->nended; i++) {
		snprintf(line, sizeof line, "%016" PRIx64 "\n", s->ended[i].id);
		if (pwrite(s->ended_fd, line, LINE, (off_t)i * LINE) != LINE)
			return;
	}
	if (ftruncate(s->ended_fd, (off_t)s->nended * LINE) < 0) {
		/* then some are looked for in vain */
	}
}

static void load(struct sweep *s)
{
	char line[LINE + 1] = "";

	while (s->nended < ENDED_MAX && pread(s->ended_fd, line, LINE, (off_t)s->nended * LINE) == LINE) {
		char *end;
		uint64_t id = strtoull(line, &end, 16);

		if (!id || *end != '\n')
			return;
		s->ended[s->nended++] = (struct ended){.id = id, .left = UINT64_MAX};
	}
}

/* Servers that are to be swept: those that have left for good are nobody's any more. */
static uint64_t stale_servers(const struct sweep *s)
{
	unsigned n = atomic_load(&s->cluster->nservers);
	uint64_t bits = 0;

	for (unsigned i = 0; i < n && i < FM_SERVERS; i++)
		if ((atomic_load(&s->cluster->server[i].flags) & FM_SERVER_STALE) &&
		    (atomic_load(&s->cluster->server[i].role) == FM_SERVER_MEMBER || fm_cluster_in_use(s->cluster, i)))
			bits |= 1ull << i;
	return bits;
}

void sweep_region_ended(struct faultd *d, uint64_t id)
{
	struct sweep *s = d->sweep;
	uint64_t stale;

	if (!s)
		return;
	pthread_mutex_lock(&s->mutex);
	stale = stale_servers(s) | s->sweeping;
	if (stale && s->nended < ENDED_MAX) {
		s->ended[s->nended++] = (struct ended){.id = id, .left = stale};
		save(s);
	}
	pthread_mutex_unlock(&s->mutex);
}

/* No server but these has keys of regions that ended. */
static void forget_ended(struct sweep *s, uint64_t servers)
{
	unsigned n = 0;

	pthread_mutex_lock(&s->mutex);
	for (unsigned i = 0; i < s->nended; i++) {
		s->ended[i].left &= servers;
		if (s->ended[i].left)
			s->ended[n++] = s->ended[i];
	}
	if (n != s->nended) {
		s->nended = n;
		save(s);
	}
	pthread_mutex_unlock(&s->mutex);
}

/* --- a sweep */

static bool stopping(void *arg)
{
	struct sweep *s = arg;
	bool stop;

	pthread_mutex_lock(&s->mutex);
	stop = s->stop;
	pthread_mutex_unlock(&s->mutex);
	return stop;
}

static void let_go(struct sweep *s)
{
	while (s->nmaps)
		fm_shmfile_region_unmap(&s->map[--s->nmaps]);
	free(s->map);
	free(s->gone);
	s->map = NULL;
	s->gone = NULL;
	s->ngone = 0;
}

/* What we know of regions, for one listing. A region that cannot be looked at keeps its keys. */
static int look(struct sweep *s)
{
	uint64_t *ids;
	size_t n;
	int e = fm_shmfile_list(s->run_fd, &ids, &n);

	if (e)
		return e;
	s->map = calloc(n + 1, sizeof *s->map);
	s->gone = calloc(ENDED_MAX, sizeof *s->gone);
	for (size_t i = 0; s->map && i < n; i++) {
		char name[FM_REGION_FILE_MAX];

		s->nmaps += fm_shmfile_region_map(s->run_fd, fm_shmfile_region_name(ids[i], name), FM_SHMFILE_WORDS, &s->map[s->nmaps], NULL) == 0;
	}
	free(ids);
	if (!s->map || !s->gone) {
		let_go(s);
		return -ENOMEM;
	}
	pthread_mutex_lock(&s->mutex);
	for (unsigned i = 0; i < s->nended; i++)
		s->gone[s->ngone++] = s->ended[i].id;
	pthread_mutex_unlock(&s->mutex);
	return 0;
}

static bool is_garbage(void *arg, uint64_t region, uint64_t page, uint64_t gen)
{
	const struct sweep *s = arg;
	size_t low = 0, high = s->nmaps;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (s->map[mid].hdr->id < region)
			low = mid + 1;
		else
			high = mid;
	}
	if (low < s->nmaps && s->map[low].hdr->id == region)
		return page < s->map[low].pages && gen < fm_word_gen(atomic_load(&s->map[low].words[page]));
	for (unsigned i = 0; i < s->ngone; i++)
		if (s->gone[i] == region)
			return true;
	return false; /* another host's */
}

static void sweep_server(struct sweep *s, unsigned i)
{
	struct fm_server_shm *shm = &s->cluster->server[i];
	struct fm_mccollect c = {.garbage = is_garbage, .timeout_ms = SERVER_MS, .stop = stopping, .arg = s};
	struct fm_mc_address a = {.sa_len = shm->sockaddr_len};
	char why[256] = "out of memory";
	int e;

	memcpy(a.text, shm->address, sizeof a.text);
	memcpy(&a.sa, shm->sockaddr, sizeof a.sa);
	/* First: what is missed from here on is not found by this listing for sure. */
	pthread_mutex_lock(&s->mutex);
	s->sweeping = 1ull << i;
	atomic_fetch_and(&shm->flags, ~(uint32_t)FM_SERVER_STALE);
	pthread_mutex_unlock(&s->mutex);
	e = look(s);
	if (e == 0)
		e = fm_mccollect_server(&a, &c, why);
	if (e) {
		atomic_fetch_or(&shm->flags, FM_SERVER_STALE);
		s->next_ns[i] = fm_now_ns() + (e == -EPROTO ? CANNOT_NS : AGAIN_NS);
		if (e != -ECANCELED)
			fm_info("store: what was left behind on %s is not deleted yet: %s", a.text, why);
	} else {
		s->next_ns[i] = fm_now_ns() + EVERY_NS;
		s->seen_ns[i] = 0;
		fm_info("store: %s: swept: %" PRIu64 " keys that no page has deleted", a.text, c.deleted);
	}
	pthread_mutex_lock(&s->mutex);
	s->sweeping = 0;
	for (unsigned k = 0; e == 0 && k < s->nended; k++) {
		if (k < s->ngone)
			s->ended[k].left &= ~(1ull << i);
		else if (s->ended[k].left >> i & 1)
			atomic_fetch_or(&shm->flags, FM_SERVER_STALE); /* it ended meanwhile: it was not looked for */
	}
	pthread_mutex_unlock(&s->mutex);
	let_go(s);
}

static void turn(struct sweep *s)
{
	uint64_t now = fm_now_ns(), stale = stale_servers(s);

	for (unsigned i = 0; i < FM_SERVERS; i++) {
		const struct fm_server_shm *shm = &s->cluster->server[i];

		if (!(stale >> i & 1)) {
			s->seen_ns[i] = 0;
			continue;
		}
		if (!s->seen_ns[i])
			s->seen_ns[i] = now;
		if (atomic_load(&shm->state) == FM_SERVER_UP && now > atomic_load(&shm->since_ns) + QUIET_NS && now > s->seen_ns[i] + QUIET_NS &&
		    now >= s->next_ns[i] && !stopping(s))
			sweep_server(s, i);
	}
	forget_ended(s, stale_servers(s));
}

/* --- the thread */

static void *sweep_thread(void *arg)
{
	struct sweep *s = arg;

	while (!stopping(s)) {
		struct timespec t;

		turn(s);
		clock_gettime(CLOCK_MONOTONIC, &t);
		t.tv_nsec += TURN_MS * 1000000l;
		t.tv_sec += t.tv_nsec / 1000000000;
		t.tv_nsec %= 1000000000;
		pthread_mutex_lock(&s->mutex);
		while (!s->stop && pthread_cond_timedwait(&s->cond, &s->mutex, &t) == 0)
			;
		pthread_mutex_unlock(&s->mutex);
	}
	return NULL;
}

void sweep_start(struct faultd *d)
{
	struct sweep *s;
	pthread_condattr_t attr;

	if (strncmp(d->store_uri, "memcached:", 10) != 0)
		return;
	s = calloc(1, sizeof *s);
	if (s)
		s->ended_fd = openat(d->run_fd, ENDED_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (!s || s->ended_fd < 0) {
		fm_warn("store: keys that no page has are not looked for: %m");
		free(s);
		return;
	}
	s->run_fd = d->run_fd;
	s->cluster = &d->daemon->cluster;
	load(s);
	/* Those before us may have died with puts and deletes under way. */
	if (d->regions || s->nended)
		fm_cluster_all_stale(s->cluster);
	pthread_mutex_init(&s->mutex, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->cond, &attr);
	pthread_condattr_destroy(&attr);
	if (pthread_create(&s->thread, NULL, sweep_thread, s)) {
		fm_warn("store: keys that no page has are not looked for: cannot start a thread");
		close(s->ended_fd);
		free(s);
		return;
	}
	d->sweep = s;
}

void sweep_stop(struct faultd *d)
{
	struct sweep *s = d->sweep;

	if (!s)
		return;
	pthread_mutex_lock(&s->mutex);
	s->stop = true;
	pthread_cond_signal(&s->cond);
	pthread_mutex_unlock(&s->mutex);
	pthread_join(s->thread, NULL); /* it looks every 100 ms */
	pthread_cond_destroy(&s->cond);
	pthread_mutex_destroy(&s->mutex);
	close(s->ended_fd);
	free(s);
	d->sweep = NULL;
}
