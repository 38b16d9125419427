/*
 * The checker client: threads mix reads, whole and partial page writes, and zeroing on far memory, and compare every word they
 * read with a shadow copy in ordinary memory. Linked with libfm.a as any program would be.
 *
 *   torture --size BYTES [--threads N] [--seconds N] [--seed N] [--run-dir DIR] [--name NAME] [--local BYTES] [--regions N] [--discard]
 *           [--pauses FILE] [--forks] [--rest US]
 *
 * --discard: pages are also discarded (MADV_REMOVE), and before the end a quarter of each region is unmapped.
 * --pauses: a line `START END` (nanoseconds of CLOCK_MONOTONIC) for each operation that took more than 20 ms.
 * --rest: each thread sleeps that long after each operation.
 * --forks: a thread more forks all the while; every other child becomes true(1), the others just end.
 * SIGTERM ends it early; every word is looked at then, too. Prints the seed first, and last `torture: OPS operations, W wrong words`.
 * Exit 0 only with 0 wrong words.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fluidmem.h"

#define PAGE  4096u
#define WORDS (PAGE / 8)

static size_t pages_each = 1024;
static unsigned nthreads = 4, nregions = 1, rest_us;
static uint64_t seed, **memory, **shadow;
static atomic_ulong ops, wrong;
static atomic_bool stop, discard;
static _Atomic uint64_t longest_ns;
static FILE *pauses;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t next_random(uint64_t *s)
{
	uint64_t x = (*s += 0x9e3779b97f4a7c15ull);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void check(const volatile uint64_t *at, const uint64_t *want, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t got = at[i];

		if (got != want[i] && atomic_fetch_add(&wrong, 1) < 8)
			fprintf(stderr, "torture: wrong word at %p: %#llx, must be %#llx\n", (const void *)(at + i),
				(unsigned long long)got, (unsigned long long)want[i]);
	}
}

static void one(uint64_t *rnd, unsigned thread)
{
	uint64_t r = next_random(rnd), region = next_random(rnd) % nregions, page, first, n;
	uint64_t *m, *s;

	/* Threads own interleaved pages: neighbours, and runs, are shared by all of them. */
	page = next_random(rnd) % pages_each;
	if (pages_each < nthreads) { /* too small to share: a thread owns the region */
		region = region - region % nthreads + thread;
		if (region >= nregions)
			return;
	} else {
		page = page - page % nthreads + thread;
		if (page >= pages_each)
			return;
	}
	m = memory[region] + page * WORDS;
	s = shadow[region] + page * WORDS;
	first = next_random(rnd) % WORDS;
	n = 1 + next_random(rnd) % (WORDS - first);
	switch (r % 16) {
	case 0: /* the whole page */
		check(m, s, WORDS);
		for (unsigned i = 0; i < WORDS; i++)
			m[i] = s[i] = next_random(rnd);
		break;
	case 1: /* zeros: goes to no store */
		if (atomic_load(&discard) && r & 16) {
			if (madvise(m, PAGE, MADV_REMOVE) < 0)
				atomic_fetch_add(&wrong, 1);
			memset(s, 0, PAGE);
			if (r & 32)
				check(m, s, WORDS);
			break;
		}
		memset(m, 0, PAGE);
		memset(s, 0, PAGE);
		break;
	case 2:
	case 3:
	case 4:
	case 5: /* a part of it, and what is around */
		for (unsigned i = 0; i < n; i++)
			m[first + i] = s[first + i] = next_random(rnd);
		check(m, s, WORDS);
		break;
	case 6:
	case 7:
	case 8: /* one word, without looking */
		m[first] = s[first] = r;
		break;
	default:
		check(m + first, s + first, (unsigned)n);
		break;
	}
}

/* As a VM's memory is before it becomes far. */
static void *map_as_vm(size_t bytes)
{
	int fd = memfd_create("memory-backend-memfd", MFD_CLOEXEC);
	void *m = fd < 0 || ftruncate(fd, (off_t)bytes) < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return m == MAP_FAILED ? NULL : m;
}

static void *worker(void *arg)
{
	unsigned thread = (unsigned)(uintptr_t)arg;
	uint64_t rnd = seed + thread * 0x1234567ull, t0, d;

	while (!atomic_load(&stop)) {
		t0 = now_ns();
		one(&rnd, thread);
		d = now_ns() - t0;
		while (d > atomic_load(&longest_ns))
			atomic_store(&longest_ns, d);
		if (pauses && d > 20000000)
			fprintf(pauses, "%llu %llu\n", (unsigned long long)t0, (unsigned long long)t0 + d);
		atomic_fetch_add(&ops, 1);
		if (rest_us)
			usleep(rest_us);
	}
	return NULL;
}

static void *forker(void *arg)
{
	for (unsigned n = 0; !atomic_load(&stop); n++) {
		pid_t child = fork();

		if (child == 0) {
			if (n % 2)
				execlp("true", "true", (char *)NULL);
			_exit(0);
		}
		if (child < 0 || waitpid(child, NULL, 0) < 0) {
			perror("torture: fork");
			atomic_fetch_add(&wrong, 1);
			break;
		}
	}
	return arg;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
	    {"size", 1, NULL, 's'},  {"threads", 1, NULL, 't'}, {"seconds", 1, NULL, 'n'}, {"seed", 1, NULL, 'r'},
	    {"run-dir", 1, NULL, 'd'}, {"name", 1, NULL, 'm'},    {"local", 1, NULL, 'l'},   {"regions", 1, NULL, 'g'},
	    {"vm", 0, NULL, 'v'},      {"pauses", 1, NULL, 'p'},  {"discard", 0, NULL, 'x'},
	    {"rest", 1, NULL, 'z'},    {"forks", 0, NULL, 'f'},   {NULL, 0, NULL, 0},
	};
	struct fm_options o = {.name = "torture"};
	unsigned seconds = 10;
	bool vm = false, forks = false;
	pthread_t threads[65];
	sigset_t term;
	int c;

	seed = (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's':
			pages_each = strtoull(optarg, NULL, 0) / PAGE;
			break;
		case 't':
			nthreads = (unsigned)atoi(optarg);
			break;
		case 'n':
			seconds = (unsigned)atoi(optarg);
			break;
		case 'r':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 'd':
			o.run_dir = optarg;
			break;
		case 'm':
			o.name = optarg;
			break;
		case 'l':
			o.local_bytes = strtoull(optarg, NULL, 0);
			break;
		case 'x':
			atomic_store(&discard, true);
			break;
		case 'g':
			nregions = (unsigned)atoi(optarg);
			break;
		case 'v':
			vm = true;
			break;
		case 'z':
			rest_us = (unsigned)atoi(optarg);
			break;
		case 'f':
			forks = true;
			break;
		case 'p':
			pauses = fopen(optarg, "w");
			if (!pauses) {
				perror(optarg);
				return 1;
			}
			break;
		default:
			return 2;
		}
	}
	if (!pages_each || !nthreads || nthreads > 64 || !nregions)
		return 2;
	printf("torture: seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	memory = calloc(nregions, sizeof *memory);
	shadow = calloc(nregions, sizeof *shadow);
	for (unsigned i = 0; i < nregions; i++) {
		memory[i] = vm ? map_as_vm(pages_each * PAGE) : fm_map(pages_each * PAGE, &o);
		shadow[i] = calloc(pages_each, PAGE);
		if (!memory[i] || !shadow[i]) {
			fprintf(stderr, "torture: region %u: %s\n", i, strerror(errno));
			return 1;
		}
	}
	/* Blocked but in sigtimedwait(): one that comes early ends it at once. */
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	for (unsigned i = 0; i < nthreads; i++)
		pthread_create(&threads[i], NULL, worker, (void *)(uintptr_t)i);
	if (forks)
		pthread_create(&threads[nthreads++], NULL, forker, NULL);
	while (sigtimedwait(&term, NULL, &(struct timespec){.tv_sec = seconds}) < 0 && errno == EINTR)
		;
	atomic_store(&stop, true);
	for (unsigned i = 0; i < nthreads; i++)
		pthread_join(threads[i], NULL);
	/* At last every word of it. */
	for (unsigned i = 0; i < nregions; i++) {
		size_t part = atomic_load(&discard) && pages_each >= 4 ? pages_each / 4 : 0, left = pages_each - part;

		if (part && fm_unmap(memory[i] + left * WORDS, part * PAGE)) {
			fprintf(stderr, "torture: fm_unmap of a part: %s\n", strerror(errno));
			return 1;
		}
		for (size_t p = 0; p < left; p++)
			check(memory[i] + p * WORDS, shadow[i] + p * WORDS, WORDS);
		if (!vm && fm_unmap(memory[i], left * PAGE)) {
			fprintf(stderr, "torture: fm_unmap: %s\n", strerror(errno));
			return 1;
		}
		free(shadow[i]);
	}
	free(memory);
	free(shadow);
	if (pauses && fclose(pauses)) {
		perror("torture: --pauses");
		return 1;
	}
	printf("torture: longest operation %llu us\n", (unsigned long long)atomic_load(&longest_ns) / 1000);
	printf("torture: %lu operations, %lu wrong words\n", atomic_load(&ops), atomic_load(&wrong));
	return atomic_load(&wrong) ? 1 : 0;
}
