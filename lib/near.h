/*
 * Should a shard's thread be on the CPU of the thread whose faults it serves? The decision only; shard_near.c goes there.
 *
 * Theory of operation. Where one thread faults and nobody else, it sleeps while its fault is served: on its own CPU the shard costs a switch of
 * context, on another two wake-ups of CPUs that have halted meanwhile (20 to 40 us each on a virtual CPU). Where several threads fault, the shard
 * serves the one while the others run, and belongs on a CPU of its own, wherever the scheduler has one. So: after a streak of turns that were
 * one fault of the same thread the shard goes to it; some faults of other threads, turns with pages to fetch after the thread was
 * woken, or a CPU that others keep busy, make it leave, and each time that this came soon it takes a longer streak.
 *
 * A thread that is woken by a shard on its own CPU is sent to another CPU if one is idle, and nothing was gained. Then its wake-up is better put off
 * until the shard sleeps; where no CPU is idle that costs a microsecond for nothing. Which it is, is tried out: some turns so, some the other way, and
 * the way in which the thread came sooner with its next fault is kept for a while.
 */
#ifndef FM_NEAR_H
#define FM_NEAR_H

#include <stdbool.h>
#include <stdint.h>

#define FM_NEAR_STREAK      32    /* turns before the first time */
#define FM_NEAR_STREAK_MOST 65536 /* ... after many that were of no use */
#define FM_NEAR_LATE_NS     200000 /* a wake-up that began later than this was late */

enum fm_near_act {
	FM_NEAR_STAY = 0, /* as it is */
	FM_NEAR_LOOK,     /* find out where the thread is, go there, say so by fm_near_looked() */
	FM_NEAR_LEAVE,    /* be wherever the scheduler wants again */
};

/* What a look came to. */
enum fm_near_seen { FM_NEAR_IMPOSSIBLE, FM_NEAR_SAME, FM_NEAR_MOVED };

/* All zero but need is the begin: see fm_near_init(). */
struct fm_near {
	uint32_t tid;    /* of the streak; 0: the last turn was of several */
	unsigned streak; /* turns in a row that were one fault of it */
	unsigned need;   /* as many before the shard goes there */
	unsigned wait;   /* turns until the next look */
	unsigned every;  /* ... between the last two */
	unsigned good;   /* turns since it is there */
	unsigned bad;    /* for each turn that would be better served elsewhere more, for each other less */
	bool on;         /* it is there */
	bool defer;      /* the thread is to be woken when the shard sleeps */
	unsigned step;   /* 0: trying without, 1: trying with, 2: the better one */
	unsigned left;   /* turns of the step */
	uint64_t gap[2]; /* ns from wake-ups to the next faults in the trials: by defer */
};

/* Pure, as all of these; one thread at a time. */
void fm_near_init(struct fm_near *n);

/*
 * A turn. tid: of the thread whose only fault it was; 0: of several, or not known. lasts: there is work after the thread was woken.
 * gap_ns: from the last wake-up to this fault.
 */
enum fm_near_act fm_near_turn(struct fm_near *n, uint32_t tid, bool lasts, uint64_t gap_ns);

/* What the look came to. Returns FM_NEAR_STAY (it is there now) or FM_NEAR_LEAVE. */
enum fm_near_act fm_near_looked(struct fm_near *n, enum fm_near_seen seen);

/* A wake-up on that CPU began late: others want the CPU. Returns FM_NEAR_STAY or FM_NEAR_LEAVE. */
enum fm_near_act fm_near_late(struct fm_near *n);

#endif
