/*
 * Make the shared files of a run directory, for tests of what reads them: no daemon needed.
 *
 *   mkstate DIR daemon [KEY=VALUE...]            write daemon.state
 *   mkstate DIR region ID NAME [KEY=VALUE...]    write region-ID.state (ID in hex), or change a good one
 *   mkstate DIR lock                             hold daemon.lock until killed; prints a line when it has it
 *
 * Counters are written to shard 0 and to the evictor's part. lat=NS:COUNT adds COUNT values to shard 0's histogram.
 */
#include "shmfile.h"
#include "stats.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static _Noreturn void bad(const char *what)
{
	fprintf(stderr, "mkstate: %s\n", what);
	exit(2);
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

struct field {
	const char *key;
	size_t offset;
	size_t width;
};
#define F(type, f) { #f, offsetof(struct type, f), sizeof(((struct type *)0)->f) }

/* Store value in the field called key of the struct at base. Returns whether there is such a field. */
static int set_field(void *base, const struct field *fields, size_t n, const char *key, size_t key_length, uint64_t value)
{
	for (size_t i = 0; i < n; i++) {
		if (strlen(fields[i].key) != key_length || memcmp(fields[i].key, key, key_length) != 0)
			continue;
		memcpy((char *)base + fields[i].offset, &value, fields[i].width); /* little endian */
		return 1;
	}
	return 0;
}

static const struct field daemon_fields[] = {
	F(fm_daemon_shm, pid),		F(fm_daemon_shm, start_ns),	    F(fm_daemon_shm, limit_pages),
	F(fm_daemon_shm, resident),	F(fm_daemon_shm, store_up),	    F(fm_daemon_shm, store_used_bytes),
	F(fm_daemon_shm, store_errors), F(fm_daemon_shm, store_limit_bytes), F(fm_daemon_shm, magic),
	F(fm_daemon_shm, version),
};
static const struct field region_fields[] = {
	F(fm_region_hdr, pid),	    F(fm_region_hdr, kind),   F(fm_region_hdr, created_ns), F(fm_region_hdr, limit_pages),
	F(fm_region_hdr, resident), F(fm_region_hdr, remote), F(fm_region_hdr, flags),	    F(fm_region_hdr, magic),
	F(fm_region_hdr, version),  F(fm_region_hdr, pages),
};
static const struct field evict_fields[] = {
	F(fm_evict_stats, evictions), F(fm_evict_stats, evictions_clean), F(fm_evict_stats, evictions_zero),
	F(fm_evict_stats, cancelled), F(fm_evict_stats, store_puts),	  F(fm_evict_stats, store_deletes),
};
static const struct field evict_errors[] = { { "put_errors", offsetof(struct fm_evict_stats, store_errors), 8 } };
static const struct field shard_fields[] = {
	F(fm_shard_stats, faults),	F(fm_shard_stats, faults_zero),	   F(fm_shard_stats, faults_store),
	F(fm_shard_stats, faults_wp),	F(fm_shard_stats, faults_stale),   F(fm_shard_stats, held),
	F(fm_shard_stats, store_gets),	F(fm_shard_stats, pages_lost),	   F(fm_shard_stats, discarded),
	F(fm_shard_stats, prefetched),	F(fm_shard_stats, zeroed_ahead),   F(fm_shard_stats, prefetch_hits),
	F(fm_shard_stats, prefetch_wasted),
	F(fm_shard_stats, clear_seen),	F(fm_shard_stats, latency_max_ns),
};
static const struct field shard_errors[] = { { "get_errors", offsetof(struct fm_shard_stats, store_errors), 8 } };
#define N(a) (sizeof(a) / sizeof *(a))

static void write_daemon(int dirfd, char **args)
{
	struct fm_daemon_shm d;
	int fd = openat(dirfd, FM_DAEMON_STATE, O_RDWR | O_CREAT, 0644);

	memset(&d, 0, sizeof d);
	d.magic = FM_MAGIC_DAEMON;
	d.version = FM_SHM_VERSION;
	d.start_ns = clock_ns(CLOCK_MONOTONIC);
	d.limit_pages = UINT64_MAX;
	for (; *args; args++) {
		size_t n = strcspn(*args, "=");

		if (!(*args)[n])
			bad(*args);
		if (strncmp(*args, "uri=", 4) == 0)
			snprintf(d.store_uri, sizeof d.store_uri, "%s", *args + 4);
		else if (!set_field(&d, daemon_fields, N(daemon_fields), *args, n, strtoull(*args + n + 1, NULL, 0)))
			bad(*args);
	}
	if (fd < 0 || pwrite(fd, &d, sizeof d, 0) != sizeof d)
		bad("cannot write daemon.state");
	close(fd);
}

/* The checksum over what is before the page words. */
static void seal(int fd, uint64_t words_offset)
{
	struct fm_region_hdr *h = mmap(NULL, words_offset, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (h == MAP_FAILED)
		bad("cannot map");
	h->sum = fm_shmfile_region_sum(h);
	munmap(h, words_offset);
}

/* A new file of one region in two shards, good but for its counters. */
static void make_region(int dirfd, const char *file, uint64_t id, const char *name, uint64_t pages)
{
	struct fm_region_hdr h;
	struct fm_shard_shm *s = calloc(1, sizeof *s);
	unsigned nshards = pages > 1 ? 2 : 1;
	uint64_t size;
	int fd = openat(dirfd, file, O_RDWR | O_CREAT | O_EXCL, 0644);

	memset(&h, 0, sizeof h);
	h.magic = FM_MAGIC_REGION;
	h.version = FM_SHM_VERSION;
	h.nshards = nshards;
	h.id = id;
	h.pages = pages;
	h.kind = FM_KIND_MAP;
	h.client_memfd = -1;
	h.created_ns = clock_ns(CLOCK_REALTIME);
	snprintf(h.name, sizeof h.name, "%s", name);
	if (fm_shmfile_layout(pages, nshards, &h.shards_offset, &h.words_offset, &size))
		bad("number of pages");
	if (!s)
		bad("no memory");
	if (fd < 0 || ftruncate(fd, (off_t)size) || pwrite(fd, &h, sizeof h, 0) != sizeof h)
		bad(file);
	for (unsigned i = 0; i < nshards; i++) {
		s->first_page = i * (pages / 2);
		s->pages = nshards == 1 ? pages : i ? pages - pages / 2 : pages / 2;
		if (pwrite(fd, s, sizeof *s, (off_t)(h.shards_offset + i * sizeof *s)) != sizeof *s)
			bad(file);
	}
	free(s);
	seal(fd, h.words_offset);
	close(fd);
}

static void write_region(int dirfd, const char *id_text, const char *name, char **args)
{
	struct fm_region_map m;
	char file[FM_REGION_FILE_MAX];
	uint64_t id = strtoull(id_text, NULL, 16), pages = 1024;

	fm_shmfile_region_name(id, file);
	if (strncmp(*args ? *args : "", "pages=", 6) == 0)
		pages = strtoull(*args++ + 6, NULL, 0);
	if (faccessat(dirfd, file, F_OK, 0) != 0)
		make_region(dirfd, file, id, name, pages);
	if (fm_shmfile_region_map(dirfd, file, FM_SHMFILE_WRITE, &m, NULL))
		bad(file);
	for (; *args; args++) {
		size_t n = strcspn(*args, "=");
		uint64_t v;
		char *end;

		if (!(*args)[n])
			bad(*args);
		v = strtoull(*args + n + 1, &end, 0);
		if (strncmp(*args, "lat=", 4) == 0 && *end == ':')
			fm_bump(&m.shards[0].stats.latency[fm_hist_bucket(v)], strtoull(end + 1, NULL, 0));
		else if (!set_field(m.hdr, region_fields, N(region_fields), *args, n, v) &&
			 !set_field(&m.hdr->evict, evict_fields, N(evict_fields), *args, n, v) &&
			 !set_field(&m.hdr->evict, evict_errors, N(evict_errors), *args, n, v) &&
			 !set_field(&m.shards[0].stats, shard_fields, N(shard_fields), *args, n, v) &&
			 !set_field(&m.shards[0].stats, shard_errors, N(shard_errors), *args, n, v))
			bad(*args);
	}
	m.hdr->sum = fm_shmfile_region_sum(m.hdr);
	fm_shmfile_region_unmap(&m);
}

static _Noreturn void hold_lock(int dirfd)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd = openat(dirfd, FM_DAEMON_LOCK, O_RDWR | O_CREAT, 0644);

	if (fd < 0 || fcntl(fd, F_SETLK, &lock) < 0)
		bad("cannot lock");
	puts("locked");
	fflush(stdout);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	int dirfd = argc > 2 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;

	if (dirfd < 0)
		bad("DIR daemon|region|lock ...");
	if (strcmp(argv[2], "daemon") == 0)
		write_daemon(dirfd, argv + 3);
	else if (strcmp(argv[2], "region") == 0 && argc >= 5)
		write_region(dirfd, argv[3], argv[4], argv + 5);
	else if (strcmp(argv[2], "lock") == 0)
		hold_lock(dirfd);
	else
		bad(argv[2]);
	return 0;
}
