/* Kernel uevents of memory blocks, from a netlink socket. */
#ifndef FM_ONLINE_WATCH_H
#define FM_ONLINE_WATCH_H

#include <signal.h>

/* Open the socket. Events that come from now on are kept for watch_next(). Returns an fd that the caller owns, or -errno. */
int watch_open(void);

/*
 * Wait for the next memory block to appear, with the signal mask mask meanwhile (the caller keeps its ending signals blocked, so
 * that none comes between its last look and the wait). Returns 0 and *block; -ENOBUFS (events were lost: look at all blocks again); -EINTR (a
 * signal); or another -errno (the socket is of no use any more).
 */
int watch_next(int fd, const sigset_t *mask, unsigned *block);

#endif
