/* memcached's replies: whole, in pieces, and not memcached's at all. */
#include <string.h>

#include "mcwire.h"
#include "tap.h"

static enum fm_mc_reply parse(const char *text, size_t *used, struct fm_mc_item *item)
{
	return fm_mc_parse(text, strlen(text), used, item);
}

static void test_values(void)
{
	static const char text[] = "VALUE k:1 0 5\r\nab\r\nc\r\nEND\r\n";
	struct fm_mc_item i;
	size_t used;

	is_u64(fm_mc_parse(text, sizeof text - 1, &used, &i), FM_MC_VALUE, "a value");
	is_u64(used, 22, "... its length");
	ok(i.key_len == 3 && memcmp(i.key, "k:1", 3) == 0, "... its key");
	ok(i.data_len == 5 && memcmp(i.data, "ab\r\nc", 5) == 0, "... its data, line ends and all");
	is_u64(fm_mc_parse(text + 22, 5, &used, &i), FM_MC_END, "the end behind it");
	for (size_t n = 0; n < 22; n++)
		if (fm_mc_parse(text, n, &used, &i) != FM_MC_MORE || used) {
			ok(0, "a value cut off after %zu bytes", n);
			return;
		}
	ok(1, "a value cut off anywhere: more");
	is_u64(parse("VALUE k 0 2\r\nabXX", &used, &i), FM_MC_GARBAGE, "data without its end");
	is_u64(parse("VALUE k 0 99999999999\r\n", &used, &i), FM_MC_GARBAGE, "a length of eleven digits");
	is_u64(parse("VALUE k 0 8193\r\n", &used, &i), FM_MC_GARBAGE, "more than we take");
	is_u64(parse("VALUE k 0 -1\r\n", &used, &i), FM_MC_GARBAGE, "a negative length");
	is_u64(parse("VALUE k 0\r\n", &used, &i), FM_MC_GARBAGE, "no length");
	is_u64(parse("VALUE  0 1\r\n", &used, &i), FM_MC_GARBAGE, "no key");
	is_u64(parse("VALUE k 0 0 77\r\n\r\n", &used, &i), FM_MC_VALUE, "an empty value, with its cas");
}

static void test_lines(void)
{
	static const struct {
		const char *text;
		enum fm_mc_reply r;
	} t[] = {
	    {"STORED\r\n", FM_MC_STORED},
	    {"NOT_STORED\r\n", FM_MC_NOT_STORED},
	    {"DELETED\r\n", FM_MC_DELETED},
	    {"NOT_FOUND\r\n", FM_MC_NOT_FOUND},
	    {"SERVER_ERROR out of memory storing object\r\n", FM_MC_FULL},
	    {"SERVER_ERROR object too large for cache\r\n", FM_MC_TOO_LARGE},
	    {"SERVER_ERROR busy\r\n", FM_MC_ERROR},
	    {"ERROR\r\n", FM_MC_ERROR},
	    {"VERSION 1.6.18\r\n", FM_MC_VERSION},
	    {"STAT evictions on\r\n", FM_MC_STAT},
	    {"STORED\n", FM_MC_GARBAGE},
	    {"\r\n", FM_MC_GARBAGE},
	    {"STOREDX\r\n", FM_MC_GARBAGE},
	    {"HTTP/1.1 400 Bad Request\r\n", FM_MC_GARBAGE},
	    {"-ERR unknown command\r\n", FM_MC_GARBAGE},
	    {"STOR", FM_MC_MORE},
	    {"", FM_MC_MORE},
	};
	struct fm_mc_item i;
	char flood[FM_MC_LINE_MAX + 10];
	size_t used;

	for (size_t k = 0; k < sizeof t / sizeof t[0]; k++)
		is_u64(parse(t[k].text, &used, &i), t[k].r, "line %zu: %.*s", k, (int)strcspn(t[k].text, "\r\n"), t[k].text);
	memset(flood, 'x', sizeof flood);
	is_u64(fm_mc_parse(flood, sizeof flood, &used, &i), FM_MC_GARBAGE, "a line without end");
}

static void test_requests(void)
{
	char to[64];

	is_u64(fm_mc_set(to, sizeof to, "k", 4096), strlen("set k 0 0 4096\r\n"), "a set");
	ok(strcmp(to, "set k 0 0 4096\r\n") == 0, "... its text");
	is_u64(fm_mc_set(to, 8, "k", 4096), 0, "no room for it");
	ok(fm_mc_delete(to, sizeof to, "k") && strcmp(to, "delete k\r\n") == 0, "a delete");
	ok(fm_mc_key_ok("abc", 3) && !fm_mc_key_ok("", 0) && !fm_mc_key_ok("a b", 3) && !fm_mc_key_ok("a\n", 2), "keys");
}

int main(void)
{
	test_values();
	test_lines();
	test_requests();
	return tap_done();
}
