#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tap.h"

#define AFTER_COMM " S 1 10 10 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1000 20 18446744073709551615 1 1\n"

static void test_start(void)
{
	static const char *const good[] = {"10 (qemu)" AFTER_COMM, "10 (a b) c)" AFTER_COMM, "10 ()) S 1 2 3)" AFTER_COMM,
					   "10 (x\ny)" AFTER_COMM};
	static const char *const bad[] = {"", "10", "10 (qemu)", "10 (qemu) S 1 2 3", "10 (q) S 1 10 10 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4242",
					  "10 (q) S 1 10 10 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 -5 1",
					  "10 (q) S 1 10 10 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 99999999999999999999 1"};
	static const char cpu[] = "10 (a) b) S 1 10 10 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4242 11 12 18446744073709551615 1 2 3 4 5 6 7 8 9 10 0 0 17 5 0 2 0 0 0";
	uint64_t v, again, policy;

	for (unsigned i = 0; i < sizeof good / sizeof *good; i++) {
		v = 0;
		ok(fm_proc_parse_start(good[i], strlen(good[i]), &v) == 0 && v == 4242, "start time, comm %u", i);
	}
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
		is_u64(fm_proc_parse_start(bad[i], strlen(bad[i]), &v), -EPROTO, "bad stat %u", i);
	ok(fm_proc_parse_cpu(cpu, strlen(cpu), &v, &policy) == 0 && v == 5 && policy == 2, "the CPU of a thread, and its policy");
	is_u64(fm_proc_parse_cpu(cpu, strlen(cpu) - 10, &v, &policy), -EPROTO, "... cut off");
	is_u64(fm_proc_parse_cpu(cpu, strlen(cpu) - 6, &v, &policy), -EPROTO, "... cut off before the policy");
	is_u64(fm_proc_parse_cpu(bad[3], strlen(bad[3]), &v, &policy), -EPROTO, "... not there");
	ok(fm_proc_cpu(getpid(), getpid(), &v, &policy) == 0 && v < (uint64_t)sysconf(_SC_NPROCESSORS_CONF) && policy == SCHED_OTHER,
	   "our own CPU, and policy");
	is_u64(fm_proc_cpu(getpid(), 1, &v, &policy), -ESRCH, "... of a thread that is another's");
	ok(fm_proc_start(getpid(), &v) == 0 && v > 0, "our own start time");
	ok(fm_proc_start(getpid(), &again) == 0 && again == v, "... is the same again");

	int pid = fork();
	if (pid == 0) {
		prctl(PR_SET_NAME, ") S 1 (");
		raise(SIGSTOP);
		_exit(0);
	}
	if (!ok(pid > 0, "fork"))
		return;
	waitpid(pid, NULL, WUNTRACED);
	ok(fm_proc_start(pid, &again) == 0 && again >= v, "a process with a nasty name");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	is_u64(fm_proc_start(pid, &v), -ESRCH, "a process that is gone");
}

static int parse(const char *line, struct fm_mapping *m)
{
	return fm_proc_parse_mapping(line, strlen(line), m);
}

static void test_parse(void)
{
	static const char *const bad[] = {"",
					  "7f00",
					  "7f00-7f10",
					  "7f10-7f00 rw-s 0 00:01 5",
					  "7f00-7f00 rw-s 0 00:01 5",
					  "7f00-7f10 rw-x 00000000 00:01 5",
					  "7f00-7f10 rw-s 00000000 0001 5",
					  "7f00-7f10 rw-s 00000000 00:01 ",
					  "7f00-7f10 rw-s",
					  "7f00-7f10 rw-s ",
					  "fffffffffffffffff-7f10 rw-s 0 0:1 5",
					  "Size:                256 kB"};
	struct fm_mapping m, *list;
	size_t n;
	char longname[400];

	ok(parse("7f0000000000-7f0010000000 rw-s 00200000 00:01 1234       /memfd:memory-backend-memfd (deleted)", &m) == 0,
	   "a memfd");
	is_u64(m.start, 0x7f0000000000, "... start");
	is_u64(m.end, 0x7f0010000000, "... end");
	is_u64(m.offset, 0x200000, "... offset");
	is_u64(m.dev, makedev(0, 1), "... device");
	is_u64(m.ino, 1234, "... inode");
	ok(m.read && m.write && !m.exec && m.shared, "... shared, read and write");
	is_str(m.name, "/memfd:memory-backend-memfd (deleted)", "... name");
	ok(parse("00400000-00401000 r-xp 00000000 fe:01 99 /a b", &m) == 0 && m.exec && !m.write && !m.shared &&
	       !strcmp(m.name, "/a b"),
	   "private text with a space in its name");
	ok(parse("00400000-00401000 ---p 00000000 00:00 0 ", &m) == 0 && !m.read && !m.name[0], "a guard page without name");
	ok(parse("00400000-00401000 ---p 00000000 00:00 0", &m) == 0, "... and without the space");
	ok(parse("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]", &m) == 0 && m.exec, "vsyscall");
	snprintf(longname, sizeof longname, "1000-2000 rw-s 0 00:01 7 /%0300d", 1);
	ok(parse(longname, &m) == 0 && strlen(m.name) == FM_PROC_NAME - 1, "a long name is cut off");
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
		is_u64(parse(bad[i], &m), -EPROTO, "bad line '%s'", bad[i]);

	static const char two[] = "1000-2000 rw-s 0 00:01 7\n2000-4000 rw-p 0 00:00 0";
	ok(fm_proc_parse_maps(two, sizeof two - 1, &list, &n) == 0 && n == 2, "two lines, the last without newline");
	ok(fm_proc_find_address(list, n, 0x1fff) == &list[0] && fm_proc_find_address(list, n, 0x2000) == &list[1] &&
	       fm_proc_find_address(list, n, 0x3fff) == &list[1],
	   "find an address");
	ok(!fm_proc_find_address(list, n, 0xfff) && !fm_proc_find_address(list, n, 0x4000), "... outside");
	free(list);
	ok(fm_proc_parse_maps("", 0, &list, &n) == 0 && n == 0 && !list, "no lines");
	is_u64(fm_proc_parse_maps("1000-2000 rw-s 0 00:01 7\n\n", 26, &list, &n), -EPROTO, "an empty line");
}

static void test_vmflags(void)
{
	static const char text[] = "1000-2000 rw-s 0 00:01 7 /x\nSize: 4 kB\nShmemPmdMapped:        0 kB\nFilePmdMapped:         0 kB\n"
				   "Locked:                0 kB\nVmFlags: rd wr sh \n"
				   "2000-3000 rw-s 0 00:01 8 /y\nAnonHugePages:         4 kB\nShmemPmdMapped:     2048 kB\nFilePmdMapped:      4096 kB\n"
				   "Locked:               12 kB\nVmFlags: rd wr sh dc lo ht um uw nh \n"
				   "3000-4000 rw-s 0 00:01 9\nLocked: 1 kB\n4000-5000 rw-s 0 00:01 9\n";
	struct fm_vmflags f;

	ok(fm_proc_parse_vmflags(text, sizeof text - 1, 0x1000, &f) == 0 && !f.locked && !f.dontfork && !f.hugetlb &&
	       !f.uffd_missing && !f.uffd_wp && f.locked_kib == 0 && f.huge_kib == 0 && !f.nohuge && !f.io,
	   "a plain mapping");
	ok(fm_proc_parse_vmflags(text, sizeof text - 1, 0x2000, &f) == 0 && f.locked && f.dontfork && f.hugetlb &&
	       f.uffd_missing && f.uffd_wp && f.locked_kib == 12 && f.huge_kib == 6144 && f.nohuge,
	   "all flags");
	is_u64(fm_proc_parse_vmflags(text, sizeof text - 1, 0x3000, &f), -EPROTO, "no flags");
	is_u64(fm_proc_parse_vmflags(text, sizeof text - 1, 0x4000, &f), -EPROTO, "cut off");
	is_u64(fm_proc_parse_vmflags(text, sizeof text - 1, 0x5000, &f), -ENOENT, "no such mapping");
}

static void test_self(void)
{
	int fd = memfd_create("test-proc", MFD_CLOEXEC), pid, other, remote, dup_fd;
	const struct fm_mapping *m;
	struct fm_mapping *list;
	struct fm_vmflags f;
	struct stat st = {.st_ino = 0};
	size_t n;
	char *p;

	if (!ok(fd >= 0 && ftruncate(fd, 1 << 20) == 0 && fstat(fd, &st) == 0, "a memfd of our own"))
		return;
	p = mmap(NULL, 1 << 19, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 1 << 19);
	if (!ok(fm_proc_maps(getpid(), &list, &n) == 0 && n > 3, "our own maps"))
		return;
	m = fm_proc_find_address(list, n, (uintptr_t)p + 5);
	ok(m != NULL, "its mapping is found");
	if (!m)
		return;
	ok(m->dev == st.st_dev && m->ino == st.st_ino && m->offset == 1 << 19 && m->shared && m->start == (uintptr_t)p,
	   "... device, inode, offset and sharing are right");
	is_u64(fm_proc_find_fd(getpid(), m->dev, m->ino), fd, "... its descriptor");
	is_u64(fm_proc_find_fd(getpid(), m->dev, m->ino + 1000000), -ENOENT, "... none of another inode");
	ok(fm_proc_vmflags(getpid(), m->start, &f) == 0 && !f.dontfork && !f.locked && !f.uffd_missing, "... flags");
	madvise(p, 1 << 19, MADV_DONTFORK);
	if (syscall(SYS_mlock, p, 4096) == 0) { /* ASan makes mlock() do nothing */
		ok(fm_proc_vmflags(getpid(), m->start, &f) == 0 && f.dontfork && f.locked && f.locked_kib > 0,
		   "... flags after MADV_DONTFORK and mlock");
		syscall(SYS_munlock, p, 4096);
	} else {
		tap_skip("flags after mlock", "mlock is not permitted");
	}
	madvise(p, 1 << 19, MADV_DOFORK);

	is_u64(fm_proc_other_mapper(getpid(), m->dev, m->ino, &other), 0, "nobody else maps it");
	pid = fork();
	if (pid == 0) {
		close(fd);
		raise(SIGSTOP);
		_exit(0);
	}
	waitpid(pid, NULL, WUNTRACED);
	ok(fm_proc_other_mapper(getpid(), m->dev, m->ino, &other) == 1 && other == pid, "a forked child maps it");
	dup_fd = fm_proc_open_mapping(getpid(), m, &remote);
	ok(dup_fd >= 0 && remote == fd, "open it by descriptor");
	close(dup_fd);
	dup_fd = fm_proc_open_mapping(pid, m, &remote);
	if (geteuid() == 0)
		ok(dup_fd >= 0 && remote == -1 && fstat(dup_fd, &st) == 0 && st.st_ino == m->ino, "open it by map_files");
	else
		tap_skip("open it by map_files", "needs root");
	close(dup_fd);
	if (pid <= 0)
		return;
	kill(pid, SIGKILL);
	waitid(P_PID, (id_t)pid, &(siginfo_t){0}, WEXITED | WNOWAIT);
	struct fm_mapping *zlist;
	size_t zn;
	is_u64(fm_proc_maps(pid, &zlist, &zn), -ESRCH, "maps of a zombie");
	waitpid(pid, NULL, 0);
	is_u64(fm_proc_maps(pid, &zlist, &zn), -ESRCH, "maps of nobody");
	is_u64(fm_proc_vmflags(pid, 0x1000, &f), -ESRCH, "flags of nobody");
	is_u64(fm_proc_find_fd(pid, 1, 1), -ESRCH, "descriptors of nobody");
	free(list);
	munmap(p, 1 << 19);
	close(fd);
}

/* A tmpfs with huge=always at TMPFS, seen by this process alone. */
#define TMPFS "/tmp"
static bool mount_huge(void)
{
	return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
	       mount("none", TMPFS, "tmpfs", 0, "huge=always,size=128m") == 0;
}

static void test_large_folios(void)
{
	static char page[4096] = "x";
	const size_t huge = 2u << 20;
	uint64_t large = 99;
	int fd = memfd_create("test-proc", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, 1 << 20))
		return;
	ok(fm_proc_large_folios(fd, 0, 1 << 20, &large) == 0 && large == 0, "an empty file has no large folios");
	if (geteuid() != 0) {
		tap_skip("large folios", "needs root");
		close(fd);
		return;
	}
	for (off_t at = 3; at < 256; at += 3)
		if (pwrite(fd, page, sizeof page, at * 4096) != sizeof page)
			at = 256;
	ok(fm_proc_large_folios(fd, 0, 1 << 20, &large) == 0 && large == 0, "nor has one of single pages with holes");
	struct stat st = {.st_blocks = 0};
	ok(fstat(fd, &st) == 0 && st.st_blocks == 85 * 8, "... whose holes stay holes");
	close(fd);
	is_u64(fm_proc_large_folios(-1, 0, 1 << 20, &large), -EBADF, "no file");

	fd = mount_huge() ? open(TMPFS "/f", O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
	if (fd < 0 || ftruncate(fd, (off_t)(50 * huge))) {
		tap_skip("large folios", "no tmpfs with huge=always");
		return;
	}
	/* Three: at the start, across 64 MiB windows, at the end. The last is left in the file only. */
	for (unsigned i = 0; i < 3; i++) {
		off_t at = (off_t)((const unsigned[]){0, 33, 49}[i] * huge);
		char *p = mmap(NULL, huge, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);

		if (p == MAP_FAILED)
			break;
		*p = 'x';
		munmap(p, huge);
	}
	ok(fm_proc_large_folios(fd, 0, 50 * huge, &large) == 0, "a file with huge pages");
	is_u64(large, 3 * 512, "... all their pages");
	ok(fm_proc_large_folios(fd, 48 * huge, 2 * huge, &large) == 0 && large == 512, "... of a part of the file");
	ok(fm_proc_large_folios(fd, huge, 8 * huge, &large) == 0 && large == 0, "... of a part without");
	ok(fm_proc_large_folios(fd, huge - 4096, 4096, &large) == 0 && large == 1, "... of one page");
	fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(33 * huge), (off_t)huge);
	ok(fm_proc_large_folios(fd, 0, 50 * huge, &large) == 0 && large == 2 * 512, "... one of them discarded");
	if (ok(seteuid(65534) == 0, "no longer root")) {
		int r = fm_proc_large_folios(fd, 0, 50 * huge, &large);

		ok(r == -EACCES || r == -EPERM, "... not permitted (%d)", r);
		ok(seteuid(0) == 0, "root again");
	}
	close(fd);
}

static void test_owner(void)
{
	static const char text[] = "Name:\tUid:\t7\nUmask:\t0022\nUid:\t1000\t1001\t1002\t1003\nGid:\t7\t7\t7\t7\n";

	for (unsigned uid = 1000; uid <= 1003; uid++)
		is_u64(-fm_proc_parse_owner(text, sizeof text - 1, uid), 0, "uid %u is one of its", uid);
	is_u64(-fm_proc_parse_owner(text, sizeof text - 1, 7), EPERM, "what looks like one in its name is not");
	is_u64(-fm_proc_parse_owner(text, sizeof text - 1, 0), EPERM, "nor is root");
	for (size_t len = 0; len < strlen("Name:\tUid:\t7\nUmask:\t0022\nUid:\t1000\t1001\t1002\t"); len++)
		if (fm_proc_parse_owner(text, len, 1003) != -EPROTO)
			ok(false, "cut off after %zu", len);
	is_u64(-fm_proc_owned_by(getpid(), geteuid()), 0, "we are our own");
	is_u64(-fm_proc_owned_by(getpid(), 4000000000u), EPERM, "... and nobody else's");
	is_u64(-fm_proc_owned_by(1 << 30, 0), ESRCH, "no such process");
}

int main(void)
{
	test_start();
	test_owner();
	test_parse();
	test_vmflags();
	test_self();
	test_large_folios();
	return tap_done();
}
