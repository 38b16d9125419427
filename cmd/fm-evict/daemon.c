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
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crash.h"
#include "evictord_impl.h"
#include "log.h"
#include "sandbox.h"

static volatile sig_atomic_t terminated;

static void on_term(int sig)
{
	(void)sig;
	terminated = 1;
}

static void loop(struct evictord *d, struct evict_job *job)
{
	while (!d->eof && !terminated) {
		struct pollfd p[2] = {{.fd = d->fd, .events = POLLIN}, {.fd = d->wake_fd, .events = POLLIN}};
		int sleep_ms = evictord_work(d);
		uint64_t n;

		if (job && !d->tasks && job->evicted == UINT64_MAX)
			return;
		if (sleep_ms) {
			/* Say that we sleep, then look once more: a shard that saw us awake a moment ago did not wake us. */
			atomic_store(&d->daemon->evictor_sleeping, 1);
			sleep_ms = evictord_work(d);
		}
		if (poll(p, 2, sleep_ms) < 0 && errno != EINTR)
			return;
		if (sleep_ms)
			atomic_store(&d->daemon->evictor_sleeping, 0);
		if (p[1].revents && read(d->wake_fd, &n, sizeof n) < 0) {
			/* another woke us */
		}
		if (p[0].revents)
			evictord_message(d);
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
		fm_die(errno == ENOENT ? FM_EXIT_PEER : FM_EXIT_FAILED, "%s: cannot open: %m%s", path, errno == ENOENT ? "; has fm-faultd run?" : "");
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

		while (!d.eof && !evictord_find(&d, job->id) && poll(&p, 1, 1000) > 0)
			evictord_message(&d);
		if (evictord_find(&d, job->id)) {
			struct slot *s = evictord_find(&d, job->id);
			uint64_t before = fm_ld(&s->r.map.hdr->evict.evictions);

			evictord_task_add(&d, &ask);
			job->evicted = UINT64_MAX;
			loop(&d, job);
			job->evicted = (s = evictord_find(&d, job->id)) ? fm_ld(&s->r.map.hdr->evict.evictions) - before : 0;
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
