/*
 * libFuzzer target for what is read of other processes: /proc/PID/{stat,status,maps,smaps,cmdline}, and QEMU's human monitor. A process chooses
 * its name, its mappings' names and its command line. No access outside, and what is accepted makes sense.
 */
#include "proc.h"
#include "qemu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void maps(const char *buf, size_t len)
{
	struct fm_mapping *list, m;
	size_t n;
	int r = fm_proc_parse_maps(buf, len, &list, &n);

	if (r != 0 && r != -EPROTO)
		abort();
	for (size_t i = 0; r == 0 && i < n; i++)
		if (list[i].start >= list[i].end || strnlen(list[i].name, FM_PROC_NAME) == FM_PROC_NAME)
			abort();
	if (r == 0)
		free(list);
	if (fm_proc_parse_mapping(buf, len, &m) == 0 && m.start >= m.end)
		abort();
}

static void qemu(const char *buf, size_t len, const char *text)
{
	struct fm_qemu_backend list[4];
	char value[64];
	uint64_t a, b;
	unsigned n = fm_qemu_backends(buf, len, list, 4);

	for (unsigned i = 0; i < n && i < 4; i++)
		if (strnlen(list[i].id, sizeof list[i].id) == sizeof list[i].id ||
		    strnlen(list[i].path, sizeof list[i].path) == sizeof list[i].path)
			abort();
	if (fm_qemu_option(buf, len, "name", "guest", value, sizeof value) && strlen(value) >= sizeof value)
		abort();
	(void)fm_qemu_option(buf, len, "uuid", NULL, value, sizeof value);
	(void)fm_qemu_find_ram(text, "ram0", &a, &b);
	(void)fm_qemu_parse_gpa2hva(text, "ram0", &a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *exact = malloc(size ? size : 1), *text = malloc(size + 1);
	struct fm_vmflags flags;
	uint64_t start;
	int r;

	if (!exact || !text)
		abort();
	memcpy(exact, data, size);
	memcpy(text, data, size);
	text[size] = '\0';
	r = fm_proc_parse_start(exact, size, &start);
	if (r != 0 && r != -EPROTO)
		abort();
	r = fm_proc_parse_owner(exact, size, 1000);
	if (r != 0 && r != -EPROTO && r != -EPERM)
		abort();
	(void)fm_proc_parse_vmflags(exact, size, 0x7f0000000000, &flags);
	maps(exact, size);
	qemu(exact, size, text);
	free(exact);
	free(text);
	return 0;
}
