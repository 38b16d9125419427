#!/usr/bin/env bats
# What a guest and its operator do with far memory besides using it: virtio-mem grows and shrinks, the balloon, free page reporting, reset,
# two guests, a guest that refuses to give memory back, and ends of every kind.
# shellcheck disable=SC2016 # what stands in single quotes is for the shell of the guest

bats_require_minimum_version 1.5.0
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
	timeout 180 "$FM_BIN/fm-hotplug" "$@" 3>&-
}

# One command to QEMU: qmp NAME [ARGUMENTS]; prints the whole answer.
qmp() {
	python3 - "$GUEST_QMP" "$@" 3>&- <<- 'P'
		import json, socket, sys
		s = socket.socket(socket.AF_UNIX)
		s.settimeout(30)
		s.connect(sys.argv[1])
		f = s.makefile("rw")
		f.readline()
		for cmd in ({"execute": "qmp_capabilities"}, {"execute": sys.argv[2], "arguments": json.loads((sys.argv + ["{}"])[3])}):
		    f.write(json.dumps(cmd) + "\n")
		    f.flush()
		    while True:
		        answer = json.loads(f.readline())
		        if "event" not in answer:
		            break
		print(json.dumps(answer))
		sys.exit("error" in answer)
	P
}

# Pages of the first region of this host or of the store.
pages_held() {
	region_stat '.resident_pages + .remote_pages'
}

held_below() {
	[ "$(pages_held)" -lt "$1" ]
}

store_below() {
	[ "$(blocks_of "$FM_TMP/store")" -lt "$1" ]
}

guest_has_mib() {
	guest_cmd 'awk "/^MemTotal:/ { print int(\$2 / 1024) }" /proc/meminfo'
}

@test "virtio-mem on far memory grows and shrinks; what is given back is freed here and in the store" {
	local before after
	start_faultd --local 32M
	guest_start --mem 256M -- -device pcie-root-port,id=rp0,slot=1
	guest_cmd 'load_virtio virtio_mem && fm-online --watch > /tmp/online 2>&1 &'
	run hotplug --virtio-mem --id v0 "$GUEST_QMP" 128M
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == 'v0: 128M at '* ]]
	guest_wait_mib 260
	run hotplug "$GUEST_QMP" +256M --id v0
	echo "$output"
	[ "$status" -eq 0 ]
	[ "$output" = 'v0: 384M' ]
	guest_wait_mib 500
	run guest_cmd -t 200 'memcheck 335544320 2'
	echo "$output"
	[[ $output == *'checked 320 MiB, 0 wrong bytes'* ]]
	before=$(pages_held)
	[ "$before" -gt 65536 ]
	[ "$(blocks_of "$FM_TMP/store")" -gt 40000 ]
	run -2 hotplug "$GUEST_QMP" -256M --id v0 --node 0
	run -1 hotplug "$GUEST_QMP" -512M --id v0
	[[ $output == *"device 'v0': it has 384M and can have 0 to 512M"* ]]
	run hotplug "$GUEST_QMP" -256M --id v0
	echo "$output"
	[ "$status" -eq 0 ]
	[ "$output" = 'v0: 128M' ]
	wait_for 20 held_below 33000
	wait_for 20 store_below 33000
	after=$(pages_held)
	echo "# $before pages before, $after after shrinking by 65536" >&3
	# And again, with what is left.
	run guest_cmd -t 200 'memcheck 100663296 2'
	[[ $output == *'checked 96 MiB, 0 wrong bytes'* ]]
	hotplug "$GUEST_QMP" +128M
	guest_wait_mib 380
	run guest_cmd -t 200 'memcheck 209715200 1'
	[[ $output == *'checked 200 MiB, 0 wrong bytes'* ]]
	[ "$(region_stat .pages_lost)" -eq 0 ]
	guest_stop
	wait_for 60 no_regions
	stop_faultd
}

# Wait until the guest says @ready, as after a boot.
guest_boots() {
	# shellcheck disable=SC2034 # guest_answer() sets it
	local GUEST_LAST
	guest_answer 240 '@ready' > "$FM_TMP/boot"
}

resident_is_limited() {
	[ "$(region_stat .resident_pages)" -le "$1" ]
}

@test "balloon, free page reporting, a stop with migration to a file, reset and panic: 0 wrong bytes, and what is given up is freed" {
	local before files
	start_faultd --local 32M
	guest_start --share -- -device virtio-balloon-pci,id=b0,free-page-reporting=on
	files=$(daemon_files)
	hotplug --attach "$GUEST_QMP"
	guest_cmd 'load_virtio virtio_balloon'
	run guest_cmd -t 200 'memcheck 104857600 2'
	[[ $output == *'checked 100 MiB, 0 wrong bytes'* ]]
	# It has ended, and the guest reports what is free, some seconds later.
	wait_for 60 held_below 40000
	echo "# $(pages_held) pages held after free page reporting" >&3
	guest_cmd 'echo 3 > /proc/sys/vm/drop_caches'

	# A file in memory, then the balloon takes what is left, and gives it back.
	guest_cmd 'mkdir -p /mnt && mount -t tmpfs none /mnt && seq 1 1000000 > /mnt/f && sha256sum /mnt/f > /tmp/sum'
	qmp balloon '{"value": 167772160}'
	inflated() { qmp query-balloon | jq -e '.return.actual <= 167772160' > /dev/null; }
	wait_for 60 inflated
	wait_for 30 held_below 33000
	qmp balloon '{"value": 268435456}'
	run guest_cmd -t 200 'memcheck 62914560 2 && sha256sum -c /tmp/sum'
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == *'checked 60 MiB, 0 wrong bytes'* ]]

	# Every page is read by QEMU itself.
	qmp stop
	qmp migrate "{\"uri\": \"exec:cat > $FM_TMP/saved\"}"
	migrated() { qmp query-migrate | jq -e '.return.status == "completed"' > /dev/null; }
	wait_for 120 migrated
	[ "$(stat -c %s "$FM_TMP/saved")" -gt 20000000 ]
	qmp cont
	run guest_cmd 'sha256sum -c /tmp/sum'
	[ "$status" -eq 0 ]

	qmp set-action '{"reboot": "reset"}'
	qmp system_reset
	guest_boots
	run guest_cmd -t 200 'memcheck 94371840 2'
	[[ $output == *'checked 90 MiB, 0 wrong bytes'* ]]

	# A guest that panics reboots at once: QEMU ends here.
	[ "$(region_stat .pages_lost)" -eq 0 ]
	qmp set-action '{"reboot": "shutdown"}'
	printf 'echo c > /proc/sysrq-trigger\n' >&"$GUEST_IN"
	wait_for 60 gone "$GUEST_PID"
	wait_for 60 no_regions
	store_is_empty
	wait_for 20 daemon_files_are "$files"
	stop_faultd
}

# Two guests: what lib.bash knows of the one that is not spoken to.
declare -gA kept
keep_guest() {
	local v
	for v in DIR QMP PID TIMEOUT_PID FD IN; do
		declare -n var=GUEST_$v
		kept[$1.$v]=$var
	done
}
use_guest() {
	local v
	for v in DIR QMP PID TIMEOUT_PID FD IN; do
		declare -n var=GUEST_$v
		var=${kept[$1.$v]}
	done
}

@test "two guests; sha256sum and sort of more than the budget; one ends by quit, the other goes on" {
	local count=1200000 files
	start_faultd --local 24M
	guest_start --share
	files=$(daemon_files)
	track "$GUEST_TIMEOUT_PID" "$GUEST_PID"
	keep_guest a
	guest_start --share
	track "$GUEST_TIMEOUT_PID" "$GUEST_PID"
	keep_guest b
	for g in a b; do
		use_guest $g
		hotplug --attach "$GUEST_QMP"
	done
	use_guest a
	guest_cmd "mkdir -p /mnt && mount -t tmpfs none /mnt && seq 1 $count > /mnt/f"
	run guest_cmd -t 300 'sort -rn /mnt/f | sha256sum'
	echo "$output"
	[ "${output%% *}" = "$(seq $count -1 1 | sha256sum | cut -d' ' -f1)" ]
	guest_cmd -t 200 "seq 1 $((count * 4)) > /mnt/f"
	use_guest b
	check_begin 50331648
	use_guest a
	run guest_cmd -t 300 'sha256sum < /mnt/f'
	[ "${output%% *}" = "$(seq 1 $((count * 4)) | sha256sum | cut -d' ' -f1)" ]
	qmp quit
	wait_for 20 gone "$GUEST_PID"
	use_guest b
	one() { [ "$("$FM_BIN/fm-stat" -j | jq '.regions | length')" = 1 ]; }
	wait_for 60 one
	check_end
	[ "$(region_stat .faults_store)" -gt 5000 ]
	guest_stop
	wait_for 60 no_regions
	store_is_empty
	wait_for 20 daemon_files_are "$files"
	stop_faultd
}
