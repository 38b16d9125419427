#include "value.h"

#include <errno.h>
#include <lz4.h>
#include <stdbool.h>
#include <string.h>

/* Compressed or not at all: below this LZ4 saved an eighth. */
#define LZ4_MOST (FM_VALUE_PAGE - FM_VALUE_PAGE / 8)

#define FORMAT 1u

_Static_assert(sizeof((struct fm_value_scratch *)0)->lz4 >= LZ4_STREAM_MINSIZE, "room for LZ4's state");

static const unsigned char magic[4] = { 'f', 'm', 'p', 'g' };

static void put_le(unsigned char *to, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (unsigned char)(v >> (8 * i));
}


static void put_header(unsigned char h[FM_VALUE_HEADER], enum fm_value_codec codec, enum fm_seal_kind kind, uint64_t gen,
		       size_t payload)
{
	memset(h, 0, FM_VALUE_HEADER);
	memcpy(h, magic, sizeof magic);
	h[4] = FORMAT;
	h[5] = (unsigned char)codec;
	h[6] = (unsigned char)kind;
	put_le(h + 8, gen, 8);
	put_le(h + 16, payload, 4);
}

static int seal(const struct fm_seal *s, uint64_t page, uint64_t gen, enum fm_value_codec codec, const void *payload, int n, unsigned char *v)
{
	const struct fm_seal_at at = { .page = page, .gen = gen, .head = v, .head_length = FM_VALUE_HEADER };
	int rc;

	put_header(v, codec, fm_seal_kind(s), gen, (size_t)n);
	rc = fm_seal_put(s, &at, payload, (size_t)n, v + FM_VALUE_HEADER + FM_SEAL_TAG, v + FM_VALUE_HEADER);
	return rc < 0 ? rc : n + (int)(FM_VALUE_HEADER + FM_SEAL_TAG);
}

int fm_value_encode_again(const struct fm_seal *s, uint64_t page, uint64_t gen, const void *in, void *out)
{
	return seal(s, page, gen, FM_CODEC_NONE, in, (int)FM_VALUE_PAGE, out);
}

int fm_value_encode(const struct fm_seal *s, uint64_t page, uint64_t gen, const void *in, void *out,
		    struct fm_value_scratch *scratch)
{
	int n = 0;

	if (scratch->in_vain < FM_VALUE_TRIES || scratch->in_vain % FM_VALUE_TRIES == 0)
		n = LZ4_compress_fast_extState(scratch->lz4, in, (char *)scratch->page, FM_VALUE_PAGE, LZ4_MOST, 1);
	scratch->in_vain = n > 0 ? 0 : scratch->in_vain + 1;
	return n > 0 ? seal(s, page, gen, FM_CODEC_LZ4, scratch->page, n, out) : seal(s, page, gen, FM_CODEC_NONE, in, (int)FM_VALUE_PAGE, out);
}

/*
 * Is the header one that put_header makes for this generation, and of a value of this length? Then *codec and *payload are
 * set, and *payload bytes follow header and tag.
 */
static bool header_is_right(const unsigned char *v, size_t length, enum fm_seal_kind kind, uint64_t gen,
			    enum fm_value_codec *codec, size_t *payload)
{
	unsigned char want[FM_VALUE_HEADER];

	if (length < FM_VALUE_HEADER + FM_SEAL_TAG + 1 || length > FM_VALUE_MAX)
		return false;
	*codec = v[5] == FM_CODEC_LZ4 ? FM_CODEC_LZ4 : FM_CODEC_NONE;
	*payload = length - FM_VALUE_HEADER - FM_SEAL_TAG;
	if (*codec == FM_CODEC_NONE ? *payload != FM_VALUE_PAGE : *payload > LZ4_MOST)
		return false;
	put_header(want, *codec, kind, gen, *payload);
	return memcmp(v, want, sizeof want) == 0;
}

int fm_value_decode(const struct fm_seal *s, uint64_t page, uint64_t gen, const void *value, size_t length, void *out,
		    struct fm_value_scratch *scratch)
{
	const unsigned char *v = value;
	const struct fm_seal_at at = { .page = page, .gen = gen, .head = v, .head_length = FM_VALUE_HEADER };
	enum fm_value_codec codec;
	size_t payload;
	void *plain;
	int rc;

	if (!header_is_right(v, length, fm_seal_kind(s), gen, &codec, &payload))
		return -EBADMSG;
	plain = codec == FM_CODEC_NONE ? out : scratch->page;
	rc = fm_seal_get(s, &at, v + FM_VALUE_HEADER + FM_SEAL_TAG, payload, v + FM_VALUE_HEADER, plain);
	if (rc < 0 || codec == FM_CODEC_NONE)
		return rc;
	/* The tag was right, so these bytes are LZ4's own; with a mere checksum they may still be somebody's invention. */
	if (LZ4_decompress_safe(plain, out, (int)payload, FM_VALUE_PAGE) != (int)FM_VALUE_PAGE)
		return -EBADMSG;
	return 0;
}
