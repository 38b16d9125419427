/*
 * A program with less local memory than it uses: accesses of one word to MB mebibytes, and how long they take.
 *
 *   share -k fm|anon -m MB -l LOCAL_MB -a uniform|zipf|scan -n ACCESSES [-o FILE]
 *
 * -k fm: fm_map() memory with a local budget of LOCAL_MB (0: none). -k anon: anonymous memory without huge pages; whatever limits
 * it is somebody else's (a cgroup). Every second access writes. uniform: as GUPS, a random page each time. zipf: as
 * pmbench's skewed access, Zipf 0.99 over all pages. scan: such a zipf over half of the pages, and every tenth access walks over
 * the other half. The pages are half random, half zero bytes, so that a compressor finds what it usually does.
 * The first quarter of the accesses warms up and is not counted. Prints ns (all counted accesses), p50_ns and p99_ns of the
 * accesses above 1 us (those that faulted); -o: all of these latencies, a line each, sorted.
 */
#include <stdbool.h>
#include <sys/mman.h>

#include "fluidmem.h"
#include "policy_sim.h"
#include "touch.h"

static unsigned char *memory(bool fm, size_t bytes, size_t local)
{
	struct fm_options o = {.name = "share", .local_bytes = local};
	unsigned char *p;

	if (fm) {
		p = fm_map(bytes, &o);
		if (!p)
			err(1, "fm_map");
		return p;
	}
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED || madvise(p, bytes, MADV_NOHUGEPAGE))
		err(1, "mmap");
	return p;
}

static void fill(unsigned char *p, size_t pages)
{
	struct sim_rng r = {11};

	for (size_t i = 0; i < pages; i++) {
		uint64_t *w = (uint64_t *)(void *)(p + i * PAGE);

		w[0] = pattern(i);
		for (size_t k = 1; k < PAGE / sizeof *w / 2; k++)
			w[k] = sim_random(&r);
	}
}

static struct trace accesses(const char *name, uint32_t pages, size_t n)
{
	struct sim_rng r = {3};
	struct sim_zipf z;
	struct trace t;
	uint32_t at = 0;

	if (strcmp(name, "uniform") == 0)
		return sim_uniform(pages, n, 1);
	if (strcmp(name, "zipf") == 0)
		return sim_zipfian(pages, n, 0.99, 1);
	if (strcmp(name, "scan"))
		errx(2, "-a %s: not uniform, zipf or scan", name);
	z = sim_zipf_new(&r, pages / 2, 0.99);
	t = sim_trace(n, pages);
	for (size_t i = 0; i < n; i++)
		t.at[i] = i % 10 ? sim_zipf_next(&r, &z) : pages / 2 + at++ % (pages - pages / 2);
	sim_zipf_free(&z);
	return t;
}

static void write_out(const char *path, const uint64_t *ns, size_t n)
{
	FILE *f = fopen(path, "w");

	if (!f)
		err(1, "%s", path);
	for (size_t i = 0; i < n; i++)
		fprintf(f, "%" PRIu64 "\n", ns[i]);
	if (fclose(f))
		err(1, "%s", path);
}

int main(int argc, char **argv)
{
	const char *kind = "", *access_name = "zipf", *out = NULL;
	size_t mb = 64, local = 0, n = 100000, pages, slow = 0, warm;
	uint64_t begin = 0, *ns, before, after;
	unsigned char *p;
	unsigned wrong = 0;
	struct trace t;
	int c;

	while ((c = getopt(argc, argv, "k:m:l:a:n:o:")) != -1) {
		switch (c) {
		case 'k':
			kind = optarg;
			break;
		case 'm':
			mb = strtoul(optarg, NULL, 10);
			break;
		case 'l':
			local = strtoul(optarg, NULL, 10);
			break;
		case 'a':
			access_name = optarg;
			break;
		case 'n':
			n = strtoul(optarg, NULL, 10);
			break;
		case 'o':
			out = optarg;
			break;
		default:
			return 2;
		}
	}
	if ((strcmp(kind, "fm") && strcmp(kind, "anon")) || !mb || n < 100)
		errx(2, "needs -k fm or -k anon, memory and accesses");
	alarm(300); /* without fm-faultd a fault waits for ever */
	pages = (mb << 20) / PAGE;
	t = accesses(access_name, (uint32_t)pages, n);
	ns = calloc(n, sizeof *ns);
	if (!ns)
		err(1, "calloc");
	p = memory(strcmp(kind, "fm") == 0, mb << 20, local << 20);
	fill(p, pages);
	warm = n / 4;
	for (size_t i = 0; i < n; i++) {
		volatile uint64_t *w = (volatile uint64_t *)(void *)(p + (size_t)t.at[i] * PAGE);

		before = now_ns();
		if (i == warm)
			begin = before;
		wrong += *w != pattern(t.at[i]);
		if (i % 2)
			w[1] ^= i;
		after = now_ns();
		if (i >= warm && after - before > 1000)
			ns[slow++] = after - before;
	}
	printf("ns=%" PRIu64 "\n", now_ns() - begin);
	if (slow) {
		qsort(ns, slow, sizeof *ns, by_value);
		printf("p50_ns=%" PRIu64 "\np99_ns=%" PRIu64 "\n", ns[slow / 2], ns[slow * 99 / 100]);
	}
	if (out)
		write_out(out, ns, slow);
	if (wrong)
		errx(1, "%u wrong words", wrong);
	free(ns);
	free(t.at);
	return 0;
}
