/*
 * timed COMMAND...: run it with its output thrown away, and print ns=TIME. Exit status 1 when the command failed.
 *
 * Execs the command in a child, so that an environment for the command (LD_PRELOAD by env(1)) is not for this program.
 */
#include <err.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int main(int argc, char **argv)
{
	uint64_t t = now_ns();
	int status;
	pid_t pid;

	if (argc < 2)
		return 2;
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (pid == 0) {
		alarm(300); /* survives the exec; without fm-faultd a fault waits for ever */
		if (!freopen("/dev/null", "w", stdout))
			_exit(1);
		execvp(argv[1], argv + 1);
		err(1, "%s", argv[1]);
	}
	if (waitpid(pid, &status, 0) < 0 || status)
		errx(1, "%s: ended with status %d", argv[1], status);
	printf("ns=%" PRIu64 "\n", now_ns() - t);
	return 0;
}
