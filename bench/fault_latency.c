/*
 * Remote faults of fm: the same touches as bare_uffd, on fm_map memory that was filled and then evicted.
 *
 *   fault_latency -p PID_OF_FM_FAULTD -e FM_EVICT [-n PAGES] [-t TOUCHES] [-q] [-c CLIENT_CPU] [-s SERVER_CPU] [-w] [-i]
 *
 * Finds fm-faultd by $FM_RUN_DIR. Prints key=value lines, as bare_uffd, and evict_mb_s: the speed of `fm-evict --all`. -q: first reads
 * all pages in address order and prints read_mb_s, evicts them again, and does the same with every third page (stride_mb_s: of those).
 */
#include <stdbool.h>
#include <sys/wait.h>

#include "fluidmem.h"
#include "touch.h"

#define STRIDE 3

static void evict_all(const char *fm_evict, const char *name)
{
	int status;
	pid_t pid;

	fflush(stdout); /* or the child says it again */
	pid = fork();
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

/* Read a word of every so manieth page in address order; says how fast as key. Returns the number of wrong words. */
static unsigned read_every(volatile unsigned char *base, size_t pages, size_t stride, const char *key)
{
	size_t bytes = pages / stride * PAGE;
	uint64_t t = now_ns();
	unsigned wrong = 0;

	for (size_t i = 0; i < pages; i += stride)
		wrong += *(volatile uint64_t *)(base + i * PAGE) != pattern(i);
	t = now_ns() - t;
	printf("%s=%.1f\n", key, (double)bytes * 1e3 / (double)t);
	return wrong;
}

int main(int argc, char **argv)
{
	size_t pages = 8192, touches = 4096;
	int client_cpu = -1, server_cpu = -1, write_too = 0, steps = 0, sequential = 0, c;
	struct fm_options options = {0};
	const char *fm_evict = NULL;
	unsigned char *base;
	char name[32];
	pid_t pid = 0;
	uint32_t *order;
	unsigned wrong = 0;
	uint64_t t;

	while ((c = getopt(argc, argv, "p:e:n:t:c:s:wiq")) != -1) {
		switch (c) {
		case 'p':
			pid = atoi(optarg);
			break;
		case 'e':
			fm_evict = optarg;
			break;
		case 'n':
			pages = strtoul(optarg, NULL, 10);
			break;
		case 't':
			touches = strtoul(optarg, NULL, 10);
			break;
		case 'c':
			client_cpu = atoi(optarg);
			break;
		case 's':
			server_cpu = atoi(optarg);
			break;
		case 'w':
			write_too = 1;
			break;
		case 'q':
			sequential = 1;
			break;
		case 'i':
			steps = 1;
			break;
		default:
			return 2;
		}
	}
	if (!pid || !fm_evict || !pages || touches > pages)
		errx(2, "needs -p PID and -e FM_EVICT, and as many pages as touches");
	alarm(60); /* without fm-faultd a fault waits for ever */
	snprintf(name, sizeof name, "bench-%d", getpid());
	options.name = name;
	base = fm_map(pages * PAGE, &options);
	if (!base)
		err(1, "fm_map");
	for (size_t i = 0; i < pages; i++)
		fill_page(base + i * PAGE, i);
	t = now_ns();
	evict_all(fm_evict, name);
	t = now_ns() - t;
	printf("evict_mb_s=%.1f\n", (double)(pages * PAGE) * 1e3 / (double)t);
	server(pid, server_cpu);
	pin(0, client_cpu);
	if (sequential) {
		wrong = read_every(base, pages, 1, "read_mb_s");
		evict_all(fm_evict, name);
		wrong += read_every(base, pages, STRIDE, "stride_mb_s");
		if (touches)
			evict_all(fm_evict, name);
	}
	order = random_order(pages);
	wrong += touch_pages(base, order, touches, true, write_too, steps, pid);
	free(order);
	server(pid, -1);
	fm_unmap(base, pages * PAGE);
	if (wrong)
		errx(1, "%u wrong words", wrong);
	return 0;
}
