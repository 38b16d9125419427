/*
 * The floor of paging over memcached: raw pipelined streams of sets and of gets, 64 outstanding.
 *
 *   mc_stream ADDRESS PAGES [CPU]     prints set_mb_s and get_mb_s; the values stay there, for bare_uffd -m
 */
#include "mc_raw.h"

int main(int argc, char **argv)
{
	size_t pages = argc >= 3 ? strtoul(argv[2], NULL, 10) : 0;
	unsigned char *from;
	unsigned wrong;
	uint64_t t;
	int fd;

	if (!pages || pages % RAW_WINDOW)
		errx(2, "usage: mc_stream ADDRESS PAGES [CPU], a multiple of %u", RAW_WINDOW);
	alarm(60);
	from = aligned_alloc(PAGE, pages * PAGE);
	if (!from)
		err(1, "malloc");
	for (size_t i = 0; i < pages; i++)
		fill_page(from + i * PAGE, i);
	fd = raw_connect(argv[1]);
	pin(0, argc > 3 ? atoi(argv[3]) : -1);
	raw_set_stream(fd, from, pages); /* the server's memory is fresh, once */
	t = now_ns();
	raw_set_stream(fd, from, pages);
	t = now_ns() - t;
	printf("set_mb_s=%.1f\n", (double)(pages * PAGE) * 1e3 / (double)t);
	t = now_ns();
	wrong = raw_get_stream(fd, pages);
	t = now_ns() - t;
	printf("get_mb_s=%.1f\n", (double)(pages * PAGE) * 1e3 / (double)t);
	free(from);
	if (wrong)
		errx(1, "%u wrong pages", wrong);
	return 0;
}
