#include "rcwire.h"

#include <errno.h>
#include <string.h>

enum { OP_PING = 7, OP_CREATE_TABLE = 10, OP_GET_TABLE_ID = 11, OP_DROP_TABLE = 12, OP_GET_SERVER_LIST = 17, OP_GET_TABLE_CONFIG = 18,
       OP_MULTI = 25 };
enum { TO_MASTER = 0, TO_COORDINATOR = 2, TO_ADMIN = 3 };

static size_t put(unsigned char *to, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (unsigned char)(v >> (8 * i));
	return bytes;
}

static uint64_t get(const unsigned char *p, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

/* --- requests */

void fm_rc_frame(unsigned char to[FM_RC_FRAME], uint64_t nonce, uint32_t length)
{
	put(to, nonce, 8);
	put(to + 8, length, 4);
}

void fm_rc_frame_read(const unsigned char from[FM_RC_FRAME], uint64_t *nonce, uint32_t *length)
{
	*nonce = get(from, 8);
	*length = (uint32_t)get(from + 8, 4);
}

static size_t begin(unsigned char *to, unsigned op, unsigned service)
{
	put(to, op, 2);
	return 2 + put(to + 2, service, 2);
}

size_t fm_rc_create_table(unsigned char *to, const char *name, uint32_t span)
{
	size_t n = begin(to, OP_CREATE_TABLE, TO_COORDINATOR), len = strlen(name) + 1;

	n += put(to + n, len, 4);
	n += put(to + n, span, 4);
	memcpy(to + n, name, len);
	return n + len;
}

static size_t by_name(unsigned char *to, unsigned op, const char *name)
{
	size_t n = begin(to, op, TO_COORDINATOR), len = strlen(name) + 1;

	n += put(to + n, len, 4);
	memcpy(to + n, name, len);
	return n + len;
}

size_t fm_rc_get_table_id(unsigned char *to, const char *name)
{
	return by_name(to, OP_GET_TABLE_ID, name);
}

size_t fm_rc_drop_table(unsigned char *to, const char *name)
{
	return by_name(to, OP_DROP_TABLE, name);
}

size_t fm_rc_get_table_config(unsigned char *to, uint64_t table)
{
	size_t n = begin(to, OP_GET_TABLE_CONFIG, TO_COORDINATOR);

	return n + put(to + n, table, 8);
}

size_t fm_rc_get_server_list(unsigned char *to)
{
	size_t n = begin(to, OP_GET_SERVER_LIST, TO_COORDINATOR);

	return n + put(to + n, FM_RC_SERVES_MASTER, 4);
}

size_t fm_rc_ping(unsigned char *to)
{
	size_t n = begin(to, OP_PING, TO_ADMIN);

	return n + put(to + n, UINT64_MAX, 8); /* not a server: anything else would have to be one of the cluster */
}

size_t fm_rc_multi_begin(unsigned char *to, uint32_t count, enum fm_rc_multi type)
{
	size_t n = begin(to, OP_MULTI, TO_MASTER);

	n += put(to + n, count, 4);
	return n + put(to + n, (uint64_t)type, 4);
}

size_t fm_rc_multi_key(unsigned char *to, uint64_t table, const void *key, uint16_t key_len)
{
	size_t n = put(to, table, 8);

	n += put(to + n, key_len, 2);
	memset(to + n, 0, 12); /* reject rules: none */
	n += 12;
	memcpy(to + n, key, key_len);
	return n + key_len;
}

size_t fm_rc_multi_write(unsigned char *to, uint64_t table, const void *key, uint16_t key_len, uint32_t value_len)
{
	size_t n = put(to, table, 8);

	n += put(to + n, 3u + key_len + value_len, 4);
	memset(to + n, 0, 12);
	n += 12;
	n += put(to + n, 1, 1); /* keys */
	n += put(to + n, key_len, 2);
	memcpy(to + n, key, key_len);
	return n + key_len;
}

/* --- replies */

int fm_rc_status(const unsigned char *p, size_t len, uint32_t *status)
{
	if (len < 4)
		return -EPROTO;
	*status = (uint32_t)get(p, 4);
	return 0;
}

void fm_rc_retry(const unsigned char *p, size_t len, uint32_t *min_us, uint32_t *max_us)
{
	*min_us = 100;
	*max_us = 200;
	if (len < 16)
		return;
	*min_us = (uint32_t)get(p + 4, 4);
	*max_us = (uint32_t)get(p + 8, 4);
	if (*max_us < *min_us)
		*max_us = *min_us;
}

int fm_rc_table_id(const unsigned char *p, size_t len, uint64_t *id)
{
	if (len < 12)
		return -EPROTO;
	*id = get(p + 4, 8);
	return 0;
}

int fm_rc_multi_reply(struct fm_rc_parts *r, const unsigned char *p, size_t len, enum fm_rc_multi type)
{
	if (len < 8)
		return -EPROTO;
	*r = (struct fm_rc_parts){.p = p, .len = len, .at = 8, .left = (uint32_t)get(p + 4, 4), .type = type};
	return 0;
}

/* An object as it is stored: keys, their lengths, the value behind them. */
static int read_blob(const unsigned char *p, size_t len, struct fm_rc_part *out)
{
	size_t keys, head, end = 0, before = 0;

	if (len < 1)
		return -EPROTO;
	keys = p[0];
	head = 1 + 2 * keys;
	if (keys == 0 || len < head)
		return -EPROTO;
	for (size_t i = 0; i < keys; i++) {
		end = (size_t)get(p + 1 + 2 * i, 2);
		if (end < before || head + end > len)
			return -EPROTO;
		before = end;
	}
	out->key = p + head;
	out->key_len = (size_t)get(p + 1, 2);
	out->value = p + head + end;
	out->value_len = len - head - end;
	return 0;
}

int fm_rc_multi_next(struct fm_rc_parts *r, struct fm_rc_part *out)
{
	const unsigned char *p = r->p + r->at;
	size_t rest = r->len - r->at, head = r->type == FM_RC_READ ? 16 : 12, blob = 0;

	*out = (struct fm_rc_part){0};
	if (r->left == 0)
		return 0;
	if (rest < head)
		return -EPROTO;
	out->status = (uint32_t)get(p, 4);
	out->version = get(p + 4, 8);
	if (r->type == FM_RC_READ && out->status == FM_RC_OK) {
		blob = (size_t)get(p + 12, 4);
		if (blob > rest - head || read_blob(p + head, blob, out))
			return -EPROTO;
	}
	r->at += head + blob;
	r->left--;
	return 1;
}

/* --- protocol buffers */

enum { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_FIXED32 = 5 };

struct field {
	unsigned number, type;
	uint64_t value; /* of a number */
	const unsigned char *p; /* of bytes */
	size_t len;
};

static int varint(struct fm_rc_message *m, uint64_t *out)
{
	uint64_t v = 0;

	for (unsigned shift = 0; shift < 70; shift += 7) {
		unsigned char byte;

		if (m->at == m->len)
			return -EPROTO;
		byte = m->p[m->at++];
		if (shift == 63 && byte > 1)
			return -EPROTO;
		v |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80)) {
			*out = v;
			return 0;
		}
	}
	return -EPROTO;
}

/* 1 a field, 0 the end, -EPROTO. */
static int next_field(struct fm_rc_message *m, struct field *f)
{
	uint64_t tag, n;

	*f = (struct field){0};
	if (m->at == m->len)
		return 0;
	if (varint(m, &tag) || tag >> 3 == 0 || tag >> 3 > 0x1fffffff)
		return -EPROTO;
	f->number = (unsigned)(tag >> 3);
	f->type = tag & 7;
	switch (f->type) {
	case PB_VARINT:
		return varint(m, &f->value) ? -EPROTO : 1;
	case PB_FIXED64:
	case PB_FIXED32:
		n = f->type == PB_FIXED64 ? 8 : 4;
		if (m->len - m->at < n)
			return -EPROTO;
		f->value = get(m->p + m->at, (unsigned)n);
		m->at += n;
		return 1;
	case PB_BYTES:
		if (varint(m, &n) || n > m->len - m->at)
			return -EPROTO;
		f->p = m->p + m->at;
		f->len = (size_t)n;
		m->at += n;
		return 1;
	default:
		return -EPROTO; /* groups: long out of use */
	}
}

int fm_rc_message(struct fm_rc_message *m, const unsigned char *p, size_t len)
{
	if (len < 8 || get(p + 4, 4) > len - 8)
		return -EPROTO;
	*m = (struct fm_rc_message){.p = p + 8, .len = (size_t)get(p + 4, 4)};
	return 0;
}

/* The next message in field 1. */
static int next_inner(struct fm_rc_message *m, struct fm_rc_message *inner)
{
	struct field f;
	int r;

	while ((r = next_field(m, &f)) == 1)
		if (f.number == 1 && f.type == PB_BYTES) {
			*inner = (struct fm_rc_message){.p = f.p, .len = f.len};
			return 1;
		}
	return r;
}

int fm_rc_next_tablet(struct fm_rc_message *m, struct fm_rc_tablet *out)
{
	struct fm_rc_message inner;
	unsigned seen = 0;
	struct field f;
	int r = next_inner(m, &inner);

	*out = (struct fm_rc_tablet){0};
	if (r != 1)
		return r;
	while ((r = next_field(&inner, &f)) == 1) {
		if (f.number == 1 && f.type == PB_VARINT)
			out->table = f.value, seen |= 1;
		else if (f.number == 2 && f.type == PB_VARINT)
			out->start = f.value, seen |= 2;
		else if (f.number == 3 && f.type == PB_VARINT)
			out->end = f.value, seen |= 4;
		else if (f.number == 4 && f.type == PB_VARINT)
			out->recovering = f.value != 0;
		else if (f.number == 5 && f.type == PB_FIXED64)
			out->server = f.value;
		else if (f.number == 6 && f.type == PB_BYTES && f.len)
			out->locator = f.p, out->locator_len = f.len;
	}
	return r || seen != 7 || out->start > out->end ? -EPROTO : 1;
}

int fm_rc_next_server(struct fm_rc_message *m, struct fm_rc_server_entry *out)
{
	struct fm_rc_message inner;
	struct field f;
	int r = next_inner(m, &inner);

	*out = (struct fm_rc_server_entry){0};
	if (r != 1)
		return r;
	while ((r = next_field(&inner, &f)) == 1) {
		if (f.number == 1 && f.type == PB_FIXED32)
			out->services = (uint32_t)f.value;
		else if (f.number == 2 && f.type == PB_FIXED64)
			out->id = f.value;
		else if (f.number == 3 && f.type == PB_BYTES && f.len)
			out->locator = f.p, out->locator_len = f.len;
		else if (f.number == 6 && f.type == PB_FIXED32)
			out->status = (uint32_t)f.value;
	}
	return r ? -EPROTO : 1;
}

/* --- the hash */

static uint64_t rotl(uint64_t x, unsigned r)
{
	return x << r | x >> (64 - r);
}

static uint64_t mix(uint64_t k)
{
	k ^= k >> 33;
	k *= 0xff51afd7ed558ccdull;
	k ^= k >> 33;
	k *= 0xc4ceb9fe1a85ec53ull;
	return k ^ k >> 33;
}

uint64_t fm_rc_key_hash(uint64_t table, const void *key, size_t len)
{
	const uint64_t c1 = 0x87c37b91114253d5ull, c2 = 0x4cf5ad432745937full;
	uint64_t h1 = (uint32_t)table, h2 = h1, k1, k2;
	const unsigned char *p = key;
	size_t rest = len;

	for (; rest >= 16; rest -= 16, p += 16) {
		h1 ^= rotl(get(p, 8) * c1, 31) * c2;
		h1 = (rotl(h1, 27) + h2) * 5 + 0x52dce729;
		h2 ^= rotl(get(p + 8, 8) * c2, 33) * c1;
		h2 = (rotl(h2, 31) + h1) * 5 + 0x38495ab5;
	}
	k1 = get(p, rest < 8 ? (unsigned)rest : 8);
	k2 = rest > 8 ? get(p + 8, (unsigned)rest - 8) : 0;
	h2 ^= rotl(k2 * c2, 33) * c1;
	h1 ^= rotl(k1 * c1, 31) * c2;
	h1 ^= len;
	h2 ^= len;
	h1 += h2;
	h2 += h1;
	h1 = mix(h1);
	h2 = mix(h2);
	return h1 + h2;
}
