/* Connections to memcached: against servers in a thread that answer in pieces, wrongly, too much, late or never. */
#include "mcconn.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "tap.h"

#define MS 1000000ull

static const char greeting[] = "STAT pid 1234\r\nSTAT uptime 100\r\nSTAT time 5000\r\nSTAT version 1.6.18\r\nSTAT bytes 77\r\n"
			       "STAT curr_items 9\r\nSTAT limit_maxbytes 67108864\r\nSTAT evictions 0\r\nEND\r\n"
			       "STAT evictions off\r\nSTAT item_size_max 1048576\r\nEND\r\n";

static char dir[] = "/tmp/fm-mcconn.XXXXXX";

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void nap_ms(unsigned ms)
{
	struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&t, NULL);
}

/* --- the servers */

/* One server: accepts connections one after the other and lets talk() have each, until stopped. */
struct server {
	char path[64];
	int listen_fd;
	void (*talk)(struct server *, int fd);
	const char *text;   /* for talk() */
	size_t text_len;
	atomic_bool stop;
	atomic_uint accepted;
	pthread_t thread;
};

/* Read until so many bytes came, or the peer hung up, or the test is over. */
static bool take(struct server *s, int fd, size_t n)
{
	char buf[65536];

	while (n) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		ssize_t k;

		if (atomic_load(&s->stop))
			return false;
		if (poll(&p, 1, 10) <= 0)
			continue;
		k = read(fd, buf, n < sizeof buf ? n : sizeof buf);
		if (k <= 0)
			return false;
		n -= (size_t)k;
	}
	return true;
}

static bool say(struct server *s, int fd, const char *text, size_t len)
{
	while (len) {
		struct pollfd p = {.fd = fd, .events = POLLOUT};
		ssize_t k;

		if (atomic_load(&s->stop))
			return false;
		if (poll(&p, 1, 10) <= 0)
			continue;
		k = send(fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (k < 0 && errno == EAGAIN)
			continue;
		if (k <= 0)
			return false;
		text += k;
		len -= (size_t)k;
	}
	return true;
}

static bool greet(struct server *s, int fd)
{
	return take(s, fd, strlen("stats\r\nstats settings\r\n")) && say(s, fd, greeting, sizeof greeting - 1);
}

/* Greets; answers each request byte-for-byte by text as soon as anything comes. */
static void talk_text(struct server *s, int fd)
{
	if (!greet(s, fd))
		return;
	while (take(s, fd, 1) && say(s, fd, s->text, s->text_len))
		if (!take(s, fd, 6)) /* requests of the tests are "get k\r\n" */
			return;
}

/* The same, one byte at a time, greeting and all. */
static void talk_bytes(struct server *s, int fd)
{
	if (!take(s, fd, 23))
		return;
	for (size_t i = 0; i < sizeof greeting - 1; i++)
		if (!say(s, fd, greeting + i, 1))
			return;
	while (take(s, fd, 7))
		for (size_t i = 0; i < s->text_len; i++)
			if (!say(s, fd, s->text + i, 1))
				return;
}

/* Greets, answers by the text, and hangs up. */
static void talk_once(struct server *s, int fd)
{
	if (greet(s, fd) && take(s, fd, 7))
		say(s, fd, s->text, s->text_len);
}

/* Greets and says no more. */
static void talk_hang(struct server *s, int fd)
{
	if (greet(s, fd))
		take(s, fd, SIZE_MAX);
}

/* Accepts, and that is all. */
static void talk_mute(struct server *s, int fd)
{
	take(s, fd, SIZE_MAX);
}

/* Says its text at once, for a greeting. */
static void talk_at_once(struct server *s, int fd)
{
	if (say(s, fd, s->text, s->text_len))
		take(s, fd, SIZE_MAX);
}

/* For 3 s the text again and again, for a greeting (or, when it is of values, for an answer). */
static void talk_flood(struct server *s, int fd)
{
	uint64_t end = now_ns() + 3000 * MS;

	if (*s->text == 'V' && !greet(s, fd))
		return;
	while (now_ns() < end && say(s, fd, s->text, s->text_len))
		;
}

/* Greets, then a byte of the text every 2 ms. */
static void talk_drip(struct server *s, int fd)
{
	if (!greet(s, fd) || !take(s, fd, 7))
		return;
	for (size_t i = 0; i < s->text_len && say(s, fd, s->text + i, 1); i++)
		nap_ms(2);
	take(s, fd, SIZE_MAX);
}

/* Greets, reads nothing for 150 ms, then stores what comes (text_len bytes in all) and answers STORED text[0] times. */
static void talk_slow_reader(struct server *s, int fd)
{
	if (!greet(s, fd))
		return;
	nap_ms(150);
	if (!take(s, fd, s->text_len))
		return;
	for (int i = 0; i < s->text[0]; i++)
		if (!say(s, fd, "STORED\r\n", 8))
			return;
	take(s, fd, SIZE_MAX);
}

static void *serve(void *arg)
{
	struct server *s = arg;

	while (!atomic_load(&s->stop)) {
		struct pollfd p = {.fd = s->listen_fd, .events = POLLIN};
		int fd;

		if (poll(&p, 1, 10) <= 0)
			continue;
		fd = accept(s->listen_fd, NULL, NULL);
		if (fd < 0)
			continue;
		atomic_fetch_add(&s->accepted, 1);
		s->talk(s, fd);
		close(fd);
	}
	return NULL;
}

static void start(struct server *s, const char *name, void (*talk)(struct server *, int), const char *text, size_t len)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};

	memset(s, 0, sizeof *s);
	snprintf(s->path, sizeof s->path, "%s/%s", dir, name);
	strcpy(un.sun_path, s->path);
	s->talk = talk;
	s->text = text;
	s->text_len = len;
	s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s->listen_fd < 0 || bind(s->listen_fd, (struct sockaddr *)&un, sizeof un) || listen(s->listen_fd, 8) ||
	    pthread_create(&s->thread, NULL, serve, s)) {
		perror(s->path);
		exit(1);
	}
}

static void stop(struct server *s)
{
	atomic_store(&s->stop, true);
	pthread_join(s->thread, NULL);
	close(s->listen_fd);
	unlink(s->path);
}

/* --- the client's side */

struct seen {
	enum fm_mc_reply reply[512];
	unsigned n, idles, greeted;
	size_t bytes;
	uint64_t last_idle_ns, longest_ns; /* between two idles */
	int refuse;
};

static void handler(void *arg, struct fm_mc_conn *c, enum fm_mc_reply reply, const struct fm_mc_item *item)
{
	struct seen *s = arg;

	(void)c;
	if (s->n < 512)
		s->reply[s->n] = reply;
	s->n++;
	s->bytes += item->data_len;
}

static int greeter(void *arg, struct fm_mc_conn *c)
{
	struct seen *s = arg;

	(void)c;
	s->greeted++;
	return s->refuse;
}

static void idle(void *arg)
{
	struct seen *s = arg;
	uint64_t now = now_ns();

	if (s->idles++ && now - s->last_idle_ns > s->longest_ns)
		s->longest_ns = now - s->last_idle_ns;
	s->last_idle_ns = now;
}

/* Run the batch of these connections. Returns how long it took, ms. */
static unsigned run(struct fm_mc_conn **conns, unsigned n, unsigned timeout_ms, struct seen *s)
{
	struct fm_mc_run r = {.conns = conns,
			      .n = n,
			      .timeout_ns = timeout_ms * MS,
			      .handler = handler,
			      .greeter = greeter,
			      .idle = idle,
			      .arg = s,
			      .idle_arg = s};
	uint64_t t0 = now_ns();

	fm_mc_run(&r);
	return (unsigned)((now_ns() - t0) / MS);
}

/* One "get k" on one connection. */
static unsigned get(struct fm_mc_conn *c, unsigned timeout_ms, struct seen *s)
{
	memset(s, 0, sizeof *s);
	fm_mc_begin(c);
	fm_mc_add(c, "get k\r\n", 7, 1);
	return run(&c, 1, timeout_ms, s);
}

static void open_conn(struct fm_mc_conn *c, struct fm_mc_address *a, const char *text)
{
	char why[256] = "";

	if (fm_mc_address(text, strlen(text), a, why)) {
		printf("# %s\n", why);
		exit(1);
	}
	fm_mc_init(c, a);
}

/* --- tests */

static void test_addresses(void)
{
	static const char *const bad[] = {"", "host", "host:", ":1", "host:0", "host:65536", "host:x", "host:1x"};
	struct fm_mc_address a;
	char why[256], path[120];

	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		*why = '\0';
		ok(fm_mc_address(bad[i], strlen(bad[i]), &a, why) == -EINVAL && *why && !strchr(why, '\n'), "address \"%s\": refused", bad[i]);
	}
	is_u64(fm_mc_address("127.0.0.1:77", 12, &a, why), 0, "v4");
	ok(a.sa.ss_family == AF_INET && strcmp(a.text, "127.0.0.1:77") == 0, "... is one");
	is_u64(fm_mc_address("[::1]:77", 8, &a, why), 0, "v6");
	ok(a.sa.ss_family == AF_INET6, "... is one");
	memset(path, 'x', sizeof path);
	*path = '/';
	ok(fm_mc_address(path, 107, &a, why) == 0 && a.sa.ss_family == AF_UNIX, "a path of 107 bytes");
	is_u64(fm_mc_address(path, 108, &a, why), -EINVAL, "a path of 108 bytes");
	is_u64(fm_mc_address("no-such-host.invalid:1", 22, &a, why), -EHOSTUNREACH, "a host that does not exist");
	ok(strstr(why, "no-such-host.invalid:1: cannot be resolved") == why, "... why: %s", why);
}

static const char value[] = "VALUE k 0 5\r\nab\r\nc\r\nEND\r\n";

static void test_good(void)
{
	struct fm_mc_address a;
	struct fm_mc_conn c;
	struct server s;
	struct seen seen;

	start(&s, "good", talk_text, value, sizeof value - 1);
	open_conn(&c, &a, s.path);
	for (unsigned i = 0; i < 3; i++) {
		get(&c, 2000, &seen);
		ok(!c.error && seen.n == 2 && seen.reply[0] == FM_MC_VALUE && seen.reply[1] == FM_MC_END && seen.bytes == 5, "get %u", i);
		is_u64(seen.greeted, i == 0, "... greeted when new");
	}
	ok(c.hello.pid == 1234 && c.hello.start_s == 4900 && c.hello.version == 10618 && c.hello.used_bytes == 77 &&
	       c.hello.items == 9 && c.hello.limit_bytes == 67108864 && c.hello.item_max_bytes == 1048576 && !c.hello.evicts,
	   "the server's words about itself");
	fm_mc_begin(&c);
	ok(run((struct fm_mc_conn *[]){&c}, 1, 1000, &seen) < 500 && !c.error, "a batch of nothing ends at once");
	is_u64(atomic_load(&s.accepted), 1, "all over one connection");
	fm_mc_fini(&c);
	stop(&s);

	start(&s, "bytes", talk_bytes, value, sizeof value - 1);
	open_conn(&c, &a, s.path);
	for (unsigned i = 0; i < 2; i++) {
		get(&c, 2000, &seen);
		ok(!c.error && seen.n == 2 && seen.reply[0] == FM_MC_VALUE && seen.bytes == 5, "byte by byte: get %u", i);
	}
	fm_mc_fini(&c);
	stop(&s);
}

static void test_refusal(void)
{
	struct fm_mc_address a;
	struct fm_mc_conn c;
	struct server s;
	struct seen seen = {.refuse = -EPERM};
	struct fm_mc_conn *conns[] = {&c};

	start(&s, "refusal", talk_text, value, sizeof value - 1);
	open_conn(&c, &a, s.path);
	fm_mc_begin(&c);
	fm_mc_add(&c, "get k\r\n", 7, 1);
	run(conns, 1, 2000, &seen);
	ok(c.error == -EPERM && seen.greeted == 1 && seen.n == 0 && c.fd < 0, "the greeter refuses: nothing was asked");
	fm_mc_fini(&c);
	stop(&s);
}

/* Answers after which the connection must be given up: the error, and how many replies reached the handler. */
static void test_wrong_answers(void)
{
	static const struct {
		const char *what, *text;
		int error;
		unsigned replies;
	} t[] = {
	    {"garbage", "HTTP/1.1 200 OK\r\n\r\n", -EPROTO, 0},
	    {"garbage behind a value", "VALUE k 0 1\r\nx\r\nwhat?\r\n", -EPROTO, 1},
	    {"a value without its end", "VALUE k 0 1\r\nxyz\r\n", -EPROTO, 0},
	    {"a value too long", "VALUE k 0 9000\r\n", -EPROTO, 0},
	    {"a reply nobody asked for", "END\r\nSTORED\r\n", -EPROTO, 1},
	    {"a hang-up inside a value", "VALUE k 0 100\r\nabc", -ECONNRESET, 0},
	    {"a hang-up inside a line", "VALU", -ECONNRESET, 0},
	    {"a hang-up between value and END", "VALUE k 0 1\r\nx\r\n", -ECONNRESET, 1},
	    {"a hang-up for an answer", "", -ECONNRESET, 0},
	};
	static char line[2000];
	struct fm_mc_address a;
	struct fm_mc_conn c;
	struct server s;
	struct seen seen;

	for (unsigned i = 0; i < sizeof t / sizeof *t; i++) {
		start(&s, "wrong", talk_once, t[i].text, strlen(t[i].text));
		open_conn(&c, &a, s.path);
		get(&c, 2000, &seen);
		/* What nobody asked for may be read with the answer, or be found by the next batch. */
		if (!c.error && strstr(t[i].what, "nobody")) {
			nap_ms(20);
			get(&c, 2000, &seen);
		}
		if (!ok(c.error == t[i].error && c.fd < 0 && seen.n <= t[i].replies + 1 && c.state == FM_MC_CLOSED, "%s", t[i].what))
			printf("#   error %d, %u replies\n", c.error, seen.n);
		ok(!fm_mc_usable(&c), "... and it rests for a moment");
		fm_mc_fini(&c);
		stop(&s);
	}
	memset(line, 'x', sizeof line);
	start(&s, "line", talk_at_once, line, sizeof line);
	open_conn(&c, &a, s.path);
	get(&c, 2000, &seen);
	ok(c.error == -EPROTO && !seen.greeted && !seen.n, "a line without end for a greeting");
	fm_mc_fini(&c);
	stop(&s);
	start(&s, "stored", talk_at_once, "STORED\r\n", 8);
	open_conn(&c, &a, s.path);
	get(&c, 2000, &seen);
	ok(c.error == -EPROTO && !seen.greeted && !seen.n, "STORED for a greeting");
	fm_mc_fini(&c);
	stop(&s);
}

static void test_timeouts(void)
{
	struct fm_mc_address a, b;
	struct fm_mc_conn c, d, *both[] = {&c, &d};
	struct server s, good;
	struct seen seen;
	unsigned ms;

	start(&s, "hang", talk_hang, NULL, 0);
	open_conn(&c, &a, s.path);
	ms = get(&c, 300, &seen);
	ok(c.error == -ETIMEDOUT && ms >= 300 && seen.n == 0, "a server that hangs: timed out after %u ms", ms);
	/* 60 slices of 5 ms; others use the CPU too. */
	ok(seen.idles >= 15, "... idle was called %u times meanwhile, at most %u ms apart", seen.idles, (unsigned)(seen.longest_ns / MS));
	ok(c.fd < 0, "... the connection is closed: late answers reach nobody");

	start(&good, "good2", talk_text, value, sizeof value - 1);
	open_conn(&d, &b, good.path);
	memset(&seen, 0, sizeof seen);
	for (unsigned i = 0; i < 2; i++) {
		fm_mc_begin(both[i]);
		fm_mc_add(both[i], "get k\r\n", 7, 1);
	}
	run(both, 2, 300, &seen);
	ok(c.error == -ETIMEDOUT && !d.error && d.settled == 1 && seen.n == 2, "beside a server that works: that one's answers are here");
	fm_mc_fini(&c);
	fm_mc_fini(&d);
	stop(&s);
	stop(&good);

	start(&s, "mute", talk_mute, NULL, 0);
	open_conn(&c, &a, s.path);
	ms = get(&c, 200, &seen);
	ok(c.error == -ETIMEDOUT && ms >= 200 && !seen.greeted, "a server that never greets: timed out after %u ms", ms);
	fm_mc_fini(&c);
	stop(&s);
}

static void test_idle_while_busy(void)
{
	static char text[4096];
	struct fm_mc_address a;
	struct fm_mc_conn c;
	struct server s;
	struct seen seen;
	unsigned ms;
	int n = sprintf(text, "VALUE k 0 150\r\n%150s\r\nEND\r\n", "x");

	start(&s, "drip", talk_drip, text, (size_t)n);
	open_conn(&c, &a, s.path);
	ms = get(&c, 2000, &seen);
	ok(!c.error && seen.n == 2 && seen.bytes == 150, "a byte every 2 ms: the value comes, after %u ms", ms);
	ok(ms >= 300 && seen.idles >= 20, "... idle was called %u times, at most %u ms apart", seen.idles,
	   (unsigned)(seen.longest_ns / MS));
	fm_mc_fini(&c);
	fm_mc_init(&c, &a);
	get(&c, 50, &seen);
	is_u64((uint64_t)-c.error, ETIMEDOUT, "... but not for longer than four time-outs");
	fm_mc_fini(&c);
	stop(&s);
}

/* Whatever a server sends without end, its batch has one: other replicas can answer. */
static void test_floods(void)
{
	static const struct {
		const char *what, *piece;
	} t[] = {{"a greeting", "STAT x y\r\n"}, {"values", "VALUE k 0 1\r\nx\r\n"}};
	static char text[65536];

	for (unsigned i = 0; i < 2; i++) {
		struct fm_mc_address a;
		struct fm_mc_conn c;
		struct server s;
		struct seen seen;
		size_t len = 0;
		unsigned ms;

		while (len + strlen(t[i].piece) < sizeof text) {
			strcpy(text + len, t[i].piece);
			len += strlen(t[i].piece);
		}
		start(&s, "flood", talk_flood, text, len);
		open_conn(&c, &a, s.path);
		ms = get(&c, 200, &seen);
		ok(c.error && ms < 2500, "%s without end: given up after %u ms", t[i].what, ms);
		fm_mc_fini(&c);
		stop(&s);
	}
}

static void test_large(void)
{
	static char request[4200];
	enum { N = 120 };
	const char count = N;
	struct fm_mc_address a;
	struct fm_mc_conn c, *conns[] = {&c};
	struct server s;
	struct seen seen = {0};
	size_t each = (size_t)sprintf(request, "set k 0 0 4136\r\n") + 4136 + 2;
	char *answers;
	size_t len = 0;
	unsigned ms;

	memset(request + each - 4138, 'v', 4136);
	request[each - 2] = '\r';
	request[each - 1] = '\n';
	start(&s, "slow", talk_slow_reader, &count, each * N);
	open_conn(&c, &a, s.path);
	fm_mc_begin(&c);
	for (unsigned i = 0; i < N; i++)
		fm_mc_add(&c, request, each, 1);
	ms = run(conns, 1, 2000, &seen);
	ok(!c.error && c.settled == N && seen.n == N, "120 pages to a server that reads late: all acknowledged, after %u ms", ms);
	ok(seen.idles >= 5, "... idle was called %u times", seen.idles);
	fm_mc_fini(&c);
	stop(&s);

	/* More than the receive buffer holds. */
	answers = malloc(N * 4300);
	if (!answers)
		exit(1);
	for (unsigned i = 0; i < N; i++) {
		len += (size_t)sprintf(answers + len, "VALUE key%u 0 4136\r\n", i);
		memset(answers + len, i % 2 ? '\r' : '\n', 4136);
		len += 4136;
		len += (size_t)sprintf(answers + len, "\r\n");
	}
	len += (size_t)sprintf(answers + len, "END\r\n");
	start(&s, "large", talk_text, answers, len);
	open_conn(&c, &a, s.path);
	get(&c, 2000, &seen);
	ok(!c.error && seen.n == N + 1 && seen.bytes == N * 4136, "120 values in one answer");
	fm_mc_fini(&c);
	stop(&s);
	free(answers);
}

static void test_back_off(void)
{
	struct fm_mc_address a;
	struct fm_mc_conn c;
	struct server s;
	struct seen seen;
	char path[64];
	uint64_t last = 0;
	bool grows = true;
	int error = 0;

	snprintf(path, sizeof path, "%s/nobody", dir);
	open_conn(&c, &a, path);
	get(&c, 1000, &seen);
	is_u64(c.error, -ENOENT, "no socket there");
	fm_mc_fini(&c);

	start(&s, "back", talk_text, value, sizeof value - 1);
	open_conn(&c, &a, s.path);
	get(&c, 1000, &seen);
	ok(!c.error && c.failures == 0, "a server is there");
	atomic_store(&s.stop, true);
	pthread_join(s.thread, NULL);
	close(s.listen_fd); /* the path stays, as after SIGKILL */
	get(&c, 1000, &seen);
	ok(c.error, "it goes: %s", strerror(-c.error));
	for (unsigned i = 0; i < 9; i++) {
		uint64_t t = now_ns(), rest;

		c.retry_ns = 0; /* the test does not wait */
		get(&c, 1000, &seen);
		error = c.error;
		rest = c.retry_ns - t;
		grows &= rest >= last && rest < 1500 * MS;
		if (rest < 900 * MS)
			last = rest + rest / 3;
	}
	is_u64(error, -ECONNREFUSED, "nobody listens");
	ok(grows && last > 100 * MS && c.retry_ns - now_ns() > 500 * MS, "the rest between attempts grows, to 1 s");
	ok(!fm_mc_usable(&c), "... and is kept");
	unlink(s.path);
	start(&s, "back", talk_text, value, sizeof value - 1);
	for (uint64_t end = now_ns() + 3000 * MS; !fm_mc_usable(&c) && now_ns() < end;)
		nap_ms(5);
	get(&c, 1000, &seen);
	ok(!c.error && seen.n == 2 && seen.greeted == 1, "the server is back: greeted anew, and it works");
	is_u64(c.failures, 0, "... and the failures are forgotten");
	fm_mc_fini(&c);
	stop(&s);
}

int main(void)
{
	if (!mkdtemp(dir))
		return 1;
	test_addresses();
	test_good();
	test_refusal();
	test_wrong_answers();
	test_timeouts();
	test_idle_while_busy();
	test_large();
	test_back_off();
	test_floods();
	rmdir(dir);
	return tap_done();
}
