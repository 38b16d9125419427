/*
 * libFuzzer target for a damaged region file behind a header that is right: the tables of pages in flight and the page words, as a new daemon
 * finds them. Mending must end, touch nothing outside the region, and leave no page in a state that an owner who is dead must change.
 */
#include "shard.h"
#include "shmfile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 40u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The checksum over what is before the page words. */
static void seal(int fd, uint64_t words_offset)
{
	struct fm_region_hdr *h = mmap(NULL, words_offset, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (h == MAP_FAILED)
		abort();
	h->sum = fm_shmfile_region_sum(h);
	munmap(h, words_offset);
}

static int make_file(uint64_t *file)
{
	static struct fm_region_hdr h;
	uint64_t shards, words;
	int fd = memfd_create("state", MFD_CLOEXEC);

	if (fd < 0 || fm_shmfile_layout(PAGES, 2, &shards, &words, file) || ftruncate(fd, (off_t)*file) < 0)
		abort();
	h = (struct fm_region_hdr){.magic = FM_MAGIC_REGION, .version = FM_SHM_VERSION, .nshards = 2, .id = 1, .pages = PAGES};
	h.shards_offset = shards;
	h.words_offset = words;
	h.kind = FM_KIND_MAP;
	h.pid = 1;
	strcpy(h.name, "fuzz");
	if (pwrite(fd, &h, sizeof h, 0) != (ssize_t)sizeof h)
		abort();
	for (unsigned i = 0; i < 2; i++) {
		struct fm_shard_shm s = {.first_page = PAGES / 2 * i, .pages = PAGES / 2};

		if (pwrite(fd, &s, 32, (off_t)(shards + i * sizeof s)) != 32)
			abort();
	}
	seal(fd, words);
	return fd;
}

static uint32_t next(const uint8_t **data, size_t *size)
{
	uint32_t v = 0;

	if (!*size)
		return 0;
	v = **data;
	(*data)++;
	(*size)--;
	/* Pages mostly; and sometimes something far off. */
	if (v >= 250 && *size >= 4) {
		memcpy(&v, *data, 4);
		*data += 4;
		*size -= 4;
	}
	return v;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int memfd = -1;
	struct fm_region_map m;
	const char *why = NULL;
	bool named[PAGES] = {false};
	struct fm_count words = {0};
	uint64_t file;
	uint32_t v;
	int fd = make_file(&file);

	if (memfd < 0 && ((memfd = memfd_create("memory", MFD_CLOEXEC)) < 0 || ftruncate(memfd, PAGES * 4096) < 0 ||
			  pwrite(memfd, "x", 1, 7 * 4096) != 1))
		abort();
	if (fm_shmfile_region_map_fd(fd, FM_SHMFILE_WRITE | FM_SHMFILE_WORDS, &m, &why)) {
		fprintf(stderr, "the header is refused: %s\n", why ? why : "?");
		abort();
	}
	for (unsigned p = 0; p < PAGES; p++)
		m.words[p] = (uint64_t)next(&data, &size) | (uint64_t)next(&data, &size) << 20;
	/* As after a crash: the evictor's in its table, the shards' in theirs. */
	for (unsigned k = 0; k < 8; k++) {
		v = next(&data, &size);
		m.hdr->evict_inflight[k] = v;
		if (v && v <= PAGES && fm_word_state(m.words[v - 1]) != FM_BUSY)
			named[v - 1] = true;
	}
	for (unsigned i = 0; i < 16; i++) {
		v = next(&data, &size);
		m.shards[i / 8].inflight[i % 8] = v;
		if (v && v <= PAGES && fm_word_state(m.words[v - 1]) == FM_BUSY)
			named[v - 1] = true;
	}
	fm_evict_recover(&m, memfd);
	fm_shard_recover(&m, memfd);
	if (fm_count_words(&m, 0, PAGES, &words))
		abort();
	for (unsigned p = 0; p < PAGES; p++)
		if (named[p] && (fm_word_state(m.words[p]) == FM_BUSY || fm_word_state(m.words[p]) == FM_WRITEBACK ||
				 fm_word_state(m.words[p]) == FM_DROPPING))
			abort();
	if (words.resident + words.remote > PAGES)
		abort();
	fm_shmfile_region_unmap(&m);
	return 0;
}
