/*
 * The membership of the store in the registry: watched, published, changed; and which of its epochs every host is at.
 *
 * A server that was drained may be switched off when no host has pages on it any more. Each host says in its node, and in the records of
 * its regions (which outlive it), by which membership epoch its pages are placed at least. The least of these numbers is the oldest epoch
 * in use. Hosts are read before regions: one that is not among them came later, so that it reads the membership later; and
 * the records of its regions, when it has any from before, were there already.
 */
#include "registry_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEMBERS "/fm/store/members"
#define EPOCH   "/fm/store/epoch"
#define TRIES   100 /* of a change that others are always faster than */

/* --- watching */

static void on_watch(zhandle_t *zh, int type, int state, const char *path, void *arg)
{
	struct fm_registry *r = arg;

	(void)zh;
	(void)state;
	(void)path;
	if (type == ZOO_SESSION_EVENT)
		return;
	pthread_mutex_lock(&r->mutex);
	r->members.dirty = true;
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->mutex);
}

int fm_registry_read_members(struct fm_registry *r)
{
	struct fm_watched *w = &r->members;
	struct Stat stat = {0};
	char *text = NULL;
	int rc, len;

	/* Before it is read: a change that comes after must count. */
	pthread_mutex_lock(&r->mutex);
	w->dirty = false;
	pthread_mutex_unlock(&r->mutex);
	do {
		len = sizeof r->data - 1;
		rc = zoo_wget(r->zh, MEMBERS, on_watch, r, r->data, &len, &stat);
		if (rc == ZNONODE && zoo_wexists(r->zh, MEMBERS, on_watch, r, &stat) == ZNONODE)
			break;
	} while (rc == ZNONODE);
	if (rc != ZOK && rc != ZNONODE) {
		pthread_mutex_lock(&r->mutex);
		w->dirty = true;
		pthread_mutex_unlock(&r->mutex);
		return rc;
	}
	if (rc == ZOK ? w->exists && w->mzxid == stat.mzxid : w->read && !w->exists)
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
	w->read = true;
	w->exists = rc == ZOK;
	w->mzxid = stat.mzxid;
	w->version = stat.version;
	w->changed = true;
	fm_registry_ring(r);
	pthread_mutex_unlock(&r->mutex);
	return ZOK;
}

/* --- changing */

/* Membership and epoch, both or none. version: of the znode now; -1: there is none. */
static int write_members(struct fm_registry *r, const struct fm_members *m, int version)
{
	char text[FM_MEMBERS_TEXT], epoch[32], made[2][64];
	int len = (int)fm_members_format(m, text), elen = snprintf(epoch, sizeof epoch, "%" PRIu64 "\n", m->epoch), rc;
	zoo_op_result_t results[2] = {{0}};
	struct Stat stat, after[2];
	zoo_op_t ops[2];

	rc = zoo_exists(r->zh, EPOCH, 0, &stat);
	if (rc != ZOK && rc != ZNONODE)
		return rc;
	if (version < 0)
		zoo_create_op_init(&ops[0], MEMBERS, text, len, r->acl, 0, made[0], sizeof made[0]);
	else
		zoo_set_op_init(&ops[0], MEMBERS, text, len, version, &after[0]);
	if (rc == ZNONODE)
		zoo_create_op_init(&ops[1], EPOCH, epoch, elen, r->acl, 0, made[1], sizeof made[1]);
	else
		zoo_set_op_init(&ops[1], EPOCH, epoch, elen, -1, &after[1]);
	rc = zoo_multi(r->zh, 2, ops, results);
	/* Of the operations that were not done, the one that was to blame. */
	for (int i = 0; i < 2 && rc != ZOK && !fm_registry_is_away(rc); i++)
		if (results[i].err != ZOK && results[i].err != ZRUNTIMEINCONSISTENCY)
			return results[i].err;
	return rc;
}

/* 0: there is none. */
static int read_epoch(struct fm_registry *r, uint64_t *epoch)
{
	struct Stat stat;
	int len, rc = fm_registry_get(r, EPOCH, &len, &stat);

	*epoch = rc == ZOK ? strtoull(r->data, NULL, 10) : 0;
	return rc == ZNONODE ? ZOK : rc;
}

/* The membership to be when there is none. */
static int first_members(struct fm_registry *r, const struct fm_members *publish, struct fm_members *m)
{
	uint64_t known;
	int rc = read_epoch(r, &known);

	if (rc != ZOK)
		return rc;
	*m = *publish;
	if (m->epoch <= known && known < UINT64_MAX / 2)
		m->epoch = known + 1;
	for (unsigned i = 0; i < m->n; i++)
		if (m->member[i].role == FM_SERVER_MEMBER || !m->member[i].since)
			m->member[i].since = m->epoch;
	return ZOK;
}

/* Read it, change it, write it. Returns a ZooKeeper result; ZBADVERSION and its like: somebody was faster. */
static int try_members(struct fm_registry *r, struct fm_order *o)
{
	struct fm_members m;
	struct Stat stat;
	int len, rc = fm_registry_get(r, MEMBERS, &len, &stat);

	if (rc == ZNONODE && !o->publish) {
		snprintf(o->why, sizeof o->why, "registry: " MEMBERS ": does not exist yet: try again");
		o->result = -ESTALE;
		return ZOK;
	}
	if (rc == ZNONODE) {
		rc = first_members(r, o->publish, &m);
		return rc == ZOK ? write_members(r, &m, -1) : rc;
	}
	if (rc != ZOK || o->publish)
		return rc;
	if (fm_members_parse(r->data, (size_t)len, &m, o->why)) {
		char line[sizeof o->why];

		memcpy(line, o->why, sizeof line);
		snprintf(o->why, sizeof o->why, "registry: " MEMBERS ": %.200s", line);
		o->result = -EPROTO;
		return ZOK;
	}
	o->result = fm_members_change(&m, &o->change, o->why);
	if (o->result <= 0)
		return ZOK;
	o->result = 0;
	return write_members(r, &m, stat.version);
}

int fm_registry_order_members(struct fm_registry *r, struct fm_order *o)
{
	for (int i = 0; i < TRIES; i++) {
		int rc;

		o->result = 0;
		rc = try_members(r, o);
		/* Who asked finds the change among the news, without waiting for the watch. */
		if (rc == ZOK && o->result == 0)
			fm_registry_read_members(r);
		if (rc == ZOK || fm_registry_is_away(rc))
			return rc;
		if (rc != ZBADVERSION && rc != ZNODEEXISTS && rc != ZNONODE) {
			snprintf(o->why, sizeof o->why, "registry: " MEMBERS ": cannot be written: %s", zerror(rc));
			o->result = -EIO;
			return ZOK;
		}
	}
	snprintf(o->why, sizeof o->why, "registry: " MEMBERS ": other hosts change it all the time");
	o->result = -EBUSY;
	return ZOK;
}

int fm_registry_members_change(struct fm_registry *r, const struct fm_members_change *c, unsigned deadline_ms, char *why)
{
	struct fm_order *o = fm_registry_order_new(FM_ORDER_MEMBERS);

	snprintf(why, FM_REGISTRY_WHY, "out of memory");
	if (!o)
		return -ENOMEM;
	o->change = *c;
	if (deadline_ms == 0) {
		fm_registry_order_leave(r, o);
		return 0;
	}
	if (!fm_registry_order_wait(r, o, deadline_ms)) {
		snprintf(why, FM_REGISTRY_WHY, "registry is away");
		return -EAGAIN;
	}
	memcpy(why, o->why, sizeof o->why);
	return fm_registry_order_finish(o);
}

int fm_registry_members_publish(struct fm_registry *r, const struct fm_members *m)
{
	struct fm_order *o = fm_registry_order_new(FM_ORDER_MEMBERS);

	if (!o)
		return -ENOMEM;
	o->publish = malloc(sizeof *o->publish);
	if (!o->publish) {
		fm_registry_order_finish(o);
		return -ENOMEM;
	}
	*o->publish = *m;
	fm_registry_order_leave(r, o);
	return 0;
}

/* --- who is how far */

/* Something has changed: others may have, too. Under the mutex. */
static void look_soon(struct fm_registry *r)
{
	r->follow_ns = 0;
	r->follow_every_ns = FM_FOLLOW_NS;
}

/* Have a region's record say so. Under the mutex. */
static void settle_record(struct fm_mine *m, uint64_t epoch)
{
	struct fm_registry_record rec;

	if (fm_registry_record_parse(m->text, strlen(m->text), &rec) || rec.epoch == epoch)
		return;
	rec.epoch = epoch;
	fm_registry_record_format(&rec, m->text);
	m->dirty = true;
}

void fm_registry_settled(struct fm_registry *r, uint64_t epoch, const uint64_t *ids, size_t n)
{
	pthread_mutex_lock(&r->mutex);
	for (struct fm_mine *m = r->mine; m; m = m->next)
		for (size_t i = 0; i < n; i++)
			if (ids[i] == m->id)
				settle_record(m, epoch);
	r->settled = epoch;
	r->settled_dirty = true;
	look_soon(r);
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->mutex);
}

int fm_registry_write_settled(struct fm_registry *r)
{
	char path[FM_PATH_BYTES], text[FM_HOST_TEXT > FM_REGISTRY_RECORD ? FM_HOST_TEXT : FM_REGISTRY_RECORD];
	uint64_t id = 0;
	int rc;

	pthread_mutex_lock(&r->mutex);
	r->settled_dirty = false;
	pthread_mutex_unlock(&r->mutex);
	fm_registry_host_text(r, text);
	rc = zoo_set(r->zh, fm_registry_path(path, "hosts", r->host_id), text, (int)strlen(text), -1);
	while (rc == ZOK || rc == ZNONODE) { /* what is not there is made anew, and says so then */
		id = 0;
		pthread_mutex_lock(&r->mutex);
		for (struct fm_mine *m = r->mine; m && !id; m = m->next)
			if (m->dirty) {
				id = m->id;
				m->dirty = false;
				memcpy(text, m->text, sizeof m->text);
			}
		pthread_mutex_unlock(&r->mutex);
		if (!id)
			return ZOK;
		rc = zoo_set(r->zh, fm_registry_path(path, "regions", id), text, (int)strlen(text), -1);
	}
	pthread_mutex_lock(&r->mutex);
	r->settled_dirty = true;
	for (struct fm_mine *m = r->mine; m && id; m = m->next)
		m->dirty |= m->id == id;
	pthread_mutex_unlock(&r->mutex);
	return rc;
}

void fm_registry_follow(struct fm_registry *r, bool on)
{
	pthread_mutex_lock(&r->mutex);
	if (!r->follow)
		r->oldest = r->behind = 0;
	r->follow = on;
	look_soon(r);
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->mutex);
}

/* The epoch= of a host's node. Returns false when it has none: a host without pages in this store. */
static bool host_epoch(const char *text, uint64_t *epoch)
{
	const char *at = strncmp(text, "epoch=", 6) == 0 ? text : strstr(text, "\nepoch=");

	if (!at)
		return false;
	*epoch = strtoull(strchr(at, '=') + 1, NULL, 10);
	return true;
}

static int look_at_hosts(struct fm_registry *r, const uint64_t *ids, size_t n, uint64_t *oldest, uint64_t *behind)
{
	char path[FM_PATH_BYTES];
	struct Stat stat;
	uint64_t epoch;
	int len, rc;

	for (size_t i = 0; i < n; i++) {
		rc = fm_registry_get(r, fm_registry_path(path, "hosts", ids[i]), &len, &stat);
		if (rc != ZOK && rc != ZNONODE)
			return rc;
		if (rc == ZOK && host_epoch(r->data, &epoch) && epoch < *oldest) {
			*oldest = epoch;
			*behind = ids[i];
		}
	}
	return ZOK;
}

static int look_at_records(struct fm_registry *r, const uint64_t *ids, size_t n, uint64_t *oldest, uint64_t *behind)
{
	struct fm_registry_record rec;
	char path[FM_PATH_BYTES];
	struct Stat stat;
	int len, rc;

	for (size_t i = 0; i < n; i++) {
		rc = fm_registry_get(r, fm_registry_path(path, "regions", ids[i]), &len, &stat);
		if (rc != ZOK && rc != ZNONODE)
			return rc;
		if (rc != ZOK || fm_registry_record_parse(r->data, (size_t)len, &rec) || strncmp(rec.store, "memcached:", 10) != 0)
			continue;
		if (rec.epoch < *oldest) {
			*oldest = rec.epoch;
			*behind = rec.host;
		}
	}
	return ZOK;
}

int fm_registry_look_settled(struct fm_registry *r)
{
	uint64_t *hosts = NULL, *regions = NULL, oldest, behind = 0;
	size_t nhosts = 0, nregions = 0;
	/* First: what is drained after this has a greater epoch, and is not meant by what is found. */
	int rc = read_epoch(r, &oldest);

	if (rc == ZOK)
		rc = fm_registry_list(r, "/fm/hosts", &hosts, &nhosts);
	if (rc == ZOK)
		rc = look_at_hosts(r, hosts, nhosts, &oldest, &behind);
	if (rc == ZOK)
		rc = fm_registry_list(r, "/fm/regions", &regions, &nregions);
	if (rc == ZOK)
		rc = look_at_records(r, regions, nregions, &oldest, &behind);
	free(hosts);
	free(regions);
	if (rc != ZOK)
		return rc;
	pthread_mutex_lock(&r->mutex);
	if (r->follow && (r->oldest != oldest || r->behind != behind)) {
		r->oldest = oldest;
		r->behind = behind;
		r->oldest_changed = true;
		look_soon(r);
		fm_registry_ring(r);
	}
	pthread_mutex_unlock(&r->mutex);
	return ZOK;
}
