/*
 * libFuzzer target for the parser of kernel uevents: no read outside the message.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=c11 -D_GNU_SOURCE -Ilib tests/fuzz/fuzz_uevent.c lib/uevent.c lib/memblock.c
 */
#include "uevent.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fm_uevent e;
	unsigned block;

	if (fm_uevent_parse((const char *)data, size, &e) != 0)
		return 0;
	if (strlen(e.action) + strlen(e.devpath) + strlen(e.subsystem) > size)
		abort();
	(void)fm_uevent_memory_block(&e, &block);
	return 0;
}
