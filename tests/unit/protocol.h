/*
 * What the tests of the page protocol share: a region of two shards, an evictor that never rests, and threads that compare every word
 * they read with a shadow copy. One of them discards pages by MADV_REMOVE and MADV_DONTNEED, while another makes faults on them. The
 * store is a fake that knows which generation it holds and refuses at random; the kernel is real, and made to say EAGAIN at random.
 * One region at a time, in t.
 */
#ifndef PROTOCOL_H
#define PROTOCOL_H

#include "evict.h"
#include "shard.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tap.h"
#include "uapi.h"

#ifndef MADV_POPULATE_READ /* Linux 5.14; musl 1.2.3 lacks it */
#define MADV_POPULATE_READ 22
#endif

#ifndef PAGES
#define PAGES   1024u
#endif
#define WORDS   512u
#define SHARDS  2u
#define CLIENTS 3u
#define ID      0x7e57ull
/* The discarding thread's own pages lie over the border between the shards; the others share the rest, page by page. */
#define OWN_FIRST (PAGES * 3 / 8)
#define OWN_END   (PAGES * 5 / 8)

/* What goes wrong, each so often in 1000. */
struct trouble {
	unsigned put_full, get_down, delete_down, eagain, partial, slow_read;
	unsigned grace_ms; /* not trouble, but the time for it */
	bool eager;        /* wake-ups are put off: see shard_near.c */
};

/* --- random numbers: a state per thread */

static uint64_t next_random(uint64_t *s)
{
	uint64_t x = (*s += 0x9e3779b97f4a7c15ull);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static struct trouble trouble;
static _Atomic uint64_t trouble_seed;

static bool happens(unsigned per_mille)
{
	uint64_t s = atomic_fetch_add(&trouble_seed, 1) * 0x2545f4914f6cdd1dull;

	return per_mille && next_random(&s) % 1000 < per_mille;
}

/* --- a store in memory that knows what it holds */

struct copy {
	uint64_t gen; /* 0: none */
	unsigned char bytes[FM_PAGE_SIZE];
};

static struct {
	pthread_mutex_t lock;
	struct copy copy[PAGES];
	uint64_t wrong; /* gets of a copy that is not there, puts and deletes that go back in time */
	uint64_t puts, gets, deletes;
} mem = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void mem_get(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	(void)s, (void)region;
	pthread_mutex_lock(&mem.lock);
	for (unsigned i = 0; i < n; i++) {
		if (happens(trouble.get_down)) {
			r[i].result = FM_STORE_DOWN;
			continue;
		}
		if (mem.copy[r[i].page].gen != r[i].gen) {
			mem.wrong++;
			r[i].result = FM_STORE_LOST;
			continue;
		}
		memcpy(r[i].buf, mem.copy[r[i].page].bytes, FM_PAGE_SIZE);
		r[i].result = FM_STORE_OK;
		mem.gets++;
	}
	pthread_mutex_unlock(&mem.lock);
}

static void mem_put(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	(void)s, (void)region;
	pthread_mutex_lock(&mem.lock);
	for (unsigned i = 0; i < n; i++) {
		if (happens(trouble.put_full)) {
			r[i].result = happens(500) ? FM_STORE_FULL : FM_STORE_DOWN;
			continue;
		}
		mem.wrong += r[i].gen <= mem.copy[r[i].page].gen || fm_page_is_zero(r[i].buf);
		mem.copy[r[i].page].gen = r[i].gen;
		memcpy(mem.copy[r[i].page].bytes, r[i].buf, FM_PAGE_SIZE);
		r[i].result = FM_STORE_OK;
		mem.puts++;
	}
	pthread_mutex_unlock(&mem.lock);
}

/* A put in two halves: nothing is read or stored before the end, as with a server that is slow, and nothing else may come between. */
struct mem_store {
	struct fm_store store;
	uint64_t region;
	struct fm_store_req *r;
	unsigned n; /* 0: nothing has begun */
};

static void mem_put_begin(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mem_store *m = (struct mem_store *)s;

	if (m->n || n > FM_EVICT_BATCH)
		abort();
	m->region = region;
	m->r = r;
	m->n = n;
}

static void mem_put_end(struct fm_store *s)
{
	struct mem_store *m = (struct mem_store *)s;

	mem_put(s, m->region, m->r, m->n);
	m->n = 0;
}

/* Nor may a get be asked for anything else meanwhile, and its answer is that of the end, or of the begin. */
static void mem_get_begin(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	struct mem_store *m = (struct mem_store *)s;

	if (m->n || n > FM_EVICT_BATCH)
		abort();
	if (r[0].gen % 2)
		mem_get(s, region, r, n);
	m->region = region;
	m->r = r;
	m->n = n;
}

static void mem_get_end(struct fm_store *s)
{
	struct mem_store *m = (struct mem_store *)s;
	unsigned n = m->n;

	m->n = 0;
	if (m->r[0].gen % 2 == 0)
		mem_get(s, m->region, m->r, n);
}

static void mem_del(struct fm_store *s, uint64_t region, struct fm_store_req *r, unsigned n)
{
	(void)region;
	if (((struct mem_store *)s)->n)
		abort();
	pthread_mutex_lock(&mem.lock);
	for (unsigned i = 0; i < n; i++) {
		r[i].result = happens(trouble.delete_down) ? FM_STORE_DOWN : FM_STORE_OK;
		/* A page that was moved goes from where it was before: here all epochs have one place. */
		if (r[i].result == FM_STORE_OK && !r[i].moving) {
			mem.wrong += mem.copy[r[i].page].gen > r[i].gen;
			mem.copy[r[i].page].gen = 0;
			mem.deletes++;
		}
	}
	pthread_mutex_unlock(&mem.lock);
}

static void mem_close(struct fm_store *s)
{
	free(s);
}

static void mem_forget(struct fm_store *s, uint64_t region)
{
	(void)s, (void)region;
}

static const struct fm_store_ops mem_ops = {
    .scheme = "mem:",
    .close = mem_close,
    .get = mem_get,
    .get_begin = mem_get_begin,
    .get_end = mem_get_end,
    .put = mem_put,
    .put_begin = mem_put_begin,
    .put_end = mem_put_end,
    .del = mem_del,
    .forget = mem_forget,
};

static struct fm_store *mem_open(void)
{
	struct mem_store *s = calloc(1, sizeof *s);

	if (!s)
		abort();
	s->store.ops = &mem_ops;
	return &s->store;
}

/* --- a kernel that says EAGAIN, and does less than it was asked for */

static int bad_ioctl(int fd, unsigned long request, void *arg)
{
	struct uffdio_copy *c = arg;
	struct uffdio_zeropage *z = arg;
	int r;

	if (request == UFFDIO_WAKE)
		return ioctl(fd, request, arg);
	if (happens(trouble.eagain)) {
		bool touched = happens(500);

		if (request == UFFDIO_COPY && touched)
			c->copy = -EAGAIN;
		if (request == UFFDIO_ZEROPAGE && touched)
			z->zeropage = -EAGAIN;
		errno = EAGAIN;
		return -1;
	}
	if (request == UFFDIO_COPY && c->len > FM_PAGE_SIZE && happens(trouble.partial)) {
		c->len = FM_PAGE_SIZE;
		r = ioctl(fd, request, arg);
		if (r == 0) {
			errno = EAGAIN;
			r = -1;
		}
		return r;
	}
	return ioctl(fd, request, arg);
}

/* A shard that is not run on for a while, just when its read has let a client go on. */
static ssize_t slow_read(int fd, void *buf, size_t len)
{
	ssize_t n = read(fd, buf, len);

	if (n > 0 && happens(trouble.slow_read)) {
		uint64_t s = (uint64_t)fm_now_ns();

		nanosleep(&(struct timespec){.tv_nsec = (long)(next_random(&s) % 30000000)}, NULL);
	}
	return n;
}

static const struct fm_uffd_ops bad_kernel = {.ioctl = bad_ioctl, .read = slow_read};

/* --- one region and all that works on it */

static struct {
	uint64_t *memory, *shadow;
	int memfd, state_fd, wake_fd, news_fd, scratch_fd;
	int uffd[SHARDS];
	struct fm_daemon_shm *daemon;
	struct fm_region_map map;
	struct fm_shard *shard[SHARDS];
	struct fm_evictor evictor;
	struct fm_evict_region evict;
	struct fm_store *evict_store;
	atomic_bool hold, near, unbounded, stop_clients, stop_evictor;
	uint64_t seed;
	atomic_ulong ops, wrong, removed;
} t;

/* The region's file, as fm-faultd makes it. Returns false: no memory for it. */
static bool make_state(void)
{
	uint64_t shards_at, words_at, size;
	struct fm_region_hdr *h;
	struct fm_shard_shm *s;

	fm_shmfile_layout(PAGES, SHARDS, &shards_at, &words_at, &size);
	t.state_fd = memfd_create("state", MFD_CLOEXEC);
	if (t.state_fd < 0 || ftruncate(t.state_fd, (off_t)size) < 0)
		return false;
	h = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, t.state_fd, 0);
	if (h == MAP_FAILED)
		return false;
	h->version = FM_SHM_VERSION;
	h->nshards = SHARDS;
	h->id = ID;
	h->pages = PAGES;
	h->shards_offset = shards_at;
	h->words_offset = words_at;
	h->kind = FM_KIND_MAP;
	strcpy(h->name, "protocol");
	s = (struct fm_shard_shm *)(void *)((char *)h + shards_at);
	for (unsigned i = 0; i < SHARDS; i++) {
		s[i].first_page = PAGES / SHARDS * i;
		s[i].pages = PAGES / SHARDS;
		atomic_store(&s[i].hva, (uint64_t)(uintptr_t)t.memory + s[i].first_page * FM_PAGE_SIZE);
	}
	h->sum = fm_shmfile_region_sum(h);
	h->magic = FM_MAGIC_REGION;
	munmap(h, size);
	return fm_shmfile_region_map_fd(dup(t.state_fd), FM_SHMFILE_WRITE | FM_SHMFILE_WORDS, &t.map, NULL) == 0 &&
	       fm_shmfile_region_map_fd(dup(t.state_fd), FM_SHMFILE_WRITE | FM_SHMFILE_WORDS, &t.evict.map, NULL) == 0;
}

static inline bool start(const struct fm_uffd_ops *kernel, uint64_t limit)
{
	uint64_t features;

	t.memfd = memfd_create("far", MFD_CLOEXEC);
	if (t.memfd < 0 || ftruncate(t.memfd, PAGES * FM_PAGE_SIZE) < 0 || fm_uffd_probe(&features))
		return false;
	t.memory = mmap(NULL, PAGES * FM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, t.memfd, 0);
	t.shadow = calloc(PAGES, FM_PAGE_SIZE);
	t.daemon = aligned_alloc(4096, (sizeof *t.daemon + 4095) / 4096 * 4096);
	if (t.memory == MAP_FAILED || !t.shadow || !t.daemon || !make_state())
		return false;
	memset(t.daemon, 0, sizeof *t.daemon);
	atomic_store(&t.daemon->limit_pages, limit);
	t.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	t.news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	atomic_store(&t.hold, true);
	atomic_store(&t.near, true);
	for (unsigned i = 0; i < SHARDS; i++) {
		struct fm_shard_options o = {
		    .map = &t.map,
		    .index = i,
		    .daemon = t.daemon,
		    .uffd = {.fd = fm_uffd_open(), .ops = kernel},
		    .memfd = t.memfd,
		    .store = mem_open(),
		    .evictor_eventfd = t.wake_fd,
		    .news_eventfd = t.news_fd,
		    .hold = &t.hold,
		    .near = &t.near,
		    .eager = trouble.eager,
		    .unbounded = &t.unbounded,
		};
		struct fm_uffd real = {.fd = o.uffd.fd, .ops = &fm_uffd_kernel};

		/* As a client does: an open copy, so that nobody gets zeros when the shard ends. */
		t.uffd[i] = dup(o.uffd.fd);
		t.evict.uffd[i] = (struct fm_uffd){.fd = dup(o.uffd.fd), .ops = kernel};
		if (fm_uffd_api(&real, features) || fm_uffd_register(&real, fm_ld(&t.map.shards[i].hva), t.map.shards[i].pages * FM_PAGE_SIZE) ||
		    fm_shard_start(&o, &t.shard[i]))
			return false;
	}
	t.evict.memfd = dup(t.memfd);
	t.evict_store = mem_open();
	return fm_evictor_init(&t.evictor, t.daemon, t.evict_store) == 0 && fm_evict_begin(&t.evictor, &t.evict) == 0;
}

static void *evict_main(void *arg)
{
	uint64_t rnd = t.seed ^ 0xe71c7;

	(void)arg;
	while (!atomic_load(&t.stop_evictor)) {
		fm_evict_drain(&t.evictor, &t.evict);
		unsigned n = fm_evict_due(&t.evictor, &t.evict, 1 + (unsigned)(next_random(&rnd) % FM_EVICT_BATCH));

		if (!fm_evict_batch(&t.evictor, &t.evict, 1 + (unsigned)(next_random(&rnd) % FM_EVICT_MOST)) && !n)
			sched_yield();
		if (next_random(&rnd) % 64 == 0)
			fm_evict_recount_grace(&t.evict);
	}
	return NULL;
}

/* --- clients */

static void check(uint64_t page, unsigned first, unsigned n)
{
	const volatile uint64_t *m = t.memory + page * WORDS;
	const uint64_t *s = t.shadow + page * WORDS;

	for (unsigned i = first; i < first + n; i++) {
		uint64_t got = m[i];

		if (got != s[i] && atomic_fetch_add(&t.wrong, 1) < 5)
			printf("# page %" PRIu64 " word %u: %#" PRIx64 ", must be %#" PRIx64 "\n", page, i, got, s[i]);
	}
}

/* The kernel reads the page and writes it: its faults go the same way as a program's. */
static void by_kernel(uint64_t *rnd, uint64_t page)
{
	uint64_t *m = t.memory + page * WORDS, *s = t.shadow + page * WORDS, buf[WORDS];
	off_t at = (off_t)(page * FM_PAGE_SIZE);

	if (pwrite(t.scratch_fd, m, FM_PAGE_SIZE, at) != FM_PAGE_SIZE || pread(t.scratch_fd, buf, FM_PAGE_SIZE, at) != FM_PAGE_SIZE ||
	    memcmp(buf, s, FM_PAGE_SIZE) != 0)
		atomic_fetch_add(&t.wrong, 1);
	for (unsigned i = 0; i < WORDS; i++)
		buf[i] = s[i] = next_random(rnd);
	if (pwrite(t.scratch_fd, buf, FM_PAGE_SIZE, at) != FM_PAGE_SIZE || pread(t.scratch_fd, m, FM_PAGE_SIZE, at) != FM_PAGE_SIZE)
		atomic_fetch_add(&t.wrong, 1);
	check(page, 0, WORDS);
}

static void one(uint64_t *rnd, uint64_t page)
{
	uint64_t *m = t.memory + page * WORDS, *s = t.shadow + page * WORDS, r = next_random(rnd);
	unsigned first = (unsigned)(next_random(rnd) % WORDS), n = 1 + (unsigned)(next_random(rnd) % (WORDS - first));

	switch (r % 12) {
	case 0:
		for (unsigned i = 0; i < WORDS; i++)
			m[i] = s[i] = next_random(rnd);
		break;
	case 1:
		memset(m, 0, FM_PAGE_SIZE);
		memset(s, 0, FM_PAGE_SIZE);
		break;
	case 2:
	case 3:
		for (unsigned i = first; i < first + n; i++)
			m[i] = s[i] = next_random(rnd);
		check(page, 0, WORDS);
		break;
	case 4:
	case 5:
		m[first] = s[first] = r;
		break;
	case 6:
		by_kernel(rnd, page);
		break;
	default:
		check(page, first, n);
		break;
	}
	atomic_fetch_add(&t.ops, 1);
}

/* Own pages in order, each the CLIENTS-th: what prefetch is for. */
static void walk(uint64_t *rnd, uint64_t page)
{
	unsigned n = 20 + (unsigned)(next_random(rnd) % 100), write = (unsigned)(next_random(rnd) % 3);

	for (unsigned i = 0; i < n && page < PAGES - (OWN_END - OWN_FIRST); i++, page += CLIENTS) {
		uint64_t at = page < OWN_FIRST ? page : page + (OWN_END - OWN_FIRST);

		if (write == 0)
			t.memory[at * WORDS + i] = t.shadow[at * WORDS + i] = next_random(rnd);
		check(at, 0, WORDS);
	}
	atomic_fetch_add(&t.ops, n);
}

static void *client_main(void *arg)
{
	uint64_t me = (uint64_t)(uintptr_t)arg, rnd = t.seed + me * 77777;

	while (!atomic_load(&t.stop_clients)) {
		uint64_t page = next_random(&rnd) % (PAGES - (OWN_END - OWN_FIRST));

		page = page - page % CLIENTS + me;
		if (page >= PAGES - (OWN_END - OWN_FIRST))
			continue;
		if (next_random(&rnd) % 16 == 0) {
			walk(&rnd, page);
			continue;
		}
		one(&rnd, page < OWN_FIRST ? page : page + (OWN_END - OWN_FIRST));
	}
	return NULL;
}

static void discard(uint64_t page, uint64_t n, int advice)
{
	if (madvise(t.memory + page * WORDS, n * FM_PAGE_SIZE, advice) < 0) {
		printf("# madvise(%d): %s\n", advice, strerror(errno));
		atomic_fetch_add(&t.wrong, 1);
	}
	atomic_fetch_add(&t.removed, n);
}

/* After MADV_REMOVE they read as zeros at once. */
static void remove_pages(uint64_t *rnd, uint64_t page, uint64_t n)
{
	discard(page, n, MADV_REMOVE);
	memset(t.shadow + page * WORDS, 0, n * FM_PAGE_SIZE);
	for (uint64_t i = 0; i < n; i++)
		if (next_random(rnd) % 2)
			check(page + i, 0, WORDS);
}

/* After MADV_DONTNEED a page holds its old bytes, or zeros, for good; and what is written then stays. */
static void unneed_pages(uint64_t *rnd, uint64_t page, uint64_t n)
{
	uint64_t tag = next_random(rnd);
	uint64_t *m = t.memory + page * WORDS, *s = t.shadow + page * WORDS;

	discard(page, n, MADV_DONTNEED);
	for (uint64_t i = 0; i < n; i++)
		m[i * WORDS + 1] = tag;
	for (uint64_t i = 0; i < n; i++) {
		/* Word 0 was not zero. */
		if (m[i * WORDS] == 0)
			memset(s + i * WORDS, 0, FM_PAGE_SIZE);
		s[i * WORDS + 1] = tag;
		check(page + i, 0, WORDS);
	}
}

/* Works on its own pages, and discards runs of them. */
static void *remover_main(void *arg)
{
	uint64_t rnd = t.seed ^ 0x4e304e;

	(void)arg;
	/* Slow between the event that a discard sends and its punch: the others shall have time to use that wrongly. */
	setpriority(PRIO_PROCESS, (id_t)gettid(), 5);
	while (!atomic_load(&t.stop_clients)) {
		uint64_t page = OWN_FIRST + next_random(&rnd) % (OWN_END - OWN_FIRST), n = 1 + next_random(&rnd) % 64;

		for (unsigned i = 0; i < 8; i++)
			one(&rnd, OWN_FIRST + next_random(&rnd) % (OWN_END - OWN_FIRST));
		if (n > OWN_END - page)
			n = OWN_END - page;
		/* Most are here and dirty then. */
		for (uint64_t i = 0; i < n; i++)
			t.memory[(page + i) * WORDS] = t.shadow[(page + i) * WORDS] = i + 1;
		if (next_random(&rnd) % 4)
			remove_pages(&rnd, page, n);
		else
			unneed_pages(&rnd, page, n);
	}
	return NULL;
}

/* Makes the kernel read the remover's pages, whatever they hold: faults that a discard overtakes. */
static void *toucher_main(void *arg)
{
	uint64_t rnd = t.seed ^ 0x70c8;

	(void)arg;
	while (!atomic_load(&t.stop_clients)) {
		uint64_t page = OWN_FIRST + next_random(&rnd) % (OWN_END - OWN_FIRST);

		if (madvise(t.memory + page * WORDS, FM_PAGE_SIZE, MADV_POPULATE_READ) < 0 && errno != EINVAL)
			atomic_fetch_add(&t.wrong, 1);
	}
	return NULL;
}

/* --- begin and end */

static struct {
	pthread_t client[CLIENTS], remover, toucher, evictor;
} threads;

static void run_evictor(void)
{
	atomic_store(&t.stop_evictor, false);
	pthread_create(&threads.evictor, NULL, evict_main, NULL);
}

static inline void halt_evictor(void)
{
	atomic_store(&t.stop_evictor, true);
	pthread_join(threads.evictor, NULL);
}

/* All of it, with this trouble. Ends the test when it cannot. */
static inline void begin(const char *name, const struct trouble *what, uint64_t seed)
{
	memset(&t, 0, sizeof t);
	memset(&mem.copy, 0, sizeof mem.copy);
	mem.wrong = mem.puts = mem.gets = mem.deletes = 0;
	t.seed = seed;
	trouble = *what;
	atomic_store(&trouble_seed, seed);
	t.scratch_fd = memfd_create("scratch", MFD_CLOEXEC);
	if (!start(what->eagain ? &bad_kernel : &fm_uffd_kernel, PAGES / 2) || t.scratch_fd < 0) {
		ok(false, "%s: started", name);
		exit(tap_done());
	}
	atomic_store(&t.map.hdr->grace_ms, what->grace_ms);
	run_evictor();
	for (unsigned i = 0; i < CLIENTS; i++)
		pthread_create(&threads.client[i], NULL, client_main, (void *)(uintptr_t)i);
	pthread_create(&threads.remover, NULL, remover_main, NULL);
	pthread_create(&threads.toucher, NULL, toucher_main, NULL);
}

/* The clients, and look at every page. */
static inline void halt_clients(void)
{
	atomic_store(&t.stop_clients, true);
	for (unsigned i = 0; i < CLIENTS; i++)
		pthread_join(threads.client[i], NULL);
	pthread_join(threads.remover, NULL);
	pthread_join(threads.toucher, NULL);
	for (unsigned p = 0; p < PAGES; p++)
		check(p, 0, WORDS);
}

/* Free what begin() made; evictor, clients and shards have been halted. */
static inline void finish(void)
{
	fm_evict_end(&t.evictor, &t.evict);
	fm_evictor_fini(&t.evictor);
	fm_store_close(t.evict_store);
	fm_shmfile_region_unmap(&t.map);
	for (unsigned i = 0; i < SHARDS; i++)
		close(t.uffd[i]);
	munmap(t.memory, PAGES * FM_PAGE_SIZE);
	free(t.shadow);
	free(t.daemon);
	close(t.memfd);
	close(t.state_fd);
	close(t.wake_fd);
	close(t.news_fd);
	close(t.scratch_fd);
}

#endif
