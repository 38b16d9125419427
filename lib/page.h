/*
 * A page's state word: one atomic 64-bit word a page says where the page is and who may change its mapping.
 *
 *   63      62            20 19     10 9     8    7      6       5..3    2..0
 *   | grace | generation 43 | epoch 10 | zero | disc | stored | waiter | origin | state |   (bit 10 upwards: epoch)
 *
 * Only the owner of a page (see enum fm_pstate) issues an ioctl or a punch that changes its mapping; every change of the
 * word is one compare-and-swap of the whole word (fm_page_cas). DESIGN.md section "A page's life" has the proof.
 */
#ifndef FM_PAGE_H
#define FM_PAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum fm_pstate {
	/* No local page, no valid store copy: reads as zeros. Nobody owns it. -> BUSY. */
	FM_EMPTY = 0,
	/* Local page, may differ from the store's copy; may still be write-protected. Nobody owns it. -> BUSY, WRITEBACK; the
	 * evictor may clear its stored flag. */
	FM_DIRTY = 1,
	/* Local page, write-protected; the store was given the same bytes, or it is all zero (FM_F_ZERO). -> BUSY, DROPPING; by an epoch that is not the
	 * newest its copy may be gone (a server came back empty): then the evictor does not drop it, but -> DIRTY, or WRITEBACK under the newest. With
	 * FM_F_GRACE it was written here and stored since, and a device that was told to before may still write it: it is compared before it goes. -> also
	 * DIRTY, WRITEBACK by the evictor. */
	FM_CLEAN = 2,
	/* No local page; the store's copy of this generation is the page. Nobody owns it. -> BUSY; its epoch as with CLEAN. */
	FM_REMOTE = 3,
	/* Unreadable on every replica; poisoned: access raises SIGBUS. Nobody owns it. -> EMPTY by discard. */
	FM_LOST = 4,
	/* Owned by the fault shard, between publishing BUSY and publishing the result; the origin field keeps where it came
	 * from. A crash here is rolled back by looking at the memfd. -> EMPTY, DIRTY, CLEAN, REMOTE, LOST. */
	FM_BUSY = 5,
	/* Owned by the evictor: local page, being write-protected, read and stored under the word's generation.
	 * -> DROPPING, or CLEAN with FM_F_GRACE, by the evictor; -> BUSY by the shard on a write fault (the write-back is cancelled). */
	FM_WRITEBACK = 6,
	/* Owned by the evictor: about to be punched; the store has acknowledged it, or it is clean, or all zero. A fault sets
	 * the waiter flag and is woken after the punch. -> REMOTE, EMPTY; DIRTY when the evictor died before the punch. */
	FM_DROPPING = 7,
};

#define FM_PS_MASK   0x7ull
#define FM_OR_SHIFT  3
#define FM_OR_MASK   (0x7ull << FM_OR_SHIFT)
#define FM_F_WAITER  (1ull << 6) /* a fault met DROPPING: wake the page after the punch */
#define FM_F_STORED  (1ull << 7) /* the store may hold a copy of some generation <= the word's: delete when discarded */
#define FM_F_DISCARD (1ull << 8) /* discarded while DROPPING or BUSY: ends EMPTY, not REMOTE */
#define FM_F_ZERO    (1ull << 9) /* CLEAN and DROPPING: the page's bytes are all zero, no store copy counts */
#define FM_F_GRACE   (1ull << 63) /* CLEAN: written back here; dropped only after the region's grace and a comparison (grace.h) */
#define FM_F_ALL     (FM_F_WAITER | FM_F_STORED | FM_F_DISCARD | FM_F_ZERO | FM_F_GRACE)
#define FM_EP_SHIFT  10
#define FM_EP_MASK   (0x3ffull << FM_EP_SHIFT)
#define FM_GEN_SHIFT 20
#define FM_GEN_MAX   ((1ull << 43) - 1)

typedef _Atomic uint64_t fm_word; /* the one typedef: an atomic cannot be spelled shortly otherwise */

static inline enum fm_pstate fm_word_state(uint64_t w)
{
	return (enum fm_pstate)(w & FM_PS_MASK);
}
static inline enum fm_pstate fm_word_origin(uint64_t w)
{
	return (enum fm_pstate)((w & FM_OR_MASK) >> FM_OR_SHIFT);
}
static inline uint64_t fm_word_gen(uint64_t w)
{
	return (w >> FM_GEN_SHIFT) & FM_GEN_MAX;
}
/* The same word in another state: origin and FM_F_GRACE cleared, flags kept but for those in drop, then those in add set. */
static inline uint64_t fm_word_to(uint64_t w, enum fm_pstate s, uint64_t drop, uint64_t add)
{
	return ((w & ~(FM_PS_MASK | FM_OR_MASK | FM_F_GRACE | drop)) | (uint64_t)s | add);
}
/* The epoch's tag, and the same word with another (bits 10 to 19). */
static inline uint32_t fm_word_epoch(uint64_t w)
{
	return (uint32_t)((w & FM_EP_MASK) >> FM_EP_SHIFT);
}
static inline uint64_t fm_word_at_epoch(uint64_t w, uint32_t tag)
{
	return (w & ~FM_EP_MASK) | ((uint64_t)tag << FM_EP_SHIFT);
}
/* BUSY with the given state as origin, flags kept but for FM_F_GRACE. */
static inline uint64_t fm_word_busy(uint64_t w, enum fm_pstate origin)
{
	return (w & ~(FM_PS_MASK | FM_OR_MASK | FM_F_GRACE)) | FM_BUSY | ((uint64_t)origin << FM_OR_SHIFT);
}
/* Is there a local page that counts against the budget? BUSY counts as its origin does. */
static inline bool fm_state_is_resident(enum fm_pstate s)
{
	return s == FM_DIRTY || s == FM_CLEAN || s == FM_WRITEBACK || s == FM_DROPPING;
}
static inline bool fm_word_is_resident(uint64_t w)
{
	enum fm_pstate s = fm_word_state(w);
	return fm_state_is_resident(s == FM_BUSY ? fm_word_origin(w) : s);
}

/*
 * Swap *w from old to new. Returns true when done; false when somebody changed it first (nothing was written). In debug
 * builds (FM_DEBUG) a transition that fm_page_check() refuses aborts. Any thread.
 */
bool fm_page_cas(fm_word *w, uint64_t old, uint64_t new_word);

/*
 * The checker of the invariants: may a word go from old to new? Returns NULL when it may, else a string saying which rule it
 * breaks. Pure; any thread.
 */
const char *fm_page_check(uint64_t old, uint64_t new_word);

/* The state's name, for messages and tests: "EMPTY" ... "DROPPING". Pure. */
const char *fm_pstate_name(enum fm_pstate s);

#endif
