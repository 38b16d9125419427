/*
 * Bringing a region home and letting go of it, while its client runs.
 *
 *   HOLD   the evictor is told to take no page of the region any more
 *   FETCH  it does not: no budget holds for the region now, and its shards fetch what is only in the store, serving faults meanwhile
 *   LEAVE  no page is away: the shards unregister its memory. Then the region ends as if its client had: its keys and files go
 *
 * Up to LEAVE the region can go back to what it was, and does when something forbids it to go on: no room, a lost page, a requester that does
 * not wait any more, the death of this fm-faultd (see region_detach_resume()). LEAVE is marked in the state file before it begins,
 * and from there on every fm-faultd goes on with it: in a part that is unregistered nobody sees a page leave.
 */
#include "faultd.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "crash.h"
#include "log.h"
#include "room.h"

#define WHY 320

static unsigned long long id_of(const struct region *r)
{
	return (unsigned long long)r->map.hdr->id;
}

static struct conn *requester(struct faultd *d, const struct region *r)
{
	struct conn *c = d->conns;

	while (c && c->waits_detach != r->map.hdr->id)
		c = c->next;
	return c;
}

/* Pages that no store could give back: nobody can bring them home. */
static uint64_t lost_pages(const struct region *r)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < r->map.nshards; i++)
		n += fm_ld(&r->map.shards[i].stats.pages_lost);
	return n;
}

/* What forbids to bring it home: 0, or errno with why. */
static int forbidden(const struct region *r, char why[WHY])
{
	uint64_t lost = lost_pages(r);
	struct fm_room room;

	if (lost) {
		snprintf(why, WHY, "%016llx: %llu of its pages are lost: they would turn from SIGBUS into zeros", id_of(r),
			 (unsigned long long)lost);
		return EIO;
	}
	if (fm_ld(&r->map.hdr->flags) & FM_REGION_MOVED) {
		snprintf(why, WHY, "%016llx: a part of it was moved by mremap", id_of(r));
		return EOPNOTSUPP;
	}
	fm_room_check(r->map.hdr->pid, r->memfd, fm_ld(&r->map.hdr->remote) * FM_PAGE_SIZE, &room);
	if (room.missing) {
		snprintf(why, WHY, "%016llx: no room for its pages: %llu bytes are missing in %s", id_of(r),
			 (unsigned long long)room.missing, room.where);
		return ENOSPC;
	}
	return 0;
}

static void pause_shards(struct region *r)
{
	for (unsigned i = 0; i < r->map.nshards; i++)
		fm_shard_pause(r->shard[i]);
}

static void resume_shards(struct region *r)
{
	for (unsigned i = 0; i < r->map.nshards; i++)
		fm_shard_resume(r->shard[i]);
}

/* Those that do not take note now are asked again by region_detach_tick(). */
static void ask_shards(struct region *r)
{
	enum fm_home what = r->detach == DETACH_FETCH ? FM_HOME_FETCH : r->detach == DETACH_LEAVE ? FM_HOME_LEAVE : FM_HOME_NO;

	r->asked = true;
	for (unsigned i = 0; i < r->map.nshards; i++)
		r->asked &= fm_shard_home(r->shard[i], what);
}

/* From or to the sum of all regions, which is what the budget of the host is about. */
static void set_unbounded(struct faultd *d, struct region *r, bool on)
{
	pause_shards(r);
	if (on)
		atomic_fetch_sub(&d->daemon->resident, fm_ld(&r->map.hdr->resident));
	else
		atomic_fetch_add(&d->daemon->resident, fm_ld(&r->map.hdr->resident));
	atomic_store(&r->unbounded, on);
	resume_shards(r);
}

void region_detach(struct faultd *d, struct conn *c, struct region *r)
{
	struct fm_ctl_region m = {.id = r->map.hdr->id};
	char why[WHY];
	int e;

	if (r->detach) {
		conn_error(c, EBUSY, "%016llx: it is being detached already", id_of(r));
		return;
	}
	e = forbidden(r, why);
	if (e) {
		conn_error(c, e, "%s", why);
		return;
	}
	c->waits_detach = r->map.hdr->id;
	r->detach = DETACH_HOLD;
	/* Before the message: the evictor looks at it for each batch from then on. */
	atomic_fetch_or(&r->map.hdr->flags, FM_REGION_DETACHING);
	FM_CRASH_POINT("detach-flagged");
	fm_info("region %016llx: coming home, %llu pages", id_of(r), (unsigned long long)fm_ld(&r->map.hdr->remote));
	if (r->told_evictor && d->evictor && !d->evictor->dead) {
		r->holds++;
		conn_reply(d->evictor, FM_CTL_REGION_HOLD, &m, NULL, 0); /* region_detach_held() when it answers, or is lost */
	} else if (!d->evictor) {
		region_detach_held(d, r); /* and when it is about to be taken for lost, then */
	}
}

void region_detach_held(struct faultd *d, struct region *r)
{
	if (r->detach != DETACH_HOLD)
		return;
	r->detach = DETACH_FETCH;
	FM_CRASH_POINT("detach-held");
	set_unbounded(d, r, true);
	FM_CRASH_POINT("detach-unbounded");
	ask_shards(r);
	evictor_kick(d); /* the others have more room now */
}

/* Back to what it was. */
static void go_back(struct faultd *d, struct region *r)
{
	r->detach = DETACH_NO;
	ask_shards(r);
	if (atomic_load(&r->unbounded))
		set_unbounded(d, r, false);
	atomic_fetch_and(&r->map.hdr->flags, ~(uint64_t)FM_REGION_DETACHING);
	evictor_kick(d);
	fm_info("region %016llx: stays far", id_of(r));
}

static void refuse(struct faultd *d, struct region *r, int error, const char *why)
{
	struct conn *c = requester(d, r);

	if (c) {
		c->waits_detach = 0;
		conn_error(c, error, "%s", why);
	}
	go_back(d, r);
}

static bool all_done(const struct region *r)
{
	for (unsigned i = 0; i < r->map.nshards; i++)
		if (!fm_shard_home_done(r->shard[i]))
			return false;
	return true;
}

bool region_detach_news(struct faultd *d, struct region *r)
{
	char why[WHY];
	int e;

	if (r->detach == DETACH_FETCH && (e = forbidden(r, why))) {
		refuse(d, r, e, why);
	} else if (r->detach == DETACH_FETCH && all_done(r)) {
		r->detach = DETACH_LEAVE;
		/* From here on there is no way back, whoever dies. */
		atomic_fetch_or(&r->map.hdr->flags, FM_REGION_HOME);
		FM_CRASH_POINT("detach-no-way-back");
		ask_shards(r);
	} else if (r->detach == DETACH_LEAVE && all_done(r)) {
		FM_CRASH_POINT("detach-left");
		fm_info("region %016llx: home, and let go of", id_of(r));
		region_end(d, r);
		return true;
	}
	return false;
}

void region_detach_tick(struct faultd *d, struct region *r)
{
	char why[WHY];
	int e;

	if (r->detach && !r->asked)
		ask_shards(r);
	/* Others take memory too. */
	if (r->detach == DETACH_FETCH && (e = forbidden(r, why)))
		refuse(d, r, e, why);
}

void region_detach_forget(struct faultd *d, uint64_t id)
{
	struct region *r = region_find(d, id);

	if (r && !r->ending && (r->detach == DETACH_HOLD || r->detach == DETACH_FETCH))
		go_back(d, r);
}

void region_detach_resume(struct region *r)
{
	uint64_t flags = fm_ld(&r->map.hdr->flags);

	if (flags & FM_REGION_HOME) {
		r->detach = DETACH_LEAVE;
		ask_shards(r);
	}
}
