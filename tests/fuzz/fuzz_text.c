/*
 * libFuzzer target for short text from operators and from the registry: sizes, URIs of stores and registries, ids, records of regions. No
 * access outside; what is accepted can be written again, and means the same; what is refused has its reason in one line.
 */
#include "mcuri.h"
#include "reguri.h"
#include "size.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void one_line(int r, const char *why, size_t cap)
{
	if (r != 0 && r != -EINVAL)
		abort();
	if (r && (!*why || strnlen(why, cap) == cap || strchr(why, '\n')))
		abort();
}

static void sizes(const char *text)
{
	const char *why = NULL;
	uint64_t pages = 0;

	if (fm_size_parse(text, 1 << 20, &pages, &why) == 0) {
		char buf[16];

		if (pages == 0 || !*fm_size_format(pages, buf) || strlen(buf) >= sizeof buf)
			abort();
	} else if (!why) {
		abort();
	}
}

static void uris(const char *text)
{
	char why[256] = "";
	struct fm_mc_uri mc;
	struct fm_registry_uri reg;
	int r = fm_mc_uri_parse(text, &mc, why);

	/* The text itself may hold line ends: it is printed, cut, as it is. */
	if (!strpbrk(text, "\n\r"))
		one_line(r, why, sizeof why);
	if (r == 0 && mc.nservers == 0)
		abort();
	*why = '\0';
	r = fm_registry_uri_parse(text, &reg, why);
	if (!strpbrk(text, "\n\r"))
		one_line(r, why, sizeof why);
	if (r == 0 && *reg.connect && (reg.timeout_ms < 1000 || reg.grace_s > 86400))
		abort();
}

static void records(const char *text, size_t len)
{
	struct fm_registry_record a, b;
	char again[FM_REGISTRY_RECORD];
	uint64_t id;
	int n;

	if (fm_registry_id_parse(text, len, &id) && (len != 16 || id == 0))
		abort();
	if (fm_registry_record_parse(text, len, &a))
		return;
	n = fm_registry_record_format(&a, again);
	if (n < 0 || fm_registry_record_parse(again, (size_t)n, &b) || a.host != b.host || a.pages != b.pages || a.epoch != b.epoch ||
	    a.created != b.created || strcmp(a.store, b.store) != 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1), *exact = malloc(size ? size : 1);

	if (!text || !exact)
		abort();
	memcpy(text, data, size);
	text[size] = '\0';
	memcpy(exact, data, size);
	sizes(text);
	uris(text);
	records(exact, size);
	free(text);
	free(exact);
	return 0;
}
