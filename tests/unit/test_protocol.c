/*
 * The page protocol, whole and in one process, so that TSan and ASan see both of its sides: see protocol.h for who works on what.
 * Debug builds (the sanitizers') check each change of a page's word, too.
 *
 *   test_protocol [SECONDS [SEED]]
 */
#include "protocol.h"
#include "stats.h"

/* --- at the end */

/* The words, the counters, the memfd and the store tell the same story. */
static void check_books(const char *name)
{
	uint64_t resident = fm_ld(&t.map.hdr->resident), remote = fm_ld(&t.map.hdr->remote), total = fm_ld(&t.daemon->resident);
	struct fm_count words = {0};
	uint64_t owned = 0, elsewhere = 0, copies = 0, orphans = 0;

	for (unsigned p = 0; p < PAGES; p++) {
		uint64_t w = atomic_load(&t.map.words[p]);
		enum fm_pstate s = fm_word_state(w);
		bool here = lseek(t.memfd, (off_t)p * FM_PAGE_SIZE, SEEK_DATA) == (off_t)p * FM_PAGE_SIZE;

		owned += s == FM_BUSY || s == FM_WRITEBACK || s == FM_DROPPING;
		elsewhere += here != fm_word_is_resident(w);
		copies += s == FM_REMOTE && mem.copy[p].gen != fm_word_gen(w);
		orphans += mem.copy[p].gen && !(w & FM_F_STORED);
	}
	is_u64(owned, 0, "%s: no page is owned when nobody works", name);
	is_u64(elsewhere, 0, "%s: what is resident is in the memfd, nothing else is", name);
	is_u64(copies, 0, "%s: what is remote is in the store, of that generation", name);
	is_u64(orphans, 0, "%s: the store holds nothing that no word tells of", name);
	is_u64(total, resident, "%s: one region: its resident pages are the host's", name);
	is_u64(fm_count_words(&t.map, 0, PAGES, &words), 0, "%s: the words are counted", name);
	is_u64(words.resident, resident, "%s: ... as many resident ones as the counter says", name);
	is_u64(words.remote, remote, "%s: ... and remote ones", name);
	for (unsigned i = 0; i < SHARDS; i++)
		for (unsigned k = 0; k < FM_BATCH; k++)
			owned += fm_ld(&t.map.shards[i].inflight[k]);
	for (unsigned k = 0; k < FM_EVICT_BATCH; k++)
		owned += fm_ld(&t.map.hdr->evict_inflight[k]);
	is_u64(owned, 0, "%s: nothing in flight", name);
}

static void run(const char *name, const struct trouble *what, unsigned seconds, uint64_t seed)
{
	struct timespec d = {.tv_sec = seconds};
	struct fm_stats sum;
	unsigned news = 0, used = 0;

	printf("# %s: seed %" PRIu64 "\n", name, seed);
	begin(name, what, seed);
	nanosleep(&d, NULL);
	halt_clients();
	madvise(t.memory + OWN_FIRST * WORDS, (OWN_END - OWN_FIRST) * FM_PAGE_SIZE, MADV_REMOVE);
	/* Pages that were here are looked at again after a grace. */
	for (unsigned i = 0; i < SHARDS; i++)
		for (unsigned ms = 0; ms < 20000 && (atomic_load(&t.map.shards[i].reading) || atomic_load(&t.map.shards[i].discarding)); ms++)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	halt_evictor();
	for (unsigned i = 0; i < SHARDS; i++) {
		news |= fm_shard_attention(t.shard[i]);
		fm_shard_stop(t.shard[i]);
	}
	/* As a daemon does that dies between counting a slot and filling it. */
	atomic_fetch_add(&t.map.shards[0].discarding, 1);
	fm_shard_recover(&t.map, t.memfd);
	for (unsigned i = 0; i < FM_DISCARDS; i++)
		used += fm_ld(&t.map.shards[0].discard[i].end) != 0;
	is_u64(atomic_load(&t.map.shards[0].discarding), used, "%s: slots of discards, counted anew", name);
	is_u64(atomic_load(&t.wrong), 0, "%s: wrong words in %lu operations", name, atomic_load(&t.ops));
	is_u64(mem.wrong, 0, "%s: wrong generations in %" PRIu64 " puts, %" PRIu64 " gets, %" PRIu64 " deletes", name, mem.puts,
	       mem.gets, mem.deletes);
	is_u64(news, 0, "%s: no page lost, no ioctl refused", name);
	ok(mem.puts && mem.gets && mem.deletes && fm_ld(&t.map.hdr->evict.evictions) && atomic_load(&t.removed),
	   "%s: pages went out, came back and were discarded", name);
	ok(fm_ld(&t.map.hdr->evict.evictions_clean) && fm_ld(&t.map.hdr->evict.evictions_zero), "%s: ... clean and zero ones, too", name);
	fm_stats_sum(t.map.hdr, t.map.shards, SHARDS, false, &sum);
	ok(sum.prefetched + sum.zeroed_ahead && sum.prefetch_hits && sum.prefetched < sum.faults_store && sum.zeroed_ahead < sum.faults_zero,
	   "%s: %" PRIu64 " pages came ahead of their faults, as did %" PRIu64 " zero ones; %" PRIu64 " hits, %" PRIu64 " wasted", name,
	   sum.prefetched, sum.zeroed_ahead, sum.prefetch_hits, sum.prefetch_wasted);
	check_books(name);

	/* What is left to delete gets deleted, however often it fails; after a failure it rests for a moment. */
	for (unsigned i = 0; i == 0 || (i < 30000 && fm_queue_count(t.evict.deletes)); i++) {
		fm_evict_drain(&t.evictor, &t.evict);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	is_u64(fm_queue_count(t.evict.deletes), 0, "%s: all deletes done in the end", name);
	news = 0;
	fm_evict_sweep(&t.evictor, &t.evict);
	for (unsigned p = 0; p < PAGES; p++)
		news += fm_word_state(atomic_load(&t.map.words[p])) == FM_EMPTY && mem.copy[p].gen;
	for (unsigned p = OWN_FIRST; p < OWN_END; p++)
		news += fm_word_state(atomic_load(&t.map.words[p])) != FM_EMPTY;
	is_u64(fm_queue_count(t.evict.deletes) + news, 0, "%s: discarded pages are empty; an empty page takes no room in the store", name);

	finish();
}

int main(int argc, char **argv)
{
	static const struct trouble none = {0}, bad_store = {.eager = true, .put_full = 50, .get_down = 50, .delete_down = 200},
				    bad_kernel_too = {.put_full = 20, .get_down = 20, .delete_down = 50, .eagain = 100, .partial = 300, .slow_read = 100},
				    with_grace = {.eager = true, .put_full = 20, .get_down = 20, .delete_down = 50, .eagain = 100, .partial = 300, .slow_read = 100, .grace_ms = 3};
	unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 2;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() % 1000, features;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED) {
		tap_skip("the page protocol", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	run("plain", &none, seconds, seed);
	run("bad store", &bad_store, seconds, seed + 1);
	run("bad store and kernel", &bad_kernel_too, seconds, seed + 2);
	run("grace", &with_grace, seconds, seed + 3);
	return tap_done();
}
