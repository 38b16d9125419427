/* Values in a network store: what comes back is that page of that generation, or nothing. */
#include "value.h"

#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define PAGE FM_VALUE_PAGE

enum { REGION = 77, OTHER_REGION = 78 };

static struct fm_value_scratch scratch;
static struct fm_key *key;

static uint64_t seed = 1;

static unsigned char random_byte(void)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (unsigned char)(seed >> 56);
}

static struct fm_seal *seal_of(uint64_t region, enum fm_seal_kind kind)
{
	struct fm_seal *s = NULL;

	if (fm_seal_new(key, region, kind, &s) != 0)
		abort();
	return s;
}

static void fill(unsigned char page[PAGE], const char *what)
{
	if (strcmp(what, "zeros") == 0)
		memset(page, 0, PAGE);
	else if (strcmp(what, "text") == 0)
		for (unsigned i = 0; i < PAGE; i++)
			page[i] = (unsigned char)"It was a secret, 0123456789. "[i % 29];
	else
		for (unsigned i = 0; i < PAGE; i++)
			page[i] = random_byte();
	/* Random but for a part: 'half' compresses well, 'tenth' by less than an eighth. */
	if (strcmp(what, "half") == 0)
		memset(page, 'x', PAGE / 2);
	if (strcmp(what, "tenth") == 0)
		memset(page, 'x', PAGE / 10);
}

/* The page back, into memory that ends where the page does: the sanitizers see a byte too many. */
static int decode(const struct fm_seal *s, uint64_t page, uint64_t gen, const void *value, size_t length, unsigned char *out)
{
	unsigned char *exact = malloc(length ? length : 1), *to = malloc(PAGE);
	int rc;

	if (!exact || !to)
		abort();
	memcpy(exact, value, length);
	rc = fm_value_decode(s, page, gen, exact, length, to, &scratch);
	memcpy(out, to, PAGE);
	free(exact);
	free(to);
	return rc;
}

static void test_round_trip(const struct fm_seal *s, const char *name)
{
	static const struct {
		const char *what;
		int most;
	} kinds[] = { { "zeros", 100 }, { "text", 200 }, { "half", 2200 }, { "tenth", 4136 }, { "random", 4136 } };
	unsigned char in[PAGE], copy[PAGE], out[PAGE], v[FM_VALUE_MAX + 8];

	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		int n;

		fill(in, kinds[i].what);
		memcpy(copy, in, PAGE);
		memset(v, 0xee, sizeof v);
		n = fm_value_encode(s, 3, 4, in, v, &scratch);
		ok(n > 0 && n <= kinds[i].most && (i < 3) == (n <= 3624), "%s: %s: %d bytes", name, kinds[i].what, n);
		ok(v[FM_VALUE_MAX] == 0xee && v[n] == 0xee, "%s: %s: nothing written beyond them", name, kinds[i].what);
		ok(memcmp(in, copy, PAGE) == 0, "%s: %s: the page is untouched", name, kinds[i].what);
		is_u64(v[5], i < 3 ? FM_CODEC_LZ4 : FM_CODEC_NONE, "%s: %s: codec", name, kinds[i].what);
		ok(decode(s, 3, 4, v, (size_t)n, out) == 0 && memcmp(in, out, PAGE) == 0, "%s: %s: comes back", name,
		   kinds[i].what);
	}
	is_u64(fm_value_encode(s, FM_SEAL_PAGES, 1, in, v, &scratch), -EINVAL, "%s: no such page", name);
	is_u64(fm_value_encode(s, 1, 0, in, v, &scratch), -EINVAL, "%s: no such generation", name);
}

static void test_flips(const struct fm_seal *s, const char *name, const char *what)
{
	unsigned char in[PAGE], out[PAGE], v[FM_VALUE_MAX];
	uint64_t accepted = 0;
	int n;

	fill(in, what);
	n = fm_value_encode(s, 3, 4, in, v, &scratch);
	for (unsigned bit = 0; bit < (unsigned)n * 8; bit++) {
		v[bit / 8] ^= (unsigned char)(1u << bit % 8);
		accepted += decode(s, 3, 4, v, (size_t)n, out) != -EBADMSG;
		v[bit / 8] ^= (unsigned char)(1u << bit % 8);
	}
	is_u64(accepted, 0, "%s: %s: each of %d flipped bits is seen", name, what, n * 8);
	is_u64(decode(s, 3, 4, v, (size_t)n, out), 0, "%s: %s: without them it is read", name, what);
}

static void test_lengths(const struct fm_seal *s, const char *name, const char *what)
{
	unsigned char in[PAGE], out[PAGE], v[FM_VALUE_MAX + 100];
	uint64_t accepted = 0, fixed = 0;
	int n;

	fill(in, what);
	memset(v, 0, sizeof v);
	n = fm_value_encode(s, 3, 4, in, v, &scratch);
	for (int length = 0; length <= (int)sizeof v; length++) {
		if (length == n)
			continue;
		accepted += decode(s, 3, 4, v, (size_t)length, out) != -EBADMSG;
		/* With a header that says so, too. */
		if (length > 40) {
			unsigned char w[sizeof v];

			memcpy(w, v, sizeof w);
			w[16] = (unsigned char)(length - 40);
			w[17] = (unsigned char)((length - 40) >> 8);
			fixed += decode(s, 3, 4, w, (size_t)length, out) != -EBADMSG;
		}
	}
	is_u64(accepted, 0, "%s: %s: refused at every other length", name, what);
	is_u64(fixed, 0, "%s: %s: and with the header's length to match", name, what);
	is_u64(fm_value_decode(s, 3, 4, v, SIZE_MAX, out, &scratch), -EBADMSG, "%s: a length beyond all bounds", name);
}

static void test_moved(enum fm_seal_kind kind, const char *name)
{
	struct fm_seal *s = seal_of(REGION, kind), *other = seal_of(OTHER_REGION, kind);
	unsigned char in[PAGE], out[PAGE], v[FM_VALUE_MAX], w[FM_VALUE_MAX];
	int n, m;

	fill(in, "random");
	n = fm_value_encode(s, 3, 4, in, v, &scratch);
	is_u64(decode(s, 2, 4, v, (size_t)n, out), -EBADMSG, "%s: another page's value", name);
	is_u64(decode(other, 3, 4, v, (size_t)n, out), -EBADMSG, "%s: another region's value", name);
	is_u64(decode(s, 3, 5, v, (size_t)n, out), -EBADMSG, "%s: an older generation's value", name);
	is_u64(decode(s, 3, 3, v, (size_t)n, out), -EBADMSG, "%s: a newer generation's value", name);
	v[8] = 5;
	is_u64(decode(s, 3, 5, v, (size_t)n, out), -EBADMSG, "%s: an older one under a newer header", name);
	v[8] = 4;
	/* Torn: the first half of one generation and the second of the next. */
	in[4000] ^= 1;
	m = fm_value_encode(s, 3, 5, in, w, &scratch);
	memcpy(w + 2000, v + 2000, (size_t)m - 2000);
	is_u64(decode(s, 3, 5, w, (size_t)m, out), -EBADMSG, "%s: half of an older value", name);
	fm_seal_free(s);
	fm_seal_free(other);
}

/* A handle takes only what was sealed as it seals. */
static void test_policy(void)
{
	static const char *const names[] = { "checksum", "AES-GCM", "XChaCha20" };
	unsigned char in[PAGE], out[PAGE], v[FM_VALUE_MAX];

	fill(in, "text");
	for (int a = 0; a < 3; a++)
		for (int b = 0; b < 3; b++) {
			struct fm_seal *from, *to;
			int n;

			if ((a == FM_SEAL_AES || b == FM_SEAL_AES) && fm_seal_best() != FM_SEAL_AES)
				continue;
			from = seal_of(REGION, (enum fm_seal_kind)a);
			to = seal_of(REGION, (enum fm_seal_kind)b);
			n = fm_value_encode(from, 3, 4, in, v, &scratch);
			is_u64(decode(to, 3, 4, v, (size_t)n, out), a == b ? 0 : -EBADMSG, "%s read as %s", names[a],
			       names[b]);
			v[6] = (unsigned char)b;
			is_u64(decode(to, 3, 4, v, (size_t)n, out), a == b ? 0 : -EBADMSG, "%s relabelled as %s",
			       names[a], names[b]);
			fm_seal_free(from);
			fm_seal_free(to);
		}
}

/* Somebody who can compute checksums, but has no key, writes bad LZ4: at most an error. */
static void test_bad_lz4(void)
{
	struct fm_seal *s = seal_of(REGION, FM_SEAL_CHECKSUM);
	unsigned char v[FM_VALUE_MAX], out[PAGE], payload[3584];
	static const unsigned char head[8] = { 'f', 'm', 'p', 'g', 1, FM_CODEC_LZ4, FM_SEAL_CHECKSUM, 0 };
	uint64_t accepted = 0;

	for (unsigned i = 0; i < 20000; i++) {
		size_t n = 1 + (random_byte() | (size_t)random_byte() << 8) % sizeof payload;
		const struct fm_seal_at at = { 3, 4, v, FM_VALUE_HEADER };

		for (size_t j = 0; j < n; j++)
			payload[j] = i % 2 ? random_byte() : random_byte() & 0x0f;
		memset(v, 0, FM_VALUE_HEADER);
		memcpy(v, head, sizeof head);
		v[8] = 4;
		v[16] = (unsigned char)n;
		v[17] = (unsigned char)(n >> 8);
		if (fm_seal_put(s, &at, payload, n, v + 40, v + 24) != 0)
			abort();
		accepted += decode(s, 3, 4, v, 40 + n, out) != -EBADMSG;
	}
	is_u64(accepted, 0, "20000 forged LZ4 blocks are refused");
	fm_seal_free(s);
}

static void test_cipher_text(const struct fm_seal *s, const char *name)
{
	static const char sentence[] = "It was a secret, 0123456789. It";
	static const char *const words[] = { "secret", "It was", "012345", ". It" };
	unsigned char in[PAGE], v[FM_VALUE_MAX];
	unsigned found = 0;

	/* Compressed, and too random for that but for one sentence. */
	for (int i = 0; i < 2; i++) {
		int n;

		fill(in, i ? "random" : "text");
		memcpy(in + 1000, sentence, sizeof sentence);
		n = fm_value_encode(s, 3, 4, in, v, &scratch);
		for (unsigned w = 0; w < 4; w++)
			found += memmem(v, (size_t)n, words[w], strlen(words[w])) != NULL;
	}
	is_u64(found, 0, "%s: no word of the page can be read in its values", name);
}

static void test_vectors(void)
{
	static const struct {
		const char *head, *tag;
	} want[] = {
		{ "666d706701010000ab896745230100001a00000000000000", "6f5fbfa102b370e678dfad0dcd0452b3" },
		{ "666d706701010100ab896745230100001a00000000000000", "d299c7b7a1c0edcefab49d64c8dd776e" },
		{ "666d706701010200ab896745230100001a00000000000000", "b9eba4a979268736ea3253629379dfd5" },
	};
	unsigned char in[PAGE], out[PAGE], v[FM_VALUE_MAX];
	char hex[128];

	memset(in, 'x', PAGE);
	for (int kind = 0; kind < 3; kind++) {
		struct fm_seal *s;
		int n;

		if (fm_seal_new(key, REGION, (enum fm_seal_kind)kind, &s) != 0) {
			tap_skip("AES-GCM vector", "this CPU has no AES-NI");
			continue;
		}
		n = fm_value_encode(s, 3, 0x123456789ab, in, v, &scratch);
		sodium_bin2hex(hex, sizeof hex, v, FM_VALUE_HEADER);
		is_str(hex, want[kind].head, "header, kind %d", kind);
		sodium_bin2hex(hex, sizeof hex, v + FM_VALUE_HEADER, FM_SEAL_TAG);
		is_str(hex, want[kind].tag, "tag, kind %d", kind);
		ok(decode(s, 3, 0x123456789ab, v, (size_t)n, out) == 0 && memcmp(in, out, PAGE) == 0, "and back");
		fm_seal_free(s);
	}
}

/* Figures for people; nothing depends on them. */
static void figures(const struct fm_seal *s, const char *name)
{
	enum { ROUNDS = 2000 };
	static const char *const what[] = { "random", "half", "text" };

	for (unsigned k = 0; k < 3; k++) {
		unsigned char in[PAGE], out[PAGE], v[FM_VALUE_MAX];
		struct timespec a, b, c;
		int n = 0;

		fill(in, what[k]);
		clock_gettime(CLOCK_MONOTONIC, &a);
		for (unsigned i = 0; i < ROUNDS; i++)
			n = fm_value_encode(s, 3, i + 1, in, v, &scratch);
		clock_gettime(CLOCK_MONOTONIC, &b);
		for (unsigned i = 0; i < ROUNDS; i++)
			if (fm_value_decode(s, 3, ROUNDS, v, (size_t)n, out, &scratch) != 0)
				abort();
		clock_gettime(CLOCK_MONOTONIC, &c);
		printf("# %-9s %-6s %4d bytes: encode %5ld ns, decode %5ld ns a page\n", name, what[k], n,
		       ((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec) / ROUNDS,
		       ((c.tv_sec - b.tv_sec) * 1000000000L + c.tv_nsec - b.tv_nsec) / ROUNDS);
	}
}

/* Where nothing compresses, LZ4 is tried now and then only; where something does, each time again. */
static void test_tries(const struct fm_seal *s)
{
	unsigned char in[PAGE], text[PAGE], out[PAGE], v[FM_VALUE_MAX];
	unsigned long_ones = 0;
	uint64_t wrong = 0;
	int n;

	memset(&scratch, 0, sizeof scratch);
	fill(in, "random");
	fill(text, "text");
	for (uint64_t i = 1; i <= 3 * FM_VALUE_TRIES; i++) {
		n = fm_value_encode(s, 3, i, in, v, &scratch);
		wrong += n < 0 || decode(s, 3, i, v, (size_t)n, out) != 0 || memcmp(in, out, PAGE) != 0;
	}
	do {
		n = fm_value_encode(s, 3, 100, text, v, &scratch);
		wrong += n < 0 || decode(s, 3, 100, v, (size_t)n, out) != 0 || memcmp(text, out, PAGE) != 0;
	} while (n > (int)PAGE && ++long_ones < 2 * FM_VALUE_TRIES);
	ok(long_ones < FM_VALUE_TRIES, "after pages that do not compress, one that does is found out within %u (%u)", FM_VALUE_TRIES, long_ones);
	fm_value_encode(s, 3, 101, in, v, &scratch);
	ok(fm_value_encode(s, 3, 102, text, v, &scratch) < (int)PAGE, "one in between costs nothing");
	is_u64(wrong, 0, "... and all come back");
}

static void make_key(void)
{
	char path[] = "/tmp/fm-value-XXXXXX", why[FM_KEY_WHY];
	unsigned char bytes[FM_KEY_BYTES];
	int fd = mkstemp(path);

	memset(bytes, 0x42, sizeof bytes);
	if (fd < 0 || write(fd, bytes, sizeof bytes) != sizeof bytes || fm_key_open(path, &key, why) != 0)
		abort();
	close(fd);
	unlink(path);
}

int main(void)
{
	static const struct {
		enum fm_seal_kind kind;
		const char *name;
	} kinds[] = { { FM_SEAL_CHECKSUM, "checksum" }, { FM_SEAL_AES, "AES-GCM" }, { FM_SEAL_XCHACHA, "XChaCha20" } };

	make_key();
	for (unsigned i = 0; i < 3; i++) {
		struct fm_seal *s = NULL;

		if (fm_seal_new(key, REGION, kinds[i].kind, &s) == -ENOTSUP) {
			tap_skip(kinds[i].name, "this CPU has no AES-NI");
			continue;
		}
		test_round_trip(s, kinds[i].name);
		if (i == 0)
			test_tries(s);
		test_flips(s, kinds[i].name, "random");
		test_flips(s, kinds[i].name, "text");
		test_lengths(s, kinds[i].name, "random");
		test_lengths(s, kinds[i].name, "half");
		test_moved(kinds[i].kind, kinds[i].name);
		if (kinds[i].kind != FM_SEAL_CHECKSUM)
			test_cipher_text(s, kinds[i].name);
		figures(s, kinds[i].name);
		fm_seal_free(s);
	}
	test_policy();
	test_bad_lz4();
	test_vectors();
	fm_key_close(key);
	return tap_done();
}
