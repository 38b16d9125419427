/*
 * The link to the evictor: a child process `fm-evict --daemon`, or one that somebody else started. It is told every region, and
 * is taken for dead when its connection closes; the kernel closes it only after all of its threads have left, so nothing of it
 * can still touch a page then.
 */
#include "faultd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crash.h"
#include "evict.h"
#include "log.h"

extern char **environ;

#define RESPAWN_MIN_NS 10000000u
#define RESPAWN_MAX_NS 1000000000u

/* One that cannot start must not spin; but most often it was the evictor of an fm-faultd before us, which had not ended yet. */
static void put_off(struct faultd *d)
{
	d->respawn_delay_ns = !d->respawn_delay_ns ? RESPAWN_MIN_NS : d->respawn_delay_ns > RESPAWN_MAX_NS / 2 ? RESPAWN_MAX_NS : 2 * d->respawn_delay_ns;
	d->respawn_ns = fm_now_ns() + d->respawn_delay_ns;
}

static bool wanted(const struct faultd *d)
{
	return d->spawn_evictor && !d->stop && !d->evictor && !d->evictor_child && d->respawn_ns;
}

int evictor_wait_ms(const struct faultd *d)
{
	uint64_t now = fm_now_ns();

	if (!wanted(d))
		return -1;
	return d->respawn_ns <= now ? 0 : (int)((d->respawn_ns - now) / 1000000) + 1;
}

void evictor_due(struct faultd *d)
{
	if (wanted(d) && fm_now_ns() >= d->respawn_ns)
		evictor_spawn(d);
}

void evictor_spawn(struct faultd *d)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 16);
	char *argv[] = {(char *)"fm-evict", (char *)"--daemon", (char *)"--run-dir", (char *)d->run_dir,
			d->no_seccomp ? (char *)"--no-seccomp" : NULL, NULL};
	posix_spawnattr_t attr;
	sigset_t none;
	char *slash;
	int e;

	if (n < 0 || fm_now_ns() < d->respawn_ns)
		return;
	path[n] = '\0';
	slash = strrchr(path, '/');
	strcpy(slash ? slash + 1 : path, "fm-evict");
	posix_spawnattr_init(&attr);
	sigemptyset(&none);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	d->child_came_up = false;
	d->spawned_ns = fm_now_ns();
	e = posix_spawn(&d->evictor_child, path, NULL, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	if (e) {
		d->evictor_child = 0;
		put_off(d);
		fm_warn("%s: cannot be started: %s: the local budget is not kept", path, strerror(e));
	}
}

void evictor_child_ended(struct faultd *d, pid_t pid, int status)
{
	if (pid != d->evictor_child)
		return;
	d->evictor_child = 0;
	if (d->stop)
		return;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
		fm_warn("fm-evict: ended by a system call that its filter forbids (--no-seccomp: without): started again");
	else if (WIFSIGNALED(status))
		fm_warn("fm-evict: ended by signal %d: started again", WTERMSIG(status));
	else
		fm_warn("fm-evict: ended with status %d: started again", WEXITSTATUS(status));
	/* At once when it had come up, and lived for a moment. */
	if (d->child_came_up && fm_now_ns() - d->spawned_ns > 50000000)
		d->respawn_ns = d->respawn_delay_ns = 0;
	else
		put_off(d);
	if (!d->evictor)
		evictor_spawn(d); /* else evictor_lost() does, after it has mended */
}

void evictor_kick(struct faultd *d)
{
	uint64_t one = 1;

	atomic_store(&d->daemon->evictor_sleeping, 0);
	if (write(d->evict_fd, &one, sizeof one) < 0) {
		/* full: it is readable anyhow */
	}
}

void evictor_add(struct faultd *d, struct region *r)
{
	struct fm_ctl_region m = {.id = r->map.hdr->id};
	int fds[2 + FM_MAX_SHARDS] = {r->map.fd, r->ending ? d->run_fd : r->memfd};

	if (!d->evictor || d->evictor->dead)
		return;
	/* One that ended is only told so that its keys are deleted: nothing will be done with these descriptors. */
	for (unsigned i = 0; i < r->map.nshards; i++)
		fds[2 + i] = r->ending ? d->run_fd : r->uffd[i].fd;
	r->told_evictor = true;
	conn_reply(d->evictor, FM_CTL_REGION_ADD, &m, fds, 2 + r->map.nshards);
	if (r->ending)
		evictor_del(d, r);
}

void evictor_del(struct faultd *d, struct region *r)
{
	struct fm_ctl_region m = {.id = r->map.hdr->id};

	conn_reply(d->evictor, FM_CTL_REGION_DEL, &m, NULL, 0);
}

void evictor_connected(struct faultd *d, struct conn *c)
{
	struct fm_ctl_evictor_ok ok = {0};
	int fds[2] = {d->daemon_fd, d->evict_fd};

	if (d->evictor) {
		conn_error(c, EBUSY, "an evictor runs already, pid %d", d->evictor->pid);
		return;
	}
	strcpy(ok.store_uri, d->store_uri);
	ok.replicas = d->store_options.replicas;
	ok.no_seal = d->store_options.no_seal;
	for (const struct region *r = d->regions; r; r = r->next)
		ok.regions++;
	if (d->store_options.key_file)
		strcpy(ok.key_file, d->store_options.key_file);
	c->evictor = true;
	d->evictor = c;
	d->child_came_up |= c->pid == d->evictor_child;
	atomic_store(&d->hold, true);
	atomic_store(&d->daemon->evictor_pid, c->pid);
	conn_reply(c, FM_CTL_EVICTOR_OK, &ok, fds, 2);
	FM_CRASH_POINT("evictor-enlisted");
	for (struct region *r = d->regions; r; r = r->next)
		evictor_add(d, r);
	evictor_kick(d);
}

/* Did the evictor die with pages named as its own? */
static bool owned_pages(const struct region *r)
{
	for (unsigned i = 0; i < FM_EVICT_BATCH; i++)
		if (fm_ld(&r->map.hdr->evict_inflight[i]))
			return true;
	return false;
}

/* Put right what a dead evictor left, while all shards hold still. */
static void mend_all(struct faultd *d)
{
	struct timespec nap = {.tv_nsec = 200000};
	uint64_t total = 0;

	for (struct region *r = d->regions; r; r = r->next)
		for (unsigned i = 0; i < r->map.nshards && !r->ending; i++)
			fm_shard_pause(r->shard[i]);
	for (struct region *r = d->regions; r; r = r->next) {
		if (r->ending)
			continue;
		FM_CRASH_POINT("mend-paused");
		if (owned_pages(r)) {
			fm_evict_recover(&r->map, r->memfd);
			region_count_paused(d, r);
		}
		total += atomic_load(&r->unbounded) ? 0 : fm_ld(&r->map.hdr->resident);
	}
	/* It may have died between counting a region and counting all. */
	atomic_store(&d->daemon->resident, total);
	FM_CRASH_POINT("mend-counted");
	for (struct region *r = d->regions; r; r = r->next)
		for (unsigned i = 0; i < r->map.nshards && !r->ending; i++) {
			fm_shard_resume(r->shard[i]);
			/* Faults that ran into a DROPPING page wait for a wake that never came. */
			fm_uffd_wake(&r->uffd[i], fm_ld(&r->map.shards[i].hva), r->map.shards[i].pages * FM_PAGE_SIZE);
		}
	/* Nothing is evicted of a region until it is counted; what does not begin now (it waits for a slow store) is looked at each second. */
	for (struct region *r = d->regions; r; r = r->next)
		for (int tries = 0; !r->ending && tries < 50 && !region_count_begun(r); tries++)
			nanosleep(&nap, NULL);
}

void evictor_lost(struct faultd *d)
{
	pid_t pid = atomic_exchange(&d->daemon->evictor_pid, 0);
	struct region *next;
	int e;

	atomic_store(&d->hold, d->spawn_evictor);
	fm_cluster_all_stale(&d->daemon->cluster); /* it may have died with puts and deletes under way */
	/* Its connection is closed, perhaps by us: it must be dead before anything of it is mended. */
	e = evictor_exclude(d, pid);
	if (e)
		fm_die(FM_EXIT_FAILED, "fm-evict: pid %d outlived its connection and cannot be ended: %s: no fm-faultd may go on beside it", pid,
		       strerror(-e));
	for (struct region *r = d->regions; r; r = next) {
		next = r->next;
		r->holds = 0;
		if (!r->told_evictor)
			continue;
		r->told_evictor = false;
		if (r->ending) {
			atomic_store(&r->map.hdr->resident, 0); /* taken off when it ended; what the evictor counted since is void */
			if (!region_needs_purge(d))
				region_free(d, r);
		}
	}
	mend_all(d);
	for (struct region *r = d->regions; r; r = r->next)
		if (!r->ending)
			region_detach_held(d, r); /* it cannot answer any more */
	for (struct conn *c = d->conns; c; c = c->next)
		if (c->waits_cookie) {
			c->waits_cookie = 0;
			conn_error(c, EPIPE, "the evictor ended while it evicted");
		}
	if (!d->stop && d->spawn_evictor && !d->evictor_child)
		evictor_spawn(d);
}

void evictor_reap(struct faultd *d)
{
	struct timespec nap = {.tv_nsec = 1000000};

	if (!d->evictor_child)
		return;
	for (int ms = 0; ms < 2000; ms++) {
		if (waitpid(d->evictor_child, NULL, WNOHANG) != 0)
			return;
		nanosleep(&nap, NULL);
	}
	/* Stuck in its store, perhaps. Whatever it owns, the next fm-faultd mends. */
	kill(d->evictor_child, SIGKILL);
	waitpid(d->evictor_child, NULL, 0);
}

int evictor_exclude(struct faultd *d, pid_t only)
{
	struct timespec nap = {.tv_nsec = 1000000};

	/* The evictor holds a lock on evict.lock as long as it lives. F_GETLK tells its pid; asked once more after the pidfd is there, it
	 * says that the pidfd is the holder's. */
	for (unsigned tries = 0;;) {
		struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET}, again = l;
		int pidfd, e = 0;
		struct pollfd p;

		if (fcntl(d->evict_lock_fd, F_GETLK, &l) < 0)
			return -errno;
		if (l.l_type == F_UNLCK || (only && l.l_pid != only))
			return 0;
		if (l.l_pid <= 0)
			return -ESRCH; /* in a pid namespace that we do not see */
		pidfd = (int)syscall(SYS_pidfd_open, l.l_pid, 0);
		if (pidfd < 0) {
			/* It ended just now; or what is short, descriptors or memory, may be had in a moment. */
			if (errno != ESRCH && ++tries > 5000)
				return -errno;
			nanosleep(&nap, NULL);
			continue;
		}
		if (fcntl(d->evict_lock_fd, F_GETLK, &again) < 0)
			e = errno;
		if (e == 0 && again.l_type != F_UNLCK && again.l_pid == l.l_pid) {
			fm_info("fm-evict of pid %d outlived its connection: ended", l.l_pid);
			if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
				e = errno;
			p = (struct pollfd){.fd = pidfd, .events = POLLIN};
			if (e == 0)
				poll(&p, 1, 5000);
		}
		close(pidfd);
		if (e)
			return -e;
	}
}
