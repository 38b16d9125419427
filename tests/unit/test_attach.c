/*
 * Attaching to processes that wait in every kind of system call: none may notice. Needs root and userfaultfd.
 */
#include "attach.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proc.h"
#include "tap.h"

#define ROUNDS 150 /* attaches of each kind of process; each is two stops, with the close */
#define NAP_MS 2
#define NOBODY 65534

/* Shared with the child. */
struct seen {
	_Atomic unsigned turns;
	_Atomic unsigned wrong;
	_Atomic int wrong_errno;
	_Atomic int ready;
	_Atomic unsigned signals;
};
static struct seen *seen;
static int epoll_fd, pipe_fd[2], sock_fd[2], sem_id;
static char *shared_page;

static void check(int good)
{
	if (!good) {
		seen->wrong_errno = errno;
		seen->wrong++;
	}
	seen->turns++;
}

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static const struct timespec nap = {.tv_nsec = NAP_MS * 1000000};

static void do_epoll_wait(void)
{
	struct epoll_event e;

	check(epoll_wait(epoll_fd, &e, 1, NAP_MS) == 0);
}

static void do_epoll_pwait(void)
{
	struct epoll_event e;
	sigset_t s;

	sigfillset(&s);
	check(epoll_pwait(epoll_fd, &e, 1, NAP_MS, &s) == 0);
}

static void do_epoll_pwait2(void)
{
	struct epoll_event e;

	check(syscall(SYS_epoll_pwait2, epoll_fd, &e, 1, &nap, NULL, 8) == 0);
}

static void do_poll(void)
{
	struct pollfd p = {.fd = pipe_fd[0], .events = POLLIN};
	uint64_t t = now_us();

	check(poll(&p, 1, NAP_MS) == 0 && now_us() - t >= NAP_MS * 1000);
}

static void do_ppoll(void)
{
	struct pollfd p = {.fd = pipe_fd[0], .events = POLLIN};
	sigset_t s, now;

	sigfillset(&s);
	check(ppoll(&p, 1, &nap, &s) == 0);
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	check(!sigismember(&now, SIGUSR1) && sigismember(&now, SIGUSR2));
}

static void do_select(void)
{
	struct timeval t = {.tv_usec = NAP_MS * 1000};
	fd_set s;

	FD_ZERO(&s);
	FD_SET(pipe_fd[0], &s);
	check(select(pipe_fd[0] + 1, &s, NULL, NULL, &t) == 0);
}

static void do_nanosleep(void)
{
	uint64_t t = now_us();

	check(nanosleep(&nap, NULL) == 0 && now_us() - t >= NAP_MS * 1000);
}

static void do_clock_nanosleep(void)
{
	check(clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL) == 0);
}

static void do_futex(void)
{
	static int word = 7;

	check(syscall(SYS_futex, &word, FUTEX_WAIT, 7, &nap, NULL, 0) < 0 && errno == ETIMEDOUT);
}

static void do_sigtimedwait(void)
{
	sigset_t s;

	sigemptyset(&s);
	sigaddset(&s, SIGUSR2);
	check(sigtimedwait(&s, NULL, &nap) < 0 && errno == EAGAIN);
}

static void do_semtimedop(void)
{
	struct sembuf b = {.sem_op = -1};

	check(semtimedop(sem_id, &b, 1, &nap) < 0 && errno == EAGAIN);
}

static void do_recv_timeout(void)
{
	char c;

	check(recv(sock_fd[0], &c, 1, 0) < 0 && errno == EAGAIN);
	check(read(sock_fd[0], &c, 1) < 0 && errno == EAGAIN);
}

static void do_read_pipe(void)
{
	static unsigned char want;
	unsigned char c = 0;

	check(read(pipe_fd[0], &c, 1) == 1 && c == want++);
}

static void *pipe_writer(void *arg)
{
	unsigned char c = 0;

	(void)arg;
	for (;; c++) {
		nanosleep(&nap, NULL);
		if (write(pipe_fd[1], &c, 1) != 1)
			return NULL;
	}
}

static void start_pipe_writer(void)
{
	pthread_t t;

	pthread_create(&t, NULL, pipe_writer, NULL);
}

/* Never in the kernel: general, flag and floating point registers must survive. */
static void do_compute(void)
{
	volatile double start = 1.0;
	double d = start;
	uint64_t x = 88172645463325252ull, y = 0;

	for (int i = 0; i < 200000; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		y += x;
		d = d * 1.0000001 + 1e-9;
	}
	static uint64_t first_y;
	static double first_d;
	if (!first_y) {
		first_y = y;
		first_d = d;
	}
	check(y == first_y && d == first_d);
}

static void do_short_calls(void)
{
	check(syscall(SYS_getppid) == getppid() && syscall(SYS_lseek, pipe_fd[0], 0, SEEK_CUR) < 0 && errno == ESPIPE);
}

static void on_signal(int sig)
{
	(void)sig;
	seen->signals++;
}

/* A handler runs in the midst of it all: then EINTR is right, and the handler must run every time it is asked to. */
static void do_signals(void)
{
	struct pollfd p = {.fd = pipe_fd[0], .events = POLLIN};
	unsigned before = seen->signals;
	int r = poll(&p, 1, 1000);

	check(r < 0 && errno == EINTR && seen->signals > before);
}

static void start_signals(void)
{
	struct sigaction a = {.sa_handler = on_signal};
	struct itimerval t = {.it_interval.tv_usec = 1700, .it_value.tv_usec = 1700};

	sigaction(SIGALRM, &a, NULL);
	setitimer(ITIMER_REAL, &t, NULL);
}

static const struct kind {
	const char *name;
	void (*turn)(void);
	void (*start)(void);
} kinds[] = {
    {"epoll_wait", do_epoll_wait, NULL},
    {"epoll_pwait", do_epoll_pwait, NULL},
    {"epoll_pwait2", do_epoll_pwait2, NULL},
    {"poll", do_poll, NULL},
    {"ppoll with a signal mask", do_ppoll, NULL},
    {"select", do_select, NULL},
    {"nanosleep", do_nanosleep, NULL},
    {"clock_nanosleep", do_clock_nanosleep, NULL},
    {"futex", do_futex, NULL},
    {"rt_sigtimedwait", do_sigtimedwait, NULL},
    {"semtimedop", do_semtimedop, NULL},
    {"recv and read with SO_RCVTIMEO", do_recv_timeout, NULL},
    {"read of a pipe", do_read_pipe, start_pipe_writer},
    {"computing", do_compute, NULL},
    {"short system calls", do_short_calls, NULL},
    {"poll under SIGALRM", do_signals, start_signals},
};

static int start(const struct kind *k, uid_t uid)
{
	int pid;

	memset(seen, 0, sizeof *seen);
	pid = fork();
	if (pid == 0) {
		struct timeval tv = {.tv_usec = NAP_MS * 1000};
		sigset_t s;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sigemptyset(&s);
		sigaddset(&s, SIGUSR2);
		pthread_sigmask(SIG_SETMASK, &s, NULL);
		epoll_fd = epoll_create1(0);
		if (pipe(pipe_fd) || socketpair(AF_UNIX, SOCK_STREAM, 0, sock_fd))
			_exit(1);
		setsockopt(sock_fd[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
		if (uid && (setgid(uid) || setuid(uid)))
			_exit(1);
		if (k->start)
			k->start();
		for (;;) {
			sigset_t now;

			k->turn();
			seen->ready = 1;
			pthread_sigmask(SIG_SETMASK, NULL, &now);
			if (sigismember(&now, SIGUSR1) || sigismember(&now, SIGALRM) || !sigismember(&now, SIGUSR2))
				seen->wrong++;
		}
	}
	if (pid < 0) {
		perror("fork");
		exit(1);
	}
	for (int i = 0; i < 5000 && !seen->ready; i++)
		usleep(1000);
	return pid;
}

static void stop(int pid)
{
	if (pid <= 0)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static bool alive(int pid)
{
	unsigned t = seen->turns;

	for (int i = 0; i < 5000 && seen->turns < t + 3; i++)
		usleep(1000);
	return waitpid(pid, NULL, WNOHANG) == 0 && seen->turns >= t + 3;
}

static uint64_t samples[ROUNDS];

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void test_kind(const struct kind *k)
{
	struct fm_attach_report rep = {.step = ""};
	struct fm_attached a[2];
	int pid = start(k, 0), r = 0, c = 0, i;

	for (i = 0; i < ROUNDS && !r && !c; i++) {
		r = fm_attach_uffds(pid, NULL, 2, a, &rep);
		if (r)
			break;
		samples[i] = rep.stopped_ns;
		close(a[0].fd);
		close(a[1].fd);
		c = fm_attach_close(pid, (int[]){a[0].remote, a[1].remote}, 2, NULL);
		usleep((unsigned)(i * 37 % 3000));
	}
	ok(r == 0 && c == 0, "%s: %d attaches (%d %s)", k->name, i, r ? r : c, rep.step);
	ok(alive(pid), "%s: still runs", k->name);
	ok(seen->wrong == 0, "%s: nothing noticed in %u turns (%u wrong, errno %d)", k->name, seen->turns, seen->wrong,
	   seen->wrong_errno);
	qsort(samples, (size_t)i, sizeof *samples, by_value);
	if (i)
		printf("# stopped: median %u us, worst %u us\n", (unsigned)(samples[i / 2] / 1000),
		       (unsigned)(samples[i - 1] / 1000));
	stop(pid);
}

/* What came over is a userfaultfd of that process's memory: its page fault comes to us. */
static void fault_turn(void)
{
	if (seen->signals == 1)
		check(*(volatile char *)shared_page == 'x');
	else
		usleep(1000);
	seen->turns++;
}

static bool serve(int fd)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.range = {.start = (uintptr_t)shared_page, .len = 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct pollfd p = {.fd = fd, .events = POLLIN};
	static char page[4096] = "x";
	struct uffdio_copy copy = {.dst = (uintptr_t)shared_page, .src = (uintptr_t)page, .len = 4096};
	struct uffd_msg msg;

	if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		return false;
	seen->signals = 1;
	return poll(&p, 1, 5000) == 1 && read(fd, &msg, sizeof msg) == sizeof msg && msg.event == UFFD_EVENT_PAGEFAULT &&
	       ioctl(fd, UFFDIO_COPY, &copy) == 0;
}

static void test_uffd(uid_t uid, bool by_device)
{
	static const struct kind k = {"fault", fault_turn, NULL};
	struct fm_attach_report rep;
	struct fm_attached a[FM_ATTACH_MAX];
	int pid = start(&k, uid), r;

	r = fm_attach_uffds(pid, NULL, FM_ATTACH_MAX, a, &rep);
	if (ok(r == 0, "%d userfaultfds of a process of uid %u (%d %s)", FM_ATTACH_MAX, (unsigned)uid, r, rep.step)) {
		ok(rep.by_device == by_device, "... %s the device", by_device ? "through" : "without");
		printf("# %u calls, stopped %u us\n", rep.calls, (unsigned)(rep.stopped_ns / 1000));
		ok(fcntl(a[0].fd, F_GETFD) & FD_CLOEXEC, "... ours is close-on-exec");
		ok(serve(a[FM_ATTACH_MAX - 1].fd), "... its fault comes to us");
		ok(alive(pid) && seen->wrong == 0, "... and it reads what we put there");
		is_u64(fm_attach_close(pid, (int[]){a[0].remote, 0, 1, 2, 999}, 5, &rep), 0, "close: other descriptors passed over");
		is_u64(rep.calls, 1, "... and only the userfaultfd closed");
		for (unsigned i = 0; i < FM_ATTACH_MAX; i++)
			close(a[i].fd);
	}
	stop(pid);
}

static void test_stopped(void)
{
	struct fm_attached a;
	int pid = start(&kinds[3], 0), status, r;
	siginfo_t si = {.si_pid = 0};

	kill(pid, SIGSTOP);
	waitpid(pid, &status, WUNTRACED);
	r = fm_attach_uffds(pid, NULL, 1, &a, NULL);
	is_u64(r, 0, "a stopped process");
	waitid(P_PID, (id_t)pid, &si, WSTOPPED | WNOHANG | WNOWAIT);
	unsigned before = seen->turns;
	usleep(20000);
	is_u64(seen->turns, before, "... stays stopped");
	kill(pid, SIGCONT);
	ok(alive(pid) && seen->wrong == 0, "... and goes on when told");
	if (!r)
		close(a.fd);
	stop(pid);
}

static char *volatile file_pages;
#define FILE_BYTES (8u << 20)

/* Fill the file when told to (seen->signals). */
static void fill_turn(void)
{
	if (seen->signals == 1) {
		memset(file_pages, 'y', FILE_BYTES / 2);
		seen->signals = 2;
	}
	usleep(1000);
	seen->turns++;
}

/* Memory on a tmpfs that would have huge pages gets none once it was attached: neither by its own faults nor by ours. */
static void test_small(void)
{
	static const struct kind k = {"fill", fill_turn, NULL};
	struct fm_attach_range small = {.bytes = FILE_BYTES}, gap;
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	struct uffdio_copy copy = {.len = FILE_BYTES / 2};
	struct fm_attach_report rep;
	struct fm_vmflags flags;
	struct fm_attached a;
	uint64_t large;
	int fd, pid, r;

	fd = unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
		     mount("none", "/tmp", "tmpfs", 0, "huge=always,size=64m") == 0
		 ? open("/tmp/f", O_RDWR | O_CREAT | O_CLOEXEC, 0600)
		 : -1;
	if (fd < 0 || ftruncate(fd, FILE_BYTES)) {
		tap_skip("no huge pages", "no tmpfs with huge=always");
		return;
	}
	file_pages = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	small.hva = reg.range.start = copy.dst = (uintptr_t)file_pages;
	for (unsigned round = 0; round < 2; round++) {
		/* First without: what would happen. */
		pid = start(&k, 0);
		r = fm_attach_uffds(pid, round ? &small : NULL, 1, &a, &rep);
		ok(r == 0, "attach to memory on a tmpfs with huge=always, %s (%d %s)", round ? "forbidding them" : "as it is", r, rep.step);
		is_u64(rep.calls, 1 + round, "... %u calls in one stop", 1 + round);
		ok(fm_proc_vmflags(pid, small.hva, &flags) == 0 && flags.nohuge == (round == 1), "... the flag");
		seen->signals = 1;
		for (int i = 0; i < 5000 && seen->signals != 2; i++)
			usleep(1000);
		is_u64(fm_proc_large_folios(fd, 0, FILE_BYTES, &large), 0, "... look");
		ok(seen->signals == 2 && (large > 0) == (round == 0), "... its page faults: %u huge", (unsigned)large);
		if (!r && round) {
			reg.range.len = FILE_BYTES;
			copy.dst = small.hva + FILE_BYTES / 2;
			copy.src = (uintptr_t)file_pages;
			ok(ioctl(a.fd, UFFDIO_API, &api) == 0 && ioctl(a.fd, UFFDIO_REGISTER, &reg) == 0 && ioctl(a.fd, UFFDIO_COPY, &copy) == 0,
			   "... copied to");
			ioctl(a.fd, UFFDIO_UNREGISTER, &reg.range);
			ok(fm_proc_large_folios(fd, 0, FILE_BYTES, &large) == 0 && large == 0, "... %u huge", (unsigned)large);
		}
		if (!r)
			close(a.fd);
		stop(pid);
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, FILE_BYTES);
	}
	pid = start(&k, 0);
	gap = (struct fm_attach_range){.hva = 1u << 16, .bytes = 4096};
	is_u64(fm_attach_uffds(pid, &gap, 1, &a, &rep), -ENOMEM, "memory that is not there");
	is_str(rep.step, "forbid huge pages in it", "... at the right step");
	is_u64(rep.calls, 3, "... and the userfaultfd is closed again");
	ok(alive(pid), "... it lives");
	stop(pid);
	munmap(file_pages, FILE_BYTES);
	close(fd);
}

/* Somebody sends SIGSTOP and SIGCONT all the time. */
static void test_stop_storm(void)
{
	struct fm_attached a;
	int pid = start(&kinds[3], 0), r = 0, storm, i;

	storm = fork();
	if (storm < 0) {
		stop(pid);
		return;
	}
	if (storm == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;) {
			kill(pid, SIGSTOP);
			usleep(50);
			kill(pid, SIGCONT);
			usleep(50);
		}
	}
	for (i = 0; i < ROUNDS && !r; i++) {
		r = fm_attach_uffds(pid, NULL, 1, &a, NULL);
		if (!r) {
			close(a.fd);
			r = fm_attach_close(pid, &a.remote, 1, NULL);
		}
	}
	stop(storm);
	kill(pid, SIGCONT);
	ok(r == 0, "%d attaches under a storm of SIGSTOP and SIGCONT (%d)", i, r);
	ok(alive(pid), "... and it lives");
	stop(pid);
}

static void install_filter(unsigned action)
{
	struct sock_filter f[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, action),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = {.len = sizeof f / sizeof *f, .filter = f};

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p);
}
static void filter_trap(void)
{
	install_filter(SECCOMP_RET_TRAP);
}
static void filter_errno(void)
{
	install_filter(SECCOMP_RET_ERRNO | ENOSYS);
}

static void test_seccomp(const char *name, void (*filter)(void))
{
	const struct kind k = {name, do_poll, filter};
	struct fm_attach_report rep;
	struct fm_attached a;
	int pid = start(&k, 0);

	is_u64(fm_attach_uffds(pid, NULL, 1, &a, &rep), -ENOSYS, "seccomp %s: refused", name);
	is_str(rep.step, "call userfaultfd in it", "... at the right step");
	ok(alive(pid) && seen->wrong == 0, "... and it lives");
	stop(pid);
}

static void test_refusals(void)
{
	struct fm_attach_report rep;
	struct fm_attached a;
	int pid = start(&kinds[3], 0), tracer, status, go[2];

	is_u64(fm_attach_uffds(pid, NULL, 0, &a, NULL), -EINVAL, "no userfaultfd wanted");
	is_u64(fm_attach_uffds(pid, NULL, FM_ATTACH_MAX + 1, &a, NULL), -EINVAL, "too many wanted");
	is_u64(fm_attach_uffds(0, NULL, 1, &a, NULL), -ESRCH, "pid 0");
	is_u64(fm_attach_uffds(-1, NULL, 1, &a, NULL), -ESRCH, "pid -1");

	if (pipe(go))
		return;
	tracer = fork();
	if (tracer == 0) {
		char c = 't';

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ptrace(PTRACE_SEIZE, pid, NULL, NULL);
		if (write(go[1], &c, 1) != 1)
			_exit(1);
		pause();
	}
	char c;
	ok(read(go[0], &c, 1) == 1, "a tracer is there");
	is_u64(fm_attach_uffds(pid, NULL, 1, &a, &rep), -EBUSY, "... traced already");
	is_u64(rep.tracer, tracer, "... by this process");
	stop(tracer);

	int other = fork();
	if (other == 0) {
		if (setgid(NOBODY) || setuid(NOBODY))
			_exit(99);
		_exit(-fm_attach_uffds(pid, NULL, 1, &a, NULL));
	}
	waitpid(other, &status, 0);
	is_u64(WEXITSTATUS(status), EPERM, "no permission to trace");
	ok(alive(pid) && seen->wrong == 0, "... the process lives");
	stop(pid);
	is_u64(fm_attach_uffds(pid, NULL, 1, &a, NULL), -ESRCH, "it is gone");

	pid = fork();
	if (pid == 0)
		_exit(0);
	waitid(P_PID, (id_t)pid, &(siginfo_t){0}, WEXITED | WNOWAIT);
	is_u64(fm_attach_uffds(pid, NULL, 1, &a, NULL), -ESRCH, "a zombie");
	waitpid(pid, NULL, 0);
	ok(*fm_attach_why(-EPERM) && *fm_attach_why(-EBUSY) && !*fm_attach_why(-EDOM), "errors have words");
}

static bool unprivileged_uffd(void)
{
	char c = '0';
	int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY);

	if (fd >= 0) {
		if (read(fd, &c, 1) != 1)
			c = '0';
		close(fd);
	}
	return c != '0';
}

int main(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || geteuid() != 0) {
		tap_skip("attach", "needs root and userfaultfd");
		return tap_done();
	}
	close(fd);
	seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sem_id = semget(IPC_PRIVATE, 1, 0600);
	if (seen == MAP_FAILED || shared_page == MAP_FAILED || sem_id < 0)
		return 1;
	test_uffd(0, false);
	if (unprivileged_uffd())
		tap_skip("through /dev/userfaultfd", "vm.unprivileged_userfaultfd is set");
	else if (access("/dev/userfaultfd", R_OK | W_OK))
		tap_skip("through /dev/userfaultfd", "no /dev/userfaultfd");
	else {
		madvise(shared_page, 4096, MADV_REMOVE);
		test_uffd(NOBODY, true);
	}
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
		test_kind(&kinds[i]);
	test_stopped();
	test_stop_storm();
	test_seccomp("trap", filter_trap);
	test_seccomp("errno", filter_errno);
	test_refusals();
	test_small();
	semctl(sem_id, 0, IPC_RMID);
	return tap_done();
}
