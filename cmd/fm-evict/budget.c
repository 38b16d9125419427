#include "evictord_impl.h"

/* Keeping the budgets: what the policy is told of each region, and what is done of what it decides. */

/* How many pages of the region should be in their grace beyond those that the budget asks for: see struct slot. */
static uint64_t ahead(struct slot *s, uint64_t now, uint64_t limit, uint64_t global)
{
	struct fm_region_map *m = &s->r.map;
	uint64_t held = 0, most = limit && limit < global ? limit : global;

	if (!fm_ld(&m->hdr->grace_ms) || most == FM_LIMIT_NONE)
		return 0;
	most -= most / 4;
	for (unsigned i = 0; i < m->nshards; i++)
		held += fm_ld(&m->shards[i].stats.held);
	if (held != s->held_seen && now > s->ahead_ns + 5000000) {
		s->ahead = s->ahead * 2 + 16;
		s->ahead_ns = now;
	} else if (s->ahead && now > s->ahead_ns + 1000000000) {
		s->ahead -= s->ahead / 4 + 1;
		s->ahead_ns = now;
	}
	/* Pages that were written again are not about to leave: it shows only when they are looked at. */
	if (held != s->held_seen && now > s->recount_ns + 50000000) {
		fm_evict_recount_grace(&s->r);
		s->recount_ns = now;
	}
	s->held_seen = held;
	if (s->ahead > most)
		s->ahead = most;
	return s->ahead;
}

static bool stalled(const struct slot *s, uint64_t now)
{
	return !evictord_can_evict(s) || now < s->r.stalled_until_ns;
}

/* What the policy needs to know of each region. *total counts what will be here when every page in its grace is gone, and as many more. */
static void look_starts(struct evictord *d, uint64_t now, uint64_t global, uint64_t *total)
{
	unsigned i = 0;

	for (struct slot *s = d->slots; s; s = s->next) {
		struct fm_region_hdr *h = s->r.map.hdr;
		bool home = fm_ld(&h->flags) & FM_REGION_DETACHING; /* nothing of it is about to leave, nor is it in the total */
		uint64_t limit = fm_ld(&h->limit_pages), resident = fm_ld(&h->resident), more = home ? 0 : ahead(s, now, limit, global);
		uint64_t cooling = home ? 0 : fm_grace_count(s->r.grace);
		struct fm_marks m = fm_policy_marks(limit ? limit : FM_LIMIT_NONE);

		cooling = cooling < resident ? cooling : resident;
		resident = resident - cooling + more;
		*total = (*total > cooling ? *total - cooling : 0) + more;
		if (resident > m.high)
			s->starting = true;
		else if (resident <= m.low)
			s->starting = false;
		d->starts[i++] = (struct fm_view){
		    .resident = resident,
		    .limit = limit,
		    .queued = fm_victims_count(s->r.victims),
		    .age = fm_victims_age(s->r.victims),
		    .draining = s->starting,
		    .stalled = stalled(s, now),
		};
	}
}

static void look(struct evictord *d, uint64_t now)
{
	unsigned i = 0;

	for (struct slot *s = d->slots; s; s = s->next) {
		struct fm_region_hdr *h = s->r.map.hdr;
		uint64_t limit = fm_ld(&h->limit_pages), resident = fm_ld(&h->resident);
		struct fm_marks m = fm_policy_marks(limit ? limit : FM_LIMIT_NONE);

		if (!s->purging)
			fm_evict_drain(&d->evictor, &s->r);
		if (evictord_can_evict(s) && resident > m.high)
			s->r.draining = true;
		else if (!evictord_can_evict(s) || resident <= m.low)
			s->r.draining = false;
		d->views[i++] = (struct fm_view){
		    .resident = resident,
		    .limit = limit,
		    .queued = fm_evict_due_ns(&s->r) && fm_evict_due_ns(&s->r) <= now ? fm_grace_count(s->r.grace) : 0,
		    .draining = s->r.draining,
		    .stalled = !evictord_can_evict(s), /* what is stored already needs no store */
		};
	}
}

static struct slot *nth(struct evictord *d, int n)
{
	struct slot *s = d->slots;

	while (n--)
		s = s->next;
	return s;
}

/* Over budget, but no page queued: a hint was lost (a crash, no memory). Look at the words, now and then. */
static void sweep_some(struct evictord *d, uint64_t now)
{
	for (struct slot *s = d->slots; s; s = s->next)
		if (evictord_can_evict(s) && !fm_victims_count(s->r.victims) && fm_ld(&s->r.map.hdr->resident) > fm_grace_count(s->r.grace) &&
		    now > s->r.swept_ns + 50000000)
			fm_evict_sweep(&d->evictor, &s->r);
}

int evictord_work(struct evictord *d)
{
	uint64_t now = fm_now_ns(), total = fm_ld(&d->daemon->resident), limit = fm_ld(&d->daemon->limit_pages), take;
	struct fm_marks g = fm_policy_marks(limit);
	bool tasks, moved, over, purging, moving, busy = false;
	uint64_t start;
	int pick;

	if (total > g.high)
		d->draining = true;
	else if (total <= g.low)
		d->draining = false;
	purging = evictord_purges(d);
	moving = evictord_moves(d, now);
	look(d, now);
	tasks = evictord_tasks(d, now, &moved);
	pick = fm_policy_pick(d->views, d->nslots, total, limit, d->draining, &take);
	if (pick >= 0) {
		fm_evict_due(&d->evictor, &nth(d, pick)->r, take < FM_EVICT_BATCH ? (unsigned)take : FM_EVICT_BATCH);
		busy = true;
	}
	start = fm_ld(&d->daemon->resident);
	look_starts(d, now, limit, &start);
	if (start > g.high)
		d->starting = true;
	else if (start <= g.low)
		d->starting = false;
	pick = fm_policy_pick(d->starts, d->nslots, start, limit, d->starting, &take);
	if (pick >= 0) {
		fm_evict_batch(&d->evictor, &nth(d, pick)->r, take < FM_EVICT_MOST ? (unsigned)take : FM_EVICT_MOST);
		busy = true;
	}
	if (busy || purging)
		return 0;
	over = d->draining;
	for (unsigned i = 0; i < d->nslots; i++)
		over |= d->views[i].draining;
	if (over)
		sweep_some(d, now);
	for (struct slot *s = d->slots; s; s = s->next)
		if (fm_queue_count(s->r.deletes))
			return tasks ? 0 : 5;
	/* Where nothing moved, pages are busy for a moment or the store refuses: a little later. */
	return tasks ? (moved ? 0 : 2) : over ? 5 : moving ? 2 : d->daemon->cluster.epoch_now ? 1000 : -1;
}
