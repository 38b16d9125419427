/* Placement: even, stable, distinct, and the same for ever. */
#include "place.h"

#include "tap.h"

#define PAGES 100000u

static uint64_t hashes[FM_PLACE_SERVERS];

static void make_servers(void)
{
	for (unsigned i = 0; i < FM_PLACE_SERVERS; i++) {
		char name[32];

		snprintf(name, sizeof name, "10.0.0.%u:11211", i + 1);
		hashes[i] = fm_place_server(name);
	}
}

static struct fm_epoch first(unsigned n)
{
	struct fm_epoch e = { .number = 1, .servers = n == 64 ? ~0ull : (1ull << n) - 1, .hash = hashes };

	return e;
}

static bool within(uint64_t got, uint64_t want, unsigned percent)
{
	return got * 100 >= want * (100 - percent) && got * 100 <= want * (100 + percent);
}

/* Every server gets its share, as first and as second replica. */
static void test_even(unsigned n)
{
	const struct fm_epoch e = first(n);
	uint64_t count[2][FM_PLACE_SERVERS] = { { 0 } };
	/* Three standard deviations of a share are 1.5 % at 10 servers, 7.5 % at 64. */
	const unsigned percent = n <= 10 ? 3 : 10;
	bool even = true;

	for (uint64_t p = 0; p < PAGES; p++) {
		uint8_t at[2];

		fm_place(&e, 0x1122334455667788, p, 2, at);
		count[0][at[0]]++;
		count[1][at[1]]++;
	}
	for (unsigned r = 0; r < 2; r++)
		for (unsigned i = 0; i < n; i++)
			if (!within(count[r][i], PAGES / n, percent)) {
				printf("# replica %u on server %u: %" PRIu64 "\n", r, i, count[r][i]);
				even = false;
			}
	ok(even, "%u servers: each within %u %% of its share", n, percent);
}

/* A server that leaves gives up its pages, and nobody else's page moves. Seen the other way round: one that joins. */
static void test_stable(unsigned n)
{
	const struct fm_epoch all = first(n);
	struct fm_epoch less = all;
	uint64_t moved = 0, wrong = 0, to[FM_PLACE_SERVERS] = { 0 };
	const unsigned gone = n / 2;
	bool even = true;

	less.servers &= ~(1ull << gone);
	for (uint64_t p = 0; p < PAGES; p++) {
		uint8_t a, b;

		fm_place(&all, 7, p, 1, &a);
		fm_place(&less, 7, p, 1, &b);
		if (a == gone)
			to[b]++;
		moved += a != b;
		wrong += (a != gone && a != b) || b == gone;
	}
	is_u64(wrong, 0, "%u servers: no page moves but those of the one that left", n);
	ok(within(moved, PAGES / n, 3), "%" PRIu64 " of %u moved, 1/%u are %u", moved, PAGES, n, PAGES / n);
	for (unsigned i = 0; i < n; i++)
		even = even && (i == gone || within(to[i], moved / (n - 1), 15));
	ok(even, "they go evenly to the others");
}

/* With replicas: the order of those that stay is kept, and only the last place is new. */
static void test_stable_replicas(void)
{
	const struct fm_epoch all = first(5);
	struct fm_epoch less = all;
	uint64_t wrong = 0;

	less.servers &= ~4ull;
	for (uint64_t p = 0; p < PAGES; p++) {
		uint8_t a[3], b[3];
		unsigned j = 0;

		fm_place(&all, 9, p, 3, a);
		fm_place(&less, 9, p, 3, b);
		for (unsigned i = 0; i < 3; i++)
			if (a[i] != 2)
				wrong += b[j++] != a[i];
	}
	is_u64(wrong, 0, "replicas on servers that stay keep their order");
}

static void test_distinct(void)
{
	const struct fm_epoch e = first(64);
	uint64_t wrong = 0;
	uint8_t at[FM_PLACE_REPLICAS + 1];

	for (uint64_t p = 0; p < 1000; p++)
		for (unsigned r = 1; r <= FM_PLACE_REPLICAS; r++) {
			uint64_t seen = 0;

			wrong += fm_place(&e, 3, p, r, at) != r;
			for (unsigned i = 0; i < r; i++) {
				wrong += (seen >> at[i]) & 1;
				seen |= 1ull << at[i];
			}
		}
	is_u64(wrong, 0, "replicas are as many as wanted, and distinct");
	at[FM_PLACE_REPLICAS] = 99;
	is_u64(fm_place(&e, 3, 1, 1000, at), FM_PLACE_REPLICAS, "no more than FM_PLACE_REPLICAS");
	is_u64(at[FM_PLACE_REPLICAS], 99, "nothing is written beyond them");
}

static void test_few(void)
{
	struct fm_epoch e = first(2);
	uint8_t at[3] = { 9, 9, 9 };

	is_u64(fm_place(&e, 1, 1, 3, at), 2, "two servers hold two replicas of three");
	ok(at[0] + at[1] == 1 && at[2] == 9, "one each");
	e.servers = 0;
	is_u64(fm_place(&e, 1, 1, 3, at), 0, "no server: none");
	e.servers = 1ull << 63;
	is_u64(fm_place(&e, 1, 1, 3, at), 1, "the last slot alone");
	is_u64(at[0], 63, "is found");
	is_u64(fm_place(&e, 1, 1, 0, at), 0, "no replica wanted: none");
}

/* The table's order is each host's own business: only names count. */
static void test_order(void)
{
	const struct fm_epoch e = first(8);
	struct fm_epoch back = e;
	uint64_t turned[8], wrong = 0;

	for (unsigned i = 0; i < 8; i++)
		turned[i] = hashes[7 - i];
	back.hash = turned;
	back.number = 77;
	for (uint64_t p = 0; p < 10000; p++) {
		uint8_t a[3], b[3];

		fm_place(&e, 5, p, 3, a);
		fm_place(&back, 5, p, 3, b);
		for (unsigned i = 0; i < 3; i++)
			wrong += a[i] != 7 - b[i];
	}
	is_u64(wrong, 0, "the same servers in another order: the same servers chosen");
}

/* What is stored must be found by every later version. */
static void test_vectors(void)
{
	const struct fm_epoch e = first(10);
	uint8_t at[3];

	is_u64(fm_place_server("127.0.0.1:11211"), 0xd7a875b2c3d8beaeull, "hash of 127.0.0.1:11211");
	is_u64(fm_place_server("/run/mc.sock"), 0x10e04916d032d275ull, "hash of /run/mc.sock");
	fm_place(&e, 0, 0, 3, at);
	is_u64(at[0] << 16 | at[1] << 8 | at[2], 0x10403, "region 0, page 0");
	fm_place(&e, 0xfedcba9876543210, 123456789, 3, at);
	is_u64(at[0] << 16 | at[1] << 8 | at[2], 0x50206, "region fedcba9876543210, page 123456789");
}

int main(void)
{
	make_servers();
	test_even(2);
	test_even(3);
	test_even(10);
	test_even(64);
	test_stable(3);
	test_stable(10);
	test_stable_replicas();
	test_distinct();
	test_few();
	test_order();
	test_vectors();
	return tap_done();
}
