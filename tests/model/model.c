/*
 * A model of the page-state protocol, explored exhaustively: one page, a client, a fault shard with a second event in hand (a stale
 * duplicate), an evictor, a store that acknowledges late and deletes late, a discard, an outside punch, and the death of each daemon at any step.
 *
 *   model [RULE]     explore; RULE: with that rule of DESIGN.md taken away (0: none). Prints states seen and what was violated.
 *   model rules      print how many there are
 *
 * What is checked, over all interleavings up to a bound on writes, faults, write-backs and deaths:
 *   - a read returns what was written last (or zeros after a discard): `contents`
 *   - no thread waits for ever: when nothing more happens, no client is blocked (`hang`)
 *   - a page that left is in the store under its word's generation (`lost`)
 *
 * One shard, since a page has exactly one: two events of the page in its hand, in either order, are what a second one would be. Two shards meet
 * in the evictor only, page by page.
 *
 * Contents are version numbers: 0 is zeros; each write makes a new one. Steps are as fine as the code's: one swap of the word, one ioctl, one
 * store message, one punch. Exit 0: nothing violated; 1: a violation; 2: usage or out of room.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum rule {
	ALL_RULES,
	NO_OWNER_FAULT,     /* 2: a shard unprotects without taking the page first */
	NO_OWNER_FILL,      /* 2: a shard answers a missing fault without taking the page: a stale duplicate zero-fills */
	NO_GENERATION,      /* 1: a write-back keeps the generation: ABA, and a late put overwrites */
	NO_OWN_ACK,         /* 3: the page leaves before the store has acknowledged */
	NO_WAKE,            /* 4: nobody wakes who ran into DROPPING */
	NO_PROTECT,         /* 3: the page is read and stored without protection */
	PROTECT_AFTER_READ, /* 3: protected after it was read */
	ZERO_THEN_PROTECT,  /* 6: a read fault installs a page of zeros writable, and protects it then */
	BUSY_AFTER,         /* 7: BUSY is published after the ioctl */
	NO_RECOVER_DROP,    /* after the evictor's death: DROPPING stays */
	RECOVER_CLEAN,      /* after the shard's death: a page that was being unprotected counts as clean */
	NO_WAKE_ALL,        /* after a death waiters are not woken */
	NO_ZERO_FLAG,       /* a clean page of zeros is not told from a stored one */
	DELETE_NEW,         /* a late delete names the page, not the generation */
	RULES
};

static const char *const names[RULES] = {
    "all rules", "fault without owner", "fill without owner", "no new generation", "leaves without its own acknowledgement",
    "no wake after the punch", "no write protection", "protected after reading", "zeros first, protection later",
    "BUSY after the ioctl", "a dead evictor's drop stays", "a dead shard's page counts as clean", "no wake after a death",
    "no zero flag",
    "a delete without a generation"};

enum { EMPTY, DIRTY, CLEAN, REMOTE, BUSY, WRITEBACK, DROPPING };
enum { RUNS, FAULTED_R, FAULTED_W }; /* the client: what it waits for */
/* Where the shard is. An event in hand is a missing (M) or a protection (P) fault. */
enum { S_IDLE, S_EVENT, S_ZERO, S_COPY, S_UNPROTECT, S_PUBLISH, S_ZERO_PROTECT };
enum { E_IDLE, E_PROTECT, E_READ, E_PUT, E_ACK, E_DROP, E_PUNCH, E_PUBLISH, E_WAKE };

#define GENS 4

struct state {
	uint8_t st, origin, gen, waiter, zero; /* the page's word */
	uint8_t page, wp;                /* page: 0 hole, 1 + version; wp: write-protected */
	uint8_t want;                    /* version that a read must see */
	uint8_t client, blocked;         /* blocked: waits for a wake */
	uint8_t queue;                   /* events unread: bit 0 missing read, 1 missing write, 2 protection */
	uint8_t s, ev, s_st, s_gen;      /* shard: step, event in hand, the word it owns or saw */
	uint8_t stale;                   /* a duplicate missing event in the shard's hand for later */
	uint8_t e, e_gen, e_buf, e_late; /* evictor: step, generation, bytes read; e_late: it was taken back */
	uint8_t store[GENS];             /* 0 none, 1 + version */
	uint8_t flying, fly_v, fly_g;    /* a message to the store on its way: 1 put, 2 delete */
	uint8_t late, late_v, late_g;    /* one of a dead evictor, that arrives whenever it likes */
	uint8_t writes, evicts, deaths, discards;
};

#define WRITES   3
#define EVICTS   3
#define DEATHS   1
#define DISCARDS 1

static enum rule broken;
static const char *violation;

/* --- the set of states that were seen */

#define ROOM (1u << 25)
static struct state *seen;
static uint32_t *table;
static uint32_t nseen;

static uint64_t hash(const struct state *s)
{
	const unsigned char *p = (const unsigned char *)s;
	uint64_t h = 0xcbf29ce484222325ull;

	for (size_t i = 0; i < sizeof *s; i++)
		h = (h ^ p[i]) * 0x100000001b3ull;
	return h ^ (h >> 29);
}

#define MOST 12000000u
static void add(const struct state *s)
{
	uint32_t i = (uint32_t)hash(s) & (ROOM - 1);

	for (; table[i]; i = (i + 1) & (ROOM - 1))
		if (memcmp(&seen[table[i] - 1], s, sizeof *s) == 0)
			return;
	if (nseen == MOST) {
		fprintf(stderr, "model: more than %u states\n", MOST);
		exit(2);
	}
	seen[nseen++] = *s;
	table[i] = nseen;
}

/* --- steps: each takes a state, and adds what may follow */

static bool resident(uint8_t st)
{
	return st == DIRTY || st == CLEAN || st == WRITEBACK || st == DROPPING;
}

static void wake(struct state *n)
{
	if (n->blocked)
		n->blocked = 0; /* it looks again: client() */
	/* Events of who was woken before they were read are gone; one that the shard has in hand is stale now. */
	n->queue = 0;
}

static void send(struct state *n, unsigned what, unsigned v, unsigned gen)
{
	n->flying = (uint8_t)what;
	n->fly_v = (uint8_t)v;
	n->fly_g = (uint8_t)gen;
}

static void client(const struct state *s)
{
	struct state n;

	if (s->blocked)
		return;
	if (s->client == RUNS) {
		n = *s;
		n.client = FAULTED_R;
		add(&n);
		if (s->writes < WRITES) {
			n = *s;
			n.client = FAULTED_W;
			n.writes++;
			add(&n);
		}
		if (s->discards < DISCARDS && !s->flying) {
			/* An outside punch, as QEMU does before its event: the shard finds the hole. The word's owner is not asked. */
			if (s->page && (s->st == DIRTY || s->st == CLEAN)) {
				n = *s;
				n.discards++;
				n.page = n.wp = 0;
				n.want = 0;
				n.st = DIRTY; /* the event's walk: what was CLEAN is not dropped unsaved (shard_discard.c) */
				add(&n);
			}
			/* A discard of a page that is away: its event is noted before the client goes on, and its copy deleted some time. */
			if (s->st == REMOTE && s->s == S_IDLE) {
				n = *s;
				n.discards++;
				n.want = 0;
				n.st = EMPTY;
				send(&n, 2, 0, s->gen);
				add(&n);
			}
		}
		return;
	}
	/* The access itself. */
	n = *s;
	if (!s->page) {
		n.blocked = 1;
		n.queue |= s->client == FAULTED_W ? 2 : 1;
		add(&n);
		return;
	}
	if (s->client == FAULTED_R) {
		if (s->page - 1 != s->want)
			violation = "contents: a read saw another version than was written last";
		n.client = RUNS;
		add(&n);
		return;
	}
	if (s->wp) {
		n.blocked = 1;
		n.queue |= 4;
		add(&n);
		return;
	}
	n.want = s->writes;
	n.page = (uint8_t)(1 + s->writes);
	n.client = RUNS;
	add(&n);
}

static void shard_event(const struct state *s)
{
	struct state n = *s;
	bool missing = s->ev != 4;

	switch (s->st) {
	case EMPTY:
	case REMOTE:
		if (!missing) { /* the page left meanwhile: it faults anew when woken */
			wake(&n);
			n.s = S_IDLE;
			break;
		}
		n.s_st = s->st;
		n.s_gen = s->gen;
		n.s = s->st == EMPTY ? S_ZERO : S_COPY;
		if (broken != BUSY_AFTER) {
			n.origin = s->st;
			n.st = BUSY;
		}
		break;
	case DIRTY:
	case CLEAN:
	case WRITEBACK:
		if (missing && s->page && broken != NO_OWNER_FILL) { /* stale: a wake is enough */
			wake(&n);
			n.s = S_IDLE;
			break;
		}
		if (missing && broken == NO_OWNER_FILL) {
			n.s = S_ZERO;
			n.s_st = BUSY; /* nothing owned, nothing published */
			break;
		}
		n.s_st = s->st == WRITEBACK ? DIRTY : s->st;
		n.s = missing ? S_ZERO : S_UNPROTECT;
		if (broken == NO_OWNER_FAULT && !missing) {
			n.s_st = s->st;
			break;
		}
		if (broken != BUSY_AFTER) {
			n.origin = n.s_st;
			n.st = BUSY;
		}
		break;
	case DROPPING:
		if (broken == NO_OWNER_FILL && missing) {
			n.s = S_ZERO;
			n.s_st = BUSY;
			break;
		}
		n.waiter = 1;
		n.s = S_IDLE;
		break;
	default:
		return;
	}
	add(&n);
}

static void shard(const struct state *s)
{
	struct state n = *s;

	switch (s->s) {
	case S_IDLE:
		for (unsigned b = 1; b <= 4; b *= 2)
			if (s->queue & b) {
				n = *s;
				n.queue &= (uint8_t)~b;
				n.ev = (uint8_t)b;
				n.s = S_EVENT;
				add(&n);
				/* The same fault may be read twice: two threads, or a wake in between. */
				if (b != 4 && !s->stale) {
					n.stale = (uint8_t)b;
					add(&n);
				}
			}
		if (s->stale) {
			n = *s;
			n.ev = s->stale;
			n.stale = 0;
			n.s = S_EVENT;
			add(&n);
		}
		return;
	case S_EVENT:
		shard_event(s);
		return;
	case S_ZERO:
		if (!s->page) {
			n.page = 1;
			/* For a read: copied write-protected in one ioctl. */
			n.wp = s->ev == 1 && broken != ZERO_THEN_PROTECT && s->s_st == EMPTY;
		}
		wake(&n);
		n.s = s->s_st == BUSY                                                       ? S_IDLE
		    : s->ev == 1 && broken == ZERO_THEN_PROTECT && s->s_st == EMPTY ? S_ZERO_PROTECT
										    : S_PUBLISH;
		add(&n);
		return;
	case S_ZERO_PROTECT:
		n.wp = n.page != 0;
		n.s = S_PUBLISH;
		add(&n);
		return;
	case S_COPY:
		if (!s->store[s->s_gen]) {
			violation = "lost: a page that left is not in the store";
			return;
		}
		if (!s->page) {
			n.page = s->store[s->s_gen];
			n.wp = s->ev == 1;
		}
		wake(&n);
		n.s = S_PUBLISH;
		add(&n);
		return;
	case S_UNPROTECT:
		n.wp = 0;
		wake(&n);
		n.s = broken == NO_OWNER_FAULT ? S_IDLE : S_PUBLISH;
		if (broken == NO_OWNER_FAULT && s->st == s->s_st && s->st != DROPPING)
			n.st = DIRTY;
		add(&n);
		return;
	case S_PUBLISH:
		if (broken != BUSY_AFTER && s->st != BUSY) {
			violation = "owner: somebody wrote the word of a page that is the shard's";
			return;
		}
		if (broken == BUSY_AFTER && s->st != s->s_st && !(s->st == WRITEBACK && s->s_st == DIRTY)) {
			n.s = S_IDLE; /* its swap failed */
			add(&n);
			return;
		}
		n.st = (s->s_st == EMPTY || s->s_st == REMOTE) && s->ev == 1 ? CLEAN : DIRTY;
		n.zero = n.st == CLEAN && s->s_st == EMPTY;
		n.origin = 0;
		n.s = S_IDLE;
		add(&n);
		return;
	default:
		return;
	}
}

/* What is on its way arrives, whether or not its sender lives. */
static void store(const struct state *s)
{
	struct state n = *s;

	if (s->late) {
		if (s->late == 1)
			n.store[s->late_g] = (uint8_t)(1 + s->late_v);
		else if (broken == DELETE_NEW)
			memset(n.store, 0, sizeof n.store);
		else
			n.store[s->late_g] = 0;
		n.late = n.late_v = n.late_g = 0;
		add(&n);
		n = *s;
	}
	if (!s->flying)
		return;
	if (s->flying == 1)
		n.store[s->fly_g] = (uint8_t)(1 + s->fly_v);
	else if (broken == DELETE_NEW)
		memset(n.store, 0, sizeof n.store);
	else
		n.store[s->fly_g] = 0;
	n.flying = n.fly_v = n.fly_g = 0;
	add(&n);
}

static void evictor(const struct state *s)
{
	struct state n = *s;
	uint8_t next_gen = (uint8_t)(broken == NO_GENERATION ? (s->gen ? s->gen : 1) : s->gen + 1);

	switch (s->e) {
	case E_IDLE:
		if (s->evicts == EVICTS)
			return;
		n.evicts++;
		if (s->st == DIRTY && next_gen < GENS) {
			n.st = WRITEBACK;
			n.gen = n.e_gen = next_gen;
			n.e = broken == PROTECT_AFTER_READ || broken == NO_PROTECT ? E_READ : E_PROTECT;
			add(&n);
		} else if (s->st == CLEAN) {
			n.st = DROPPING;
			n.e_gen = s->gen;
			n.e_buf = s->zero && !(broken == NO_ZERO_FLAG && s->gen) ? 1 : 2; /* not all zero: only whether it is stored counts */
			n.zero = 0;
			n.e = E_PUNCH;
			add(&n);
		}
		return;
	case E_PROTECT:
		n.wp = n.page != 0;
		n.e = broken == PROTECT_AFTER_READ ? E_PUT : E_READ;
		add(&n);
		return;
	case E_READ:
		n.e_buf = s->page ? s->page : 1;
		n.e = broken == PROTECT_AFTER_READ ? E_PROTECT : E_PUT;
		add(&n);
		return;
	case E_PUT:
		if (s->e_buf == 1) { /* all zero: not sent */
			n.e = E_DROP;
			add(&n);
			return;
		}
		if (s->flying)
			return; /* its connection is in order */
		send(&n, 1, s->e_buf - 1u, s->e_gen);
		n.e = broken == NO_OWN_ACK ? E_DROP : E_ACK;
		add(&n);
		return;
	case E_ACK:
		if (s->flying)
			return;
		n.e = E_DROP;
		add(&n);
		return;
	case E_DROP:
		if (s->st == WRITEBACK && s->gen == s->e_gen) {
			n.st = DROPPING;
			n.e = E_PUNCH;
		} else { /* taken back: its copy is deleted, some time */
			if (s->e_buf != 1 && !s->flying)
				send(&n, 2, 0, s->e_gen);
			n.e = E_IDLE;
			n.e_gen = n.e_buf = 0;
		}
		add(&n);
		return;
	case E_PUNCH:
		n.page = n.wp = 0;
		n.e = E_PUBLISH;
		add(&n);
		return;
	case E_PUBLISH:
		n.st = s->e_buf == 1 ? EMPTY : REMOTE;
		n.e = s->waiter && broken != NO_WAKE ? E_WAKE : E_IDLE;
		n.waiter = 0;
		if (n.e == E_IDLE)
			n.e_gen = n.e_buf = 0;
		/* The copy before is superseded: deleted some time. */
		if (n.st == REMOTE && !s->flying && s->e_gen > 1 && s->store[s->e_gen - 1])
			send(&n, 2, 0, s->e_gen - 1u);
		add(&n);
		return;
	case E_WAKE:
		wake(&n);
		n.e = E_IDLE;
		n.e_gen = n.e_buf = 0;
		add(&n);
		return;
	default:
		return;
	}
}

static void deaths(const struct state *s)
{
	struct state n;

	if (s->deaths == DEATHS)
		return;
	/* The evictor dies, and is mended: fm_evict_recover(). */
	n = *s;
	n.deaths++;
	n.e = E_IDLE;
	n.e_gen = n.e_buf = 0;
	n.late = n.flying;
	n.late_v = n.fly_v;
	n.late_g = n.fly_g;
	n.flying = n.fly_v = n.fly_g = 0;
	if (n.st == WRITEBACK)
		n.st = DIRTY;
	if (n.st == DROPPING && broken != NO_RECOVER_DROP) {
		n.st = n.page ? DIRTY : s->e_buf == 1 ? EMPTY : REMOTE;
		n.waiter = 0;
	}
	if (broken != NO_WAKE_ALL)
		wake(&n);
	add(&n);
	/* fm-faultd dies, and the evictor with it: fm_shard_recover(), too. What it had read is not sent again. */
	n.s = S_IDLE;
	n.ev = n.s_st = n.s_gen = n.stale = 0;
	if (n.st == BUSY) {
		n.st = resident(n.origin) || n.page ? (broken == RECOVER_CLEAN && n.wp == 0 && n.origin == CLEAN ? CLEAN : DIRTY) : n.origin;
		n.origin = 0;
	}
	add(&n);
}

/* Nothing more may happen but deaths: then nobody must wait. */
static void check_quiet(const struct state *s, uint32_t before)
{
	if (nseen == before && s->blocked && !s->queue && s->s == S_IDLE && s->e == E_IDLE && !s->stale && !s->flying && !s->late)
		violation = "hang: a client waits, and nobody will wake it";
}

static void explore(void)
{
	struct state first;

	memset(&first, 0, sizeof first);
	add(&first);
	for (uint32_t i = 0; i < nseen && !violation; i++) {
		struct state s = seen[i];
		bool moves = s.queue || s.s != S_IDLE || s.e != E_IDLE || s.stale || s.flying || s.late;

		client(&s);
		shard(&s);
		evictor(&s);
		store(&s);
		if (!moves)
			check_quiet(&s, nseen);
		deaths(&s);
	}
}

int main(int argc, char **argv)
{
	int rule = argc > 1 ? atoi(argv[1]) : 0;

	if (argc > 1 && strcmp(argv[1], "rules") == 0) {
		printf("%d\n", RULES - 1);
		return 0;
	}
	if (rule < 0 || rule >= RULES)
		return 2;
	broken = (enum rule)rule;
	seen = malloc((size_t)MOST * sizeof *seen);
	table = calloc(ROOM, sizeof *table);
	if (!seen || !table)
		return 2;
	explore();
	printf("model: %s: %u states: %s\n", names[broken], nseen, violation ? violation : "nothing violated");
	free(seen);
	free(table);
	return violation ? 1 : 0;
}
