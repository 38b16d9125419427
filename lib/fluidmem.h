/*
 * libfm: far memory for ordinary C programs.
 *
 * Memory from fm_map() behaves like mmap(MAP_SHARED | MAP_ANONYMOUS) memory; what does not fit the
 * host's budget lives in the store of the fm-faultd that serves it. Link with libfm.a (fluidmem.pc).
 */
#ifndef FLUIDMEM_H
#define FLUIDMEM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* All zero means defaults. */
struct fm_options {
	const char *run_dir;  /* run directory of fm-faultd; NULL: $FM_RUN_DIR, else /run/fm */
	const char *name;     /* the region's name in fm-stat, 1..63 printable characters without spaces; NULL: the program's name */
	uint64_t local_bytes; /* local budget of this region, rounded up to pages; 0: only the daemon's global one */
	uint32_t dma_grace_ms; /* longest time that a read with O_DIRECT, or other DMA, into this memory takes, up to 60000; 0: no such thing */
};

/*
 * Map length bytes of far memory, zero-filled and page-aligned.
 *
 * length: bytes, rounded up to whole 4 KiB pages, less than 16 TiB (at most 2^32 - 2 pages). options: may be NULL; only read during the call.
 * Returns the address, or NULL with errno: EINVAL (length 0 or too large, bad name, local_bytes or dma_grace_ms), ECONNREFUSED or
 * ENOENT (no fm-faultd on that run directory), EACCES (not allowed to connect), EPERM (neither userfaultfd(2) nor the
 * daemon's /dev/userfaultfd may be used), EAGAIN (the daemon's registry is away: no new regions until it is back; or this
 * user has too many connections to it), EDQUOT (this user has too many regions, or too much far memory), ENOMEM,
 * EMFILE (no descriptors left here, or in fm-faultd), ENAMETOOLONG (run_dir is too long for a socket's path), EPROTO (the daemon speaks another version).
 *
 * The memory is MADV_DONTFORK (a forked child does not have it: touching it there is SIGSEGV; it may map memory of its own) and MADV_DONTDUMP.
 * A page that is lost by every replica of the store raises SIGBUS when touched, never other bytes. MADV_REMOVE frees
 * pages (they read as zeros); after MADV_DONTNEED a page holds its old bytes or zeros. mremap() is supported for a whole
 * mapping only. Who reads into it with O_DIRECT (also by io_uring or aio) must say so by dma_grace_ms: such I/O writes behind the
 * page tables, and what it writes after the page has left is lost. Any thread; several regions per process.
 */
void *fm_map(size_t length, const struct fm_options *options);

/*
 * Give back memory from fm_map() and free its pages, here and in the store.
 *
 * address, length: a whole mapping, or a page-aligned part of one (length is rounded up to pages), where it is now.
 * Returns 0, or -1 with errno: EINVAL (not memory of fm_map), ENOMEM (a part, and no memory to note that, or too many
 * mappings: nothing was given back). No other thread may use the range meanwhile. Any thread.
 */
int fm_unmap(void *address, size_t length);

#ifdef __cplusplus
}
#endif
#endif
