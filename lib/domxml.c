#include "domxml.h"

#include <ctype.h>
#include <errno.h>
#include <expat.h>
#include <stdlib.h>
#include <string.h>

#define PATH_MAX_BYTES 128 /* of the elements that are looked at; deeper ones are none of ours */
#define TEXT_MAX       512

/*
 * THEORY OF OPERATION
 *   path is the element that expat is in, as "domain/devices/memory", or too long to be of interest (then deep counts the
 *   elements below). Text is collected from an element's start, and used at its end.
 */
struct parser {
	XML_Parser expat;
	struct fm_domxml *d;
	char path[PATH_MAX_BYTES];
	unsigned deep;
	char text[TEXT_MAX];
	size_t ntext;
	char unit[FM_DOMXML_WORD]; /* of the innermost element that has one */
	int error;
};

static void fail(struct parser *p, int error)
{
	if (!p->error)
		p->error = error;
	XML_StopParser(p->expat, XML_FALSE);
}

static const char *attribute(const char **attributes, const char *name)
{
	for (; *attributes; attributes += 2)
		if (!strcmp(attributes[0], name))
			return attributes[1];
	return NULL;
}

/* Cut off what is too long: such a word is none that is known. */
static void copy(char *to, size_t cap, const char *from)
{
	size_t n = from ? strnlen(from, cap - 1) : 0;

	memcpy(to, from ? from : "", n);
	to[n] = '\0';
}

static int parse_number(const char *text, int base, uint64_t *v)
{
	char *end;

	while (isspace((unsigned char)*text))
		text++;
	if (!isdigit((unsigned char)*text))
		return -EPROTO;
	errno = 0;
	*v = strtoull(text, &end, base);
	while (isspace((unsigned char)*end))
		end++;
	return errno || *end ? -EPROTO : 0;
}

/* formatdomain.html, "Memory Allocation": KiB unless another unit is given. */
static int parse_bytes(const char *text, const char *unit, uint64_t *bytes)
{
	static const struct {
		const char *name;
		uint64_t bytes;
	} units[] = {
	    {"", 1024},          {"k", 1024},           {"KiB", 1024},         {"KB", 1000},
	    {"b", 1},            {"bytes", 1},          {"M", 1ull << 20},     {"MiB", 1ull << 20},
	    {"MB", 1000000},     {"G", 1ull << 30},     {"GiB", 1ull << 30},   {"GB", 1000000000},
	    {"T", 1ull << 40},   {"TiB", 1ull << 40},   {"TB", 1000000000000},
	};
	uint64_t v;
	int r = parse_number(text, 10, &v);

	for (unsigned i = 0; !r && i < sizeof units / sizeof *units; i++)
		if (!strcmp(unit, units[i].name))
			return __builtin_mul_overflow(v, units[i].bytes, bytes) ? -EPROTO : 0;
	return -EPROTO;
}

static struct fm_domxml_memory *last_memory(struct parser *p)
{
	return p->d->nmemory ? &p->d->memory[p->d->nmemory - 1] : NULL;
}

static void add_memory(struct parser *p, const char **attributes)
{
	size_t n = p->d->nmemory;
	struct fm_domxml_memory *grown = realloc(p->d->memory, (n + 1) * sizeof *grown);

	if (!grown) {
		fail(p, -ENOMEM);
		return;
	}
	p->d->memory = grown;
	p->d->nmemory = n + 1;
	grown[n] = (struct fm_domxml_memory){.slot = -1};
	copy(grown[n].model, sizeof grown[n].model, attribute(attributes, "model"));
	copy(grown[n].access, sizeof grown[n].access, attribute(attributes, "access"));
}

/* <address type='dimm' slot='0' base='0x100000000'/> of a memory device. */
static void memory_address(struct parser *p, struct fm_domxml_memory *m, const char **attributes)
{
	const char *slot = attribute(attributes, "slot"), *base = attribute(attributes, "base");
	uint64_t v;

	if (base && parse_number(base, 0, &m->gpa))
		fail(p, -EPROTO);
	/* A PCI address has a slot too. */
	if (!slot || !base)
		return;
	if (parse_number(slot, 0, &v) || v > 0x7fffffff)
		fail(p, -EPROTO);
	else
		m->slot = (int)v;
}

static void add_cell(struct parser *p, const char **attributes)
{
	const char *memory = attribute(attributes, "memory"), *unit = attribute(attributes, "unit");
	const char *access = attribute(attributes, "memAccess");
	uint64_t bytes = 0;

	if (memory && parse_bytes(memory, unit ? unit : "", &bytes))
		fail(p, -EPROTO);
	if (++p->d->ncells > FM_DOMXML_CELLS)
		fail(p, -EPROTO);
	p->d->cell_bytes += bytes;
	p->d->cell_private |= access && !strcmp(access, "private");
}

/* formatdomain.html: vhost-user interfaces and disks, virtiofs. */
static bool is_vhost_user(const char *path, const char **attributes)
{
	const char *type = attribute(attributes, "type");

	if (!type)
		return false;
	if (!strcmp(path, "domain/devices/interface") || !strcmp(path, "domain/devices/disk"))
		return !strcmp(type, "vhostuser");
	return !strcmp(path, "domain/devices/filesystem/driver") && !strcmp(type, "virtiofs");
}

/* What an element's start tells by its attributes. */
static void element(struct parser *p, const char **attributes)
{
	struct fm_domxml *d = p->d;
	struct fm_domxml_memory *m = last_memory(p);
	const char *path = p->path, *text;
	uint64_t v;

	d->vhost_user |= is_vhost_user(path, attributes);
	if (!strcmp(path, "domain")) {
		d->running = attribute(attributes, "id") != NULL;
	} else if (!strcmp(path, "domain/maxMemory")) {
		text = attribute(attributes, "slots");
		if (text && !parse_number(text, 10, &v) && v <= 65536)
			d->slots = (unsigned)v;
	} else if (!strcmp(path, "domain/memoryBacking")) {
		d->has_backing = true;
	} else if (!strcmp(path, "domain/memoryBacking/source")) {
		copy(d->source, sizeof d->source, attribute(attributes, "type"));
	} else if (!strcmp(path, "domain/memoryBacking/access")) {
		copy(d->access, sizeof d->access, attribute(attributes, "mode"));
	} else if (!strcmp(path, "domain/memoryBacking/hugepages")) {
		d->hugepages = true;
	} else if (!strcmp(path, "domain/memoryBacking/locked")) {
		d->locked = true;
	} else if (!strcmp(path, "domain/cpu")) {
		d->has_cpu = true;
	} else if (!strcmp(path, "domain/cpu/numa/cell")) {
		add_cell(p, attributes);
	} else if (!strcmp(path, "domain/devices/memory")) {
		add_memory(p, attributes);
	} else if (!strcmp(path, "domain/devices/memory/alias") && m) {
		copy(m->alias, sizeof m->alias, attribute(attributes, "name"));
	} else if (!strcmp(path, "domain/devices/memory/address") && m) {
		memory_address(p, m, attributes);
	}
}

/* Where an element's text goes that is a size; NULL: it is none. */
static uint64_t *size_of_path(struct parser *p)
{
	struct fm_domxml_memory *m = last_memory(p);
	const char *path = p->path;

	if (!strcmp(path, "domain/memory"))
		return &p->d->memory_bytes;
	if (!strcmp(path, "domain/maxMemory"))
		return &p->d->max_bytes;
	if (!m || strncmp(path, "domain/devices/memory/target/", 29))
		return NULL;
	path += 29;
	return !strcmp(path, "size")        ? &m->bytes
	       : !strcmp(path, "requested") ? &m->requested
	       : !strcmp(path, "current")   ? &m->current
					    : NULL;
}

/* What an element's end tells by its text. */
static void element_text(struct parser *p)
{
	struct fm_domxml_memory *m = last_memory(p);
	uint64_t *size = size_of_path(p), v;

	if (size) {
		if (parse_bytes(p->text, p->unit, size))
			fail(p, -EPROTO);
	} else if (!strcmp(p->path, "domain/name")) {
		copy(p->d->name, sizeof p->d->name, p->text);
	} else if (!strcmp(p->path, "domain/uuid")) {
		copy(p->d->uuid, sizeof p->d->uuid, strlen(p->text) < FM_DOMXML_UUID ? p->text : "");
		for (char *c = p->d->uuid; *c; c++)
			*c = (char)tolower((unsigned char)*c);
	} else if (!strcmp(p->path, "domain/vcpu")) {
		if (parse_number(p->text, 10, &v) || v > 65536)
			fail(p, -EPROTO);
		else
			p->d->vcpus = (unsigned)v;
	} else if (!strcmp(p->path, "domain/devices/memory/target/node") && m) {
		if (parse_number(p->text, 10, &v) || v >= FM_DOMXML_CELLS)
			fail(p, -EPROTO);
		else
			m->node = (int)v;
	}
}

static void XMLCALL on_start(void *user, const XML_Char *name, const XML_Char **attributes)
{
	struct parser *p = user;
	const char *unit = attribute(attributes, "unit");
	size_t used = strlen(p->path), n = strlen(name);

	p->ntext = 0;
	p->text[0] = '\0';
	if (p->deep || used + n + 2 > sizeof p->path) {
		p->deep++;
		return;
	}
	if (used)
		p->path[used++] = '/';
	memcpy(p->path + used, name, n + 1);
	copy(p->unit, sizeof p->unit, unit);
	element(p, attributes);
}

static void XMLCALL on_end(void *user, const XML_Char *name)
{
	struct parser *p = user;
	char *slash;

	(void)name;
	if (p->deep) {
		p->deep--;
		return;
	}
	element_text(p);
	p->ntext = 0;
	p->text[0] = '\0';
	slash = strrchr(p->path, '/');
	if (slash)
		*slash = '\0';
	else
		p->path[0] = '\0';
}

static void XMLCALL on_text(void *user, const XML_Char *s, int len)
{
	struct parser *p = user;
	size_t n = (size_t)len, room = sizeof p->text - 1 - p->ntext;

	n = n < room ? n : room;
	memcpy(p->text + p->ntext, s, n);
	p->ntext += n;
	p->text[p->ntext] = '\0';
}

int fm_domxml_parse(const char *text, size_t len, struct fm_domxml *d)
{
	struct parser p = {.d = d};
	int r = 0;

	*d = (struct fm_domxml){.name = ""};
	p.expat = XML_ParserCreate(NULL);
	if (!p.expat)
		return -ENOMEM;
	XML_SetUserData(p.expat, &p);
	XML_SetElementHandler(p.expat, on_start, on_end);
	XML_SetCharacterDataHandler(p.expat, on_text);
	if (len > 0x7fffffff)
		r = -EPROTO;
	else if (XML_Parse(p.expat, text, (int)len, XML_TRUE) != XML_STATUS_OK)
		r = p.error                                                ? p.error
		    : XML_GetErrorCode(p.expat) == XML_ERROR_NO_MEMORY ? -ENOMEM
									   : -EPROTO;
	XML_ParserFree(p.expat);
	if (!r && (!*d->name || strlen(d->uuid) != FM_DOMXML_UUID - 1))
		r = -EPROTO;
	if (r)
		fm_domxml_free(d);
	return r;
}

void fm_domxml_free(struct fm_domxml *d)
{
	free(d->memory);
	*d = (struct fm_domxml){.name = ""};
}

bool fm_domxml_is_uuid(const char *text, const char *uuid)
{
	for (; *uuid; uuid++) {
		if (*uuid == '-') {
			text += *text == '-';
			continue;
		}
		if (tolower((unsigned char)*text) != *uuid)
			return false;
		text++;
	}
	return *text == '\0';
}
