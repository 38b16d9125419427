#!/usr/bin/env bats
# The short form of `make soak`.

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	build_clients
}

@test "20 seconds of everything at once: no wrong word, all freed, no descriptor lost" {
	mkdir "$FM_TMP/work"
	timeout -s INT 600 python3 "$FM_ROOT/tests/stress/soak.py" "$FM_BIN" "$BATS_FILE_TMPDIR" "$FM_TMP/work" \
		"${FM_SOAK_SECONDS:-20}" > "$FM_TMP/soak.out" 2>&1 3>&- || {
		cat "$FM_TMP/soak.out"
		tail -20 "$FM_TMP/work/daemons.log"
		return 1
	}
	grep '^soak:' "$FM_TMP/soak.out" | sed 's/^/# /' >&3
}
