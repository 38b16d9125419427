#include "page.h"

#include <stddef.h>

#include "tap.h"

/* A valid word: state, origin (of BUSY), flags, generation. */
static uint64_t word(enum fm_pstate s, enum fm_pstate origin, uint64_t flags, uint64_t gen)
{
	return (uint64_t)s | ((uint64_t)origin << FM_OR_SHIFT) | flags | (3ull << FM_EP_SHIFT) | (gen << FM_GEN_SHIFT);
}

#define W(s, flags, gen) word(FM_##s, FM_EMPTY, (flags), (gen))
#define BUSY(origin, flags, gen) word(FM_BUSY, FM_##origin, (flags), (gen))
#define ST FM_F_STORED
#define ZE FM_F_ZERO
#define WA FM_F_WAITER
#define DI FM_F_DISCARD
#define GR FM_F_GRACE

struct step {
	const char *name;
	uint64_t from, to;
	const char *why; /* NULL: allowed */
};

/* A page's life, each arrow of the table in DESIGN.md. */
static const struct step *allowed(size_t *n)
{
	static struct step t[64];
	size_t i = 0;

#define STEP(name, from, to) t[i++] = (struct step){name, from, to, NULL}
	STEP("fault on EMPTY", W(EMPTY, 0, 0), BUSY(EMPTY, 0, 0));
	STEP("fault on EMPTY that was stored once", W(EMPTY, ST, 7), BUSY(EMPTY, ST, 7));
	STEP("EMPTY: its old key was deleted", W(EMPTY, ST, 7), W(EMPTY, 0, 7));
	STEP("write fault on REMOTE", W(REMOTE, ST, 7), BUSY(REMOTE, ST, 7));
	STEP("write fault on CLEAN", W(CLEAN, ST, 7), BUSY(CLEAN, ST, 7));
	STEP("write fault on CLEAN zero", W(CLEAN, ZE, 0), BUSY(CLEAN, ZE, 0));
	STEP("stale fault on DIRTY", W(DIRTY, ST, 7), BUSY(DIRTY, ST, 7));
	STEP("discard of LOST", W(LOST, ST, 7), BUSY(LOST, ST, 7));
	STEP("BUSY: the fill ends dirty", BUSY(EMPTY, 0, 0), W(DIRTY, 0, 0));
	STEP("BUSY: a read fault of EMPTY ends clean and zero", BUSY(EMPTY, 0, 0), W(CLEAN, ZE, 0));
	STEP("BUSY: a page-in ends clean", BUSY(REMOTE, ST, 7), W(CLEAN, ST, 7));
	STEP("BUSY: a page-in for a write ends dirty", BUSY(REMOTE, ST, 7), W(DIRTY, ST, 7));
	STEP("BUSY: the page-in failed for now", BUSY(REMOTE, ST, 7), W(REMOTE, ST, 7));
	STEP("BUSY: no replica has it", BUSY(REMOTE, ST, 7), W(LOST, ST, 7));
	STEP("BUSY: discarded", BUSY(DIRTY, ST, 7), W(EMPTY, ST, 7));
	STEP("BUSY: discarded and deleted", BUSY(LOST, ST, 7), W(EMPTY, 0, 7));
	STEP("BUSY: origin becomes dirty before the unprotect", BUSY(CLEAN, ST, 7), BUSY(DIRTY, ST, 7));
	STEP("write-back begins", W(DIRTY, ST, 7), W(WRITEBACK, ST, 8));
	STEP("write-back begins, never stored", W(DIRTY, 0, 0), W(WRITEBACK, 0, 1));
	STEP("write-back with the stored flag", W(DIRTY, 0, 0), W(WRITEBACK, ST, 1));
	STEP("write-back acknowledged", W(WRITEBACK, ST, 8), W(DROPPING, ST, 8));
	STEP("write-back found a zero page", W(WRITEBACK, ST, 8), W(DROPPING, ZE | ST, 8));
	STEP("write-back cancelled by a write fault", W(WRITEBACK, ST, 8), BUSY(DIRTY, ST, 8));
	STEP("write-back given up", W(WRITEBACK, ST, 8), W(DIRTY, ST, 8));
	STEP("clean drop", W(CLEAN, ST, 7), W(DROPPING, ST, 7));
	STEP("zero drop", W(CLEAN, ZE, 0), W(DROPPING, ZE, 0));
	STEP("a clean page is written back by another epoch", W(CLEAN, ST, 7), fm_word_at_epoch(W(WRITEBACK, ST, 8), 5));
	STEP("a clean page's copy is given up", W(CLEAN, ST, 7), W(DIRTY, ST, 7));
	STEP("a fault meets DROPPING", W(DROPPING, ST, 8), W(DROPPING, ST | WA, 8));
	STEP("a discard meets DROPPING", W(DROPPING, ST, 8), W(DROPPING, ST | DI, 8));
	STEP("punched", W(DROPPING, ST, 8), W(REMOTE, ST, 8));
	STEP("punched, waiter woken", W(DROPPING, ST | WA, 8), W(REMOTE, ST, 8));
	STEP("punched, zero", W(DROPPING, ZE, 0), W(EMPTY, 0, 0));
	STEP("punched, zero, old copy to delete", W(DROPPING, ZE | ST, 8), W(EMPTY, ST, 8));
	STEP("punched, discarded", W(DROPPING, DI | ST, 8), W(EMPTY, ST, 8));
	STEP("a discard meets BUSY", BUSY(REMOTE, ST, 7), BUSY(REMOTE, ST | DI, 7));
	STEP("BUSY: discarded on the way", BUSY(REMOTE, ST | DI, 7), W(EMPTY, ST, 7));
	STEP("DIRTY: its stale copy was deleted", W(DIRTY, ST, 7), W(DIRTY, 0, 7));
	STEP("CLEAN zero: its old copy was deleted", W(CLEAN, ZE | ST, 7), W(CLEAN, ZE, 7));
	STEP("REMOTE: its copy moved to another epoch", W(REMOTE, ST, 7), fm_word_at_epoch(W(REMOTE, ST, 7), 5));
	STEP("write-back acknowledged, the grace begins", W(WRITEBACK, ST, 8), W(CLEAN, ST | GR, 8));
	STEP("... of a zero page", W(WRITEBACK, 0, 8), W(CLEAN, ZE | GR, 8));
	STEP("a write in the grace", W(CLEAN, ST | GR, 8), BUSY(CLEAN, ST, 8));
	STEP("the grace is over", W(CLEAN, ST | GR, 8), W(DROPPING, ST, 8));
	STEP("... and a device wrote it meanwhile", W(CLEAN, ST | GR, 8), W(DIRTY, ST, 8));
	STEP("... and the evictor knows no hash", W(CLEAN, ST | GR, 8), W(WRITEBACK, ST, 9));
	STEP("the evictor died before the punch", W(DROPPING, ST | WA, 8), W(DIRTY, ST, 8));
	STEP("write-back by another epoch", W(DIRTY, ST, 7), fm_word_at_epoch(W(WRITEBACK, ST, 8), 5));
#undef STEP
	*n = i;
	return t;
}

/* One breach of every rule of fm_page_check(), from a word that is right. */
static const struct step *forbidden(size_t *n)
{
	static struct step t[64];
	size_t i = 0;

#define STEP(name, from, to, why) t[i++] = (struct step){name, from, to, why}
	STEP("generation goes back", W(DIRTY, ST, 7), BUSY(DIRTY, ST, 6), "a generation went back");
	STEP("write-back keeps the generation", W(DIRTY, ST, 7), W(WRITEBACK, ST, 7),
	     "a write-back without a new generation");
	STEP("write-back skips a generation", W(DIRTY, ST, 7), W(WRITEBACK, ST, 9),
	     "a write-back without a new generation");
	STEP("fault takes a generation", W(DIRTY, ST, 7), BUSY(DIRTY, ST, 8),
	     "a generation changed outside a write-back");
	STEP("drop takes a generation", W(WRITEBACK, ST, 8), W(DROPPING, ST, 9),
	     "a generation changed outside a write-back");
	STEP("a clean page's copy is moved", W(CLEAN, ST, 7), fm_word_at_epoch(W(CLEAN, ST, 7), 5), "an epoch changed outside a write-back or a move");
	STEP("a fault changes the epoch", W(REMOTE, ST, 7), fm_word_at_epoch(BUSY(REMOTE, ST, 7), 5),
	     "an epoch changed outside a write-back or a move");
	STEP("DIRTY changes its epoch", W(DIRTY, ST, 7), fm_word_at_epoch(W(DIRTY, ST, 7), 5),
	     "an epoch changed outside a write-back or a move");
	STEP("CLEAN becomes zero by itself", W(CLEAN, ST, 7), W(CLEAN, ST | ZE, 7),
	     "a state nobody owns changed more than its copy");
	STEP("BUSY with a wrong origin", W(REMOTE, ST, 7), BUSY(EMPTY, ST, 7), "BUSY forgot where it came from");
	STEP("BUSY without its origin", W(DIRTY, ST, 7), BUSY(CLEAN, ST, 7), "BUSY forgot where it came from");
	STEP("cancelled write-back counts as clean", W(WRITEBACK, ST, 8), BUSY(CLEAN, ST, 8),
	     "a cancelled write-back must count as dirty");
	STEP("cancelled write-back keeps its own state", W(WRITEBACK, ST, 8), BUSY(WRITEBACK, ST, 8),
	     "a cancelled write-back must count as dirty");
	STEP("origin left behind", BUSY(REMOTE, ST, 7), word(FM_CLEAN, FM_REMOTE, ST, 7), "an origin outside BUSY");
	STEP("REMOTE that was never stored", BUSY(REMOTE, ST, 7), W(REMOTE, 0, 7), "REMOTE without a store copy");
	STEP("punched without a copy", W(DROPPING, 0, 8), W(REMOTE, 0, 8), "REMOTE without a store copy");
	STEP("zero page to REMOTE", W(DROPPING, ZE | ST, 8), W(REMOTE, ST, 8),
	     "a zero or discarded page became REMOTE");
	STEP("discarded page to REMOTE", W(DROPPING, DI | ST, 8), W(REMOTE, ST, 8),
	     "a zero or discarded page became REMOTE");
	STEP("stored page to EMPTY", W(DROPPING, ST, 8), W(EMPTY, ST, 8), "a page with contents became EMPTY");
	STEP("CLEAN of nothing", BUSY(EMPTY, 0, 0), W(CLEAN, 0, 0), "CLEAN without a store copy");
	STEP("waiter outlives the drop", W(DROPPING, ST | WA, 8), W(REMOTE, ST | WA, 8),
	     "a waiter flag outside DROPPING");
	STEP("waiter on BUSY", W(REMOTE, ST, 7), BUSY(REMOTE, ST | WA, 7), "a waiter flag outside DROPPING");
	STEP("discard outlives the drop", W(DROPPING, ST | DI, 8), W(EMPTY, ST | DI, 8),
	     "a discard flag outside DROPPING");
	STEP("clean zero page becomes dirty by itself", W(CLEAN, ZE, 7), W(DIRTY, 0, 7),
	     "a page of zeros that was never written became dirty without a fault");
	STEP("clean page is written back", W(CLEAN, ST, 7), W(WRITEBACK, ST, 8), "a page that was never written is written back");
	STEP("clean zero page is written back by another epoch", W(CLEAN, ZE, 7), fm_word_at_epoch(W(WRITEBACK, ST, 8), 5),
	     "a page that was never written is written back");
	STEP("written page becomes clean at once", W(WRITEBACK, ST, 8), W(CLEAN, ST, 8),
	     "a page that was written became clean without a grace");
	STEP("a page-in with a grace", BUSY(REMOTE, ST, 7), W(CLEAN, ST | GR, 7), "a grace of a page that was not written back");
	STEP("the grace outlives the drop", W(CLEAN, ST | GR, 8), W(DROPPING, ST | GR, 8),
	     "a grace of a page that was not written back");
	STEP("a grace begins by itself", W(CLEAN, ST, 8), W(CLEAN, ST | GR, 8), "a state nobody owns changed more than its copy");
	STEP("zero flag on DIRTY", BUSY(CLEAN, ZE, 0), W(DIRTY, ZE, 0), "a zero flag on a page that may change");
	STEP("zero flag on EMPTY", W(DROPPING, ZE, 0), W(EMPTY, ZE, 0), "a zero flag on a page that may change");
	STEP("zero flag in WRITEBACK", W(DIRTY, 0, 0), W(WRITEBACK, ZE, 1), "a zero flag on a page that may change");
#undef STEP
	*n = i;
	return t;
}

static bool may_follow[8][8];

static void run(const struct step *t, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		is_str(fm_page_check(t[i].from, t[i].to), t[i].why, "%s: %s -> %s is %s", t[i].name,
		       fm_pstate_name(fm_word_state(t[i].from)), fm_pstate_name(fm_word_state(t[i].to)),
		       t[i].why ? "refused" : "allowed");
		if (!t[i].why)
			may_follow[fm_word_state(t[i].from)][fm_word_state(t[i].to)] = true;
	}
}

/* Every pair of states without an arrow is refused, whatever the flags: only the owner moves a page on. */
static void test_no_other_arrow(void)
{
	for (unsigned from = 0; from < 8; from++) {
		for (unsigned to = 0; to < 8; to++) {
			uint64_t gen = to == FM_WRITEBACK ? 8 : 7;
			uint64_t a = word((enum fm_pstate)from, FM_EMPTY, ST, 7);
			uint64_t b = word((enum fm_pstate)to, to == FM_BUSY ? (enum fm_pstate)from : FM_EMPTY, ST, gen);

			if (!may_follow[from][to])
				is_str(fm_page_check(a, b), "no such transition", "%s -> %s has no arrow",
				       fm_pstate_name((enum fm_pstate)from), fm_pstate_name((enum fm_pstate)to));
		}
	}
}

static void test_words(void)
{
	uint64_t w = word(FM_REMOTE, FM_EMPTY, ST, FM_GEN_MAX), b;
	static const bool resident[] = {
	    [FM_DIRTY] = true, [FM_CLEAN] = true, [FM_WRITEBACK] = true, [FM_DROPPING] = true};
	fm_word shared = w;

	is_u64(fm_word_state(w), FM_REMOTE, "state of a word");
	is_u64(fm_word_gen(w), FM_GEN_MAX, "the largest generation fits");
	is_u64((w & FM_EP_MASK) >> FM_EP_SHIFT, 3, "and leaves the epoch alone");
	b = fm_word_busy(w, FM_REMOTE);
	is_u64(fm_word_state(b), FM_BUSY, "BUSY");
	is_u64(fm_word_origin(b), FM_REMOTE, "keeps its origin");
	ok(fm_word_gen(b) == FM_GEN_MAX && (b & FM_F_ALL) == ST, "and generation and flags");
	b = fm_word_to(b, FM_CLEAN, ST, ZE);
	ok(fm_word_state(b) == FM_CLEAN && (b & FM_F_ALL) == ZE && fm_word_origin(b) == FM_EMPTY,
	   "fm_word_to drops and adds flags and clears the origin");
	for (unsigned s = 0; s < 8; s++) {
		bool want = s != FM_BUSY && s < sizeof resident && resident[s];

		if (s != FM_BUSY) {
			is_u64(fm_word_is_resident(word((enum fm_pstate)s, FM_EMPTY, 0, 0)), want, "%s is %sresident",
			       fm_pstate_name((enum fm_pstate)s), want ? "" : "not ");
			is_u64(fm_word_is_resident(word(FM_BUSY, (enum fm_pstate)s, 0, 0)), want,
			       "BUSY from %s counts as it does", fm_pstate_name((enum fm_pstate)s));
		}
	}
	ok(!fm_page_cas(&shared, w ^ FM_F_STORED, fm_word_busy(w ^ FM_F_STORED, FM_REMOTE)), "a swap from an old word fails");
	ok(atomic_load(&shared) == w, "and writes nothing");
	ok(fm_page_cas(&shared, w, fm_word_busy(w, FM_REMOTE)), "a swap from the current word is done");
	ok(fm_word_state(atomic_load(&shared)) == FM_BUSY, "and seen");
}

int main(void)
{
	const struct step *t;
	size_t n;

	t = allowed(&n);
	run(t, n);
	t = forbidden(&n);
	run(t, n);
	test_no_other_arrow();
	test_words();
	return tap_done();
}
