#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "hotplug.h"
#include "qemu.h"
#include "size.h"

#define TMPFS_MAGIC     0x01021994
#define HUGETLBFS_MAGIC 0x958458f6

#define CLAIM_MS   2000 /* the time that another fm-hotplug is waited for */
#define MEMFD_NAME "/memfd:memory-backend-memfd"
#define FILE_MIN   (1u << 20) /* bytes: less is no memory-backend-file */
#define FILE_NAME  "qemu_back_mem." /* memory-backend-file in a folder: util/mmap-alloc.c, softmmu/physmem.c */

static int maps(struct vm *vm, struct fm_mapping **list, size_t *n)
{
	int r = fm_proc_maps(vm->pid, list, n);

	if (r == 0)
		return FM_EXIT_OK;
	fm_warn("%s: maps of process %d: %s", vm->arg, vm->pid,
		r == -ESRCH                  ? "the VM is gone"
		: r == -EACCES || r == -EPERM ? "no permission: run as root"
					     : strerror(-r));
	return r == -ESRCH ? FM_EXIT_PEER : FM_EXIT_FAILED;
}

/* Do mappings of one file cover [hva, hva + bytes) without a gap, in the file's order? Sets offset and mapping. */
static bool covers(const struct fm_mapping *list, size_t n, struct memory *m)
{
	const struct fm_mapping *first = fm_proc_find_address(list, n, m->hva), *v = first;
	uint64_t at = m->hva;

	if (!first)
		return false;
	m->mapping = *first;
	m->offset = first->offset + (m->hva - first->start);
	for (; at < m->hva + m->bytes; at = v->end, v++)
		if (v == list + n || v->start > at || v->dev != first->dev || v->ino != first->ino ||
		    v->offset + (at - v->start) != m->offset + (at - m->hva))
			return false;
	return true;
}

/* The address of a backend by the human monitor: where the guest sees it, then where that is in QEMU. */
static int ask_hva(struct vm *vm, const struct backend *b, uint64_t *hva)
{
	uint64_t gpa, offset;
	char line[64], *text = NULL;
	int r = vm_human(vm, "info mtree -f", &text);

	if (r)
		return r;
	r = fm_qemu_find_ram(text, b->id, &gpa, &offset);
	free(text);
	if (r) {
		fm_warn("%s: backend '%s': the guest does not see it: no device uses it", vm->arg, b->id);
		return FM_EXIT_FAILED;
	}
	snprintf(line, sizeof line, "gpa2hva 0x%llx", (unsigned long long)gpa);
	r = vm_human(vm, line, &text);
	if (r)
		return r;
	r = fm_qemu_parse_gpa2hva(text, b->id, hva);
	if (r)
		fm_warn("%s: %s: not the address of backend '%s': '%.80s'", vm->arg, line, b->id, text);
	else
		*hva -= offset;
	free(text);
	return r ? FM_EXIT_FAILED : FM_EXIT_OK;
}

void memory_name_regions(struct vm *vm, struct far_region *list, size_t n)
{
	char line[64], *tree = NULL, *text;
	struct backend *b = NULL;
	uint64_t gpa, offset, hva;
	size_t nb = 0, unnamed = 0;

	for (size_t i = 0; i < n; i++)
		unnamed += !strncmp(list[i].backend, MEMORY_BY_INODE, sizeof MEMORY_BY_INODE - 1);
	if (!unnamed || !vm->qmp || fm_qmp_human(vm->qmp, "info mtree -f", &tree, FM_QMP_REPLY_MS))
		return;
	if (vm_backends(vm, &b, &nb))
		nb = 0;
	for (size_t k = 0; k < nb; k++) {
		if (far_find(list, n, b[k].id) || fm_qemu_find_ram(tree, b[k].id, &gpa, &offset))
			continue;
		snprintf(line, sizeof line, "gpa2hva 0x%llx", (unsigned long long)gpa);
		if (fm_qmp_human(vm->qmp, line, &text, FM_QMP_REPLY_MS))
			continue;
		for (size_t i = 0; fm_qemu_parse_gpa2hva(text, b[k].id, &hva) == 0 && i < n; i++)
			if (list[i].hva == hva - offset)
				snprintf(list[i].found, sizeof list[i].found, "%s", b[k].id);
		free(text);
	}
	free(tree);
	free(b);
}

/* Is this mapping one of the file that libvirt made for a backend: .../ID, in a folder of the domain's? */
static bool is_file_of(const struct fm_mapping *v, const char *id)
{
	const char *slash = strrchr(v->name, '/');

	return slash && strncmp(v->name, "/memfd:", 7) && !strcmp(slash + 1, id);
}

static bool is_region(const struct far_region *f, size_t n, uint64_t hva)
{
	for (size_t i = 0; i < n; i++)
		if (f[i].hva == hva)
			return true;
	return false;
}

/*
 * The address of a domain's backend without its monitor: that of the file of its name, or of the one mapping of its size when no other
 * backend has this size. Those that are far have known addresses and do not count. *hva: 0: it cannot be told.
 */
static int guess_hva(struct vm *vm, const struct backend *b, uint64_t *hva)
{
	struct far_region *far = NULL;
	struct backend *all = NULL;
	struct memory *list = NULL;
	unsigned backends = 0, mappings = 0;
	size_t nfar, nall, n;
	int r = memory_list(vm, &list, &n);

	*hva = 0;
	if (r)
		return r;
	far_regions(vm->run_dir, vm, &far, &nfar);
	if (far_find(far, nfar, b->id)) {
		*hva = far_find(far, nfar, b->id)->hva;
		goto free_list;
	}
	r = vm_backends(vm, &all, &nall);
	for (size_t i = 0; !r && i < nall; i++)
		backends += all[i].bytes == b->bytes && all[i].share && !far_find(far, nfar, all[i].id);
	for (size_t i = 0; !r && i < n; i++) {
		if (list[i].bytes != b->bytes || is_region(far, nfar, list[i].hva))
			continue;
		if (!mappings++ || is_file_of(&list[i].mapping, b->id))
			*hva = list[i].hva;
		if (is_file_of(&list[i].mapping, b->id)) {
			mappings = backends = 1;
			break;
		}
	}
	if (mappings != 1 || backends != 1)
		*hva = 0;
	free(all);
free_list:
	free(far);
	free(list);
	return r;
}

int memory_find(struct vm *vm, const struct backend *b, struct memory *m)
{
	struct fm_mapping *list;
	size_t n;
	int r;

	*m = (struct memory){.bytes = b->bytes};
	r = vm->domain ? guess_hva(vm, b, &m->hva) : FM_EXIT_OK;
	if (!r && !m->hva)
		r = ask_hva(vm, b, &m->hva);
	if (!r)
		r = maps(vm, &list, &n);
	if (r)
		return r;
	if (!covers(list, n, m)) {
		fm_warn("%s: backend '%s': not found in process %d; if that is not the QEMU process, name the VM by pid:N", vm->arg, b->id,
			vm->pid);
		r = FM_EXIT_FAILED;
	}
	free(list);
	return r;
}

int memory_find_new(struct vm *vm, uint64_t bytes, const struct fm_mapping *before, size_t nbefore, struct memory *m)
{
	struct fm_mapping *list;
	unsigned hits = 0;
	size_t n;
	int r = maps(vm, &list, &n);

	if (r)
		return r;
	for (size_t i = 0; i < n; i++) {
		const struct fm_mapping *v = &list[i];
		bool old = !v->shared || v->end - v->start != bytes;

		for (size_t k = 0; k < nbefore && !old; k++)
			old = before[k].ino == v->ino && before[k].dev == v->dev;
		if (old)
			continue;
		hits++;
		*m = (struct memory){.hva = v->start, .bytes = bytes, .offset = v->offset, .mapping = *v};
	}
	free(list);
	if (hits == 1)
		return FM_EXIT_OK;
	fm_warn("%s: the new memory: %s in process %d; if that is not the QEMU process, name the VM by pid:N", vm->arg,
		hits ? "more than one new mapping of its size" : "not found", vm->pid);
	return FM_EXIT_FAILED;
}

/* One line that says why this file cannot be paged; NULL: it can. */
static const char *file_refusal(int file)
{
	struct statfs fs;

	if (fstatfs(file, &fs) < 0)
		return "its file system is not known";
	if (fs.f_type == HUGETLBFS_MAGIC)
		return "it is backed by huge pages (hugetlbfs), which cannot be paged: use ordinary pages (hugetlb=off)";
	if (fs.f_type != TMPFS_MAGIC)
		return "it is a file on a disk: use memory-backend-memfd, or a file on tmpfs (/dev/shm)";
	return NULL;
}

/*
 * A page of a huge folio cannot be given up for sure: while another page of it is in use (O_DIRECT, any short reference) the
 * kernel does not split it, and a hole punched into it becomes zeros that the guest then reads without a page fault.
 */
static const char *huge_refusal(const struct memory *m)
{
	if (!strncmp(m->mapping.name, "/memfd:", 7))
		return "it holds huge pages, which cannot be paged: write never to /sys/kernel/mm/transparent_hugepage/shmem_enabled and "
		       "hugepages-*/shmem_enabled there, then start the VM anew";
	return "it holds huge pages, which cannot be paged: mount its tmpfs with huge=never, then start the VM anew with a new file";
}

static const char *flags_refusal(const struct memory *m, const struct fm_vmflags *f)
{
	if (f->hugetlb)
		return "it is backed by huge pages (hugetlbfs), which cannot be paged: use ordinary pages (hugetlb=off)";
	if (f->locked)
		return "it is locked in memory: start the VM without -overcommit mem-lock=on";
	if (f->huge_kib)
		return huge_refusal(m);
	return f->io ? "it is device memory" : NULL;
}

static int refuse(struct vm *vm, const char *what, const char *why)
{
	fm_warn("%s: %s: %s", vm->arg, what, why);
	return FM_EXIT_FAILED;
}

/* Flags of all its mappings. */
static int check_flags(struct vm *vm, const char *what, const struct memory *m, bool *far)
{
	struct fm_mapping *list;
	struct fm_vmflags f;
	const char *why = NULL;
	size_t n;
	int r = maps(vm, &list, &n);

	if (r)
		return r;
	*far = false;
	for (size_t i = 0; i < n && !why; i++) {
		if (list[i].end <= m->hva || list[i].start >= m->hva + m->bytes)
			continue;
		r = fm_proc_vmflags(vm->pid, list[i].start, &f);
		if (r)
			why = r == -EACCES ? "no permission to look at it: run as root" : "its flags cannot be read";
		else
			why = flags_refusal(m, &f);
		*far |= f.uffd_missing || f.uffd_wp;
	}
	free(list);
	return why ? refuse(vm, what, why) : FM_EXIT_OK;
}

int memory_check(struct vm *vm, const char *what, const struct memory *m, bool *far, int *file, int *remote)
{
	const struct fm_mapping *v = &m->mapping;
	const char *why;
	char text[128];
	int other, r;

	*far = false;
	*file = *remote = -1;
	if (!v->shared)
		return refuse(vm, what, "it is private (share=off): start the VM with share=on for its memory backend");
	if (!v->ino || !v->read || !v->write)
		return refuse(vm, what, "it is not a file mapped for reading and writing: use memory-backend-memfd,share=on");
	r = check_flags(vm, what, m, far);
	if (r || *far)
		return r;
	r = fm_proc_other_mapper(vm->pid, v->dev, v->ino, &other);
	if (r) {
		snprintf(text, sizeof text, "process %d has it mapped too (vhost-user, or another fm-hotplug?): it would read missing pages as zeros",
			 other);
		return refuse(vm, what, r > 0 ? text : strerror(-r));
	}
	*file = fm_proc_open_mapping(vm->pid, v, remote);
	if (*file < 0)
		return refuse(vm, what, *file == -EACCES || *file == -EPERM ? "no permission to open it: run as root" : strerror(-*file));
	why = file_refusal(*file);
	if (!why)
		return FM_EXIT_OK;
	close(*file);
	*file = -1;
	return refuse(vm, what, why);
}

/*
 * Two of us at once: what one has registered, and fm-faultd evicted, the other's memory_check_folios() would fill with zeros, past the userfaultfd.
 * The lock is one of the open file, so that it outlives us when we are killed while the request to register is on its way.
 */
int memory_claim(struct vm *vm, const char *what, const struct memory *m, int file, bool *far)
{
	static const struct timespec pause = {.tv_nsec = 20000000};
	char text[96];

	for (unsigned ms = 0; flock(file, LOCK_EX | LOCK_NB) < 0; ms += 20) {
		int e = errno;

		if (e == EWOULDBLOCK && ms < CLAIM_MS) {
			nanosleep(&pause, NULL);
			continue;
		}
		snprintf(text, sizeof text, "lock its file: %s", strerror(e));
		return refuse(vm, what, e == EWOULDBLOCK ? "another fm-hotplug takes it over (it holds the lock of its file): try again later" : text);
	}
	return check_flags(vm, what, m, far);
}

int memory_check_folios(struct vm *vm, const char *what, const struct memory *m, int file)
{
	uint64_t pages;
	int r = fm_proc_large_folios(file, m->offset, m->bytes, &pages);
	char text[96];

	if (!r)
		return pages ? refuse(vm, what, huge_refusal(m)) : FM_EXIT_OK;
	if (r == -EACCES || r == -EPERM)
		return refuse(vm, what, "no permission to look for huge pages in it (/proc/kpageflags): run as root");
	snprintf(text, sizeof text, "look for huge pages in it: %s", strerror(-r));
	return refuse(vm, what, text);
}

bool memory_registered(const struct vm *vm, uint64_t hva, uint64_t bytes)
{
	struct fm_mapping *list;
	struct fm_vmflags flags;
	bool yes = false;
	size_t n;

	if (fm_proc_maps(vm->pid, &list, &n))
		return true;
	for (size_t i = 0; i < n && !yes; i++)
		if (list[i].start < hva + bytes && hva < list[i].end)
			yes = fm_proc_vmflags(vm->pid, list[i].start, &flags) || flags.uffd_missing || flags.uffd_wp;
	free(list);
	return yes;
}

/* Files mapped shared that are no memory of a guest: devices, rings, memfds of other libraries. */
static bool is_other_file(const char *name)
{
	static const char *const others[] = {"/dev/", "/memfd:", "/SYSV", "/[", "anon_inode:"};

	if (!strncmp(name, "/dev/shm/", 9) || !strncmp(name, "/dev/hugepages", 14))
		return false;
	for (unsigned i = 0; i < sizeof others / sizeof *others; i++)
		if (!strncmp(name, others[i], strlen(others[i])))
			return true;
	return *name != '/';
}

static bool is_backend_file(const struct fm_mapping *v)
{
	if (!v->shared || !v->read || !v->write || !v->ino)
		return false;
	return !strncmp(v->name, MEMFD_NAME, sizeof MEMFD_NAME - 1) || strstr(v->name, FILE_NAME) ||
	       (v->end - v->start >= FILE_MIN && !is_other_file(v->name));
}

int memory_list(struct vm *vm, struct memory **list, size_t *n)
{
	struct fm_mapping *v;
	size_t nv;
	int r = maps(vm, &v, &nv);

	*list = NULL;
	*n = 0;
	if (r)
		return r;
	*list = calloc(nv + 1, sizeof **list);
	for (size_t i = 0; *list && i < nv; i++) {
		struct memory *last = *n ? &(*list)[*n - 1] : NULL;

		if (!is_backend_file(&v[i]))
			continue;
		/* One backend may have been cut into several mappings, by registering it in shards. */
		if (last && last->hva + last->bytes == v[i].start && last->mapping.ino == v[i].ino &&
		    last->offset + last->bytes == v[i].offset)
			last->bytes += v[i].end - v[i].start;
		else
			(*list)[(*n)++] = (struct memory){
			    .hva = v[i].start, .bytes = v[i].end - v[i].start, .offset = v[i].offset, .mapping = v[i]};
	}
	free(v);
	return *list ? FM_EXIT_OK : refuse(vm, "memory", strerror(ENOMEM));
}

int memory_check_vm(struct vm *vm)
{
	struct memory *list;
	char text[192];
	size_t n;
	int other = 0, r;
	const struct forbidden *device;

	r = vm_check_status(vm);
	if (!r)
		r = vm_forbidden(vm, &device);
	if (r)
		return r;
	if (device)
		return refuse(vm, device->what, device->why);
	r = memory_list(vm, &list, &n);
	if (r)
		return r;
	for (size_t i = 0; i < n && !other; i++)
		if (fm_proc_other_mapper(vm->pid, list[i].mapping.dev, list[i].mapping.ino, &other) != 1)
			other = 0;
	free(list);
	if (!other)
		return FM_EXIT_OK;
	snprintf(text, sizeof text,
		 "process %d has it mapped too (vhost-user, or another fm-hotplug?): it would read missing pages as zeros; remove that device, or try "
		 "again later",
		 other);
	return refuse(vm, "its memory", text);
}
