#include "proc.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

#define PAGE     4096u
#define WINDOW   (64u << 20) /* bytes of a file that are mapped at a time */
#define BATCH    512u        /* pages looked up at a time */
#define FILE_MAX (64u << 20) /* of a text that is read whole: 600,000 mappings */

/* Read a file of /proc whole. -ESRCH when its process is gone. The caller frees *buf. */
static int read_whole(const char *path, char **buf, size_t *len)
{
	size_t cap = 16384, n = 0;
	char *b, *more;
	ssize_t r;
	int fd, e;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	b = malloc(cap);
	e = b ? 0 : ENOMEM;
	while (!e) {
		if (n == cap) {
			more = cap < FILE_MAX ? realloc(b, cap * 2) : NULL;
			if (!more) {
				e = ENOMEM;
				break;
			}
			b = more;
			cap *= 2;
		}
		r = read(fd, b + n, cap - n);
		if (r == 0)
			break;
		if (r > 0)
			n += (size_t)r;
		else if (errno != EINTR)
			e = errno;
	}
	close(fd);
	if (e) {
		free(b);
		return -e;
	}
	*buf = b;
	*len = n;
	return 0;
}

/* A number at *p, before end; moves *p behind it. false: no digit, or it overflows. */
static bool number(const char **p, const char *end, unsigned base, uint64_t *out)
{
	const char *s = *p;
	uint64_t v = 0;

	for (; s < end && isxdigit((unsigned char)*s); s++) {
		unsigned d = isdigit((unsigned char)*s) ? (unsigned)(*s - '0') : (unsigned)((*s | 0x20) - 'a' + 10);

		if (d >= base)
			break;
		if (v > (UINT64_MAX - d) / base)
			return false;
		v = v * base + d;
	}
	if (s == *p)
		return false;
	*p = s;
	*out = v;
	return true;
}

static bool literal(const char **p, const char *end, char c)
{
	if (*p >= end || **p != c)
		return false;
	(*p)++;
	return true;
}

/* A field, 4 or above, of the text of /proc/PID/stat, that is followed by another. */
static int parse_stat(const char *buf, size_t len, unsigned which, uint64_t *value)
{
	const char *p = memrchr(buf, ')', len), *end = buf + len;
	unsigned field = 2;

	if (!p)
		return -EPROTO;
	/* Only numbers and one letter follow comm, each after one space. */
	for (p++; p < end; p++)
		if (*p == ' ' && ++field == which) {
			p++;
			return number(&p, end, 10, value) && p < end && *p == ' ' ? 0 : -EPROTO;
		}
	return -EPROTO;
}

int fm_proc_parse_start(const char *buf, size_t len, uint64_t *start)
{
	return parse_stat(buf, len, 22, start);
}

int fm_proc_parse_cpu(const char *buf, size_t len, uint64_t *cpu, uint64_t *policy)
{
	int e = parse_stat(buf, len, 39, cpu);

	return e ? e : parse_stat(buf, len, 41, policy);
}

int fm_proc_cpu(int pid, int tid, uint64_t *cpu, uint64_t *policy)
{
	char path[48], buf[2048];
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	n = read(fd, buf, sizeof buf);
	close(fd);
	return n < 0 ? -ESRCH : fm_proc_parse_cpu(buf, (size_t)n, cpu, policy);
}

int fm_proc_start(int pid, uint64_t *start)
{
	char path[32], *buf = NULL;
	size_t len = 0;
	int r;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	r = read_whole(path, &buf, &len);
	if (r)
		return r;
	r = fm_proc_parse_start(buf, len, start);
	free(buf);
	return r;
}

int fm_proc_parse_owner(const char *buf, size_t len, uint64_t uid)
{
	static const char name[] = "\nUid:";
	const char *p = memmem(buf, len, name, sizeof name - 1), *end = buf + len;
	uint64_t id;

	if (!p)
		return -EPROTO;
	/* Real, effective, saved, of the file system. */
	p += sizeof name - 1;
	for (int i = 0; i < 4; i++) {
		if (!literal(&p, end, '\t') || !number(&p, end, 10, &id))
			return -EPROTO;
		if (id == uid)
			return 0;
	}
	return -EPERM;
}

int fm_proc_owned_by(int pid, uint64_t uid)
{
	char path[32], *buf = NULL;
	size_t len = 0;
	int r;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	r = read_whole(path, &buf, &len);
	if (r)
		return r;
	r = fm_proc_parse_owner(buf, len, uid);
	free(buf);
	return r;
}

int fm_proc_parse_mapping(const char *line, size_t len, struct fm_mapping *m)
{
	const char *p = line, *end = line + len;
	uint64_t major_, minor_;

	memset(m, 0, sizeof *m);
	if (!number(&p, end, 16, &m->start) || !literal(&p, end, '-') || !number(&p, end, 16, &m->end) || !literal(&p, end, ' '))
		return -EPROTO;
	if (m->start >= m->end || end - p < 5)
		return -EPROTO;
	m->read = p[0] == 'r';
	m->write = p[1] == 'w';
	m->exec = p[2] == 'x';
	m->shared = p[3] == 's';
	if (!m->shared && p[3] != 'p')
		return -EPROTO;
	p += 4;
	if (!literal(&p, end, ' ') || !number(&p, end, 16, &m->offset) || !literal(&p, end, ' '))
		return -EPROTO;
	if (!number(&p, end, 16, &major_) || !literal(&p, end, ':') || !number(&p, end, 16, &minor_) || !literal(&p, end, ' '))
		return -EPROTO;
	if (!number(&p, end, 10, &m->ino))
		return -EPROTO;
	m->dev = makedev((unsigned)major_, (unsigned)minor_);
	while (p < end && *p == ' ')
		p++;
	len = (size_t)(end - p);
	if (len > sizeof m->name - 1)
		len = sizeof m->name - 1;
	memcpy(m->name, p, len);
	return 0;
}

int fm_proc_parse_maps(const char *buf, size_t len, struct fm_mapping **list, size_t *n)
{
	const char *p = buf, *end = buf + len, *eol;
	struct fm_mapping *v;
	size_t lines = 0, k = 0;

	*list = NULL;
	*n = 0;
	if (!len)
		return 0;
	for (size_t i = 0; i < len; i++)
		lines += buf[i] == '\n';
	if (len && buf[len - 1] != '\n')
		lines++;
	v = calloc(lines, sizeof *v);
	if (!v)
		return -ENOMEM;
	for (; p < end; p = eol + 1) {
		eol = memchr(p, '\n', (size_t)(end - p));
		if (!eol)
			eol = end;
		if (fm_proc_parse_mapping(p, (size_t)(eol - p), &v[k++])) {
			free(v);
			return -EPROTO;
		}
	}
	*list = v;
	*n = k;
	return 0;
}

int fm_proc_maps(int pid, struct fm_mapping **list, size_t *n)
{
	char path[32], *buf = NULL;
	size_t len = 0;
	int r;

	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	r = read_whole(path, &buf, &len);
	if (r)
		return r;
	/* A zombie and a kernel thread have the file, but it is empty. */
	r = len ? fm_proc_parse_maps(buf, len, list, n) : -ESRCH;
	free(buf);
	return r;
}

const struct fm_mapping *fm_proc_find_address(const struct fm_mapping *list, size_t n, uint64_t address)
{
	for (size_t i = 0; i < n; i++)
		if (list[i].start <= address && address < list[i].end)
			return &list[i];
	return NULL;
}

static void vmflag(const char *two, struct fm_vmflags *out)
{
	static const struct {
		char name[3];
		size_t field;
	} table[] = {
	    {"dc", offsetof(struct fm_vmflags, dontfork)},     {"lo", offsetof(struct fm_vmflags, locked)},
	    {"ht", offsetof(struct fm_vmflags, hugetlb)},      {"nh", offsetof(struct fm_vmflags, nohuge)},
	    {"um", offsetof(struct fm_vmflags, uffd_missing)},
	    {"uw", offsetof(struct fm_vmflags, uffd_wp)},      {"io", offsetof(struct fm_vmflags, io)},
	    {"pf", offsetof(struct fm_vmflags, io)},
	};

	for (size_t i = 0; i < sizeof table / sizeof *table; i++)
		if (!memcmp(two, table[i].name, 2))
			*(bool *)((char *)out + table[i].field) = true;
}

/* State of a walk through smaps, line by line. */
struct smaps_walk {
	uint64_t start; /* of the mapping wanted */
	bool inside;    /* in its block of lines */
	struct fm_vmflags *out;
};

/* "Locked:          12 kB" */
static bool smaps_kib(const char *p, const char *end, const char *name, uint64_t *kib)
{
	size_t n = strlen(name);

	if ((size_t)(end - p) < n || memcmp(p, name, n))
		return false;
	for (p += n; p < end && *p == ' '; p++)
		;
	return number(&p, end, 10, kib);
}

/* One line; returns 1 when the VmFlags of the mapping were seen, -EPROTO when its block ended without, else 0. */
static int smaps_line(struct smaps_walk *w, const char *p, size_t len)
{
	static const char flags[] = "VmFlags:";
	const char *end = p + len;
	struct fm_mapping m;
	uint64_t kib;

	if (fm_proc_parse_mapping(p, len, &m) == 0) {
		if (w->inside)
			return -EPROTO;
		w->inside = m.start == w->start;
		return 0;
	}
	if (!w->inside)
		return 0;
	if (smaps_kib(p, end, "Locked:", &kib)) {
		w->out->locked_kib = kib;
		return 0;
	}
	if (smaps_kib(p, end, "ShmemPmdMapped:", &kib) || smaps_kib(p, end, "FilePmdMapped:", &kib)) {
		w->out->huge_kib += kib;
		return 0;
	}
	if (len < sizeof flags - 1 || memcmp(p, flags, sizeof flags - 1))
		return 0;
	for (p += sizeof flags - 1; end - p >= 3 && *p == ' ' && p[1] != ' '; p += 3)
		vmflag(p + 1, w->out);
	return 1;
}

int fm_proc_parse_vmflags(const char *buf, size_t len, uint64_t start, struct fm_vmflags *out)
{
	struct smaps_walk w = {.start = start, .out = out};
	const char *p = buf, *end = buf + len, *eol;
	int r;

	memset(out, 0, sizeof *out);
	for (; p < end; p = eol + 1) {
		eol = memchr(p, '\n', (size_t)(end - p));
		if (!eol)
			eol = end;
		r = smaps_line(&w, p, (size_t)(eol - p));
		if (r)
			return r < 0 ? r : 0;
	}
	return w.inside ? -EPROTO : -ENOENT;
}

int fm_proc_vmflags(int pid, uint64_t start, struct fm_vmflags *out)
{
	struct smaps_walk w = {.start = start, .out = out};
	char path[32], *line = NULL;
	size_t cap = 0;
	ssize_t n;
	FILE *f;
	int r = 0;

	snprintf(path, sizeof path, "/proc/%d/smaps", pid);
	f = fopen(path, "re");
	if (!f)
		return errno == ENOENT ? -ESRCH : -errno;
	memset(out, 0, sizeof *out);
	while (r == 0 && (n = getline(&line, &cap, f)) > 0)
		r = smaps_line(&w, line, (size_t)(line[n - 1] == '\n' ? n - 1 : n));
	if (r == 0)
		r = w.inside ? -EPROTO : -ENOENT;
	free(line);
	fclose(f);
	return r < 0 ? r : 0;
}

int fm_proc_find_fd(int pid, uint64_t dev, uint64_t ino)
{
	struct dirent *e;
	struct stat st;
	char path[32];
	DIR *d;
	int r = -ENOENT;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	d = opendir(path);
	if (!d)
		return errno == ENOENT ? -ESRCH : -errno;
	while (r < 0 && (e = readdir(d)))
		if (isdigit((unsigned char)e->d_name[0]) && fstatat(dirfd(d), e->d_name, &st, 0) == 0 && st.st_dev == dev &&
		    st.st_ino == ino)
			r = atoi(e->d_name);
	closedir(d);
	return r;
}

/* Open path if it is the file behind m. */
static int open_checked(const char *path, const struct fm_mapping *m)
{
	int fd = open(path, O_RDWR | O_CLOEXEC), e;
	struct stat st;

	if (fd < 0)
		return -errno;
	e = fstat(fd, &st) < 0 ? errno : 0;
	if (!e && st.st_dev == m->dev && st.st_ino == m->ino)
		return fd;
	close(fd);
	return e ? -e : -ENOENT;
}

int fm_proc_open_mapping(int pid, const struct fm_mapping *m, int *remote)
{
	char path[96];
	int fd;

	*remote = fm_proc_find_fd(pid, m->dev, m->ino);
	if (*remote == -ESRCH || *remote == -EACCES)
		return *remote;
	if (*remote >= 0) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, *remote);
		fd = open_checked(path, m);
		if (fd >= 0)
			return fd;
	}
	/* Its descriptor was closed after the mmap, or is read-only. */
	*remote = -1;
	snprintf(path, sizeof path, "/proc/%d/map_files/%llx-%llx", pid, (unsigned long long)m->start, (unsigned long long)m->end);
	return open_checked(path, m);
}

int fm_proc_other_mapper(int pid, uint64_t dev, uint64_t ino, int *other)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	int found = 0;

	if (!d)
		return -errno;
	while (!found && (e = readdir(d))) {
		struct fm_mapping *list;
		size_t n;
		int p;

		if (!isdigit((unsigned char)e->d_name[0]))
			continue;
		p = atoi(e->d_name);
		if (p == pid || fm_proc_maps(p, &list, &n))
			continue;
		for (size_t i = 0; i < n && !found; i++)
			if (list[i].shared && list[i].ino == ino && list[i].dev == dev) {
				*other = p;
				found = 1;
			}
		free(list);
	}
	closedir(d);
	return found;
}

/* --- folios --- */

struct folio_scan {
	int file;
	int pagemap; /* of our own process: page -> frame */
	int kflags;  /* /proc/kpageflags: frame -> flags */
	uint64_t large;
};

/* Count, of pages whose pagemap entries these are, those in large folios. */
static int count_large(struct folio_scan *s, const uint64_t *entry, unsigned n)
{
	const uint64_t present = 1ull << 63, frame = (1ull << 55) - 1, compound = 3ull << 15; /* KPF_COMPOUND_HEAD, _TAIL */
	uint64_t flags[BATCH];

	for (unsigned i = 0, run; i < n; i += run) {
		uint64_t first = entry[i] & frame;

		run = 1;
		if (!(entry[i] & present))
			continue;
		if (!first)
			return -EPERM; /* hidden from those without CAP_SYS_ADMIN */
		while (i + run < n && (entry[i + run] & present) && (entry[i + run] & frame) == first + run)
			run++;
		if (pread(s->kflags, flags, run * sizeof *flags, (off_t)(first * sizeof *flags)) != (ssize_t)(run * sizeof *flags))
			return -EIO;
		for (unsigned k = 0; k < run; k++)
			s->large += (flags[k] & compound) != 0;
	}
	return 0;
}

/* Map what the file has in [from, to) at p, which maps that range. */
static int populate(int file, char *p, off_t from, off_t to)
{
	off_t data, hole = from;

	while (hole < to && (data = lseek(file, hole, SEEK_DATA)) >= 0 && data < to) {
		hole = lseek(file, data, SEEK_HOLE);
		if (hole < 0 || hole > to)
			hole = to;
		while (madvise(p + (data - from), (size_t)(hole - data), MADV_POPULATE_READ) < 0)
			if (errno != EINTR && errno != EAGAIN)
				return -errno;
	}
	return 0;
}

static int scan_window(struct folio_scan *s, off_t from, off_t to)
{
	uint64_t entry[BATCH];
	size_t len = (size_t)(to - from);
	char *p = mmap(NULL, len, PROT_READ, MAP_SHARED, s->file, from);
	int r;

	if (p == MAP_FAILED)
		return -errno;
	/* A page that is discarded under our hands must not come back as part of a huge one. */
	madvise(p, len, MADV_NOHUGEPAGE);
	r = populate(s->file, p, from, to);
	for (size_t at = 0; at < len && !r; at += (size_t)BATCH * PAGE) {
		unsigned n = len - at < (size_t)BATCH * PAGE ? (unsigned)((len - at) / PAGE) : BATCH;
		off_t where = (off_t)(((uintptr_t)p + at) / PAGE * sizeof *entry);

		if (pread(s->pagemap, entry, n * sizeof *entry, where) != (ssize_t)(n * sizeof *entry))
			r = -EIO;
		else
			r = count_large(s, entry, n);
	}
	munmap(p, len);
	return r;
}

int fm_proc_large_folios(int file, uint64_t offset, uint64_t bytes, uint64_t *pages)
{
	struct folio_scan s = {.file = file, .pagemap = -1, .kflags = -1};
	off_t at = (off_t)offset, end = (off_t)(offset + bytes), to;
	int r = 0;

	while (!r && at < end && (at = lseek(file, at, SEEK_DATA)) >= 0 && at < end) {
		if (s.kflags < 0) {
			s.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
			s.kflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
			if (s.pagemap < 0 || s.kflags < 0) {
				r = errno == ENOENT ? -EACCES : -errno;
				break;
			}
		}
		to = end - at > (off_t)WINDOW ? at + (off_t)WINDOW : end;
		r = scan_window(&s, at, to);
		at = to;
	}
	if (!r && at < 0 && errno != ENXIO) /* ENXIO: nothing more */
		r = -errno;
	if (s.pagemap >= 0)
		close(s.pagemap);
	if (s.kflags >= 0)
		close(s.kflags);
	*pages = s.large;
	return r;
}
