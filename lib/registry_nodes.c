/* What the registry's thread does in ZooKeeper: every request is synchronous, and ends when the connection does. */
#include "registry_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define PATH_BYTES 64

static char *node_path(char to[PATH_BYTES], const char *folder, uint64_t id)
{
	snprintf(to, PATH_BYTES, "/fm/%s/%016" PRIx64, folder, id);
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

static int create(struct fm_registry *r, const char *path, const char *text, int flags)
{
	/* Open to everybody who reaches ZooKeeper, as what stands in the store is: who may reach them is a matter of the network. */
	return zoo_create(r->zh, path, text, (int)strlen(text), &ZOO_OPEN_ACL_UNSAFE, flags, NULL, 0);
}

/* Read path into r->data, NUL-terminated. *len: bytes. */
static int read_node(struct fm_registry *r, const char *path, int *len, struct Stat *stat)
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
	int rc = create(r, path, text, ZOO_EPHEMERAL);
	struct Stat stat;

	if (rc != ZNODEEXISTS)
		return rc;
	rc = zoo_exists(r->zh, path, 0, &stat);
	if (rc == ZNONODE)
		return create(r, path, text, ZOO_EPHEMERAL);
	if (rc == ZOK && (uint64_t)stat.ephemeralOwner != (uint64_t)zoo_client_id(r->zh)->client_id)
		return ZNODEEXISTS;
	return rc;
}

/* --- this host */

/* The id is ours alone: whatever stands there is of a session of ours that has not been noticed to be dead yet. */
static int make_host_node(struct fm_registry *r)
{
	char path[PATH_BYTES];
	int rc;

	node_path(path, "hosts", r->host_id);
	for (int i = 0; i < 3; i++) {
		rc = take_ephemeral(r, path, r->host_text);
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
	char path[PATH_BYTES];

	return create(r, node_path(path, "stopped", r->host_id), r->host_text, 0);
}

static int return_word(struct fm_registry *r)
{
	char path[PATH_BYTES];
	int rc = zoo_delete(r->zh, node_path(path, "stopped", r->host_id), -1);

	return rc == ZNONODE ? ZOK : rc;
}

int fm_registry_setup(struct fm_registry *r)
{
	static const char *const folders[] = {"/fm", "/fm/hosts", "/fm/regions", "/fm/store", "/fm/collect", "/fm/stopped"};
	int rc = ZOK;

	for (size_t i = 0; i < sizeof folders / sizeof folders[0] && rc == ZOK; i++) {
		rc = create(r, folders[i], "", 0);
		if (rc == ZNODEEXISTS)
			rc = ZOK;
	}
	if (rc == ZOK)
		rc = make_host_node(r);
	if (rc == ZOK)
		rc = return_word(r);
	if (rc == ZOK)
		rc = fm_registry_read(r, &r->members);
	if (rc == ZOK)
		rc = fm_registry_read(r, &r->epoch);
	/* While we were away we could not see who came back: everybody's grace time begins anew. */
	r->ngone = 0;
	return rc == ZOK ? fm_registry_look_round(r) : rc;
}

/* --- watched nodes */

static void on_watch(zhandle_t *zh, int type, int state, const char *path, void *arg)
{
	struct fm_registry *r = arg;

	(void)zh;
	(void)state;
	if (type == ZOO_SESSION_EVENT || !path)
		return;
	pthread_mutex_lock(&r->mutex);
	if (strcmp(path, r->members.path) == 0)
		r->members.dirty = true;
	else
		r->epoch.dirty = true;
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->mutex);
}

int fm_registry_read(struct fm_registry *r, struct fm_watched *w)
{
	struct Stat stat = {0};
	char *text = NULL;
	int rc, len;

	/* Before it is read: a change that comes after must count. */
	pthread_mutex_lock(&r->mutex);
	w->dirty = false;
	pthread_mutex_unlock(&r->mutex);
	do {
		len = sizeof r->data - 1;
		rc = zoo_wget(r->zh, w->path, on_watch, r, r->data, &len, &stat);
		if (rc == ZNONODE && zoo_wexists(r->zh, w->path, on_watch, r, &stat) == ZNONODE)
			break;
	} while (rc == ZNONODE);
	if (rc != ZOK && rc != ZNONODE) {
		pthread_mutex_lock(&r->mutex);
		w->dirty = true;
		pthread_mutex_unlock(&r->mutex);
		return rc;
	}
	if (rc == ZOK ? w->exists && w->mzxid == stat.mzxid : !w->exists)
		return ZOK; /* as before */
	if (rc == ZOK) {
		text = malloc((size_t)(len > 0 ? len : 0) + 1);
		if (!text)
			return ZSYSTEMERROR; /* once more at the next change or session */
		if (len > 0)
			memcpy(text, r->data, (size_t)len);
		text[len > 0 ? len : 0] = '\0';
	}
	pthread_mutex_lock(&r->mutex);
	free(w->text);
	w->text = text;
	w->exists = rc == ZOK;
	w->mzxid = stat.mzxid;
	w->version = stat.version;
	w->changed = true;
	fm_registry_ring(r);
	pthread_mutex_unlock(&r->mutex);
	return ZOK;
}

/* --- looking round */

static int by_id(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* The ids among the children of path, ascending; *ids is the caller's. Other names are passed over. */
static int list_ids(struct fm_registry *r, const char *path, uint64_t **ids, size_t *n)
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
	char path[PATH_BYTES];
	struct Stat stat;
	int len, rc = read_node(r, node_path(path, "regions", id), &len, &stat);

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
	char path[PATH_BYTES], text[FM_REGISTRY_RECORD];
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
		rc = create(r, node_path(path, "regions", id), text, 0);
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
	rc = list_ids(r, "/fm/regions", &regions, &nregions);
	if (rc == ZOK)
		rc = see_regions(r, regions, nregions);
	if (rc == ZOK)
		rc = list_ids(r, "/fm/stopped", &stopped, &nstopped);
	if (rc == ZOK)
		rc = list_ids(r, "/fm/hosts", &hosts, &nhosts);
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
	char path[PATH_BYTES];
	int rc = zoo_delete(r->zh, node_path(path, "regions", id), -1);

	return rc == ZNONODE ? ZOK : rc;
}

static int region_new(struct fm_registry *r, struct fm_order *o)
{
	char path[PATH_BYTES];
	int rc = ZNODEEXISTS;
	uint64_t id = 0;

	/* When the connection breaks here a record may be left that nobody waits for: of ours, of no region, so it is claimed. */
	while (rc == ZNODEEXISTS) {
		if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id) {
			o->result = -EIO;
			return ZOK;
		}
		rc = id ? create(r, node_path(path, "regions", id), o->mine->text, 0) : ZNODEEXISTS;
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
	char path[PATH_BYTES], lock[PATH_BYTES], me[32];
	struct Stat stat;
	int rc, len;

	node_path(lock, "collect", s->host);
	snprintf(me, sizeof me, "by=%016" PRIx64 "\n", r->host_id);
	rc = take_ephemeral(r, lock, me);
	if (rc != ZOK)
		return rc;
	/* From here on we see everything that came before the lock. */
	if (s->host != r->host_id) {
		rc = zoo_exists(r->zh, node_path(path, "hosts", s->host), 0, &stat);
		if (rc == ZNONODE)
			rc = zoo_exists(r->zh, node_path(path, "stopped", s->host), 0, &stat);
		if (rc == ZOK)
			rc = ZNODEEXISTS; /* it is back */
		if (rc != ZNONODE)
			goto unlock;
	}
	rc = read_node(r, node_path(path, "regions", s->id), &len, &stat);
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
	char path[PATH_BYTES];
	struct Stat stat;
	int rc;

	o->result = 0;
	if (o->claim.orphan)
		return ZOK;
	rc = zoo_exists(r->zh, node_path(path, "hosts", o->claim.host), 0, &stat);
	o->result = rc == ZNONODE ? 0 : -EBUSY;
	return rc;
}

static int claim_done(struct fm_registry *r, const struct fm_registry_claim *c, bool collected)
{
	char path[PATH_BYTES];
	int rc = collected ? fm_registry_remove_record(r, c->id) : ZOK;

	if (rc == ZOK)
		rc = zoo_delete(r->zh, node_path(path, "collect", c->host), -1);
	return rc;
}

static int store_set(struct fm_registry *r, struct fm_order *o)
{
	int rc = o->version < 0 ? create(r, o->name, o->text, 0)
				: zoo_set(r->zh, o->name, o->text, (int)strlen(o->text), o->version);

	o->result = rc == ZOK ? 0 : rc == ZBADVERSION || rc == ZNODEEXISTS || rc == ZNONODE ? -EBUSY : -EIO;
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
	case FM_ORDER_STORE_SET:
		return store_set(r, o);
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
