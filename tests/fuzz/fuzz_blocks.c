/*
 * libFuzzer target for lists of memory blocks: no read outside the text, ranges in order.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=c11 -D_GNU_SOURCE -Ilib tests/fuzz/fuzz_blocks.c lib/memblock.c
 */
#include "memblock.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fm_memblock_range r[4];
	int n = fm_memblock_parse_list((const char *)data, size, r, 4);

	for (int i = 0; i < n; i++)
		if (r[i].last < r[i].first || n > 4)
			abort();
	return 0;
}
