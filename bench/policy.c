/*
 * Which page leaves: misses of plain FIFO, of a random choice, of lib/victims and of Belady's optimum, for one trace after another.
 *
 *   policy [-j]         synthetic traces, and two recorded here and now from libc: qsort(), and tfind() in a tree
 *   policy [-j] -f FILE a trace of yours: a page number a line, or valgrind's (valgrind --tool=lackey --trace-mem=yes PROG);
 *                       - is the standard input
 *
 * Misses are counted, not time, and the synthetic traces depend on their seed only: every run prints the same. The
 * optimum sees the future, and the others but ours and random may not be worse than FIFO for "worst". -j: JSON.
 */
#include <ctype.h>
#include <err.h>
#include <errno.h>
#include <inttypes.h>
#include <search.h>
#include <stdio.h>
#include <unistd.h>

#include "policy_sim.h"

#define PAGES 16384u
#define STEPS (40 * (size_t)PAGES)

/* --- recorded traces */

#define RECORD 256u

static struct trace recording;
static size_t recording_room;
static const unsigned char *recording_base;

static void record(uint32_t page)
{
	if (recording.n && recording.at[recording.n - 1] == page)
		return;
	if (recording.n == recording_room) {
		recording_room = recording_room ? 2 * recording_room : 1u << 16;
		recording.at = realloc(recording.at, recording_room * sizeof(uint32_t));
		if (!recording.at)
			err(1, "trace");
	}
	recording.at[recording.n++] = page;
	if (page >= recording.pages)
		recording.pages = page + 1;
}

static struct trace recorded(void)
{
	struct trace t = recording;

	recording = (struct trace){0};
	recording_room = 0;
	return t;
}

static int compare(const void *a, const void *b)
{
	uint64_t x, y;

	record((uint32_t)(((const unsigned char *)a - recording_base) / 4096));
	record((uint32_t)(((const unsigned char *)b - recording_base) / 4096));
	memcpy(&x, a, sizeof x);
	memcpy(&y, b, sizeof y);
	return x < y ? -1 : x > y;
}

static unsigned char *records(size_t n, uint64_t seed)
{
	struct sim_rng r = {seed};
	unsigned char *v = aligned_alloc(4096, n * RECORD);

	if (!v)
		err(1, "records");
	memset(v, 0, n * RECORD);
	for (size_t i = 0; i < n; i++) {
		uint64_t key = sim_random(&r);

		memcpy(v + i * RECORD, &key, sizeof key);
	}
	recording_base = v;
	return v;
}

/* Records of 256 bytes, sorted by libc; what its comparisons touch. */
static struct trace record_qsort(void)
{
	size_t n = 65536;
	unsigned char *v = records(n, 3);

	qsort(v, n, RECORD, compare);
	free(v);
	return recorded();
}

static void nothing(void *p)
{
	(void)p;
}

/* Look-ups in a balanced tree over such records, zipfian. */
static struct trace record_tree(void)
{
	size_t n = 65536;
	struct sim_rng r = {5};
	struct sim_zipf z = sim_zipf_new(&r, (uint32_t)n, 0.99);
	unsigned char *v = records(n, 4);
	void *root = NULL;

	for (size_t i = 0; i < n; i++)
		if (!tsearch(v + i * RECORD, &root, compare))
			err(1, "tree");
	for (size_t i = 0; i < 60000; i++)
		if (!tfind(v + (size_t)sim_zipf_next(&r, &z) * RECORD, &root, compare))
			errx(1, "tree: a record is not found");
	tdestroy(root, nothing);
	sim_zipf_free(&z);
	free(v);
	return recorded();
}

/* One access: a page number, or a line of lackey's (" L 04222c5c,8", "I  04000c30,3"). Returns false for another line. */
static bool parse(const char *line, uint64_t *page)
{
	char *end;

	while (isspace((unsigned char)*line))
		line++;
	if (isdigit((unsigned char)*line)) {
		*page = strtoull(line, &end, 10);
		return *end == '\0' || isspace((unsigned char)*end);
	}
	if (!strchr("LSMI", *line) || !isspace((unsigned char)line[1]))
		return false;
	*page = strtoull(line + 1, &end, 16) / 4096;
	return *end == ',';
}

/* Page numbers may be anything: they are numbered anew as they come, by an open hash table. */
static struct trace read_trace(const char *path)
{
	size_t slots = 1u << 22;
	uint64_t *key = calloc(slots, sizeof *key), page;
	uint32_t *number = calloc(slots, sizeof *number), pages = 0;
	char line[256];

	if (strcmp(path, "-") && !freopen(path, "r", stdin))
		err(1, "%s", path);
	if (!key || !number)
		err(1, "trace");
	while (fgets(line, sizeof line, stdin)) {
		size_t i;

		if (!parse(line, &page))
			continue;
		for (i = (size_t)((page + 1) * 0x9e3779b97f4a7c15u >> 42); key[i] && key[i] != page + 1; i = (i + 1) % slots)
			;
		if (!key[i]) {
			if (pages == slots / 2)
				errx(1, "%s: more than %zu pages", path, slots / 2);
			key[i] = page + 1;
			number[i] = pages++;
		}
		record(number[i]);
	}
	free(key);
	free(number);
	if (!recording.n)
		errx(1, "%s: no page number in it", path);
	return recorded();
}

/* --- the table */

static bool json;
static unsigned rows;
static double worst, polluted = 1;

static void replay(const char *name, struct trace t)
{
	for (uint64_t share = 25; share <= 75; share += 25) {
		uint32_t room = (uint32_t)(t.pages * share / 100);
		uint64_t fifo, random_out, ours, optimum;

		if (room < 16)
			continue;
		fifo = sim_fifo(&t, room);
		random_out = sim_random_out(&t, room, 7);
		ours = sim_ours(&t, room, 1);
		optimum = sim_optimum(&t, room);
		if ((double)ours / (double)fifo > worst)
			worst = (double)ours / (double)fifo;
		if (strcmp(name, "scan-polluted zipf") == 0)
			polluted *= cbrt((double)ours / (double)fifo);
		if (json)
			printf("%s\n{\"trace\":\"%s\",\"local_percent\":%" PRIu64 ",\"accesses\":%zu,\"pages\":%" PRIu32 ",\"fifo\":%" PRIu64
			       ",\"random\":%" PRIu64 ",\"ours\":%" PRIu64 ",\"optimum\":%" PRIu64 "}",
			       rows ? "," : "[", name, share, t.n, t.pages, fifo, random_out, ours, optimum);
		else
			printf("%-22s %3" PRIu64 "%% %10" PRIu64 " %10" PRIu64 " %10" PRIu64 " %10" PRIu64 " %6.2f %6.2f %6.2f\n", name, share, fifo,
			       random_out, ours, optimum, (double)random_out / (double)fifo, (double)ours / (double)fifo,
			       (double)optimum / (double)fifo);
		rows++;
	}
	free(t.at);
}

static void replay_all(void)
{
	replay("loop", sim_loop(PAGES, STEPS));
	replay("scan", sim_scan(PAGES));
	replay("uniform", sim_uniform(PAGES, STEPS, 1));
	replay("zipf 0.7", sim_zipfian(PAGES, STEPS, 0.7, 1));
	replay("zipf 0.99", sim_zipfian(PAGES, STEPS, 0.99, 1));
	replay("scan-polluted zipf", sim_polluted(PAGES, STEPS, 1));
	replay("zipf in phases", sim_phases(PAGES, STEPS, 8, 1));
	/* Widths a little below and above what fits at 25 and at 50 %. */
	replay("window of 22%", sim_window(PAGES, STEPS, PAGES * 22 / 100, 1));
	replay("window of 30%", sim_window(PAGES, STEPS, PAGES * 30 / 100, 1));
	replay("window of 60%", sim_window(PAGES, STEPS, PAGES * 60 / 100, 1));
	replay("mixed", sim_mixed(PAGES, STEPS, 1));
	replay("recorded qsort", record_qsort());
	replay("recorded tree", record_tree());
}

int main(int argc, char **argv)
{
	const char *path = NULL;
	int c;

	while ((c = getopt(argc, argv, "jf:")) != -1) {
		if (c == 'j')
			json = true;
		else if (c == 'f')
			path = optarg;
		else
			return 2;
	}
	if (!json)
		printf("%-22s %4s %10s %10s %10s %10s %6s %6s %6s\n", "misses", "here", "FIFO", "random", "ours", "optimum", "random", "ours",
		       "opt.");
	if (path)
		replay(path, read_trace(path));
	else
		replay_all();
	if (json)
		printf("\n]\n");
	else
		printf("worst of ours to FIFO: %.3f (goal <= 1.02)\n", worst);
	if (!json && !path)
		printf("scan-polluted zipf, mean: %.3f (goal <= 0.80)\n", polluted);
	return 0;
}
