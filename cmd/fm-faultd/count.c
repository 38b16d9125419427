/*
 * Counting a region's pages anew after a death, in the background: see lib/shard_count.c for how. What a daemon had in hand when it died is still
 * in the counters; until it is taken off they are too high, never too low, and the evictor leaves the region alone.
 */
#include "faultd.h"

#include <stdlib.h>
#include <string.h>

#include "crash.h"
#include "log.h"

void region_count_mark(struct region *r)
{
	const struct fm_region_hdr *h = r->map.hdr;

	/* Before the next evictor is told of the region, so that it never sees the region without it. */
	atomic_fetch_or(&r->map.hdr->flags, FM_REGION_COUNTING);
	r->counting = true;
	r->before = (struct fm_count){.resident = fm_ld(&h->resident), .remote = fm_ld(&h->remote)};
}

static void end(struct faultd *d, struct region *r)
{
	r->counting = false;
	atomic_fetch_and(&r->map.hdr->flags, ~(uint64_t)FM_REGION_COUNTING);
	FM_CRASH_POINT("recount-unmarked");
	evictor_kick(d);
}

static void give_up(struct faultd *d, struct region *r, int error)
{
	fm_warn("region %016llx: cannot be counted: %s: its budget may be used less than it could", (unsigned long long)r->map.hdr->id,
		strerror(error));
	end(d, r);
}

void region_count_paused(struct faultd *d, struct region *r)
{
	int e = 0;

	region_count_mark(r);
	for (unsigned i = 0; i < r->map.nshards && e == 0; i++)
		e = fm_shard_count(r->shard[i]);
	if (e)
		give_up(d, r, -e);
}

void region_count_news(struct faultd *d, struct region *r)
{
	struct fm_count now = {0};
	uint64_t resident, remote;
	int done = 1;

	for (unsigned i = 0; i < r->map.nshards && r->counting && done == 1; i++)
		done = fm_shard_counted(r->shard[i], &now);
	if (!r->counting || done == 0)
		return;
	if (done < 0) {
		give_up(d, r, -done);
		return;
	}
	/* What it had when the count began; all changes since are in both. */
	resident = r->before.resident - now.resident;
	remote = r->before.remote - now.remote;
#ifdef FM_DEBUG
	if ((int64_t)resident < 0 || (int64_t)remote < 0) {
		fm_warn("region %016llx: counters were too low: resident by %lld, remote by %lld", (unsigned long long)r->map.hdr->id,
			-(long long)resident, -(long long)remote);
		abort();
	}
#endif
	FM_CRASH_POINT("recount-counted");
	atomic_fetch_sub(&r->map.hdr->resident, resident);
	if (!atomic_load(&r->unbounded))
		atomic_fetch_sub(&d->daemon->resident, resident);
	FM_CRASH_POINT("recount-resident");
	atomic_fetch_sub(&r->map.hdr->remote, remote);
	FM_CRASH_POINT("recount-remote");
	end(d, r);
}

bool region_count_begun(struct region *r)
{
	bool all = true;

	for (unsigned i = 0; i < r->map.nshards && r->counting; i++)
		all &= fm_shard_count_begun(r->shard[i]);
	return all;
}
