/* The identity that a host has towards its registry, from a file: never on a command line, where everybody could read it. */
#ifndef FM_REGAUTH_H
#define FM_REGAUTH_H

#define FM_REGAUTH_MAX 256 /* bytes of an identity with its NUL */

/*
 * Read `user:password`, one line, from path into to (FM_REGAUTH_MAX bytes). Returns 0, or -errno with one line in why (256 bytes):
 * -EINVAL (not a regular file, not such a line), -EPERM (readable by others than its owner, or owned by another user than this process's), else
 * what the system said. The caller clears to when it is done with it. Any thread.
 */
int fm_regauth_read(const char *path, char *to, char *why);

#endif
