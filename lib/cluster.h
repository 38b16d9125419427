/*
 * What all processes of a host know of the servers of its store: a table of servers and the placement epochs, in daemon.state.
 *
 * A page's word holds the epoch (modulo 1024) in which its copies were placed; the epoch's set of servers says where they are.
 * A change of membership (a server that stays away, comes back, is added, drained, or was restarted and so lost all it had), or the end
 * of a silence in which a server missed copies,
 * opens a new epoch: from then on pages are put by the new one, and the evictor re-reads and re-writes in the background what the store
 * holds by older ones. When a whole pass found no page of an older epoch, the older ones are retired. fm-faultd's main thread opens and
 * retires epochs; the evictor moves pages and says how far it is; everybody reads.
 */
#ifndef FM_CLUSTER_H
#define FM_CLUSTER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FM_SERVERS        64
#define FM_EPOCHS         16
#define FM_SERVER_ADDRESS 128 /* bytes of a server's name with its NUL */

enum fm_server_state {
	FM_SERVER_NONE = 0, /* slot not in use */
	FM_SERVER_UP,       /* answered last time */
	FM_SERVER_DOWN,     /* does not answer: its pages wait, or come from their other servers */
	FM_SERVER_DEAD,     /* refuses connections for longer than ?gone=: what it held is lost */
};

enum fm_server_role {
	FM_SERVER_MEMBER = 0, /* takes part in new epochs when it is up */
	FM_SERVER_DRAINED,    /* takes no new pages; those it has move away */
	FM_SERVER_LEFT,       /* by the registry: no server of the store any more. As drained, and not missed when it is away */
};

/* Set by who puts pages. */
enum fm_server_flags {
	FM_SERVER_MISSED = 1, /* it did not get its copy of a page; cleared when an epoch is opened */
	FM_SERVER_FULL = 2,   /* it refused a page for want of room, and took none since */
	FM_SERVER_STALE = 4,  /* a put or a delete may not have reached it: keys that no word names may be there. Cleared when it is swept */
};

/* Written by fm-faultd's main thread only, but for flags. */
struct fm_server_shm {
	char address[FM_SERVER_ADDRESS]; /* set before state leaves NONE; never changed after */
	unsigned char sockaddr[128];     /* resolved by fm-faultd: struct sockaddr_storage */
	uint32_t sockaddr_len;
	_Atomic uint32_t state; /* enum fm_server_state */
	_Atomic uint32_t role;  /* enum fm_server_role */
	_Atomic uint32_t flags; /* enum fm_server_flags */
	_Atomic uint64_t since_ns; /* CLOCK_MONOTONIC: in this state since */
	_Atomic uint64_t used_bytes, limit_bytes, items;
	_Atomic uint64_t rtt_ns;       /* of the last look */
	_Atomic uint64_t pid, start_s; /* one life of the server; 0 not known */
	_Atomic uint64_t restarts;     /* lives after the first that were seen */
};

/* Written by fm-faultd's main thread only. */
struct fm_epoch_shm {
	_Atomic uint64_t number;  /* 1, 2, ...; 0: slot not in use */
	_Atomic uint64_t servers; /* bit i: server i takes part */
};

enum fm_sealing {
	FM_SEALING_UNKNOWN = 0, /* dir: does neither */
	FM_SEALING_ON,          /* values are sealed */
	FM_SEALING_OFF,         /* --no-seal */
};

struct fm_cluster_shm {
	_Atomic uint32_t nservers; /* slots ever used */
	_Atomic uint32_t replicas;
	_Atomic uint64_t epoch_now; /* number of the newest epoch, whose slot is complete; 0: none (dir:) */
	/* Written by the evictor only. */
	_Atomic uint64_t settled;     /* no page's word names an epoch older than this */
	_Atomic uint64_t pages_left;  /* of older epochs, as the last whole pass found */
	_Atomic uint64_t pages_moved; /* re-written by a newer epoch, ever */
	_Atomic uint64_t passes;      /* over all words, ever */
	struct fm_server_shm server[FM_SERVERS];
	struct fm_epoch_shm epoch[FM_EPOCHS];
	uint32_t sealing;                 /* enum fm_sealing: how fm-faultd was told to write pages; set when it starts */
	_Atomic uint32_t replicas_before; /* the most copies by epochs up to replicas_until: --replicas was another then */
	_Atomic uint64_t replicas_until;
};

/* Modulo 1024, as a page's word holds an epoch. */
#define FM_EPOCH_TAGS        1024
#define FM_EPOCH_TAG(number) ((uint32_t)((number) & 0x3ff))

/*
 * Is the table, which another life of fm-faultd wrote, one that can be gone by: numbers within bounds, addresses that end? Any thread; nobody writes it.
 */
bool fm_cluster_is_sound(const struct fm_cluster_shm *c);

/*
 * The servers of the epoch with that tag. Returns their bitmap, or 0 when no epoch in use has it. Any thread, any process.
 */
uint64_t fm_cluster_servers(const struct fm_cluster_shm *c, uint32_t tag);

/* How many copies of a page there may be by the epoch with that tag: at least as many as by the newest. Any thread, any process. */
uint32_t fm_cluster_replicas(const struct fm_cluster_shm *c, uint32_t tag);

/*
 * From the next epoch on there are that many copies. Returns whether that is another number than before: then one is due. fm-faultd's main thread only.
 */
bool fm_cluster_set_replicas(struct fm_cluster_shm *c, uint32_t replicas);

/*
 * The table is new, but there are pages with these tags (FM_EPOCH_TAGS bits) of one that was lost: let the first epochs have others, so that no
 * page is looked for where it is not. As many as there are slots are safe, and no more are opened before the pages have moved. Before the first epoch;
 * fm-faultd's main thread only.
 */
void fm_cluster_avoid(struct fm_cluster_shm *c, const uint64_t tags[FM_EPOCH_TAGS / 64]);

/*
 * Open a new epoch with those servers. Returns 0, or -EAGAIN: every slot is in use until the evictor has moved the pages of older ones.
 * fm-faultd's main thread only.
 */
int fm_cluster_open_epoch(struct fm_cluster_shm *c, uint64_t servers);

/* Retire the epochs that c->settled says no page names. fm-faultd's main thread only. */
void fm_cluster_retire(struct fm_cluster_shm *c);

/* Any server may have keys that no word names: whoever deleted some is gone, and cannot say which. Any thread, any process. */
void fm_cluster_all_stale(struct fm_cluster_shm *c);

/* How many epochs are in use. Any thread, any process. */
unsigned fm_cluster_epochs(const struct fm_cluster_shm *c);

/* Does an epoch in use name the server in that slot? Then pages may lie there. Any thread, any process. */
bool fm_cluster_in_use(const struct fm_cluster_shm *c, unsigned slot);

/* How many servers take new pages. Any thread, any process. */
unsigned fm_cluster_members(const struct fm_cluster_shm *c);

/* The slot of a server by its address, or -1. */
int fm_cluster_find(const struct fm_cluster_shm *c, const char *address);

#endif
