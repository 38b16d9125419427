#!/usr/bin/env bats
# sanitizers: asan
# fm-online on a made-up sysfs tree; --watch with the kernel's own uevents, where root may ask for one.

load helper

setup() {
	fm_setup
	online=$FM_BIN/fm-online
	export FM_SYSFS=$FM_TMP/sys
	memory=$FM_SYSFS/devices/system/memory
	mkdir -p "$memory/power"
	echo 8000000 > "$memory/block_size_bytes"
}

# block N STATE ZONES
block() {
	local dir=$FM_SYSFS/devices/system/memory/memory$1
	mkdir -p "$dir"
	echo "$2" > "$dir/state"
	echo "$3" > "$dir/valid_zones"
}

state() {
	cat "$memory/memory$1/state"
}

is_state() {
	[ "$(state "$1")" = "$2" ]
}

refused() {
	local want=$1
	shift
	run "$@"
	[ "$status" -eq "$want" ] && [ "${#lines[@]}" -eq 1 ] && [[ $output == fm-online:* ]]
}

@test "fm-online --help and --version" {
	run "$online" --help
	[ "$status" -eq 0 ]
	[[ $output == *"--watch"* ]]
	run "$online" --version
	[ "$status" -eq 0 ] && [[ $output == "fm-online "[0-9]* ]]
}

@test "fm-online: usage errors are one line and exit 2" {
	block 0 online Normal
	refused 2 "$online" extra
	refused 2 "$online" --movable --kernel
	refused 2 "$online" --status --watch
	refused 2 "$online" --status --offline 1
	refused 2 "$online" --movable --offline 1
	refused 2 "$online" --offline ''
	refused 2 "$online" --offline 3-1
	[[ $output == *"'3-1'"* ]]
	refused 2 "$online" --offline memoryx
	run "$online" --no-such-option
	[ "$status" -eq 2 ]
}

@test "fm-online: without /sys it says so" {
	refused 1 "$online" --sysfs "$FM_TMP/none"
	[[ $output == *"mount -t sysfs"* ]]
	mkdir "$FM_TMP/empty"
	refused 1 "$online" --sysfs "$FM_TMP/empty"
	[[ $output == *"mount -t sysfs"* ]]
	refused 1 "$online" --sysfs "$FM_TMP/empty" --status
	refused 1 "$online" --sysfs "$FM_TMP/empty" --watch
	mkdir -p "$FM_TMP/empty/devices/system"
	refused 1 "$online" --sysfs "$FM_TMP/empty"
	[[ $output == *"no memory hotplug"* ]]
}

@test "fm-online: brings offline blocks online, movable, in order" {
	block 0 online Normal
	block 9 offline 'Normal Movable'
	block 34 offline 'Normal Movable'
	block 100 offline 'Normal Movable'
	run "$online"
	[ "$status" -eq 0 ]
	[ "$output" = $'memory9: online movable\nmemory34: online movable\nmemory100: online movable' ]
	[ "$(state 9)" = online_movable ] && [ "$(state 0)" = online ]
}

@test "fm-online: nothing to do is no error" {
	block 0 online Normal
	run "$online"
	[ "$status" -eq 0 ]
	[ -z "$output" ]
	rm -r "$memory/memory0"
	run "$online"
	[ "$status" -eq 0 ] && [ -z "$output" ]
}

@test "fm-online --kernel and --movable" {
	block 1 offline 'Normal Movable'
	run "$online" --kernel
	[ "$output" = "memory1: online kernel" ]
	[ "$(state 1)" = online_kernel ]
	block 1 offline 'Normal Movable'
	run "$online" --movable
	[ "$output" = "memory1: online movable" ] && [ "$(state 1)" = online_movable ]
}

@test "fm-online: a block that fails is one line, the others are done, exit 1" {
	block 1 offline Movable
	mkdir "$memory/memory2"
	block 3 going-offline Movable
	block 4 offline Movable
	"$online" > "$FM_TMP/out" 2> "$FM_TMP/err" && return 1
	[ $? -eq 1 ]
	[ "$(cat "$FM_TMP/out")" = $'memory1: online movable\nmemory4: online movable' ]
	[ "$(wc -l < "$FM_TMP/err")" -eq 2 ]
	grep -q '^fm-online: memory2: No such file' "$FM_TMP/err"
	grep -q '^fm-online: memory3: busy' "$FM_TMP/err"
}

@test "fm-online: no permission is one line, however many blocks there are" {
	requires setpriv || skip "no setpriv"
	[ "$(id -u)" -eq 0 ] || skip "not root"
	dir=$(mktemp -d /tmp/fm-online.XXXXXX)
	FM_SYSFS=$dir/sys
	block 1 offline Movable
	block 2 offline Movable
	cp "$online" "$dir/fm-online"
	chmod -R a+rX "$dir"
	run setpriv --reuid=65534 --regid=65534 --clear-groups "$dir/fm-online"
	rm -rf "$dir"
	[ "$status" -eq 1 ] && [ "$output" = "fm-online: memory1: not permitted, needs root" ]
}

@test "fm-online --status" {
	block 0 online Normal
	block 1 online Movable
	block 2 offline 'Normal Movable'
	block 3 online Movable
	rm "$memory/memory3/valid_zones"
	run "$online" --status
	[ "$status" -eq 0 ]
	[ "${#lines[@]}" -eq 6 ]
	[ "$(tr -s ' ' <<< "${lines[0]}")" = "BLOCK STATE ZONE SIZE" ]
	[ "$(tr -s ' ' <<< "${lines[1]}")" = "memory0 online Normal 128M" ]
	[ "$(tr -s ' ' <<< "${lines[2]}")" = "memory1 online Movable 128M" ]
	[ "$(tr -s ' ' <<< "${lines[3]}")" = "memory2 offline - 128M" ]
	[ "$(tr -s ' ' <<< "${lines[4]}")" = "memory3 online - 128M" ]
	[ "${lines[5]}" = "online 384M (movable 128M), offline 128M, in 4 blocks of 128M" ]
	echo x > "$memory/block_size_bytes"
	refused 1 "$online" --status
}

@test "fm-online --offline" {
	for i in 34 35 36 37 40; do block "$i" online Movable; done
	run "$online" --offline 34-36
	[ "$status" -eq 0 ]
	[ "$output" = $'memory36: offline\nmemory35: offline\nmemory34: offline' ]
	is_state 34 offline && is_state 37 online
	run "$online" --offline memory37,memory34
	[ "$output" = $'memory37: offline\nmemory34: already offline' ]
	# One that is missing: nothing is touched.
	refused 1 "$online" --offline 39-40
	[ "$output" = "fm-online: memory39: no such block" ]
	is_state 40 online
	refused 1 "$online" --offline 40-2147483647
	is_state 40 online
}

@test "fm-online --watch: what is there, then what appears" {
	block 0 offline Movable
	event=/sys/devices/system/memory/memory0/uevent
	"$online" --watch > "$FM_TMP/out" 2> "$FM_TMP/err" 3>&- &
	pid=$!
	track "$pid"
	wait_for 5 is_state 0 online_movable
	if [ -w "$event" ]; then
		# The kernel tells that memory0 was added, again; in the made-up tree it is offline.
		block 0 offline Movable
		block 1 offline Movable
		echo change > "$event"
		echo add > "$event"
		wait_for 5 is_state 0 online_movable
		is_state 1 offline
	fi
	kill -TERM "$pid"
	wait_for 5 gone "$pid"
	wait "$pid"
	[ ! -s "$FM_TMP/err" ]
	[ "$(sort -u "$FM_TMP/out")" = "memory0: online movable" ]
}

@test "fm-online: a full standard output is an error" {
	[ -w /dev/full ] || skip "no /dev/full"
	block 0 online Normal
	run bash -c '"$1" --status > /dev/full' - "$online"
	[ "$status" -eq 1 ]
}

@test "fm-online is small and needs no library" {
	requires readelf || skip "no readelf"
	case $FM_BIN in *asan* | *tsan*) skip "a sanitizer build" ;; esac
	[ "$(readelf -lW "$online" | grep -c INTERP)" -eq 0 ]
	cp "$online" "$FM_TMP/stripped"
	strip "$FM_TMP/stripped"
	[ "$(stat -c %s "$FM_TMP/stripped")" -lt 131072 ]
	[ "$(strings "$FM_TMP/stripped" | grep -c jansson)" -eq 0 ]
}
