/*
 * How it scales.
 *
 *   scale faults -p PID_OF_FM_FAULTD -e FM_EVICT [-n PAGES] [-t THREADS]
 *       threads read remote pages of one region, each page once; prints faults_s, and CPU time a fault of
 *       both processes: faultd_cpu_ns, client_cpu_ns
 *   scale map BYTES
 *       one sparse region: register_ms; then, while it is there, "ready", and waits for a newline
 *   scale regions N
 *       N regions of 1 MiB, each touched: us_per_region, ns_per_touch
 *
 * Finds fm-faultd by $FM_RUN_DIR.
 */
#include <pthread.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "fluidmem.h"
#include "touch.h"

#define THREADS_MAX 64

static struct {
	volatile unsigned char *base;
	uint32_t *order;
	size_t pages;
	unsigned threads;
	pthread_barrier_t start;
} g;

static void *reader(void *arg)
{
	size_t me = *(size_t *)arg;
	unsigned *wrong = calloc(1, sizeof *wrong);

	if (!wrong)
		err(1, "calloc");
	pthread_barrier_wait(&g.start);
	for (size_t i = me; i < g.pages; i += g.threads)
		*wrong += *(volatile uint64_t *)(volatile void *)(g.base + (size_t)g.order[i] * PAGE) != pattern(g.order[i]);
	return wrong;
}

static void evict_all(const char *fm_evict, const char *name)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (pid == 0) {
		if (!freopen("/dev/null", "w", stdout))
			_exit(1);
		execl(fm_evict, "fm-evict", "--all", name, (char *)NULL);
		err(1, "%s", fm_evict);
	}
	if (waitpid(pid, &status, 0) < 0 || status)
		errx(1, "%s --all %s: failed, status %d", fm_evict, name, status);
}

static uint64_t cpu_ns(const struct rusage *r)
{
	return ((uint64_t)r->ru_utime.tv_sec + (uint64_t)r->ru_stime.tv_sec) * 1000000000u +
	       ((uint64_t)r->ru_utime.tv_usec + (uint64_t)r->ru_stime.tv_usec) * 1000u;
}

static void faults(pid_t faultd, const char *fm_evict)
{
	pthread_t thread[THREADS_MAX] = {0};
	size_t number[THREADS_MAX];
	struct fm_options o = {0};
	struct cost before, after;
	struct rusage mine_before, mine;
	unsigned wrong = 0;
	char name[32];
	uint64_t t;

	snprintf(name, sizeof name, "scale-%d", getpid());
	o.name = name;
	g.base = fm_map(g.pages * PAGE, &o);
	if (!g.base)
		err(1, "fm_map");
	for (size_t i = 0; i < g.pages; i++)
		fill_page((void *)(g.base + i * PAGE), i);
	evict_all(fm_evict, name);
	g.order = random_order(g.pages);
	pthread_barrier_init(&g.start, NULL, g.threads + 1);
	for (unsigned i = 0; i < g.threads; i++) {
		number[i] = i;
		if (pthread_create(&thread[i], NULL, reader, &number[i]))
			errx(1, "no thread");
	}
	before = server(faultd, -2);
	getrusage(RUSAGE_SELF, &mine_before);
	pthread_barrier_wait(&g.start);
	t = now_ns();
	for (unsigned i = 0; i < g.threads; i++) {
		void *w;

		pthread_join(thread[i], &w);
		wrong += *(unsigned *)w;
		free(w);
	}
	t = now_ns() - t;
	after = server(faultd, -2);
	getrusage(RUSAGE_SELF, &mine);
	printf("faults_s=%.0f\n", (double)g.pages * 1e9 / (double)t);
	printf("faultd_cpu_ns=%" PRIu64 "\n", (after.cpu_ns - before.cpu_ns) / g.pages);
	printf("client_cpu_ns=%" PRIu64 "\n", (cpu_ns(&mine) - cpu_ns(&mine_before)) / g.pages);
	fm_unmap((void *)g.base, g.pages * PAGE);
	free(g.order);
	if (wrong)
		errx(1, "%u wrong words", wrong);
}

static void map(size_t bytes)
{
	uint64_t t = now_ns();
	volatile unsigned char *p = fm_map(bytes, NULL);
	char c;

	if (!p)
		err(1, "fm_map");
	printf("register_ms=%.3f\n", (double)(now_ns() - t) / 1e6);
	/* One page at each end and in the middle. */
	p[0] = p[bytes / 2] = p[bytes - 1] = 1;
	printf("ready\n");
	fflush(stdout);
	while (read(0, &c, 1) == 1 && c != '\n')
		;
	fm_unmap((void *)p, bytes);
}

static void regions(size_t n)
{
	volatile unsigned char **p = calloc(n, sizeof *p);
	struct rlimit l;
	uint64_t t;

	if (!p)
		err(1, "calloc");
	if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
		l.rlim_cur = l.rlim_max;
		setrlimit(RLIMIT_NOFILE, &l);
	}
	t = now_ns();
	for (size_t i = 0; i < n; i++) {
		p[i] = fm_map(1u << 20, NULL);
		if (!p[i])
			err(1, "fm_map of region %zu", i);
	}
	t = now_ns() - t;
	printf("us_per_region=%.1f\nms_per_region=%.4f\n", (double)t / 1e3 / (double)n, (double)t / 1e6 / (double)n);
	t = now_ns();
	for (size_t i = 0; i < n; i++)
		p[i][0] = 1;
	printf("ns_per_touch=%" PRIu64 "\n", (now_ns() - t) / n);
	for (size_t i = 0; i < n; i++)
		fm_unmap((void *)p[i], 1u << 20);
	free(p);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "", *fm_evict = NULL;
	size_t number = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
	pid_t faultd = 0;
	int c;

	alarm(120); /* without fm-faultd a fault waits for ever */
	if (strcmp(mode, "map") == 0 && number) {
		map(number);
		return 0;
	}
	if (strcmp(mode, "regions") == 0 && number) {
		regions(number);
		return 0;
	}
	g.pages = 8192;
	g.threads = 1;
	optind = 2;
	while ((c = getopt(argc, argv, "p:e:n:t:")) != -1) {
		switch (c) {
		case 'p':
			faultd = atoi(optarg);
			break;
		case 'e':
			fm_evict = optarg;
			break;
		case 'n':
			g.pages = strtoul(optarg, NULL, 10);
			break;
		case 't':
			g.threads = (unsigned)atoi(optarg);
			break;
		default:
			return 2;
		}
	}
	if (strcmp(mode, "faults") || !faultd || !fm_evict || !g.threads || g.threads > THREADS_MAX || !g.pages)
		errx(2, "usage: scale faults -p PID -e FM_EVICT [-n PAGES] [-t THREADS] | map BYTES | regions N");
	faults(faultd, fm_evict);
	return 0;
}
