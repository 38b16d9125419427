/*
 * AES-256-GCM by the fastest means that build and CPU have: Intel's ipsec-mb (VAES on AVX-512: 0.34 us a page; AES-NI: 0.80), or
 * libsodium (1.8). All give the same bytes, so which of them sealed a value shows nowhere.
 */
#ifndef FM_GCM_H
#define FM_GCM_H

#include <stdbool.h>
#include <stddef.h>

#define FM_GCM_KEY   32u
#define FM_GCM_NONCE 12u
#define FM_GCM_TAG   16u

enum fm_gcm_means { FM_GCM_SODIUM, FM_GCM_AESNI, FM_GCM_VAES };

/* An expanded key. sizeof is a multiple of 64, and so must its address be. Only read by the functions below but fm_gcm_key(). */
struct fm_gcm {
	_Alignas(64) unsigned char state[1024];
	enum fm_gcm_means means;
};

/* Can it be used here: built in, and this CPU has the instructions? After sodium_init(). Any thread. */
bool fm_gcm_has(enum fm_gcm_means means);

/* The fastest one that can be used here; FM_GCM_SODIUM even when the CPU has no AES-NI, and so none can. After sodium_init(). */
enum fm_gcm_means fm_gcm_best(void);

/* Expand a key for means, which fm_gcm_has(). Leaves copies of it in registers, not in memory. */
void fm_gcm_key(struct fm_gcm *g, enum fm_gcm_means means, const unsigned char key[FM_GCM_KEY]);

/* What is sealed, and by which nonce; ad (ad_length bytes) is covered by the tag alone. */
struct fm_gcm_what {
	const unsigned char *nonce; /* FM_GCM_NONCE bytes */
	const unsigned char *ad;
	size_t ad_length;
	const void *in;
	size_t length;
};

/* Write length bytes to out and FM_GCM_TAG bytes to tag. in and out do not overlap. Any thread. */
void fm_gcm_seal(const struct fm_gcm *g, const struct fm_gcm_what *w, void *out, void *tag);

/* The way back. Returns 0, or -EBADMSG when the tag is not right: then out is all zero. in and out do not overlap. Any thread. */
int fm_gcm_open(const struct fm_gcm *g, const struct fm_gcm_what *w, const void *tag, void *out);

#endif
