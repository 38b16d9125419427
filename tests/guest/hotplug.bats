#!/usr/bin/env bats
# fm-hotplug and a guest that takes part: unplug and replug, and taking over all memory of a guest that runs on it.
# shellcheck disable=SC2016 # what stands in single quotes is for the shell of the guest

load ../bats/helper
load lib

setup() {
	fm_setup
	export GUEST_INITRAMFS=$FM_BIN/../guest/initramfs
}

teardown() {
	guest_kill
	fm_teardown
}

hotplug() {
	timeout 60 "$FM_BIN/fm-hotplug" "$@" 3>&-
}

regions() {
	"$FM_BIN/fm-stat" -j | jq '.regions | length'
}

no_region() {
	[ "$(regions)" = 0 ]
}

remote_above() {
	[ "$(region_stat .remote_pages)" -gt "$1" ]
}

# Userfaultfds open in QEMU.
uffds() {
	find "/proc/$GUEST_PID/fd" -lname '*userfaultfd*' | wc -l
}

@test "a DIMM is used, unplugged and plugged again, three times, and nothing stays behind" {
	start_faultd --local 16M
	guest_start
	guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'
	guest_cmd 'awk "/^MemTotal:/ { print \$2 }" /proc/meminfo > /tmp/before'
	for _ in 1 2 3; do
		run hotplug "$GUEST_QMP" 128M
		echo "$output"
		[ "$status" -eq 0 ]
		# Not a word about a guest that does not answer.
		[[ $output == 'fm0: 128M at 0x'* ]]
		run hotplug --list "$GUEST_QMP"
		[[ $output =~ fm0\ +dimm\ +128M\ +0\ +yes\ .*\ taken$ ]]
		guest_cmd 'n=0; until awk "/^MemTotal:/ { t = \$2 } END { getline b < \"/tmp/before\"; exit t < b + 40000 }" /proc/meminfo || [ $((n++)) -gt 200 ]; do sleep 0.1; done; [ $n -le 200 ]'
		guest_cmd 'memcheck 50331648 1'
		[ "$(regions)" = 1 ]
		hotplug --remove "$GUEST_QMP" fm0
		[ "$(regions)" = 0 ]
	done
	[ "$(uffds)" = 0 ]
	unmapped() { [ "$(grep -c memory-backend-memfd "/proc/$GUEST_PID/maps")" = 0 ]; }
	wait_for 5 unmapped
	guest_stop
	stop_faultd
}

@test "all memory of a running guest is taken over while it checks it, and most of it goes out" {
	start_faultd --local 48M
	guest_start --share
	check_begin 100663296
	hotplug --attach "$GUEST_QMP"
	wait_for 60 remote_above 8192
	# The checker is still at it, and pages come back to it.
	before=$(region_stat .faults_store)
	came_back() { [ "$(region_stat .faults_store)" -gt $((before + 2000)) ]; }
	wait_for 60 came_back
	check_end
	run hotplug --list "$GUEST_QMP"
	echo "$output"
	[[ $output =~ ram0\ +boot\ +256M\ +-\ +yes ]]
	[ "$(region_stat .pages_lost)" = 0 ]
	guest_stop
	wait_for 5 no_region
	stop_faultd
}

@test "a guest that uses a DIMM for its kernel refuses to give it back: said, and nothing changes" {
	start_faultd --local 16M
	guest_start
	hotplug "$GUEST_QMP" 128M
	guest_cmd 'n=0; until [ -d /sys/devices/system/memory/memory32 ] || [ $((n++)) -gt 200 ]; do sleep 0.1; done; fm-online --kernel'
	# Inodes and names of a tmpfs are the kernel's own: more of them than the boot memory holds.
	guest_cmd -t 200 'mkdir -p /mnt && mount -t tmpfs -o nr_inodes=0 none /mnt && cd /mnt && i=0; while [ $i -lt 70 ]; do mkdir $i; (cd $i && seq 1 1500 | xargs touch); i=$((i + 1)); done'
	run guest_cmd -t 100 'fm-online --offline 32'
	echo "$output"
	[ "$status" -eq 1 ]
	[ "$output" = 'fm-online: memory32: busy: memory in it cannot be moved, or it is going offline' ]
	run timeout 60 "$FM_BIN/fm-hotplug" --remove "$GUEST_QMP" fm0 3>&-
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == *"device 'fm0': the guest "*'take its memory offline there (fm-online --offline)'* ]]
	run hotplug --list "$GUEST_QMP"
	[[ $output =~ fm0\ +dimm\ +128M\ +0\ +yes ]]
	[ "$(regions)" = 1 ]
	run guest_cmd -t 100 'ls /mnt/*/* | wc -l; fm-online --status'
	echo "$output"
	[[ $output == 105000* ]]
	[[ $output == *'online 384M'* ]]
	guest_stop
	wait_for 60 no_region
	stop_faultd
}

@test "the boot script of contrib brings online what was plugged before the boot" {
	guest_start -- -object memory-backend-ram,id=m0,size=128M -device pc-dimm,id=d0,memdev=m0
	run guest_cmd 'sh /scripts/init-premount/fm-online prereqs; sh /scripts/init-premount/fm-online; echo status $?; fm-online --status'
	echo "$output"
	[[ $output == *'status 0'* ]]
	[[ $output == *'online 384M'* ]]
	run guest_cmd 'fm-online --offline 32 && fm-online --status'
	echo "$output"
	[[ $output == *'online 256M'*'offline 128M'* ]]
	guest_stop
}

@test "unplugged and plugged again 20 times under use, 0 wrong bytes" {
	start_faultd --local 16M
	guest_start
	files=$(daemon_files)
	guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'
	guest_cmd 'awk "/^MemTotal:/ { print \$2 }" /proc/meminfo > /tmp/before'
	for i in {1..20}; do
		hotplug "$GUEST_QMP" 128M
		guest_cmd 'n=0; until awk "/^MemTotal:/ { t = \$2 } END { getline b < \"/tmp/before\"; exit t < b + 40000 }" /proc/meminfo || [ $((n++)) -gt 600 ]; do sleep 0.05; done; [ $n -le 600 ]'
		run guest_cmd "memcheck 50331648 1 $i"
		[[ $output == *', 0 wrong bytes'* ]]
		hotplug --remove "$GUEST_QMP" fm0
		[ "$(regions)" = 0 ]
	done
	[ "$(uffds)" = 0 ]
	wait_for 20 daemon_files_are "$files"
	wait_for 20 store_is_empty
	guest_stop
	stop_faultd
}
