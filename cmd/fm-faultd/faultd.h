/*
 * Inside of fm-faultd. One thread (main) runs an epoll loop over the control socket, its connections, the clients' pidfds, the
 * shards' news, signals and a timer; each shard of a region is a thread of lib/shard.c. The evictor is another process.
 */
#ifndef FAULTD_H
#define FAULTD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ctl.h"
#include "members.h"
#include "shard.h"
#include "shmfile.h"
#include "store.h"

#define MAX_CONNECTIONS    512
#define ROOTS_CONNECTIONS  32  /* of MAX_CONNECTIONS: others who hold all they can get must not keep the evictor out */
#define USER_CONNECTIONS   64  /* of one user, unless told otherwise */
#define USER_REGIONS       256 /* the same */
#define MAX_EVICT_REQUESTS 64 /* waiting for the evictor at once: as many fit its socket, so that no send to it waits */

/* What an epoll event is about; the first member of whatever its pointer points to. */
enum watch_kind { WATCH_LISTEN, WATCH_SIGNAL, WATCH_TIMER, WATCH_NEWS, WATCH_CONN, WATCH_CLIENT, WATCH_REGISTRY };
struct watch {
	enum watch_kind kind;
};

/* One peer on fm.sock. */
struct conn {
	struct watch watch; /* WATCH_CONN */
	struct conn *next;
	int fd;
	uid_t uid; /* these by SO_PEERCRED: of when it connected */
	gid_t gid;
	pid_t pid;
	bool dead;      /* closed at the end of the turn */
	bool cut;       /* descriptors that came with this message found no room here */
	bool evictor;   /* this is the evictor */
	uint64_t waits_region; /* UNREGISTER: answered when that region is freed; 0 none */
	uint64_t waits_detach; /* DETACH: answered when that region is home and freed, or cannot be; 0 none */
	uint64_t waits_cookie; /* EVICT: answered when the evictor answers; 0 none */
	struct fm_ctl_hdr hdr;
	char body[FM_CTL_MAX];
	size_t have; /* bytes of header and body read so far */
	int fds[FM_CTL_FDS];
	unsigned nfds;
};

/* How far a region is on its way home: see detach.c. */
enum detach { DETACH_NO = 0, DETACH_HOLD, DETACH_FETCH, DETACH_LEAVE };

/* One region that is served. */
struct region {
	struct watch watch; /* WATCH_CLIENT: its pidfd */
	struct region *next;
	struct fm_region_map map;
	int memfd;
	int pidfd;
	struct fm_shard *shard[FM_MAX_SHARDS]; /* NULL: not running */
	struct fm_uffd uffd[FM_MAX_SHARDS];    /* the evictor's copies are made from these; owned by the shards */
	uint32_t told_evictor;                 /* the evictor has it, and must say REGION_GONE before it can be freed */
	enum detach detach;
	unsigned holds;        /* REGION_HOLD messages that the evictor has not answered */
	atomic_bool unbounded; /* no budget holds for it, and it is not in daemon->resident; changed while its shards are paused */
	bool asked;            /* all shards know what is asked of them */
	bool counting;          /* FM_REGION_COUNTING */
	struct fm_count before; /* ... its counters when that began */
	bool look_again; /* some of it was unmapped: is any left? */
	bool ending; /* nothing is served any more; it waits for the evictor to let go of it, or to delete its keys */
};

/* The store's membership in the registry. Main thread only. */
struct membership {
	bool known;            /* now is what it was last; else the registry never told */
	bool absent;           /* the registry has none */
	bool incomplete;       /* a member could not be taken into the table */
	bool few;              /* there are fewer servers than copies of a page are wanted */
	struct fm_members now;
	uint64_t settled;      /* what the registry was told: see fm_registry_settled() */
	uint64_t again_ns;     /* CLOCK_MONOTONIC: when to apply it once more; 0 not */
	uint64_t publish_ns;   /* ... not to publish before */
};

/* What the clients of one user may have together at a time; root's are not limited. */
struct user_limits {
	unsigned connections, regions;
	uint64_t pages; /* FM_LIMIT_NONE: any number */
};

struct faultd {
	/* options */
	const char *store_uri;
	struct fm_store_options store_options;
	const char *registry_uri;
	const char *run_dir;
	uint64_t local_pages;
	unsigned shards; /* of a region, at most */
	bool spawn_evictor;
	bool no_seccomp;
	bool no_follow; /* shards stay wherever the scheduler puts them */
	struct user_limits user;
	bool take_over; /* --takeover: from an fm-faultd that runs */
	long grace_ms; /* DMA grace of new regions; -1: by the kind of client */
	/* state */
	int run_fd;  /* run directory */
	int lock_fd; /* daemon.lock */
	int evict_lock_fd; /* evict.lock, open at all times: to look at it must not want for a descriptor */
	int epoll_fd, listen_fd, signal_fd, timer_fd, news_fd;
	int evict_fd; /* eventfd that wakes the evictor */
	struct fm_daemon_shm *daemon;
	int daemon_fd; /* daemon.state */
	struct fm_store *store; /* main thread's handle */
	uint64_t uffd_features;
	struct conn *conns;
	unsigned nconns;
	gid_t fm_gid; /* group fm; (gid_t)-1: there is none */
	struct region *regions;
	struct conn *evictor; /* NULL: none */
	pid_t evictor_child;  /* 0: none */
	bool child_came_up;   /* it has connected */
	uint64_t spawned_ns;  /* when it was started */
	uint64_t respawn_ns;  /* not to start another before; 0: at any time */
	uint64_t respawn_delay_ns; /* how long the last one was put off; 0 when it came up */
	uint64_t crowded_ns;  /* when the log was last told that descriptors are short; 0 never */
	uint64_t next_cookie;
	struct fm_registry *registry; /* NULL: none */
	struct membership membership;
	atomic_bool members_incomplete; /* the registry has servers of the store that are not in our table: their names cannot be resolved */
	struct collector *collector;
	struct sweep *sweep; /* NULL: not running */
	atomic_bool hold; /* are fills held back above the hard mark? */
	atomic_bool near; /* may shards go to the CPU of who faults? Not before the sandbox is entered: it waits for all threads */
	bool stop;
};

/* server.c: open fm.sock; run until told to stop. */
int server_open(struct faultd *d, char *why);
void server_run(struct faultd *d);
void server_close(struct faultd *d);
/* Answer and close helpers. text: "what: why". */
void conn_error(struct conn *c, int error, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void conn_reply(struct conn *c, unsigned type, const void *body, const int *fds, unsigned nfds);
/* Has the peer closed its end? It may have done so long after it asked: when we were stopped. */
bool conn_hung_up(const struct conn *c);
int watch_add(struct faultd *d, int fd, struct watch *w);

/* register.c: register from a REGISTER message; takes the descriptors it needs out of c->fds. Answers c. */
void region_register(struct faultd *d, struct conn *c, const struct fm_ctl_register *m);
/* takeover.c: take over what another fm-faultd left in the run directory. Returns 0 or -errno with why. */
int region_take_over(struct faultd *d, char *why);
/*
 * The lock of the run directory is held by another fm-faultd: have it end, when its regions can be taken over by this one, and take its
 * lock. Returns 0 or -errno with why; then it runs on, or its regions wait for the next one. replace.c, as what follows.
 */
int daemon_replace(struct faultd *d, char *why);
/* How many regions an fm-faultd before us left, or dies: what hangs on there being none must not be done because nobody could look. */
size_t regions_left(const struct faultd *d);
/* enum fm_sealing of what this one is told to write. */
uint32_t sealing_of(const struct faultd *d);
/* fm_key_print() of --key-file; 0 when there is none, or it cannot be read: who needs it says why. */
uint64_t key_print_of(const struct faultd *d);
/*
 * There are regions: does daemon.state say that their pages are where, and as, this fm-faultd is told to look for them? Else each page that is away would be
 * found to be lost. Returns 0, also when it says nothing; or -EPROTO, -EINVAL with why.
 */
int daemon_state_check(const struct faultd *d, char *why);
/* regions.c. */
struct region *region_find(struct faultd *d, uint64_t id);
/* A region with nothing in it, or NULL. */
struct region *region_new(void);
/* Which of its shards have something mapped, by these mappings of its client? Bit i: shard i. */
struct fm_mapping;
uint32_t region_shards_in(const struct region *r, const struct fm_mapping *list, size_t n);
/* As region_shards_in() of the mappings that the client has now. All bits when they cannot be read; an event cannot tell, as it may name
 * pages that were unmapped before. */
uint32_t region_mapped_shards(const struct region *r);
/*
 * Does the client, with nothing of the region mapped, wait for no event of that? Closing its userfaultfds while it does would leave it waiting
 * for ever.
 */
bool region_quiet(const struct region *r);
/* Is the descriptor a userfaultfd? */
bool region_is_uffd(int fd);
void region_unlink_state(struct faultd *d, struct region *r);
/* Unregister what its userfaultfds have: its waiters go on. Only while no page has left the host. */
void region_unregister(struct region *r);
/* Start a thread for each shard. Returns 0, or -errno with why; then some may run, and the caller unwinds. */
int region_start_shards(struct faultd *d, struct region *r, char *why);
void region_stop_shards(struct region *r);
/* Have its shards end, without waiting for that. */
void region_ask_stop(struct region *r);
int region_watch_client(struct faultd *d, struct region *r);
/* The client is gone: stop serving, and free it as soon as the evictor has let go of it. */
void region_end(struct faultd *d, struct region *r);
/* Must an evictor delete its keys one by one before it can be freed? */
bool region_needs_purge(const struct faultd *d);
/* Free it now: the evictor has let go. */
void region_free(struct faultd *d, struct region *r);
/* Stop serving, but leave the region in the run directory for the next fm-faultd. */
void region_leave(struct faultd *d, struct region *r);
/* Look at shards' news and at clients that exec()ed. */
void regions_news(struct faultd *d);
void regions_check_alive(struct faultd *d);

/*
 * count.c: put a region's counters right in the background, after a death. No evictor may be connected, or about to touch the region:
 * before its shards are started, with fm_shard_options.count; or while they are paused.
 */
void region_count_mark(struct region *r);
void region_count_paused(struct faultd *d, struct region *r);
/* A shard has counted. */
void region_count_news(struct faultd *d, struct region *r);
/* Do all of its shards count by now? They are woken by this: call again until they do. */
bool region_count_begun(struct region *r);

/*
 * clients.c: what is known of clients, each of them asked once: begin with an empty list (NULL), and forget it soon. What it says of mappings may
 * be older than the call, but not than the list.
 */
struct client;
/* A pidfd of the client that the file names, which the caller owns; -ESRCH: it is gone, for certain; another -errno: cannot be told. */
int client_pidfd(struct client **all, const struct fm_region_hdr *h);
/* As region_shards_in(). Returns 0, or -errno: its mappings cannot be read. */
int client_mapped_shards(struct client **all, const struct region *r, uint32_t *mapped);
void clients_forget(struct client **all);

/* detach.c: a region comes home. A request for it; answers c, at the end. */
void region_detach(struct faultd *d, struct conn *c, struct region *r);
/* The evictor takes no page of it any more. */
void region_detach_held(struct faultd *d, struct region *r);
/* A shard has news that may be about this. Returns true when the region has ended: it may be freed then. */
bool region_detach_news(struct faultd *d, struct region *r);
/* Once a second. */
void region_detach_tick(struct faultd *d, struct region *r);
/* Nobody waits for it any more. */
void region_detach_forget(struct faultd *d, uint64_t id);
/* Just taken over, its shards running: go on where there is no way back. */
void region_detach_resume(struct region *r);

/* evictor.c: the link to fm-evict. */
void evictor_spawn(struct faultd *d);
/* How long until one that was put off is due, for poll(2); -1: none is. And start it then. */
int evictor_wait_ms(const struct faultd *d);
void evictor_due(struct faultd *d);
void evictor_connected(struct faultd *d, struct conn *c);
void evictor_lost(struct faultd *d);
void evictor_child_ended(struct faultd *d, pid_t pid, int status);
void evictor_add(struct faultd *d, struct region *r);
void evictor_del(struct faultd *d, struct region *r);
void evictor_kick(struct faultd *d);
/* Its connection is closed: wait until our child is gone, and do not wait long. */
void evictor_reap(struct faultd *d);
/* Make sure that no evictor of another time lives on: it would own pages that we are about to mend. only: its pid; 0: any. */
int evictor_exclude(struct faultd *d, pid_t only);

/* registry.c: what other hosts know of us. All of it does nothing without a registry, but registry_check(). */
struct fm_registry;
struct collector;
/* Is the URI good? Returns 0, or -EINVAL with why. */
int registry_check(const struct faultd *d, char *why);
/* Connect, within some seconds; but when there are regions to take over, it may come later. Returns 0 or -errno with why. */
int registry_open(struct faultd *d, char *why);
/* Can it be used? Leaves nothing there. members: the store's, n is 0 when it has none. Returns 0 or -errno with why. */
int registry_probe(const char *uri, struct fm_members *members, char *why);
/* Every region of the run directory has been taken over or freed. */
void registry_regions_known(struct faultd *d);
/* An id that no region of any host has, recorded; *id stays as it is without a registry. Waits 2 s at most. 0 or -errno with why. */
int registry_region_new(struct faultd *d, uint64_t pages, uint64_t *id, char *why);
/* The region is freed, or did not come to be. */
void registry_region_end(struct faultd *d, uint64_t id);
/* Its descriptor is readable. */
void registry_news(struct faultd *d);
/* regions_left: some wait for the next fm-faultd. */
void registry_close(struct faultd *d, bool regions_left);

/* members.c: the servers of the store, in the registry and here. */
struct fm_registry_news;
/* Has the store servers, and are they the registry's matter? */
bool members_wanted(const struct faultd *d);
/* The membership to open the store with; NULL: not known. */
const struct fm_members *members_first(struct faultd *d);
/* The store is open: say where --store differs, publish it when the registry has none. */
void members_begin(struct faultd *d);
void members_news(struct faultd *d, const struct fm_registry_news *n);
/* Once a second. */
void members_tick(struct faultd *d);
/* A request to add or drain a server, by somebody who may. Answers c. */
void members_on_server(struct faultd *d, struct conn *c, const struct fm_ctl_server *m);

/*
 * collect.c: the thread that deletes what dead hosts left in the store; d->registry, store_uri and daemon are set. Returns 0 and *out,
 * or -errno. collector_stop() says whether the thread has ended: if not, it still uses these, and the process must end soon.
 */
int collector_start(struct faultd *d, uint64_t host_id, unsigned grace_s, struct collector **out);
bool collector_stop(struct collector *c);

/*
 * sweep.c: the thread that deletes keys which no page has, in a memcached store. Regions were taken over. sweep_stop() waits for it, 200 ms or so.
 */
void sweep_start(struct faultd *d);
void sweep_stop(struct faultd *d);
/* A region's keys were deleted, where they could be. */
void sweep_region_ended(struct faultd *d, uint64_t id);

/* privilege.c. May this peer be the evictor, and change what is the host's? Root, and our own user. */
bool conn_is_root(const struct conn *c);
/* May it act on others' memory? Root, and who connects with group fm. */
bool conn_is_trusted(const struct faultd *d, const struct conn *c);
/* Is there room for one more connection of its user? Tells the peer when not. */
bool conn_is_welcome(struct faultd *d, struct conn *c);
/* Are there descriptors left above fd for what must go on, the evictor's above all? Tells the peer and the log when not. */
bool conn_leaves_descriptors(struct faultd *d, struct conn *c, int fd);
/* May its user have a region of so many pages more, and is the peer still who it was? Returns 0, or -errno with one line in why. */
int conn_check_user(const struct faultd *d, const struct conn *c, uint64_t pages, char *why, size_t len);
/* The paths that are opened or connected to later on, for lib/sandbox.h. Returns their number. */
#define SANDBOX_PATHS (FM_SERVERS + 2)
size_t sandbox_paths(const struct faultd *d, const struct fm_cluster_shm *c, const char *out[SANDBOX_PATHS]);
/* All is open: give up what is not needed any more. */
void sandbox_enter(struct faultd *d);

/* check.c: --check. Returns the exit code. */
int check_host(const struct faultd *d);

#endif
