#include "faultd.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "policy.h"

/* What the loop watches besides connections and clients. */
static struct watch watch_listen = {WATCH_LISTEN}, watch_signal = {WATCH_SIGNAL}, watch_timer = {WATCH_TIMER},
		    watch_news = {WATCH_NEWS};

int watch_add(struct faultd *d, int fd, struct watch *w)
{
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = w};

	return epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

/* --- replies */

void conn_reply(struct conn *c, unsigned type, const void *body, const int *fds, unsigned nfds)
{
	struct pollfd p = {.fd = c->fd, .events = POLLOUT};

	/* Who does not read its answers is not waited for; but the evictor may be busy, and must hear of every region. */
	if (!c->dead && ((!c->evictor && poll(&p, 1, 0) != 1) || fm_ctl_send(c->fd, type, body, fds, nfds)))
		c->dead = true;
}

bool conn_hung_up(const struct conn *c)
{
	struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};

	return c->dead || poll(&p, 1, 0) != 0;
}

void conn_error(struct conn *c, int error, const char *fmt, ...)
{
	struct fm_ctl_error e = {.error = error};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(e.text, sizeof e.text, fmt, ap);
	va_end(ap);
	fm_info("peer pid %d: %s", c->pid, e.text);
	conn_reply(c, FM_CTL_ERROR, &e, NULL, 0);
}

/* --- requests */

static void on_hello(struct faultd *d, struct conn *c, const struct fm_ctl_hello *m)
{
	/* A shard is worth its thread from some 64 MiB on. */
	uint64_t n = 1 + m->pages / 16384;
	struct fm_ctl_hello_ok ok = {.nshards = n < d->shards ? (uint32_t)n : d->shards, .pid = getpid()};

	conn_reply(c, FM_CTL_HELLO_OK, &ok, NULL, 0);
}

static void on_device(struct conn *c)
{
	int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		conn_error(c, errno, "/dev/userfaultfd: cannot be opened: %m");
		return;
	}
	conn_reply(c, FM_CTL_OK, NULL, &fd, 1);
	close(fd);
}

/* The region a request names, if the peer may act on it. Answers the peer when not. */
static struct region *asked_region(struct faultd *d, struct conn *c, uint64_t id)
{
	struct region *r = region_find(d, id);

	if (!r || r->ending) {
		conn_error(c, ENOENT, "%016llx: no such region", (unsigned long long)id);
		return NULL;
	}
	if (!conn_is_trusted(d, c) && r->map.hdr->uid != c->uid) {
		conn_error(c, EPERM, "%016llx: the region belongs to another user", (unsigned long long)id);
		return NULL;
	}
	return r;
}

static void on_unregister(struct faultd *d, struct conn *c, const struct fm_ctl_region *m)
{
	struct region *r = region_find(d, m->id);

	/* Seen to be gone already, by the end of its client or the UNMAP event: as asked. */
	if (!r) {
		conn_reply(c, FM_CTL_OK, NULL, NULL, 0);
		return;
	}
	if (!conn_is_trusted(d, c) && (c->pid != r->map.hdr->pid || c->uid != r->map.hdr->uid)) {
		conn_error(c, EPERM, "%016llx: the region belongs to another process", (unsigned long long)m->id);
		return;
	}
	c->waits_region = m->id;
	region_end(d, r);
}

static void on_evict(struct faultd *d, struct conn *c, const struct fm_ctl_evict *m)
{
	struct fm_ctl_evict ask = *m;
	unsigned waiting = 0;

	const struct region *r = asked_region(d, c, m->id);

	if (!r)
		return;
	if (r->detach) {
		conn_error(c, EBUSY, "%016llx: it is being detached", (unsigned long long)m->id);
		return;
	}
	for (const struct conn *other = d->conns; other; other = other->next)
		waiting += other->waits_cookie != 0;
	if (c->waits_cookie || waiting >= MAX_EVICT_REQUESTS) {
		conn_error(c, EBUSY, "too many evictions are asked for at once");
		return;
	}
	if (!d->evictor) {
		conn_error(c, ESRCH, "no evictor runs");
		return;
	}
	ask.cookie = c->waits_cookie = ++d->next_cookie;
	conn_reply(d->evictor, FM_CTL_EVICT, &ask, NULL, 0);
	evictor_kick(d);
}

static void on_evicted(struct faultd *d, const struct fm_ctl_evict *m)
{
	for (struct conn *c = d->conns; c; c = c->next)
		if (c->waits_cookie && c->waits_cookie == m->cookie) {
			c->waits_cookie = 0;
			conn_reply(c, FM_CTL_EVICTED, m, NULL, 0);
		}
}

static void on_limit(struct faultd *d, struct conn *c, const struct fm_ctl_evict *m)
{
	if (m->pages == 0) {
		conn_error(c, EINVAL, "limit: zero");
		return;
	}
	if (m->id) {
		struct region *r = asked_region(d, c, m->id);

		if (!r)
			return;
		atomic_store(&r->map.hdr->limit_pages, m->pages == FM_LIMIT_NONE ? 0 : m->pages);
	} else if (!conn_is_root(c)) {
		conn_error(c, EPERM, "limit: only root may change the budget of the host");
		return;
	} else {
		atomic_store(&d->daemon->limit_pages, m->pages);
	}
	evictor_kick(d);
	conn_reply(c, FM_CTL_OK, NULL, NULL, 0);
}

static void on_grace(struct faultd *d, struct conn *c, const struct fm_ctl_evict *m)
{
	struct region *r = asked_region(d, c, m->id);

	if (!r)
		return;
	if (m->pages > FM_GRACE_MAX_MS) {
		conn_error(c, EINVAL, "grace: %llu: must be a number of ms from 0 to %u", (unsigned long long)m->pages, FM_GRACE_MAX_MS);
		return;
	}
	atomic_store(&r->map.hdr->grace_ms, m->pages);
	conn_reply(c, FM_CTL_OK, NULL, NULL, 0);
}

static void on_server(struct faultd *d, struct conn *c, const struct fm_ctl_server *m)
{
	if (conn_is_root(c))
		members_on_server(d, c, m);
	else
		conn_error(c, EPERM, "server: only root may change the store");
}

static void on_gone(struct faultd *d, const struct fm_ctl_region *m)
{
	struct region *r = region_find(d, m->id);

	if (r && r->ending)
		region_free(d, r);
}

static void on_held(struct faultd *d, const struct fm_ctl_region *m)
{
	struct region *r = region_find(d, m->id);

	if (!r || !r->holds)
		return;
	/* One for an earlier request, which went away, says nothing of the batches that began since. */
	if (--r->holds == 0 && !r->ending)
		region_detach_held(d, r);
}

static void on_detach(struct faultd *d, struct conn *c, const struct fm_ctl_region *m)
{
	struct region *r = asked_region(d, c, m->id);

	if (!r)
		return;
	if (c->waits_detach)
		conn_error(c, EBUSY, "detach: one at a time");
	else
		region_detach(d, c, r);
}

static void refuse(struct conn *c, const char *why)
{
	conn_error(c, EPROTO, "message: %s", why);
	c->dead = true;
}

static void on_message(struct faultd *d, struct conn *c)
{
	const void *m = c->body;

	/* The evictor answers; everybody else asks. */
	switch (c->evictor ? c->hdr.type : c->hdr.type | 0x10000u) {
	case FM_CTL_EVICTED:
		on_evicted(d, m);
		break;
	case FM_CTL_REGION_GONE:
		on_gone(d, m);
		break;
	case FM_CTL_REGION_HELD:
		on_held(d, m);
		break;
	case FM_CTL_HELLO | 0x10000:
		on_hello(d, c, m);
		break;
	case FM_CTL_DEVICE | 0x10000:
		on_device(c);
		break;
	case FM_CTL_REGISTER | 0x10000:
		region_register(d, c, m);
		break;
	case FM_CTL_UNREGISTER | 0x10000:
		on_unregister(d, c, m);
		break;
	case FM_CTL_EVICT | 0x10000:
		on_evict(d, c, m);
		break;
	case FM_CTL_LIMIT | 0x10000:
		on_limit(d, c, m);
		break;
	case FM_CTL_EVICTOR | 0x10000:
		if (!conn_is_root(c))
			refuse(c, "only root may be the evictor");
		else
			evictor_connected(d, c);
		break;
	case FM_CTL_GRACE | 0x10000:
		on_grace(d, c, m);
		break;
	case FM_CTL_SERVER | 0x10000:
		on_server(d, c, m);
		break;
	case FM_CTL_DETACH | 0x10000:
		on_detach(d, c, m);
		break;
	default:
		refuse(c, "not a request");
	}
}

/* --- connections */

static void close_got(struct conn *c)
{
	while (c->nfds)
		close(c->fds[--c->nfds]);
}

/* Read what is there of one message. Returns true when it is whole. */
static bool conn_read(struct faultd *d, struct conn *c)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * FM_CTL_FDS)];
	} control;
	const char *why;

	for (;;) {
		bool in_header = c->have < sizeof c->hdr;
		size_t want = in_header ? sizeof c->hdr - c->have : sizeof c->hdr + c->hdr.length - c->have;
		char *to = in_header ? (char *)&c->hdr + c->have : c->body + (c->have - sizeof c->hdr);
		struct iovec iov = {.iov_base = to, .iov_len = want};
		struct msghdr m = {
		    .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control};
		ssize_t n;

		if (want == 0)
			break;
		n = recvmsg(c->fd, &m, MSG_CMSG_CLOEXEC);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return false;
		c->cut |= n > 0 && (m.msg_flags & MSG_CTRUNC);
		for (struct cmsghdr *k = n > 0 ? CMSG_FIRSTHDR(&m) : NULL; k; k = CMSG_NXTHDR(&m, k)) {
			unsigned count = (unsigned)((k->cmsg_len - CMSG_LEN(0)) / sizeof(int));

			if (k->cmsg_level != SOL_SOCKET || k->cmsg_type != SCM_RIGHTS)
				continue;
			for (unsigned i = 0; i < count; i++) {
				int fd;

				memcpy(&fd, CMSG_DATA(k) + i * sizeof fd, sizeof fd);
				if (c->nfds < FM_CTL_FDS)
					c->fds[c->nfds++] = fd;
				else
					close(fd);
			}
		}
		if (n <= 0) {
			c->dead = true;
			return false;
		}
		c->have += (size_t)n;
		if (c->have == sizeof c->hdr && (why = fm_ctl_check(&c->hdr))) {
			refuse(c, why);
			return false;
		}
	}
	if (c->nfds < c->hdr.nfds && c->cut) {
		c->dead = true;
		if (conn_leaves_descriptors(d, c, INT_MAX / 2))
			conn_error(c, EMFILE, "descriptors: no more can be taken");
		return false;
	}
	if (c->nfds != c->hdr.nfds) {
		refuse(c, "its descriptors did not come with it");
		return false;
	}
	return true;
}

static void on_conn(struct faultd *d, struct conn *c)
{
	/* One message a turn: no peer keeps the others waiting. */
	if (!c->dead && conn_read(d, c)) {
		on_message(d, c);
		close_got(c);
		c->have = 0;
		c->cut = false;
	}
}

static void on_listen(struct faultd *d)
{
	int fd = accept4(d->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ucred cred;
	socklen_t len = sizeof cred;
	struct conn *c;

	if (fd < 0) {
		/* Out of descriptors, perhaps: the peer stays in the queue, and must not make us spin. */
		struct timespec nap = {.tv_nsec = 5000000};

		nanosleep(&nap, NULL);
		return;
	}
	c = d->nconns < MAX_CONNECTIONS ? calloc(1, sizeof *c) : NULL;
	if (!c || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
		free(c);
		close(fd);
		return;
	}
	c->watch.kind = WATCH_CONN;
	c->fd = fd;
	c->uid = cred.uid;
	c->gid = cred.gid;
	c->pid = cred.pid;
	if (!conn_is_welcome(d, c) || watch_add(d, fd, &c->watch)) {
		free(c);
		close(fd);
		return;
	}
	c->next = d->conns;
	d->conns = c;
	d->nconns++;
}

static void reap_connections(struct faultd *d)
{
	struct conn *lost = NULL;

	for (struct conn **link = &d->conns, *c; (c = *link);) {
		if (!c->dead) {
			link = &c->next;
			continue;
		}
		*link = c->next;
		d->nconns--;
		close_got(c);
		close(c->fd);
		if (c->waits_detach)
			region_detach_forget(d, c->waits_detach);
		if (c == d->evictor) {
			lost = c;
			d->evictor = NULL;
		}
		free(c);
	}
	if (lost)
		evictor_lost(d);
}

/* --- the loop */

static void on_signal(struct faultd *d)
{
	struct signalfd_siginfo si;
	int status;
	pid_t pid;

	if (read(d->signal_fd, &si, sizeof si) != (ssize_t)sizeof si)
		return;
	if (si.ssi_signo != SIGCHLD) {
		d->stop = true;
		return;
	}
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		evictor_child_ended(d, pid, status);
}

static void on_timer(struct faultd *d)
{
	uint64_t n, used, limit;
	int e;

	if (read(d->timer_fd, &n, sizeof n) < 0)
		return;
	regions_check_alive(d);
	for (struct region *r = d->regions; r; r = r->next)
		if (!r->ending) {
			region_detach_tick(d, r);
			region_count_begun(r);
		}
	fm_store_monitor(d->store);
	members_tick(d);
	e = fm_store_usage(d->store, &used, &limit);
	atomic_store(&d->daemon->store_servers, fm_store_servers(d->store));
	atomic_store(&d->daemon->store_up, e == 0);
	if (e == 0) {
		atomic_store(&d->daemon->store_used_bytes, used);
		atomic_store(&d->daemon->store_limit_bytes, limit);
	}
	if (!d->evictor && !d->evictor_child && d->spawn_evictor)
		evictor_spawn(d);
}

static void on_news(struct faultd *d)
{
	uint64_t n;

	if (read(d->news_fd, &n, sizeof n) == (ssize_t)sizeof n)
		regions_news(d);
}

void server_run(struct faultd *d)
{
	struct epoll_event ev[32];

	while (!d->stop) {
		int n = epoll_wait(d->epoll_fd, ev, sizeof ev / sizeof ev[0], evictor_wait_ms(d));
		bool client_ended = false;

		for (int i = 0; i < n; i++) {
			struct watch *w = ev[i].data.ptr;

			switch (w->kind) {
			case WATCH_LISTEN:
				on_listen(d);
				break;
			case WATCH_SIGNAL:
				on_signal(d);
				break;
			case WATCH_TIMER:
				on_timer(d);
				break;
			case WATCH_NEWS:
				on_news(d);
				break;
			case WATCH_REGISTRY:
				registry_news(d);
				break;
			case WATCH_CONN:
				on_conn(d, (struct conn *)w);
				break;
			case WATCH_CLIENT:
				/* A region may be freed by an event before this one: only note that one ended. */
				client_ended = true;
				break;
			}
		}
		if (client_ended)
			regions_check_alive(d);
		reap_connections(d);
		evictor_due(d);
	}
}

/* Who may use the socket must be able to come to it; but a group that somebody else gave the directory stays. */
static int give_run_dir(const struct faultd *d, gid_t group)
{
	struct stat st;

	if (fstat(d->run_fd, &st) < 0)
		return -1;
	return st.st_gid == getegid() ? fchown(d->run_fd, (uid_t)-1, group) : 0;
}

int server_open(struct faultd *d, char *why)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct itimerspec every = {.it_interval = {.tv_sec = 1}, .it_value = {.tv_sec = 1}};
	struct group *g = getgrnam("fm");
	sigset_t signals;
	mode_t old;
	int r;

	if (snprintf(sa.sun_path, sizeof sa.sun_path, "%s/fm.sock", d->run_dir) >= (int)sizeof sa.sun_path) {
		snprintf(why, FM_STORE_WHY, "%.150s: too long for a socket's path (107 bytes)", d->run_dir);
		return -ENAMETOOLONG;
	}
	unlink(sa.sun_path); /* a dead daemon's: we hold the lock */
	d->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	old = umask(0117);
	r = d->listen_fd < 0 ? -1 : bind(d->listen_fd, (struct sockaddr *)&sa, sizeof sa);
	umask(old);
	if (r < 0 || listen(d->listen_fd, 128) < 0) {
		snprintf(why, FM_STORE_WHY, "%.128s: cannot listen: %s", sa.sun_path, strerror(errno));
		return -errno;
	}
	d->fm_gid = g ? g->gr_gid : (gid_t)-1;
	if (g && (chown(sa.sun_path, (uid_t)-1, g->gr_gid) < 0 || give_run_dir(d, g->gr_gid) < 0))
		fm_info("%s: cannot be given to group fm: %m", sa.sun_path);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGCHLD);
	d->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	d->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (d->signal_fd < 0 || d->timer_fd < 0 || timerfd_settime(d->timer_fd, 0, &every, NULL) < 0 ||
	    watch_add(d, d->listen_fd, &watch_listen) || watch_add(d, d->signal_fd, &watch_signal) ||
	    watch_add(d, d->timer_fd, &watch_timer) || watch_add(d, d->news_fd, &watch_news)) {
		snprintf(why, FM_STORE_WHY, "cannot set up the event loop: %s", strerror(errno));
		return -errno;
	}
	return 0;
}

void server_close(struct faultd *d)
{
	char path[4096];

	/* No new clients; then the ones there are keep waiting for the next fm-faultd. */
	snprintf(path, sizeof path, "%s/fm.sock", d->run_dir);
	unlink(path);
	close(d->listen_fd);
	for (struct conn *c = d->conns; c; c = c->next)
		c->dead = true;
	d->spawn_evictor = false;
	for (struct region *r = d->regions; r; r = r->next)
		region_ask_stop(r);
	while (d->regions)
		region_leave(d, d->regions);
	reap_connections(d);
	evictor_reap(d);
}
