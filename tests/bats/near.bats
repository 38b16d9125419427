#!/usr/bin/env bats
# Where a shard runs: on the CPU of a thread that faults alone; never beside one of a real-time class, which would not let it run.

load helper

setup_file() {
	build_clients
}

setup() {
	fm_setup
	[ "$(nproc)" -gt 1 ] || skip "one CPU"
}

# A thread of fm-faultd may run on one CPU only.
follows() {
	grep -hE '^Cpus_allowed_list:	[0-9]+$' "/proc/$FAULTD_PID/task/"*/status > /dev/null
}

faults_above() {
	[ "$(region_stat '.faults // 0')" -gt "$1" ]
}

@test "a thread that faults alone is followed; not with --no-follow, and not one of a real-time class" {
	start_faultd --local 512p
	start_client map:one:4096 lone:4096:"$FM_TMP/end"
	wait_for 60 follows
	touch "$FM_TMP/end"
	ends_well "$CLIENT_PID"
	stop_faultd

	start_faultd --local 512p --no-follow
	start_client map:one:4096 lone:4096:"$FM_TMP/end.2"
	wait_for 60 faults_above 5000
	! follows || false
	touch "$FM_TMP/end.2"
	ends_well "$CLIENT_PID"
	stop_faultd

	[ "$(id -u)" -eq 0 ] || skip "not root"
	start_faultd --local 512p
	# A CPU of its own, the last one, and no more of it than faults take: it must not hold up the test.
	taskset -c $(($(nproc) - 1)) "$BATS_FILE_TMPDIR/client" map:one:4096 realtime lone:4096:"$FM_TMP/end.3" \
		> "$FM_TMP/client.out" 2> "$FM_TMP/client.err" 3>&- < /dev/null &
	CLIENT_PID=$!
	track "$CLIENT_PID"
	wait_for 60 faults_above 5000
	! follows || false
	touch "$FM_TMP/end.3"
	ends_well "$CLIENT_PID"
	stop_faultd
}
