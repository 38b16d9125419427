#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct fm_store_ops *const kinds[] = {&fm_store_dir, &fm_store_memcached, &fm_store_ramcloud};

static const struct fm_store_options plain;

static const struct fm_store_ops *find(const char *uri, char *why)
{
	size_t n = 0;

	for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
		if (strncmp(uri, kinds[i]->scheme, strlen(kinds[i]->scheme)) == 0)
			return kinds[i];
	n = (size_t)snprintf(why, FM_STORE_WHY, "%.128s: unknown store; known are", uri);
	for (size_t i = 0; i < sizeof kinds / sizeof kinds[0] && n < FM_STORE_WHY; i++)
		n += (size_t)snprintf(why + n, FM_STORE_WHY - n, " %s", kinds[i]->scheme);
	return NULL;
}

int fm_store_check(const char *uri, const struct fm_store_options *o, char *why)
{
	const struct fm_store_ops *k = find(uri, why);

	return k ? k->check(uri, o ? o : &plain, why) : -EINVAL;
}

int fm_store_open(const char *uri, const struct fm_store_options *o, struct fm_store **out, char *why)
{
	const struct fm_store_ops *k = find(uri, why);
	int r = k ? k->check(uri, o ? o : &plain, why) : -EINVAL;

	return r ? r : k->open(uri, o ? o : &plain, out, why);
}

void fm_store_close(struct fm_store *s)
{
	if (s)
		s->ops->close(s);
}

bool fm_page_is_zero(const void *page)
{
	const uint64_t *p = page;

	/* Most pages differ in their first words; the rest in blocks that the compiler turns into vector code. */
	for (unsigned i = 0; i < 512; i += 16) {
		uint64_t any = 0;

		for (unsigned k = 0; k < 16; k++)
			any |= p[i + k];
		if (any)
			return false;
	}
	return true;
}

size_t fm_store_paths(const char *uri, const struct fm_cluster_shm *c, const char **out, size_t cap)
{
	size_t n = 0;

	if (strncmp(uri, "dir:", 4) == 0 && cap)
		out[n++] = uri + 4;
	for (unsigned i = 0; i < atomic_load(&c->nservers) && i < FM_SERVERS && n < cap; i++)
		if (*c->server[i].address == '/')
			out[n++] = c->server[i].address;
	return n;
}
