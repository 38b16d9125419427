/* libfm: see fluidmem.h. Depends on libc and ctl.c only; no thread, no signal handler, nothing done at load time. */
#include "fluidmem.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <unistd.h>

#include "ctl.h"
#include "uapi.h"

#define MAX_PAGES 0xfffffffeull

/* One mapping of this process. */
struct mapping {
	struct mapping *next;
	char *address;
	size_t length;   /* as mapped first */
	size_t unmapped;    /* pages given back in parts */
	unsigned char *part; /* a bit for each of them, or NULL */
	uint64_t id;
	pid_t pid; /* whose memory it is: a forked child inherits this list, but not the memory */
	int memfd;
	dev_t dev; /* of the memfd, as /proc/self/maps has it */
	ino_t ino;
	unsigned nshards;
	int uffd[FM_MAX_SHARDS];
	char *run_dir;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct mapping *mappings;

static void take_lock(void)
{
	pthread_mutex_lock(&lock);
}

static void leave_lock(void)
{
	pthread_mutex_unlock(&lock);
}

/* A child that is forked while another thread has the lock would find it locked for ever. */
static void watch_forks(void)
{
	pthread_atfork(take_lock, leave_lock, leave_lock);
}

static size_t page_up(size_t n)
{
	return (n + FM_PAGE_SIZE - 1) & ~(size_t)(FM_PAGE_SIZE - 1);
}

static bool good_name(const char *s)
{
	size_t n = strlen(s);

	if (n == 0 || n >= FM_NAME_MAX)
		return false;
	for (; *s; s++)
		if (*s <= ' ' || *s > '~')
			return false;
	return true;
}

/* The program's name, made fit to be a region's. */
static void default_name(char name[FM_NAME_MAX])
{
	const char *s = program_invocation_short_name;
	size_t n = 0;

	for (; s && *s && n < FM_NAME_MAX - 1; s++)
		name[n++] = *s > ' ' && *s <= '~' ? *s : '_';
	if (!n)
		name[n++] = '_';
	name[n] = '\0';
}

/*
 * A userfaultfd of this process. Without CAP_SYS_PTRACE the system call only gives one that fails in the kernel's own accesses
 * (read(2) into far memory would get EFAULT): then the daemon lends us /dev/userfaultfd.
 */
static int new_uffd(int ctl)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), dev, e, r;

	if (fd >= 0 || errno != EPERM)
		return fd < 0 ? -errno : fd;
	r = fm_ctl_call(ctl, FM_CTL_DEVICE, NULL, NULL, 0, FM_CTL_OK, NULL, &dev, NULL);
	if (r)
		return r == -EPROTO ? r : -EPERM;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	e = errno;
	close(dev);
	return fd < 0 ? -e : fd;
}

static void close_fds(struct mapping *m)
{
	for (unsigned i = 0; i < m->nshards; i++)
		if (m->uffd[i] >= 0)
			close(m->uffd[i]);
	if (m->memfd >= 0)
		close(m->memfd);
}

static int make_memory(struct mapping *m, const char *name)
{
	char label[FM_NAME_MAX + 8] = "fm:";
	struct stat st;

	strcat(label, name);
	m->memfd = memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (m->memfd < 0 || ftruncate(m->memfd, (off_t)m->length) < 0 || fstat(m->memfd, &st) < 0)
		return -errno;
	m->dev = st.st_dev;
	m->ino = st.st_ino;
	/* Its size is part of the deal; and no seal may come later that forbids to punch it. */
	if (fcntl(m->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	m->address = mmap(NULL, m->length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->memfd, 0);
	if (m->address == MAP_FAILED) {
		m->address = NULL;
		return -errno;
	}
	/* A forked child would map the file without the userfaultfd and read holes as zeros. */
	if (madvise(m->address, m->length, MADV_DONTFORK) < 0 || madvise(m->address, m->length, MADV_DONTDUMP) < 0)
		return -errno;
	madvise(m->address, m->length, MADV_NOHUGEPAGE); /* EINVAL without THP: as good */
	return 0;
}

static int register_memory(int ctl, struct mapping *m, const char *name, uint64_t limit_pages, uint32_t grace_ms)
{
	struct fm_ctl_hello hello = {.pages = m->length / FM_PAGE_SIZE};
	struct fm_ctl_hello_ok ok;
	struct fm_ctl_register reg = {0};
	struct fm_ctl_region region;
	int fds[1 + FM_MAX_SHARDS], r;

	r = fm_ctl_call(ctl, FM_CTL_HELLO, &hello, NULL, 0, FM_CTL_HELLO_OK, &ok, NULL, NULL);
	if (r == 0 && (ok.nshards < 1 || ok.nshards > FM_MAX_SHARDS))
		r = -EPROTO;
	if (r)
		return r;
	r = make_memory(m, name);
	if (r)
		return r;
	fds[0] = m->memfd;
	for (unsigned i = 0; i < ok.nshards; i++) {
		r = new_uffd(ctl);
		if (r < 0)
			return r;
		m->uffd[m->nshards++] = r;
		fds[1 + i] = reg.client_uffd[i] = r;
	}
	reg.hva = (uint64_t)(uintptr_t)m->address;
	reg.pages = m->length / FM_PAGE_SIZE;
	reg.limit_pages = limit_pages;
	reg.kind = FM_KIND_MAP;
	reg.nshards = m->nshards;
	reg.client_memfd = m->memfd;
	strcpy(reg.name, name);
	r = fm_ctl_call(ctl, FM_CTL_REGISTER, &reg, fds, 1 + m->nshards, FM_CTL_REGISTERED, &region, NULL, NULL);
	if (r == 0)
		m->id = region.id;
	if (r == 0 && grace_ms) {
		struct fm_ctl_evict grace = {.id = m->id, .pages = grace_ms};

		r = fm_ctl_call(ctl, FM_CTL_GRACE, &grace, NULL, 0, FM_CTL_OK, NULL, NULL, NULL);
	}
	return r;
}

/* Take the memory away from the userfaultfds: whoever waits goes on, and no event of this mapping is sent any more. */
static void unregister_uffds(const struct mapping *m)
{
	uint64_t pages = m->length / FM_PAGE_SIZE;

	for (unsigned i = 0; i < m->nshards; i++) {
		uint64_t first = fm_ctl_shard_first(pages, m->nshards, i), end = fm_ctl_shard_first(pages, m->nshards, i + 1);
		struct uffdio_range range = {
		    .start = (uint64_t)(uintptr_t)m->address + first * FM_PAGE_SIZE,
		    .len = (end - first) * FM_PAGE_SIZE,
		};

		ioctl(m->uffd[i], UFFDIO_UNREGISTER, &range);
	}
}

/* Tell the daemon that the whole region is gone. When it does not run, the next one finds out by itself. */
static void unregister(const struct mapping *m)
{
	struct fm_ctl_region region = {.id = m->id};
	struct timeval limit = {.tv_sec = 5};
	int ctl = fm_ctl_connect(m->run_dir);

	if (ctl < 0)
		return;
	setsockopt(ctl, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	fm_ctl_call(ctl, FM_CTL_UNREGISTER, &region, NULL, 0, FM_CTL_OK, NULL, NULL, NULL);
	close(ctl);
}

/* Nothing of it is mapped any more. */
static void release(struct mapping *m)
{
	free(m->part);
	free(m->run_dir);
	free(m);
}

/* Undo what make_memory() and register_memory() did. The memory was never handed out: it may just go. */
static void discard(struct mapping *m)
{
	unregister_uffds(m);
	if (m->address)
		munmap(m->address, m->length);
	if (m->id)
		unregister(m);
	close_fds(m);
	release(m);
}

void *fm_map(size_t length, const struct fm_options *o)
{
	const char *run_dir = fm_ctl_run_dir(o ? o->run_dir : NULL);
	uint64_t limit = o && o->local_bytes ? (o->local_bytes - 1) / FM_PAGE_SIZE + 1 : 0;
	char name[FM_NAME_MAX];
	struct mapping *m;
	int ctl, r;

	if (length == 0 || (length - 1) / FM_PAGE_SIZE >= MAX_PAGES || (o && o->name && !good_name(o->name))) {
		errno = EINVAL;
		return NULL;
	}
	if (o && o->name)
		strcpy(name, o->name);
	else
		default_name(name);
	pthread_once(&once, watch_forks);
	ctl = fm_ctl_connect(run_dir);
	if (ctl < 0) {
		errno = -ctl;
		return NULL;
	}
	m = calloc(1, sizeof *m);
	if (m)
		m->run_dir = strdup(run_dir);
	if (!m || !m->run_dir) {
		free(m);
		close(ctl);
		errno = ENOMEM;
		return NULL;
	}
	m->memfd = -1;
	m->pid = getpid();
	m->length = page_up(length);
	r = register_memory(ctl, m, name, limit, o ? o->dma_grace_ms : 0);
	close(ctl);
	if (r) {
		discard(m);
		errno = r == -EPIPE ? ECONNREFUSED : -r;
		return NULL;
	}
	pthread_mutex_lock(&lock);
	m->next = mappings;
	mappings = m;
	pthread_mutex_unlock(&lock);
	return m->address;
}

/* Count pages that were given back, each once however often it is. */
static void count_part(struct mapping *m, size_t first, size_t n)
{
	for (size_t p = first; p < first + n; p++) {
		unsigned char bit = (unsigned char)(1u << (p % 8));

		m->unmapped += !(m->part[p / 8] & bit);
		m->part[p / 8] |= bit;
	}
}

/* Forget the mapping of that id when all its parts have been given back. Returns it then, the caller's; else NULL. */
static struct mapping *part_gone(uint64_t id, const char *a, size_t length)
{
	struct mapping **link, *m;

	pthread_mutex_lock(&lock);
	for (link = &mappings; (m = *link) && m->id != id; link = &m->next)
		;
	if (m) {
		count_part(m, (size_t)(a - m->address) / FM_PAGE_SIZE, length / FM_PAGE_SIZE);
		if (m->unmapped < m->length / FM_PAGE_SIZE)
			m = NULL;
		else
			*link = m->next;
	}
	pthread_mutex_unlock(&lock);
	return m;
}

/* What is mapped at an address. */
struct at {
	uint64_t start, end, offset, ino;
	dev_t dev;
};

static uint64_t hex(const char **p)
{
	uint64_t v = 0;

	for (;; (*p)++)
		if (**p >= '0' && **p <= '9')
			v = v << 4 | (uint64_t)(**p - '0');
		else if (**p >= 'a' && **p <= 'f')
			v = v << 4 | (uint64_t)(**p - 'a' + 10);
		else
			return v;
}

/* A line of /proc/self/maps up to its inode: START-END PERM OFFSET MAJOR:MINOR INODE. */
static void parse_at(const char *line, struct at *at)
{
	const char *p = line;
	unsigned major_, minor_;

	at->start = hex(&p);
	p += *p == '-';
	at->end = hex(&p);
	p += strspn(p, " ");
	p += strcspn(p, " ");
	p += strspn(p, " ");
	at->offset = hex(&p);
	p += strspn(p, " ");
	major_ = (unsigned)hex(&p);
	p += *p == ':';
	minor_ = (unsigned)hex(&p);
	at->dev = makedev(major_, minor_);
	at->ino = strtoull(p, NULL, 10);
}

/* Returns 1 and *at; 0: nothing is mapped there; -1: it cannot be told. Without malloc(), which may lie in far memory itself. */
static int look_at(const char *a, struct at *at)
{
	char buf[4096];
	size_t n = 0;
	ssize_t r;
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC), found = fd < 0 ? -1 : 0;

	while (found == 0) {
		char *line = buf, *end;

		r = read(fd, buf + n, sizeof buf - 1 - n);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0) {
			found = r < 0 ? -1 : 0;
			break;
		}
		n += (size_t)r;
		buf[n] = '\0';
		for (; found == 0 && (end = memchr(line, '\n', n - (size_t)(line - buf))); line = end + 1) {
			*end = '\0';
			parse_at(line, at);
			found = (uintptr_t)a >= at->start && (uintptr_t)a < at->end;
		}
		n -= (size_t)(line - buf);
		memmove(buf, line, n);
		if (n == sizeof buf - 1)
			n = 0; /* a path as long as the buffer: what is left of it is no line of ours */
	}
	if (fd >= 0)
		close(fd);
	return found;
}

/*
 * The mapping that the page at a belongs to. By its file, not by where it was mapped first: mremap() may have moved it, and something else may be there now.
 * Where nothing is mapped it was given back before, as far as that goes by its old address. The caller has the lock.
 */
static struct mapping **find(const char *a)
{
	struct mapping **link, *m;
	struct at at;
	int known = look_at(a, &at);

	for (link = &mappings; (m = *link); link = &m->next) {
		if (m->pid != getpid())
			continue;
		if (known == 1 && at.ino == m->ino && at.dev == m->dev) {
			m->address = (char *)(uintptr_t)(at.start - at.offset);
			break;
		}
		if (known != 1 && a >= m->address && a < m->address + m->length)
			break;
	}
	return link;
}

int fm_unmap(void *address, size_t length)
{
	struct mapping **link, *m;
	char *a = address;

	length = page_up(length);
	pthread_mutex_lock(&lock);
	link = find(a);
	m = *link;
	if (!m || length == 0 || (uintptr_t)a % FM_PAGE_SIZE || length > (size_t)(m->address + m->length - a)) {
		pthread_mutex_unlock(&lock);
		errno = EINVAL;
		return -1;
	}
	if (length < m->length) {
		uint64_t id = m->id;

		if (!m->part)
			m->part = calloc(m->length / FM_PAGE_SIZE / 8 + 1, 1);
		if (!m->part) {
			pthread_mutex_unlock(&lock);
			errno = ENOMEM;
			return -1;
		}
		pthread_mutex_unlock(&lock);
		/* A part: its UNMAP event tells the daemon, which must be there to read it. It may fail for want of mappings. */
		if (munmap(a, length) < 0)
			return -1;
		m = part_gone(id, a, length);
		if (m) {
			unregister(m);
			close_fds(m);
			release(m);
		}
		return 0;
	}
	*link = m->next;
	pthread_mutex_unlock(&lock);
	/* Unregistered first: then munmap() sends no event, and works whether or not a daemon is there to read one. */
	unregister_uffds(m);
	munmap(m->address, m->length);
	/* Closed last: as long as the daemons know of the region, its descriptors' numbers must not be another's. */
	unregister(m);
	close_fds(m);
	release(m);
	return 0;
}
