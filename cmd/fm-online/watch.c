#include "watch.h"

#include <errno.h>
#include <linux/netlink.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "uevent.h"

#define KERNEL_GROUP 1         /* the kernel's own events; udev's are in group 2 */
#define EVENT_MAX    8192      /* bytes of one event; the kernel's buffer has 2048 */
#define BACKLOG      (1 << 20) /* bytes of events that may wait: a DIMM of 64 GiB is 512 blocks at once */

int watch_open(void)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = KERNEL_GROUP };
	int fd, err, size = BACKLOG;

	fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	if (fd < 0)
		return -errno;
	/* FORCE needs CAP_NET_ADMIN; less room only means a new look at all blocks sooner. */
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	if (bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
		err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

int watch_next(int fd, const sigset_t *mask, unsigned *block)
{
	for (;;) {
		char buf[EVENT_MAX];
		struct sockaddr_nl from = { 0 };
		struct iovec iov = { .iov_base = buf, .iov_len = sizeof buf };
		struct msghdr msg = { .msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &iov, .msg_iovlen = 1 };
		struct pollfd wait = { .fd = fd, .events = POLLIN };
		struct fm_uevent event;
		ssize_t n;

		if (ppoll(&wait, 1, NULL, mask) < 0)
			return -errno;
		n = recvmsg(fd, &msg, MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n < 0)
			return -errno;
		/* Port 0 is the kernel; anybody else's message is a forgery. */
		if (from.nl_pid != 0 || (msg.msg_flags & MSG_TRUNC) || fm_uevent_parse(buf, (size_t)n, &event) != 0)
			continue;
		if (strcmp(event.action, "add") == 0 && fm_uevent_memory_block(&event, block) == 0)
			return 0;
	}
}
