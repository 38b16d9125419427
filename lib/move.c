/* Moving stored pages to the newest placement epoch: see fm_evict_move(). */
#include "evict.h"

#include <unistd.h>

#include "crash.h"

#define MOVE_PAGES 64
#define MOVE_WORDS 16384 /* looked at in a call at most */

_Static_assert(2 * MOVE_PAGES <= FM_EVICT_BATCH, "room for a page and a value of each");

struct move {
	struct fm_store_req req[MOVE_PAGES];
	uint64_t w[MOVE_PAGES];
	unsigned n;
	/* Pages whose copies do not count any more. */
	struct fm_store_req drop[MOVE_PAGES];
	uint64_t drop_w[MOVE_PAGES];
	unsigned ndrop;
};

/* Put the pages of the batch by the new epoch, say so in their words, and delete what is where they no longer belong. */
static void move_batch(struct fm_evictor *e, struct fm_evict_region *r, struct move *m, uint32_t tag, unsigned *moved, uint64_t *left)
{
	/* Pages that wait for the dead hold on to their epochs: they must not take the slots of those to come. */
	bool pressed = fm_cluster_epochs(&e->daemon->cluster) > FM_EPOCHS / 2;
	struct fm_store_req put[MOVE_PAGES], del[MOVE_PAGES];
	unsigned who[MOVE_PAGES], n = 0, k = 0;
	uint64_t region = r->map.hdr->id;

	fm_store_get(e->store, region, m->req, m->n);
	FM_CRASH_POINT("move-got");
	for (unsigned i = 0; i < m->n; i++) {
		fm_word *word = &r->map.words[m->req[i].page];

		if (m->req[i].result == FM_STORE_OK) {
			who[n] = i;
			put[n] = m->req[i];
			put[n].epoch = tag;
			put[n++].moving = true;
		} else if (m->req[i].result == FM_STORE_LOST && fm_word_state(m->w[i]) == FM_REMOTE && (!m->req[i].may_return || pressed)) {
			/* Nowhere: by any epoch its next access finds that out. A server that is taken for dead may come back, and have it. */
			fm_page_cas(word, m->w[i], fm_word_at_epoch(m->w[i], tag));
		} else {
			(*left)++;
		}
	}
	if (n)
		fm_store_put(e->store, region, put, n);
	FM_CRASH_POINT("move-put");
	for (unsigned i = 0; i < n; i++) {
		uint64_t w = m->w[who[i]];
		uint32_t old = fm_word_epoch(w);

		if (put[i].result != FM_STORE_OK) {
			(*left)++;
			continue;
		}
		/* Who reads the word from here on asks the new servers, who read it before still finds the old copies: they go last. */
		del[k] = put[i];
		if (fm_page_cas(&r->map.words[put[i].page], w, fm_word_at_epoch(w, tag))) {
			FM_CRASH_POINT("move-published");
			del[k].epoch = old;
			del[k].old_epoch = tag;
			(*moved)++;
		} else {
			del[k].epoch = tag; /* taken meanwhile: the old ones stay */
			del[k].old_epoch = old;
			(*left)++;
		}
		k++;
	}
	if (k)
		fm_store_delete(e->store, region, del, k);
	FM_CRASH_POINT("move-deleted");
	m->n = 0;
}

/* Delete the copies that do not count any more. */
static void drop_copies(struct fm_evictor *e, struct fm_evict_region *r, struct move *m, uint64_t *left)
{
	fm_store_delete(e->store, r->map.hdr->id, m->drop, m->ndrop);
	FM_CRASH_POINT("move-dropped");
	for (unsigned i = 0; i < m->ndrop; i++)
		if (m->drop[i].result != FM_STORE_OK || !fm_page_cas(&r->map.words[m->drop[i].page], m->drop_w[i], m->drop_w[i] & ~FM_F_STORED))
			(*left)++;
	m->ndrop = 0;
}

static void drop(struct move *m, uint64_t page, uint64_t w)
{
	m->drop_w[m->ndrop] = w;
	m->drop[m->ndrop++] = (struct fm_store_req){.page = page, .gen = fm_word_gen(w), .epoch = fm_word_epoch(w)};
}

static void look_at(struct fm_evictor *e, struct fm_evict_region *r, struct move *m, uint64_t page, uint32_t tag, uint64_t *left)
{
	uint64_t w = atomic_load(&r->map.words[page]);

	if (!(w & FM_F_STORED) || fm_word_epoch(w) == tag)
		return;
	switch (fm_word_state(w)) {
	case FM_CLEAN:
		/*
		 * The page is here; its copy, perhaps, nowhere: a server that came back empty may have had it. It is not put once more under the generation that it
		 * has: whether these are the bytes that were sealed under it, nobody knows for certain. As a dirty one it gets another when it leaves.
		 */
		if (!(w & FM_F_ZERO)) {
			uint64_t dirty = fm_word_to(w, FM_DIRTY, 0, 0);

			if (!fm_page_cas(&r->map.words[page], w, dirty)) {
				(*left)++;
				return;
			}
			FM_CRASH_POINT("move-dirty");
			w = dirty;
		}
		drop(m, page, w);
		return;
	case FM_REMOTE:
		m->w[m->n] = w;
		m->req[m->n] = (struct fm_store_req){
		    .page = page,
		    .gen = fm_word_gen(w),
		    .epoch = fm_word_epoch(w),
		    .buf = e->buf + (size_t)m->n * FM_PAGE_SIZE,
		    .raw = e->buf + (size_t)(MOVE_PAGES + m->n) * FM_PAGE_SIZE,
		};
		m->n++;
		return;
	case FM_DIRTY:
	case FM_EMPTY:
		drop(m, page, w);
		return;
	case FM_LOST:
		return;
	default:
		(*left)++; /* somebody has it for a moment */
		return;
	}
}

bool fm_evict_move(struct fm_evictor *e, struct fm_evict_region *r, unsigned *moved, uint64_t *left)
{
	const struct fm_region_map *map = &r->map;
	uint32_t tag = FM_EPOCH_TAG(atomic_load(&e->daemon->cluster.epoch_now));
	off_t base = (off_t)map->hdr->words_offset, end = base + (off_t)map->pages * 8;
	off_t data = lseek(map->fd, base + (off_t)r->move_at * 8, SEEK_DATA), hole;
	struct move m;
	uint64_t page, last;

	m.n = m.ndrop = 0;
	if (data < 0 || data >= end) {
		r->move_at = 0;
		return true;
	}
	hole = lseek(map->fd, data, SEEK_HOLE);
	if (hole < 0 || hole > end)
		hole = end;
	page = (uint64_t)(data - base) / 8;
	last = (uint64_t)(hole - base) / 8;
	if (last - page > MOVE_WORDS)
		last = page + MOVE_WORDS;
	while (page < last && m.n < MOVE_PAGES && m.ndrop < MOVE_PAGES)
		look_at(e, r, &m, page++, tag, left);
	if (m.ndrop)
		drop_copies(e, r, &m, left);
	if (m.n)
		move_batch(e, r, &m, tag, moved, left);
	r->move_at = page < map->pages ? page : 0;
	return page >= map->pages;
}
