/*
 * The files of a run directory: their layout, and opening them without trusting a byte of them.
 *
 * A reader checks a file's size before it maps it, and reads within that size only: the daemons never shrink a file, they
 * unlink it, so a mapping stays valid. The page words of a big region are a sparse file, and on tmpfs reading a hole through
 * a mapping allocates it: they are mapped only when asked for.
 */
#ifndef FM_SHMFILE_H
#define FM_SHMFILE_H

#include <stddef.h>

#include "page.h"
#include "shm.h"

#define FM_DAEMON_STATE "daemon.state"
#define FM_DAEMON_LOCK  "daemon.lock"
#define FM_REGION_FILE_MAX 32           /* bytes of a region file's name with its NUL */
#define FM_REGION_PAGES_MAX 0xfffffffeu /* pages of one region: 2^32 - 2 */

/* How to map a file; 0: for reading, without the page words. */
enum fm_shmfile_flag {
	FM_SHMFILE_WRITE = 1 << 0, /* read and write */
	FM_SHMFILE_WORDS = 1 << 1, /* the page words too */
};

/* A region's file, mapped. pages and nshards were checked; use them, not the header's, which others may write. */
struct fm_region_map {
	struct fm_region_hdr *hdr;
	struct fm_shard_shm *shards;
	fm_word *words; /* NULL without FM_SHMFILE_WORDS */
	uint64_t pages;
	unsigned nshards;
	uint64_t file_size; /* bytes */
	size_t map_bytes;   /* mapped at hdr */
	int fd;             /* of the file */
};

/* daemon.state, mapped. */
struct fm_daemon_map {
	struct fm_daemon_shm *shm;
	int fd;
};

/*
 * Where things lie in a region's file: header, up to 4096; nshards struct fm_shard_shm, up to 4096; a word a page, up to 4096.
 * pages: 1..FM_REGION_PAGES_MAX. nshards: 1..FM_MAX_SHARDS. Byte offsets and the file's size are set. Returns 0, or -EINVAL
 * for numbers out of range (nothing is set). Pure; any thread.
 */
int fm_shmfile_layout(uint64_t pages, unsigned nshards, uint64_t *shards_offset, uint64_t *words_offset, uint64_t *file_size);

/* The name of a region's file, `region-<16 hex digits>.state`, into buf. Returns buf. Any thread. */
char *fm_shmfile_region_name(uint64_t id, char buf[FM_REGION_FILE_MAX]);

/* The id in a region file's name. Returns true and *id, or false when name is not one. Pure; any thread. */
bool fm_shmfile_region_id(const char *name, uint64_t *id);

/*
 * The checksum of all that never changes in a region's file: the header from version to vm_id, and of each shard the range and the userfaultfd's number. head:
 * the file's beginning, up to the page words, at any alignment, nshards and shards_offset checked. XXH3, against damage, not against malice. Pure; any thread.
 */
uint64_t fm_shmfile_region_sum(const void *head);

/*
 * Check the beginning of a region's file. head: its first length bytes, at any alignment; file_size: of the whole file, which
 * may be longer. Magic, version, sizes and offsets, name and vm_id (NUL-terminated, printable ASCII) are checked, that the
 * shards' ranges tile the region, and the checksum. Returns NULL when it is good, else a static
 * string that says what is wrong. Pure; any thread.
 */
const char *fm_shmfile_region_check(const void *head, size_t length, uint64_t file_size);

/*
 * Open, check and map a region's file. dirfd: the run directory. name: in it; when it has the form of a region file's name,
 * its id must be the header's. flags: of enum fm_shmfile_flag. out: set on success; the caller unmaps it. why: NULL, or set to a
 * static string for -EPROTO. Returns 0; -ENOENT, -EACCES ... (open); -ENODATA (being made, or its maker died: no magic yet);
 * -EPROTO (not a region's file, or a damaged one); -ENOMEM.
 * Never blocks. Any thread.
 */
int fm_shmfile_region_map(int dirfd, const char *name, unsigned flags, struct fm_region_map *out, const char **why);

/*
 * As fm_shmfile_region_map(), of an open descriptor of the file, whose name may be gone. On success fd becomes the map's; on
 * failure it stays the caller's.
 */
int fm_shmfile_region_map_fd(int fd, unsigned flags, struct fm_region_map *out, const char **why);

/* Unmap and close. Does nothing for a zeroed or already unmapped one. */
void fm_shmfile_region_unmap(struct fm_region_map *map);

/*
 * Open, check and map daemon.state of the run directory dirfd. flags: FM_SHMFILE_WRITE or 0. As fm_shmfile_region_map() else.
 */
int fm_shmfile_daemon_map(int dirfd, unsigned flags, struct fm_daemon_map *out, const char **why);

/* Unmap and close. Does nothing for a zeroed or already unmapped one. */
void fm_shmfile_daemon_unmap(struct fm_daemon_map *map);

/*
 * The regions whose files are in the run directory dirfd: their ids in ascending order. The caller frees *ids (NULL for none).
 * Returns 0, -ENOMEM, or -errno of reading the directory. Any thread.
 */
int fm_shmfile_list(int dirfd, uint64_t **ids, size_t *count);

/*
 * Does an fm-faultd run on the run directory dirfd, which is: hold the lock on daemon.lock? Returns 1 and *pid (when pid is not
 * NULL; 0 when it is in a pid namespace that cannot be seen), 0 when none runs, or -errno (-EACCES). Not to be called by the
 * process that holds the lock: closing any descriptor of the file drops it (fcntl(2)). Any thread else.
 */
int fm_shmfile_daemon_alive(int dirfd, int32_t *pid);

#endif
