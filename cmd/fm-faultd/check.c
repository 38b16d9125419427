/* fm-faultd --check: will this host do? One line a question, to stdout. */
#include "faultd.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"
#include "sandbox.h"
#include "size.h"

static bool say(bool good, const char *what, const char *detail)
{
	printf("%-14s %s  %s\n", what, good ? "ok  " : "FAIL", detail);
	return good;
}

static bool check_kernel(void)
{
	struct utsname u;
	int major = 0, minor = 0;
	char text[160];

	uname(&u);
	sscanf(u.release, "%d.%d", &major, &minor);
	if (major > 5 || (major == 5 && minor >= 19))
		return say(true, "kernel", u.release);
	snprintf(text, sizeof text, "%.60s: shared-memory write protection needs Linux 5.19: boot a newer kernel", u.release);
	return say(false, "kernel", text);
}

static bool check_userfaultfd(void)
{
	uint64_t features, missing;
	char text[200];
	int e = fm_uffd_probe(&features);

	if (e) {
		snprintf(text, sizeof text, "%s: %s", strerror(-e),
			 e == -ENOSYS ? "the kernel lacks CONFIG_USERFAULTFD"
				      : "run as root, or set sysctl vm.unprivileged_userfaultfd=1, or give access to /dev/userfaultfd");
		return say(false, "userfaultfd", text);
	}
	missing = FM_UFFD_NEEDED & ~features;
	for (uint64_t bit = 1; missing && bit; bit <<= 1)
		if (missing & bit) {
			snprintf(text, sizeof text, "UFFD_FEATURE_%s is missing: needs Linux 5.19 or newer with CONFIG_PTE_MARKER_UFFD_WP",
				 fm_uffd_feature_name(bit));
			return say(false, "userfaultfd", text);
		}
	snprintf(text, sizeof text, "features %#llx%s", (unsigned long long)features,
		 features & FM_UFFD_POISON ? "" : " (no POISON before Linux 6.6: access to a lost page waits instead of SIGBUS)");
	return say(true, "userfaultfd", text);
}

/* Missing and write-protect faults on a memfd really register here. */
static bool check_register(void)
{
	uint64_t features;
	struct fm_uffd u = {.fd = -1, .ops = &fm_uffd_kernel};
	int memfd = memfd_create("fm-check", MFD_CLOEXEC), e = memfd < 0 || ftruncate(memfd, 4096) < 0 ? -errno : 0;
	void *p = e ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	char text[160];

	if (e == 0 && p == MAP_FAILED)
		e = -errno;
	if (e == 0)
		e = fm_uffd_probe(&features);
	if (e == 0)
		u.fd = fm_uffd_open(), e = u.fd < 0 ? u.fd : fm_uffd_api(&u, features);
	if (e == 0)
		e = fm_uffd_register(&u, (uint64_t)(uintptr_t)p, 4096);
	snprintf(text, sizeof text, "%s", e ? strerror(-e) : "a memfd registers for missing and write-protect faults");
	if (u.fd >= 0)
		close(u.fd);
	if (p != MAP_FAILED)
		munmap(p, 4096);
	if (memfd >= 0)
		close(memfd);
	return say(e == 0, "memfd", text);
}

static bool check_ptrace(void)
{
	char line[128] = "";
	unsigned long long caps = 0;
	FILE *f = fopen("/proc/self/status", "re");

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "CapEff: %llx", &caps) == 1)
			break;
	if (f)
		fclose(f);
	if (caps & (1ull << 19))
		return say(true, "CAP_SYS_PTRACE", "can take regions over from a daemon that died");
	return say(false, "CAP_SYS_PTRACE", "missing: regions of other users cannot be taken over after a restart: run as root");
}

/* What is left of our privileges: asked of a child that gives them up as fm-faultd does. */
static bool check_sandbox(const struct faultd *d)
{
	static struct fm_cluster_shm none; /* of no servers: their sockets are not known yet */
	struct {
		int error;
		struct fm_sandbox got;
	} answer = {.error = -EIO};
	const char *needs[SANDBOX_PATHS];
	char text[160], caps[64];
	int p[2] = {-1, -1};
	pid_t child = pipe(p) < 0 ? -1 : fork();

	if (child == 0) {
		size_t n = fm_store_paths(d->store_uri, &none, needs, 1);

		/* A directory that does not exist yet will be our own. */
		n = n && access(needs[0], F_OK) == 0;
		answer.error = fm_sandbox_enter(FM_SANDBOX_FAULTD, "fm-faultd", needs, n, d->no_seccomp, &answer.got);
		_exit(write(p[1], &answer, sizeof answer) != (ssize_t)sizeof answer);
	}
	if (p[1] >= 0)
		close(p[1]);
	if (child > 0 && read(p[0], &answer, sizeof answer) != (ssize_t)sizeof answer)
		answer.error = -EIO;
	if (p[0] >= 0)
		close(p[0]);
	if (child > 0)
		waitpid(child, NULL, 0);
	if (answer.error)
		snprintf(text, sizeof text, "cannot be entered: %s", strerror(-answer.error));
	else
		snprintf(text, sizeof text, "capabilities: %s; seccomp filter: %s; no_new_privs", fm_sandbox_caps(answer.got.caps, caps, sizeof caps),
			 answer.got.filter ? "on" : "off");
	return say(answer.error == 0, "sandbox", text);
}

static bool check_run_dir(const struct faultd *d)
{
	struct statfs fs;
	char text[300], parent[108];
	size_t n = strlen(d->run_dir);
	bool is_there = access(d->run_dir, F_OK) == 0;

	if (n + sizeof "/fm.sock" > sizeof parent) {
		snprintf(text, sizeof text, "%.200s: too long for a socket's path (107 bytes)", d->run_dir);
		return say(false, "run directory", text);
	}
	snprintf(parent, sizeof parent, "%s", d->run_dir);
	if (access(is_there ? d->run_dir : dirname(parent), W_OK | X_OK) < 0) {
		snprintf(text, sizeof text, "%.200s: %s%s", d->run_dir, is_there ? "" : "cannot be made: ", strerror(errno));
		return say(false, "run directory", text);
	}
	if (statfs(d->run_dir, &fs) < 0)
		snprintf(text, sizeof text, "%.200s: will be made", d->run_dir);
	else
		snprintf(text, sizeof text, "%.200s%s", d->run_dir,
			 (uint32_t)fs.f_type == 0x01021994 ? "" : ": is not on tmpfs: page states would be written to a disk");
	return say(true, "run directory", text);
}

/* members: the registry's servers, instead of those of --store; NULL: these. */
static bool check_store(const struct faultd *d, const struct fm_members *members)
{
	const char *what = members ? "registry store" : "store", *name = members ? "the registry's members" : d->store_uri;
	struct fm_store_options o = d->store_options;
	struct fm_store *s;
	char why[FM_STORE_WHY], text[400], a[16], b[16];
	uint64_t used, limit;
	unsigned servers;
	int e;

	/* Every server must be there; and the default key is made by the daemon, not by a question. */
	o.must_answer = true;
	o.no_seal = !o.key_file;
	o.members = members;
	e = fm_store_open(d->store_uri, &o, &s, why);
	if (e)
		return say(false, what, why);
	e = fm_store_usage(s, &used, &limit);
	servers = fm_store_servers(s);
	fm_store_close(s);
	if (e) {
		snprintf(text, sizeof text, "%.200s: %s", name, strerror(-e));
		return say(false, what, text);
	}
	if (used || limit)
		snprintf(text, sizeof text, "%.200s: %s used of %s", name, fm_size_format(used / 4096, a),
			 fm_size_format(limit / 4096, b));
	else
		snprintf(text, sizeof text, "%.200s: answers, %u servers", name, servers);
	return say(true, what, text);
}

static bool check_registry(const struct faultd *d)
{
	struct fm_members members = {.n = 0};
	char why[FM_STORE_WHY];

	if (registry_probe(d->registry_uri, &members, why))
		return say(false, "registry", why);
	say(true, "registry", d->registry_uri);
	/* These are the ones that will be used, whatever --store names. */
	return !members.n || strncmp(d->store_uri, "memcached:", 10) != 0 || check_store(d, &members);
}

int check_host(const struct faultd *d)
{
	bool good = check_kernel();

	good &= check_userfaultfd();
	good &= check_register();
	good &= check_ptrace();
	good &= check_sandbox(d);
	good &= check_run_dir(d);
	good &= check_store(d, NULL);
	good &= check_registry(d);
	return good ? FM_EXIT_OK : FM_EXIT_FAILED;
}
