/* RAMCloud's wire format: frames captured from a stock coordinator and master, hash vectors of the stock client, and nonsense. */
#include "rcwire.h"

#include <errno.h>
#include <stdlib.h>

#include "rccluster.h"
#include "rcuri.h"
#include "tap.h"

static size_t unhex(const char *text, unsigned char *to)
{
	size_t n = 0;
	unsigned v;

	while (*text) {
		if (*text == ' ') {
			text++;
			continue;
		}
		sscanf(text, "%2x", &v);
		to[n++] = (unsigned char)v;
		text += 2;
	}
	return n;
}

/* Is a frame of that nonce and payload the captured one? */
static void is_frame(const char *captured, uint64_t nonce, const unsigned char *payload, size_t len, const char *name)
{
	unsigned char want[512], got[512];
	size_t n = unhex(captured, want);

	fm_rc_frame(got, nonce, (uint32_t)len);
	memcpy(got + FM_RC_FRAME, payload, len);
	ok(n == FM_RC_FRAME + len && memcmp(want, got, n) == 0, "%s: as captured", name);
}

/* The payload of a captured reply. */
static size_t reply(const char *captured, unsigned char *to, uint64_t nonce)
{
	unsigned char frame[512];
	size_t n = unhex(captured, frame);
	uint64_t got;
	uint32_t len;

	fm_rc_frame_read(frame, &got, &len);
	ok(got == nonce && FM_RC_FRAME + len == n, "a captured reply's frame");
	memcpy(to, frame + FM_RC_FRAME, len);
	return len;
}

static void test_requests(void)
{
	unsigned char p[512] = {0};
	size_t n;

	is_frame("0300000000000000 0e000000 0a000200 02000000 01000000 7400", 3, p, fm_rc_create_table(p, "t", 1), "CREATE_TABLE");
	is_frame("0200000000000000 0a000000 0b000200 02000000 7400", 2, p, fm_rc_get_table_id(p, "t"), "GET_TABLE_ID");
	is_frame("0200000000000000 0a000000 0c000200 02000000 7400", 2, p, fm_rc_drop_table(p, "t"), "DROP_TABLE");
	is_frame("0500000000000000 0c000000 12000200 0100000000000000", 5, p, fm_rc_get_table_config(p, 1), "GET_TABLE_CONFIG");
	is_frame("0100000000000000 08000000 11000200 01000000", 1, p, fm_rc_get_server_list(p), "GET_SERVER_LIST");
	is_frame("0100000000000000 0c000000 07000300 ffffffffffffffff", 1, p, fm_rc_ping(p), "PING");

	n = fm_rc_multi_begin(p, 2, FM_RC_WRITE);
	n += fm_rc_multi_write(p + n, 1, "aa", 2, 3);
	n += unhex("414141", p + n);
	n += fm_rc_multi_write(p + n, 1, "bbb", 3, 1);
	p[n++] = 'B';
	is_frame("0500000000000000 4b000000 19000000 02000000 03000000"
		 "0100000000000000 08000000 000000000000000000000000 01 0200 6161 414141"
		 "0100000000000000 07000000 000000000000000000000000 01 0300 626262 42",
		 5, p, n, "MULTI_OP write");
	n = fm_rc_multi_begin(p, 2, FM_RC_READ);
	n += fm_rc_multi_key(p + n, 1, "aa", 2);
	n += fm_rc_multi_key(p + n, 1, "zzz", 3);
	is_frame("0600000000000000 3d000000 19000000 02000000 01000000"
		 "0100000000000000 0200 000000000000000000000000 6161  0100000000000000 0300 000000000000000000000000 7a7a7a",
		 6, p, n, "MULTI_OP read");
	n = fm_rc_multi_begin(p, 2, FM_RC_REMOVE);
	n += fm_rc_multi_key(p + n, 1, "aa", 2);
	n += fm_rc_multi_key(p + n, 1, "zzz", 3);
	is_frame("0700000000000000 3d000000 19000000 02000000 02000000"
		 "0100000000000000 0200 000000000000000000000000 6161  0100000000000000 0300 000000000000000000000000 7a7a7a",
		 7, p, n, "MULTI_OP remove");
}

static void test_replies(void)
{
	unsigned char p[512] = {0};
	struct fm_rc_parts r;
	struct fm_rc_part part;
	uint32_t status, low, high;
	uint64_t id = 0;
	size_t n;

	n = reply("0300000000000000 0c000000 00000000 0100000000000000", p, 3);
	ok(fm_rc_status(p, n, &status) == 0 && status == FM_RC_OK && fm_rc_table_id(p, n, &id) == 0, "CREATE_TABLE: OK");
	is_u64(id, 1, "the table's id");
	n = reply("0200000000000000 0c000000 02000000 0000000000000000", p, 2);
	ok(fm_rc_status(p, n, &status) == 0 && status == FM_RC_NO_TABLE, "GET_TABLE_ID: no table");

	n = reply("0500000000000000 20000000 00000000 02000000 00000000 0200000000000000 00000000 0300000000000000", p, 5);
	ok(fm_rc_multi_reply(&r, p, n, FM_RC_WRITE) == 0 && r.left == 2, "MULTI_OP write: two parts");
	ok(fm_rc_multi_next(&r, &part) == 1 && part.status == 0 && part.version == 2, "the first, version 2");
	ok(fm_rc_multi_next(&r, &part) == 1 && part.status == 0 && part.version == 3, "the second, version 3");
	is_u64(fm_rc_multi_next(&r, &part), 0, "no third");

	n = reply("0600000000000000 30000000 00000000 02000000 00000000 0200000000000000 08000000 01 0200 6161 414141"
		  "03000000 0000000000000000 00000000",
		  p, 6);
	ok(fm_rc_multi_reply(&r, p, n, FM_RC_READ) == 0, "MULTI_OP read");
	ok(fm_rc_multi_next(&r, &part) == 1 && part.status == 0 && part.key_len == 2 && memcmp(part.key, "aa", 2) == 0 &&
	       part.value_len == 3 && memcmp(part.value, "AAA", 3) == 0,
	   "a key and its value");
	ok(fm_rc_multi_next(&r, &part) == 1 && part.status == FM_RC_NO_OBJECT && !part.value, "an absent one");
	is_u64(fm_rc_multi_next(&r, &part), 0, "the end");
	for (size_t cut = 0; cut < n; cut++) {
		unsigned char *exact = malloc(cut ? cut : 1); /* ASan sees any step beyond */
		int e;

		memcpy(exact, p, cut);
		e = fm_rc_multi_reply(&r, exact, cut, FM_RC_READ);
		while (e == 0 && (e = fm_rc_multi_next(&r, &part)) == 1)
			e = 0;
		if (e != -EPROTO)
			ok(false, "cut after %zu bytes it must be refused", cut);
		free(exact);
	}

	n = reply("0700000000000000 20000000 00000000 02000000 00000000 0200000000000000 00000000 0000000000000000", p, 7);
	ok(fm_rc_multi_reply(&r, p, n, FM_RC_REMOVE) == 0 && fm_rc_multi_next(&r, &part) == 1 && part.version == 2 &&
	       fm_rc_multi_next(&r, &part) == 1 && part.status == 0 && part.version == 0 && fm_rc_multi_next(&r, &part) == 0,
	   "MULTI_OP remove: one removed, one that was not there");

	n = unhex("11000000 404b4c00 80969800 16000000", p);
	memcpy(p + n, "no masters in cluster", 22);
	n += 22;
	ok(fm_rc_status(p, n, &status) == 0 && status == FM_RC_RETRY, "RETRY");
	fm_rc_retry(p, n, &low, &high);
	ok(low == 5000000 && high == 10000000, "5 to 10 s");
	fm_rc_retry(p, 12, &low, &high);
	ok(low == 100 && high == 200, "a short one: 100 to 200 microseconds");
	n = unhex("11000000 80969800 404b4c00 00000000", p);
	fm_rc_retry(p, n, &low, &high);
	ok(low <= high, "the wrong way round: no less than the least");
	is_u64(fm_rc_status(p, 3, &status), (uint64_t)-EPROTO, "three bytes are no status");

	/* Two keys: the value is behind both. */
	n = unhex("00000000 01000000 00000000 0100000000000000 0b000000 02 0200 0400 6161 6262 5656", p);
	ok(fm_rc_multi_reply(&r, p, n, FM_RC_READ) == 0 && fm_rc_multi_next(&r, &part) == 1 && part.key_len == 2 &&
	       part.value_len == 2 && memcmp(part.value, "VV", 2) == 0,
	   "an object of two keys");
	n = unhex("00000000 01000000 00000000 0100000000000000 0b000000 02 0400 0200 6161 6262 5656", p);
	ok(fm_rc_multi_reply(&r, p, n, FM_RC_READ) == 0 && fm_rc_multi_next(&r, &part) == -EPROTO, "keys that end before they begin");
	n = unhex("00000000 01000000 00000000 0100000000000000 01000000 00", p);
	ok(fm_rc_multi_reply(&r, p, n, FM_RC_READ) == 0 && fm_rc_multi_next(&r, &part) == -EPROTO, "an object without a key");
	n = unhex("00000000 01000000 00000000 0100000000000000 ffffffff 01 0200 6161 414141", p);
	ok(fm_rc_multi_reply(&r, p, n, FM_RC_READ) == 0 && fm_rc_multi_next(&r, &part) == -EPROTO, "longer than the reply");
}

static void test_messages(void)
{
	static const char tablet[] = "0500000000000000 47000000 00000000 3f000000 0a3d 0801 1000 18ffffffffffffffffff01 2000 290100000000000000"
				     "321d 7463703a686f73743d3132372e302e302e312c706f72743d3131313031 4000 4800";
	unsigned char p[512] = {0};
	size_t n = reply(tablet, p, 5);
	struct fm_rc_message m;
	struct fm_rc_tablet t = {0};
	struct fm_rc_server_entry s = {0};
	struct fm_rc_place at = {0};

	ok(fm_rc_message(&m, p, n) == 0 && fm_rc_next_tablet(&m, &t) == 1, "GET_TABLE_CONFIG: a tablet");
	ok(t.table == 1 && t.start == 0 && t.end == UINT64_MAX && !t.recovering && t.server == 1, "table 1, all of it, server 1");
	ok(fm_rc_locator((const char *)t.locator, t.locator_len, &at) == 0 && strcmp(at.host, "127.0.0.1") == 0 && at.port == 11101,
	   "where it is");
	is_u64(fm_rc_next_tablet(&m, &t), 0, "no other");
	for (size_t cut = 0; cut < n; cut++) {
		unsigned char *exact = malloc(cut ? cut : 1);

		memcpy(exact, p, cut);
		if (fm_rc_message(&m, exact, cut) == 0)
			ok(false, "cut after %zu bytes it must be refused", cut);
		free(exact);
	}
	n = unhex("00000000 00000000", p);
	ok(fm_rc_message(&m, p, n) == 0 && fm_rc_next_tablet(&m, &t) == 0, "an unknown table: no tablets");
	n = unhex("00000000 13000000 0a11 0801 1000 187f 2001 290000000000000000", p);
	ok(fm_rc_message(&m, p, n) == 0 && fm_rc_next_tablet(&m, &t) == 1 && t.recovering && !t.locator, "one that recovers, with nobody");
	n = unhex("00000000 0f000000 0a04 08011000 1207 0800 10001a0122 00", p);
	ok(fm_rc_message(&m, p, n) == 0 && fm_rc_next_tablet(&m, &t) == -EPROTO, "a tablet without an end");
	n = unhex("00000000 10000000 0801 7a03616263 0a07 0801 1000 188001", p);
	ok(fm_rc_message(&m, p, n) == 0 && fm_rc_next_tablet(&m, &t) == 1 && t.end == 128, "unknown fields are passed over");
	n = unhex("00000000 0c000000 0affffffffffffffffffff7f", p);
	ok(fm_rc_message(&m, p, n) == 0 && fm_rc_next_tablet(&m, &t) == -EPROTO, "a length of more than 64 bits");
	n = unhex("00000000 03000000 0b0801", p);
	ok(fm_rc_message(&m, p, n) == 0 && fm_rc_next_tablet(&m, &t) == -EPROTO, "a group");

	n = unhex("00000000 23000000 0a16 0d03000000 110100000000000000 1a0174 3500000000 110100000000000000 1800", p);
	ok(fm_rc_message(&m, p, n) == 0 && fm_rc_next_server(&m, &s) == 1 && s.services == 3 && s.id == 1 && s.locator_len == 1 && s.status == 0,
	   "GET_SERVER_LIST: a server");
	is_u64(fm_rc_next_server(&m, &s), 0, "no other");
}

static void test_delay(void)
{
	struct fm_rc_cluster c = {.rnd = 1};
	uint64_t low = fm_rc_cluster_delay(&c, 5000000, 10000000), often = 0;

	ok(low >= 5000000000u && low <= 10000000000u, "a delay lies between what was asked for");
	for (unsigned i = 0; i < 1000; i++)
		often += fm_rc_cluster_delay(&c, 100, 101) == 100000;
	ok(often > 300 && often < 700, "... and is random");
	ok(fm_rc_cluster_delay(&c, 0, 0) == 0, "none");
	ok(fm_rc_cluster_delay(&c, UINT32_MAX, UINT32_MAX) == 30000000000u, "nobody makes us wait for an hour");
}

static void test_hash(void)
{
	is_u64(fm_rc_key_hash(1, "", 0), 0x4610abe56eff5cb5, "hash of (1, \"\")");
	is_u64(fm_rc_key_hash(1, "abc", 3), 0x9c88be4e9a8a61f0, "hash of (1, abc)");
	is_u64(fm_rc_key_hash(1, "key1", 4), 0xae618d75cfbafe16, "hash of (1, key1)");
	is_u64(fm_rc_key_hash(7, "0123456789abcdef", 16), 0x500ca03648b1f185, "hash of (7, 16 bytes)");
	is_u64(fm_rc_key_hash(7, "0123456789abcdefghi", 19), 0x37cf7c287a5fca25, "hash of (7, 19 bytes)");
	is_u64(fm_rc_key_hash((1ull << 32) + 7, "0123456789abcdefghi", 19), 0x37cf7c287a5fca25, "the seed is the id's low half");
}

static void is_locator(const char *text, int want, const char *host, unsigned port)
{
	struct fm_rc_place at;
	int e = fm_rc_locator(text, strlen(text), &at);

	ok(e == want && (e || (strcmp(at.host, host) == 0 && at.port == port)), "locator %s", text);
}

static void is_bad(const char *uri, const char *want)
{
	char why[FM_RC_WHY] = "";
	struct fm_rc_uri u;

	ok(fm_rc_uri_parse(uri, &u, why) == -EINVAL && strstr(why, want) && !strchr(why, '\n'), "%s: %s", uri, why);
}

static void test_names(void)
{
	char why[FM_RC_WHY] = "", text[600];
	struct fm_rc_uri u;

	is_locator("tcp:host=127.0.0.1,port=11100", 0, "127.0.0.1", 11100);
	is_locator(" tcp : host = h1 , port = 7 ", 0, "h1", 7);
	is_locator("infrc:host=a,port=1;tcp:host=b,port=2;tcp:host=c,port=3", 0, "b", 2);
	is_locator("tcp:host=\"a;b,c\",port=2", 0, "a;b,c", 2);
	is_locator("tcp:host=a\\,b\\;c,port=2", 0, "a,b;c", 2);
	is_locator("basic+udp:host=a,port=1", -EPROTONOSUPPORT, "", 0);
	is_locator("basic+infud:", -EPROTONOSUPPORT, "", 0);
	is_locator("", -EINVAL, "", 0);
	is_locator("tcp", -EINVAL, "", 0);
	is_locator("tcp:host=a", -EINVAL, "", 0);
	is_locator("tcp:port=1", -EINVAL, "", 0);
	is_locator("tcp:host=a,port=0", -EINVAL, "", 0);
	is_locator("tcp:host=a,port=65536", -EINVAL, "", 0);
	is_locator("tcp:host=\"a,port=1", -EINVAL, "", 0);
	is_locator("HTTP/1.1 400 Bad Request", -EINVAL, "", 0);

	ok(fm_rc_uri_parse("ramcloud:zk:a:1,b", &u, why) == 0 && strcmp(u.zookeeper, "a:1,b:2181") == 0 &&
	       strcmp(u.node, "/ramcloud/main/coordinator") == 0 && u.span == 8 && u.timeout_ms == 1000,
	   "ZooKeeper, and what is left out");
	ok(fm_rc_uri_parse("ramcloud:zk:a:1?cluster=c1&span=3&timeout=500", &u, why) == 0 && strcmp(u.node, "/ramcloud/c1/coordinator") == 0 &&
	       u.span == 3 && u.timeout_ms == 500,
	   "options");
	ok(fm_rc_uri_parse("ramcloud:tcp:host=h,port=5?span=2", &u, why) == 0 && !*u.zookeeper && strcmp(u.fixed.host, "h") == 0 &&
	       u.fixed.port == 5 && u.span == 2,
	   "a coordinator's own address");
	is_bad("ramcloud:", "a coordinator is");
	is_bad("ramcloud:zk:", "empty server address");
	is_bad("ramcloud:zk:a:0", "port");
	is_bad("ramcloud:zk:a:1/main", "?cluster=");
	is_bad("ramcloud:lc:a:1", "a coordinator is");
	is_bad("ramcloud:tcp:host=h", "must be ramcloud:tcp:");
	is_bad("ramcloud:zk:a:1?span=0", "span=1..256");
	is_bad("ramcloud:zk:a:1?span=999", "span=1..256");
	is_bad("ramcloud:zk:a:1?timeout=1", "timeout=");
	is_bad("ramcloud:zk:a:1?cluster=a/b", "letters");
	is_bad("ramcloud:zk:a:1?cluster=..", "dot");
	is_bad("ramcloud:zk:a:1?what=1", "unknown option");
	memset(text, 'a', sizeof text - 1);
	text[sizeof text - 1] = '\0';
	memcpy(text, "ramcloud:zk:", 12);
	is_bad(text, "longer than");
}

int main(void)
{
	test_requests();
	test_replies();
	test_messages();
	test_hash();
	test_delay();
	test_names();
	return tap_done();
}
