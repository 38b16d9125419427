#include "evictord_impl.h"

#include <stdlib.h>

/* Requests to evict from one region: fm-evict REGION SIZE, by way of fm-faultd. */

static void end_task(struct evictord *d, struct task *t)
{
	struct fm_ctl_evict reply = {.id = t->ask.id, .pages = t->done, .cookie = t->ask.cookie};

	for (struct task **link = &d->tasks; *link; link = &(*link)->next)
		if (*link == t) {
			*link = t->next;
			break;
		}
	if (fm_ctl_send(d->fd, FM_CTL_EVICTED, &reply, NULL, 0))
		d->eof = true;
	free(t);
}

void evictord_tasks_end(struct evictord *d, uint64_t region)
{
	struct task *next;

	for (struct task *t = d->tasks; t; t = next) {
		next = t->next;
		if (t->ask.id == region)
			end_task(d, t);
	}
}

void evictord_task_add(struct evictord *d, const struct fm_ctl_evict *ask)
{
	struct slot *s = evictord_find(d, ask->id);
	struct task *t = calloc(1, sizeof *t), **link;

	if (!t)
		return;
	t->ask = *ask;
	t->moved_ns = fm_now_ns();
	/* "Everything" is what is here now: a client that faults pages back in must not keep us for ever. */
	if (s && t->ask.pages > fm_ld(&s->r.map.hdr->resident))
		t->ask.pages = fm_ld(&s->r.map.hdr->resident);
	for (link = &d->tasks; *link; link = &(*link)->next)
		;
	*link = t;
	if (!s)
		end_task(d, t);
}

/* One batch of what may leave now, and the begin of as much more as is wanted. Returns how many pages left. */
static unsigned evict_some(struct evictord *d, struct slot *s, uint64_t want)
{
	unsigned n = want < FM_EVICT_MOST ? (unsigned)want : FM_EVICT_MOST;
	unsigned left = fm_evict_due(&d->evictor, &s->r, n);

	want -= left;
	if (want <= fm_grace_count(s->r.grace))
		return left;
	want -= fm_grace_count(s->r.grace);
	return left + fm_evict_batch(&d->evictor, &s->r, want < FM_EVICT_MOST ? (unsigned)want : FM_EVICT_MOST);
}

bool evictord_tasks(struct evictord *d, uint64_t now, bool *moved)
{
	struct task *next;
	bool left = false;

	*moved = false;

	for (struct task *t = d->tasks; t; t = next) {
		struct slot *s = evictord_find(d, t->ask.id);
		uint64_t want = t->ask.pages - t->done;
		unsigned n = 0;

		next = t->next;
		if (s && !s->purging && !s->r.gone && evictord_is_counting(s)) {
			left = true;
			continue;
		}
		if (s && evictord_can_evict(s) && now < s->r.stalled_until_ns) {
			left = true; /* the store refused a moment ago: that it is not asked again yet is no failure of this request */
			continue;
		}
		if (s && evictord_can_evict(s)) {
			if (fm_victims_count(s->r.victims) < want && t->idle && now > s->r.swept_ns + 20000000)
				fm_evict_sweep(&d->evictor, &s->r);
			n = evict_some(d, s, want);
		}
		t->done += n;
		*moved |= n > 0;
		t->idle = n ? 0 : t->idle + 1;
		t->moved_ns = n ? now : t->moved_ns;
		/* Pages in their grace leave by themselves, unless they are written again and again. */
		if (s && fm_grace_count(s->r.grace) && now < t->moved_ns + 2 * fm_ld(&s->r.map.hdr->grace_ms) * 1000000u + 1000000000u)
			t->idle = 1;
		/* A few empty rounds: pages are busy for a moment, or the store refuses; then say what was done. */
		if (!s || !evictord_can_evict(s) || t->done >= t->ask.pages || t->idle > 10)
			end_task(d, t);
		else
			left = true;
	}
	return left;
}
