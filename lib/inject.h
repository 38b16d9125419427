/*
 * System calls made by a thread of another process, under ptrace(2). x86-64 only.
 *
 * THEORY OF OPERATION
 *   fm_inject_stop() seizes and interrupts the thread, saves its registers and signal mask, and blocks its signals but the
 *   synchronous ones (SIGTRAP, SIGSYS, SIGSEGV: the kernel would reset a handler of a blocked signal that it must force).
 *   fm_inject_call() points rip at a `syscall` instruction that the process has anyway, and single-steps it. The step ends in
 *   a SIGTRAP delivery stop inside the kernel's signal code. fm_inject_resume() puts registers and mask back in that stop and
 *   detaches: on its way out the kernel sees -ERESTART* in rax and the call number in orig_rax as it left them, and restarts
 *   the interrupted call by itself.
 *
 *   Some calls answer an interruption with plain EINTR even when no signal handler ran (signal(7), "stop signals"). For those
 *   rax = -EINTR is put back as -ERESTARTNOHAND, which restarts them; a timeout given to such a call begins anew.
 *
 * THE WINDOW between stop and resume: the thread stands still, and a death of this process costs the other one its life
 * (SIGTRAP) or its signal mask. So in the window: no allocation, no logging, no lock, no waiting but for the thread itself,
 * and all signals of this process blocked. The caller is a process made for this purpose (see attach.c).
 *
 * Not handled: a seccomp filter that kills (not refuses) on an unknown call kills the process.
 */
#ifndef FM_INJECT_H
#define FM_INJECT_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#define FM_INJECT_DEAD (-ESRCH) /* the thread ended while it was being stepped */

struct fm_inject {
	pid_t tid;     /* thread, given by the caller */
	uint64_t insn; /* address of a `syscall` instruction in its process, given by the caller; fm_inject_find_insn() */
	/* Private to inject.c */
	struct user_regs_struct saved;
	uint64_t saved_mask;
	bool dead;
};

/*
 * Find a `syscall` instruction (0f 05) in the process: in its vDSO, else in other executable mappings. mem_fd: /proc/PID/mem
 * open for reading. Returns 0, -ENOEXEC (none found), -ESRCH, -EACCES, -ENOMEM. Before the window.
 */
int fm_inject_find_insn(int pid, int mem_fd, uint64_t *insn);

/*
 * Stop the thread and save it: the window opens. Waits at most timeout_ns for it to stop. SIGCHLD must be blocked and not
 * SIG_IGN. Returns 0; or -EPERM (not allowed, or traced already), -ESRCH, -ETIMEDOUT (it sleeps in the kernel
 * uninterruptibly, or is frozen), -ENOEXEC (it runs 32-bit code). After -ETIMEDOUT the caller must exit: only that takes the
 * pending stop back; after the other errors the thread runs on unchanged.
 */
int fm_inject_stop(struct fm_inject *in, uint64_t timeout_ns);

/*
 * One system call in the stopped thread. It must be one that waits for nothing but locks inside the kernel. Returns its result, -errno of it included;
 * FM_INJECT_DEAD when the thread is gone; -EFAULT or -ENOSYS when it raised SIGSEGV, or SIGSYS (seccomp).
 */
long fm_inject_call(struct fm_inject *in, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d);

/* Put everything back and let the thread run: the window closes. Does nothing when it is gone. */
void fm_inject_resume(struct fm_inject *in);

/* Is call number one that answers a mere stop with EINTR, and may be restarted then? Pure. */
bool fm_inject_restartable(long number);

#endif
