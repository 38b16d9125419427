/*
 * The XML document of a libvirt domain (`virsh dumpxml`, https://libvirt.org/formatdomain.html): what it says about memory.
 */
#ifndef FM_DOMXML_H
#define FM_DOMXML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FM_DOMXML_NAME  256 /* bytes of a domain's name or a device's alias with its NUL */
#define FM_DOMXML_WORD  24
#define FM_DOMXML_UUID  37
#define FM_DOMXML_CELLS 128 /* NUMA cells */

/* <memory> below <devices>. */
struct fm_domxml_memory {
	char alias[FM_DOMXML_NAME]; /* "": the domain does not run */
	char model[FM_DOMXML_WORD]; /* "dimm", "virtio-mem", "nvdimm", ... */
	char access[FM_DOMXML_WORD]; /* "shared", "private", "": the domain's default */
	uint64_t bytes;             /* a DIMM's size; what a virtio-mem device can grow to */
	uint64_t requested, current; /* of a virtio-mem device, bytes */
	uint64_t gpa;               /* guest physical address; 0: not told */
	int node;                   /* guest NUMA cell; 0: not told */
	int slot;                   /* -1: none */
};

struct fm_domxml {
	char name[FM_DOMXML_NAME];
	char uuid[FM_DOMXML_UUID]; /* lower case, with dashes */
	bool running;              /* or paused: it has a process */
	unsigned vcpus;
	uint64_t memory_bytes;     /* <memory>: all that it was started with or has now, devices included */
	uint64_t max_bytes;        /* <maxMemory>; 0: none */
	unsigned slots;            /* of <maxMemory> */
	char source[FM_DOMXML_WORD]; /* <memoryBacking><source type=>; "": none */
	char access[FM_DOMXML_WORD]; /* <memoryBacking><access mode=>; "": none */
	bool hugepages, locked;
	bool has_backing;          /* <memoryBacking> is there */
	bool has_cpu;              /* <cpu> is there */
	unsigned ncells;           /* NUMA cells */
	uint64_t cell_bytes;       /* memory of all of them */
	bool cell_private;         /* some cell has memAccess='private' */
	bool vhost_user;           /* some device is served by another process that maps the memory */
	struct fm_domxml_memory *memory; /* nmemory devices */
	size_t nmemory;
};

/*
 * Parse the document in (text, len). Returns 0 and *d, to be ended by fm_domxml_free(); -EPROTO (not well-formed, no <domain> with a
 * name and a UUID, a number that is none; nothing to free), -ENOMEM. Unknown elements are passed over. Any thread.
 */
int fm_domxml_parse(const char *text, size_t len, struct fm_domxml *d);

/* Free what *d holds. */
void fm_domxml_free(struct fm_domxml *d);

/* Is text (any case, with or without dashes) this UUID? uuid: lower case, with dashes. Pure. */
bool fm_domxml_is_uuid(const char *text, const char *uuid);

#endif
