/*
 * Memory blocks of a Linux system, as /sys/devices/system/memory/memoryN shows them (Linux,
 * Documentation/admin-guide/mm/memory-hotplug.rst): what is hotplugged begins offline and is brought online block by block.
 *
 * ZONE_MOVABLE holds only memory that can be taken away again; the kernel's own data goes to ZONE_NORMAL.
 */
#ifndef FM_MEMBLOCK_H
#define FM_MEMBLOCK_H

#include <stddef.h>
#include <stdint.h>

#define FM_MEMBLOCK_TEXT 64 /* bytes that hold any attribute with its NUL */

/* Where to bring a block online. */
enum fm_memblock_zone {
	FM_MEMBLOCK_MOVABLE = 1,
	FM_MEMBLOCK_KERNEL = 2,
	FM_MEMBLOCK_ANY = 3, /* movable; kernel when that is refused */
};

enum fm_memblock_state {
	FM_MEMBLOCK_OFFLINE = 0,
	FM_MEMBLOCK_ONLINE,
	FM_MEMBLOCK_OTHER, /* going offline */
};

/* How to reach the blocks; sysfs, or a test's own. Each returns 0 or -errno. */
struct fm_memblock_ops {
	void *ctx;
	/* The first line of attribute attr of a block, without its newline, NUL-terminated. */
	int (*read)(void *ctx, unsigned block, const char *attr, char text[FM_MEMBLOCK_TEXT]);
	int (*write)(void *ctx, unsigned block, const char *attr, const char *text);
};

/* From the first block to the last. */
struct fm_memblock_range {
	unsigned first, last;
};

/* The blocks below a sysfs tree. */
struct fm_memblock_sysfs {
	int dirfd; /* of devices/system/memory */
};

/* The number in `memory34`, length bytes long. Returns 0 and *block, or -EINVAL. Pure; any thread. */
int fm_memblock_number(const char *text, size_t length, unsigned *block);

/*
 * Parse a list of blocks: `memory34,memory35`, `34-37`, `memory3-memory7`, of length bytes. ranges: room for max. Returns their
 * number, or -EINVAL (empty, not a list, first above last), -E2BIG (more than max ranges). Pure; any thread.
 */
int fm_memblock_parse_list(const char *text, size_t length, struct fm_memblock_range *ranges, size_t max);

/* A block's state. Returns 0 and *state, or -errno (-ENOENT: no such block). Any thread. */
int fm_memblock_state(const struct fm_memblock_ops *ops, unsigned block, enum fm_memblock_state *state);

/*
 * Bring a block online. zone: where; set to where it went. Returns 0; 1 when it is online already (zone unchanged); or -errno:
 * -EACCES, -EPERM, -EROFS (sysfs may not be written), -ENOENT (no such block), -EBUSY (going offline), else the kernel's reason.
 */
int fm_memblock_online(const struct fm_memblock_ops *ops, unsigned block, enum fm_memblock_zone *zone);

/* Take a block offline. Returns 0; 1 when it is offline already; or -errno as above (-EBUSY: memory in it cannot be moved). */
int fm_memblock_offline(const struct fm_memblock_ops *ops, unsigned block);

/*
 * Open the blocks of the sysfs tree at root ("/sys"). Returns 0 and *fs, closed by fm_memblock_sysfs_close(); -ENOTDIR when root
 * is no sysfs tree, -ENOENT when it has no memory blocks, or -errno.
 */
int fm_memblock_sysfs_open(const char *root, struct fm_memblock_sysfs *fs);
void fm_memblock_sysfs_close(struct fm_memblock_sysfs *fs);

/* ops for it; fs must outlive them. */
struct fm_memblock_ops fm_memblock_sysfs_ops(struct fm_memblock_sysfs *fs);

/* Bytes of a block. Returns 0 and *bytes, or -errno. */
int fm_memblock_sysfs_block_bytes(const struct fm_memblock_sysfs *fs, uint64_t *bytes);

/* The numbers of all blocks in ascending order; the caller frees *blocks. Returns 0 or -errno. */
int fm_memblock_sysfs_list(const struct fm_memblock_sysfs *fs, unsigned **blocks, size_t *count);

#endif
