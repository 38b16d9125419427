/*
 * The part of memcached's text protocol that pages travel by: formatting of requests, and a parser of replies that takes
 * (buffer, length) and never trusts a length. Source: protocol.txt of memcached 1.6. Pure; any thread.
 */
#ifndef FM_MCWIRE_H
#define FM_MCWIRE_H

#include <stddef.h>
#include <stdint.h>

#define FM_MC_KEY_MAX   250  /* memcached's limit, without a NUL */
#define FM_MC_VALUE_MAX 8192 /* longest value taken; a reply that announces more is not one to our request */
#define FM_MC_LINE_MAX  512  /* longest reply line */

/* What stands at the beginning of the buffer. */
enum fm_mc_reply {
	FM_MC_MORE,       /* not a whole reply yet: read on */
	FM_MC_VALUE,      /* VALUE: key and data are set */
	FM_MC_END,        /* END of a get's values */
	FM_MC_STORED,     /* STORED */
	FM_MC_NOT_STORED, /* NOT_STORED, EXISTS: refused for a reason of the key's own */
	FM_MC_DELETED,    /* DELETED */
	FM_MC_NOT_FOUND,  /* NOT_FOUND */
	FM_MC_FULL,       /* SERVER_ERROR out of memory: no room */
	FM_MC_TOO_LARGE,  /* SERVER_ERROR object too large for cache */
	FM_MC_ERROR,      /* ERROR, CLIENT_ERROR, another SERVER_ERROR: text is set */
	FM_MC_STAT,       /* STAT name value: key and data are set (data without NUL) */
	FM_MC_VERSION,    /* VERSION text: text is set */
	FM_MC_GARBAGE,    /* not memcached: drop the connection */
};

struct fm_mc_item {
	const char *key; /* into the buffer, not NUL-terminated */
	size_t key_len;
	const char *data;
	size_t data_len;
	const char *text; /* of a line, without its end */
	size_t text_len;
};

/*
 * Parse the reply at the beginning of buf. *used: bytes it takes (0 for FM_MC_MORE and FM_MC_GARBAGE). item points into buf.
 */
enum fm_mc_reply fm_mc_parse(const char *buf, size_t len, size_t *used, struct fm_mc_item *item);

/*
 * Format a request into to (cap bytes, enough is FM_MC_KEY_MAX + 64). Returns its length. fm_mc_set() formats the line before
 * the data, which is followed by "\r\n". Up to 9999 bytes of data the line has the same length.
 */
#define FM_MC_SET_MAX (FM_MC_KEY_MAX + 64)
size_t fm_mc_set(char *to, size_t cap, const char *key, size_t data_len);
size_t fm_mc_delete(char *to, size_t cap, const char *key);

/* Is key fit to be one: 1..250 bytes, no spaces or control characters? */
int fm_mc_key_ok(const char *key, size_t len);

#endif
