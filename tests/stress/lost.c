/*
 * A client that expects to lose pages: it fills far memory, and each page it reads later is right, or raises SIGBUS (lost), or
 * is wrong. Linked with libfm.a as any program would be.
 *
 *   lost --size BYTES [--seed N] [--run-dir DIR] [--name NAME] [--local BYTES] [--text TEXT]
 *
 * --text: its bytes (up to 63) stand in the clear in every 512 bytes of each page; the rest does not compress.
 *
 * Prints the seed, then obeys one line of stdin at a time and answers each with one line:
 *
 *   fill           write all pages          -> filled LOST
 *   check          read all pages           -> check: PAGES pages, N right, N lost, N wrong, N of them zeros
 *   which          read all pages          -> lost:, and the numbers of those that are
 *   churn N PAGES  N times read or rewrite one of the first PAGES pages at random -> churned: N lost, N wrong
 *   end            unmap                    -> unmapped
 *
 * Exit 0 at the end of stdin or after `end`, when nothing read wrong; 1 otherwise.
 */
#include <errno.h>
#include <getopt.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fluidmem.h"

#define PAGE 4096u

static unsigned char *memory;
static uint32_t *version; /* of each page, as written last; 0 never */
static size_t pages = 1024;
static uint64_t seed, rnd;
static char text[64];
static unsigned long wrong, zeros;
static sigjmp_buf trap;
static volatile sig_atomic_t armed;

static void on_sigbus(int sig)
{
	if (!armed) {
		signal(sig, SIG_DFL);
		raise(sig);
	}
	siglongjmp(trap, 1);
}

static uint64_t mix(uint64_t *s)
{
	uint64_t x = (*s += 0x9e3779b97f4a7c15ull);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* What page p holds in its version v. */
static void content(size_t p, uint32_t v, uint64_t out[PAGE / 8])
{
	uint64_t s = seed ^ (p * 0x100000001b3ull + v) * 0x9e3779b97f4a7c15ull;

	if (v == 0) {
		memset(out, 0, PAGE);
		return;
	}
	for (unsigned i = 0; i < PAGE / 8; i++)
		out[i] = mix(&s);
	for (unsigned i = 0; *text && i < PAGE; i += 512)
		memcpy((char *)out + i, text, strlen(text));
}

/* memcpy of a page. Returns false when it raised SIGBUS. */
static bool copy(void *to, const void *from)
{
	if (sigsetjmp(trap, 1)) {
		armed = 0;
		return false;
	}
	armed = 1;
	atomic_signal_fence(memory_order_seq_cst); /* the compiler must not move the copy out of here */
	memcpy(to, from, PAGE);
	atomic_signal_fence(memory_order_seq_cst);
	armed = 0;
	return true;
}

/* 1 right, 0 lost, -1 wrong. */
static int look(size_t p)
{
	static const uint64_t none[PAGE / 8];
	uint64_t got[PAGE / 8], want[PAGE / 8];

	if (!copy(got, memory + p * PAGE))
		return 0;
	content(p, version[p], want);
	if (memcmp(got, want, PAGE) == 0)
		return 1;
	if (memcmp(got, none, PAGE) == 0)
		zeros++;
	if (wrong++ < 8)
		fprintf(stderr, "lost: page %zu is wrong: begins %#llx, must be %#llx (version %u)\n", p, (unsigned long long)got[0],
			(unsigned long long)want[0], version[p]);
	return -1;
}

static bool rewrite(size_t p)
{
	uint64_t bytes[PAGE / 8];

	content(p, version[p] + 1, bytes);
	if (!copy(memory + p * PAGE, bytes))
		return false;
	version[p]++;
	return true;
}

static void fill(void)
{
	size_t lost = 0;

	for (size_t p = 0; p < pages; p++)
		lost += !rewrite(p);
	printf("filled %zu\n", lost);
}

static void check(void)
{
	size_t right = 0, lost = 0, bad = 0;
	unsigned long zeros_before = zeros;

	for (size_t p = 0; p < pages; p++) {
		int r = look(p);

		right += r > 0;
		lost += r == 0;
		bad += r < 0;
	}
	printf("check: %zu pages, %zu right, %zu lost, %zu wrong, %lu of them zeros\n", pages, right, lost, bad, zeros - zeros_before);
}

static void which(void)
{
	printf("lost:");
	for (size_t p = 0; p < pages; p++)
		if (look(p) == 0)
			printf(" %zu", p);
	putchar('\n');
}

static void churn(unsigned long n, size_t span)
{
	unsigned long lost = 0, before = wrong;

	while (n--) {
		size_t p = mix(&rnd) % span;

		if (mix(&rnd) & 1)
			lost += !rewrite(p);
		else
			lost += look(p) == 0;
	}
	printf("churned: %lu lost, %lu wrong\n", lost, wrong - before);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
	    {"size", 1, NULL, 's'}, {"seed", 1, NULL, 'r'},  {"run-dir", 1, NULL, 'd'}, {"name", 1, NULL, 'm'},
	    {"local", 1, NULL, 'l'}, {"text", 1, NULL, 't'}, {NULL, 0, NULL, 0},
	};
	struct fm_options o = {.name = "lost"};
	struct sigaction sa = {.sa_handler = on_sigbus, .sa_flags = SA_NODEFER};
	char line[128];
	int c;

	seed = (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's':
			pages = strtoull(optarg, NULL, 0) / PAGE;
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
		case 't':
			snprintf(text, sizeof text, "%s", optarg);
			break;
		default:
			return 2;
		}
	}
	if (!pages)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	rnd = seed;
	sigaction(SIGBUS, &sa, NULL);
	version = calloc(pages, sizeof *version);
	memory = version ? fm_map(pages * PAGE, &o) : NULL;
	if (!memory) {
		fprintf(stderr, "lost: %s\n", strerror(errno));
		return 1;
	}
	printf("lost: seed %llu\n", (unsigned long long)seed);
	while (fgets(line, sizeof line, stdin)) {
		unsigned long n;
		size_t span;

		line[strcspn(line, "\n")] = '\0';
		if (strcmp(line, "fill") == 0)
			fill();
		else if (strcmp(line, "check") == 0)
			check();
		else if (strcmp(line, "which") == 0)
			which();
		else if (sscanf(line, "churn %lu %zu", &n, &span) == 2 && span && span <= pages)
			churn(n, span);
		else if (strcmp(line, "end") == 0)
			break;
		else
			printf("unknown: %s\n", line);
	}
	if (fm_unmap(memory, pages * PAGE)) {
		fprintf(stderr, "lost: fm_unmap: %s\n", strerror(errno));
		return 1;
	}
	printf("unmapped\n");
	free(version);
	return wrong ? 1 : 0;
}
