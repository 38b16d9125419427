/*
 * fm-hotplug: memory for a VM that lives mostly outside of its host.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "hotplug.h"
#include "size.h"

/* Linux guests on x86 add memory in blocks of 128 MiB (SECTION_SIZE_BITS 27); the rest of an odd DIMM stays unused. */
#define BLOCK_PAGES ((128u << 20) / FM_PAGE_SIZE)

static const char usage[] =
    "Usage: fm-hotplug [options] VM SIZE           add far memory, as a DIMM\n"
    "       fm-hotplug [options] VM +SIZE|-SIZE    grow or shrink a virtio-mem device\n"
    "       fm-hotplug [options] --attach VM       take over the memory that the VM has\n"
    "       fm-hotplug [options] --list VM         list its memory\n"
    "       fm-hotplug [options] --remove VM ID    unplug a device\n"
    "       fm-hotplug [options] --detach VM [ID]  bring far memory home, and let go of it\n"
    "       fm-hotplug [options] --print-xml VM    print what a libvirt domain's XML lacks\n"
    "Far memory for a running stock QEMU. VM is the name or UUID of a libvirt domain, the path of a QMP socket, or pid:N.\n"
    "\n"
    "      --id ID           the new device's id (default: fm0, fm1, ...)\n"
    "      --node N          NUMA node of the guest (default: 0)\n"
    "      --virtio-mem      a virtio-mem device instead of a DIMM\n"
    "      --max SIZE        ... that can grow to that (default: four times its size, if so much is left)\n"
    "      --no-wait         do not wait for the guest\n"
    "      --timeout SEC     wait for the guest at most so long (default: 30; adding: 5)\n"
    "      --run-dir DIR     run directory of fm-faultd ($FM_RUN_DIR, else /run/fm)\n"
    "  -v, --verbose         more messages\n"
    "  -h, --help            this text\n"
    "  -V, --version         version\n";

enum action { ADD = 0, ATTACH, LIST, REMOVE, DETACH, PRINT_XML, RESIZE };
static const struct {
	const char *name;
	int (*run)(const struct options *);
	int min, max; /* arguments: VM, and SIZE or ID */
	unsigned timeout_ms;
} actions[] = {
    [ADD] = {"", cmd_add, 2, 2, 5000},          [ATTACH] = {"--attach", cmd_attach, 1, 1, 0},
    [LIST] = {"--list", cmd_list, 1, 1, 0},     [REMOVE] = {"--remove", cmd_remove, 2, 2, 30000},
    [DETACH] = {"--detach", cmd_detach, 1, 2, 0},
    [PRINT_XML] = {"--print-xml", cmd_print_xml, 1, 1, 0},
    [RESIZE] = {"+SIZE", cmd_resize, 2, 2, 30000},
};

static enum action action_set(enum action old, enum action new_action)
{
	if (old != ADD && old != new_action)
		fm_die(FM_EXIT_USAGE, "%s and %s: only one of them", actions[old].name, actions[new_action].name);
	return new_action;
}

static int number(const char *what, const char *text, int min, int max)
{
	char *end;
	long v;

	errno = 0;
	v = strtol(text, &end, 10);
	if (end == text || *end || errno || v < min || v > max)
		fm_die(FM_EXIT_USAGE, "%s '%s': not a number from %d to %d", what, text, min, max);
	return (int)v;
}

#define NEW_ID_MAX 32 /* of a device that we make, whose name goes before its backend's, its region's and libvirt's alias */

/* QEMU's rule for ids (id_wellformed()): a letter, then letters, digits, '-', '.', '_'. */
static const char *checked_id(const char *text)
{
	static const char more[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";

	if (!*text || strchr(more + 52, *text) || text[strspn(text, more)])
		fm_die(FM_EXIT_USAGE, "id '%s': not a letter followed by letters, digits, '-', '.' and '_'", text);
	if (strlen(text) > NEW_ID_MAX)
		fm_die(FM_EXIT_USAGE, "id '%s': more than %d characters", text, NEW_ID_MAX);
	return text;
}

static uint64_t checked_size(const char *text)
{
	const char *why;
	uint64_t pages;

	if (fm_size_parse(text, 0, &pages, &why))
		fm_die(FM_EXIT_USAGE, "size '%s': %s", text, why);
	if (pages % BLOCK_PAGES)
		fm_die(FM_EXIT_USAGE, "size '%s': not a multiple of 128M, the block in which x86 guests add memory", text);
	if (pages > FM_REGION_PAGES_MAX)
		fm_die(FM_EXIT_USAGE, "size '%s': more than a region may have (16T); add several", text);
	return pages;
}

/*
 * "-1G" is an argument, not options: take its sign off, and return it; NULL: there is none. What follows an option that takes an argument is left
 * alone: that is the option's.
 */
static const char *take_minus(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--"); i++)
		if (argv[i][0] == '-' && argv[i][1] >= '0' && argv[i][1] <= '9' && strcmp(argv[i - 1], "--id") &&
		    strcmp(argv[i - 1], "--timeout") && strcmp(argv[i - 1], "--run-dir") && strcmp(argv[i - 1], "--node") &&
		    strcmp(argv[i - 1], "--max"))
			return ++argv[i];
	return NULL;
}

static enum action parse_options(int argc, char **argv, struct options *o)
{
	enum { ID = 256, NODE, VIRTIO_MEM, MAX, NO_WAIT, TIMEOUT, RUN_DIR, ACTIONS };
	static const struct option longs[] = {
	    {"attach", no_argument, NULL, ACTIONS + ATTACH},
	    {"list", no_argument, NULL, ACTIONS + LIST},
	    {"remove", no_argument, NULL, ACTIONS + REMOVE},
	    {"detach", no_argument, NULL, ACTIONS + DETACH},
	    {"print-xml", no_argument, NULL, ACTIONS + PRINT_XML},
	    {"id", required_argument, NULL, ID},
	    {"node", required_argument, NULL, NODE},
	    {"virtio-mem", no_argument, NULL, VIRTIO_MEM},
	    {"max", required_argument, NULL, MAX},
	    {"no-wait", no_argument, NULL, NO_WAIT},
	    {"timeout", required_argument, NULL, TIMEOUT},
	    {"run-dir", required_argument, NULL, RUN_DIR},
	    {"verbose", no_argument, NULL, 'v'},
	    {"help", no_argument, NULL, 'h'},
	    {"version", no_argument, NULL, 'V'},
	    {0},
	};
	const char *run_dir = NULL, *add_only = NULL, *minus = take_minus(argc, argv);
	enum action action = ADD;
	int c;

	*o = (struct options){.node = -1, .wait = true};
	while ((c = getopt_long(argc, argv, "vhV", longs, NULL)) != -1) {
		switch (c) {
		case ID:
			add_only = "--id";
			o->id = checked_id(optarg);
			break;
		case NODE:
			add_only = "--node";
			o->node = number("node", optarg, 0, 127);
			break;
		case VIRTIO_MEM:
			add_only = "--virtio-mem";
			o->virtio_mem = true;
			break;
		case MAX:
			add_only = "--max";
			o->max_pages = checked_size(optarg);
			break;
		case NO_WAIT:
			o->wait = false;
			break;
		case TIMEOUT:
			o->timeout_ms = (unsigned)number("timeout", optarg, 1, 86400) * 1000;
			break;
		case RUN_DIR:
			run_dir = optarg;
			break;
		case 'v':
			fm_log_more();
			break;
		case 'h':
			fputs(usage, stdout);
			exit(FM_EXIT_OK);
		case 'V':
			puts("fm-hotplug " FM_VERSION);
			exit(FM_EXIT_OK);
		case '?':
			exit(FM_EXIT_USAGE); /* getopt said why */
		default:
			action = action_set(action, (enum action)(c - ACTIONS));
		}
	}
	argc -= optind;
	argv += optind;
	if (argc < actions[action].min)
		fm_die(FM_EXIT_USAGE, "%s: missing; see --help",
		       argc == 0 ? "VM" : action == REMOVE ? "ID" : "SIZE (or --attach, --list)");
	if (argc > actions[action].max)
		fm_die(FM_EXIT_USAGE, "'%s': one argument too many", argv[actions[action].max]);
	if (action != ADD && add_only)
		fm_die(FM_EXIT_USAGE, "%s: not with %s", add_only, actions[action].name);
	o->vm = argv[0];
	if (action == ADD && (argv[1] == minus || *argv[1] == '+')) {
		action = RESIZE;
		o->shrink = argv[1] == minus;
		o->pages = checked_size(argv[1] + !o->shrink);
		if (o->node >= 0 || o->virtio_mem || o->max_pages)
			fm_die(FM_EXIT_USAGE, "%s: only for a new device", o->node >= 0 ? "--node" : o->virtio_mem ? "--virtio-mem" : "--max");
	} else if (minus) {
		fm_die(FM_EXIT_USAGE, "'-%s': unexpected", minus);
	} else if (action == ADD) {
		o->pages = checked_size(argv[1]);
		if (o->max_pages && !o->virtio_mem)
			fm_die(FM_EXIT_USAGE, "--max: only with --virtio-mem");
		if (o->max_pages && o->max_pages < o->pages)
			fm_die(FM_EXIT_USAGE, "--max: less than the size");
	}
	if (action != ADD && action != RESIZE && argc == 2)
		o->id = argv[1];
	if (!o->timeout_ms)
		o->timeout_ms = actions[action].timeout_ms;
	o->run_dir = fm_ctl_run_dir(run_dir);
	return action;
}

int main(int argc, char **argv)
{
	struct options o;
	enum action action;
	int code;

	fm_log_init("fm-hotplug");
	argv[0] = (char *)"fm-hotplug"; /* getopt_long() begins its messages with it */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_DFL);
	action = parse_options(argc, argv, &o);
	code = actions[action].run(&o);
	if (fflush(stdout) == EOF || ferror(stdout)) {
		fm_warn("standard output: %s", strerror(errno));
		code = code ? code : FM_EXIT_FAILED;
	}
	return code;
}
