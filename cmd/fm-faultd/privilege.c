/* Who may do what, how much of it, and what this process itself may still do. */
#include "faultd.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "evict.h"
#include "log.h"
#include "proc.h"
#include "sandbox.h"

/* --- peers */

bool conn_is_root(const struct conn *c)
{
	return c->uid == 0 || c->uid == geteuid();
}

bool conn_is_trusted(const struct faultd *d, const struct conn *c)
{
	return conn_is_root(c) || (d->fm_gid != (gid_t)-1 && c->gid == d->fm_gid);
}

/* For the evictor's connection, for looks at /proc and the store, and for the store's own connections. */
#define SPARE_DESCRIPTORS 8
#define CROWDED_NS        60000000000u /* between two lines about it */

bool conn_leaves_descriptors(struct faultd *d, struct conn *c, int fd)
{
	struct rlimit l;

	/* The lowest free number is what one gets. */
	if (getrlimit(RLIMIT_NOFILE, &l) < 0 || (rlim_t)fd + SPARE_DESCRIPTORS < l.rlim_cur || (c->pid && c->pid == d->evictor_child))
		return true;
	conn_error(c, EMFILE, "descriptors: fm-faultd may have %llu (RLIMIT_NOFILE), and there are none left for this",
		   (unsigned long long)l.rlim_cur);
	if (!d->crowded_ns || fm_now_ns() - d->crowded_ns > CROWDED_NS)
		fm_warn("descriptors: there may be %llu (RLIMIT_NOFILE), and none are left: clients are refused", (unsigned long long)l.rlim_cur);
	d->crowded_ns = fm_now_ns();
	return false;
}

bool conn_is_welcome(struct faultd *d, struct conn *c)
{
	unsigned same = 0;

	if (!conn_leaves_descriptors(d, c, c->fd))
		return false;
	if (conn_is_root(c))
		return true;
	for (const struct conn *o = d->conns; o; o = o->next)
		same += o->uid == c->uid;
	if (same >= d->user.connections)
		conn_error(c, EAGAIN, "connections: user %u has %u already: no more at a time (--user-connections)", c->uid, same);
	else if (d->nconns >= MAX_CONNECTIONS - ROOTS_CONNECTIONS)
		conn_error(c, EAGAIN, "connections: there are %u: no more at a time", d->nconns);
	else
		return true;
	return false;
}

int conn_check_user(const struct faultd *d, const struct conn *c, uint64_t pages, char *why, size_t len)
{
	unsigned regions = 0;
	uint64_t all = 0;
	int r;

	if (conn_is_trusted(d, c))
		return 0;
	/* SO_PEERCRED is of the time it connected: by now the pid may be somebody else's. */
	r = fm_proc_owned_by(c->pid, c->uid);
	if (r) {
		snprintf(why, len, "permission: process %d, which connected, is another user's now, or gone", c->pid);
		return r;
	}
	for (const struct region *o = d->regions; o; o = o->next)
		if (o->map.hdr->uid == c->uid) {
			regions++;
			all += o->map.pages;
		}
	if (regions >= d->user.regions) {
		snprintf(why, len, "regions: user %u has %u already: no more at a time (--user-regions)", c->uid, regions);
		return -EDQUOT;
	}
	if (pages > d->user.pages || all > d->user.pages - pages) {
		snprintf(why, len, "memory: user %u has %llu pages already, and may have %llu (--user-memory)", c->uid,
			 (unsigned long long)all, (unsigned long long)d->user.pages);
		return -EDQUOT;
	}
	return 0;
}

/* --- ourselves */

size_t sandbox_paths(const struct faultd *d, const struct fm_cluster_shm *c, const char *out[SANDBOX_PATHS])
{
	size_t n = fm_store_paths(d->store_uri, c, out, FM_SERVERS);

	out[n++] = d->run_dir;
	if (d->store_options.key_file)
		out[n++] = d->store_options.key_file;
	return n;
}

void sandbox_enter(struct faultd *d)
{
	const char *needs[SANDBOX_PATHS];
	size_t n = sandbox_paths(d, &d->daemon->cluster, needs);
	struct fm_sandbox got;
	char caps[64];
	int e = fm_sandbox_enter(FM_SANDBOX_FAULTD, "fm-faultd", needs, n, d->no_seccomp, &got);

	/* Memory that waits for us is worth more than our being small. */
	if (e)
		fm_warn("sandbox: cannot be entered: %s: privileges are kept", strerror(-e));
	else
		fm_info("sandbox: capabilities: %s; seccomp filter: %s", fm_sandbox_caps(got.caps, caps, sizeof caps),
			got.filter ? "on" : "off");
	atomic_store(&d->near, !d->no_follow);
}
