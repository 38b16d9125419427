/*
 * The evictor: one thread that waits for fm-faultd's messages and for its eventfd, and evicts while a budget is exceeded.
 */
#include "evictord.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crash.h"
#include "ctl.h"
#include "evict.h"
#include "log.h"
#include "sandbox.h"

#define MOVE_NS_PER_PAGE 60000 /* 64 MiB/s at most */

/* A request to evict from one region. */
struct task {
	struct task *next;
	struct fm_ctl_evict ask;
	uint64_t done;
	unsigned idle; /* rounds without progress */
	uint64_t moved_ns; /* when pages left last, or it began */
};

struct slot {
	struct slot *next;
	bool purging; /* ended: its keys are being deleted */
	bool moved;   /* its words were looked at in this pass */
	/*
	 * Pages in their grace that we would like to have: with a grace, what can leave in a second is what began to cool a grace before. Grows
	 * while fills are held for want of room, and shrinks again.
	 */
	uint64_t ahead;
	uint64_t held_seen;  /* the shards' sum of `held` at the last look */
	uint64_t ahead_ns;   /* when ahead was changed last */
	uint64_t recount_ns; /* when the pages in their grace were looked at last */
	bool starting;       /* as r.draining, but for beginning to write back: pages in their grace count as gone */
	struct fm_evict_region r;
};

struct evictord {
	int fd;      /* control connection */
	int wake_fd; /* eventfd */
	struct fm_daemon_shm *daemon;
	struct fm_evictor evictor;
	struct slot *slots;
	unsigned nslots;
	struct fm_view *views; /* nslots of them, in the order of slots: what could leave now */
	struct fm_view *starts; /* ... and what could be written back, so that it leaves now or after its grace */
	struct task *tasks;
	bool draining;
	bool starting; /* see struct slot */
	bool eof;
	unsigned regions_due; /* that fm-faultd is about to tell us */
	bool blind;           /* there is a region that we know nothing of */
	/* A pass over all words, moving pages to the newest placement epoch. */
	uint64_t pass_epoch;   /* 0: none runs */
	uint64_t pass_left;    /* pages that could not be moved in it */
	uint64_t move_next_ns; /* not before */
};

static volatile sig_atomic_t terminated;

static void on_term(int sig)
{
	(void)sig;
	terminated = 1;
}

static struct slot *find(struct evictord *d, uint64_t id)
{
	struct slot *s = d->slots;

	while (s && s->r.map.hdr->id != id)
		s = s->next;
	return s;
}

/* --- messages */

static void add_region(struct evictord *d, uint64_t id, const int *fds, unsigned nfds)
{
	const char *why = NULL;
	struct slot *s = calloc(1, sizeof *s);
	struct fm_view *views = realloc(d->views, (d->nslots + 1) * sizeof *views);
	struct fm_view *starts = realloc(d->starts, (d->nslots + 1) * sizeof *starts);
	int e = !s || !views || !starts ? -ENOMEM : 0;

	if (views)
		d->views = views;
	if (starts)
		d->starts = starts;
	if (e == 0)
		e = fm_shmfile_region_map_fd(fds[0], FM_SHMFILE_WRITE | FM_SHMFILE_WORDS, &s->r.map, &why);
	if (e == 0 && (s->r.map.hdr->id != id || nfds != 2 + s->r.map.nshards))
		e = -EPROTO;
	if (e == 0) {
		s->r.memfd = fds[1];
		for (unsigned i = 0; i < s->r.map.nshards; i++)
			s->r.uffd[i] = (struct fm_uffd){.fd = fds[2 + i], .ops = &fm_uffd_kernel};
		e = fm_store_region_begin(d->evictor.store, id);
		if (e == 0)
			e = fm_evict_begin(&d->evictor, &s->r);
		FM_CRASH_POINT("evictor-began-region");
	}
	if (e || !s) {
		/* Its pages then stay here; the others' budgets are kept all the same. */
		d->blind = true;
		fm_warn("region %016llx: cannot be evicted from: %s", (unsigned long long)id, why ? why : strerror(-e));
		if (s && s->r.map.hdr)
			fm_shmfile_region_unmap(&s->r.map);
		else
			close(fds[0]);
		for (unsigned i = 1; i < nfds; i++)
			close(fds[i]);
		free(s);
		return;
	}
	s->next = d->slots;
	d->slots = s;
	d->nslots++;
}

static void end_task(struct evictord *d, struct task *t)
{
	struct fm_ctl_evict reply = {.id = t->ask.id, .pages = t->done, .cookie = t->ask.cookie};

	for (struct task **link = &d->tasks; *link; link = &(*link)->next)
		if (*link == t) {
			*link = t->next;
			break;
		}
	if (fm_ctl_send(d->fd, FM_CTL_EVICTED, &reply, NULL, 0))
		d->eof = true;
	free(t);
}

/* It touches the region no more. */
static void forget_region(struct evictord *d, uint64_t id)
{
	struct fm_ctl_region m = {.id = id};

	for (struct slot **link = &d->slots, *s; (s = *link); link = &s->next)
		if (s->r.map.hdr->id == id) {
			*link = s->next;
			d->nslots--;
			fm_evict_end(&d->evictor, &s->r);
			free(s);
			break;
		}
	FM_CRASH_POINT("end-evictor-forgot");
	if (fm_ctl_send(d->fd, FM_CTL_REGION_GONE, &m, NULL, 0))
		d->eof = true;
}

static void del_region(struct evictord *d, const struct fm_ctl_region *m)
{
	struct task *next;

	for (struct task *t = d->tasks; t; t = next) {
		next = t->next;
		if (t->ask.id == m->id)
			end_task(d, t);
	}
	struct slot *s = find(d, m->id);

	if (s && d->evictor.store->ops->lists_no_keys)
		s->purging = true;
	else
		forget_region(d, m->id);
}

/* May pages be taken from it? */
static bool can_evict(const struct slot *s)
{
	return !s->purging && !s->r.gone && !(fm_ld(&s->r.map.hdr->flags) & FM_REGION_DETACHING);
}

/* fm-faultd brings the region home. Its keys are still deleted and moved; but from here on no page of it is ours. */
static void hold_region(struct evictord *d, const struct fm_ctl_region *m)
{
	struct task *next;

	for (struct task *t = d->tasks; t; t = next) {
		next = t->next;
		if (t->ask.id == m->id)
			end_task(d, t);
	}
	if (fm_ctl_send(d->fd, FM_CTL_REGION_HELD, m, NULL, 0))
		d->eof = true;
}

/* Delete some keys of the regions that ended. Returns whether there is more of that to do. */
static bool do_purges(struct evictord *d)
{
	for (struct slot *s = d->slots; s; s = s->next)
		if (s->purging) {
			if (fm_evict_purge(&d->evictor, &s->r))
				forget_region(d, s->r.map.hdr->id);
			return true;
		}
	return false;
}

static void add_task(struct evictord *d, const struct fm_ctl_evict *ask)
{
	struct slot *s = find(d, ask->id);
	struct task *t = calloc(1, sizeof *t), **link;

	if (!t)
		return;
	t->ask = *ask;
	t->moved_ns = fm_now_ns();
	/* "Everything" is what is here now: a client that faults pages back in must not keep us for ever. */
	if (s && t->ask.pages > fm_ld(&s->r.map.hdr->resident))
		t->ask.pages = fm_ld(&s->r.map.hdr->resident);
	for (link = &d->tasks; *link; link = &(*link)->next)
		;
	*link = t;
	if (!s)
		end_task(d, t);
}

static void on_message(struct evictord *d)
{
	union {
		struct fm_ctl_region region;
		struct fm_ctl_evict evict;
		char bytes[FM_CTL_MAX];
	} m;
	int fds[FM_CTL_FDS];
	unsigned type, nfds;

	if (fm_ctl_recv(d->fd, &type, &m, sizeof m, fds, &nfds)) {
		d->eof = true;
		return;
	}
	switch (type) {
	case FM_CTL_REGION_ADD:
		d->regions_due -= d->regions_due > 0;
		if (nfds >= 3) {
			add_region(d, m.region.id, fds, nfds);
			return;
		}
		break;
	case FM_CTL_REGION_DEL:
		del_region(d, &m.region);
		break;
	case FM_CTL_REGION_HOLD:
		hold_region(d, &m.region);
		break;
	case FM_CTL_EVICT:
		add_task(d, &m.evict);
		break;
	default:
		break;
	}
	while (nfds)
		close(fds[--nfds]);
}

/* --- work */

/* One batch of what may leave now, and the begin of as much more as is wanted. Returns how many pages left. */
static unsigned evict_some(struct evictord *d, struct slot *s, uint64_t want)
{
	unsigned n = want < FM_EVICT_MOST ? (unsigned)want : FM_EVICT_MOST;
	unsigned left = fm_evict_due(&d->evictor, &s->r, n);

	want -= left;
	if (want <= fm_grace_count(s->r.grace))
		return left;
	want -= fm_grace_count(s->r.grace);
	return left + fm_evict_batch(&d->evictor, &s->r, want < FM_EVICT_MOST ? (unsigned)want : FM_EVICT_MOST);
}

/* Batches for requests: one each. Returns true when some are left, and *moved when pages left. */
static bool do_tasks(struct evictord *d, uint64_t now, bool *moved)
{
	struct task *next;
	bool left = false;

	*moved = false;

	for (struct task *t = d->tasks; t; t = next) {
		struct slot *s = find(d, t->ask.id);
		uint64_t want = t->ask.pages - t->done;
		unsigned n = 0;

		next = t->next;
		if (s && can_evict(s) && now < s->r.stalled_until_ns) {
			left = true; /* the store refused a moment ago: that it is not asked again yet is no failure of this request */
			continue;
		}
		if (s && can_evict(s)) {
			if (fm_victims_count(s->r.victims) < want && t->idle && now > s->r.swept_ns + 20000000)
				fm_evict_sweep(&d->evictor, &s->r);
			n = evict_some(d, s, want);
		}
		t->done += n;
		*moved |= n > 0;
		t->idle = n ? 0 : t->idle + 1;
		t->moved_ns = n ? now : t->moved_ns;
		/* Pages in their grace leave by themselves, unless they are written again and again. */
		if (s && fm_grace_count(s->r.grace) && now < t->moved_ns + 2 * fm_ld(&s->r.map.hdr->grace_ms) * 1000000u + 1000000000u)
			t->idle = 1;
		/* A few empty rounds: pages are busy for a moment, or the store refuses; then say what was done. */
		if (!s || !can_evict(s) || t->done >= t->ask.pages || t->idle > 10)
			end_task(d, t);
		else
			left = true;
	}
	return left;
}

/*
 * Some of a pass that moves pages to the newest epoch, at a bounded rate: it must not crowd out faults and evictions. Returns whether
 * there is more to do.
 */
static bool do_moves(struct evictord *d, uint64_t now)
{
	struct fm_cluster_shm *c = &d->daemon->cluster;
	uint64_t target = atomic_load(&c->epoch_now);
	unsigned moved = 0;
	struct slot *s;

	if (!target || atomic_load(&c->settled) >= target)
		return false;
	/* A pass that misses a region would say that nothing is left. */
	if (d->regions_due)
		return false;
	if (now < d->move_next_ns)
		return true;
	if (d->pass_epoch != target) {
		d->pass_epoch = target;
		d->pass_left = 0;
		for (s = d->slots; s; s = s->next) {
			s->moved = false;
			s->r.move_at = 0;
		}
	}
	for (s = d->slots; s && (s->moved || s->purging || s->r.gone); s = s->next)
		;
	if (s) {
		s->moved = fm_evict_move(&d->evictor, &s->r, &moved, &d->pass_left);
		fm_bump(&c->pages_moved, moved);
		d->move_next_ns = now + moved * MOVE_NS_PER_PAGE;
		return true;
	}
	d->pass_left += d->blind;
	atomic_store(&c->pages_left, d->pass_left);
	fm_bump(&c->passes, 1);
	if (d->pass_left == 0)
		atomic_store(&c->settled, target);
	d->pass_epoch = 0;
	d->move_next_ns = now + 200000000; /* what could not be moved is busy, or its server away: a little later */
	return d->pass_left != 0;
}

/* How many pages of the region should be in their grace beyond those that the budget asks for: see struct slot. */
static uint64_t ahead(struct slot *s, uint64_t now, uint64_t limit, uint64_t global)
{
	struct fm_region_map *m = &s->r.map;
	uint64_t held = 0, most = limit && limit < global ? limit : global;

	if (!fm_ld(&m->hdr->grace_ms) || most == FM_LIMIT_NONE)
		return 0;
	most -= most / 4;
	for (unsigned i = 0; i < m->nshards; i++)
		held += fm_ld(&m->shards[i].stats.held);
	if (held != s->held_seen && now > s->ahead_ns + 5000000) {
		s->ahead = s->ahead * 2 + 16;
		s->ahead_ns = now;
	} else if (s->ahead && now > s->ahead_ns + 1000000000) {
		s->ahead -= s->ahead / 4 + 1;
		s->ahead_ns = now;
	}
	/* Pages that were written again are not about to leave: it shows only when they are looked at. */
	if (held != s->held_seen && now > s->recount_ns + 50000000) {
		fm_evict_recount_grace(&s->r);
		s->recount_ns = now;
	}
	s->held_seen = held;
	if (s->ahead > most)
		s->ahead = most;
	return s->ahead;
}

static bool stalled(const struct slot *s, uint64_t now)
{
	return !can_evict(s) || now < s->r.stalled_until_ns;
}

/* What the policy needs to know of each region. *total counts what will be here when every page in its grace is gone, and as many more. */
static void look_starts(struct evictord *d, uint64_t now, uint64_t global, uint64_t *total)
{
	unsigned i = 0;

	for (struct slot *s = d->slots; s; s = s->next) {
		struct fm_region_hdr *h = s->r.map.hdr;
		bool home = fm_ld(&h->flags) & FM_REGION_DETACHING; /* nothing of it is about to leave, nor is it in the total */
		uint64_t limit = fm_ld(&h->limit_pages), resident = fm_ld(&h->resident), more = home ? 0 : ahead(s, now, limit, global);
		uint64_t cooling = home ? 0 : fm_grace_count(s->r.grace);
		struct fm_marks m = fm_policy_marks(limit ? limit : FM_LIMIT_NONE);

		cooling = cooling < resident ? cooling : resident;
		resident = resident - cooling + more;
		*total = (*total > cooling ? *total - cooling : 0) + more;
		if (resident > m.high)
			s->starting = true;
		else if (resident <= m.low)
			s->starting = false;
		d->starts[i++] = (struct fm_view){
		    .resident = resident,
		    .limit = limit,
		    .queued = fm_victims_count(s->r.victims),
		    .age = fm_victims_age(s->r.victims),
		    .draining = s->starting,
		    .stalled = stalled(s, now),
		};
	}
}

static void look(struct evictord *d, uint64_t now)
{
	unsigned i = 0;

	for (struct slot *s = d->slots; s; s = s->next) {
		struct fm_region_hdr *h = s->r.map.hdr;
		uint64_t limit = fm_ld(&h->limit_pages), resident = fm_ld(&h->resident);
		struct fm_marks m = fm_policy_marks(limit ? limit : FM_LIMIT_NONE);

		if (!s->purging)
			fm_evict_drain(&d->evictor, &s->r);
		if (can_evict(s) && resident > m.high)
			s->r.draining = true;
		else if (!can_evict(s) || resident <= m.low)
			s->r.draining = false;
		d->views[i++] = (struct fm_view){
		    .resident = resident,
		    .limit = limit,
		    .queued = fm_evict_due_ns(&s->r) && fm_evict_due_ns(&s->r) <= now ? fm_grace_count(s->r.grace) : 0,
		    .draining = s->r.draining,
		    .stalled = !can_evict(s), /* what is stored already needs no store */
		};
	}
}

static struct slot *nth(struct evictord *d, int n)
{
	struct slot *s = d->slots;

	while (n--)
		s = s->next;
	return s;
}

/* Over budget, but no page queued: a hint was lost (a crash, no memory). Look at the words, now and then. */
static void sweep_some(struct evictord *d, uint64_t now)
{
	for (struct slot *s = d->slots; s; s = s->next)
		if (can_evict(s) && !fm_victims_count(s->r.victims) && fm_ld(&s->r.map.hdr->resident) > fm_grace_count(s->r.grace) &&
		    now > s->r.swept_ns + 50000000)
			fm_evict_sweep(&d->evictor, &s->r);
}

/* One round. Returns how long to sleep, ms: 0 not at all, -1 until woken. */
static int work(struct evictord *d)
{
	uint64_t now = fm_now_ns(), total = fm_ld(&d->daemon->resident), limit = fm_ld(&d->daemon->limit_pages), take;
	struct fm_marks g = fm_policy_marks(limit);
	bool tasks, moved, over, purging, moving, busy = false;
	uint64_t start;
	int pick;

	if (total > g.high)
		d->draining = true;
	else if (total <= g.low)
		d->draining = false;
	purging = do_purges(d);
	moving = do_moves(d, now);
	look(d, now);
	tasks = do_tasks(d, now, &moved);
	pick = fm_policy_pick(d->views, d->nslots, total, limit, d->draining, &take);
	if (pick >= 0) {
		fm_evict_due(&d->evictor, &nth(d, pick)->r, take < FM_EVICT_BATCH ? (unsigned)take : FM_EVICT_BATCH);
		busy = true;
	}
	start = fm_ld(&d->daemon->resident);
	look_starts(d, now, limit, &start);
	if (start > g.high)
		d->starting = true;
	else if (start <= g.low)
		d->starting = false;
	pick = fm_policy_pick(d->starts, d->nslots, start, limit, d->starting, &take);
	if (pick >= 0) {
		fm_evict_batch(&d->evictor, &nth(d, pick)->r, take < FM_EVICT_MOST ? (unsigned)take : FM_EVICT_MOST);
		busy = true;
	}
	if (busy || purging)
		return 0;
	over = d->draining;
	for (unsigned i = 0; i < d->nslots; i++)
		over |= d->views[i].draining;
	if (over)
		sweep_some(d, now);
	for (struct slot *s = d->slots; s; s = s->next)
		if (fm_queue_count(s->r.deletes))
			return tasks ? 0 : 5;
	/* Where nothing moved, pages are busy for a moment or the store refuses: a little later. */
	return tasks ? (moved ? 0 : 2) : over ? 5 : moving ? 2 : d->daemon->cluster.epoch_now ? 1000 : -1;
}

static void loop(struct evictord *d, struct evict_job *job)
{
	while (!d->eof && !terminated) {
		struct pollfd p[2] = {{.fd = d->fd, .events = POLLIN}, {.fd = d->wake_fd, .events = POLLIN}};
		int sleep_ms = work(d);
		uint64_t n;

		if (job && !d->tasks && job->evicted == UINT64_MAX)
			return;
		if (sleep_ms) {
			/* Say that we sleep, then look once more: a shard that saw us awake a moment ago did not wake us. */
			atomic_store(&d->daemon->evictor_sleeping, 1);
			sleep_ms = work(d);
		}
		if (poll(p, 2, sleep_ms) < 0 && errno != EINTR)
			return;
		if (sleep_ms)
			atomic_store(&d->daemon->evictor_sleeping, 0);
		if (p[1].revents && read(d->wake_fd, &n, sizeof n) < 0) {
			/* another woke us */
		}
		if (p[0].revents)
			on_message(d);
	}
}

/* --- start and end */

static int lock_evictor(const char *run_dir)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char path[4096];
	int fd;

	snprintf(path, sizeof path, "%s/evict.lock", run_dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	if (fd < 0)
		fm_die(FM_EXIT_FAILED, "%s: cannot open: %m", path);
	if (fcntl(fd, F_SETLK, &l) < 0) {
		l.l_type = F_WRLCK;
		fcntl(fd, F_GETLK, &l);
		fm_die(FM_EXIT_FAILED, "%s: an evictor runs already, pid %d", run_dir, l.l_pid);
	}
	return fd;
}

static struct fm_daemon_shm *map_daemon(int fd)
{
	struct stat st;
	struct fm_daemon_shm *s;

	if (fstat(fd, &st) < 0 || (size_t)st.st_size < sizeof *s)
		return NULL;
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return s == MAP_FAILED || s->magic != FM_MAGIC_DAEMON || s->version != FM_SHM_VERSION ? NULL : s;
}

/* Ask to be the evictor; fills d and returns the store's URI in ok. */
static void enlist(struct evictord *d, const char *run_dir, struct fm_ctl_evictor_ok *ok)
{
	int fds[FM_CTL_FDS], r;
	unsigned type = 0, nfds = 0;
	union {
		struct fm_ctl_evictor_ok ok;
		struct fm_ctl_error error;
		char bytes[FM_CTL_MAX];
	} m;

	d->fd = fm_ctl_connect(run_dir);
	if (d->fd < 0)
		fm_die(FM_EXIT_PEER, "%s/fm.sock: fm-faultd cannot be reached: %s", run_dir, strerror(-d->fd));
	r = fm_ctl_send(d->fd, FM_CTL_EVICTOR, NULL, NULL, 0);
	if (r == 0)
		r = fm_ctl_recv(d->fd, &type, &m, sizeof m, fds, &nfds);
	if (r)
		fm_die(FM_EXIT_PEER, "%s/fm.sock: fm-faultd does not answer: %s", run_dir, strerror(-r));
	if (type == FM_CTL_ERROR) {
		m.error.text[sizeof m.error.text - 1] = '\0';
		fm_die(FM_EXIT_FAILED, "%s: fm-faultd refuses: %s", run_dir, m.error.text);
	}
	if (type != FM_CTL_EVICTOR_OK || nfds != 2)
		fm_die(FM_EXIT_FAILED, "%s: fm-faultd answers in another language", run_dir);
	*ok = m.ok;
	ok->store_uri[sizeof ok->store_uri - 1] = '\0';
	ok->key_file[sizeof ok->key_file - 1] = '\0';
	d->daemon = map_daemon(fds[0]);
	close(fds[0]);
	d->wake_fd = fds[1];
	if (!d->daemon)
		fm_die(FM_EXIT_FAILED, "%s/%s: is damaged or of another version", run_dir, FM_DAEMON_STATE);
}

/* Nothing is opened from here on but the store's connections and files. */
static void enter_sandbox(const struct evictord *d, const struct fm_ctl_evictor_ok *ok, bool no_seccomp)
{
	const char *needs[FM_SERVERS + 2];
	size_t n = fm_store_paths(ok->store_uri, &d->daemon->cluster, needs, FM_SERVERS);
	struct fm_sandbox got;
	int r;

	if (*ok->key_file)
		needs[n++] = ok->key_file;
	r = fm_sandbox_enter(FM_SANDBOX_EVICT, "fm-evict", needs, n, no_seccomp, &got);
	if (r)
		fm_warn("sandbox: cannot be entered: %s: privileges are kept", strerror(-r));
}

int evictord_run(const char *run_dir, struct evict_job *job, bool no_seccomp)
{
	struct sigaction sa = {.sa_handler = on_term};
	struct evictord d = {0};
	struct fm_ctl_evictor_ok ok;
	struct fm_store_options o = {0};
	struct fm_store *store;
	char why[FM_STORE_WHY];
	struct rlimit l;
	int lock = lock_evictor(run_dir);

	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
		l.rlim_cur = l.rlim_max;
		setrlimit(RLIMIT_NOFILE, &l);
	}
	FM_CRASH_POINT("evictor-locked");
	enlist(&d, run_dir, &ok);
	d.regions_due = ok.regions;
	o.key_file = *ok.key_file ? ok.key_file : NULL;
	o.replicas = ok.replicas;
	o.no_seal = ok.no_seal;
	o.cluster = &d.daemon->cluster;
	if (fm_store_open(ok.store_uri, &o, &store, why))
		fm_die(FM_EXIT_FAILED, "%s", why);
	if (fm_evictor_init(&d.evictor, d.daemon, store))
		fm_die(FM_EXIT_FAILED, "out of memory");
	enter_sandbox(&d, &ok, no_seccomp);
	if (job) {
		/* The regions follow the reply at once; ours is among them, or it does not exist. */
		struct pollfd p = {.fd = d.fd, .events = POLLIN};
		struct fm_ctl_evict ask = {.id = job->id, .pages = job->pages};

		while (!d.eof && !find(&d, job->id) && poll(&p, 1, 1000) > 0)
			on_message(&d);
		if (find(&d, job->id)) {
			struct slot *s = find(&d, job->id);
			uint64_t before = fm_ld(&s->r.map.hdr->evict.evictions);

			add_task(&d, &ask);
			job->evicted = UINT64_MAX;
			loop(&d, job);
			job->evicted = (s = find(&d, job->id)) ? fm_ld(&s->r.map.hdr->evict.evictions) - before : 0;
		}
	} else {
		loop(&d, NULL);
	}
	/* A page that is ours at this point would be a bug: batches are finished before the loop looks around. */
	while (d.slots) {
		struct slot *s = d.slots;

		d.slots = s->next;
		fm_evict_end(&d.evictor, &s->r);
		free(s);
	}
	fm_evictor_fini(&d.evictor);
	fm_store_close(store);
	free(d.views);
	free(d.starts);
	/* In this order: who holds the lock when its connection ends is taken for stuck, and killed. */
	close(lock);
	close(d.fd);
	return FM_EXIT_OK;
}
