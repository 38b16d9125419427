#include "mcwire.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static bool starts(const char *line, size_t len, const char *word)
{
	size_t n = strlen(word);

	return len >= n && memcmp(line, word, n) == 0;
}

static bool is(const char *line, size_t len, const char *word)
{
	return len == strlen(word) && memcmp(line, word, len) == 0;
}

int fm_mc_key_ok(const char *key, size_t len)
{
	if (len == 0 || len > FM_MC_KEY_MAX)
		return 0;
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)key[i] <= ' ' || key[i] == 0x7f)
			return 0;
	return 1;
}

/* The next word of a line: sets *word and *n, and moves *at behind it and one space. Returns false when there is none. */
static bool next_word(const char *line, size_t len, size_t *at, const char **word, size_t *n)
{
	size_t i = *at;

	*word = line + i;
	while (i < len && line[i] != ' ')
		i++;
	*n = i - *at;
	*at = i < len ? i + 1 : i;
	return *n > 0;
}

static bool number(const char *s, size_t n, size_t *out)
{
	*out = 0;
	if (n == 0 || n > 10)
		return false;
	for (size_t i = 0; i < n; i++) {
		if (s[i] < '0' || s[i] > '9')
			return false;
		*out = *out * 10 + (size_t)(s[i] - '0');
	}
	return true;
}

/* VALUE <key> <flags> <bytes> [<cas>]\r\n<data>\r\n ; line is the first line without its end, line_used with it. */
static enum fm_mc_reply value(const char *buf, size_t len, size_t line_len, size_t line_used, size_t *used, struct fm_mc_item *item)
{
	size_t at = strlen("VALUE "), n, flags, bytes;
	const char *word;

	if (!next_word(buf, line_len, &at, &item->key, &item->key_len) || !fm_mc_key_ok(item->key, item->key_len))
		return FM_MC_GARBAGE;
	if (!next_word(buf, line_len, &at, &word, &n) || !number(word, n, &flags))
		return FM_MC_GARBAGE;
	if (!next_word(buf, line_len, &at, &word, &n) || !number(word, n, &bytes) || bytes > FM_MC_VALUE_MAX)
		return FM_MC_GARBAGE;
	if (len < line_used + bytes + 2)
		return FM_MC_MORE;
	item->data = buf + line_used;
	item->data_len = bytes;
	if (memcmp(item->data + bytes, "\r\n", 2) != 0)
		return FM_MC_GARBAGE;
	*used = line_used + bytes + 2;
	return FM_MC_VALUE;
}

static enum fm_mc_reply stat_line(const char *buf, size_t line_len, struct fm_mc_item *item)
{
	size_t at = strlen("STAT ");

	if (!next_word(buf, line_len, &at, &item->key, &item->key_len))
		return FM_MC_GARBAGE;
	item->data = buf + at;
	item->data_len = line_len - at;
	return FM_MC_STAT;
}

enum fm_mc_reply fm_mc_parse(const char *buf, size_t len, size_t *used, struct fm_mc_item *item)
{
	const char *end = memchr(buf, '\n', len < FM_MC_LINE_MAX ? len : FM_MC_LINE_MAX);
	size_t n, line_used;
	enum fm_mc_reply r;

	*used = 0;
	*item = (struct fm_mc_item){0};
	if (!end)
		return len >= FM_MC_LINE_MAX ? FM_MC_GARBAGE : FM_MC_MORE;
	line_used = (size_t)(end - buf) + 1;
	n = line_used - 1;
	if (n == 0 || buf[n - 1] != '\r')
		return FM_MC_GARBAGE;
	n--;
	item->text = buf;
	item->text_len = n;
	if (starts(buf, n, "VALUE "))
		return value(buf, len, n, line_used, used, item);
	if (is(buf, n, "END"))
		r = FM_MC_END;
	else if (is(buf, n, "STORED"))
		r = FM_MC_STORED;
	else if (is(buf, n, "NOT_STORED") || is(buf, n, "EXISTS"))
		r = FM_MC_NOT_STORED;
	else if (is(buf, n, "DELETED"))
		r = FM_MC_DELETED;
	else if (is(buf, n, "NOT_FOUND"))
		r = FM_MC_NOT_FOUND;
	else if (starts(buf, n, "SERVER_ERROR out of memory"))
		r = FM_MC_FULL;
	else if (starts(buf, n, "SERVER_ERROR object too large"))
		r = FM_MC_TOO_LARGE;
	else if (is(buf, n, "ERROR") || starts(buf, n, "CLIENT_ERROR") || starts(buf, n, "SERVER_ERROR"))
		r = FM_MC_ERROR;
	else if (starts(buf, n, "STAT "))
		r = stat_line(buf, n, item);
	else if (starts(buf, n, "VERSION ")) {
		item->text = buf + strlen("VERSION ");
		item->text_len = n - strlen("VERSION ");
		r = FM_MC_VERSION;
	} else
		return FM_MC_GARBAGE;
	if (r != FM_MC_GARBAGE)
		*used = line_used;
	return r;
}

#define SET_DIGITS 4

size_t fm_mc_set(char *to, size_t cap, const char *key, size_t data_len)
{
	size_t key_len = strlen(key), digits = SET_DIGITS;
	char *at = to;

	for (size_t k = data_len / 10000; k; k /= 10)
		digits++;
	if (strlen("set ") + key_len + strlen(" 0 0 ") + digits + strlen("\r\n") >= cap)
		return 0;
	/* A line for each page that is written: without snprintf(3), which takes longer than to hash the key. */
	at = stpcpy(at, "set ");
	at = stpcpy(at, key);
	at = stpcpy(at, " 0 0 ");
	for (size_t i = digits; i-- > 0; data_len /= 10)
		at[i] = (char)('0' + data_len % 10);
	at = stpcpy(at + digits, "\r\n");
	return (size_t)(at - to);
}

size_t fm_mc_delete(char *to, size_t cap, const char *key)
{
	int n = snprintf(to, cap, "delete %s\r\n", key);

	return n > 0 && (size_t)n < cap ? (size_t)n : 0;
}
