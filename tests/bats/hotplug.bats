#!/usr/bin/env bats
# fm-hotplug and a stock QEMU: what it adds and takes over, and what it refuses. The VMs are paused (-S) and have no guest;
# tests/guest has those with one.
# sanitizers: asan
# shellcheck disable=SC2030,SC2031,SC2054 # each test is a process of its own; commas are QEMU's

bats_require_minimum_version 1.5.0
load helper

setup() {
	fm_setup
	FILES=
	requires qemu-system-x86_64 || skip "no qemu-system-x86_64"
	[ "$(id -u)" -eq 0 ] || skip "not root"
	QMP=$FM_TMP/q
	SHARED=(-object memory-backend-memfd,id=ram0,size=256M,share=on -machine memory-backend=ram0)
	WRAP=()
}

teardown() {
	fm_teardown
	[ -z "$FILES" ] || rm -rf "$FILES"
	[ ! -d "$FM_TMP/huge" ] || umount -l "$FM_TMP/huge"
}

# A QEMU with these arguments, ready when its monitor is. Sets VM_PID and HMP. WRAP: a command that it is run by.
start_qemu() {
	local ready=$FM_TMP/hmp.$RANDOM
	timeout 120 "${WRAP[@]}" qemu-system-x86_64 -S -accel tcg,tb-size=32 -machine q35 -nodefaults -display none -monitor "unix:$ready,server=on,wait=off" \
		-pidfile "$ready.pid" "$@" < /dev/null > "$FM_TMP/qemu.log" 2>&1 3>&- &
	track $!
	wait_for 20 test -s "$ready.pid" || {
		cat "$FM_TMP/qemu.log" >&2
		return 1
	}
	wait_for 20 test -S "$ready"
	VM_PID=$(cat "$ready.pid")
	HMP=$ready
}

# The usual VM: room for 4 DIMMs and 1792 MiB, a QMP socket.
start_vm() {
	start_qemu -m 256M,slots=4,maxmem=2G -qmp "unix:$QMP,server=on,wait=off" "$@"
}

# hotplug STATUS ARGS...: run fm-hotplug; fails unless it ends with that status and, when that is not 0, one line on stderr.
hotplug() {
	local want=$1 status=0
	shift
	timeout 60 "$FM_BIN/fm-hotplug" "$@" > "$FM_TMP/out" 2> "$FM_TMP/err" 3>&- || status=$?
	output=$(cat "$FM_TMP/out" "$FM_TMP/err")
	echo "$ fm-hotplug $*: $status"
	echo "$output"
	[ "$status" -eq "$want" ] || return 1
	[ "$want" -eq 0 ] || [ "$(wc -l < "$FM_TMP/err")" -eq 1 ]
}

says() {
	[[ $output == *"$1"* ]] || {
		echo "not said: $1"
		return 1
	}
}

# Far regions there are, by fm-stat.
regions() {
	"$FM_BIN/fm-stat" -j | jq '.regions | length'
}

# What a refused or undone change could leave behind in the VM: shared memory, userfaultfds.
footprint() {
	grep -c 'rw-s.*memory-backend' "/proc/$VM_PID/maps" || true
	find "/proc/$VM_PID/fd" -lname '*userfaultfd*' | wc -l
}

# Is it as it was when `before` was taken? QEMU unmaps a deleted backend a little later.
as_before() {
	[ "$(footprint)" = "$before" ]
}

# A line for QEMU's human monitor; waits until it has been obeyed.
hmp() {
	python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
def prompt():
    got = b""
    while not got.endswith(b"(qemu) "):
        more = s.recv(4096)
        assert more, got
        got += more
    return got
prompt()
s.sendall(sys.argv[2].encode() + b"\n")
print(prompt().decode())
' "$HMP" "$1" 3>&-
}

# A tmpfs of our own at $FM_TMP/huge, with huge pages by this policy.
mount_huge() {
	mkdir "$FM_TMP/huge"
	mount -t tmpfs -o "huge=$1,size=1G" none "$FM_TMP/huge" 2> /dev/null && return
	rmdir "$FM_TMP/huge"
	return 1
}

# Use the first 8 MiB of the memory at this guest address, as a device would.
touch_memory() {
	python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(sys.argv[1])
def prompt():
    got = b""
    while not got.endswith(b"(qemu) "):
        more = s.recv(4096)
        assert more, got
        got += more
    return got
prompt()
s.sendall(b"pmemsave %d %d \"%s\"\n" % (int(sys.argv[2], 0), 8 << 20, sys.argv[3].encode()))
prompt()
' "$HMP" "$1" "$FM_TMP/saved" 3>&-
	[ "$(stat -c %s "$FM_TMP/saved")" = 8388608 ]
}

# smaps_of FILE KEY: what smaps says of the VM's first mapping whose file's name contains FILE.
smaps_of() {
	awk -v file="$1" -v key="$2:" '/^[0-9a-f]+-[0-9a-f]+ / { at = index($0, file) } at && $1 == key { $1 = ""; print; exit }' \
		"/proc/$VM_PID/smaps"
}

# pages_of FILE all|large: how many pages of the VM's mappings of this file there are, or are parts of larger folios.
pages_of() {
	python3 -c '
import struct, sys
pid, file, what = sys.argv[1:]
def word(f, at):
    f.seek(at * 8)
    return struct.unpack("Q", f.read(8))[0]
n = 0
with open("/proc/%s/maps" % pid) as maps, open("/proc/%s/pagemap" % pid, "rb", 0) as pagemap, open("/proc/kpageflags", "rb", 0) as flags:
    for line in maps:
        if file not in line:
            continue
        start, end = (int(x, 16) >> 12 for x in line.split()[0].split("-"))
        for at in range(start, end):
            entry = word(pagemap, at)
            if entry >> 63:
                n += what == "all" or word(flags, entry & ((1 << 55) - 1)) >> 15 & 3 != 0
print(n)
' "$VM_PID" "$1" "$2" 3>&-
}

@test "usage: every wrong use has exit code 2 and one line" {
	hotplug 2
	says 'VM: missing'
	hotplug 2 "$QMP"
	says 'SIZE'
	hotplug 2 --no-such-option "$QMP" 1G
	hotplug 2 "$QMP" 1G more
	says 'more'
	hotplug 2 --attach --list "$QMP"
	says 'only one'
	hotplug 2 --attach "$QMP" 1G
	hotplug 2 --remove "$QMP"
	says 'ID: missing'
	hotplug 2 --list --id x "$QMP"
	says '--id: not with --list'
	hotplug 2 --id 7up "$QMP" 1G
	says "id '7up'"
	hotplug 2 --id 'a b' "$QMP" 1G
	hotplug 2 --id "$(printf 'x%.0s' {1..50})" "$QMP" 1G
	hotplug 2 --node -1 "$QMP" 1G
	says "node '-1'"
	hotplug 2 --timeout 0 --remove "$QMP" x
	hotplug 2 --list pid:x
	says 'not pid:N'
	hotplug 2 --list pid:-1
	hotplug 2 --list pid:
	hotplug 2 --list pid:0
}

@test "usage: sizes that no DIMM can have" {
	for size in 0 -1 -128M 100M 127M 1 4096 4097 64K 128MB 1X '' 16777216T 99999999999999999999 25% 32T; do
		hotplug 2 -- "$QMP" "$size"
		says "size '$size'"
	done
	hotplug 2 "$QMP" 100M
	says 'multiple of 128M'
}

@test "a libvirt domain, but no virsh, no libvirtd, or one on another host" {
	start_faultd
	(
		export PATH=$FM_TMP
		"$FM_BIN/fm-hotplug" some-domain 1G 3>&- 2> "$FM_TMP/err"
	) && return 1 || [ $? -eq 3 ]
	grep -q 'virsh: not found' "$FM_TMP/err"
	export LIBVIRT_DEFAULT_URI=qemu+ssh://other/system
	hotplug 2 some-domain 1G
	says 'another host'
	requires virsh || skip "no virsh"
	export LIBVIRT_DEFAULT_URI="qemu:///system?socket=$FM_TMP/none"
	for what in --list --attach --detach --print-xml; do
		hotplug 3 "$what" 6695eb01-f6a4-8304-79aa-97f2502e193f
		says 'does libvirtd run?'
	done
	hotplug 2 "$(printf 'x%.0s' {1..300})" 1G
	hotplug 2 --print-xml "$QMP"
	says 'libvirt domains'
	hotplug 2 --print-xml pid:1
}

@test "no fm-faultd: exit code 3, and the VM is as before" {
	start_vm
	before=$(footprint)
	hotplug 3 "$QMP" 128M
	says 'fm-faultd is not running'
	hotplug 3 --attach "$QMP"
	hotplug 3 --detach "$QMP"
	wait_for 5 as_before
	# These need no daemon.
	hotplug 0 --list "$QMP"
}

@test "the daemon's run directory by option, by variable, and not permitted" {
	start_faultd
	start_vm
	FM_RUN_DIR=$FM_TMP/nowhere hotplug 3 "$QMP" 128M
	says "$FM_TMP/nowhere/fm.sock"
	hotplug 3 --run-dir "$FM_TMP/nowhere" "$QMP" 128M
	FM_RUN_DIR=$FM_TMP/nowhere hotplug 0 --run-dir "$FM_TMP/run" "$QMP" 128M
	run setpriv --reuid=65534 --regid=65534 --clear-groups "$FM_BIN/fm-hotplug" "$QMP" 128M
	[ "$status" -eq 3 ]
	says 'run as root'
}

@test "no VM there: exit code 3" {
	start_faultd
	hotplug 3 "$FM_TMP/none" 128M
	says 'No such file'
	hotplug 3 "$FM_TMP/faultd.log" 128M
	says 'not a socket'
	hotplug 3 "/$(printf 'x%.0s' {1..200})" 128M
	start_vm
	kill -KILL "$VM_PID"
	wait_for 5 gone "$VM_PID"
	hotplug 3 "$QMP" 128M
	says 'the VM is gone'
	hotplug 3 "pid:$VM_PID" 128M
	says 'the VM is gone'
	hotplug 3 --attach "pid:$VM_PID"
	hotplug 3 --list "pid:$VM_PID"
}

@test "a socket that is not QMP's: exit code 3" {
	start_faultd
	start_vm
	hotplug 3 "$HMP" 128M
	says 'not a QMP socket'
	hotplug 3 "$FM_RUN_DIR/fm.sock" 128M
	says 'no greeting'
}

@test "a QMP socket that another client holds: exit code 3, in time" {
	start_faultd
	start_vm "${SHARED[@]}"
	first=$VM_PID
	# Its client: the serial line of another QEMU.
	start_qemu -m 16M -chardev "socket,id=c,path=$QMP" -serial chardev:c
	hotplug 3 "$QMP" 128M
	says 'another one holds this socket'
	hotplug 3 "pid:$first" 128M
	says 'another one holds this socket'
	# Nobody would say what devices were plugged into it.
	hotplug 3 --attach "pid:$first"
	says 'one QMP client at a time'
	[ "$(regions)" = 0 ]
	hotplug 0 --list "pid:$first"
}

@test "a DIMM: added, listed, served" {
	start_faultd
	start_vm -name 'my vm'
	hotplug 0 "$QMP" 256M
	[[ $output == 'fm0: 256M at 0x'*', node 0, region '* ]]
	[[ $(smaps_of memory-backend-memfd VmFlags) == *' nh'* ]] # no huge pages for it
	hotplug 0 "pid:$VM_PID" 128M --id big --node 0 --no-wait
	hotplug 0 --list "$QMP"
	grep -qE '^ram|^ID' "$FM_TMP/out"
	grep -qE '^fm0 +dimm +256M +0 +yes +0 +0 +-$' "$FM_TMP/out"
	grep -qE '^big +dimm +128M +0 +yes +0 +0 +-$' "$FM_TMP/out"
	[ "$("$FM_BIN/fm-stat" -j | jq -r '[.regions[].name] | sort | join(" ")')" = 'my_vm:mem-big my_vm:mem-fm0' ]
	[ "$("$FM_BIN/fm-stat" -j | jq '[.regions[].pages] | add')" = 98304 ]
	hotplug 1 "$QMP" 128M --id big
	says "id 'big': taken"
	# The VM ends: so do its regions.
	kill -TERM "$VM_PID"
	wait_for 10 gone "$VM_PID"
	none() { [ "$(regions)" = 0 ]; }
	wait_for 5 none
}

@test "-v says for how long QEMU stood still" {
	start_faultd
	start_vm
	hotplug 0 -v "$QMP" 128M
	[[ $output =~ stood\ still\ for\ [0-9.]+\ us ]]
}

@test "100 attaches to one QEMU: for how long it stood still, and nothing is left in it" {
	cc -std=c11 -D_GNU_SOURCE -O2 -I"$FM_ROOT/lib" -o "$FM_TMP/attach" "$FM_ROOT"/bench/attach.c "$FM_ROOT"/lib/{attach,inject,proc}.c
	start_vm "${SHARED[@]}"
	run timeout 60 "$FM_TMP/attach" "$VM_PID" 100 1
	echo "$output"
	[ "$status" -eq 0 ]
	[[ ${lines[0]} == '100 attaches, 1 userfaultfd each'*', MADV_NOHUGEPAGE among them'* ]]
	echo "# ${lines[1]}" >&3
	[ "$(find "/proc/$VM_PID/fd" -lname '*userfaultfd*' | wc -l)" = 0 ]
	[[ $(hmp 'info status') == *paused* ]]
}

@test "no room: slots, maxmem, a NUMA node that is none; the VM is as before" {
	start_faultd
	start_vm
	hotplug 0 "$QMP" 512M
	before=$(footprint)
	hotplug 1 "$QMP" 2G
	says 'only 1.2G left'
	hotplug 1 "$QMP" 128M --node 5
	says 'numa nodes'
	none_new() { [ "$(regions)" = 1 ]; }
	wait_for 5 none_new
	wait_for 5 as_before
	for _ in 1 2 3; do
		hotplug 0 "$QMP" 128M
	done
	before=$(footprint)
	hotplug 1 "$QMP" 128M
	says 'all 4 are taken'
	wait_for 5 as_before
	[ "$(regions)" = 4 ]
}

# build_preload NAME: a library of the C program on stdin, $FM_TMP/NAME.so, for QEMU's LD_PRELOAD.
build_preload() {
	cc -x c -std=c11 -D_GNU_SOURCE -O1 -shared -fPIC -o "$FM_TMP/$1.so" - -ldl
}

@test "QEMU plugs a DIMM but its answer is lost: the DIMM is far, and stays so when fm-faultd dies" {
	build_preload deaf <<- 'C'
		#include <dlfcn.h>
		#include <string.h>
		#include <sys/socket.h>
		static const char command[] = "device_add";
		static size_t seen; /* bytes of the command: QEMU reads byte by byte */
		ssize_t recvmsg(int fd, struct msghdr *m, int flags)
		{
			ssize_t n = ((ssize_t (*)(int, struct msghdr *, int))dlsym(RTLD_NEXT, "recvmsg"))(fd, m, flags);
			for (ssize_t i = 0; i < n && seen < sizeof command - 1; i++)
				seen = ((char *)m->msg_iov->iov_base)[i] == command[seen] ? seen + 1 : 0;
			return n;
		}
		ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
		{
			if (seen == sizeof command - 1 && memmem(m->msg_iov->iov_base, m->msg_iov->iov_len, "\"return\"", 8)) {
				seen++; /* this once */
				shutdown(fd, SHUT_RDWR);
			}
			return ((ssize_t (*)(int, const struct msghdr *, int))dlsym(RTLD_NEXT, "sendmsg"))(fd, m, flags);
		}
	C
	start_faultd
	WRAP=(env "LD_PRELOAD=$FM_TMP/deaf.so")
	start_vm
	hotplug 3 "$QMP" 128M
	says "device 'fm0'"
	says 'may be plugged nevertheless, as far memory'
	hotplug 0 --list "$QMP"
	grep -qE '^fm0 +dimm +128M +0 +yes ' "$FM_TMP/out"
	[ "$(find "/proc/$VM_PID/fd" -lname '*userfaultfd*' | wc -l)" -gt 0 ]
	kill -KILL "$FAULTD_PID"
	wait_for 10 gone "$FAULTD_PID"
	[[ $(smaps_of memory-backend-memfd VmFlags) == *' um'* ]]
	: > "$FM_TMP/faultd.log"
	start_faultd
	[ "$(regions)" = 1 ]
	run ! grep -q 'cannot be taken over' "$FM_TMP/faultd.log"
	hotplug 0 --detach "$QMP"
	[ "$(find "/proc/$VM_PID/fd" -lname '*userfaultfd*' | wc -l)" -eq 0 ]
}

@test "a VM without memory hotplug" {
	start_faultd
	start_qemu -m 256M -qmp "unix:$QMP,server=on,wait=off"
	hotplug 1 "$QMP" 128M
	says 'slots=N,maxmem=SIZE'
	[ "$(regions)" = 0 ]
}

@test "a VM that waits for an incoming migration" {
	start_faultd
	start_vm -incoming defer
	hotplug 1 "$QMP" 128M
	says 'incoming migration'
	rm -f "$QMP"
	start_vm "${SHARED[@]}" -incoming defer
	hotplug 1 --attach "$QMP"
	says 'incoming migration'
	[ "$(regions)" = 0 ]
}

@test "a VM that is traced: by strace, by gdb" {
	start_faultd
	start_vm "${SHARED[@]}"
	before=$(footprint)
	traced() { grep -qE '^TracerPid:.*[1-9]' "/proc/$VM_PID/status"; }
	for tracer in 'strace -o /dev/null -p' 'gdb --batch -ex shell\ sleep\ 60 -p'; do
		requires "${tracer%% *}" || continue
		eval "$tracer $VM_PID" > /dev/null 2>&1 3>&- < /dev/null &
		track $!
		wait_for 20 traced
		tracer_pid=$(awk '$1 == "TracerPid:" { print $2 }' "/proc/$VM_PID/status")
		# A debugger stops QEMU altogether: then nobody greets.
		status=1
		[[ $tracer != gdb* ]] || status=3
		hotplug "$status" --attach "$QMP"
		says "process $tracer_pid traces"
		says '(a debugger or strace): end that first'
		[[ $tracer == gdb* ]] || hotplug 1 "$QMP" 128M
		says "process $tracer_pid traces"
		wait_for 5 as_before
		kill -KILL "$tracer_pid"
		untraced() { ! traced; }
		wait_for 20 untraced
		kill -CONT "$VM_PID"
	done
	[ "$(regions)" = 0 ]
	hotplug 0 --attach "$QMP"
}

@test "a vhost-user device: refused before and after its process has the memory" {
	requires qemu-storage-daemon || skip "no qemu-storage-daemon"
	start_faultd
	truncate -s 1M "$FM_TMP/disk"
	qemu-storage-daemon --blockdev "driver=file,node-name=f,filename=$FM_TMP/disk" \
		--export "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=$FM_TMP/vub" > "$FM_TMP/qsd.log" 2>&1 3>&- < /dev/null &
	backend=$!
	track "$backend"
	wait_for 20 test -S "$FM_TMP/vub"
	chardev=(-chardev "socket,id=c,path=$FM_TMP/vub")
	start_vm "${SHARED[@]}" "${chardev[@]}" -device vhost-user-blk-pci,chardev=c
	before=$(footprint)
	[ "$(grep -c memory-backend-memfd "/proc/$backend/maps")" = 0 ]
	hotplug 1 --attach "$QMP"
	says 'vhost-user device: its process maps'
	hotplug 1 "$QMP" 128M
	says 'vhost-user device'
	# The firmware starts the disk, and its process maps the memory.
	hmp cont
	mapped() { grep -q memory-backend-memfd "/proc/$backend/maps"; }
	wait_for 60 mapped
	hotplug 1 --attach "pid:$VM_PID"
	says 'vhost-user device'
	wait_for 5 as_before
	kill -KILL "$VM_PID"
	wait_for 10 gone "$VM_PID"
	# Plugged into the VM when it runs: its command line does not tell.
	rm -f "$QMP"
	start_vm "${SHARED[@]}" "${chardev[@]}" -device pcie-root-port,id=rp1,slot=1
	hmp 'device_add vhost-user-blk-pci,chardev=c,id=v1,bus=rp1'
	hotplug 1 "$QMP" 128M
	says 'vhost-user device'
	kill -KILL "$VM_PID"
	wait_for 10 gone "$VM_PID"
	# As libvirt writes it.
	rm -f "$QMP"
	start_vm "${SHARED[@]}" "${chardev[@]}" -device '{"driver":"vhost-user-blk-pci","chardev":"c"}'
	hotplug 1 --attach "$QMP"
	says 'vhost-user device'
	[ "$(regions)" = 0 ]
}

@test "a vhost-user network device that was plugged into the VM: refused before its driver starts" {
	start_faultd
	# Its process, as far as it is asked here: features, a number of queues.
	python3 -c '
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
c = s.accept()[0]
def get(n):
    b = b""
    while len(b) < n:
        more = c.recv(n - len(b))
        if not more:
            sys.exit()
        b += more
    return b
while True:
    request, flags, size = struct.unpack("<III", get(12))
    get(size)
    if request in (1, 15, 17):
        c.sendall(struct.pack("<IIIQ", request, 5, 8, {1: 0x178000000, 15: 0, 17: 1}[request]))' "$FM_TMP/vu" 3>&- &
	track $!
	wait_for 10 test -S "$FM_TMP/vu"
	start_vm "${SHARED[@]}" -device pcie-root-port,id=rp1,slot=1
	hmp "chardev-add socket,id=c,path=$FM_TMP/vu"
	hmp 'netdev_add vhost-user,id=n,chardev=c'
	hmp 'device_add virtio-net-pci,netdev=n,bus=rp1,id=nic'
	[[ $(hmp 'info network') == *'nic: index=0,type=nic,'*',type=vhost-user,'* ]]
	hotplug 1 --attach "$QMP"
	says 'vhost-user device: its process maps'
	hotplug 1 "$QMP" 128M
	says 'vhost-user device'
	[ "$(regions)" = 0 ]
}

# Also without rights: tests/guest/libvirt.bats.
@test "QEMU's own sandbox allows it" {
	start_faultd
	start_vm "${SHARED[@]}" -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
	grep -q '^Seccomp:.*2' "/proc/$VM_PID/status"
	hotplug 0 --attach "$QMP"
	hotplug 0 "$QMP" 128M
}

@test "virtio-mem: on a root port; refused without one, and the VM is as before" {
	start_faultd
	start_vm -device pcie-root-port,id=rp1,slot=1
	hotplug 0 --virtio-mem --id vm0 "$QMP" 256M
	hotplug 0 --list "$QMP"
	grep -qE '^vm0 +virtio-mem +0 +0 +yes +0 +0 +0/256M$' "$FM_TMP/out"
	before=$(footprint)
	hotplug 1 --virtio-mem "$QMP" 128M
	says 'pcie-root-port'
	wait_for 5 as_before
	one() { [ "$(regions)" = 1 ]; }
	wait_for 5 one
	# What it may grow to is taken already.
	hotplug 1 "$QMP" 1664M
	says 'only 768M left'
}

@test "--attach: all boot memory, once" {
	start_faultd
	start_vm "${SHARED[@]}"
	hotplug 0 --attach "$QMP"
	[[ $output == 'ram0: 256M, region '* ]]
	hotplug 0 --list "$QMP"
	grep -qE '^ram0 +boot +256M +- +yes ' "$FM_TMP/out"
	before=$(footprint)
	hotplug 1 --attach "$QMP"
	says 'attached already'
	wait_for 5 as_before
	hotplug 0 "$QMP" 128M
	hotplug 1 --attach "$QMP"
	says 'attached already'
}

@test "two --attach of one VM: one does it; the other, however late it comes, leaves the memory alone" {
	requires strace || skip "no strace"
	start_faultd
	start_qemu -m 256M "${SHARED[@]}"
	# One has looked, and is not at the lock yet; another one takes the memory over meanwhile.
	timeout 60 strace -o /dev/null -e trace=flock -e inject=flock:delay_enter=10000000:when=1 \
		"$FM_BIN/fm-hotplug" --attach "pid:$VM_PID" > "$FM_TMP/slow" 2>&1 3>&- < /dev/null &
	local slow=$! status=0 number=73 # of flock()
	track "$slow"
	at_lock() {
		local tracer pid
		for tracer in $(children_of "$slow"); do
			for pid in $(children_of "$tracer"); do
				! grep -qs "^$number " "/proc/$pid/syscall" || return 0
			done
		done
		return 1
	}
	wait_for 20 at_lock
	hotplug 0 --attach "pid:$VM_PID"
	[ "$(regions)" = 1 ]
	before=$(footprint)
	wait "$slow" || status=$?
	cat "$FM_TMP/slow"
	[ "$status" -eq 1 ]
	grep -q 'attached already' "$FM_TMP/slow"
	[ "$(footprint)" = "$before" ]
	# The lock ends with the command, not with the region. Somebody else holds it:
	memory=$(find "/proc/$VM_PID/fd" -lname '/memfd:memory-backend*')
	hotplug 0 --detach "pid:$VM_PID"
	before=$(footprint)
	# Waits: the look for it below holds the lock for a moment.
	flock -x "$memory" sleep 60 3>&- &
	track $!
	locked() { ! flock -n "$memory" true; }
	wait_for 20 locked
	hotplug 1 --attach "pid:$VM_PID"
	says 'another fm-hotplug takes it over'
	[ "$(footprint)" = "$before" ]
	[ "$(regions)" = 0 ]
}

@test "--list: what a VM calls its devices gets to no terminal as it is" {
	start_faultd
	python3 -c '
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(5)
answers = {"query-memdev": [{"id": "ram\u001b[31m0", "size": 1 << 24, "share": True}], "query-name": {"name": "a\u001bb"},
           "query-memory-devices": [{"type": "dimm", "data": {"id": "\u001b[2Jx\nfm9 dimm", "memdev": "/objects/m", "addr": 1 << 32, "size": 1 << 27, "slot": 0, "node": 0}}]}
while True:
    c, _ = s.accept()
    f = c.makefile("rw")
    f.write("{\"QMP\": {}}\n")
    f.flush()
    for line in f:
        r = json.loads(line)
        f.write(json.dumps({"return": answers.get(r["execute"], {}), "id": r.get("id")}) + "\n")
        f.flush()' "$QMP" 3>&- < /dev/null &
	track $!
	wait_for 10 test -S "$QMP"
	timeout 20 "$FM_BIN/fm-hotplug" --list "$QMP" > "$FM_TMP/list" 2>&1 3>&- || true
	cat -v "$FM_TMP/list"
	grep -q '^_\[2Jx_fm9_dimm  *dimm ' "$FM_TMP/list"
	! grep -q "$(printf '\033')" "$FM_TMP/list" || false
	! grep -q '^fm9' "$FM_TMP/list" || false
}

@test "--attach that is interrupted leaves no userfaultfd behind; ids may be long" {
	local id=ram-0123456789abcdef-0123456789abcdef-0123456789abcdef i delay
	start_faultd
	start_qemu -m 512M -object "memory-backend-memfd,id=$id,size=512M,share=on,prealloc=on" -machine "memory-backend=$id" \
		-qmp "unix:$QMP,server=on,wait=off"
	uffds() { find "/proc/$VM_PID/fd" -lname '*userfaultfd*' 2> /dev/null | wc -l; }
	for ((i = 0; i < 20; i++)); do
		"$FM_BIN/fm-hotplug" --attach "$QMP" > "$FM_TMP/out" 2>&1 3>&- < /dev/null &
		delay=$((i * 8))
		sleep "0.$(printf %03d "$delay")"
		kill -TERM $! 2> /dev/null || true
		wait $! || true
		if [ "$(regions)" = 0 ]; then
			[ "$(uffds)" -eq 0 ]
		else
			[ "$(uffds)" -gt 0 ]
			hotplug 0 --detach "$QMP"
			[ "$(uffds)" -eq 0 ]
		fi
	done
	hotplug 0 --attach "$QMP"
	says "$id: 512M, region"
	hotplug 0 --detach "$QMP" "$id"
	[ "$(uffds)" -eq 0 ]
}

@test "--attach: several backends, and one that is private" {
	start_faultd
	start_qemu -m 256M,slots=4,maxmem=2G -qmp "unix:$QMP,server=on,wait=off" -smp 2 \
		-object memory-backend-memfd,id=a,size=128M,share=on -object memory-backend-ram,id=b,size=128M \
		-numa node,nodeid=0,memdev=a -numa node,nodeid=1,memdev=b
	hotplug 1 --attach "$QMP"
	says 'a: 128M, region'
	says 'b: it is private (share=off)'
	[ "$(regions)" = 1 ]
	hotplug 0 "$QMP" 128M --node 1
	says 'node 1'
}

@test "--attach without QMP: by the process" {
	start_faultd
	start_qemu -m 256M "${SHARED[@]}"
	hotplug 1 "pid:$VM_PID" 128M
	says 'no QMP socket on its command line'
	hotplug 0 --attach "pid:$VM_PID"
	[[ $output == 'memfd-'*': 256M, region '* ]]
	hotplug 0 --list "pid:$VM_PID"
	grep -qE '^memfd-[0-9]+ +- +256M +- +yes ' "$FM_TMP/out"
	hotplug 1 --attach "pid:$VM_PID"
	says 'attached already'
	kill -KILL "$VM_PID"
	wait_for 10 gone "$VM_PID"
	# Nobody tells whether a migration has ended.
	start_qemu -m 256M "${SHARED[@]}" -incoming defer
	hotplug 1 --attach "pid:$VM_PID"
	says 'started with -incoming'
	# Not a VM.
	hotplug 1 --attach "pid:$FAULTD_PID"
	says 'its memory is private'
}

@test "--attach without QMP: later its backend's id is found" {
	start_faultd
	# Not on the command line.
	cat > "$FM_TMP/config" <<- EOF
		[chardev "q"]
		  backend = "socket"
		  path = "$QMP"
		  server = "on"
		  wait = "off"
		[mon "m"]
		  mode = "control"
		  chardev = "q"
	EOF
	start_qemu -m 256M,slots=4,maxmem=2G "${SHARED[@]}" -readconfig "$FM_TMP/config"
	hotplug 0 --attach "pid:$VM_PID"
	name=${output%%:*}
	[[ $name == memfd-* ]]
	hotplug 0 "$QMP" 128M
	hotplug 0 --list "$QMP"
	grep -qE '^ram0 +boot +256M +- +yes ' "$FM_TMP/out"
	hotplug 0 --detach "$QMP" ram0
	says 'ram0: detached'
	hotplug 0 --attach "pid:$VM_PID"
	hotplug 0 --detach "$QMP" "$name"
	says 'ram0: detached'
	[ "$(regions)" = 1 ]
}

@test "--attach of a libvirt domain by its process: it is to be named" {
	start_faultd
	WRAP=(python3 -c '
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
os.dup2(s.fileno(), 9)
os.execvp(sys.argv[2], sys.argv[2:])' "$QMP")
	start_qemu -m 256M "${SHARED[@]}" -name guest=one -chardev socket,id=c,fd=9,server=on,wait=off -mon chardev=c,mode=control
	hotplug 1 --attach "pid:$VM_PID"
	says "name the domain instead: fm-hotplug 'one'"
	[ "$(regions)" = 0 ]
	hotplug 0 --list "pid:$VM_PID"
}

@test "memory that cannot be paged: private" {
	start_faultd
	start_vm
	hotplug 1 --attach "$QMP"
	says 'share=on'
	start_qemu -m 256M -object memory-backend-memfd,id=ram0,size=256M,share=off -machine memory-backend=ram0 \
		-qmp "unix:$QMP.2,server=on,wait=off"
	hotplug 1 --attach "$QMP.2"
	says 'ram0: it is private (share=off)'
	hotplug 1 --attach "pid:$VM_PID"
	says 'private'
	[ "$(regions)" = 0 ]
}

@test "memory that cannot be paged: files of ivshmem, nvdimm and virtio-pmem devices" {
	[ "$(stat -f -c %T /dev/shm)" = tmpfs ] || skip "/dev/shm is not tmpfs"
	FILES=$(mktemp -d /dev/shm/fm-test.XXXXXX)
	start_faultd
	devices=(-machine nvdimm=on -device pcie-root-port,id=rp1,slot=1 -object "memory-backend-file,id=sh0,size=16M,share=on,mem-path=$FILES/sh"
		-device ivshmem-plain,memdev=sh0 -object "memory-backend-file,id=nv0,size=128M,share=on,mem-path=$FILES/nv" -device nvdimm,memdev=nv0,id=n0
		-object memory-backend-memfd,id=pm0,size=128M,share=on -device '{"driver":"virtio-pmem-pci","id":"p0","memdev":"pm0"}')
	start_vm "${SHARED[@]}" "${devices[@]}"
	hmp 'object_add memory-backend-memfd,id=sh1,size=16M,share=on'
	hmp 'device_add ivshmem-plain,memdev=sh1,bus=rp1'
	"$FM_BIN/fm-hotplug" --attach "$QMP" > "$FM_TMP/out" 2> "$FM_TMP/err" 3>&- && return 1
	cat "$FM_TMP/out" "$FM_TMP/err"
	for id in sh0 nv0 pm0 sh1; do
		grep -q ": $id: it is the file of an ivshmem, nvdimm or virtio-pmem device" "$FM_TMP/err"
	done
	grep -q '^ram0: 256M, region' "$FM_TMP/out"
	[ "$(regions)" = 1 ]
	kill -KILL "$VM_PID"
	wait_for 10 gone "$VM_PID"
	start_qemu -m 256M,slots=4,maxmem=2G "${SHARED[@]}" "${devices[@]}"
	hotplug 1 --attach "pid:$VM_PID"
	says 'it has an ivshmem, nvdimm or virtio-pmem device'
}

@test "memory that cannot be paged: a file on a disk" {
	[ "$(stat -f -c %T "$FM_TMP")" != tmpfs ] || skip "$FM_TMP is on tmpfs"
	start_faultd
	start_vm -object "memory-backend-file,id=ram0,size=256M,share=on,mem-path=$FM_TMP/ram" -machine memory-backend=ram0
	hotplug 1 --attach "$QMP"
	says 'ram0: it is a file on a disk'
	[ "$(regions)" = 0 ]
}

@test "a file on tmpfs will do, unless another process maps it too" {
	[ "$(stat -f -c %T /dev/shm)" = tmpfs ] || skip "/dev/shm is not tmpfs"
	file=$(mktemp /dev/shm/fm-test.XXXXXX)
	start_faultd
	ram=(-object "memory-backend-file,id=ram0,size=256M,share=on,mem-path=$file" -machine memory-backend=ram0)
	start_vm "${ram[@]}"
	first=$VM_PID
	start_qemu -m 256M "${ram[@]}"
	rm -f "$file"
	hotplug 1 --attach "$QMP"
	says "process $VM_PID has it mapped too"
	[ "$(regions)" = 0 ]
	kill -KILL "$VM_PID"
	wait_for 5 gone "$VM_PID"
	VM_PID=$first
	hotplug 0 --attach "$QMP"
	[ "$(regions)" = 1 ]
}

@test "memory that cannot be paged: huge pages" {
	# memfd reserves none with reserve=off, so that this needs none.
	start_faultd
	start_vm -object memory-backend-memfd,id=ram0,size=256M,share=on,hugetlb=on,hugetlbsize=2M,reserve=off \
		-machine memory-backend=ram0 || skip "no huge pages here"
	alive "$VM_PID" || skip "no huge pages here"
	hotplug 1 --attach "$QMP"
	says 'huge pages'
	[ "$(regions)" = 0 ]
}

@test "memory that cannot be paged: huge pages of a tmpfs" {
	start_faultd
	for policy in always advise; do # QEMU itself advises them
		mount_huge "$policy" || skip "no tmpfs with huge=$policy"
		rm -f "$QMP"
		start_vm -object "memory-backend-file,id=ram0,size=256M,share=on,prealloc=on,align=2M,mem-path=$FM_TMP/huge/ram" \
			-machine memory-backend=ram0
		[ "$(smaps_of huge/ram ShmemPmdMapped)" != ' 0 kB' ]
		before=$(footprint)
		hotplug 1 --attach "$QMP"
		says 'ram0: it holds huge pages'
		says 'huge=never'
		hotplug 1 --attach "pid:$VM_PID"
		[ "$(footprint)" = "$before" ]
		[ "$(regions)" = 0 ]
		kill -KILL "$VM_PID"
		wait_for 5 gone "$VM_PID"
		umount -l "$FM_TMP/huge"
		rmdir "$FM_TMP/huge"
	done
}

@test "memory that cannot be paged: huge pages that nobody has mapped as such" {
	start_faultd
	mount_huge always || skip "no tmpfs with huge=always"
	head -c 128M /dev/zero > "$FM_TMP/huge/d0"
	start_vm "${SHARED[@]}" -device pc-dimm,id=d0,memdev=m0 \
		-object "memory-backend-file,id=m0,size=128M,share=on,mem-path=$FM_TMP/huge/d0"
	[ "$(smaps_of huge/d0 ShmemPmdMapped)" = ' 0 kB' ]
	hotplug 1 --attach "$QMP"
	says 'm0: it holds huge pages'
	says 'ram0: 256M, region'
	[ "$(regions)" = 1 ]
	# Nothing is left of it.
	[[ $(smaps_of huge/d0 VmFlags) != *' um'* ]]
	before=$(footprint)
	hotplug 1 --attach "$QMP"
	says 'm0: it holds huge pages'
	[ "$(footprint)" = "$before" ]
}

@test "memory on a tmpfs with huge pages that has none yet gets none later" {
	start_faultd
	mount_huge always || skip "no tmpfs with huge=always"
	dimm=(-device "pc-dimm,id=d0,memdev=m0,addr=0x100000000" -object)
	# What would happen:
	start_vm "${SHARED[@]}" "${dimm[@]}" "memory-backend-file,id=m0,size=128M,share=on,align=2M,mem-path=$FM_TMP/huge/d0"
	touch_memory 0x100000000
	[ "$(pages_of huge/d0 large)" -gt 0 ]
	hotplug 1 --attach "$QMP"
	says 'm0: it holds huge pages'
	kill -KILL "$VM_PID"
	wait_for 5 gone "$VM_PID"
	rm -f "$QMP"
	# What happens.
	start_vm "${SHARED[@]}" "${dimm[@]}" "memory-backend-file,id=m0,size=128M,share=on,align=2M,mem-path=$FM_TMP/huge/d1"
	hotplug 0 --attach "$QMP"
	[[ $(smaps_of huge/d1 VmFlags) == *' nh'* ]]
	touch_memory 0x100000000
	[ "$(pages_of huge/d1 all)" -ge 2048 ]
	[ "$(pages_of huge/d1 large)" -eq 0 ]
}

@test "a VM whose memory is pinned by virtio-gpu with blob=on" {
	start_faultd
	# Its devices do not come to life here, for want of /dev/udmabuf; its command line tells.
	for device in virtio-gpu-pci,blob=on 'virtio-vga,id=v,blob=true,max_outputs=1' '{"driver":"virtio-gpu-pci","id":"v","blob":true}'; do
		rm -f "$QMP"
		start_vm "${SHARED[@]}" --preconfig -device "$device"
		hotplug 1 --attach "$QMP"
		says 'virtio-gpu device with blob=on: it pins'
		hotplug 1 --attach "pid:$VM_PID"
		says 'blob=on'
		kill -KILL "$VM_PID"
		wait_for 5 gone "$VM_PID"
	done
	# Without blob it will do.
	rm -f "$QMP"
	start_vm "${SHARED[@]}" -device virtio-gpu-pci,blob=off
	hotplug 0 --attach "$QMP"
}

@test "a VM that holds /dev/udmabuf, in a /dev of its own as libvirt makes it" {
	start_faultd
	# shellcheck disable=SC2016 # expanded by that shell
	WRAP=(unshare -m sh -c 'mount -t tmpfs none /dev && : > /dev/udmabuf && exec "$@" 9< /dev/udmabuf' sh)
	start_vm "${SHARED[@]}"
	hotplug 1 --attach "$QMP"
	says 'blob=on'
	hotplug 1 "$QMP" 128M
	says 'blob=on'
	[ "$(regions)" = 0 ]
}

@test "a VM that holds a VFIO or vDPA device" {
	start_faultd
	# None is here: a descriptor of a file at its place, in a /dev of the VM's own.
	for device in vfio/vfio vhost-vdpa-0 iommu; do
		# shellcheck disable=SC2016 # expanded by that shell
		WRAP=(unshare -m sh -c 'mount -t tmpfs none /dev && mkdir -p /dev/vfio && d=/dev/$1 && : > $d && shift && exec "$@" 9< $d' sh "$device")
		rm -f "$QMP"
		start_vm "${SHARED[@]}"
		hotplug 1 --attach "$QMP"
		says 'VFIO or vDPA device: it pins'
		hotplug 1 "$QMP" 128M
		says 'VFIO or vDPA device'
		kill -KILL "$VM_PID"
		wait_for 10 gone "$VM_PID"
	done
	[ "$(regions)" = 0 ]
}

@test "memory that cannot be paged: locked" {
	start_faultd
	start_vm "${SHARED[@]}" -overcommit mem-lock=on
	before=$(footprint)
	hotplug 1 --attach "$QMP"
	says 'mem-lock=on'
	# New memory would be locked too.
	hotplug 1 "$QMP" 128M
	says 'mem-lock=on'
	wait_for 5 as_before
	[ "$(regions)" = 0 ]
}

@test "--remove: no such device, one the VM was started with, a guest that does not answer" {
	start_faultd
	start_vm -object memory-backend-memfd,id=m0,size=128M,share=on -device pc-dimm,id=d0,memdev=m0
	hotplug 1 --remove "$QMP" nix
	says "device 'nix': no memory device"
	hotplug 1 --remove "$QMP" d0
	says 'cannot be unplugged'
	hotplug 0 "$QMP" 128M
	before=$(footprint)
	hotplug 1 --remove --timeout 1 "$QMP" fm0
	says 'did not give it back within 1 s'
	wait_for 5 as_before
	[ "$(regions)" = 1 ]
}

@test "--remove: of a device that the guest gave back late frees its memory" {
	start_faultd
	start_vm -object memory-backend-memfd,id=mem-late,size=128M,share=on
	[ "$(grep -c 'rw-s.*memory-backend' "/proc/$VM_PID/maps")" = 1 ]
	hotplug 0 --remove "$QMP" late
	says 'late: removed'
	unmapped() { [ "$(grep -c 'rw-s.*memory-backend' "/proc/$VM_PID/maps")" = 0 ]; }
	wait_for 5 unmapped
}

@test "--detach: nothing to detach" {
	start_faultd
	start_vm
	hotplug 1 --detach "$QMP"
	says 'no far memory'
	hotplug 0 "$QMP" 128M
	hotplug 1 --detach "$QMP" other
	says 'other: no far memory'
}

@test "a virtio-mem device's size: what it can be, and a guest that does not follow" {
	start_faultd
	start_vm -device pcie-root-port,id=port0,slot=1
	hotplug 1 "$QMP" +128M
	says 'no virtio-mem device'
	hotplug 2 --max 128M "$QMP" 256M
	says '--max: only with --virtio-mem'
	hotplug 2 --virtio-mem --max 128M "$QMP" 256M
	says '--max: less than the size'
	hotplug 0 --virtio-mem --id v0 --max 512M "$QMP" 128M
	hotplug 1 --timeout 1 "$QMP" +128M --id v0
	says 'virtio_mem driver'
	hotplug 0 --no-wait "$QMP" +128M
	# What was asked for before counts, though the guest has taken none of it.
	hotplug 1 "$QMP" +256M --id v0
	says "device 'v0': it has 0, is asked for 384M and can have 0 to 512M"
	hotplug 0 --no-wait "$QMP" -128M --id v0
	hotplug 0 --list "$QMP"
	says '0/256M'
	hotplug 1 "$QMP" -384M --id v0
	says 'is asked for 256M and can have 0 to 512M'
	hotplug 1 "$QMP" +128M --id other
	says "device 'other': no memory device of this id"
	hotplug 2 "$QMP" +100M --id v0
	hotplug 2 "$QMP" +128M --node 0
	says '--node: only for a new device'
	hotplug 2 --list "$QMP" -128M
	hotplug 0 "$QMP" 128M --id d0
	hotplug 1 "$QMP" +128M --id d0
	says "it is a dimm, whose size cannot change"
}
