#include "near.h"

#define LOOK_FIRST 4   /* turns between the first two looks where the thread is; doubles while it stays */
#define LOOK_MOST  256
#define BAD_TURN   4   /* what a turn with work after the wake-up weighs, against one without */
#define BAD_OTHER  8   /* ... a turn of another thread */
#define BAD_MOVE   8
#define BAD_LATE   8
#define BAD_MOST   24
#define TRY        2048 /* turns with the wake-up put off, then some without */
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

enum fm_near_act fm_near_turn(struct fm_near *n, uint32_t tid, bool lasts)
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
	if (n->defer && n->good % TRY == 0) {
		n->defer = false;
		n->every = n->wait = LOOK_FIRST;
	}
	return --n->wait ? FM_NEAR_STAY : FM_NEAR_LOOK;
}

enum fm_near_act fm_near_looked(struct fm_near *n, enum fm_near_seen seen)
{
	if (seen == FM_NEAR_IMPOSSIBLE)
		return leave(n);
	if (!n->on || seen == FM_NEAR_MOVED)
		n->every = LOOK_FIRST;
	else if (n->every < LOOK_MOST)
		n->every *= 2;
	n->wait = n->every;
	if (!n->on) {
		n->on = true;
		n->good = n->bad = 0;
		return FM_NEAR_STAY;
	}
	if (seen == FM_NEAR_SAME)
		return FM_NEAR_STAY;
	if (n->defer)
		return worse(n, BAD_MOVE);
	n->defer = true;
	return FM_NEAR_STAY;
}

enum fm_near_act fm_near_late(struct fm_near *n)
{
	return worse(n, BAD_LATE);
}
