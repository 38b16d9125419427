/*
 * How long a process stands still while userfaultfds are made in it: attach N times to pid, print the figures. As fm-hotplug does: when it has memory in
 * a memfd, that is told in the same stop to take no huge pages, which waits for the process's mmap lock.
 *
 *	attach PID [COUNT [USERFAULTFDS]]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach.h"
#include "proc.h"

#define MAX 10000

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void figures(const char *name, uint64_t *ns, unsigned n)
{
	unsigned half = n / 2, most = n * 99 / 100;

	qsort(ns, n, sizeof *ns, by_value);
	printf("%-34s p50 %8.1f  p99 %8.1f  worst %8.1f us\n", name, (double)ns[half] / 1000, (double)ns[most] / 1000,
	       (double)ns[n - 1] / 1000);
}

/* The largest mapping of a memfd. bytes 0: none. */
static struct fm_attach_range memory_of(int pid)
{
	struct fm_attach_range range = {0};
	struct fm_mapping *list;
	size_t n;

	if (fm_proc_maps(pid, &list, &n))
		return range;
	for (size_t i = 0; i < n; i++)
		if (list[i].shared && strstr(list[i].name, "memory-backend-memfd") && list[i].end - list[i].start > range.bytes)
			range = (struct fm_attach_range){.hva = list[i].start, .bytes = list[i].end - list[i].start};
	free(list);
	return range;
}

int main(int argc, char **argv)
{
	static uint64_t stopped[MAX], wait[MAX];
	struct fm_attached a[FM_ATTACH_MAX];
	struct fm_attach_report rep;
	struct fm_attach_range small;
	int remote[FM_ATTACH_MAX], r;
	unsigned count = argc > 2 ? (unsigned)atoi(argv[2]) : 100, n = argc > 3 ? (unsigned)atoi(argv[3]) : 1;

	if (argc < 2 || count < 1 || count > MAX || n < 1 || n > FM_ATTACH_MAX) {
		fprintf(stderr, "usage: attach PID [COUNT [USERFAULTFDS]]\n");
		return 2;
	}
	small = memory_of(atoi(argv[1]));
	for (unsigned i = 0; i < count; i++) {
		r = fm_attach_uffds(atoi(argv[1]), small.bytes ? &small : NULL, n, a, &rep);
		if (r) {
			fprintf(stderr, "attach: pid %s: %s: %s\n", argv[1], rep.step, strerror(-r));
			return 1;
		}
		stopped[i] = rep.stopped_ns;
		wait[i] = rep.wait_ns;
		for (unsigned k = 0; k < n; k++) {
			remote[k] = a[k].remote;
			close(a[k].fd);
		}
		if (fm_attach_close(atoi(argv[1]), remote, n, NULL))
			return 1;
		usleep(3000 + i * 7919 % 5000);
	}
	printf("%u attaches, %u userfaultfd%s each, %u calls%s%s\n", count, n, n == 1 ? "" : "s", rep.calls,
	       small.bytes ? ", MADV_NOHUGEPAGE among them" : "", rep.by_device ? ", through /dev/userfaultfd" : "");
	figures("  stood still", stopped, count);
	figures("  asked to stop until it did", wait, count);
	return 0;
}
