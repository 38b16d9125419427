/*
 * fm-online: bring hotplugged memory online, inside the guest. It may be all there is in an initramfs: needs /sys and nothing else.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "memblock.h"
#include "size.h"
#include "watch.h"

static const char usage[] =
    "Usage: fm-online [--movable | --kernel] [--watch]\n"
    "       fm-online --status\n"
    "       fm-online --offline BLOCKS\n"
    "Bring hotplugged memory blocks of this system online: movable, or for the kernel where that is refused.\n"
    "\n"
    "  -m, --movable         movable only\n"
    "  -k, --kernel          for the kernel only\n"
    "  -w, --watch           stay, and do it as blocks appear\n"
    "  -s, --status          print each block and totals\n"
    "  -o, --offline BLOCKS  take blocks offline: memory34,memory35 or 34-37\n"
    "      --sysfs DIR       where sysfs is mounted ($FM_SYSFS, else /sys)\n"
    "  -v, --verbose         more messages\n"
    "  -h, --help            this text\n"
    "  -V, --version         version\n";

#define MAX_RANGES 256

struct options {
	enum fm_memblock_zone zone;
	bool watch, status;
	const char *offline;
	const char *sysfs;
};

struct online {
	struct fm_memblock_sysfs fs;
	struct fm_memblock_ops ops;
	enum fm_memblock_zone zone;
	bool failed; /* some block did */
};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	(void)sig;
	stop = 1;
}

static const char *reason(int err)
{
	switch (err) {
	case -EACCES:
	case -EPERM:
		return "not permitted, needs root";
	case -EBUSY:
		return "busy: memory in it cannot be moved, or it is going offline";
	case -EINVAL:
		return "refused by the kernel (Invalid argument)";
	default:
		return strerror(-err);
	}
}

/* One line about a block that failed. No right to write sysfs concerns all blocks, and is said once. */
static void block_failed(struct online *o, unsigned block, int err)
{
	if (err == -EACCES || err == -EPERM || err == -EROFS)
		fm_die(FM_EXIT_FAILED, "memory%u: %s", block, reason(err));
	fm_warn("memory%u: %s", block, reason(err));
	o->failed = true;
}

static void online_block(struct online *o, unsigned block)
{
	enum fm_memblock_zone zone = o->zone;
	int err = fm_memblock_online(&o->ops, block, &zone);

	if (err < 0)
		block_failed(o, block, err);
	else if (err > 0)
		fm_debug("memory%u: online already", block);
	else
		printf("memory%u: online %s\n", block, zone == FM_MEMBLOCK_MOVABLE ? "movable" : "kernel");
	fflush(stdout);
}

static void list_blocks(const struct online *o, unsigned **blocks, size_t *n)
{
	int err = fm_memblock_sysfs_list(&o->fs, blocks, n);

	if (err)
		fm_die(FM_EXIT_FAILED, "memory blocks: %s", strerror(-err));
}

static void online_all(struct online *o)
{
	unsigned *blocks;
	size_t n;

	list_blocks(o, &blocks, &n);
	for (size_t i = 0; i < n && !stop; i++)
		online_block(o, blocks[i]);
	free(blocks);
}

static void watch(struct online *o)
{
	/* Without SA_RESTART: the receive below must end. */
	struct sigaction sa = { .sa_handler = on_signal };
	sigset_t ending, before;
	unsigned block;
	int fd, err;

	/* The socket first: what appears between the two is seen by both. */
	fd = watch_open();
	if (fd < 0)
		fm_die(FM_EXIT_FAILED, "kernel events: %s", strerror(-fd));
	sigemptyset(&ending);
	sigaddset(&ending, SIGTERM);
	sigaddset(&ending, SIGINT);
	sigprocmask(SIG_BLOCK, &ending, &before);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	online_all(o);
	while (!stop) {
		err = watch_next(fd, &before, &block);
		if (err == 0)
			online_block(o, block);
		else if (err == -ENOBUFS)
			online_all(o);
		else if (err != -EINTR)
			fm_die(FM_EXIT_FAILED, "kernel events: %s", strerror(-err));
	}
	close(fd);
}

static const char *state_name(enum fm_memblock_state state)
{
	static const char *const names[] = {
		[FM_MEMBLOCK_OFFLINE] = "offline",
		[FM_MEMBLOCK_ONLINE] = "online",
		[FM_MEMBLOCK_OTHER] = "leaving",
	};
	return names[state];
}

static const char *size(uint64_t bytes, char buf[16])
{
	return bytes ? fm_size_format(bytes / 4096, buf) : "0";
}

static void status(struct online *o)
{
	uint64_t bytes, counts[3] = { 0 }, movable = 0;
	char text[FM_MEMBLOCK_TEXT], all[16], on[16], off[16], mov[16];
	enum fm_memblock_state state;
	unsigned *blocks;
	size_t n;
	int err;

	err = fm_memblock_sysfs_block_bytes(&o->fs, &bytes);
	if (err)
		fm_die(FM_EXIT_FAILED, "block_size_bytes: %s", strerror(-err));
	list_blocks(o, &blocks, &n);
	size(bytes, all);
	printf("%-14s %-8s %-8s %6s\n", "BLOCK", "STATE", "ZONE", "SIZE");
	for (size_t i = 0; i < n; i++) {
		err = fm_memblock_state(&o->ops, blocks[i], &state);
		if (err) {
			block_failed(o, blocks[i], err);
			continue;
		}
		counts[state]++;
		/* Of a block that is offline this would list the zones it could go to. Not in every kernel. */
		if (state != FM_MEMBLOCK_ONLINE || o->ops.read(o->ops.ctx, blocks[i], "valid_zones", text) != 0)
			strcpy(text, "-");
		text[strcspn(text, " ")] = '\0';
		movable += strcmp(text, "Movable") == 0;
		printf("memory%-8u %-8s %-8s %6s\n", blocks[i], state_name(state), text, all);
	}
	printf("online %s (movable %s), offline %s, in %zu blocks of %s\n", size(counts[FM_MEMBLOCK_ONLINE] * bytes, on),
	       size(movable * bytes, mov), size(counts[FM_MEMBLOCK_OFFLINE] * bytes, off), n, all);
	free(blocks);
}

static bool has_block(const unsigned *blocks, size_t n, unsigned block)
{
	for (size_t i = 0; i < n; i++)
		if (blocks[i] == block)
			return true;
	return false;
}

/* All blocks of the list must be there before the first is touched. */
static void offline(struct online *o, const char *list)
{
	struct fm_memblock_range r[MAX_RANGES];
	unsigned *blocks, b;
	size_t n;
	int ranges, err;

	ranges = fm_memblock_parse_list(list, strlen(list), r, MAX_RANGES);
	if (ranges < 0)
		fm_die(FM_EXIT_USAGE, "blocks '%s': %s", list,
		       ranges == -E2BIG ? "too many" : "not a list such as memory34,memory35 or 34-37");
	list_blocks(o, &blocks, &n);
	for (int i = 0; i < ranges; i++)
		for (b = r[i].first; b <= r[i].last; b++)
			if (!has_block(blocks, n, b))
				fm_die(FM_EXIT_FAILED, "memory%u: no such block", b);
	free(blocks);
	for (int i = 0; i < ranges; i++) {
		/* From the top: memory is given back in the reverse order of its coming. */
		for (b = r[i].last + 1; b-- > r[i].first;) {
			err = fm_memblock_offline(&o->ops, b);
			if (err < 0)
				block_failed(o, b, err);
			else
				printf("memory%u: %s\n", b, err ? "already offline" : "offline");
			fflush(stdout);
		}
	}
}

static void set_zone(struct options *o, enum fm_memblock_zone zone)
{
	if (o->zone != FM_MEMBLOCK_ANY && o->zone != zone)
		fm_die(FM_EXIT_USAGE, "--movable and --kernel: only one of them");
	o->zone = zone;
}

static void parse_options(int argc, char **argv, struct options *o)
{
	enum { SYSFS = 256 };
	static const struct option longs[] = {
		{ "movable", no_argument, NULL, 'm' },
		{ "kernel", no_argument, NULL, 'k' },
		{ "watch", no_argument, NULL, 'w' },
		{ "status", no_argument, NULL, 's' },
		{ "offline", required_argument, NULL, 'o' },
		{ "sysfs", required_argument, NULL, SYSFS },
		{ "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "mkwso:vhV", longs, NULL)) != -1) {
		switch (c) {
		case 'm':
			set_zone(o, FM_MEMBLOCK_MOVABLE);
			break;
		case 'k':
			set_zone(o, FM_MEMBLOCK_KERNEL);
			break;
		case 'w':
			o->watch = true;
			break;
		case 's':
			o->status = true;
			break;
		case 'o':
			o->offline = optarg;
			break;
		case SYSFS:
			o->sysfs = optarg;
			break;
		case 'v':
			fm_log_more();
			break;
		case 'h':
			fputs(usage, stdout);
			exit(FM_EXIT_OK);
		case 'V':
			puts("fm-online " FM_VERSION);
			exit(FM_EXIT_OK);
		default:
			exit(FM_EXIT_USAGE); /* getopt said why */
		}
	}
	if (optind < argc)
		fm_die(FM_EXIT_USAGE, "'%s': no argument expected", argv[optind]);
	if ((o->status != 0) + (o->offline != NULL) + (o->watch || o->zone != FM_MEMBLOCK_ANY) > 1)
		fm_die(FM_EXIT_USAGE, "--status, --offline and bringing online: only one at a time");
}

static void open_sysfs(const char *root, struct fm_memblock_sysfs *fs)
{
	int err = fm_memblock_sysfs_open(root, fs);

	if (err == -ENOTDIR)
		fm_die(FM_EXIT_FAILED, "%s: no sysfs there (mount -t sysfs sysfs %s)", root, root);
	if (err == -ENOENT)
		fm_die(FM_EXIT_FAILED, "%s/devices/system/memory: missing, the kernel has no memory hotplug", root);
	if (err)
		fm_die(FM_EXIT_FAILED, "%s: %s", root, strerror(-err));
}

int main(int argc, char **argv)
{
	const char *env = getenv("FM_SYSFS");
	struct options opt = { .zone = FM_MEMBLOCK_ANY, .sysfs = env && *env ? env : "/sys" };
	struct online o = { .fs = { .dirfd = -1 } };

	fm_log_init("fm-online");
	argv[0] = (char *)"fm-online"; /* getopt_long() begins its messages with it */
	parse_options(argc, argv, &opt);
	open_sysfs(opt.sysfs, &o.fs);
	o.ops = fm_memblock_sysfs_ops(&o.fs);
	o.zone = opt.zone;
	if (opt.status)
		status(&o);
	else if (opt.offline)
		offline(&o, opt.offline);
	else if (opt.watch)
		watch(&o);
	else
		online_all(&o);
	fm_memblock_sysfs_close(&o.fs);
	if (fflush(stdout) == EOF || ferror(stdout))
		fm_die(FM_EXIT_FAILED, "standard output: %s", strerror(errno));
	return o.failed ? FM_EXIT_FAILED : FM_EXIT_OK;
}
