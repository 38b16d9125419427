/*
 * Is it worth while to know whether a page was written since it came? Pure.
 *
 * A page that is read comes write-protected (CLEAN): when it leaves unwritten, nothing need be stored. When it is written
 * after all, that costs its client a fault. So the pages that come protected are counted, and those of them that are written;
 * where more than three in four are, pages come writable, except one of sixteen by which the count goes on. (A fault takes
 * the client about 8 us, a write-back the evictor 11 us with a store on tmpfs and 40 us with memcached, but nobody waits for it.)
 * One thread an object; all zero at the beginning, which is: protect.
 */
#ifndef FM_TRACK_H
#define FM_TRACK_H

#include <stdbool.h>
#include <stdint.h>

#define FM_TRACK_WINDOW 128 /* protected pages after which it is decided anew; then both counts are halved */
#define FM_TRACK_PROBE  16

struct fm_track {
	uint32_t protected, written; /* pages */
	uint32_t asked;
	bool off;
};

/* Shall the page that is about to come for a read be write-protected? */
static inline bool fm_track_wanted(struct fm_track *t)
{
	return !t->off || ++t->asked % FM_TRACK_PROBE == 0;
}

/* A page has come write-protected. */
static inline void fm_track_protected(struct fm_track *t)
{
	if (++t->protected < FM_TRACK_WINDOW)
		return;
	/* More than three in four switch it off, less than five in eight on. */
	if (t->written * 4 > t->protected * 3)
		t->off = true;
	else if (t->written * 8 < t->protected * 5)
		t->off = false;
	t->protected /= 2;
	t->written /= 2;
}

/* A page that had come write-protected is written. */
static inline void fm_track_written(struct fm_track *t)
{
	/* Of a time when more came than come now. */
	if (t->written < 2 * FM_TRACK_WINDOW)
		t->written++;
}

#endif
