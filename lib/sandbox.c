#include "sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZER 1
#endif
#endif

#ifdef __SANITIZE_THREAD__
#define TSAN 1
#else
#define TSAN 0
#endif

#define BIT(cap) (1ull << (cap))

/* --- capabilities: a property of each thread */

static int get_caps(uint64_t *permitted)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {{0}};

	if (syscall(SYS_capget, &h, d) < 0)
		return -errno;
	*permitted = d[0].permitted | (uint64_t)d[1].permitted << 32;
	return 0;
}

/* Of this thread. Async-signal-safe. */
static int set_caps(uint64_t effective, uint64_t permitted)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {
	    {.effective = (uint32_t)effective, .permitted = (uint32_t)permitted},
	    {.effective = (uint32_t)(effective >> 32), .permitted = (uint32_t)(permitted >> 32)},
	};

	return syscall(SYS_capset, &h, d) < 0 ? -errno : 0;
}

static _Atomic uint64_t call_caps;

static void on_call(int sig)
{
	int e = errno;

	(void)sig;
	set_caps(atomic_load(&call_caps), atomic_load(&call_caps));
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	errno = e;
}

/* Has that thread more permitted capabilities than it shall keep, or may gain some? false when it is gone. */
static bool has_more(pid_t tid, uint64_t keep)
{
	char path[64], line[256];
	unsigned long long caps = 0;
	int nnp = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
	f = fopen(path, "re");
	if (!f)
		return false;
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "CapPrm: %llx", &caps) != 1 && sscanf(line, "NoNewPrivs: %d", &nnp) == 1)
			break; /* the later one */
	fclose(f);
	return (caps & ~keep) || nnp != 1;
}

/* One look at all threads: ask those that have more. Returns how many there were, or -errno. */
static int call_threads(uint64_t keep)
{
	DIR *dir = opendir("/proc/self/task");
	struct dirent *e;
	int n = 0;

	if (!dir)
		return -errno;
	while ((e = readdir(dir))) {
		pid_t tid = atoi(e->d_name);

		if (tid <= 0 || !has_more(tid, keep))
			continue;
		n++;
		syscall(SYS_tgkill, getpid(), tid, FM_SANDBOX_SIGNAL);
	}
	closedir(dir);
	return n;
}

/* As setuid() of a C library does: system calls of one thread, made by all. */
static int drop_in_threads(uint64_t keep)
{
	struct sigaction sa = {.sa_handler = on_call, .sa_flags = SA_RESTART}, old;
	struct timespec nap = {.tv_nsec = 1000000};
	int left = 1;

	if (TSAN)
		return 0; /* its own thread blocks all signals */
	atomic_store(&call_caps, keep);
	sigfillset(&sa.sa_mask);
	if (sigaction(FM_SANDBOX_SIGNAL, &sa, &old) < 0)
		return -errno;
	for (int ms = 0; left > 0 && ms < 2000; ms++) {
		left = call_threads(keep);
		if (left > 0)
			nanosleep(&nap, NULL);
	}
	/* A signal that is on its way to a thread which ended would be fatal without the handler: it stays. */
	return left < 0 ? left : left ? -EBUSY : 0;
}

/* Can the process, with its effective capabilities of now, use what it will need? */
static bool can_use(const char *const *needs, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (syscall(SYS_faccessat2, AT_FDCWD, needs[i], R_OK | W_OK, AT_EACCESS) < 0)
			return false;
	return true;
}

static int drop_capabilities(enum fm_sandbox_role role, const char *const *needs, size_t n, uint64_t *kept)
{
	uint64_t have = 0, keep = role == FM_SANDBOX_FAULTD ? BIT(CAP_SYS_PTRACE) : 0;
	int r = get_caps(&have);

	if (r)
		return r;
	keep &= have;
	/* A try without it: what is permitted can be had back. */
	r = set_caps(keep, have);
	if (r)
		return r;
	if (!can_use(needs, n))
		keep |= have & BIT(CAP_DAC_OVERRIDE);
	r = set_caps(have, have);
	if (r)
		return r;
	/* Who may: nothing that is executed can bring them back. */
	if (have & BIT(CAP_SETPCAP))
		for (unsigned cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
			if (!(keep & BIT(cap)))
				prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	r = set_caps(keep, keep);
	*kept = keep;
	if (r == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		r = -errno;
	return r ? r : drop_in_threads(keep);
}

const char *fm_sandbox_caps(uint64_t caps, char *to, size_t cap)
{
	static const struct {
		unsigned bit;
		const char *name;
	} names[] = {{CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"}, {CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}};
	size_t at = 0;

	snprintf(to, cap, "none");
	for (size_t i = 0; i < sizeof names / sizeof *names && at < cap; i++)
		if (caps & BIT(names[i].bit))
			at += (size_t)snprintf(to + at, cap - at, "%s%s", at ? " " : "", names[i].name);
	return to;
}

/* --- the filter */

#if !defined(SANITIZER) && (defined(__x86_64__) || defined(__aarch64__))

#ifdef __x86_64__
#define ARCH AUDIT_ARCH_X86_64
#else
#define ARCH AUDIT_ARCH_AARCH64
#endif

/* What both daemons may call, whatever the arguments. Calls of the fault path first. */
static const int allowed[] = {
    SYS_read, SYS_pread64, SYS_futex, SYS_ppoll, SYS_sendto, SYS_recvfrom, SYS_write, SYS_pwrite64, SYS_fallocate, SYS_lseek,
#ifdef SYS_poll
    SYS_poll, SYS_select, SYS_epoll_wait, SYS_open, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_unlink, SYS_mkdir, SYS_rmdir,
    SYS_pipe, SYS_dup2, SYS_getdents, SYS_getrlimit, SYS_time, SYS_arch_prctl,
#endif
    /* files and descriptors */
    SYS_readv, SYS_writev, SYS_preadv, SYS_pwritev, SYS_openat, SYS_close, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_statfs, SYS_fstatfs,
    SYS_fcntl, SYS_flock, SYS_ftruncate, SYS_fsync, SYS_fdatasync, SYS_fadvise64, SYS_unlinkat, SYS_mkdirat, SYS_getdents64,
    SYS_faccessat, SYS_faccessat2, SYS_readlinkat, SYS_dup, SYS_dup3, SYS_pipe2, SYS_umask, SYS_getcwd,
    /* events and sockets */
    SYS_pselect6, SYS_epoll_pwait, SYS_epoll_create1, SYS_epoll_ctl, SYS_eventfd2, SYS_signalfd4, SYS_timerfd_create, SYS_timerfd_settime,
    SYS_timerfd_gettime, SYS_connect, SYS_bind, SYS_listen, SYS_accept, SYS_accept4, SYS_sendmsg, SYS_recvmsg, SYS_shutdown, SYS_getsockname,
    SYS_getpeername, SYS_getsockopt, SYS_setsockopt,
    /* memory */
    SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk, SYS_mlock, SYS_munlock, /* keys are locked */
    /* threads, signals, time */
    SYS_set_robust_list, SYS_get_robust_list, SYS_set_tid_address, SYS_membarrier, SYS_rseq, SYS_sched_yield, SYS_sched_getaffinity,
    SYS_sched_setaffinity, SYS_getcpu, SYS_gettid, SYS_getpid, SYS_getppid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_exit,
    SYS_exit_group, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigtimedwait, SYS_rt_sigpending, SYS_sigaltstack,
    SYS_tkill, SYS_tgkill, SYS_kill, SYS_restart_syscall, SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep,
    SYS_gettimeofday, SYS_getrandom, SYS_uname, SYS_sysinfo, SYS_getrusage, SYS_prlimit64,
};

/* What fm-faultd needs besides: to start, watch and end fm-evict, which drops its own privileges and adds a filter; and to know its clients. */
static const int allowed_faultd[] = {
    SYS_execve, SYS_wait4, SYS_waitid, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_pidfd_getfd, SYS_prctl, SYS_capget, SYS_capset,
    SYS_seccomp, SYS_setrlimit,
    SYS_sched_setscheduler, /* shard_near.c: a thread of the lowest class, which takes no privilege */
#ifdef SYS_vfork
    SYS_vfork,
#endif
};

struct program {
	struct sock_filter at[400];
	unsigned n;
};

static void add(struct program *p, uint16_t code, uint32_t k, uint8_t jt, uint8_t jf)
{
	p->at[p->n++] = (struct sock_filter){code, jt, jf, k};
}

static void load(struct program *p, uint32_t offset)
{
	add(p, BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
}

static void result(struct program *p, uint32_t what)
{
	add(p, BPF_RET | BPF_K, what, 0, 0);
}

/* The low half of an argument: little endian, as both machines are. */
static uint32_t argument(unsigned i)
{
	return (uint32_t)offsetof(struct seccomp_data, args) + 8 * i;
}

/* The rest of the block, n instructions, is for that call alone, and ends with a result. The number is loaded. */
static void only_for(struct program *p, int call, uint8_t n)
{
	add(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, n);
}

/* Allowed when none of these bits of an argument is set. */
static void without_bits(struct program *p, int call, unsigned arg, uint32_t bits)
{
	only_for(p, call, 4);
	load(p, argument(arg));
	add(p, BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1);
	result(p, SECCOMP_RET_TRAP);
	result(p, SECCOMP_RET_ALLOW);
}

static void refused(struct program *p, int call, int error)
{
	only_for(p, call, 1);
	result(p, SECCOMP_RET_ERRNO | (uint32_t)error);
}

static void build(struct program *p, enum fm_sandbox_role role)
{
	const uint32_t prot_exec = 4, namespaces = 0x7e020080; /* CLONE_NEW* */

	load(p, offsetof(struct seccomp_data, arch));
	add(p, BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
	result(p, SECCOMP_RET_KILL_PROCESS);
	load(p, offsetof(struct seccomp_data, nr));
	/* ioctl: of userfaultfds (type 0xaa), and what stdio asks of a terminal. */
	only_for(p, SYS_ioctl, 6);
	load(p, argument(1));
	add(p, BPF_JMP | BPF_JEQ | BPF_K, 0x5413 /* TIOCGWINSZ */, 3, 0);
	add(p, BPF_ALU | BPF_AND | BPF_K, 0xff00, 0, 0);
	add(p, BPF_JMP | BPF_JEQ | BPF_K, 0xaa00, 1, 0);
	result(p, SECCOMP_RET_TRAP);
	result(p, SECCOMP_RET_ALLOW);
	for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
		only_for(p, allowed[i], 1);
		result(p, SECCOMP_RET_ALLOW);
	}
	for (size_t i = 0; role == FM_SANDBOX_FAULTD && i < sizeof allowed_faultd / sizeof *allowed_faultd; i++) {
		only_for(p, allowed_faultd[i], 1);
		result(p, SECCOMP_RET_ALLOW);
	}
	without_bits(p, SYS_mmap, 2, prot_exec);
	without_bits(p, SYS_mprotect, 2, prot_exec);
	without_bits(p, SYS_clone, 0, namespaces);
	refused(p, SYS_clone3, ENOSYS); /* its flags are behind a pointer: clone() is used instead */
	only_for(p, SYS_socket, 6);
	load(p, argument(0));
	add(p, BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 3, 0);
	add(p, BPF_JMP | BPF_JEQ | BPF_K, AF_INET, 2, 0);
	add(p, BPF_JMP | BPF_JEQ | BPF_K, AF_INET6, 1, 0);
	result(p, SECCOMP_RET_ERRNO | EAFNOSUPPORT);
	result(p, SECCOMP_RET_ALLOW);
	result(p, SECCOMP_RET_TRAP);
}

static const char *victim;

/* Says which call it was, and dies of it. Async-signal-safe. */
static void on_trap(int sig, siginfo_t *si, void *context)
{
	char line[160], digits[12];
	size_t n = 0, k = sizeof digits;
	unsigned call = si->si_syscall > 0 ? (unsigned)si->si_syscall : 0;
	const char *parts[] = {victim, ": seccomp: system call ", NULL, " is not on the list of this program: it ends here\n"};

	(void)context;
	digits[--k] = '\0';
	do {
		digits[--k] = (char)('0' + call % 10);
		call /= 10;
	} while (call);
	parts[2] = digits + k;
	for (size_t i = 0; i < 4; i++)
		for (const char *c = parts[i]; *c && n < sizeof line; c++)
			line[n++] = *c;
	if (write(STDERR_FILENO, line, n) < 0) {
		/* nobody hears it */
	}
	raise(sig); /* by default now: SA_RESETHAND */
}

static int install_filter(enum fm_sandbox_role role, const char *tool)
{
	struct sigaction sa = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_RESETHAND};
	struct program *p = calloc(1, sizeof *p);
	struct sock_fprog prog;
	long r;

	if (!p)
		return -ENOMEM;
	build(p, role);
	prog = (struct sock_fprog){.len = (unsigned short)p->n, .filter = p->at};
	victim = tool;
	sigaction(SIGSYS, &sa, NULL);
	/* All threads, or none: the id of one that cannot follow is returned. */
	r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog);
	r = r < 0 ? -errno : r > 0 ? -EBUSY : 0;
	free(p);
	return (int)r;
}

#else

static int install_filter(enum fm_sandbox_role role, const char *tool)
{
	(void)role;
	(void)tool;
	return -ENOSYS;
}

#endif

int fm_sandbox_enter(enum fm_sandbox_role role, const char *tool, const char *const *needs, size_t n, bool no_filter,
		     struct fm_sandbox *got)
{
	int r;

	*got = (struct fm_sandbox){0};
	r = drop_capabilities(role, needs, n, &got->caps);
	if (r || no_filter)
		return r;
	r = install_filter(role, tool);
	got->filter = r == 0;
	return r == -ENOSYS || r == -EINVAL ? 0 : r; /* a kernel or a build without: got says so */
}
