#include "qemu.h"

#include <errno.h>

#include "tap.h"

static void paths(const char *name, const char *cmdline, size_t len, unsigned want, const char *first, bool want_fd)
{
	char p[4][FM_QEMU_PATH] = {"", "", "", ""};
	bool by_fd;
	unsigned n = fm_qemu_qmp_paths(cmdline, len, p, 4, &by_fd);

	is_u64(n, want, "%s: paths", name);
	is_str(p[0], first, "... the first");
	ok(by_fd == want_fd, "... by descriptor or not");
}
#define PATHS(name, text, want, first, fd) paths(name, text, sizeof(text), want, first, fd)

static void test_cmdline(void)
{
	char longpath[300] = "qemu\0-qmp\0unix:";

	PATHS("none", "qemu\0-m\0" "256M", 0, "", false);
	PATHS("-qmp", "qemu\0-qmp\0unix:/run/q.sock,server=on,wait=off\0-S", 1, "/run/q.sock", false);
	PATHS("--qmp", "qemu\0--qmp\0unix:q", 1, "q", false);
	PATHS("-qmp-pretty", "qemu\0-qmp-pretty\0unix:q,server", 1, "q", false);
	PATHS("-qmp at the end", "qemu\0-qmp", 0, "", false);
	PATHS("-qmp tcp", "qemu\0-qmp\0tcp:localhost:4444,server", 0, "", false);
	PATHS("-qmp stdio", "qemu\0-qmp\0stdio", 0, "", false);
	PATHS("a comma in the path", "qemu\0-qmp\0unix:/a,,b,server=on", 1, "/a,b", false);
	PATHS("chardev and mon", "qemu\0-chardev\0socket,id=c0,path=/run/m,server=on,wait=off\0-mon\0chardev=c0,mode=control", 1,
	      "/run/m", false);
	PATHS("mon before chardev", "qemu\0-mon\0c0,mode=control\0-chardev\0socket,path=/run/m,id=c0", 1, "/run/m", false);
	PATHS("mon of people", "qemu\0-chardev\0socket,id=c0,path=/run/m\0-mon\0chardev=c0,mode=readline", 0, "", false);
	PATHS("mon of another", "qemu\0-chardev\0socket,id=c0,path=/run/m\0-mon\0chardev=c1,mode=control", 0, "", false);
	PATHS("a chardev that is no socket", "qemu\0-chardev\0pipe,id=c0,path=/run/m\0-mon\0chardev=c0,mode=control", 0, "",
	      false);
	PATHS("libvirt", "qemu\0-chardev\0socket,id=charmonitor,fd=24,server=on,wait=off\0-mon\0chardev=charmonitor,id=monitor,mode=control",
	      0, "", true);
	PATHS("qmp by chardev", "qemu\0-chardev\0socket,id=c0,path=/run/m\0-qmp\0chardev:c0", 1, "/run/m", false);
	PATHS("two", "qemu\0-qmp\0unix:a\0-qmp\0unix:b", 2, "a", false);
	PATHS("more than fit", "q\0-qmp\0unix:a\0-qmp\0unix:b\0-qmp\0unix:c\0-qmp\0unix:d\0-qmp\0unix:e", 4, "a", false);
	paths("empty", "", 0, 0, "", false);
	paths("no NUL", "-qmp", 4, 0, "", false);
	paths("cut off", "q\0-qmp\0unix:abc", 12, 0, "", false);
	memset(longpath + 15, 'x', 200);
	paths("a path too long", longpath, sizeof longpath, 0, "", false);
}

static const char mtree[] = "FlatView #0\r\n AS \"memory\", root: system\r\n Root memory region: system\r\n"
			    "  0000000000000000-00000000000bffff (prio 0, ram): ram0\r\n"
			    "  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom\r\n"
			    "  0000000000100000-000000000fffffff (prio 0, ram): ram0 @0000000000100000\r\n"
			    "  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic\r\n"
			    "  0000000100000000-0000000107ffffff (prio 0, ram): m1 KVM\r\n"
			    "  0000000108000000-000000010fffffff (prio 0, ram): m12 @0000000000200000 KVM\r\n"
			    "  0000000200000000-000000020fffffff (prio 0, ram): /objects/m3\r\n";

static void test_mtree(void)
{
	uint64_t gpa = 1, offset = 1;

	ok(fm_qemu_find_ram(mtree, "ram0", &gpa, &offset) == 0 && gpa == 0 && offset == 0, "boot memory");
	ok(fm_qemu_find_ram(mtree, "m1", &gpa, &offset) == 0 && gpa == 0x100000000 && offset == 0, "a DIMM");
	ok(fm_qemu_find_ram(mtree, "m12", &gpa, &offset) == 0 && gpa == 0x108000000 && offset == 0x200000, "at an offset");
	ok(fm_qemu_find_ram(mtree, "m3", &gpa, &offset) == 0 && gpa == 0x200000000, "by its path");
	is_u64(fm_qemu_find_ram(mtree, "m2", &gpa, &offset), -ENOENT, "not there");
	is_u64(fm_qemu_find_ram(mtree, "pc.rom", &gpa, &offset), -ENOENT, "no RAM");
	is_u64(fm_qemu_find_ram(mtree, "", &gpa, &offset), -ENOENT, "no id");
	is_u64(fm_qemu_find_ram("", "m1", &gpa, &offset), -ENOENT, "no text");
}

static void test_gpa2hva(void)
{
	uint64_t hva = 0;

	ok(fm_qemu_parse_gpa2hva("Host virtual address for 0x0 (ram0) is 0x7f72c3fff000\r\n", "ram0", &hva) == 0 &&
	       hva == 0x7f72c3fff000,
	   "gpa2hva");
	ok(fm_qemu_parse_gpa2hva("Host virtual address for 0x0 (/objects/ram0) is 0x7f72c3fff000", "ram0", &hva) == 0,
	   "... by its path");
	is_u64(fm_qemu_parse_gpa2hva("Host virtual address for 0x0 (ram01) is 0x7f72c3fff000", "ram0", &hva), -ENOENT, "another block");
	is_u64(fm_qemu_parse_gpa2hva("Memory at address 0xfec00000 is not RAM\r\n", "ram0", &hva), -EPROTO, "no RAM");
	is_u64(fm_qemu_parse_gpa2hva("", "ram0", &hva), -EPROTO, "nothing");
	is_u64(fm_qemu_parse_gpa2hva("x (ram0) is 0x0", "ram0", &hva), -EPROTO, "address 0");
	is_u64(fm_qemu_parse_gpa2hva("x (ram0) is 0xzz", "ram0", &hva), -EPROTO, "no address");
	is_u64(fm_qemu_parse_gpa2hva("x (ram0) is 0x11111111111111111", "ram0", &hva), -EPROTO, "too large");
}

int main(void)
{
	test_cmdline();
	test_mtree();
	test_gpa2hva();
	return tap_done();
}
