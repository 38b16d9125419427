/* lib/memblock: names and lists; bringing online with a kernel that refuses; a sysfs tree. */
#include "memblock.h"
#include "tap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A kernel of one block that answers as a test says. */
struct fake {
	const char *state;
	int movable_err, kernel_err, offline_err; /* what a write gives */
	const char *state_after_error;            /* somebody else changed it meanwhile */
	char writes[128];
};

static int fake_read(void *ctx, unsigned block, const char *attr, char text[FM_MEMBLOCK_TEXT])
{
	struct fake *f = ctx;

	if (block != 34 || strcmp(attr, "state") != 0)
		return -ENOENT;
	strcpy(text, f->state);
	return 0;
}

static int fake_write(void *ctx, unsigned block, const char *attr, const char *text)
{
	struct fake *f = ctx;
	bool movable = !strcmp(text, "online_movable"), kernel = !strcmp(text, "online_kernel");
	int err = movable ? f->movable_err : kernel ? f->kernel_err : f->offline_err;

	if (block != 34 || strcmp(attr, "state") != 0)
		return -ENOENT;
	strcat(strcat(f->writes, text), " ");
	if (err == 0)
		f->state = movable || kernel ? "online" : "offline";
	else if (f->state_after_error)
		f->state = f->state_after_error;
	return err;
}

static int online(struct fake *f, enum fm_memblock_zone *zone)
{
	struct fm_memblock_ops ops = { f, fake_read, fake_write };

	return fm_memblock_online(&ops, 34, zone);
}

static int offline(struct fake *f)
{
	struct fm_memblock_ops ops = { f, fake_read, fake_write };

	return fm_memblock_offline(&ops, 34);
}

static void test_online(void)
{
	static const struct {
		const char *what;
		struct fake f;
		enum fm_memblock_zone zone;
		int want;
		enum fm_memblock_zone want_zone;
		const char *writes;
	} t[] = {
		{ "movable first", { .state = "offline" }, FM_MEMBLOCK_ANY, 0, FM_MEMBLOCK_MOVABLE, "online_movable " },
		{ "kernel when movable is refused", { .state = "offline", .movable_err = -EINVAL }, FM_MEMBLOCK_ANY, 0,
		  FM_MEMBLOCK_KERNEL, "online_movable online_kernel " },
		{ "movable only, refused", { .state = "offline", .movable_err = -EINVAL }, FM_MEMBLOCK_MOVABLE, -EINVAL,
		  FM_MEMBLOCK_MOVABLE, "online_movable " },
		{ "kernel only", { .state = "offline" }, FM_MEMBLOCK_KERNEL, 0, FM_MEMBLOCK_KERNEL, "online_kernel " },
		{ "both refused: the first reason", { .state = "offline", .movable_err = -EBUSY, .kernel_err = -EINVAL },
		  FM_MEMBLOCK_ANY, -EBUSY, FM_MEMBLOCK_ANY, "online_movable online_kernel " },
		{ "no right: not tried twice", { .state = "offline", .movable_err = -EACCES }, FM_MEMBLOCK_ANY, -EACCES,
		  FM_MEMBLOCK_ANY, "online_movable " },
		{ "online already", { .state = "online" }, FM_MEMBLOCK_ANY, 1, FM_MEMBLOCK_ANY, "" },
		{ "the kernel onlined it meanwhile", { .state = "offline", .movable_err = -EINVAL, .state_after_error = "online" },
		  FM_MEMBLOCK_ANY, 1, FM_MEMBLOCK_ANY, "online_movable " },
		{ "going offline", { .state = "going-offline" }, FM_MEMBLOCK_ANY, -EBUSY, FM_MEMBLOCK_ANY, "" },
	};

	for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
		struct fake f = t[i].f;
		enum fm_memblock_zone zone = t[i].zone;
		int err = online(&f, &zone);

		ok(err == t[i].want && zone == t[i].want_zone && !strcmp(f.writes, t[i].writes), "online: %s", t[i].what);
	}
}

static void test_offline(void)
{
	struct fake f = { .state = "online" };
	struct fm_memblock_ops ops = { &f, fake_read, fake_write };
	enum fm_memblock_zone zone = FM_MEMBLOCK_ANY;

	ok(offline(&f) == 0 && !strcmp(f.writes, "offline "), "offline");
	ok(offline(&f) == 1 && !strcmp(f.writes, "offline "), "offline already");
	f = (struct fake){ .state = "online", .offline_err = -EBUSY };
	ok(offline(&f) == -EBUSY, "busy");
	ok(fm_memblock_offline(&ops, 35) == -ENOENT && fm_memblock_online(&ops, 35, &zone) == -ENOENT, "no such block");
}

static void test_lists(void)
{
	static const char *const bad[] = { "", ",", "34,", ",34", "34,,35", "a", "memory", "-1", "34-", "-34", "35-34", "34-35-36", "34 ",
					   " 34", "memory34x", "2147483648", "99999999999999999999", "1-99999999999", "34;35", "0x22",
					   "memorymemory3" };
	struct fm_memblock_range r[4];
	unsigned block;

	ok(fm_memblock_parse_list("memory34,memory35", 17, r, 4) == 2 && r[0].first == 34 && r[0].last == 34 && r[1].first == 35,
	   "names");
	ok(fm_memblock_parse_list("34-37", 5, r, 4) == 1 && r[0].first == 34 && r[0].last == 37, "a range");
	ok(fm_memblock_parse_list("memory3-memory7,9", 17, r, 4) == 2 && r[0].last == 7 && r[1].first == 9, "mixed");
	ok(fm_memblock_parse_list("0", 1, r, 4) == 1 && r[0].first == 0 && r[0].last == 0, "block 0");
	ok(fm_memblock_parse_list("2147483647", 10, r, 4) == 1 && r[0].last == INT32_MAX, "the greatest number");
	ok(fm_memblock_parse_list("341", 2, r, 4) == 1 && r[0].first == 34, "the length counts, not a NUL");
	ok(fm_memblock_parse_list("1,2,3,4", 7, r, 4) == 4, "as many as there is room for");
	ok(fm_memblock_parse_list("1,2,3,4,5", 9, r, 4) == -E2BIG, "too many");
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		ok(fm_memblock_parse_list(bad[i], strlen(bad[i]), r, 4) == -EINVAL, "no list: '%s'", bad[i]);
	ok(fm_memblock_number("memory0", 7, &block) == 0 && block == 0, "memory0");
	ok(fm_memblock_number("34", 2, &block) == -EINVAL, "a number alone is no block's name");
}

static void put(const char *root, const char *path, const char *text)
{
	char name[256];
	FILE *f;

	snprintf(name, sizeof name, "%s/%s", root, path);
	f = fopen(name, "w");
	if (!f || fputs(text, f) < 0 || fclose(f))
		abort();
}

static void test_sysfs(void)
{
	static const char *const dirs[] = { "devices", "devices/system", "devices/system/memory", "devices/system/memory/memory34",
					    "devices/system/memory/memory7", "devices/system/memory/power" };
	char root[] = "/tmp/fm-test-memblock-XXXXXX", cmd[64], path[256], text[FM_MEMBLOCK_TEXT];
	struct fm_memblock_sysfs fs = { .dirfd = -1 };
	struct fm_memblock_ops ops;
	enum fm_memblock_zone zone = FM_MEMBLOCK_ANY;
	unsigned *blocks = NULL;
	uint64_t bytes = 0;
	size_t n = 0;

	if (!mkdtemp(root))
		abort();
	ok(fm_memblock_sysfs_open("/no/such/dir", &fs) == -ENOTDIR, "no directory");
	ok(fm_memblock_sysfs_open(root, &fs) == -ENOTDIR, "an empty mount point");
	for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
		if (i == 2)
			ok(fm_memblock_sysfs_open(root, &fs) == -ENOENT, "a kernel without memory blocks");
		snprintf(path, sizeof path, "%s/%s", root, dirs[i]);
		if (mkdir(path, 0700))
			abort();
	}
	put(root, "devices/system/memory/block_size_bytes", "8000000\n");
	put(root, "devices/system/memory/memory34/state", "offline\n");
	ok(fm_memblock_sysfs_open(root, &fs) == 0, "open");
	ok(fm_memblock_sysfs_block_bytes(&fs, &bytes) == 0 && bytes == 128 << 20, "block size is in hex");
	ok(fm_memblock_sysfs_list(&fs, &blocks, &n) == 0 && n == 2 && blocks[0] == 7 && blocks[1] == 34, "blocks in order");
	free(blocks);
	ops = fm_memblock_sysfs_ops(&fs);
	ok(fm_memblock_online(&ops, 34, &zone) == 0 && zone == FM_MEMBLOCK_MOVABLE, "online");
	ok(ops.read(ops.ctx, 34, "state", text) == 0 && !strcmp(text, "online_movable"), "was written");
	ok(fm_memblock_online(&ops, 7, &zone) == -ENOENT, "a block without state");
	put(root, "devices/system/memory/block_size_bytes", "nonsense\n");
	ok(fm_memblock_sysfs_block_bytes(&fs, &bytes) == -EINVAL, "a block size that is none");
	fm_memblock_sysfs_close(&fs);
	snprintf(cmd, sizeof cmd, "rm -r '%s'", root);
	if (system(cmd))
		abort();
}

int main(void)
{
	test_online();
	test_offline();
	test_lists();
	test_sysfs();
	return tap_done();
}
