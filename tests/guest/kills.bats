#!/usr/bin/env bats
# The short form of `make kills` for a VM: SIGKILL for fm-faultd or fm-evict every 0.2 to 1 s, for FM_KILL_SECONDS (default 10), while a
# guest checks its memory.

bats_require_minimum_version 1.5.0
load ../bats/helper
load lib

setup() {
	fm_setup
	export GUEST_INITRAMFS=$FM_BIN/../guest/initramfs
	seconds=${FM_KILL_SECONDS:-10}
	export GUEST_TIMEOUT=$((seconds * 2 + 900))
	work=$FM_TMP/work
	mkdir "$work"
	export FM_RUN_DIR=$work/run
}

teardown() {
	guest_kill
	fm_teardown
}

kills_said() {
	grep -q "^kills: $1" "$FM_TMP/kills.out" || gone "$killer"
}

@test "the daemons die again and again, and every byte of the guest is right" {
	local checks=0 killer
	timeout -s INT $((seconds * 2 + 800)) python3 "$FM_ROOT/tests/stress/kills.py" "$FM_BIN" "$FM_TMP" "$work" "$seconds" dir guest \
		> "$FM_TMP/kills.out" 2>&1 3>&- &
	killer=$!
	track "$killer"
	wait_for 30 kills_said ready
	guest_start
	guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'
	# Many times the budget (2048 pages); user memory comes from there first.
	timeout 60 "$FM_BIN/fm-hotplug" "$GUEST_QMP" 256M --id far0
	guest_wait_mib 350
	touch "$work/go"
	until kills_said '[0-9]* of fm-faultd'; do
		run guest_cmd -t 300 "memcheck 67108864 1 $((checks + 1)) 2"
		[ "$status" -eq 0 ] || echo "$output"
		[[ $output == *'memcheck: checked 64 MiB, 0 wrong bytes'* ]]
		checks=$((checks + 1))
	done
	guest_stop
	touch "$work/end"
	ends_well "$killer" 120
	cat "$FM_TMP/kills.out"
	echo "# $checks passes of the guest's checker over 64 MiB, 0 wrong bytes" >&3
	sed 's/^/# /' "$FM_TMP/kills.out" >&3
	[ "$checks" -ge 1 ]
}
