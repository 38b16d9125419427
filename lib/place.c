#include "place.h"

/* The finalizer of splitmix64 (S. Vigna): every bit of x reaches every bit of the result. */
static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

uint64_t fm_place_server(const char *name)
{
	/* FNV-1a, then mixed: names that differ in their last digit alone must be far apart. */
	uint64_t h = 0xcbf29ce484222325ull;

	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 0x100000001b3ull;
	return mix(h);
}

unsigned fm_place(const struct fm_epoch *e, uint64_t region, uint64_t page, unsigned replicas, uint8_t *out)
{
	const uint64_t key = mix(mix(region + 0x9e3779b97f4a7c15ull) ^ page);
	uint64_t best[FM_PLACE_REPLICAS];
	unsigned n = 0;

	if (replicas > FM_PLACE_REPLICAS)
		replicas = FM_PLACE_REPLICAS;
	if (replicas == 0)
		return 0;
	for (uint64_t left = e->servers; left; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);
		/* Different servers have different scores for a page: mix is a bijection, so ties need no rule. */
		uint64_t score = mix(key ^ e->hash[i]);
		unsigned at;

		if (n == replicas && score < best[n - 1])
			continue;
		at = n < replicas ? n++ : n - 1;
		for (; at > 0 && best[at - 1] < score; at--) {
			best[at] = best[at - 1];
			out[at] = out[at - 1];
		}
		best[at] = score;
		out[at] = (uint8_t)i;
	}
	return n;
}
