#!/usr/bin/env bats
# Each crash point of the source (lib/crash.h): the daemons die there, and no client reads a wrong word.

bats_require_minimum_version 1.5.0
load helper
load memcached

setup_file() {
	local c
	CRASH_BIN=${FM_BIN%/bin}-crash/bin
	[ -x "$CRASH_BIN/fm-faultd" ] || make -s -C "$FM_ROOT" SAN=crash "B=$(dirname "$CRASH_BIN")" tools > /dev/null
	export CRASH_BIN
	for c in client torture lost; do
		cc -O1 -std=c11 -D_GNU_SOURCE -I"$FM_ROOT/lib" -o "$BATS_FILE_TMPDIR/$c" "$FM_ROOT/tests/stress/$c.c" "$FM_LIB/libfm.a" \
			-lpthread || return 1
	done
}

setup() {
	fm_setup
}

# The points that the source has, on lines of their own.
points() {
	grep -rhoE 'FM_CRASH_POINT\("[^"]+"\)' "$FM_ROOT/lib" "$FM_ROOT/cmd" | cut -d '"' -f 2 | LC_ALL=C sort -u
}

# crash_walk STORE POINT...
crash_walk() {
	local store=$1 status=0
	shift
	timeout -s INT 800 python3 "$FM_ROOT/tests/stress/crashwalk.py" "$CRASH_BIN" "$BATS_FILE_TMPDIR" "$FM_TMP" "$store" "$@" \
		> "$FM_TMP/walk.out" 2>&1 3>&- || status=$?
	echo "# $(tail -1 "$FM_TMP/walk.out")" >&3
	[ "$status" -eq 0 ] || {
		grep -v '^ok' "$FM_TMP/walk.out"
		tail -20 "$FM_TMP/daemons.log"
		return 1
	}
}

@test "no two crash points have one name, and no other build has any" {
	[ "$(points | wc -l)" -gt 80 ]
	[ "$(grep -rhoE 'FM_CRASH_POINT\("[^"]+"\)' "$FM_ROOT/lib" "$FM_ROOT/cmd" | sort | uniq -d | wc -l)" -eq 0 ]
	run -1 grep -q events-noted "$FM_BIN/fm-faultd"
	grep -q events-noted "$CRASH_BIN/fm-faultd"
}

@test "dir: a death at each crash point" {
	local list
	mapfile -t list < <(points | grep -vE '^(mc|move|purge)-')
	crash_walk "dir:$FM_TMP/store" "${list[@]}"
}

@test "memcached, two copies of each page, servers that come and go: a death at each point of its own, and at some others" {
	local s list servers=
	requires memcached || skip "no memcached"
	for s in a b c; do
		mc_start "$s"
		servers+=,${MC_AT[$s]}
	done
	mapfile -t list < <(points | grep -E '^(mc|move|purge|put|stored|punched|takeover|end|free)-')
	crash_walk "memcached:${servers#,}" "${list[@]}"
	echo "# values left on the servers, which no word names: $(mc_items a b c)" >&3
}

# die_at POINT: have a daemon that is started now die there.
die_at() {
	python3 -c 'import struct, sys; sys.stdout.buffer.write(struct.pack("ii56s", 1, 0, sys.argv[1].encode()).ljust(8 * 64, b"\0"))' "$1" > "$FM_TMP/points"
}

# Userfaultfds open in a process.
uffds_of() {
	find "/proc/$1/fd" -lname '*userfaultfd*' | wc -l
}

@test "fm-faultd dies past the way back of a detach: the next one ends it, and fm-hotplug leaves no userfaultfd in QEMU" {
	local point detach vm
	requires qemu-system-x86_64 || skip "no qemu-system-x86_64"
	[ "$(id -u)" -eq 0 ] || skip "not root"
	timeout 300 qemu-system-x86_64 -S -accel tcg,tb-size=32 -machine q35,memory-backend=ram0 -nodefaults -display none -m 64M \
		-object memory-backend-memfd,id=ram0,size=64M,share=on -pidfile "$FM_TMP/vm" > "$FM_TMP/qemu.log" 2>&1 3>&- < /dev/null &
	track $!
	wait_for 30 test -s "$FM_TMP/vm"
	vm=$(cat "$FM_TMP/vm")
	for point in end-begin end-flagged free-begin free-unlinked; do
		die_at "$point"
		FM_BIN=$CRASH_BIN FM_CRASH_FILE=$FM_TMP/points start_faultd
		"$FM_BIN/fm-hotplug" --attach "pid:$vm" 3>&-
		[ "$(uffds_of "$vm")" -gt 0 ]
		"$FM_BIN/fm-hotplug" --detach "pid:$vm" > "$FM_TMP/out" 2>&1 3>&- &
		detach=$!
		track "$detach"
		wait_for 60 gone "$FAULTD_PID"
		start_faultd
		ends_well "$detach"
		[[ $(cat "$FM_TMP/out") == *': detached' ]]
		no_regions
		[ "$(uffds_of "$vm")" -eq 0 ]
		stop_faultd
	done
}

died() {
	[ "$(od -An -t d4 -j 4 -N 4 "$FM_CRASH_FILE")" -ne 0 ]
}

@test "a death between reading that a region has moved and noting it: it is found at its new place" {
	export FM_CRASH_FILE=$FM_TMP/crash
	head -c 512 /dev/zero > "$FM_CRASH_FILE"
	FM_BIN=$CRASH_BIN start_faultd --local 64p --no-seccomp
	start_client map:one:256 fill:0:256:3 say:filled until:"$FM_TMP/go" move:256 check:0:256:3
	client_says filled
	printf '\1\0\0\0\0\0\0\0events-read' | dd of="$FM_CRASH_FILE" conv=notrunc status=none
	touch "$FM_TMP/go"
	wait_for 60 died
	wait "$FAULTD_PID" || true
	start_faultd --local 64p
	ends_well "$CLIENT_PID"
	wait_for 20 no_regions
	stop_faultd
}
