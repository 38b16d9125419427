/* fm-faultd: serves the page faults of registered regions. See fm-faultd(8) and DESIGN.md. */
#include "faultd.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "crash.h"
#include "evict.h"
#include "log.h"
#include "resolve.h"
#include "policy.h"
#include "size.h"

static const char usage[] =
    "usage: fm-faultd [--store URI] [--local SIZE] [--registry URI] [--run-dir DIR] [--ready-fd N] [--shards N]\n"
    "                 [--replicas R] [--key-file F | --no-seal] [--no-evictor] [--grace MS] [--takeover] [-n|--check] [-v]\n"
    "\n"
    "Serves page faults of registered memory from a store.\n"
    "\n"
    "  -s, --store URI      where pages go: dir:/path (default dir:/var/lib/fm), memcached://host:port[,...],\n"
    "                       memcached:/path.sock[,...], memcached:--SERVER=host ...,\n"
    "                       ramcloud:zk:host:port[,...], ramcloud:tcp:host=H,port=P\n"
    "  -l, --local SIZE     memory all regions together keep on this host (default 50% of it; none: no limit)\n"
    "  -r, --registry URI   cluster state: none (default), zookeeper://host:port[,...][/chroot]\n"
    "  -d, --run-dir DIR    control socket and state files (default $FM_RUN_DIR, else /run/fm)\n"
    "      --ready-fd N     write a newline to descriptor N when clients are accepted\n"
    "      --shards N       fault threads of a large region at most, 1 to 16\n"
    "      --replicas R     copies of each page, on distinct servers (1; dir: has one)\n"
    "      --key-file F     key that pages are sealed with (network stores; default RUN_DIR/host.key)\n"
    "      --no-seal        store pages in the clear\n"
    "      --no-evictor     do not start fm-evict\n"
    "      --user-connections N, --user-regions N, --user-memory SIZE\n"
    "                       what the clients of one user, but root, may have at a time (64, 256, none: no limit)\n"
    "      --no-seccomp     without the filter of system calls\n"
    "      --no-follow      fault threads never move to the CPU of a thread that faults alone\n"
    "      --grace MS       how long a device may go on writing a page that leaves (default 1000 for VMs, 0 for programs)\n"
    "      --takeover       end the fm-faultd that serves DIR, if there is one, and go on with its regions\n"
    "  -n, --check          say whether this host will do, and exit\n"
    "  -v, --verbose        say more; twice: even more\n"
    "  -h, --help           this text\n"
    "  -V, --version        the version\n"
    "\n"
    "SIZE: 4096, 64K, 512M, 4G, 1T, 20000p (pages), 25% (of this host's memory).\n";

enum { OPT_READY_FD = 256, OPT_SHARDS, OPT_REPLICAS, OPT_KEY_FILE, OPT_NO_SEAL, OPT_NO_EVICTOR, OPT_NO_SECCOMP, OPT_USER_CONNECTIONS,
       OPT_USER_REGIONS, OPT_USER_MEMORY, OPT_GRACE, OPT_TAKEOVER, OPT_NO_FOLLOW };

static const struct option options[] = {
    {"store", required_argument, NULL, 's'},
    {"local", required_argument, NULL, 'l'},
    {"registry", required_argument, NULL, 'r'},
    {"run-dir", required_argument, NULL, 'd'},
    {"ready-fd", required_argument, NULL, OPT_READY_FD},
    {"shards", required_argument, NULL, OPT_SHARDS},
    {"replicas", required_argument, NULL, OPT_REPLICAS},
    {"key-file", required_argument, NULL, OPT_KEY_FILE},
    {"no-seal", no_argument, NULL, OPT_NO_SEAL},
    {"no-evictor", no_argument, NULL, OPT_NO_EVICTOR},
    {"takeover", no_argument, NULL, OPT_TAKEOVER},
    {"grace", required_argument, NULL, OPT_GRACE},
    {"no-seccomp", no_argument, NULL, OPT_NO_SECCOMP},
    {"no-follow", no_argument, NULL, OPT_NO_FOLLOW},
    {"user-connections", required_argument, NULL, OPT_USER_CONNECTIONS},
    {"user-regions", required_argument, NULL, OPT_USER_REGIONS},
    {"user-memory", required_argument, NULL, OPT_USER_MEMORY},
    {"check", no_argument, NULL, 'n'},
    {"verbose", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

/* A whole number in [low, high], or die. */
static long number(const char *option, const char *text, long low, long high)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 10);
	if (errno || *end || end == text || n < low || n > high)
		fm_die(FM_EXIT_USAGE, "%s: %s: must be a number from %ld to %ld", option, text, low, high);
	return n;
}

static uint64_t host_pages(void)
{
	return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / FM_PAGE_SIZE;
}

struct arguments {
	int ready_fd;
	bool check;
};

static void parse(struct faultd *d, struct arguments *a, int argc, char **argv)
{
	char store_why[FM_STORE_WHY];
	const char *why;
	int c;

	while ((c = getopt_long(argc, argv, "s:l:r:d:nvVh", options, NULL)) != -1) {
		const char *arg = optarg ? optarg : ""; /* never NULL where it is used; linters do not know getopt */

		switch (c) {
		case 's':
			d->store_uri = arg;
			break;
		case 'l':
			if (strcmp(arg, "none") == 0)
				d->local_pages = FM_LIMIT_NONE;
			else if (fm_size_parse(arg, host_pages(), &d->local_pages, &why))
				fm_die(FM_EXIT_USAGE, "--local: %s: %s", arg, why);
			break;
		case 'r':
			d->registry_uri = arg;
			break;
		case 'd':
			d->run_dir = arg;
			break;
		case OPT_READY_FD:
			a->ready_fd = (int)number("--ready-fd", arg, 0, 1 << 20);
			/* Close-on-exec: fm-evict must not keep it open. */
			if (fcntl(a->ready_fd, F_SETFD, FD_CLOEXEC) < 0)
				fm_die(FM_EXIT_USAGE, "--ready-fd: %s: is not open", arg);
			break;
		case OPT_SHARDS:
			d->shards = (unsigned)number("--shards", arg, 1, FM_MAX_SHARDS);
			break;
		case OPT_REPLICAS:
			d->store_options.replicas = (unsigned)number("--replicas", arg, 1, 16);
			break;
		case OPT_KEY_FILE:
			d->store_options.key_file = arg;
			break;
		case OPT_NO_SEAL:
			d->store_options.no_seal = true;
			break;
		case OPT_TAKEOVER:
			d->take_over = true;
			break;
		case OPT_GRACE:
			d->grace_ms = number("--grace", arg, 0, FM_GRACE_MAX_MS);
			break;
		case OPT_NO_EVICTOR:
			d->spawn_evictor = false;
			break;
		case OPT_NO_FOLLOW:
			d->no_follow = true;
			break;
		case OPT_NO_SECCOMP:
			d->no_seccomp = true;
			break;
		case OPT_USER_CONNECTIONS:
			d->user.connections = (unsigned)number("--user-connections", arg, 1, MAX_CONNECTIONS);
			break;
		case OPT_USER_REGIONS:
			d->user.regions = (unsigned)number("--user-regions", arg, 0, 1 << 20);
			break;
		case OPT_USER_MEMORY:
			if (strcmp(arg, "none") == 0)
				d->user.pages = FM_LIMIT_NONE;
			else if (fm_size_parse(arg, host_pages(), &d->user.pages, &why))
				fm_die(FM_EXIT_USAGE, "--user-memory: %s: %s", arg, why);
			break;
		case 'n':
			a->check = true;
			break;
		case 'v':
			fm_log_more();
			break;
		case 'h':
			fputs(usage, stdout);
			exit(FM_EXIT_OK);
		case 'V':
			puts("fm-faultd " FM_VERSION);
			exit(FM_EXIT_OK);
		default:
			exit(FM_EXIT_USAGE); /* getopt_long has said why */
		}
	}
	if (optind < argc)
		fm_die(FM_EXIT_USAGE, "%s: unexpected argument (try --help)", argv[optind]);
	if (!*d->run_dir)
		fm_die(FM_EXIT_USAGE, "--run-dir: is empty");
	if (d->store_options.key_file && d->store_options.no_seal)
		fm_die(FM_EXIT_USAGE, "--key-file: %s: cannot be used with --no-seal", d->store_options.key_file);
	if (d->store_options.key_file && strlen(d->store_options.key_file) > 255)
		fm_die(FM_EXIT_USAGE, "--key-file: %.60s...: longer than 255 bytes", d->store_options.key_file);
	if (strlen(d->store_uri) >= FM_URI_MAX)
		fm_die(FM_EXIT_USAGE, "--store: %.60s...: longer than %d bytes", d->store_uri, FM_URI_MAX - 1);
	if (fm_store_check(d->store_uri, &d->store_options, store_why))
		fm_die(FM_EXIT_USAGE, "%s%s", strncmp(store_why, "--", 2) == 0 ? "" : "--store: ", store_why);
	if (registry_check(d, store_why))
		fm_die(FM_EXIT_USAGE, "--registry: %s", store_why);
}

/* By default the key lies where the page states do: on tmpfs, and gone with the host's memory, as the pages are. */
static void choose_key_file(struct faultd *d)
{
	static char key_file[256];

	if (d->store_options.key_file || d->store_options.no_seal || strncmp(d->store_uri, "dir:", 4) == 0)
		return;
	if (snprintf(key_file, sizeof key_file, "%s/host.key", d->run_dir) >= (int)sizeof key_file)
		fm_die(FM_EXIT_USAGE, "--run-dir: %.60s...: too long for a key file below it: give --key-file", d->run_dir);
	d->store_options.key_file = key_file;
}

/* A run directory that was there, and that everybody may write: who may do that could put files of his own in the place of ours. */
static void guard_run_dir(const struct faultd *d)
{
	struct stat st;

	if (fstat(d->run_fd, &st) < 0 || !(st.st_mode & S_IWOTH))
		return;
	/* With the sticky bit he cannot; a tmpfs is mounted so, and /tmp is others' too. */
	if (st.st_mode & S_ISVTX)
		fm_info("%s: the run directory may be written by everybody", d->run_dir);
	else if (fchmod(d->run_fd, st.st_mode & 07775) == 0)
		fm_warn("%s: the run directory could be written by everybody: not any more", d->run_dir);
	else
		fm_die(FM_EXIT_FAILED, "%s: the run directory may be written by everybody: chmod o-w", d->run_dir);
}

/* Be the only fm-faultd of the run directory, or die naming the one that is. */
static void lock_run_dir(struct faultd *d)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	/* The modes of the run directory and its files are an interface: INTERFACES.md. */
	umask(0027);
	if (mkdir(d->run_dir, 0750) < 0 && errno != EEXIST)
		fm_die(FM_EXIT_FAILED, "%s: cannot make the run directory: %m", d->run_dir);
	d->run_fd = open(d->run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->run_fd < 0)
		fm_die(FM_EXIT_FAILED, "%s: cannot open the run directory: %m", d->run_dir);
	guard_run_dir(d);
	d->lock_fd = openat(d->run_fd, FM_DAEMON_LOCK, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	if (d->lock_fd < 0)
		fm_die(FM_EXIT_FAILED, "%s/%s: cannot open: %m", d->run_dir, FM_DAEMON_LOCK);
	d->evict_lock_fd = openat(d->run_fd, "evict.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	if (d->evict_lock_fd < 0)
		fm_die(FM_EXIT_FAILED, "%s/evict.lock: cannot open: %m", d->run_dir);
	if (fcntl(d->lock_fd, F_SETLK, &l) == 0)
		return;
	if (d->take_over) {
		char why[FM_STORE_WHY];

		if (daemon_replace(d, why))
			fm_die(FM_EXIT_FAILED, "--takeover: %s", why);
		return;
	}
	l.l_type = F_WRLCK;
	if (fcntl(d->lock_fd, F_GETLK, &l) == 0 && l.l_type != F_UNLCK)
		fm_die(FM_EXIT_FAILED, "%s: in use: fm-faultd of pid %d serves it already", d->run_dir, l.l_pid);
	fm_die(FM_EXIT_FAILED, "%s: in use by another fm-faultd", d->run_dir);
}

static void open_daemon_state(struct faultd *d)
{
	struct fm_daemon_shm *s;
	struct timespec t;
	char why[FM_STORE_WHY];
	size_t regions = regions_left(d);

	if (regions && daemon_state_check(d, why))
		fm_die(FM_EXIT_FAILED, "%s", why);
	/* The same file as before, if there is one: who has it mapped sees us come. */
	d->daemon_fd = openat(d->run_fd, FM_DAEMON_STATE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (d->daemon_fd < 0 || ftruncate(d->daemon_fd, sizeof *s) < 0 ||
	    (errno = posix_fallocate(d->daemon_fd, 0, sizeof *s)) != 0)
		fm_die(FM_EXIT_FAILED, "%s/%s: cannot make: %m", d->run_dir, FM_DAEMON_STATE);
	FM_CRASH_POINT("start-state-made");
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, d->daemon_fd, 0);
	if (s == MAP_FAILED)
		fm_die(FM_EXIT_FAILED, "%s/%s: cannot map: %m", d->run_dir, FM_DAEMON_STATE);
	/* Pages of regions to be taken over lie where the epochs of this table say. */
	if (regions && s->magic == FM_MAGIC_DAEMON && fm_cluster_is_sound(&s->cluster))
		memset(s, 0, offsetof(struct fm_daemon_shm, cluster));
	else
		memset(s, 0, sizeof *s);
	memset(&s->registry, 0, sizeof s->registry);
	FM_CRASH_POINT("start-state-cleared");
	s->version = FM_SHM_VERSION;
	s->pid = getpid();
	s->start_ns = fm_now_ns();
	clock_gettime(CLOCK_REALTIME, &t);
	s->start_realtime_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	strcpy(s->store_uri, d->store_uri);
	s->cluster.sealing = sealing_of(d);
	atomic_store(&s->limit_pages, d->local_pages);
	atomic_store(&s->store_up, 1);
	__atomic_store_n(&s->magic, FM_MAGIC_DAEMON, __ATOMIC_SEQ_CST); /* last: from here on it is one */
	d->daemon = s;
}

static void check_features(struct faultd *d)
{
	int e = fm_uffd_probe(&d->uffd_features);
	uint64_t missing = FM_UFFD_NEEDED & ~d->uffd_features;

	if (e)
		fm_die(FM_EXIT_FAILED, "userfaultfd: %s (fm-faultd --check says more)", strerror(-e));
	for (uint64_t bit = 1; missing && bit; bit <<= 1)
		if (missing & bit)
			fm_die(FM_EXIT_FAILED, "kernel: lacks UFFD_FEATURE_%s: boot Linux 5.19 or newer", fm_uffd_feature_name(bit));
}

/* Note the tags of the epochs by which pages of a region are in the store. */
static void note_tags(const struct fm_region_map *m, uint64_t tags[FM_EPOCH_TAGS / 64])
{
	off_t base = (off_t)m->hdr->words_offset, end = base + (off_t)m->pages * 8, data, hole = base;

	while ((data = lseek(m->fd, hole, SEEK_DATA)) >= 0 && data < end) {
		hole = lseek(m->fd, data, SEEK_HOLE);
		if (hole < 0 || hole > end)
			hole = end;
		for (uint64_t p = (uint64_t)(data - base) / 8; p < (uint64_t)(hole - base) / 8; p++) {
			uint64_t w = fm_ld(&m->words[p]);

			if (w & FM_F_STORED || fm_word_state(w) == FM_REMOTE)
				tags[fm_word_epoch(w) / 64] |= 1ull << (fm_word_epoch(w) % 64);
		}
	}
}

/* There are regions, but the table that says where their pages are was lost. */
static void lost_table(struct faultd *d)
{
	uint64_t tags[FM_EPOCH_TAGS / 64] = {0}, *ids = NULL;
	size_t n = 0;
	int e = fm_shmfile_list(d->run_fd, &ids, &n);

	if (e)
		fm_die(FM_EXIT_FAILED, "%s: cannot read the run directory: %s", d->run_dir, strerror(-e));
	for (size_t i = 0; i < n; i++) {
		char name[FM_REGION_FILE_MAX];
		struct fm_region_map m;

		e = fm_shmfile_region_map(d->run_fd, fm_shmfile_region_name(ids[i], name), FM_SHMFILE_WORDS, &m, NULL);
		if (e == -ENODATA || e == -EPROTO || e == -ENOENT)
			continue; /* nobody can take it over */
		if (e)
			fm_die(FM_EXIT_FAILED, "%s/%s: cannot be read: %s", d->run_dir, name, strerror(-e));
		note_tags(&m, tags);
		fm_shmfile_region_unmap(&m);
	}
	free(ids);
	fm_warn("%s/%s: is new, but there are regions: every server of the store is asked for their pages", d->run_dir, FM_DAEMON_STATE);
	fm_cluster_avoid(&d->daemon->cluster, tags);
}

static void open_store(struct faultd *d)
{
	char why[FM_STORE_WHY] = "";
	size_t regions = regions_left(d);
	int e;

	if (regions && strncmp(d->store_uri, "memcached:", 10) == 0 && !atomic_load(&d->daemon->cluster.epoch_now))
		lost_table(d);
	/* A new key in its place would be the loss of every page that is away. */
	if (regions && d->store_options.key_file && access(d->store_options.key_file, F_OK) < 0)
		fm_die(FM_EXIT_FAILED, "--key-file: %s: %m: pages of %zu region%s in %s are sealed with it", d->store_options.key_file, regions,
		       regions == 1 ? "" : "s", d->run_dir);
	/* A server that is away is an error to a new daemon, but must not keep one from taking its regions over. */
	d->store_options.must_answer = regions == 0;
	d->store_options.make_cluster = true;
	d->store_options.registry = members_wanted(d);
	d->store_options.members = members_first(d);
	d->store_options.cluster = &d->daemon->cluster;
	e = fm_store_open(d->store_uri, &d->store_options, &d->store, why);
	if (e)
		fm_die(e == -EINVAL ? FM_EXIT_USAGE : strncmp(d->store_uri, "dir:", 4) == 0 ? FM_EXIT_FAILED : FM_EXIT_PEER,
		       "--store: %s", why);
	d->daemon->key_print = key_print_of(d);
	d->store_options.must_answer = d->store_options.make_cluster = d->store_options.registry = false;
	d->store_options.again = true;
	d->store_options.members = NULL;
	members_begin(d);
}

static void make_room_for_descriptors(void)
{
	struct rlimit l;

	/* A region takes 5 descriptors and one more a shard. */
	if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
		l.rlim_cur = l.rlim_max;
		setrlimit(RLIMIT_NOFILE, &l);
	}
}

int main(int argc, char **argv)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN) / 2;
	struct faultd d = {
	    .store_uri = "dir:/var/lib/fm",
	    .registry_uri = "none",
	    .local_pages = host_pages() / 2,
	    .shards = cpus < 1 ? 1 : cpus > 4 ? 4 : (unsigned)cpus,
	    .spawn_evictor = true,
	    .user = {.connections = USER_CONNECTIONS, .regions = USER_REGIONS, .pages = FM_LIMIT_NONE},
	    .grace_ms = -1,
	};
	struct arguments a = {.ready_fd = -1};
	char why[FM_STORE_WHY] = "";
	sigset_t signals;
	bool left;
	int e;

	fm_log_init("fm-faultd");
	argv[0] = (char *)"fm-faultd"; /* getopt_long() begins its messages with it */
	d.run_dir = fm_ctl_run_dir(NULL);
	parse(&d, &a, argc, argv);
	if (a.check)
		return check_host(&d);

	/* Open: everything that can be refused is refused here. */
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	make_room_for_descriptors();
	check_features(&d);
	choose_key_file(&d);
	lock_run_dir(&d);
	/* No evictor of an fm-faultd before us may still move pages, or count them. */
	e = evictor_exclude(&d, 0);
	if (e)
		fm_die(FM_EXIT_FAILED, "%s: cannot end the fm-evict of the fm-faultd before: %s", d.run_dir, strerror(-e));
	open_daemon_state(&d);
	FM_CRASH_POINT("start-locked");
	d.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	d.news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	d.evict_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d.epoll_fd < 0 || d.news_fd < 0 || d.evict_fd < 0)
		fm_die(FM_EXIT_FAILED, "cannot make descriptors: %m");
	atomic_init(&d.hold, d.spawn_evictor);
	atomic_init(&d.near, false);
	e = registry_open(&d, why);
	if (e)
		fm_die(e == -ENOENT || e == -EHOSTUNREACH ? FM_EXIT_PEER : FM_EXIT_FAILED, "--registry: %s", why);
	open_store(&d); /* after the registry, which knows its servers best */

	if (region_take_over(&d, why))
		fm_die(FM_EXIT_FAILED, "%s", why);
	registry_regions_known(&d);
	sweep_start(&d);

	FM_CRASH_POINT("start-taken-over");
	if (server_open(&d, why))
		fm_die(FM_EXIT_FAILED, "%s", why);
	FM_CRASH_POINT("start-listening");
	sandbox_enter(&d);
	if (d.spawn_evictor)
		evictor_spawn(&d);
	fm_info("serving %s on %s", d.store_uri, d.run_dir);
	if (a.ready_fd >= 0) {
		if (write(a.ready_fd, "\n", 1) != 1)
			fm_warn("--ready-fd: %d: cannot write: %m", a.ready_fd);
		close(a.ready_fd);
	}
	fm_resolve_patience(1000); /* it holds up the loop */
	server_run(&d);
	left = d.regions != NULL;
	server_close(&d);
	sweep_stop(&d);
	registry_close(&d, left);
	fm_store_close(d.store);
	return FM_EXIT_OK;
}
