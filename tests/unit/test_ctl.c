#include "ctl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tap.h"

/* Descriptors this process has open. */
static unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static void make_pair(int sv[2])
{
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		abort();
}

/* A new descriptor of a file of its own, to tell it apart by its inode. */
static int new_file(void)
{
	char name[] = "/tmp/fm-test-ctl-XXXXXX";
	int fd = mkstemp(name);

	if (fd < 0)
		abort();
	unlink(name);
	return fd;
}

static ino_t inode(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

/* len bytes and fds as a peer of ours would never send them. */
static void send_raw(int fd, const void *bytes, size_t len, const int *fds, unsigned nfds)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * 64)];
	} control;
	struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	memset(&control, 0, sizeof control);
	if (nfds) {
		m.msg_control = control.space;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		CMSG_FIRSTHDR(&m)->cmsg_level = SOL_SOCKET;
		CMSG_FIRSTHDR(&m)->cmsg_type = SCM_RIGHTS;
		CMSG_FIRSTHDR(&m)->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), fds, sizeof(int) * nfds);
	}
	if (sendmsg(fd, &m, MSG_NOSIGNAL) != (ssize_t)len)
		abort();
}

static void test_round_trips(void)
{
	char body[FM_CTL_MAX], in[FM_CTL_MAX];
	int sv[2], fds[FM_CTL_FDS], got[FM_CTL_FDS];
	unsigned type, ngot, before = open_fds();

	for (size_t i = 0; i < sizeof body; i++)
		body[i] = (char)(i * 7 + 1);
	for (unsigned t = FM_CTL_OK; t < FM_CTL_TYPES; t++) {
		make_pair(sv);
		memset(in, 0, sizeof in);
		ngot = 99;
		type = 0;
		ok(fm_ctl_send(sv[0], t, body, NULL, 0) == 0 &&
		       fm_ctl_recv(sv[1], &type, in, sizeof in, got, &ngot) == 0 && type == t && ngot == 0 &&
		       memcmp(body, in, (size_t)fm_ctl_body_length(t)) == 0,
		   "type %u arrives whole", t);
		close(sv[0]);
		close(sv[1]);
	}
	make_pair(sv);
	for (unsigned i = 0; i < FM_CTL_FDS; i++)
		fds[i] = new_file();
	ok(fm_ctl_send(sv[0], FM_CTL_REGISTER, body, fds, FM_CTL_FDS) == 0, "as many descriptors as allowed are sent");
	ok(fm_ctl_recv(sv[1], &type, in, sizeof in, got, &ngot) == 0, "and received");
	if (is_u64(ngot, FM_CTL_FDS, "all of them")) {
		bool same = true, cloexec = true;

		for (unsigned i = 0; i < ngot; i++) {
			same = same && got[i] != fds[i] && inode(got[i]) == inode(fds[i]);
			cloexec = cloexec && (fcntl(got[i], F_GETFD) & FD_CLOEXEC);
			close(got[i]);
		}
		ok(same, "in their order");
		ok(cloexec, "close-on-exec");
	}
	ok(fcntl(fds[0], F_GETFD) >= 0, "the sender keeps its own");
	is_u64(fm_ctl_send(sv[0], FM_CTL_REGISTER, body, fds, FM_CTL_FDS + 1), -EINVAL, "one more is refused");
	is_u64(fm_ctl_send(sv[0], FM_CTL_TYPES, body, NULL, 0), -EINVAL, "a type that does not exist is not sent");
	for (unsigned i = 0; i < FM_CTL_FDS; i++)
		close(fds[i]);
	/* Two messages back to back: the second one's descriptors stay with it. */
	fds[0] = new_file();
	fm_ctl_send(sv[0], FM_CTL_OK, NULL, NULL, 0);
	fm_ctl_send(sv[0], FM_CTL_OK, NULL, fds, 1);
	ok(fm_ctl_recv(sv[1], &type, in, sizeof in, got, &ngot) == 0 && ngot == 0, "first of two messages");
	if (ok(fm_ctl_recv(sv[1], &type, in, sizeof in, got, &ngot) == 0 && ngot == 1, "second has the descriptor"))
		close(got[0]);
	close(fds[0]);
	close(sv[0]);
	is_u64(fm_ctl_recv(sv[1], &type, in, sizeof in, got, &ngot), -EPIPE, "the peer closed");
	close(sv[1]);
	is_u64(open_fds(), before, "no descriptor is left open");
}

/* One bad message after the other, each with a descriptor that must not stay open here. */
static void test_refusals(void)
{
	static const struct fm_ctl_hdr right = {
	    .magic = FM_CTL_MAGIC, .version = FM_CTL_VERSION, .type = FM_CTL_HELLO, .length = 8, .nfds = 1};
	struct {
		const char *name;
		struct fm_ctl_hdr h;
		size_t send; /* bytes of header and body that are sent before the peer closes */
		unsigned nfds;
		size_t cap;
		const char *why; /* what fm_ctl_check() says to the header, NULL when it is right */
	} t[] = {
	    {"nothing wrong", right, 24, 1, FM_CTL_MAX, NULL},
	    {"wrong magic", right, 24, 1, FM_CTL_MAX, "not a message of the fm control protocol"},
	    {"later version", right, 24, 1, FM_CTL_MAX, "another version of the control protocol"},
	    {"version 0", right, 24, 1, FM_CTL_MAX, "another version of the control protocol"},
	    {"type 0", right, 24, 1, FM_CTL_MAX, "unknown message type"},
	    {"type past the last", right, 24, 1, FM_CTL_MAX, "unknown message type"},
	    {"type 65535", right, 24, 1, FM_CTL_MAX, "unknown message type"},
	    {"one byte short", right, 24, 1, FM_CTL_MAX, "wrong message length"},
	    {"one byte long", right, 24, 1, FM_CTL_MAX, "wrong message length"},
	    {"4 GiB long", right, 24, 1, FM_CTL_MAX, "wrong message length"},
	    {"another type's length", right, 24, 1, FM_CTL_MAX, "wrong message length"},
	    {"too many descriptors claimed", right, 24, 1, FM_CTL_MAX, "too many file descriptors"},
	    {"fewer descriptors than claimed", right, 24, 1, FM_CTL_MAX, NULL},
	    {"more descriptors than claimed", right, 24, 2, FM_CTL_MAX, NULL},
	    {"more descriptors than ever allowed", right, 24, 40, FM_CTL_MAX, NULL},
	    {"half a header", right, 9, 1, FM_CTL_MAX, NULL},
	    {"header without body", right, 16, 1, FM_CTL_MAX, NULL},
	    {"half a body", right, 20, 1, FM_CTL_MAX, NULL},
	    {"body larger than the receiver's room", right, 24, 1, 7, NULL},
	};
	unsigned i = 0, before = open_fds();

	i++;
	t[i++].h.magic ^= 1;
	t[i++].h.version++;
	t[i++].h.version = 0;
	t[i++].h.type = 0;
	t[i++].h.type = FM_CTL_TYPES;
	t[i++].h.type = 65535;
	t[i++].h.length = 7;
	t[i++].h.length = 9;
	t[i++].h.length = UINT32_MAX;
	t[i++].h.length = sizeof(struct fm_ctl_register);
	t[i++].h.nfds = FM_CTL_FDS + 1;
	t[i++].h.nfds = 2;

	for (i = 0; i < sizeof t / sizeof t[0]; i++) {
		int sv[2], fds[40], got[FM_CTL_FDS], r;
		char bytes[24] = {0}, in[FM_CTL_MAX];
		unsigned type, ngot = 0;

		make_pair(sv);
		for (unsigned k = 0; k < t[i].nfds; k++)
			fds[k] = new_file();
		memcpy(bytes, &t[i].h, sizeof t[i].h);
		send_raw(sv[0], bytes, t[i].send, fds, t[i].nfds);
		close(sv[0]);
		for (unsigned k = 0; k < t[i].nfds; k++)
			close(fds[k]);
		is_str(fm_ctl_check(&t[i].h), t[i].why, "%s: the header's verdict", t[i].name);
		r = fm_ctl_recv(sv[1], &type, in, t[i].cap, got, &ngot);
		if (i == 0) {
			ok(r == 0 && ngot == 1, "%s: received", t[i].name);
			close(got[0]);
		} else {
			is_u64(r, -EPROTO, "%s: refused", t[i].name);
		}
		close(sv[1]);
		is_u64(open_fds(), before, "%s: no descriptor is left open", t[i].name);
	}
}

/* A message that comes a byte at a time is a message all the same. */
static void test_dribble(void)
{
	struct fm_ctl_hdr h = {
	    .magic = FM_CTL_MAGIC, .version = FM_CTL_VERSION, .type = FM_CTL_REGISTERED, .length = 8, .nfds = 1};
	char bytes[24], in[FM_CTL_MAX];
	int sv[2], fd = new_file(), got[FM_CTL_FDS];
	unsigned type, ngot = 0;
	uint64_t id = 0x0123456789abcdefull, back = 0;
	pid_t pid;

	memcpy(bytes, &h, sizeof h);
	memcpy(bytes + sizeof h, &id, sizeof id);
	make_pair(sv);
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		send_raw(sv[0], bytes, 1, &fd, 1);
		for (size_t i = 1; i < sizeof bytes; i++)
			send_raw(sv[0], bytes + i, 1, NULL, 0);
		_exit(0);
	}
	ok(fm_ctl_recv(sv[1], &type, in, sizeof in, got, &ngot) == 0 && ngot == 1, "byte by byte, with a descriptor");
	memcpy(&back, in, sizeof back);
	is_u64(back, id, "and the right body");
	if (ngot)
		close(got[0]);
	waitpid(pid, NULL, 0);
	close(fd);
	close(sv[0]);
	close(sv[1]);
}

struct server {
	int fd;
	unsigned type; /* of its reply */
	const void *body;
	const int *fds;
	unsigned nfds;
};

/* Answer one request, then close. */
static void *serve(void *arg)
{
	struct server *s = arg;
	char in[FM_CTL_MAX];
	int got[FM_CTL_FDS];
	unsigned type, ngot;

	if (fm_ctl_recv(s->fd, &type, in, sizeof in, got, &ngot) == 0 && s->type)
		fm_ctl_send(s->fd, s->type, s->body, s->fds, s->nfds);
	close(s->fd);
	return NULL;
}

static int call(struct server *s, unsigned want, void *reply, int *reply_fd, char *why)
{
	struct fm_ctl_hello hello = {.pages = 42};
	pthread_t thread;
	int sv[2], r;

	make_pair(sv);
	s->fd = sv[1];
	if (pthread_create(&thread, NULL, serve, s))
		abort();
	r = fm_ctl_call(sv[0], FM_CTL_HELLO, &hello, NULL, 0, want, reply, reply_fd, why);
	pthread_join(thread, NULL);
	close(sv[0]);
	return r;
}

static void test_call(void)
{
	struct fm_ctl_hello_ok hello = {.nshards = 3, .pid = 77}, reply = {0};
	struct fm_ctl_error refusal = {.error = ENOSPC, .text = "store: full"};
	unsigned before = open_fds();
	int fd = new_file(), got = -1;
	char why[256] = "old";
	struct server s = {.type = FM_CTL_HELLO_OK, .body = &hello};

	is_u64(call(&s, FM_CTL_HELLO_OK, &reply, NULL, why), 0, "a call is answered");
	ok(reply.nshards == 3 && reply.pid == 77, "with the reply's body");
	is_str(why, "", "and no complaint");
	s = (struct server){.type = FM_CTL_OK, .fds = &fd, .nfds = 1};
	ok(call(&s, FM_CTL_OK, NULL, &got, why) == 0 && inode(got) == inode(fd), "a descriptor comes with a reply");
	close(got);
	is_u64(call(&s, FM_CTL_OK, NULL, NULL, why), -EPROTO, "one that nobody asked for is refused");
	s.nfds = 0;
	is_u64(call(&s, FM_CTL_OK, NULL, &got, why), -EPROTO, "one that does not come is missed");
	s = (struct server){.type = FM_CTL_REGISTERED, .body = &hello};
	is_u64(call(&s, FM_CTL_HELLO_OK, &reply, NULL, why), -EPROTO, "a reply of another type");
	s = (struct server){.type = FM_CTL_ERROR, .body = &refusal};
	is_u64(call(&s, FM_CTL_HELLO_OK, &reply, NULL, why), -ENOSPC, "an error's number arrives");
	is_str(why, "store: full", "and its reason");
	is_u64(call(&s, FM_CTL_HELLO_OK, &reply, NULL, NULL), -ENOSPC, "which nobody needs to want");
	memset(refusal.text, 'x', sizeof refusal.text);
	refusal.error = -5;
	is_u64(call(&s, FM_CTL_HELLO_OK, &reply, NULL, why), -EPROTO, "an error that is none");
	is_u64(strlen(why), sizeof refusal.text - 1, "a reason without its NUL is cut");
	s = (struct server){.type = 0};
	is_u64(call(&s, FM_CTL_HELLO_OK, &reply, NULL, why), -EPIPE, "no reply at all");
	close(fd);
	is_u64(open_fds(), before, "no descriptor is left open");
}

static void test_connect(void)
{
	char dir[] = "/tmp/fm-test-ctl-XXXXXX", path[64], far[200];
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int listener, fd;

	setenv("FM_RUN_DIR", "/somewhere", 1);
	is_str(fm_ctl_run_dir("/given"), "/given", "the option comes first");
	is_str(fm_ctl_run_dir(NULL), "/somewhere", "then FM_RUN_DIR");
	setenv("FM_RUN_DIR", "", 1);
	is_str(fm_ctl_run_dir(NULL), "/run/fm", "an empty one is none");
	unsetenv("FM_RUN_DIR");
	is_str(fm_ctl_run_dir(NULL), "/run/fm", "else the default");

	if (!mkdtemp(dir))
		abort();
	snprintf(path, sizeof path, "%s/fm.sock", dir);
	is_u64(fm_ctl_connect(dir), -ENOENT, "no socket there");
	memset(far, 'd', sizeof far - 1);
	far[sizeof far - 1] = '\0';
	is_u64(fm_ctl_connect(far), -ENAMETOOLONG, "a path that no socket can have");
	strcpy(sa.sun_path, path);
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&sa, sizeof sa) < 0)
		abort();
	is_u64(fm_ctl_connect(dir), -ECONNREFUSED, "a socket that nobody listens on");
	listen(listener, 1);
	fd = fm_ctl_connect(dir);
	ok(fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC), "a daemon: connected, close-on-exec");
	close(fd);
	close(listener);
	unlink(path);
	rmdir(dir);
}

int main(void)
{
	is_u64(fm_ctl_body_length(0), -1, "type 0 has no length");
	is_u64(fm_ctl_body_length(FM_CTL_TYPES), -1, "nor has the type past the last");
	for (unsigned t = FM_CTL_OK; t < FM_CTL_TYPES; t++)
		ok(fm_ctl_body_length(t) >= 0 && fm_ctl_body_length(t) <= FM_CTL_MAX, "type %u fits into a message", t);
	test_round_trips();
	test_refusals();
	test_dribble();
	test_call();
	test_connect();
	return tap_done();
}
