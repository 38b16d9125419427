/* Mending a region whose daemons died: see shard.h. */
#include "shard_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "crash.h"

static uint64_t memfd_offset(const struct fm_region_map *m, uint32_t page)
{
	return m->hdr->memfd_offset + (uint64_t)page * FM_PAGE_SIZE;
}

bool fm_shard_discards_are_sound(const struct fm_region_map *m)
{
	for (unsigned i = 0; i < m->nshards; i++) {
		const struct fm_shard_shm *s = &m->shards[i];

		for (unsigned k = 0; k < FM_DISCARDS; k++) {
			uint64_t first = fm_ld(&s->discard[k].first), at = fm_ld(&s->discard[k].at), end = fm_ld(&s->discard[k].end);

			if (end && (first < s->first_page || at < s->first_page || first > end || at > end || end > s->first_page + s->pages))
				return false;
		}
	}
	return true;
}

int fm_region_any_away(const struct fm_region_map *m)
{
	struct fm_count c = {0};
	int e = fm_count_words(m, 0, m->pages, &c);

	return e ? e : c.remote != 0;
}

/* A slot is counted before it is filled, and emptied before it is counted off. */
static void count_discards(struct fm_shard_shm *s)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < FM_DISCARDS; i++)
		n += fm_ld(&s->discard[i].end) != 0;
	atomic_store(&s->discarding, n);
}

void fm_shard_recover(const struct fm_region_map *m, int memfd)
{
	for (unsigned i = 0; i < m->nshards; i++) {
		count_discards(&m->shards[i]);
		for (unsigned k = 0; k < FM_BATCH; k++) {
			uint32_t page = fm_ld(&m->shards[i].inflight[k]);
			uint64_t w;
			enum fm_pstate to;

			if (page == 0 || page > m->pages)
				continue;
			page--;
			w = atomic_load(&m->words[page]);
			if (fm_word_state(w) == FM_BUSY) {
				to = fm_word_origin(w);
				/* No page was ever that before it was BUSY: the file is damaged, and what is not here is nowhere. */
				if (to >= FM_BUSY)
					to = FM_LOST;
				/* An unprotect may have happened, and a write after it: what is here counts as dirty. A resident page
				 * that is not here was punched from outside: dirty too, its next fault finds the hole. */
				if (fm_state_is_resident(to) || fm_memfd_has(memfd, memfd_offset(m, page)))
					to = FM_DIRTY;
				else if (w & FM_F_DISCARD)
					to = FM_EMPTY;
				fm_page_cas(&m->words[page], w, fm_word_to(w, to, FM_F_ZERO | FM_F_DISCARD, 0));
				FM_CRASH_POINT("recover-published");
			}
			atomic_store(&m->shards[i].inflight[k], 0);
			FM_CRASH_POINT("recover-unnamed");
		}
	}
}

void fm_evict_recover(const struct fm_region_map *m, int memfd)
{
	for (unsigned k = 0; k < FM_EVICT_BATCH; k++) {
		uint32_t page = fm_ld(&m->hdr->evict_inflight[k]);
		uint64_t w, nw;

		if (page == 0 || page > m->pages)
			continue;
		page--;
		w = atomic_load(&m->words[page]);
		/* A running shard may take a WRITEBACK page or flag a DROPPING one meanwhile: hence loops. */
		while (fm_word_state(w) == FM_WRITEBACK && !fm_page_cas(&m->words[page], w, fm_word_to(w, FM_DIRTY, 0, 0)))
			w = atomic_load(&m->words[page]);
		/* A page that is still here stays: it was about to go, but a device may have written it since. */
		while (fm_word_state(w) == FM_DROPPING && !(w & FM_F_DISCARD) && fm_memfd_has(memfd, memfd_offset(m, page)) &&
		       !fm_page_cas(&m->words[page], w, fm_word_to(w, FM_DIRTY, FM_F_WAITER | FM_F_ZERO, 0)))
			w = atomic_load(&m->words[page]);
		w = atomic_load(&m->words[page]);
		FM_CRASH_POINT("mend-looked");
		if (fm_word_state(w) == FM_DROPPING) {
			while (fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)memfd_offset(m, page),
					 FM_PAGE_SIZE) < 0 &&
			       errno == EINTR)
				;
			/* The dead one may have counted it or not: too high is put right by a count, too low is not. */
			atomic_fetch_add(&m->hdr->remote, 1);
			do {
				w = atomic_load(&m->words[page]);
				nw = fm_word_to(w, w & (FM_F_ZERO | FM_F_DISCARD) ? FM_EMPTY : FM_REMOTE,
						FM_F_WAITER | FM_F_ZERO | FM_F_DISCARD, 0);
			} while (!fm_page_cas(&m->words[page], w, nw));
		}
		atomic_store(&m->hdr->evict_inflight[k], 0);
		FM_CRASH_POINT("mend-unnamed");
	}
}
