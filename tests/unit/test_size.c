#include "size.h"

#include <errno.h>

#include "tap.h"

static const struct {
	const char *text;
	uint64_t whole, pages;
} good[] = {
    {"4096", 0, 1},
    {"8192", 0, 2},
    {"4k", 0, 1},
    {"64K", 0, 16},
    {"512M", 0, 131072},
    {"1m", 0, 256},
    {"4G", 0, 1048576},
    {"1g", 0, 262144},
    {"1T", 0, 268435456},
    {"1t", 0, 268435456},
    {"20000p", 0, 20000},
    {"1p", 0, 1},
    {"007p", 0, 7},
    {"25%", 1000, 250},
    {"100%", 1000, 1000},
    {"1%", 199, 1},
    {"50%", UINT64_MAX, UINT64_MAX / 2},
    {"9223372036854771712", 0, 2251799813685247}, /* 2^63 - 4096: the largest */
    {"8388607T", 0, 8388607ull << 28},
};

static const struct {
	const char *text;
	uint64_t whole;
	const char *why;
} bad[] = {
    {"", 0, "empty"},
    {"0", 0, "zero"},
    {"0M", 0, "zero"},
    {"00", 0, "zero"},
    {"-1", 0, "negative"},
    {"-4096", 0, "negative"},
    {"+4096", 0, "not a size"},
    {" 4096", 0, "not a size"},
    {"M", 0, "not a size"},
    {"4096 ", 0, "unknown unit (K, M, G, T, p or %)"},
    {"4X", 0, "unknown unit (K, M, G, T, p or %)"},
    {"4P", 0, "unknown unit (K, M, G, T, p or %)"},
    {"4MB", 0, "not a size"},
    {"0x1000", 0, "not a size"},
    {"1.5G", 0, "not a size"},
    {"1e6", 0, "not a size"},
    {"4095", 0, "not a multiple of the 4096-byte page"},
    {"4097", 0, "not a multiple of the 4096-byte page"},
    {"1", 0, "not a multiple of the 4096-byte page"},
    {"6K", 0, "not a multiple of the 4096-byte page"},
    {"18446744073709551616", 0, "too large"},
    {"18446744073709551615", 0, "too large"},
    {"9223372036854775808", 0, "too large"},
    {"99999999999999999999999999", 0, "too large"},
    {"8388608T", 0, "too large"},
    {"18446744073709551615p", 0, "too large"},
    {"25%", 0, "a percentage of what is not known here"},
    {"101%", 1000, "more than 100%"},
    {"1%", 99, "less than one page"},
};

static const struct {
	uint64_t pages;
	const char *text;
} formats[] = {
    {0, "0K"},      {1, "4K"},        {256, "1M"},         {16384, "64M"},
    {393216, "1.5G"}, {268435456, "1T"}, {16359, "63.9M"}, {UINT64_MAX, "65536E"},
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

int main(void)
{
	for (size_t i = 0; i < COUNT(good); i++) {
		uint64_t pages = 0;
		const char *why = NULL;
		int r = fm_size_parse(good[i].text, good[i].whole, &pages, &why);

		is_u64(r, 0, "'%s' is a size", good[i].text);
		is_u64(pages, good[i].pages, "'%s' has the right pages", good[i].text);
	}
	for (size_t i = 0; i < COUNT(bad); i++) {
		uint64_t pages = 0;
		const char *why = NULL;
		int r = fm_size_parse(bad[i].text, bad[i].whole, &pages, &why);

		is_u64(r, -EINVAL, "'%s' is refused", bad[i].text);
		is_str(why, bad[i].why, "'%s' is refused for the right reason", bad[i].text);
	}
	is_u64(fm_size_parse("x", 0, &(uint64_t){0}, NULL), -EINVAL, "the reason is optional");
	for (size_t i = 0; i < COUNT(formats); i++) {
		char buf[16];

		is_str(fm_size_format(formats[i].pages, buf), formats[i].text, "%" PRIu64 " pages as text",
		       formats[i].pages);
	}
	return tap_done();
}
