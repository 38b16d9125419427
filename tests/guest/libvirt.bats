#!/usr/bin/env bats
# fm-hotplug and domains of a real libvirtd (started by hand, in a mount namespace of its own) with guests that run.
# shellcheck disable=SC2016,SC2030,SC2031 # what stands in single quotes is for the shell of the guest; each test is a process

load ../bats/helper
load lib
load libvirt

setup_file() {
	libvirt_start
}

teardown_file() {
	libvirt_stop
}

setup() {
	fm_setup
	libvirt_again
}

teardown() {
	local id
	for id in $(v list --id); do
		v destroy "$id" > /dev/null || true
	done
	for id in $(v list --all --name); do
		v undefine "$id" > /dev/null || true
	done
	fm_teardown
}

# hotplug STATUS ARGS...: run fm-hotplug; fails unless it ends with that status and, when that is not 0, one line on stderr.
hotplug() {
	local want=$1 status=0
	shift
	in_libvirt timeout 200 env "${WITH[@]}" "$FM_BIN/fm-hotplug" "$@" > "$FM_TMP/out" 2> "$FM_TMP/err" || status=$?
	output=$(cat "$FM_TMP/out" "$FM_TMP/err")
	echo "$ fm-hotplug $*: $status"
	echo "$output"
	[ "$status" -eq "$want" ] || return 1
	[ "$want" -eq 0 ] || [ "$(wc -l < "$FM_TMP/err")" -eq 1 ]
}
WITH=()

says() {
	[[ $output == *"$1"* ]] || {
		echo "not said: $1"
		return 1
	}
}

regions() {
	"$FM_BIN/fm-stat" -j | jq '.regions | length'
}

no_region() {
	[ "$(regions)" = 0 ]
}

remote_pages() {
	"$FM_BIN/fm-stat" -j | jq '[.regions[].remote_pages] | add // 0'
}

remote_above() {
	[ "$(remote_pages)" -gt "$1" ]
}

# Userfaultfds open in the VM.
uffds() {
	find "/proc/$GUEST_PID/fd" -lname '*userfaultfd*' | wc -l
}

@test "a DIMM by name, another by UUID: libvirt knows them, every byte is right, and out again" {
	start_faultd --local 24M
	domain_start one
	files=$(daemon_files)
	uuid=$(v domuuid one)
	guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'
	hotplug 0 one 128M
	[[ $output == 'fm0: 128M at 0x100000000, node 0, region '* ]]
	hotplug 0 "$uuid" 128M --id two_2 --node 0
	[[ $output == 'two_2: 128M at 0x108000000, node 0, region '* ]]
	v dumpxml one > "$FM_TMP/xml"
	grep -q "<alias name='ua-fm0'/>" "$FM_TMP/xml"
	grep -q "<alias name='ua-two_2'/>" "$FM_TMP/xml"
	[ "$(grep -c "<memory model='dimm' access='shared'" "$FM_TMP/xml")" = 2 ]
	guest_wait_mib 350
	run guest_cmd -t 200 'memcheck 201326592 2'
	echo "$output"
	[[ $output == *', 0 wrong bytes'* ]]
	wait_for 60 remote_above 20000
	hotplug 1 one 128M --id fm0
	says "id 'fm0': taken already"
	hotplug 2 one 128M --id a.b
	says "no '.'"
	hotplug 0 --list one
	grep -qE '^ram-node0 +boot +256M +- +no +- +- +-$' "$FM_TMP/out"
	grep -qE '^fm0 +dimm +128M +0 +yes ' "$FM_TMP/out"
	grep -qE '^two_2 +dimm +128M +0 +yes ' "$FM_TMP/out"
	hotplug 0 --remove --timeout 150 one two_2
	hotplug 1 --remove one two_2
	says 'no memory device of this id'
	hotplug 0 --remove --timeout 150 "$uuid" fm0
	[ "$(regions)" = 0 ]
	[ "$(v dumpxml one | grep -c '<memory model')" = 0 ]
	[ "$(uffds)" = 0 ]
	wait_for 30 store_is_empty
	# Once more: the same id and place.
	hotplug 0 one 128M
	says 'fm0: 128M at 0x100000000'
	v destroy one
	domain_forget one
	wait_for 30 no_region
	wait_for 30 store_is_empty
	wait_for 30 daemon_files_are "$files"
	stop_faultd
}

@test "--attach by name while the guest checks its memory; suspend, resume, detach; save and restore; destroy" {
	start_faultd --local 48M
	domain_start one
	check_begin 100663296
	hotplug 0 --attach one
	[[ $output == 'ram0: 256M, region '* || $output == 'ram-node0: 256M, region '* ]]
	timeout 60 "$FM_BIN/fm-evict" --limit 48M
	v suspend one
	[ "$(v domstate one)" = paused ]
	hotplug 0 --list one
	grep -qE '^ram-node0 +boot +256M +- +yes ' "$FM_TMP/out"
	v resume one
	wait_for 60 remote_above 8192
	check_end
	# Saved with far memory: QEMU ends, and with it the region and what the store holds.
	check_begin 100663296
	v save one /run/guest/saved
	wait_for 30 no_region
	wait_for 30 store_is_empty
	v restore /run/guest/saved
	domain_process one
	check_end
	# It is ordinary memory now, until it is attached again.
	hotplug 0 --list one
	grep -qE '^ram-node0 +boot +256M +- +no ' "$FM_TMP/out"
	check_begin 100663296
	hotplug 0 --attach one
	timeout 60 "$FM_BIN/fm-evict" --limit 48M
	wait_for 60 remote_above 8192
	# And home, while it is checked.
	hotplug 0 --detach one
	says 'ram-node0: detached'
	check_end
	no_region
	hotplug 0 --attach one
	hotplug 1 --attach one
	says 'attached already'
	v destroy one
	domain_forget one
	wait_for 30 no_region
	wait_for 30 store_is_empty
	stop_faultd
}

@test "a reset and a reboot: the guest boots anew on far memory, the device stays" {
	start_faultd --local 40M
	domain_start one
	hotplug 0 --attach one
	hotplug 0 one 128M
	v reset one
	domain_wait one
	[ "$(regions)" = 2 ]
	# By the guest itself.
	guest_send 'reboot -f'
	domain_wait one
	[ "$(regions)" = 2 ]
	guest_cmd 'fm-online > /dev/null'
	guest_wait_mib 250
	run guest_cmd -t 200 'memcheck 167772160 2'
	echo "$output"
	[[ $output == *', 0 wrong bytes'* ]]
	hotplug 0 --list one
	grep -qE '^fm0 +dimm +128M +0 +yes ' "$FM_TMP/out"
	# The guest powers off: libvirt ends the domain, QEMU its regions.
	guest_send 'poweroff -f'
	wait_for 30 no_region
	wait_for 30 store_is_empty
	off() { [ -z "$(v list --name)" ]; }
	wait_for 30 off
	domain_forget one
}

@test "two domains at once, each its own memory" {
	start_faultd --local 40M
	domain_start one
	domain_start two
	hotplug 0 --attach one
	hotplug 0 two 128M
	hotplug 0 --attach two
	domain_use one
	check_begin 83886080 2
	domain_use two
	check_begin 83886080 2
	domain_use one
	check_end
	domain_use two
	check_end
	[ "$("$FM_BIN/fm-stat" -j | jq -r '[.regions[].name] | sort | join(" ")')" = 'one:ram-node0 two:memua-fm0 two:ram-node0' ]
	v destroy one
	one_left() { [ "$(regions)" = 2 ]; }
	wait_for 10 one_left
	check_begin 41943040 2
	check_end
	domain_forget one
	v destroy two
	domain_forget two
	wait_for 30 no_region
}

@test "a guest that refuses to give a DIMM back: an error, and nothing changes" {
	start_faultd
	domain_start one
	hotplug 0 one 128M
	guest_cmd 'fm-online --kernel --watch > /tmp/online 2>&1 &'
	guest_wait_mib 230
	# Kernel memory that cannot be moved.
	guest_cmd 'mkdir -p /tmp/many; i=0; while [ $i -lt 20000 ]; do echo > /tmp/many/$i || break; i=$((i + 1)); done; echo $i'
	hotplug 1 --remove --timeout 3 one fm0
	says "device 'fm0'"
	says 'fm-online --offline'
	[ "$(regions)" = 1 ]
	hotplug 0 --list one
	grep -qE '^fm0 +dimm +128M +0 +yes ' "$FM_TMP/out"
	guest_cmd 'ls /tmp/many | wc -l'
	domain_forget one
}

@test "memory in files on a tmpfs, as Nova's file_backed_memory makes it; QEMU without rights" {
	start_faultd --local 40M
	chmod 777 "$LV_DIR/guest"
	in_libvirt chmod 777 /var/lib/libvirt/qemu/ram
	domain_start one --file --user 65534
	[ "$(stat -c %u "/proc/$GUEST_PID")" = 65534 ]
	grep -q '/qemu/ram/.*ram-node0' "/proc/$GUEST_PID/maps"
	hotplug 0 --attach one
	says 'ram-node0: 256M'
	hotplug 0 one 128M
	guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'
	guest_wait_mib 230
	run guest_cmd -t 200 'memcheck 167772160 2'
	echo "$output"
	[[ $output == *', 0 wrong bytes'* ]]
	wait_for 60 remote_above 20000
	v destroy one
	domain_forget one
	wait_for 30 no_region
	# The same on a disk: where libvirt's files are, or the build, if /tmp is a tmpfs itself.
	in_libvirt umount -l /var/lib/libvirt/qemu/ram
	if [ "$(in_libvirt stat -fc %T /var/lib/libvirt/qemu)" = tmpfs ]; then
		mkdir -p "$FM_BIN/../disk"
		in_libvirt mount --bind "$(realpath "$FM_BIN/../disk")" /var/lib/libvirt/qemu/ram
	fi
	domain_xml two --file > "$LV_DIR/guest/two.xml"
	domain_pipes two
	v create --paused /run/guest/two.xml
	hotplug 1 --attach two
	says 'ram-node0: it is a file on a disk'
	hotplug 1 two 128M
	says 'it is a file on a disk'
	[ "$(v dumpxml two | grep -c '<memory model')" = 0 ]
	[ "$(regions)" = 0 ]
	v destroy two
	domain_forget two
	in_libvirt mount -t tmpfs -o mode=755 fm-test /var/lib/libvirt/qemu/ram
}

@test "two cells of one size: QEMU's monitor tells which is which, and the taint is said" {
	start_faultd
	domain_pipes one
	domain_xml one --cells 2 > "$LV_DIR/guest/one.xml"
	v create --paused /run/guest/one.xml
	hotplug 0 --attach one
	says 'custom-monitor'
	says 'ram-node0: 128M, region'
	says 'ram-node1: 128M, region'
	v dominfo one | grep -i custom-monitor || grep -i custom-monitor "$LV_DIR"/log/qemu/one.log
	hotplug 0 one 128M --node 1
	says 'node 1'
	hotplug 1 one 128M --node 2
	says 'has 2 NUMA cells'
	# All are known by their regions: nobody needs the monitor.
	hotplug 0 --list one
	[ "$(grep -c ' yes ' "$FM_TMP/out")" = 3 ]
	hotplug 1 --attach one
	says 'attached already'
	[[ $output != *custom-monitor* ]]
	# libvirtd goes and comes: the domain and its regions stay.
	libvirt_restart "$(domain_pid one)"
	hotplug 0 --list one
	[ "$(grep -c ' yes ' "$FM_TMP/out")" = 3 ]
	# The only one that is not far.
	hotplug 0 --detach one ram-node1
	says 'ram-node1: detached'
	hotplug 0 --attach one
	says 'ram-node1: 128M, region'
	[[ $output != *custom-monitor* ]]
	hotplug 0 --detach one fm0
	says 'memua-fm0: detached'
	hotplug 0 --detach "$(v domuuid one)"
	[ "$(regions)" = 0 ]
	v destroy one
	domain_forget one
}

@test "refused: no such domain, shut off, an id, libvirt's own socket; and pid:N says the domain's name" {
	start_faultd
	hotplug 3 nix 128M
	says 'no domain of this name or UUID'
	hotplug 3 --list 00000000-0000-0000-0000-000000000000
	domain_xml one > "$LV_DIR/guest/one.xml"
	v define /run/guest/one.xml
	domain_pipes one
	for what in --list --attach --detach; do
		hotplug 3 "$what" one
		says 'shut off'
	done
	hotplug 3 one 128M
	hotplug 3 --remove one fm0
	hotplug 0 --print-xml one
	says 'has all that far memory needs'
	v start one --paused
	GUEST_PID=$(domain_pid one)
	hotplug 2 "$(v domid one)" 128M
	says "an id, not a name: the domain of that id now is 'one'"
	hotplug 1 "pid:$GUEST_PID" 128M
	says "name the domain instead: fm-hotplug 'one'"
	hotplug 3 "/var/lib/libvirt/qemu/domain-$(v domid one)-one/monitor.sock" 128M
	says "name the domain instead: fm-hotplug 'one'"
	# Another libvirtd's folders: by the UUID on the command line. From outside of its mount namespace here.
	export LIBVIRT_DEFAULT_URI="qemu:///system?socket=/proc/$LV_PID/root/run/libvirt/libvirt-sock"
	run "$FM_BIN/fm-hotplug" one 128M
	echo "$output"
	[ "$status" -eq 0 ]
	unset LIBVIRT_DEFAULT_URI
	hotplug 1 one 2G
	says 'only 1.6G left'
	for id in a b c; do
		hotplug 0 one 128M --id $id
	done
	hotplug 1 one 128M
	says 'all 4 are taken'
	# Somebody traces it: said before anything is changed.
	strace -o /dev/null -p "$GUEST_PID" 3>&- &
	track $!
	traced() { grep -qE '^TracerPid:.*[1-9]' "/proc/$GUEST_PID/status"; }
	wait_for 10 traced
	hotplug 1 one 128M --virtio-mem
	says 'traces it'
	kill -TERM $!
	v destroy one
	domain_forget one
}

@test "what a domain's XML lacks is said, printed, and enough" {
	start_faultd
	domain_xml one --plain > "$LV_DIR/guest/one.xml"
	domain_pipes one
	v define /run/guest/one.xml
	v start one --paused
	hotplug 1 one 128M
	says "<memoryBacking> with <source type='memfd'/> and <access mode='shared'/>"
	says "<maxMemory slots='N'>"
	says 'a NUMA <cell>'
	says '--print-xml'
	[ "$(v dumpxml one | grep -c '<memory model')" = 0 ]
	hotplug 1 --attach one
	says 'private'
	[ "$(regions)" = 0 ]
	v destroy one
	hotplug 0 --print-xml one
	says 'into the <cpu> that is there'
	domain_forget one
	for bad in hugepages locked; do
		domain_xml two --plain --top "<memoryBacking><$bad/></memoryBacking><memtune><hard_limit unit='GiB'>4</hard_limit></memtune>" \
			> "$LV_DIR/guest/two.xml"
		v define /run/guest/two.xml
		hotplug 0 --print-xml two
		says 'instead of the <memoryBacking> that is there'
		v undefine two
	done
}

@test "the session of the man page and of README, as written, in a domain that had none of what it takes" {
	local lines
	start_faultd --local 64M
	domain_xml vm1 --plain --mib 1024 > "$LV_DIR/guest/vm1.xml"
	domain_pipes vm1
	v define /run/guest/vm1.xml
	mapfile -t lines < <(sed -n '/^The same with libvirt/,/^\.Ed/s/^# //p' "$FM_ROOT/man/fm-hotplug.8")
	printf '%s\n' "${lines[@]}"
	[ "${#lines[@]}" -eq 4 ]
	grep -qE "^ +sudo build/bin/${lines[2]} " "$FM_ROOT/README.md"
	# An operator with an editor.
	cat > "$FM_TMP/editor" << 'EOT'
#!/usr/bin/python3
import os, sys, xml.etree.ElementTree as tree
domain = tree.parse(sys.argv[1]).getroot()
for e in tree.fromstring("<all>" + open(os.environ["SESSION_OUT"]).read() + "</all>"):
    if e.tag == "cpu":
        domain.find("cpu").append(e.find("numa"))
    else:
        domain.append(e)
tree.ElementTree(domain).write(sys.argv[1])
EOT
	chmod +x "$FM_TMP/editor"
	session() {
		echo "# $1"
		in_libvirt timeout 200 env "PATH=$FM_BIN:$PATH" "EDITOR=$FM_TMP/editor" "SESSION_OUT=$FM_TMP/out" bash -c "$1" > "$FM_TMP/out.new" 2>&1 || {
			cat "$FM_TMP/out.new"
			return 1
		}
		mv "$FM_TMP/out.new" "$FM_TMP/out"
		cat "$FM_TMP/out"
	}
	session "${lines[0]}"
	session "${lines[1]}"
	v start vm1
	domain_wait vm1
	guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'
	session "${lines[2]}"
	session "${lines[3]}"
	guest_wait_mib 4600
	run guest_cmd -t 300 'memcheck 268435456 1'
	echo "$output"
	[[ $output == *', 0 wrong bytes'* ]]
	wait_for 60 remote_above 40000
	hotplug 0 --print-xml vm1
	says 'has all that far memory needs'
	v destroy vm1
	domain_forget vm1
	wait_for 60 no_region
	wait_for 60 store_is_empty
}

@test "virtio-mem through libvirt" {
	start_faultd --local 40M
	domain_start one --extra "<controller type='pci' index='1' model='pcie-root-port'/>"
	hotplug 0 one 256M --virtio-mem --id vm0
	says 'vm0: 256M'
	v dumpxml one | grep -q "<requested unit='KiB'>262144</requested>"
	hotplug 0 --list one
	grep -qE '^vm0 +virtio-mem +0 +0 +yes +0 +0 +0/256M$' "$FM_TMP/out"
	guest_cmd 'load_virtio virtio_mem'
	guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'
	guest_wait_mib 330
	run guest_cmd -t 200 'memcheck 209715200 2'
	echo "$output"
	[[ $output == *', 0 wrong bytes'* ]]
	hotplug 0 --list one
	grep -qE '^vm0 +virtio-mem +256M +0 +yes .* taken$' "$FM_TMP/out"
	# Smaller and larger, by libvirt.
	hotplug 0 --id vm0 --timeout 150 one -128M
	says 'vm0: 128M'
	v dumpxml one | grep -q "<requested unit='KiB'>131072</requested>"
	hotplug 0 --timeout 150 one +128M
	says 'vm0: 256M'
	v destroy one
	domain_forget one
	wait_for 30 no_region
}

@test "what fails after libvirt has added the device is undone" {
	start_faultd
	domain_start one
	# It is connected to, but does not answer.
	kill -STOP "$FAULTD_PID"
	hotplug 3 one 128M
	kill -CONT "$FAULTD_PID"
	says 'no answer in time'
	[ "$(v dumpxml one | grep -c '<memory model')" = 0 ]
	unmapped() { [ "$(grep -c memory-backend-memfd "/proc/$GUEST_PID/maps")" = 1 ]; }
	wait_for 30 unmapped
	[ "$(regions)" = 0 ]
	hotplug 0 one 128M
	# A guest that is stopped cannot give it back: that is said.
	v suspend one
	kill -STOP "$FAULTD_PID"
	hotplug 3 one 128M --id b || true # two lines
	kill -CONT "$FAULTD_PID"
	says 'no answer in time'
	says "device 'b': it stays plugged as ordinary memory"
	v resume one
	hotplug 0 --attach one
	says 'memua-b: 128M, region'
	domain_forget one
}
