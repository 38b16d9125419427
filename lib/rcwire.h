/*
 * RAMCloud's wire format over TCP, as far as pages need it: requests are written, replies are read, nothing else is done here. All
 * numbers are little endian and packed. Source: PlatformLab/RAMCloud, and a stock coordinator and master.
 *
 * A frame, both ways: nonce u64 (the client's, echoed), length u32 of the payload, payload. A request's payload: opcode u16, service
 * u16, fields. A reply's: status u32, and when that is 0 the fields. Every reader here takes (buffer, length), reads nothing beyond, and
 * keeps pointers into the buffer only. Pure; any thread.
 */
#ifndef FM_RCWIRE_H
#define FM_RCWIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FM_RC_FRAME     12u
#define FM_RC_FRAME_MAX 8388808u /* longest payload, either way */
#define FM_RC_NAME      64u      /* bytes of a table's name with its NUL, ours */
#define FM_RC_SMALL     128u     /* room for any request but MULTI_OP */

enum fm_rc_status {
	FM_RC_OK = 0,
	FM_RC_UNKNOWN_TABLET = 1,
	FM_RC_NO_TABLE = 2,
	FM_RC_NO_OBJECT = 3,
	FM_RC_NO_SPACE = 6,
	FM_RC_RETRY = 17,
};

enum fm_rc_multi { FM_RC_READ = 1, FM_RC_REMOVE = 2, FM_RC_WRITE = 3 };

#define FM_RC_MULTI_HEADER 12u
#define FM_RC_KEY_PART     22u /* a part of a MULTI_OP read or remove, without its key */
#define FM_RC_WRITE_PART   27u /* a part of a MULTI_OP write, without its key and value */

/* The twelve bytes before a payload. */
void fm_rc_frame(unsigned char to[FM_RC_FRAME], uint64_t nonce, uint32_t length);
void fm_rc_frame_read(const unsigned char from[FM_RC_FRAME], uint64_t *nonce, uint32_t *length);

/* Requests to the coordinator (ping: to anybody). Each writes at most FM_RC_SMALL bytes and returns how many. name: shorter than FM_RC_NAME. */
size_t fm_rc_create_table(unsigned char *to, const char *name, uint32_t span);
size_t fm_rc_get_table_id(unsigned char *to, const char *name);
size_t fm_rc_drop_table(unsigned char *to, const char *name);
size_t fm_rc_get_table_config(unsigned char *to, uint64_t table);
size_t fm_rc_get_server_list(unsigned char *to);
size_t fm_rc_ping(unsigned char *to);

/*
 * A MULTI_OP request: the header, then count parts. multi_key: a part of a read or remove; multi_write: a part of a write, but for the
 * value_len bytes of the value, which follow. key_len: 1 .. 65535. Each returns the bytes written: FM_RC_MULTI_HEADER, FM_RC_KEY_PART +
 * key_len, FM_RC_WRITE_PART + key_len.
 */
size_t fm_rc_multi_begin(unsigned char *to, uint32_t count, enum fm_rc_multi type);
size_t fm_rc_multi_key(unsigned char *to, uint64_t table, const void *key, uint16_t key_len);
size_t fm_rc_multi_write(unsigned char *to, uint64_t table, const void *key, uint16_t key_len, uint32_t value_len);

/* The status of a reply, or -EPROTO when it has none. */
int fm_rc_status(const unsigned char *p, size_t len, uint32_t *status);
/* How long to wait after a reply of status RETRY, microseconds. */
void fm_rc_retry(const unsigned char *p, size_t len, uint32_t *min_us, uint32_t *max_us);
/* The id in a reply of status OK to CREATE_TABLE or GET_TABLE_ID. 0 or -EPROTO. */
int fm_rc_table_id(const unsigned char *p, size_t len, uint64_t *id);

/* One part of a MULTI_OP reply. Key and value: of a READ that is OK. */
struct fm_rc_part {
	uint32_t status;
	uint64_t version;
	const unsigned char *key, *value;
	size_t key_len, value_len;
};
struct fm_rc_parts {
	const unsigned char *p;
	size_t len, at;
	uint32_t left; /* parts to come */
	enum fm_rc_multi type;
};

/* Begin to read a MULTI_OP reply of status OK; left may be less than was asked for. 0 or -EPROTO. */
int fm_rc_multi_reply(struct fm_rc_parts *r, const unsigned char *p, size_t len, enum fm_rc_multi type);
/* The next part: 1 there is one, 0 that was all, -EPROTO. */
int fm_rc_multi_next(struct fm_rc_parts *r, struct fm_rc_part *out);

/* A tablet of GET_TABLE_CONFIG's reply. */
struct fm_rc_tablet {
	uint64_t table, start, end; /* hashes; end is inclusive */
	bool recovering;
	uint64_t server;            /* id */
	const unsigned char *locator; /* of the server, not terminated; NULL: it has none now */
	size_t locator_len;
};
/* A server of GET_SERVER_LIST's reply. */
struct fm_rc_server_entry {
	uint32_t services; /* bit 1 << service */
	uint32_t status;   /* 0 up */
	uint64_t id;
	const unsigned char *locator;
	size_t locator_len;
};
struct fm_rc_message {
	const unsigned char *p;
	size_t len, at;
};

#define FM_RC_SERVES_MASTER (1u << 0)

/* Begin to read the protocol buffer in a reply of status OK to GET_TABLE_CONFIG or GET_SERVER_LIST (unknown table: an empty one). 0 or -EPROTO. */
int fm_rc_message(struct fm_rc_message *m, const unsigned char *p, size_t len);
/* The next tablet or server: 1 there is one, 0 that was all, -EPROTO. */
int fm_rc_next_tablet(struct fm_rc_message *m, struct fm_rc_tablet *out);
int fm_rc_next_server(struct fm_rc_message *m, struct fm_rc_server_entry *out);

/* What a key is found by: the first word of MurmurHash3 x64-128, the seed being the table's id. */
uint64_t fm_rc_key_hash(uint64_t table, const void *key, size_t len);

#endif
