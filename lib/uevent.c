#include "uevent.h"

#include <errno.h>
#include <string.h>

#include "memblock.h"

/* If the string s, a NUL before end, begins with key: set *value to the rest. The first of several counts. */
static void take(const char *s, const char *key, const char **value)
{
	size_t n = strlen(key);

	if (!*value && strncmp(s, key, n) == 0)
		*value = s + n;
}

int fm_uevent_parse(const char *buf, size_t length, struct fm_uevent *out)
{
	struct fm_uevent e = { 0 };
	const char *end = buf + length, *s, *at;

	/* With a NUL at the very end every string below is within the message. */
	if (!length || end[-1] != '\0')
		return -EINVAL;
	at = strchr(buf, '@');
	if (!at || at == buf || at[1] != '/')
		return -EINVAL;
	for (s = buf + strlen(buf) + 1; s < end; s += strlen(s) + 1) {
		take(s, "ACTION=", &e.action);
		take(s, "DEVPATH=", &e.devpath);
		take(s, "SUBSYSTEM=", &e.subsystem);
	}
	if (!e.action || !e.devpath || !e.subsystem || strcmp(at + 1, e.devpath) != 0)
		return -EINVAL;
	*out = e;
	return 0;
}

int fm_uevent_memory_block(const struct fm_uevent *event, unsigned *block)
{
	const char *name = strrchr(event->devpath, '/');

	if (strcmp(event->subsystem, "memory") != 0 || !name || fm_memblock_number(name + 1, strlen(name + 1), block) != 0)
		return -ENOENT;
	return 0;
}
