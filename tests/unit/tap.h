/*
 * TAP for unit tests: one program a module, one line a check, the plan at the end.
 *
 *	int main(void)
 *	{
 *		ok(f() == 0, "f takes nothing");
 *		is_u64(g(4096), 1, "one page");
 *		return tap_done();
 *	}
 *
 * One thread calls these. A check returns whether it passed, so that a test can stop where going on makes no sense.
 */
#ifndef FM_TAP_H
#define FM_TAP_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static unsigned tap_count, tap_failed;

#define TAP_UNUSED __attribute__((unused))

/* Line of one check, named as by printf; then where it is in the source, when it failed. */
#define ok(cond, ...) tap_ok((cond), __FILE__, __LINE__, __VA_ARGS__)
__attribute__((format(printf, 4, 5))) TAP_UNUSED static bool tap_ok(bool pass, const char *file, int line,
								    const char *fmt, ...)
{
	va_list ap;

	printf("%sok %u - ", pass ? "" : "not ", ++tap_count);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	if (!pass) {
		tap_failed++;
		printf("#   at %s:%d\n", file, line);
	}
	fflush(stdout);
	return pass;
}

/* Equal numbers; both are printed when they are not. */
#define is_u64(got, want, ...) tap_u64((uint64_t)(got), (uint64_t)(want), __FILE__, __LINE__, __VA_ARGS__)
__attribute__((format(printf, 5, 6))) TAP_UNUSED static bool tap_u64(uint64_t got, uint64_t want, const char *file,
								     int line, const char *fmt, ...)
{
	char name[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(name, sizeof name, fmt, ap);
	va_end(ap);
	if (tap_ok(got == want, file, line, "%s", name))
		return true;
	printf("#   got %" PRIu64 " (%" PRId64 "), want %" PRIu64 " (%" PRId64 ")\n", got, (int64_t)got, want,
	       (int64_t)want);
	return false;
}

/* Equal strings; NULL equals only NULL. */
#define is_str(got, want, ...) tap_str((got), (want), __FILE__, __LINE__, __VA_ARGS__)
__attribute__((format(printf, 5, 6))) TAP_UNUSED static bool tap_str(const char *got, const char *want,
								     const char *file, int line, const char *fmt, ...)
{
	char name[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(name, sizeof name, fmt, ap);
	va_end(ap);
	if (tap_ok(got && want ? strcmp(got, want) == 0 : got == want, file, line, "%s", name))
		return true;
	printf("#   got '%s', want '%s'\n", got ? got : "(null)", want ? want : "(null)");
	return false;
}

/* The rest cannot run here, for this reason: counts as skipped, not as passed. */
TAP_UNUSED static void tap_skip(const char *name, const char *why)
{
	printf("ok %u - %s # SKIP %s\n", ++tap_count, name, why);
}

/* Print the plan. Returns main()'s exit status: 1 when a check failed or none ran. */
TAP_UNUSED static int tap_done(void)
{
	printf("1..%u\n", tap_count);
	return tap_failed || tap_count == 0;
}

#endif
