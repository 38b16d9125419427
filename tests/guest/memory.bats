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
