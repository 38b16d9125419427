/* What the registry's thread does in ZooKeeper: every request is synchronous, and ends when the connection does. */
#include "registry_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

char *fm_registry_path(char to[FM_PATH_BYTES], const char *folder, uint64_t id)
{
	snprintf(to, FM_PATH_BYTES, "/fm/%s/%016" PRIx64, folder, id);
	return to;
}

bool fm_registry_is_away(int rc)
{
	switch (rc) {
	case ZCONNECTIONLOSS:
	case ZOPERATIONTIMEOUT:
	case ZSESSIONEXPIRED:
	case ZSESSIONMOVED:
	case ZINVALIDSTATE:
	case ZCLOSING:
	case ZAUTHFAILED:
		return true;
	default:
		return false;
	}
}

int fm_registry_create(struct fm_registry *r, const char *path, const char *text, int flags)
{
	return zoo_create(r->zh, path, text, (int)strlen(text), r->acl, flags, NULL, 0);
}

int fm_registry_get(struct fm_registry *r, const char *path, int *len, struct Stat *stat)
{
	int rc;

	*len = sizeof r->data - 1;
	rc = zoo_get(r->zh, path, 0, r->data, len, stat);
	if (rc == ZOK && (*len < 0 || stat->dataLength > *len))
		*len = 0; /* no data, or more than anything of ours has */
	if (rc == ZOK)
		r->data[*len] = '\0';
	return rc;
}

/* Make an ephemeral node ours. ZNODEEXISTS: it is another session's. */
static int take_ephemeral(struct fm_registry *r, const char *path, const char *text)
{
	int rc = fm_registry_create(r, path, text, ZOO_EPHEMERAL);
	struct Stat stat;

	if (rc != ZNODEEXISTS)
		return rc;
	rc = zoo_exists(r->zh, path, 0, &stat);
	if (rc == ZNONODE)
		return fm_registry_create(r, path, text, ZOO_EPHEMERAL);
	if (rc == ZOK && (uint64_t)stat.ephemeralOwner != (uint64_t)zoo_client_id(r->zh)->client_id)
		return ZNODEEXISTS;
	return rc;
}

/* --- this host */

void fm_registry_host_text(struct fm_registry *r, char *to)
{
	pthread_mutex_lock(&r->mutex);
	snprintf(to, FM_HOST_TEXT, r->settles ? "%sepoch=%" PRIu64 "\n" : "%s", r->host_text, r->settled);
	pthread_mutex_unlock(&r->mutex);
}

/* The id is ours alone: whatever stands there is of a session of ours that has not been noticed to be dead yet. */
static int make_host_node(struct fm_registry *r)
{
	char path[FM_PATH_BYTES], text[FM_HOST_TEXT];
	int rc;

	fm_registry_path(path, "hosts", r->host_id);
	fm_registry_host_text(r, text);
	for (int i = 0; i < 3; i++) {
		rc = take_ephemeral(r, path, text);
		if (rc != ZNODEEXISTS)
			return rc;
		rc = zoo_delete(r->zh, path, -1);
		if (rc != ZOK && rc != ZNONODE)
			return rc;
	}
	return rc;
}

int fm_registry_leave_word(struct fm_registry *r)
{
	char path[FM_PATH_BYTES];

	return fm_registry_create(r, fm_registry_path(path, "stopped", r->host_id), r->host_text, 0);
}

static int return_word(struct fm_registry *r)
{
	char path[FM_PATH_BYTES];
	int rc = zoo_delete(r->zh, fm_registry_path(path, "stopped", r->host_id), -1);

	return rc == ZNONODE ? ZOK : rc;
}

int fm_registry_setup(struct fm_registry *r)
{
	static const char *const folders[] = {"/fm", "/fm/hosts", "/fm/regions", "/fm/store", "/fm/collect", "/fm/stopped"};
	int rc = ZOK;

	for (size_t i = 0; i < sizeof folders / sizeof folders[0] && rc == ZOK; i++) {
		rc = fm_registry_create(r, folders[i], "", 0);
		if (rc == ZNODEEXISTS)
			rc = ZOK;
	}
	if (rc == ZOK)
		rc = make_host_node(r);
	if (rc == ZOK)
		rc = return_word(r);
	if (rc == ZOK)
		rc = fm_registry_read_members(r); /* after the host's node: the oldest that may be read is of then */
	/* While we were away we could not see who came back: everybody's grace time begins anew. */
	r->ngone = 0;
	return rc == ZOK ? fm_registry_look_round(r) : rc;
}

/* --- looking round */

static int by_id(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

int fm_registry_list(struct fm_registry *r, const char *path, uint64_t **ids, size_t *n)
{
	struct String_vector names = {0};
	int rc = zoo_get_children(r->zh, path, 0, &names);

	*ids = NULL;
	*n = 0;
	if (rc != ZOK)
		return rc;
	*ids = malloc((size_t)(names.count > 0 ? names.count : 1) * sizeof **ids);
	for (int i = 0; *ids && i < names.count; i++)
		if (fm_registry_id_parse(names.data[i], strlen(names.data[i]), *ids + *n))
			++*n;
	deallocate_String_vector(&names);
	if (!*ids)
		return ZSYSTEMERROR;
	qsort(*ids, *n, sizeof **ids, by_id);
	return ZOK;
}

static bool has(const uint64_t *ids, size_t n, uint64_t id)
{
	return n && bsearch(&id, ids, n, sizeof *ids, by_id);
}

static int host_of_record(struct fm_registry *r, uint64_t id, uint64_t *host)
{
	struct fm_registry_record rec;
	char path[FM_PATH_BYTES];
	struct Stat stat;
	int len, rc = fm_registry_get(r, fm_registry_path(path, "regions", id), &len, &stat);

	*host = rc == ZOK && fm_registry_record_parse(r->data, (size_t)len, &rec) == 0 ? rec.host : 0;
	return rc == ZNONODE ? ZOK : rc;
}

/* r->seen from the regions there are: a record's host never changes, so each is read once. */
static int see_regions(struct fm_registry *r, const uint64_t *ids, size_t n)
{
	struct fm_seen *seen = malloc((n ? n : 1) * sizeof *seen);
	int rc = ZOK;

	if (!seen)
		return ZSYSTEMERROR;
	for (size_t i = 0; i < n && rc == ZOK; i++) {
		const struct fm_seen *old =
		    r->nseen ? bsearch(&ids[i], r->seen, r->nseen, sizeof *r->seen, by_id) : NULL;

		seen[i].id = ids[i];
		seen[i].host = old ? old->host : 0;
		if (!old || !old->host)
			rc = host_of_record(r, ids[i], &seen[i].host);
	}
	if (rc != ZOK) {
		free(seen);
		return rc;
	}
	free(r->seen);
	r->seen = seen;
	r->nseen = n;
	return ZOK;
}

/* r->gone: hosts that have regions, but no node, and did not leave word. */
static void see_gone(struct fm_registry *r, const uint64_t *hosts, size_t nhosts, const uint64_t *stopped, size_t nstopped)
{
	uint64_t now = fm_registry_now();
	size_t kept = 0;

	for (size_t i = 0; i < r->ngone; i++)
		r->gone[i].seen = false;
	for (size_t i = 0; i < r->nseen; i++) {
		uint64_t host = r->seen[i].host;
		struct fm_gone *more;
		size_t k;

		if (!host || host == r->host_id || has(hosts, nhosts, host) || has(stopped, nstopped, host))
			continue;
		for (k = 0; k < r->ngone && r->gone[k].host != host; k++)
			;
		if (k == r->ngone) {
			more = realloc(r->gone, (r->ngone + 1) * sizeof *more);
			if (!more)
				continue; /* its time begins later */
			r->gone = more;
			r->gone[r->ngone++] = (struct fm_gone){.host = host, .since_ns = now};
		}
		r->gone[k].seen = true;
	}
	for (size_t i = 0; i < r->ngone; i++)
		if (r->gone[i].seen)
			r->gone[kept++] = r->gone[i];
	r->ngone = kept;
}

/* Records for those of our regions that have none. */
static int record_mine(struct fm_registry *r, const uint64_t *ids, size_t n)
{
	char path[FM_PATH_BYTES], text[FM_REGISTRY_RECORD];
	uint64_t after = 0, id;
	int rc = ZOK;

	for (;;) {
		/* The one with the next greater id: the list may change while we are out. */
		id = 0;
		pthread_mutex_lock(&r->mutex);
		for (const struct fm_mine *m = r->mine; m; m = m->next)
			if (m->id > after && (!id || m->id < id) && !has(ids, n, m->id)) {
				id = m->id;
				memcpy(text, m->text, sizeof text);
			}
		pthread_mutex_unlock(&r->mutex);
		if (!id)
			return rc;
		after = id;
		rc = fm_registry_create(r, fm_registry_path(path, "regions", id), text, 0);
		if (rc == ZNODEEXISTS)
			rc = ZOK;
		if (rc != ZOK)
			return rc;
		pthread_mutex_lock(&r->mutex);
		r->remade++;
		r->remade_id = id;
		fm_registry_ring(r);
		pthread_mutex_unlock(&r->mutex);
	}
}

int fm_registry_look_round(struct fm_registry *r)
{
	uint64_t *hosts = NULL, *regions = NULL, *stopped = NULL, every_ns = (uint64_t)r->uri.grace_s * 250000000u;
	size_t nhosts = 0, nregions = 0, nstopped = 0;
	int rc;

	if (every_ns < 500000000u)
		every_ns = 500000000u;
	if (every_ns > 10000000000u)
		every_ns = 10000000000u;
	r->scan_ns = fm_registry_now() + every_ns;
	/* Regions first: one that begins meanwhile is of a host that is seen then. */
	rc = fm_registry_list(r, "/fm/regions", &regions, &nregions);
	if (rc == ZOK)
		rc = see_regions(r, regions, nregions);
	if (rc == ZOK)
		rc = fm_registry_list(r, "/fm/stopped", &stopped, &nstopped);
	if (rc == ZOK)
		rc = fm_registry_list(r, "/fm/hosts", &hosts, &nhosts);
	if (rc == ZOK && !has(hosts, nhosts, r->host_id))
		rc = make_host_node(r); /* somebody removed it */
	if (rc == ZOK) {
		see_gone(r, hosts, nhosts, stopped, nstopped);
		rc = record_mine(r, regions, nregions);
	}
	free(hosts);
	free(regions);
	free(stopped);
	return rc;
}

/* --- orders */

int fm_registry_remove_record(struct fm_registry *r, uint64_t id)
{
	char path[FM_PATH_BYTES];
	int rc = zoo_delete(r->zh, fm_registry_path(path, "regions", id), -1);

	return rc == ZNONODE ? ZOK : rc;
}

static int region_new(struct fm_registry *r, struct fm_order *o)
{
	char path[FM_PATH_BYTES];
	int rc = ZNODEEXISTS;
	uint64_t id = 0;

	/* When the connection breaks here a record may be left that nobody waits for: of ours, of no region, so it is claimed. */
	while (rc == ZNODEEXISTS) {
		if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id) {
			o->result = -EIO;
			return ZOK;
		}
		rc = id ? fm_registry_create(r, fm_registry_path(path, "regions", id), o->mine->text, 0) : ZNODEEXISTS;
	}
	if (fm_registry_is_away(rc))
		return rc;
	if (rc != ZOK) {
		o->result = -EIO;
		return rc;
	}
	o->result = 0;
	o->claim.id = o->mine->id = id;
	pthread_mutex_lock(&r->mutex);
	o->mine->next = r->mine;
	r->mine = o->mine;
	o->mine = NULL;
	pthread_mutex_unlock(&r->mutex);
	return ZOK;
}

static bool may_claim(struct fm_registry *r, const struct fm_seen *s)
{
	uint64_t now = fm_registry_now();
	bool may;

	if (s->host == r->host_id) {
		pthread_mutex_lock(&r->mutex);
		may = r->all_kept && !fm_registry_is_mine(r, s->id);
		pthread_mutex_unlock(&r->mutex);
		return may;
	}
	if (r->uri.grace_s)
		for (size_t i = 0; i < r->ngone; i++)
			if (r->gone[i].host == s->host)
				return now - r->gone[i].since_ns >= (uint64_t)r->uri.grace_s * 1000000000u;
	return false;
}

/* Be the one that collects s->host, and write that into the record. ZNODEEXISTS: another is; ZNONODE: the region is gone. */
static int claim_region(struct fm_registry *r, const struct fm_seen *s, struct fm_registry_claim *out)
{
	char path[FM_PATH_BYTES], lock[FM_PATH_BYTES], me[32];
	struct Stat stat;
	int rc, len;

	fm_registry_path(lock, "collect", s->host);
	snprintf(me, sizeof me, "by=%016" PRIx64 "\n", r->host_id);
	rc = take_ephemeral(r, lock, me);
	if (rc != ZOK)
		return rc;
	/* From here on we see everything that came before the lock. */
	if (s->host != r->host_id) {
		rc = zoo_exists(r->zh, fm_registry_path(path, "hosts", s->host), 0, &stat);
		if (rc == ZNONODE)
			rc = zoo_exists(r->zh, fm_registry_path(path, "stopped", s->host), 0, &stat);
		if (rc == ZOK)
			rc = ZNODEEXISTS; /* it is back */
		if (rc != ZNONODE)
			goto unlock;
	}
	rc = fm_registry_get(r, fm_registry_path(path, "regions", s->id), &len, &stat);
	if (rc == ZOK && fm_registry_record_parse(r->data, (size_t)len, &out->record))
		rc = ZNONODE; /* not a record any more: left alone */
	if (rc != ZOK)
		goto unlock;
	out->id = s->id;
	out->host = s->host;
	out->orphan = s->host == r->host_id;
	if (!strstr(r->data, me) && (size_t)len + 32 < sizeof r->data) {
		len += snprintf(r->data + len, 32, "collect-%s", me);
		rc = zoo_set(r->zh, path, r->data, len, stat.version);
	}
	if (rc == ZOK)
		return rc;
unlock:
	if (!fm_registry_is_away(rc))
		zoo_delete(r->zh, lock, -1);
	return rc;
}

static int claim(struct fm_registry *r, struct fm_order *o)
{
	size_t start = 0;

	/* After the one taken last: one that cannot be collected must not keep the others waiting. */
	while (start < r->nseen && r->seen[start].id <= r->cursor)
		start++;
	o->result = -ENOENT;
	for (size_t i = 0; i < r->nseen; i++) {
		const struct fm_seen *s = &r->seen[(start + i) % r->nseen];
		int rc;

		if (!s->host || !may_claim(r, s))
			continue;
		rc = claim_region(r, s, &o->claim);
		if (fm_registry_is_away(rc))
			return rc;
		if (rc == ZOK) {
			r->cursor = s->id;
			o->result = 0;
			return ZOK;
		}
	}
	return ZOK;
}

static int claim_lost(struct fm_registry *r, struct fm_order *o)
{
	char path[FM_PATH_BYTES];
	struct Stat stat;
	int rc;

	o->result = 0;
	if (o->claim.orphan)
		return ZOK;
	rc = zoo_exists(r->zh, fm_registry_path(path, "hosts", o->claim.host), 0, &stat);
	o->result = rc == ZNONODE ? 0 : -EBUSY;
	return rc;
}

static int claim_done(struct fm_registry *r, const struct fm_registry_claim *c, bool collected)
{
	char path[FM_PATH_BYTES];
	int rc = collected ? fm_registry_remove_record(r, c->id) : ZOK;

	if (rc == ZOK)
		rc = zoo_delete(r->zh, fm_registry_path(path, "collect", c->host), -1);
	return rc;
}

int fm_registry_carry_out(struct fm_registry *r, struct fm_order *o)
{
	switch (o->kind) {
	case FM_ORDER_REGION_NEW:
		return region_new(r, o);
	case FM_ORDER_CLAIM:
		return claim(r, o);
	case FM_ORDER_CLAIM_LOST:
		return claim_lost(r, o);
	case FM_ORDER_CLAIM_DONE:
		return claim_done(r, &o->claim, o->collected);
	case FM_ORDER_MEMBERS:
		return fm_registry_order_members(r, o);
	}
	return ZOK;
}

void fm_registry_undo(struct fm_registry *r, struct fm_order *o)
{
	if (o->result)
		return;
	if (o->kind == FM_ORDER_REGION_NEW) {
		pthread_mutex_lock(&r->mutex);
		fm_registry_end_locked(r, o->claim.id);
		pthread_mutex_unlock(&r->mutex);
	} else if (o->kind == FM_ORDER_CLAIM) {
		claim_done(r, &o->claim, false);
	}
}
