/*
 * Which resident page of a region leaves next. Pure: it is told what happened, and looks at no page, descriptor or clock.
 *
 * Theory of operation. The kernel tells nobody which of this memory is used while it is here: all there is to know is when a
 * page came back after it had left. The time for that is counted in evictions. A page that comes back after d of them would
 * have stayed, had there been room for d pages more: small d, hot page.
 *
 *   - Pages wait in queues, one a class. Class 0: new, or gone for long. A page that comes back goes up or down by one class
 *     towards the one its distance says (2 budgets or less: 1, one budget: 2, a half: 3, a quarter: 4).
 *   - Each class has a lifetime, class 0's being 1. The oldest page leaves, its age divided by its class's lifetime. With all
 *     lifetimes 1 that is FIFO, whatever the classes.
 *   - Lifetimes are learned. An eviction costs 1/d: what the page's room could have earned in hits. A class whose evictions cost more
 *     than those of the class below gets a longer lifetime than that one (up to four times), otherwise a shorter one, down to the
 *     same. A moving window of use (classes mean nothing, an old page is a dead one) so becomes FIFO; stable popularity does not.
 *   - Loops over more than fits are where FIFO never hits, and classes do not help, for all pages are alike. What does is to keep some of them
 *     for long, no matter which. So one of eight pages that come back is drawn into a class of its own, whose lifetime is learned
 *     against the average of all others. Where use is random this changes nothing: the mean time of a page here decides, not its spread.
 *
 * Every call takes constant time: seven queues are looked at, no pages. Memory: 2 bytes a page of the region that was ever here, and 1 to 5
 * bytes a page that is queued: 1 where neighbours follow each other, 3 at random in 4 GiB. It is private: losing it (a restart) loses
 * what was learned, and no page.
 * One thread an object.
 */
#ifndef FM_VICTIMS_H
#define FM_VICTIMS_H

#include <stdbool.h>
#include <stdint.h>

#define FM_VICTIM_CLASSES 6 /* 0 to 4 by distance, 5 by lot */

struct fm_victims;

/* Returns an object for pages 0..pages - 1, all unknown, that the caller frees; NULL: no memory. */
struct fm_victims *fm_victims_new(uint64_t pages);
void fm_victims_free(struct fm_victims *v);

/*
 * Say what time it is: now, evictions so far, never falls; of the region, or of all that share its budget. room: that budget,
 * pages. When another clock counts from now on, the classes of some pages will be wrong, and nothing else.
 */
void fm_victims_time(struct fm_victims *v, uint64_t now, uint64_t room);

/*
 * A page is here: it may leave some time. Nothing happens when it is queued already, or not below the bound. One that was
 * popped and did not leave (it could not be stored) waits anew, and as long as none leaves, behind all others. Returns 0, or -ENOMEM (it is not queued).
 */
int fm_victims_push(struct fm_victims *v, uint32_t page);

/* A page that was popped has been used since: as push, as one that left when it was popped and comes back now. */
int fm_victims_used(struct fm_victims *v, uint32_t page);

/* Take the page that shall leave next. Returns false when none is queued. */
bool fm_victims_pop(struct fm_victims *v, uint32_t *page);

/* A page that was popped has left. The clock is not changed by it. */
void fm_victims_left(struct fm_victims *v, uint32_t page);

/* Pages queued. */
uint64_t fm_victims_count(const struct fm_victims *v);

/* How old the next to leave is, by its class's lifetime, evictions; 0: none is queued. To compare regions of one clock. */
uint64_t fm_victims_age(const struct fm_victims *v);

/* Pages that came back within as many evictions as the budget has pages: these a better choice could have kept. */
uint64_t fm_victims_refaults(const struct fm_victims *v);

/* A class's lifetime, 1 or more. For tests and benches. */
double fm_victims_lifetime(const struct fm_victims *v, unsigned class);

#endif
