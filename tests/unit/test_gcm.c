/* AES-256-GCM: each means that is here against a published vector, and against each other. */
#include "gcm.h"

#include "tap.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>

static const char *const names[] = {"libsodium", "AES-NI", "VAES"};

static void from_hex(unsigned char *to, const char *hex)
{
	for (; *hex; hex += 2) {
		char two[3] = {hex[0], hex[1], 0};

		*to++ = (unsigned char)strtoul(two, NULL, 16);
	}
}

/* Test case 16 of McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)". */
static void test_vector(enum fm_gcm_means means)
{
	static struct fm_gcm g;
	unsigned char key[32], nonce[12], ad[20], in[60], want[60], want_tag[16], out[60], tag[16];
	struct fm_gcm_what w = {nonce, ad, sizeof ad, in, sizeof in};

	from_hex(key, "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
	from_hex(nonce, "cafebabefacedbaddecaf888");
	from_hex(ad, "feedfacedeadbeeffeedfacedeadbeefabaddad2");
	from_hex(in, "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39");
	from_hex(want, "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662");
	from_hex(want_tag, "76fc6ece0f4e1768cddf8853bb2d551b");
	fm_gcm_key(&g, means, key);
	fm_gcm_seal(&g, &w, out, tag);
	ok(memcmp(out, want, sizeof want) == 0, "%s: the vector's bytes", names[means]);
	ok(memcmp(tag, want_tag, sizeof tag) == 0, "%s: the vector's tag", names[means]);
}

/* What one seals another opens, at every length near a block's border and at random ones; and nothing that was touched. */
static void test_pair(enum fm_gcm_means by, enum fm_gcm_means other)
{
	static struct fm_gcm a, b;
	static unsigned char in[4096], sealed[4096], out[4096];
	unsigned char key[32], nonce[12], ad[64], tag[16], *touched;
	unsigned wrong = 0, touched_open = 0, left = 0;

	randombytes_buf(key, sizeof key);
	fm_gcm_key(&a, by, key);
	fm_gcm_key(&b, other, key);
	for (unsigned i = 0; i < 600; i++) {
		size_t length = i < 300 ? i : i == 300 ? 4096 : randombytes_uniform(4097);
		struct fm_gcm_what w = {nonce, ad, randombytes_uniform(sizeof ad + 1), in, length}, back = w;

		randombytes_buf(in, sizeof in);
		randombytes_buf(nonce, sizeof nonce);
		randombytes_buf(ad, sizeof ad);
		fm_gcm_seal(&a, &w, sealed, tag);
		back.in = sealed;
		wrong += fm_gcm_open(&b, &back, tag, out) != 0 || memcmp(in, out, length) != 0;
		switch (i % 4) {
		case 0:
			touched = length ? &sealed[randombytes_uniform((uint32_t)length)] : &tag[0];
			break;
		case 1:
			touched = w.ad_length ? &ad[randombytes_uniform((uint32_t)w.ad_length)] : &tag[3];
			break;
		case 2:
			touched = &nonce[randombytes_uniform(sizeof nonce)];
			break;
		default:
			touched = &tag[randombytes_uniform(sizeof tag)];
		}
		*touched ^= (unsigned char)(1u << randombytes_uniform(8));
		touched_open += fm_gcm_open(&b, &back, tag, out) != -EBADMSG;
		left += !sodium_is_zero(out, length);
	}
	is_u64(wrong, 0, "%s opens what %s sealed", names[other], names[by]);
	is_u64(touched_open, 0, "%s refuses it when one bit is another", names[other]);
	is_u64(left, 0, "%s leaves nothing of it", names[other]);
}

int main(void)
{
	if (sodium_init() < 0)
		return 1;
	if (!fm_gcm_has(FM_GCM_SODIUM)) {
		tap_skip("AES-256-GCM", "this CPU has no AES-NI");
		return tap_done();
	}
	printf("# best here: %s\n", names[fm_gcm_best()]);
	for (enum fm_gcm_means m = FM_GCM_SODIUM; m <= FM_GCM_VAES; m++) {
		if (!fm_gcm_has(m)) {
			tap_skip(names[m], "not in this build or CPU");
			continue;
		}
		test_vector(m);
		for (enum fm_gcm_means o = FM_GCM_SODIUM; o <= FM_GCM_VAES; o++)
			if (fm_gcm_has(o))
				test_pair(m, o);
	}
	return tap_done();
}
