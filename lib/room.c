#include "room.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#define TEXT 16384

/* Read a file whole, NUL-terminated. Returns its length, 0 for an empty or missing one. */
static size_t slurp(const char *path, char *buf, size_t cap)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t n = 0;
	ssize_t r;

	while (fd >= 0 && n < cap - 1 && ((r = read(fd, buf + n, cap - 1 - n)) > 0 || (r < 0 && errno == EINTR)))
		n += r > 0 ? (size_t)r : 0;
	if (fd >= 0)
		close(fd);
	buf[n] = '\0';
	return n;
}

/* The line of a text that begins with key; NULL: none. *len: without its newline and what lies behind. */
static const char *find_line(const char *buf, size_t len, const char *key, size_t *line_len)
{
	const char *at = buf, *end = buf + len;
	size_t k = strlen(key);

	while (at < end) {
		const char *nl = memchr(at, '\n', (size_t)(end - at));
		size_t n = nl ? (size_t)(nl - at) : (size_t)(end - at);

		if (n >= k && memcmp(at, key, k) == 0) {
			*line_len = n;
			return at;
		}
		if (!nl)
			break;
		at = nl + 1;
	}
	return NULL;
}

/* A decimal number after blanks. Returns 0 or -EPROTO. */
static int number(const char *s, size_t len, uint64_t *v)
{
	size_t i = 0, first;

	while (i < len && s[i] == ' ')
		i++;
	for (first = i, *v = 0; i < len && s[i] >= '0' && s[i] <= '9'; i++) {
		if (*v > (UINT64_MAX - 9) / 10)
			return -EPROTO;
		*v = *v * 10 + (uint64_t)(s[i] - '0');
	}
	return i > first ? 0 : -EPROTO;
}

int fm_room_parse_meminfo(const char *buf, size_t len, uint64_t *bytes)
{
	static const char key[] = "MemAvailable:";
	size_t n;
	const char *line = find_line(buf, len, key, &n);
	uint64_t kib;

	if (!line || number(line + sizeof key - 1, n - (sizeof key - 1), &kib) || kib > UINT64_MAX / 1024)
		return -EPROTO;
	*bytes = kib * 1024;
	return 0;
}

uint64_t fm_room_parse_stat(const char *buf, size_t len, const char *name)
{
	size_t k = strlen(name), n;
	const char *line;
	uint64_t v;

	for (const char *at = buf; (line = find_line(at, len - (size_t)(at - buf), name, &n)); at = line + n)
		if (n > k && line[k] == ' ' && number(line + k, n - k, &v) == 0)
			return v;
	return 0;
}

/* Is "memory" one of the names, separated by commas? */
static int has_memory(const char *names, size_t len)
{
	static const char memory[] = "memory";

	while (len >= sizeof memory - 1) {
		const char *comma = memchr(names, ',', len);
		size_t n = comma ? (size_t)(comma - names) : len;

		if (n == sizeof memory - 1 && memcmp(names, memory, n) == 0)
			return 1;
		if (!comma)
			break;
		names = comma + 1;
		len -= n + 1;
	}
	return 0;
}

int fm_room_parse_cgroup(const char *buf, size_t len, char *path, int *v1)
{
	int found = 0;

	*v1 = 0;
	for (size_t at = 0, n; at < len && !*v1; at += n + 1) {
		const char *line = buf + at, *nl = memchr(line, '\n', len - at), *names, *where;

		n = nl ? (size_t)(nl - line) : len - at;
		names = memchr(line, ':', n);
		where = names ? memchr(names + 1, ':', n - (size_t)(names + 1 - line)) : NULL;
		if (!where || (where != names + 1 && !has_memory(names + 1, (size_t)(where - names - 1))))
			continue;
		*v1 = where != names + 1;
		memcpy(path, where + 1, n - (size_t)(where + 1 - line));
		path[n - (size_t)(where + 1 - line)] = '\0';
		found = 1;
	}
	return found && *path == '/' && !strstr(path, "/..") ? 0 : -ENOENT;
}

static void bound(struct fm_room *out, uint64_t room, uint64_t bytes, const char *where)
{
	if (bytes <= room || bytes - room <= out->missing)
		return;
	out->missing = bytes - room;
	snprintf(out->where, sizeof out->where, "%s", where);
}

/* A number from a file of a cgroup; UINT64_MAX: no bound ("max"), or not there. */
static uint64_t cgroup_number(const char *folder, const char *file)
{
	char path[4096], buf[64];
	uint64_t v;
	size_t n;

	if (snprintf(path, sizeof path, "%s/%s", folder, file) >= (int)sizeof path)
		return UINT64_MAX;
	n = slurp(path, buf, sizeof buf);
	return number(buf, n, &v) ? UINT64_MAX : v;
}

/* Memory that one cgroup could still take, bytes: free, or page cache. */
static uint64_t cgroup_room(const char *folder, int v1)
{
	uint64_t max = cgroup_number(folder, v1 ? "memory.limit_in_bytes" : "memory.max");
	uint64_t used = cgroup_number(folder, v1 ? "memory.usage_in_bytes" : "memory.current"), cache;
	char path[4096], stat[TEXT];
	size_t n;

	/* Version 1 says "none" by a number that no machine has. */
	if (max >= (1ull << 62) || used == UINT64_MAX)
		return UINT64_MAX;
	snprintf(path, sizeof path, "%.4000s/memory.stat", folder);
	n = slurp(path, stat, sizeof stat);
	/* Those lists hold files on disks, not tmpfs. */
	cache = fm_room_parse_stat(stat, n, v1 ? "total_inactive_file" : "inactive_file") +
		fm_room_parse_stat(stat, n, v1 ? "total_active_file" : "active_file");
	used = used > cache ? used - cache : 0;
	return max > used ? max - used : 0;
}

static void check_cgroups(int pid, uint64_t bytes, struct fm_room *out)
{
	char name[64], text[TEXT], path[TEXT], folder[TEXT + 32], where[FM_ROOM_WHERE];
	int v1;
	size_t n;

	snprintf(name, sizeof name, "/proc/%d/cgroup", pid);
	n = slurp(name, text, sizeof text);
	if (fm_room_parse_cgroup(text, n, path, &v1))
		return;
	/* It, and each one above it. */
	for (char *slash; (slash = strrchr(path, '/')); *slash = '\0') {
		snprintf(folder, sizeof folder, "/sys/fs/cgroup%s%s", v1 ? "/memory" : "", path);
		snprintf(where, sizeof where, "the memory limit of cgroup %.100s", path[1] ? path : "/");
		bound(out, cgroup_room(folder, v1), bytes, where);
	}
}

void fm_room_check(int pid, int memfd, uint64_t bytes, struct fm_room *out)
{
	char text[TEXT];
	struct statfs fs;
	uint64_t room;
	size_t n;

	*out = (struct fm_room){0};
	if (bytes == 0)
		return;
	n = slurp("/proc/meminfo", text, sizeof text);
	if (fm_room_parse_meminfo(text, n, &room) == 0)
		bound(out, room > FM_ROOM_RESERVE ? room - FM_ROOM_RESERVE : 0, bytes, "this host's available memory");
	/* A memfd lies on a tmpfs without a size. */
	if (fstatfs(memfd, &fs) == 0 && fs.f_blocks)
		bound(out, (uint64_t)fs.f_bfree * (uint64_t)fs.f_bsize, bytes, "the tmpfs that its memory is a file of");
	check_cgroups(pid, bytes, out);
}
