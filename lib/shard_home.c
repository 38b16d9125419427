/*
 * Bringing a region home, and letting go of it: what --detach is made of.
 *
 * Theory of operation. The evictor takes no page of the region any more (the caller has seen to that), so no page becomes REMOTE: what is
 * found here, stays here. The shard walks over its words, between serving faults, and notes each page that is away as if somebody had
 * read it. A pass that finds none says that the shard is home. When all shards of the region are, the caller has them leave, from
 * which there is no way back: each unregisters its range. A page that is a hole then is one of zeros: EMPTY, and the kernel fills it.
 *
 * Unregistering sets faults going again, but not a thread that waits for its REMOVE or UNMAP event to be read: it would wait for ever on a
 * userfaultfd that nobody reads. So the shard reads on until the kernel counts no change of the mappings any more (EAGAIN is its
 * word for that); none can begin after the range was unregistered.
 */
#include "shard_impl.h"

#include <errno.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "crash.h"
#include "evict.h"

#define NOTE  32   /* pages brought home in a turn: a fault waits for no more than these */
#define PIECE 4096 /* words looked at in a turn */

#define WHAT(home) ((enum fm_home)((home) & 3))

void shard_home_see(struct fm_shard *s)
{
	uint64_t home = atomic_load(&s->home);

	if (home == atomic_load(&s->home_seen))
		return;
	s->home_at = s->shm->first_page;
	s->home_found = s->home_refused = false;
	atomic_store(&s->home_seen, home);
}

bool shard_home_busy(const struct fm_shard *s)
{
	uint64_t home = atomic_load(&s->home);

	return WHAT(home) != FM_HOME_NO && home != atomic_load(&s->home_done);
}

static bool is_away(uint64_t w)
{
	switch (fm_word_state(w)) {
	case FM_EMPTY:
	case FM_DIRTY:
	case FM_CLEAN:
	case FM_LOST: /* the caller's affair */
		return false;
	default:
		return true;
	}
}

/* Note some pages that are away. Returns whether the pass has come to its end. */
static bool note_some(struct fm_shard *s)
{
	uint64_t end = s->shm->first_page + s->shm->pages, base = s->o.map->hdr->words_offset, p = s->home_at, stop;
	/* Reading a hole of the state file through the mapping would fill it. */
	off_t data = lseek(s->o.map->fd, (off_t)(base + p * 8), SEEK_DATA);

	if (data < 0 || (uint64_t)data >= base + end * 8)
		p = end;
	else if ((uint64_t)data > base + p * 8)
		p = ((uint64_t)data - base) / 8;
	stop = end - p > PIECE ? p + PIECE : end;
	for (; p < stop && s->npending < NOTE; p++)
		if (is_away(atomic_load(&s->words[p]))) {
			struct pending want = {.page = (uint32_t)p, .quiet = true, .t0_ns = fm_now_ns()};

			s->home_found = true;
			shard_note(s, &want);
			FM_CRASH_POINT("home-noted");
		}
	s->home_at = p;
	return p == end;
}

static void told(struct fm_shard *s, unsigned news)
{
	atomic_store(&s->home_done, atomic_load(&s->home_seen));
	shard_tell(s, news);
}

/* Returns whether there is nothing to do for a moment. */
static bool fetch(struct fm_shard *s, enum discard_left left)
{
	if (s->npending || !note_some(s))
		return false;
	if (!s->home_found && left != DISCARD_MORE) {
		told(s, FM_SHARD_HOME);
		FM_CRASH_POINT("home-fetched");
		return false;
	}
	/* Once more: a page that was noted may not have come, its mapping being changed or its server away. */
	s->home_at = s->shm->first_page;
	s->home_found = false;
	return s->npending == 0;
}

static bool leave(struct fm_shard *s, enum discard_left left)
{
	/* Once is enough, but nothing is lost by another: it may fail for want of memory to cut a mapping. */
	int e = fm_uffd_unregister(&s->o.uffd, fm_ld(&s->shm->hva), s->shm->pages * FM_PAGE_SIZE);

	if (e) {
		if (e == -ESRCH)
			shard_tell(s, FM_SHARD_NO_PROCESS);
		else if (e != -EAGAIN && e != -ENOMEM && !s->home_refused) {
			shard_tell(s, FM_SHARD_REFUSED); /* once */
			s->home_refused = true;
		}
		return true;
	}
	FM_CRASH_POINT("home-unregistered");
	if (left == DISCARD_MORE || !fm_uffd_is_quiet(&s->o.uffd))
		return left != DISCARD_MORE;
	s->npending = 0; /* whoever waited for a page goes on by himself */
	s->overflow = false;
	told(s, FM_SHARD_LEFT);
	FM_CRASH_POINT("home-left");
	return false;
}

bool shard_home_some(struct fm_shard *s, enum discard_left left)
{
	uint64_t home = atomic_load(&s->home_seen);

	if (home == atomic_load(&s->home_done))
		return false;
	switch (WHAT(home)) {
	case FM_HOME_FETCH:
		return fetch(s, left);
	case FM_HOME_LEAVE:
		return leave(s, left);
	default:
		return false;
	}
}

bool fm_shard_home(struct fm_shard *s, enum fm_home what)
{
	struct timespec nap = {.tv_nsec = 200000};
	uint64_t home = atomic_load(&s->home);

	if (WHAT(home) != what) {
		/* Counted, so that nothing that was done for an earlier request is taken for this one. */
		home = (home & ~3ull) + 4 + what;
		atomic_store(&s->home, home);
	}
	/* A signal that comes just before the read is lost: so again, for a while. */
	for (int tries = 0; tries < 50 && atomic_load(&s->home_seen) != home; tries++) {
		pthread_kill(s->thread, FM_STOP_SIGNAL);
		nanosleep(&nap, NULL);
	}
	return atomic_load(&s->home_seen) == home;
}

bool fm_shard_home_done(const struct fm_shard *s)
{
	return atomic_load(&s->home_done) == atomic_load(&s->home);
}
