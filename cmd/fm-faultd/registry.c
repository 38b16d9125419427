/* The registry as fm-faultd uses it: opened at start, told of regions, and looked at by the main loop when it has news. */
#include "faultd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "regauth.h"
#include "registry.h"

#define PROBE_MS  2000 /* for the membership to be read */
#define OPEN_MS   5000 /* for the first connection */
#define REGION_MS 2000 /* a new region waits for the registry no longer than that; nor does the main loop */
#define CLOSE_MS  2000
#define HOST_ID   "host.id"

static struct watch watch_registry = {WATCH_REGISTRY};

int registry_check(const struct faultd *d, char *why)
{
	struct fm_registry_uri u;

	return fm_registry_uri_parse(d->registry_uri, &u, why);
}

static bool is_none(const struct faultd *d)
{
	return strcmp(d->registry_uri, "none") == 0;
}

/* --- who we are */

/* The id in RUN_DIR/host.id, made when missing: on tmpfs, and gone with the host's memory, as its regions are. */
static int host_id(struct faultd *d, uint64_t *id, char *why)
{
	int fd = openat(d->run_fd, HOST_ID, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640), e = 0;
	char text[32] = "";
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);

	if (n < 0) {
		e = -errno;
	} else if (n == 0) {
		do {
			e = getrandom(id, sizeof *id, 0) == (ssize_t)sizeof *id ? 0 : -EIO;
		} while (e == 0 && *id == 0);
		snprintf(text, sizeof text, "%016" PRIx64 "\n", *id);
		if (e == 0 && pwrite(fd, text, 17, 0) != 17)
			e = -EIO;
	} else if (n != 17 || text[16] != '\n' || !fm_registry_id_parse(text, 16, id)) {
		snprintf(why, FM_STORE_WHY, "%.150s/%s: is not a host's id: remove it", d->run_dir, HOST_ID);
		close(fd);
		return -EINVAL;
	}
	if (e)
		snprintf(why, FM_STORE_WHY, "%.150s/%s: %s", d->run_dir, HOST_ID, strerror(-e));
	if (fd >= 0)
		close(fd);
	return e;
}

static void host_text(char *to, size_t cap)
{
	char name[256] = "";

	gethostname(name, sizeof name - 1);
	snprintf(to, cap, "hostname=%s\npid=%d\nstart=%lld\n", name, getpid(), (long long)time(NULL));
}

/* --- open and close */

/* fm_registry_open(), as whom the URI's auth= says. */
static int open_as(struct fm_registry_options *o, unsigned deadline_ms, struct fm_registry **out, char *why)
{
	char auth[FM_REGAUTH_MAX];
	int e;

	if (!*o->uri->auth)
		return fm_registry_open(o, deadline_ms, out, why);
	e = fm_regauth_read(o->uri->auth, auth, why);
	if (e)
		return e == -ENOENT ? -EINVAL : e; /* of ours, not of ZooKeeper's */
	o->auth = auth;
	e = fm_registry_open(o, deadline_ms, out, why);
	o->auth = NULL;
	explicit_bzero(auth, sizeof auth);
	return e;
}

int registry_open(struct faultd *d, char *why)
{
	struct fm_registry_uri u;
	char text[512];
	struct fm_registry_options o = {.uri = &u, .host_text = text};
	uint64_t *ids;
	size_t regions = 0;
	int e;

	if (is_none(d))
		return 0;
	e = fm_registry_uri_parse(d->registry_uri, &u, why);
	if (e == 0)
		e = host_id(d, &o.host_id, why);
	if (e)
		return e;
	host_text(text, sizeof text);
	/* Clients that wait for us must not wait for ZooKeeper. */
	if (fm_shmfile_list(d->run_fd, &ids, &regions) == 0)
		free(ids);
	o.must_answer = regions == 0;
	o.settles = strncmp(d->store_uri, "memcached:", 10) == 0;
	e = open_as(&o, o.must_answer ? OPEN_MS : 0, &d->registry, why);
	if (e)
		return e;
	atomic_store(&d->daemon->registry.configured, 1);
	registry_news(d); /* the store is opened with the membership that it knows by now */
	e = watch_add(d, fm_registry_fd(d->registry), &watch_registry);
	if (e) {
		snprintf(why, FM_STORE_WHY, "cannot be watched: %s", strerror(-e));
		return e;
	}
	e = collector_start(d, o.host_id, u.grace_s, &d->collector);
	if (e)
		snprintf(why, FM_STORE_WHY, "cannot start a thread: %s", strerror(-e));
	return e;
}

/* The membership that it has, for whoever has just opened it. Returns 0, -ENOENT: none, or -EINVAL with why. */
static int look_at_members(struct fm_registry *r, struct fm_members *members, char *why)
{
	struct fm_registry_news n;

	for (unsigned i = 0; i < PROBE_MS / 50; i++) {
		struct pollfd p = {.fd = fm_registry_fd(r), .events = POLLIN};

		fm_registry_poll(r, &n);
		if (n.members_changed)
			return n.members ? fm_members_parse(n.members, strlen(n.members), members, why) : -ENOENT;
		poll(&p, 1, 50);
	}
	return -ENOENT;
}

int registry_probe(const char *uri, struct fm_members *members, char *why)
{
	struct fm_registry_uri u;
	struct fm_registry_options o = {.uri = &u, .host_text = "check=1\n", .must_answer = true};
	struct fm_registry *r;
	int e = fm_registry_uri_parse(uri, &u, why);

	if (e || strcmp(uri, "none") == 0)
		return e;
	do {
		if (getrandom(&o.host_id, sizeof o.host_id, 0) < 0)
			return -errno;
	} while (o.host_id == 0);
	members->n = 0;
	e = open_as(&o, OPEN_MS, &r, why);
	if (e)
		return e;
	e = look_at_members(r, members, why);
	fm_registry_close(r, false, CLOSE_MS);
	return e == -ENOENT ? 0 : e;
}

void registry_close(struct faultd *d, bool regions_left)
{
	if (!d->registry)
		return;
	if (!collector_stop(d->collector))
		return;
	if (regions_left && !fm_registry_here(d->registry))
		fm_warn("registry: away: it cannot be told that this host's regions will be served again: start fm-faultd within the "
			"grace time of the other hosts");
	fm_registry_close(d->registry, regions_left, CLOSE_MS);
	d->registry = NULL;
}

/* --- regions */

static void record_of(const struct faultd *d, uint64_t pages, uint64_t created_s, struct fm_registry_record *rec)
{
	/* Pages are put by newer epochs than the one that all of this host has settled by, never by older ones. */
	*rec = (struct fm_registry_record){.pages = pages, .created = created_s, .epoch = d->membership.settled};
	snprintf(rec->store, sizeof rec->store, "%.511s", d->store_uri);
}

int registry_region_new(struct faultd *d, uint64_t pages, uint64_t *id, char *why)
{
	struct fm_registry_record rec;
	int e;

	if (!d->registry)
		return 0;
	record_of(d, pages, (uint64_t)time(NULL), &rec);
	e = fm_registry_region_new(d->registry, &rec, REGION_MS, id);
	if (e == -EAGAIN)
		snprintf(why, FM_STORE_WHY, "registry is away: no new regions until it is back: %.128s", d->registry_uri);
	else if (e)
		snprintf(why, FM_STORE_WHY, "registry: the region cannot be recorded: %s", strerror(-e));
	return e;
}

void registry_region_end(struct faultd *d, uint64_t id)
{
	if (d->registry)
		fm_registry_region_end(d->registry, id);
}

void registry_regions_known(struct faultd *d)
{
	struct fm_registry_record rec;
	uint64_t *ids;
	size_t n;

	if (!d->registry || fm_shmfile_list(d->run_fd, &ids, &n))
		return;
	/* Also those that were left alone: their pages are in the store. */
	for (size_t i = 0; i < n; i++) {
		const struct region *r = region_find(d, ids[i]);
		int e;

		record_of(d, r ? r->map.pages : 1, r ? r->map.hdr->created_ns / 1000000000u : 0, &rec);
		e = fm_registry_region_keep(d->registry, ids[i], &rec);
		if (e) {
			fm_warn("region %016" PRIx64 ": cannot be kept in the registry: %s", ids[i], strerror(-e));
			free(ids);
			return; /* without all of them, none may be taken for one that ended */
		}
	}
	free(ids);
	fm_registry_all_kept(d->registry);
}

/* --- news */

void registry_news(struct faultd *d)
{
	struct fm_registry_news n;

	fm_registry_poll(d->registry, &n);
	if (n.here_changed && !n.here)
		fm_warn("registry: away: %s: regions go on, new ones are refused until it is back", n.why);
	else if (n.here_changed)
		fm_info("registry: here: %s", d->registry_uri);
	if (n.new_session)
		fm_warn("registry: the session had expired: a new one is in place");
	if (n.remade)
		fm_warn("registry: %u region%s of this host had no record, %016" PRIx64 " for one: made again (if another host took this "
			"one for dead, their pages in the store are lost)",
			n.remade, n.remade == 1 ? "" : "s", n.remade_id);
	if (n.members_changed)
		fm_info("registry: store members: version %d", n.members_version);
	members_news(d, &n);
}
