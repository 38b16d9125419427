/*
 * Sizes as people write them: 4096, 64K, 512M, 4G, 1T (binary), 20000p (pages of 4 KiB), 25% where a whole is known.
 */
#ifndef FM_SIZE_H
#define FM_SIZE_H

#include <stdint.h>

/*
 * Parse text (NUL-terminated) to pages of 4 KiB. whole_pages: what a percentage is of; 0: percentages are refused.
 * Returns 0 and *pages >= 1, or -EINVAL with *why (when not NULL) a static string that says what is wrong: empty, zero,
 * negative, overflowing, not a multiple of 4096, or no size. Any thread.
 */
int fm_size_parse(const char *text, uint64_t whole_pages, uint64_t *pages, const char **why);

/* Pages as text into buf (at least 16 bytes): "64M", "1.5G", "12K". Returns buf. */
char *fm_size_format(uint64_t pages, char buf[16]);

#endif
