/*
 * libFuzzer target for the store's membership as the registry has it: no read outside the buffer, and what is accepted formats to
 * text that means the same.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=c11 -D_GNU_SOURCE -Ilib tests/fuzz/fuzz_members.c lib/members.c
 */
#include "members.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct fm_members m, again;
	static char text[FM_MEMBERS_TEXT], twice[FM_MEMBERS_TEXT];
	struct fm_members_change c = {.op = FM_MEMBERS_DRAIN};
	char why[FM_MEMBERS_WHY];
	uint64_t before;
	bool changed;
	size_t n;

	if (fm_members_parse((const char *)data, size, &m, why)) {
		if (strchr(why, '\n') || !*why)
			abort();
		return 0;
	}
	n = fm_members_format(&m, text);
	if (n >= sizeof text || fm_members_parse(text, n, &again, why) || fm_members_format(&again, twice) != n || strcmp(text, twice) != 0)
		abort();
	before = m.epoch;
	memcpy(c.address, m.member[size % m.n].address, sizeof c.address);
	changed = fm_members_change(&m, &c, why) == 1;
	if (m.epoch != before + changed)
		abort();
	return 0;
}
