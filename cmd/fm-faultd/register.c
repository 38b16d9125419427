/* Registering a client's memory: what is refused, the state file, and the way to the first served fault. */
#include "faultd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "crash.h"
#include "log.h"
#include "proc.h"

#define TMPFS_MAGIC_NUMBER 0x01021994
/*
 * State files up to this size (regions of 512 GiB) are allocated at once, so that a full run directory refuses a region instead of killing us
 * later. For a greater one there must be as much room, at least when it begins.
 */
#define PREALLOCATE_BYTES (1u << 30)

/* --- what a client may register */

/* Is memfd a tmpfs file that we may read and punch, and long enough? */
static int check_memfd(int fd, const struct fm_ctl_register *m, struct stat *st, const char **why)
{
	struct statfs fs;
	int seals, flags = fcntl(fd, F_GETFL);

	if (fstat(fd, st) < 0 || fstatfs(fd, &fs) < 0 || !S_ISREG(st->st_mode) || (uint32_t)fs.f_type != TMPFS_MAGIC_NUMBER) {
		*why = "memory: is not a memfd or a file on tmpfs (hugetlbfs and disk files cannot be paged)";
		return -EINVAL;
	}
	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR) {
		*why = "memory: its descriptor is not open for reading and writing";
		return -EINVAL;
	}
	seals = fcntl(fd, F_GET_SEALS);
	if (seals > 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))) {
		*why = "memory: is sealed against writing, so its pages cannot be dropped";
		return -EINVAL;
	}
	if (m->memfd_offset % FM_PAGE_SIZE || m->memfd_offset > INT64_MAX - m->pages * FM_PAGE_SIZE ||
	    (uint64_t)st->st_size < m->memfd_offset + m->pages * FM_PAGE_SIZE) {
		*why = "memory: the file is shorter than the region";
		return -EINVAL;
	}
	return 0;
}

/* Does the client really have that file mapped shared there, at that offset, all of it? */
static int check_mapping(pid_t pid, bool own, const struct fm_ctl_register *m, const struct stat *st, const char **why)
{
	uint64_t at = m->hva, end = m->hva + m->pages * FM_PAGE_SIZE;
	struct fm_mapping *list;
	size_t n;
	int r = fm_proc_maps(pid, &list, &n);

	if (own && (r == -EACCES || r == -EPERM)) {
		/* Without CAP_SYS_PTRACE: a client can only mislead us about its own memory, to its own harm. */
		return 0;
	}
	if (r) {
		*why = "client: its mappings cannot be read";
		return r;
	}
	while (at < end) {
		const struct fm_mapping *p = fm_proc_find_address(list, n, at);

		if (!p || !p->shared || p->dev != st->st_dev || p->ino != st->st_ino ||
		    p->offset + (at - p->start) != m->memfd_offset + (at - m->hva)) {
			free(list);
			*why = "memory: the client does not have that file mapped shared at that address (share=off?)";
			return -EINVAL;
		}
		at = p->end;
	}
	free(list);
	return 0;
}

static int check_message(const struct faultd *d, const struct conn *c, const struct fm_ctl_register *m, const char **why)
{
	*why = "message: a field is out of range";
	if (m->pages == 0 || m->pages > FM_REGION_PAGES_MAX || m->hva == 0 || m->hva % FM_PAGE_SIZE ||
	    m->hva > (1ull << 56) || m->nshards < 1 || m->nshards > FM_MAX_SHARDS || m->nshards > m->pages ||
	    (m->kind != FM_KIND_MAP && m->kind != FM_KIND_VM) || m->pid < 0)
		return -EINVAL;
	if (c->nfds != 1 + m->nshards) {
		*why = "message: needs one memfd and as many userfaultfds as shards";
		return -EINVAL;
	}
	if (m->pid && m->pid != c->pid && !conn_is_trusted(d, c)) {
		*why = "permission: only root or group fm may register another process's memory";
		return -EPERM;
	}
	for (unsigned i = 1; i < c->nfds; i++)
		if (!region_is_uffd(c->fds[i])) {
			*why = "message: a descriptor is not a userfaultfd";
			return -EINVAL;
		}
	return 0;
}

static bool printable(const char *s, bool may_be_empty)
{
	size_t n = strnlen(s, FM_NAME_MAX);

	if (n == FM_NAME_MAX || (n == 0 && !may_be_empty))
		return false;
	for (; *s; s++)
		if (*s <= ' ' || *s > '~')
			return false;
	return true;
}

/* --- state file */

static uint64_t realtime_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Make region-<id>.state, all words EMPTY; hdr->magic is not set yet. id 0: a fresh random one. */
static int make_state(struct faultd *d, const struct fm_ctl_register *m, uint64_t id, struct fm_region_map *out)
{
	uint64_t shards_at, words_at, size;
	char name[FM_REGION_FILE_MAX];
	struct fm_region_hdr *h;
	struct statvfs room;
	int fd, e;

	if (fm_shmfile_layout(m->pages, m->nshards, &shards_at, &words_at, &size))
		return -EINVAL;
	while (id == 0 || region_find(d, id))
		if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id)
			return -EIO;
	fm_shmfile_region_name(id, name);
	fd = openat(d->run_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
	if (fd < 0)
		return -errno;
	FM_CRASH_POINT("register-state-made");
	if (size > PREALLOCATE_BYTES && (fstatvfs(fd, &room) < 0 || (uint64_t)room.f_bavail * room.f_frsize < size)) {
		e = ENOSPC;
		goto unlink;
	}
	if (ftruncate(fd, (off_t)size) < 0 ||
	    (e = posix_fallocate(fd, 0, (off_t)(size <= PREALLOCATE_BYTES ? size : words_at)), errno = e, e != 0)) {
		e = errno;
		goto unlink;
	}
	h = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (h == MAP_FAILED) {
		e = errno;
		goto unlink;
	}
	FM_CRASH_POINT("register-state-allocated");
	h->version = FM_SHM_VERSION;
	h->nshards = m->nshards;
	h->id = id;
	h->pages = m->pages;
	h->shards_offset = shards_at;
	h->words_offset = words_at;
	h->memfd_offset = m->memfd_offset;
	h->client_memfd = m->client_memfd;
	h->kind = m->kind;
	h->created_ns = realtime_ns();
	memcpy(h->name, m->name, sizeof h->name);
	memcpy(h->vm_id, m->vm_id, sizeof h->vm_id);
	atomic_store(&h->limit_pages, m->limit_pages);
	atomic_store(&h->grace_ms, d->grace_ms >= 0 ? (uint64_t)d->grace_ms : m->kind == FM_KIND_VM ? FM_GRACE_VM_MS : FM_GRACE_MAP_MS);
	*out = (struct fm_region_map){
	    .hdr = h,
	    .shards = (struct fm_shard_shm *)((char *)h + shards_at),
	    .words = (fm_word *)((char *)h + words_at),
	    .pages = m->pages,
	    .nshards = m->nshards,
	    .file_size = size,
	    .map_bytes = size,
	    .fd = fd,
	};
	for (unsigned i = 0; i < m->nshards; i++) {
		struct fm_shard_shm *s = &out->shards[i];

		s->first_page = fm_ctl_shard_first(m->pages, m->nshards, i);
		s->pages = fm_ctl_shard_first(m->pages, m->nshards, i + 1) - s->first_page;
		atomic_store(&s->hva, m->hva + s->first_page * FM_PAGE_SIZE);
		s->client_uffd = m->client_uffd[i];
	}
	return 0;
unlink:
	close(fd);
	unlinkat(d->run_fd, name, 0);
	return -e;
}

/* Pages that are in the memfd already are resident and dirty. */
static void adopt_present(struct faultd *d, struct region *r)
{
	struct fm_region_hdr *h = r->map.hdr;
	off_t base = (off_t)h->memfd_offset, end = base + (off_t)(r->map.pages * FM_PAGE_SIZE), at = base;
	uint64_t n = 0;

	while (at < end) {
		off_t data = lseek(r->memfd, at, SEEK_DATA), hole;

		if (data < 0 || data >= end)
			break;
		hole = lseek(r->memfd, data, SEEK_HOLE);
		if (hole < 0 || hole > end)
			hole = end;
		for (off_t o = data; o < hole; o += FM_PAGE_SIZE, n++)
			atomic_store_explicit(&r->map.words[(o - base) / FM_PAGE_SIZE], FM_DIRTY, memory_order_relaxed);
		at = hole;
	}
	atomic_fetch_add(&h->resident, n);
	atomic_fetch_add(&d->daemon->resident, n);
}

/* --- begin */

/* UFFDIO_API and UFFDIO_REGISTER on every shard's userfaultfd. Undoes what it did when one fails. */
static int register_uffds(struct faultd *d, struct region *r, const char **why)
{
	for (unsigned i = 0; i < r->map.nshards; i++) {
		const struct fm_shard_shm *s = &r->map.shards[i];
		int e = fm_uffd_api(&r->uffd[i], d->uffd_features);

		*why = "userfaultfd: is not fresh (UFFDIO_API was refused)";
		if (e == 0) {
			*why = "userfaultfd: the memory cannot be registered (mapped from a disk file or hugetlbfs, or already registered?)";
			e = fm_uffd_register(&r->uffd[i], fm_ld(&s->hva), s->pages * FM_PAGE_SIZE);
		}
		if (e) {
			while (i--)
				fm_uffd_unregister(&r->uffd[i], fm_ld(&r->map.shards[i].hva),
						   r->map.shards[i].pages * FM_PAGE_SIZE);
			return e;
		}
	}
	return 0;
}

void region_register(struct faultd *d, struct conn *c, const struct fm_ctl_register *m)
{
	pid_t pid = m->pid ? m->pid : c->pid;
	const char *why = NULL;
	char store_why[FM_STORE_WHY];
	struct fm_ctl_region reply;
	struct region *r;
	struct stat st;
	uint64_t start = 0, id = 0;
	int e;

	for (unsigned i = 0; i < c->nfds; i++)
		if (!conn_leaves_descriptors(d, c, c->fds[i]))
			return;
	e = check_message(d, c, m, &why);
	if (e == 0 && (!printable(m->name, false) || !printable(m->vm_id, true))) {
		e = -EINVAL;
		why = "message: a name must have 1 to 63 printable characters and no spaces";
	}
	if (e == 0)
		e = check_memfd(c->fds[0], m, &st, &why);
	if (e == 0)
		e = check_mapping(pid, pid == c->pid, m, &st, &why);
	if (e == 0 && (e = conn_check_user(d, c, m->pages, store_why, sizeof store_why)) != 0)
		why = store_why;
	if (e) {
		conn_error(c, -e, "%s", why);
		return;
	}
	r = region_new();
	if (!r) {
		conn_error(c, ENOMEM, "region: out of memory");
		return;
	}
	r->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	e = r->pidfd < 0 ? -errno : fm_proc_start(pid, &start);
	if (e) {
		conn_error(c, -e, "client: process %d cannot be watched: %s", pid, strerror(-e));
		goto close_pidfd;
	}
	e = registry_region_new(d, m->pages, &id, store_why);
	if (e) {
		conn_error(c, -e, "%s", store_why);
		goto close_pidfd;
	}
	e = make_state(d, m, id, &r->map);
	if (e) {
		registry_region_end(d, id);
		conn_error(c, -e, "%s: cannot make the region's state file: %s", d->run_dir, strerror(-e));
		goto close_pidfd;
	}
	r->map.hdr->pid = pid;
	r->map.hdr->pid_start = start;
	r->map.hdr->uid = c->uid;
	r->map.hdr->memfd_dev = st.st_dev;
	r->map.hdr->memfd_ino = st.st_ino;
	FM_CRASH_POINT("register-state-filled");
	/* From here on the descriptors are the region's. */
	r->memfd = c->fds[0];
	for (unsigned i = 0; i < m->nshards; i++)
		r->uffd[i].fd = c->fds[1 + i];
	c->nfds = 0;
	e = register_uffds(d, r, &why);
	if (e) {
		conn_error(c, -e, "%s: %s", why, strerror(-e));
		goto close_all;
	}
	FM_CRASH_POINT("register-uffds");
	adopt_present(d, r);
	FM_CRASH_POINT("register-adopted");
	r->map.hdr->sum = fm_shmfile_region_sum(r->map.hdr);
	/* It counts from here: if we die now, the next fm-faultd takes it over. */
	__atomic_store_n(&r->map.hdr->magic, FM_MAGIC_REGION, __ATOMIC_SEQ_CST);
	FM_CRASH_POINT("register-counts");
	/*
	 * Who does not wait for the answer any more may have closed its own userfaultfds, and then ours would be the last: not to be served. It looks
	 * for the file after it has closed the connection, and so finds it, or is seen to be gone here.
	 */
	if (conn_hung_up(c)) {
		conn_error(c, EPIPE, "client: did not wait for the answer");
		goto uncount;
	}
	e = region_start_shards(d, r, store_why);
	if (e) {
		conn_error(c, -e, "%s", store_why);
		goto uncount;
	}
	if (region_watch_client(d, r) < 0) {
		conn_error(c, ENOMEM, "client: cannot be watched: %m");
		goto uncount;
	}
	FM_CRASH_POINT("register-shards");
	r->next = d->regions;
	d->regions = r;
	evictor_add(d, r);
	FM_CRASH_POINT("register-evictor-told");
	evictor_kick(d);
	fm_info("region %016llx: %s, %llu pages, pid %d", (unsigned long long)r->map.hdr->id, r->map.hdr->name,
		(unsigned long long)r->map.pages, pid);
	reply.id = r->map.hdr->id;
	conn_reply(c, FM_CTL_REGISTERED, &reply, NULL, 0);
	FM_CRASH_POINT("register-replied");
	return;
uncount:
	atomic_fetch_sub(&d->daemon->resident, fm_ld(&r->map.hdr->resident));
close_all:
	/* First of all: closing our copies would leave the client registered with nobody to serve it. No page has left yet. */
	region_unregister(r);
	region_stop_shards(r);
	for (unsigned i = 0; i < r->map.nshards; i++)
		if (r->uffd[i].fd >= 0)
			close(r->uffd[i].fd);
	close(r->memfd);
	region_unlink_state(d, r);
	registry_region_end(d, r->map.hdr->id);
	fm_shmfile_region_unmap(&r->map);
close_pidfd:
	if (r->pidfd >= 0)
		close(r->pidfd);
	free(r);
}
