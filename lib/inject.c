#include "inject.h"

#include "proc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef __x86_64__
#error "process attach knows the registers of x86-64 only"
#endif

#define USER_CS        0x33 /* 64-bit code; 0x23 is 32-bit */
#define INSN_LEN       2
#define SCAN_MAX       (4u << 20) /* bytes of a mapping that are searched */
#define ERESTARTNOHAND 514        /* the kernel's own; never seen by a program */
#define EVENT_STOP     128        /* PTRACE_EVENT_STOP; musl's header has it, glibc's as an enum */

/* glibc makes the request an enum, musl an int. */
static long trace(int request, pid_t tid, uintptr_t addr, uintptr_t data)
{
	return ptrace(request, tid, (void *)addr, (void *)data);
}

static int scan(int mem_fd, const struct fm_mapping *m, uint64_t *insn)
{
	static const unsigned char code[INSN_LEN] = {0x0f, 0x05};
	size_t len = m->end - m->start < SCAN_MAX ? (size_t)(m->end - m->start) : SCAN_MAX;
	char *buf = malloc(len), *hit;
	ssize_t n;
	int r = -ENOENT;

	if (!buf)
		return -ENOMEM;
	n = pread(mem_fd, buf, len, (off_t)m->start);
	hit = n > 0 ? memmem(buf, (size_t)n, code, sizeof code) : NULL;
	if (hit) {
		*insn = m->start + (uint64_t)(hit - buf);
		r = 0;
	}
	free(buf);
	return r;
}

int fm_inject_find_insn(int pid, int mem_fd, uint64_t *insn)
{
	struct fm_mapping *list;
	size_t n;
	int r = fm_proc_maps(pid, &list, &n);

	if (r)
		return r;
	r = -ENOENT;
	for (size_t i = 0; i < n && r == -ENOENT; i++)
		if (!strcmp(list[i].name, "[vdso]"))
			r = scan(mem_fd, &list[i], insn);
	for (size_t i = 0; i < n && r == -ENOENT; i++)
		if (list[i].exec && list[i].read && list[i].name[0] == '/')
			r = scan(mem_fd, &list[i], insn);
	free(list);
	return r == -ENOENT ? -ENOEXEC : r;
}

bool fm_inject_restartable(long number)
{
	switch (number) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_rt_sigtimedwait:
	case SYS_semop:
	case SYS_semtimedop:
	case SYS_read: /* these three: a socket with SO_RCVTIMEO; EINTR says that nothing was received */
	case SYS_recvfrom:
	case SYS_recvmsg:
		return true;
	}
	return false;
}

/* Wait for the interrupted thread, handing on signals that come first. */
static int wait_stop(pid_t tid, uint64_t timeout_ns)
{
	struct timespec now, left = {.tv_sec = (time_t)(timeout_ns / 1000000000), .tv_nsec = (long)(timeout_ns % 1000000000)}, end;
	sigset_t chld;
	int status;

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += left.tv_sec;
	end.tv_nsec += left.tv_nsec;
	for (;;) {
		pid_t r = waitpid(tid, &status, __WALL | WNOHANG);
		int64_t ns;

		if (r < 0 && errno != EINTR)
			return -ESRCH;
		if (r == tid && !WIFSTOPPED(status))
			return -ESRCH;
		if (r == tid && status >> 16 == EVENT_STOP)
			return 0;
		if (r == tid) {
			trace(PTRACE_CONT, tid, 0, (uintptr_t)WSTOPSIG(status));
			continue;
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
		ns = (end.tv_sec - now.tv_sec) * 1000000000ll + (end.tv_nsec - now.tv_nsec);
		if (ns <= 0)
			return -ETIMEDOUT;
		left.tv_sec = (time_t)(ns / 1000000000);
		left.tv_nsec = (long)(ns % 1000000000);
		sigtimedwait(&chld, NULL, &left);
	}
}

int fm_inject_stop(struct fm_inject *in, uint64_t timeout_ns)
{
	uint64_t mask = ~0ull;
	int r;

	in->dead = false;
	if (trace(PTRACE_SEIZE, in->tid, 0, 0) < 0)
		return -errno;
	r = trace(PTRACE_INTERRUPT, in->tid, 0, 0) < 0 ? -errno : wait_stop(in->tid, timeout_ns);
	if (r)
		return r;
	if (trace(PTRACE_GETREGS, in->tid, 0, (uintptr_t)&in->saved) < 0 ||
	    trace(PTRACE_GETSIGMASK, in->tid, sizeof in->saved_mask, (uintptr_t)&in->saved_mask) < 0)
		r = -errno;
	else if (in->saved.cs != USER_CS)
		r = -ENOEXEC;
	if (r) {
		trace(PTRACE_DETACH, in->tid, 0, 0);
		return r;
	}
	/* Signals that the kernel forces stay open: it resets the handler of a blocked one. */
	mask &= ~(1ull << (SIGTRAP - 1) | 1ull << (SIGSYS - 1) | 1ull << (SIGSEGV - 1));
	trace(PTRACE_SETSIGMASK, in->tid, sizeof mask, (uintptr_t)&mask);
	return 0;
}

/* Is a SIGTRAP pending for the stopped thread? */
static bool trap_pending(pid_t tid)
{
	struct { /* struct ptrace_peeksiginfo_args; the C libraries name it differently */
		uint64_t off;
		uint32_t flags;
		int32_t nr;
	} args = {.nr = 1};
	siginfo_t info;

	for (; trace(PTRACE_PEEKSIGINFO, tid, (uintptr_t)&args, (uintptr_t)&info) == 1; args.off++)
		if (info.si_signo == SIGTRAP)
			return true;
	return false;
}

/*
 * Step the instruction that rip points at, to its SIGTRAP stop. A stop of another kind may come before it: somebody sends
 * SIGSTOP or SIGCONT, or seccomp answers with SIGSYS. Then the call is done already when rip has moved, and SIGTRAP is pending;
 * else it is stepped anew. Never leave with SIGTRAP pending: it would kill the process after the detach.
 */
static int step(struct fm_inject *in, struct user_regs_struct *regs)
{
	int request = PTRACE_SINGLESTEP, status, r = 0;

	for (;;) {
		if (trace(request, in->tid, 0, 0) < 0)
			return FM_INJECT_DEAD;
		while (waitpid(in->tid, &status, __WALL) < 0)
			if (errno != EINTR)
				return FM_INJECT_DEAD;
		if (!WIFSTOPPED(status) || trace(PTRACE_GETREGS, in->tid, 0, (uintptr_t)regs) < 0)
			return FM_INJECT_DEAD;
		if (status >> 16 == 0 && WSTOPSIG(status) == SIGTRAP)
			return r;
		if (status >> 16 == 0 && (WSTOPSIG(status) == SIGSYS || WSTOPSIG(status) == SIGSEGV)) {
			r = WSTOPSIG(status) == SIGSYS ? -ENOSYS : -EFAULT;
			if (!trap_pending(in->tid))
				return r;
		}
		request = regs->rip == in->insn && !r ? PTRACE_SINGLESTEP : PTRACE_CONT;
	}
}

long fm_inject_call(struct fm_inject *in, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct user_regs_struct regs = in->saved;
	int r;

	if (in->dead)
		return FM_INJECT_DEAD;
	regs.rip = in->insn;
	regs.rax = (uint64_t)number;
	regs.orig_rax = ~0ull; /* not in a system call: nothing for the kernel to restart */
	regs.rdi = a;
	regs.rsi = b;
	regs.rdx = c;
	regs.r10 = d;
	r = trace(PTRACE_SETREGS, in->tid, 0, (uintptr_t)&regs) < 0 ? FM_INJECT_DEAD : step(in, &regs);
	if (r == FM_INJECT_DEAD)
		in->dead = true;
	return r ? r : (long)regs.rax;
}

void fm_inject_resume(struct fm_inject *in)
{
	struct user_regs_struct regs = in->saved;

	if (in->dead)
		return;
	if ((long)regs.rax == -EINTR && (long)regs.orig_rax >= 0 && fm_inject_restartable((long)regs.orig_rax))
		regs.rax = (uint64_t)-ERESTARTNOHAND;
	trace(PTRACE_SETREGS, in->tid, 0, (uintptr_t)&regs);
	trace(PTRACE_SETSIGMASK, in->tid, sizeof in->saved_mask, (uintptr_t)&in->saved_mask);
	trace(PTRACE_DETACH, in->tid, 0, 0);
	in->dead = true;
}
