/* What /proc tells of clients: read once for all regions of one, since a process with many regions has as many mappings. */
#include "faultd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proc.h"

struct client {
	struct client *next;
	int pid;
	int pidfd; /* -1: not opened */
	uint64_t start;
	bool opened, read;
	int open_error, maps_error;
	struct fm_mapping *maps;
	size_t nmaps;
};

static struct client *client_of(struct client **all, int pid)
{
	struct client *c = *all;

	while (c && c->pid != pid)
		c = c->next;
	if (!c && (c = calloc(1, sizeof *c))) {
		c->pid = pid;
		c->pidfd = -1;
		c->next = *all;
		*all = c;
	}
	return c;
}

static int client_open(struct client *c)
{
	if (c->opened)
		return c->open_error;
	c->opened = true;
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	if (c->pidfd < 0) /* EINVAL, ENOENT: it is a thread's number now */
		c->open_error = errno == EINVAL || errno == ENOENT ? -ESRCH : -errno;
	else
		c->open_error = fm_proc_start(c->pid, &c->start);
	return c->open_error;
}

int client_pidfd(struct client **all, const struct fm_region_hdr *h)
{
	struct client *c = client_of(all, h->pid);
	int e = c ? client_open(c) : -ENOMEM, fd;

	if (e)
		return e;
	if (c->start != h->pid_start)
		return -ESRCH;
	fd = fcntl(c->pidfd, F_DUPFD_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

int client_mapped_shards(struct client **all, const struct region *r, uint32_t *mapped)
{
	struct client *c = client_of(all, r->map.hdr->pid);

	if (!c)
		return -ENOMEM;
	if (!c->read) {
		c->read = true;
		c->maps_error = fm_proc_maps(c->pid, &c->maps, &c->nmaps);
	}
	if (c->maps_error == 0)
		*mapped = region_shards_in(r, c->maps, c->nmaps);
	return c->maps_error;
}

void clients_forget(struct client **all)
{
	while (*all) {
		struct client *c = *all;

		*all = c->next;
		if (c->pidfd >= 0)
			close(c->pidfd);
		free(c->maps);
		free(c);
	}
}
