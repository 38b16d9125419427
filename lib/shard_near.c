/*
 * A shard on the CPU of the thread whose faults it serves; near.h decides when.
 *
 * Theory of operation. To run there is half of it: a thread that is woken by a shard on its own CPU finds that CPU busy, with the shard, and is
 * sent to an idle one, at the price of the wake-up that was to be saved. The scheduler makes an exception for a CPU on which only SCHED_IDLE
 * threads run. So the page is installed without a wake-up, and the UFFDIO_WAKE is left to a thread of that class on the same CPU, the
 * waker, which runs as soon as the shard sleeps, and is preempted by whom it wakes.
 *
 * A thread of that class gets nothing on a busy CPU, so nobody depends on it: the shard, which is an ordinary thread, knows of one wake-up that may
 * not have been made, and makes it itself (twice does no harm) before anything else that takes time, when another event comes, and after
 * LATE_MS at the latest. A wake-up changes no mapping and needs no owner: when fm-faultd dies in between, its successor wakes the whole range.
 *
 * The waker cannot be waited for either. It is detached, has a userfaultfd descriptor of its own, and ends when it next gets to run.
 */
#include "shard_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "crash.h"
#include "evict.h"
#include "proc.h"

/* Above the tick of most kernels: a timer before that would be programmed, and taken back, in each fault. */
#define LATE_MS 12

/* Shared by a shard and its waker. Who leaves last frees it. */
struct shard_waker {
	_Atomic uint32_t asked;    /* number of the last request, by the shard */
	_Atomic uint32_t begun;    /* ... that the waker has begun */
	_Atomic uint32_t sleeping; /* futex: 1, the waker sleeps */
	atomic_bool end;
	_Atomic unsigned users;
	_Atomic int tid; /* 0: not there yet; -1: it is not of that class */
	_Atomic uint64_t hva;      /* which page, of request asked; whoever has begun an older one may take this for it: the shard has done that one */
	_Atomic uint64_t begun_ns; /* when, of request begun */
	struct fm_uffd uffd;       /* the waker's own */
};

static void waker_put(struct shard_waker *k)
{
	if (atomic_fetch_sub(&k->users, 1) == 1) {
		close(k->uffd.fd);
		free(k);
	}
}

static void *waker_main(void *arg)
{
	struct shard_waker *k = arg;
	struct sched_param none = {0};
	uint32_t done = 0;

	/* musl's sched_setscheduler() is none. Before the thread says that it is there: as an ordinary one it would send the woken away. */
	atomic_store(&k->tid, syscall(SYS_sched_setscheduler, 0, SCHED_IDLE, &none) == 0 ? (int)syscall(SYS_gettid) : -1);
	while (!atomic_load(&k->end)) {
		uint32_t asked = atomic_load(&k->asked);

		if (asked == done) {
			atomic_store(&k->sleeping, 1);
			if (atomic_load(&k->asked) == done && !atomic_load(&k->end))
				syscall(SYS_futex, &k->sleeping, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
			atomic_store(&k->sleeping, 0);
			continue;
		}
		atomic_store(&k->begun_ns, fm_now_ns());
		atomic_store(&k->begun, asked);
		fm_uffd_wake(&k->uffd, atomic_load(&k->hva), FM_PAGE_SIZE);
		done = asked;
	}
	waker_put(k);
	return NULL;
}

static void waker_nudge(struct shard_waker *k)
{
	if (atomic_exchange(&k->sleeping, 0))
		syscall(SYS_futex, &k->sleeping, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Begin a waker. false: there cannot be one. */
static bool waker_start(struct fm_shard *s)
{
	struct shard_waker *k = calloc(1, sizeof *k);
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	if (!k)
		return false;
	k->uffd = (struct fm_uffd){.fd = fcntl(s->o.uffd.fd, F_DUPFD_CLOEXEC, 0), .ops = s->o.uffd.ops};
	if (k->uffd.fd < 0) {
		free(k);
		return false;
	}
	atomic_store(&k->users, 2);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 * 1024);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, waker_main, k); /* with the shard's signal mask */
	pthread_attr_destroy(&attr);
	if (r) {
		close(k->uffd.fd);
		free(k);
		return false;
	}
	s->near.waker = k;
	return true;
}

/* Where fm-faultd may run; an administrator may have said so. */
static bool allowed(cpu_set_t *set)
{
	CPU_ZERO(set);
	return syscall(SYS_sched_getaffinity, getpid(), sizeof *set, set) > 0;
}

/* The shard and, once it is there, its waker. */
static bool run_on(struct fm_shard *s, const cpu_set_t *set)
{
	int tid = s->near.waker ? atomic_load(&s->near.waker->tid) : 0;

	s->near.waker_there = false;
	if (tid < 0 || syscall(SYS_sched_setaffinity, 0, sizeof *set, set) < 0)
		return false;
	if (!tid)
		return true;
	s->near.waker_there = syscall(SYS_sched_setaffinity, tid, sizeof *set, set) == 0;
	return s->near.waker_there;
}

static void leave(struct fm_shard *s)
{
	cpu_set_t set;

	if (s->near.cpu >= 0 && allowed(&set))
		run_on(s, &set);
	s->near.cpu = -1;
}

/* Go to where the thread is. */
static enum fm_near_seen look(struct fm_shard *s, uint32_t tid)
{
	struct shard_near *n = &s->near;
	uint64_t cpu, policy;
	cpu_set_t set;
	bool moved;

	/* Beside a thread of a real-time class the shard would not run at all, nor any other thread's fault be served, for as long as that one computes. */
	if (fm_proc_cpu(s->o.map->hdr->pid, (int)tid, &cpu, &policy) || (policy != SCHED_OTHER && policy != SCHED_BATCH) || cpu >= CPU_SETSIZE || !allowed(&set) || !CPU_ISSET(cpu, &set))
		return FM_NEAR_IMPOSSIBLE;
	moved = n->cpu != (int)cpu;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (!run_on(s, &set))
		return FM_NEAR_IMPOSSIBLE;
	n->cpu = (int)cpu;
	return moved ? FM_NEAR_MOVED : FM_NEAR_SAME;
}

void shard_near_settle(struct fm_shard *s)
{
	if (!s->near.open_tid)
		return;
	s->near.open_tid = 0;
	fm_uffd_wake(&s->o.uffd, s->near.hva, FM_PAGE_SIZE);
}

int shard_near_timeout(const struct fm_shard *s, int ms)
{
	return s->near.open_tid && (ms < 0 || ms > LATE_MS) ? LATE_MS : ms;
}

void shard_near_late(struct fm_shard *s)
{
	struct shard_waker *k = s->near.waker;

	if (!s->near.open_tid)
		return;
	if (atomic_load(&k->begun) != atomic_load(&k->asked) && fm_near_late(&s->near.policy) == FM_NEAR_LEAVE)
		leave(s);
	shard_near_settle(s);
}

/* The thread that was to be woken faults again. Had it been woken late? */
static void was_woken(struct fm_shard *s)
{
	struct shard_waker *k = s->near.waker;

	if (atomic_load(&k->begun) != atomic_load(&k->asked)) {
		shard_near_settle(s); /* by somebody else */
		return;
	}
	s->near.open_tid = 0;
	if (atomic_load(&k->begun_ns) > s->near.asked_ns + FM_NEAR_LATE_NS && fm_near_late(&s->near.policy) == FM_NEAR_LEAVE)
		leave(s);
}

void shard_near_fault(struct fm_shard *s, uint32_t tid, uint64_t now_ns)
{
	s->near.fault_ns = now_ns;
	s->near.tid = s->near.faults++ == 0 || s->near.tid == tid ? tid : 0;
}

void shard_near_begin(struct fm_shard *s)
{
	struct shard_near *n = &s->near;
	bool alone = n->faults == 1 && n->tid && s->npending == 1 && !s->overflow;

	if (n->open_tid && alone && n->tid == n->open_tid)
		was_woken(s);
	else
		shard_near_settle(s);
	s->o.uffd.no_wake = alone && n->waker_there && (s->o.eager || (n->policy.defer && n->tid == n->policy.tid));
	n->gap_ns = n->fault_ns > n->woken_ns ? n->fault_ns - n->woken_ns : 0;
	n->lasts = false;
	n->alone = alone ? n->tid : 0;
}

void shard_near_lasts(struct fm_shard *s)
{
	s->near.lasts = true;
	s->o.uffd.no_wake = false;
}

void shard_near_installed(struct fm_shard *s, uint32_t page)
{
	s->near.due = s->o.uffd.no_wake;
	s->near.hva = shard_hva(s, page);
	if (s->near.policy.on)
		s->near.woken_ns = fm_now_ns();
}

void shard_near_served(struct fm_shard *s)
{
	struct shard_near *n = &s->near;
	struct shard_waker *k = n->waker;

	s->o.uffd.no_wake = false;
	if (n->due) {
		n->due = false;
		n->open_tid = n->alone;
		FM_CRASH_POINT("near-not-woken");
		if (s->npending) {
			shard_near_settle(s);
		} else {
			n->asked_ns = fm_now_ns();
			atomic_store(&k->hva, n->hva);
			atomic_fetch_add(&k->asked, 1);
			waker_nudge(k);
		}
	}
	if (n->faults && atomic_load_explicit(s->o.near, memory_order_relaxed)) {
		enum fm_near_act act = fm_near_turn(&n->policy, n->alone, n->lasts, n->gap_ns);

		if (act == FM_NEAR_LOOK)
			act = fm_near_looked(&n->policy, look(s, n->alone));
		if ((n->policy.on || s->o.eager) && !k && !waker_start(s))
			act = fm_near_looked(&n->policy, FM_NEAR_IMPOSSIBLE);
		if (act == FM_NEAR_LEAVE)
			leave(s);
		if (s->o.eager)
			n->waker_there = n->waker && atomic_load(&n->waker->tid) > 0;
	}
	n->faults = 0;
	n->alone = 0;
}

void shard_near_init(struct fm_shard *s)
{
	fm_near_init(&s->near.policy);
	s->near.cpu = -1;
}

void shard_near_end(struct fm_shard *s)
{
	struct shard_waker *k = s->near.waker;

	if (!k)
		return;
	atomic_store(&k->end, true);
	waker_nudge(k);
	waker_put(k);
}
