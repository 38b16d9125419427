#include "evictord_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crash.h"
#include "log.h"

/* The regions that fm-faultd tells of: their beginning, their end, and all other messages. */

struct slot *evictord_find(const struct evictord *d, uint64_t id)
{
	struct slot *s = d->slots;

	while (s && s->r.map.hdr->id != id)
		s = s->next;
	return s;
}

static void add_region(struct evictord *d, uint64_t id, const int *fds, unsigned nfds)
{
	const char *why = NULL;
	struct slot *s = calloc(1, sizeof *s);
	struct fm_view *views = realloc(d->views, (d->nslots + 1) * sizeof *views);
	struct fm_view *starts = realloc(d->starts, (d->nslots + 1) * sizeof *starts);
	int e = !s || !views || !starts ? -ENOMEM : 0;

	if (views)
		d->views = views;
	if (starts)
		d->starts = starts;
	if (e == 0)
		e = fm_shmfile_region_map_fd(fds[0], FM_SHMFILE_WRITE | FM_SHMFILE_WORDS, &s->r.map, &why);
	if (e == 0 && (s->r.map.hdr->id != id || nfds != 2 + s->r.map.nshards))
		e = -EPROTO;
	if (e == 0) {
		s->r.memfd = fds[1];
		for (unsigned i = 0; i < s->r.map.nshards; i++)
			s->r.uffd[i] = (struct fm_uffd){.fd = fds[2 + i], .ops = &fm_uffd_kernel};
		e = fm_store_region_begin(d->evictor.store, id);
		if (e == 0)
			e = fm_evict_begin(&d->evictor, &s->r);
		FM_CRASH_POINT("evictor-began-region");
	}
	if (e || !s) {
		/* Its pages then stay here; the others' budgets are kept all the same. */
		d->blind = true;
		fm_warn("region %016llx: cannot be evicted from: %s", (unsigned long long)id, why ? why : strerror(-e));
		if (s && s->r.map.hdr)
			fm_shmfile_region_unmap(&s->r.map);
		else
			close(fds[0]);
		for (unsigned i = 1; i < nfds; i++)
			close(fds[i]);
		free(s);
		return;
	}
	s->next = d->slots;
	d->slots = s;
	d->nslots++;
}

/* It touches the region no more. */
static void forget_region(struct evictord *d, uint64_t id)
{
	struct fm_ctl_region m = {.id = id};

	for (struct slot **link = &d->slots, *s; (s = *link); link = &s->next)
		if (s->r.map.hdr->id == id) {
			*link = s->next;
			d->nslots--;
			fm_evict_end(&d->evictor, &s->r);
			free(s);
			break;
		}
	FM_CRASH_POINT("end-evictor-forgot");
	if (fm_ctl_send(d->fd, FM_CTL_REGION_GONE, &m, NULL, 0))
		d->eof = true;
}

static void del_region(struct evictord *d, const struct fm_ctl_region *m)
{
	struct slot *s = evictord_find(d, m->id);

	evictord_tasks_end(d, m->id);
	if (s && d->evictor.store->ops->lists_no_keys)
		s->purging = true;
	else
		forget_region(d, m->id);
}

bool evictord_is_counting(const struct slot *s)
{
	return atomic_load(&s->r.map.hdr->flags) & FM_REGION_COUNTING;
}

bool evictord_can_evict(const struct slot *s)
{
	/* GONE: one that ended before we began comes in two messages, and between them nothing of it may be counted down. */
	return !s->purging && !s->r.gone && !(fm_ld(&s->r.map.hdr->flags) & (FM_REGION_DETACHING | FM_REGION_GONE)) && !evictord_is_counting(s);
}

/* fm-faultd brings the region home. Its keys are still deleted and moved; but from here on no page of it is ours. */
static void hold_region(struct evictord *d, const struct fm_ctl_region *m)
{
	evictord_tasks_end(d, m->id);
	if (fm_ctl_send(d->fd, FM_CTL_REGION_HELD, m, NULL, 0))
		d->eof = true;
}

bool evictord_purges(struct evictord *d)
{
	for (struct slot *s = d->slots; s; s = s->next)
		if (s->purging) {
			if (fm_evict_purge(&d->evictor, &s->r))
				forget_region(d, s->r.map.hdr->id);
			return true;
		}
	return false;
}

void evictord_message(struct evictord *d)
{
	union {
		struct fm_ctl_region region;
		struct fm_ctl_evict evict;
		char bytes[FM_CTL_MAX];
	} m;
	int fds[FM_CTL_FDS];
	unsigned type, nfds;
	int e = fm_ctl_recv(d->fd, &type, &m, sizeof m, fds, &nfds);

	if (e && e != -EMFILE) {
		d->eof = true;
		return;
	}
	switch (type) {
	case FM_CTL_REGION_ADD:
		d->regions_due -= d->regions_due > 0;
		if (e) {
			/* The next evictor may have more of them; the other regions need this one. */
			d->blind = true;
			fm_warn("region %016llx: cannot be evicted from: %s", (unsigned long long)m.region.id, strerror(-e));
		}
		if (nfds >= 3) {
			add_region(d, m.region.id, fds, nfds);
			return;
		}
		break;
	case FM_CTL_REGION_DEL:
		del_region(d, &m.region);
		break;
	case FM_CTL_REGION_HOLD:
		hold_region(d, &m.region);
		break;
	case FM_CTL_EVICT:
		evictord_task_add(d, &m.evict);
		break;
	default:
		break;
	}
	while (nfds)
		close(fds[--nfds]);
}
