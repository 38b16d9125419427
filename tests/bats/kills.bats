#!/usr/bin/env bats
# The short form of `make kills`: FM_KILL_SECONDS (default 5) of SIGKILL every 0.2 to 1 s, for each store.

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	build_clients
}

kills() {
	mkdir "$FM_TMP/work"
	timeout -s INT $((${FM_KILL_SECONDS:-5} * 2 + 400)) python3 "$FM_ROOT/tests/stress/kills.py" "$FM_BIN" "$BATS_FILE_TMPDIR" "$FM_TMP/work" \
		"${FM_KILL_SECONDS:-5}" "$1" > "$FM_TMP/kills.out" 2>&1 3>&- || {
		cat "$FM_TMP/kills.out"
		tail -20 "$FM_TMP/work/daemons.log"
		return 1
	}
	sed 's/^/# /' "$FM_TMP/kills.out" >&3
}

@test "a folder as the store: 0 wrong words, 0 pages lost" {
	kills dir
}

@test "three memcached servers, two copies of each page: 0 wrong words, 0 pages lost" {
	requires memcached || skip "no memcached"
	kills memcached
}
