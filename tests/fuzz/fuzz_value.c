/*
 * libFuzzer target for values from a network store: raw bytes as a value; then the same bytes as the payload of a value whose
 * header and checksum are right, so that LZ4 gets to see them. No access outside value and page.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=c11 -D_GNU_SOURCE -Ilib tests/fuzz/fuzz_value.c lib/value.c \
 *       lib/seal.c -lsodium -llz4
 */
#include "value.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Page and value end where their memory does. */
static int decode(const struct fm_seal *s, const uint8_t *value, size_t length)
{
	static struct fm_value_scratch scratch;
	uint8_t *exact = malloc(length ? length : 1), *page = malloc(FM_VALUE_PAGE);
	int rc;

	if (!exact || !page)
		abort();
	memcpy(exact, value, length);
	rc = fm_value_decode(s, 3, 4, exact, length, page, &scratch);
	if (rc != 0 && rc != -EBADMSG)
		abort();
	/* What was accepted is the page of a value that says the same. */
	if (rc == 0) {
		uint8_t again[FM_VALUE_MAX], back[FM_VALUE_PAGE];
		int n = fm_value_encode(s, 3, 4, page, again, &scratch);

		if (n < 0 || fm_value_decode(s, 3, 4, again, (size_t)n, back, &scratch) != 0 ||
		    memcmp(back, page, sizeof back) != 0)
			abort();
	}
	free(exact);
	free(page);
	return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct fm_seal *s;
	uint8_t v[FM_VALUE_MAX] = { 'f', 'm', 'p', 'g', 1, FM_CODEC_LZ4, FM_SEAL_CHECKSUM, 0, 4 };
	const struct fm_seal_at at = { .page = 3, .gen = 4, .head = v, .head_length = FM_VALUE_HEADER };
	const size_t payload = FM_VALUE_HEADER + FM_SEAL_TAG;

	if (!s && fm_seal_new(NULL, 77, FM_SEAL_CHECKSUM, &s) != 0)
		abort();
	(void)decode(s, data, size);
	if (size == 0 || size > FM_VALUE_PAGE)
		return 0;
	v[5] = size == FM_VALUE_PAGE ? FM_CODEC_NONE : FM_CODEC_LZ4;
	v[16] = (uint8_t)size;
	v[17] = (uint8_t)(size >> 8);
	if (fm_seal_put(s, &at, data, size, v + payload, v + FM_VALUE_HEADER) != 0)
		abort();
	if (decode(s, v, payload + size) != 0 && size == FM_VALUE_PAGE)
		abort();
	return 0;
}
