#!/usr/bin/env bats
# The whole of it: a stock VM on far memory.
# shellcheck disable=SC2016 # what stands in single quotes is for the shell of the guest

load ../bats/helper
load lib

setup() {
	fm_setup
	export GUEST_INITRAMFS=$FM_BIN/../guest/initramfs
	budget_pages=8192 # 32 MiB
}

teardown() {
	guest_kill
	fm_teardown
}

# Sample fm-stat ten times a second from here on.
sample() {
	"$FM_BIN/fm-stat" -j -i 0.1 > "$FM_TMP/samples" 3>&- &
	track $!
}

# At no sample was more on the host than the budget, 2 % and 1 MiB.
budget_held() {
	local peak
	peak=$(jq -s 'map(.daemon.resident_pages) | max' "$FM_TMP/samples")
	echo "peak resident: $peak pages of $budget_pages"
	[ "$(wc -l < "$FM_TMP/samples")" -gt 10 ]
	[ "$peak" -gt $((budget_pages / 2)) ]
	[ "$peak" -le $((budget_pages * 102 / 100 + 256)) ]
}

# A number of the one region, by its name in the JSON document.
of_region() {
	"$FM_BIN/fm-stat" -j | jq ".regions[0].$1"
}

no_region() {
	[ "$("$FM_BIN/fm-stat" -j | jq '.regions | length')" = 0 ]
}

# KiB that the store's files take.
store_kib() {
	du -sk "$FM_TMP/store" | cut -f1
}

store_is_empty() {
	[ "$(store_kib)" -lt 64 ]
}

@test "a checker that reads a wrong byte says so" {
	guest_start
	run guest_cmd 'MEMCHECK_BREAK=1 memcheck 16777216 2'
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == *'memcheck: checked 16 MiB, 1 wrong bytes' ]]
	guest_stop
}

@test "256 MiB hotplugged into a running guest, 32 MiB of it on the host: every byte is right" {
	start_faultd --local "${budget_pages}p"
	sample
	guest_start
	guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'

	timeout 60 "$FM_BIN/fm-hotplug" "$GUEST_QMP" 256M --id far0
	guest_wait_mib 350
	run timeout 60 "$FM_BIN/fm-hotplug" --list "$GUEST_QMP"
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == *far0* ]]

	run guest_cmd -t 120 'memcheck 234881024 3 5 2'
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == *'memcheck: checked 224 MiB, 0 wrong bytes'* ]]
	budget_held
	# It was far memory that was checked: most of it came back from the store.
	[ "$(of_region faults_store)" -gt 50000 ]
	[ "$(of_region evictions)" -gt 50000 ]
	[ "$(of_region pages_lost)" -eq 0 ]
	[ "$(store_kib)" -gt 100000 ]

	guest_stop
	wait_for 5 no_region
	wait_for 5 store_is_empty
	stop_faultd
}

@test "--attach: the boot RAM of a busy guest becomes far memory, and every byte is right" {
	start_faultd --local "${budget_pages}p"
	guest_start --share --mem 384M
	check_begin 167772160 1 9 2
	timeout 60 "$FM_BIN/fm-hotplug" --attach "$GUEST_QMP"
	# From the whole of its RAM down to the budget while it runs.
	timeout 60 "$FM_BIN/fm-evict" --limit "${budget_pages}p"
	sample
	enough() { [ "$(wc -l < "$FM_TMP/samples")" -gt 10 ] && [ "$(of_region faults_store)" -gt 10000 ]; }
	wait_for 100 enough
	check_end
	budget_held

	guest_stop
	wait_for 5 no_region
	wait_for 5 store_is_empty
	stop_faultd
}

# The smallest budget is for bench/idle.sh to find.
@test "an idle guest of 512 MiB that keeps 4 MiB on the host answers its console" {
	local start answers=()
	start_faultd
	guest_start --share --mem 512M
	timeout 60 "$FM_BIN/fm-hotplug" --attach "$GUEST_QMP"
	timeout 120 "$FM_BIN/fm-evict" --limit 4M
	for _ in 1 2 3; do
		start=${EPOCHREALTIME/./}
		[ "$(guest_cmd -t 100 'echo here')" = here ]
		answers+=("$(((${EPOCHREALTIME/./} - start) / 1000))")
		[ "$(of_region resident_pages)" -le $((1024 * 102 / 100 + 256)) ]
	done
	echo "# answered in ${answers[*]} ms" >&3
	[ "$(of_region faults_store)" -gt 0 ]
	"$FM_BIN/fm-evict" --limit 64M
	guest_stop
	wait_for 60 no_region
	stop_faultd
}
