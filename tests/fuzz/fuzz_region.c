/*
 * libFuzzer target for the checker of region files: no read outside the buffer, and what passes is consistent.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=c11 -D_GNU_SOURCE -Ilib tests/fuzz/fuzz_region.c lib/shmfile.c
 */
#include "shmfile.h"

#include <stdlib.h>
#include <string.h>

#define FIELDS offsetof(struct fm_region_hdr, limit_pages) /* what the checker looks at */
#define RANGE  16                                           /* first_page and pages of a shard */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A whole beginning of a file out of few bytes: the header's fields, then the range of each shard. Returns its length. */
static size_t unfold(const uint8_t *data, size_t size, uint8_t **out)
{
	size_t room = 4 * FM_PAGE_SIZE + FM_MAX_SHARDS * sizeof(struct fm_shard_shm), at;
	uint8_t *buf = calloc(1, room);

	if (!buf)
		abort();
	memcpy(buf, data, size < FIELDS ? size : FIELDS);
	for (unsigned i = 0; i < FM_MAX_SHARDS && size >= FIELDS + (i + 1) * RANGE; i++) {
		at = (sizeof(struct fm_region_hdr) + 4095) / 4096 * 4096 + i * sizeof(struct fm_shard_shm);
		memcpy(buf + at, data + FIELDS + i * RANGE, RANGE);
	}
	*out = buf;
	return room;
}

static void check(const uint8_t *head, size_t length, uint64_t file_size)
{
	struct fm_region_hdr h;
	uint64_t shards, words, file;

	if (fm_shmfile_region_check(head, length, file_size))
		return;
	memcpy(&h, head, sizeof h);
	if (fm_shmfile_layout(h.pages, h.nshards, &shards, &words, &file) || words > length || file != file_size ||
	    strnlen(h.name, FM_NAME_MAX) == FM_NAME_MAX)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fm_region_hdr h;
	uint64_t shards, words, file;
	uint8_t *buf;
	size_t length;

	check(data, size, size);
	/* Now with sizes and offsets made right where they can be, so that the later checks are reached. */
	length = unfold(data, size, &buf);
	memcpy(&h, buf, sizeof h);
	h.magic = FM_MAGIC_REGION;
	h.version = FM_SHM_VERSION;
	h.nshards = h.nshards % FM_MAX_SHARDS + 1;
	if (fm_shmfile_layout(h.pages, h.nshards, &shards, &words, &file) == 0) {
		h.shards_offset = shards;
		h.words_offset = words;
		memcpy(buf, &h, sizeof h);
		check(buf, length, file);
		h.sum = fm_shmfile_region_sum(buf);
		memcpy(buf, &h, sizeof h);
		check(buf, length, file);
		check(buf, words - 1, file);
	}
	free(buf);
	return 0;
}
