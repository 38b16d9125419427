#!/usr/bin/env bats
# The model of the page-state protocol (tests/model): nothing is violated in any interleaving, and each rule is needed for that.

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	cc -O2 -std=c11 -Wall -Wextra -o "$BATS_FILE_TMPDIR/model" "$FM_ROOT/tests/model/model.c"
}

@test "all interleavings: contents, ownership, no client that waits for ever" {
	run -0 timeout 200 "$BATS_FILE_TMPDIR/model"
	echo "# $output" >&3
	# A model that cannot move finds nothing, either.
	[[ $output =~ ([0-9]+)" states: nothing violated" ]]
	[ "${BASH_REMATCH[1]}" -gt 500000 ]
}

@test "each rule that is taken away is missed" {
	local rule rules
	rules=$("$BATS_FILE_TMPDIR/model" rules)
	[ "$rules" -ge 13 ]
	for ((rule = 1; rule <= rules; rule++)); do
		run -1 timeout 200 "$BATS_FILE_TMPDIR/model" "$rule"
		echo "# $output" >&3
	done
}
