/* What is asked of the registry's thread: orders, which are waited for or left with it, and what becomes of a host's regions and claims. */
#include "registry_impl.h"

#include <errno.h>
#include <stdlib.h>

void fm_registry_order_free(struct fm_order *o)
{
	free(o->mine);
	free(o->publish);
	free(o);
}

static void append(struct fm_registry *r, struct fm_order *o)
{
	struct fm_order **link = &r->orders;

	while (*link)
		link = &(*link)->next;
	*link = o;
	pthread_cond_broadcast(&r->cond);
}

bool fm_registry_order_wait(struct fm_registry *r, struct fm_order *o, unsigned deadline_ms)
{
	uint64_t wait = (uint64_t)deadline_ms * 1000000u, until = fm_registry_now() + wait;
	struct fm_order **link;

	pthread_mutex_lock(&r->mutex);
	if (!r->here && r->away_ns + wait < until)
		until = r->away_ns + wait;
	append(r, o);
	while (!o->done && fm_registry_now() < until)
		fm_registry_wait_until(r, until);
	if (o->done) {
		pthread_mutex_unlock(&r->mutex);
		return true;
	}
	o->left = true;
	for (link = &r->orders; *link && *link != o;)
		link = &(*link)->next;
	if (*link) {
		*link = o->next;
		fm_registry_order_free(o);
	}
	pthread_mutex_unlock(&r->mutex);
	return false;
}

void fm_registry_order_leave(struct fm_registry *r, struct fm_order *o)
{
	o->left = o->keep = true;
	pthread_mutex_lock(&r->mutex);
	append(r, o);
	pthread_mutex_unlock(&r->mutex);
}

struct fm_order *fm_registry_order_new(enum fm_order_kind kind)
{
	struct fm_order *o = calloc(1, sizeof *o);

	if (o)
		o->kind = kind;
	return o;
}

int fm_registry_order_finish(struct fm_order *o)
{
	int result = o->result;

	fm_registry_order_free(o);
	return result;
}

int fm_registry_region_new(struct fm_registry *r, const struct fm_registry_record *rec, unsigned deadline_ms, uint64_t *id)
{
	struct fm_order *o = fm_registry_order_new(FM_ORDER_REGION_NEW);

	if (!o)
		return -ENOMEM;
	o->rec = *rec;
	o->rec.host = r->host_id;
	o->mine = calloc(1, sizeof *o->mine);
	if (!o->mine) {
		fm_registry_order_finish(o);
		return -ENOMEM;
	}
	if (fm_registry_record_format(&o->rec, o->mine->text) < 0) {
		fm_registry_order_finish(o);
		return -EINVAL;
	}
	if (!fm_registry_order_wait(r, o, deadline_ms))
		return -EAGAIN;
	*id = o->claim.id;
	return fm_registry_order_finish(o);
}

int fm_registry_region_keep(struct fm_registry *r, uint64_t id, const struct fm_registry_record *rec)
{
	struct fm_registry_record mine = *rec;
	struct fm_mine *m = calloc(1, sizeof *m);

	if (!m)
		return -ENOMEM;
	mine.host = r->host_id;
	m->id = id;
	if (fm_registry_record_format(&mine, m->text) < 0) {
		free(m);
		return -EINVAL;
	}
	pthread_mutex_lock(&r->mutex);
	m->next = r->mine;
	r->mine = m;
	pthread_mutex_unlock(&r->mutex);
	return 0;
}

void fm_registry_all_kept(struct fm_registry *r)
{
	pthread_mutex_lock(&r->mutex);
	r->all_kept = true;
	r->scan_ns = 0;
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->mutex);
}

bool fm_registry_is_mine(const struct fm_registry *r, uint64_t id)
{
	for (const struct fm_mine *m = r->mine; m; m = m->next)
		if (m->id == id)
			return true;
	for (size_t i = 0; i < r->nends; i++)
		if (r->ends[i] == id)
			return true;
	return false;
}

void fm_registry_end_locked(struct fm_registry *r, uint64_t id)
{
	for (struct fm_mine **link = &r->mine, *m; (m = *link); link = &m->next)
		if (m->id == id) {
			*link = m->next;
			free(m);
			break;
		}
	if (r->nends == r->ends_cap) {
		size_t cap = r->ends_cap ? 2 * r->ends_cap : 64;
		uint64_t *more = realloc(r->ends, cap * sizeof *more);

		if (!more)
			return; /* a record of ours of no region: it will be claimed */
		r->ends = more;
		r->ends_cap = cap;
	}
	r->ends[r->nends++] = id;
	pthread_cond_broadcast(&r->cond);
}

void fm_registry_region_end(struct fm_registry *r, uint64_t id)
{
	pthread_mutex_lock(&r->mutex);
	fm_registry_end_locked(r, id);
	pthread_mutex_unlock(&r->mutex);
}

int fm_registry_claim(struct fm_registry *r, unsigned deadline_ms, struct fm_registry_claim *claim)
{
	struct fm_order *o = fm_registry_order_new(FM_ORDER_CLAIM);

	if (!o)
		return -ENOMEM;
	if (!fm_registry_order_wait(r, o, deadline_ms))
		return -EAGAIN;
	*claim = o->claim;
	return fm_registry_order_finish(o);
}

bool fm_registry_claim_lost(struct fm_registry *r, const struct fm_registry_claim *claim, unsigned deadline_ms)
{
	struct fm_order *o = fm_registry_order_new(FM_ORDER_CLAIM_LOST);

	if (!o)
		return true;
	o->claim = *claim;
	return !fm_registry_order_wait(r, o, deadline_ms) || fm_registry_order_finish(o) != 0;
}

void fm_registry_claim_done(struct fm_registry *r, const struct fm_registry_claim *claim, bool collected)
{
	struct fm_order *o = fm_registry_order_new(FM_ORDER_CLAIM_DONE);

	if (!o)
		return; /* the claim ends with the session */
	o->claim = *claim;
	o->collected = collected;
	fm_registry_order_leave(r, o);
}
