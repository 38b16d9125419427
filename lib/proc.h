/*
 * What /proc tells of another process: start time, mappings, descriptors. proc(5) is the source of every format here.
 *
 * The parsers are pure and take (buffer, length); the readers open the file and hand its bytes to them. Any thread.
 */
#ifndef FM_PROC_H
#define FM_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FM_PROC_NAME 128 /* bytes of a mapping's name kept, with its NUL; the rest is cut off */

/* One line of /proc/PID/maps. */
struct fm_mapping {
	uint64_t start, end; /* addresses in that process, bytes; end is the first byte after it */
	uint64_t offset;     /* in the file, bytes */
	uint64_t dev;        /* as st_dev (makedev); 0: no file */
	uint64_t ino;        /* 0: no file */
	bool read, write, exec;
	bool shared;         /* MAP_SHARED */
	char name[FM_PROC_NAME]; /* path as the kernel prints it, "[heap]", or "" */
};

/* What /proc/PID/smaps says of one mapping beyond the line in maps. */
struct fm_vmflags {
	uint64_t locked_kib; /* "Locked:" */
	uint64_t huge_kib;   /* "ShmemPmdMapped:" and "FilePmdMapped:": mapped by huge pages of a tmpfs or another file system */
	bool dontfork;       /* dc */
	bool locked;         /* lo: mlock(), mlockall() */
	bool hugetlb;        /* ht */
	bool nohuge;         /* nh: MADV_NOHUGEPAGE */
	bool uffd_missing;   /* um: some userfaultfd serves its missing pages already */
	bool uffd_wp;        /* uw */
	bool io;             /* io or pf: device memory, no pages */
};

/*
 * Start time of the process in buf, the text of /proc/PID/stat: field 22, in clock ticks since boot. comm may hold spaces,
 * newlines and parentheses. Returns 0 or -EPROTO. Pure.
 */
int fm_proc_parse_start(const char *buf, size_t len, uint64_t *start);

/* The CPU that a thread runs on, or ran on last, and its scheduling policy (SCHED_*), in the text of its stat file: fields 39 and 41. Returns 0 or -EPROTO. Pure. */
int fm_proc_parse_cpu(const char *buf, size_t len, uint64_t *cpu, uint64_t *policy);

/* As fm_proc_parse_cpu() of a thread of a process; allocates nothing. 0, -ESRCH, -EPROTO, -EACCES and the like. */
int fm_proc_cpu(int pid, int tid, uint64_t *cpu, uint64_t *policy);

/* As fm_proc_parse_start() of a living process. With its pid it names a process uniquely. 0, -ESRCH, -EPROTO. */
int fm_proc_start(int pid, uint64_t *start);

/*
 * Is uid one of the user ids in buf, the text of /proc/PID/status? Returns 0, -EPERM (another's), -EPROTO. Pure.
 */
int fm_proc_parse_owner(const char *buf, size_t len, uint64_t uid);

/* As fm_proc_parse_owner() of a living process. 0, -EPERM, -ESRCH, -EPROTO. */
int fm_proc_owned_by(int pid, uint64_t uid);

/*
 * Parse one line of /proc/PID/maps, without its newline. Returns 0, or -EPROTO and *m undefined. Pure.
 */
int fm_proc_parse_mapping(const char *line, size_t len, struct fm_mapping *m);

/*
 * Parse the text of a whole /proc/PID/maps. *list: an array of *n mappings in address order, to be freed by the caller (NULL
 * when *n is 0). Returns 0, -EPROTO (a line that is none; nothing to free), -ENOMEM.
 */
int fm_proc_parse_maps(const char *buf, size_t len, struct fm_mapping **list, size_t *n);

/* As fm_proc_parse_maps() of a living process. 0, -ESRCH (gone, or a zombie), -EACCES, -EPERM, -EPROTO, -ENOMEM. */
int fm_proc_maps(int pid, struct fm_mapping **list, size_t *n);

/* The mapping of the list that contains an address; NULL: none. It points into the list. Pure. */
const struct fm_mapping *fm_proc_find_address(const struct fm_mapping *list, size_t n, uint64_t address);

/*
 * Find the mapping that begins at start in buf, the text of /proc/PID/smaps. Returns 0, -ENOENT (no mapping begins there),
 * -EPROTO (it has no VmFlags line: the kernel is too old, or the text is cut off). Pure.
 */
int fm_proc_parse_vmflags(const char *buf, size_t len, uint64_t start, struct fm_vmflags *out);

/* As fm_proc_parse_vmflags() of a living process; reads smaps only as far as that mapping. Also -ESRCH, -EACCES. */
int fm_proc_vmflags(int pid, uint64_t start, struct fm_vmflags *out);

/*
 * The number of a descriptor of process pid that is open on the file (dev, ino). Returns it (>= 0), -ENOENT (none), -ESRCH,
 * -EACCES.
 */
int fm_proc_find_fd(int pid, uint64_t dev, uint64_t ino);

/*
 * Open the file behind a mapping of process pid read-write: by the number of one of its descriptors (/proc/PID/fd), else by
 * /proc/PID/map_files. *remote: set to that number, or -1. Returns a close-on-exec descriptor that the caller owns; -ENOENT,
 * -ESRCH, -EACCES, -EPERM (map_files needs CAP_CHECKPOINT_RESTORE).
 */
int fm_proc_open_mapping(int pid, const struct fm_mapping *m, int *remote);

/*
 * Does a process other than pid have the file (dev, ino) mapped MAP_SHARED? Returns 1 and *other its pid, 0, or -errno of
 * reading /proc. Processes whose maps the caller may not read are passed over: ask as root. Takes a few ms a 100 processes.
 */
int fm_proc_other_mapper(int pid, uint64_t dev, uint64_t ino, int *other);

/*
 * How many pages of a tmpfs file (or memfd) are parts of folios larger than a page? Exact, for [offset, offset + bytes), both
 * page-aligned: huge folios need not be mapped as such, and smaps tells only of those that are. file: open for reading; its
 * offset is changed. Looks at every page that is there, 64 MiB at a time (about 0.3 s per GiB); those in swap are read in. Must
 * come before the memory is registered: a page that is discarded meanwhile reads as zeros here. Returns 0 and *pages; or
 * -EACCES or -EPERM (needs CAP_SYS_ADMIN, and /proc/kpageflags), unless the file is empty; -ENOMEM; another -errno of reading
 * the file. Source: Linux, Documentation/admin-guide/mm/pagemap.rst.
 */
int fm_proc_large_folios(int file, uint64_t offset, uint64_t bytes, uint64_t *pages);

#endif
