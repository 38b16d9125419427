/* What mending makes of each page that a dead daemon owned: by its word, and by whether the memfd still has it. */
#include "protocol.h"

#define GEN (7ull << FM_GEN_SHIFT)

static const struct {
	const char *name;
	uint64_t word;
	bool here;
	enum fm_pstate to;
	uint64_t flags; /* of FM_F_ALL, afterwards */
	bool stays;     /* in the memfd */
} evictor[] = {
    {"a write-back", FM_WRITEBACK | GEN | FM_F_STORED, true, FM_DIRTY, FM_F_STORED, true},
    {"about to be punched, and here: a device may have written it", FM_DROPPING | GEN | FM_F_STORED, true, FM_DIRTY, FM_F_STORED, true},
    {"... with a waiter", FM_DROPPING | GEN | FM_F_STORED | FM_F_WAITER, true, FM_DIRTY, FM_F_STORED, true},
    {"... all zero", FM_DROPPING | GEN | FM_F_ZERO, true, FM_DIRTY, 0, true},
    {"... and discarded", FM_DROPPING | GEN | FM_F_STORED | FM_F_DISCARD, true, FM_EMPTY, FM_F_STORED, false},
    {"punched", FM_DROPPING | GEN | FM_F_STORED | FM_F_WAITER, false, FM_REMOTE, FM_F_STORED, false},
    {"punched, all zero", FM_DROPPING | GEN | FM_F_ZERO | FM_F_STORED, false, FM_EMPTY, FM_F_STORED, false},
    {"punched and discarded", FM_DROPPING | GEN | FM_F_STORED | FM_F_DISCARD, false, FM_EMPTY, FM_F_STORED, false},
    {"named, and not taken", FM_CLEAN | GEN | FM_F_STORED, true, FM_CLEAN, FM_F_STORED, true},
    {"named, and gone already", FM_REMOTE | GEN | FM_F_STORED, false, FM_REMOTE, FM_F_STORED, false},
};

#define BUSY(from) (FM_BUSY | (uint64_t)(from) << FM_OR_SHIFT | GEN)
static const struct {
	const char *name;
	uint64_t word;
	bool here;
	enum fm_pstate to;
	uint64_t flags;
} shard[] = {
    {"a page-in that did not come to it", BUSY(FM_REMOTE) | FM_F_STORED, false, FM_REMOTE, FM_F_STORED},
    {"a page-in that was made", BUSY(FM_REMOTE) | FM_F_STORED, true, FM_DIRTY, FM_F_STORED},
    {"a page-in that was discarded", BUSY(FM_REMOTE) | FM_F_STORED | FM_F_DISCARD, false, FM_EMPTY, FM_F_STORED},
    {"a first touch that was made", BUSY(FM_EMPTY), true, FM_DIRTY, 0},
    {"a first touch that did not come to it", BUSY(FM_EMPTY), false, FM_EMPTY, 0},
    {"an unprotect: it may have been written", BUSY(FM_CLEAN) | FM_F_STORED, true, FM_DIRTY, FM_F_STORED},
    {"... of a page of zeros", BUSY(FM_CLEAN) | FM_F_ZERO, true, FM_DIRTY, 0},
    {"here before, and punched from outside", BUSY(FM_DIRTY) | FM_F_STORED, false, FM_DIRTY, FM_F_STORED},
    {"clean before, and punched from outside", BUSY(FM_CLEAN) | FM_F_STORED, false, FM_DIRTY, FM_F_STORED},
    {"a poison", BUSY(FM_LOST) | FM_F_STORED, false, FM_LOST, FM_F_STORED},
    {"no state that it can have had", BUSY(FM_BUSY) | FM_F_STORED, false, FM_LOST, FM_F_STORED},
    {"named, and not taken", FM_EMPTY | GEN | FM_F_STORED, false, FM_EMPTY, FM_F_STORED},
};

static bool has(unsigned page)
{
	return lseek(t.memfd, (off_t)page * FM_PAGE_SIZE, SEEK_DATA) == (off_t)page * FM_PAGE_SIZE;
}

static void make(unsigned page, uint64_t word, bool here)
{
	if (here && pwrite(t.memfd, "here", 4, (off_t)page * FM_PAGE_SIZE) != 4)
		exit(1);
	atomic_store(&t.map.words[page], word);
}

static void check_word(const char *who, const char *name, unsigned page, enum fm_pstate to, uint64_t flags)
{
	uint64_t w = atomic_load(&t.map.words[page]);

	ok(fm_word_state(w) == to && (w & FM_F_ALL) == flags && fm_word_gen(w) == 7 && !(w & FM_OR_MASK), "%s: %s: %s, %#" PRIx64, who, name,
	   fm_pstate_name(fm_word_state(w)), w);
}

int main(void)
{
	const unsigned ne = sizeof evictor / sizeof *evictor, ns = sizeof shard / sizeof *shard;
	unsigned named = 0;

	t.memfd = memfd_create("far", MFD_CLOEXEC);
	if (t.memfd < 0 || ftruncate(t.memfd, PAGES * FM_PAGE_SIZE) < 0 || !make_state())
		exit(1);
	/* With a hole between the pages: SEEK_DATA finds the next one. */
	for (unsigned i = 0; i < ne; i++) {
		make(2 * i, evictor[i].word, evictor[i].here);
		atomic_store(&t.map.hdr->evict_inflight[i], 2 * i + 1);
	}
	for (unsigned i = 0; i < ns; i++) {
		make(600 + 2 * i, shard[i].word, shard[i].here);
		atomic_store(&t.map.shards[1].inflight[i], 601 + 2 * i);
	}
	fm_evict_recover(&t.map, t.memfd);
	fm_shard_recover(&t.map, t.memfd);
	for (unsigned i = 0; i < ne; i++) {
		check_word("evictor", evictor[i].name, 2 * i, evictor[i].to, evictor[i].flags);
		ok(has(2 * i) == evictor[i].stays, "evictor: %s: %s", evictor[i].name, evictor[i].stays ? "it stays" : "it is away");
	}
	for (unsigned i = 0; i < ns; i++) {
		bool stays = has(600 + 2 * i) == shard[i].here;

		check_word("shard", shard[i].name, 600 + 2 * i, shard[i].to, shard[i].flags);
		ok(stays, "shard: %s: nothing is punched", shard[i].name);
	}
	for (unsigned i = 0; i < FM_EVICT_BATCH; i++)
		named += fm_ld(&t.map.hdr->evict_inflight[i]) != 0;
	for (unsigned i = 0; i < FM_BATCH; i++)
		named += fm_ld(&t.map.shards[1].inflight[i]) != 0;
	is_u64(named, 0, "nobody is named any more");
	return tap_done();
}
