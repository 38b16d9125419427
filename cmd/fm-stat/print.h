/*
 * The forms that a sample is printed in, to stdout. The caller checks stdout for errors. INTERFACES.md has the fields.
 */
#ifndef FM_STAT_PRINT_H
#define FM_STAT_PRINT_H

#include "sample.h"

/* A header line with the daemon, then a row a region. rates: event counts a second since prev (NULL: since the region began). */
void print_regions(const struct sample *s, const struct sample *prev, bool rates);

/* A histogram of fault latencies for each region. */
void print_latency(const struct sample *s);

/* A row a store. */
void print_stores(const struct sample *s);

/* One JSON document on a line; with_histogram: each region's buckets too. Returns 0 or -ENOMEM. */
int print_json(const struct sample *s, bool with_histogram);

/* Prometheus text format 0.0.4. */
void print_prometheus(const struct sample *s);

#endif
