/*
 * The server that holds all copies comes back empty, and a new placement epoch is opened: pages that are here, clean, or in their grace, are the only ones
 * that are left. None may be dropped for what the store was given before.
 */
#include "protocol.h"

#define USED 256u

static void restart_server(void)
{
	pthread_mutex_lock(&mem.lock);
	memset(&mem.copy, 0, sizeof mem.copy);
	pthread_mutex_unlock(&mem.lock);
	atomic_fetch_add(&t.daemon->cluster.epoch_now, 1);
}

static unsigned count(enum fm_pstate state)
{
	unsigned n = 0;

	for (unsigned p = 0; p < USED; p++)
		n += fm_word_state(atomic_load(&t.map.words[p])) == state;
	return n;
}

/* A page is installed, and its thread woken, before its word says so; and what is fetched ahead comes after that. */
static void settle(void)
{
	while (count(FM_BUSY))
		nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

static void write_all(uint64_t what)
{
	for (unsigned p = 0; p < USED; p++)
		t.memory[p * WORDS] = t.memory[p * WORDS + WORDS - 1] = what + p;
	settle();
}

static unsigned right(uint64_t what)
{
	unsigned n = 0;

	for (unsigned p = 0; p < USED; p++) {
		/* One that is lost would end us by SIGBUS. */
		if (madvise(t.memory + p * WORDS, FM_PAGE_SIZE, MADV_POPULATE_READ) < 0)
			continue;
		n += t.memory[p * WORDS] == what + p && t.memory[p * WORDS + WORDS - 1] == what + p;
	}
	settle();
	return n;
}

/* Until nothing is here, ten seconds at most. */
static void evict_all(void)
{
	for (uint64_t until = fm_now_ns() + 10000000000u; fm_ld(&t.map.hdr->resident) && fm_now_ns() < until;) {
		fm_evict_drain(&t.evictor, &t.evict);
		if (!fm_evict_due(&t.evictor, &t.evict, FM_EVICT_BATCH) && !fm_evict_batch(&t.evictor, &t.evict, FM_EVICT_MOST))
			nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
	}
	is_u64(count(FM_REMOTE), USED, "all of it left");
}

int main(void)
{
	uint64_t features, left, puts;
	unsigned moved = 0;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("a server that comes back empty", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	if (!start(&fm_uffd_kernel, PAGES)) {
		ok(false, "started");
		exit(tap_done());
	}
	write_all(1000);
	evict_all();
	is_u64(right(1000), USED, "and came back");
	is_u64(count(FM_CLEAN), USED, "clean");
	restart_server();
	puts = mem.puts;
	evict_all();
	is_u64(mem.puts - puts, USED, "what is clean by an older epoch is written anew");
	is_u64(right(1000), USED, "and comes back");

	puts = mem.puts;
	evict_all();
	is_u64(mem.puts - puts, 0, "what is clean by this one is not");
	is_u64(right(1000), USED, "and comes back");
	restart_server();
	puts = mem.puts;
	do {
		left = 0;
	} while (!fm_evict_move(&t.evictor, &t.evict, &moved, &left));
	is_u64(left, 0, "a pass over the pages leaves none behind");
	is_u64(moved, 0, "none is looked for in the store");
	is_u64(mem.puts - puts, 0, "nor stored again under the generation that it has");
	is_u64(count(FM_DIRTY), USED, "all are dirty");
	evict_all();
	is_u64(mem.puts - puts, USED, "and are written when they leave");
	is_u64(right(1000), USED, "all come back");

	atomic_store(&t.map.hdr->grace_ms, 30);
	write_all(2000);
	for (unsigned i = 0; i < 1000 && count(FM_CLEAN) < USED; i++) {
		fm_evict_drain(&t.evictor, &t.evict);
		fm_evict_batch(&t.evictor, &t.evict, FM_EVICT_MOST);
	}
	is_u64(count(FM_CLEAN), USED, "written back, and in their grace");
	restart_server();
	evict_all();
	is_u64(right(2000), USED, "they come back");

	write_all(3000);
	for (unsigned i = 0; i < 1000 && count(FM_CLEAN) < USED; i++) {
		fm_evict_drain(&t.evictor, &t.evict);
		fm_evict_batch(&t.evictor, &t.evict, FM_EVICT_MOST);
	}
	is_u64(count(FM_CLEAN), USED, "once more");
	restart_server();
	for (unsigned pass = 0; pass < 2; pass++)
		do {
			left = 0;
		} while (!fm_evict_move(&t.evictor, &t.evict, &moved, &left));
	is_u64(left, 0, "pages in their grace do not keep an old epoch");
	evict_all();
	is_u64(right(3000), USED, "they come back");
	is_u64(mem.wrong, 0, "nothing was asked for that the store did not have");
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_stop(t.shard[i]);
	finish();
	return tap_done();
}
