/* lib/uevent: kernel events, and what is none. */
#include "tap.h"
#include "uevent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Parse a copy of exactly this length, so that ASan sees a read beyond it. */
static int parse(const char *text, size_t length, unsigned *block)
{
	char *copy = malloc(length ? length : 1);
	struct fm_uevent e;
	int err;

	if (!copy)
		return -ENOMEM;
	memcpy(copy, text, length);
	err = fm_uevent_parse(copy, length, &e);
	if (err == 0)
		err = fm_uevent_memory_block(&e, block);
	free(copy);
	return err;
}
#define PARSE(text) parse((text), sizeof(text), &block)

#define ADD34                                                                                                              \
	"add@/devices/system/memory/memory34\0ACTION=add\0DEVPATH=/devices/system/memory/memory34\0SUBSYSTEM=memory\0SEQNUM=1"

int main(void)
{
	static const char add[] = ADD34;
	struct fm_uevent e;
	unsigned block = 0;
	bool all = true;

	ok(fm_uevent_parse(add, sizeof add, &e) == 0 && !strcmp(e.action, "add") && !strcmp(e.subsystem, "memory") &&
		   !strcmp(e.devpath, "/devices/system/memory/memory34"),
	   "an event");
	ok(PARSE(ADD34) == 0 && block == 34, "of block 34");
	ok(PARSE("add@/devices/system/memory/memory7\0SUBSYSTEM=memory\0DEVPATH=/devices/system/memory/memory7\0ACTION=add") == 0 &&
		   block == 7,
	   "in another order");
	ok(PARSE("add@/d/x/memory1\0ACTION=add\0DEVPATH=/d/x/memory1\0SUBSYSTEM=block") == -ENOENT, "another subsystem");
	ok(PARSE("add@/d/system/memory\0ACTION=add\0DEVPATH=/d/system/memory\0SUBSYSTEM=memory") == -ENOENT, "the bus itself");
	ok(PARSE("add@/d/memory12x\0ACTION=add\0DEVPATH=/d/memory12x\0SUBSYSTEM=memory") == -ENOENT, "no block's name");
	ok(PARSE("add@/d/memory99999999999\0ACTION=add\0DEVPATH=/d/memory99999999999\0SUBSYSTEM=memory") == -ENOENT,
	   "a block number out of range");
	ok(PARSE("add@/d/memory1\0ACTION=add\0DEVPATH=/d/memory2\0SUBSYSTEM=memory") == -EINVAL, "head and DEVPATH differ");
	ok(PARSE("add@/d/memory1\0ACTION=add\0SUBSYSTEM=memory") == -EINVAL, "no DEVPATH");
	ok(PARSE("add@/d/memory1\0DEVPATH=/d/memory1\0SUBSYSTEM=memory") == -EINVAL, "no ACTION");
	ok(PARSE("add@/d/memory1\0ACTION=add\0DEVPATH=/d/memory1") == -EINVAL, "no SUBSYSTEM");
	ok(PARSE("libudev\0\xfe\xed\xca\xfe") == -EINVAL, "a udev daemon's message");
	ok(PARSE("@/d/memory1\0ACTION=add\0DEVPATH=/d/memory1\0SUBSYSTEM=memory") == -EINVAL, "no action before the @");
	ok(PARSE("add@d/memory1\0ACTION=add\0DEVPATH=d/memory1\0SUBSYSTEM=memory") == -EINVAL, "a relative path");
	ok(PARSE("\0\0\0\0") == -EINVAL, "nothing but NULs");
	ok(parse("", 0, &block) == -EINVAL, "an empty message");
	/* The last string is not needed: cut right before it, the event is whole. */
	for (size_t n = 0; n < sizeof add; n++)
		if (parse(add, n, &block) != (n == sizeof add - sizeof "SEQNUM=1" ? 0 : -EINVAL))
			all = false;
	ok(all, "cut short it is refused");
	return tap_done();
}
