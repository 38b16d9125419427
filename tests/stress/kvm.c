/*
 * A virtual CPU on far memory, by raw KVM and without a guest kernel: a loop in long mode at privilege level 3, which runs natively, so that its
 * accesses go by the processor's nested page tables and KVM's mmu notifiers. Each pass compares two words of each page with what the
 * pass before wrote there, and writes new ones, while fm-evict takes the pages away underneath. Linked with libfm.a.
 *
 *   kvm PAGES PASSES
 *
 * Prints `kvm: N passes over P pages, W wrong words`. Exit 0 only with 0 wrong words; 77: there is no usable KVM here, with the reason.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fluidmem.h"

#define PAGE      4096u
#define WORDS     (PAGE / 8)
#define LOW_BYTES 0x10000u    /* page tables and code, at guest address 0 */
#define FAR_AT    0x40000000u /* guest address of the memory, physical and linear */
#define CODE_AT   0x8000u
#define STEP      1000003ull  /* from one pass' words to the next's */
#define SKIP      77

/*
 * rdi: memory, rsi: pages, rdx: what the last pass wrote, r9: what this one writes, each plus the number of the page; r11: STEP; rbx: words
 * that were wrong. The port tells that a pass is done.
 */
__asm__(".pushsection .rodata, \"a\"\n"
	"loop_begin:\n"
	"	xor	%ecx, %ecx\n"
	"	mov	%rdi, %r10\n"
	"1:	lea	(%rdx,%rcx), %rax\n"
	"	cmp	(%r10), %rax\n"
	"	je	2f\n"
	"	inc	%rbx\n"
	"2:	cmp	4088(%r10), %rax\n"
	"	je	3f\n"
	"	inc	%rbx\n"
	"3:	lea	(%r9,%rcx), %rax\n"
	"	mov	%rax, (%r10)\n"
	"	mov	%rax, 4088(%r10)\n"
	"	add	$4096, %r10\n"
	"	inc	%rcx\n"
	"	cmp	%rsi, %rcx\n"
	"	jb	1b\n"
	"	out	%al, $0x10\n"
	"	mov	%r9, %rdx\n"
	"	add	%r11, %r9\n"
	"	jmp	loop_begin\n"
	"	.org loop_begin + 128\n"
	".popsection\n");
extern const char loop_begin[128];

struct cpu {
	int vm_fd, fd;
	struct kvm_run *run;
	uint64_t *low;
};

static void cannot(const char *what)
{
	printf("kvm: %s: %s\n", what, strerror(errno));
	exit(SKIP);
}

/* Maps the first 2 MiB, and 1 GiB from FAR_AT on, one to one, for level 3. */
static void make_tables(uint64_t *low)
{
	const uint64_t table = 0x27, large = 0xe7; /* present, writable, user, accessed; dirty, 2 MiB */

	low[0x1000 / 8] = 0x2000 | table;
	low[0x2000 / 8] = 0x3000 | table;
	low[0x2000 / 8 + 1] = 0x4000 | table;
	low[0x3000 / 8] = large;
	for (uint64_t i = 0; i < 512; i++)
		low[0x4000 / 8 + i] = (FAR_AT + (i << 21)) | large;
}

static bool add_memory(const struct cpu *c, uint32_t slot, uint64_t at, void *memory, uint64_t bytes)
{
	struct kvm_userspace_memory_region m = {
	    .slot = slot, .guest_phys_addr = at, .memory_size = bytes, .userspace_addr = (uint64_t)(uintptr_t)memory};

	return ioctl(c->vm_fd, KVM_SET_USER_MEMORY_REGION, &m) == 0;
}

static bool set_registers(const struct cpu *c, uint64_t pages, uint64_t seed)
{
	struct kvm_segment code = {.limit = 0xffffffff, .selector = 0x1b, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1};
	struct kvm_segment data = {.limit = 0xffffffff, .selector = 0x23, .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1};
	struct kvm_regs r = {.rip = CODE_AT,
			     .rflags = 0x3002, /* level 3 may use ports */
			     .rdi = FAR_AT,
			     .rsi = pages,
			     .rdx = seed,
			     .r9 = seed + STEP,
			     .r11 = STEP};
	struct kvm_sregs s;

	if (ioctl(c->fd, KVM_GET_SREGS, &s) < 0)
		return false;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){.limit = 0x67, .selector = 0x28, .type = 11, .present = 1};
	s.cr0 = 0x80050033; /* paging, protection, and what a kernel sets */
	s.cr3 = 0x1000;
	s.cr4 = 0x20;   /* PAE */
	s.efer = 0x500; /* long mode, enabled and active */
	return ioctl(c->fd, KVM_SET_SREGS, &s) == 0 && ioctl(c->fd, KVM_SET_REGS, &r) == 0;
}

static void make_cpu(struct cpu *c)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), size;

	if (kvm < 0)
		cannot("/dev/kvm");
	c->vm_fd = ioctl(kvm, KVM_CREATE_VM, 0);
	if (c->vm_fd < 0)
		cannot("a virtual machine");
	ioctl(c->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000);
	c->fd = ioctl(c->vm_fd, KVM_CREATE_VCPU, 0);
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (c->fd < 0 || size <= 0)
		cannot("a virtual CPU");
	c->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
	c->low = mmap(NULL, LOW_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (c->run == MAP_FAILED || c->low == MAP_FAILED)
		cannot("its memory");
	make_tables(c->low);
	memcpy((char *)c->low + CODE_AT, loop_begin, sizeof loop_begin);
	if (!add_memory(c, 0, 0, c->low, LOW_BYTES))
		cannot("its memory");
	close(kvm);
}

/* One pass. Returns false when the CPU stopped for another reason. */
static bool run_pass(const struct cpu *c)
{
	while (ioctl(c->fd, KVM_RUN, 0) < 0)
		if (errno != EINTR) {
			fprintf(stderr, "kvm: KVM_RUN: %s\n", strerror(errno));
			return false;
		}
	if (c->run->exit_reason == KVM_EXIT_IO && c->run->io.port == 0x10)
		return true;
	fprintf(stderr, "kvm: it stopped with reason %u\n", c->run->exit_reason);
	return false;
}

static void fill(uint64_t *memory, uint64_t pages, uint64_t seed)
{
	for (uint64_t p = 0; p < pages; p++)
		memory[p * WORDS] = memory[p * WORDS + WORDS - 1] = seed + p;
}

/* Does it work at all here, on ordinary memory? */
static void try_out(struct cpu *c)
{
	uint64_t *memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || !add_memory(c, 1, FAR_AT, memory, 4 * PAGE))
		cannot("memory");
	fill(memory, 4, 7);
	if (!set_registers(c, 4, 7) || !run_pass(c) || memory[WORDS] != 7 + STEP + 1) {
		printf("kvm: this KVM does not run a loop in long mode\n");
		exit(SKIP);
	}
	add_memory(c, 1, FAR_AT, memory, 0);
	munmap(memory, 4 * PAGE);
}

int main(int argc, char **argv)
{
	uint64_t pages = argc > 1 ? strtoull(argv[1], NULL, 0) : 0, passes = argc > 2 ? strtoull(argv[2], NULL, 0) : 0, done, wrong, *memory;
	struct fm_options o = {.name = "kvm"};
	struct kvm_regs r;
	struct cpu c;

	if (argc != 3 || !pages || pages > 262144 || !passes)
		return 2;
	make_cpu(&c);
	try_out(&c);
	memory = fm_map(pages * PAGE, &o);
	if (!memory || !add_memory(&c, 1, FAR_AT, memory, pages * PAGE)) {
		fprintf(stderr, "kvm: far memory: %s\n", strerror(errno));
		return 1;
	}
	fill(memory, pages, 42);
	if (!set_registers(&c, pages, 42))
		return 1;
	for (done = 0; done < passes; done++)
		if (!run_pass(&c))
			return 1;
	if (ioctl(c.fd, KVM_GET_REGS, &r) < 0)
		return 1;
	wrong = r.rbx;
	/* The last pass, as we see it; and what no pass has touched. */
	for (uint64_t p = 0; p < pages; p++) {
		uint64_t want = 42 + passes * STEP + p;

		wrong += (memory[p * WORDS] != want) + (memory[p * WORDS + WORDS - 1] != want) + (memory[p * WORDS + WORDS / 2] != 0);
	}
	add_memory(&c, 1, FAR_AT, memory, 0);
	if (fm_unmap(memory, pages * PAGE))
		return 1;
	printf("kvm: %llu passes over %llu pages, %llu wrong words\n", (unsigned long long)done, (unsigned long long)pages,
	       (unsigned long long)wrong);
	return wrong != 0;
}
