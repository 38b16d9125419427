/*
 * A client of the QEMU Machine Protocol on a Unix socket (QEMU's docs/interop/qmp-spec): one JSON object a line, requests
 * matched to replies by id, events in between.
 *
 * Every wait has a deadline. Nothing here trusts the peer: messages are bounded and checked. One thread a client.
 */
#ifndef FM_QMP_H
#define FM_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FM_QMP_MAX      (4u << 20) /* bytes of one message at most; the largest known (query-qmp-schema) has 0.2 MiB */
#define FM_QMP_WHY      512        /* bytes of a message for people, with its NUL */
#define FM_QMP_EVENTS   64         /* events kept for fm_qmp_wait_event(); the oldest are dropped */
#define FM_QMP_REPLY_MS 20000      /* a deadline for ordinary commands */

/* What a message from QEMU is. */
enum fm_qmp_kind {
	FM_QMP_GREETING = 1, /* {"QMP": ...} */
	FM_QMP_RETURN,       /* {"return": ..., "id": N} */
	FM_QMP_ERROR,        /* {"error": {"class": ..., "desc": ...}, "id": N} */
	FM_QMP_EVENT,        /* {"event": NAME, "data": {...}} */
};

struct fm_qmp_message {
	enum fm_qmp_kind kind;
	int64_t id;           /* of a return or error; -1: it has none */
	json_t *json;         /* the whole message; the caller owns it */
	const char *name;     /* event's name or error's class; points into json */
	const char *desc;     /* error's text; points into json */
	json_t *body;         /* of a return or event; borrowed from json, may be NULL */
};

/*
 * Parse one message. Returns 0, or -EPROTO (no JSON object, or none of these four kinds; nothing to free). Any thread.
 */
int fm_qmp_parse(const char *buf, size_t len, struct fm_qmp_message *m);

struct fm_qmp;

/*
 * Connect to the socket at path and be greeted. why: FM_QMP_WHY bytes, set to "what: why" on failure. Returns 0 and *q, to
 * be ended by fm_qmp_close(); or
 *   -ENOENT, -ECONNREFUSED, -EACCES, -ENOTSOCK, -ENAMETOOLONG   no such socket, or nobody listens
 *   -ETIMEDOUT  connected, but not greeted: QEMU serves one client at a time, and another one holds the socket
 *   -EPROTO     greeted by something that is no QMP server
 *   -EPIPE, -ENOMEM
 */
int fm_qmp_open(const char *path, unsigned timeout_ms, struct fm_qmp **q, char *why);

/* The first half of fm_qmp_open(): connect alone. *fd: for fm_qmp_open_fd(). Returns and why as there. */
int fm_qmp_connect(const char *path, unsigned timeout_ms, int *fd, char *why);

/* As fm_qmp_open() on a connected socket, which it takes over in every case. */
int fm_qmp_open_fd(int fd, unsigned timeout_ms, struct fm_qmp **q, char *why);

/* Close the connection. q may be NULL. */
void fm_qmp_close(struct fm_qmp *q);

/*
 * Run a command. args: its arguments, or NULL; taken over in every case (a "steal", in jansson's words). result: NULL, or set
 * to what it returned, which the caller owns. Returns 0, or -EREMOTEIO (QEMU refused: fm_qmp_why() has its words,
 * fm_qmp_error_class() its class), -ETIMEDOUT, -EPIPE, -EPROTO, -EMSGSIZE, -ENOMEM. After an error other than -EREMOTEIO the connection is of no more use.
 */
int fm_qmp_call(struct fm_qmp *q, const char *command, json_t *args, json_t **result, unsigned timeout_ms);

/*
 * Run a command of the human monitor. *text: its output, to be freed by the caller. Returns as fm_qmp_call(). The human
 * monitor reports errors as text.
 */
int fm_qmp_human(struct fm_qmp *q, const char *line, char **text, unsigned timeout_ms);

/*
 * Wait for an event whose data, or data.info, has string value at key (value NULL: any). names: up to a NULL. Events that came
 * since the connection began count. *name: set to which of names it was. data: NULL, or set to its data (NULL if it has none),
 * which the caller owns. Returns 0, -ETIMEDOUT, -EPIPE, -EPROTO.
 */
int fm_qmp_wait_event(struct fm_qmp *q, const char *const *names, const char *key, const char *value, const char **name,
		      json_t **data, unsigned timeout_ms);

/* The last failure in words, "" if there was none. Lives as long as q and until the next call. */
const char *fm_qmp_why(const struct fm_qmp *q);
/* Its class when QEMU refused ("GenericError", "CommandNotFound", "DeviceNotFound"), else "". */
const char *fm_qmp_error_class(const struct fm_qmp *q);

/* Process at the other end, by SO_PEERCRED; 0 when the kernel does not say. */
int fm_qmp_peer(const struct fm_qmp *q);

#endif
