/*
 * libFuzzer target for memcached's replies: no access outside the buffer, what is handed out lies in it, and what a reply is
 * does not depend on the bytes behind it, nor on how it came in pieces.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=c11 -D_GNU_SOURCE -Ilib tests/fuzz/fuzz_mcwire.c lib/mcwire.c
 */
#include "mcwire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x) ((x) ? (void)0 : abort())

static int within(const char *buf, size_t len, const char *p, size_t n)
{
	return !p ? n == 0 : p >= buf && p <= buf + len && n <= (size_t)(buf + len - p);
}

/* The buffer ends where its memory does. */
static enum fm_mc_reply parse(const uint8_t *data, size_t len, size_t *used)
{
	char *exact = malloc(len ? len : 1);
	struct fm_mc_item item;
	enum fm_mc_reply r;

	CHECK(exact);
	memcpy(exact, data, len);
	r = fm_mc_parse(exact, len, used, &item);
	CHECK(*used <= len);
	CHECK((*used == 0) == (r == FM_MC_MORE || r == FM_MC_GARBAGE));
	if (*used) {
		CHECK(within(exact, *used, item.key, item.key_len) && within(exact, *used, item.data, item.data_len) &&
		      within(exact, *used, item.text, item.text_len));
		CHECK(item.data_len <= FM_MC_VALUE_MAX);
		if (r == FM_MC_VALUE)
			CHECK(fm_mc_key_ok(item.key, item.key_len));
		if (r == FM_MC_VALUE || r == FM_MC_STAT)
			CHECK(item.key && item.key_len && item.data);
	}
	free(exact);
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t at = 0, used, part_used;

	if (size > 16384)
		return 0;
	while (at <= size) {
		enum fm_mc_reply r = parse(data + at, size - at, &used), part;

		if (r == FM_MC_MORE) {
			/* A reply of the longest line and value is never waited for longer than this. */
			CHECK(size - at < FM_MC_LINE_MAX + FM_MC_VALUE_MAX + 2);
			return 0;
		}
		if (r == FM_MC_GARBAGE)
			return 0;
		part = parse(data + at, used, &part_used);
		CHECK(part == r && part_used == used);
		/* Cut anywhere it is not a reply; a short look at a few places is enough for long ones. */
		for (size_t cut = 0; cut < used; cut += 1 + used / 64) {
			part = parse(data + at, cut, &part_used);
			CHECK(part == FM_MC_MORE || (part == FM_MC_GARBAGE && r == FM_MC_GARBAGE));
		}
		at += used;
	}
	return 0;
}
