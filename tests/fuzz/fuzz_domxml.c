/*
 * libFuzzer target for the reader of domain XML: no read or write outside its buffers, no leak, and what passes is consistent.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=c11 -D_GNU_SOURCE -Ilib tests/fuzz/fuzz_domxml.c lib/domxml.c -lexpat
 */
#include "domxml.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const char *text, size_t size)
{
	struct fm_domxml d;

	if (fm_domxml_parse(text, size, &d)) {
		if (d.memory)
			abort();
		return;
	}
	if (!*d.name || strlen(d.uuid) != FM_DOMXML_UUID - 1 || d.ncells > FM_DOMXML_CELLS)
		abort();
	for (size_t i = 0; i < d.nmemory; i++)
		if (d.memory[i].node < 0 || d.memory[i].node >= FM_DOMXML_CELLS || d.memory[i].slot < -1)
			abort();
	fm_domxml_free(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char head[] = "<domain id='1'><name>x</name><uuid>17c2046c-3100-480b-8139-f29080b1afd3</uuid>";
	static const char tail[] = "</domain>";
	char *buf = malloc(sizeof head + size + sizeof tail);

	if (!buf)
		abort();
	check((const char *)data, size);
	/* The same inside a domain, so that it is worth looking at. */
	memcpy(buf, head, sizeof head - 1);
	memcpy(buf + sizeof head - 1, data, size);
	memcpy(buf + sizeof head - 1 + size, tail, sizeof tail - 1);
	check(buf, sizeof head - 1 + size + sizeof tail - 1);
	free(buf);
	return 0;
}
