#!/usr/bin/env bats
# sanitizers: asan tsan
# "It must hold": every word right and the budget kept, under load and under SIGKILL. FM_STRESS_SECONDS: how long (default 8).

load helper

setup_file() {
	build_clients
}

setup() {
	fm_setup
	seconds=${FM_STRESS_SECONDS:-8}
}

# start_torture ARGS...: the checker client in the background.
start_torture() {
	timeout $((seconds + 120)) "$BATS_FILE_TMPDIR/torture" --seconds "$seconds" "$@" \
		> "$FM_TMP/torture.out" 2> "$FM_TMP/torture.err" 3>&- < /dev/null &
	TORTURE=$!
	track "$TORTURE"
}

end_torture() {
	ends_well "$TORTURE" $((seconds + 120))
	cat "$FM_TMP/torture.out"
	grep -q ' operations, 0 wrong words$' "$FM_TMP/torture.out"
}

# Pages that the client's memfds really have on this host, asked of the files that fm-faultd holds.
real_pages() {
	local n=0 f
	for f in "/proc/$FAULTD_PID/fd"/*; do
		[[ $(readlink "$f" 2> /dev/null) != *memfd:fm:torture* ]] || n=$((n + $(stat -Lc %b "$f" 2> /dev/null || echo 0) / 8))
	done
	echo "$n"
}

# While the client runs, look at every 100 ms: resident pages stay under budget + 2 % + 256, by fm-stat and in truth.
watch_budget() {
	local most=$(($1 + $1 / 50 + 256)) stat real peak=0 looks=0
	while alive "$TORTURE"; do
		stat=$("$FM_BIN/fm-stat" -j | jq '.daemon.resident_pages')
		real=$(real_pages)
		looks=$((looks + 1))
		[ "$real" -le "$peak" ] || peak=$real
		if [ "$stat" -gt "$most" ] || [ "$real" -gt "$most" ]; then
			echo "resident $stat, really $real: more than $most" >&2
			return 1
		fi
		sleep 0.1
	done
	echo "peak $peak of $1 pages in $looks looks"
	[ "$looks" -gt 1 ]
}

@test "a region 8 times the budget, 4 threads: 0 wrong words, within the budget" {
	start_faultd --local 2048p
	start_torture --size $((2048 * 8 * 4096)) --threads 4
	watch_budget 2048
	end_torture
	wait_for 5 no_regions
	stop_faultd
}

@test "two shards" {
	start_faultd --local 4096p --shards 2
	start_torture --size $((128 << 20)) --threads 4
	watch_budget 4096
	end_torture
	stop_faultd
}

@test "a budget of 64 pages" {
	start_faultd --local 64p
	start_torture --size $((512 * 4096)) --threads 4
	watch_budget 64
	end_torture
	stop_faultd
}

@test "100 regions of one page each, a budget of 64 pages" {
	start_faultd --local 64p
	start_torture --size 4096 --regions 100 --threads 4
	watch_budget 64
	end_torture
	wait_for 5 no_regions
	stop_faultd
}

@test "SIGKILL of fm-faultd and fm-evict in turn: 0 wrong words, within the budget afterwards" {
	local kills=0 evictor
	start_faultd --local 1024p
	start_torture --size $((32 << 20)) --threads 4
	while alive "$TORTURE"; do
		sleep 0.3
		if [ $((kills % 2)) -eq 0 ]; then
			kill -KILL "$FAULTD_PID"
			wait "$FAULTD_PID" || true
			start_faultd --local 1024p
		else
			read -r evictor <<< "$(children_of "$FAULTD_PID")"
			[ -z "$evictor" ] || kill -KILL "$evictor"
		fi
		kills=$((kills + 1))
	done
	end_torture
	echo "$kills kills"
	[ "$kills" -ge 4 ]
	wait_for 5 no_regions
	wait_for 5 store_is_empty
	stop_faultd
}

@test "page states cost at most 12 bytes a page, the evictor's queues included" {
	local state before after evictor
	start_faultd --local 8192p
	evictor_runs() { read -r evictor <<< "$(children_of "$FAULTD_PID")"; [ -n "$evictor" ]; }
	wait_for 10 evictor_runs
	before=$(awk '/^RssAnon/ { print $2 * 1024 }' "/proc/$evictor/status")
	start_torture --size $((256 << 20)) --threads 4
	region_is_used() { region_stat .evictions | grep -qxE "[0-9]{6,}|[2-9][0-9]{4}"; }
	wait_for 60 region_is_used
	state=$(stat -c %s "$FM_RUN_DIR"/region-*.state)
	after=$(awk '/^RssAnon/ { print $2 * 1024 }' "/proc/$evictor/status")
	echo "$((256 << 20)) bytes: state file $state, evictor $before -> $after bytes"
	# A sanitizer's allocator has its own ideas of memory: then the state file alone.
	[[ $FM_BIN != *san/bin ]] || after=$before
	# Once a host, not once a page: the buffer of a batch, 128 pages.
	[ $((state + after - before - 128 * 4096)) -le $((12 * 65536)) ]
	end_torture
	stop_faultd
}
