#include "cluster.h"

#include <errno.h>
#include <string.h>

#include "place.h"

/* The number and the servers of an epoch in use; 0 when there is none of that tag. */
static uint64_t find_epoch(const struct fm_cluster_shm *c, uint32_t tag, uint64_t *servers)
{
	for (unsigned i = 0; i < FM_EPOCHS; i++) {
		uint64_t n = atomic_load(&c->epoch[i].number);

		if (n && FM_EPOCH_TAG(n) == tag) {
			*servers = atomic_load(&c->epoch[i].servers);
			return n;
		}
	}
	return 0;
}

bool fm_cluster_is_sound(const struct fm_cluster_shm *c)
{
	uint32_t n = atomic_load(&c->nservers);

	if (n > FM_SERVERS || atomic_load(&c->replicas) > FM_PLACE_REPLICAS || atomic_load(&c->replicas_before) > FM_PLACE_REPLICAS)
		return false;
	for (uint32_t i = 0; i < n; i++) {
		const struct fm_server_shm *s = &c->server[i];
		size_t len = strnlen(s->address, sizeof s->address);

		if (len == 0 || len == sizeof s->address || s->sockaddr_len > sizeof s->sockaddr || atomic_load(&s->role) > FM_SERVER_LEFT)
			return false;
	}
	return true;
}

uint64_t fm_cluster_servers(const struct fm_cluster_shm *c, uint32_t tag)
{
	uint64_t servers;

	return find_epoch(c, tag, &servers) ? servers : 0;
}

uint32_t fm_cluster_replicas(const struct fm_cluster_shm *c, uint32_t tag)
{
	uint32_t now = atomic_load(&c->replicas), before = atomic_load(&c->replicas_before);
	uint64_t servers, n;

	if (!now)
		now = 1;
	if (before <= now)
		return now;
	n = find_epoch(c, tag, &servers);
	return n && n <= atomic_load(&c->replicas_until) ? before : now;
}

bool fm_cluster_set_replicas(struct fm_cluster_shm *c, uint32_t replicas)
{
	uint32_t was = atomic_load(&c->replicas);

	if (was == replicas)
		return false;
	/* Epochs from before an earlier change may still be in use. */
	if (atomic_load(&c->replicas_before) < was || atomic_load(&c->replicas_until) < atomic_load(&c->settled))
		atomic_store(&c->replicas_before, was);
	atomic_store(&c->replicas_until, atomic_load(&c->epoch_now));
	/* The epoch that is due is opened later, by another life of fm-faultd perhaps. */
	for (unsigned i = 0; i < atomic_load(&c->nservers); i++)
		atomic_fetch_or(&c->server[i].flags, FM_SERVER_MISSED);
	atomic_store(&c->replicas, replicas);
	return true;
}

void fm_cluster_avoid(struct fm_cluster_shm *c, const uint64_t tags[FM_EPOCH_TAGS / 64])
{
	unsigned best = 0, at = 0, run = 0;

	/* The middle of the longest run of free tags; it may go over the end. */
	for (unsigned i = 0; i < 2 * FM_EPOCH_TAGS; i++) {
		unsigned tag = i % FM_EPOCH_TAGS;

		run = tags[tag / 64] >> (tag % 64) & 1 ? 0 : run + 1;
		if (run > best) {
			best = run;
			at = i + 1 - run / 2;
		}
	}
	/* The first epoch is the one after this, whose number must not be 0. */
	atomic_store(&c->epoch_now, at % FM_EPOCH_TAGS + FM_EPOCH_TAGS);
}

int fm_cluster_open_epoch(struct fm_cluster_shm *c, uint64_t servers)
{
	uint64_t next = atomic_load(&c->epoch_now) + 1;

	/* A tag names one epoch only: with 16 slots and 1024 tags the old holder is long retired, but it must be so. */
	if (fm_cluster_servers(c, FM_EPOCH_TAG(next)))
		return -EAGAIN;
	for (unsigned i = 0; i < FM_EPOCHS; i++) {
		if (atomic_load(&c->epoch[i].number))
			continue;
		atomic_store(&c->epoch[i].servers, servers);
		atomic_store(&c->epoch[i].number, next);
		atomic_store(&c->epoch_now, next); /* last: who sees it finds its slot */
		return 0;
	}
	return -EAGAIN;
}

void fm_cluster_retire(struct fm_cluster_shm *c)
{
	uint64_t settled = atomic_load(&c->settled);

	for (unsigned i = 0; i < FM_EPOCHS; i++) {
		uint64_t n = atomic_load(&c->epoch[i].number);

		if (n && n < settled && n != atomic_load(&c->epoch_now))
			atomic_store(&c->epoch[i].number, 0);
	}
}

void fm_cluster_all_stale(struct fm_cluster_shm *c)
{
	for (unsigned i = 0; i < atomic_load(&c->nservers); i++)
		atomic_fetch_or(&c->server[i].flags, FM_SERVER_STALE);
}

unsigned fm_cluster_epochs(const struct fm_cluster_shm *c)
{
	unsigned n = 0;

	for (unsigned i = 0; i < FM_EPOCHS; i++)
		n += atomic_load(&c->epoch[i].number) != 0;
	return n;
}

bool fm_cluster_in_use(const struct fm_cluster_shm *c, unsigned slot)
{
	for (unsigned i = 0; i < FM_EPOCHS; i++)
		if (atomic_load(&c->epoch[i].number) && (atomic_load(&c->epoch[i].servers) >> slot & 1))
			return true;
	return false;
}

unsigned fm_cluster_members(const struct fm_cluster_shm *c)
{
	unsigned n = 0;

	for (unsigned i = 0; i < atomic_load(&c->nservers) && i < FM_SERVERS; i++)
		n += atomic_load(&c->server[i].role) == FM_SERVER_MEMBER;
	return n;
}

int fm_cluster_find(const struct fm_cluster_shm *c, const char *address)
{
	for (unsigned i = 0; i < atomic_load(&c->nservers); i++)
		if (strcmp(c->server[i].address, address) == 0)
			return (int)i;
	return -1;
}
