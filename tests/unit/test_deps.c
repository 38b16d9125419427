/* The libraries of deps/: each is there, links and does what it is for. No server is needed. */
#include "tap.h"

#include <expat.h>
#include <jansson.h>
#include <libmemcached/memcached.h>
#include <lz4.h>
#include <sodium.h>
#include <stdlib.h>
#include <zookeeper/zookeeper.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

static void test_jansson(void)
{
	json_t *j = json_loads("{\"a\":[1,2]}", 0, NULL);

	is_u64(json_array_size(json_object_get(j, "a")), 2, "jansson parses");
	json_decref(j);
}

static void XMLCALL count_start(void *count, const XML_Char *name, const XML_Char **attributes)
{
	(void)name;
	(void)attributes;
	++*(unsigned *)count;
}

static void test_expat(void)
{
	static const char text[] = "<a><b c='1'/></a>";
	XML_Parser p = XML_ParserCreate(NULL);
	unsigned n = 0;

	if (!ok(p != NULL, "expat makes a parser"))
		return;
	XML_SetUserData(p, &n);
	XML_SetStartElementHandler(p, count_start);
	ok(XML_Parse(p, text, sizeof text - 1, 1) == XML_STATUS_OK, "expat parses");
	is_u64(n, 2, "two elements");
	XML_ParserFree(p);
}

static void test_lz4(void)
{
	char page[4096], small[512], back[4096];
	int n;

	memset(page, 'x', sizeof page);
	n = LZ4_compress_default(page, small, sizeof page, sizeof small);
	ok(n > 0, "lz4 compresses a page of one byte to %d bytes", n);
	is_u64(LZ4_decompress_safe(small, back, n, sizeof back), sizeof back, "and back");
	ok(memcmp(page, back, sizeof page) == 0, "the same bytes");
}

static void test_xxhash(void)
{
	is_u64(XXH3_64bits("", 0), UINT64_C(0x2D06800538D394C2), "xxhash: XXH3 of nothing");
}

static void test_sodium(void)
{
	/* BLAKE2b-256 of "abc", as `b2sum -l 256` prints it */
	static const unsigned char want[4] = { 0xbd, 0xdd, 0x81, 0x3c };
	unsigned char hash[32];

	ok(sodium_init() >= 0, "libsodium starts");
	crypto_generichash(hash, sizeof hash, (const unsigned char *)"abc", 3, NULL, 0);
	ok(memcmp(hash, want, sizeof want) == 0, "BLAKE2b of abc");
	printf("# AES-256-GCM in this CPU: %s\n", crypto_aead_aes256gcm_is_available() ? "yes" : "no");
}

static void test_memcached(void)
{
	const char *options = "--SERVER=127.0.0.1:1 --CONNECT-TIMEOUT=100";
	memcached_st *m = memcached(options, strlen(options));
	size_t length;
	uint32_t flags;
	memcached_return_t rc;
	char *value;

	if (!ok(m != NULL, "libmemcached reads its option string"))
		return;
	is_u64(memcached_server_count(m), 1, "one server");
	value = memcached_get(m, "k", 1, &length, &flags, &rc);
	ok(value == NULL && memcached_failed(rc), "no server on port 1: %s", memcached_strerror(m, rc));
	free(value);
	memcached_free(m);
}

static void test_zookeeper(void)
{
	zhandle_t *z;

	zoo_set_debug_level(0);
	z = zookeeper_init("127.0.0.1:1", NULL, 1000, NULL, NULL, 0);
	if (!ok(z != NULL, "libzookeeper_mt makes a handle and its threads"))
		return;
	ok(zoo_state(z) != ZOO_CONNECTED_STATE, "no server on port 1");
	is_u64(zookeeper_close(z), ZOK, "it closes");
}

int main(void)
{
	test_jansson();
	test_expat();
	test_lz4();
	test_xxhash();
	test_sodium();
	test_memcached();
	test_zookeeper();
	return tap_done();
}
