/*
 * fm-stat: print the statistics of a run directory, from its shared files. The daemon is never asked.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"
#include "log.h"
#include "print.h"

static const char usage[] =
    "Usage: fm-stat [-i SECONDS [-c COUNT]] [-j | -p] [regions | latency | stores | clear]\n"
    "Print the statistics of far memory on this host; works without the daemon.\n"
    "\n"
    "  regions               a row a region (the default)\n"
    "  latency               histograms of page fault latency\n"
    "  stores                the stores\n"
    "  clear                 begin all counters anew\n"
    "\n"
    "  -i, --interval SEC    print again every SEC seconds (0.01 to 86400), with rates\n"
    "  -c, --count COUNT     end after COUNT times\n"
    "  -j, --json            a JSON document a line\n"
    "  -p, --prometheus      Prometheus text format\n"
    "  -d, --run-dir DIR     run directory of fm-faultd ($FM_RUN_DIR, else /run/fm)\n"
    "  -v, --verbose         more messages\n"
    "  -h, --help            this text\n"
    "  -V, --version         version\n";

enum what { REGIONS, LATENCY, STORES, CLEAR };
static const char *const what_names[] = {
	[REGIONS] = "regions",
	[LATENCY] = "latency",
	[STORES] = "stores",
	[CLEAR] = "clear",
};
#define NWHAT (sizeof what_names / sizeof *what_names)
static_assert(NWHAT == CLEAR + 1, "every form has a name");

enum form { TABLE, JSON, PROMETHEUS };

struct options {
	const char *run_dir;
	uint64_t interval_ns; /* 0: once */
	uint64_t count;       /* 0: endless */
	enum form form;
	enum what what;
};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	(void)sig;
	stop = 1;
}

/* Decimal seconds to ns: "1", "0.25". Nothing else: no sign, no exponent. */
static uint64_t parse_interval(const char *text)
{
	uint64_t ns = 0, unit = 1000000000u;
	const char *p = text;

	for (; *p >= '0' && *p <= '9' && ns <= 86400000000000u; p++)
		ns = ns * 10 + (uint64_t)(*p - '0') * 1000000000u;
	if (*p == '.' && p != text)
		for (p++; *p >= '0' && *p <= '9'; p++)
			ns += (uint64_t)(*p - '0') * (unit /= 10);
	if (p == text || *p || p[-1] == '.')
		fm_die(FM_EXIT_USAGE, "interval '%s': no number of seconds", text);
	if (ns < 10000000u || ns > 86400000000000u)
		fm_die(FM_EXIT_USAGE, "interval '%s': not between 0.01 and 86400 seconds", text);
	return ns;
}

static uint64_t parse_count(const char *text)
{
	uint64_t n = 0;
	const char *p = text;

	for (; *p >= '0' && *p <= '9' && n < 1000000000000u; p++)
		n = n * 10 + (uint64_t)(*p - '0');
	if (p == text || *p || !n)
		fm_die(FM_EXIT_USAGE, "count '%s': not a number above 0", text);
	return n;
}

static void set_form(struct options *o, enum form form)
{
	if (o->form != TABLE && o->form != form)
		fm_die(FM_EXIT_USAGE, "-j and -p: only one of them");
	o->form = form;
}

static enum what parse_what(const char *text)
{
	for (unsigned i = 0; i < NWHAT; i++)
		if (strcmp(text, what_names[i]) == 0)
			return (enum what)i;
	fm_die(FM_EXIT_USAGE, "'%s': not one of regions, latency, stores, clear", text);
}

static void parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "interval", required_argument, NULL, 'i' },
		{ "count", required_argument, NULL, 'c' },
		{ "json", no_argument, NULL, 'j' },
		{ "prometheus", no_argument, NULL, 'p' },
		{ "run-dir", required_argument, NULL, 'd' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ 0 },
	};
	const char *run_dir = NULL;
	int c;

	while ((c = getopt_long(argc, argv, "i:c:jpd:vhV", longs, NULL)) != -1) {
		switch (c) {
		case 'i':
			o->interval_ns = parse_interval(optarg);
			break;
		case 'c':
			o->count = parse_count(optarg);
			break;
		case 'j':
			set_form(o, JSON);
			break;
		case 'p':
			set_form(o, PROMETHEUS);
			break;
		case 'd':
			run_dir = optarg;
			break;
		case 'v':
			fm_log_more();
			break;
		case 'h':
			fputs(usage, stdout);
			exit(FM_EXIT_OK);
		case 'V':
			puts("fm-stat " FM_VERSION);
			exit(FM_EXIT_OK);
		default:
			exit(FM_EXIT_USAGE); /* getopt said why */
		}
	}
	if (argc - optind > 1)
		fm_die(FM_EXIT_USAGE, "'%s': one of regions, latency, stores, clear at a time", argv[optind + 1]);
	if (optind < argc)
		o->what = parse_what(argv[optind]);
	if (o->count && !o->interval_ns)
		fm_die(FM_EXIT_USAGE, "-c needs -i");
	if (o->what == CLEAR && (o->interval_ns || o->form != TABLE))
		fm_die(FM_EXIT_USAGE, "clear takes none of -i, -c, -j and -p");
	o->run_dir = fm_ctl_run_dir(run_dir);
	if (!*o->run_dir)
		fm_die(FM_EXIT_USAGE, "--run-dir: is empty");
}

static void print(const struct options *o, const struct sample *s, const struct sample *prev)
{
	if (o->form == JSON) {
		if (print_json(s, o->what == LATENCY))
			fm_die(FM_EXIT_FAILED, "JSON: %s", strerror(ENOMEM));
	} else if (o->form == PROMETHEUS) {
		print_prometheus(s);
	} else if (o->what == LATENCY) {
		print_latency(s);
	} else if (o->what == STORES) {
		print_stores(s);
	} else {
		print_regions(s, prev, o->interval_ns != 0);
	}
	if (fflush(stdout) == EOF || ferror(stdout))
		fm_die(FM_EXIT_FAILED, "standard output: %s", strerror(errno));
}

/* Sleep to the next multiple of the interval after *due that is still to come. */
static void wait_next(uint64_t *due, uint64_t interval_ns, uint64_t now)
{
	struct timespec ts;

	*due += interval_ns;
	if (*due < now)
		*due += (now - *due + interval_ns - 1) / interval_ns * interval_ns;
	ts.tv_sec = (time_t)(*due / 1000000000u);
	ts.tv_nsec = (long)(*due % 1000000000u);
	while (!stop && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
}

static void sample_loop(const struct options *o, int dirfd)
{
	struct sample prev = { 0 }, now;
	uint64_t due = 0;
	int err;

	for (uint64_t n = 1; !stop; n++) {
		err = sample_take(dirfd, n == 1, &now);
		if (err)
			fm_die(FM_EXIT_FAILED, "run directory '%s': %s", o->run_dir, strerror(-err));
		if (n > 1 && o->form == TABLE)
			putchar('\n');
		print(o, &now, n > 1 ? &prev : NULL);
		sample_free(&prev);
		prev = now; /* prev owns it now */
		if (!o->interval_ns || n == o->count)
			break;
		if (!due)
			due = prev.mono_ns;
		wait_next(&due, o->interval_ns, prev.mono_ns);
	}
	sample_free(&prev);
}

static void clear(const struct options *o, int dirfd)
{
	char file[FM_REGION_FILE_MAX];
	const char *why;
	size_t n;

	if (sample_clear(dirfd, &n, file, &why))
		fm_die(FM_EXIT_FAILED, "clear: %s/%s: %s", o->run_dir, file, why);
	printf("%zu region%s cleared in %s\n", n, n == 1 ? "" : "s", o->run_dir);
}

int main(int argc, char **argv)
{
	struct options o = { .what = REGIONS, .form = TABLE };
	struct sigaction sa = { .sa_handler = on_signal };
	int dirfd;

	fm_log_init("fm-stat");
	argv[0] = (char *)"fm-stat"; /* getopt_long() begins its messages with it */
	parse_options(argc, argv, &o);
	dirfd = open(o.run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0)
		fm_die(errno == ENOENT ? FM_EXIT_PEER : FM_EXIT_FAILED, "run directory '%s': %s%s", o.run_dir, strerror(errno),
		       errno == ENOENT ? "; has fm-faultd run? (--run-dir)" : "");
	if (o.what == CLEAR) {
		clear(&o, dirfd);
	} else {
		if (o.interval_ns) {
			sigaction(SIGINT, &sa, NULL);
			sigaction(SIGTERM, &sa, NULL);
		}
		sample_loop(&o, dirfd);
	}
	close(dirfd);
	return FM_EXIT_OK;
}
