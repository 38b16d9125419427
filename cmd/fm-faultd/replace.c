/* What an fm-faultd before this one left in the run directory: may we go on with it, and if it still runs, in its place? */
#include "faultd.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "seal.h"

/* --- what the one before left, and said of the store */

size_t regions_left(const struct faultd *d)
{
	uint64_t *ids;
	size_t n;
	int e = fm_shmfile_list(d->run_fd, &ids, &n);

	if (e)
		fm_die(FM_EXIT_FAILED, "%s: cannot be read: %s", d->run_dir, strerror(-e));
	free(ids);
	return n;
}

uint32_t sealing_of(const struct faultd *d)
{
	if (strncmp(d->store_uri, "dir:", 4) == 0)
		return FM_SEALING_UNKNOWN;
	return d->store_options.no_seal ? FM_SEALING_OFF : FM_SEALING_ON;
}

uint64_t key_print_of(const struct faultd *d)
{
	char why[FM_KEY_WHY];
	struct fm_key *key;
	uint64_t print;

	/* Not made here. */
	if (!d->store_options.key_file || access(d->store_options.key_file, F_OK) < 0 || fm_key_open(d->store_options.key_file, &key, why))
		return 0;
	print = fm_key_print(key);
	fm_key_close(key);
	return print;
}

/* May pages that were stored under the one URI be found under the other? Servers come and go, and have several names; a folder is one. */
static bool same_store(const char *a, const char *b)
{
	char *x, *y;
	bool same;

	if (strncmp(a, b, strcspn(a, ":") + 1) != 0)
		return false;
	if (strncmp(a, "dir:", 4) != 0 || strcmp(a, b) == 0)
		return true;
	x = realpath(a + 4, NULL);
	y = realpath(b + 4, NULL);
	same = x && y && strcmp(x, y) == 0;
	free(x);
	free(y);
	return same;
}

int daemon_state_check(const struct faultd *d, char *why)
{
	struct fm_daemon_shm *s = calloc(1, sizeof *s);
	int fd = openat(d->run_fd, FM_DAEMON_STATE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), e = 0;
	ssize_t n = s && fd >= 0 ? pread(fd, s, sizeof *s, 0) : 0;
	uint32_t sealing = s ? s->cluster.sealing : 0;
	uint64_t print = 0;

	if (fd >= 0)
		close(fd);
	/* Lost, or never finished: then nobody knows. */
	if (n < (ssize_t)offsetof(struct fm_daemon_shm, store_uri) || s->magic != FM_MAGIC_DAEMON) {
		free(s);
		return 0;
	}
	s->store_uri[sizeof s->store_uri - 1] = '\0';
	if (s->version != FM_SHM_VERSION) {
		snprintf(why, FM_STORE_WHY, "%.100s/%s: made by another version of fm (%u, this one makes %u), and there are regions: left alone: run that version",
			 d->run_dir, FM_DAEMON_STATE, s->version, FM_SHM_VERSION);
		e = -EPROTO;
	} else if (!same_store(s->store_uri, d->store_uri)) {
		snprintf(why, FM_STORE_WHY, "--store: %.90s: pages of the regions there are lie in %.90s: start with that", d->store_uri, s->store_uri);
		e = -EINVAL;
	} else if (sealing && sealing != sealing_of(d)) {
		snprintf(why, FM_STORE_WHY, "--no-seal: %s: pages of the regions there are were stored %s it", sealing == FM_SEALING_OFF ? "missing" : "given",
			 sealing == FM_SEALING_OFF ? "with" : "without");
		e = -EINVAL;
	} else if (s->key_print && (print = key_print_of(d)) != 0 && print != s->key_print) {
		snprintf(why, FM_STORE_WHY, "--key-file: %.150s: is not the key that pages of the regions there are sealed with", d->store_options.key_file);
		e = -EINVAL;
	}
	free(s);
	return e;
}

/* --- in place of one that runs */

#define END_MS 3000 /* for an fm-faultd to end by SIGTERM; then by SIGKILL */

/* Is each region's file of our version? One that is not would be left to nobody. */
static int check_files(struct faultd *d, char *why)
{
	char name[FM_REGION_FILE_MAX];
	struct fm_region_map m;
	const char *bad;
	uint64_t *ids;
	size_t n;
	int e = fm_shmfile_list(d->run_fd, &ids, &n);

	if (e) {
		snprintf(why, FM_STORE_WHY, "%.100s: cannot be read: %s", d->run_dir, strerror(-e));
		return e;
	}
	for (size_t i = 0; i < n && e == 0; i++) {
		e = fm_shmfile_region_map(d->run_fd, fm_shmfile_region_name(ids[i], name), 0, &m, &bad);
		if (e == 0)
			fm_shmfile_region_unmap(&m);
		else if (e == -EPROTO)
			snprintf(why, FM_STORE_WHY, "%.100s/%s: %s: the fm-faultd that runs is left alone", d->run_dir, name, bad);
		else
			e = 0; /* it ends, or is being made */
	}
	free(ids);
	return e;
}

/* Signal the holder of daemon.lock. Returns 0, ESRCH when that process does not hold it any more, or another errno. */
static int end_holder(const struct faultd *d, pid_t pid, int sig)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int pidfd, e = 0;

	if (pid <= 0)
		return EPERM; /* in a pid namespace that we do not see */
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return errno;
	/* F_GETLK told the pid; asked once more now that the pidfd is there, it says that the pidfd is the holder's. */
	if (fcntl(d->lock_fd, F_GETLK, &l) == 0 && (l.l_type == F_UNLCK || l.l_pid != pid))
		e = ESRCH;
	else if (syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0) < 0)
		e = errno;
	close(pidfd);
	return e;
}

int daemon_replace(struct faultd *d, char *why)
{
	struct timespec nap = {.tv_nsec = 500000};
	int e = check_files(d, why), sent = 0;

	/* Refused while the other still runs. */
	if (e == 0 && regions_left(d))
		e = daemon_state_check(d, why);
	if (e)
		return e;
	for (unsigned half_ms = 0;; half_ms++) {
		struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET}, again = l;

		if (fcntl(d->lock_fd, F_SETLK, &l) == 0)
			return 0;
		if (half_ms >= 4 * END_MS) {
			snprintf(why, FM_STORE_WHY, "%.100s: the fm-faultd that serves it does not end", d->run_dir);
			return -ETIMEDOUT;
		}
		if (sent && (half_ms < 2 * END_MS || sent == SIGKILL)) {
			nanosleep(&nap, NULL);
			continue;
		}
		sent = half_ms < 2 * END_MS ? SIGTERM : SIGKILL;
		l = again;
		e = fcntl(d->lock_fd, F_GETLK, &l) < 0 ? errno : l.l_type == F_UNLCK ? ESRCH : end_holder(d, l.l_pid, sent);
		if (e && e != ESRCH) {
			snprintf(why, FM_STORE_WHY, "%.100s: the fm-faultd that serves it, pid %d, cannot be ended: %s", d->run_dir, l.l_pid,
				 strerror(e));
			return -EPERM;
		}
		if (e) {
			sent = 0; /* it has just ended by itself, and perhaps there is another in its place: look again */
			nanosleep(&nap, NULL);
		}
	}
}
