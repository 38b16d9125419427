/*
 * libFuzzer target for RAMCloud's replies, protocol buffers and service locators: no access outside the buffer, what is handed out lies in it,
 * and readers come to an end.
 *
 * The first byte says what the rest is.
 */
#include "rcuri.h"
#include "rcwire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x) ((x) ? (void)0 : abort())

static const unsigned char *buf;
static size_t len;

static void within(const unsigned char *p, size_t n)
{
	CHECK(!p ? n == 0 : p >= buf && p <= buf + len && n <= (size_t)(buf + len - p));
}

static void multi(enum fm_rc_multi type)
{
	struct fm_rc_parts r;
	struct fm_rc_part part;
	size_t n = 0;
	uint32_t asked;

	if (fm_rc_multi_reply(&r, buf, len, type))
		return;
	asked = r.left;
	while (fm_rc_multi_next(&r, &part) == 1) {
		within(part.key, part.key_len);
		within(part.value, part.value_len);
		CHECK(!part.value || (type == FM_RC_READ && part.status == FM_RC_OK));
		CHECK(r.at <= len && ++n <= asked && n <= len / 12);
	}
}

static void messages(int servers)
{
	struct fm_rc_server_entry s;
	struct fm_rc_message m;
	struct fm_rc_tablet t;
	size_t n = 0;

	if (fm_rc_message(&m, buf, len))
		return;
	if (servers) {
		while (fm_rc_next_server(&m, &s) == 1) {
			within(s.locator, s.locator_len);
			CHECK(++n <= len);
		}
	} else {
		while (fm_rc_next_tablet(&m, &t) == 1) {
			within(t.locator, t.locator_len);
			CHECK(t.start <= t.end && ++n <= len);
		}
	}
	CHECK(m.at <= m.len);
}

static void names(void)
{
	struct fm_rc_place at;
	struct fm_rc_uri u;
	char why[FM_RC_WHY], *text;

	if (fm_rc_locator((const char *)buf, len, &at) == 0)
		CHECK(*at.host && memchr(at.host, 0, sizeof at.host) && at.port);
	text = malloc(len + 10);
	CHECK(text);
	memcpy(text, "ramcloud:", 9);
	memcpy(text + 9, buf, len);
	text[9 + len] = '\0';
	if (fm_rc_uri_parse(text, &u, why) == 0)
		CHECK((*u.zookeeper != '\0') != (u.fixed.port != 0) && u.span && u.timeout_ms);
	else
		CHECK(memchr(why, 0, sizeof why));
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned char *exact;
	uint32_t status, low, high;
	uint64_t id;

	if (size < 1 || size > 16384)
		return 0;
	/* The buffer ends where its memory does. */
	exact = malloc(size - 1 ? size - 1 : 1);
	CHECK(exact);
	memcpy(exact, data + 1, size - 1);
	buf = exact;
	len = size - 1;
	switch (data[0] % 7) {
	case 0:
		multi(FM_RC_READ);
		break;
	case 1:
		multi(FM_RC_REMOVE);
		break;
	case 2:
		multi(FM_RC_WRITE);
		break;
	case 3:
		messages(0);
		break;
	case 4:
		messages(1);
		break;
	case 5:
		names();
		break;
	default:
		if (fm_rc_status(buf, len, &status) == 0) {
			fm_rc_retry(buf, len, &low, &high);
			CHECK(low <= high);
			(void)fm_rc_table_id(buf, len, &id);
		}
	}
	free(exact);
	return 0;
}
