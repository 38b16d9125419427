#include "regauth.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int refuse(char *why, const char *path, int error, const char *reason)
{
	snprintf(why, 256, "%.150s: %s", path, reason);
	return error;
}

/* One line user:password, both not empty, of printable characters. */
static bool is_identity(const char *text)
{
	const char *colon = strchr(text, ':');

	if (!colon || colon == text || !colon[1])
		return false;
	for (; *text; text++)
		if ((unsigned char)*text <= ' ' || (unsigned char)*text >= 0x7f)
			return false;
	return true;
}

int fm_regauth_read(const char *path, char *to, char *why)
{
	/* O_NONBLOCK: do not wait on a fifo to say that it is no regular file. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), e = 0;
	struct stat st;
	ssize_t n;

	memset(to, 0, FM_REGAUTH_MAX);
	if (fd < 0 || fstat(fd, &st) < 0)
		e = refuse(why, path, -errno, strerror(errno));
	else if (!S_ISREG(st.st_mode))
		e = refuse(why, path, -EINVAL, "is not a regular file");
	else if (st.st_uid != geteuid())
		e = refuse(why, path, -EPERM, "belongs to another user");
	else if (st.st_mode & 077)
		e = refuse(why, path, -EPERM, "may be read by others: chmod 600");
	if (e == 0) {
		n = read(fd, to, FM_REGAUTH_MAX);
		if (n > 0 && to[n - 1] == '\n')
			to[--n] = '\0';
		if (n < 0)
			e = refuse(why, path, -errno, strerror(errno));
		else if (n == FM_REGAUTH_MAX || strlen(to) != (size_t)n || !is_identity(to))
			e = refuse(why, path, -EINVAL, "is not one line user:password");
	}
	if (fd >= 0)
		close(fd);
	if (e)
		explicit_bzero(to, FM_REGAUTH_MAX);
	return e;
}
