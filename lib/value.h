/*
 * Values: the form in which a page lies in a network store. A header, a tag and the page's bytes, compressed when that pays
 * and sealed (seal.h). All numbers are little endian.
 *
 *    0  4  magic "fmpg"
 *    4  1  format version, 1
 *    5  1  codec (enum fm_value_codec)
 *    6  1  seal (enum fm_seal_kind)
 *    7  1  0
 *    8  8  generation
 *   16  4  length of the payload: 4096, or 1 .. 3584 when compressed
 *   20  4  0
 *   24 16  tag over header, region, page, generation and payload
 *   40  n  payload
 *
 * What a value's length gives away to who can see the traffic: how well that page compresses. Nothing else of it is visible.
 */
#ifndef FM_VALUE_H
#define FM_VALUE_H

#include "seal.h"

#include <stddef.h>
#include <stdint.h>

enum fm_value_codec {
	FM_CODEC_NONE = 0,
	FM_CODEC_LZ4 = 1, /* one LZ4 block; used when it saves at least an eighth of the page, and is tried (FM_VALUE_TRIES) */
};

#define FM_VALUE_PAGE   4096u
#define FM_VALUE_HEADER 24u
#define FM_VALUE_MAX    (FM_VALUE_HEADER + FM_SEAL_TAG + FM_VALUE_PAGE)

/*
 * After so many pages in a row that LZ4 could not make smaller, only each so many-th page is tried, until one gets smaller: to
 * find out that a page does not compress takes about as long as to send it.
 */
#define FM_VALUE_TRIES 16u

/* Room to work in, one a thread, all zero at first. Holds plain bytes of pages afterwards: keep it where pages may be. */
struct fm_value_scratch {
	_Alignas(16) unsigned char lz4[16416]; /* LZ4's hash table */
	unsigned char page[FM_VALUE_PAGE];
	unsigned in_vain; /* pages in a row that LZ4 could not make smaller */
};

/*
 * Make the value of a page: its 4096 bytes are in, page is its number (< FM_SEAL_PAGES), gen its generation (1 .. 2^44-1).
 * Writes at most FM_VALUE_MAX bytes to out and returns how many, or -EINVAL when a number is out of range. Once for each
 * generation: retries and replicas send the same value (seal.h says why). in must not change meanwhile. No allocation. Any
 * thread with its own scratch; s is only read.
 */
int fm_value_encode(const struct fm_seal *s, uint64_t page, uint64_t gen, const void *in, void *out,
		    struct fm_value_scratch *scratch);

/*
 * The value that fm_value_encode() made of the same page and generation when it did not compress it: the same bytes again, wherever it is made. For a copy
 * more of a page that was decoded from such a value; one of a compressed value must be the value itself, as another build's LZ4 may make other bytes.
 */
int fm_value_encode_again(const struct fm_seal *s, uint64_t page, uint64_t gen, const void *in, void *out);

/*
 * Take a page out of a value of length bytes from the store. Writes exactly 4096 bytes to out and returns 0; returns -EBADMSG
 * when the value is not, bit for bit, one that fm_value_encode made of this region, page and generation with this key and
 * kind of seal: out may hold anything then, and must not reach a client. A handle that seals refuses values that are not
 * sealed, and the other way round. -EINVAL: page or gen out of range. No allocation. Any thread with its own scratch.
 */
int fm_value_decode(const struct fm_seal *s, uint64_t page, uint64_t gen, const void *value, size_t length, void *out,
		    struct fm_value_scratch *scratch);

#endif
