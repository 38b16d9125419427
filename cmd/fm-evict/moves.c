#include "evictord_impl.h"

#define MOVE_NS_PER_PAGE 60000 /* 64 MiB/s at most */
#define PASS_NS          200000000 /* between two passes at least; a pass that moved nothing doubles it, up to 8 times */

bool evictord_moves(struct evictord *d, uint64_t now)
{
	struct fm_cluster_shm *c = &d->daemon->cluster;
	uint64_t target = atomic_load(&c->epoch_now);
	unsigned moved = 0;
	struct slot *s;

	if (!target || atomic_load(&c->settled) >= target)
		return false;
	/* A pass that misses a region would say that nothing is left. */
	if (d->regions_due)
		return false;
	if (now < d->move_next_ns)
		return true;
	if (d->pass_epoch != target) {
		d->pass_epoch = target;
		d->pass_left = d->pass_moved = 0;
		for (s = d->slots; s; s = s->next) {
			s->moved = false;
			s->r.move_at = 0;
		}
	}
	for (s = d->slots; s && (s->moved || s->purging || s->r.gone); s = s->next)
		;
	if (s) {
		s->moved = fm_evict_move(&d->evictor, &s->r, &moved, &d->pass_left);
		fm_bump(&c->pages_moved, moved);
		d->pass_moved += moved;
		d->move_next_ns = now + moved * MOVE_NS_PER_PAGE;
		return true;
	}
	d->pass_left += d->blind;
	atomic_store(&c->pages_left, d->pass_left);
	fm_bump(&c->passes, 1);
	if (d->pass_left == 0)
		atomic_store(&c->settled, target);
	d->pass_epoch = 0;
	/* What could not be moved is busy for a moment, or its server is away, for a day perhaps. */
	d->pass_rest_ns = d->pass_moved || d->pass_rest_ns < PASS_NS ? PASS_NS : d->pass_rest_ns < 8 * PASS_NS ? 2 * d->pass_rest_ns : 8 * PASS_NS;
	d->move_next_ns = now + d->pass_rest_ns;
	return d->pass_left != 0;
}
