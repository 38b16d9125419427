/* URIs of memcached clusters: what is taken, and each reason to refuse one. */
#include "mcuri.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tap.h"

static struct fm_mc_uri u;
static char why[256];

static int parse(const char *uri)
{
	memset(&u, 0xa5, sizeof u);
	memset(why, 0, sizeof why);
	return fm_mc_uri_parse(uri, &u, why);
}

static void test_good(void)
{
	static const struct {
		const char *uri, *servers[4];
	} t[] = {
	    {"memcached://10.0.0.1:11212", {"10.0.0.1:11212"}},
	    {"memcached://10.0.0.1", {"10.0.0.1:11211"}},
	    {"memcached://store-1.example:1,store-2.example:65535,c", {"store-1.example:1", "store-2.example:65535", "c:11211"}},
	    {"memcached://[::1]:11212,[fe80::1]", {"[::1]:11212", "[fe80::1]:11211"}},
	    {"memcached:/run/mc.sock", {"/run/mc.sock"}},
	    {"memcached:/a:b.sock,/c", {"/a:b.sock", "/c"}},
	    {"memcached:///run/mc.sock,host:5", {"/run/mc.sock", "host:5"}},
	    {"memcached:--SERVER=host1:11211 --SERVER=host2:22", {"host1:11211", "host2:22"}},
	    {"memcached:--SERVER=host1", {"host1:11211"}},
	    {"memcached:--SOCKET=\"/run/mc.sock\"", {"/run/mc.sock"}},
	};

	for (unsigned i = 0; i < sizeof t / sizeof *t; i++) {
		unsigned n = 0;
		int r = parse(t[i].uri);

		is_u64(r, 0, "%s%s%s", t[i].uri, r ? ": " : "", why);
		for (; r == 0 && n < 4 && t[i].servers[n]; n++)
			is_str(u.server[n], t[i].servers[n], "... server %u", n);
		if (r == 0)
			is_u64(u.nservers, n, "... and no more");
	}
}

static void test_options(void)
{
	is_u64(parse("memcached:/a"), 0, "no options");
	ok(!u.lossy && u.timeout_ms == 1000 && u.gone_s == 10, "... their defaults");
	is_u64(parse("memcached:/a?lossy=1&timeout=250&gone=3"), 0, "all options");
	ok(u.lossy && u.timeout_ms == 250 && u.gone_s == 3, "... are taken");
	is_u64(parse("memcached://a:1,b:2?gone=86400&timeout=60000&lossy=0"), 0, "greatest values");
	ok(!u.lossy && u.timeout_ms == 60000 && u.gone_s == 86400 && u.nservers == 2, "... are taken");
	is_u64(parse("memcached:/a?timeout=10&gone=1"), 0, "smallest values");
	ok(u.timeout_ms == 10 && u.gone_s == 1, "... are taken");
}

static void test_bad(void)
{
	static const struct {
		const char *uri, *reason;
	} t[] = {
	    {"memcached:", "needs memcached://host:port"},
	    {"mem", "needs memcached://host:port"},
	    {"", "needs memcached://host:port"},
	    {"dir:/tmp/x", "needs memcached://host:port"},
	    {"memcached:host:11211", "needs memcached://host:port"},
	    {"memcached:?lossy=1", "needs memcached://host:port"},
	    {"memcached://", "empty server address"},
	    {"memcached://?lossy=1", "empty server address"},
	    {"memcached://a:1,", "empty server address"},
	    {"memcached://,a:1", "empty server address"},
	    {"memcached:/a,,/b", "empty server address"},
	    {"memcached://:11211", "host:port"},
	    {"memcached://a:", "host:port"},
	    {"memcached://a:0", "host:port"},
	    {"memcached://a:65536", "host:port"},
	    {"memcached://a:99999999999999999999", "host:port"},
	    {"memcached://a:-1", "host:port"},
	    {"memcached://a:1x", "host:port"},
	    {"memcached://a:0x10", "host:port"},
	    {"memcached://a b:1", "not a server address"},
	    {"memcached:/a\tb", "not a server address"},
	    {"memcached:/a\177", "not a server address"},
	    {"memcached://a:1,a:1", "named twice"},
	    {"memcached://a,b,a:11211", "named twice"},
	    {"memcached:/a,/b,/a", "named twice"},
	    {"memcached:--SERVER=a:1 --SERVER=b:1 --SERVER=a:1", "option string"},
	    {"memcached:/a?", "unknown option"},
	    {"memcached:/a?nonsense", "unknown option"},
	    {"memcached:/a?Lossy=1", "unknown option"},
	    {"memcached:/a?lossy=1&", "unknown option"},
	    {"memcached:/a?lossy", "unknown option"},
	    {"memcached:/a?lossy=2", "lossy=0 or lossy=1"},
	    {"memcached:/a?lossy=", "lossy=0 or lossy=1"},
	    {"memcached:/a?lossy=yes", "lossy=0 or lossy=1"},
	    {"memcached:/a?timeout=9", "timeout=10..60000"},
	    {"memcached:/a?timeout=60001", "timeout=10..60000"},
	    {"memcached:/a?timeout=4294967306", "timeout=10..60000"},
	    {"memcached:/a?timeout=1s", "timeout=10..60000"},
	    {"memcached:/a?timeout=-10", "timeout=10..60000"},
	    {"memcached:/a?gone=0", "gone=1..86400"},
	    {"memcached:/a?gone=86401", "gone=1..86400"},
	    {"memcached:/a?gone=1.5", "gone=1..86400"},
	    {"memcached:--NO-SUCH-THING", "option string"},
	    {"memcached:--SERVER=", "option string"},
	    {"memcached:--", "option string"},
	    {"memcached:--BINARY-PROTOCOL", "names no server"},
	};

	for (unsigned i = 0; i < sizeof t / sizeof *t; i++) {
		int r = parse(t[i].uri);

		if (!ok(r == -EINVAL && strstr(why, t[i].reason) && !strchr(why, '\n') && strlen(why) < sizeof why,
			"%s is refused: %s", t[i].uri, t[i].reason))
			printf("#   got %d, \"%s\"\n", r, why);
	}
}

static void test_many(void)
{
	static char uri[16384];
	int r;

	for (unsigned n = 64; n <= 65; n++) {
		strcpy(uri, "memcached://");
		for (unsigned i = 0; i < n; i++)
			sprintf(uri + strlen(uri), "%shost%u:%u", i ? "," : "", i, 1000 + i);
		r = parse(uri);
		if (n == 64)
			ok(r == 0 && u.nservers == 64 && strcmp(u.server[63], "host63:1063") == 0, "64 servers");
		else
			ok(r == -EINVAL && strstr(why, "more than 64"), "65 servers are too many");
	}
	for (unsigned n = 100; n < 140; n++) {
		strcpy(uri, "memcached://");
		memset(uri + 12, 'h', n);
		uri[12 + n] = '\0';
		r = parse(uri);
		if (r == 0 ? strlen(u.server[0]) != n + 6 || n + 6 >= FM_MC_ADDRESS : !strstr(why, "too long")) {
			ok(0, "a name of %u bytes: %d, %s", n, r, why);
			return;
		}
	}
	ok(r == -EINVAL, "names are whole, or too long");
	memset(uri + 12, 'h', 5000);
	uri[5012] = '\0';
	ok(parse(uri) == -EINVAL && strlen(why) < 256, "a name of 5000 bytes");
}

/* Good URIs with a few bytes changed: whatever comes of it keeps to the header's word. */
static void test_mutations(void)
{
	static const char *const seeds[] = {
	    "memcached://host1:11211,[::1]:12,host3?lossy=1&timeout=100",
	    "memcached:/run/a.sock,/run/b.sock?gone=5",
	    "memcached:--SERVER=host1:11211 --SERVER=host2",
	};
	static const char bytes[] = "0123456789:,?&=/[]-abs. ~\x01\xff";
	const char *env = getenv("FM_SEED");
	unsigned seed = env ? (unsigned)strtoul(env, NULL, 0) : 4711, bad = 0, taken = 0;

	printf("# FM_SEED=%u\n", seed);
	srand(seed);
	for (unsigned i = 0; i < 30000 && !bad; i++) {
		char uri[128];
		size_t len, at = strlen("memcached:");

		strcpy(uri, seeds[(unsigned)rand() % 3]);
		len = strlen(uri);
		for (int k = rand() % 4; k >= 0; k--)
			uri[at + (size_t)rand() % (len - at)] = bytes[(unsigned)rand() % (sizeof bytes - 1)];
		if (rand() % 4 == 0)
			uri[at + (size_t)rand() % (len - at)] = '\0';
		if (parse(uri)) {
			bad += !*why || !memchr(why, 0, sizeof why);
		} else {
			taken++;
			bad += u.nservers < 1 || u.nservers > FM_MC_SERVERS || u.timeout_ms < 10 || u.timeout_ms > 60000 || u.gone_s < 1 ||
			       u.gone_s > 86400;
			for (unsigned a = 0; a < u.nservers && !bad; a++) {
				bad += !memchr(u.server[a], 0, FM_MC_ADDRESS) || !*u.server[a];
				for (unsigned b = 0; b < a; b++)
					bad += strcmp(u.server[a], u.server[b]) == 0;
			}
		}
		if (bad)
			printf("# %s: %s\n", uri, why);
	}
	ok(!bad && taken > 100, "30000 mutated URIs, %u of them good", taken);
}

int main(void)
{
	test_good();
	test_options();
	test_bad();
	test_many();
	test_mutations();
	return tap_done();
}
