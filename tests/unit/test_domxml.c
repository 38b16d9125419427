/* Domain XML as libvirt writes it (9.0; trimmed), and what is none. */
#include "domxml.h"
#include "tap.h"

#include <errno.h>
#include <stdlib.h>

static const char running[] =
    "<domain type='kvm' id='7'>\n"
    "  <name>a &amp; b</name>\n"
    "  <uuid>17C2046C-3100-480b-8139-f29080b1afd3</uuid>\n"
    "  <maxMemory slots='8' unit='KiB'>2097152</maxMemory>\n"
    "  <memory unit='KiB'>393216</memory>\n"
    "  <currentMemory unit='KiB'>1</currentMemory>\n"
    "  <memoryBacking>\n    <source type='memfd'/>\n    <access mode='shared'/>\n  </memoryBacking>\n"
    "  <vcpu placement='static' current='1'>4</vcpu>\n"
    "  <cpu mode='custom'><numa>\n"
    "    <cell id='0' cpus='0-1' memory='128' unit='MiB'/>\n"
    "    <cell id='1' cpus='2-3' memory='131072' memAccess='shared'/>\n"
    "  </numa></cpu>\n"
    "  <devices>\n"
    "    <disk><alias name='disk0'/><address type='pci' slot='0x09' base='x'/></disk>\n"
    "    <memory model='dimm' access='shared'>\n"
    "      <target>\n        <size unit='KiB'>131072</size>\n        <node>1</node>\n      </target>\n"
    "      <alias name='ua-fm0'/>\n      <address type='dimm' slot='3' base='0x100000000'/>\n    </memory>\n"
    "    <memory model='virtio-mem'>\n"
    "      <source><pagesize unit='KiB'>4</pagesize></source>\n"
    "      <target><size unit='KiB'>1048576</size><node>0</node><block unit='KiB'>2048</block>"
    "<requested unit='KiB'>524288</requested><current unit='KiB'>262144</current></target>\n"
    "      <alias name='virtiomem0'/><address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>\n"
    "    </memory>\n"
    "  </devices>\n"
    "  <metadata><nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:memory>512</nova:memory>"
    "</nova:instance></metadata>\n"
    "</domain>\n";

static void test_running(void)
{
	struct fm_domxml d;

	if (!ok(fm_domxml_parse(running, sizeof running - 1, &d) == 0, "a running domain"))
		return;
	ok(!strcmp(d.name, "a & b"), "name '%s'", d.name);
	ok(!strcmp(d.uuid, "17c2046c-3100-480b-8139-f29080b1afd3"), "UUID in lower case");
	ok(d.running, "it runs");
	is_u64(d.vcpus, 4, "vCPUs");
	is_u64(d.memory_bytes, 384ull << 20, "memory");
	is_u64(d.max_bytes, 2048ull << 20, "maxMemory");
	is_u64(d.slots, 8, "slots");
	ok(!strcmp(d.source, "memfd") && !strcmp(d.access, "shared") && d.has_backing, "backing");
	ok(!d.hugepages && !d.locked && d.has_cpu && !d.cell_private, "no huge pages, not locked");
	is_u64(d.ncells, 2, "cells");
	is_u64(d.cell_bytes, 256ull << 20, "their memory");
	is_u64(d.nmemory, 2, "memory devices");
	ok(!strcmp(d.memory[0].alias, "ua-fm0") && !strcmp(d.memory[0].model, "dimm") && !strcmp(d.memory[0].access, "shared"),
	   "the DIMM");
	is_u64(d.memory[0].bytes, 128ull << 20, "its size");
	is_u64(d.memory[0].gpa, 0x100000000, "its address");
	ok(d.memory[0].slot == 3 && d.memory[0].node == 1, "its slot and node");
	ok(!strcmp(d.memory[1].model, "virtio-mem") && !*d.memory[1].access, "the virtio-mem device");
	is_u64(d.memory[1].bytes, 1ull << 30, "its size");
	is_u64(d.memory[1].requested, 512ull << 20, "requested");
	is_u64(d.memory[1].current, 256ull << 20, "current");
	ok(d.memory[1].slot == -1 && d.memory[1].gpa == 0, "no slot: that is PCI's");
	fm_domxml_free(&d);
	ok(d.memory == NULL && d.nmemory == 0, "freed");
}

#define UUID "<uuid>17c2046c-3100-480b-8139-f29080b1afd3</uuid>"

static void test_off(void)
{
	static const char text[] = "<domain type='qemu'><name>x</name>" UUID
				   "<memory unit='GiB'>1</memory><memoryBacking><hugepages/><locked/></memoryBacking>"
				   "<cpu><numa><cell memory='1' unit='GB' memAccess='private'/></numa></cpu></domain>";
	struct fm_domxml d;

	if (!ok(fm_domxml_parse(text, sizeof text - 1, &d) == 0, "a domain that is shut off"))
		return;
	ok(!d.running && d.nmemory == 0 && d.max_bytes == 0 && !*d.source && !*d.access, "nothing that it has not");
	ok(d.hugepages && d.locked && d.cell_private, "what it has");
	is_u64(d.memory_bytes, 1ull << 30, "GiB");
	is_u64(d.cell_bytes, 1000000000, "GB");
	fm_domxml_free(&d);
}

static void vhost_user(const char *device, bool want)
{
	char text[512];
	struct fm_domxml d;

	snprintf(text, sizeof text, "<domain><name>x</name>" UUID "<devices>%s</devices></domain>", device);
	if (ok(fm_domxml_parse(text, strlen(text), &d) == 0, "%s", device)) {
		ok(d.vhost_user == want, "... vhost-user: %s", want ? "yes" : "no");
		fm_domxml_free(&d);
	}
}

static void refused(const char *text, const char *what)
{
	struct fm_domxml d;

	ok(fm_domxml_parse(text, strlen(text), &d) == -EPROTO, "refused: %s", what);
}

static void test_wrong(void)
{
	char deep[4096] = "<domain><name>x</name>" UUID;
	size_t n = strlen(deep);
	struct fm_domxml d;

	refused("", "nothing");
	refused("<domain>", "half a document");
	refused("<domain/>", "no name");
	refused("<domain><name>x</name></domain>", "no UUID");
	refused("<domain><name>x</name><uuid>1-2</uuid></domain>", "a short UUID");
	refused("<volume><name>x</name>" UUID "</volume>", "another document");
	refused("<domain><name>x</name>" UUID "<memory>-1</memory></domain>", "a negative size");
	refused("<domain><name>x</name>" UUID "<memory>1 2</memory></domain>", "two numbers");
	refused("<domain><name>x</name>" UUID "<memory unit='PB'>1</memory></domain>", "an unknown unit");
	refused("<domain><name>x</name>" UUID "<memory unit='TiB'>99999999999999999</memory></domain>", "an overflow");
	refused("<domain><name>x</name>" UUID "<devices><memory><target><node>128</node></target></memory></devices></domain>",
		"node 128");
	refused("<domain><name>x</name>" UUID "<devices><memory><address slot='x' base='1'/></memory></devices></domain>", "slot x");
	for (unsigned i = 0; i < 200; i++)
		n += (size_t)sprintf(deep + n, "<memory>");
	for (unsigned i = 0; i < 200; i++)
		n += (size_t)sprintf(deep + n, "</memory>");
	strcpy(deep + n, "</domain>");
	ok(fm_domxml_parse(deep, strlen(deep), &d) == -EPROTO, "refused: a size that holds elements alone");
}

static void test_uuid(void)
{
	static const char uuid[] = "17c2046c-3100-480b-8139-f29080b1afd3";

	ok(fm_domxml_is_uuid(uuid, uuid), "the same");
	ok(fm_domxml_is_uuid("17C2046C3100480B8139F29080B1AFD3", uuid), "upper case, no dashes");
	ok(!fm_domxml_is_uuid("17c2046c", uuid), "a part");
	ok(!fm_domxml_is_uuid("17c2046c-3100-480b-8139-f29080b1afd31", uuid), "more");
	ok(!fm_domxml_is_uuid("", uuid), "nothing");
}

int main(void)
{
	test_running();
	test_off();
	test_wrong();
	test_uuid();
	vhost_user("<interface type='vhostuser'/>", true);
	vhost_user("<disk type='vhostuser'/>", true);
	vhost_user("<filesystem type='mount'><driver type='virtiofs'/></filesystem>", true);
	vhost_user("<filesystem type='mount'><driver type='path'/></filesystem>", false);
	vhost_user("<interface type='bridge'><source type='vhostuser'/></interface>", false);
	return tap_done();
}
