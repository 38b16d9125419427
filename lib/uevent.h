/*
 * The kernel's uevents, as a NETLINK_KOBJECT_UEVENT socket delivers them: `ACTION@DEVPATH` and KEY=VALUE strings, each ended by
 * a NUL (Linux, lib/kobject_uevent.c).
 */
#ifndef FM_UEVENT_H
#define FM_UEVENT_H

#include <stddef.h>

/* The parts of an event that count here; they point into the message. */
struct fm_uevent {
	const char *action;    /* "add", "remove", "online" ... */
	const char *devpath;   /* below /sys, begins with a slash */
	const char *subsystem; /* "memory" ... */
};

/*
 * Parse one message. buf: its length bytes; not changed, and must outlive *out. Returns 0 and *out, or -EINVAL when it is no
 * kernel uevent with these three parts (a udev daemon's messages begin with "libudev" and are refused, too). Pure; any thread.
 */
int fm_uevent_parse(const char *buf, size_t length, struct fm_uevent *out);

/*
 * The memory block that an event is about. Returns 0 and *block, or -ENOENT for another device. Pure; any thread.
 */
int fm_uevent_memory_block(const struct fm_uevent *event, unsigned *block);

#endif
