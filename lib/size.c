#include "size.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>

static int refuse(const char **why, const char *reason)
{
	if (why)
		*why = reason;
	return -EINVAL;
}

int fm_size_parse(const char *text, uint64_t whole_pages, uint64_t *pages, const char **why)
{
	uint64_t n = 0, unit = 1, bytes;
	const char *p = text;

	if (*p == '-')
		return refuse(why, "negative");
	if (*p < '0' || *p > '9')
		return refuse(why, *p ? "not a size" : "empty");
	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(n, 10u, &n) || __builtin_add_overflow(n, (uint64_t)(*p - '0'), &n))
			return refuse(why, "too large");
	if (*p && p[1])
		return refuse(why, "not a size");
	if (n == 0)
		return refuse(why, "zero");
	switch (*p) {
	case '\0':
		break;
	case 'k':
	case 'K':
		unit = 1ull << 10;
		break;
	case 'm':
	case 'M':
		unit = 1ull << 20;
		break;
	case 'g':
	case 'G':
		unit = 1ull << 30;
		break;
	case 't':
	case 'T':
		unit = 1ull << 40;
		break;
	case 'p':
		unit = 4096;
		break;
	case '%':
		if (!whole_pages)
			return refuse(why, "a percentage of what is not known here");
		if (n > 100)
			return refuse(why, "more than 100%");
		*pages = (uint64_t)((unsigned __int128)whole_pages * n / 100);
		return *pages ? 0 : refuse(why, "less than one page");
	default:
		return refuse(why, "unknown unit (K, M, G, T, p or %)");
	}
	/* An address space has 2^63 bytes at most; larger is a slip of the pen. */
	if (__builtin_mul_overflow(n, unit, &bytes) || bytes > INT64_MAX)
		return refuse(why, "too large");
	if (bytes % 4096)
		return refuse(why, "not a multiple of the 4096-byte page");
	*pages = bytes / 4096;
	return 0;
}

char *fm_size_format(uint64_t pages, char buf[16])
{
	static const char units[] = "KMGTPE";
	double v = (double)pages * 4.0;
	int u = 0;

	while (v >= 1024.0 && units[u + 1]) {
		v /= 1024.0;
		u++;
	}
	if (v == (double)(uint64_t)v || v >= 100.0)
		snprintf(buf, 16, "%.0f%c", v, units[u]);
	else
		snprintf(buf, 16, "%.1f%c", v, units[u]);
	return buf;
}
