/* Masters of a RAMCloud by name: a name service of our own says what they mean, servers on two addresses of the loopback are there or not. */
#include "rccluster.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tap.h"

#define MS 1000000ull

/* --- the name service, instead of lib/rclookup.c */

static const char *means; /* the address of any name; NULL: the name service fails */
static bool slow;
static unsigned asked;

int fm_rc_numeric(const struct fm_rc_place *place, struct sockaddr_in *out)
{
	memset(out, 0, sizeof *out);
	out->sin_family = AF_INET;
	out->sin_port = htons(place->port);
	return inet_pton(AF_INET, place->host, &out->sin_addr) == 1 ? 0 : -EINVAL;
}

static struct fm_rc_lookup {
	struct fm_rc_place place;
} the_lookup;

struct fm_rc_lookup *fm_rc_lookup_start(const char *zookeeper, const char *node, const struct fm_rc_place *place)
{
	(void)zookeeper;
	(void)node;
	the_lookup.place = *place;
	asked++;
	return &the_lookup;
}

int fm_rc_lookup_poll(struct fm_rc_lookup *l, struct sockaddr_in *out, char *why)
{
	struct fm_rc_place place = l->place;

	*why = 0;
	if (slow)
		return -EINPROGRESS;
	if (!means)
		return -EHOSTUNREACH;
	snprintf(place.host, sizeof place.host, "%s", means);
	return fm_rc_numeric(&place, out);
}

void fm_rc_lookup_drop(struct fm_rc_lookup *l)
{
	(void)l;
}

/* --- servers */

static int listen_at(const char *host, uint16_t *port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(*port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;
	socklen_t len = sizeof a;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	inet_pton(AF_INET, host, &a.sin_addr);
	if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 4) < 0 || getsockname(fd, (struct sockaddr *)&a, &len) < 0) {
		close(fd);
		return -1;
	}
	*port = ntohs(a.sin_port);
	return fd;
}

static unsigned told; /* connections lost */
static int on_reply(void *arg, struct fm_rc_conn *c, uint32_t tag, const unsigned char *p, size_t len)
{
	(void)arg;
	(void)c;
	(void)tag;
	(void)len;
	told += !p;
	return 0;
}

/* Ask the master for as long as it takes until the listener has a connection, two seconds at most. Returns it, or -1. */
static int reaches(struct fm_rc_cluster *c, struct fm_rc_server *v, int listener)
{
	uint64_t until = fm_rc_now() + 2000 * MS;
	int fd = -1;

	while (fd < 0 && fm_rc_now() < until) {
		if (v->conn.npending == 0 && fm_rc_cluster_usable(c, v, fm_rc_now())) {
			unsigned char *p = fm_rc_conn_ask(&v->conn, 0, FM_RC_SMALL);

			if (p)
				memset(p, 0, FM_RC_SMALL);
			fm_rc_conn_flush(&v->conn, on_reply, NULL);
		}
		fm_rc_cluster_wait(c, fm_rc_now() + 2 * MS);
		fd = accept(listener, NULL, NULL);
	}
	return fd;
}

static bool loses(struct fm_rc_cluster *c, int fd, int listener)
{
	uint64_t until = fm_rc_now() + 2000 * MS;
	unsigned before = told;

	if (listener >= 0)
		close(listener);
	close(fd);
	while (told == before && fm_rc_now() < until)
		fm_rc_cluster_wait(c, fm_rc_now() + 2 * MS);
	return told > before;
}

int main(void)
{
	struct fm_rc_uri uri = {.timeout_ms = 1000};
	struct fm_rc_server v = {.place = {.host = "rcm"}};
	struct fm_rc_cluster c;
	uint16_t port = 0;
	int one, two, fd;

	one = listen_at("127.0.0.1", &port);
	two = listen_at("127.0.0.2", &port);
	if (!ok(one >= 0 && two >= 0, "two servers at one port"))
		return tap_done();
	fm_rc_cluster_init(&c, &uri);
	c.handler = on_reply;
	v.place.port = port;
	fm_rc_conn_init(&v.conn, 1000);
	c.servers = &v;

	slow = true;
	ok(!fm_rc_cluster_usable(&c, &v, fm_rc_now()), "a name that is not known yet: no server");
	slow = false;
	means = "127.0.0.1";
	fd = reaches(&c, &v, one);
	ok(fd >= 0, "its address");
	is_u64(asked, 1, "was asked for once");

	ok(loses(&c, fd, -1), "the connection is lost");
	means = "127.0.0.2";
	slow = true;
	fd = reaches(&c, &v, one);
	ok(fd >= 0, "the old address is tried until another is known");
	slow = false;
	ok(loses(&c, fd, one), "it is lost for good");
	fd = reaches(&c, &v, two);
	ok(fd >= 0, "what the name means now");

	ok(loses(&c, fd, -1), "lost, and no name service");
	means = NULL;
	fd = reaches(&c, &v, two);
	ok(fd >= 0, "the address that was known");
	asked = 0;
	ok(loses(&c, fd, two), "that is lost as well");
	ok(reaches(&c, &v, -1) < 0, "nobody there");
	ok(asked <= 4, "a name service that fails is asked once a second");
	port = v.place.port;
	one = listen_at("127.0.0.1", &port);
	means = "127.0.0.1";
	fd = reaches(&c, &v, one);
	ok(fd >= 0, "a name service again");

	fm_rc_conn_fini(&v.conn);
	c.servers = NULL;
	fm_rc_cluster_fini(&c);
	close(fd);
	close(one);
	return tap_done();
}
