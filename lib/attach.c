#include "attach.h"

#include "inject.h"
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STOP_TIMEOUT_NS 10000000000ull
#define RED_ZONE        128 /* bytes below rsp that the stopped function may use: x86-64 ABI */
#define UFFD_FLAGS      (O_CLOEXEC | O_NONBLOCK)
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW 0xaa00u /* _IO(0xAA, 0x00), Linux 6.1 */
#endif

/* Scratch memory in the other process, below its stack: what recvmsg(2) of the device needs. */
struct scratch {
	struct msghdr msg;
	struct iovec iov;
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	int pair[2];
	char byte;
};

/* What the helper is told and what it found; in memory shared with it. */
struct job {
	struct fm_inject in;
	int pidfd, mem_fd;
	int dev_fd;    /* /dev/userfaultfd or -1 */
	bool close;    /* close remote[], else make them */
	struct fm_attach_range small; /* bytes 0: none */
	unsigned n;
	int remote[FM_ATTACH_MAX]; /* -1: none */
	int error;     /* result, -errno; -EIO until it is known */
	struct fm_attach_report report;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- in the window: nothing here may allocate, log or wait --- */

static long call(struct job *j, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	j->report.calls++;
	return fm_inject_call(&j->in, number, a, b, c, d);
}

static int fail(struct job *j, const char *step, long error)
{
	j->report.step = step;
	return (int)error;
}

static void close_remote(struct job *j, int fd)
{
	if (fd >= 0)
		call(j, SYS_close, (uint64_t)fd, 0, 0, 0);
}

/* Send the device into remote socket pair[0]; our own end of it is a duplicate of pair[1]. */
static int send_device(struct job *j, int remote_end)
{
	struct scratch s = {.byte = 'd'};
	struct msghdr m = {.msg_iov = &s.iov, .msg_iovlen = 1, .msg_control = &s.control, .msg_controllen = sizeof s.control};
	int fd = (int)syscall(SYS_pidfd_getfd, j->pidfd, remote_end, 0), e;

	if (fd < 0)
		return -errno;
	s.iov = (struct iovec){.iov_base = &s.byte, .iov_len = 1};
	s.control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(&s.control.head), &j->dev_fd, sizeof(int));
	e = sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 ? 0 : errno;
	close(fd);
	return -e;
}

/* Receive the device in the process. Returns its number there or -errno. at: address of the scratch memory. */
static long receive_device(struct job *j, int remote_end, uint64_t at, struct scratch *s)
{
	uint64_t msg = at + offsetof(struct scratch, msg);
	long r;
	int fd;

	s->iov = (struct iovec){.iov_base = (void *)(uintptr_t)(at + offsetof(struct scratch, byte)), .iov_len = 1};
	s->msg = (struct msghdr){.msg_iov = (void *)(uintptr_t)(at + offsetof(struct scratch, iov)),
				 .msg_iovlen = 1,
				 .msg_control = (void *)(uintptr_t)(at + offsetof(struct scratch, control)),
				 .msg_controllen = sizeof s->control};
	if (pwrite(j->mem_fd, s, sizeof *s, (off_t)at) != sizeof *s)
		return -EFAULT;
	r = call(j, SYS_recvmsg, (uint64_t)remote_end, msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, 0);
	if (r < 0)
		return r;
	if (pread(j->mem_fd, s, sizeof *s, (off_t)at) != sizeof *s)
		return -EFAULT;
	/* Cut off: a security module refused to hand it over. */
	if (s->msg.msg_controllen < CMSG_LEN(sizeof(int)) || s->control.head.cmsg_type != SCM_RIGHTS)
		return -EACCES;
	memcpy(&fd, CMSG_DATA(&s->control.head), sizeof fd);
	return fd;
}

/* The process may not call userfaultfd(2): give it the device, and let that make them. */
static int make_by_device(struct job *j)
{
	uint64_t at = (j->in.saved.rsp - RED_ZONE - sizeof(struct scratch)) & ~63ull;
	struct scratch before, s = {.pair = {-1, -1}};
	long r, dev;

	j->report.by_device = true;
	if (pread(j->mem_fd, &before, sizeof before, (off_t)at) != sizeof before)
		return fail(j, "read its stack", -EFAULT);
	r = call(j, SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, at + offsetof(struct scratch, pair));
	if (r < 0)
		return fail(j, "make a socket pair in it", r);
	if (pread(j->mem_fd, &s, sizeof s, (off_t)at) != sizeof s) {
		r = fail(j, "read its stack", -EFAULT);
		goto put_stack_back;
	}
	r = send_device(j, s.pair[1]);
	if (r) {
		fail(j, "send /dev/userfaultfd to it", r);
		goto close_pair;
	}
	dev = receive_device(j, s.pair[0], at, &s);
	if (dev < 0) {
		r = fail(j, "receive /dev/userfaultfd in it", dev);
		goto close_pair;
	}
	for (unsigned i = 0; i < j->n && r >= 0; i++) {
		r = call(j, SYS_ioctl, (uint64_t)dev, USERFAULTFD_IOC_NEW, UFFD_FLAGS, 0);
		if (r >= 0)
			j->remote[i] = (int)r;
		else
			fail(j, "make a userfaultfd from /dev/userfaultfd in it", r);
	}
	close_remote(j, (int)dev);
close_pair:
	close_remote(j, s.pair[0]);
	close_remote(j, s.pair[1]);
put_stack_back:
	if (pwrite(j->mem_fd, &before, sizeof before, (off_t)at) != sizeof before)
		return fail(j, "put its stack back", -EFAULT);
	return r < 0 ? (int)r : 0;
}

static int make_uffds(struct job *j)
{
	long r = 0;

	for (unsigned i = 0; i < j->n; i++) {
		r = call(j, SYS_userfaultfd, UFFD_FLAGS, 0, 0, 0);
		if (r < 0)
			break;
		j->remote[i] = (int)r;
	}
	if (r == -EPERM && j->dev_fd >= 0 && j->remote[0] < 0)
		r = make_by_device(j);
	else if (r < 0)
		fail(j, "call userfaultfd in it", r);
	return r == -EPERM ? -EACCES : r < 0 ? (int)r : 0;
}

/* A folio of many pages of which one is in use elsewhere is not split: a hole punched into it becomes zeros, not a hole. */
static int forbid_huge(struct job *j)
{
	long r;

	if (!j->small.bytes)
		return 0;
	r = call(j, SYS_madvise, j->small.hva, j->small.bytes, MADV_NOHUGEPAGE, 0);
	return r == 0 || r == -EINVAL ? 0 : fail(j, "forbid huge pages in it", r); /* EINVAL: the kernel has none */
}

/* The stopped window. */
static void window(struct job *j)
{
	uint64_t asked = now_ns(), stopped;
	int r = fm_inject_stop(&j->in, STOP_TIMEOUT_NS);

	stopped = now_ns();
	j->report.wait_ns = stopped - asked;
	if (r) {
		j->error = fail(j, "stop its main thread", r);
		return;
	}
	if (!j->close) {
		r = make_uffds(j);
		if (!r)
			r = forbid_huge(j);
	}
	if (j->close || r)
		for (unsigned i = 0; i < j->n; i++)
			close_remote(j, j->remote[i]);
	fm_inject_resume(&j->in);
	j->report.stopped_ns = now_ns() - stopped;
	j->error = r;
}

/* --- outside of the window --- */

/* What the helper process does. Signals were blocked before the fork. */
_Noreturn static void helper(struct job *j)
{
	struct sched_param rt = {.sched_priority = 1};
	int fd;

	signal(SIGCHLD, SIG_DFL);
	setsid();
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, "-1000", 5) < 0) {
			/* not permitted: as safe as its parent, then */
		}
		close(fd);
	}
	/* The window must not be preempted; best effort. A raw call: musl's wrapper refuses it. */
	syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &rt);
	window(j);
	_exit(0);
}

static int run(struct job *j)
{
	sigset_t all, before;
	pid_t child;
	int e;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	child = fork();
	if (child == 0)
		helper(j);
	e = errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (child < 0)
		return fail(j, "start a helper process", -e);
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	return j->error;
}

/* A field of /proc/PID/status that is a number; 0 when there is none. */
static int status_number(int pid, const char *field)
{
	char path[32], line[256];
	int v = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	while (fgets(line, sizeof line, f))
		if (!strncmp(line, field, strlen(field)) && line[strlen(field)] == ':')
			v = atoi(line + strlen(field) + 1);
	fclose(f);
	return v;
}

static bool is_uffd(int pid, int fd)
{
	static const char want[] = "anon_inode:[userfaultfd]";
	char path[64], target[sizeof want + 1];
	ssize_t n;

	snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
	n = readlink(path, target, sizeof target);
	return n == (ssize_t)sizeof want - 1 && !memcmp(target, want, (size_t)n);
}

int fm_attach_tracer(int pid)
{
	return status_number(pid, "TracerPid");
}

/* Open what the helper needs. */
static int prepare(struct job *j, int pid)
{
	char path[32];
	int r;

	/* 0 and negative numbers mean something else to ptrace and kill. */
	if (pid <= 0)
		return fail(j, "find it", -ESRCH);
	j->in.tid = pid;
	j->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (j->pidfd < 0)
		return fail(j, "find it", errno == EINVAL ? -ESRCH : -errno);
	j->report.tracer = status_number(pid, "TracerPid");
	if (j->report.tracer)
		return fail(j, "stop its main thread", -EBUSY);
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	j->mem_fd = open(path, O_RDWR | O_CLOEXEC);
	if (j->mem_fd < 0)
		return fail(j, "open its memory", errno == ENOENT ? -ESRCH : errno == EACCES ? -EPERM : -errno);
	r = fm_inject_find_insn(pid, j->mem_fd, &j->in.insn);
	if (r)
		return fail(j, "find a syscall instruction in it", r == -EACCES ? -EPERM : r);
	return 0;
}

static struct job *job_new(unsigned n)
{
	struct job *j = mmap(NULL, sizeof *j, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (j == MAP_FAILED)
		return NULL;
	j->pidfd = j->mem_fd = j->dev_fd = -1;
	j->n = n;
	j->error = -EIO;
	j->report.step = "";
	for (unsigned i = 0; i < FM_ATTACH_MAX; i++)
		j->remote[i] = -1;
	return j;
}

static int job_free(struct job *j, int r, struct fm_attach_report *report)
{
	if (r == -EIO)
		fail(j, "run the helper process", r);
	if (j->dev_fd >= 0)
		close(j->dev_fd);
	if (j->mem_fd >= 0)
		close(j->mem_fd);
	if (j->pidfd >= 0)
		close(j->pidfd);
	if (report)
		*report = j->report;
	munmap(j, sizeof *j);
	return r;
}

/* Bring the descriptors over; all or none. */
static int fetch(struct job *j, struct fm_attached *out)
{
	for (unsigned i = 0; i < j->n; i++) {
		out[i].remote = j->remote[i];
		out[i].fd = (int)syscall(SYS_pidfd_getfd, j->pidfd, j->remote[i], 0);
		if (out[i].fd < 0) {
			int e = errno;

			while (i)
				close(out[--i].fd);
			return fail(j, "fetch its userfaultfd", e == EBADF ? -ESRCH : -e);
		}
	}
	return 0;
}

int fm_attach_uffds(int pid, const struct fm_attach_range *small, unsigned n, struct fm_attached *out,
		    struct fm_attach_report *report)
{
	struct job *j;
	int r;

	if (report)
		*report = (struct fm_attach_report){.step = "prepare"};
	if (n == 0 || n > FM_ATTACH_MAX)
		return -EINVAL;
	j = job_new(n);
	if (!j)
		return -ENOMEM;
	if (small)
		j->small = *small;
	j->dev_fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	r = prepare(j, pid);
	if (!r)
		r = run(j);
	if (!r) {
		r = fetch(j, out);
		if (r)
			fm_attach_close(pid, j->remote, n, NULL);
	}
	return job_free(j, r, report);
}

int fm_attach_close(int pid, const int *remote, unsigned n, struct fm_attach_report *report)
{
	struct job *j;
	int r;

	if (report)
		*report = (struct fm_attach_report){.step = "prepare"};
	if (n == 0 || n > FM_ATTACH_MAX)
		return -EINVAL;
	j = job_new(0);
	if (!j)
		return -ENOMEM;
	j->close = true;
	for (unsigned i = 0; i < n; i++)
		if (is_uffd(pid, remote[i]))
			j->remote[j->n++] = remote[i];
	r = prepare(j, pid);
	if (!r && j->n)
		r = run(j);
	return job_free(j, r, report);
}

const char *fm_attach_why(int error)
{
	switch (-error) {
	case ESRCH:
		return "the process is gone";
	case EPERM:
		return "no permission to trace the process: run as root (with CAP_SYS_PTRACE), and set kernel.yama.ptrace_scope below 3";
	case EBUSY:
		return "another process traces it (a debugger or strace): end that first";
	case EACCES:
		return "the process may not make a userfaultfd: load /dev/userfaultfd (Linux 6.1) or set vm.unprivileged_userfaultfd=1";
	case ENOSYS:
		return "no userfaultfd: the kernel lacks CONFIG_USERFAULTFD, or a seccomp filter of the process forbids it";
	case ENOEXEC:
		return "not a 64-bit x86 program that system calls can be made in";
	case ETIMEDOUT:
		return "its main thread did not stop within 10 s: it sleeps uninterruptibly, or its cgroup is frozen";
	case EMFILE:
		return "too many open files, in the process or here";
	case EIO:
		return "the helper process died";
	}
	return "";
}
