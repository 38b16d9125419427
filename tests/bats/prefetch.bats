#!/usr/bin/env bats
# sanitizers: asan
# Pages that come before they are asked for: told by counters, never by time.

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	build_clients
}

setup() {
	requires jq || skip "no jq"
	fm_setup
	go=$FM_TMP/go
}

said() {
	grep -qx "$1" "$FM_TMP/client.out"
}

# since FIELD: how much a counter grew since the last `now`
now() {
	before=$("$FM_BIN/fm-stat" -j)
}
since() {
	"$FM_BIN/fm-stat" -j | jq --argjson b "$before" ".regions[0].$1 - \$b.regions[0].$1"
}

@test "a sequential read of N remote pages takes less than N/4 faults; so does the first touch of N fresh ones" {
	local shards n=4096
	for shards in 1 4; do
		rm -f "$go" "$go.2"
		start_faultd --local none --shards "$shards"
		start_client map:r:$n say:mapped until:"$go" fill:0:$n:7 say:filled until:"$go.2" check:0:$n:7 say:checked until:"$go.3"
		wait_for 60 said mapped
		now
		touch "$go"
		wait_for 60 said filled
		echo "first touch: $(since faults) faults"
		[ "$(since faults_zero)" -eq $n ]
		[ "$(since faults)" -lt $((n / 4)) ]
		[ "$(since zeroed_ahead)" -gt $((n / 2)) ]
		"$FM_BIN/fm-evict" --all r
		[ "$(region_stat .remote_pages)" -eq $n ]
		now
		touch "$go.2"
		wait_for 60 said checked
		echo "read: $(since faults) faults"
		[ "$(since faults_store)" -eq $n ]
		[ "$(since faults)" -lt $((n / 4)) ]
		[ "$(since prefetched)" -gt $((n / 2)) ]
		# All of them were used, and but for the last windows it is known.
		[ "$(since prefetch_hits)" -gt $((n / 2)) ]
		[ "$(since prefetch_wasted)" -eq 0 ]
		[ "$(region_stat .pages_lost)" -eq 0 ]
		kill "$CLIENT_PID"
		wait "$CLIENT_PID" || true
		stop_faultd
	done
}

@test "nothing is evicted for a guess: within a budget, guesses stop at its high mark" {
	local n=4096 SECONDS
	start_faultd --local 1M
	start_client map:r:$n fill:0:$n:7 check:0:$n:7 check:0:$n:7 say:checked until:"$go"
	SECONDS=0
	while ! said checked; do
		[ "$SECONDS" -lt 300 ]
		! gone "$CLIENT_PID" || { cat "$FM_TMP/client.err"; false; }
		[ "$("$FM_BIN/fm-stat" -j | jq .daemon.resident_pages)" -le 256 ]
	done
	[ "$(region_stat .prefetched)" -gt 0 ]
	# Every page was read twice, from the store; what came ahead was there when it was wanted.
	[ "$(region_stat .faults_store)" -lt $((2 * n + n / 4)) ]
	[ "$(region_stat .prefetch_wasted)" -lt $((n / 8)) ]
}

@test "random access brings in nothing ahead, but for one window where it meets the end of the fill" {
	local steps=() i page=1
	start_faultd --local none
	for ((i = 0; i < 400; i++)); do
		page=$(((page * 2531 + 11) % 8192))
		steps+=("check:$page:1:7")
	done
	start_client map:r:8192 fill:0:8192:7 say:filled until:"$go" "${steps[@]}" say:checked until:"$go.2"
	wait_for 60 said filled
	"$FM_BIN/fm-evict" --all r
	now
	touch "$go"
	wait_for 60 said checked
	[ "$(since prefetched)" -le 62 ]
	[ "$(since faults)" -ge 380 ]
}
