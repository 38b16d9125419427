#include "room.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <fcntl.h>
#include <unistd.h>

#include "tap.h"

#define TEXT(s) (s), sizeof(s) - 1

static void meminfo(void)
{
	uint64_t v = 7;

	is_u64(fm_room_parse_meminfo(TEXT("MemTotal:  100 kB\nMemAvailable:   12345 kB\nBuffers: 1 kB\n"), &v), 0, "meminfo");
	is_u64(v, 12345 * 1024, "... in bytes");
	is_u64(fm_room_parse_meminfo(TEXT("MemAvailable: 0 kB"), &v), 0, "nothing, in the last line");
	is_u64(v, 0, "... is 0");
	is_u64(fm_room_parse_meminfo(TEXT("MemTotal: 100 kB\n"), &v), -EPROTO, "not there");
	is_u64(fm_room_parse_meminfo(TEXT("MemAvailable: much\n"), &v), -EPROTO, "no number");
	is_u64(fm_room_parse_meminfo(TEXT("MemAvailable: 99999999999999999999999 kB\n"), &v), -EPROTO, "too large");
	is_u64(fm_room_parse_meminfo(TEXT(""), &v), -EPROTO, "empty");
}

static const struct {
	const char *text, *path;
	int v1, error;
} cgroups[] = {
    {"0::/user.slice/a\n", "/user.slice/a", 0, 0},
    {"0::/\n", "/", 0, 0},
    {"5:cpu:/c\n4:memory:/m\n0::/u\n", "/m", 1, 0},
    {"5:cpu,memory:/cm\n", "/cm", 1, 0},
    {"5:memory,cpu:/mc", "/mc", 1, 0},
    {"5:cpu:/c\n0::/u\n", "/u", 0, 0},
    {"4:hugememory:/m\n0::/u\n", "/u", 0, 0},
    {"1:name=systemd:/x\n", NULL, 0, -ENOENT},
    {"0::/../other\n", NULL, 0, -ENOENT},
    {"0::a\n", NULL, 0, -ENOENT},
    {"garbage\n", NULL, 0, -ENOENT},
    {"", NULL, 0, -ENOENT},
};

static void cgroup_texts(void)
{
	char path[256];
	int v1, e;

	for (unsigned i = 0; i < sizeof cgroups / sizeof *cgroups; i++) {
		e = fm_room_parse_cgroup(cgroups[i].text, strlen(cgroups[i].text), path, &v1);
		is_u64(e, cgroups[i].error, "cgroups %u", i);
		if (e == 0) {
			is_str(path, cgroups[i].path, "... its path");
			is_u64(v1, cgroups[i].v1, "... its version");
		}
	}
	is_u64(fm_room_parse_stat(TEXT("inactive_file_x 3\ninactive_file 17\nactive_file 4\n"), "inactive_file"), 17, "memory.stat");
	is_u64(fm_room_parse_stat(TEXT("active_file 4"), "inactive_file"), 0, "not in it");
	is_u64(fm_room_parse_stat(TEXT(""), "x"), 0, "empty");
}

static void here(void)
{
	int fd = memfd_create("room", MFD_CLOEXEC);
	struct fm_room r;

	fm_room_check(getpid(), fd, 4096, &r);
	is_u64(r.missing, 0, "a page has room");
	is_str(r.where, "", "... everywhere");
	fm_room_check(getpid(), fd, 0, &r);
	is_u64(r.missing, 0, "nothing has room");
	fm_room_check(getpid(), fd, 1ull << 50, &r);
	ok(r.missing > 1ull << 49 && r.missing < 1ull << 50, "a petabyte has none: %" PRIu64 " bytes are missing in %s", r.missing, r.where);
	close(fd);
}

/* A tmpfs of one MiB. */
static void on_tmpfs(void)
{
	char dir[] = "/tmp/fm-room.XXXXXX", path[64];
	struct fm_room r;
	int fd;

	if (!mkdtemp(dir) || mount("none", dir, "tmpfs", 0, "size=1M") < 0) {
		tap_skip("a tmpfs with a size", "may not be mounted here");
		rmdir(dir);
		return;
	}
	snprintf(path, sizeof path, "%s/f", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	fm_room_check(getpid(), fd, 1 << 20, &r);
	is_u64(r.missing, 0, "a tmpfs of 1 MiB has room for 1 MiB");
	fm_room_check(getpid(), fd, (1 << 20) + 4096, &r);
	is_u64(r.missing, 4096, "... and for a page less than a page more");
	is_str(r.where, "the tmpfs that its memory is a file of", "... says so");
	close(fd);
	umount(dir);
	rmdir(dir);
}

int main(void)
{
	meminfo();
	cgroup_texts();
	here();
	on_tmpfs();
	return tap_done();
}
