/*
 * The floor of a remote fault: a bare userfaultfd responder in another process, without a line of fm.
 *
 *   bare_uffd [-f FILE | -m MEMCACHED] [-n PAGES] [-t TOUCHES] [-c CLIENT_CPU] [-s SERVER_CPU] [-w] [-i]
 *
 * The client fills PAGES pages of a shared memfd, punches them all and touches TOUCHES of them once each at random. The
 * responder loops: blocking read of the userfaultfd, with -f a pread of the page from FILE (made here, unlinked at the end;
 * put it on tmpfs) or with -m a get of its value from memcached (put there here), UFFDIO_COPY. Prints key=value lines. -w: writes instead of reads; -i: stops before and after the touches
 * for a tracer; a CPU of -1: any.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "mc_raw.h"

static void respond(int uffd, uint64_t base, int file, int server)
{
	unsigned char *buf = aligned_alloc(PAGE, 2 * (size_t)PAGE);
	struct uffd_msg m;

	if (!buf)
		_exit(1);
	fill_page(buf, 0);
	while (read(uffd, &m, sizeof m) == sizeof m) {
		uint64_t at = m.arg.pagefault.address & ~(uint64_t)(PAGE - 1);
		struct uffdio_copy c = {.dst = at, .src = (uint64_t)(uintptr_t)buf, .len = PAGE};

		if (server >= 0)
			c.src = (uint64_t)(uintptr_t)raw_get(server, (at - base) / PAGE, (char *)buf);
		if (m.event != UFFD_EVENT_PAGEFAULT || (file >= 0 && pread(file, buf, PAGE, (off_t)(at - base)) != PAGE) ||
		    ioctl(uffd, UFFDIO_COPY, &c) < 0)
			break;
	}
	_exit(1);
}

int main(int argc, char **argv)
{
	size_t pages = 8192, touches = 4096;
	int client_cpu = -1, server_cpu = -1, file = -1, server_fd = -1, write_too = 0, steps = 0, c, uffd, memfd;
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	const char *path = NULL, *server_at = NULL;
	unsigned char *base;
	uint32_t *order;
	unsigned wrong;
	pid_t pid, parent;

	while ((c = getopt(argc, argv, "f:m:n:t:c:s:wi")) != -1) {
		switch (c) {
		case 'f':
			path = optarg;
			break;
		case 'm':
			server_at = optarg;
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
		case 'i':
			steps = 1;
			break;
		default:
			return 2;
		}
	}
	if (!pages || touches > pages || (server_at && pages % RAW_GROUP))
		errx(2, "-n %zu -t %zu: must have as many pages as touches; with -m a multiple of %u", pages, touches, RAW_GROUP);
	alarm(60); /* nobody may wait on this userfaultfd for ever */
	memfd = memfd_create("bare", MFD_CLOEXEC);
	if (memfd < 0 || ftruncate(memfd, (off_t)(pages * PAGE)) < 0)
		err(1, "memfd");
	base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (base == MAP_FAILED)
		err(1, "mmap");
	for (size_t i = 0; i < pages; i++)
		fill_page(base + i * PAGE, i);
	if (path) {
		file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		if (file < 0 || unlink(path) < 0)
			err(1, "%s", path);
		for (size_t i = 0; i < pages; i++)
			if (pwrite(file, base + i * PAGE, PAGE, (off_t)(i * PAGE)) != PAGE)
				err(1, "%s", path);
	}
	if (server_at) {
		server_fd = raw_connect(server_at);
		raw_set_stream(server_fd, base, pages);
	}
	if (fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(pages * PAGE)) < 0)
		err(1, "punch");

	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	reg.range.start = (uint64_t)(uintptr_t)base;
	reg.range.len = pages * PAGE;
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0 || ioctl(uffd, UFFDIO_REGISTER, &reg) < 0)
		err(1, "userfaultfd");
	parent = getpid();
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1); /* it died before it could be waited for */
		munmap(base, pages * PAGE); /* a read through it would make a page that the client then sees */
		pin(0, server_cpu);
		respond(uffd, reg.range.start, file, server_fd);
	}
	pin(0, client_cpu);
	order = random_order(pages);
	wrong = touch_pages(base, order, touches, path || server_at, write_too, steps, pid);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	free(order);
	if (wrong)
		errx(1, "%u wrong words", wrong);
	return 0;
}
