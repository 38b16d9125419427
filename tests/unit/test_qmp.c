/* The QMP client against fakes on a socket pair: what QEMU says, and what it never should. */
#include "qmp.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tap.h"

#define GREETING "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": []}}\r\n"
#define CAPS_OK  "{\"return\": {}, \"id\": 1}\r\n"
#define SHORT_MS 100

static void test_parse(void)
{
	static const char *const bad[] = {"", "x", "{", "[]", "3", "{}", "{\"error\": 1}", "{\"error\": {\"class\": \"a\"}}",
					  "{\"error\": {\"class\": 1, \"desc\": 2}}", "{\"event\": 5}", "{\"QMP\": 5}",
					  "{\"QMP\": {}} trailing"};
	struct fm_qmp_message m;
	char *deep = malloc(200000);

	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
		ok(fm_qmp_parse(bad[i], strlen(bad[i]), &m) == -EPROTO && !m.json, "bad message '%s'", bad[i]);
	if (deep) {
		memset(deep, '[', 200000);
		is_u64(fm_qmp_parse(deep, 200000, &m), -EPROTO, "nested without end");
		free(deep);
	}
#define GOOD(text) (fm_qmp_parse(text, sizeof(text) - 1, &m) == 0)
	ok(GOOD(GREETING) && m.kind == FM_QMP_GREETING && m.id == -1, "greeting");
	json_decref(m.json);
	ok(GOOD("{\"return\": [1], \"id\": 7}") && m.kind == FM_QMP_RETURN && m.id == 7 && json_array_size(m.body) == 1,
	   "return");
	json_decref(m.json);
	ok(GOOD("{\"return\": {}, \"id\": \"x\"}") && m.id == -1, "return with an id that is not ours");
	json_decref(m.json);
	ok(GOOD("{\"id\": 1, \"error\": {\"class\": \"C\", \"desc\": \"D\"}}") && m.kind == FM_QMP_ERROR &&
	       !strcmp(m.name, "C") && !strcmp(m.desc, "D"),
	   "error");
	json_decref(m.json);
	ok(GOOD("{\"event\": \"STOP\", \"timestamp\": {}}") && m.kind == FM_QMP_EVENT && !strcmp(m.name, "STOP") && !m.body,
	   "event");
	json_decref(m.json);
}

/* A peer that says script, then reads whatever comes until we close (with hang_up, having closed its side). */
static int fake(const char *script, size_t len, bool hang_up, int *pid)
{
	int fd[2];

	*pid = 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd))
		return -1;
	*pid = fork();
	if (*pid == 0) {
		char buf[4096];

		close(fd[0]);
		while (len) {
			ssize_t n = write(fd[1], script, len);

			if (n < 0)
				_exit(0);
			script += n;
			len -= (size_t)n;
		}
		if (hang_up)
			shutdown(fd[1], SHUT_WR);
		while (read(fd[1], buf, sizeof buf) > 0)
			;
		_exit(0);
	}
	close(fd[1]);
	return fd[0];
}

static void end(int pid)
{
	if (pid <= 0)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void refused(const char *name, const char *script, size_t len, bool hang_up, int want, const char *words)
{
	char why[FM_QMP_WHY] = "";
	struct fm_qmp *q;
	int pid, r = fm_qmp_open_fd(fake(script, len, hang_up, &pid), want == -ETIMEDOUT ? SHORT_MS : 60000, &q, why);

	ok(r == want && !q, "%s: %d", name, r);
	ok(strstr(why, words) != NULL, "... says '%s'", why);
	end(pid);
}

static void test_greetings(void)
{
	static char noise[FM_QMP_MAX + 4096];
	char *big = malloc(FM_QMP_MAX + 4096);

	refused("silence", "", 0, false, -ETIMEDOUT, "another one holds");
	refused("half a greeting", "{\"QMP\"", 6, false, -ETIMEDOUT, "not a QMP socket");
	refused("hangs up", "", 0, true, -EPIPE, "closed");
	refused("another protocol", "220 mail ESMTP\r\n", 16, false, -EPROTO, "not a QMP socket");
	refused("an event first", "{\"event\": \"STOP\"}\n", 18, false, -EPROTO, "not a QMP socket");
	refused("zero bytes", noise, 4096, false, -ETIMEDOUT, "not a QMP socket");
	memset(big, ' ', FM_QMP_MAX + 4096);
	refused("a line without end", big, FM_QMP_MAX + 4096, false, -EPROTO, "not a QMP socket");
	refused("no answer to qmp_capabilities", GREETING, strlen(GREETING), false, -ETIMEDOUT, "in time");
	refused("garbage after the greeting", GREETING "}{\n", strlen(GREETING) + 3, false, -EPROTO, "not a message");
	free(big);
}

static void test_calls(void)
{
	static const char script[] = GREETING "{\"event\": \"STOP\"}\r\n" CAPS_OK /* 1 */
	    "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"a\"}}\r\n"
	    "{\"return\": {\"x\": 5}, \"id\": 2}\r\n"
	    "{\"id\": 3, \"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"no such \\n thing\"}}\r\n"
	    "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"b\"}}\r\n"
	    "{\"event\": \"ACPI_DEVICE_OST\", \"data\": {\"info\": {\"device\": \"d\", \"status\": 0}}}\r\n"
	    "{\"return\": \"text\", \"id\": 4}\r\n"
	    "{\"return\": {}, \"id\": 5}\r\n"
	    "{\"return\": {}, \"id\": 99}\r\n";
	static const char *const deleted[] = {"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", NULL};
	static const char *const ost[] = {"ACPI_DEVICE_OST", NULL};
	char why[FM_QMP_WHY] = "", *text;
	const char *name;
	json_t *data = NULL;
	struct fm_qmp *q;
	json_t *result;
	int pid, r = fm_qmp_open_fd(fake(script, sizeof script - 1, false, &pid), 2000, &q, why);

	if (!ok(r == 0, "greeted (%s)", why))
		return;
	ok(fm_qmp_call(q, "query-x", json_pack("{s:i}", "a", 1), &result, 2000) == 0 &&
	       json_integer_value(json_object_get(result, "x")) == 5,
	   "a result, past an event");
	json_decref(result);
	is_u64(fm_qmp_call(q, "device_del", NULL, NULL, 2000), -EREMOTEIO, "QEMU refuses");
	is_str(fm_qmp_why(q), "no such \n thing", "... its words");
	is_str(fm_qmp_error_class(q), "DeviceNotFound", "... its class");
	ok(fm_qmp_human(q, "info x", &text, 2000) == 0 && !strcmp(text, "text"), "human monitor");
	free(text);
	is_u64(fm_qmp_human(q, "info y", &text, 2000), -EPROTO, "human monitor without text");
	ok(fm_qmp_wait_event(q, deleted, "device", "b", &name, NULL, 10000) == 0 && !strcmp(name, "DEVICE_DELETED"), "event of b");
	ok(fm_qmp_wait_event(q, deleted, "device", "a", &name, NULL, 10000) == 0, "event of a, which came earlier");
	is_u64(fm_qmp_wait_event(q, deleted, "device", "a", &name, NULL, 10000), -ETIMEDOUT, "... once only");
	ok(fm_qmp_wait_event(q, ost, "device", "d", &name, &data, SHORT_MS) == 0 && json_object_get(data, "info"),
	   "event that names its device one level down, with its data");
	json_decref(data);
	fm_qmp_close(q);
	end(pid);

	r = fm_qmp_open_fd(fake(script, sizeof script - 1, true, &pid), 2000, &q, why);
	if (!ok(r == 0, "greeted by one that hangs up later"))
		return;
	for (int i = 0; i < 4; i++)
		fm_qmp_call(q, "x", NULL, NULL, 2000);
	is_u64(fm_qmp_call(q, "x", NULL, NULL, 2000), -EPROTO, "an answer to no question");
	is_u64(fm_qmp_call(q, "x", NULL, NULL, 2000), -EPIPE, "it hung up");
	fm_qmp_close(q);
	end(pid);
}

static void test_flood(void)
{
	static const char event[] = "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\n";
	size_t n = 0, cap = 300 * sizeof event + 4096;
	char *script = malloc(cap), why[FM_QMP_WHY];
	struct fm_qmp *q;
	int pid;

	n += (size_t)snprintf(script, cap, GREETING CAPS_OK);
	for (int i = 0; i < 300; i++)
		n += (size_t)snprintf(script + n, cap - n, "%s", event);
	n += (size_t)snprintf(script + n, cap - n, "{\"return\": {}, \"id\": 2}\n");
	if (ok(fm_qmp_open_fd(fake(script, n, false, &pid), 2000, &q, why) == 0, "greeted before a flood of events")) {
		is_u64(fm_qmp_call(q, "x", NULL, NULL, 2000), 0, "a reply behind 300 events");
		fm_qmp_close(q);
	}
	end(pid);
	free(script);
}

static void test_connect(void)
{
	char dir[] = "/tmp/test-qmp-XXXXXX", path[64], why[FM_QMP_WHY], longpath[200];
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct fm_qmp *q;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (!ok(mkdtemp(dir) != NULL, "a directory"))
		return;
	snprintf(path, sizeof path, "%s/s", dir);
	is_u64(fm_qmp_open(path, SHORT_MS, &q, why), -ENOENT, "no such socket");
	is_u64(fm_qmp_open(dir, SHORT_MS, &q, why), -ENOTSOCK, "a directory");
	memset(longpath, 'x', sizeof longpath - 1);
	longpath[sizeof longpath - 1] = '\0';
	is_u64(fm_qmp_open(longpath, SHORT_MS, &q, why), -ENAMETOOLONG, "a long path");
	strcpy(sa.sun_path, path);
	ok(bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0 && listen(fd, 0) == 0, "a socket that accepts nobody");
	is_u64(fm_qmp_open(path, SHORT_MS, &q, why), -ETIMEDOUT, "... no greeting");
	/* The one before may still stand in the queue, or not: not blocking, either way it is full now. */
	int first = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	ok(connect(first, (struct sockaddr *)&sa, sizeof sa) == 0 || errno == EAGAIN, "its queue is full");
	is_u64(fm_qmp_open(path, SHORT_MS, &q, why), -ETIMEDOUT, "... not even connected");
	close(first);
	close(fd);
	is_u64(fm_qmp_open(path, SHORT_MS, &q, why), -ECONNREFUSED, "nobody listens");
	unlink(path);
	rmdir(dir);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	test_parse();
	test_greetings();
	test_calls();
	test_flood();
	test_connect();
	return tap_done();
}
