/*
 * Counting a region's pages anew, while their faults are served already.
 *
 * Theory of operation. Whoever changes a page's state counts `resident` and `remote` up before, and down after: so at any instant the counters
 * are no less than the truth, and a death leaves them too high by what it had in hand. The budget then holds, and is used a little less. To put
 * that right takes a look at every word, 40 ms for 64 GiB, and nobody shall wait for that. So the region is marked FM_REGION_COUNTING, which
 * keeps the evictor away, and each shard counts its words piece by piece between its turns. A page's word is changed by its shard only then: a
 * piece is counted before the first page of it is changed, so that the sum is what the region had when the count began, whatever was served
 * meanwhile. The maker takes the difference from the counters, and lets the evictor come again.
 */
#include "shard_impl.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crash.h"

#define PIECE 64u  /* words: a fault on a page of a piece that was not counted yet waits for that one */
#define READ  4096 /* words read at a time */
#define BUSY  32   /* pieces of a turn: some microseconds */
#define IDLE  2048 /* ... that has nothing else to do: 0.2 ms */

int fm_count_words(const struct fm_region_map *m, uint64_t first, uint64_t end, struct fm_count *c)
{
	/* A bit for each state, BUSY left out. */
	const unsigned here = 1u << FM_DIRTY | 1u << FM_CLEAN | 1u << FM_WRITEBACK | 1u << FM_DROPPING, away = 1u << FM_REMOTE;
	off_t base = (off_t)m->hdr->words_offset, at = base + (off_t)first * 8, stop = base + (off_t)end * 8;
	uint64_t buf[READ], resident = 0, remote = 0;

	while (at < stop) {
		size_t want = (size_t)(stop - at) < sizeof buf ? (size_t)(stop - at) : sizeof buf;
		/* By read(2): mapping them in page by page would take longer than looking at them, and fill the file's holes. */
		ssize_t n = pread(m->fd, buf, want, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < (ssize_t)sizeof buf[0])
			return n < 0 ? -errno : -EIO;
		for (size_t k = 0; k < (size_t)n / sizeof buf[0]; k++) {
			uint64_t w = buf[k];

			resident += here >> (w & FM_PS_MASK) & 1;
			remote += away >> (w & FM_PS_MASK) & 1;
			if (fm_word_state(w) == FM_BUSY)
				resident += fm_word_is_resident(w);
		}
		at += n / (ssize_t)sizeof buf[0] * (ssize_t)sizeof buf[0];
	}
	c->resident += resident;
	c->remote += remote;
	return 0;
}

static uint64_t pieces(const struct fm_shard *s)
{
	return (s->shm->pages + PIECE - 1) / PIECE;
}

static bool is_seen(const struct fm_shard *s, uint64_t piece)
{
	return s->count.seen[piece / 64] >> piece % 64 & 1;
}

/* Count n pieces that were not counted yet. */
static void count_pieces(struct fm_shard *s, uint64_t piece, uint64_t n)
{
	uint64_t first = s->shm->first_page + piece * PIECE, end = s->shm->first_page + s->shm->pages;

	if (fm_count_words(s->o.map, first, end - first > n * PIECE ? first + n * PIECE : end, &s->count.sum))
		s->count.failed = true;
	for (uint64_t i = piece; i < piece + n; i++)
		s->count.seen[i / 64] |= 1ull << i % 64;
	FM_CRASH_POINT("recount-pieces");
}

void shard_count_page(struct fm_shard *s, uint32_t page)
{
	uint64_t piece = (page - s->shm->first_page) / PIECE;

	if (!is_seen(s, piece))
		count_pieces(s, piece, 1);
}

/* The next piece that is not in a hole of the state file: there is nothing to count in those before it. */
static uint64_t next_piece(const struct fm_shard *s, uint64_t piece)
{
	off_t base = (off_t)s->o.map->hdr->words_offset + (off_t)s->shm->first_page * 8, at = base + (off_t)(piece * PIECE) * 8;
	off_t data = lseek(s->o.map->fd, at, SEEK_DATA);

	if (data < 0)
		return errno == ENXIO ? pieces(s) : piece;
	return data > at ? (uint64_t)(data - base) / 8 / PIECE : piece;
}

bool shard_count_some(struct fm_shard *s, bool busy)
{
	struct shard_count *c = &s->count;
	uint64_t n = pieces(s);

	if (!shard_counts(s))
		return false;
	atomic_store(&c->begun, true);
	c->at = next_piece(s, c->at);
	for (uint64_t end = c->at + (busy ? BUSY : IDLE) < n ? c->at + (busy ? BUSY : IDLE) : n, k; c->at < end; c->at += k ? k : 1) {
		for (k = 0; c->at + k < end && !is_seen(s, c->at + k); k++)
			;
		if (k)
			count_pieces(s, c->at, k);
	}
	if (c->at < n)
		return true;
	atomic_store(&c->on, false);
	atomic_store(&c->done, true);
	shard_tell(s, FM_SHARD_COUNTED);
	return false;
}

int fm_shard_count(struct fm_shard *s)
{
	struct shard_count *c = &s->count;
	size_t words = (size_t)(pieces(s) + 63) / 64 + 1;

	if (!c->seen)
		c->seen = calloc(words, sizeof *c->seen);
	if (!c->seen)
		return -ENOMEM;
	memset(c->seen, 0, words * sizeof *c->seen);
	c->sum = (struct fm_count){0};
	c->at = 0;
	c->failed = false;
	atomic_store(&c->begun, false);
	atomic_store(&c->done, false);
	atomic_store(&c->on, true);
	return 0;
}

bool fm_shard_count_begun(struct fm_shard *s)
{
	/* A signal that comes just before the poll is lost. */
	if (shard_counts(s) && !atomic_load(&s->count.begun))
		pthread_kill(s->thread, FM_STOP_SIGNAL);
	return !shard_counts(s) || atomic_load(&s->count.begun);
}

int fm_shard_counted(const struct fm_shard *s, struct fm_count *sum)
{
	if (!atomic_load(&s->count.done))
		return 0;
	if (s->count.failed)
		return -EIO;
	sum->resident += s->count.sum.resident;
	sum->remote += s->count.sum.remote;
	return 1;
}
