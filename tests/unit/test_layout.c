/*
 * The layout of everything shared: INTERFACES.md promises these numbers to other programs, so the compiler checks them here, and
 * the test that INTERFACES.md says the same (run in the top folder of the source).
 */
#include <assert.h>
#include <stdlib.h>

#include "ctl.h"
#include "page.h"
#include "shm.h"
#include "tap.h"

/* F(struct, field, offset, bytes) for each field, S(struct, bytes) behind them. */
#define LAYOUT(F, S) \
	F(fm_region_hdr, magic, 0, 8) \
	F(fm_region_hdr, version, 8, 4) \
	F(fm_region_hdr, nshards, 12, 4) \
	F(fm_region_hdr, id, 16, 8) \
	F(fm_region_hdr, pages, 24, 8) \
	F(fm_region_hdr, shards_offset, 32, 8) \
	F(fm_region_hdr, words_offset, 40, 8) \
	F(fm_region_hdr, memfd_offset, 48, 8) \
	F(fm_region_hdr, memfd_dev, 56, 8) \
	F(fm_region_hdr, memfd_ino, 64, 8) \
	F(fm_region_hdr, client_memfd, 72, 4) \
	F(fm_region_hdr, kind, 76, 4) \
	F(fm_region_hdr, pid, 80, 4) \
	F(fm_region_hdr, uid, 84, 4) \
	F(fm_region_hdr, pid_start, 88, 8) \
	F(fm_region_hdr, created_ns, 96, 8) \
	F(fm_region_hdr, name, 104, 64) \
	F(fm_region_hdr, vm_id, 168, 64) \
	F(fm_region_hdr, limit_pages, 232, 8) \
	F(fm_region_hdr, grace_ms, 240, 8) \
	F(fm_region_hdr, flags, 248, 8) \
	F(fm_region_hdr, resident, 256, 8) \
	F(fm_region_hdr, remote, 264, 8) \
	F(fm_region_hdr, evict, 320, 64) \
	F(fm_region_hdr, evict_inflight, 384, 512) \
	F(fm_region_hdr, cooling, 896, 8) \
	F(fm_region_hdr, sum, 904, 8) \
	F(fm_region_hdr, baseline, 960, 2416) \
	S(fm_region_hdr, 3392) \
	F(fm_evict_stats, evictions, 0, 8) \
	F(fm_evict_stats, evictions_clean, 8, 8) \
	F(fm_evict_stats, evictions_zero, 16, 8) \
	F(fm_evict_stats, cancelled, 24, 8) \
	F(fm_evict_stats, store_puts, 32, 8) \
	F(fm_evict_stats, store_deletes, 40, 8) \
	F(fm_evict_stats, store_errors, 48, 8) \
	F(fm_evict_stats, late_writes, 56, 8) \
	S(fm_evict_stats, 64) \
	F(fm_baseline, clear_count, 0, 8) \
	F(fm_baseline, faults, 8, 8) \
	F(fm_baseline, faults_zero, 16, 8) \
	F(fm_baseline, faults_store, 24, 8) \
	F(fm_baseline, faults_wp, 32, 8) \
	F(fm_baseline, faults_stale, 40, 8) \
	F(fm_baseline, held, 48, 8) \
	F(fm_baseline, store_gets, 56, 8) \
	F(fm_baseline, shard_store_errors, 64, 8) \
	F(fm_baseline, pages_lost, 72, 8) \
	F(fm_baseline, discarded, 80, 8) \
	F(fm_baseline, evictions, 88, 8) \
	F(fm_baseline, evictions_clean, 96, 8) \
	F(fm_baseline, evictions_zero, 104, 8) \
	F(fm_baseline, cancelled, 112, 8) \
	F(fm_baseline, store_puts, 120, 8) \
	F(fm_baseline, store_deletes, 128, 8) \
	F(fm_baseline, evict_store_errors, 136, 8) \
	F(fm_baseline, latency, 144, 2240) \
	F(fm_baseline, prefetched, 2384, 8) \
	F(fm_baseline, zeroed_ahead, 2392, 8) \
	F(fm_baseline, prefetch_hits, 2400, 8) \
	F(fm_baseline, prefetch_wasted, 2408, 8) \
	S(fm_baseline, 2416) \
	F(fm_shard_shm, first_page, 0, 8) \
	F(fm_shard_shm, pages, 8, 8) \
	F(fm_shard_shm, hva, 16, 8) \
	F(fm_shard_shm, client_uffd, 24, 4) \
	F(fm_shard_shm, reading, 64, 4) \
	F(fm_shard_shm, inflight, 68, 256) \
	F(fm_shard_shm, discarding, 384, 8) \
	F(fm_shard_shm, discard, 392, 2560) \
	F(fm_shard_shm, ring_head, 3008, 4) \
	F(fm_shard_shm, ring_lost, 3012, 4) \
	F(fm_shard_shm, ring_tail, 3072, 4) \
	F(fm_shard_shm, ring, 3136, 4096) \
	F(fm_shard_shm, stats, 7232, 2368) \
	F(fm_shard_shm, events, 9600, 2048) \
	S(fm_shard_shm, 11648) \
	F(fm_discard_shm, first, 0, 8) \
	F(fm_discard_shm, at, 8, 8) \
	F(fm_discard_shm, end, 16, 8) \
	F(fm_discard_shm, unmapped, 24, 8) \
	F(fm_discard_shm, until_ns, 32, 8) \
	S(fm_discard_shm, 40) \
	F(fm_shard_stats, faults, 0, 8) \
	F(fm_shard_stats, faults_zero, 8, 8) \
	F(fm_shard_stats, faults_store, 16, 8) \
	F(fm_shard_stats, faults_wp, 24, 8) \
	F(fm_shard_stats, faults_stale, 32, 8) \
	F(fm_shard_stats, held, 40, 8) \
	F(fm_shard_stats, store_gets, 48, 8) \
	F(fm_shard_stats, store_errors, 56, 8) \
	F(fm_shard_stats, pages_lost, 64, 8) \
	F(fm_shard_stats, discarded, 72, 8) \
	F(fm_shard_stats, latency_max_ns, 80, 8) \
	F(fm_shard_stats, clear_seen, 88, 8) \
	F(fm_shard_stats, latency, 96, 2240) \
	F(fm_shard_stats, prefetched, 2336, 8) \
	F(fm_shard_stats, zeroed_ahead, 2344, 8) \
	F(fm_shard_stats, prefetch_hits, 2352, 8) \
	F(fm_shard_stats, prefetch_wasted, 2360, 8) \
	S(fm_shard_stats, 2368) \
	F(fm_daemon_shm, magic, 0, 8) \
	F(fm_daemon_shm, version, 8, 4) \
	F(fm_daemon_shm, pid, 12, 4) \
	F(fm_daemon_shm, start_ns, 16, 8) \
	F(fm_daemon_shm, start_realtime_ns, 24, 8) \
	F(fm_daemon_shm, store_uri, 32, 512) \
	F(fm_daemon_shm, limit_pages, 544, 8) \
	F(fm_daemon_shm, resident, 576, 8) \
	F(fm_daemon_shm, room_seq, 640, 4) \
	F(fm_daemon_shm, room_waiters, 644, 4) \
	F(fm_daemon_shm, evictor_sleeping, 704, 4) \
	F(fm_daemon_shm, evictor_pid, 708, 4) \
	F(fm_daemon_shm, store_up, 712, 4) \
	F(fm_daemon_shm, store_used_bytes, 720, 8) \
	F(fm_daemon_shm, store_limit_bytes, 728, 8) \
	F(fm_daemon_shm, store_errors, 736, 8) \
	F(fm_daemon_shm, store_servers, 744, 8) \
	F(fm_daemon_shm, cluster, 768, 21824) \
	F(fm_daemon_shm, registry, 22592, 48) \
	F(fm_daemon_shm, key_print, 22640, 8) \
	S(fm_daemon_shm, 22656) \
	F(fm_registry_shm, configured, 0, 8) \
	F(fm_registry_shm, here, 8, 8) \
	F(fm_registry_shm, epoch, 16, 8) \
	F(fm_registry_shm, settled, 24, 8) \
	F(fm_registry_shm, oldest, 32, 8) \
	F(fm_registry_shm, behind, 40, 8) \
	S(fm_registry_shm, 48) \
	F(fm_cluster_shm, nservers, 0, 4) \
	F(fm_cluster_shm, replicas, 4, 4) \
	F(fm_cluster_shm, epoch_now, 8, 8) \
	F(fm_cluster_shm, settled, 16, 8) \
	F(fm_cluster_shm, pages_left, 24, 8) \
	F(fm_cluster_shm, pages_moved, 32, 8) \
	F(fm_cluster_shm, passes, 40, 8) \
	F(fm_cluster_shm, server, 48, 21504) \
	F(fm_cluster_shm, epoch, 21552, 256) \
	F(fm_cluster_shm, sealing, 21808, 4) \
	F(fm_cluster_shm, replicas_before, 21812, 4) \
	F(fm_cluster_shm, replicas_until, 21816, 8) \
	S(fm_cluster_shm, 21824) \
	F(fm_server_shm, address, 0, 128) \
	F(fm_server_shm, sockaddr, 128, 128) \
	F(fm_server_shm, sockaddr_len, 256, 4) \
	F(fm_server_shm, state, 260, 4) \
	F(fm_server_shm, role, 264, 4) \
	F(fm_server_shm, flags, 268, 4) \
	F(fm_server_shm, since_ns, 272, 8) \
	F(fm_server_shm, used_bytes, 280, 8) \
	F(fm_server_shm, limit_bytes, 288, 8) \
	F(fm_server_shm, items, 296, 8) \
	F(fm_server_shm, rtt_ns, 304, 8) \
	F(fm_server_shm, pid, 312, 8) \
	F(fm_server_shm, start_s, 320, 8) \
	F(fm_server_shm, restarts, 328, 8) \
	S(fm_server_shm, 336) \
	F(fm_epoch_shm, number, 0, 8) \
	F(fm_epoch_shm, servers, 8, 8) \
	S(fm_epoch_shm, 16) \
	F(fm_ctl_hdr, magic, 0, 4) \
	F(fm_ctl_hdr, version, 4, 2) \
	F(fm_ctl_hdr, type, 6, 2) \
	F(fm_ctl_hdr, length, 8, 4) \
	F(fm_ctl_hdr, nfds, 12, 4) \
	S(fm_ctl_hdr, 16) \
	F(fm_ctl_error, error, 0, 4) \
	F(fm_ctl_error, text, 4, 252) \
	S(fm_ctl_error, 256) \
	F(fm_ctl_hello, pages, 0, 8) \
	S(fm_ctl_hello, 8) \
	F(fm_ctl_hello_ok, nshards, 0, 4) \
	F(fm_ctl_hello_ok, pid, 4, 4) \
	S(fm_ctl_hello_ok, 8) \
	F(fm_ctl_register, hva, 0, 8) \
	F(fm_ctl_register, pages, 8, 8) \
	F(fm_ctl_register, memfd_offset, 16, 8) \
	F(fm_ctl_register, limit_pages, 24, 8) \
	F(fm_ctl_register, kind, 32, 4) \
	F(fm_ctl_register, pid, 36, 4) \
	F(fm_ctl_register, nshards, 40, 4) \
	F(fm_ctl_register, client_memfd, 44, 4) \
	F(fm_ctl_register, client_uffd, 48, 64) \
	F(fm_ctl_register, name, 112, 64) \
	F(fm_ctl_register, vm_id, 176, 64) \
	S(fm_ctl_register, 240) \
	F(fm_ctl_region, id, 0, 8) \
	S(fm_ctl_region, 8) \
	F(fm_ctl_evict, id, 0, 8) \
	F(fm_ctl_evict, pages, 8, 8) \
	F(fm_ctl_evict, cookie, 16, 8) \
	S(fm_ctl_evict, 24) \
	F(fm_ctl_server, address, 0, 128) \
	F(fm_ctl_server, role, 128, 4) \
	F(fm_ctl_server, reserved, 132, 4) \
	S(fm_ctl_server, 136) \
	F(fm_ctl_evictor_ok, store_uri, 0, 512) \
	F(fm_ctl_evictor_ok, key_file, 512, 256) \
	F(fm_ctl_evictor_ok, replicas, 768, 4) \
	F(fm_ctl_evictor_ok, no_seal, 772, 4) \
	F(fm_ctl_evictor_ok, regions, 776, 4) \
	F(fm_ctl_evictor_ok, reserved, 780, 4) \
	S(fm_ctl_evictor_ok, 784)

#define CHECK_FIELD(s, f, offset, bytes)                                                                                   \
	static_assert(offsetof(struct s, f) == (offset), "offset of " #f " in " #s);                                       \
	static_assert(sizeof(((struct s *)0)->f) == (bytes), "size of " #f " in " #s);
#define CHECK_STRUCT(s, bytes) static_assert(sizeof(struct s) == (bytes), "size of " #s);
LAYOUT(CHECK_FIELD, CHECK_STRUCT)

static_assert(FM_EMPTY == 0 && FM_DIRTY == 1 && FM_CLEAN == 2 && FM_REMOTE == 3 && FM_LOST == 4 && FM_BUSY == 5 &&
		  FM_WRITEBACK == 6 && FM_DROPPING == 7,
	      "page states");
static_assert(FM_PS_MASK == 0x7 && FM_OR_SHIFT == 3 && FM_F_WAITER == 1 << 6 && FM_F_STORED == 1 << 7 && FM_F_DISCARD == 1 << 8 &&
		  FM_F_ZERO == 1 << 9 && FM_EP_SHIFT == 10 && FM_GEN_SHIFT == 20,
	      "page words");
static_assert(FM_CTL_OK == 1 && FM_CTL_REGISTER == 6 && FM_CTL_LIMIT == 11 && FM_CTL_DETACH == 17 && FM_CTL_REGION_HELD == 21, "message types");
static_assert(FM_SHM_VERSION == 3 && FM_CTL_VERSION == 1, "versions");

struct row {
	const char *structure, *field; /* field NULL: the structure itself */
	size_t offset, bytes;
};
#define FIELD_ROW(s, f, offset, bytes) { #s, #f, offset, bytes },
#define STRUCT_ROW(s, bytes) { #s, NULL, 0, bytes },
static const struct row rows[] = { LAYOUT(FIELD_ROW, STRUCT_ROW) };

/* The whole file, NUL-terminated; NULL when it is not here. */
static char *slurp(const char *name)
{
	FILE *f = fopen(name, "r");
	size_t room = 1 << 20, n;
	char *text;

	if (!f)
		return NULL;
	text = malloc(room);
	n = text ? fread(text, 1, room - 1, f) : 0;
	fclose(f);
	if (text)
		text[n] = '\0';
	return text;
}

/* The table of a structure: from its title to the empty line behind it. Cut out of a copy that the caller frees. */
static char *section(const char *text, const struct row *r)
{
	char title[128], *copy;
	const char *at, *end;

	snprintf(title, sizeof title, "`struct %s`, %zu bytes:\n\n", r->structure, r->bytes);
	at = strstr(text, title);
	if (!at)
		return NULL;
	at += strlen(title);
	end = strstr(at, "\n\n");
	copy = strndup(at, end ? (size_t)(end - at) : strlen(at));
	return copy;
}

/* The rows of one structure, which end with the one for itself. Returns that one's index. */
static size_t check_structure(const char *text, size_t first)
{
	size_t last = first, lines = 0;
	char line[128], *table;
	bool all = true;

	while (rows[last].field)
		last++;
	table = section(text, &rows[last]);
	ok(table != NULL, "INTERFACES.md has struct %s of %zu bytes", rows[last].structure, rows[last].bytes);
	if (!table)
		return last;
	for (size_t i = first; i < last; i++) {
		snprintf(line, sizeof line, "\n| %zu | %zu | `%s` | ", rows[i].offset, rows[i].bytes, rows[i].field);
		if (!strstr(table, line)) {
			printf("# missing:%s\n", line + 1);
			all = false;
		}
	}
	ok(all, "its fields are where they are");
	for (const char *p = table; (p = strchr(p, '\n')); p++)
		lines++;
	/* One line end behind the head, and one before each row. */
	is_u64(lines, last - first + 1, "and no others");
	free(table);
	return last;
}

static void check_versions(const char *text)
{
	char line[128];

	snprintf(line, sizeof line, "\n| state files | %u | ", FM_SHM_VERSION);
	ok(strstr(text, line) != NULL, "the table of versions has that of the state files");
	snprintf(line, sizeof line, "\n| control protocol | %u | ", (unsigned)FM_CTL_VERSION);
	ok(strstr(text, line) != NULL, "... and that of the control protocol");
}

int main(void)
{
	char *text = slurp("INTERFACES.md");

	ok(true, "offsets are as promised (checked by the compiler)");
	if (!text) {
		tap_skip("INTERFACES.md", "not run in the top folder of the source");
		return tap_done();
	}
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
		i = check_structure(text, i);
	check_versions(text);
	free(text);
	return tap_done();
}
