#include "print.h"

#include <inttypes.h>
#include <stdio.h>

static void head(const char *name, const char *type, const char *help)
{
	printf("# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A label's value: \, " and newline are escaped. */
static void print_label(const char *key, const char *value)
{
	printf("%s=\"", key);
	for (; *value; value++) {
		if (*value == '\\' || *value == '"')
			putchar('\\');
		if (*value == '\n')
			fputs("\\n", stdout);
		else
			putchar(*value);
	}
	putchar('"');
}

static void region_labels(const struct sample_region *r)
{
	printf("region=\"%016" PRIx64 "\",", r->id);
	print_label("name", r->name);
}

/* Where a metric of a region comes from: a count in struct sample_region, times scale. */
struct metric {
	const char *name;
	const char *type;
	const char *help;
	size_t offset;
	uint64_t scale;
};

#define FIELD(f) offsetof(struct sample_region, f)
#define COUNTER(n, f, help) { "fm_region_" n "_total", "counter", help, FIELD(stats.f), 1 }

static const struct metric metrics[] = {
	{ "fm_region_size_bytes", "gauge", "Size of the region.", FIELD(pages), FM_PAGE_SIZE },
	{ "fm_region_resident_bytes", "gauge", "Memory of the region on this host.", FIELD(resident_pages), FM_PAGE_SIZE },
	{ "fm_region_remote_bytes", "gauge", "Memory of the region that is in the store only.", FIELD(remote_pages), FM_PAGE_SIZE },
	{ "fm_region_local_limit_bytes", "gauge", "Local budget of the region, 0 for none.", FIELD(limit_pages), FM_PAGE_SIZE },
	COUNTER("faults", faults, "Page faults of every kind."),
	COUNTER("faults_zero", faults_zero, "First touches, answered with zeros."),
	COUNTER("faults_store", faults_store, "Page-ins from the store."),
	COUNTER("faults_wp", faults_wp, "Write faults on write-protected pages."),
	COUNTER("faults_stale", faults_stale, "Duplicate faults: the page was there already."),
	COUNTER("held", held, "Times that a fault waited for room under the hard mark."),
	COUNTER("discarded_pages", discarded, "Pages discarded by the client."),
	COUNTER("prefetched", prefetched, "Page-ins ahead of a fault."),
	COUNTER("zeroed_ahead", zeroed_ahead, "Pages of zeros given ahead of their first touch."),
	COUNTER("prefetch_hits", prefetch_hits, "Pages brought in or given ahead that were used."),
	COUNTER("prefetch_wasted", prefetch_wasted, "Pages brought in or given ahead that were not used."),
	COUNTER("evictions", evictions, "Pages dropped from the host."),
	COUNTER("evictions_clean", evictions_clean, "Pages dropped without writing, as the store held them."),
	COUNTER("evictions_zero", evictions_zero, "Pages dropped that were all zero."),
	COUNTER("cancelled", cancelled, "Write-backs that a write fault took back."),
	COUNTER("store_puts", store_puts, "Pages that the store acknowledged."),
	COUNTER("store_gets", store_gets, "Pages asked of the store."),
	COUNTER("store_deletes", store_deletes, "Keys deleted in the store."),
	COUNTER("pages_lost", pages_lost, "Pages that no replica could give back."),
};

static void print_metric(const struct sample *s, const struct metric *m)
{
	head(m->name, m->type, m->help);
	for (size_t i = 0; i < s->nregions; i++) {
		uint64_t v = *(const uint64_t *)(const void *)((const char *)&s->regions[i] + m->offset);

		printf("%s{", m->name);
		region_labels(&s->regions[i]);
		printf("} %" PRIu64 "\n", v * m->scale);
	}
}

static void print_store_errors(const struct sample *s)
{
	head("fm_region_store_errors_total", "counter", "Store operations that failed.");
	for (size_t i = 0; i < s->nregions; i++) {
		const struct fm_stats *t = &s->regions[i].stats;

		printf("fm_region_store_errors_total{");
		region_labels(&s->regions[i]);
		printf(",operation=\"get\"} %" PRIu64 "\n", t->shard_store_errors);
		printf("fm_region_store_errors_total{");
		region_labels(&s->regions[i]);
		printf(",operation=\"put\"} %" PRIu64 "\n", t->evict_store_errors);
	}
}

static void print_flag(const struct sample *s, const char *name, uint64_t flag, const char *help)
{
	head(name, "gauge", help);
	for (size_t i = 0; i < s->nregions; i++) {
		printf("%s{", name);
		region_labels(&s->regions[i]);
		printf("} %d\n", (s->regions[i].flags & flag) != 0);
	}
}

#define LATENCY "fm_region_fault_latency_seconds"

static void print_bucket(const struct sample_region *r, const char *le, uint64_t count)
{
	printf(LATENCY "_bucket{");
	region_labels(r);
	printf(",le=\"%s\"} %" PRIu64 "\n", le, count);
}

/* A bucket an octave, from 1 us up; the sum is of the buckets' upper bounds. */
static void print_latency_metric(const struct sample *s)
{
	head(LATENCY, "histogram", "Time from reading a fault to waking its threads; the sum is up to 12.5 percent too high.");
	for (size_t i = 0; i < s->nregions; i++) {
		const struct sample_region *r = &s->regions[i];
		uint64_t seen = 0;
		double sum = 0;
		char le[32];

		for (unsigned b = 0; b < FM_HIST_BUCKETS; b++) {
			uint64_t upper = fm_hist_upper(b);

			seen += r->stats.latency[b];
			sum += (double)r->stats.latency[b] * (double)upper / 1e9;
			/* The last bucket of an octave; the very last one has no end. */
			if (upper < 1023 || (upper & (upper + 1)) || b == FM_HIST_BUCKETS - 1)
				continue;
			snprintf(le, sizeof le, "%" PRIu64 ".%09" PRIu64, upper / 1000000000u, upper % 1000000000u);
			print_bucket(r, le, seen);
		}
		print_bucket(r, "+Inf", seen);
		printf(LATENCY "_sum{");
		region_labels(r);
		printf("} %.9f\n" LATENCY "_count{", sum);
		region_labels(r);
		printf("} %" PRIu64 "\n", seen);
	}
}

/* A sample a store of one figure. */
#define STORE_METRIC(s, name, type, help, figure)                                                                          \
	do {                                                                                                               \
		head(name, type, help);                                                                                    \
		for (unsigned i = 0; i < (s)->nstores; i++) {                                                              \
			const struct sample_store *t = &(s)->stores[i];                                                    \
			printf("%s{", name);                                                                               \
			print_label("store", t->uri);                                                                      \
			printf("} %" PRIu64 "\n", (uint64_t)(t->figure));                                                  \
		}                                                                                                          \
	} while (0)

void print_prometheus(const struct sample *s)
{
	head("fm_daemon_up", "gauge", "1 when fm-faultd runs.");
	printf("fm_daemon_up %d\n", s->daemon_pid != 0);
	head("fm_daemon_uptime_seconds", "gauge", "Time that fm-faultd has been running, 0 when it does not.");
	printf("fm_daemon_uptime_seconds %" PRIu64 "\n", s->uptime_s);
	head("fm_local_limit_bytes", "gauge", "Local budget of all regions together, 0 for none.");
	printf("fm_local_limit_bytes %" PRIu64 "\n", s->limit_pages * FM_PAGE_SIZE);
	head("fm_resident_bytes", "gauge", "Memory of all regions on this host.");
	printf("fm_resident_bytes %" PRIu64 "\n", s->resident_pages * FM_PAGE_SIZE);
	for (size_t i = 0; i < sizeof metrics / sizeof *metrics; i++)
		print_metric(s, &metrics[i]);
	print_store_errors(s);
	print_flag(s, "fm_region_store_full", FM_REGION_STORE_FULL, "1 when the store refuses new pages of the region.");
	print_flag(s, "fm_region_store_down", FM_REGION_STORE_DOWN, "1 when the store does not answer for the region.");
	print_latency_metric(s);
	STORE_METRIC(s, "fm_store_up", "gauge", "1 when the store answered last time.", up);
	STORE_METRIC(s, "fm_store_used_bytes", "gauge", "Space used in the store.", used_bytes);
	STORE_METRIC(s, "fm_store_limit_bytes", "gauge", "Space that the store has, 0 when unknown.", limit_bytes);
	STORE_METRIC(s, "fm_store_errors_total", "counter", "Store operations that failed.", errors);
	STORE_METRIC(s, "fm_store_items", "gauge", "Values in the store, 0 when unknown.", items);
	STORE_METRIC(s, "fm_store_full", "gauge", "1 when it refused a page for want of room, and took none since.", full);
	head("fm_store_pages_left", "gauge", "Stored pages that await their move to the newest placement epoch.");
	printf("fm_store_pages_left %" PRIu64 "\n", s->pages_left);
	head("fm_store_pages_moved_total", "counter", "Stored pages that were moved to a newer placement epoch.");
	printf("fm_store_pages_moved_total %" PRIu64 "\n", s->pages_moved);
	if (!s->registry)
		return;
	head("fm_registry_up", "gauge", "1 when the registry is connected.");
	printf("fm_registry_up %d\n", s->registry_here);
	head("fm_registry_epoch", "gauge", "Epoch of the store's membership that this host goes by, 0 for none yet.");
	printf("fm_registry_epoch %" PRIu64 "\n", s->registry_epoch);
	head("fm_registry_settled_epoch", "gauge", "Membership epoch that no page of this host is placed by an older one than.");
	printf("fm_registry_settled_epoch %" PRIu64 "\n", s->registry_settled);
}
