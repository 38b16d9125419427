#!/usr/bin/env bats
# sanitizers: asan
# fm-hotplug --detach of a process that is faster than any guest: threads that compare every word they read, while their memory is attached and
# brought home again and again, also with fm-faultd killed in the middle of it. And what is refused.

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	build_clients
}

setup() {
	fm_setup
	[ "$(id -u)" -eq 0 ] || skip "not root"
	rounds=$((${FM_STRESS_SECONDS:-10} / 2))
	CGROUP=
}

teardown() {
	fm_teardown
	[ -z "$CGROUP" ] || rmdir "$CGROUP" || true
	[ ! -d "$FM_TMP/small" ] || umount -l "$FM_TMP/small"
}

hotplug() {
	timeout 120 "$FM_BIN/fm-hotplug" "$@" > "$FM_TMP/out" 2> "$FM_TMP/hotplug.err" 3>&-
}

# Memory in a memfd as QEMU's, and threads that check it. Sets CLIENT_PID.
start_vm_torture() {
	"$BATS_FILE_TMPDIR/torture" --vm --seconds 500 "$@" > "$FM_TMP/torture.out" 2> "$FM_TMP/torture.err" 3>&- < /dev/null &
	CLIENT_PID=$!
	track "$CLIENT_PID"
	mapped() { grep -q memory-backend-memfd "/proc/$CLIENT_PID/maps"; }
	wait_for 20 mapped
}

torture_ends_well() {
	kill -TERM "$CLIENT_PID"
	ends_well "$CLIENT_PID" 60 && cat "$FM_TMP/torture.out" && grep -q ', 0 wrong words' "$FM_TMP/torture.out"
}

remote_above() {
	[ "$(region_stat '.remote_pages // 0')" -gt "$1" ]
}

uffds() {
	find "/proc/$CLIENT_PID/fd" -lname '*userfaultfd*' 2> /dev/null | wc -l
}

@test "attached and detached again and again under load: every word right" {
	local n=0 away=0
	start_faultd --grace 0 --local 512p --shards 2
	start_vm_torture --size $((4096 * 4096)) --threads 4
	while [ "$n" -lt "$rounds" ]; do
		hotplug --attach "pid:$CLIENT_PID"
		wait_for 60 remote_above 1000
		away=$((away + $(region_stat '.remote_pages // 0')))
		hotplug --detach "pid:$CLIENT_PID"
		no_regions
		store_is_empty
		[ "$(uffds)" -eq 0 ]
		[ "$("$FM_BIN/fm-stat" -j | jq .daemon.resident_pages)" -eq 0 ]
		n=$((n + 1))
	done
	torture_ends_well
	echo "# $n times, $away pages came home" >&3
	stop_faultd
}

# Bit 3 of the flags in the region's file: see INTERFACES.md.
detaching() {
	local flags
	flags=$(od -An -tu8 -j248 -N8 "$FM_RUN_DIR"/region-*.state 2> /dev/null) && [ $((flags & 8)) -ne 0 ]
}

detaching_or_gone() {
	detaching || no_regions
}

@test "fm-faultd is killed while memory comes home: it goes back or goes on, every word right" {
	local kills=0 detached=0 i pid round
	start_faultd --grace 0 --local 512p --shards 2
	start_vm_torture --size $((16384 * 4096)) --threads 4
	RANDOM=$((rounds + 17))
	for ((round = 0; round < rounds; round++)); do
		! no_regions || hotplug --attach "pid:$CLIENT_PID"
		wait_for 60 remote_above 8000
		hotplug --detach "pid:$CLIENT_PID" &
		pid=$!
		track "$pid"
		# From its beginning on; in one of these rounds the end may have come first.
		wait_for 60 detaching_or_gone
		for ((i = RANDOM % 6; i > 0; i--)); do
			detaching || break
		done
		kill -KILL "$FAULTD_PID"
		wait_for 10 gone "$FAULTD_PID"
		kills=$((kills + 1))
		start_faultd --grace 0 --local 512p --shards 2
		! wait "$pid" || detached=$((detached + 1))
		# What was past the way back is freed by the next one.
		freed_or_far() { no_regions || [ "$(region_stat '.flags | length')" = 0 ]; }
		wait_for 10 freed_or_far
		! no_regions || [ "$(uffds)" -eq 0 ]
	done
	torture_ends_well
	echo "# $kills kills, $detached detaches all the same" >&3
	stop_faultd
}

@test "fm-hotplug is interrupted, and the evictor is killed, while memory comes home" {
	local evictor round
	start_faultd --grace 0 --local 512p
	start_vm_torture --size $((4096 * 4096)) --threads 4
	for ((round = 0; round < rounds; round++)); do
		! no_regions || hotplug --attach "pid:$CLIENT_PID"
		wait_for 60 remote_above 1000
		"$FM_BIN/fm-hotplug" --detach "pid:$CLIENT_PID" > "$FM_TMP/out" 2>&1 3>&- &
		evictor=$(children_of "$FAULTD_PID")
		kill -INT $! || true
		[ -z "$evictor" ] || kill -KILL "${evictor% }" 2> /dev/null || true
		wait $! || true
		goes_on() { no_regions || [ "$(region_stat '.evictions')" -gt "$1" ]; }
		no_regions || wait_for 60 goes_on "$(region_stat '.evictions // 0')"
	done
	torture_ends_well
	stop_faultd
}

@test "an evictor's answer to a request that went away does not count for the next one" {
	start_faultd -v --no-evictor
	timeout 60 python3 "$BATS_TEST_DIRNAME/peer.py" "$FM_RUN_DIR/fm.sock" holds 3>&-
	wait_for 10 no_regions
	stop_faultd
}

@test "no room: refused with what is missing, and nothing changes" {
	local dir=/sys/fs/cgroup/memory before missing
	[ -w "$dir/cgroup.procs" ] || skip "no memory cgroup of version 1"
	CGROUP=$dir/fm-test.$$
	mkdir "$CGROUP" 2> /dev/null || { CGROUP='' && skip "no memory cgroup may be made"; }
	start_faultd --grace 0 --local 512p
	start_vm_torture --size $((16384 * 4096)) --threads 1 --seed 1
	hotplug --attach "pid:$CLIENT_PID"
	# Before it has touched that many pages there is nothing to come home.
	wait_for 60 remote_above 1000
	kill -STOP "$CLIENT_PID"
	"$FM_BIN/fm-evict" --limit 64p
	echo "$CLIENT_PID" > "$CGROUP/cgroup.procs"
	echo 1M > "$CGROUP/memory.limit_in_bytes"
	before=$(region_stat .remote_pages)
	[ "$before" -gt 1000 ]
	run -1 timeout 60 "$FM_BIN/fm-hotplug" --detach "pid:$CLIENT_PID" 3>&-
	echo "$output"
	[[ $output =~ 'no room for its pages: '([0-9]+)' bytes are missing in the memory limit of cgroup' ]]
	missing=${BASH_REMATCH[1]}
	[ "$missing" -gt $((before * 4096 - (2 << 20))) ]
	[ "$missing" -le $((before * 4096)) ]
	[ "$(region_stat .remote_pages)" -eq "$before" ]
	[ "$(region_stat '.flags | length')" -eq 0 ]
	echo -1 > "$CGROUP/memory.limit_in_bytes"
	hotplug --detach "pid:$CLIENT_PID"
	kill -CONT "$CLIENT_PID"
	torture_ends_well
	stop_faultd
}

@test "a lost page: refused, with their number" {
	start_faultd --grace 0 --local 512p
	start_client map:lossy:2048 fill:0:2048:7 say:filled until:"$FM_TMP/go"
	client_says filled
	"$FM_BIN/fm-evict" --all lossy
	# Somebody destroys what the store holds; the next access finds out, and so does coming home.
	truncate -s 0 "$FM_TMP/store"/*.pages
	run -1 python3 - "$FM_RUN_DIR" 3>&- <<- 'P'
		import glob, socket, struct, sys
		s = socket.socket(socket.AF_UNIX)
		s.settimeout(60)
		s.connect(sys.argv[1] + "/fm.sock")
		region = int(glob.glob(sys.argv[1] + "/region-*.state")[0][-22:-6], 16)
		s.sendall(struct.pack("<IHHIIQ", 0x314d4600, 1, 17, 8, 0, region))
		kind, length = struct.unpack("<IHHII", s.recv(16, socket.MSG_WAITALL))[2:4]
		body = s.recv(length, socket.MSG_WAITALL) if length else b""
		print(kind, body[4:].split(b"\0")[0].decode())
		sys.exit(kind != 1)
	P
	echo "$output"
	[[ $output =~ ^2.*': '[1-9][0-9]*' of its pages are lost' ]]
	[ "$(region_stat '.flags | length')" -eq 0 ]
	[ "$(region_stat .pages_lost)" -gt 0 ]
}
