#include "resolve.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sandbox.h"

#define OVERDUE_MAX 64 /* lookups under way that nobody waits for any more */

/* A lookup. It is in the list, and its thread's, until that is done and somebody has taken the result. */
struct lookup {
	struct lookup *next;
	char host[256], port[16];
	bool done, overdue;
	int gai; /* result */
	struct sockaddr_storage address;
	socklen_t len;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond; /* CLOCK_MONOTONIC */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct lookup *lookups;
static unsigned overdue;
static _Atomic unsigned patience_ms = 15000;

void fm_resolve_patience(unsigned ms)
{
	atomic_store(&patience_ms, ms);
}

static void make_cond(void)
{
	pthread_condattr_t a;

	pthread_condattr_init(&a);
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	pthread_cond_init(&cond, &a);
	pthread_condattr_destroy(&a);
}

static int look_up(const char *host, const char *port, int flags, struct sockaddr_storage *out, socklen_t *len)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags}, *list;
	int r = getaddrinfo(host, port, &hints, &list);

	if (r)
		return r;
	memcpy(out, list->ai_addr, list->ai_addrlen);
	*len = list->ai_addrlen;
	freeaddrinfo(list);
	return 0;
}

static void *lookup_thread(void *arg)
{
	struct lookup *l = arg;
	struct sockaddr_storage address = {0};
	socklen_t len = 0;
	int r = look_up(l->host, l->port, 0, &address, &len);

	pthread_mutex_lock(&mutex);
	l->gai = r;
	l->address = address;
	l->len = len;
	l->done = true;
	overdue -= l->overdue;
	pthread_cond_broadcast(&cond);
	pthread_mutex_unlock(&mutex);
	return NULL;
}

/* Under the mutex. */
static struct lookup *find(const char *host, const char *port)
{
	struct lookup *l = lookups;

	while (l && (strcmp(l->host, host) != 0 || strcmp(l->port, port) != 0))
		l = l->next;
	return l;
}

/* Under the mutex. NULL: no memory, no thread, or too many. */
static struct lookup *begin(const char *host, const char *port)
{
	struct lookup *l = overdue < OVERDUE_MAX ? calloc(1, sizeof *l) : NULL;
	sigset_t all, old;
	pthread_attr_t a;
	pthread_t thread;
	int e;

	if (!l)
		return NULL;
	snprintf(l->host, sizeof l->host, "%s", host);
	snprintf(l->port, sizeof l->port, "%s", port);
	pthread_attr_init(&a);
	pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
	/* Signals are for the program's own threads. */
	sigfillset(&all);
	sigdelset(&all, FM_SANDBOX_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	e = pthread_create(&thread, &a, lookup_thread, l);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&a);
	if (e) {
		free(l);
		return NULL;
	}
	l->next = lookups;
	lookups = l;
	return l;
}

/* Under the mutex. */
static void take_out(struct lookup *l)
{
	struct lookup **link = &lookups;

	while (*link != l)
		link = &(*link)->next;
	*link = l->next;
}

int fm_resolve(const char *host, const char *port, struct sockaddr_storage *out, socklen_t *len, int *gai)
{
	unsigned ms = atomic_load(&patience_ms);
	struct timespec until;
	struct lookup *l;
	int e = 0;

	/* In numbers: nobody need be asked. */
	if (strlen(host) >= sizeof l->host || strlen(port) >= sizeof l->port || look_up(host, port, AI_NUMERICHOST, out, len) == 0)
		return strlen(host) >= sizeof l->host || strlen(port) >= sizeof l->port ? -ENOMEM : 0;
	pthread_once(&once, make_cond);
	pthread_mutex_lock(&mutex);
	if (overdue)
		ms /= 10;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ms / 1000;
	until.tv_nsec += (long)(ms % 1000) * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	/* Another may wait for the same name, and take the result: then we ask again. */
	while ((!(l = find(host, port)) || !l->done) && e == 0) {
		if (!l && !begin(host, port)) {
			pthread_mutex_unlock(&mutex);
			return -ENOMEM;
		}
		e = pthread_cond_timedwait(&cond, &mutex, &until);
	}
	l = find(host, port);
	if (l && l->done) {
		take_out(l);
		*gai = l->gai;
		*out = l->address;
		*len = l->len;
		free(l);
		pthread_mutex_unlock(&mutex);
		return *gai ? -EHOSTUNREACH : 0;
	}
	if (l && !l->overdue) {
		l->overdue = true;
		overdue++;
	}
	pthread_mutex_unlock(&mutex);
	return -ETIMEDOUT;
}
