/* fm-evict: moves pages out. See fm-evict(8). */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"
#include "evict.h"
#include "evictord.h"
#include "log.h"
#include "policy.h"
#include "shmfile.h"
#include "size.h"

static const char usage[] = "usage: fm-evict [--run-dir DIR] REGION SIZE\n"
			    "       fm-evict [--run-dir DIR] --all REGION\n"
			    "       fm-evict [--run-dir DIR] --limit SIZE [REGION]\n"
			    "       fm-evict [--run-dir DIR] --grace MS REGION\n"
			    "       fm-evict [--run-dir DIR] --add-server ADDRESS | --drain-server ADDRESS\n"
			    "       fm-evict [--run-dir DIR] --daemon\n"
			    "\n"
			    "Moves pages of far memory out of this host.\n"
			    "\n"
			    "  REGION SIZE          evict that much now; prints the pages evicted\n"
			    "  -a, --all REGION     evict all that is here now; prints the pages evicted\n"
			    "  -l, --limit SIZE     set the local budget of all regions, or of one, and wait until it holds\n"
			    "                       (SIZE none: no limit)\n"
			    "      --grace MS       keep a page of REGION that was written so long after it was write-protected: longer than\n"
			    "                       any O_DIRECT read, or other DMA, into it takes (0: none)\n"
			    "      --add-server A   host:port or /path.sock: a memcached that takes pages from now on\n"
			    "      --drain-server A move all pages off that server, and wait until that is done\n"
			    "      --daemon         be the evictor; fm-faultd starts one by itself\n"
			    "      --no-seccomp     with --daemon: without the filter of system calls\n"
			    "  -d, --run-dir DIR    of fm-faultd (default $FM_RUN_DIR, else /run/fm)\n"
			    "  -v, --verbose        say more\n"
			    "  -h, --help           this text\n"
			    "  -V, --version        the version\n"
			    "\n"
			    "REGION: a region's name, its id (16 hex digits), or pid:N. SIZE: 4096, 64K, 512M, 4G, 1T,\n"
			    "20000p (pages), 25% (of the region; with --limit alone: of this host's memory).\n";

enum { OPT_DAEMON = 256, OPT_ADD_SERVER, OPT_DRAIN_SERVER, OPT_GRACE, OPT_NO_SECCOMP };

static const struct option options[] = {
    {"all", required_argument, NULL, 'a'},
    {"limit", required_argument, NULL, 'l'},
    {"daemon", no_argument, NULL, OPT_DAEMON},
    {"no-seccomp", no_argument, NULL, OPT_NO_SECCOMP},
    {"grace", required_argument, NULL, OPT_GRACE},
    {"add-server", required_argument, NULL, OPT_ADD_SERVER},
    {"drain-server", required_argument, NULL, OPT_DRAIN_SERVER},
    {"run-dir", required_argument, NULL, 'd'},
    {"verbose", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

#define ADD_TURNS 250 /* of 20 ms */

static const char *run_dir = "/run/fm";
static int run_fd = -1;

/* As what does the region go by that text: its id, its pid, its name? The first of these counts: names are its client's choice, and must not hide another region. */
enum called { NOT_CALLED, BY_NAME, BY_PID, BY_ID };

static enum called is_called(const struct fm_region_hdr *h, const char *text)
{
	char id[17], pid[24];

	snprintf(id, sizeof id, "%016llx", (unsigned long long)h->id);
	snprintf(pid, sizeof pid, "pid:%d", h->pid);
	if (strcmp(id, text) == 0)
		return BY_ID;
	if (strcmp(pid, text) == 0)
		return BY_PID;
	return strcmp(h->name, text) == 0 ? BY_NAME : NOT_CALLED;
}

static void open_run_dir(void)
{
	if (run_fd < 0)
		run_fd = open(run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (run_fd < 0)
		fm_die(FM_EXIT_PEER, "%s: fm-faultd cannot be reached: %m", run_dir);
}

/* No region is called so. Could one be? */
static void check_text(const char *text)
{
	size_t n = strlen(text);

	if (n == 0 || n >= FM_NAME_MAX)
		fm_die(FM_EXIT_USAGE, "REGION: %.70s: a region's name has 1 to %d characters", n ? text : "empty", FM_NAME_MAX - 1);
	if (strncmp(text, "pid:", 4) == 0 && (n == 4 || strspn(text + 4, "0123456789") != n - 4))
		fm_die(FM_EXIT_USAGE, "REGION: %s: pid: needs a process id", text);
}

/* Map the one region that is called so, or die. */
static struct fm_region_map find_region(const char *text)
{
	struct fm_region_map found = {.fd = -1}, m;
	char name[FM_REGION_FILE_MAX];
	enum called as, best = NOT_CALLED;
	uint64_t *ids;
	size_t n;
	int e, hits = 0;

	open_run_dir();
	e = fm_shmfile_list(run_fd, &ids, &n);
	if (e)
		fm_die(FM_EXIT_FAILED, "%s: cannot be read: %s", run_dir, strerror(-e));
	for (size_t i = 0; i < n; i++) {
		if (fm_shmfile_region_map(run_fd, fm_shmfile_region_name(ids[i], name), 0, &m, NULL))
			continue;
		as = is_called(m.hdr, text);
		if (as == NOT_CALLED || as < best) {
			fm_shmfile_region_unmap(&m);
			continue;
		}
		if (hits)
			fm_shmfile_region_unmap(&found);
		hits = as == best ? hits + 1 : 1;
		best = as;
		found = m;
	}
	free(ids);
	if (hits == 0)
		check_text(text);
	if (hits == 0 && fm_shmfile_daemon_alive(run_fd, NULL) == 0)
		fm_die(FM_EXIT_PEER, "%s: no such region, and no fm-faultd runs on %s", text, run_dir);
	if (hits == 0)
		fm_die(FM_EXIT_FAILED, "%s: no such region (fm-stat lists them)", text);
	if (hits > 1)
		fm_die(FM_EXIT_FAILED, "%s: %d regions are called so: use the id (fm-stat lists them)", text, hits);
	return found;
}

static uint64_t size_of(const char *option, const char *text, uint64_t whole)
{
	const char *why;
	uint64_t pages;

	if (fm_size_parse(text, whole, &pages, &why))
		fm_die(FM_EXIT_USAGE, "%s: %s: %s", option, text, why);
	return pages;
}

/* One request to fm-faultd, or die. Returns 0, or -ESRCH when no evictor runs. */
static int ask(unsigned type, const struct fm_ctl_evict *m, unsigned want, struct fm_ctl_evict *reply)
{
	char why[256];
	int fd = fm_ctl_connect(run_dir), r;

	if (fd < 0)
		fm_die(FM_EXIT_PEER, "%s/fm.sock: fm-faultd cannot be reached: %s", run_dir, strerror(-fd));
	r = fm_ctl_call(fd, type, m, NULL, 0, want, reply, NULL, why);
	close(fd);
	if (r == -ESRCH && *why)
		return r;
	if (r && *why)
		fm_die(FM_EXIT_FAILED, "%s", why);
	if (r)
		fm_die(FM_EXIT_PEER, "%s/fm.sock: fm-faultd does not answer: %s", run_dir, strerror(-r));
	return 0;
}

static int evict(const char *region, const char *size)
{
	/* Sizes first: a bad one is a usage error whether or not a daemon runs. */
	const char *why;
	uint64_t pages = UINT64_MAX;
	struct fm_region_map m;
	struct fm_ctl_evict reply = {0}, q;
	struct fm_ctl_evict out = {0};

	if (size && fm_size_parse(size, 1ull << 32, &pages, &why))
		fm_die(FM_EXIT_USAGE, "SIZE: %s: %s", size, why);
	m = find_region(region);
	if (size)
		pages = size_of("SIZE", size, m.pages);
	q = (struct fm_ctl_evict){.id = m.hdr->id, .pages = pages};
	if (ask(FM_CTL_EVICT, &q, FM_CTL_EVICTED, &reply) == 0) {
		out = reply;
	} else {
		struct evict_job job = {.id = q.id, .pages = pages};
		int r = evictord_run(run_dir, &job, true);

		if (r)
			return r;
		out.pages = job.evicted;
	}
	printf("%llu\n", (unsigned long long)out.pages);
	if (fflush(stdout) == EOF)
		fm_die(FM_EXIT_FAILED, "standard output: %m");
	if (fm_ld(&m.hdr->flags) & (FM_REGION_STORE_FULL | FM_REGION_STORE_DOWN)) {
		fm_warn("%s: the store %s: pages stay here", region,
			fm_ld(&m.hdr->flags) & FM_REGION_STORE_FULL ? "is full" : "does not answer");
		return FM_EXIT_FAILED;
	}
	return FM_EXIT_OK;
}

/* Wait until a budget holds. Returns an exit code. */
static int wait_for(_Atomic uint64_t *resident, uint64_t limit)
{
	struct timespec nap = {.tv_nsec = 5000000};
	struct fm_region_map m;
	char name[FM_REGION_FILE_MAX];
	uint64_t best = UINT64_MAX, *ids, flags;
	unsigned idle = 0;
	size_t n;

	for (;;) {
		uint64_t now = fm_ld(resident);

		if (now <= limit || now <= FM_LIMIT_MIN)
			return FM_EXIT_OK;
		idle = now < best ? 0 : idle + 1;
		best = now < best ? now : best;
		if (idle && idle % 400 == 0) { /* 2 s without progress: why? */
			if (fm_shmfile_daemon_alive(run_fd, NULL) != 1)
				fm_die(FM_EXIT_PEER, "%s: fm-faultd ended: the limit is not reached", run_dir);
			flags = 0;
			if (fm_shmfile_list(run_fd, &ids, &n) == 0) {
				for (size_t i = 0; i < n; i++)
					if (fm_shmfile_region_map(run_fd, fm_shmfile_region_name(ids[i], name), 0, &m, NULL) == 0) {
						flags |= fm_ld(&m.hdr->flags);
						fm_shmfile_region_unmap(&m);
					}
				free(ids);
			}
			if (flags & (FM_REGION_STORE_FULL | FM_REGION_STORE_DOWN))
				fm_die(FM_EXIT_FAILED, "limit is set, but %llu pages stay here: the store %s",
				       (unsigned long long)now, flags & FM_REGION_STORE_FULL ? "is full" : "does not answer");
			if (idle >= 2000 + FM_GRACE_MAX_MS / 5)
				fm_die(FM_EXIT_FAILED, "limit is set, but %llu pages stay here: does fm-evict --daemon run?",
				       (unsigned long long)now);
		}
		nanosleep(&nap, NULL);
	}
}

static int limit(const char *size, const char *region)
{
	uint64_t host = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / FM_PAGE_SIZE, pages = 0;
	struct fm_ctl_evict q = {.pages = FM_LIMIT_NONE};
	struct fm_daemon_map d;
	struct fm_region_map m;
	bool none = strcmp(size, "none") == 0;
	const char *why = NULL;

	if (!none)
		pages = q.pages = size_of("--limit", size, host);
	if (region) {
		m = find_region(region);
		if (!none)
			pages = q.pages = size_of("--limit", size, m.pages);
		q.id = m.hdr->id;
	}
	ask(FM_CTL_LIMIT, &q, FM_CTL_OK, NULL);
	if (none)
		return FM_EXIT_OK;
	open_run_dir();
	if (region)
		return wait_for(&m.hdr->resident, pages);
	if (fm_shmfile_daemon_map(run_fd, 0, &d, &why))
		fm_die(FM_EXIT_FAILED, "%s/%s: %s", run_dir, FM_DAEMON_STATE, why ? why : "cannot be read");
	return wait_for(&d.shm->resident, pages);
}

/* Set a region's DMA grace. */
static int grace(const char *ms, const char *region)
{
	struct fm_ctl_evict q = {0};
	struct fm_region_map m;
	char *end;

	errno = 0;
	q.pages = strtoull(ms, &end, 10);
	if (errno || *end || end == ms || *ms == '-' || q.pages > FM_GRACE_MAX_MS)
		fm_die(FM_EXIT_USAGE, "--grace: %s: must be a number of ms from 0 to %u", ms, FM_GRACE_MAX_MS);
	m = find_region(region);
	q.id = m.hdr->id;
	ask(FM_CTL_GRACE, &q, FM_CTL_OK, NULL);
	fm_shmfile_region_unmap(&m);
	return FM_EXIT_OK;
}

/* Does the server have that role, and when drained, is no page left on it? With a registry: no page of any host. */
static bool server_is(const struct fm_daemon_shm *s, const char *address, enum fm_server_role role)
{
	const struct fm_cluster_shm *c = &s->cluster;
	int slot = fm_cluster_find(c, address);
	uint64_t now = fm_ld(&c->epoch_now);

	if (role == FM_SERVER_MEMBER)
		return slot >= 0 && fm_ld(&c->server[slot].role) == FM_SERVER_MEMBER;
	if (slot < 0)
		return true;
	if (fm_ld(&s->registry.configured) && fm_ld(&c->server[slot].role) != FM_SERVER_LEFT)
		return false;
	return !(fm_cluster_servers(c, FM_EPOCH_TAG(now)) & (1ull << slot)) && fm_ld(&c->settled) >= now;
}

/* Draining takes long: is it a host other than this one that has pages there? */
static void say_who_is_behind(const struct fm_daemon_shm *s)
{
	const struct fm_registry_shm *r = &s->registry;

	if (!fm_ld(&r->configured))
		return;
	if (!fm_ld(&r->here))
		fm_info("the registry is away: going on when it is back");
	else if (fm_ld(&r->behind) && fm_ld(&r->settled) > fm_ld(&r->oldest))
		fm_info("waiting for host %016llx, which has pages by epoch %llu", (unsigned long long)fm_ld(&r->behind),
			(unsigned long long)fm_ld(&r->oldest));
}

/* Have a server take part in the store, or no more. Draining waits until no page is left on it. */
static int change_server(const char *address, enum fm_server_role role)
{
	struct timespec nap = {.tv_nsec = 20000000};
	struct fm_ctl_server m = {.role = role};
	const char *why = NULL;
	struct fm_daemon_map d;
	char reason[256];
	int fd, r;

	if (strlen(address) == 0 || strlen(address) >= sizeof m.address)
		fm_die(FM_EXIT_USAGE, "%.60s: a server is host:port or /path.sock", address);
	strcpy(m.address, address);
	fd = fm_ctl_connect(run_dir);
	if (fd < 0)
		fm_die(FM_EXIT_PEER, "%s/fm.sock: fm-faultd cannot be reached: %s", run_dir, strerror(-fd));
	r = fm_ctl_call(fd, FM_CTL_SERVER, &m, NULL, 0, FM_CTL_OK, NULL, NULL, reason);
	close(fd);
	if (r && *reason)
		fm_die(r == -EAGAIN ? FM_EXIT_PEER : FM_EXIT_FAILED, "%s", reason);
	if (r)
		fm_die(FM_EXIT_PEER, "%s/fm.sock: fm-faultd does not answer: %s", run_dir, strerror(-r));
	open_run_dir();
	if (fm_shmfile_daemon_map(run_fd, 0, &d, &why))
		fm_die(FM_EXIT_FAILED, "%s/%s: %s", run_dir, FM_DAEMON_STATE, why ? why : "cannot be read");
	for (unsigned i = 0; !server_is(d.shm, address, role); i++) {
		/* With a registry the change comes back from there; if it takes its time, it is made all the same. */
		if (role == FM_SERVER_MEMBER && i == ADD_TURNS)
			break;
		if (i % 100 == 99 && fm_shmfile_daemon_alive(run_fd, NULL) != 1)
			fm_die(FM_EXIT_PEER, "%s: fm-faultd ended: not drained yet", run_dir);
		if (i % 500 == 499)
			say_who_is_behind(d.shm);
		nanosleep(&nap, NULL);
	}
	if (fm_cluster_members(&d.shm->cluster) < fm_ld(&d.shm->cluster.replicas))
		fm_warn("the store has %u servers for %u copies of each page: as many are kept", fm_cluster_members(&d.shm->cluster),
			fm_ld(&d.shm->cluster.replicas));
	fm_shmfile_daemon_unmap(&d);
	return FM_EXIT_OK;
}

int main(int argc, char **argv)
{
	const char *all = NULL, *limit_size = NULL, *grace_ms = NULL;
	const char *server = NULL;
	enum fm_server_role role = FM_SERVER_MEMBER;
	bool daemon = false, no_seccomp = false;
	int c, left;

	fm_log_init("fm-evict");
	argv[0] = (char *)"fm-evict"; /* getopt_long() begins its messages with it */
	run_dir = fm_ctl_run_dir(NULL);
	while ((c = getopt_long(argc, argv, "a:l:d:vVh", options, NULL)) != -1) {
		switch (c) {
		case 'a':
			all = optarg;
			break;
		case 'l':
			limit_size = optarg;
			break;
		case OPT_GRACE:
			grace_ms = optarg;
			break;
		case OPT_ADD_SERVER:
			server = optarg;
			role = FM_SERVER_MEMBER;
			break;
		case OPT_DRAIN_SERVER:
			server = optarg;
			role = FM_SERVER_DRAINED;
			break;
		case OPT_NO_SECCOMP:
			no_seccomp = true;
			break;
		case OPT_DAEMON:
			daemon = true;
			break;
		case 'd':
			run_dir = optarg ? optarg : run_dir; /* never NULL; linters do not know getopt */
			break;
		case 'v':
			fm_log_more();
			break;
		case 'h':
			fputs(usage, stdout);
			return FM_EXIT_OK;
		case 'V':
			puts("fm-evict " FM_VERSION);
			return FM_EXIT_OK;
		default:
			return FM_EXIT_USAGE;
		}
	}
	left = argc - optind;
	if (!*run_dir)
		fm_die(FM_EXIT_USAGE, "--run-dir: is empty");
	if (!!all + !!limit_size + !!grace_ms + !!server + daemon > 1)
		fm_die(FM_EXIT_USAGE, "--all, --limit, --grace, --add-server, --drain-server and --daemon exclude each other");
	if (server && left == 0)
		return change_server(server, role);
	if (daemon && left == 0)
		return evictord_run(run_dir, NULL, no_seccomp);
	if (all && left == 0)
		return evict(all, NULL);
	if (grace_ms && left == 1)
		return grace(grace_ms, argv[optind]);
	if (limit_size && left <= 1)
		return limit(limit_size, left ? argv[optind] : NULL);
	if (!daemon && !all && !limit_size && !grace_ms && !server && left == 2)
		return evict(argv[optind], argv[optind + 1]);
	fm_die(FM_EXIT_USAGE, "%s (try --help)",
	       left > 2 || daemon || all || limit_size || server || (grace_ms && left) ? "too many arguments" : "needs REGION and SIZE");
}
