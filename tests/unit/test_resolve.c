/* Names to addresses: numbers at once, names in the time that there is. */
#include "resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>

#include "tap.h"

static void *resolve_often(void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < 50; i++) {
		struct sockaddr_storage a;
		socklen_t len;
		int gai;

		if (fm_resolve("localhost", "11211", &a, &len, &gai))
			return (void *)1;
	}
	return NULL;
}

int main(void)
{
	struct sockaddr_storage a = {0};
	const struct sockaddr_in *in = (const struct sockaddr_in *)&a;
	pthread_t thread[4];
	socklen_t len = 0;
	void *failed = NULL, *any = NULL;
	char longer[600];
	int gai = 0;

	fm_resolve_patience(0);
	ok(fm_resolve("127.0.0.1", "11211", &a, &len, &gai) == 0 && a.ss_family == AF_INET && in->sin_port == htons(11211) &&
	       in->sin_addr.s_addr == htonl(INADDR_LOOPBACK) && len == sizeof *in,
	   "an address in numbers needs no time");
	ok(fm_resolve("::1", "7", &a, &len, &gai) == 0 && a.ss_family == AF_INET6, "nor does one of IPv6");
	memset(longer, 'a', sizeof longer - 1);
	longer[sizeof longer - 1] = '\0';
	ok(fm_resolve(longer, "7", &a, &len, &gai) == -ENOMEM, "a name that is too long is refused");
	fm_resolve_patience(30000);
	ok(fm_resolve("localhost", "11211", &a, &len, &gai) == 0 && (a.ss_family == AF_INET || a.ss_family == AF_INET6), "a name");
	for (unsigned i = 0; i < 4; i++)
		pthread_create(&thread[i], NULL, resolve_often, NULL);
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(thread[i], &failed);
		any = failed ? failed : any;
	}
	ok(!any, "many at a time ask for the same name, and all are told");
	return tap_done();
}
