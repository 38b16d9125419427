#!/usr/bin/env bats
# A virtual CPU of KVM on far memory, without a guest kernel: tests/stress/kvm.c.

bats_require_minimum_version 1.5.0
load helper

setup() {
	fm_setup
	cc -O1 -Wall -std=c11 -D_GNU_SOURCE -I"$FM_ROOT/lib" -o "$FM_TMP/kvm" "$FM_ROOT/tests/stress/kvm.c" "$FM_LIB/libfm.a" -lpthread
}

@test "long mode at level 3 on four times the budget: every word right" {
	local status=0
	start_faultd --local 128p
	timeout 300 "$FM_BIN/fm-stat" -j -i 0.2 > "$FM_TMP/samples" 3>&- &
	track $!
	timeout 300 "$FM_TMP/kvm" 512 150 > "$FM_TMP/out" 2> "$FM_TMP/kvm.err" 3>&- || status=$?
	cat "$FM_TMP/out" "$FM_TMP/kvm.err"
	[ "$status" -ne 77 ] || skip "$(cat "$FM_TMP/out")"
	[ "$status" -eq 0 ]
	grep -qx 'kvm: 150 passes over 512 pages, 0 wrong words' "$FM_TMP/out"
	# It was far memory: nearly each page of each pass came from the store, and was seen to be written.
	jq -s 'map(.regions[] | .faults_store, .evictions) | max' "$FM_TMP/samples"
	[ "$(jq -s 'map(.regions[] | .faults_store) | max // 0' "$FM_TMP/samples")" -gt 5000 ]
	[ "$(jq -s 'map(.daemon.resident_pages) | max' "$FM_TMP/samples")" -le 386 ]
	wait_for 30 no_regions
	stop_faultd
}
