#include "shmfile.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define REGION_PREFIX "region-"
#define REGION_SUFFIX ".state"

static uint64_t page_align(uint64_t bytes)
{
	return (bytes + FM_PAGE_SIZE - 1) & ~(uint64_t)(FM_PAGE_SIZE - 1);
}

int fm_shmfile_layout(uint64_t pages, unsigned nshards, uint64_t *shards_offset, uint64_t *words_offset, uint64_t *file_size)
{
	if (pages < 1 || pages > FM_REGION_PAGES_MAX || nshards < 1 || nshards > FM_MAX_SHARDS)
		return -EINVAL;
	*shards_offset = page_align(sizeof(struct fm_region_hdr));
	*words_offset = page_align(*shards_offset + nshards * sizeof(struct fm_shard_shm));
	*file_size = page_align(*words_offset + pages * sizeof(fm_word));
	return 0;
}

char *fm_shmfile_region_name(uint64_t id, char buf[FM_REGION_FILE_MAX])
{
	snprintf(buf, FM_REGION_FILE_MAX, REGION_PREFIX "%016llx" REGION_SUFFIX, (unsigned long long)id);
	return buf;
}

bool fm_shmfile_region_id(const char *name, uint64_t *id)
{
	uint64_t v = 0;

	if (strncmp(name, REGION_PREFIX, sizeof REGION_PREFIX - 1) != 0)
		return false;
	name += sizeof REGION_PREFIX - 1;
	for (int i = 0; i < 16; i++, name++) {
		if (*name >= '0' && *name <= '9')
			v = v << 4 | (uint64_t)(*name - '0');
		else if (*name >= 'a' && *name <= 'f')
			v = v << 4 | (uint64_t)(*name - 'a' + 10);
		else
			return false;
	}
	if (strcmp(name, REGION_SUFFIX) != 0)
		return false;
	*id = v;
	return true;
}

/* Is text NUL-terminated within cap bytes, and printable ASCII? */
static bool is_text(const char *text, size_t cap)
{
	size_t n = strnlen(text, cap);

	if (n == cap)
		return false;
	for (size_t i = 0; i < n; i++)
		if (text[i] < 0x20 || text[i] > 0x7e)
			return false;
	return true;
}

/* Do the ranges of the shards at p, struct fm_shard_shm each, tile [0, pages)? */
static const char *check_tiling(const unsigned char *p, unsigned nshards, uint64_t pages)
{
	uint64_t end = 0;

	for (unsigned i = 0; i < nshards; i++, p += sizeof(struct fm_shard_shm)) {
		uint64_t first, n;

		memcpy(&first, p + offsetof(struct fm_shard_shm, first_page), sizeof first);
		memcpy(&n, p + offsetof(struct fm_shard_shm, pages), sizeof n);
		if (first > pages || n > pages - first)
			return "a shard lies outside the region";
		if (first != end)
			return "the shards do not tile the region";
		end = first + n;
	}
	return end == pages ? NULL : "the shards do not tile the region";
}

#define SUM_FROM offsetof(struct fm_region_hdr, version)
#define SUM_END  offsetof(struct fm_region_hdr, limit_pages)

uint64_t fm_shmfile_region_sum(const void *head)
{
	const unsigned char *p = head;
	uint64_t shards_offset, sum = XXH3_64bits(p + SUM_FROM, SUM_END - SUM_FROM);
	uint32_t nshards;

	memcpy(&nshards, p + offsetof(struct fm_region_hdr, nshards), sizeof nshards);
	memcpy(&shards_offset, p + offsetof(struct fm_region_hdr, shards_offset), sizeof shards_offset);
	p += shards_offset;
	for (unsigned i = 0; i < nshards; i++, p += sizeof(struct fm_shard_shm)) {
		sum = XXH3_64bits_withSeed(p, offsetof(struct fm_shard_shm, hva), sum);
		sum = XXH3_64bits_withSeed(p + offsetof(struct fm_shard_shm, client_uffd), sizeof(int32_t), sum);
	}
	return sum;
}

const char *fm_shmfile_region_check(const void *head, size_t length, uint64_t file_size)
{
	struct fm_region_hdr h;
	uint64_t shards_offset, words_offset, want_size;
	const char *why;

	if (length < sizeof h || file_size < sizeof h)
		return "shorter than its header";
	memcpy(&h, head, sizeof h);
	if (h.magic != FM_MAGIC_REGION)
		return "no region's file (bad magic)";
	if (h.version != FM_SHM_VERSION)
		return "made by another version of fm";
	if (fm_shmfile_layout(h.pages, h.nshards, &shards_offset, &words_offset, &want_size) != 0)
		return "number of pages or shards out of range";
	if (h.shards_offset != shards_offset || h.words_offset != words_offset)
		return "wrong offsets";
	if (file_size != want_size)
		return "wrong file size";
	if (length < words_offset)
		return "cut short";
	if (!is_text(h.name, sizeof h.name) || !is_text(h.vm_id, sizeof h.vm_id))
		return "name is not printable";
	why = check_tiling((const unsigned char *)head + shards_offset, h.nshards, h.pages);
	return !why && fm_shmfile_region_sum(head) != h.sum ? "damaged: its checksum is wrong" : why;
}

/* Open a regular file of the run directory, never blocking on a FIFO that somebody put there. Returns its fd or -errno. */
static int open_file(int dirfd, const char *name, unsigned flags, uint64_t *size)
{
	struct stat st;
	int fd, err;

	fd = openat(dirfd, name, (flags & FM_SHMFILE_WRITE ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0) {
		err = -errno;
		close(fd);
		return err;
	}
	if (!S_ISREG(st.st_mode) || st.st_size < 0) {
		close(fd);
		return -EPROTO;
	}
	*size = (uint64_t)st.st_size;
	return fd;
}

static int prot(unsigned flags)
{
	return flags & FM_SHMFILE_WRITE ? PROT_READ | PROT_WRITE : PROT_READ;
}

/* Map what comes before the page words, or all, once the header alone says that the file has that much. */
static int map_checked(struct fm_region_map *m, unsigned flags, const char **why)
{
	struct fm_region_hdr *h;
	uint64_t shards_offset, words_offset, want_size;
	unsigned nshards;
	uint64_t pages, magic;

	*why = "not finished";
	if (!m->file_size)
		return -ENODATA;
	*why = "shorter than its header";
	if (m->file_size < sizeof *h)
		return -EPROTO;
	m->map_bytes = sizeof *h;
	h = mmap(NULL, m->map_bytes, PROT_READ, MAP_SHARED, m->fd, 0);
	if (h == MAP_FAILED)
		return -errno;
	magic = h->magic;
	nshards = h->nshards;
	pages = h->pages;
	/* All that the full check needs must be in the file before it may be touched. */
	if (magic != FM_MAGIC_REGION || h->version != FM_SHM_VERSION ||
	    fm_shmfile_layout(pages, nshards, &shards_offset, &words_offset, &want_size) != 0 || m->file_size != want_size) {
		*why = fm_shmfile_region_check(h, sizeof *h, m->file_size);
		munmap(h, sizeof *h);
		if (!magic) {
			*why = "not finished";
			return -ENODATA;
		}
		if (!*why)
			*why = "changes while it is read";
		return -EPROTO;
	}
	munmap(h, sizeof *h);

	m->map_bytes = flags & FM_SHMFILE_WORDS ? want_size : words_offset;
	h = mmap(NULL, m->map_bytes, prot(flags), MAP_SHARED, m->fd, 0);
	if (h == MAP_FAILED)
		return -errno;
	m->hdr = h;
	*why = fm_shmfile_region_check(h, words_offset, m->file_size);
	if (!*why && (h->pages != pages || h->nshards != nshards))
		*why = "changes while it is read";
	if (*why)
		return -EPROTO;
	m->pages = pages;
	m->nshards = nshards;
	m->shards = (struct fm_shard_shm *)(void *)((char *)h + shards_offset);
	m->words = flags & FM_SHMFILE_WORDS ? (fm_word *)(void *)((char *)h + words_offset) : NULL;
	return 0;
}

int fm_shmfile_region_map(int dirfd, const char *name, unsigned flags, struct fm_region_map *out, const char **why)
{
	struct fm_region_map m = { .fd = -1 };
	const char *reason = "not a regular file";
	uint64_t id;
	int err;

	m.fd = err = open_file(dirfd, name, flags, &m.file_size);
	if (err >= 0)
		err = map_checked(&m, flags, &reason);
	if (err == 0 && m.hdr && fm_shmfile_region_id(name, &id) && id != m.hdr->id) {
		reason = "holds another region than its name says";
		err = -EPROTO;
	}
	if (err < 0) {
		if (why)
			*why = reason;
		fm_shmfile_region_unmap(&m);
		return err;
	}
	*out = m;
	return 0;
}

int fm_shmfile_region_map_fd(int fd, unsigned flags, struct fm_region_map *out, const char **why)
{
	struct fm_region_map m = {.fd = fd};
	const char *reason = "not a regular file";
	struct stat st;
	int err = fstat(fd, &st) < 0 ? -errno : !S_ISREG(st.st_mode) || st.st_size < 0 ? -EPROTO : 0;

	if (err == 0) {
		m.file_size = (uint64_t)st.st_size;
		err = map_checked(&m, flags, &reason);
	}
	if (err < 0) {
		if (why)
			*why = reason;
		m.fd = -1; /* stays the caller's */
		fm_shmfile_region_unmap(&m);
		return err;
	}
	*out = m;
	return 0;
}

void fm_shmfile_region_unmap(struct fm_region_map *map)
{
	if (map->hdr)
		munmap(map->hdr, map->map_bytes);
	/* A zeroed struct owns no descriptor 0. */
	if (map->fd > 0 || (map->hdr && map->fd == 0))
		close(map->fd);
	*map = (struct fm_region_map){ .fd = -1 };
}

int fm_shmfile_daemon_map(int dirfd, unsigned flags, struct fm_daemon_map *out, const char **why)
{
	const char *reason = "not a regular file";
	struct fm_daemon_map m = { .fd = -1 };
	uint64_t size = 0;
	void *p;
	int err;

	m.fd = err = open_file(dirfd, FM_DAEMON_STATE, flags, &size);
	if (err < 0)
		goto fail;
	/* Each fm-faultd writes the file anew, the magic last. */
	err = size ? -EPROTO : -ENODATA;
	reason = size ? "shorter than its header" : "not finished";
	if (size < sizeof *m.shm)
		goto fail;
	p = mmap(NULL, sizeof *m.shm, prot(flags), MAP_SHARED, m.fd, 0);
	if (p == MAP_FAILED) {
		err = -errno;
		goto fail;
	}
	m.shm = p;
	reason = NULL;
	if (!m.shm->magic) {
		reason = "not finished";
		err = -ENODATA;
	} else if (m.shm->magic != FM_MAGIC_DAEMON) {
		reason = "no daemon's file (bad magic)";
	} else if (m.shm->version != FM_SHM_VERSION) {
		reason = "made by another version of fm";
	} else if (!is_text(m.shm->store_uri, sizeof m.shm->store_uri)) {
		reason = "store URI is not printable";
	}
	if (reason)
		goto fail;
	*out = m;
	return 0;
fail:
	if (why)
		*why = reason;
	fm_shmfile_daemon_unmap(&m);
	return err;
}

void fm_shmfile_daemon_unmap(struct fm_daemon_map *map)
{
	if (map->shm)
		munmap(map->shm, sizeof *map->shm);
	if (map->fd > 0 || (map->shm && map->fd == 0))
		close(map->fd);
	*map = (struct fm_daemon_map){ .fd = -1 };
}

static int by_id(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

int fm_shmfile_list(int dirfd, uint64_t **ids, size_t *count)
{
	uint64_t *list = NULL, id;
	size_t n = 0, room = 0;
	struct dirent *e;
	DIR *dir;
	int fd, err;

	/* A descriptor of its own: a duplicate would share the reading position. */
	fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		err = -errno;
		close(fd);
		return err;
	}
	for (errno = 0; (e = readdir(dir)); errno = 0) {
		if (!fm_shmfile_region_id(e->d_name, &id))
			continue;
		if (n == room) {
			size_t more = room ? 2 * room : 16;
			uint64_t *p = realloc(list, more * sizeof *p);

			if (!p)
				break; /* errno says ENOMEM */
			list = p;
			room = more;
		}
		list[n++] = id;
	}
	err = -errno;
	closedir(dir);
	if (err) {
		free(list);
		return err;
	}
	if (n)
		qsort(list, n, sizeof *list, by_id);
	*ids = list;
	*count = n;
	return 0;
}

int fm_shmfile_daemon_alive(int dirfd, int32_t *pid)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd, err = 0;

	fd = openat(dirfd, FM_DAEMON_LOCK, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	if (fcntl(fd, F_GETLK, &lock) < 0)
		err = -errno;
	close(fd);
	if (err)
		return err;
	if (lock.l_type == F_UNLCK)
		return 0;
	if (pid)
		*pid = lock.l_pid > 0 ? lock.l_pid : 0;
	return 1;
}
