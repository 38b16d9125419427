/*
 * malloc() from far memory, for a program that nobody here wrote: LD_PRELOAD this.
 *
 *   FM_SHIM=fm    the heap is one fm_map() region of $FM_SHIM_BYTES, of which $FM_SHIM_LOCAL bytes may stay on the host
 *   FM_SHIM=anon  the heap is anonymous memory of the same size, without huge pages: the reference
 *
 * The same allocator in both cases, so that the program's pages are the same. Blocks have a 16-byte header; sizes are rounded
 * to a quarter of a power of two, free ones are kept in a list a size. Nothing goes back to the system: not an allocator for use.
 * With FM_SHIM_REPORT=FILE the bytes of heap that were touched are written there at the end (FM_SHIM=anon).
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fluidmem.h"

#define CLASSES 256
#define MAGIC   0x6d73u

struct header {
	uint16_t magic, class;
	uint32_t skip; /* bytes from the block's start to this header (aligned_alloc) */
	uint64_t room; /* bytes behind this header */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned char *heap;
static uint64_t heap_bytes, heap_used;
static void *free_list[CLASSES];
static unsigned char early[65536] __attribute__((aligned(16))); /* for what is allocated while the heap is being made */
static size_t early_used;
static int starting;

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *s = getenv(name);

	return s ? strtoull(s, NULL, 10) : otherwise;
}

static void fail(const char *what)
{
	char line[128];
	int n = snprintf(line, sizeof line, "shim: %s\n", what);

	if (write(2, line, (size_t)n) < 0) {
		/* nobody listens */
	}
	_exit(1);
}

static void report(void)
{
	const char *path = getenv("FM_SHIM_REPORT");
	int n, fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
	uint64_t touched = 0;
	unsigned char here[1024];
	char line[32];

	if (fd < 0)
		return;
	for (uint64_t at = 0; at < heap_used; at += sizeof here * 4096) {
		uint64_t bytes = heap_used - at < sizeof here * 4096 ? heap_used - at : sizeof here * 4096;

		if (mincore(heap + at, bytes, here))
			fail("mincore failed");
		for (uint64_t i = 0; i < (bytes + 4095) / 4096; i++)
			touched += here[i] & 1 ? 4096 : 0;
	}
	n = snprintf(line, sizeof line, "%llu\n", (unsigned long long)touched);
	if (write(fd, line, (size_t)n) != n)
		fail("cannot write FM_SHIM_REPORT");
	close(fd);
}

/* Called with the lock held. */
static void start(void)
{
	const char *kind = getenv("FM_SHIM");
	struct fm_options o = {.name = "shim"};

	starting = 1;
	heap_bytes = number("FM_SHIM_BYTES", 256u << 20);
	if (kind && strcmp(kind, "fm") == 0) {
		o.local_bytes = number("FM_SHIM_LOCAL", 0);
		heap = fm_map(heap_bytes, &o);
		if (!heap)
			fail("fm_map failed");
	} else {
		heap = mmap(NULL, heap_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (heap == MAP_FAILED || madvise(heap, heap_bytes, MADV_NOHUGEPAGE))
			fail("mmap failed");
	}
	atexit(report);
	starting = 0;
}

/* 4, 5, 6 or 7 times a power of two that bytes (at least 32) fit in: the block's size, and a number for it. */
static uint16_t class_of(uint64_t bytes, uint64_t *block)
{
	unsigned shift = 3;
	uint64_t n;

	if (bytes < 32)
		bytes = 32;
	while ((8ull << shift) <= bytes)
		shift++;
	n = (bytes + (1ull << shift) - 1) >> shift; /* 4 to 8 */
	*block = n << shift;
	return (uint16_t)((shift - 3) * 4 + n - 4);
}

static void *begin(unsigned char *block, uint16_t class, uint64_t size, size_t align)
{
	uintptr_t at = (uintptr_t)block + sizeof(struct header);
	struct header *h;

	at = (at + align - 1) / align * align;
	h = (struct header *)at - 1;
	*h = (struct header){
	    .magic = MAGIC,
	    .class = class,
	    .skip = (uint32_t)((uintptr_t)h - (uintptr_t)block),
	    .room = (uintptr_t)block + size - at,
	};
	return (void *)at;
}

/* What is allocated while the heap is being made. Never freed. */
static void *take_early(size_t size)
{
	uint64_t all = (size + sizeof(struct header) + 15) / 16 * 16;

	if (all > sizeof early - early_used)
		fail("no early memory left");
	early_used += all;
	return begin(early + early_used - all, CLASSES, all, 16);
}

static void *take(size_t size, size_t align, bool *fresh)
{
	uint64_t block;
	uint16_t c;
	unsigned char *p;

	*fresh = true;
	if (align < 16)
		align = 16;
	if (size > UINT64_MAX / 4 || align > 1u << 30) {
		errno = ENOMEM;
		return NULL;
	}
	if (starting)
		return take_early(size);
	c = class_of(size + sizeof(struct header) + (align > 16 ? align : 0), &block);
	pthread_mutex_lock(&lock);
	if (!heap)
		start();
	p = free_list[c];
	if (p) {
		free_list[c] = *(void **)(void *)p;
		*fresh = false;
	} else if (heap_bytes - heap_used >= (block + 15) / 16 * 16) {
		p = heap + heap_used;
		heap_used += (block + 15) / 16 * 16;
	}
	pthread_mutex_unlock(&lock);
	if (!p) {
		errno = ENOMEM;
		return NULL;
	}
	return begin(p, c, block, align);
}

static struct header *header_of(void *p)
{
	struct header *h = (struct header *)p - 1;

	if (h->magic != MAGIC)
		fail("not a block of ours");
	return h;
}

void *malloc(size_t size)
{
	bool fresh;

	return take(size, 16, &fresh);
}

static void give(void *p)
{
	struct header *h = p ? header_of(p) : NULL;
	unsigned c = h ? h->class : CLASSES;
	void *block;

	if (c == CLASSES)
		return;
	block = (unsigned char *)h - h->skip;
	pthread_mutex_lock(&lock);
	*(void **)block = free_list[c];
	free_list[c] = block;
	pthread_mutex_unlock(&lock);
}

void free(void *p)
{
	give(p);
}

void *calloc(size_t n, size_t each)
{
	bool fresh;
	size_t size;
	void *p;

	if (__builtin_mul_overflow(n, each, &size)) {
		errno = ENOMEM;
		return NULL;
	}
	p = take(size, 16, &fresh);
	/* What was never used is zero, and stays untouched. */
	if (p && !fresh)
		memset(p, 0, size);
	return p;
}

void *realloc(void *old, size_t size)
{
	uint64_t room = old ? header_of(old)->room : 0;
	bool fresh;
	void *p;

	if (old && size <= room && size)
		return old;
	p = take(size, 16, &fresh);
	if (p && old) {
		memcpy(p, old, room < size ? room : size);
		give(old);
	}
	return p;
}

int posix_memalign(void **p, size_t align, size_t size)
{
	bool fresh;
	void *q = take(size, align, &fresh);

	if (!q)
		return ENOMEM;
	*p = q;
	return 0;
}

void *aligned_alloc(size_t align, size_t size)
{
	bool fresh;

	return take(size, align, &fresh);
}

void *memalign(size_t align, size_t size)
{
	bool fresh;

	return take(size, align, &fresh);
}

size_t malloc_usable_size(void *p)
{
	return p ? header_of(p)->room : 0;
}
