#!/usr/bin/env bats
# Too little of something, or too much: descriptors, memory, room in the run directory, a slow store, an evictor that stands still, very many
# regions and threads, clients that fork and die. Each time no word is wrong, no page lost, what is refused is refused with a line, and all goes
# on by itself when the pressure ends. (Full stores: faultd.bats, memcached.bats, ramcloud.bats. Limits of users: privilege.bats.)

bats_require_minimum_version 1.5.0
load helper
load memcached

setup_file() {
	build_clients
	mc_build
}

setup() {
	fm_setup
	go=$FM_TMP/go
	CGROUP=() MOUNTED=()
}

teardown() {
	local at
	fm_teardown
	for at in "${MOUNTED[@]}"; do
		umount "$at"
	done
	for at in "${CGROUP[@]}"; do
		wait_for 10 rmdir "$at" 2> /dev/null
	done
}

# begin_with 'SHELL COMMANDS' [ARGS...]: start_faultd, in a process that did these first. Its evictor inherits what they changed.
begin_with() {
	mkdir -p "$FM_TMP/bin"
	printf '#!/bin/sh\n%s\nexec "%s/fm-faultd" "$@"\n' "$1" "$FM_BIN" > "$FM_TMP/bin/fm-faultd"
	chmod +x "$FM_TMP/bin/fm-faultd"
	FM_BIN=$FM_TMP/bin start_faultd "${@:2}"
}

lost_none() {
	[ "$("$FM_BIN/fm-stat" -j | jq '[.regions[].pages_lost] | add // 0')" -eq 0 ]
}

regions_are() {
	[ "$("$FM_BIN/fm-stat" -j | jq '.regions | length')" -eq "$1" ]
}

# The torture's region has lost more than $seen pages to the store.
evicts_more() {
	[ "$(region_stat torture evictions)" -gt "$seen" ]
}

# Nobody may have waited for it yet.
is_dead() {
	[[ $(sed -n 's/^State:\t//p' "/proc/$1/status" 2> /dev/null) =~ ^(Z|X|$) ]]
}

@test "a restart with too few descriptors for the regions there are: refused, nothing is freed, and the next one serves them" {
	local i
	start_faultd --local 64p
	for i in {1..8}; do
		"$BATS_FILE_TMPDIR/client" "map:r$i:64" "fill:0:64:$i" "until:$go" "check:0:64:$i" say:right > "$FM_TMP/out.$i" 2>&1 3>&- &
		track $!
	done
	wait_for 30 regions_are 8
	kill -KILL "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	for i in 12 20 26 30 34; do
		run timeout 20 prlimit --nofile=$i:$i "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "dir:$FM_TMP/store" 3>&-
		echo "$i: $status $output"
		[ "$status" -eq 1 ]
		[ "${#lines[@]}" -eq 1 ]
	done
	states=("$FM_RUN_DIR"/region-*.state)
	[ ${#states[@]} -eq 8 ]
	start_faultd --local 64p
	touch "$go"
	for i in "${FM_PIDS[@]:1:8}"; do
		ends_well "$i"
	done
	stop_faultd
}

# descriptors_at_most PID N
descriptors_at_most() {
	local open=("/proc/$1/fd/"*)
	[ ${#open[@]} -le "$2" ]
}

@test "few descriptors: who comes too late is refused with a line, those there go on, their evictor too" {
	local refused=0
	begin_with 'ulimit -n 64' --local 64p
	local clients=() i
	torture_start 600 --size $((512 * 4096)) --threads 4
	wait_for 30 regions_are 1
	for i in {1..30}; do
		"$BATS_FILE_TMPDIR/client" "map:r$i:64" "fill:0:64:$i" say:filled "until:$go" "check:0:64:$i" > "$FM_TMP/out.$i" 2> "$FM_TMP/err.$i" 3>&- &
		clients+=($!)
		track $!
	done
	# Each is served, or refused.
	for i in {1..30}; do
		wait_for 30 grep -q . "$FM_TMP/out.$i" "$FM_TMP/err.$i"
		! grep -q 'client: map:.*: Too many open files$' "$FM_TMP/err.$i" || refused=$((refused + 1))
	done
	echo "$refused of 30 refused"
	[ "$refused" -ge 15 ]
	[ "$refused" -lt 30 ]
	grep -qx 'fm-faultd: descriptors: there may be 64 (RLIMIT_NOFILE), and none are left: clients are refused' "$FM_TMP/faultd.log"
	[ "$(grep -c descriptors: "$FM_TMP/faultd.log")" -eq 1 ]
	# Another evictor, now that there is no descriptor left for clients, and the budget holds.
	evictor=$(children_of "$FAULTD_PID")
	kill -KILL "${evictor% }"
	wait_for 10 gone "${evictor% }"
	seen=$(($(region_stat torture evictions) + 500))
	wait_for 60 evicts_more
	[ "$("$FM_BIN/fm-stat" -j | jq .daemon.resident_pages)" -le 64 ]
	lost_none
	# The pressure ends.
	touch "$go"
	for i in {1..30}; do
		grep -q . "$FM_TMP/err.$i" || ends_well "${clients[i - 1]}"
	done
	wait_for 20 regions_are 1
	start_client map:late:64 fill:0:64:9 check:0:64:9 say:right
	client_says right
	kill -TERM "$TORTURE_PID"
	torture_end 60
	wait_for 20 no_regions
	stop_faultd
}

@test "an evictor with too few descriptors for all regions keeps the budgets of those that it has" {
	local i
	start_faultd --local 256p
	wait_for 20 test -n "$(children_of "$FAULTD_PID")"
	evictor=$(children_of "$FAULTD_PID")
	prlimit --pid "${evictor% }" --nofile=20:20
	for i in {1..8}; do
		"$BATS_FILE_TMPDIR/client" "map:r$i:256" "fill:0:256:$i" "check:0:256:$i" "until:$go" "check:0:256:$i" > "$FM_TMP/out.$i" 2>&1 3>&- &
		track $!
		wait_for 30 regions_are "$i"
	done
	wait_for 20 grep -q 'cannot be evicted from: No file descriptors available' "$FM_TMP/faultd.log"
	[ "$(children_of "$FAULTD_PID")" = "$evictor" ]
	# The next one may have more.
	kill -KILL "${evictor% }"
	touch "$go"
	for i in "${FM_PIDS[@]:1:8}"; do
		ends_well "$i"
	done
	wait_for 20 no_regions
	stop_faultd
}

# cgroup_with BYTES: a memory cgroup of version 1 or 2 with that limit, at $1. Sets CG.
cgroup_with() {
	local dir=/sys/fs/cgroup/memory
	if grep -qw memory /sys/fs/cgroup/cgroup.subtree_control 2> /dev/null; then
		CG=/sys/fs/cgroup/fm-pressure.$$
		mkdir "$CG" 2> /dev/null || skip "no cgroup may be made"
		CGROUP+=("$CG")
		echo "$1" > "$CG/memory.max"
	else
		[ -w "$dir/cgroup.procs" ] || skip "no memory cgroup"
		CG=$dir$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)/fm-pressure.$$
		mkdir "$CG" 2> /dev/null || skip "no cgroup may be made"
		CGROUP+=("$CG")
		echo "$1" > "$CG/memory.limit_in_bytes"
	fi
}

cgroup_peak() {
	cat "$CG/memory.max_usage_in_bytes" "$CG/memory.peak" 2> /dev/null
}

oom_kills() {
	cat "$CG/memory.oom_control" "$CG/memory.events" 2> /dev/null | awk '$1 == "oom_kill" { print $2 }'
}

# Both daemons within 64 MiB; the clients' pages are the clients'.
within_64_mib() {
	cgroup_with 64M
	begin_with "echo \$\$ > $CG/cgroup.procs" --local 4096p "$@"
	torture_start 3 --size $((8 * 4096 * 4096)) --threads 4
	"$BATS_FILE_TMPDIR/torture" --name others --size $((512 * 4096)) --regions 8 --threads 4 --seconds 3 > "$FM_TMP/others" 2>&1 3>&- &
	track $!
	wait_for 60 regions_are 9
	grep -qx "$FAULTD_PID" "$CG/cgroup.procs"
	torture_end 100
	ends_well "${FM_PIDS[-1]}" 60
	cat "$FM_TMP/others"
	echo "# at most $(($(cgroup_peak) >> 10)) KiB, $(oom_kills) killed for want of memory" >&3
	[ "$(oom_kills)" -eq 0 ]
	wait_for 20 no_regions
	stop_faultd
}

@test "64 MiB of memory for both daemons, regions of twelve times the budget: a folder as the store" {
	within_64_mib
}

@test "64 MiB of memory for both daemons, regions of twelve times the budget: memcached" {
	mc_start a
	within_64_mib --store "memcached:${MC_AT[a]}"
	wait_for 20 mc_empty a
}

# tiny_tmpfs DIR OPTIONS
tiny_tmpfs() {
	[ "$(id -u)" -eq 0 ] || skip "not root"
	mkdir -p "$1"
	mount -t tmpfs -o "mode=0750,$2" none "$1" || skip "cannot mount a tmpfs"
	MOUNTED+=("$1")
}

@test "a full run directory: refused at the start; a restart of both daemons over a full one serves all regions" {
	local n=0
	tiny_tmpfs "$FM_RUN_DIR" size=16k,nr_inodes=20
	run -1 timeout 20 "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "dir:$FM_TMP/store" 3>&-
	echo "$output"
	[ "$output" = "fm-faultd: $FM_RUN_DIR/daemon.state: cannot make: No space left on device" ]
	mount -o remount,size=1M "$FM_RUN_DIR"
	start_faultd --local 64p
	start_client map:one:512 fill:0:512:5 say:filled "until:$go" check:0:512:5 fill:0:512:6 check:0:512:6 say:right
	client_says filled
	# Full in bytes and in files.
	head -c 1M /dev/zero > "$FM_RUN_DIR/fill" 2> /dev/null || true
	while : 2> /dev/null > "$FM_RUN_DIR/file.$n"; do
		n=$((n + 1))
	done
	run timeout 20 "$BATS_FILE_TMPDIR/client" must-fail:ENOSPC:map:two:1
	echo "$output"
	[ "$status" -eq 0 ]
	evictor=$(children_of "$FAULTD_PID")
	kill -KILL "${evictor% }" "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	start_faultd --local 64p
	run timeout 20 "$BATS_FILE_TMPDIR/client" must-fail:ENOSPC:map:two:1
	[ "$status" -eq 0 ]
	touch "$go"
	client_says right
	ends_well "$CLIENT_PID"
	lost_none
	wait_for 20 no_regions
	rm "$FM_RUN_DIR"/fill "$FM_RUN_DIR"/file.*
	start_client map:three:64 fill:0:64:9 check:0:64:9 say:right
	client_says right
	stop_faultd
}

# latency NAME FIELD, in ms
latency() {
	echo $(($(region_stat "$1" "latency_ns.$2") / 1000000))
}

@test "a store that takes 200 ms for an answer: its faults wait, other regions go on, fm-stat says so, and nothing is lost" {
	local id
	mc_start a
	proxy_start p a
	start_faultd --local 256p --store "memcached:${MC_AT[p]}"
	lost_start slow --size $((2 << 20))
	lost_start quick --size $((2 << 20))
	lost_say slow 60 fill
	lost_say quick 60 fill
	id=$(region_stat slow id)
	proxy p slow 0.2 "$id"
	lost_send slow 'churn 12 512'
	local slow_next=$LOST_NEXT i
	# Another region's shard does not wait for this one's.
	for i in {1..3}; do
		lost_say quick 60 'churn 30 512'
		[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
	done
	LOST_NEXT=$slow_next
	unanswered slow
	lost_answer slow 120
	[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
	echo "# slow: p99 $(latency slow p99) ms, max $(latency slow max) ms; quick: p99 $(latency quick p99) ms" >&3
	[ "$(latency slow max)" -ge 200 ]
	[ "$(latency quick p99)" -lt "$(latency slow max)" ]
	# Everything, the looks at the server included.
	proxy p slow 0.2
	lost_send slow 'churn 8 512'
	slow_next=$LOST_NEXT
	lost_say quick 120 'churn 8 512'
	[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
	LOST_NEXT=$slow_next
	lost_answer slow 120
	[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
	rtt_shows() { [ "$("$FM_BIN/fm-stat" -j | jq '.stores[0].rtt_ns')" -ge 200000000 ]; }
	wait_for 20 rtt_shows
	# Who answers is up, slow or not: nothing is moved away from him.
	[ "$("$FM_BIN/fm-stat" -j -i 0.2 -c 15 | jq -s 'map(select(.stores[0].state != "up")) | length')" -eq 0 ]
	lost_none
	proxy p slow 0
	lost_say slow 60 check
	[ "$(lost_number right)" -eq 512 ]
	lost_say quick 60 check
	[ "$(lost_number right)" -eq 512 ]
	lost_end slow
	lost_end quick
	wait_for 20 mc_empty a
	stop_faultd
}

@test "an evictor that stands still: fills wait at the hard mark, nothing passes the budget, and all goes on with it" {
	local evictor i most=0
	start_faultd --local 256p
	torture_start 600 --size $((2048 * 4096)) --threads 4
	seen=2000
	wait_for 60 evicts_more
	evictor=$(children_of "$FAULTD_PID")
	kill -STOP "${evictor% }"
	# All four threads wait for room: nothing moves any more.
	stands() {
		local f
		f=$(region_stat torture 'faults')
		sleep 0.3
		[ "$(region_stat torture faults)" -eq "$f" ]
	}
	wait_for 60 stands
	seen=$(region_stat torture evictions)
	# New regions begin meanwhile, and wait as well; so many that the evictor's socket cannot hold the news of all.
	start_client maps:late:16:20 fill:0:16:3 check:0:16:3 say:right
	wait_for 60 regions_are 21
	for i in {1..20}; do
		i=$("$FM_BIN/fm-stat" -j | jq .daemon.resident_pages)
		most=$((i > most ? i : most))
		sleep 0.05
	done
	echo "# at most $most of 256 pages, $(region_stat torture held) waits" >&3
	[ "$most" -le 256 ]
	[ "$(region_stat torture evictions)" -eq "$seen" ]
	run ! grep -qx right "$FM_TMP/client.out"
	[ "$(children_of "$FAULTD_PID")" = "$evictor" ]
	kill -CONT "${evictor% }"
	client_says right
	ends_well "$CLIENT_PID"
	wait_for 60 evicts_more
	[ "$(children_of "$FAULTD_PID")" = "$evictor" ]
	lost_none
	kill -TERM "$TORTURE_PID"
	torture_end 60
	wait_for 20 no_regions
	stop_faultd
}

@test "fm-faultd dies while its evictor stands still: the next one ends that first, and all goes on" {
	local evictor
	start_faultd --local 256p
	torture_start 600 --size $((1024 * 4096)) --threads 4
	wait_for 30 regions_are 1
	evictor=$(children_of "$FAULTD_PID")
	kill -STOP "${evictor% }"
	kill -KILL "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	alive "${evictor% }"
	start_faultd -v --local 256p
	wait_for 10 is_dead "${evictor% }"
	grep -q "fm-evict of pid ${evictor% } outlived its connection: ended$" "$FM_TMP/faultd.log"
	seen=$(($(region_stat torture evictions) + 500))
	wait_for 60 evicts_more
	kill -TERM "$TORTURE_PID"
	torture_end 60
	wait_for 20 no_regions
	stop_faultd
}

@test "an evictor that stands still while hundreds of regions begin: replaced when its socket is full, and nothing is lost" {
	local evictor
	start_faultd --local 256p
	torture_start 600 --size $((1024 * 4096)) --threads 2
	wait_for 30 regions_are 1
	evictor=$(children_of "$FAULTD_PID")
	kill -STOP "${evictor% }"
	start_client maps:many:1:400 fill:0:1:3 check:0:1:3 say:right
	client_says right
	[ "$(children_of "$FAULTD_PID")" != "$evictor" ]
	ends_well "$CLIENT_PID"
	lost_none
	kill -TERM "$TORTURE_PID"
	torture_end 60
	wait_for 60 no_regions
	stop_faultd
}

@test "256 regions at once, 64 threads; and 64 threads on one region" {
	start_faultd --local 512p
	torture_start 2 --size $((8 * 4096)) --regions 256 --threads 64
	wait_for 60 regions_are 256
	lost_none
	torture_end 60
	wait_for 30 no_regions
	torture_start 2 --size $((4096 * 4096)) --threads 64
	wait_for 60 regions_are 1
	torture_end 60
	wait_for 20 no_regions
	stop_faultd
}

@test "clients that fork, become others, and are killed with their faults open: all of theirs is freed, others see nothing" {
	local i n evictor before
	start_faultd --local 128p
	torture_start 600 --size $((1024 * 4096)) --threads 4 --forks
	wait_for 30 regions_are 1
	wait_for 20 test -n "$(children_of "$FAULTD_PID")"
	before=("/proc/$FAULTD_PID/fd/"*)
	evictor=$(children_of "$FAULTD_PID")
	for i in {1..12}; do
		# Every third time nobody makes room: all their threads wait for pages when they die.
		[ $((i % 3)) -ne 0 ] || kill -STOP "${evictor% }"
		"$BATS_FILE_TMPDIR/torture" --name "killed$i" --size $((512 * 4096)) --threads 16 --forks > "$FM_TMP/killed" 2>&1 3>&- &
		track $!
		"$BATS_FILE_TMPDIR/client" map:exec:32 fill:0:8:3 exec > /dev/null 2>&1 3>&- &
		track $!
		has_killed() { [ "$(region_stat "killed$i" "$([ $((i % 3)) -eq 0 ] && echo held || echo faults)")" -gt $((i % 3 * 100)) ]; }
		wait_for 30 has_killed
		kill -KILL "${FM_PIDS[-1]}" "${FM_PIDS[-2]}"
		kill -CONT "${evictor% }"
	done
	# A child has copies of all descriptors of its parent's: they keep nothing alive.
	start_client map:orphaned:64 fill:0:64:3 fork say:forked until:/nowhere
	client_says forked
	track "$(children_of "$CLIENT_PID")"
	kill -KILL "$CLIENT_PID"
	wait_for 20 regions_are 1
	descriptors_as_before() { descriptors_at_most "$FAULTD_PID" $((${#before[@]} + 1)); }
	wait_for 10 descriptors_as_before
	lost_none
	[ "$(children_of "$FAULTD_PID")" = "$evictor" ]
	kill -TERM "$TORTURE_PID"
	torture_end 60
	wait_for 20 no_regions
	[ "$(blocks_of "$FM_TMP/store")" -eq 0 ]
	stop_faultd
}
