#include "faultd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "crash.h"
#include "log.h"
#include "proc.h"

/* The life of a region between its beginning (register.c, takeover.c) and its end. */

struct region *region_find(struct faultd *d, uint64_t id)
{
	for (struct region *r = d->regions; r; r = r->next)
		if (r->map.hdr->id == id)
			return r;
	return NULL;
}

static const char *region_name(const struct region *r)
{
	return r->map.hdr->name;
}

uint32_t region_shards_in(const struct region *r, const struct fm_mapping *list, size_t n)
{
	const struct fm_region_hdr *h = r->map.hdr;
	uint32_t mapped = 0;

	for (unsigned i = 0; i < r->map.nshards; i++) {
		uint64_t hva = fm_ld(&r->map.shards[i].hva), end = hva + r->map.shards[i].pages * FM_PAGE_SIZE;
		size_t low = 0, high = n;

		/* The first mapping that ends behind hva: they are in order, and may be many. */
		while (low < high) {
			size_t mid = low + (high - low) / 2;

			if (list[mid].end > hva)
				high = mid;
			else
				low = mid + 1;
		}
		for (; low < n && list[low].start < end; low++)
			if (list[low].ino == h->memfd_ino && list[low].dev == h->memfd_dev)
				mapped |= 1u << i;
	}
	return mapped;
}

uint32_t region_mapped_shards(const struct region *r)
{
	struct fm_mapping *list;
	uint32_t mapped;
	size_t n;

	if (fm_proc_maps(r->map.hdr->pid, &list, &n))
		return UINT32_MAX;
	mapped = region_shards_in(r, list, n);
	free(list);
	return mapped;
}

bool region_quiet(const struct region *r)
{
	for (unsigned i = 0; i < r->map.nshards; i++)
		if (r->uffd[i].fd >= 0 && !fm_uffd_is_quiet(&r->uffd[i]))
			return false;
	return true;
}

bool region_is_uffd(int fd)
{
	char path[64], to[64];
	ssize_t n;

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	n = readlink(path, to, sizeof to - 1);
	if (n < 0)
		return false;
	to[n] = '\0';
	return strcmp(to, "anon_inode:[userfaultfd]") == 0;
}

void region_unlink_state(struct faultd *d, struct region *r)
{
	char name[FM_REGION_FILE_MAX];

	unlinkat(d->run_fd, fm_shmfile_region_name(r->map.hdr->id, name), 0);
}

void region_unregister(struct region *r)
{
	for (unsigned i = 0; i < r->map.nshards; i++)
		if (r->uffd[i].fd >= 0)
			fm_uffd_unregister(&r->uffd[i], fm_ld(&r->map.shards[i].hva), r->map.shards[i].pages * FM_PAGE_SIZE);
}

void region_ask_stop(struct region *r)
{
	for (unsigned i = 0; i < r->map.nshards; i++)
		if (r->shard[i])
			fm_shard_ask_stop(r->shard[i]);
}

void region_stop_shards(struct region *r)
{
	region_ask_stop(r);
	for (unsigned i = 0; i < r->map.nshards; i++)
		if (r->shard[i]) {
			fm_shard_stop(r->shard[i]);
			r->shard[i] = NULL;
			r->uffd[i].fd = -1; /* closed with it */
		}
}

/* Start a thread for each shard. On failure some may run; the caller unwinds. */
int region_start_shards(struct faultd *d, struct region *r, char *why)
{
	for (unsigned i = 0; i < r->map.nshards; i++) {
		struct fm_shard_options o = {
		    .map = &r->map,
		    .index = i,
		    .daemon = d->daemon,
		    .uffd = r->uffd[i],
		    .memfd = r->memfd,
		    .evictor_eventfd = d->evict_fd,
		    .news_eventfd = d->news_fd,
		    .hold = &d->hold,
		    .near = &d->near,
		    .unbounded = &r->unbounded,
		    .count = r->counting,
		};
		int e = fm_store_open(d->store_uri, &d->store_options, &o.store, why);

		if (e)
			return e;
		e = fm_store_region_begin(o.store, r->map.hdr->id);
		if (e)
			snprintf(why, FM_STORE_WHY, "cannot make the region's key: %s", strerror(-e));
		else if ((e = fm_shard_start(&o, &r->shard[i])))
			snprintf(why, FM_STORE_WHY, "cannot start a thread: %s", strerror(-e));
		if (e) {
			fm_store_close(o.store);
			return e;
		}
	}
	return 0;
}

int region_watch_client(struct faultd *d, struct region *r)
{
	/* Told once: its memory may outlive the process (CLONE_VM); then the timer sees it end. */
	struct epoll_event e = {.events = EPOLLIN | EPOLLONESHOT, .data.ptr = &r->watch};

	r->watch.kind = WATCH_CLIENT;
	return epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, r->pidfd, &e);
}

struct region *region_new(void)
{
	struct region *r = calloc(1, sizeof *r);

	if (r) {
		r->memfd = r->pidfd = -1;
		for (unsigned i = 0; i < FM_MAX_SHARDS; i++)
			r->uffd[i] = (struct fm_uffd){.fd = -1, .ops = &fm_uffd_kernel};
	}
	return r;
}

/* --- end */

static void close_region(struct faultd *d, struct region *r)
{
	for (struct region **link = &d->regions; *link; link = &(*link)->next)
		if (*link == r) {
			*link = r->next;
			break;
		}
	if (r->pidfd >= 0)
		close(r->pidfd);
	if (r->memfd >= 0)
		close(r->memfd);
	fm_shmfile_region_unmap(&r->map);
	free(r);
}

bool region_needs_purge(const struct faultd *d)
{
	/* Without an evictor of ours the keys stay in the store until it is restarted. */
	return d->store->ops->lists_no_keys && (d->evictor || d->spawn_evictor);
}

void region_end(struct faultd *d, struct region *r)
{
	uint64_t resident;

	if (r->ending)
		return;
	r->ending = true;
	FM_CRASH_POINT("end-begin");
	atomic_fetch_or(&r->map.hdr->flags, FM_REGION_GONE);
	FM_CRASH_POINT("end-flagged");
	epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, r->pidfd, NULL);
	region_stop_shards(r);
	/* Its client ended before it was home. */
	for (struct conn *c = d->conns; c && r->detach && r->detach != DETACH_LEAVE; c = c->next)
		if (c->waits_detach == r->map.hdr->id) {
			c->waits_detach = 0;
			conn_error(c, ESRCH, "%016llx: its client ended meanwhile", (unsigned long long)r->map.hdr->id);
		}
	/* Its memory is gone now. An evictor in the middle of a batch may still count down: region_free() makes up for that. */
	resident = atomic_exchange(&r->map.hdr->resident, 0);
	if (!atomic_load(&r->unbounded))
		atomic_fetch_sub(&d->daemon->resident, resident);
	FM_CRASH_POINT("end-stopped");
	if (r->told_evictor && d->evictor)
		evictor_del(d, r); /* region_free() when it answers, or is lost */
	else if (region_needs_purge(d))
		return; /* the next evictor is told */
	else
		region_free(d, r);
}

void region_free(struct faultd *d, struct region *r)
{
	uint64_t id = r->map.hdr->id;
	int e;

	FM_CRASH_POINT("free-begin");
	e = fm_store_region_end(d->store, id);
	FM_CRASH_POINT("free-store");

	if (e)
		fm_warn("region %016llx: cannot free its pages in the store: %s", (unsigned long long)id, strerror(-e));
	atomic_fetch_sub(&d->daemon->resident, fm_ld(&r->map.hdr->resident));
	fm_info("region %016llx: ended", (unsigned long long)id);
	sweep_region_ended(d, id); /* before it is forgotten here */
	region_unlink_state(d, r);
	FM_CRASH_POINT("free-unlinked");
	registry_region_end(d, id);
	close_region(d, r);
	for (struct conn *c = d->conns; c; c = c->next)
		if (c->waits_region == id || c->waits_detach == id) {
			c->waits_region = c->waits_detach = 0;
			conn_reply(c, FM_CTL_OK, NULL, NULL, 0);
		}
}

void region_leave(struct faultd *d, struct region *r)
{
	region_stop_shards(r);
	close_region(d, r);
}

/*
 * Is anything left of the regions of which something was unmapped? The mappings are read after the news were, and the kernel sends an event after
 * it has unmapped: so who has something mapped here sends another before it has nothing.
 */
static void look_again(struct faultd *d)
{
	struct client *clients = NULL;
	struct region *next;
	uint32_t mapped;

	for (struct region *r = d->regions; r; r = next) {
		next = r->next;
		if (r->ending || !r->look_again)
			continue;
		if (client_mapped_shards(&clients, r, &mapped) || mapped)
			r->look_again = false;
		else if (region_quiet(r))
			region_end(d, r);
	}
	clients_forget(&clients);
}

void regions_news(struct faultd *d)
{
	struct region *next;

	for (struct region *r = d->regions; r; r = next) {
		unsigned news = 0;

		next = r->next;
		for (unsigned i = 0; i < r->map.nshards && !r->ending; i++)
			news |= fm_shard_attention(r->shard[i]);
		if (r->ending || ((news & (FM_SHARD_HOME | FM_SHARD_LEFT | FM_SHARD_LOST)) && region_detach_news(d, r)))
			continue;
		if (news & FM_SHARD_COUNTED)
			region_count_news(d, r);
		if (news & FM_SHARD_LOST)
			fm_warn("region %016llx (%s): a page could not be read from the store and is lost",
				(unsigned long long)r->map.hdr->id, region_name(r));
		if (news & FM_SHARD_MOVED)
			fm_warn("region %016llx (%s): a part of it was moved by mremap: unsupported, its far pages raise SIGBUS",
				(unsigned long long)r->map.hdr->id, region_name(r));
		if (news & FM_SHARD_REFUSED)
			fm_warn("region %016llx (%s): the kernel refuses to install a page; its fault waits",
				(unsigned long long)r->map.hdr->id, region_name(r));
		r->look_again |= news & FM_SHARD_UNMAPPED;
		if (news & FM_SHARD_NO_PROCESS)
			region_end(d, r);
	}
	look_again(d);
}

void regions_check_alive(struct faultd *d)
{
	struct region *next;

	/* After exec() the pidfd says nothing, and no event comes: the old memory is just gone. */
	for (struct region *r = d->regions; r; r = next) {
		next = r->next;
		if (!r->ending && !fm_uffd_mm_alive(&r->uffd[0]))
			region_end(d, r);
	}
	look_again(d);
}
