/*
 * Sequential first touch: write one word to each page of fresh memory, in address order.
 *
 *   first_touch fm PAGES PID_OF_FM_FAULTD
 *   first_touch memfd PAGES
 *
 * Prints ns_per_page. This program and fm-faultd run on CPU 0 meanwhile.
 */
#include <sys/mman.h>

#include "fluidmem.h"
#include "touch.h"

int main(int argc, char **argv)
{
	size_t pages = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
	pid_t pid = argc > 3 ? atoi(argv[3]) : 0;
	struct fm_options options = {.name = "first-touch"};
	volatile unsigned char *base;
	uint64_t t;
	int fm;

	fm = argc > 1 && strcmp(argv[1], "fm") == 0;
	if (!pages || fm != (pid > 0))
		errx(2, "usage: first_touch fm PAGES PID | memfd PAGES");
	alarm(60);
	if (fm) {
		base = fm_map(pages * PAGE, &options);
		if (!base)
			err(1, "fm_map");
	} else {
		int fd = memfd_create("first-touch", MFD_CLOEXEC);

		if (fd < 0 || ftruncate(fd, (off_t)(pages * PAGE)) < 0)
			err(1, "memfd");
		base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (base == MAP_FAILED)
			err(1, "mmap");
	}
	if (fm)
		server(pid, 0);
	pin(0, 0);
	t = now_ns();
	for (size_t i = 0; i < pages; i++)
		base[i * PAGE] = 1;
	printf("ns_per_page=%" PRIu64 "\n", (now_ns() - t) / pages);
	if (fm) {
		server(pid, -1);
		fm_unmap((void *)base, pages * PAGE);
	}
	return 0;
}
