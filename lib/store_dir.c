/*
 * `dir:/path`: the embedded store. One sparse file per region, `<id as 16 hex digits>.pages`, slot of page p at p * 4096.
 *
 * Theory of operation. A slot holds the bytes of the newest generation that was put; older ones are overwritten in place. That
 * is safe because the page protocol puts a page only while it is on the host (WRITEBACK), and pwrite(2) ends before a killed
 * evictor does, so no late write of an old generation exists. A page of zeros is never put, so a slot that reads as zeros, or
 * lies past the end of the file, is one that somebody destroyed: LOST, never handed out. Nothing is fsync'ed: when the host
 * goes down, so do the clients whose memory this is.
 */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <dirent.h>

#include "crash.h"
#include "shm.h"

struct dir_region {
	struct dir_region *next;
	uint64_t id;
	int fd;
};

/* A page that the disk cannot read: it is asked again for a time before it is given up. */
struct bad_page {
	uint64_t region, page, gen;
	uint64_t since_ns; /* CLOCK_MONOTONIC: of the first failure; 0: slot not in use */
	uint64_t last_ns;
};
#define BAD_PAGES   64
#define BAD_NS      3000000000ull  /* how long it is asked again */
#define BAD_GAP_NS  30000000000ull /* not asked for so long: a failure counts as the first again */

struct dir_store {
	struct fm_store store;
	struct bad_page bad[BAD_PAGES];
	int dir_fd;
	struct dir_region *regions; /* most recently used first */
};

static const char *dir_path(const char *uri)
{
	return uri + strlen("dir:");
}

static int dir_check(const char *uri, const struct fm_store_options *o, char *why)
{
	if (o->replicas > 1) {
		snprintf(why, FM_STORE_WHY, "--replicas: %u: a dir: store is one server", o->replicas);
		return -EINVAL;
	}
	if (dir_path(uri)[0] != '/') {
		snprintf(why, FM_STORE_WHY, "%.128s: dir: needs an absolute path, as in dir:/var/lib/fm", uri);
		return -EINVAL;
	}
	return 0;
}

/* Ask the file system, not the mode bits: read-only mounts and ACLs count as well. */
static int probe_dir(struct dir_store *s)
{
	char probe[64];
	int fd;

	snprintf(probe, sizeof probe, ".probe-%ld-%p", (long)getpid(), (void *)s);
	fd = openat(s->dir_fd, probe, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	unlinkat(s->dir_fd, probe, 0);
	close(fd);
	return 0;
}

static int dir_open(const char *uri, const struct fm_store_options *o, struct fm_store **out, char *why)
{
	const char *path = dir_path(uri);
	struct dir_store *s = calloc(1, sizeof *s);
	int e;

	if (!s)
		return -ENOMEM;
	if (!o->again && mkdir(path, 0700) < 0 && errno != EEXIST) {
		e = errno;
		snprintf(why, FM_STORE_WHY, "%.128s: cannot make the store directory: %s", path, strerror(e));
		free(s);
		return -e;
	}
	s->store.ops = &fm_store_dir;
	s->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->dir_fd < 0) {
		e = errno;
		snprintf(why, FM_STORE_WHY, "%.128s: cannot open the store directory: %s", path, strerror(e));
		free(s);
		return -e;
	}
	e = o->again ? 0 : probe_dir(s);
	if (e) {
		snprintf(why, FM_STORE_WHY, "%.128s: store directory is not writable: %s", path, strerror(-e));
		close(s->dir_fd);
		free(s);
		return e;
	}
	*out = &s->store;
	return 0;
}

static void dir_close(struct fm_store *store)
{
	struct dir_store *s = (struct dir_store *)store;

	while (s->regions) {
		struct dir_region *r = s->regions;

		s->regions = r->next;
		close(r->fd);
		free(r);
	}
	close(s->dir_fd);
	free(s);
}

static void region_file(uint64_t id, char name[32])
{
	snprintf(name, 32, "%016llx.pages", (unsigned long long)id);
}

/* The region's file, opened or made. Returns a descriptor that the cache owns, or -errno. */
static int region_fd(struct dir_store *s, uint64_t id)
{
	struct dir_region **link, *r;
	char name[32];

	for (link = &s->regions; (r = *link); link = &r->next)
		if (r->id == id) {
			*link = r->next;
			r->next = s->regions;
			s->regions = r;
			return r->fd;
		}
	r = malloc(sizeof *r);
	if (!r)
		return -ENOMEM;
	region_file(id, name);
	r->id = id;
	r->fd = openat(s->dir_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (r->fd < 0) {
		int e = errno;

		free(r);
		return -e;
	}
	r->next = s->regions;
	s->regions = r;
	return r->fd;
}

static void all(struct fm_store_req *r, unsigned n, enum fm_store_result result)
{
	for (unsigned i = 0; i < n; i++)
		r[i].result = result;
}

/* Requests from r[0] on whose slots follow each other in the file: they go in one system call. */
static unsigned run_length(const struct fm_store_req *r, unsigned n, struct iovec *iov)
{
	unsigned k = 0;

	do {
		iov[k].iov_base = r[k].buf;
		iov[k].iov_len = FM_PAGE_SIZE;
		k++;
	} while (k < n && k < FM_EVICT_BATCH && r[k].page == r[k - 1].page + 1);
	return k;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* An I/O error may pass (a path that fails over, a controller that is reset): LOST is for good, so not at once. */
static enum fm_store_result io_error(struct dir_store *s, uint64_t region, const struct fm_store_req *r)
{
	uint64_t now = now_ns();
	struct bad_page *b = &s->bad[0];

	for (unsigned i = 0; i < BAD_PAGES; i++) {
		struct bad_page *k = &s->bad[i];

		if (k->since_ns && k->region == region && k->page == r->page && k->gen == r->gen && now - k->last_ns < BAD_GAP_NS) {
			k->last_ns = now;
			if (now - k->since_ns < BAD_NS)
				return FM_STORE_DOWN;
			k->since_ns = 0;
			return FM_STORE_LOST;
		}
		if (k->last_ns < b->last_ns)
			b = k;
	}
	*b = (struct bad_page){.region = region, .page = r->page, .gen = r->gen, .since_ns = now, .last_ns = now};
	return FM_STORE_DOWN;
}

static enum fm_store_result get_error(struct dir_store *s, uint64_t region, const struct fm_store_req *r, int e)
{
	if (e == EIO)
		return io_error(s, region, r);
	return e == EINTR || e == EAGAIN || e == ENOMEM ? FM_STORE_DOWN : FM_STORE_LOST;
}

static void dir_get(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct iovec iov[FM_EVICT_BATCH];
	int fd = region_fd((struct dir_store *)store, region);

	if (fd < 0) {
		all(r, n, FM_STORE_DOWN);
		return;
	}
	for (unsigned i = 0, k; i < n; i += k) {
		ssize_t got;

		k = run_length(r + i, n - i, iov);
		got = k == 1 ? pread(fd, r[i].buf, FM_PAGE_SIZE, (off_t)(r[i].page * FM_PAGE_SIZE))
			     : preadv(fd, iov, (int)k, (off_t)(r[i].page * FM_PAGE_SIZE));
		for (unsigned j = 0; j < k; j++) {
			if (got < 0)
				r[i + j].result = k > 1 ? FM_STORE_DOWN : get_error((struct dir_store *)store, region, &r[i], errno);
			else if (got < (ssize_t)(j + 1) * FM_PAGE_SIZE)
				r[i + j].result = j && got > 0 ? FM_STORE_DOWN : FM_STORE_LOST;
			else
				r[i + j].result = fm_page_is_zero(r[i + j].buf) ? FM_STORE_LOST : FM_STORE_OK;
		}
		/* A short run says nothing about the pages behind the first bad one: ask for the first of those again by itself. */
		if (k > 1 && got < (ssize_t)k * FM_PAGE_SIZE)
			for (unsigned j = 0; j < k; j++)
				if (r[i + j].result != FM_STORE_OK) {
					got = pread(fd, r[i + j].buf, FM_PAGE_SIZE, (off_t)(r[i + j].page * FM_PAGE_SIZE));
					r[i + j].result = got == FM_PAGE_SIZE && !fm_page_is_zero(r[i + j].buf) ? FM_STORE_OK
							: got < 0 ? get_error((struct dir_store *)store, region, &r[i + j], errno)
								  : FM_STORE_LOST;
				}
	}
}

static enum fm_store_result put_error(int e)
{
	return e == ENOSPC || e == EDQUOT || e == EFBIG ? FM_STORE_FULL : FM_STORE_DOWN;
}

static void dir_put(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct iovec iov[FM_EVICT_BATCH];
	int fd = region_fd((struct dir_store *)store, region);

	if (fd < 0) {
		all(r, n, put_error(-fd));
		return;
	}
	for (unsigned i = 0, k; i < n; i += k) {
		ssize_t put;

		k = run_length(r + i, n - i, iov);
		put = pwritev(fd, iov, (int)k, (off_t)(r[i].page * FM_PAGE_SIZE));
		FM_CRASH_POINT("dir-put-run");
		for (unsigned j = 0; j < k; j++)
			r[i + j].result = put < 0 ? put_error(errno) : put >= (ssize_t)(j + 1) * FM_PAGE_SIZE ? FM_STORE_OK : FM_STORE_FULL;
	}
}

static void dir_del(struct fm_store *store, uint64_t region, struct fm_store_req *r, unsigned n)
{
	int fd = region_fd((struct dir_store *)store, region);

	if (fd < 0) {
		all(r, n, FM_STORE_DOWN);
		return;
	}
	for (unsigned i = 0, k; i < n; i += k) {
		enum fm_store_result res;

		for (k = 1; i + k < n && r[i + k].page == r[i + k - 1].page + 1; k++)
			;
		res = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(r[i].page * FM_PAGE_SIZE),
				(off_t)k * FM_PAGE_SIZE) == 0
			  ? FM_STORE_OK
			  : FM_STORE_DOWN;
		/* A file system that cannot punch keeps the bytes until the region ends: wasteful, not wrong. */
		all(r + i, k, res == FM_STORE_DOWN && errno == EOPNOTSUPP ? FM_STORE_OK : res);
	}
}

static void dir_forget(struct fm_store *store, uint64_t region)
{
	struct dir_store *s = (struct dir_store *)store;

	for (struct dir_region **link = &s->regions, *r; (r = *link); link = &r->next)
		if (r->id == region) {
			*link = r->next;
			close(r->fd);
			free(r);
			return;
		}
}

static int dir_region_end(struct fm_store *store, uint64_t region)
{
	struct dir_store *s = (struct dir_store *)store;
	char name[32];

	dir_forget(store, region);
	region_file(region, name);
	return unlinkat(s->dir_fd, name, 0) < 0 && errno != ENOENT ? -errno : 0;
}

static int dir_usage(struct fm_store *store, uint64_t *used, uint64_t *limit)
{
	struct dir_store *s = (struct dir_store *)store;
	struct statvfs v;
	struct dirent *d;
	int copy = openat(s->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), e;
	DIR *dir = copy < 0 ? NULL : fdopendir(copy);

	if (!dir) {
		e = errno;
		if (copy >= 0)
			close(copy);
		return -e;
	}
	*used = 0;
	while ((d = readdir(dir))) {
		struct stat st;
		size_t len = strlen(d->d_name);

		if (len == 22 && strcmp(d->d_name + 16, ".pages") == 0 && fstatat(s->dir_fd, d->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			*used += (uint64_t)st.st_blocks * 512;
	}
	closedir(dir);
	if (fstatvfs(s->dir_fd, &v) < 0)
		return -errno;
	/* What can still be written, beside what is. */
	*limit = *used + (uint64_t)v.f_bavail * v.f_frsize;
	return 0;
}

const struct fm_store_ops fm_store_dir = {
    .scheme = "dir:",
    .check = dir_check,
    .open = dir_open,
    .close = dir_close,
    .get = dir_get,
    .put = dir_put,
    .del = dir_del,
    .forget = dir_forget,
    .region_end = dir_region_end,
    .usage = dir_usage,
};
