#include "qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct fm_qmp {
	int fd;
	int64_t next_id;
	char *buf;        /* bytes received and not consumed */
	size_t len, cap;
	json_t *events[FM_QMP_EVENTS]; /* whole messages, oldest first */
	unsigned nevents;
	char why[FM_QMP_WHY];
	char error_class[64];
};

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

__attribute__((format(printf, 3, 4))) static int fail(struct fm_qmp *q, int error, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(q->why, sizeof q->why, fmt, ap);
	va_end(ap);
	return error;
}

/* --- messages --- */

int fm_qmp_parse(const char *buf, size_t len, struct fm_qmp_message *m)
{
	json_t *e, *id;

	memset(m, 0, sizeof *m);
	m->id = -1;
	m->json = json_loadb(buf, len, 0, NULL);
	if (!json_is_object(m->json))
		goto bad;
	id = json_object_get(m->json, "id");
	if (json_is_integer(id))
		m->id = json_integer_value(id);
	if (json_is_object(json_object_get(m->json, "QMP"))) {
		m->kind = FM_QMP_GREETING;
	} else if ((m->body = json_object_get(m->json, "return"))) {
		m->kind = FM_QMP_RETURN;
	} else if ((e = json_object_get(m->json, "error"))) {
		m->kind = FM_QMP_ERROR;
		m->name = json_string_value(json_object_get(e, "class"));
		m->desc = json_string_value(json_object_get(e, "desc"));
		if (!m->name || !m->desc)
			goto bad;
	} else {
		m->kind = FM_QMP_EVENT;
		m->name = json_string_value(json_object_get(m->json, "event"));
		m->body = json_object_get(m->json, "data");
		if (!m->name)
			goto bad;
	}
	return 0;
bad:
	json_decref(m->json);
	m->json = NULL;
	return -EPROTO;
}

static int wait_for(struct fm_qmp *q, short what, int64_t deadline)
{
	struct pollfd p = {.fd = q->fd, .events = what};

	for (;;) {
		int64_t left = deadline - now_ms();
		int r = poll(&p, 1, left > 0 ? (int)(left < 3600000 ? left : 3600000) : 0);

		if (r > 0)
			return 0;
		if (r < 0 && errno != EINTR)
			return -errno;
		if (r == 0 && left <= 0)
			return -ETIMEDOUT;
	}
}

static int send_all(struct fm_qmp *q, const char *p, size_t len, int64_t deadline)
{
	while (len) {
		ssize_t n = send(q->fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r;

		if (n >= 0) {
			p += n;
			len -= (size_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return fail(q, -errno, "send to QEMU: %s", strerror(errno));
		r = wait_for(q, POLLOUT, deadline);
		if (r)
			return fail(q, r, "send to QEMU: %s", strerror(-r));
	}
	return 0;
}

static int receive_more(struct fm_qmp *q, int64_t deadline)
{
	ssize_t n;
	int r;

	if (q->len == q->cap) {
		char *more;

		if (q->cap >= FM_QMP_MAX)
			return fail(q, -EMSGSIZE, "a message of more than %u bytes", FM_QMP_MAX);
		more = realloc(q->buf, q->cap ? q->cap * 2 : 4096);
		if (!more)
			return fail(q, -ENOMEM, "out of memory");
		q->buf = more;
		q->cap = q->cap ? q->cap * 2 : 4096;
	}
	do {
		r = wait_for(q, POLLIN, deadline);
		if (r)
			return fail(q, r, "no answer in time");
		n = recv(q->fd, q->buf + q->len, q->cap - q->len, MSG_DONTWAIT);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN));
	if (n < 0)
		return fail(q, errno == ECONNRESET ? -EPIPE : -errno, "receive from QEMU: %s", strerror(errno));
	if (n == 0)
		return fail(q, -EPIPE, "QEMU closed the connection");
	q->len += (size_t)n;
	return 0;
}

/* The next message of any kind. */
static int next_message(struct fm_qmp *q, struct fm_qmp_message *m, int64_t deadline)
{
	size_t seen = 0;
	char *eol;
	int r;

	while (!(eol = q->len > seen ? memchr(q->buf + seen, '\n', q->len - seen) : NULL)) {
		seen = q->len;
		r = receive_more(q, deadline);
		if (r)
			return r;
	}
	r = fm_qmp_parse(q->buf, (size_t)(eol - q->buf), m);
	if (r)
		fail(q, r, "not a message of QMP: '%.*s'", (int)(eol - q->buf < 40 ? eol - q->buf : 40), q->buf);
	q->len -= (size_t)(eol + 1 - q->buf);
	memmove(q->buf, eol + 1, q->len);
	return r;
}

static void keep_event(struct fm_qmp *q, json_t *json)
{
	if (q->nevents == FM_QMP_EVENTS) {
		json_decref(q->events[0]);
		q->nevents--;
		memmove(q->events, q->events + 1, q->nevents * sizeof *q->events);
	}
	q->events[q->nevents++] = json;
}

/* --- commands --- */

static int send_command(struct fm_qmp *q, const char *command, json_t *args, int64_t id, int64_t deadline)
{
	json_t *o = json_pack("{s:s, s:I}", "execute", command, "id", (json_int_t)id);
	char *text;
	int r;

	if (!o || (args && json_object_set_new(o, "arguments", args))) {
		if (!o)
			json_decref(args);
		json_decref(o);
		return fail(q, -ENOMEM, "out of memory");
	}
	text = json_dumps(o, JSON_COMPACT);
	json_decref(o);
	if (!text)
		return fail(q, -ENOMEM, "out of memory");
	r = send_all(q, text, strlen(text), deadline);
	if (!r)
		r = send_all(q, "\n", 1, deadline);
	free(text);
	return r;
}

int fm_qmp_call(struct fm_qmp *q, const char *command, json_t *args, json_t **result, unsigned timeout_ms)
{
	int64_t deadline = now_ms() + timeout_ms, id = ++q->next_id;
	struct fm_qmp_message m;
	int r;

	q->why[0] = q->error_class[0] = '\0';
	r = send_command(q, command, args, id, deadline);
	while (!r) {
		r = next_message(q, &m, deadline);
		if (r)
			break;
		if (m.kind == FM_QMP_EVENT) {
			keep_event(q, m.json);
			continue;
		}
		if (m.kind == FM_QMP_RETURN && m.id == id) {
			if (result)
				*result = json_incref(m.body);
			json_decref(m.json);
			return 0;
		}
		/* A request that QEMU cannot parse is refused without its id. */
		if (m.kind == FM_QMP_ERROR && (m.id == id || m.id == -1)) {
			snprintf(q->error_class, sizeof q->error_class, "%s", m.name);
			r = fail(q, -EREMOTEIO, "%s", m.desc);
		} else if (m.kind == FM_QMP_GREETING || m.id > id || m.id == -1) {
			r = fail(q, -EPROTO, "an answer to no question");
		}
		json_decref(m.json);
	}
	return r;
}

int fm_qmp_human(struct fm_qmp *q, const char *line, char **text, unsigned timeout_ms)
{
	json_t *result = NULL;
	const char *s;
	int r = fm_qmp_call(q, "human-monitor-command", json_pack("{s:s}", "command-line", line), &result, timeout_ms);

	if (r)
		return r;
	s = json_string_value(result);
	*text = s ? strdup(s) : NULL;
	if (!*text)
		r = s ? fail(q, -ENOMEM, "out of memory") : fail(q, -EPROTO, "human-monitor-command: no text");
	json_decref(result);
	return r;
}

/* Which of names is this event, if it fits; else NULL. */
static const char *event_fits(const json_t *json, const char *const *names, const char *key, const char *value)
{
	const char *name = json_string_value(json_object_get(json, "event")), *v;
	const json_t *data = json_object_get(json, "data");

	if (key && value) {
		v = json_string_value(json_object_get(data, key));
		if (!v) /* ACPI_DEVICE_OST has it one level down */
			v = json_string_value(json_object_get(json_object_get(data, "info"), key));
		if (!v || strcmp(v, value))
			return NULL;
	}
	for (; *names; names++)
		if (!strcmp(name, *names))
			return *names;
	return NULL;
}

int fm_qmp_wait_event(struct fm_qmp *q, const char *const *names, const char *key, const char *value, const char **name,
		      json_t **data, unsigned timeout_ms)
{
	int64_t deadline = now_ms() + timeout_ms;
	struct fm_qmp_message m;
	int r;

	for (;;) {
		for (unsigned i = 0; i < q->nevents; i++) {
			*name = event_fits(q->events[i], names, key, value);
			if (!*name)
				continue;
			if (data)
				*data = json_incref(json_object_get(q->events[i], "data"));
			json_decref(q->events[i]);
			memmove(q->events + i, q->events + i + 1, sizeof *q->events * (--q->nevents - i));
			return 0;
		}
		r = next_message(q, &m, deadline);
		if (r)
			return r;
		if (m.kind == FM_QMP_EVENT)
			keep_event(q, m.json);
		else
			json_decref(m.json); /* an answer that came after its deadline */
	}
}

/* --- connection --- */

static int greet(struct fm_qmp *q, unsigned timeout_ms)
{
	struct fm_qmp_message m;
	int r = next_message(q, &m, now_ms() + timeout_ms);

	if (r == -ETIMEDOUT)
		return fail(q, r, "%s",
			    q->len ? "half a greeting: not a QMP socket"
				   : "no greeting: QEMU serves one QMP client at a time, and another one holds this socket; "
				     "end it, or give the VM a second -qmp socket");
	if (r == -EPROTO || r == -EMSGSIZE)
		return fail(q, -EPROTO, "not a QMP socket: the greeting is something else");
	if (r)
		return r;
	json_decref(m.json);
	if (m.kind != FM_QMP_GREETING)
		return fail(q, -EPROTO, "not a QMP socket: the greeting is something else");
	return fm_qmp_call(q, "qmp_capabilities", NULL, NULL, timeout_ms);
}

int fm_qmp_open_fd(int fd, unsigned timeout_ms, struct fm_qmp **out, char *why)
{
	struct fm_qmp *q = calloc(1, sizeof *q);
	int r;

	*out = NULL;
	if (!q) {
		close(fd);
		snprintf(why, FM_QMP_WHY, "out of memory");
		return -ENOMEM;
	}
	q->fd = fd;
	r = greet(q, timeout_ms);
	if (r) {
		memcpy(why, q->why, FM_QMP_WHY);
		fm_qmp_close(q);
		return r;
	}
	*out = q;
	return 0;
}

/* EAGAIN: its queue of connections is full, since QEMU accepts none while it has a client. */
static int connect_until(int fd, const struct sockaddr_un *sa, int64_t deadline)
{
	static const struct timespec pause = {.tv_nsec = 20000000};

	while (connect(fd, (const struct sockaddr *)sa, sizeof *sa) < 0) {
		if (errno == EAGAIN && now_ms() >= deadline)
			return -ETIMEDOUT;
		if (errno == EAGAIN)
			nanosleep(&pause, NULL);
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

int fm_qmp_connect(const char *path, unsigned timeout_ms, int *out, char *why)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct stat st;
	int fd, r;

	*out = -1;
	if (strlen(path) >= sizeof sa.sun_path) {
		snprintf(why, FM_QMP_WHY, "a socket's path has at most %zu bytes", sizeof sa.sun_path - 1);
		return -ENAMETOOLONG;
	}
	strcpy(sa.sun_path, path);
	if (stat(path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
		snprintf(why, FM_QMP_WHY, "not a socket");
		return -ENOTSOCK;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	r = fd < 0 ? -errno : connect_until(fd, &sa, now_ms() + timeout_ms);
	if (r == 0) {
		*out = fd;
		return 0;
	}
	if (fd >= 0)
		close(fd);
	snprintf(why, FM_QMP_WHY, "%s",
		 r == -ECONNREFUSED ? "nobody listens on this socket: the VM is gone"
		 : r == -ETIMEDOUT  ? "cannot connect: QEMU serves one QMP client at a time, and others wait on this socket"
				    : strerror(-r));
	return r;
}

int fm_qmp_open(const char *path, unsigned timeout_ms, struct fm_qmp **q, char *why)
{
	int fd, r = fm_qmp_connect(path, timeout_ms, &fd, why);

	*q = NULL;
	return r ? r : fm_qmp_open_fd(fd, timeout_ms, q, why);
}

void fm_qmp_close(struct fm_qmp *q)
{
	if (!q)
		return;
	for (unsigned i = 0; i < q->nevents; i++)
		json_decref(q->events[i]);
	close(q->fd);
	free(q->buf);
	free(q);
}

const char *fm_qmp_why(const struct fm_qmp *q)
{
	return q->why;
}

const char *fm_qmp_error_class(const struct fm_qmp *q)
{
	return q->error_class;
}

int fm_qmp_peer(const struct fm_qmp *q)
{
	struct ucred c = {.pid = 0};
	socklen_t len = sizeof c;

	return getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &c, &len) == 0 ? c.pid : 0;
}
