/* Deleting the keys of a region that ended: see fm_evict_purge(). */
#include "evict.h"

#include <unistd.h>

#include "crash.h"

/* Keys of the pages [first, end) whose words say that there may be one. */
static void purge_range(struct fm_evictor *e, struct fm_evict_region *r, uint64_t first, uint64_t end)
{
	struct fm_store_req req[FM_EVICT_BATCH];
	unsigned n = 0;

	for (uint64_t p = first; p < end; p++) {
		uint64_t w = fm_ld(&r->map.words[p]);

		if (w & FM_F_STORED)
			req[n++] = (struct fm_store_req){.page = p, .gen = fm_word_gen(w), .epoch = fm_word_epoch(w)};
		if (n == FM_EVICT_BATCH || (n && p + 1 == end)) {
			fm_store_delete(e->store, r->map.hdr->id, req, n);
			n = 0;
		}
	}
	if (n)
		fm_store_delete(e->store, r->map.hdr->id, req, n);
}

bool fm_evict_purge(struct fm_evictor *e, struct fm_evict_region *r)
{
	const struct fm_region_map *m = &r->map;
	off_t base = (off_t)m->hdr->words_offset, end = base + (off_t)m->pages * 8;
	off_t data = lseek(m->fd, base + (off_t)r->purge_at * 8, SEEK_DATA), hole;
	uint64_t first, last;

	if (data < 0 || data >= end)
		return true;
	hole = lseek(m->fd, data, SEEK_HOLE);
	if (hole < 0 || hole > end)
		hole = end;
	first = (uint64_t)(data - base) / 8;
	last = (uint64_t)(hole - base) / 8;
	/* A slice, so that other regions' budgets are kept meanwhile. */
	if (last - first > 4096)
		last = first + 4096;
	purge_range(e, r, first, last);
	FM_CRASH_POINT("purge-deleted");
	r->purge_at = last;
	return last >= m->pages;
}
