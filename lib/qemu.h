/*
 * Reading what QEMU says in text meant for people: its command line, and output of the human monitor. Pure parsers. The forms
 * are those of QEMU 6 to 9 (monitor/hmp-cmds, softmmu/memory.c, qemu-options.hx).
 */
#ifndef FM_QEMU_H
#define FM_QEMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FM_QEMU_PATH 108 /* bytes of a Unix socket's path with its NUL: sun_path */

/*
 * Paths of the QMP sockets (Unix) in buf, the text of /proc/PID/cmdline: -qmp unix:PATH, -qmp-pretty, and -mon
 * mode=control with its -chardev socket,path=PATH. JSON forms of options are not read. paths: room for max. *by_fd: set when
 * there is one that was handed over as a descriptor (libvirt does that), which has no path. Returns the number of paths.
 */
unsigned fm_qemu_qmp_paths(const char *buf, size_t len, char (*paths)[FM_QEMU_PATH], unsigned max, bool *by_fd);

/*
 * The value of option `-name` (or `--name`), the last time it is given, in buf, the text of /proc/PID/cmdline. key: of a value in its
 * option list ("guest" of "-name guest=x,debug-threads=on"); NULL: the option's whole text. Returns true and value, or false (not
 * there, or it does not fit).
 */
bool fm_qemu_option(const char *buf, size_t len, const char *name, const char *key, char *value, size_t cap);

/* A memory backend on QEMU's command line. */
struct fm_qemu_backend {
	char id[64];
	uint64_t bytes;
	bool share;
	char path[256]; /* memory-backend-file: its file, or a folder; else "" */
};

/*
 * The memory backends (-object memory-backend-*, as a list or as JSON) in buf, the text of /proc/PID/cmdline. list: room for max;
 * those that cannot be understood are left out. Returns their number.
 */
unsigned fm_qemu_backends(const char *buf, size_t len, struct fm_qemu_backend *list, unsigned max);

/* A device on QEMU's command line that uses a memory backend. */
struct fm_qemu_memdev {
	char driver[40]; /* "ivshmem-plain" */
	char backend[64]; /* the backend's id */
};

/*
 * The devices with a memory backend (-device DRIVER,memdev=ID, as a list or as JSON) in buf, the text of /proc/PID/cmdline. list: room for
 * max; those that cannot be understood are left out. Returns their number.
 */
unsigned fm_qemu_memdevs(const char *buf, size_t len, struct fm_qemu_memdev *list, unsigned max);

/*
 * Where the guest sees a RAM block, from the text of `info mtree -f` (NUL-terminated). id: of the memory backend. *gpa: a
 * guest physical address at which some part of it is mapped; *offset: of that part in the block, bytes. Returns 0 or -ENOENT
 * (not mapped into the guest).
 */
int fm_qemu_find_ram(const char *text, const char *id, uint64_t *gpa, uint64_t *offset);

/*
 * The answer to `gpa2hva` (NUL-terminated): *hva, when it is about the RAM block id. Returns 0, -ENOENT (about another one), -EPROTO.
 */
int fm_qemu_parse_gpa2hva(const char *text, const char *id, uint64_t *hva);

#endif
