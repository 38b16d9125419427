#include "log.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tap.h"

static int saved_stderr, pipe_fds[2];

/* From here to caught(), stderr goes into a pipe. */
static void catch(void)
{
	fflush(stderr);
	if (pipe(pipe_fds) < 0)
		abort();
	saved_stderr = dup(STDERR_FILENO);
	dup2(pipe_fds[1], STDERR_FILENO);
	close(pipe_fds[1]);
}

/* What was written to stderr since catch(), NUL-terminated, in a static buffer. Must be less than a pipe holds. */
static const char *caught(void)
{
	static char buf[8192];
	size_t len = 0;
	ssize_t n;

	dup2(saved_stderr, STDERR_FILENO);
	close(saved_stderr);
	while ((n = read(pipe_fds[0], buf + len, sizeof buf - 1 - len)) > 0)
		len += (size_t)n;
	close(pipe_fds[0]);
	buf[len] = '\0';
	return buf;
}

static void test_levels(void)
{
	fm_log_init("fm-test");
	catch();
	fm_warn("region %s: %d pages lost", "db", 3);
	fm_info("not shown");
	fm_debug("not shown");
	is_str(caught(), "fm-test: region db: 3 pages lost\n", "without -v only warnings are printed");
	fm_log_more();
	catch();
	fm_warn("a");
	fm_info("b");
	fm_debug("c");
	is_str(caught(), "fm-test: a\nfm-test: b\n", "-v adds information");
	fm_log_more();
	catch();
	fm_info("b");
	fm_debug("c");
	is_str(caught(), "fm-test: b\nfm-test: c\n", "-v -v adds debug lines");
}

static void test_errno(void)
{
	catch();
	errno = ENOSPC;
	fm_warn("store: %m");
	is_u64(errno, ENOSPC, "errno survives");
	ok(strstr(caught(), strerror(ENOSPC)) != NULL, "%%m is the caller's errno");
	/* The write itself fails: nobody to tell, but errno stays. */
	catch();
	close(STDERR_FILENO);
	errno = EAGAIN;
	fm_warn("into the void");
	ok(errno == EAGAIN, "errno survives a failing write");
	is_str(caught(), "", "nothing was written");
}

static void test_one_line(void)
{
	char big[4096];
	const char *out;

	catch();
	fm_warn("peer says 'a\nb\r\x1b[2Jc\x7f'");
	is_str(caught(), "fm-test: peer says 'a?b??[2Jc?'\n", "control characters cannot make a second line");
	memset(big, 'x', sizeof big - 1);
	big[sizeof big - 1] = '\0';
	catch();
	fm_warn("%s", big);
	out = caught();
	is_u64(strlen(out), 1023, "an overlong message is cut");
	ok(out[strlen(out) - 1] == '\n', "and still ends its line");
}

static void test_die(void)
{
	int status;
	pid_t pid;

	fflush(stdout);
	catch();
	pid = fork();
	if (pid == 0)
		fm_die(FM_EXIT_PEER, "%s: no daemon", "/run/fm");
	waitpid(pid, &status, 0);
	is_str(caught(), "fm-test: /run/fm: no daemon\n", "fm_die says why");
	ok(WIFEXITED(status) && WEXITSTATUS(status) == FM_EXIT_PEER, "fm_die exits with its code");
}

int main(void)
{
	test_levels();
	test_errno();
	test_one_line();
	test_die();
	return tap_done();
}
