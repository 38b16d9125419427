#include "near.h"

#define LOOK_FIRST 4   /* turns between the first two looks where the thread is; doubles while it stays */
#define LOOK_MOST  256
#define BAD_TURN   4   /* what a turn with work after the wake-up weighs, against one without */
#define BAD_OTHER  8   /* ... a turn of another thread */
#define BAD_MOVE   8
#define BAD_LATE   8
#define BAD_MOST   24
#define TRIAL      16   /* turns of each way */
#define KEEP       4096 /* turns of the better one */
#define GAP_MOST   200000 /* ns: longer ones say something of the thread, not of the way */
#define WORTH      4096 /* turns after which it was right to go there */

void fm_near_init(struct fm_near *n)
{
	*n = (struct fm_near){.need = FM_NEAR_STREAK};
}

/* Not there any more, or never: dear unless it was good for long. */
static enum fm_near_act leave(struct fm_near *n)
{
	if (n->good < WORTH)
		n->need = n->need < FM_NEAR_STREAK_MOST / 4 ? n->need * 4 : FM_NEAR_STREAK_MOST;
	n->on = n->defer = false;
	n->streak = n->good = n->bad = 0;
	return FM_NEAR_LEAVE;
}

static enum fm_near_act worse(struct fm_near *n, unsigned by)
{
	n->bad += by;
	return n->on && n->bad > BAD_MOST ? leave(n) : FM_NEAR_STAY;
}

static void begin_trial(struct fm_near *n)
{
	n->step = 0;
	n->left = TRIAL;
	n->defer = false;
	n->gap[0] = n->gap[1] = 0;
	n->every = n->wait = LOOK_FIRST;
}

static void next_step(struct fm_near *n)
{
	if (n->step == 2) {
		begin_trial(n);
		return;
	}
	n->step++;
	n->left = n->step == 1 ? TRIAL : KEEP;
	n->defer = n->step == 1 || n->gap[1] < n->gap[0];
}

enum fm_near_act fm_near_turn(struct fm_near *n, uint32_t tid, bool lasts, uint64_t gap_ns)
{
	if (!tid || tid != n->tid) {
		enum fm_near_act act = worse(n, n->on ? BAD_OTHER : 0);

		if (!n->on) {
			n->tid = tid;
			n->streak = 0;
		}
		return act;
	}
	if (lasts) {
		n->streak = 0;
		return worse(n, n->on ? BAD_TURN : 0);
	}
	if (!n->on)
		return ++n->streak >= n->need ? FM_NEAR_LOOK : FM_NEAR_STAY;
	n->bad -= n->bad > 0;
	if (++n->good == WORTH)
		n->need = FM_NEAR_STREAK;
	/* The first fault of a step was after a wake-up of the last one. */
	if (n->step < 2 && n->left != TRIAL)
		n->gap[n->defer] += gap_ns < GAP_MOST ? gap_ns : GAP_MOST;
	if (--n->left == 0)
		next_step(n);
	return --n->wait ? FM_NEAR_STAY : FM_NEAR_LOOK;
}

enum fm_near_act fm_near_looked(struct fm_near *n, enum fm_near_seen seen)
{
	if (seen == FM_NEAR_IMPOSSIBLE)
		return leave(n);
	if (!n->on) {
		n->on = true;
		n->good = n->bad = 0;
		begin_trial(n);
		return FM_NEAR_STAY;
	}
	if (seen == FM_NEAR_MOVED)
		n->every = LOOK_FIRST;
	else if (n->every < LOOK_MOST)
		n->every *= 2;
	n->wait = n->every;
	return worse(n, n->defer && seen == FM_NEAR_MOVED ? BAD_MOVE : 0);
}

enum fm_near_act fm_near_late(struct fm_near *n)
{
	return worse(n, BAD_LATE);
}
