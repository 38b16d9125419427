/*
 * Names to addresses, without waiting for a name service longer than one has patience for: getaddrinfo(3) itself knows no bound.
 */
#ifndef FM_RESOLVE_H
#define FM_RESOLVE_H

#include <sys/socket.h>

/*
 * The first address of a stream service at host (a name, or an address in numbers) and port (in numbers). A lookup that takes longer than the patience goes
 * on on a thread of its own, and the next call for the same name finds what came of it. Returns 0; -EHOSTUNREACH and *gai, an EAI_ code;
 * -ETIMEDOUT (no answer yet); -ENOMEM. Any thread.
 */
int fm_resolve(const char *host, const char *port, struct sockaddr_storage *out, socklen_t *len, int *gai);

/* How long a call waits from now on, ms; 15000 to begin with. While other names are overdue, a call waits a tenth of it. */
void fm_resolve_patience(unsigned ms);

#endif
