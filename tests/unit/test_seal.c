/* Key files, keys of regions, and sealing. */
#include "seal.h"

#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/fm-seal-XXXXXX";
static char path[64], why[FM_KEY_WHY];

static void write_file(const char *name, size_t length, int byte, mode_t mode)
{
	unsigned char buf[64];
	int fd;

	memset(buf, byte, sizeof buf);
	unlink(name);
	fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || write(fd, buf, length) != (ssize_t)length || fchmod(fd, mode) != 0)
		abort();
	close(fd);
}

static void refused(int want, const char *reason, const char *name)
{
	struct fm_key *key = NULL;
	int rc = fm_key_open(path, &key, why);

	is_u64(rc, want, "%s: refused", name);
	ok(strstr(why, path) == why && strstr(why, reason) && !strchr(why, '\n'), "%s: says '%s'", name, why);
	ok(key == NULL, "%s: no key", name);
}

static void test_create(void)
{
	struct fm_key *a, *b;
	struct stat st;
	unsigned char raw[64];
	int fd;

	umask(0);
	if (!ok(fm_key_open(path, &a, why) == 0, "a missing key file is made: %s", why))
		return;
	ok(stat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 07777) == 0600, "mode 0600 whatever the umask");
	is_u64(st.st_size, FM_KEY_BYTES, "32 bytes");
	is_u64(st.st_nlink, 1, "no other name is left");
	fd = open(path, O_RDONLY);
	ok(read(fd, raw, sizeof raw) == FM_KEY_BYTES && !sodium_is_zero(raw, FM_KEY_BYTES), "random bytes");
	close(fd);
	ok(memcmp(a, raw, FM_KEY_BYTES) == 0, "the file's bytes are the key");
	ok(fm_key_open(path, &b, why) == 0 && memcmp(a, b, FM_KEY_BYTES) == 0, "and are read the next time");
	fm_key_close(a);
	fm_key_close(b);
	fm_key_close(NULL);
	chmod(path, 0400);
	ok(fm_key_open(path, &a, why) == 0, "mode 0400 will do");
	fm_key_close(a);
	unlink(path);
}

/* Daemons that start together must end up with one key. */
static void test_race(void)
{
	enum { N = 8, ROUNDS = 20 };
	unsigned char keys[N][FM_KEY_BYTES];
	int wrong = 0;

	for (int round = 0; round < ROUNDS; round++) {
		int pipes[N][2];

		unlink(path);
		for (int i = 0; i < N; i++) {
			if (pipe(pipes[i]) != 0)
				abort();
			if (fork() == 0) {
				struct fm_key *key;

				_exit(fm_key_open(path, &key, why) != 0 ||
				      write(pipes[i][1], key, FM_KEY_BYTES) != FM_KEY_BYTES);
			}
		}
		for (int i = 0; i < N; i++) {
			close(pipes[i][1]);
			wrong += read(pipes[i][0], keys[i], FM_KEY_BYTES) != FM_KEY_BYTES ||
				 memcmp(keys[i], keys[0], FM_KEY_BYTES) != 0;
			close(pipes[i][0]);
		}
		while (wait(NULL) > 0)
			;
	}
	is_u64(wrong, 0, "%d processes at once get one key, %d times", N, ROUNDS);
	unlink(path);
}

static void test_refused(void)
{
	char saved[sizeof path];

	write_file(path, 31, 1, 0600);
	refused(-EINVAL, "31 bytes", "short");
	write_file(path, 33, 1, 0600);
	refused(-EINVAL, "33 bytes", "long");
	write_file(path, 0, 1, 0600);
	refused(-EINVAL, "0 bytes", "empty");
	write_file(path, 32, 0, 0600);
	refused(-EINVAL, "all zero", "zeros");
	write_file(path, 32, 1, 0640);
	refused(-EPERM, "mode 0640", "readable by the group");
	write_file(path, 32, 1, 0604);
	refused(-EPERM, "mode 0604", "readable by others");
	if (geteuid() == 0) {
		write_file(path, 32, 1, 0600);
		if (chown(path, 12345, (gid_t)-1) != 0)
			abort();
		refused(-EPERM, "belongs to user 12345", "another user's");
	} else {
		tap_skip("another user's key file", "needs root");
	}
	unlink(path);
	mkdir(path, 0700);
	refused(-EINVAL, "not a regular file", "a folder");
	rmdir(path);
	mkfifo(path, 0600);
	refused(-EINVAL, "not a regular file", "a fifo");
	unlink(path);
	strcpy(saved, path);
	snprintf(path, sizeof path, "%s/none/key", dir);
	refused(-ENOENT, "cannot create it", "no such folder");
	strcpy(path, saved);
}

static struct fm_key *key_of(int byte)
{
	struct fm_key *key = NULL;

	write_file(path, 32, byte, 0600);
	if (fm_key_open(path, &key, why) != 0)
		abort();
	unlink(path);
	return key;
}

static struct fm_seal *seal_of(const struct fm_key *key, uint64_t region, enum fm_seal_kind kind)
{
	struct fm_seal *s = NULL;

	if (fm_seal_new(key, region, kind, &s) != 0)
		abort();
	return s;
}

/* The tag of 100 bytes of 'a' in some place. */
static void tag_of(const struct fm_seal *s, uint64_t page, uint64_t gen, const char *head, unsigned char tag[16],
		   unsigned char out[100])
{
	const struct fm_seal_at at = { page, gen, head, strlen(head) };
	unsigned char in[100];

	memset(in, 'a', sizeof in);
	if (fm_seal_put(s, &at, in, sizeof in, out, tag) != 0)
		abort();
}

static bool opens(const struct fm_seal *s, uint64_t page, uint64_t gen, const char *head, const unsigned char *tag,
		  const unsigned char *sealed, size_t length)
{
	const struct fm_seal_at at = { page, gen, head, strlen(head) };
	unsigned char out[100];
	int rc = fm_seal_get(s, &at, sealed, length, tag, out);

	if (rc != 0 && rc != -EBADMSG)
		abort();
	return rc == 0 && out[0] == 'a' && memcmp(out, out + 1, length - 1) == 0;
}

static void test_kind(enum fm_seal_kind kind, const char *name)
{
	struct fm_key *key = key_of(1), *other = key_of(2);
	struct fm_seal *s = seal_of(key, 5, kind), *again = seal_of(key, 5, kind);
	struct fm_seal *region = seal_of(key, 6, kind), *foreign = seal_of(other, 5, kind);
	unsigned char tag[16], tag2[16], sealed[100], sealed2[100];
	const uint64_t page = FM_SEAL_PAGES - 1, gen = (1ull << 44) - 1;
	bool never = true;

	is_u64(fm_seal_kind(s), kind, "%s: kind", name);
	tag_of(s, page, gen, "head", tag, sealed);
	ok(opens(s, page, gen, "head", tag, sealed, 100), "%s: comes back", name);
	ok(opens(again, page, gen, "head", tag, sealed, 100), "%s: through another handle of the region", name);
	ok(!opens(region, page, gen, "head", tag, sealed, 100), "%s: not in another region", name);
	is_u64(opens(foreign, page, gen, "head", tag, sealed, 100), kind == FM_SEAL_CHECKSUM,
	       "%s: another host's key", name);
	ok(!opens(s, page, gen, "heaD", tag, sealed, 100), "%s: not under another header", name);
	ok(!opens(s, page, gen, "head", tag, sealed, 99), "%s: not shortened", name);
	/* Every bit of page and generation counts, none shadows another. */
	for (unsigned bit = 0; bit < 52; bit++)
		never = never && !opens(s, page ^ (1ull << bit), gen, "head", tag, sealed, 100);
	ok(never, "%s: not as another page", name);
	for (unsigned bit = 0; bit < 44; bit++)
		never = never && !opens(s, page, gen ^ (1ull << bit), "head", tag, sealed, 100);
	ok(never, "%s: not as another generation", name);
	if (kind != FM_SEAL_CHECKSUM) {
		ok(memmem(sealed, sizeof sealed, "aaa", 3) == NULL, "%s: nothing plain in it", name);
		/* The last bit of the generation lies beside the first of the page. */
		tag_of(s, 0, 1ull << 43, "head", tag, sealed);
		tag_of(s, 1, 1ull << 43, "head", tag2, sealed2);
		ok(memcmp(sealed, sealed2, 100) != 0, "%s: another page, another key stream", name);
		tag_of(s, 0, 1, "head", tag2, sealed2);
		ok(memcmp(sealed, sealed2, 100) != 0, "%s: another generation, another key stream", name);
		tag_of(region, 0, 1ull << 43, "head", tag2, sealed2);
		ok(memcmp(sealed, sealed2, 100) != 0, "%s: another region, another key", name);
	}
	fm_seal_free(s);
	fm_seal_free(again);
	fm_seal_free(region);
	fm_seal_free(foreign);
	fm_key_close(key);
	fm_key_close(other);
}

static void test_range(void)
{
	struct fm_seal *s = seal_of(NULL, 1, FM_SEAL_CHECKSUM), *none = NULL;
	struct fm_seal_at at = { 0, 1, "", 0 };
	unsigned char tag[16], big[4097] = { 0 }, out[4097];

	is_u64(fm_seal_put(s, &at, big, 4096, out, tag), 0, "4096 bytes");
	is_u64(fm_seal_put(s, &at, big, 4097, out, tag), -EINVAL, "4097 are too many");
	at.gen = 0;
	is_u64(fm_seal_put(s, &at, big, 1, out, tag), -EINVAL, "there is no generation 0");
	at.gen = 1ull << 44;
	is_u64(fm_seal_put(s, &at, big, 1, out, tag), -EINVAL, "nor one of 45 bits");
	is_u64(fm_seal_get(s, &at, big, 1, tag, out), -EINVAL, "nor on the way back");
	at.gen = 1;
	at.page = FM_SEAL_PAGES;
	is_u64(fm_seal_put(s, &at, big, 1, out, tag), -EINVAL, "no page of 53 bits");
	is_u64(fm_seal_new(NULL, 1, FM_SEAL_AES, &none), -EINVAL, "no cipher without a key");
	is_u64(fm_seal_new(NULL, 1, (enum fm_seal_kind)3, &none), -EINVAL, "no such kind");
	ok(none == NULL, "no handle");
	fm_seal_free(s);
	fm_seal_free(NULL);
}

/*
 * What is stored today must be readable by every later version: keys, nonces, associated data. 12 bytes of the tag and 4 of
 * the sealed bytes. The one of AES was computed with Python's hashlib.blake2b and OpenSSL's AES-GCM, not with this code.
 */
static void test_vectors(void)
{
	static const struct {
		enum fm_seal_kind kind;
		const char *hex;
	} v[] = {
		{ FM_SEAL_CHECKSUM, "40f9d4006153f11292ba3e7e61616161" },
		{ FM_SEAL_AES, "063b26624cc0b6ede96704ec2440361f" },
		{ FM_SEAL_XCHACHA, "c1f50937bbeb511ac555b163ccd62735" },
	};
	struct fm_key *key = key_of(0x42);

	for (unsigned i = 0; i < sizeof v / sizeof *v; i++) {
		unsigned char tag[16], sealed[100];
		char hex[64];
		struct fm_seal *s;

		if (fm_seal_new(key, 0x1122334455667788, v[i].kind, &s) == -ENOTSUP) {
			tap_skip("AES vector", "this CPU has no AES-NI");
			continue;
		}
		tag_of(s, 0xabcde12345678, 0x98765432101, "head", tag, sealed);
		memcpy(tag + 12, sealed, 4);
		is_str(sodium_bin2hex(hex, sizeof hex, tag, 16), v[i].hex, "vector of kind %d", v[i].kind);
		fm_seal_free(s);
	}
	fm_key_close(key);
}

int main(void)
{
	if (sodium_init() < 0 || !mkdtemp(dir))
		return 1;
	snprintf(path, sizeof path, "%s/key", dir);
	test_create();
	test_race();
	test_refused();
	test_kind(FM_SEAL_CHECKSUM, "checksum");
	test_kind(FM_SEAL_XCHACHA, "XChaCha20");
	if (fm_seal_best() == FM_SEAL_AES)
		test_kind(FM_SEAL_AES, "AES-GCM");
	else
		tap_skip("AES-GCM", "this CPU has no AES-NI");
	test_range();
	test_vectors();
	rmdir(dir);
	return tap_done();
}
