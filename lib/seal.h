/*
 * Sealing: pages leave the host encrypted and authenticated, or at least with a checksum.
 *
 * Keys: a host has one key file of 32 random bytes. Each region's keys are derived from it by the region's id with libsodium's
 * crypto_kdf (BLAKE2b, keyed by the host key, salted by the id), which is made for exactly this: a 64-bit number in, an
 * independent key out; nothing about a region's key need be stored, and no region's key tells about another's. A key for
 * each cipher, so that the two never share one.
 *
 * Nonces are never random and never repeat: 44 bits of generation and 52 of page number are the 96 bits of AES-GCM's. A page
 * of a region never gets a generation twice, and region ids are random (or handed out once), so a (key, nonce) pair seals
 * one page's bytes once. The duty this puts on the caller: seal once per generation; a retry and a replica send the same
 * sealed bytes.
 *
 * Why AES-256-GCM: with AES-NI it costs a tenth of XChaCha20-Poly1305 (gcm.h), which is there for CPUs without.
 */
#ifndef FM_SEAL_H
#define FM_SEAL_H

#include <stddef.h>
#include <stdint.h>

/* How a value is protected. The numbers are in stored values: never change one. */
enum fm_seal_kind {
	FM_SEAL_CHECKSUM = 0, /* plain bytes and XXH3-128: finds accidents (wrong, stale, moved, torn), stops nobody */
	FM_SEAL_AES = 1,      /* AES-256-GCM */
	FM_SEAL_XCHACHA = 2,  /* XChaCha20-Poly1305 */
};

#define FM_KEY_BYTES  32u
#define FM_KEY_WHY    256u /* bytes of a why buffer */
#define FM_SEAL_TAG   16u  /* bytes of a tag, of every kind */
#define FM_SEAL_PAGES (1ull << 52)
#define FM_SEAL_GENS  (1ull << 44) /* generations: 1 more than the largest; a page's word has fewer */

struct fm_key;
struct fm_seal;

/*
 * Read the host's key file, after making it (mode 0600, 32 random bytes, all of it or nothing) when there is none. Processes
 * that start together get the same key. A symbolic link is followed; what it leads to is checked.
 *
 * Returns 0 and *out (owned by the caller, fm_key_close), or -errno with one line in why (FM_KEY_WHY bytes, "path: reason"):
 * -EINVAL not a regular file, not 32 bytes, or all zero; -EPERM readable by group or others, or owned by another user than
 * this process's; else what the system said (-EACCES, -ENOENT: no such folder, ...). The key is kept in memory that is
 * locked where the system allows it, left out of core dumps, and cleared by fm_key_close. Calls libsodium's sodium_init:
 * before a seccomp filter. Any thread.
 */
int fm_key_open(const char *path, struct fm_key **out, char *why);

/* A number by which a key can be told from others: derived from it as a region's keys are, it says nothing of it. Never 0. Any thread. */
uint64_t fm_key_print(const struct fm_key *key);

/* Clear and free a key; NULL is allowed. Regions' handles stay good. */
void fm_key_close(struct fm_key *key);

/* What this CPU seals with: FM_SEAL_AES, or FM_SEAL_XCHACHA without AES-NI. Any thread. */
enum fm_seal_kind fm_seal_best(void);

/*
 * Make a region's handle. key: not needed for FM_SEAL_CHECKSUM, may be NULL then; not kept. region: the region's id.
 * Returns 0 and *out (owned by the caller, fm_seal_free), or -EINVAL (no key, no such kind), -ENOTSUP (this CPU has no
 * AES-NI), -ENOMEM. It maps and locks a few pages, so make it when a region is registered, not on the fault path. Any thread;
 * all functions below only read it, so threads may share it.
 */
int fm_seal_new(const struct fm_key *key, uint64_t region, enum fm_seal_kind kind, struct fm_seal **out);

/* Clear and free a handle; NULL is allowed. */
void fm_seal_free(struct fm_seal *s);

enum fm_seal_kind fm_seal_kind(const struct fm_seal *s);

/*
 * Seal length bytes (at most 4096) of in to out and their tag (FM_SEAL_TAG bytes) to tag. The tag also covers head
 * (head_length bytes, at most 64: the value's header), the region, page (< FM_SEAL_PAGES) and gen (1 .. 2^44-1).
 * in and out do not overlap. No allocation. Returns 0, or -EINVAL when a number is out of range.
 */
struct fm_seal_at {
	uint64_t page;
	uint64_t gen;
	const void *head;
	size_t head_length;
};
int fm_seal_put(const struct fm_seal *s, const struct fm_seal_at *at, const void *in, size_t length, void *out, void *tag);

/*
 * The way back: check the tag and write the length bytes to out. Returns 0, -EBADMSG when it is not what fm_seal_put made of
 * this region, page, generation and head with this key (out holds nothing of use then), or -EINVAL as above. in and out do
 * not overlap. No allocation.
 */
int fm_seal_get(const struct fm_seal *s, const struct fm_seal_at *at, const void *in, size_t length, const void *tag,
		void *out);

#endif
