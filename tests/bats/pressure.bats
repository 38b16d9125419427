#!/usr/bin/env bats
# Too little of something, or too much: descriptors, memory, room in the run directory, a slow store, an evictor that stands still, very many
# regions and threads, clients that fork and die. Each time no word is wrong, no page lost, what is refused is refused with a line, and all goes
# on by itself when the pressure ends. (Full stores: faultd.bats, memcached.bats, ramcloud.bats. Limits of users: privilege.bats.)

bats_require_minimum_version 1.5.0
load helper
load memcached

setup_file() {
	build_clients
	mc_build
}

setup() {
	fm_setup
	go=$FM_TMP/go
	CGROUP=() MOUNTED=()
}

teardown() {
	local at
	fm_teardown
	for at in "${MOUNTED[@]}"; do
		umount "$at"
	done
	for at in "${CGROUP[@]}"; do
		wait_for 10 rmdir "$at" 2> /dev/null
	done
}

# begin_with 'SHELL COMMANDS' [ARGS...]: start_faultd, in a process that did these first. Its evictor inherits what they changed.
begin_with() {
	mkdir -p "$FM_TMP/bin"
	printf '#!/bin/sh\n%s\nexec "%s/fm-faultd" "$@"\n' "$1" "$FM_BIN" > "$FM_TMP/bin/fm-faultd"
	chmod +x "$FM_TMP/bin/fm-faultd"
	FM_BIN=$FM_TMP/bin start_faultd "${@:2}"
}

lost_none() {
	[ "$("$FM_BIN/fm-stat" -j | jq '[.regions[].pages_lost] | add')" -eq 0 ]
}

regions_are() {
	[ "$("$FM_BIN/fm-stat" -j | jq '.regions | length')" -eq "$1" ]
}

@test "a restart with too few descriptors for the regions there are: refused, nothing is freed, and the next one serves them" {
	local i
	start_faultd --local 64p
	for i in {1..8}; do
		"$BATS_FILE_TMPDIR/client" "map:r$i:64" "fill:0:64:$i" "until:$go" "check:0:64:$i" say:right > "$FM_TMP/out.$i" 2>&1 3>&- &
		track $!
	done
	wait_for 30 regions_are 8
	kill -KILL "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	for i in 12 20 26 30 34; do
		run timeout 20 prlimit --nofile=$i:$i "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "dir:$FM_TMP/store" 3>&-
		echo "$i: $status $output"
		[ "$status" -eq 1 ]
		[ "${#lines[@]}" -eq 1 ]
	done
	states=("$FM_RUN_DIR"/region-*.state)
	[ ${#states[@]} -eq 8 ]
	start_faultd --local 64p
	touch "$go"
	for i in "${FM_PIDS[@]:1:8}"; do
		ends_well "$i"
	done
	stop_faultd
}
