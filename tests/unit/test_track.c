/* Unit tests of lib/track: pages come protected as long as that saves more than it costs. */
#include "track.h"

#include "tap.h"

/* n pages come; every written_of-th of the protected ones stays unwritten (0: all are written). Returns how many were protected. */
static unsigned come(struct fm_track *t, unsigned n, unsigned stays_every)
{
	unsigned protected = 0;

	for (unsigned i = 0; i < n; i++) {
		if (!fm_track_wanted(t))
			continue;
		protected++;
		fm_track_protected(t);
		if (!stays_every || protected % stays_every)
			fm_track_written(t);
	}
	return protected;
}

int main(void)
{
	struct fm_track t = {0};
	unsigned n;

	is_u64(come(&t, 10000, 1), 10000, "pages that are only read come protected");
	is_u64(come(&t, 10000, 2), 10000, "also when half of them are written");
	n = come(&t, 10000, 0);
	ok(n > 128 && n < 2000, "when all of them are written, they soon come writable (%u of 10000 protected)", n);
	is_u64(come(&t, 16000, 0), 1000, "but for one of sixteen");
	is_u64(come(&t, 1600, 5), 100, "four of five is still too many");
	n = come(&t, 16000, 2);
	ok(n > 8000, "when half of those are not written, all come protected again (%u of 16000)", n);
	is_u64(come(&t, 1000, 3), 1000, "and that stays when two of three are written");

	/* The writes of many pages come long after the pages did. */
	t = (struct fm_track){0};
	for (unsigned i = 0; i < 100000; i++)
		fm_track_protected(&t);
	ok(!t.off, "not written yet");
	for (unsigned i = 0; i < 100000; i++)
		fm_track_written(&t);
	come(&t, 2000, 0);
	ok(t.off, "a lot of writes switches it off");
	come(&t, 20000, 1);
	ok(!t.off, "but is forgotten when no more come");
	return tap_done();
}
