#include "memblock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Decimal digits at *p, before end: the number, *p moved behind it. -EINVAL without digits or above a block number's range. */
static int take_number(const char **p, const char *end, unsigned *n)
{
	const char *start = *p;
	uint64_t v = 0;

	for (; *p < end && **p >= '0' && **p <= '9'; ++*p) {
		v = v * 10 + (uint64_t)(**p - '0');
		if (v > INT32_MAX)
			return -EINVAL;
	}
	if (*p == start)
		return -EINVAL;
	*n = (unsigned)v;
	return 0;
}

static void skip_prefix(const char **p, const char *end)
{
	static const char prefix[] = "memory";

	if ((size_t)(end - *p) >= sizeof prefix - 1 && memcmp(*p, prefix, sizeof prefix - 1) == 0)
		*p += sizeof prefix - 1;
}

int fm_memblock_number(const char *text, size_t length, unsigned *block)
{
	const char *p = text, *end = text + length;
	unsigned n;

	skip_prefix(&p, end);
	if (p == text || take_number(&p, end, &n) != 0 || p != end)
		return -EINVAL;
	*block = n;
	return 0;
}

int fm_memblock_parse_list(const char *text, size_t length, struct fm_memblock_range *ranges, size_t max)
{
	const char *p = text, *end = text + length;
	size_t n = 0;

	for (;;) {
		struct fm_memblock_range r;

		skip_prefix(&p, end);
		if (take_number(&p, end, &r.first) != 0)
			return -EINVAL;
		r.last = r.first;
		if (p < end && *p == '-') {
			p++;
			skip_prefix(&p, end);
			if (take_number(&p, end, &r.last) != 0)
				return -EINVAL;
		}
		if (r.last < r.first)
			return -EINVAL;
		if (n == max)
			return -E2BIG;
		ranges[n++] = r;
		if (p == end)
			return (int)n;
		if (*p++ != ',')
			return -EINVAL;
	}
}

int fm_memblock_state(const struct fm_memblock_ops *ops, unsigned block, enum fm_memblock_state *state)
{
	char text[FM_MEMBLOCK_TEXT];
	int err = ops->read(ops->ctx, block, "state", text);

	if (err)
		return err;
	*state = strcmp(text, "online") == 0    ? FM_MEMBLOCK_ONLINE
		 : strcmp(text, "offline") == 0 ? FM_MEMBLOCK_OFFLINE
						: FM_MEMBLOCK_OTHER;
	return 0;
}

/* Errors that another zone would not cure. */
static int is_final(int err)
{
	return err == -EACCES || err == -EPERM || err == -EROFS || err == -ENOENT;
}

int fm_memblock_online(const struct fm_memblock_ops *ops, unsigned block, enum fm_memblock_zone *zone)
{
	static const struct {
		enum fm_memblock_zone zone;
		const char *text;
	} tries[] = { { FM_MEMBLOCK_MOVABLE, "online_movable" }, { FM_MEMBLOCK_KERNEL, "online_kernel" } };
	enum fm_memblock_state state;
	int err, first = 0;

	err = fm_memblock_state(ops, block, &state);
	if (err)
		return err;
	if (state != FM_MEMBLOCK_OFFLINE)
		return state == FM_MEMBLOCK_ONLINE ? 1 : -EBUSY;
	for (size_t i = 0; i < 2; i++) {
		if (!(*zone & tries[i].zone))
			continue;
		err = ops->write(ops->ctx, block, "state", tries[i].text);
		if (err == 0) {
			*zone = tries[i].zone;
			return 0;
		}
		/* Refused because somebody else was faster: the kernel itself, or a udev rule. */
		if (fm_memblock_state(ops, block, &state) == 0 && state == FM_MEMBLOCK_ONLINE)
			return 1;
		if (!first)
			first = err;
		if (is_final(err))
			break;
	}
	return first;
}

int fm_memblock_offline(const struct fm_memblock_ops *ops, unsigned block)
{
	enum fm_memblock_state state;
	int err = fm_memblock_state(ops, block, &state);

	if (err)
		return err;
	if (state == FM_MEMBLOCK_OFFLINE)
		return 1;
	return ops->write(ops->ctx, block, "state", "offline");
}

int fm_memblock_sysfs_open(const char *root, struct fm_memblock_sysfs *fs)
{
	int root_fd, system_fd, err = 0;

	root_fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root_fd < 0)
		return errno == ENOENT ? -ENOTDIR : -errno;
	/* Without this it is an empty mount point. */
	system_fd = openat(root_fd, "devices/system", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (system_fd < 0) {
		err = errno == ENOENT ? -ENOTDIR : -errno;
		close(root_fd);
		return err;
	}
	fs->dirfd = openat(system_fd, "memory", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fs->dirfd < 0)
		err = -errno;
	close(system_fd);
	close(root_fd);
	return err;
}

void fm_memblock_sysfs_close(struct fm_memblock_sysfs *fs)
{
	if (fs->dirfd >= 0)
		close(fs->dirfd);
	fs->dirfd = -1;
}

/* The first line of a file below dirfd. */
static int read_line(int dirfd, const char *path, char text[FM_MEMBLOCK_TEXT])
{
	ssize_t n;
	int err = 0, fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	n = read(fd, text, FM_MEMBLOCK_TEXT - 1);
	if (n < 0)
		err = -errno;
	close(fd);
	if (err)
		return err;
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return 0;
}

static void attr_path(unsigned block, const char *attr, char path[64])
{
	snprintf(path, 64, "memory%u/%s", block, attr);
}

static int sysfs_read(void *ctx, unsigned block, const char *attr, char text[FM_MEMBLOCK_TEXT])
{
	const struct fm_memblock_sysfs *fs = ctx;
	char path[64];

	attr_path(block, attr, path);
	return read_line(fs->dirfd, path, text);
}

static int sysfs_write(void *ctx, unsigned block, const char *attr, const char *text)
{
	const struct fm_memblock_sysfs *fs = ctx;
	char path[64];
	int fd, err = 0;

	attr_path(block, attr, path);
	fd = openat(fs->dirfd, path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		err = -errno;
	close(fd);
	return err;
}

struct fm_memblock_ops fm_memblock_sysfs_ops(struct fm_memblock_sysfs *fs)
{
	return (struct fm_memblock_ops){ .ctx = fs, .read = sysfs_read, .write = sysfs_write };
}

int fm_memblock_sysfs_block_bytes(const struct fm_memblock_sysfs *fs, uint64_t *bytes)
{
	char text[FM_MEMBLOCK_TEXT], *end;
	int err = read_line(fs->dirfd, "block_size_bytes", text);
	unsigned long long v;

	if (err)
		return err;
	v = strtoull(text, &end, 16);
	if (end == text || *end || !v)
		return -EINVAL;
	*bytes = v;
	return 0;
}

static int by_number(const void *a, const void *b)
{
	const unsigned *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

int fm_memblock_sysfs_list(const struct fm_memblock_sysfs *fs, unsigned **blocks, size_t *count)
{
	unsigned *list = NULL, block;
	size_t n = 0, room = 0;
	struct dirent *e;
	int err, fd;
	DIR *dir;

	fd = openat(fs->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		err = -errno;
		close(fd);
		return err;
	}
	for (errno = 0; (e = readdir(dir)); errno = 0) {
		if (fm_memblock_number(e->d_name, strlen(e->d_name), &block) != 0)
			continue;
		if (n == room) {
			size_t more = room ? 2 * room : 64;
			unsigned *p = realloc(list, more * sizeof *p);

			if (!p)
				break; /* errno says ENOMEM */
			list = p;
			room = more;
		}
		list[n++] = block;
	}
	err = -errno;
	closedir(dir);
	if (err) {
		free(list);
		return err;
	}
	if (n)
		qsort(list, n, sizeof *list, by_number);
	*blocks = list;
	*count = n;
	return 0;
}
