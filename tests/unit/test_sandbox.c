/* The sandbox: what is given up is gone, in every thread; what is needed works; what is forbidden ends the process with a line. */
#include "sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tap.h"

#ifdef __SANITIZE_THREAD__
#define TSAN 1
#else
#define TSAN 0
#endif

static bool filters; /* in this build, on this kernel */

/* --- in a child, behind the sandbox. Each returns 0 when it could do it. */

static int do_nothing(void)
{
	return 0;
}

static int do_memory(void)
{
	char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *q = malloc(1 << 20);

	if (p == MAP_FAILED || !q)
		return 1;
	p[0] = q[0] = 1;
	free(q);
	return mprotect(p, 8192, PROT_READ) || munmap(p, 8192);
}

static void *thread(void *arg)
{
	return arg;
}

static int do_thread(void)
{
	pthread_t t;

	return pthread_create(&t, NULL, thread, NULL) || pthread_join(t, NULL);
}

static int do_files(void)
{
	char path[] = "/tmp/fm-sandbox.XXXXXX";
	int fd = mkstemp(path), r;

	r = fd < 0 || write(fd, "x", 1) != 1 || fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1) || ftruncate(fd, 4096);
	close(fd);
	return unlink(path) || r;
}

static int do_sockets(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), u = socket(AF_UNIX, SOCK_STREAM, 0);

	return fd < 0 || u < 0;
}

static int do_run(void)
{
	char *argv[] = {(char *)"true", NULL};
	int status;
	pid_t p;

	return posix_spawn(&p, "/bin/true", NULL, NULL, argv, NULL) || waitpid(p, &status, 0) != p;
}

static int do_executable(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
}

static int do_make_executable(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

static int do_ptrace(void)
{
	return (int)ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static int do_namespace(void)
{
	return unshare(CLONE_NEWUSER);
}

static int do_namespace_by_clone(void)
{
	return (int)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
}

static int do_chmod(void)
{
	return chmod("/tmp/fm-none", 0777);
}

static int do_ioctl(void)
{
	return ioctl(0, FIONCLEX);
}

static int do_setuid(void)
{
	return (int)syscall(SYS_setuid, 65534); /* a C library would block signals around it, and the line with them */
}

static int do_write_to_others(void)
{
	return (int)syscall(SYS_process_vm_writev, getppid(), NULL, 0, NULL, 0, 0);
}

static int do_packets(void)
{
	return socket(AF_PACKET, SOCK_RAW, 0) >= 0 || errno != EAFNOSUPPORT;
}

/* --- children */

struct child {
	int status;
	char text[256]; /* what it said on stderr */
};

static struct child run(enum fm_sandbox_role role, bool no_filter, int (*what)(void))
{
	struct child c = {.status = -1};
	int p[2];
	pid_t pid;
	size_t n = 0;
	ssize_t k;

	fflush(stdout);
	if (pipe(p) < 0 || (pid = fork()) < 0)
		return c;
	if (pid == 0) {
		struct fm_sandbox got;

		dup2(p[1], STDERR_FILENO);
		if (fm_sandbox_enter(role, "test", NULL, 0, no_filter, &got))
			_exit(99);
		_exit(what());
	}
	close(p[1]);
	while (n < sizeof c.text - 1 && (k = read(p[0], c.text + n, sizeof c.text - 1 - n)) > 0)
		n += (size_t)k;
	close(p[0]);
	waitpid(pid, &c.status, 0);
	return c;
}

static bool could(struct child c)
{
	return WIFEXITED(c.status) && WEXITSTATUS(c.status) == 0 && !*c.text;
}

static bool was_ended(struct child c, int call)
{
	char line[128];

	snprintf(line, sizeof line, "test: seccomp: system call %d is not on the list of this program: it ends here\n", call);
	return WIFSIGNALED(c.status) && WTERMSIG(c.status) == SIGSYS && strcmp(c.text, line) == 0;
}

static void test_filter(void)
{
	static const struct {
		const char *what;
		int (*f)(void);
	} good[] = {{"nothing", do_nothing}, {"memory", do_memory},   {"a thread", do_thread},
		    {"files", do_files},     {"sockets", do_sockets}, {"a packet socket is refused, no more", do_packets}};
	static const struct {
		const char *what;
		int (*f)(void);
		int call;
	} bad[] = {{"executable memory", do_executable, SYS_mmap},
		   {"memory made executable", do_make_executable, SYS_mprotect},
		   {"ptrace", do_ptrace, SYS_ptrace},
		   {"a namespace", do_namespace, SYS_unshare},
		   {"a namespace by clone", do_namespace_by_clone, SYS_clone},
		   {"an ioctl of another kind", do_ioctl, SYS_ioctl},
		   {"another user", do_setuid, SYS_setuid},
		   {"another process's memory", do_write_to_others, SYS_process_vm_writev},
#ifdef SYS_chmod
		   {"a mode", do_chmod, SYS_chmod},
#endif
	};
	struct child c;

	for (int role = FM_SANDBOX_FAULTD; role <= FM_SANDBOX_EVICT; role++) {
		const char *name = role == FM_SANDBOX_FAULTD ? "fm-faultd" : "fm-evict";

		for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
			if (good[i].f == do_packets && !filters)
				continue;
			c = run((enum fm_sandbox_role)role, false, good[i].f);
			ok(could(c), "%s may: %s %s", name, good[i].what, c.text);
		}
		for (size_t i = 0; filters && i < sizeof bad / sizeof *bad; i++) {
			c = run((enum fm_sandbox_role)role, false, bad[i].f);
			ok(was_ended(c, bad[i].call), "%s may not: %s (status %#x)", name, bad[i].what, (unsigned)c.status);
		}
	}
	c = run(FM_SANDBOX_FAULTD, false, do_run);
	ok(could(c), "fm-faultd may start a program %s", c.text);
	c = run(FM_SANDBOX_EVICT, false, do_run);
	ok(!filters || (WIFSIGNALED(c.status) && WTERMSIG(c.status) == SIGSYS), "fm-evict may not");
	c = run(FM_SANDBOX_EVICT, true, do_make_executable);
	ok(could(c), "without the filter, all of that works");
}

/* --- capabilities, of a process with threads that live already */

static int stop_fd;

static void *sleeper(void *arg)
{
	struct pollfd p = {.fd = stop_fd, .events = POLLIN};

	while (poll(&p, 1, -1) < 0)
		;
	return arg;
}

/* How many of our threads still have a capability beyond these, or lack no_new_privs, or (want_filter) the filter? */
static int privileged_threads(unsigned long long caps, bool want_filter)
{
	DIR *dir = opendir("/proc/self/task");
	struct dirent *e;
	int n = 0, all = 0;

	while (dir && (e = readdir(dir))) {
		unsigned long long have = 0, effective = 0;
		char path[300], line[256];
		int nnp = 0, filter = 0;
		FILE *f;

		snprintf(path, sizeof path, "/proc/self/task/%s/status", e->d_name);
		if (*e->d_name == '.' || !(f = fopen(path, "re")))
			continue;
		while (fgets(line, sizeof line, f)) {
			sscanf(line, "CapPrm: %llx", &have);
			sscanf(line, "CapEff: %llx", &effective);
			sscanf(line, "NoNewPrivs: %d", &nnp);
			sscanf(line, "Seccomp: %d", &filter);
		}
		fclose(f);
		all++;
		n += ((have | effective) & ~caps) || nnp != 1 || (want_filter && filter != 2);
	}
	if (dir)
		closedir(dir);
	return all < 4 ? 100 : n;
}

/* In a child: threads that live when the sandbox is entered. */
static int threads_too(enum fm_sandbox_role role, unsigned long long caps)
{
	struct fm_sandbox got;
	pthread_t t[3];
	int status = -1;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		stop_fd = eventfd(0, 0);
		for (int i = 0; i < 3; i++)
			pthread_create(&t[i], NULL, sleeper, NULL);
		if (fm_sandbox_enter(role, "test", NULL, 0, false, &got))
			_exit(99);
		if (got.caps & ~caps)
			_exit(98);
		_exit(privileged_threads(caps, got.filter));
	}
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* In a child: is CAP_DAC_OVERRIDE kept for a path that needs it, and only then? */
static int kept_for(const char *path)
{
	struct fm_sandbox got;
	int status = -1;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		if (fm_sandbox_enter(FM_SANDBOX_EVICT, "test", &path, 1, false, &got))
			_exit(99);
		if (access(path, R_OK | W_OK) < 0)
			_exit(98);
		_exit(got.caps == 0 ? 0 : got.caps == 1ull << CAP_DAC_OVERRIDE ? 1 : 97);
	}
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_capabilities(void)
{
	char dir[] = "/tmp/fm-sandbox.XXXXXX", text[64];

	/* TSan has a thread that nobody can ask. */
	if (!TSAN) {
		is_u64(threads_too(FM_SANDBOX_FAULTD, 1ull << CAP_SYS_PTRACE), 0, "fm-faultd: no thread keeps more than CAP_SYS_PTRACE");
		is_u64(threads_too(FM_SANDBOX_EVICT, 0), 0, "fm-evict: no thread keeps a capability");
	}
	ok(strcmp(fm_sandbox_caps(0, text, sizeof text), "none") == 0, "no capability: none");
	ok(strcmp(fm_sandbox_caps(1ull << CAP_SYS_PTRACE | 1ull << CAP_DAC_OVERRIDE, text, sizeof text), "CAP_DAC_OVERRIDE CAP_SYS_PTRACE") == 0,
	   "two by name: %s", text);
	if (geteuid() != 0 || !mkdtemp(dir)) {
		printf("# not root: no paths of others\n");
		return;
	}
	is_u64(kept_for(dir), 0, "a path of our own needs no capability");
	is_u64(chown(dir, 65534, 65534), 0, "given away");
	is_u64(kept_for(dir), 1, "a path of somebody else's keeps CAP_DAC_OVERRIDE, and can be used");
	rmdir(dir);
}

/* Children of a process without threads may make some. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
	return "die_after_fork=0";
}

int main(void)
{
	struct fm_sandbox got;
	int status = -1;
	pid_t pid = fork();

	if (pid == 0)
		_exit(fm_sandbox_enter(FM_SANDBOX_EVICT, "test", NULL, 0, false, &got) ? 99 : got.filter);
	waitpid(pid, &status, 0);
	filters = WIFEXITED(status) && WEXITSTATUS(status) == 1;
	printf("# filters: %s\n", filters ? "on" : "off in this build");
	test_filter();
	test_capabilities();
	return tap_done();
}
