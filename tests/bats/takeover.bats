#!/usr/bin/env bats
# sanitizers: asan
# A new fm-faultd in place of one that runs, or that died: what the clients see of it, and what is refused.

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	build_clients
}

# restart MILLISECONDS_VARIABLE HOW: start another fm-faultd in place of the one that runs and wait until it is ready.
restart() {
	local -n took=$1
	local began old=$FAULTD_PID ready=$FM_TMP/ready.again
	: > "$ready"
	began=${EPOCHREALTIME/./}
	if [ "$2" = kill ]; then
		kill -KILL "$old"
		wait "$old" || true
	fi
	"$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "dir:$FM_TMP/store" --ready-fd 4 --local 4096p "${@:3}" \
		4> "$ready" 3>&- < /dev/null >> "$FM_TMP/faultd.log" 2>&1 &
	FAULTD_PID=$!
	track "$FAULTD_PID"
	until [ -s "$ready" ]; do
		alive "$FAULTD_PID" || return 1
		read -rt 0.002 < <(:) || true
	done
	# shellcheck disable=SC2034 # the caller's variable
	took=$(((${EPOCHREALTIME/./} - began) / 1000))
	rm -f "$ready"
	[ "$2" = kill ] || wait "$old"
}

# refused TEXT ARGS...: an fm-faultd with these arguments is refused, in one line
refused() {
	local text=$1
	shift
	run -1 "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" "$@"
	echo "$output"
	[ "${#lines[@]}" -eq 1 ]
	[[ $output == "fm-faultd: "*"$text"* ]]
}

mapped() {
	[ "$(region_stat '.faults // 0')" -gt 0 ]
}

@test "--takeover: a running fm-faultd is replaced, again and again, under a checker" {
	local ms i most=0
	start_faultd --local 4096p
	"$BATS_FILE_TMPDIR/torture" --size $((8192 * 4096)) --threads 4 --seconds 6 > "$FM_TMP/torture.out" 2> "$FM_TMP/torture.err" \
		3>&- < /dev/null &
	local torture=$!
	track "$torture"
	wait_for 30 mapped
	for i in {1..8}; do
		restart ms replace --takeover
		most=$((ms > most ? ms : most))
	done
	echo "# replaced $i times, at most $most ms from exec to ready" >&3
	ends_well "$torture" 120
	echo "# $(tr '\n' ' ' < "$FM_TMP/torture.out")" >&3
	grep -q ', 0 wrong words' "$FM_TMP/torture.out"
	wait_for 10 no_regions
	stop_faultd
}

@test "a region that its client gave up unseen, and whose descriptors' numbers are another's now, keeps no fm-faultd from starting" {
	local in_way
	start_faultd --local 64p --shards 1
	start_client map:old:256 fill:0:256:1 vanish:256 map:new:256 fill:0:256:2 say:filled until:"$FM_TMP/go" munmaps:200:56 say:unmapping \
		until:"$FM_TMP/go.2" check:0:200:2
	client_says filled
	in_way=$(compgen -G "$FM_RUN_DIR/region-*.state" | wc -l)
	[ "$in_way" -eq 2 ]
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	touch "$FM_TMP/go"
	client_says unmapping
	# Until its event is read, and nobody reads it.
	unmaps() { grep -q userfaultfd_event_wait "/proc/$CLIENT_PID/task/"*/wchan; }
	wait_for 20 unmaps
	start_faultd --local 64p --shards 1
	touch "$FM_TMP/go.2"
	ends_well "$CLIENT_PID"
	wait_for 10 no_regions
	wait_for 10 store_is_empty
	stop_faultd
}

@test "another store, or another --no-seal, than that of the regions there are: refused, and nothing is lost" {
	local how
	start_faultd --local 64p
	start_client map:one:256 fill:0:256:1 say:filled until:"$FM_TMP/go" check:0:256:1
	client_says filled
	"$FM_BIN/fm-evict" --all one
	refused "lie in dir:$FM_TMP/store: start with that" --takeover --store "dir:$FM_TMP/other"
	alive "$FAULTD_PID"
	for how in TERM KILL; do
		kill "-$how" "$FAULTD_PID"
		wait "$FAULTD_PID" || true
		refused "lie in dir:$FM_TMP/store: start with that" --store "dir:$FM_TMP/other"
		refused "lie in dir:$FM_TMP/store: start with that" --store "memcached:/nowhere.sock"
		ln -sfn "$FM_TMP/store" "$FM_TMP/store.$how"
		start_faultd --local 64p --store "dir:$FM_TMP/store.$how"
		# It is known by the name that was given last.
		kill "-$how" "$FAULTD_PID"
		wait "$FAULTD_PID" || true
		start_faultd --local 64p
	done
	touch "$FM_TMP/go"
	ends_well "$CLIENT_PID"
	wait_for 10 no_regions
	stop_faultd
	# Nobody is left to lose anything.
	start_faultd --store "dir:$FM_TMP/other"
	stop_faultd
}

@test "--takeover where nobody runs is a start" {
	local ms
	start_faultd
	stop_faultd
	restart ms replace --takeover || true
	alive "$FAULTD_PID"
	stop_faultd
}

# The pid of the one that runs is gone when it is looked for, and there again when it is looked for once more.
take_over_blind() {
	ASAN_OPTIONS=detect_leaks=0 strace -D -o /dev/null -e trace=pidfd_open -e inject=pidfd_open:error=ESRCH:when=1 \
		"$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "dir:$FM_TMP/store" --takeover 3>&- < /dev/null >> "$FM_TMP/faultd.log" 2>&1 &
	FAULTD_PID=$!
	track "$FAULTD_PID"
}

@test "--takeover of an fm-faultd that ends by itself just then is no failure" {
	local old
	requires strace || skip "no strace"
	start_faultd
	old=$FAULTD_PID
	take_over_blind
	wait_for 30 gone "$old"
	serves() { [ "$("$FM_BIN/fm-stat" -j | jq .daemon.pid)" = "$FAULTD_PID" ] && [ -S "$FM_RUN_DIR/fm.sock" ]; }
	wait_for 30 serves
	stop_faultd
}

@test "64 GiB of regions: how long after a kill -9 until they are served" {
	local ms
	start_faultd --local 4096p
	# A word in each page of the state file.
	start_client map:big:$((16 * 1024 * 1024)) fill:0:2000:7 say:filled until:"$FM_TMP/go" check:0:2000:7
	client_says filled
	[ "$(stat -c %b "$FM_RUN_DIR"/region-*.state)" -ge $((16 * 1024 * 1024 * 8 / 512)) ]
	restart ms kill
	echo "# after SIGKILL: $ms ms from the kill to ready" >&3
	restart ms replace --takeover
	echo "# by --takeover: $ms ms" >&3
	touch "$FM_TMP/go"
	ends_well "$CLIENT_PID"
	stop_faultd
}

# Start fm-faultd under strace; $FM_TMP/ready.again says when it is ready.
start_traced() {
	: > "$FM_TMP/ready.again"
	# -D: the traced process is our child, not strace. A traced process cannot be searched for leaks.
	ASAN_OPTIONS=detect_leaks=0 strace -D -f -o "$FM_TMP/trace" "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "dir:$FM_TMP/store" --ready-fd 4 --local 4096p -v \
		--no-evictor 4> "$FM_TMP/ready.again" 3>&- < /dev/null >> "$FM_TMP/faultd.log" 2>&1 &
	FAULTD_PID=$!
	track "$FAULTD_PID"
}

# Lines of the trace that match.
traced() {
	grep -cE "$1" "$FM_TMP/trace" || true
}

@test "200 regions of one client: /proc is not read for each of them, nor the store looked at; what is done grows with their number only" {
	local calls
	requires strace || skip "no strace"
	start_faultd --local 4096p
	start_client maps:many:16:200 fill:0:16:5 say:filled until:"$FM_TMP/go" check:0:16:5
	client_says filled
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	start_traced
	wait_for 60 test -s "$FM_TMP/ready.again"
	calls=$(traced .)
	echo "# traced: $(grep 'looked at and served' "$FM_TMP/faultd.log"); $calls system calls, $(traced '/proc/[0-9]+/(maps|stat)') looks into /proc" >&3
	[ "$(grep -c 'taken over' "$FM_TMP/faultd.log")" -eq 200 ]
	touch "$FM_TMP/go"
	ends_well "$CLIENT_PID"
	wait_for 20 no_regions
	stop_faultd
	# Of the start alone: the client's end makes for one more look or two.
	[ "$(traced '/proc/[0-9]+/maps')" -le 4 ]
	[ "$(traced '/proc/[0-9]+/stat')" -le 2 ]
	[ "$(traced 'probe-')" -le 2 ]
	[ "$calls" -lt $((200 * 120 + 2000)) ]
}

@test "a state file of another version: refused with a message, the one that runs and the file are left alone" {
	local file sum
	start_faultd
	start_client map:one:64 fill:0:64:3 say:filled until:"$FM_TMP/go" check:0:64:3
	client_says filled
	file=$(echo "$FM_RUN_DIR"/region-*.state)
	# Version 77, and magic last as its maker would have it.
	cp "$file" "$FM_TMP/other"
	printf '\x4d' | dd of="$FM_TMP/other" bs=1 seek=8 conv=notrunc status=none
	cp "$FM_TMP/other" "$FM_RUN_DIR/region-00000000deadbeef.state"
	sum=$(sha256sum < "$FM_RUN_DIR/region-00000000deadbeef.state")
	run -1 timeout 20 "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "dir:$FM_TMP/store" --takeover
	[[ $output == *"region-00000000deadbeef.state: made by another version of fm"* ]]
	alive "$FAULTD_PID"
	# A plain start serves the others and leaves that file alone.
	kill -KILL "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	start_faultd
	grep -q "region-00000000deadbeef.state: made by another version of fm: left alone" "$FM_TMP/faultd.log"
	[ "$(sha256sum < "$FM_RUN_DIR/region-00000000deadbeef.state")" = "$sum" ]
	touch "$FM_TMP/go"
	ends_well "$CLIENT_PID"
	stop_faultd
}

@test "a full run directory refuses a region, and harms no other" {
	[ "$(id -u)" -eq 0 ] || skip "no root"
	mkdir "$FM_RUN_DIR"
	mount -t tmpfs -o size=4m,mode=0750 none "$FM_RUN_DIR" || skip "cannot mount here"
	local status=0
	full_run_directory || status=$?
	fm_teardown
	umount "$FM_RUN_DIR"
	return "$status"
}

# shellcheck disable=SC2317 # called, by ||
full_run_directory() {
	start_faultd --local 256p || return 1
	start_client map:one:2048 fill:0:2048:3 say:filled until:"$FM_TMP/go" check:0:2048:3
	client_says filled || return 1
	# 1 Mi pages: 8 MiB of state.
	"$BATS_FILE_TMPDIR/client" must-fail:ENOSPC:map:two:1048576 || return 1
	"$FM_BIN/fm-evict" --all one > /dev/null || return 1
	touch "$FM_TMP/go"
	ends_well "$CLIENT_PID" || return 1
	wait_for 10 no_regions || return 1
	stop_faultd
}
