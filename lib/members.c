#include "members.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

_Static_assert(FM_MEMBERS_TEXT >= 128 + FM_SERVERS * (FM_SERVER_ADDRESS + 32), "any list fits its text");

static const char *const roles[] = {[FM_SERVER_MEMBER] = "member", [FM_SERVER_DRAINED] = "drained"};

static bool number(const char *text, size_t len, uint64_t *out)
{
	uint64_t n = 0;

	if (len == 0 || len > 19)
		return false;
	for (size_t i = 0; i < len; i++) {
		if (text[i] < '0' || text[i] > '9')
			return false;
		n = n * 10 + (uint64_t)(text[i] - '0');
	}
	*out = n;
	return true;
}

/* Can it stand in a line? */
static bool is_address(const char *text, size_t len)
{
	if (len == 0 || len >= FM_SERVER_ADDRESS)
		return false;
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)text[i] <= ' ' || text[i] == 0x7f)
			return false;
	return true;
}

/* The next word of [*at, end) that blanks delimit. Returns its length. */
static size_t word(const char **at, const char *end, const char **start)
{
	while (*at < end && **at == ' ')
		++*at;
	*start = *at;
	while (*at < end && **at != ' ')
		++*at;
	return (size_t)(*at - *start);
}

static bool key_value(struct fm_members *m, const char *line, size_t len)
{
	uint64_t n;

	if (len > 6 && memcmp(line, "epoch=", 6) == 0)
		return number(line + 6, len - 6, &m->epoch);
	if (len > 9 && memcmp(line, "replicas=", 9) == 0) {
		if (!number(line + 9, len - 9, &n) || n > 64)
			return false;
		m->replicas = (unsigned)n;
	}
	return true;
}

static bool server(struct fm_members *m, const char *line, size_t len)
{
	const char *at = line, *end = line + len, *address, *role, *since;
	size_t an = word(&at, end, &address), rn = word(&at, end, &role), sn = word(&at, end, &since);
	struct fm_member *s = &m->member[m->n];

	if (m->n == FM_SERVERS || !is_address(address, an) || (sn && !number(since, sn, &s->since)))
		return false;
	memcpy(s->address, address, an);
	s->address[an] = '\0';
	if (fm_members_find(m, s->address) >= 0)
		return false;
	for (s->role = FM_SERVER_MEMBER; s->role <= FM_SERVER_DRAINED; s->role++)
		if (rn == strlen(roles[s->role]) && memcmp(role, roles[s->role], rn) == 0) {
			m->n++;
			return true;
		}
	return false;
}

int fm_members_parse(const char *text, size_t len, struct fm_members *m, char *why)
{
	memset(m, 0, sizeof *m);
	while (len) {
		const char *end = memchr(text, '\n', len);
		size_t n = end ? (size_t)(end - text) : len;
		bool pair = memchr(text, '=', n) && !memchr(text, ' ', n), good = n == 0 || (pair ? key_value(m, text, n) : server(m, text, n));

		if (!good) {
			int shown = 0;

			while (shown < 100 && (size_t)shown < n && text[shown] >= ' ' && text[shown] < 0x7f)
				shown++;
			snprintf(why, FM_MEMBERS_WHY, "'%.*s': not a line of a membership", shown, text);
			return -EINVAL;
		}
		text += n + (end != NULL);
		len -= n + (end != NULL);
	}
	if (m->epoch && m->n)
		return 0;
	snprintf(why, FM_MEMBERS_WHY, "%s", m->n ? "epoch=: is missing" : "names no server");
	return -EINVAL;
}

size_t fm_members_format(const struct fm_members *m, char *to)
{
	size_t n = (size_t)snprintf(to, FM_MEMBERS_TEXT, "epoch=%" PRIu64 "\nreplicas=%u\n", m->epoch, m->replicas);

	for (unsigned i = 0; i < m->n; i++)
		n += (size_t)snprintf(to + n, FM_MEMBERS_TEXT - n, "%s %s %" PRIu64 "\n", m->member[i].address, roles[m->member[i].role],
				      m->member[i].since);
	return n;
}

int fm_members_find(const struct fm_members *m, const char *address)
{
	for (unsigned i = 0; i < m->n; i++)
		if (strcmp(m->member[i].address, address) == 0)
			return (int)i;
	return -1;
}

/* --- changes */

static int add(struct fm_members *m, int at, const char *address, char *why)
{
	if (at >= 0 && m->member[at].role == FM_SERVER_MEMBER)
		return 0;
	if (!is_address(address, strnlen(address, FM_SERVER_ADDRESS))) {
		snprintf(why, FM_MEMBERS_WHY, "%.60s: not a server address", address);
		return -EINVAL;
	}
	if (at < 0 && m->n == FM_SERVERS) {
		snprintf(why, FM_MEMBERS_WHY, "%.120s: the store has %d servers already", address, FM_SERVERS);
		return -ENOSPC;
	}
	if (at < 0)
		at = (int)m->n++;
	memset(&m->member[at], 0, sizeof m->member[at]);
	strcpy(m->member[at].address, address);
	m->member[at].role = FM_SERVER_MEMBER;
	return 1;
}

static int drain(struct fm_members *m, int at, const char *address, char *why)
{
	unsigned members = 0;

	if (at < 0) {
		snprintf(why, FM_MEMBERS_WHY, "%.120s: no such server (fm-stat stores lists them)", address);
		return -ENOENT;
	}
	if (m->member[at].role == FM_SERVER_DRAINED)
		return 0;
	for (unsigned i = 0; i < m->n; i++)
		members += m->member[i].role == FM_SERVER_MEMBER;
	if (members == 1) {
		snprintf(why, FM_MEMBERS_WHY, "%.120s: is the last server of the store: its pages have nowhere to go", address);
		return -EBUSY;
	}
	m->member[at].role = FM_SERVER_DRAINED;
	return 1;
}

static int leave(struct fm_members *m, int at, uint64_t settled)
{
	if (at < 0 || m->member[at].role != FM_SERVER_DRAINED || !m->member[at].since || m->member[at].since > settled)
		return 0;
	memmove(&m->member[at], &m->member[at + 1], (--m->n - (unsigned)at) * sizeof m->member[0]);
	return 1;
}

int fm_members_change(struct fm_members *m, const struct fm_members_change *c, char *why)
{
	int at = fm_members_find(m, c->address), r = -EINVAL;

	switch (c->op) {
	case FM_MEMBERS_ADD:
		r = add(m, at, c->address, why);
		break;
	case FM_MEMBERS_DRAIN:
		r = drain(m, at, c->address, why);
		break;
	case FM_MEMBERS_LEAVE:
		r = leave(m, at, c->settled);
		break;
	}
	if (r != 1)
		return r;
	m->epoch++;
	at = fm_members_find(m, c->address);
	if (at >= 0)
		m->member[at].since = m->epoch;
	return 1;
}
