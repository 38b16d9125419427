#include "rclookup.h"
#include "sandbox.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#ifndef THREADED
#define THREADED /* else zookeeper.h has no synchronous calls */
#endif
#include <zookeeper/zookeeper.h>

#define CONNECT_MS 4000
#define LOCATOR    1024

struct fm_rc_lookup {
	_Atomic int refs; /* who asked, and the thread */
	atomic_bool done; /* what follows up to zookeeper is set */
	int error;
	char why[FM_RC_WHY];
	struct sockaddr_in address;
	char zookeeper[sizeof((struct fm_rc_uri *)0)->zookeeper];
	char node[sizeof((struct fm_rc_uri *)0)->node];
	struct fm_rc_place place;
	pthread_mutex_t mutex;
	pthread_cond_t cond; /* CLOCK_MONOTONIC */
	bool connected;      /* under the mutex */
};

static void unref(struct fm_rc_lookup *l)
{
	if (atomic_fetch_sub(&l->refs, 1) != 1)
		return;
	pthread_cond_destroy(&l->cond);
	pthread_mutex_destroy(&l->mutex);
	free(l);
}

int fm_rc_numeric(const struct fm_rc_place *place, struct sockaddr_in *out)
{
	memset(out, 0, sizeof *out);
	out->sin_family = AF_INET;
	out->sin_port = htons(place->port);
	return inet_pton(AF_INET, place->host, &out->sin_addr) == 1 ? 0 : -EINVAL;
}

static int resolve(struct fm_rc_lookup *l)
{
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *list;
	int r;

	if (fm_rc_numeric(&l->place, &l->address) == 0)
		return 0;
	r = getaddrinfo(l->place.host, NULL, &hints, &list);
	if (r) {
		snprintf(l->why, sizeof l->why, "%.100s: cannot be resolved to an IPv4 address: %s", l->place.host, gai_strerror(r));
		return -EHOSTUNREACH;
	}
	memcpy(&l->address, list->ai_addr, sizeof l->address);
	l->address.sin_port = htons(l->place.port);
	freeaddrinfo(list);
	return 0;
}

/* On a thread of ZooKeeper's client. */
static void on_event(zhandle_t *zh, int type, int state, const char *path, void *arg)
{
	struct fm_rc_lookup *l = arg;

	(void)zh;
	(void)path;
	if (type != ZOO_SESSION_EVENT)
		return;
	pthread_mutex_lock(&l->mutex);
	l->connected = state == ZOO_CONNECTED_STATE;
	pthread_cond_signal(&l->cond);
	pthread_mutex_unlock(&l->mutex);
}

static bool wait_connected(struct fm_rc_lookup *l)
{
	struct timespec t;
	bool connected;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += CONNECT_MS / 1000;
	pthread_mutex_lock(&l->mutex);
	while (!l->connected && pthread_cond_timedwait(&l->cond, &l->mutex, &t) == 0)
		;
	connected = l->connected;
	pthread_mutex_unlock(&l->mutex);
	return connected;
}

/* What the znode says. */
static int ask_zookeeper(struct fm_rc_lookup *l)
{
	char text[LOCATOR];
	int len = sizeof text, rc, e;
	zhandle_t *zh;

	zoo_set_debug_level((ZooLogLevel)0); /* a library does not print */
	zh = zookeeper_init(l->zookeeper, on_event, 10000, NULL, l, 0);
	if (!zh) {
		snprintf(l->why, sizeof l->why, "zk:%.150s: no such host", l->zookeeper);
		return -EHOSTUNREACH;
	}
	rc = wait_connected(l) ? zoo_get(zh, l->node, 0, text, &len, NULL) : ZCONNECTIONLOSS;
	zookeeper_close(zh);
	if (rc == ZNONODE) {
		snprintf(l->why, sizeof l->why, "zk:%.80s: %.100s: no such znode: is ?cluster= right?", l->zookeeper,
			 l->node);
		return -ENOENT;
	}
	if (rc != ZOK) {
		snprintf(l->why, sizeof l->why, "zk:%.150s: %s", l->zookeeper,
			 rc == ZCONNECTIONLOSS || rc == ZOPERATIONTIMEOUT ? "ZooKeeper does not answer" : zerror(rc));
		return -EHOSTUNREACH;
	}
	e = len > 0 && len < (int)sizeof text ? fm_rc_locator(text, (size_t)len, &l->place) : -EINVAL;
	if (e) {
		snprintf(l->why, sizeof l->why, "zk:%.80s: %.100s: %s", l->zookeeper, l->node,
			 e == -EPROTONOSUPPORT ? "the coordinator has no tcp: locator" : "holds no service locator");
		return -EPROTO;
	}
	return 0;
}

static void *lookup_thread(void *arg)
{
	struct fm_rc_lookup *l = arg;

	l->error = *l->zookeeper ? ask_zookeeper(l) : 0;
	if (l->error == 0)
		l->error = resolve(l);
	atomic_store(&l->done, true);
	unref(l);
	return NULL;
}

struct fm_rc_lookup *fm_rc_lookup_start(const char *zookeeper, const char *node, const struct fm_rc_place *place)
{
	struct fm_rc_lookup *l = calloc(1, sizeof *l);
	pthread_condattr_t cond;
	pthread_attr_t attr;
	sigset_t all, old;
	pthread_t thread;
	int e;

	if (!l)
		return NULL;
	atomic_init(&l->refs, 2);
	if (zookeeper)
		snprintf(l->zookeeper, sizeof l->zookeeper, "%s", zookeeper);
	if (node)
		snprintf(l->node, sizeof l->node, "%s", node);
	if (place)
		l->place = *place;
	pthread_mutex_init(&l->mutex, NULL);
	pthread_condattr_init(&cond);
	pthread_condattr_setclock(&cond, CLOCK_MONOTONIC);
	pthread_cond_init(&l->cond, &cond);
	pthread_condattr_destroy(&cond);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	/* Signals are for the program's own threads; those of ZooKeeper's client inherit this. */
	sigfillset(&all);
	sigdelset(&all, FM_SANDBOX_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	e = pthread_create(&thread, &attr, lookup_thread, l);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (e) {
		atomic_store(&l->refs, 1);
		unref(l);
		return NULL;
	}
	return l;
}

int fm_rc_lookup_poll(struct fm_rc_lookup *l, struct sockaddr_in *out, char *why)
{
	if (!atomic_load(&l->done))
		return -EINPROGRESS;
	*out = l->address;
	memcpy(why, l->why, sizeof l->why);
	return l->error;
}

void fm_rc_lookup_drop(struct fm_rc_lookup *l)
{
	if (l)
		unref(l);
}
