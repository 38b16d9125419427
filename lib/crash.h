/*
 * Crash points: places where a build for tests (make SAN=crash) can be told to die by SIGKILL. They stand between any two steps of the
 * protocol that others can see: swaps of page words, ioctls, puts, acknowledgements, punches, entries of the shared files.
 * tests/bats/crash.bats takes their names from the source, and has the daemons die at each. In other builds they are nothing.
 */
#ifndef FM_CRASH_H
#define FM_CRASH_H

#ifdef FM_CRASH
/*
 * Count one pass of the point, and die when it is its turn. What is armed is read from the file $FM_CRASH_FILE (struct in
 * crash.c; without it nothing is). Any thread.
 */
void fm_crash_point(const char *name);
#define FM_CRASH_POINT(name) fm_crash_point(name)
#else
#define FM_CRASH_POINT(name) ((void)0)
#endif

#endif
