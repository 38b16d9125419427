#include "page.h"

#include <assert.h>
#include <stddef.h>
#ifdef FM_DEBUG
#include <stdio.h>
#include <stdlib.h>
#endif

static const char *const names[] = {
    [FM_EMPTY] = "EMPTY", [FM_DIRTY] = "DIRTY", [FM_CLEAN] = "CLEAN",         [FM_REMOTE] = "REMOTE",
    [FM_LOST] = "LOST",   [FM_BUSY] = "BUSY",   [FM_WRITEBACK] = "WRITEBACK", [FM_DROPPING] = "DROPPING",
};
static_assert(sizeof names / sizeof names[0] == FM_DROPPING + 1, "a name for each state");

#define TO(s) (1u << (s))
/* Which state may follow which, flags aside. A state may follow itself: a change of flags. */
static const unsigned next[] = {
    [FM_EMPTY] = TO(FM_EMPTY) | TO(FM_BUSY),
    [FM_DIRTY] = TO(FM_DIRTY) | TO(FM_BUSY) | TO(FM_WRITEBACK),
    [FM_CLEAN] = TO(FM_CLEAN) | TO(FM_BUSY) | TO(FM_DROPPING) | TO(FM_DIRTY) | TO(FM_WRITEBACK),
    [FM_REMOTE] = TO(FM_REMOTE) | TO(FM_BUSY),
    [FM_LOST] = TO(FM_BUSY),
    [FM_BUSY] = TO(FM_EMPTY) | TO(FM_DIRTY) | TO(FM_CLEAN) | TO(FM_REMOTE) | TO(FM_LOST) | TO(FM_BUSY),
    [FM_WRITEBACK] = TO(FM_DROPPING) | TO(FM_CLEAN) | TO(FM_BUSY) | TO(FM_DIRTY),
    [FM_DROPPING] = TO(FM_DROPPING) | TO(FM_REMOTE) | TO(FM_EMPTY) | TO(FM_DIRTY),
};
static_assert(sizeof next / sizeof next[0] == FM_DROPPING + 1, "a row for each state");

const char *fm_pstate_name(enum fm_pstate s)
{
	return names[s & 7];
}

const char *fm_page_check(uint64_t old, uint64_t nw)
{
	enum fm_pstate from = fm_word_state(old), to = fm_word_state(nw);

	if (!(next[from] & TO(to)))
		return "no such transition";
	/* By an older epoch its copy may have gone with a server: then it is written back anew. */
	if (from == FM_CLEAN && to == FM_WRITEBACK && !(old & FM_F_GRACE) && (fm_word_epoch(old) == fm_word_epoch(nw) || (old & FM_F_ZERO)))
		return "a page that was never written is written back";
	if (from == FM_CLEAN && to == FM_DIRTY && (old & FM_F_ZERO) && !(old & FM_F_GRACE))
		return "a page of zeros that was never written became dirty without a fault";
	if (from == FM_WRITEBACK && to == FM_CLEAN && !(nw & FM_F_GRACE))
		return "a page that was written became clean without a grace";
	if ((nw & FM_F_GRACE) && (to != FM_CLEAN || (from != FM_CLEAN && from != FM_WRITEBACK)))
		return "a grace of a page that was not written back";
	if (fm_word_gen(nw) < fm_word_gen(old))
		return "a generation went back";
	if (to == FM_WRITEBACK && fm_word_gen(nw) != fm_word_gen(old) + 1)
		return "a write-back without a new generation";
	if (to != FM_WRITEBACK && fm_word_gen(nw) != fm_word_gen(old))
		return "a generation changed outside a write-back";
	if (fm_word_epoch(old) != fm_word_epoch(nw) && to != FM_WRITEBACK && !(from == to && to == FM_REMOTE))
		return "an epoch changed outside a write-back or a move";
	if (from == to && from != FM_BUSY && from != FM_DROPPING && ((old ^ nw) & ~(FM_F_STORED | FM_EP_MASK)))
		return "a state nobody owns changed more than its copy";
	if (to == FM_BUSY && from != FM_BUSY && from != FM_WRITEBACK && fm_word_origin(nw) != from)
		return "BUSY forgot where it came from";
	if (from == FM_WRITEBACK && to == FM_BUSY && fm_word_origin(nw) != FM_DIRTY)
		return "a cancelled write-back must count as dirty";
	if (to != FM_BUSY && (nw & FM_OR_MASK))
		return "an origin outside BUSY";
	if (to == FM_REMOTE && !(nw & FM_F_STORED))
		return "REMOTE without a store copy";
	if (to == FM_REMOTE && from == FM_DROPPING && (old & (FM_F_ZERO | FM_F_DISCARD)))
		return "a zero or discarded page became REMOTE";
	if (to == FM_EMPTY && from == FM_DROPPING && !(old & (FM_F_ZERO | FM_F_DISCARD)))
		return "a page with contents became EMPTY";
	if (to == FM_CLEAN && !(nw & (FM_F_STORED | FM_F_ZERO)))
		return "CLEAN without a store copy";
	if ((nw & FM_F_WAITER) && to != FM_DROPPING)
		return "a waiter flag outside DROPPING";
	if ((nw & FM_F_DISCARD) && to != FM_DROPPING && to != FM_BUSY)
		return "a discard flag outside DROPPING";
	if ((nw & FM_F_ZERO) && to != FM_CLEAN && to != FM_DROPPING && to != FM_BUSY)
		return "a zero flag on a page that may change";
	return NULL;
}

bool fm_page_cas(fm_word *w, uint64_t old, uint64_t nw)
{
#ifdef FM_DEBUG
	const char *why = fm_page_check(old, nw);
	if (why) {
		fprintf(stderr, "fm: broken invariant: %s: %s %#llx -> %s %#llx\n", why, names[old & 7],
			(unsigned long long)old, names[nw & 7], (unsigned long long)nw);
		abort();
	}
#endif
	return atomic_compare_exchange_strong(w, &old, nw);
}
