#include "registry_impl.h"
#include "sandbox.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define RETRY_NS 1000000000u /* after a failure that no event ends */

uint64_t fm_registry_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void fm_registry_ring(struct fm_registry *r)
{
	uint64_t one = 1;

	if (write(r->event_fd, &one, sizeof one) < 0) {
		/* full: it is readable anyhow */
	}
}

void fm_registry_wait_until(struct fm_registry *r, uint64_t until_ns)
{
	struct timespec t = {.tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)};

	pthread_cond_timedwait(&r->cond, &r->mutex, &t);
}

static void set_here(struct fm_registry *r, bool here, const char *why)
{
	snprintf(r->why, sizeof r->why, "%s", why ? why : "");
	if (r->here == here)
		return;
	r->here = here;
	if (!here)
		r->away_ns = fm_registry_now();
	r->here_changed = true;
	fm_registry_ring(r);
	pthread_cond_broadcast(&r->cond);
}

/* --- the registry's thread */

/* On a thread of ZooKeeper's client. Only takes note. */
static void on_event(zhandle_t *zh, int type, int state, const char *path, void *arg)
{
	struct fm_registry *r = arg;

	(void)zh;
	(void)path;
	pthread_mutex_lock(&r->mutex);
	if (type == ZOO_SESSION_EVENT) {
		r->link++;
		r->connected = state == ZOO_CONNECTED_STATE;
		r->lost |= state == ZOO_EXPIRED_SESSION_STATE || state == ZOO_AUTH_FAILED_STATE;
		if (!r->connected)
			set_here(r, false, r->lost ? "the session expired" : "no server answers");
	}
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->mutex);
}

/* End the session, if there is one, and begin another. Under the mutex, which it leaves meanwhile. */
static void new_session(struct fm_registry *r)
{
	zhandle_t *zh;
	int e;

	r->connected = r->lost = false;
	pthread_mutex_unlock(&r->mutex);
	if (r->zh)
		zookeeper_close(r->zh);
	r->zh = NULL;
	errno = 0;
	zh = zookeeper_init(r->uri.connect, on_event, (int)r->uri.timeout_ms, NULL, r, 0);
	e = errno;
	/* Told before anything is asked; and by the client itself to each server that it connects to. */
	if (zh && *r->auth)
		zoo_add_auth(zh, "digest", r->auth, (int)strlen(r->auth), NULL, NULL);
	pthread_mutex_lock(&r->mutex);
	r->zh = zh;
	if (!zh) {
		char why[FM_REGISTRY_WHY];

		snprintf(why, sizeof why, "%.160s: %s", r->uri.servers, e == ENOENT || e == EINVAL ? "no such host" : strerror(e));
		set_here(r, false, why);
		r->fatal = -EHOSTUNREACH;
		pthread_cond_broadcast(&r->cond);
	}
}

static void set_up(struct fm_registry *r)
{
	unsigned link = r->link;
	bool fresh;
	int rc;

	pthread_mutex_unlock(&r->mutex);
	rc = fm_registry_setup(r);
	pthread_mutex_lock(&r->mutex);
	if (rc == ZOK && link == r->link) {
		uint64_t session = (uint64_t)zoo_client_id(r->zh)->client_id;

		fresh = session != r->session;
		r->new_session |= fresh && r->had_session;
		r->session = session;
		r->had_session = true;
		r->fatal = 0;
		set_here(r, true, "");
		return;
	}
	if (rc == ZNONODE && *r->uri.chroot) {
		char why[FM_REGISTRY_WHY];

		snprintf(why, sizeof why, "%.160s: no such znode (chroot): make it first", r->uri.chroot);
		set_here(r, false, why);
		r->fatal = -ENOENT;
		pthread_cond_broadcast(&r->cond);
	} else if (rc == ZNOAUTH) {
		set_here(r, false, "is not open to us: is ?auth= what the other hosts have?");
		r->fatal = -EACCES;
		pthread_cond_broadcast(&r->cond);
	} else if (rc != ZOK && !fm_registry_is_away(rc)) {
		set_here(r, false, zerror(rc));
	}
	if (rc != ZOK && !r->stop)
		fm_registry_wait_until(r, fm_registry_now() + RETRY_NS);
}

/* Something failed because ZooKeeper is away: everything is put in place again when it is back. */
static void check_away(struct fm_registry *r, unsigned link, int rc)
{
	if (!fm_registry_is_away(rc) || link != r->link)
		return; /* else an event said so, or tells of a connection made since */
	set_here(r, false, "no server answers");
}

static void next_order(struct fm_registry *r)
{
	struct fm_order *o = r->orders;
	unsigned link = r->link;
	int rc;

	r->orders = o->next;
	r->running = o;
	pthread_mutex_unlock(&r->mutex);
	rc = fm_registry_carry_out(r, o);
	pthread_mutex_lock(&r->mutex);
	r->running = NULL;
	if (fm_registry_is_away(rc)) {
		check_away(r, link, rc);
		if (!o->left || o->keep) {
			o->next = r->orders;
			r->orders = o;
			return;
		}
	} else if (!o->left) {
		o->done = true;
		pthread_cond_broadcast(&r->cond);
		return;
	} else {
		pthread_mutex_unlock(&r->mutex);
		fm_registry_undo(r, o);
		pthread_mutex_lock(&r->mutex);
	}
	fm_registry_order_free(o);
}

static void next_end(struct fm_registry *r)
{
	uint64_t id = r->ends[r->nends - 1];
	unsigned link = r->link;
	int rc;

	pthread_mutex_unlock(&r->mutex);
	rc = fm_registry_remove_record(r, id);
	pthread_mutex_lock(&r->mutex);
	check_away(r, link, rc);
	for (size_t i = 0; !fm_registry_is_away(rc) && i < r->nends; i++)
		if (r->ends[i] == id) {
			r->ends[i] = r->ends[--r->nends];
			break;
		}
}

static void unlocked(struct fm_registry *r, int (*f)(struct fm_registry *))
{
	unsigned link = r->link;
	int rc;

	pthread_mutex_unlock(&r->mutex);
	rc = f(r);
	pthread_mutex_lock(&r->mutex);
	check_away(r, link, rc);
}

static void *registry_thread(void *arg)
{
	struct fm_registry *r = arg;
	uint64_t now;

	pthread_mutex_lock(&r->mutex);
	while (!r->stop) {
		now = fm_registry_now();
		if (!r->zh || r->lost) {
			new_session(r);
			if (!r->zh && !r->stop)
				fm_registry_wait_until(r, now + RETRY_NS);
		} else if (!r->connected) {
			fm_registry_wait_until(r, now + 10 * (uint64_t)RETRY_NS);
		} else if (!r->here) {
			set_up(r);
		} else if (r->orders) {
			next_order(r);
		} else if (r->nends) {
			next_end(r);
		} else if (r->members.dirty) {
			unlocked(r, fm_registry_read_members);
		} else if (r->settled_dirty) {
			unlocked(r, fm_registry_write_settled);
		} else if (r->follow && now >= r->follow_ns) {
			/* Of many hosts that may wait for one for long, none asks all the time. */
			r->follow_ns = now + r->follow_every_ns;
			r->follow_every_ns = r->follow_every_ns < FM_FOLLOW_MAX_NS ? 2 * r->follow_every_ns : FM_FOLLOW_MAX_NS;
			unlocked(r, fm_registry_look_settled);
		} else if (now >= r->scan_ns) {
			unlocked(r, fm_registry_look_round);
		} else {
			fm_registry_wait_until(r, r->follow && r->follow_ns < r->scan_ns ? r->follow_ns : r->scan_ns);
		}
	}
	while (r->here && r->nends)
		next_end(r);
	if (r->here && r->stopped)
		unlocked(r, fm_registry_leave_word);
	pthread_mutex_unlock(&r->mutex);
	if (r->zh)
		zookeeper_close(r->zh);
	pthread_mutex_lock(&r->mutex);
	r->zh = NULL;
	r->ended = true;
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->mutex);
	return NULL;
}

/* --- open, close, poll */

static void destroy(struct fm_registry *r)
{
	while (r->mine) {
		struct fm_mine *m = r->mine;

		r->mine = m->next;
		free(m);
	}
	while (r->orders) {
		struct fm_order *o = r->orders;

		r->orders = o->next;
		fm_registry_order_free(o);
	}
	free(r->members.text);
	free(r->members.told);
	explicit_bzero(r->auth, sizeof r->auth);
	free(r->ends);
	free(r->seen);
	free(r->gone);
	pthread_cond_destroy(&r->cond);
	pthread_mutex_destroy(&r->mutex);
	close(r->event_fd);
	free(r);
}

static int start_thread(struct fm_registry *r)
{
	sigset_t all, old;
	int e;

	/* Signals are for the program's own threads; those of ZooKeeper's client inherit this. */
	sigfillset(&all);
	sigdelset(&all, FM_SANDBOX_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	e = pthread_create(&r->thread, NULL, registry_thread, r);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -e;
}

int fm_registry_open(const struct fm_registry_options *o, unsigned deadline_ms, struct fm_registry **out, char *why)
{
	uint64_t until = fm_registry_now() + (uint64_t)deadline_ms * 1000000u;
	struct fm_registry *r = calloc(1, sizeof *r);
	pthread_condattr_t attr;
	int e;

	snprintf(why, FM_REGISTRY_WHY, "out of memory");
	if (!r)
		return -ENOMEM;
	r->uri = *o->uri;
	r->host_id = o->host_id;
	snprintf(r->host_text, sizeof r->host_text, "%s", o->host_text);
	r->away_ns = fm_registry_now();
	r->settles = o->settles;
	snprintf(r->auth, sizeof r->auth, "%s", o->auth ? o->auth : "");
	/* By default open to everybody who reaches ZooKeeper, as what stands in the store is. */
	r->acl = *r->auth ? &ZOO_CREATOR_ALL_ACL : &ZOO_OPEN_ACL_UNSAFE;
	strcpy(r->why, "no server answers");
	pthread_mutex_init(&r->mutex, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&r->cond, &attr);
	pthread_condattr_destroy(&attr);
	zoo_set_debug_level((ZooLogLevel)0); /* a library does not print */
	r->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	e = r->event_fd < 0 ? -errno : start_thread(r);
	if (e) {
		snprintf(why, FM_REGISTRY_WHY, "cannot start a thread: %s", strerror(-e));
		destroy(r);
		return e;
	}
	pthread_mutex_lock(&r->mutex);
	while (!r->here && !r->fatal && fm_registry_now() < until)
		fm_registry_wait_until(r, until);
	e = r->here || !o->must_answer ? 0 : r->fatal ? r->fatal : -EHOSTUNREACH;
	snprintf(why, FM_REGISTRY_WHY, "%s", r->why);
	pthread_mutex_unlock(&r->mutex);
	if (e) {
		fm_registry_close(r, false, 1000);
		return e;
	}
	*out = r;
	return 0;
}

void fm_registry_close(struct fm_registry *r, bool stopped, unsigned deadline_ms)
{
	uint64_t until = fm_registry_now() + (uint64_t)deadline_ms * 1000000u;
	bool ended;

	if (!r)
		return;
	pthread_mutex_lock(&r->mutex);
	r->stop = true;
	r->stopped = stopped;
	pthread_cond_broadcast(&r->cond);
	while (!r->ended && fm_registry_now() < until)
		fm_registry_wait_until(r, until);
	ended = r->ended;
	pthread_mutex_unlock(&r->mutex);
	if (!ended) {
		pthread_detach(r->thread);
		return; /* it still uses all of it */
	}
	pthread_join(r->thread, NULL);
	destroy(r);
}

int fm_registry_fd(const struct fm_registry *r)
{
	return r->event_fd;
}

static bool tell(struct fm_watched *w, const char **text, int *version)
{
	bool changed = w->changed;

	if (changed) {
		free(w->told);
		w->told = w->text; /* ownership goes with it */
		w->text = NULL;
		w->changed = false;
	}
	*text = w->told;
	*version = w->told ? w->version : -1;
	return changed;
}

void fm_registry_poll(struct fm_registry *r, struct fm_registry_news *news)
{
	uint64_t n;

	memset(news, 0, sizeof *news);
	if (read(r->event_fd, &n, sizeof n) < 0) {
		/* nobody rang: tell what there is */
	}
	pthread_mutex_lock(&r->mutex);
	news->here = r->here;
	news->here_changed = r->here_changed && r->here != r->told_here;
	news->new_session = r->new_session;
	news->remade = r->remade;
	news->remade_id = r->remade_id;
	news->members_changed = tell(&r->members, &news->members, &news->members_version);
	news->oldest_changed = r->oldest_changed;
	news->oldest = r->oldest;
	news->behind = r->behind;
	memcpy(news->why, r->why, sizeof news->why);
	r->told_here = r->here;
	r->here_changed = r->new_session = r->oldest_changed = false;
	r->remade = 0;
	pthread_mutex_unlock(&r->mutex);
}

bool fm_registry_here(struct fm_registry *r)
{
	bool here;

	pthread_mutex_lock(&r->mutex);
	here = r->here;
	pthread_mutex_unlock(&r->mutex);
	return here;
}
