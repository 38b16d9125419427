#include "gcm.h"

#include <errno.h>
#include <sodium.h>
#include <stdint.h>
#include <string.h>

_Static_assert(sizeof(struct fm_gcm) % 64 == 0, "an array of them stays aligned");
_Static_assert(sizeof(crypto_aead_aes256gcm_state) <= sizeof((struct fm_gcm *)0)->state, "room for libsodium's key");
_Static_assert(crypto_aead_aes256gcm_NPUBBYTES == FM_GCM_NONCE && crypto_aead_aes256gcm_ABYTES == FM_GCM_TAG, "sizes");

/* deps/build.sh installs it when it could be built. */
#if __has_include(<fm-ipsec-mb.h>)
#include <fm-ipsec-mb.h>

_Static_assert(sizeof(struct gcm_key_data) <= sizeof((struct fm_gcm *)0)->state, "room for ipsec-mb's key");

/* Of the kind that the library chooses from by itself, were all of it here; so its header does not have them. */
extern __typeof__(*(aes_gcm_enc_dec_t)0) aes_gcm_enc_256_vaes_avx512, aes_gcm_dec_256_vaes_avx512;
extern void aes_gcm_precomp_256_vaes_avx512(struct gcm_key_data *key);

static const struct {
	void (*precompute)(struct gcm_key_data *);
	aes_gcm_enc_dec_t seal, open;
} fast[] = {
    [FM_GCM_AESNI] = {aes_gcm_precomp_256_sse, aes_gcm_enc_256_sse, aes_gcm_dec_256_sse},
    [FM_GCM_VAES] = {aes_gcm_precomp_256_vaes_avx512, aes_gcm_enc_256_vaes_avx512, aes_gcm_dec_256_vaes_avx512},
};

static bool fast_has(enum fm_gcm_means means)
{
	if (means == FM_GCM_AESNI)
		return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
	return __builtin_cpu_supports("vaes") && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f") &&
	       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static void fast_key(struct fm_gcm *g, const unsigned char key[FM_GCM_KEY])
{
	struct gcm_key_data *k = (struct gcm_key_data *)g->state;

	aes_keyexp_256_enc_sse(key, k->expanded_keys);
	fast[g->means].precompute(k);
}

static void fast_run(aes_gcm_enc_dec_t f, const struct fm_gcm *g, const struct fm_gcm_what *w, void *out, unsigned char *tag)
{
	struct gcm_context_data room;

	f((const struct gcm_key_data *)g->state, &room, out, w->in, w->length, w->nonce, w->ad, w->ad_length, tag, FM_GCM_TAG);
}

static void fast_seal(const struct fm_gcm *g, const struct fm_gcm_what *w, void *out, void *tag)
{
	fast_run(fast[g->means].seal, g, w, out, tag);
}

/* Deciphers before the tag is known. */
static int fast_open(const struct fm_gcm *g, const struct fm_gcm_what *w, const void *tag, void *out)
{
	unsigned char want[FM_GCM_TAG];

	fast_run(fast[g->means].open, g, w, out, want);
	return sodium_memcmp(want, tag, sizeof want);
}

#else

static bool fast_has(enum fm_gcm_means means)
{
	(void)means;
	return false;
}

static void fast_key(struct fm_gcm *g, const unsigned char key[FM_GCM_KEY])
{
	(void)g;
	(void)key;
}

static void fast_seal(const struct fm_gcm *g, const struct fm_gcm_what *w, void *out, void *tag)
{
	(void)g;
	(void)w;
	(void)out;
	(void)tag;
}

static int fast_open(const struct fm_gcm *g, const struct fm_gcm_what *w, const void *tag, void *out)
{
	(void)g;
	(void)w;
	(void)tag;
	(void)out;
	return -1;
}

#endif

bool fm_gcm_has(enum fm_gcm_means means)
{
	return means == FM_GCM_SODIUM ? crypto_aead_aes256gcm_is_available() : fast_has(means);
}

enum fm_gcm_means fm_gcm_best(void)
{
	return fm_gcm_has(FM_GCM_VAES) ? FM_GCM_VAES : fm_gcm_has(FM_GCM_AESNI) ? FM_GCM_AESNI : FM_GCM_SODIUM;
}

void fm_gcm_key(struct fm_gcm *g, enum fm_gcm_means means, const unsigned char key[FM_GCM_KEY])
{
	g->means = means;
	if (means == FM_GCM_SODIUM)
		crypto_aead_aes256gcm_beforenm((crypto_aead_aes256gcm_state *)g->state, key);
	else
		fast_key(g, key);
}

void fm_gcm_seal(const struct fm_gcm *g, const struct fm_gcm_what *w, void *out, void *tag)
{
	if (g->means == FM_GCM_SODIUM)
		crypto_aead_aes256gcm_encrypt_detached_afternm(out, tag, NULL, w->in, w->length, w->ad, w->ad_length, NULL, w->nonce,
							       (const crypto_aead_aes256gcm_state *)g->state);
	else
		fast_seal(g, w, out, tag);
}

int fm_gcm_open(const struct fm_gcm *g, const struct fm_gcm_what *w, const void *tag, void *out)
{
	int r;

	if (g->means == FM_GCM_SODIUM)
		r = crypto_aead_aes256gcm_decrypt_detached_afternm(out, NULL, w->in, w->length, tag, w->ad, w->ad_length, w->nonce,
								   (const crypto_aead_aes256gcm_state *)g->state);
	else
		r = fast_open(g, w, tag, out);
	if (r == 0)
		return 0;
	memset(out, 0, w->length);
	return -EBADMSG;
}
