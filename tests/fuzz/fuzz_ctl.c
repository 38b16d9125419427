/*
 * libFuzzer target for the control protocol, from both of its ends: the client's side is given a made-up answer, and fm-faultd's
 * own code a made-up peer. The input says what goes over the socket, in which pieces, with how many descriptors.
 *
 * tests/check.sh builds it (the sanitizers, lib/, and these of the daemon's files)
 * with: cmd/fm-faultd/!(main|server).c
 */
/* Its statics are what is tested. */
#include "../../cmd/fm-faultd/server.c" // NOLINT(bugprone-suspicious-include)

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define MAX_FDS 128 /* enough for three messages in flight */

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct faultd d;
static int null_fd;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct rlimit few = {MAX_FDS, MAX_FDS};

	(void)argc, (void)argv;
	fm_log_init("fuzz_ctl");
	setrlimit(RLIMIT_NOFILE, &few);
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	d.store_uri = "dir:/nonexistent";
	d.run_dir = "/nonexistent";
	d.local_pages = FM_LIMIT_NONE;
	d.shards = 4;
	d.run_fd = memfd_create("no directory", MFD_CLOEXEC); /* files below it cannot be made */
	d.evict_lock_fd = d.run_fd; /* and nobody holds a lock on it */
	d.daemon_fd = memfd_create("daemon.state", MFD_CLOEXEC);
	d.daemon = calloc(1, sizeof *d.daemon + 64);
	d.daemon = (struct fm_daemon_shm *)(((uintptr_t)d.daemon + 63) & ~(uintptr_t)63);
	d.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	d.evict_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return 0;
}

/* How many descriptors are open: as many before as after, or something leaked. */
static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < MAX_FDS; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* Send the input: each piece is a byte of length, a byte of descriptors, and the bytes; a whole header is sent as such. */
static void send_pieces(int fd, const uint8_t *data, size_t size)
{
	while (size >= 2) {
		size_t len = data[0] ? data[0] : sizeof(struct fm_ctl_hdr);
		unsigned nfds = data[1] % 32 < 24 ? data[1] % 32 : 0;
		union {
			struct cmsghdr align;
			char space[CMSG_SPACE(sizeof(int) * 32)];
		} control = {0};
		struct iovec iov;
		struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

		data += 2, size -= 2;
		if (len > size)
			len = size;
		if (!len)
			return;
		iov = (struct iovec){.iov_base = (void *)(uintptr_t)data, .iov_len = len};
		if (nfds) {
			struct cmsghdr *c;

			m.msg_control = control.space;
			m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
			c = &control.align; /* as CMSG_FIRSTHDR() says, which the analyzer takes for NULL */
			c->cmsg_level = SOL_SOCKET;
			c->cmsg_type = SCM_RIGHTS;
			c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
			for (unsigned i = 0; i < nfds; i++)
				memcpy(CMSG_DATA(c) + i * sizeof(int), &null_fd, sizeof(int));
		}
		if (sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			return;
		data += len, size -= len;
	}
}

/* A good header of some type in front, so that the bodies are reached. */
static void send_good(int fd, const uint8_t *data, size_t size)
{
	unsigned type = data[0] % (FM_CTL_TYPES + 1), nfds = data[1] % (FM_CTL_FDS + 1);
	char body[FM_CTL_MAX] = "";
	int fds[FM_CTL_FDS];

	for (unsigned i = 0; i < nfds; i++)
		fds[i] = null_fd;
	memcpy(body, data + 2, size - 2 < sizeof body ? size - 2 : sizeof body);
	fm_ctl_send(fd, type, body, fds, nfds);
}

/* A header that is almost good, and as many bytes as it promises. */
static void send_almost(int fd, const uint8_t *data, size_t size)
{
	static char filler[8192];
	struct fm_ctl_hdr h = {.magic = FM_CTL_MAGIC, .version = FM_CTL_VERSION};

	if (size < 8)
		return;
	h.type = data[0] % 32;
	h.length = (uint32_t)(data[1] | data[2] << 8) % sizeof filler;
	h.nfds = data[3] % 4 ? 0 : data[4];
	if (data[3] & 128)
		h.version = data[5];
	memcpy(filler, data, size < sizeof filler ? size : sizeof filler);
	if (send(fd, &h, sizeof h, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 || send(fd, filler, h.length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return;
	send_pieces(fd, data + 6, size - 6);
}

static void send_input(int fd, const uint8_t *data, size_t size)
{
	switch (data[0] % 3) {
	case 0:
		send_pieces(fd, data + 1, size - 1);
		break;
	case 1:
		send_almost(fd, data + 1, size - 1);
		break;
	default:
		send_good(fd, data + 1, size - 1);
		if (size > 64)
			send_good(fd, data + size / 2, size - size / 2);
		break;
	}
}

/* What a client or an evictor reads. */
static void as_client(const uint8_t *data, size_t size)
{
	char body[FM_CTL_MAX], why[256];
	int s[2], fds[FM_CTL_FDS], fd = -1;
	unsigned type, nfds;
	struct fm_ctl_hdr h;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) < 0)
		abort();
	send_input(s[1], data, size);
	shutdown(s[1], SHUT_WR);
	while (fm_ctl_recv(s[0], &type, body, sizeof body, fds, &nfds) == 0) {
		if (fm_ctl_body_length(type) < 0 || nfds > FM_CTL_FDS)
			abort();
		while (nfds)
			close(fds[--nfds]);
	}
	if (nfds)
		abort();
	close(s[0]);
	close(s[1]);

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) < 0)
		abort();
	send_input(s[1], data, size);
	shutdown(s[1], SHUT_WR);
	memset(why, 'x', sizeof why);
	if (fm_ctl_call(s[0], FM_CTL_DEVICE, NULL, NULL, 0, FM_CTL_OK, NULL, &fd, why) == 0)
		close(fd);
	if (strnlen(why, sizeof why) == sizeof why)
		abort();
	close(s[0]);
	close(s[1]);

	if (size >= sizeof h) {
		memcpy(&h, data, sizeof h);
		if (!fm_ctl_check(&h) && (h.length > FM_CTL_MAX || h.nfds > FM_CTL_FDS))
			abort();
	}
}

/* What fm-faultd makes of it. uid: nobody's or root's. */
static void as_daemon(const uint8_t *data, size_t size, uid_t uid)
{
	struct conn *c = calloc(1, sizeof *c);
	int s[2];

	if (!c || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s) < 0)
		abort();
	c->watch.kind = WATCH_CONN;
	c->fd = s[0];
	c->uid = uid;
	c->pid = getpid();
	c->next = d.conns;
	d.conns = c;
	d.nconns++;
	send_input(s[1], data, size);
	for (int i = 0; i < 8; i++)
		on_conn(&d, c);
	shutdown(s[1], SHUT_WR);
	/* Until it sees the end; a whole message is worth a turn. */
	for (int i = 0; i < 4096 && !c->dead; i++)
		on_conn(&d, c);
	if (!c->dead)
		abort();
	reap_connections(&d);
	if (d.conns || d.nconns || d.evictor)
		abort();
	close(s[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned before = open_fds();

	if (size < 4 || size > 4096)
		return 0;
	as_client(data, size);
	as_daemon(data, size, 65534);
	as_daemon(data, size, 0);
	if (open_fds() != before)
		abort();
	return 0;
}
