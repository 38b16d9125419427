#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *log_tool = "fm";
static int log_level;

void fm_log_init(const char *tool)
{
	log_tool = tool;
}

void fm_log_more(void)
{
	log_level++;
}

static void log_line(const char *fmt, va_list ap)
{
	char line[1024];
	int saved = errno, n, m;

	n = snprintf(line, sizeof line, "%s: ", log_tool);
	errno = saved; /* for %m */
	m = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
	if (m > 0)
		n += m;
	if (n > (int)sizeof line - 2)
		n = (int)sizeof line - 2;
	/* One message is one line, whatever bytes a peer gave us to print. */
	for (int i = 0; i < n; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, (size_t)n) < 0) {
		/* nobody to tell */
	}
	errno = saved;
}

#define LOG_AT(name, level)                                                                                                \
	void name(const char *fmt, ...)                                                                                    \
	{                                                                                                                  \
		va_list ap;                                                                                                \
		if (log_level < (level))                                                                                   \
			return;                                                                                            \
		va_start(ap, fmt);                                                                                         \
		log_line(fmt, ap);                                                                                         \
		va_end(ap);                                                                                                \
	}
LOG_AT(fm_warn, 0)
LOG_AT(fm_info, 1)
LOG_AT(fm_debug, 2)

void fm_die(int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	log_line(fmt, ap);
	va_end(ap);
	exit(code);
}
