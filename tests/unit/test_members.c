/* Unit tests of lib/members. */
#include "members.h"

#include <errno.h>
#include <stdlib.h>

#include "tap.h"

static char why[FM_MEMBERS_WHY];

static int parse(const char *text, struct fm_members *m)
{
	*why = '\0';
	return fm_members_parse(text, strlen(text), m, why);
}

static int change(struct fm_members *m, enum fm_members_op op, const char *address, uint64_t settled)
{
	struct fm_members_change c = {.op = op, .settled = settled};

	*why = '\0';
	strcpy(c.address, address);
	return fm_members_change(m, &c, why);
}

static void test_parse(void)
{
	static const char *const bad[] = {
	    "",
	    "epoch=1\n",
	    "a:1 member 1\n",
	    "epoch=0\na:1 member 1\n",
	    "epoch=\na:1 member\n",
	    "epoch=x\na:1 member\n",
	    "epoch=99999999999999999999\na:1 member\n",
	    "epoch=1\na:1\n",
	    "epoch=1\na:1 \n",
	    "epoch=1\na:1 up\n",
	    "epoch=1\na:1 membe\n",
	    "epoch=1\na:1 members\n",
	    "epoch=1\na:1 member x\n",
	    "epoch=1\na:1 member -1\n",
	    "epoch=1\na:1 member\na:1 drained\n",
	    "epoch=1\nreplicas=x\na:1 member\n",
	    "epoch=1\nreplicas=65\na:1 member\n",
	    "epoch=1\n\ta:1 member\n",
	};
	struct fm_members m;
	char text[FM_MEMBERS_TEXT], *heap;
	size_t n;

	ok(parse("epoch=7\nreplicas=2\n10.0.0.1:11211 member 3\n/a=b.sock drained 7\ncolour=blue\n\nm2:11211 member", &m) == 0, "a membership: %s", why);
	is_u64(m.epoch, 7, "its epoch");
	is_u64(m.replicas, 2, "copies of a page");
	is_u64(m.n, 3, "servers");
	is_str(m.member[1].address, "/a=b.sock", "a path may have a =");
	ok(m.member[0].role == FM_SERVER_MEMBER && m.member[1].role == FM_SERVER_DRAINED && m.member[2].role == FM_SERVER_MEMBER, "roles");
	ok(m.member[0].since == 3 && m.member[1].since == 7 && m.member[2].since == 0, "and since when");
	ok(parse("epoch=7\na:1 member 3 since some day\n", &m) == 0, "further words of a line are passed over");
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		ok(parse(bad[i], &m) == -EINVAL, "bad membership %zu is refused", i);
		ok(*why && !strchr(why, '\n'), "... in one line: %s", why);
	}
	/* As large as it can be. */
	memset(&m, 0, sizeof m);
	m.epoch = UINT64_MAX / 2;
	m.n = FM_SERVERS;
	for (unsigned i = 0; i < m.n; i++) {
		memset(m.member[i].address, 'a', FM_SERVER_ADDRESS - 1);
		m.member[i].address[0] = (char)('A' + i % 26);
		m.member[i].address[1] = (char)('A' + i / 26);
		m.member[i].role = i % 2 ? FM_SERVER_DRAINED : FM_SERVER_MEMBER;
		m.member[i].since = m.epoch - i;
	}
	n = fm_members_format(&m, text);
	ok(n < sizeof text && strlen(text) == n, "64 long names fit: %zu bytes", n);
	struct fm_members back;
	char twice[FM_MEMBERS_TEXT];
	ok(fm_members_parse(text, n, &back, why) == 0 && fm_members_format(&back, twice) == n && strcmp(text, twice) == 0, "... and come back");
	strcpy(text + n, "one:1 member\n");
	ok(fm_members_parse(text, n + 13, &back, why) == -EINVAL, "one more is refused");
	/* In a heap block of just its size, so that ASan sees every byte beyond. */
	for (size_t k = 0; k <= n; k += 7) {
		heap = malloc(k + (k == 0));
		memcpy(heap, text, k);
		fm_members_parse(heap, k, &back, why);
		free(heap);
	}
	ok(true, "every beginning is parsed within its bytes");
}

static void test_change(void)
{
	struct fm_members m;
	char text[FM_MEMBERS_TEXT], name[32];

	parse("epoch=1\nreplicas=2\na:1 member 1\nb:1 member 1\n", &m);
	is_u64(change(&m, FM_MEMBERS_ADD, "a:1", 0), 0, "a member is one already");
	is_u64(m.epoch, 1, "... and no epoch begins");
	is_u64(change(&m, FM_MEMBERS_ADD, "c:1", 0), 1, "a server joins");
	is_u64(change(&m, FM_MEMBERS_DRAIN, "a:1", 0), 1, "one is drained");
	is_u64(change(&m, FM_MEMBERS_DRAIN, "a:1", 0), 0, "... once");
	fm_members_format(&m, text);
	is_str(text, "epoch=3\nreplicas=2\na:1 drained 3\nb:1 member 1\nc:1 member 2\n", "each in an epoch of its own");
	is_u64(change(&m, FM_MEMBERS_LEAVE, "a:1", 2), 0, "it stays while a host is at an older epoch");
	is_u64(change(&m, FM_MEMBERS_LEAVE, "b:1", 9), 0, "a member never leaves undrained");
	is_u64(change(&m, FM_MEMBERS_LEAVE, "z:1", 9), 0, "who is not there has left");
	is_u64(change(&m, FM_MEMBERS_LEAVE, "a:1", 3), 1, "it leaves when none is");
	fm_members_format(&m, text);
	is_str(text, "epoch=4\nreplicas=2\nb:1 member 1\nc:1 member 2\n", "... by a new epoch");
	ok(change(&m, FM_MEMBERS_DRAIN, "a:1", 0) == -ENOENT && strstr(why, "a:1: no such server"), "an unknown one cannot be drained: %s", why);
	is_u64(change(&m, FM_MEMBERS_DRAIN, "c:1", 0), 1, "drain all but one");
	ok(change(&m, FM_MEMBERS_DRAIN, "b:1", 0) == -EBUSY && strstr(why, "last server"), "the last one is refused: %s", why);
	is_u64(m.epoch, 5, "what was refused changes nothing");
	is_u64(change(&m, FM_MEMBERS_ADD, "c:1", 0), 1, "a drained one becomes a member again");
	is_u64(m.member[fm_members_find(&m, "c:1")].since, 6, "... since now");
	is_u64(change(&m, FM_MEMBERS_LEAVE, "c:1", 5), 0, "... and does not leave");
	/* Written by hand, without an epoch: nobody knows who has moved. */
	parse("epoch=4\na:1 member\nb:1 drained\n", &m);
	is_u64(change(&m, FM_MEMBERS_LEAVE, "b:1", 4), 0, "one that was drained nobody knows when stays");
	ok(change(&m, FM_MEMBERS_ADD, "x y", 0) == -EINVAL, "an address has no blank: %s", why);
	ok(change(&m, FM_MEMBERS_ADD, "", 0) == -EINVAL, "... and is not empty: %s", why);
	for (int i = 0; m.n < FM_SERVERS; i++) {
		snprintf(name, sizeof name, "s%d:1", i);
		change(&m, FM_MEMBERS_ADD, name, 0);
	}
	ok(change(&m, FM_MEMBERS_ADD, "more:1", 0) == -ENOSPC, "a 65th is refused: %s", why);
}

int main(void)
{
	test_parse();
	test_change();
	return tap_done();
}
