/*
 * The control protocol on RUN_DIR/fm.sock (AF_UNIX, SOCK_STREAM): framed messages with file descriptors by SCM_RIGHTS.
 *
 * A message is a struct fm_ctl_hdr and then exactly the body of its type; the descriptors travel with its first byte. A
 * message with another magic, version, length or number of descriptors closes the connection. Host byte order (it never
 * leaves the host). This module is also part of libfm: it must not depend on anything but libc.
 */
#ifndef FM_CTL_H
#define FM_CTL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "shm.h"

#define FM_CTL_MAGIC   0x314d4600u /* "\0FM1" */
#define FM_CTL_VERSION 1u
#define FM_CTL_MAX     1024 /* bytes of the largest body */
#define FM_CTL_FDS     (FM_MAX_SHARDS + 2) /* descriptors of one message at most */

enum fm_ctl_type {
	FM_CTL_OK = 1,       /* reply, empty body */
	FM_CTL_ERROR,        /* reply: struct fm_ctl_error */
	FM_CTL_HELLO,        /* client: struct fm_ctl_hello -> FM_CTL_HELLO_OK */
	FM_CTL_HELLO_OK,     /* struct fm_ctl_hello_ok */
	FM_CTL_DEVICE,       /* client: wants /dev/userfaultfd -> FM_CTL_OK with 1 fd */
	FM_CTL_REGISTER,     /* client: struct fm_ctl_register, fds: memfd, then nshards userfaultfds -> FM_CTL_REGISTERED */
	FM_CTL_REGISTERED,   /* struct fm_ctl_region */
	FM_CTL_UNREGISTER,   /* client: struct fm_ctl_region: it has unregistered and unmapped the whole region -> FM_CTL_OK when freed */
	FM_CTL_EVICT,        /* fm-evict: struct fm_ctl_evict -> FM_CTL_EVICTED; also fm-faultd -> evictor */
	FM_CTL_EVICTED,      /* struct fm_ctl_evict: pages dropped; also evictor -> fm-faultd */
	FM_CTL_LIMIT,        /* fm-evict: struct fm_ctl_evict: set a budget -> FM_CTL_OK at once; watch the state files */
	FM_CTL_EVICTOR,      /* an evictor: wants to be the evictor -> FM_CTL_EVICTOR_OK, then FM_CTL_REGION_ADD for each region */
	FM_CTL_EVICTOR_OK,   /* struct fm_ctl_evictor_ok, fds: daemon.state, eventfd */
	FM_CTL_REGION_ADD,   /* fm-faultd -> evictor: struct fm_ctl_region, fds: state file, memfd, userfaultfds */
	FM_CTL_REGION_DEL,   /* fm-faultd -> evictor: struct fm_ctl_region: forget it -> FM_CTL_REGION_GONE */
	FM_CTL_REGION_GONE,  /* evictor -> fm-faultd: struct fm_ctl_region: it touches that region no more */
	FM_CTL_DETACH,       /* fm-hotplug: struct fm_ctl_region: bring every page home and let go -> FM_CTL_OK or FM_CTL_ERROR */
	FM_CTL_SERVER,       /* fm-evict: struct fm_ctl_server: add or drain a server of the store -> FM_CTL_OK at once; watch daemon.state */
	FM_CTL_GRACE,        /* client, fm-evict: struct fm_ctl_evict: pages is the region's DMA grace in ms -> FM_CTL_OK */
	FM_CTL_REGION_HOLD,  /* fm-faultd -> evictor: struct fm_ctl_region: evict nothing of it as long as FM_REGION_DETACHING is set -> FM_CTL_REGION_HELD */
	FM_CTL_REGION_HELD,  /* evictor -> fm-faultd: struct fm_ctl_region: it owns no page of that region */
	FM_CTL_TYPES         /* their number + 1 */
};

struct fm_ctl_hdr {
	uint32_t magic;
	uint16_t version;
	uint16_t type;   /* enum fm_ctl_type */
	uint32_t length; /* of the body */
	uint32_t nfds;   /* descriptors that travel with it */
};

struct fm_ctl_error {
	int32_t error;  /* errno value > 0 */
	char text[252]; /* one line for people, NUL-terminated: "what: why" */
};

struct fm_ctl_hello {
	uint64_t pages; /* of the region that will be registered */
};

struct fm_ctl_hello_ok {
	uint32_t nshards; /* userfaultfds to send for such a region, 1..FM_MAX_SHARDS */
	int32_t pid;      /* of fm-faultd */
};

/*
 * Register memory. fm-faultd itself does UFFDIO_API and UFFDIO_REGISTER on the fresh userfaultfds (made with O_CLOEXEC,
 * without UFFD_USER_MODE_ONLY, in the client's process); the client keeps its own copies open as long as the memory is
 * mapped, and has no reader on them. The memory is mapped MAP_SHARED from the memfd at hva.
 */
struct fm_ctl_register {
	uint64_t hva;          /* page-aligned, in the client */
	uint64_t pages;        /* 1..2^32 - 2 */
	uint64_t memfd_offset; /* page-aligned byte offset in the memfd of the page at hva */
	uint64_t limit_pages;  /* local budget of the region; 0 none */
	uint32_t kind;         /* enum fm_kind */
	int32_t pid;           /* client process; 0: the sender itself */
	uint32_t nshards;      /* userfaultfds that follow the memfd in the SCM_RIGHTS array */
	int32_t client_memfd;  /* number of the memfd in the client, or -1 */
	int32_t client_uffd[FM_MAX_SHARDS]; /* numbers of the userfaultfds in the client, to find them again */
	char name[FM_NAME_MAX];
	char vm_id[FM_NAME_MAX]; /* memory backend's id in QEMU, or "" */
};

struct fm_ctl_region {
	uint64_t id;
};

struct fm_ctl_evict {
	uint64_t id;     /* region; 0: all (FM_CTL_LIMIT only) */
	uint64_t pages;  /* to evict, evicted, or the budget (UINT64_MAX: none); FM_CTL_GRACE: ms */
	uint64_t cookie; /* fm-faultd's own, echoed by the evictor */
};

struct fm_ctl_server {
	char address[FM_SERVER_ADDRESS]; /* host:port or /path.sock, NUL-terminated */
	uint32_t role;                   /* enum fm_server_role */
	uint32_t reserved;
};

struct fm_ctl_evictor_ok {
	char store_uri[FM_URI_MAX];
	char key_file[256]; /* "": none */
	uint32_t replicas;
	uint32_t no_seal;
	uint32_t regions;  /* that FM_CTL_REGION_ADD follows for */
	uint32_t reserved;
};

/*
 * A region is cut in address order: shard i of n begins at this page, and ends where shard i + 1 begins. Both ends of the
 * protocol must know, since only the userfaultfd that has a range registered may unregister it. Pure.
 */
static inline uint64_t fm_ctl_shard_first(uint64_t pages, unsigned n, unsigned i)
{
	return (uint64_t)((unsigned __int128)pages * i / n);
}

/* Body length that a type must have. 0 for an empty body, -1 for an unknown type. Pure. */
int fm_ctl_body_length(unsigned type);

/*
 * Check a header that came from outside. Returns NULL when the message may be read on, else a string that says what is wrong
 * with it. Pure.
 */
const char *fm_ctl_check(const struct fm_ctl_hdr *h);

/* The run directory: opt when not NULL, else $FM_RUN_DIR when set and not empty, else /run/fm. Not owned by the caller. */
const char *fm_ctl_run_dir(const char *opt);

/*
 * Connect to the fm-faultd of a run directory. Returns a close-on-exec descriptor that the caller owns, or -errno
 * (-ENOENT, -ECONNREFUSED: no daemon; -EACCES; -ENAMETOOLONG). Any thread.
 */
int fm_ctl_connect(const char *run_dir);

/*
 * Send one message on a blocking socket: body of the length that type has, nfds descriptors (they stay the caller's).
 * Returns 0 or -errno. One thread a socket.
 */
int fm_ctl_send(int fd, unsigned type, const void *body, const int *fds, unsigned nfds);

/*
 * Receive one whole message on a blocking socket. type: set to its type. body: at least cap bytes, cap >= its length.
 * fds: room for FM_CTL_FDS, *nfds set; the caller owns what it gets (close-on-exec). Returns 0, or -errno: -EPIPE (peer
 * closed), -EPROTO (not a message of this protocol), -EMFILE (out of descriptors: type and body are set, but what came with it is lost); no
 * descriptors are left open then. One thread a socket.
 */
int fm_ctl_recv(int fd, unsigned *type, void *body, size_t cap, int *fds, unsigned *nfds);

/*
 * Send a request and wait for its reply, which must be of type want (-EPROTO else). reply: room for want's body. reply_fd:
 * NULL, or set to the one descriptor that comes with the reply (-EPROTO when there is none). When the peer answers
 * FM_CTL_ERROR: returns its -errno and copies its text to why (256 bytes, when not NULL); on any other failure why is "".
 */
int fm_ctl_call(int fd, unsigned type, const void *body, const int *fds, unsigned nfds, unsigned want, void *reply,
		int *reply_fd, char *why);

#endif
