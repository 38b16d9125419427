#include "grace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "shm.h"

struct fm_grace {
	struct fm_grace_page *ring; /* size entries, a power of two; NULL: none yet */
	uint64_t size, head, count; /* head: index of the first, modulo size */
	uint64_t pages;
	uint64_t *in; /* bitmap: is the page in the ring? */
};

struct fm_grace *fm_grace_new(uint64_t pages)
{
	struct fm_grace *g = calloc(1, sizeof *g);

	if (!g)
		return NULL;
	g->pages = pages;
	/* A large one comes from mmap: only what is touched is there. */
	g->in = calloc(pages / 64 + 1, sizeof *g->in);
	if (!g->in) {
		free(g);
		return NULL;
	}
	return g;
}

void fm_grace_free(struct fm_grace *g)
{
	if (!g)
		return;
	free(g->ring);
	free(g->in);
	free(g);
}

static struct fm_grace_page *at(const struct fm_grace *g, uint64_t i)
{
	return &g->ring[(g->head + i) & (g->size - 1)];
}

static void mark(struct fm_grace *g, uint32_t page, bool in)
{
	uint64_t bit = 1ull << (page % 64);

	g->in[page / 64] = in ? g->in[page / 64] | bit : g->in[page / 64] & ~bit;
}

static int grow(struct fm_grace *g)
{
	uint64_t size = g->size ? 2 * g->size : 256;
	struct fm_grace_page *ring = malloc(size * sizeof *ring);

	if (!ring)
		return -ENOMEM;
	for (uint64_t i = 0; i < g->count; i++)
		ring[i] = *at(g, i);
	free(g->ring);
	g->ring = ring;
	g->size = size;
	g->head = 0;
	return 0;
}

int fm_grace_push(struct fm_grace *g, const struct fm_grace_page *p)
{
	if (p->page >= g->pages || (g->count == g->size && grow(g)))
		return -ENOMEM;
	*at(g, g->count++) = *p;
	mark(g, p->page, true);
	return 0;
}

const struct fm_grace_page *fm_grace_first(const struct fm_grace *g)
{
	return g->count ? at(g, 0) : NULL;
}

void fm_grace_pop(struct fm_grace *g, struct fm_grace_page *out)
{
	*out = *at(g, 0);
	mark(g, out->page, false);
	g->head = (g->head + 1) & (g->size - 1);
	/* A burst's memory is not kept for good. */
	if (--g->count == 0 && g->size > 4096) {
		free(g->ring);
		g->ring = NULL;
		g->size = g->head = 0;
	}
}

bool fm_grace_has(const struct fm_grace *g, uint32_t page)
{
	return page < g->pages && (g->in[page / 64] & (1ull << (page % 64)));
}

uint64_t fm_grace_count(const struct fm_grace *g)
{
	return g->count;
}

void fm_grace_filter(struct fm_grace *g, bool (*keep)(void *arg, const struct fm_grace_page *p), void *arg)
{
	uint64_t kept = 0;

	for (uint64_t i = 0; i < g->count; i++) {
		struct fm_grace_page p = *at(g, i);

		if (keep(arg, &p))
			*at(g, kept++) = p;
		else
			mark(g, p.page, false);
	}
	g->count = kept;
}

void fm_page_hash(const void *page, uint64_t hash[2])
{
	XXH128_hash_t h = XXH3_128bits(page, FM_PAGE_SIZE);

	hash[0] = h.low64;
	hash[1] = h.high64;
}
