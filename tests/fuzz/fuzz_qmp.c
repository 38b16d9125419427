/*
 * libFuzzer target for what a QMP peer says: each line as one message; then all of it as one side of a conversation in which a greeting, a
 * command, the human monitor and an event are waited for. No access outside, no leak, and always an end.
 */
#include "qmp.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse(const char *line, size_t len)
{
	char *exact = malloc(len ? len : 1);
	struct fm_qmp_message m;
	int r;

	if (!exact)
		abort();
	memcpy(exact, line, len);
	r = fm_qmp_parse(exact, len, &m);
	if (r != 0 && r != -EPROTO)
		abort();
	if (r == 0) {
		if (!m.json || m.kind < FM_QMP_GREETING || m.kind > FM_QMP_EVENT ||
		    ((m.kind == FM_QMP_ERROR || m.kind == FM_QMP_EVENT) && !m.name))
			abort();
		json_decref(m.json);
	}
	free(exact);
}

static void converse(const uint8_t *data, size_t size)
{
	static const char *const events[] = {"DEVICE_DELETED", "MEM_UNPLUG_ERROR", NULL};
	static const char hello[] = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n{\"return\": {}, \"id\": 1}\n";
	const char *name;
	json_t *result = NULL;
	struct fm_qmp *q;
	char *text = NULL;
	int s[2];
	char why[FM_QMP_WHY];

	if (size > 60000 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) < 0)
		return;
	/* Every other one is greeted as it should be, and gets further. */
	if ((size && data[0] & 1 && write(s[1], hello, sizeof hello - 1) < 0) || write(s[1], data, size) < 0)
		abort();
	shutdown(s[1], SHUT_WR); /* what it waits for never comes: the end does */
	if (fm_qmp_open_fd(s[0], 1000, &q, why) == 0) {
		if (fm_qmp_call(q, "query-status", NULL, &result, 1000) == 0)
			json_decref(result);
		if (fm_qmp_human(q, "info mtree -f", &text, 1000) == 0)
			free(text);
		fm_qmp_wait_event(q, events, "device", "dimm0", &name, NULL, 1000);
		if (strlen(fm_qmp_why(q)) >= FM_QMP_WHY)
			abort();
		fm_qmp_close(q);
	}
	close(s[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *at = (const char *)data, *end = at + size, *eol;

	for (; at < end; at = eol + 1) {
		eol = memchr(at, '\n', (size_t)(end - at));
		if (!eol)
			eol = end;
		parse(at, (size_t)(eol - at));
	}
	converse(data, size);
	return 0;
}
