/*
 * The shared-memory files of a run directory, byte for byte: `daemon.state` (one) and `region-<id>.state` (one a region).
 *
 * Everybody who may read the directory may map them read-only and read at any time, the daemons alive or dead: each
 * counter has one writer (or is changed by atomic instructions), is 8 bytes wide and aligned, and is read with fm_ld().
 * INTERFACES.md repeats these structures; a change of layout is a change of FM_SHM_VERSION.
 */
#ifndef FM_SHM_H
#define FM_SHM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cluster.h"

#define FM_PAGE_SHIFT  12
#define FM_PAGE_SIZE   4096u
#define FM_SHM_VERSION 3u
#define FM_MAGIC_DAEMON 0x004e4f4d45414446ull /* "FDAEMON\0" */
#define FM_MAGIC_REGION 0x004e4f4947455246ull /* "FREGION\0" */

#define FM_MAX_SHARDS  16  /* shards of one region */
#define FM_NAME_MAX    64  /* bytes of a region's name with its NUL */
#define FM_URI_MAX     512 /* bytes of a store URI with its NUL */
#define FM_BATCH       64  /* fault events, and pages filled, a turn of a shard */
#define FM_EVICT_BATCH 128 /* pages the evictor owns at most at one time */
#define FM_DISCARDS    64  /* ranges being discarded of a shard; as many as a turn can read */
#define FM_RING        1024 /* entries of a shard's event ring; a power of two */

/* Log-scaled latency histogram: 8 buckets an octave, up to 2^36 ns; fm_hist_*() in stats.h. */
#define FM_HIST_BUCKETS 280

/* How long a device may still write a page that is write-protected, ms: what fm-faultd sets unless told otherwise. */
#define FM_GRACE_VM_MS  1000u
#define FM_GRACE_MAP_MS 0u
#define FM_GRACE_MAX_MS 60000u

/* What a region's client is. */
enum fm_kind {
	FM_KIND_MAP = 1, /* a program's memory by fm_map() */
	FM_KIND_VM = 2,  /* a virtual machine's memory, handed over by fm-hotplug */
};

/* Bits of fm_region_hdr.flags. */
enum fm_region_flag {
	FM_REGION_STORE_FULL = 1 << 0, /* the store refuses new pages: they stay resident; set and cleared by the evictor */
	FM_REGION_STORE_DOWN = 1 << 1, /* the store does not answer; set and cleared by the evictor and the shards */
	FM_REGION_GONE = 1 << 2,       /* the client ended or unmapped all; the region is being freed */
	FM_REGION_DETACHING = 1 << 3,  /* its pages come home: the evictor takes none of them; set and cleared by fm-faultd */
	FM_REGION_COUNTING = 1 << 5,   /* its counters may be too high, and are put right: the evictor takes none of its pages; by fm-faultd */
	FM_REGION_MOVED = 1 << 6,      /* a part of it was moved away by mremap(): its far pages raise SIGBUS there; set by its shards */
	FM_REGION_HOME = 1 << 4,       /* no page is away: its memory is being unregistered, which nothing takes back */
};

/* Written by one shard thread only. */
struct fm_shard_stats {
	_Atomic uint64_t faults;       /* events served: page faults of every kind */
	_Atomic uint64_t faults_zero;  /* pages given at their first touch, or ahead of it: zeros */
	_Atomic uint64_t faults_store; /* page-ins from the store */
	_Atomic uint64_t faults_wp;    /* write faults on write-protected pages */
	_Atomic uint64_t faults_stale; /* duplicates: the page was there already */
	_Atomic uint64_t held;         /* times the shard waited for room under the hard mark */
	_Atomic uint64_t store_gets;   /* pages asked of the store */
	_Atomic uint64_t store_errors; /* gets that failed or gave a wrong value (each try) */
	_Atomic uint64_t pages_lost;   /* pages given up: SIGBUS for the client */
	_Atomic uint64_t discarded;    /* pages discarded by REMOVE and UNMAP events */
	_Atomic uint64_t latency_max_ns;
	_Atomic uint64_t clear_seen;   /* the clear_count that latency_max_ns belongs to */
	_Atomic uint64_t latency[FM_HIST_BUCKETS]; /* event read -> page in place and waiters woken */
	_Atomic uint64_t prefetched;      /* of faults_store: brought in ahead of a fault */
	_Atomic uint64_t zeroed_ahead;    /* of faults_zero: given ahead of the first touch */
	_Atomic uint64_t prefetch_hits;   /* of both: were used, as the faults that followed tell */
	_Atomic uint64_t prefetch_wasted; /* ... were not, as far as can be told; and pages got from the store that never came that far */
};

/* Written by the evictor only. */
struct fm_evict_stats {
	_Atomic uint64_t evictions;       /* pages dropped from the host, of every kind */
	_Atomic uint64_t evictions_clean; /* ... whose bytes the store held already: dropped without writing */
	_Atomic uint64_t evictions_zero;  /* ... all zero: not sent to the store */
	_Atomic uint64_t cancelled;       /* write-backs taken back by a write fault */
	_Atomic uint64_t store_puts;      /* pages acknowledged by the store */
	_Atomic uint64_t store_deletes;   /* keys deleted */
	_Atomic uint64_t store_errors;    /* puts and deletes that failed */
	_Atomic uint64_t late_writes;     /* pages that changed behind their write protection (DMA) and were kept */
};

/* Sums over all shards and the evictor, as `fm-stat clear` found them; readers subtract it. */
struct fm_baseline {
	_Atomic uint64_t clear_count; /* times cleared; written last */
	_Atomic uint64_t faults, faults_zero, faults_store, faults_wp, faults_stale, held, store_gets, shard_store_errors,
	    pages_lost, discarded;
	_Atomic uint64_t evictions, evictions_clean, evictions_zero, cancelled, store_puts, store_deletes, evict_store_errors;
	_Atomic uint64_t latency[FM_HIST_BUCKETS];
	_Atomic uint64_t prefetched, zeroed_ahead, prefetch_hits, prefetch_wasted;
};

/*
 * A range of pages that the client has discarded (REMOVE, UNMAP), while the shard walks over it: noted before the walk begins, because a
 * dead daemon's events are not sent again, and because the evictor must leave those pages alone. Written by the shard.
 */
struct fm_discard_shm {
	_Atomic uint64_t first;    /* page of the region */
	_Atomic uint64_t at;       /* next page to look at: faults on [at, end) wait */
	_Atomic uint64_t end;      /* page behind the last; 0: slot not in use; written last */
	_Atomic uint64_t unmapped; /* 1: UNMAP: the local pages go too */
	_Atomic uint64_t until_ns; /* CLOCK_MONOTONIC: walked over; pages that were still here stay here until then */
};

/* One shard of a region: a uffd, a range of pages, a thread of fm-faultd. 64-byte aligned blocks, so shards share no line. */
struct fm_shard_shm {
	uint64_t first_page;   /* of the region */
	uint64_t pages;
	_Atomic uint64_t hva;  /* client's address of first_page; changes on mremap */
	int32_t client_uffd;   /* its number in the client process */
	/* From here on written in each turn, while the evictor reads what is above for each page. */
	_Alignas(64) _Atomic uint32_t reading; /* 1: events may have been read that are not noted yet. Written by the shard */
	/* Pages the shard owns (BUSY), page + 1; 0 none. Entry set before the page is taken, cleared after it is given back. */
	_Atomic uint32_t inflight[FM_BATCH];
	_Alignas(64) _Atomic uint64_t discarding; /* slots of discard in use */
	struct fm_discard_shm discard[FM_DISCARDS];
	/* Event ring to the evictor: pages that became resident or await a delete. One writer (shard), one reader (evictor). */
	_Alignas(64) _Atomic uint32_t ring_head; /* written by the shard */
	_Atomic uint32_t ring_lost;              /* entries dropped because the ring was full; the evictor sweeps the words */
	_Alignas(64) _Atomic uint32_t ring_tail; /* written by the evictor */
	_Alignas(64) uint32_t ring[FM_RING];
	_Alignas(64) struct fm_shard_stats stats;
	/*
	 * struct uffd_msg: what was read last. Read right into here, since the client goes on as soon as the kernel has handed its event out: a
	 * discard must not be forgotten when we die on the way back from read(2). Events but page faults are zeroed when noted.
	 */
	_Alignas(64) uint64_t events[FM_BATCH][4];
};

/* Start of region-<id>.state; then `nshards` struct fm_shard_shm at shards_offset; then the page words at words_offset. */
struct fm_region_hdr {
	uint64_t magic;   /* FM_MAGIC_REGION, written last when the file is made: without it the file is nobody's region */
	uint32_t version; /* FM_SHM_VERSION */
	uint32_t nshards;
	uint64_t id;
	uint64_t pages;
	uint64_t shards_offset;
	uint64_t words_offset;
	uint64_t memfd_offset; /* of the region's first page in the memfd, bytes */
	uint64_t memfd_dev, memfd_ino;
	int32_t client_memfd; /* its number in the client process, or -1: only by /proc/PID/map_files */
	uint32_t kind;        /* enum fm_kind */
	int32_t pid;          /* client, in fm-faultd's pid namespace */
	uint32_t uid;         /* of who registered it */
	uint64_t pid_start;   /* start time of the client: field 22 of /proc/PID/stat, clock ticks */
	uint64_t created_ns;  /* CLOCK_REALTIME */
	char name[FM_NAME_MAX];
	char vm_id[FM_NAME_MAX];             /* memory backend's id in QEMU, or "" */
	_Atomic uint64_t limit_pages;        /* local budget of this region; 0 none */
	_Atomic uint64_t grace_ms; /* a page that was written stays so long after it was write-protected: see grace.h */
	_Atomic uint64_t flags;    /* enum fm_region_flag; read for each fault, seldom written */
	_Alignas(64) _Atomic uint64_t resident; /* pages in a resident state */
	_Atomic uint64_t remote;             /* pages REMOTE */
	_Alignas(64) struct fm_evict_stats evict;
	/* Pages the evictor owns (WRITEBACK, DROPPING), page + 1; set before it takes them, all cleared after the batch was counted. */
	_Atomic uint32_t evict_inflight[FM_EVICT_BATCH];
	_Atomic uint64_t cooling; /* pages in their grace, or past it and kept while there is room; written by the evictor */
	uint64_t sum; /* fm_shmfile_region_sum() of what never changes: a damaged file must not be taken for another region's, or its client for gone */
	_Alignas(64) struct fm_baseline baseline; /* written by fm-stat clear */
};

/* What the registry says of the store, and how far this host is. Written by fm-faultd's main thread only. */
struct fm_registry_shm {
	_Atomic uint64_t configured; /* 1: there is one */
	_Atomic uint64_t here;       /* 1: connected, as far as is known */
	_Atomic uint64_t epoch;      /* membership epoch that this host goes by; 0: none yet */
	_Atomic uint64_t settled;    /* no page of this host is placed by an older one */
	_Atomic uint64_t oldest;     /* ... nor one of any host by an older one than this; only while a server is drained, else 0 */
	_Atomic uint64_t behind;     /* id of a host that has pages by that one */
};

/* daemon.state */
struct fm_daemon_shm {
	uint64_t magic; /* FM_MAGIC_DAEMON */
	uint32_t version;
	int32_t pid;               /* of the fm-faultd that runs or ran last; alive when daemon.lock is held */
	uint64_t start_ns;         /* CLOCK_MONOTONIC */
	uint64_t start_realtime_ns;
	char store_uri[FM_URI_MAX];
	_Atomic uint64_t limit_pages;  /* global local budget; UINT64_MAX none */
	_Alignas(64) _Atomic uint64_t resident; /* all regions */
	_Alignas(64) _Atomic uint32_t room_seq; /* futex: the evictor adds 1 when it made room and somebody waits */
	_Atomic uint32_t room_waiters;
	_Alignas(64) _Atomic uint32_t evictor_sleeping; /* 1: write its eventfd to wake it */
	_Atomic int32_t evictor_pid;   /* 0 none */
	_Atomic uint32_t store_up;     /* last known */
	_Atomic uint64_t store_used_bytes;
	_Atomic uint64_t store_limit_bytes; /* 0 unknown */
	_Atomic uint64_t store_errors;
	_Atomic uint64_t store_servers; /* up; 0 not known, or in cluster */
	_Alignas(64) struct fm_cluster_shm cluster; /* servers of a network store */
	_Alignas(64) struct fm_registry_shm registry;
	uint64_t key_print; /* fm_key_print() of the key that pages are sealed with; 0: none */
};

#define fm_ld(p) atomic_load_explicit((p), memory_order_relaxed)
/* Add to a counter that only the calling thread writes: no locked instruction. */
#define fm_bump(p, n) atomic_store_explicit((p), fm_ld(p) + (n), memory_order_relaxed)

#endif
