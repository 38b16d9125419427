#!/usr/bin/env bats
# sanitizers: asan
# fm-evict: requests, budgets, names of regions, and the evictor's own lives and deaths.

# shellcheck disable=SC2154 # stderr_lines is set by run --separate-stderr

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	build_clients
}

setup() {
	fm_setup
	evict=$FM_BIN/fm-evict
	go=$FM_TMP/go
}

# refused STATUS WHAT CMD...: that exit status, nothing on stdout, and one line `fm-evict: ...` on stderr that has WHAT.
refused() {
	local want=$1 what=$2
	shift 2
	run --separate-stderr timeout 60 "$@"
	echo "status $status: $output $stderr"
	[ "$status" -eq "$want" ] && [ -z "$output" ] && [ "${#stderr_lines[@]}" -eq 1 ] && [[ $stderr == fm-evict:\ * ]] &&
		[[ $stderr == *"$what"* ]]
}

evictor_pid() {
	[ "$(children_of "$FAULTD_PID")" ] && evictor=$(children_of "$FAULTD_PID") && evictor=${evictor% }
}

# An evictor that is not the given one runs.
another_evictor_than() {
	evictor_pid && [ "$evictor" != "$1" ]
}

daemon_resident() {
	"$FM_BIN/fm-stat" -j | jq .daemon.resident_pages
}

@test "fm-evict: --help and --version" {
	run --separate-stderr "$evict" --help
	[ "$status" -eq 0 ]
	[[ $output == *--limit* ]]
	[ -z "$stderr" ]
	run --separate-stderr "$evict" --version
	[ "$status" -eq 0 ]
	[[ $output =~ ^fm-evict\ [0-9]+\.[0-9]+ ]]
	[ -z "$stderr" ]
}

@test "fm-evict: usage errors are one line, and exit 2, with or without a daemon" {
	local s round
	for round in without with; do
		refused 2 '' "$evict"
		refused 2 '' "$evict" region
		refused 2 '' "$evict" a b c
		refused 2 '' "$evict" --all a 4096
		refused 2 '' "$evict" --daemon extra
		refused 2 '' "$evict" --limit 4096 a b
		refused 2 '' "$evict" --all a --limit 4096
		refused 2 '' "$evict" --daemon --all a
		for s in 0 -1 5000 99999999T 12Q ''; do
			refused 2 "$s" "$evict" -- region "$s"
			refused 2 "$s" "$evict" --limit "$s"
			refused 2 "$s" "$evict" --limit "$s" region
		done
		run --separate-stderr "$evict" --no-such-option
		[ "$status" -eq 2 ]
		[ "${#stderr_lines[@]}" -eq 1 ]
		[ "$round" = with ] || start_faultd
	done
	stop_faultd
}

@test "fm-evict: no daemon is exit 3" {
	refused 3 "$FM_RUN_DIR" "$evict" region 4096
	refused 3 "$FM_RUN_DIR" "$evict" --all region
	refused 3 "$FM_RUN_DIR" "$evict" --limit 1M
	refused 3 "$FM_TMP/other" "$evict" --run-dir "$FM_TMP/other" --limit 1M
	# Its region is still there, it is not.
	start_faultd
	start_client map:left:256 fill:0:256:5 say:filled until:"$go"
	client_says filled
	kill -KILL "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	refused 3 "$FM_RUN_DIR" "$evict" left 4096
	refused 3 "$FM_RUN_DIR" "$evict" --limit 1M
	refused 3 "$FM_RUN_DIR" "$evict" --limit 64p left
}

@test "fm-evict REGION SIZE: by name, id and pid; prints the pages that went" {
	start_faultd
	start_client map:first:1024 fill:0:1024:5 say:filled until:"$go" check:0:1024:5 say:checked until:"$go.2"
	client_says filled
	[ "$(region_stat .resident_pages)" -eq 1024 ]
	[ "$("$evict" first 400K)" -eq 100 ]
	[ "$(region_stat '[.resident_pages, .remote_pages, .evictions] | join(" ")')" = "924 100 100" ]
	[ "$("$evict" "$(region_stat .id)" 10p)" -eq 10 ]
	[ "$("$evict" "pid:$CLIENT_PID" 4096)" -eq 1 ]
	[ "$("$evict" first 25%)" -eq 256 ]
	[ "$(region_stat .resident_pages)" -eq $((1024 - 100 - 10 - 1 - 256)) ]
	# More than there is: what there is.
	[ "$("$evict" first 1G)" -eq 657 ]
	[ "$("$evict" --all first)" -eq 0 ]
	[ "$(region_stat '[.resident_pages, .remote_pages] | join(" ")')" = "0 1024" ]
	touch "$go"
	client_says checked
	# They came back clean: dropped without being stored again.
	puts=$(region_stat .store_puts)
	[ "$("$evict" --all "pid:$CLIENT_PID")" -eq 1024 ]
	[ "$(region_stat .store_puts)" -eq "$puts" ]
	[ "$(region_stat .evictions_clean)" -eq 1024 ]
	touch "$go.2"
	ends_well "$CLIENT_PID"
	stop_faultd
}

@test "fm-evict: unknown and ambiguous regions are exit 1" {
	start_faultd
	refused 1 nobody "$evict" nobody 4096
	refused 1 nobody "$evict" --all nobody
	refused 1 nobody "$evict" --limit 1M nobody
	refused 1 pid:1 "$evict" pid:1 4096
	refused 1 0123456789abcdef "$evict" 0123456789abcdef 4096
	start_client maps:twin:64:2 fill:0:64:5 say:filled until:"$go"
	client_says filled
	refused 1 twin "$evict" twin 4096
	refused 1 '2 regions' "$evict" "pid:$CLIENT_PID" 4096
	refused 1 twin "$evict" --limit 16p twin
	# The id tells them apart.
	id=$("$FM_BIN/fm-stat" -j | jq -r '.regions[] | select(.resident_pages == 64).id')
	[ "$("$evict" "$id" 4p)" -eq 4 ]
	stop_faultd
}

@test "fm-evict: an id is a region's before a pid is, and that before a name" {
	local id
	start_faultd
	start_client map:victim:64 fill:0:64:5 say:filled until:"$go"
	client_says filled
	id=$(region_stat .id)
	# Names that another client could give its regions.
	VICTIM=$CLIENT_PID
	start_client "map:$id:32" fill:0:32:5 "map:pid:$VICTIM:32" say:mapped until:"$go"
	client_says mapped
	[ "$("$evict" "$id" 4p)" -eq 4 ]
	[ "$("$FM_BIN/fm-stat" -j | jq ".regions[] | select(.name == \"victim\").resident_pages")" -eq 60 ]
	[ "$("$evict" --all "pid:$VICTIM")" -eq 60 ]
	[ "$("$FM_BIN/fm-stat" -j | jq ".regions[] | select(.name == \"$id\").resident_pages")" -eq 32 ]
	stop_faultd
}

@test "fm-evict: without fm-faultd, and what can be no region" {
	local s
	start_faultd
	for s in pid: pid:x pid:-1 '' "$(printf 'a%.0s' {1..64})"; do
		refused 2 'REGION: ' "$evict" --all "$s"
	done
	refused 2 '--run-dir: is empty' "$evict" --run-dir '' --all a
	stop_faultd
	refused 3 'no fm-faultd runs' "$evict" --all nobody
	refused 3 'has fm-faultd run?' "$evict" --run-dir "$FM_TMP/nowhere" --daemon
}

@test "fm-evict --limit: the host's budget; it waits until it holds" {
	start_faultd
	start_client map:a:1024 fill:0:1024:5 say:filled until:"$go" check:0:1024:5 say:checked until:"$go.2"
	client_says filled
	[ "$(daemon_resident)" -eq 1024 ]
	run --separate-stderr timeout 60 "$evict" --limit 512p
	[ "$status" -eq 0 ]
	[ -z "$output$stderr" ]
	[ "$(daemon_resident)" -le 512 ]
	[ "$("$FM_BIN/fm-stat" -j | jq .daemon.local_limit_pages)" -eq 512 ]
	touch "$go"
	client_says checked
	[ "$(daemon_resident)" -le 512 ]
	# Smaller than what one instruction may need: it is 16 pages then.
	timeout 60 "$evict" --limit 4096
	[ "$(daemon_resident)" -le 16 ]
	timeout 60 "$evict" --limit none
	[ "$("$FM_BIN/fm-stat" -j | jq .daemon.local_limit_pages)" -eq 0 ]
	touch "$go.2"
	ends_well "$CLIENT_PID"
	stop_faultd
}

@test "fm-evict --limit SIZE REGION: a budget of its own" {
	start_faultd
	start_client map:a:1024 fill:0:1024:5 say:filled until:"$go" check:0:1024:5 fill:0:1024:6 check:0:1024:6 say:checked until:"$go.2"
	client_says filled
	timeout 60 "$evict" --limit 25% a
	[ "$(region_stat '[.local_limit_pages, .resident_pages <= 256] | join(" ")')" = "256 true" ]
	touch "$go"
	client_says checked
	[ "$(region_stat .resident_pages)" -le 256 ]
	timeout 60 "$evict" --limit none a
	[ "$(region_stat .local_limit_pages)" -eq 0 ]
	touch "$go.2"
	ends_well "$CLIENT_PID"
	# fm_map can ask for one, too.
	start_client map:b:1024:262144 fill:0:1024:5 check:0:1024:5 say:filled until:"$go.3"
	client_says filled
	[ "$(region_stat '[.local_limit_pages, .resident_pages <= 64] | join(" ")')" = "64 true" ]
	stop_faultd
}

@test "fm-evict --daemon: a second one is refused and names the first" {
	start_faultd
	wait_for 10 evictor_pid
	wait_for 10 test -e "$FM_RUN_DIR/evict.lock"
	wait_for 10 locked
	refused 1 "$evictor" "$evict" --daemon
	alive "$evictor"
	stop_faultd
}

# The evictor has its lock. (lslocks would do; this needs no tool.)
locked() {
	grep -q " $evictor " /proc/locks
}

@test "--no-evictor: nothing leaves by itself; a request does the work itself; an evictor may be started by hand" {
	start_faultd --no-evictor
	start_client map:a:512 fill:0:512:5 say:filled until:"$go" check:0:512:5 say:checked until:"$go.2" fill:0:512:6 check:0:512:6 \
		say:again until:"$go.3"
	client_says filled
	[ "$(region_stat .resident_pages)" -eq 512 ]
	[ "$("$evict" a 100p)" -eq 100 ]
	[ "$(region_stat .resident_pages)" -eq 412 ]
	[ "$("$evict" --all a)" -eq 412 ]
	[ "$(region_stat .resident_pages)" -eq 0 ]
	touch "$go"
	client_says checked
	"$evict" --daemon 3>&- 2> "$FM_TMP/evict.err" &
	by_hand=$!
	track "$by_hand"
	timeout 60 "$evict" --limit 64p
	[ "$(region_stat .resident_pages)" -le 64 ]
	touch "$go.2"
	client_says again
	[ "$(region_stat .resident_pages)" -le 64 ]
	kill -TERM "$by_hand"
	ends_well "$by_hand" 5
	stop_faultd
}

@test "an evictor that is killed is started again, and the budget holds" {
	start_faultd --local 128p
	timeout 120 "$BATS_FILE_TMPDIR/torture" --size 4194304 --threads 4 --seconds 20 > "$FM_TMP/torture.out" 2> "$FM_TMP/torture.err" 3>&- &
	torture=$!
	track "$torture"
	wait_for 20 evictor_pid
	for _ in {1..8}; do
		before=$evictor
		evictions=$(region_stat .evictions)
		kill -KILL "$evictor"
		wait_for 10 another_evictor_than "$before"
		# It works, and what the dead one left does not count twice or never.
		wait_for 20 evictions_above "$((${evictions/null/0} + 200))"
		[ "$(daemon_resident)" -le 128 ]
	done
	ends_well "$torture"
	grep -q ', 0 wrong words' "$FM_TMP/torture.out"
	[ "$(grep -c 'ended by signal 9' "$FM_TMP/faultd.log")" -ge 8 ]
	wait_for 5 nothing_resident
	stop_faultd
}

evictions_above() {
	[ "$(region_stat .evictions)" -gt "$1" ]
}

nothing_resident() {
	[ "$(daemon_resident)" -eq 0 ]
}

# one_cycle N: everything leaves, then the client does its next steps.
one_cycle() {
	"$evict" --all a > "$FM_TMP/evicted"
	touch "$go.$1"
	client_says "did$1"
}

# The daemon must know that it is dead before anything of it is mended, and has no descriptor to spare to find out.
@test "an evictor that closes its connection and lives on is ended, also by a daemon that is out of descriptors" {
	start_faultd -v --no-evictor
	timeout 60 python3 "$BATS_TEST_DIRNAME/peer.py" "$FM_RUN_DIR/fm.sock" clings "$FAULTD_PID" "$FM_RUN_DIR/evict.lock" 3>&-
	grep -q 'outlived its connection: ended$' "$FM_TMP/faultd.log"
	stop_faultd
}

@test "pages that are written after they were read come writable after a while; read-only ones are protected again" {
	local i before steps=()
	start_faultd --shards 1
	for i in {1..4}; do
		steps+=("until:$go.$i" "check:0:1024:$i" "fill:0:1024:$((i + 1))" "say:did$i")
	done
	for i in {5..24}; do
		steps+=("until:$go.$i" check:0:1024:5 "say:did$i")
	done
	start_client map:a:1024 fill:0:1024:1 say:filled "${steps[@]}" until:"$go.end"
	client_says filled
	before=$(region_stat .faults_wp)
	one_cycle 1
	# They came protected, and each write was a fault.
	[ $(($(region_stat .faults_wp) - before)) -ge 900 ]
	one_cycle 2
	one_cycle 3
	before=$(region_stat .faults_wp)
	one_cycle 4
	[ $(($(region_stat .faults_wp) - before)) -le 512 ]
	# Now they are only read. Those that came writable are stored again when they leave; soon none are.
	one_cycle 5
	before=$(region_stat .store_puts)
	one_cycle 6
	[ $(($(region_stat .store_puts) - before)) -ge 512 ]
	for i in {7..24}; do
		before=$(region_stat .store_puts)
		one_cycle "$i"
		[ $(($(region_stat .store_puts) - before)) -gt 512 ] || break
	done
	[ $(($(region_stat .store_puts) - before)) -le 512 ]
	kill "$CLIENT_PID"
	stop_faultd
}
