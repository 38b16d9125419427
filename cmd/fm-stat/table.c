#include "print.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "size.h"

#define BAR_MAX  40 /* characters */
#define ROWS_MAX 18 /* of a histogram */

/* A duration in three digits or so: "7.7us". */
static const char *duration(uint64_t ns, char buf[16])
{
	static const char *const unit[] = { "ns", "us", "ms", "s" };
	double v = (double)ns;
	unsigned u = 0;

	while (v >= 999.5 && u < 3) {
		v /= 1000;
		u++;
	}
	snprintf(buf, 16, u && v < 99.95 ? "%.1f%s" : "%.0f%s", v, unit[u]);
	return buf;
}

static const char *span(uint64_t seconds, char buf[32])
{
	if (seconds >= 86400)
		snprintf(buf, 32, "%" PRIu64 "d %" PRIu64 "h", seconds / 86400, seconds / 3600 % 24);
	else if (seconds >= 3600)
		snprintf(buf, 32, "%" PRIu64 "h %" PRIu64 "m", seconds / 3600, seconds / 60 % 60);
	else if (seconds >= 60)
		snprintf(buf, 32, "%" PRIu64 "m %" PRIu64 "s", seconds / 60, seconds % 60);
	else
		snprintf(buf, 32, "%" PRIu64 "s", seconds);
	return buf;
}

static const char *pages(uint64_t n, char buf[16])
{
	return n ? fm_size_format(n, buf) : "0";
}

static void print_daemon(const struct sample *s)
{
	char up[32], lim[16], res[16];

	if (s->daemon_pid)
		printf("daemon: pid %d, up %s", s->daemon_pid, span(s->uptime_s, up));
	else
		printf("daemon: not running");
	printf(", local limit %s, resident %s\n", s->limit_pages ? fm_size_format(s->limit_pages, lim) : "none",
	       pages(s->resident_pages, res));
}

static const char *flags(uint64_t set, char buf[64])
{
	static const struct {
		uint64_t flag;
		const char *text;
	} names[] = {
		{ FM_REGION_STORE_FULL, "store full" },
		{ FM_REGION_STORE_DOWN, "store down" },
		{ FM_REGION_GONE, "gone" },
		{ FM_REGION_DETACHING, "detaching" },
	};

	buf[0] = '\0';
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		if (!(set & names[i].flag))
			continue;
		if (buf[0])
			strcat(buf, ", ");
		strcat(buf, names[i].text);
	}
	return buf;
}

/* Events a second between two counts, to the nearest one. */
static uint64_t rate(uint64_t before, uint64_t now, uint64_t ns)
{
	if (now <= before || !ns)
		return 0;
	return (uint64_t)((double)(now - before) * 1e9 / (double)ns + 0.5);
}

static void print_region(const struct sample *s, const struct sample *prev, bool rates, int name_width,
			 const struct sample_region *r)
{
	const struct sample_region *before = sample_find(prev, r);
	uint64_t faults = r->stats.faults, pageins = r->stats.faults_store, evictions = r->stats.evictions, ns;
	char size[16], res[16], rem[16], p50[16], p99[16], fl[64];

	if (rates) {
		static const struct fm_stats zero;
		const struct fm_stats *b = before ? &before->total : &zero;

		ns = before ? s->mono_ns - prev->mono_ns : s->realtime_ns > r->created_ns ? s->realtime_ns - r->created_ns : 0;
		faults = rate(b->faults, r->total.faults, ns);
		pageins = rate(b->faults_store, r->total.faults_store, ns);
		evictions = rate(b->evictions, r->total.evictions, ns);
	}
	printf("%016" PRIx64 "  %-*s %7d %7s %8s %7s %10" PRIu64 " %10" PRIu64 " %11" PRIu64 " %7s %7s  %s\n", r->id,
	       name_width, r->name, r->pid, pages(r->pages, size), pages(r->resident_pages, res), pages(r->remote_pages, rem), faults, pageins,
	       evictions, r->latency_ns[0] ? duration(r->latency_ns[0], p50) : "-",
	       r->latency_ns[2] ? duration(r->latency_ns[2], p99) : "-", flags(r->flags, fl));
}

void print_regions(const struct sample *s, const struct sample *prev, bool rates)
{
	int width = 8;

	for (size_t i = 0; i < s->nregions; i++)
		if ((int)strlen(s->regions[i].name) > width)
			width = (int)strlen(s->regions[i].name);
	print_daemon(s);
	printf("%-16s  %-*s %7s %7s %8s %7s %10s %10s %11s %7s %7s  %s\n", "ID", width, "NAME", "PID", "SIZE", "RESIDENT", "REMOTE",
	       rates ? "FAULTS/S" : "FAULTS", rates ? "PAGE-INS/S" : "PAGE-INS", rates ? "EVICTIONS/S" : "EVICTIONS", "P50",
	       "P99", "FLAGS");
	for (size_t i = 0; i < s->nregions; i++)
		print_region(s, prev, rates, width, &s->regions[i]);
}

/* Rows of `width` buckets, from the first to the last that hold a value. */
static void print_histogram(const uint64_t hist[FM_HIST_BUCKETS])
{
	uint64_t rows[FM_HIST_BUCKETS] = { 0 }, most = 0, total = fm_hist_count(hist);
	unsigned width, first = 0, last = FM_HIST_BUCKETS - 1, bar;
	char from[16], to[16];

	while (first < last && !hist[first])
		first++;
	while (last > first && !hist[last])
		last--;
	/* A quarter of an octave a row, or as many octaves as it takes to stay readable. */
	for (width = 2; last / width - first / width + 1 > ROWS_MAX; width *= 2)
		;
	for (unsigned b = first; b <= last; b++)
		rows[b / width] += hist[b];
	for (unsigned i = first / width; i <= last / width; i++)
		most = rows[i] > most ? rows[i] : most;
	printf("  %8s    %-8s %12s %6s\n", "from", "to", "faults", "%");
	for (unsigned i = first / width; i <= last / width; i++) {
		bar = (unsigned)((double)rows[i] * BAR_MAX / (double)most + 0.5);
		if (rows[i] && !bar)
			bar = 1;
		duration(i ? fm_hist_upper(i * width - 1) + 1 : 0, from);
		if ((i + 1) * width >= FM_HIST_BUCKETS)
			strcpy(to, "more");
		else
			duration(fm_hist_upper((i + 1) * width - 1) + 1, to);
		printf("  %8s .. %-8s %12" PRIu64 " %5.1f%% |%.*s\n", from, to, rows[i],
		       100.0 * (double)rows[i] / (double)total, (int)bar, "########################################");
	}
}

void print_latency(const struct sample *s)
{
	static const char *const label[] = { "p50", "p90", "p99", "p99.9" };
	char buf[16];

	print_daemon(s);
	for (size_t i = 0; i < s->nregions; i++) {
		const struct sample_region *r = &s->regions[i];
		uint64_t n = fm_hist_count(r->stats.latency);

		printf("\n%s (%016" PRIx64 "): %" PRIu64 " fault%s", r->name, r->id, n, n == 1 ? "" : "s");
		for (size_t p = 0; n && p < 4; p++)
			printf(", %s %s", label[p], duration(r->latency_ns[p], buf));
		if (n)
			printf(", max %s", duration(r->latency_max_ns, buf));
		putchar('\n');
		if (n)
			print_histogram(r->stats.latency);
	}
}

void print_stores(const struct sample *s)
{
	char used[16], lim[16], rtt[16], servers[40];

	printf("%-5s %8s %8s %10s %8s %10s  %s\n", "STATE", "USED", "LIMIT", "ITEMS", "RTT", "ERRORS", "URI");
	for (unsigned i = 0; i < s->nstores; i++) {
		const struct sample_store *t = &s->stores[i];

		if (t->servers)
			snprintf(servers, sizeof servers, "  %" PRIu64 " servers", t->servers);
		printf("%-5s %8s %8s %10" PRIu64 " %8s %10" PRIu64 "  %s%s%s%s%s%s\n", t->state, pages((t->used_bytes + 4095) / 4096, used),
		       t->limit_bytes ? fm_size_format(t->limit_bytes / 4096, lim) : "-", t->items,
		       t->rtt_ns ? duration(t->rtt_ns, rtt) : "-", t->errors, t->uri, t->drained ? "  " : "", t->drained ? t->role : "",
		       t->full ? "  full" : "", t->servers ? servers : "",
		       s->daemon_pid ? "" : "  (as the daemon left it)");
	}
	if (s->epoch)
		printf("epoch %" PRIu64 " (%u in use), %" PRIu64 " pages moved to newer ones, %" PRIu64 " left to move\n", s->epoch, s->epochs,
		       s->pages_moved, s->pages_left);
	if (!s->registry)
		return;
	printf("registry: %s", s->registry_here ? "here" : "away");
	if (s->registry_epoch)
		printf(", membership epoch %" PRIu64 ", this host's pages by %" PRIu64, s->registry_epoch, s->registry_settled);
	if (s->registry_oldest || s->registry_behind)
		printf(", the oldest of all hosts %" PRIu64 " (host %016" PRIx64 ")", s->registry_oldest, s->registry_behind);
	putchar('\n');
}
