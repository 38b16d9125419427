/*
 * A region that is moved by mremap() in the very moment in which the evictor protects pages of it, and its old addresses stay mapped
 * (MREMAP_DONTUNMAP): the protection lands there, and what is written at the new place raises no fault. Such pages must stay.
 */
#include "protocol.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static uint64_t *moved; /* where shard 0 is now; NULL: not moved yet */
static bool wrote;

/* The kernel, and a client that is faster than the evictor's next step. */
static int moving_ioctl(int fd, unsigned long request, void *arg)
{
	struct uffdio_writeprotect *w = arg;

	if (request == UFFDIO_WRITEPROTECT && w->mode && !moved) {
		size_t bytes = PAGES / SHARDS * FM_PAGE_SIZE;

		moved = mremap(t.memory, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL); /* glibc passes the last one on, given or not */
	}
	return ioctl(fd, request, arg);
}

static const struct fm_uffd_ops moving_kernel = {.ioctl = moving_ioctl, .read = read};

/* A store whose puts take so long that a client writes meanwhile. */
static struct fm_store_ops slow_ops;

static void slow_put_end(struct fm_store *s)
{
	if (moved && moved != MAP_FAILED && !wrote)
		for (unsigned p = 0; p < 64; p++)
			moved[p * WORDS] = 1000 + p;
	wrote = true;
	mem_put_end(s);
}

int main(void)
{
	unsigned wrong = 0;
	uint64_t features;

	if (fm_uffd_probe(&features) || (features & FM_UFFD_NEEDED) != FM_UFFD_NEEDED || !(features & FM_UFFD_REMAP)) {
		tap_skip("a region that moves", "no userfaultfd with shared-memory write protection here");
		return tap_done();
	}
	if (!start(&moving_kernel, PAGES)) {
		ok(false, "started");
		exit(tap_done());
	}
	slow_ops = mem_ops;
	slow_ops.put_end = slow_put_end;
	t.evict_store->ops = &slow_ops;
	for (unsigned p = 0; p < 64; p++)
		t.memory[p * WORDS] = 1 + p;
	fm_evict_drain(&t.evictor, &t.evict);
	fm_evict_batch(&t.evictor, &t.evict, 64);
	if (!moved || moved == MAP_FAILED) {
		tap_skip("a region that moves", "no MREMAP_DONTUNMAP for shared memory here (Linux 5.13)");
	} else {
		/* What is not away yet goes now, by its new address. (More pages are here than were written: those that came ahead.) */
		if (!wrote)
			slow_put_end(t.evict_store);
		for (unsigned i = 0; i < 1000 && mem.puts < 64; i++) {
			fm_evict_drain(&t.evictor, &t.evict);
			fm_evict_batch(&t.evictor, &t.evict, 64);
		}
		for (unsigned p = 0; p < 64; p++)
			wrong += moved[p * WORDS] != 1000 + p;
		is_u64(wrong, 0, "pages that lost what was written after the move");
		ok(mem.puts >= 64, "they leave from their new place");
	}
	for (unsigned i = 0; i < SHARDS; i++)
		fm_shard_stop(t.shard[i]);
	finish();
	if (moved && moved != MAP_FAILED)
		munmap(moved, PAGES / SHARDS * FM_PAGE_SIZE);
	return tap_done();
}
