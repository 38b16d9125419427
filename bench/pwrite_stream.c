/*
 * The floor of writing pages out to a directory: a plain stream of pwrites of the same bytes into a fresh file.
 *
 *   pwrite_stream FILE PAGES      prints mb_s; the file is unlinked
 */
#include <fcntl.h>

#include "touch.h"

#define RUN 128u /* pages a call: what fm-evict has in hand at one time */

int main(int argc, char **argv)
{
	size_t pages = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	unsigned char *from;
	uint64_t t;
	int fd;

	if (!pages || pages % RUN)
		errx(2, "usage: pwrite_stream FILE PAGES, a multiple of %u", RUN);
	from = aligned_alloc(PAGE, pages * PAGE);
	if (!from)
		err(1, "malloc");
	for (size_t i = 0; i < pages; i++)
		fill_page(from + i * PAGE, i);
	fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || unlink(argv[1]) < 0)
		err(1, "%s", argv[1]);
	t = now_ns();
	for (size_t i = 0; i < pages; i += RUN)
		if (pwrite(fd, from + i * PAGE, RUN * PAGE, (off_t)(i * PAGE)) != (ssize_t)(RUN * PAGE))
			err(1, "%s", argv[1]);
	t = now_ns() - t;
	printf("mb_s=%.1f\n", (double)(pages * PAGE) * 1e3 / (double)t);
	free(from);
	return 0;
}
