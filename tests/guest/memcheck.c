/*
 * memcheck BYTES PASSES [SEED [PROCESSES]]: fill memory, and check that it keeps what was written.
 *
 * Every word depends on its page, its place, the seed and the pass that wrote it, so that a page that is lost, stale, torn or
 * swapped with another shows. Each pass visits the pages in another pseudo-random order, checks each page and writes most of
 * them anew; one in four stays as it is (and is clean, for a pager), one in sixteen is written as zeros. A last pass checks
 * all. Static, no threads, nothing but libc: it runs as a guest's only program.
 *
 * MEMCHECK_UNTIL=FILE in the environment: it goes on with passes until that file is there. MEMCHECK_BREAK=1 changes one byte before the
 * last pass: a checker that finds nothing proves nothing.
 *
 * Ends with `memcheck: checked N MiB, W wrong bytes`; exit status 1 when W is not 0, 2 for bad usage or no memory.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE  4096u
#define WORDS (PAGE / sizeof(uint64_t))
#define NEVER UINT32_MAX

struct job {
	uint64_t *memory;
	uint32_t *written; /* a page's last writing pass, NEVER before the first */
	uint64_t pages;
	uint64_t seed;
	uint64_t wrong; /* bytes */
};

/* splitmix64, public domain (S. Vigna). */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* Place i of a pseudo-random order of n pages: a 4-round Feistel network, walked until it falls below n. */
static uint64_t shuffled(uint64_t i, uint64_t n, uint64_t key)
{
	unsigned half = 1;
	uint64_t mask;

	while ((1ull << (2 * half)) < n)
		half++;
	mask = (1ull << half) - 1;
	do {
		uint64_t l = i >> half, r = i & mask;

		for (unsigned round = 0; round < 4; round++) {
			uint64_t t = l ^ (mix(r ^ key ^ ((uint64_t)round << 56)) & mask);

			l = r;
			r = t;
		}
		i = l << half | r;
	} while (i >= n);
	return i;
}

/* First word of a page as a pass writes it, and the step to the next word: both 0 for a page of zeros. */
static void pattern(const struct job *j, uint64_t page, uint32_t pass, uint64_t *word, uint64_t *step)
{
	uint64_t h = mix(j->seed ^ mix(page << 20 ^ pass));

	*word = pass == NEVER || (h & 15) == 0 ? 0 : h;
	*step = *word ? mix(h) | 1 : 0;
}

static void check_page(struct job *j, uint64_t page, uint32_t now)
{
	const uint64_t *p = j->memory + page * WORDS;
	uint64_t word, step;

	pattern(j, page, j->written[page], &word, &step);
	for (unsigned i = 0; i < WORDS; i++, word += step) {
		uint64_t got = p[i];

		if (got == word)
			continue;
		if (j->wrong == 0)
			printf("memcheck: page %" PRIu64 " word %u in pass %" PRIu32 ": %016" PRIx64 ", pass %" PRId32
			       " wrote %016" PRIx64 "\n",
			       page, i, now, got, (int32_t)j->written[page], word);
		for (uint64_t diff = got ^ word; diff; diff >>= 8)
			j->wrong += (diff & 0xff) != 0;
	}
}

static void write_page(struct job *j, uint64_t page, uint32_t pass)
{
	uint64_t *p = j->memory + page * WORDS;
	uint64_t word, step;

	pattern(j, page, pass, &word, &step);
	for (unsigned i = 0; i < WORDS; i++, word += step)
		p[i] = word;
	j->written[page] = pass;
}

/* Is a pass with this number the last one, which only checks? */
static bool is_last(uint32_t pass, uint32_t passes)
{
	const char *until = getenv("MEMCHECK_UNTIL");

	return pass >= passes && (!until || pass == NEVER - 1 || access(until, F_OK) == 0);
}

static uint64_t run(uint64_t pages, uint32_t passes, uint64_t seed)
{
	struct job j = {.pages = pages, .seed = mix(seed)};
	bool last = false;

	j.memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	j.written = malloc(pages * sizeof *j.written);
	if (j.memory == MAP_FAILED || !j.written) {
		perror("memcheck: no memory");
		exit(2);
	}
	memset(j.written, 0xff, pages * sizeof *j.written);
	for (uint32_t pass = 0; !last; pass++) {
		last = is_last(pass, passes);
		if (last && getenv("MEMCHECK_BREAK"))
			j.memory[pages * WORDS / 2] ^= 0x5a00;
		for (uint64_t i = 0; i < pages; i++) {
			uint64_t page = shuffled(i, pages, j.seed ^ mix(pass));

			check_page(&j, page, pass);
			if (!last && (pass == 0 || mix(page ^ j.seed ^ pass) % 4))
				write_page(&j, page, pass);
		}
	}
	return j.wrong;
}

/* A process of its own for one share of the memory; its wrong bytes come back through fd. */
static pid_t start(uint64_t pages, uint32_t passes, uint64_t seed, int fd)
{
	pid_t pid = fork();

	if (pid == 0) {
		uint64_t wrong = run(pages, passes, seed);

		fflush(stdout);
		_exit(write(fd, &wrong, sizeof wrong) == sizeof wrong ? 0 : 2);
	}
	return pid;
}

int main(int argc, char **argv)
{
	uint64_t bytes = argc > 1 ? strtoull(argv[1], NULL, 0) : 0;
	uint64_t passes = argc > 2 ? strtoull(argv[2], NULL, 0) : 0;
	uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
	uint64_t processes = argc > 4 ? strtoull(argv[4], NULL, 0) : 1;
	uint64_t wrong = 0, pages, one;
	int fds[2], status, failed = 0;

	if (argc < 3 || argc > 5 || !passes || passes > 1000000 || !processes || processes > 64) {
		fprintf(stderr, "usage: memcheck BYTES PASSES [SEED [PROCESSES]]\n");
		return 2;
	}
	pages = bytes / PAGE / processes;
	if (!pages) {
		fprintf(stderr, "memcheck: '%s': less than a page for each process\n", argv[1]);
		return 2;
	}
	if (pipe(fds) < 0) {
		perror("memcheck: pipe");
		return 2;
	}
	for (uint64_t i = 0; i < processes; i++)
		if (start(pages, (uint32_t)passes, seed + i, fds[1]) < 0)
			failed = 1;
	close(fds[1]);
	while (read(fds[0], &one, sizeof one) == sizeof one)
		wrong += one;
	while (wait(&status) > 0)
		failed |= status != 0;
	if (failed) {
		fprintf(stderr, "memcheck: a process failed (killed for want of memory?)\n");
		return 2;
	}
	printf("memcheck: checked %" PRIu64 " MiB, %" PRIu64 " wrong bytes\n", pages * processes * PAGE >> 20, wrong);
	return wrong != 0;
}
