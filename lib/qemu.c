#include "qemu.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPTION_MAX 512

/* The next NUL-terminated argument after arg, or NULL. */
static const char *next_arg(const char *arg, const char *end)
{
	arg = memchr(arg, '\0', (size_t)(end - arg));
	return arg && ++arg < end && memchr(arg, '\0', (size_t)(end - arg)) ? arg : NULL;
}

/*
 * The value of key in an option list "head,key=value,key=value"; a comma in a value is doubled. key NULL: the head itself.
 */
static bool option_value(const char *list, const char *key, char *value, size_t cap)
{
	const char *p = list;
	size_t keylen = key ? strlen(key) : 0, n = 0;

	while (key) {
		if (!strncmp(p, key, keylen) && p[keylen] == '=') {
			p += keylen + 1;
			break;
		}
		while (*p && (*p != ',' || p[1] == ','))
			p += *p == ',' ? 2 : 1;
		if (!*p++)
			return false;
	}
	for (; *p && (*p != ',' || p[1] == ','); p++) {
		if (*p == ',')
			p++;
		if (n + 1 >= cap)
			return false;
		value[n++] = *p;
	}
	value[n] = '\0';
	return true;
}

/* An argument is `-name` or `--name`. */
static bool is_option(const char *arg, const char *name)
{
	if (*arg++ != '-')
		return false;
	return !strcmp(arg + (*arg == '-'), name);
}

/* The path of the -chardev with this id. */
static bool chardev_path(const char *buf, const char *end, const char *id, char *path, bool *by_fd)
{
	char value[OPTION_MAX];

	for (const char *a = buf, *v; a; a = next_arg(a, end)) {
		if (!is_option(a, "chardev") || !(v = next_arg(a, end)))
			continue;
		if (!option_value(v, NULL, value, sizeof value) || strcmp(value, "socket"))
			continue;
		if (!option_value(v, "id", value, sizeof value) || strcmp(value, id))
			continue;
		if (option_value(v, "fd", value, sizeof value))
			*by_fd = true;
		return option_value(v, "path", path, FM_QEMU_PATH);
	}
	return false;
}

/* The path that one option pair names, if it is about QMP. */
static bool qmp_option(const char *name, const char *v, const char *buf, const char *end, char *path, bool *by_fd)
{
	char value[OPTION_MAX];

	if (is_option(name, "qmp") || is_option(name, "qmp-pretty")) {
		if (!option_value(v, NULL, value, sizeof value))
			return false;
		if (!strncmp(value, "chardev:", 8))
			return chardev_path(buf, end, value + 8, path, by_fd);
		if (strncmp(value, "unix:", 5) || strlen(value + 5) >= FM_QEMU_PATH)
			return false;
		strcpy(path, value + 5);
		return true;
	}
	if (!is_option(name, "mon") || !option_value(v, "mode", value, sizeof value) || strcmp(value, "control"))
		return false;
	/* The first value may stand without its key: -mon ID,mode=control. */
	if (!option_value(v, "chardev", value, sizeof value) && !option_value(v, NULL, value, sizeof value))
		return false;
	return chardev_path(buf, end, value, path, by_fd);
}

unsigned fm_qemu_qmp_paths(const char *buf, size_t len, char (*paths)[FM_QEMU_PATH], unsigned max, bool *by_fd)
{
	const char *end = buf + len;
	unsigned n = 0;

	*by_fd = false;
	if (!len || !memchr(buf, '\0', len))
		return 0;
	for (const char *a = buf, *v; a && n < max; a = next_arg(a, end))
		if ((v = next_arg(a, end)) && qmp_option(a, v, buf, end, paths[n], by_fd))
			n++;
	return n;
}

bool fm_qemu_option(const char *buf, size_t len, const char *name, const char *key, char *value, size_t cap)
{
	const char *end = buf + len, *v, *found = NULL;
	size_t n;

	if (!len || !memchr(buf, '\0', len))
		return false;
	for (const char *a = buf; a; a = next_arg(a, end))
		if (is_option(a, name) && (v = next_arg(a, end)))
			found = v;
	if (!found || key)
		return found && option_value(found, key, value, cap);
	n = strlen(found);
	if (n >= cap)
		return false;
	memcpy(value, found, n + 1);
	return true;
}

/* Bytes, with QEMU's suffixes. */
static bool parse_bytes(const char *text, uint64_t *bytes)
{
	static const char suffixes[] = "bkmgtpe";
	const char *suffix;
	char *end;
	unsigned shift;

	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	*bytes = strtoull(text, &end, 0);
	suffix = *end ? strchr(suffixes, tolower((unsigned char)*end)) : suffixes;
	if (errno || !suffix || (*end && end[1]))
		return false;
	shift = (unsigned)(suffix - suffixes) * 10;
	if (*bytes > UINT64_MAX >> shift)
		return false;
	*bytes <<= shift;
	return true;
}

static bool backend_of_list(const char *v, struct fm_qemu_backend *b)
{
	char value[OPTION_MAX];

	if (!option_value(v, NULL, value, sizeof value) || strncmp(value, "memory-backend-", 15) ||
	    !option_value(v, "id", b->id, sizeof b->id) || !option_value(v, "size", value, sizeof value) ||
	    !parse_bytes(value, &b->bytes))
		return false;
	b->share = option_value(v, "share", value, sizeof value) &&
		   (!strcmp(value, "on") || !strcmp(value, "yes") || !strcmp(value, "true") || !strcmp(value, "y"));
	if (!option_value(v, "mem-path", b->path, sizeof b->path))
		b->path[0] = '\0';
	return true;
}

static bool backend_of_json(const char *v, struct fm_qemu_backend *b)
{
	json_t *json = json_loads(v, 0, NULL);
	const char *type = json_string_value(json_object_get(json, "qom-type")), *id = json_string_value(json_object_get(json, "id"));
	const char *path = json_string_value(json_object_get(json, "mem-path"));
	bool yes = type && !strncmp(type, "memory-backend-", 15) && id && strlen(id) < sizeof b->id;

	if (yes) {
		strcpy(b->id, id);
		b->bytes = (uint64_t)json_integer_value(json_object_get(json, "size"));
		b->share = json_is_true(json_object_get(json, "share"));
		snprintf(b->path, sizeof b->path, "%s", path ? path : "");
	}
	json_decref(json);
	return yes;
}

unsigned fm_qemu_backends(const char *buf, size_t len, struct fm_qemu_backend *list, unsigned max)
{
	const char *end = buf + len, *v;
	unsigned n = 0;

	if (!len || !memchr(buf, '\0', len))
		return 0;
	for (const char *a = buf; a && n < max; a = next_arg(a, end))
		if (is_option(a, "object") && (v = next_arg(a, end)) && (*v == '{' ? backend_of_json : backend_of_list)(v, &list[n]))
			n++;
	return n;
}

static bool memdev_of_list(const char *v, struct fm_qemu_memdev *d)
{
	return (option_value(v, "driver", d->driver, sizeof d->driver) || option_value(v, NULL, d->driver, sizeof d->driver)) &&
	       option_value(v, "memdev", d->backend, sizeof d->backend);
}

static bool memdev_of_json(const char *v, struct fm_qemu_memdev *d)
{
	json_t *json = json_loads(v, 0, NULL);
	const char *driver = json_string_value(json_object_get(json, "driver"));
	const char *backend = json_string_value(json_object_get(json, "memdev"));
	bool yes = driver && backend && strlen(driver) < sizeof d->driver && strlen(backend) < sizeof d->backend;

	if (yes) {
		strcpy(d->driver, driver);
		strcpy(d->backend, backend);
	}
	json_decref(json);
	return yes;
}

unsigned fm_qemu_memdevs(const char *buf, size_t len, struct fm_qemu_memdev *list, unsigned max)
{
	const char *end = buf + len, *v;
	unsigned n = 0;

	if (!len || !memchr(buf, '\0', len))
		return 0;
	for (const char *a = buf; a && n < max; a = next_arg(a, end))
		if (is_option(a, "device") && (v = next_arg(a, end)) && (*v == '{' ? memdev_of_json : memdev_of_list)(v, &list[n]))
			n++;
	return n;
}

/* Does the word at p, which ends at a blank or parenthesis, name the block? QEMU calls it by the id or by its path. */
static bool is_block(const char *p, const char *id)
{
	static const char objects[] = "/objects/";
	size_t n;

	if (!strncmp(p, objects, sizeof objects - 1))
		p += sizeof objects - 1;
	n = strlen(id);
	return !strncmp(p, id, n) && (p[n] == '\0' || isspace((unsigned char)p[n]) || p[n] == ')');
}

int fm_qemu_find_ram(const char *text, const char *id, uint64_t *gpa, uint64_t *offset)
{
	const char *line = text, *p, *at, *eol;
	char *end;

	if (!*id)
		return -ENOENT;
	for (; *line; line = *eol ? eol + 1 : eol) {
		eol = line + strcspn(line, "\n");
		/* "  0000000100000000-0000000107ffffff (prio 0, ram): ID @0000000000100000 KVM" */
		while (*line == ' ')
			line++;
		if (!isxdigit((unsigned char)*line))
			continue;
		p = memmem(line, (size_t)(eol - line), ", ram): ", 8);
		if (!p || !is_block(p + 8, id))
			continue;
		*gpa = strtoull(line, &end, 16);
		if (*end != '-')
			continue;
		at = memmem(p, (size_t)(eol - p), " @", 2);
		*offset = at ? strtoull(at + 2, NULL, 16) : 0;
		return 0;
	}
	return -ENOENT;
}

int fm_qemu_parse_gpa2hva(const char *text, const char *id, uint64_t *hva)
{
	/* "Host virtual address for 0x100000000 (ID) is 0x7f72c3fff000" */
	const char *open = strstr(text, " ("), *is = strstr(text, ") is 0x");
	char *end;

	if (!open || !is || is < open)
		return -EPROTO;
	if (!is_block(open + 2, id))
		return -ENOENT;
	errno = 0;
	*hva = strtoull(is + 5, &end, 16);
	return errno || !*hva || !(*end == '\0' || isspace((unsigned char)*end)) ? -EPROTO : 0;
}
