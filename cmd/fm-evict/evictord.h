/* Inside of fm-evict: the evictor process (daemon.c) and the commands that speak to it (main.c). */
#ifndef EVICTORD_H
#define EVICTORD_H

#include <stdbool.h>
#include <stdint.h>

/* One piece of work for an evictor that is not the daemon: leave when it is done. */
struct evict_job {
	uint64_t id;      /* region */
	uint64_t pages;   /* to evict */
	uint64_t evicted; /* result */
};

/*
 * Be the evictor of a run directory until fm-faultd goes away or SIGTERM (job NULL), or until the job is done. Returns an exit
 * code; messages were printed. no_seccomp: without the filter of lib/sandbox.h.
 */
int evictord_run(const char *run_dir, struct evict_job *job, bool no_seccomp);

#endif
