/*
 * Is there room on this host for memory that comes home? What fills it is charged to its client: the host's free memory, the tmpfs that
 * it is a file of, and the memory cgroups of the client each set a bound. Passing the last one kills the client.
 */
#ifndef FM_ROOM_H
#define FM_ROOM_H

#include <stddef.h>
#include <stdint.h>

#define FM_ROOM_WHERE   160
#define FM_ROOM_RESERVE (64ull << 20) /* bytes of the host's available memory that are left to others */

struct fm_room {
	uint64_t missing;          /* bytes by which the tightest bound is too small; 0: there is room */
	char where[FM_ROOM_WHERE]; /* that bound, for people: "this host's available memory"; "" when there is room */
};

/*
 * Would bytes more fit, for process pid whose memory is the file memfd? What cannot be read sets no bound. Page cache counts as free, swap
 * does not. Any thread.
 */
void fm_room_check(int pid, int memfd, uint64_t bytes, struct fm_room *out);

/* MemAvailable of /proc/meminfo's text, bytes. Returns 0 or -EPROTO. Pure. */
int fm_room_parse_meminfo(const char *buf, size_t len, uint64_t *bytes);

/*
 * The memory cgroup in /proc/PID/cgroup's text: that of the memory controller (*v1 = 1), else the unified one (0). path: at least
 * len + 1 bytes. Returns 0, or -ENOENT when there is none, or one that cannot be named from here ("..."). Pure.
 */
int fm_room_parse_cgroup(const char *buf, size_t len, char *path, int *v1);

/* A number of a text of "NAME NUMBER" lines, as memory.stat. 0 when it is not there. Pure. */
uint64_t fm_room_parse_stat(const char *buf, size_t len, const char *name);

#endif
