/*
 * libvirt by its own client program: virsh(1) as a child process. So libvirt's view of the domain stays true, whatever its
 * version, and nothing is linked.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hotplug.h"

#define ARGS_MAX   16
#define OUTPUT_MAX (8u << 20)

/* What came out of one pipe, NUL-terminated. */
struct stream {
	int fd;
	char *text;
	size_t len, room;
};

static unsigned now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (unsigned)((uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000);
}

/* Standard input of the child: a file that can be opened by name, as /dev/stdin is. */
static int make_input(const char *text)
{
	size_t n = text ? strlen(text) : 0;
	int fd = text ? memfd_create("fm-hotplug", MFD_CLOEXEC) : open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && n && write(fd, text, n) != (ssize_t)n) {
		close(fd);
		return -1;
	}
	return fd;
}

_Noreturn static void child(const char *const *args, int in, int out, int err)
{
	const char *argv[ARGS_MAX + 8] = {"virsh", "-q"};
	unsigned n = 2;

	if (!getenv("LIBVIRT_DEFAULT_URI") && !getenv("VIRSH_DEFAULT_CONNECT_URI")) {
		argv[n++] = "-c";
		argv[n++] = "qemu:///system";
	}
	while (*args && n < ARGS_MAX + 7)
		argv[n++] = *args++;
	/* Its messages are looked for below. */
	setenv("LC_ALL", "C", 1);
	signal(SIGPIPE, SIG_DFL);
	if (dup2(in, 0) == 0 && dup2(out, 1) == 1 && dup2(err, 2) == 2)
		execvp("virsh", (char *const *)argv);
	_exit(errno == ENOENT ? 127 : 126);
}

/* Read what there is. Returns 1, 0 at the end, -errno. */
static int take(struct stream *s)
{
	ssize_t n;

	if (s->len + 4096 + 1 > s->room) {
		size_t room = s->room ? s->room * 2 : 16384;
		char *grown = room <= OUTPUT_MAX ? realloc(s->text, room) : NULL;

		if (!grown)
			return -ENOMEM;
		s->text = grown;
		s->room = room;
	}
	n = read(s->fd, s->text + s->len, s->room - s->len - 1);
	if (n < 0)
		return errno == EINTR || errno == EAGAIN ? 1 : -errno;
	s->len += (size_t)n;
	s->text[s->len] = '\0';
	return n > 0;
}

/* Read both pipes to their ends. */
static int drain(struct stream *out, struct stream *err, unsigned timeout_ms)
{
	unsigned start = now_ms(), spent;
	int r = 0;

	while (out->fd >= 0 || err->fd >= 0) {
		struct pollfd p[2] = {{.fd = out->fd, .events = POLLIN}, {.fd = err->fd, .events = POLLIN}};

		spent = now_ms() - start;
		if (spent >= timeout_ms)
			return -ETIMEDOUT;
		if (poll(p, 2, (int)(timeout_ms - spent)) < 0 && errno != EINTR)
			return -errno;
		for (unsigned i = 0; i < 2; i++) {
			struct stream *s = i ? err : out;

			if (s->fd < 0 || !p[i].revents)
				continue;
			r = take(s);
			if (r < 0)
				return r;
			if (r == 0) {
				close(s->fd);
				s->fd = -1;
			}
		}
	}
	return 0;
}

/*
 * Its errors as one line. "error: WHAT" and then "error: WHY": the first is what the caller says himself. Others may follow, of
 * several lines each.
 */
static void one_line(const char *text, char why[VIRSH_WHY])
{
	static const char mark[] = "error: ";
	const char *second = strstr(text, "\nerror: ");
	size_t n = 0;

	if (!strncmp(text, mark, sizeof mark - 1) && second)
		text = second + 1;
	if (!strncmp(text, mark, sizeof mark - 1))
		text += sizeof mark - 1;
	for (; *text && n < VIRSH_WHY - 1; text++) {
		if (*text == '\n' && !text[1])
			break;
		why[n++] = *text == '\n' ? ' ' : *text;
	}
	why[n] = '\0';
}

int virsh(const char *const *args, const char *input, char **output, char why[VIRSH_WHY], unsigned timeout_ms)
{
	struct stream out = {.fd = -1}, err = {.fd = -1};
	int po[2] = {-1, -1}, pe[2] = {-1, -1}, in = make_input(input), status = 0, r = 0;
	pid_t pid = -1;

	*why = '\0';
	if (output)
		*output = NULL;
	if (in < 0 || pipe2(po, O_CLOEXEC) < 0 || pipe2(pe, O_CLOEXEC) < 0)
		r = -errno;
	if (!r) {
		pid = fork();
		if (pid == 0)
			child(args, in, po[1], pe[1]);
		if (pid < 0)
			r = -errno;
	}
	for (unsigned i = 0; i < 3; i++) {
		int fd = i == 0 ? in : i == 1 ? po[1] : pe[1];

		if (fd >= 0)
			close(fd);
	}
	out.fd = po[0];
	err.fd = pe[0];
	if (!r)
		r = drain(&out, &err, timeout_ms);
	if (pid > 0) {
		if (r)
			kill(pid, SIGKILL);
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
	}
	if (out.fd >= 0)
		close(out.fd);
	if (err.fd >= 0)
		close(err.fd);
	if (!r && WIFEXITED(status) && (WEXITSTATUS(status) == 127 || WEXITSTATUS(status) == 126) && !out.len && !err.len)
		r = WEXITSTATUS(status) == 127 ? -ENOENT : -EACCES;
	else if (!r && status)
		r = -EREMOTEIO;
	if (r == -EREMOTEIO && err.text)
		one_line(err.text, why);
	if (r && !*why)
		snprintf(why, VIRSH_WHY, "virsh: %s",
			 r == -ENOENT      ? "not found: install libvirt's clients, or name the VM by its QMP socket or pid:N"
			 : r == -ETIMEDOUT ? "no answer in time: does libvirtd run?"
			 : r == -EREMOTEIO ? "it failed without a word"
					   : strerror(-r));
	free(err.text);
	if (!r && output)
		*output = out.text ? out.text : strdup("");
	else
		free(out.text);
	return r;
}
