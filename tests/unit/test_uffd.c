/* Unit tests of lib/uffd: how errors are understood, and how COPY and ZEROPAGE go on after partial progress. */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tap.h"
#include "uapi.h"

#define HVA 0x700000000000ull

/* What the fake kernel answers, one step a call. */
struct step {
	int error;         /* 0: success; else errno */
	int64_t progress;  /* what the output field says; UNTOUCHED: it is left alone */
};
#define UNTOUCHED INT64_MIN

static struct {
	const struct step *step;
	unsigned calls, n;
	uint64_t dst, src, len, mode; /* of the last call */
} fake;

static int fake_ioctl(int fd, unsigned long request, void *arg)
{
	const struct step *s = &fake.step[fake.calls < fake.n ? fake.calls : fake.n - 1];

	(void)fd;
	fake.calls++;
	if (request == UFFDIO_COPY) {
		struct uffdio_copy *c = arg;

		fake.dst = c->dst, fake.src = c->src, fake.len = c->len, fake.mode = c->mode;
		if (s->progress != UNTOUCHED)
			c->copy = s->progress;
	} else if (request == UFFDIO_ZEROPAGE) {
		struct uffdio_zeropage *z = arg;

		fake.dst = z->range.start, fake.src = 0, fake.len = z->range.len, fake.mode = z->mode;
		if (s->progress != UNTOUCHED)
			z->zeropage = s->progress;
	} else if (request == UFFDIO_WRITEPROTECT) {
		struct uffdio_writeprotect *w = arg;

		fake.dst = w->range.start, fake.len = w->range.len, fake.mode = w->mode;
	} else {
		struct uffdio_range *r = arg;

		fake.dst = r->start, fake.len = r->len;
	}
	errno = s->error;
	return s->error ? -1 : 0;
}

static const struct fm_uffd_ops fake_ops = {.ioctl = fake_ioctl};
static const struct fm_uffd u = {.fd = -1, .ops = &fake_ops};

static void test_classify(void)
{
	static const struct {
		int error;
		enum fm_uffd_result want;
	} t[] = {
	    {0, FM_UFFD_DONE},           {EAGAIN, FM_UFFD_RETRY},     {EINTR, FM_UFFD_RETRY},
	    {EEXIST, FM_UFFD_PRESENT},   {ENOENT, FM_UFFD_NO_RANGE},  {ESRCH, FM_UFFD_NO_PROCESS},
	    {ENOMEM, FM_UFFD_NO_MEMORY}, {EINVAL, FM_UFFD_NOT_POSSIBLE}, {EFAULT, FM_UFFD_NOT_POSSIBLE},
	    {ENOTTY, FM_UFFD_NOT_POSSIBLE}, {EPERM, FM_UFFD_NOT_POSSIBLE}, {EBADF, FM_UFFD_NOT_POSSIBLE},
	};

	for (size_t i = 0; i < sizeof t / sizeof t[0]; i++)
		is_u64(fm_uffd_classify(t[i].error), t[i].want, "errno %d", t[i].error);
}

/* One COPY and one ZEROPAGE of 8 pages against the same steps. */
static void both(const char *name, const struct step *steps, unsigned n, enum fm_uffd_result want, unsigned pages, unsigned calls)
{
	static char src[8 * 4096];
	uint64_t done = 12345;

	fake.step = steps, fake.n = n, fake.calls = 0;
	is_u64(fm_uffd_copy(&u, HVA, src, sizeof src, true, &done), want, "copy: %s", name);
	is_u64(done, pages * 4096u, "... pages done");
	is_u64(fake.calls, calls, "... calls");
	if (calls > 1 && pages < 8)
		ok(fake.dst == HVA + done && fake.src == (uint64_t)(uintptr_t)src + done && fake.len == sizeof src - done,
		   "... the last call began where the one before ended");
	ok(fake.mode == UFFDIO_COPY_MODE_WP, "... write-protected");

	done = 12345;
	fake.calls = 0;
	is_u64(fm_uffd_zeropage(&u, HVA, sizeof src, &done), want, "zeropage: %s", name);
	is_u64(done, pages * 4096u, "... pages done");
	is_u64(fake.calls, calls, "... calls");
	if (calls > 1 && pages < 8)
		ok(fake.dst == HVA + done && fake.len == sizeof src - done, "... the last call began where the one before ended");
}

#define BOTH(name, want, pages, calls, ...)                                                    \
	do {                                                                                   \
		static const struct step steps[] = {__VA_ARGS__};                              \
		both(name, steps, sizeof steps / sizeof steps[0], want, pages, calls);         \
	} while (0)

static void test_loops(void)
{
	uint64_t done;

	BOTH("all at once", FM_UFFD_DONE, 8, 1, {0, 8 * 4096});
	BOTH("EAGAIN, output 0", FM_UFFD_RETRY, 0, 1, {EAGAIN, 0});
	BOTH("EAGAIN, output -EAGAIN", FM_UFFD_RETRY, 0, 1, {EAGAIN, -EAGAIN});
	BOTH("EAGAIN, output untouched", FM_UFFD_RETRY, 0, 1, {EAGAIN, UNTOUCHED});
	BOTH("3 pages, then the rest", FM_UFFD_DONE, 8, 2, {EAGAIN, 3 * 4096}, {0, 5 * 4096});
	BOTH("a page at a time", FM_UFFD_DONE, 8, 8, {EAGAIN, 4096}, {EAGAIN, 4096}, {EAGAIN, 4096}, {EAGAIN, 4096}, {EAGAIN, 4096},
	     {EAGAIN, 4096}, {EAGAIN, 4096}, {0, 4096});
	BOTH("partial progress that was all there was", FM_UFFD_DONE, 8, 2, {EAGAIN, 3 * 4096}, {EAGAIN, 5 * 4096});
	BOTH("EEXIST at once", FM_UFFD_PRESENT, 0, 1, {EEXIST, -EEXIST});
	BOTH("EEXIST mid-run", FM_UFFD_PRESENT, 3, 2, {EAGAIN, 3 * 4096}, {EEXIST, -EEXIST});
	BOTH("EAGAIN after progress", FM_UFFD_RETRY, 3, 2, {EAGAIN, 3 * 4096}, {EAGAIN, -EAGAIN});
	BOTH("ENOENT mid-run", FM_UFFD_NO_RANGE, 1, 2, {EAGAIN, 4096}, {ENOENT, -ENOENT});
	BOTH("ESRCH mid-run", FM_UFFD_NO_PROCESS, 1, 2, {EAGAIN, 4096}, {ESRCH, -ESRCH});
	BOTH("ENOMEM mid-run", FM_UFFD_NO_MEMORY, 2, 2, {EAGAIN, 2 * 4096}, {ENOMEM, -ENOMEM});
	BOTH("EINVAL", FM_UFFD_NOT_POSSIBLE, 0, 1, {EINVAL, UNTOUCHED});

	fake.step = &(const struct step){0, 4096}, fake.n = 1, fake.calls = 0;
	fm_uffd_copy(&u, HVA, "", 4096, false, &done);
	is_u64(fake.mode, 0, "copy without write protection");
}

static void test_others(void)
{
	static const struct step good = {0, 0}, again = {EAGAIN, 0}, gone = {ESRCH, 0}, no_range = {ENOENT, 0};

	fake.step = &good, fake.n = 1;
	is_u64(fm_uffd_writeprotect(&u, HVA, 8192, true), FM_UFFD_DONE, "write-protect");
	ok(fake.dst == HVA && fake.len == 8192 && fake.mode == UFFDIO_WRITEPROTECT_MODE_WP, "... that range, on");
	fm_uffd_writeprotect(&u, HVA, 8192, false);
	is_u64(fake.mode, 0, "off wakes: no DONTWAKE");
	is_u64(fm_uffd_wake(&u, HVA, 4096), FM_UFFD_DONE, "wake");
	fake.step = &again;
	is_u64(fm_uffd_writeprotect(&u, HVA, 8192, true), FM_UFFD_RETRY, "write-protect: EAGAIN");
	is_u64(fm_uffd_poison(&u, HVA, 4096), FM_UFFD_RETRY, "poison: EAGAIN");
	ok(fm_uffd_mm_alive(&u), "EAGAIN: the memory is there");
	fake.step = &gone;
	ok(!fm_uffd_mm_alive(&u), "ESRCH: the memory is gone");
	fake.step = &no_range;
	ok(fm_uffd_mm_alive(&u), "ENOENT: the memory is there");
}

/* With the kernel: what the rest of fm takes for granted. */
static void test_kernel(void)
{
	struct fm_uffd k = {.fd = fm_uffd_open(), .ops = &fm_uffd_kernel};
	static char page[2 * 4096] = "bytes";
	uint64_t features, done;
	int memfd, pipes[2];
	char *p, c = 0;
	pid_t child;

	if (k.fd < 0) {
		tap_skip("with the kernel", "no userfaultfd here");
		return;
	}
	is_u64(fm_uffd_probe(&features), 0, "probe");
	if ((features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("with the kernel", "it lacks features");
		close(k.fd);
		return;
	}
	memfd = memfd_create("test", MFD_CLOEXEC);
	p = ftruncate(memfd, 8 * 4096) < 0 ? MAP_FAILED : mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	ok(p != MAP_FAILED && fm_uffd_api(&k, features) == 0 && fm_uffd_register(&k, (uint64_t)(uintptr_t)p, 8 * 4096) == 0, "register");
	is_u64(fm_uffd_copy(&k, (uint64_t)(uintptr_t)p + 4096, page, 4096, false, &done), FM_UFFD_DONE, "copy");
	ok(p[4096] == 'b', "... is there");
	is_u64(fm_uffd_copy(&k, (uint64_t)(uintptr_t)p, page, 8192, false, &done), FM_UFFD_PRESENT, "copy over a page that is there");
	is_u64(done, 4096, "... stops at it");
	is_u64(fm_uffd_zeropage(&k, (uint64_t)(uintptr_t)p + 4096, 4096, &done), FM_UFFD_PRESENT, "zeropage over a page");
	is_u64(fm_uffd_writeprotect(&k, (uint64_t)(uintptr_t)p, 4096, true), FM_UFFD_DONE, "write-protect");
	is_u64(fm_uffd_copy(&k, (uint64_t)(uintptr_t)p + 8 * 4096, page, 4096, false, &done), FM_UFFD_NO_RANGE, "copy outside the range");
	if (features & FM_UFFD_POISON)
		is_u64(fm_uffd_poison(&k, (uint64_t)(uintptr_t)p + 3 * 4096, 4096), FM_UFFD_DONE, "poison");
	ok(fm_uffd_mm_alive(&k), "our own memory is there");
	is_u64(fm_uffd_unregister(&k, (uint64_t)(uintptr_t)p, 8 * 4096), 0, "unregister");
	munmap(p, 8 * 4096);
	close(memfd);
	close(k.fd);

	/* A process that exits leaves a userfaultfd whose memory is gone. */
	if (pipe(pipes) < 0)
		exit(1);
	k.fd = fm_uffd_open();
	fflush(stdout);
	child = fork();
	if (child == 0) {
		/* What the parent opened is bound to the parent's memory. */
		c = fm_uffd_mm_alive(&k) ? 'y' : 'n';
		_exit(write(pipes[1], &c, 1) != 1);
	}
	ok(read(pipes[0], &c, 1) == 1, "a child");
	waitpid(child, NULL, 0);
	close(pipes[0]);
	close(pipes[1]);
	close(k.fd);
}

int main(void)
{
	test_classify();
	test_loops();
	test_others();
	test_kernel();
	return tap_done();
}
