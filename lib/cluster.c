#include "cluster.h"

#include <errno.h>
#include <string.h>

uint64_t fm_cluster_servers(const struct fm_cluster_shm *c, uint32_t tag)
{
	for (unsigned i = 0; i < FM_EPOCHS; i++) {
		uint64_t n = atomic_load(&c->epoch[i].number);

		if (n && FM_EPOCH_TAG(n) == tag)
			return atomic_load(&c->epoch[i].servers);
	}
	return 0;
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

bool fm_cluster_in_use(const struct fm_cluster_shm *c, unsigned slot)
{
	for (unsigned i = 0; i < FM_EPOCHS; i++)
		if (atomic_load(&c->epoch[i].number) && (atomic_load(&c->epoch[i].servers) >> slot & 1))
			return true;
	return false;
}

int fm_cluster_find(const struct fm_cluster_shm *c, const char *address)
{
	for (unsigned i = 0; i < atomic_load(&c->nservers); i++)
		if (strcmp(c->server[i].address, address) == 0)
			return (int)i;
	return -1;
}
