/*
 * The grace of written pages: which pages the evictor has written back and not dropped yet, because a device may still write them.
 *
 * Theory of operation. A disk read with O_DIRECT, or another kind of DMA, pins pages and writes them behind the page tables: a
 * write protection that comes later does not stop it. So a page that was written here is kept for a time (grace) after it was
 * write-protected and stored, as CLEAN with FM_F_GRACE, and is dropped only if its bytes are then still what was stored. This
 * module remembers them: page, word, hash and when its time is up, in the order of that time, each page at most once. It is
 * memory of the evictor alone; when that dies, the next one finds FM_F_GRACE without a record and writes those pages back anew.
 * Nothing here looks at a page or a clock. One thread.
 */
#ifndef FM_GRACE_H
#define FM_GRACE_H

#include <stdbool.h>
#include <stdint.h>

/* A page that was written back and is still here. */
struct fm_grace_page {
	uint64_t word;    /* as published: CLEAN with FM_F_GRACE */
	uint64_t hash[2]; /* of the bytes that were stored: fm_page_hash() */
	uint64_t due_ns;  /* CLOCK_MONOTONIC: may be dropped from then on */
	uint32_t page;
};

struct fm_grace;

/* Returns a list for pages 0..pages-1 that the caller frees, or NULL (no memory). 1 bit a page, 40 bytes a page in it. */
struct fm_grace *fm_grace_new(uint64_t pages);
void fm_grace_free(struct fm_grace *g);

/* Append. The page is not in it. Returns 0, or -ENOMEM: nothing is remembered, and the page must be written back once more. */
int fm_grace_push(struct fm_grace *g, const struct fm_grace_page *p);

/* The one that came first, or NULL; good until the next call that changes the list. */
const struct fm_grace_page *fm_grace_first(const struct fm_grace *g);

/* Take the first out. There is one. */
void fm_grace_pop(struct fm_grace *g, struct fm_grace_page *out);

/* Is the page in it? */
bool fm_grace_has(const struct fm_grace *g, uint32_t page);

uint64_t fm_grace_count(const struct fm_grace *g);

/* Take out each of which keep() says false; the rest stays in order. keep() must not change the list. */
void fm_grace_filter(struct fm_grace *g, bool (*keep)(void *arg, const struct fm_grace_page *p), void *arg);

/* 128 bits that tell the bytes of two pages apart (XXH3-128: accidents, not attacks). Pure; any thread. */
void fm_page_hash(const void *page, uint64_t hash[2]);

#endif
