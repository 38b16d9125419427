/*
 * The membership of a memcached: store in the registry, and what this host makes of it.
 *
 * Theory of operation. Which servers there are, and which of them are drained, is the same for all hosts: the registry's membership. It is
 * changed there, in one version step, and comes to every host by its watch, the one that was asked for the change included.
 * Which placement epoch a page is put by is this host's own matter: nobody else reads its pages, and which servers are up looks different
 * from each host. So the monitor of the store opens local epochs, from the roles that the membership gives and from what it sees.
 * When none of our pages lies on a server that a membership epoch does not have, the registry is told; when all hosts are that far, a
 * drained server leaves the membership, by whoever sees it first.
 */
#include "faultd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "evict.h"
#include "log.h"
#include "mcuri.h"
#include "registry.h"

#define CHANGE_MS 2000          /* a change waits for the registry no longer than that; nor does the main loop */
#define AGAIN_NS  10000000000u  /* a membership that was not published is published again */
#define NAMES_NS  10000000000u  /* a name that was not resolved is looked up again */

bool members_wanted(const struct faultd *d)
{
	return d->registry && strncmp(d->store_uri, "memcached:", 10) == 0;
}

/* --- what --store says */

/* Append to a list of words that is cut off when it gets long. */
static void append(char *to, size_t cap, const char *word)
{
	size_t n = strlen(to);

	if (n + strlen(word) + 8 < cap)
		snprintf(to + n, cap - n, " %s", word);
	else if (n + 5 < cap && (n < 4 || strcmp(to + n - 4, " ...") != 0))
		snprintf(to + n, cap - n, " ...");
}

/* --store was taken for the beginning of the table; where the registry says otherwise, it is right. */
static void compare(const struct faultd *d)
{
	const struct fm_members *m = &d->membership.now;
	unsigned replicas = d->store_options.replicas ? d->store_options.replicas : 1;
	struct fm_mc_uri *u = malloc(sizeof *u);
	char more[300] = "", less[300] = "", why[FM_STORE_WHY];

	if (u && fm_mc_uri_parse(d->store_uri, u, why) == 0) {
		for (unsigned i = 0; i < m->n; i++) {
			bool named = false;

			for (unsigned k = 0; k < u->nservers; k++)
				named |= strcmp(u->server[k], m->member[i].address) == 0;
			if (!named && m->member[i].role == FM_SERVER_MEMBER)
				append(more, sizeof more, m->member[i].address);
		}
		for (unsigned k = 0; k < u->nservers; k++) {
			int at = fm_members_find(m, u->server[k]);

			if (at < 0 || m->member[at].role != FM_SERVER_MEMBER)
				append(less, sizeof less, u->server[k]);
		}
	}
	free(u);
	if (*more || *less)
		fm_warn("--store: differs from the registry, which is followed:%s%s%s%s%s", *more ? " it also has" : "", more,
			*more && *less ? ";" : "", *less ? " no members of it are" : "", less);
	if (m->replicas && m->replicas != replicas)
		fm_warn("--replicas: %u: other hosts keep %u copies of a page; this one keeps %u of its own", replicas, m->replicas, replicas);
}

/* --- what the registry says */

/* Take the membership's roles over into the table. */
static void apply(struct faultd *d)
{
	struct membership *m = &d->membership;
	char why[FM_STORE_WHY] = "";
	unsigned missing = fm_store_memcached_apply(&d->daemon->cluster, &m->now, why);

	m->again_ns = missing ? fm_now_ns() + NAMES_NS : 0;
	if (missing && !m->incomplete)
		fm_warn("registry: %u server%s of the store cannot be used here: %s", missing, missing == 1 ? "" : "s", why);
	m->incomplete = missing != 0;
	atomic_store(&d->members_incomplete, m->incomplete);
	atomic_store(&d->daemon->registry.epoch, m->now.epoch);
	/* Placed by it from now on, not a second later. */
	fm_store_monitor(d->store);
}

static void show_change(const struct fm_members *was, const struct fm_members *now)
{
	for (unsigned i = 0; i < now->n; i++) {
		int at = fm_members_find(was, now->member[i].address);

		if (at < 0 || was->member[at].role != now->member[i].role)
			fm_info("registry: store epoch %" PRIu64 ": %s: %s", now->epoch, now->member[i].address,
				now->member[i].role == FM_SERVER_MEMBER ? "is a member" : "is drained");
	}
	for (unsigned i = 0; i < was->n; i++)
		if (fm_members_find(now, was->member[i].address) < 0)
			fm_info("registry: store epoch %" PRIu64 ": %s: has left", now->epoch, was->member[i].address);
}

/* Anybody may take a drained server off the list that no host has pages on. */
static void let_leave(struct faultd *d)
{
	const struct fm_members *m = &d->membership.now;
	uint64_t oldest = atomic_load(&d->daemon->registry.oldest);
	char why[FM_REGISTRY_WHY];

	if (!fm_registry_here(d->registry))
		return; /* an order that nobody waits for is kept: one is enough */

	for (unsigned i = 0; i < m->n; i++) {
		struct fm_members_change c = {.op = FM_MEMBERS_LEAVE, .settled = oldest};

		if (m->member[i].role != FM_SERVER_DRAINED || !m->member[i].since || m->member[i].since > oldest)
			continue;
		memcpy(c.address, m->member[i].address, sizeof c.address);
		fm_registry_members_change(d->registry, &c, 0, why);
	}
}

static void follow(struct faultd *d)
{
	const struct fm_members *m = &d->membership.now;
	bool drained = false;

	for (unsigned i = 0; i < m->n; i++)
		drained |= m->member[i].role == FM_SERVER_DRAINED;
	fm_registry_follow(d->registry, drained);
	if (!drained) {
		atomic_store(&d->daemon->registry.oldest, 0);
		atomic_store(&d->daemon->registry.behind, 0);
	}
}

/* Tell the registry by which epoch our pages are placed at least. */
static void tell_settled(struct faultd *d, uint64_t epoch)
{
	uint64_t *ids;
	size_t n = 0;

	for (const struct region *r = d->regions; r; r = r->next)
		n++;
	ids = calloc(n + 1, sizeof *ids);
	if (!ids)
		return;
	n = 0;
	/* Regions that end are not moved: their keys are being deleted where they are. */
	for (const struct region *r = d->regions; r; r = r->next)
		if (!r->ending)
			ids[n++] = r->map.hdr->id;
	fm_registry_settled(d->registry, epoch, ids, n);
	free(ids);
	d->membership.settled = epoch;
	atomic_store(&d->daemon->registry.settled, epoch);
}

/* Has it come that far? Once none of our pages is on a server that the membership does not have. */
static void settle(struct faultd *d)
{
	const struct fm_cluster_shm *c = &d->daemon->cluster;
	const struct membership *m = &d->membership;
	uint64_t now = atomic_load(&c->epoch_now), servers = fm_cluster_servers(c, FM_EPOCH_TAG(now));

	if (!m->known || m->settled >= m->now.epoch || atomic_load(&c->settled) < now)
		return;
	for (unsigned i = 0; i < atomic_load(&c->nservers); i++)
		if ((servers >> i & 1) && atomic_load(&c->server[i].role) != FM_SERVER_MEMBER)
			return;
	tell_settled(d, m->now.epoch);
}

void members_news(struct faultd *d, const struct fm_registry_news *n)
{
	struct membership *m = &d->membership;
	struct fm_members now;
	char why[FM_MEMBERS_WHY];

	atomic_store(&d->daemon->registry.here, n->here);
	if (!members_wanted(d))
		return;
	if (n->members_changed) {
		m->absent = !n->members;
		if (!n->members) {
			m->publish_ns = 0;
		} else if (fm_members_parse(n->members, strlen(n->members), &now, why)) {
			fm_warn("registry: /fm/store/members: %s: the store stays as it is", why);
		} else {
			bool first = !m->known;

			show_change(&m->now, &now);
			/* ZooKeeper has lost what it had: what was said of epochs with those numbers must not hold for the new ones. */
			if (now.epoch < m->now.epoch) {
				fm_warn("registry: the store's membership went back from epoch %" PRIu64 " to %" PRIu64, m->now.epoch, now.epoch);
				tell_settled(d, 0);
			}
			m->now = now;
			m->known = true;
			follow(d);
			if (d->store && first)
				compare(d);
			if (d->store)
				apply(d);
		}
	}
	if (n->oldest_changed) {
		atomic_store(&d->daemon->registry.oldest, n->oldest);
		atomic_store(&d->daemon->registry.behind, n->behind);
		let_leave(d);
	}
}

/* --- what we say */

/* The membership as the table has it: what there is to publish when the registry has none. */
static void from_table(const struct faultd *d, struct fm_members *m)
{
	const struct fm_cluster_shm *c = &d->daemon->cluster;

	*m = (struct fm_members){.epoch = 1, .replicas = d->store_options.replicas ? d->store_options.replicas : 1};
	for (unsigned i = 0; i < atomic_load(&c->nservers); i++) {
		enum fm_server_role role = (enum fm_server_role)atomic_load(&c->server[i].role);

		if (role == FM_SERVER_LEFT)
			continue;
		memcpy(m->member[m->n].address, c->server[i].address, sizeof c->server[i].address);
		m->member[m->n++].role = role;
	}
}

static void publish(struct faultd *d)
{
	struct membership *m = &d->membership;
	struct fm_members first;

	if (!m->absent || !fm_registry_here(d->registry) || fm_now_ns() < m->publish_ns)
		return;
	m->publish_ns = fm_now_ns() + AGAIN_NS;
	if (m->known)
		fm_warn("registry: /fm/store/members: was removed: made again");
	else
		from_table(d, &first);
	fm_registry_members_publish(d->registry, m->known ? &m->now : &first);
}

/* Fewer servers than copies: said when it begins, and when it ends. */
static void check_copies(struct faultd *d)
{
	struct fm_cluster_shm *c = &d->daemon->cluster;
	unsigned members = fm_cluster_members(c), replicas = atomic_load(&c->replicas);
	bool few = atomic_load(&c->epoch_now) && members < replicas;

	if (few && !d->membership.few)
		fm_warn("--replicas: %u: the store has %u server%s that take%s pages: as many copies are kept", replicas, members, members == 1 ? "" : "s",
			members == 1 ? "s" : "");
	else if (!few && d->membership.few)
		fm_warn("--replicas: %u: the store has as many servers again", replicas);
	d->membership.few = few;
}

void members_tick(struct faultd *d)
{
	check_copies(d);
	if (!members_wanted(d))
		return;
	if (d->membership.again_ns && fm_now_ns() > d->membership.again_ns)
		apply(d);
	publish(d);
	settle(d);
	let_leave(d);
}

/* --- the beginning */

const struct fm_members *members_first(struct faultd *d)
{
	return d->membership.known ? &d->membership.now : NULL;
}

void members_begin(struct faultd *d)
{
	if (!members_wanted(d))
		return;
	if (d->membership.known) {
		compare(d);
		apply(d); /* again: to hear of what could not be resolved */
	}
	check_copies(d);
	publish(d);
}

/* --- changes that we are asked for */

static bool is_member(const struct fm_members *m, const char *address)
{
	return fm_members_find(m, address) >= 0;
}

static bool has_left(const struct faultd *d, const char *address)
{
	const struct fm_cluster_shm *c = &d->daemon->cluster;
	int slot = fm_cluster_find(c, address);

	return slot >= 0 && atomic_load(&c->server[slot].role) == FM_SERVER_LEFT;
}

/* With a registry: change it there. Nothing is changed here but by the news of it. */
static void change_in_registry(struct faultd *d, struct conn *c, struct fm_members_change *change)
{
	char why[FM_STORE_WHY];
	int e = 0;

	if (change->op == FM_MEMBERS_ADD && !is_member(&d->membership.now, change->address))
		e = fm_store_memcached_probe(d->store, change->address, why);
	if (e == 0)
		e = fm_registry_members_change(d->registry, change, CHANGE_MS, why);
	/* Once more, after it has left: as asked. */
	if (e == -ENOENT && change->op == FM_MEMBERS_DRAIN && has_left(d, change->address))
		e = 0;
	if (e == 0)
		registry_news(d); /* what was changed */
	if (e == 0 && fm_cluster_find(&d->daemon->cluster, change->address) < 0)
		conn_error(c, ENOENT, "%.100s: is %s in the registry, but goes by no such name here: other hosts' fm-stat stores tells more",
			   change->address, change->op == FM_MEMBERS_ADD ? "a member" : "drained");
	else if (e == -EAGAIN)
		conn_error(c, EAGAIN, "%.100s: the registry is away: not changed, as far as is known; try again when it is back", change->address);
	else if (e)
		conn_error(c, -e, "%s", why);
	else
		conn_reply(c, FM_CTL_OK, NULL, NULL, 0);
}

/* Without one: the store is this host's alone. */
static void change_here(struct faultd *d, struct conn *c, const struct fm_members_change *change)
{
	struct fm_cluster_shm *k = &d->daemon->cluster;
	int slot = fm_cluster_find(k, change->address), e = 0;
	struct fm_members_change copy = *change;
	struct fm_members m;
	char why[FM_STORE_WHY];

	from_table(d, &m);
	if (change->op == FM_MEMBERS_ADD && slot < 0)
		e = fm_store_memcached_probe(d->store, change->address, why);
	if (e == 0)
		e = fm_members_change(&m, &copy, why);
	if (e >= 0 && change->op == FM_MEMBERS_ADD)
		e = fm_store_memcached_add(k, change->address, why);
	else if (e >= 0)
		atomic_store(&k->server[slot].role, FM_SERVER_DRAINED);
	if (e < 0)
		conn_error(c, -e, "%s", why);
	else
		conn_reply(c, FM_CTL_OK, NULL, NULL, 0);
}

void members_on_server(struct faultd *d, struct conn *c, const struct fm_ctl_server *m)
{
	struct fm_members_change change = {.op = m->role == FM_SERVER_MEMBER ? FM_MEMBERS_ADD : FM_MEMBERS_DRAIN};

	memcpy(change.address, m->address, sizeof change.address);
	change.address[sizeof change.address - 1] = '\0';
	if (!fm_ld(&d->daemon->cluster.epoch_now))
		conn_error(c, EINVAL, "%.200s: this store has no servers to add or drain", d->store_uri);
	else if (members_wanted(d))
		change_in_registry(d, c, &change);
	else
		change_here(d, c, &change);
}
