/* Taking over the regions that an fm-faultd before this one served. */
#include "faultd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "crash.h"
#include "evict.h"
#include "log.h"
#include "proc.h"

#define PIDFD_THREAD_FLAG O_EXCL /* PIDFD_THREAD, Linux 6.9 */

/* Has the main thread ended, while others live on? Its descriptors can then only be had by one of those. */
static bool is_headless(int pid)
{
	char path[32], line[512];
	const char *state;
	FILE *f;
	bool zombie = false;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	f = fopen(path, "re");
	if (f && fgets(line, sizeof line, f) && (state = strrchr(line, ')')) && strlen(state) > 2)
		zombie = state[2] == 'Z';
	if (f)
		fclose(f);
	return zombie;
}

static int fetch_fd_by_thread(int pid, int number)
{
	char path[32];
	struct dirent *d;
	int fd = -ESRCH;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? -ESRCH : -errno;
	while (fd < 0 && (d = readdir(dir))) {
		int tid = atoi(d->d_name), pidfd;

		if (tid <= 0 || tid == pid)
			continue;
		pidfd = (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD_FLAG);
		if (pidfd < 0) {
			fd = errno == EINVAL ? -EOPNOTSUPP : -errno;
			continue;
		}
		fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
		fd = fd < 0 ? -errno : fd;
		close(pidfd);
	}
	closedir(dir);
	return fd;
}

/* A descriptor of the client, by its number there. */
static int fetch_fd(const struct region *r, int number)
{
	int fd = (int)syscall(SYS_pidfd_getfd, r->pidfd, number, 0), e = fd < 0 ? -errno : 0;

	if (e == 0)
		return fd;
	return e == -ESRCH && is_headless(r->map.hdr->pid) ? fetch_fd_by_thread(r->map.hdr->pid, number) : e;
}

static int fetch_memfd(const struct region *r)
{
	const struct fm_region_hdr *h = r->map.hdr;
	struct stat st;
	int fd = h->client_memfd >= 0 ? fetch_fd(r, h->client_memfd) : -EBADF;

	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == h->memfd_dev && st.st_ino == h->memfd_ino)
		return fd;
	if (fd >= 0)
		close(fd);
	/* The number means something else now: look for the file behind the mapping itself. */
	struct fm_mapping *list;
	const struct fm_mapping *m;
	size_t n;
	int e = fm_proc_maps(h->pid, &list, &n), remote;

	if (e)
		return e;
	m = fm_proc_find_address(list, n, fm_ld(&r->map.shards[0].hva));
	e = m && m->dev == h->memfd_dev && m->ino == h->memfd_ino ? fm_proc_open_mapping(h->pid, m, &remote) : -ENOENT;
	free(list);
	return e;
}

/* Has it ended, or does within a moment? */
static bool client_ended(const struct region *r)
{
	struct pollfd p = {.fd = r->pidfd, .events = POLLIN};

	return poll(&p, 1, 100) == 1;
}

/* Does it have the region's file mapped anywhere? Also when that cannot be told. */
static bool maps_file(const struct region *r)
{
	const struct fm_region_hdr *h = r->map.hdr;
	struct fm_mapping *list;
	bool found = false;
	size_t n;

	if (fm_proc_maps(h->pid, &list, &n))
		return true;
	for (size_t i = 0; i < n && !found; i++)
		found = list[i].ino == h->memfd_ino && list[i].dev == h->memfd_dev;
	free(list);
	return found;
}

/* Is nothing of it mapped any more, for certain? */
static bool is_unmapped(struct client **clients, struct region *r)
{
	uint32_t mapped;

	/* Known from before its userfaultfds were taken back: what was mapped then sends an event when it goes. */
	r->look_again = client_mapped_shards(clients, r, &mapped) != 0;
	if (r->look_again || mapped)
		return false;
	/* What was not may have moved: then there is an event of that, read and not noted, or still to be read. */
	r->look_again = true;
	for (unsigned i = 0; i < r->map.nshards; i++)
		if (fm_shard_has_old_events(&r->map.shards[i]))
			return false;
	return !region_mapped_shards(r) && region_quiet(r);
}

/*
 * Take back the descriptors. Returns 0; -ESRCH when the region does not exist any more, which must be certain: its pages are freed then;
 * another -errno: cannot (out of descriptors or of memory, say).
 */
static int fetch_region(struct client **clients, struct region *r)
{
	int e = fm_ld(&r->map.hdr->flags) & FM_REGION_GONE ? -ESRCH : client_pidfd(clients, r->map.hdr);

	if (e < 0)
		return e;
	r->pidfd = e;
	for (unsigned i = 0; i < r->map.nshards; i++) {
		int fd = fetch_fd(r, r->map.shards[i].client_uffd);

		/* Closed with the mapping, by fm_unmap() or exec() while no daemon ran? */
		if ((fd == -EBADF || fd == -ESRCH) && (!region_mapped_shards(r) || client_ended(r)))
			return -ESRCH;
		if (fd < 0)
			return fd == -ESRCH ? -EBADF : fd;
		r->uffd[i].fd = fd;
		if (!region_is_uffd(fd))
			return !region_mapped_shards(r) ? -ESRCH : -EBADF;
		if (!fm_uffd_mm_alive(&r->uffd[i]))
			return -ESRCH;
	}
	if (is_unmapped(clients, r))
		return -ESRCH;
	e = fetch_memfd(r);
	/* It gave all of it up while nobody looked, and the numbers that it had are another's by now. */
	if (e == -ENOENT && !maps_file(r))
		return -ESRCH;
	if (e < 0)
		return e;
	r->memfd = e;
	return 0;
}

static void drop_descriptors(struct region *r)
{
	for (unsigned i = 0; i < FM_MAX_SHARDS; i++) {
		if (r->uffd[i].fd >= 0)
			close(r->uffd[i].fd);
		r->uffd[i].fd = -1;
	}
	if (r->memfd >= 0)
		close(r->memfd);
	if (r->pidfd >= 0)
		close(r->pidfd);
	r->memfd = r->pidfd = -1;
}

static void drop_fetched(struct region *r)
{
	drop_descriptors(r);
	fm_shmfile_region_unmap(&r->map);
	free(r);
}

/* Is it we who lack something, and not this region? Then another try may do better, and all wait for it. */
static bool is_ours(int e)
{
	return e == -EMFILE || e == -ENFILE || e == -ENOMEM || e == -EPERM || e == -EACCES || e == -EOPNOTSUPP;
}

/* Open a region's file, and take its descriptors back. Returns 0 and *out, NULL when there is no region for us; or -errno with why. */
static int fetch(struct faultd *d, struct client **clients, uint64_t id, struct region **out, char *why)
{
	char name[FM_REGION_FILE_MAX];
	const char *bad = NULL;
	struct region *r = region_new();
	int e;

	*out = NULL;
	if (!r)
		return -ENOMEM;
	fm_shmfile_region_name(id, name);
	e = fm_shmfile_region_map(d->run_fd, name, FM_SHMFILE_WRITE | FM_SHMFILE_WORDS, &r->map, &bad);
	if (e == -ENODATA) {
		/* Its maker died before it counted: the client was never answered, and has given up. */
		fm_info("%s/%s: was not finished: removed", d->run_dir, name);
		unlinkat(d->run_fd, name, 0);
		free(r);
		return 0;
	}
	if (e == -EMFILE || e == -ENFILE || e == -ENOMEM) {
		/* Ours, perhaps: nobody else would serve it. */
		snprintf(why, FM_STORE_WHY, "%.100s/%s: cannot be opened: %s", d->run_dir, name, strerror(-e));
		free(r);
		return e;
	}
	if (e) {
		/* Not ours, or of another version: left alone, and said. */
		fm_warn("%s/%s: %s: left alone", d->run_dir, name, bad ? bad : strerror(-e));
		free(r);
		return 0;
	}
	if (!fm_shard_discards_are_sound(&r->map)) {
		fm_warn("%s/%s: damaged: a range that is being discarded lies outside of its shard: left alone", d->run_dir, name);
		fm_shmfile_region_unmap(&r->map);
		free(r);
		return 0;
	}
	e = fetch_region(clients, r);
	if (e == -ESRCH) {
		fm_info("region %016llx: its client is gone", (unsigned long long)id);
		drop_descriptors(r);
		r->ending = true;
	} else if (is_ours(e)) {
		snprintf(why, FM_STORE_WHY, "region %016llx of pid %d: cannot be taken over: %s%s", (unsigned long long)id,
			 r->map.hdr->pid, strerror(-e), e == -EPERM ? " (needs CAP_SYS_PTRACE: run as root)" : "");
		drop_fetched(r);
		return e;
	} else if (e) {
		/* Its client's doing: the others must not wait for it. */
		fm_warn("region %016llx of pid %d: cannot be taken over: %s: left alone", (unsigned long long)id, r->map.hdr->pid, strerror(-e));
		drop_fetched(r);
		return 0;
	}
	FM_CRASH_POINT("takeover-fetched");
	*out = r;
	return 0;
}

/* Does somebody wait for a page of it, as far as can be told at once? */
static bool has_waiters(const struct region *r)
{
	struct pollfd p[FM_MAX_SHARDS];

	for (unsigned i = 0; i < r->map.nshards; i++) {
		p[i] = (struct pollfd){.fd = r->uffd[i].fd, .events = POLLIN};
		for (unsigned k = 0; k < FM_BATCH; k++)
			if (fm_ld(&r->map.shards[i].inflight[k]))
				return true;
	}
	return poll(p, r->map.nshards, 0) > 0;
}

/* Mend it, and serve it. Returns 0, or -errno with why: then it is closed. */
static int serve(struct faultd *d, struct region *r, char *why)
{
	uint64_t id = r->map.hdr->id;
	int e;

	fm_evict_recover(&r->map, r->memfd);
	FM_CRASH_POINT("takeover-evictor-mended");
	fm_shard_recover(&r->map, r->memfd);
	FM_CRASH_POINT("takeover-shards-mended");
	region_count_mark(r);
	/* Set when no page was away, and none can leave since. */
	if ((fm_ld(&r->map.hdr->flags) & FM_REGION_HOME) && fm_region_any_away(&r->map)) {
		fm_warn("region %016llx: damaged: it says that its memory is home, and pages are away: served as ever", (unsigned long long)id);
		atomic_fetch_and(&r->map.hdr->flags, ~(uint64_t)FM_REGION_HOME);
	}
	/* Whoever wanted it home has lost his answer, and asks again; but where its memory may be unregistered, there is no way back. */
	if (!(fm_ld(&r->map.hdr->flags) & FM_REGION_HOME)) {
		atomic_fetch_and(&r->map.hdr->flags, ~(uint64_t)FM_REGION_DETACHING);
		atomic_fetch_add(&d->daemon->resident, fm_ld(&r->map.hdr->resident));
	}
	FM_CRASH_POINT("takeover-counted");
	atomic_store(&r->unbounded, fm_ld(&r->map.hdr->flags) & FM_REGION_HOME); /* before a shard counts a page */
	e = region_start_shards(d, r, why);
	FM_CRASH_POINT("takeover-started");
	if (e) {
		region_stop_shards(r); /* its clients wait for an fm-faultd that can serve them */
		drop_fetched(r);
		return e;
	}
	if (region_watch_client(d, r) < 0)
		fm_warn("region %016llx: its client cannot be watched: %m", (unsigned long long)id);
	/* Events that the dead process had read are not sent again: let every waiter fault anew. */
	for (unsigned i = 0; i < r->map.nshards; i++)
		fm_uffd_wake(&r->uffd[i], fm_ld(&r->map.shards[i].hva), r->map.shards[i].pages * FM_PAGE_SIZE);
	FM_CRASH_POINT("takeover-woken");
	region_detach_resume(r);
	r->next = d->regions;
	d->regions = r;
	fm_info("region %016llx: taken over from the fm-faultd before, %s, pid %d", (unsigned long long)id, r->map.hdr->name,
		r->map.hdr->pid);
	return 0;
}

/* Its client is gone. */
static void free_ended(struct faultd *d, struct region *r)
{
	atomic_store(&r->map.hdr->resident, 0);
	r->next = d->regions;
	d->regions = r;
	if (!region_needs_purge(d))
		region_free(d, r);
}

/* In this order: whoever waits; the others; what is only to be freed. Closes all on failure but what is served. */
static int serve_all(struct faultd *d, struct region **all, size_t n, char *why)
{
	int e = 0;

	for (unsigned pass = 0; pass < 3; pass++)
		for (size_t i = 0; i < n; i++) {
			struct region *r = all[i];

			if (!r || (pass < 2 && r->ending) || (pass == 0 && !has_waiters(r)))
				continue;
			all[i] = NULL;
			if (e)
				drop_fetched(r);
			else if (r->ending)
				free_ended(d, r);
			else
				e = serve(d, r, why);
		}
	return e;
}

int region_take_over(struct faultd *d, char *why)
{
	uint64_t *ids, began = fm_now_ns();
	struct client *clients = NULL;
	struct region **all;
	size_t n, i;
	int e = fm_shmfile_list(d->run_fd, &ids, &n);

	if (e) {
		snprintf(why, FM_STORE_WHY, "%s: cannot be read: %s", d->run_dir, strerror(-e));
		return e;
	}
	snprintf(why, FM_STORE_WHY, "%s: out of memory", d->run_dir);
	all = calloc(n + 1, sizeof *all);
	e = all ? 0 : -ENOMEM;
	for (i = 0; i < n && e == 0; i++)
		e = fetch(d, &clients, ids[i], &all[i], why);
	free(ids);
	if (e == 0)
		e = serve_all(d, all, n, why);
	while (all && i)
		if (all[--i])
			drop_fetched(all[i]);
	free(all);
	clients_forget(&clients);
	if (n && e == 0)
		fm_info("%zu regions: looked at and served in %llu us", n, (unsigned long long)(fm_now_ns() - began) / 1000);
	return e;
}
