/*
 * Least privilege: what a daemon gives up once it has started.
 *
 * Stage 1, capabilities: every thread keeps those of its role alone (FAULTD: CAP_SYS_PTRACE, to read the mappings of clients of other
 * users; EVICT: none), and CAP_DAC_OVERRIDE where a path it still needs cannot be used without. Nothing that it starts can have more.
 * Stage 2, no_new_privs: no program that it starts gains any by set-user-ID bits.
 * Stage 3, a seccomp filter, an allow-list: what is not on it ends the process at once, by SIGSYS, with one line on stderr. No memory
 * becomes executable, no namespaces, no sockets but Unix and IP ones, ioctl(2) on userfaultfds alone. FAULTD may start programs
 * (fm-evict), which inherit the filter; EVICT may not.
 *
 * A sanitizer build has no stage 3 (their run-time uses other calls), TSan's neither the first two in threads that live already; nor has a machine other than x86-64 and AArch64.
 */
#ifndef FM_SANDBOX_H
#define FM_SANDBOX_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* By it the other threads are asked to drop their capabilities, as only they can: a thread that blocks signals must leave it open. */
#define FM_SANDBOX_SIGNAL (SIGRTMAX - 1)

enum fm_sandbox_role { FM_SANDBOX_FAULTD, FM_SANDBOX_EVICT };

/* What came of it. */
struct fm_sandbox {
	uint64_t caps;  /* bit n: capability n was kept */
	bool filter;    /* the seccomp filter is there */
};

/*
 * Enter the sandbox: all threads there are, and all that will be. needs: n paths that the process opens or connects to later on. tool: for
 * the line that the filter's victim prints (kept, not copied). no_filter: leave stage 3 out.
 * Returns 0 and *got, or -errno: some of it may have been done then. Main thread only, once; threads may run, and see EINTR at most.
 */
int fm_sandbox_enter(enum fm_sandbox_role role, const char *tool, const char *const *needs, size_t n, bool no_filter,
		     struct fm_sandbox *got);

/* Names of the capabilities in a bitmap, joined by spaces, into to (cap bytes); "none" without. Returns to. */
const char *fm_sandbox_caps(uint64_t caps, char *to, size_t cap);

#endif
