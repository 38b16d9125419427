/* Unit tests of lib/reguri, lib/registry and lib/mccollect, as far as they need no server. tests/bats/zookeeper.bats has the rest. */
#include "registry.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "mccollect.h"
#include "tap.h"

static char why[FM_REGISTRY_WHY];

static void test_uri(void)
{
	static const struct {
		const char *uri, *connect, *chroot;
		unsigned grace_s, timeout_ms;
	} good[] = {
	    {"none", "", "", 60, 10000},
	    {"zookeeper://a", "a:2181", "", 60, 10000},
	    {"zookeeper://a:1,b:65535/x", "a:1,b:65535/x", "/x", 60, 10000},
	    {"zookeeper://a/", "a:2181", "", 60, 10000},
	    {"zookeeper://a/x/y.z?grace=5", "a:2181/x/y.z", "/x/y.z", 5, 10000},
	    {"zookeeper://a?timeout=1000&grace=0", "a:2181", "", 0, 1000},
	    {"zookeeper://[::1]:7,[fe80::2]", "::1:7,fe80::2:2181", "", 60, 10000},
	};
	static const struct {
		const char *uri, *why;
	} bad[] = {
	    {"", "unknown registry"},
	    {"etcd://a", "unknown registry"},
	    {"zookeeper:a", "unknown registry"},
	    {"zookeeper://", "empty server address"},
	    {"zookeeper:///x", "empty server address"},
	    {"zookeeper://a,,b", "empty server address"},
	    {"zookeeper://a,", "empty server address"},
	    {"zookeeper://:1", "not a server address"},
	    {"zookeeper://a b", "not a server address"},
	    {"zookeeper://a:0", "1 to 65535"},
	    {"zookeeper://a:65536", "1 to 65535"},
	    {"zookeeper://a:", "1 to 65535"},
	    {"zookeeper://a:1:2", "1 to 65535"},
	    {"zookeeper://[::1", "not a server address"},
	    {"zookeeper://[]:1", "not a server address"},
	    {"zookeeper://[::1]x", "not a server address"},
	    {"zookeeper://a//x", "not a path"},
	    {"zookeeper://a/x/", "not a path"},
	    {"zookeeper://a/x/../y", "not a path"},
	    {"zookeeper://a/./x", "not a path"},
	    {"zookeeper://a/x y", "not a path"},
	    {"zookeeper://a/x,b", "not a path"},
	    {"zookeeper://a?grace", "unknown option"},
	    {"zookeeper://a?auth=", "unknown option"},
	    {"zookeeper://a?auth=user:password", "auth=/path"},
	    {"zookeeper://a?grace=x", "grace=0..86400"},
	    {"zookeeper://a?grace=86401", "grace=0..86400"},
	    {"zookeeper://a?timeout=999", "timeout=1000..600000"},
	    {"zookeeper://a?timeout=18446744073709552616", "timeout=1000..600000"},
	    {"zookeeper://a?", "unknown option"},
	};
	struct fm_registry_uri u;
	char longest[700];

	for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
		ok(fm_registry_uri_parse(good[i].uri, &u, why) == 0, "%s is good", good[i].uri);
		is_str(u.connect, good[i].connect, "... and its servers are told to libzookeeper");
		is_str(u.chroot, good[i].chroot, "... and its chroot is known");
		is_u64(u.grace_s, good[i].grace_s, "... and its grace time");
		is_u64(u.timeout_ms, good[i].timeout_ms, "... and its session's timeout");
	}
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		*why = '\0';
		ok(fm_registry_uri_parse(bad[i].uri, &u, why) == -EINVAL, "'%s' is refused", bad[i].uri);
		ok(strstr(why, bad[i].why) && !strchr(why, '\n'), "... in one line: %s", why);
	}
	memset(longest, 'a', sizeof longest - 1);
	longest[sizeof longest - 1] = '\0';
	memcpy(longest, "zookeeper://", 12);
	ok(fm_registry_uri_parse(longest, &u, why) == -EINVAL, "a URI of 699 bytes is refused");
	for (size_t n = 14; n < 511; n += 2)
		longest[n] = ',';
	longest[511] = '\0';
	ok(fm_registry_uri_parse(longest, &u, why) == -EINVAL || strlen(u.connect) < sizeof u.connect,
	   "very many servers overflow nothing");
}

static void test_record(void)
{
	struct fm_registry_record in = {.host = 0x1234, .pages = 7, .epoch = 2, .created = 99, .store = "memcached://a:1,b:2?gone=3"}, out = {0};
	static const char *const bad[] = {
	    "",
	    "host=0000000000001234\npages=7\n",
	    "host=1234\npages=7\nstore=x\n",
	    "host=0000000000001234\npages=-7\nstore=x\n",
	    "host=0000000000001234\npages=99999999999999999999\nstore=x\n",
	    "host=0000000000000000\npages=7\nstore=x\n",
	    "host=000000000000123X\npages=7\nstore=x\n",
	    "host=0000000000001234\npages=7\nstore=\n",
	    "host=0000000000001234\npages=7\nstore=x\ry\n",
	    "host=0000000000001234\npages=7\nstore=x\x7f\n",
	    "host=0000000000001234\npages=\nstore=x\n",
	};
	char text[FM_REGISTRY_RECORD];
	char *heap;
	uint64_t id;
	int n = fm_registry_record_format(&in, text);

	ok(n > 0 && fm_registry_record_parse(text, (size_t)n, &out) == 0, "a record comes back");
	ok(out.host == in.host && out.pages == in.pages && out.epoch == in.epoch && out.created == in.created,
	   "... with its numbers");
	is_str(out.store, in.store, "... and its store");
	ok(fm_registry_record_parse(text, (size_t)n - 1, &out) == 0 && out.created == 99, "the last newline may lack");
	strcpy(text + n, "colour=blue\n");
	ok(fm_registry_record_parse(text, (size_t)n + 12, &out) == 0, "lines of later versions are passed over");
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
		ok(fm_registry_record_parse(bad[i], strlen(bad[i]), &out) == -EINVAL, "bad record %zu is refused", i);
	/* In a heap block of just its size, so that ASan sees every byte beyond. */
	for (int k = 0; k <= n; k++) {
		heap = malloc((size_t)k + (k == 0));
		memcpy(heap, text, (size_t)k);
		fm_registry_record_parse(heap, (size_t)k, &out);
		free(heap);
	}
	ok(true, "every beginning of a record is parsed within its bytes");
	strcpy(in.store, "dir:/a\nhost=1");
	ok(fm_registry_record_format(&in, text) == -EINVAL, "a store with a newline cannot stand in a record");
	ok(fm_registry_id_parse("00000000000000ff", 16, &id) && id == 255, "an id of 16 digits");
	ok(!fm_registry_id_parse("00000000000000fF", 16, &id), "no capitals");
	ok(!fm_registry_id_parse("0000000000000000", 16, &id), "0 is no id");
	ok(!fm_registry_id_parse("000000000000000ff", 17, &id), "nor are 17 digits one");
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void test_away(void)
{
	struct fm_registry_record rec = {.pages = 1, .store = "dir:/x"};
	struct fm_registry_uri u;
	struct fm_registry_options o = {.uri = &u, .host_id = 1, .host_text = "pid=1\n", .must_answer = true};
	struct fm_registry_news news;
	struct fm_registry *r = NULL;
	uint64_t id, t;

	fm_registry_uri_parse("zookeeper://127.0.0.1:1", &u, why);
	ok(fm_registry_open(&o, 300, &r, why) == -EHOSTUNREACH, "no server: -EHOSTUNREACH");
	is_str(why, "no server answers", "... and why");
	o.must_answer = false;
	if (!ok(fm_registry_open(&o, 100, &r, why) == 0, "... unless it need not answer"))
		return;
	ok(!fm_registry_here(r), "it is away then");
	fm_registry_poll(r, &news);
	ok(!news.here && !news.members && news.members_version == -1, "and knows nothing");
	t = now_ms();
	ok(fm_registry_region_new(r, &rec, 200, &id) == -EAGAIN, "no new regions");
	ok(now_ms() - t < 5000, "... told in bounded time");
	ok(fm_registry_members_change(r, &(struct fm_members_change){.op = FM_MEMBERS_ADD, .address = "a:1"}, 10, why) == -EAGAIN,
	   "no membership can be changed");
	is_str(why, "registry is away", "... and why");
	ok(fm_registry_members_publish(r, &(struct fm_members){.epoch = 1}) == 0, "... but one to be published is kept for later");
	fm_registry_settled(r, 1, &(uint64_t){5}, 1);
	fm_registry_follow(r, true);
	fm_registry_poll(r, &news);
	ok(!news.oldest_changed && news.oldest == 0, "how far others are is not known");
	ok(fm_registry_region_keep(r, 5, &rec) == 0, "a region from before is noted");
	fm_registry_all_kept(r);
	fm_registry_region_end(r, 5);
	fm_registry_close(r, true, 5000);
	fm_registry_uri_parse("zookeeper://no-such-host.invalid:1", &u, why);
	o.must_answer = true;
	ok(fm_registry_open(&o, 20000, &r, why) == -EHOSTUNREACH, "a name that does not resolve: -EHOSTUNREACH");
	ok(strstr(why, "no-such-host") || strstr(why, "no server"), "... and why: %s", why);
}

static void test_listing(void)
{
	static const char line[] = "key=fm00000000000000ab0000000100000000001 exp=-1 la=1 cas=2 fetch=no cls=1 size=99";
	struct fm_mc_address a;
	struct fm_mccollect c = {.region = 0xab, .timeout_ms = 1000};
	const char *key;
	size_t n;

	key = fm_mccollect_key(line, sizeof line - 1, 0xab, &n);
	ok(key == line + 4 && n == 37, "a key of the region");
	ok(!fm_mccollect_key(line, sizeof line - 1, 0xac, &n), "not of another region");
	ok(!fm_mccollect_key(line, 20, 0xab, &n), "not from half a line");
	ok(!fm_mccollect_key("", 0, 0xab, &n), "nor from an empty one");
	{
		static const char one[] = "key=fm00000000000000ab000000120000000003f exp=-1 la=1";
		uint64_t region = 0, page = 0, gen = 0;
		const char *k = fm_mccollect_parse(one, sizeof one - 1, &region, &page, &gen, &n);

		ok(k == one + 4 && n == 37 && region == 0xab && page == 0x12 && gen == 0x3f, "a page's key: region, page and generation");
		ok(fm_mccollect_parse(one, 41, &region, &page, &gen, &n) && !fm_mccollect_parse(one, 40, &region, &page, &gen, &n),
		   "whole, and nothing else");
		ok(!fm_mccollect_parse("key=fm00000000000000ab000000120000000003ff exp", 46, &region, &page, &gen, &n), "no longer one");
		ok(!fm_mccollect_parse("key=fmhost00000000000000ab exp=1 aaaaaaaaaaaa", 45, &region, &page, &gen, &n), "a sign of life is none");
	}
	key = fm_mccollect_key(line, 41, 0xab, &n);
	ok(key && n == 37, "a line may end after the key");
	ok(!fm_mccollect_key("key=fm00000000000000ab%0d exp=1", 31, 0xab, &n), "a key with other characters is not ours");
	ok(fm_mc_address("127.0.0.1:1", 11, &a, why) == 0, "an address");
	ok(fm_mccollect_server(&a, &c, why) == -ECONNREFUSED, "no server: -ECONNREFUSED");
	ok(strstr(why, "127.0.0.1:1: ") == why, "... and why: %s", why);
	ok(fm_mccollect_beat(&a, 1, 60, 1000) == -ECONNREFUSED, "no sign of life there");
	ok(fm_mccollect_beats(&a, 1, 1000) == -ECONNREFUSED, "... to be found");
}

int main(void)
{
	test_uri();
	test_record();
	test_away();
	test_listing();
	return tap_done();
}
