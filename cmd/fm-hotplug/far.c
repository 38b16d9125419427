#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"
#include "hotplug.h"

#define ANSWER_S 30 /* fm-faultd walks all memory that is present when it registers it */
#define HOME_MS  30000 /* the next fm-faultd starts, and ends a region that is home */

int far_connect(const char *run_dir, int *fd)
{
	struct timeval limit = {.tv_sec = ANSWER_S};

	*fd = fm_ctl_connect(run_dir);
	if (*fd < 0) {
		fm_warn("%s/fm.sock: %s", run_dir,
			*fd == -ENOENT || *fd == -ECONNREFUSED ? "fm-faultd is not running: start it, or name its --run-dir"
			: *fd == -EACCES                        ? "no permission: run as root"
								: strerror(-*fd));
		return FM_EXIT_PEER;
	}
	setsockopt(*fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(*fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	return FM_EXIT_OK;
}

/* Say why a request to fm-faultd failed. why: its own words, or "". */
static int say(const char *what, int r, const char *why)
{
	if (*why) {
		fm_warn("fm-faultd: %s", why);
		return FM_EXIT_FAILED;
	}
	fm_warn("fm-faultd: %s: %s", what,
		r == -EPIPE || r == -ECONNRESET ? "it ended meanwhile"
		: r == -EAGAIN                  ? "no answer in time"
		: r == -EPROTO                  ? "an answer of another version: restart it"
						: strerror(-r));
	return FM_EXIT_PEER;
}

int far_attach(int ctl, struct vm *vm, const struct memory *m, struct uffds *u)
{
	struct fm_ctl_hello hello = {.pages = m->bytes / FM_PAGE_SIZE};
	struct fm_attach_range small = {.hva = m->hva, .bytes = m->bytes};
	struct fm_ctl_hello_ok ok;
	struct fm_attach_report rep;
	char why[256];
	int r = fm_ctl_call(ctl, FM_CTL_HELLO, &hello, NULL, 0, FM_CTL_HELLO_OK, &ok, NULL, why);

	*u = (struct uffds){.hva = m->hva, .bytes = m->bytes};
	if (r)
		return say("hello", r, why);
	if (ok.nshards == 0 || ok.nshards > FM_ATTACH_MAX)
		return say("hello", -EPROTO, "");
	r = fm_attach_uffds(vm->pid, &small, ok.nshards, u->a, &rep);
	if (r == 0) {
		u->n = ok.nshards;
		fm_info("%s: %u userfaultfd%s%s; process %d stood still for %.1f us", vm->arg, u->n, u->n == 1 ? "" : "s",
			rep.by_device ? " through /dev/userfaultfd" : "", vm->pid, (double)rep.stopped_ns / 1000);
		return FM_EXIT_OK;
	}
	if (r == -EBUSY)
		fm_warn("%s: attach to process %d: process %d traces it (a debugger or strace): end that first", vm->arg, vm->pid,
			rep.tracer);
	else
		fm_warn("%s: attach to process %d: %s: %s", vm->arg, vm->pid, rep.step,
			*fm_attach_why(r) ? fm_attach_why(r) : strerror(-r));
	return r == -ESRCH ? FM_EXIT_PEER : FM_EXIT_FAILED;
}

void far_release(struct vm *vm, struct uffds *u, bool undo)
{
	int remote[FM_ATTACH_MAX], r;

	for (unsigned i = 0; i < u->n; i++) {
		remote[i] = u->a[i].remote;
		close(u->a[i].fd);
	}
	if (undo && u->n) {
		r = memory_registered(vm, u->hva, u->bytes) ? -EBUSY : fm_attach_close(vm->pid, remote, u->n, NULL);
		if (r == -EBUSY)
			fm_info("%s: %u userfaultfds stay open in process %d: their memory is registered", vm->arg, u->n, vm->pid);
		else if (r && r != -ESRCH)
			fm_info("%s: %u unused userfaultfds stay open in process %d: %s", vm->arg, u->n, vm->pid, strerror(-r));
	}
	u->n = 0;
}

/*
 * fm-faultd did not answer. When it made the region before it died, the memory is far: the next fm-faultd serves it, and
 * letting go now could lose pages. When it did not, take its registration back, or unmapping would wait for it for ever.
 */
static bool registered_after_all(struct vm *vm, const char *run_dir, const char *backend, const struct memory *m,
				 const struct uffds *u)
{
	uint64_t pages = m->bytes / FM_PAGE_SIZE;
	struct far_region *list;
	const struct far_region *found;
	bool yes;
	size_t n;

	far_regions(run_dir, vm, &list, &n);
	found = far_find(list, n, backend);
	yes = found && found->hva == m->hva;
	free(list);
	for (unsigned i = 0; i < u->n && !yes; i++) {
		uint64_t first = fm_ctl_shard_first(pages, u->n, i), end = fm_ctl_shard_first(pages, u->n, i + 1);
		struct uffdio_range range = {.start = m->hva + first * FM_PAGE_SIZE, .len = (end - first) * FM_PAGE_SIZE};

		/* Each its own part: a newer kernel refuses what another userfaultfd has. */
		if (ioctl(u->a[i].fd, UFFDIO_UNREGISTER, &range) == 0)
			ioctl(u->a[i].fd, UFFDIO_WAKE, &range); /* see fm_uffd_unregister() */
	}
	return yes;
}

int far_register(int ctl, struct vm *vm, const char *run_dir, const char *backend, const struct memory *m, int file, int remote,
		 const struct uffds *u, uint64_t *id)
{
	struct fm_ctl_register reg = {.hva = m->hva,
				      .pages = m->bytes / FM_PAGE_SIZE,
				      .memfd_offset = m->offset,
				      .kind = FM_KIND_VM,
				      .pid = vm->pid,
				      .nshards = u->n,
				      .client_memfd = remote};
	int fds[1 + FM_ATTACH_MAX] = {file}, r;
	struct fm_ctl_region region;
	char why[256];

	snprintf(reg.name, sizeof reg.name, "%s:%s", vm->name, backend);
	snprintf(reg.vm_id, sizeof reg.vm_id, "%s", backend);
	for (unsigned i = 0; i < u->n; i++) {
		fds[1 + i] = u->a[i].fd;
		reg.client_uffd[i] = u->a[i].remote;
	}
	r = fm_ctl_call(ctl, FM_CTL_REGISTER, &reg, fds, 1 + u->n, FM_CTL_REGISTERED, &region, NULL, why);
	if (r == 0) {
		flock(file, LOCK_UN); /* fm-faultd has the same open file, and would keep its lock */
		*id = region.id;
		return FM_EXIT_OK;
	}
	if (!*why)
		shutdown(ctl, SHUT_RDWR); /* before looking: it gives up a region whose requester is gone */
	if (!*why && registered_after_all(vm, run_dir, backend, m, u)) {
		fm_warn("fm-faultd: it ended while it took over %s, which waits for the next fm-faultd now: start one", backend);
		*id = 0;
		return FM_EXIT_OK;
	}
	return say("register", r, why);
}

/* Is a region past the way back in its detach, or gone already? */
static bool is_home(const char *run_dir, uint64_t id)
{
	char name[FM_REGION_FILE_MAX];
	struct fm_region_map map;
	int dir = open(run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r;
	bool yes;

	if (dir < 0)
		return false;
	r = fm_shmfile_region_map(dir, fm_shmfile_region_name(id, name), 0, &map, NULL);
	yes = r == -ENOENT || (!r && fm_ld(&map.hdr->flags) & FM_REGION_HOME);
	if (!r)
		fm_shmfile_region_unmap(&map);
	close(dir);
	return yes;
}

int far_detach(int ctl, const char *run_dir, uint64_t id)
{
	struct timeval limit = {.tv_sec = 3600}; /* every page comes home: as long as the store takes */
	struct fm_ctl_region region = {.id = id};
	char why[256];
	int r;

	setsockopt(ctl, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	r = fm_ctl_call(ctl, FM_CTL_DETACH, &region, NULL, 0, FM_CTL_OK, NULL, NULL, why);
	if (!r)
		return FM_EXIT_OK;
	/* Its userfaultfds are to be closed then, and nobody else would. */
	if (!*why && is_home(run_dir, id) && far_wait_gone(run_dir, id, HOME_MS))
		return FM_EXIT_OK;
	return say("detach", r, why);
}

/* --- state files --- */

static void read_region(const struct fm_region_map *map, struct far_region *r)
{
	r->id = map->hdr->id;
	r->pages = map->pages;
	r->resident = fm_ld(&map->hdr->resident);
	r->remote = fm_ld(&map->hdr->remote);
	r->nuffd = map->nshards;
	memcpy(r->backend, map->hdr->vm_id, sizeof r->backend);
	r->backend[sizeof r->backend - 1] = '\0';
	r->hva = fm_ld(&map->shards[0].hva);
	for (unsigned i = 0; i < map->nshards; i++)
		r->uffd[i] = map->shards[i].client_uffd;
}

void far_regions(const char *run_dir, struct vm *vm, struct far_region **list, size_t *n)
{
	char name[FM_REGION_FILE_MAX];
	struct fm_region_map map;
	uint64_t *ids, start;
	size_t nids;
	int dir = open(run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	*list = NULL;
	*n = 0;
	if (dir < 0)
		return;
	if (fm_proc_start(vm->pid, &start) == 0 && fm_shmfile_list(dir, &ids, &nids) == 0) {
		*list = calloc(nids + 1, sizeof **list);
		for (size_t i = 0; *list && i < nids; i++) {
			if (fm_shmfile_region_map(dir, fm_shmfile_region_name(ids[i], name), 0, &map, NULL))
				continue;
			if (map.hdr->pid == vm->pid && map.hdr->pid_start == start && map.hdr->kind == FM_KIND_VM)
				read_region(&map, &(*list)[(*n)++]);
			fm_shmfile_region_unmap(&map);
		}
		free(ids);
	}
	close(dir);
	memory_name_regions(vm, *list, *n);
}

bool far_is(const struct far_region *f, const char *backend)
{
	return *backend && (!strcmp(f->backend, backend) || !strcmp(f->found, backend));
}

const struct far_region *far_find(const struct far_region *list, size_t n, const char *backend)
{
	for (size_t i = 0; i < n; i++)
		if (far_is(&list[i], backend))
			return &list[i];
	return NULL;
}

bool far_wait_gone(const char *run_dir, uint64_t id, unsigned timeout_ms)
{
	static const struct timespec pause = {.tv_nsec = 20000000};
	char name[FM_REGION_FILE_MAX], path[512];

	snprintf(path, sizeof path, "%s/%s", run_dir, fm_shmfile_region_name(id, name));
	for (unsigned ms = 0; access(path, F_OK) == 0; ms += 20) {
		if (ms >= timeout_ms)
			return false;
		nanosleep(&pause, NULL);
	}
	return true;
}
