/*
 * Writes behind the page tables: reads with O_DIRECT into far memory, by read(2), Linux aio and io_uring, from a FUSE file that this
 * program serves itself (raw /dev/fuse; mounted in a mount namespace of its own, so that nothing of it outlives us). Needs root.
 *
 *   dma hold NAME GRACE_MS           three reads, one of each kind, each into a page of its own: the kernel has pinned the pages and waits
 *                                    for the file. Says `held`. Each is answered when its page has been written back: without a grace when
 *                                    the page has left, with one when its grace has begun. Then waits until the pages are away, and looks.
 *   dma random NAME GRACE_MS SECONDS each answered after a random time up to a quarter of the grace, while somebody evicts
 *
 * Prints `dma: N reads, W wrong bytes`. Exit 0 whatever W is; 1 when something else went wrong. FM_RUN_DIR: of fm-faultd.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fuse.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "fluidmem.h"
#include "shmfile.h"

#define PAGE    4096u
#define KINDS   3u
#define FILE_INO 2u
#define FILE_BYTES (1ull << 40) /* page n of the file holds content(n) */
#define HELD    64u

enum kind { BY_READ, BY_AIO, BY_URING };

/* A read that waits for its answer. */
struct held {
	uint64_t unique, offset, due_ns;
	uint32_t size;
	bool used;
};

static int fuse_fd, grace_ms;
static bool by_time; /* answers come by time; else when the page's word says so */
static struct held held[HELD];
static pthread_mutex_t held_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint nheld;
static unsigned char *memory;
static struct fm_region_map state;
static uint64_t page_of[KINDS]; /* hold: into which page each kind reads */
static atomic_ulong reads, wrong;
static atomic_bool stop;

static void die(const char *what)
{
	fprintf(stderr, "dma: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void content(uint64_t n, uint64_t out[PAGE / 8])
{
	for (unsigned i = 0; i < PAGE / 8; i++)
		out[i] = mix(n * 1000003 + i) | 1;
}

static unsigned long wrong_bytes(const unsigned char *got, uint64_t n)
{
	uint64_t want[PAGE / 8];
	unsigned long bad = 0;

	content(n, want);
	for (unsigned i = 0; i < PAGE; i++)
		bad += got[i] != ((unsigned char *)want)[i];
	return bad;
}

/* --- the file's server */

static void answer(uint64_t unique, int error, const void *data, size_t n)
{
	struct fuse_out_header h = {.len = (uint32_t)(sizeof h + n), .error = -error, .unique = unique};
	struct iovec v[2] = {{&h, sizeof h}, {(void *)(uintptr_t)data, n}};

	if (writev(fuse_fd, v, n ? 2 : 1) < 0 && errno != ENOENT)
		die("/dev/fuse: write");
}

static struct fuse_attr attr_of(uint64_t ino)
{
	return (struct fuse_attr){
	    .ino = ino,
	    .size = ino == FILE_INO ? FILE_BYTES : 0,
	    .mode = ino == FILE_INO ? S_IFREG | 0600 : S_IFDIR | 0700,
	    .nlink = 1,
	    .blksize = PAGE,
	};
}

static void hold_read(uint64_t unique, const struct fuse_read_in *in)
{
	pthread_mutex_lock(&held_lock);
	for (unsigned i = 0; i < HELD; i++)
		if (!held[i].used) {
			uint64_t delay = grace_ms ? mix(unique) % ((uint64_t)grace_ms * 250000u) : 0;

			held[i] = (struct held){
			    .used = true, .unique = unique, .offset = in->offset, .size = in->size, .due_ns = now_ns() + delay};
			atomic_fetch_add(&nheld, 1);
			pthread_mutex_unlock(&held_lock);
			return;
		}
	pthread_mutex_unlock(&held_lock);
	answer(unique, EIO, NULL, 0);
}

static void serve(const struct fuse_in_header *h, const void *arg)
{
	switch (h->opcode) {
	case FUSE_INIT: {
		const struct fuse_init_in *in = arg;
		struct fuse_init_out out = {
		    .major = FUSE_KERNEL_VERSION, .minor = 31, .max_readahead = in->max_readahead, .max_write = 65536,
		    .flags = in->flags & (FUSE_ASYNC_READ | FUSE_ASYNC_DIO), .max_background = 64, .congestion_threshold = 64};

		answer(h->unique, 0, &out, sizeof out);
		return;
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out out = {.nodeid = FILE_INO, .attr_valid = 1000, .entry_valid = 1000, .attr = attr_of(FILE_INO)};

		answer(h->unique, 0, &out, sizeof out);
		return;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = {.attr_valid = 1000, .attr = attr_of(h->nodeid)};

		answer(h->unique, 0, &out, sizeof out);
		return;
	}
	case FUSE_OPEN: {
		struct fuse_open_out out = {0};

		answer(h->unique, 0, &out, sizeof out);
		return;
	}
	case FUSE_READ:
		hold_read(h->unique, arg);
		return;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	case FUSE_RELEASE:
	case FUSE_FLUSH:
		answer(h->unique, 0, NULL, 0);
		return;
	default:
		answer(h->unique, ENOSYS, NULL, 0);
	}
}

static void *serve_main(void *arg)
{
	static char buf[1 << 20];
	ssize_t n;

	(void)arg;
	for (;;) {
		n = read(fuse_fd, buf, sizeof buf);
		if (n < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
			continue;
		if (n < (ssize_t)sizeof(struct fuse_in_header))
			return NULL;
		serve((struct fuse_in_header *)(void *)buf, buf + sizeof(struct fuse_in_header));
	}
}

/* May this read be answered? */
static bool is_due(const struct held *h)
{
	uint64_t w;

	if (by_time)
		return now_ns() >= h->due_ns;
	w = atomic_load(&state.words[page_of[h->offset / PAGE % KINDS]]);
	return grace_ms ? fm_word_state(w) == FM_CLEAN && (w & FM_F_GRACE) : fm_word_state(w) == FM_REMOTE;
}

static void *answer_main(void *arg)
{
	(void)arg;
	for (;;) {
		for (unsigned i = 0; i < HELD; i++) {
			struct held h = {0};

			pthread_mutex_lock(&held_lock);
			if (held[i].used && is_due(&held[i])) {
				h = held[i];
				held[i].used = false;
			}
			pthread_mutex_unlock(&held_lock);
			if (h.used) {
				uint64_t bytes[PAGE / 8];

				content(h.offset / PAGE, bytes);
				answer(h.unique, 0, bytes, h.size < PAGE ? h.size : PAGE);
			}
		}
		nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
	}
	return NULL;
}

static int open_file(void)
{
	char dir[] = "/tmp/fm-dma.XXXXXX", path[64], options[96];
	pthread_t t;
	int fd;

	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		die("mount namespace");
	if (!mkdtemp(dir))
		die(dir);
	fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fuse_fd < 0)
		die("/dev/fuse");
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse_fd);
	if (mount("dma", dir, "fuse", MS_NOSUID | MS_NODEV, options) < 0)
		die("mount");
	pthread_create(&t, NULL, serve_main, NULL);
	pthread_create(&t, NULL, answer_main, NULL);
	snprintf(path, sizeof path, "%s/f", dir);
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		die(path);
	umount2(dir, MNT_DETACH);
	rmdir(dir);
	return fd;
}

/* --- the three ways to read */

static long read_by_aio(int fd, void *to, uint64_t offset)
{
	aio_context_t ctx = 0;
	struct iocb cb = {.aio_fildes = (uint32_t)fd, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (uint64_t)(uintptr_t)to,
			  .aio_nbytes = PAGE, .aio_offset = (int64_t)offset};
	struct iocb *list[1] = {&cb};
	struct io_event ev = {0};

	if (syscall(SYS_io_setup, 1, &ctx) < 0 || syscall(SYS_io_submit, ctx, 1, list) != 1 ||
	    syscall(SYS_io_getevents, ctx, 1, 1, &ev, NULL) != 1)
		die("aio");
	syscall(SYS_io_destroy, ctx);
	errno = ev.res < 0 ? (int)-ev.res : 0;
	return (long)ev.res;
}

static long read_by_uring(int fd, void *to, uint64_t offset)
{
	struct io_uring_params p = {0};
	int ring = (int)syscall(SYS_io_uring_setup, 1, &p);
	size_t sq_bytes, cq_bytes;
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	unsigned char *sq, *cq;
	long res;

	if (ring < 0)
		die("io_uring_setup");
	sq_bytes = p.sq_off.array + p.sq_entries * sizeof(unsigned);
	cq_bytes = p.cq_off.cqes + p.cq_entries * sizeof *cqe;
	sq = mmap(NULL, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, (off_t)IORING_OFF_SQ_RING);
	cq = mmap(NULL, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, (off_t)IORING_OFF_CQ_RING);
	sqe = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, (off_t)IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqe == MAP_FAILED)
		die("io_uring: mmap");
	*sqe = (struct io_uring_sqe){.opcode = IORING_OP_READ, .fd = fd, .addr = (uint64_t)(uintptr_t)to, .len = PAGE, .off = offset};
	*(unsigned *)(void *)(sq + p.sq_off.array) = 0;
	atomic_store((_Atomic unsigned *)(void *)(sq + p.sq_off.tail), 1);
	while (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		if (errno != EINTR)
			die("io_uring_enter");
	cqe = (struct io_uring_cqe *)(void *)(cq + p.cq_off.cqes);
	res = cqe->res;
	munmap(sq, sq_bytes);
	munmap(cq, cq_bytes);
	munmap(sqe, PAGE);
	close(ring);
	errno = res < 0 ? (int)-res : 0;
	return res;
}

static void read_page(enum kind kind, int fd, void *to, uint64_t n)
{
	static const char *const names[] = {"read", "aio", "io_uring"};
	long r = kind == BY_READ ? pread(fd, to, PAGE, (off_t)(n * PAGE))
	       : kind == BY_AIO  ? read_by_aio(fd, to, n * PAGE)
				 : read_by_uring(fd, to, n * PAGE);

	if (r != (long)PAGE)
		die(names[kind]);
	atomic_fetch_add(&reads, 1);
}

/* --- the tests */

static int file_fd;

static void *hold_main(void *arg)
{
	uint64_t k = (uint64_t)(uintptr_t)arg;

	read_page((enum kind)k, file_fd, memory + page_of[k] * PAGE, KINDS * 100 + k);
	return NULL;
}

/* Poll until the page's word is in that state. */
static void wait_state(uint64_t page, enum fm_pstate s)
{
	while (fm_word_state(atomic_load(&state.words[page])) != s)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static void hold(void)
{
	pthread_t t[KINDS];

	for (unsigned k = 0; k < KINDS; k++) {
		page_of[k] = 1 + 2 * k;
		memset(memory + page_of[k] * PAGE, (int)(k + 1), PAGE);
	}
	for (unsigned k = 0; k < KINDS; k++)
		pthread_create(&t[k], NULL, hold_main, (void *)(uintptr_t)k);
	while (atomic_load(&nheld) < KINDS)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	printf("held\n");
	fflush(stdout);
	for (unsigned k = 0; k < KINDS; k++)
		pthread_join(t[k], NULL);
	for (unsigned k = 0; k < KINDS; k++)
		wait_state(page_of[k], FM_REMOTE);
	for (unsigned k = 0; k < KINDS; k++)
		atomic_fetch_add(&wrong, wrong_bytes(memory + page_of[k] * PAGE, KINDS * 100 + k));
}

#define THREADS 8u

static void *random_main(void *arg)
{
	uint64_t me = (uint64_t)(uintptr_t)arg, pages = state.pages, last[4], at[4];
	unsigned n = 0;

	/* Each read is looked at four reads later, when its page may have left. */
	for (uint64_t i = 0; !atomic_load(&stop) || n; i++) {
		unsigned s = i % 4;

		if (i >= 4 && n) {
			atomic_fetch_add(&wrong, wrong_bytes(memory + at[s] * PAGE, last[s]));
			n--;
		}
		if (atomic_load(&stop))
			continue;
		at[s] = (mix(me * 7777 + i) % (pages / THREADS / 4) * 4 + s) * THREADS + me;
		last[s] = mix(i * THREADS + me) % (FILE_BYTES / PAGE);
		read_page((enum kind)(me % KINDS), file_fd, memory + at[s] * PAGE, last[s]);
		n++;
	}
	return NULL;
}

static void at_random(unsigned seconds)
{
	pthread_t t[THREADS];

	for (unsigned k = 0; k < THREADS; k++)
		pthread_create(&t[k], NULL, random_main, (void *)(uintptr_t)k);
	sleep(seconds);
	atomic_store(&stop, true);
	for (unsigned k = 0; k < THREADS; k++)
		pthread_join(t[k], NULL);
}

/* The region's state file: there is one of that name. */
static void map_state(const char *name)
{
	const char *dir = getenv("FM_RUN_DIR");
	int run = open(dir ? dir : "/run/fm", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char file[FM_REGION_FILE_MAX];
	uint64_t *ids;
	size_t n;

	if (run < 0 || fm_shmfile_list(run, &ids, &n))
		die("run directory");
	for (size_t i = 0; i < n; i++)
		if (fm_shmfile_region_map(run, fm_shmfile_region_name(ids[i], file), FM_SHMFILE_WORDS, &state, NULL) == 0) {
			if (strcmp(state.hdr->name, name) == 0)
				return;
			fm_shmfile_region_unmap(&state);
		}
	errno = ENOENT;
	die(name);
}

int main(int argc, char **argv)
{
	struct fm_options o = {0};
	size_t bytes;

	if (argc < 4)
		return 2;
	by_time = strcmp(argv[1], "random") == 0;
	grace_ms = atoi(argv[3]);
	o.name = argv[2];
	o.dma_grace_ms = (uint32_t)grace_ms;
	bytes = by_time ? 4096ull * PAGE : 16ull * PAGE;
	memory = fm_map(bytes, &o);
	if (!memory)
		die("fm_map");
	map_state(argv[2]);
	file_fd = open_file();
	if (by_time)
		at_random(argc > 4 ? (unsigned)atoi(argv[4]) : 5);
	else
		hold();
	printf("dma: %lu reads, %lu wrong bytes\n", atomic_load(&reads), atomic_load(&wrong));
	fflush(stdout);
	close(file_fd);
	return fm_unmap(memory, bytes) ? 1 : 0;
}
