#include "ctl.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const int lengths[FM_CTL_TYPES] = {
    [FM_CTL_OK] = 0,
    [FM_CTL_ERROR] = sizeof(struct fm_ctl_error),
    [FM_CTL_HELLO] = sizeof(struct fm_ctl_hello),
    [FM_CTL_HELLO_OK] = sizeof(struct fm_ctl_hello_ok),
    [FM_CTL_DEVICE] = 0,
    [FM_CTL_REGISTER] = sizeof(struct fm_ctl_register),
    [FM_CTL_REGISTERED] = sizeof(struct fm_ctl_region),
    [FM_CTL_UNREGISTER] = sizeof(struct fm_ctl_region),
    [FM_CTL_EVICT] = sizeof(struct fm_ctl_evict),
    [FM_CTL_EVICTED] = sizeof(struct fm_ctl_evict),
    [FM_CTL_LIMIT] = sizeof(struct fm_ctl_evict),
    [FM_CTL_EVICTOR] = 0,
    [FM_CTL_EVICTOR_OK] = sizeof(struct fm_ctl_evictor_ok),
    [FM_CTL_REGION_ADD] = sizeof(struct fm_ctl_region),
    [FM_CTL_REGION_DEL] = sizeof(struct fm_ctl_region),
    [FM_CTL_REGION_GONE] = sizeof(struct fm_ctl_region),
    [FM_CTL_DETACH] = sizeof(struct fm_ctl_region),
    [FM_CTL_SERVER] = sizeof(struct fm_ctl_server),
    [FM_CTL_GRACE] = sizeof(struct fm_ctl_evict),
    [FM_CTL_REGION_HOLD] = sizeof(struct fm_ctl_region),
    [FM_CTL_REGION_HELD] = sizeof(struct fm_ctl_region),
};

int fm_ctl_body_length(unsigned type)
{
	return type >= FM_CTL_OK && type < FM_CTL_TYPES ? lengths[type] : -1;
}

const char *fm_ctl_check(const struct fm_ctl_hdr *h)
{
	if (h->magic != FM_CTL_MAGIC)
		return "not a message of the fm control protocol";
	if (h->version != FM_CTL_VERSION)
		return "another version of the control protocol";
	if (fm_ctl_body_length(h->type) < 0)
		return "unknown message type";
	if (h->length != (uint32_t)fm_ctl_body_length(h->type))
		return "wrong message length";
	if (h->nfds > FM_CTL_FDS)
		return "too many file descriptors";
	return NULL;
}

const char *fm_ctl_run_dir(const char *opt)
{
	const char *env = getenv("FM_RUN_DIR");

	if (opt)
		return opt;
	return env && *env ? env : "/run/fm";
}

int fm_ctl_connect(const char *run_dir)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	static const char name[] = "/fm.sock";
	size_t n = strlen(run_dir);
	int fd, e;

	if (n + sizeof name > sizeof sa.sun_path)
		return -ENAMETOOLONG;
	memcpy(sa.sun_path, run_dir, n);
	memcpy(sa.sun_path + n, name, sizeof name);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	while (connect(fd, (struct sockaddr *)&sa, sizeof sa) < 0) {
		if (errno == EINTR)
			continue;
		e = errno;
		close(fd);
		return -e;
	}
	return fd;
}

int fm_ctl_send(int fd, unsigned type, const void *body, const int *fds, unsigned nfds)
{
	struct fm_ctl_hdr h = {.magic = FM_CTL_MAGIC, .version = FM_CTL_VERSION, .type = (uint16_t)type, .nfds = nfds};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * FM_CTL_FDS)];
	} control;
	char buf[sizeof h + FM_CTL_MAX];
	size_t len, off = 0;

	if (fm_ctl_body_length(type) < 0 || nfds > FM_CTL_FDS)
		return -EINVAL;
	h.length = (uint32_t)fm_ctl_body_length(type);
	len = sizeof h + h.length;
	memcpy(buf, &h, sizeof h);
	if (h.length)
		memcpy(buf + sizeof h, body, h.length);
	while (off < len) {
		struct iovec iov = {.iov_base = buf + off, .iov_len = len - off};
		struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
		ssize_t n;

		if (off == 0 && nfds) {
			struct cmsghdr *c = &control.align;

			memset(&control, 0, sizeof control);
			m.msg_control = control.space;
			m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
			c->cmsg_level = SOL_SOCKET;
			c->cmsg_type = SCM_RIGHTS;
			c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
			memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
		}
		n = sendmsg(fd, &m, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			/* A non-blocking socket whose peer reads slowly: short messages, so wait for it, but not for ever. */
			struct pollfd p = {.fd = fd, .events = POLLOUT};

			if (poll(&p, 1, 2000) == 0)
				return -ETIMEDOUT;
			continue;
		}
		if (n < 0)
			return -errno;
		off += (size_t)n;
	}
	return 0;
}

/* Read exactly len bytes; descriptors that come along are appended to fds (at most FM_CTL_FDS, the rest are closed). *cut: some did not come. */
static int recv_all(int fd, void *to, size_t len, int *fds, unsigned *nfds, bool *cut)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * FM_CTL_FDS)];
	} control;
	size_t off = 0;

	while (off < len) {
		struct iovec iov = {.iov_base = (char *)to + off, .iov_len = len - off};
		struct msghdr m = {
		    .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control};
		ssize_t n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		*cut |= (m.msg_flags & MSG_CTRUNC) != 0;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
			unsigned k;

			if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
				continue;
			k = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			for (unsigned i = 0; i < k; i++) {
				int got;

				memcpy(&got, CMSG_DATA(c) + i * sizeof(int), sizeof got);
				if (*nfds < FM_CTL_FDS)
					fds[(*nfds)++] = got;
				else
					close(got);
			}
		}
		if (n == 0)
			return off ? -EPROTO : -EPIPE;
		off += (size_t)n;
	}
	return 0;
}

int fm_ctl_recv(int fd, unsigned *type, void *body, size_t cap, int *fds, unsigned *nfds)
{
	struct fm_ctl_hdr h;
	bool cut = false;
	int r;

	*nfds = 0;
	r = recv_all(fd, &h, sizeof h, fds, nfds, &cut);
	if (r == 0 && (fm_ctl_check(&h) || h.length > cap))
		r = -EPROTO;
	if (r == 0 && h.length) {
		r = recv_all(fd, body, h.length, fds, nfds, &cut);
		if (r == -EPIPE)
			r = -EPROTO;
	}
	if (r == 0) {
		*type = h.type;
		if (*nfds != h.nfds)
			r = cut && *nfds < h.nfds ? -EMFILE : -EPROTO;
	}
	while (r && *nfds)
		close(fds[--*nfds]);
	return r;
}

int fm_ctl_call(int fd, unsigned type, const void *body, const int *fds, unsigned nfds, unsigned want, void *reply,
		int *reply_fd, char *why)
{
	union {
		struct fm_ctl_error error;
		char bytes[FM_CTL_MAX];
	} in;
	int got[FM_CTL_FDS], r;
	unsigned ngot, t;

	if (why)
		*why = '\0';
	r = fm_ctl_send(fd, type, body, fds, nfds);
	/* A peer that refused and closed may have left its reason behind: read it even when the send failed. */
	if (r && r != -EPIPE)
		return r;
	r = fm_ctl_recv(fd, &t, &in, sizeof in, got, &ngot);
	if (r)
		return r;
	if (t == want && ngot == (reply_fd ? 1u : 0u)) {
		if (fm_ctl_body_length(want) > 0)
			memcpy(reply, &in, (size_t)fm_ctl_body_length(want));
		if (reply_fd)
			*reply_fd = got[0];
		return 0;
	}
	while (ngot)
		close(got[--ngot]);
	if (t != FM_CTL_ERROR)
		return -EPROTO;
	in.error.text[sizeof in.error.text - 1] = '\0';
	if (why)
		strcpy(why, in.error.text);
	return in.error.error > 0 ? -in.error.error : -EPROTO;
}
