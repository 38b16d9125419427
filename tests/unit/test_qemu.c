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

static void test_option(void)
{
	static const char line[] = "qemu\0-name\0guest=a,,b,debug-threads=on\0-uuid\0old\0-m\0" "1G\0-uuid\0new\0-S";
	char v[8];

	ok(fm_qemu_option(line, sizeof line, "uuid", NULL, v, sizeof v) && !strcmp(v, "new"), "the last one counts");
	ok(fm_qemu_option(line, sizeof line, "name", "guest", v, sizeof v) && !strcmp(v, "a,b"), "a value in a list");
	ok(!fm_qemu_option(line, sizeof line, "name", "process", v, sizeof v), "a value that is not there");
	ok(!fm_qemu_option(line, sizeof line, "name", NULL, v, sizeof v), "a text that does not fit");
	ok(!fm_qemu_option(line, sizeof line, "S", NULL, v, sizeof v), "an option at the end has no value");
	ok(!fm_qemu_option(line, 0, "uuid", NULL, v, sizeof v), "no command line");
}

static void test_backends(void)
{
	static const char line[] =
	    "qemu\0-object\0{\"qom-type\":\"secret\",\"id\":\"s\"}\0-object\0{\"qom-type\":\"memory-backend-memfd\",\"id\":\"ram-node0\","
	    "\"share\":true,\"size\":268435456}\0-object\0memory-backend-file,id=f,size=1G,share=yes,mem-path=/a,,b\0-object\0"
	    "memory-backend-ram,id=r,size=4096\0-object\0memory-backend-ram,id=x,size=1Q\0-object\0memory-backend-ram,size=1\0"
	    "-object\0{broken\0-object\0{\"qom-type\":\"memory-backend-file\",\"id\":\"j\",\"mem-path\":\"/r/j\",\"size\":1}\0-object";
	struct fm_qemu_backend b[8];

	if (!is_u64(fm_qemu_backends(line, sizeof line, b, 8), 4, "backends"))
		return;
	ok(!strcmp(b[0].id, "ram-node0") && b[0].share && b[0].bytes == 256u << 20 && !*b[0].path, "as JSON");
	ok(!strcmp(b[1].id, "f") && b[1].share && b[1].bytes == 1u << 30 && !strcmp(b[1].path, "/a,b"), "a file, as a list");
	ok(!strcmp(b[2].id, "r") && !b[2].share && b[2].bytes == 4096, "private");
	ok(!strcmp(b[3].id, "j") && !b[3].share && !strcmp(b[3].path, "/r/j"), "a file, as JSON");
	is_u64(fm_qemu_backends(line, sizeof line, b, 1), 1, "no more than there is room for");
	is_u64(fm_qemu_backends("x", 1, b, 8), 0, "no command line");
}

static void test_memdevs(void)
{
	static const char line[] = "qemu\0-device\0ivshmem-plain,memdev=sh0\0-device\0virtio-net-pci,netdev=n\0--device\0id=d0,driver=pc-dimm,memdev=m"
				   "\0-device\0{\"driver\":\"nvdimm\",\"memdev\":\"nv\",\"id\":\"n0\"}\0-device\0{broken\0-device\0{\"driver\":1}\0"
				   "-object\0memory-backend-ram,memdev=x\0-device";
	struct fm_qemu_memdev d[8];

	if (!is_u64(fm_qemu_memdevs(line, sizeof line, d, 8), 3, "devices with memory"))
		return;
	ok(!strcmp(d[0].driver, "ivshmem-plain") && !strcmp(d[0].backend, "sh0"), "as a list");
	ok(!strcmp(d[1].driver, "pc-dimm") && !strcmp(d[1].backend, "m"), "driver by its key");
	ok(!strcmp(d[2].driver, "nvdimm") && !strcmp(d[2].backend, "nv"), "as JSON");
	is_u64(fm_qemu_memdevs(line, sizeof line, d, 2), 2, "no more than there is room for");
	is_u64(fm_qemu_memdevs("x", 1, d, 8), 0, "no command line");
}

int main(void)
{
	test_cmdline();
	test_option();
	test_backends();
	test_memdevs();
	test_mtree();
	test_gpa2hva();
	return tap_done();
}
