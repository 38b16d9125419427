#include "print.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

/* JSON numbers end at 2^63 - 1 here. */
static json_t *number(uint64_t v)
{
	return json_integer(v > INT64_MAX ? INT64_MAX : (json_int_t)v);
}

static json_t *flags(uint64_t set)
{
	json_t *a = json_array();

	if (set & FM_REGION_STORE_FULL)
		json_array_append_new(a, json_string("store_full"));
	if (set & FM_REGION_STORE_DOWN)
		json_array_append_new(a, json_string("store_down"));
	if (set & FM_REGION_GONE)
		json_array_append_new(a, json_string("gone"));
	if (set & FM_REGION_DETACHING)
		json_array_append_new(a, json_string("detaching"));
	return a;
}

/* The buckets that hold values: [greatest value, count]. */
static json_t *histogram(const uint64_t hist[FM_HIST_BUCKETS])
{
	json_t *a = json_array();

	for (unsigned b = 0; b < FM_HIST_BUCKETS; b++)
		if (hist[b])
			json_array_append_new(a, json_pack("[o, o]", number(fm_hist_upper(b)), number(hist[b])));
	return a;
}

static json_t *region(const struct sample_region *r, bool with_histogram)
{
	const struct fm_stats *t = &r->stats;
	const struct {
		const char *key;
		uint64_t value;
	} numbers[] = {
		{ "pid", r->pid > 0 ? (uint64_t)r->pid : 0 },
		{ "pages", r->pages },
		{ "resident_pages", r->resident_pages },
		{ "remote_pages", r->remote_pages },
		{ "local_limit_pages", r->limit_pages },
		{ "faults", t->faults },
		{ "faults_zero", t->faults_zero },
		{ "faults_store", t->faults_store },
		{ "faults_wp", t->faults_wp },
		{ "faults_stale", t->faults_stale },
		{ "held", t->held },
		{ "discarded", t->discarded },
		{ "prefetched", t->prefetched },
		{ "zeroed_ahead", t->zeroed_ahead },
		{ "prefetch_hits", t->prefetch_hits },
		{ "prefetch_wasted", t->prefetch_wasted },
		{ "evictions", t->evictions },
		{ "evictions_clean", t->evictions_clean },
		{ "evictions_zero", t->evictions_zero },
		{ "cancelled", t->cancelled },
		{ "store_puts", t->store_puts },
		{ "store_gets", t->store_gets },
		{ "store_deletes", t->store_deletes },
		{ "store_errors", t->shard_store_errors + t->evict_store_errors },
		{ "pages_lost", t->pages_lost },
		{ "grace_ms", r->grace_ms },
		{ "cooling_pages", r->cooling_pages },
		{ "late_writes", r->late_writes },
	};
	char id[17];
	json_t *o = json_object(), *latency;

	snprintf(id, sizeof id, "%016" PRIx64, r->id);
	json_object_set_new(o, "id", json_string(id));
	json_object_set_new(o, "name", json_string(r->name));
	json_object_set_new(o, "kind", json_string(r->kind == FM_KIND_VM ? "vm" : "map"));
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		json_object_set_new(o, numbers[i].key, number(numbers[i].value));
	json_object_set_new(o, "created_ms", number(r->created_ns / 1000000));
	json_object_set_new(o, "flags", flags(r->flags));
	latency = json_pack("{s:o, s:o, s:o, s:o, s:o}", "p50", number(r->latency_ns[0]), "p90", number(r->latency_ns[1]), "p99",
			    number(r->latency_ns[2]), "p999", number(r->latency_ns[3]), "max", number(r->latency_max_ns));
	json_object_set_new(o, "latency_ns", latency);
	if (with_histogram)
		json_object_set_new(o, "latency_histogram", histogram(t->latency));
	return o;
}

int print_json(const struct sample *s, bool with_histogram)
{
	json_t *doc, *daemon, *placement, *registry, *regions = json_array(), *stores = json_array();
	char behind[17];
	int err = 0;

	for (size_t i = 0; i < s->nregions; i++)
		json_array_append_new(regions, region(&s->regions[i], with_histogram));
	for (unsigned i = 0; i < s->nstores; i++) {
		const struct sample_store *t = &s->stores[i];

		json_array_append_new(stores, json_pack("{s:s, s:b, s:o, s:o, s:o, s:s, s:s*, s:b, s:b, s:o, s:o, s:o, s:o}", "uri", t->uri, "up", (int)t->up,
							"used_bytes", number(t->used_bytes), "limit_bytes", number(t->limit_bytes),
							"errors", number(t->errors), "state", t->state, "role", t->role, "drained", (int)t->drained,
							"full", (int)t->full, "items", number(t->items), "restarts", number(t->restarts), "rtt_ns",
							number(t->rtt_ns), "servers", number(t->servers)));
	}
	daemon = json_pack("{s:o, s:o, s:o, s:o}", "pid", number(s->daemon_pid > 0 ? (uint64_t)s->daemon_pid : 0), "uptime_s",
			   number(s->uptime_s), "local_limit_pages", number(s->limit_pages), "resident_pages",
			   number(s->resident_pages));
	placement = json_pack("{s:o, s:i, s:o, s:o}", "epoch", number(s->epoch), "epochs", (int)s->epochs, "pages_left",
			      number(s->pages_left), "pages_moved", number(s->pages_moved));
	snprintf(behind, sizeof behind, "%016" PRIx64, s->registry_behind);
	registry = s->registry ? json_pack("{s:b, s:o, s:o, s:o, s:s*}", "here", (int)s->registry_here, "epoch", number(s->registry_epoch),
					   "settled", number(s->registry_settled), "oldest", number(s->registry_oldest), "behind",
					   s->registry_behind ? behind : NULL)
			       : json_null();
	doc = json_pack("{s:i, s:o, s:o, s:o, s:o, s:o, s:o}", "version", 1, "time_ms", number(s->realtime_ns / 1000000), "daemon", daemon,
			"regions", regions, "stores", stores, "placement", placement, "registry", registry);
	/* Whatever failed to be made above is missing in doc, or doc itself is. */
	if (!doc || json_array_size(regions) != s->nregions || json_dumpf(doc, stdout, JSON_COMPACT) < 0)
		err = ferror(stdout) ? 0 : -ENOMEM;
	else
		putchar('\n');
	json_decref(doc);
	return err;
}
