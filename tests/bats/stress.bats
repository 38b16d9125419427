#!/usr/bin/env bats
# sanitizers: asan tsan
# What must hold under load, for FM_STRESS_SECONDS (default 10) a test: no wrong word, the budget, and what it costs. The
# sanitizers' build runs the checker of the page states along with it.

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	build_clients
}

setup() {
	fm_setup
	seconds=${FM_STRESS_SECONDS:-10}
	go=$FM_TMP/go
}

start_torture() {
	timeout $((seconds * 10 + 120)) "$BATS_FILE_TMPDIR/torture" --seconds "$seconds" "$@" > "$FM_TMP/torture.out" 2> "$FM_TMP/torture.err" \
		3>&- < /dev/null &
	TORTURE_PID=$!
	track "$TORTURE_PID"
}

torture_ends_well() {
	ends_well "$TORTURE_PID" 120 && cat "$FM_TMP/torture.out" && grep -q ', 0 wrong words' "$FM_TMP/torture.out"
}

# Page frames that the memfds of a process really have. Its descriptors may be looked at while it waits for a page.
real_pages() {
	find "/proc/$1/fd" -lname '/memfd:fm:*' -exec stat -L -c %b {} + 2> /dev/null | awk '{ n += $1 / 8 } END { print n + 0 }'
}

# torture runs under `timeout`: the child is the client.
client_of() {
	local child
	child=$(children_of "$1")
	[ -n "$child" ] && echo "$child"
}

# Look every 100 ms, as long as torture runs: neither the count nor the files may pass BUDGET + 2 % + 256 pages.
watch_budget() {
	local budget=$1 most=0 most_real=0 samples=0 n real client most_allowed
	most_allowed=$((budget + budget / 50 + 256))
	wait_for 60 client_of "$TORTURE_PID"
	client=$(client_of "$TORTURE_PID")
	while alive "$TORTURE_PID"; do
		n=$("$FM_BIN/fm-stat" -j | jq .daemon.resident_pages)
		real=$(real_pages "${client% }")
		[ "$n" -le "$most" ] || most=$n
		[ "$real" -le "$most_real" ] || most_real=$real
		samples=$((samples + 1))
		sleep 0.07
	done
	echo "# budget $budget: at most $most pages counted, $most_real pages there, in $samples samples" >&3
	[ "$samples" -gt 10 ]
	[ "$most_real" -gt 0 ]
	[ "$most" -le "$most_allowed" ]
	[ "$most_real" -le "$most_allowed" ]
}

nothing_left() {
	[ -z "$(compgen -G "$FM_RUN_DIR/region-*.state")" ] && [ "$(blocks_of "$FM_TMP/store")" -eq 0 ] &&
		[ "$("$FM_BIN/fm-stat" -j | jq .daemon.resident_pages)" -eq 0 ]
}

@test "a region of 8 times the budget, 4 threads: every word right, the budget holds" {
	start_faultd --local 1024p
	start_torture --size $((8 * 1024 * 4096)) --threads 4
	watch_budget 1024
	torture_ends_well
	wait_for 5 nothing_left
	stop_faultd
}

@test "a budget of 64 pages" {
	start_faultd --local 64p
	start_torture --size $((1024 * 4096)) --threads 4
	watch_budget 64
	torture_ends_well
	wait_for 5 nothing_left
	stop_faultd
}

@test "100 regions of one page" {
	start_faultd --local 64p
	start_torture --size 4096 --regions 100 --threads 4
	watch_budget 64
	torture_ends_well
	wait_for 10 nothing_left
	stop_faultd
}

@test "8 shards, regions with budgets of their own" {
	start_faultd --local 2048p --shards 8
	start_torture --size $((64 * 1024 * 1024 * 3)) --regions 2 --local $((512 * 4096)) --threads 4
	watch_budget 2048
	torture_ends_well
	wait_for 10 nothing_left
	stop_faultd
}

# Some progress: whoever was killed has been replaced and works.
evictions_above() {
	[ "$("$FM_BIN/fm-stat" -j | jq '[.regions[].evictions] | add')" -gt "$1" ]
}

@test "both daemons killed at any instant, again and again: every word right, nothing left behind" {
	local kills=0 evictor n
	start_faultd --local 512p
	start_torture --size $((8 * 512 * 4096)) --threads 4
	wait_for 60 client_of "$TORTURE_PID"
	RANDOM=$seconds
	while alive "$TORTURE_PID"; do
		evictor=$(children_of "$FAULTD_PID")
		if [ $((RANDOM % 2)) -eq 0 ] && [ -n "$evictor" ]; then
			kill -KILL "${evictor% }" 2> /dev/null || true
		else
			kill -KILL "$FAULTD_PID"
			wait_for 5 gone "$FAULTD_PID"
			start_faultd --local 512p
		fi
		kills=$((kills + 1))
		# A moment of work between two deaths: on a busy machine that takes what it takes. Torture may end meanwhile.
		n=$("$FM_BIN/fm-stat" -j | jq '[.regions[].evictions] | add // 0')
		for _ in {1..200}; do
			! alive "$TORTURE_PID" || evictions_above $((n + RANDOM % 300)) 2> /dev/null || { sleep 0.02; continue; }
			break
		done
	done
	echo "# $kills kills" >&3
	[ "$kills" -ge "$((seconds / 2))" ]
	torture_ends_well
	wait_for 10 nothing_left
	stop_faultd
}

# Anonymous memory of a process, bytes.
anonymous_of() {
	echo $((1024 * $(awk '/^RssAnon/ { print $2 }' "/proc/$1/status")))
}

@test "the state costs at most 12 bytes a page, queues included" {
	[ "$(realpath "$FM_BIN")" = "$(realpath "$FM_LIB/../bin")" ] || skip "a sanitizer's build has costs of its own"
	local pages=65536 evictor before after state
	start_faultd --local $((pages / 2))p
	wait_for 10 test -n "$(children_of "$FAULTD_PID")"
	evictor=$(children_of "$FAULTD_PID")
	# Small things first: buffers that are there whatever the region's size.
	start_client map:small:512 fill:0:512:3 say:filled until:"$go"
	client_says filled
	"$FM_BIN/fm-evict" --all small
	before=$(anonymous_of "${evictor% }")
	touch "$go"
	ends_well "$CLIENT_PID"
	wait_for 5 no_regions
	start_client map:large:$pages fill:0:$pages:3 say:filled until:"$go.2"
	client_says filled
	after=$(anonymous_of "${evictor% }")
	state=$(stat -c %s "$FM_RUN_DIR"/region-*.state)
	echo "# $pages pages, half of them here: state file $state bytes, evictor $((after - before)) bytes:" \
		"$(((state + after - before) * 100 / pages)) hundredths of a byte a page" >&3
	[ $((state + after - before)) -le $((12 * pages)) ]
	stop_faultd
}

# How often a trace has one of these system calls.
calls() {
	grep -cE "^([0-9]+ +)?($1)\\(" "$2" || true
}

@test "the steady state: no allocation and no message for a fault" {
	requires strace || skip "no strace"
	[ "$(realpath "$FM_BIN")" = "$(realpath "$FM_LIB/../bin")" ] || skip "a sanitizer allocates by itself"
	local evictor tracer t faults
	start_faultd --local 1024p
	start_torture --size $((4096 * 4096)) --threads 2
	wait_for 20 test -n "$(children_of "$FAULTD_PID")"
	evictor=$(children_of "$FAULTD_PID")
	# Everything was touched and evicted before: what is set up once, is.
	wait_for 60 evictions_above 8000
	faults=$("$FM_BIN/fm-stat" -j | jq '.regions[0].faults')
	for t in "$FAULTD_PID" "${evictor% }"; do
		strace -qq -f -e trace=mmap,brk,mremap,madvise,clone,clone3,write,writev,openat,pread64,preadv,ioctl -o "$FM_TMP/trace.$t" \
			-p "$t" 3>&- 2> "$FM_TMP/strace.err" &
		tracer=$!
		track "$tracer"
		for _ in {1..200}; do
			[ "$(wc -l < "$FM_TMP/trace.$t" 2> /dev/null || echo 0)" -lt 5000 ] && alive "$TORTURE_PID" || break
			sleep 0.05
		done
		kill -INT "$tracer"
		wait_for 10 gone "$tracer"
	done
	faults=$(($("$FM_BIN/fm-stat" -j | jq '.regions[0].faults') - faults))
	torture_ends_well
	grep -qE 'cannot attach|not permitted' "$FM_TMP/strace.err" && skip "strace may not attach here"
	for t in "$FAULTD_PID" "${evictor% }"; do
		echo "# $(wc -l < "$FM_TMP/trace.$t") calls seen, $(calls 'mmap|brk|mremap' "$FM_TMP/trace.$t") for memory, $faults faults in all" >&3
		[ "$(wc -l < "$FM_TMP/trace.$t")" -gt 500 ]
		[ "$(calls 'write|writev' <(grep -E 'writev?\((1|2),' "$FM_TMP/trace.$t"))" -eq 0 ]
		[ "$(calls 'clone|clone3' "$FM_TMP/trace.$t")" -eq 0 ]
	done
	# fm-faultd's main thread looks at the store's folder once a second; the evictor's queue may grow by a chunk of a thousand pages now and then.
	[ "$(calls 'mmap|brk|mremap|madvise' "$FM_TMP/trace.$FAULTD_PID")" -le 8 ]
	[ "$(calls 'mmap|brk|mremap|madvise' "$FM_TMP/trace.${evictor% }")" -le 8 ]
	stop_faultd
}
