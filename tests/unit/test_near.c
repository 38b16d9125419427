/* Unit tests of lib/near: when a shard goes to the CPU of a thread that faults. */
#include "near.h"

#include "tap.h"

/* Turns of one thread until something is to be done, at most n. Returns how many. */
static unsigned turns(struct fm_near *n, uint32_t tid, unsigned most, enum fm_near_act *act)
{
	unsigned i = 0;

	*act = FM_NEAR_STAY;
	while (i < most && *act == FM_NEAR_STAY) {
		*act = fm_near_turn(n, tid, false, 1000);
		i++;
	}
	return i;
}

/* As many turns, with looks that find the same, and faults that come so long after a wake-up (put off or not). Returns whether it stayed. */
static bool turns_by(struct fm_near *n, uint32_t tid, unsigned count, uint64_t with, uint64_t without)
{
	for (unsigned i = 0; i < count; i++) {
		enum fm_near_act act = fm_near_turn(n, tid, false, n->defer ? with : without);

		if (act == FM_NEAR_LOOK)
			act = fm_near_looked(n, FM_NEAR_SAME);
		if (act != FM_NEAR_STAY)
			return false;
	}
	return true;
}

static bool stays(struct fm_near *n, uint32_t tid, unsigned count)
{
	return turns_by(n, tid, count, 1000, 1000);
}

static struct fm_near gone_to(uint32_t tid)
{
	enum fm_near_act act;
	struct fm_near n;

	fm_near_init(&n);
	turns(&n, tid, 1000, &act);
	fm_near_looked(&n, FM_NEAR_MOVED);
	return n;
}

int main(void)
{
	enum fm_near_act act;
	struct fm_near n;
	unsigned i, looks = 0;

	fm_near_init(&n);
	is_u64(turns(&n, 7, 1000, &act), FM_NEAR_STREAK + 1, "a streak of one thread (the first turn names it)");
	ok(act == FM_NEAR_LOOK && !n.on, "... then a look");
	ok(fm_near_looked(&n, FM_NEAR_MOVED) == FM_NEAR_STAY && n.on && !n.defer, "... and it is there; woken as ever");

	for (i = 0; i < 1024; i++)
		if (fm_near_turn(&n, 7, false, 1000) == FM_NEAR_LOOK) {
			looks++;
			fm_near_looked(&n, FM_NEAR_SAME);
		}
	ok(n.on && looks >= 4 && looks <= 12, "it looks seldom at a thread that does not move (%u times in 1024 turns)", looks);

	fm_near_init(&n);
	for (i = 0; i < 100000 && fm_near_turn(&n, 1 + i % 16, false, 1000) == FM_NEAR_STAY; i++)
		;
	is_u64(i, 100000, "16 threads in turn: never");
	fm_near_init(&n);
	for (i = 0; i < 100000 && fm_near_turn(&n, 0, false, 1000) == FM_NEAR_STAY; i++)
		;
	is_u64(i, 100000, "faults of several threads in each turn, or of threads without a name: never");
	fm_near_init(&n);
	for (i = 0; i < 100000 && fm_near_turn(&n, 7, true, 1000) == FM_NEAR_STAY; i++)
		;
	is_u64(i, 100000, "work after each wake-up: never");

	n = gone_to(7);
	turns_by(&n, 7, 100, 2000, 50000);
	ok(n.on && n.defer, "the wake-up is put off where the next fault comes sooner so");
	ok(turns_by(&n, 7, 4000, 2000, 50000) && n.defer, "... for long");
	turns_by(&n, 7, 300, 3000, 2000);
	ok(n.on && !n.defer, "... and no more when it is found to be otherwise");
	turns_by(&n, 7, 5000, 3000, 2000);
	ok(n.on && !n.defer, "... which stays so");
	n = gone_to(7);
	turns_by(&n, 7, 100, 2000, 50000);
	for (i = 0; i < 20 && n.on; i++) {
		turns(&n, 7, 1000, &act);
		fm_near_looked(&n, FM_NEAR_MOVED);
	}
	ok(!n.on && i < 10, "a thread that moves although its wake-up is put off is left alone");

	n = gone_to(7);
	for (i = 0; i < 100 && fm_near_turn(&n, 8 + i % 3, false, 1000) != FM_NEAR_LEAVE; i++)
		;
	ok(i < 8 && !n.on, "faults of others: it leaves (after %u)", i + 1);
	is_u64(turns(&n, 7, 100000, &act), 4 * FM_NEAR_STREAK + 1, "... and comes back after a longer streak");
	fm_near_looked(&n, FM_NEAR_IMPOSSIBLE);
	ok(!n.on && n.need == 16 * FM_NEAR_STREAK, "... longer again when the CPU was not to be had");
	for (i = 0; i < 100; i++) {
		turns(&n, 7, 100000, &act);
		fm_near_looked(&n, FM_NEAR_IMPOSSIBLE);
	}
	is_u64(n.need, FM_NEAR_STREAK_MOST, "... but not for ever");

	n = gone_to(7);
	for (i = 0; i < 4000; i++) {
		fm_near_turn(&n, 8, false, 1000);
		stays(&n, 7, 10);
	}
	ok(n.on, "a fault of another now and then does no harm");
	n = gone_to(7);
	for (i = 0; i < 20 && n.on; i++)
		fm_near_turn(&n, 7, true, 1000);
	ok(!n.on, "it leaves when there is work after the wake-ups");

	n = gone_to(7);
	for (i = 0; i < 10 && fm_near_late(&n) == FM_NEAR_STAY; i++)
		;
	ok(!n.on && i < 5, "it leaves a CPU where wake-ups come late");
	n = gone_to(7);
	ok(stays(&n, 7, 5000), "a long good time");
	while (fm_near_late(&n) == FM_NEAR_STAY)
		;
	is_u64(n.need, FM_NEAR_STREAK, "... is not held against it");
	return tap_done();
}
