/*
 * A client that does what its arguments say, one after the other; the bats tests' hands. Linked with libfm.a.
 *
 *   client map:NAME:PAGES[:LOCAL_BYTES] fill:0:PAGES:7 say:filled until:/path/of/a/file check:0:PAGES:7 ...
 *
 *   map:NAME:PAGES[:LOCAL]  far memory; the later steps are about the region mapped last, in its pages
 *   maps:NAME:PAGES:COUNT   COUNT regions; the later steps are about the last
 *   fill:FIRST:N:TAG        write every word: what a page holds follows from its number and the tag
 *   check:FIRST:N:TAG       read every word; TAG 0: zeros
 *   zero:FIRST:N            write zeros
 *   plain:FIRST:N           write what compresses well
 *   remove:FIRST:N          MADV_REMOVE
 *   munmap:FIRST:N          munmap(2), behind libfm's back
 *   unmap:FIRST:N           fm_unmap
 *   move:N                  mremap(2) of all N pages to another address
 *   old:ERRNAME             fm_unmap of where that was before, and where something else is now: fails, and harms nothing
 *   movepart:FIRST:N        mremap(2) of these pages to another address
 *   bus:N:TAG               of the first N pages of what movepart moved, those that are away raise SIGBUS; the others are right
 *   lone:N:FILE             read of the first N pages one at a time, in no order, until the file exists
 *   realtime                SCHED_FIFO, for this thread
 *   vanish:N                all N pages are unmapped and all that was open for far memory is closed, behind everybody's back
 *   munmaps:FIRST:N         munmap(2) by another thread, which nobody waits for
 *   nofile:N                RLIMIT_NOFILE
 *   crowd                   so many mappings that none can be cut in two any more
 *   forks:N                 N children, one after the other, while a thread maps and unmaps; each calls libfm and must come back
 *   exec                    become sleep(1)
 *   fork                    a child that does nothing for ten minutes, with all our descriptors
 *   say:TEXT                a line to stdout
 *   until:FILE              wait until the file exists
 *   must-fail:ERRNAME:STEP  the step is a map that must fail with ENOENT, EPERM ...
 *
 * Exit 0 when all was done and every word was right; 1 else, with a line on stderr.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fluidmem.h"

#define PAGE  4096u
#define WORDS (PAGE / 8)

static volatile uint64_t *memory;

static uint64_t word(uint64_t tag, uint64_t page, unsigned i)
{
	uint64_t x = tag * 0x9e3779b97f4a7c15ull + page * WORDS + i;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	return tag ? x ^ (x >> 27) : 0;
}

static bool map(char **a)
{
	struct fm_options o = {.name = a[1], .local_bytes = a[2] && a[3] ? strtoull(a[3], NULL, 0) : 0};

	if (!a[1] || !a[2])
		return false;
	memory = fm_map(strtoull(a[2], NULL, 0) * PAGE, &o);
	return memory != NULL;
}

static bool maps(char **a)
{
	struct fm_options o = {.name = a[1]};

	if (!a[1] || !a[2] || !a[3])
		return false;
	for (int i = atoi(a[3]); i > 0; i--) {
		memory = fm_map(strtoull(a[2], NULL, 0) * PAGE, &o);
		if (!memory)
			return false;
	}
	return true;
}

static void *old;

static bool move(uint64_t n)
{
	void *to = mmap(NULL, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (to == MAP_FAILED)
		return false;
	old = (void *)(uintptr_t)memory;
	to = mremap(old, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (to == MAP_FAILED)
		return false;
	memory = to;
	return true;
}

static bool unmap_old(const char *error)
{
	uint64_t *p = !error ? MAP_FAILED : mmap(old, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED)
		return false;
	*p = 7;
	return fm_unmap(old, PAGE) < 0 && strcmp(strerrorname_np(errno), error) == 0 && *p == 7 && munmap(p, PAGE) == 0;
}

static const volatile uint64_t *part;
static uint64_t part_first;

static bool move_part(uint64_t first, uint64_t n)
{
	void *to = mmap(NULL, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (to == MAP_FAILED)
		return false;
	part_first = first;
	part = mremap((void *)(uintptr_t)(memory + first * WORDS), n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	return part != MAP_FAILED;
}

static sigjmp_buf trap;

static void on_sigbus(int sig)
{
	(void)sig;
	siglongjmp(trap, 1);
}

/* Some must raise it: else nothing of the part was away. */
static bool bus(uint64_t n, uint64_t tag)
{
	volatile unsigned raised = 0;

	if (!part)
		return false;
	signal(SIGBUS, on_sigbus);
	alarm(60);
	for (volatile uint64_t p = 0; p < n; p++) {
		if (sigsetjmp(trap, 1)) {
			raised++;
			continue;
		}
		if (part[p * WORDS] != word(tag, part_first + p, 0))
			return false;
	}
	alarm(0);
	signal(SIGBUS, SIG_DFL);
	return raised > 0;
}

/* No event tells of it, and the next region's descriptors have the numbers of these. */
static bool vanish(uint64_t n)
{
	struct uffdio_range all = {.start = (uint64_t)(uintptr_t)memory, .len = n * PAGE};
	char path[32], to[64];
	ssize_t len;

	for (int turn = 0; turn < 2; turn++) {
		for (int fd = 3; fd < 256; fd++) {
			snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
			len = readlink(path, to, sizeof to - 1);
			to[len > 0 ? len : 0] = '\0';
			if (strcmp(to, "anon_inode:[userfaultfd]") == 0 && turn == 0)
				ioctl(fd, UFFDIO_UNREGISTER, &all);
			else if (turn == 1 && (strcmp(to, "anon_inode:[userfaultfd]") == 0 || strncmp(to, "/memfd:fm:", 10) == 0))
				close(fd);
		}
		if (turn == 0 && munmap((void *)(uintptr_t)memory, n * PAGE) < 0)
			return false;
	}
	return true;
}

static uint64_t later[2];

static void *munmap_later(void *arg)
{
	(void)arg;
	munmap((void *)(uintptr_t)(memory + later[0] * WORDS), later[1] * PAGE);
	return NULL;
}

static bool munmaps(uint64_t first, uint64_t n)
{
	pthread_t thread;

	later[0] = first;
	later[1] = n;
	return pthread_create(&thread, NULL, munmap_later, NULL) == 0;
}

static bool lone(uint64_t n, const char *file)
{
	uint64_t x = 1;

	for (unsigned i = 1; n && (i % 64 || access(file, F_OK) != 0); i++) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		(void)memory[(x >> 33) % n * WORDS];
	}
	return n;
}

static void fill(uint64_t first, uint64_t n, uint64_t tag)
{
	for (uint64_t p = first; p < first + n; p++)
		for (unsigned i = 0; i < WORDS; i++)
			memory[p * WORDS + i] = word(tag, p, i);
}

static bool check(uint64_t first, uint64_t n, uint64_t tag)
{
	uint64_t wrong = 0;

	for (uint64_t p = first; p < first + n; p++)
		for (unsigned i = 0; i < WORDS; i++)
			if (memory[p * WORDS + i] != word(tag, p, i) && wrong++ < 3)
				fprintf(stderr, "client: page %llu word %u is wrong\n", (unsigned long long)p, i);
	if (wrong)
		fprintf(stderr, "client: %llu wrong words\n", (unsigned long long)wrong);
	errno = EIO;
	return wrong == 0;
}

/* Each second page of a range gets a protection of its own, until the kernel has no mapping more for us. */
static bool crowd(void)
{
	size_t bytes = 1ul << 32;
	char *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	for (size_t at = PAGE; p != MAP_FAILED && at < bytes; at += 2ul * PAGE)
		if (mprotect(p + at, PAGE, PROT_NONE) < 0)
			return errno == ENOMEM;
	return false;
}

static void *map_and_unmap(void *stop)
{
	const size_t all = 4ul << 30;

	while (!atomic_load((atomic_bool *)stop)) {
		char *p = fm_map(all, NULL);

		if (!p || fm_unmap(p, all / 2) || fm_unmap(p, all)) {
			perror("client: a thread that maps and unmaps");
			exit(1);
		}
	}
	return NULL;
}

static bool forks(uint64_t n)
{
	atomic_bool stop = false;
	pthread_t thread;
	int status = 0;

	if (pthread_create(&thread, NULL, map_and_unmap, &stop))
		return false;
	for (uint64_t i = 0; i < n && status == 0; i++) {
		pid_t child = fork();

		if (child == 0) {
			alarm(20);
			_exit(fm_unmap(&stop, PAGE) == 0 || errno != EINVAL);
		}
		if (child < 0 || waitpid(child, &status, 0) < 0)
			return false;
	}
	atomic_store(&stop, true);
	pthread_join(thread, NULL);
	errno = EDEADLK;
	return status == 0;
}

static bool step(char *text)
{
	static const struct timespec nap = {.tv_nsec = 10000000};
	char *a[6] = {text}, *rest;
	uint64_t n[4];
	int k = 1;

	if (strncmp(text, "must-fail:", 10) == 0) {
		bool failed;

		rest = strchr(text + 10, ':');
		if (!rest)
			return false;
		*rest++ = '\0';
		failed = !step(rest);
		/* glibc's name of the error: ENOENT, not its number. */
		if (failed && strcmp(strerrorname_np(errno), text + 10) == 0)
			return true;
		fprintf(stderr, "client: %s, must be %s\n", failed ? strerrorname_np(errno) : "it did not fail", text + 10);
		exit(1);
	}
	if (strncmp(text, "say:", 4) == 0)
		return puts(text + 4) >= 0 && fflush(stdout) == 0;
	if (strncmp(text, "until:", 6) == 0) {
		while (access(text + 6, F_OK) < 0)
			nanosleep(&nap, NULL);
		return true;
	}
	while (k < 5 && (a[k] = strchr(a[k - 1], ':'))) {
		*a[k]++ = '\0';
		k++;
	}
	for (int i = 0; i < 3; i++)
		n[i] = i + 1 < k ? strtoull(a[i + 1], NULL, 0) : 0;
	if (strcmp(a[0], "map") == 0)
		return map(a);
	if (strcmp(a[0], "maps") == 0)
		return maps(a);
	if (strcmp(a[0], "fill") == 0)
		return fill(n[0], n[1], n[2]), true;
	if (strcmp(a[0], "check") == 0)
		return check(n[0], n[1], n[2]);
	if (strcmp(a[0], "zero") == 0)
		return memset((void *)(uintptr_t)(memory + n[0] * WORDS), 0, n[1] * PAGE), true;
	if (strcmp(a[0], "plain") == 0) {
		for (uint64_t i = n[0] * WORDS; i < (n[0] + n[1]) * WORDS; i++)
			memory[i] = 1 + i / WORDS;
		return true;
	}
	if (strcmp(a[0], "remove") == 0)
		return madvise((void *)(uintptr_t)(memory + n[0] * WORDS), n[1] * PAGE, MADV_REMOVE) == 0;
	if (strcmp(a[0], "munmap") == 0)
		return munmap((void *)(uintptr_t)(memory + n[0] * WORDS), n[1] * PAGE) == 0;
	if (strcmp(a[0], "unmap") == 0)
		return fm_unmap((void *)(uintptr_t)(memory + n[0] * WORDS), n[1] * PAGE) == 0;
	if (strcmp(a[0], "move") == 0)
		return move(n[0]);
	if (strcmp(a[0], "old") == 0)
		return unmap_old(a[1]);
	if (strcmp(a[0], "movepart") == 0)
		return move_part(n[0], n[1]);
	if (strcmp(a[0], "bus") == 0)
		return bus(n[0], n[1]);
	if (strcmp(a[0], "vanish") == 0)
		return vanish(n[0]);
	if (strcmp(a[0], "munmaps") == 0)
		return munmaps(n[0], n[1]);
	if (strcmp(a[0], "lone") == 0)
		return a[1] && a[2] && lone(n[0], a[2]);
	if (strcmp(a[0], "realtime") == 0)
		return sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1}) == 0;
	if (strcmp(a[0], "nofile") == 0)
		return setrlimit(RLIMIT_NOFILE, &(struct rlimit){n[0], n[0]}) == 0;
	if (strcmp(a[0], "crowd") == 0)
		return crowd();
	if (strcmp(a[0], "forks") == 0)
		return forks(n[0]);
	if (strcmp(a[0], "fork") == 0) {
		pid_t child = fork();

		if (child == 0) {
			sleep(600);
			_exit(0);
		}
		return child > 0;
	}
	if (strcmp(a[0], "exec") == 0)
		return execlp("sleep", "sleep", "600", (char *)NULL) == 0;
	fprintf(stderr, "client: %s: no such step\n", text);
	exit(2);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		/* Steps are cut up; argv stays for whoever looks at the process. */
		char *text = strdup(argv[i]);

		if (!text || !step(text)) {
			fprintf(stderr, "client: %s: %s\n", argv[i], strerror(errno));
			free(text);
			return 1;
		}
		free(text);
	}
	return 0;
}
