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
