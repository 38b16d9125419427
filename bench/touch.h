/*
 * What the latency programs share: a random order, the clock, percentiles, pinning, and what a server process spent. Not part
 * of fm, and includes nothing of it: the reference is built from this too.
 */
#ifndef BENCH_TOUCH_H
#define BENCH_TOUCH_H

#include <dirent.h>
#include <err.h>
#include <inttypes.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The first word of page i: never 0, and no two are equal. */
static inline uint64_t pattern(size_t page)
{
	return (page + 1) * 0x9e3779b97f4a7c15u;
}

/* Bytes that no compressor makes smaller, so that what travels is as long as what the references send. */
static inline void fill_page(void *page, size_t i)
{
	uint64_t *w = page, x = pattern(i);

	for (size_t k = 0; k < PAGE / sizeof *w; k++) {
		w[k] = x;
		x ^= x << 13, x ^= x >> 7, x ^= x << 17; /* xorshift64: 0 only from 0 */
	}
}

/* 0..n-1 in a random order that is the same in every run; n > 0. The caller frees it. */
static inline uint32_t *random_order(size_t n)
{
	uint32_t *order = n ? malloc(n * sizeof *order) : NULL;
	uint64_t x = 88172645463325252u;

	if (!order)
		err(1, "malloc");
	for (size_t i = 0; i < n; i++)
		order[i] = (uint32_t)i;
	for (size_t i = n; i > 1; i--) {
		uint32_t *a = &order[i - 1], *b, t;

		x ^= x << 13, x ^= x >> 7, x ^= x << 17; /* xorshift64 */
		b = &order[x % i];
		t = *a, *a = *b, *b = t;
	}
	return order;
}

/* Let the thread (0: this one) run on one CPU, or on all for -1. */
static inline void pin(pid_t tid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (long i = 0; i < sysconf(_SC_NPROCESSORS_CONF); i++)
		if (cpu < 0 || i == cpu)
			CPU_SET((size_t)i, &set);
	if (sched_setaffinity(tid, sizeof set, &set) < 0)
		err(1, "cannot run on CPU %d", cpu);
}

/* What a process spent so far, all threads together. */
struct cost {
	uint64_t cpu_ns, sleeps;
};

/* Sum up the cost of a process; pin its threads too when pin_to >= -1. */
static inline struct cost server(pid_t pid, int pin_to)
{
	struct cost c = {0};
	char path[64], line[128];
	struct dirent *d;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		err(1, "%s", path);
	while ((d = readdir(dir))) {
		int tid = atoi(d->d_name);
		uint64_t v;
		FILE *f;

		if (tid <= 0)
			continue;
		if (pin_to >= -1)
			pin(tid, pin_to);
		snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", pid, tid);
		f = fopen(path, "r");
		if (f && fscanf(f, "%" SCNu64, &v) == 1)
			c.cpu_ns += v;
		if (f)
			fclose(f);
		snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
		f = fopen(path, "r");
		while (f && fgets(line, sizeof line, f))
			if (sscanf(line, "voluntary_ctxt_switches: %" SCNu64, &v) == 1)
				c.sleeps += v;
		if (f)
			fclose(f);
	}
	closedir(dir);
	return c;
}

static inline int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Say where we are, and wait for a newline: the script attaches a tracer meanwhile. */
static inline void step(int on, const char *where, pid_t pid)
{
	char c;

	if (!on)
		return;
	printf("%s %d\n", where, pid);
	fflush(stdout);
	while (read(0, &c, 1) == 1 && c != '\n')
		;
}

/*
 * Touch the first n pages of order, one by one, and print the latencies and the server's cost. check: are the pages' words to
 * be pattern()? write: store instead of load. steps: see step(). Returns the number of wrong words.
 */
static inline unsigned touch_pages(volatile unsigned char *base, const uint32_t *order, size_t n, int check, int write_too,
				   int steps, pid_t pid)
{
	uint64_t *ns = malloc(n * sizeof *ns + 1);
	struct cost before, after;
	unsigned wrong = 0;

	if (!ns)
		err(1, "malloc");
	memset(ns, 0, n * sizeof *ns); /* no fault but the measured one */
	step(steps, "ready", pid);
	before = server(pid, -2);
	for (size_t i = 0; i < n; i++) {
		volatile uint64_t *w = (volatile uint64_t *)(base + (size_t)order[i] * PAGE);
		uint64_t t = now_ns(), got = 0;

		if (write_too)
			*w = pattern(order[i]);
		else
			got = *w;
		ns[i] = now_ns() - t;
		wrong += !write_too && check && got != pattern(order[i]);
	}
	after = server(pid, -2);
	step(steps, "done", pid);
	if (n) {
		qsort(ns, n, sizeof *ns, by_value);
		printf("p50_ns=%" PRIu64 "\np99_ns=%" PRIu64 "\n", ns[n / 2], ns[n * 99 / 100]);
		printf("server_cpu_ns=%" PRIu64 "\n", (after.cpu_ns - before.cpu_ns) / n);
		printf("server_sleeps=%.3f\n", (double)(after.sleeps - before.sleeps) / (double)n);
	}
	free(ns);
	return wrong;
}

#endif
