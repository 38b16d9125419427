#include "seal.h"

#include "gcm.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define HEAD_MAX 64u
#define AD_MAX   (HEAD_MAX + 16u)

struct fm_key {
	unsigned char bytes[FM_KEY_BYTES];
};

struct fm_seal {
	/* First: it must be 64-byte aligned, and sodium_malloc aligns as the size allows. */
	struct fm_gcm aes;
	unsigned char xchacha[crypto_aead_xchacha20poly1305_ietf_KEYBYTES];
	uint64_t region;
	enum fm_seal_kind kind;
};

_Static_assert(FM_KEY_BYTES == crypto_kdf_KEYBYTES, "the host key is a kdf key");
_Static_assert(FM_GCM_KEY == 32 && crypto_aead_xchacha20poly1305_ietf_KEYBYTES == 32, "key sizes");
_Static_assert(FM_GCM_TAG == FM_SEAL_TAG && crypto_aead_xchacha20poly1305_ietf_ABYTES == FM_SEAL_TAG,
	       "tag sizes");
_Static_assert(FM_GCM_NONCE == 12, "96-bit nonce");
_Static_assert(sizeof(struct fm_seal) % 64 == 0, "keeps sodium_malloc's result aligned");

/* --- the key file */

__attribute__((format(printf, 2, 3))) static void say(char *why, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, FM_KEY_WHY, fmt, ap);
	va_end(ap);
}

static int say_errno(char *why, const char *path, const char *what, int err)
{
	say(why, "%.180s: %s%s%s", path, what, *what ? ": " : "", strerror(err));
	return -err;
}

/* Exactly length bytes: 0, or -errno; -EIO when the file ends before. */
static int read_all(int fd, unsigned char *buf, size_t length)
{
	while (length > 0) {
		ssize_t n = read(fd, buf, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		buf += n;
		length -= (size_t)n;
	}
	return 0;
}

static int write_all(int fd, const unsigned char *buf, size_t length)
{
	while (length > 0) {
		ssize_t n = write(fd, buf, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		buf += n;
		length -= (size_t)n;
	}
	return 0;
}

/* The name itself must reach the disk: a key lost in a power cut would make every page of the regions unreadable. */
static void sync_folder(const char *path)
{
	char dir[PATH_MAX];
	char *slash;
	int fd;

	snprintf(dir, sizeof dir, "%s", path);
	slash = strrchr(dir, '/');
	if (!slash)
		strcpy(dir, ".");
	else
		slash[slash == dir] = '\0';
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	(void)fsync(fd);
	close(fd);
}

/*
 * Make the key file. It appears under its name by link(), complete: nobody can read half a key, and of processes that make
 * it at the same time one wins and all use its key.
 */
static int create(const char *path, struct fm_key *key, char *why)
{
	char tmp[PATH_MAX];
	int fd, rc;

	if (snprintf(tmp, sizeof tmp, "%s.new-%ld", path, (long)getpid()) >= (int)sizeof tmp)
		return say_errno(why, path, "", ENAMETOOLONG);
	/* Left by a process of this number that was killed here. */
	(void)unlink(tmp);
	fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return say_errno(why, path, "cannot create it", errno);
	randombytes_buf(key->bytes, sizeof key->bytes);
	/* The umask may have taken more away. */
	rc = fchmod(fd, 0600) != 0 ? -errno : write_all(fd, key->bytes, sizeof key->bytes);
	if (rc == 0 && fsync(fd) != 0)
		rc = -errno;
	if (close(fd) != 0 && rc == 0)
		rc = -errno;
	if (rc == 0 && link(tmp, path) != 0 && errno != EEXIST)
		rc = -errno;
	(void)unlink(tmp);
	sodium_memzero(key->bytes, sizeof key->bytes);
	if (rc != 0)
		return say_errno(why, path, "cannot create it", -rc);
	sync_folder(path);
	return 0;
}

/* What is wrong with the open key file? 0 when nothing is. */
static int check(int fd, const char *path, char *why)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return say_errno(why, path, "", errno);
	if (!S_ISREG(st.st_mode)) {
		say(why, "%.180s: not a regular file", path);
		return -EINVAL;
	}
	if (st.st_uid != geteuid()) {
		say(why, "%.140s: belongs to user %lu, not to user %lu who reads it", path, (unsigned long)st.st_uid,
		    (unsigned long)geteuid());
		return -EPERM;
	}
	if (st.st_mode & 077) {
		say(why, "%.140s: mode %04o lets others use the key: chmod 600", path, (unsigned)st.st_mode & 07777);
		return -EPERM;
	}
	if (st.st_size != (off_t)FM_KEY_BYTES) {
		say(why, "%.140s: %lld bytes, a key has %u", path, (long long)st.st_size, FM_KEY_BYTES);
		return -EINVAL;
	}
	return 0;
}

static int load(const char *path, struct fm_key *key, char *why)
{
	/* O_NONBLOCK: do not wait on a fifo to say that it is no regular file. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	int rc;

	if (fd < 0)
		return say_errno(why, path, "", errno);
	rc = check(fd, path, why);
	if (rc == 0) {
		rc = read_all(fd, key->bytes, sizeof key->bytes);
		if (rc != 0)
			say_errno(why, path, "", -rc);
	}
	close(fd);
	if (rc == 0 && sodium_is_zero(key->bytes, sizeof key->bytes)) {
		say(why, "%.180s: all zero: no key", path);
		rc = -EINVAL;
	}
	return rc;
}

int fm_key_open(const char *path, struct fm_key **out, char *why)
{
	struct fm_key *key;
	int rc;

	*why = '\0';
	if (sodium_init() < 0)
		return say_errno(why, path, "libsodium does not start", ENOSYS);
	key = sodium_malloc(sizeof *key);
	if (!key)
		return say_errno(why, path, "", ENOMEM);
	rc = load(path, key, why);
	if (rc == -ENOENT) {
		rc = create(path, key, why);
		if (rc == 0)
			rc = load(path, key, why);
	}
	if (rc != 0) {
		sodium_free(key);
		return rc;
	}
	*why = '\0';
	*out = key;
	return 0;
}

uint64_t fm_key_print(const struct fm_key *key)
{
	unsigned char sub[16]; /* the least that is derived */
	uint64_t print;

	crypto_kdf_derive_from_key(sub, sizeof sub, 0, "fm-print", key->bytes);
	memcpy(&print, sub, sizeof print);
	return print | 1;
}

void fm_key_close(struct fm_key *key)
{
	sodium_free(key);
}

/* --- a region's handle */

enum fm_seal_kind fm_seal_best(void)
{
	if (sodium_init() < 0)
		return FM_SEAL_XCHACHA;
	return crypto_aead_aes256gcm_is_available() ? FM_SEAL_AES : FM_SEAL_XCHACHA;
}

int fm_seal_new(const struct fm_key *key, uint64_t region, enum fm_seal_kind kind, struct fm_seal **out)
{
	unsigned char sub[32];
	struct fm_seal *s;

	if (kind != FM_SEAL_CHECKSUM && kind != FM_SEAL_AES && kind != FM_SEAL_XCHACHA)
		return -EINVAL;
	if (!key && kind != FM_SEAL_CHECKSUM)
		return -EINVAL;
	if (sodium_init() < 0)
		return -ENOSYS;
	if (kind == FM_SEAL_AES && !crypto_aead_aes256gcm_is_available())
		return -ENOTSUP;
	s = sodium_malloc(sizeof *s);
	if (!s)
		return -ENOMEM;
	memset(s, 0, sizeof *s);
	s->region = region;
	s->kind = kind;
	if (kind == FM_SEAL_AES) {
		crypto_kdf_derive_from_key(sub, sizeof sub, region, "fm-aes-1", key->bytes);
		fm_gcm_key(&s->aes, fm_gcm_best(), sub);
		sodium_memzero(sub, sizeof sub);
	} else if (kind == FM_SEAL_XCHACHA) {
		crypto_kdf_derive_from_key(s->xchacha, sizeof s->xchacha, region, "fm-xch-1", key->bytes);
	}
	(void)sodium_mprotect_readonly(s);
	*out = s;
	return 0;
}

void fm_seal_free(struct fm_seal *s)
{
	sodium_free(s);
}

enum fm_seal_kind fm_seal_kind(const struct fm_seal *s)
{
	return s->kind;
}

/* --- sealing */

static void put64(unsigned char *to, uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		to[i] = (unsigned char)(v >> (8 * i));
}

/* 44 bits of generation, then 52 of page number, little endian; zeros after the 96 bits. */
static void make_nonce(unsigned char nonce[24], const struct fm_seal_at *at)
{
	memset(nonce, 0, 24);
	put64(nonce, at->gen | at->page << 44);
	nonce[8] = (unsigned char)(at->page >> 20);
	nonce[9] = (unsigned char)(at->page >> 28);
	nonce[10] = (unsigned char)(at->page >> 36);
	nonce[11] = (unsigned char)(at->page >> 44);
}

/* What the tag covers besides the bytes themselves: head, region, page. The generation is in the nonce. */
static size_t make_ad(unsigned char ad[AD_MAX], const struct fm_seal *s, const struct fm_seal_at *at)
{
	memcpy(ad, at->head, at->head_length);
	put64(ad + at->head_length, s->region);
	put64(ad + at->head_length + 8, at->page);
	return at->head_length + 16;
}

/* The checksum's seed takes the place of key, nonce and associated data. */
static void checksum(const unsigned char *ad, size_t ad_length, const unsigned char nonce[24], const void *in, size_t length,
		     unsigned char tag[FM_SEAL_TAG])
{
	uint64_t seed = XXH3_64bits_withSeed(ad, ad_length, XXH3_64bits(nonce, 12));
	XXH128_hash_t h = XXH3_128bits_withSeed(in, length, seed);

	put64(tag, h.low64);
	put64(tag + 8, h.high64);
}

static bool in_range(const struct fm_seal_at *at, size_t length)
{
	return at->page < FM_SEAL_PAGES && at->gen >= 1 && at->gen < FM_SEAL_GENS && at->head_length <= HEAD_MAX && length <= 4096;
}

int fm_seal_put(const struct fm_seal *s, const struct fm_seal_at *at, const void *in, size_t length, void *out, void *tag)
{
	unsigned char nonce[24], ad[AD_MAX];
	size_t ad_length;
	int rc = 0;

	if (!in_range(at, length))
		return -EINVAL;
	make_nonce(nonce, at);
	ad_length = make_ad(ad, s, at);
	switch (s->kind) {
	case FM_SEAL_AES:
		fm_gcm_seal(&s->aes, &(struct fm_gcm_what){nonce, ad, ad_length, in, length}, out, tag);
		break;
	case FM_SEAL_XCHACHA:
		rc = crypto_aead_xchacha20poly1305_ietf_encrypt_detached(out, tag, NULL, in, length, ad, ad_length, NULL, nonce,
									 s->xchacha);
		break;
	case FM_SEAL_CHECKSUM:
		memcpy(out, in, length);
		checksum(ad, ad_length, nonce, in, length, tag);
		break;
	}
	return rc == 0 ? 0 : -EINVAL;
}

int fm_seal_get(const struct fm_seal *s, const struct fm_seal_at *at, const void *in, size_t length, const void *tag, void *out)
{
	unsigned char nonce[24], ad[AD_MAX], want[FM_SEAL_TAG];
	size_t ad_length;
	int rc = -1;

	if (!in_range(at, length))
		return -EINVAL;
	make_nonce(nonce, at);
	ad_length = make_ad(ad, s, at);
	switch (s->kind) {
	case FM_SEAL_AES:
		rc = fm_gcm_open(&s->aes, &(struct fm_gcm_what){nonce, ad, ad_length, in, length}, tag, out);
		break;
	case FM_SEAL_XCHACHA:
		rc = crypto_aead_xchacha20poly1305_ietf_decrypt_detached(out, NULL, in, length, tag, ad, ad_length, nonce,
									 s->xchacha);
		break;
	case FM_SEAL_CHECKSUM:
		checksum(ad, ad_length, nonce, in, length, want);
		rc = memcmp(want, tag, sizeof want) == 0 ? 0 : -1;
		if (rc == 0)
			memcpy(out, in, length);
		break;
	}
	return rc == 0 ? 0 : -EBADMSG;
}
