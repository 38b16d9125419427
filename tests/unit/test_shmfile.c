/* lib/shmfile: layout, names, good and damaged files, the daemon's lock. */
#include "shmfile.h"
#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/fm-test-shmfile-XXXXXX";
static int dirfd_ = -1;

/* The checksum over what is before the page words. */
static void seal(int fd, uint64_t words_offset)
{
	struct fm_region_hdr *h = mmap(NULL, words_offset, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (h == MAP_FAILED)
		abort();
	h->sum = fm_shmfile_region_sum(h);
	munmap(h, words_offset);
}

/* Write a good region file of id, with nshards equal shards; returns its mapping (with words, writable). */
static struct fm_region_map make_region(uint64_t id, uint64_t pages, unsigned nshards)
{
	struct fm_region_map m = { .fd = -1 };
	struct fm_region_hdr h;
	struct fm_shard_shm *s = aligned_alloc(64, sizeof *s);
	char name[FM_REGION_FILE_MAX];
	uint64_t size;
	int fd;

	memset(&h, 0, sizeof h);
	h.magic = FM_MAGIC_REGION;
	h.version = FM_SHM_VERSION;
	h.nshards = nshards;
	h.id = id;
	h.pages = pages;
	fm_shmfile_layout(pages, nshards, &h.shards_offset, &h.words_offset, &size);
	strcpy(h.name, "unit");
	fd = openat(dirfd_, fm_shmfile_region_name(id, name), O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size) || pwrite(fd, &h, sizeof h, 0) != sizeof h)
		abort();
	for (unsigned i = 0; i < nshards; i++) {
		memset(s, 0, sizeof *s);
		s->first_page = pages / nshards * i;
		s->pages = i + 1 < nshards ? pages / nshards : pages - s->first_page;
		if (pwrite(fd, s, sizeof *s, (off_t)(h.shards_offset + i * sizeof *s)) != sizeof *s)
			abort();
	}
	seal(fd, h.words_offset);
	close(fd);
	free(s);
	if (fm_shmfile_region_map(dirfd_, name, FM_SHMFILE_WRITE | FM_SHMFILE_WORDS, &m, NULL))
		abort();
	return m;
}

static void test_layout(void)
{
	uint64_t s = 7, w = 7, f = 7;

	ok(fm_shmfile_layout(1, 1, &s, &w, &f) == 0, "one page, one shard");
	ok(s >= sizeof(struct fm_region_hdr) && s % 4096 == 0 && w >= s + sizeof(struct fm_shard_shm) && w % 4096 == 0 &&
		   f == w + 4096,
	   "aligned, and nothing overlaps");
	ok(fm_shmfile_layout(513, 1, &s, &w, &f) == 0 && f == w + 8192, "513 words need two pages");
	ok(fm_shmfile_layout(FM_REGION_PAGES_MAX, FM_MAX_SHARDS, &s, &w, &f) == 0 && f == w + (1ull << 35), "the greatest region");
	s = w = f = 7;
	ok(fm_shmfile_layout(0, 1, &s, &w, &f) == -EINVAL && fm_shmfile_layout(FM_REGION_PAGES_MAX + 1ull, 1, &s, &w, &f) == -EINVAL &&
		   fm_shmfile_layout(UINT64_MAX, 1, &s, &w, &f) == -EINVAL && fm_shmfile_layout(1, 0, &s, &w, &f) == -EINVAL &&
		   fm_shmfile_layout(1, FM_MAX_SHARDS + 1, &s, &w, &f) == -EINVAL,
	   "out of range is refused");
	ok(s == 7 && w == 7 && f == 7, "and sets nothing");
}

static void test_names(void)
{
	static const char *const bad[] = { "", "region-", "region-1.state", "region-00000000000000ab.statex", "region-00000000000000AB.state",
					   "xregion-00000000000000ab.state", "region-00000000000000ab", "region-00000000000000abc.state" };
	char buf[FM_REGION_FILE_MAX];
	uint64_t id = 0;

	ok(!strcmp(fm_shmfile_region_name(0xab, buf), "region-00000000000000ab.state"), "a name");
	ok(fm_shmfile_region_id(buf, &id) && id == 0xab, "and back");
	ok(fm_shmfile_region_id(fm_shmfile_region_name(UINT64_MAX, buf), &id) && id == UINT64_MAX, "the greatest id");
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		ok(!fm_shmfile_region_id(bad[i], &id), "'%s' is no region file's name", bad[i]);
}

static void test_good(void)
{
	struct fm_region_map w = make_region(0x11, 1000, 3), r = { .fd = -1 };
	const char *why = "";
	struct stat before, after;

	ok(w.pages == 1000 && w.nshards == 3 && w.words && w.shards[2].first_page == 666, "mapped for writing, with words");
	atomic_store(&w.words[999], 42);
	ok(fm_shmfile_region_map(dirfd_, "region-0000000000000011.state", FM_SHMFILE_WORDS, &r, &why) == 0, "mapped for reading");
	ok(fm_ld(&r.words[999]) == 42, "sees the writer's words");
	fm_shmfile_region_unmap(&r);
	ok(r.fd == -1 && !r.hdr, "unmapped");
	fm_shmfile_region_unmap(&r);
	fm_shmfile_region_unmap(&w);

	w = make_region(0x12, FM_REGION_PAGES_MAX, FM_MAX_SHARDS);
	fstat(w.fd, &before);
	ok(fm_shmfile_region_map(dirfd_, "region-0000000000000012.state", 0, &r, &why) == 0 && !r.words &&
		   r.map_bytes < 1 << 20,
	   "a region of 16 TiB: words are not mapped unless asked for");
	fstat(w.fd, &after);
	ok(before.st_blocks == after.st_blocks && after.st_blocks < 4096, "and its file stays sparse");
	fm_shmfile_region_unmap(&r);
	fm_shmfile_region_unmap(&w);
	unlinkat(dirfd_, "region-0000000000000012.state", 0);
}

enum damage_to { HDR, SHARD, UNSEALED, UNSEALED_SHARD, SIZE, CUT };

static void test_damaged(void)
{
	static const struct {
		const char *what;
		enum damage_to where;
		size_t offset; /* in header or shard 1, or the new size */
		uint64_t value;
		unsigned width;
		bool unfinished;
	} t[] = {
#define H(f, v) HDR, offsetof(struct fm_region_hdr, f), v, sizeof ((struct fm_region_hdr *)0)->f
#define U(f, v) UNSEALED, offsetof(struct fm_region_hdr, f), v, sizeof ((struct fm_region_hdr *)0)->f
#define S(f, v) SHARD, offsetof(struct fm_shard_shm, f), v, sizeof ((struct fm_shard_shm *)0)->f
		{ "no magic", H(magic, 0), true },
		{ "the daemon's magic", H(magic, FM_MAGIC_DAEMON), false },
		{ "version 0", H(version, 0), false },
		{ "a later version", H(version, FM_SHM_VERSION + 1), false },
		{ "no shards", H(nshards, 0), false },
		{ "17 shards", H(nshards, 17), false },
		{ "2^32 - 1 shards", H(nshards, UINT32_MAX), false },
		{ "fewer shards than the file has room for", H(nshards, 2), false },
		{ "no pages", H(pages, 0), false },
		{ "2^32 - 1 pages", H(pages, UINT32_MAX), false },
		{ "pages that overflow", H(pages, (1ull << 61) + 1000), false },
		{ "2^64 - 1 pages", H(pages, UINT64_MAX), false },
		{ "more pages than words", H(pages, 1025), false },
		{ "shards at 0", H(shards_offset, 0), false },
		{ "shards at 2^64 - 64", H(shards_offset, -64ull), false },
		{ "words at 0", H(words_offset, 0), false },
		{ "words far outside", H(words_offset, 1ull << 40), false },
		{ "another id than the file's name", H(id, 0x99), false },
		{ "a name with an escape", HDR, offsetof(struct fm_region_hdr, name), 0x1b, 1, false },
		{ "a name with a byte above ASCII", HDR, offsetof(struct fm_region_hdr, name), 0xff, 1, false },
		{ "a shard that begins too early", S(first_page, 0), false },
		{ "a shard that begins too late", S(first_page, 334), false },
		{ "a shard outside", S(first_page, UINT64_MAX), false },
		{ "a shard that is too short", S(pages, 332), false },
		{ "a shard that is too long", S(pages, 1000), false },
		{ "a shard that overflows", S(pages, UINT64_MAX), false },
		{ "another place in the memfd", U(memfd_offset, 4096), false },
		{ "another memfd", U(memfd_ino, 7), false },
		{ "another client", U(pid, 7), false },
		{ "a client that began at another time", U(pid_start, 7), false },
		{ "another user's", U(uid, 7), false },
		{ "another kind", U(kind, FM_KIND_VM), false },
		{ "another userfaultfd", UNSEALED_SHARD, offsetof(struct fm_shard_shm, client_uffd), 7, 4, false },
		{ "another checksum", U(sum, 7), false },
		{ "an empty file", CUT, 0, 0, 0, true },
		{ "a file of one byte", CUT, 1, 0, 0, false },
		{ "a file of half a header", CUT, 256, 0, 0, false },
		{ "a file of the header", CUT, sizeof(struct fm_region_hdr), 0, 0, false },
		{ "a file without words", CUT, 8192, 0, 0, false },
		{ "a file one page too long", SIZE, 4096, 0, 0, false },
		{ "a file one byte too short", SIZE, (size_t)-1, 0, 0, false },
#undef H
#undef S
#undef U
	};
	const char *const name = "region-0000000000000021.state";

	for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
		struct fm_region_map w = make_region(0x21, 1000, 3), r = { .fd = -1 };
		char *base = t[i].where == HDR || t[i].where == UNSEALED ? (char *)w.hdr : (char *)&w.shards[1];
		const char *why = "";
		int err = 0;

		if (t[i].where == CUT)
			err = ftruncate(w.fd, (off_t)t[i].offset);
		else if (t[i].where == SIZE)
			err = ftruncate(w.fd, (off_t)(w.file_size + t[i].offset));
		else
			memcpy(base + t[i].offset, &t[i].value, t[i].width);
		if (err)
			abort();
		/* What has a check of its own must not be found by the checksum alone. */
		if (t[i].where == SHARD || (t[i].where == HDR && w.hdr->nshards == 3 && w.hdr->shards_offset == 4096))
			w.hdr->sum = fm_shmfile_region_sum(w.hdr);
		fm_shmfile_region_unmap(&w);
		err = fm_shmfile_region_map(dirfd_, name, 0, &r, &why);
		ok(err == (t[i].unfinished ? -ENODATA : -EPROTO) && *why && !r.hdr, "refused: %s (%s)", t[i].what, why);
		fm_shmfile_region_unmap(&r);
	}

	struct fm_region_map w = make_region(0x21, 1000, 3), r = { .fd = -1 };
	const char *why = "";

	memset(w.hdr->name, 'a', sizeof w.hdr->name);
	w.hdr->sum = fm_shmfile_region_sum(w.hdr);
	ok(fm_shmfile_region_map(dirfd_, name, 0, &r, &why) == -EPROTO, "refused: a name without its NUL (%s)", why);
	fm_shmfile_region_unmap(&w);
	unlinkat(dirfd_, name, 0);

	ok(fm_shmfile_region_map(dirfd_, name, 0, &r, &why) == -ENOENT, "no file: -ENOENT");
	mkfifoat(dirfd_, name, 0600);
	ok(fm_shmfile_region_map(dirfd_, name, 0, &r, &why) == -EPROTO, "a FIFO is refused, without blocking (%s)", why);
	unlinkat(dirfd_, name, 0);
	if (symlinkat("region-0000000000000011.state", dirfd_, name) == 0)
		ok(fm_shmfile_region_map(dirfd_, name, 0, &r, &why) == -ELOOP, "a symbolic link is not followed");
	unlinkat(dirfd_, name, 0);
}

static void test_daemon(void)
{
	struct fm_daemon_shm d;
	struct fm_daemon_map m = { .fd = -1 };
	const char *why = "";
	int fd;

	ok(fm_shmfile_daemon_map(dirfd_, 0, &m, &why) == -ENOENT, "no daemon.state: -ENOENT");
	memset(&d, 0, sizeof d);
	d.magic = FM_MAGIC_DAEMON;
	d.version = FM_SHM_VERSION;
	d.pid = 1234;
	strcpy(d.store_uri, "dir:/x");
	fd = openat(dirfd_, FM_DAEMON_STATE, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || pwrite(fd, &d, sizeof d - 8, 0) < 0)
		abort();
	ok(fm_shmfile_daemon_map(dirfd_, 0, &m, &why) == -EPROTO, "cut short: %s", why);
	d.magic = 0;
	if (pwrite(fd, &d, sizeof d, 0) != sizeof d)
		abort();
	ok(fm_shmfile_daemon_map(dirfd_, 0, &m, &why) == -ENODATA, "no magic: %s", why);
	d.magic = FM_MAGIC_DAEMON;
	if (pwrite(fd, &d, sizeof d, 0) != sizeof d)
		abort();
	ok(fm_shmfile_daemon_map(dirfd_, 0, &m, &why) == 0 && m.shm->pid == 1234, "good");
	fm_shmfile_daemon_unmap(&m);
	fm_shmfile_daemon_unmap(&m);
	d.version = 9;
	if (pwrite(fd, &d, sizeof d, 0) < 0)
		abort();
	ok(fm_shmfile_daemon_map(dirfd_, 0, &m, &why) == -EPROTO, "another version: %s", why);
	d.version = FM_SHM_VERSION;
	memset(d.store_uri, 'x', sizeof d.store_uri);
	if (pwrite(fd, &d, sizeof d, 0) < 0)
		abort();
	ok(fm_shmfile_daemon_map(dirfd_, 0, &m, &why) == -EPROTO, "endless URI: %s", why);
	close(fd);
}

static void test_alive(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int32_t pid = 0;
	int ready[2];
	pid_t child;
	char c;

	ok(fm_shmfile_daemon_alive(dirfd_, &pid) == 0, "no lock file: no daemon");
	if (pipe(ready))
		abort();
	child = fork();
	if (child == 0) {
		int fd = openat(dirfd_, FM_DAEMON_LOCK, O_RDWR | O_CREAT, 0600);

		if (fcntl(fd, F_SETLK, &lock) == 0 && write(ready[1], "", 1) == 1)
			pause();
		_exit(1);
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		abort();
	ok(fm_shmfile_daemon_alive(dirfd_, &pid) == 1 && pid == child, "the lock is held: its pid");
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	ok(fm_shmfile_daemon_alive(dirfd_, &pid) == 0, "the lock dies with its holder");
	close(ready[0]);
}

static void test_list(void)
{
	struct fm_region_map m;
	uint64_t *ids = NULL;
	size_t n = 99;
	int fds[2];

	for (unsigned i = 40; i > 0; i--) {
		m = make_region(i << 8, 1, 1);
		fm_shmfile_region_unmap(&m);
	}
	ok(fm_shmfile_list(dirfd_, &ids, &n) == 0 && n == 41, "regions are found, and no other file");
	ok(n == 41 && ids[0] == 0x11 && ids[1] == 1 << 8 && ids[40] == 40 << 8, "in order of their ids");
	free(ids);
	ok(fm_shmfile_list(dirfd_, &ids, &n) == 0 && n == 41, "again: the descriptor's position does not matter");
	free(ids);
	if (pipe(fds))
		abort();
	ok(fm_shmfile_list(fds[0], &ids, &n) == -ENOTDIR, "not a directory");
}

int main(void)
{
	char cmd[64];

	if (!mkdtemp(dir) || (dirfd_ = open(dir, O_RDONLY | O_DIRECTORY)) < 0)
		return 1;
	test_layout();
	test_names();
	test_good();
	test_damaged();
	test_daemon();
	test_alive();
	test_list();
	snprintf(cmd, sizeof cmd, "rm -r '%s'", dir);
	if (system(cmd))
		return 1;
	return tap_done();
}
