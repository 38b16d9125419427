#!/usr/bin/env bats
# sanitizers: asan
# fm-faultd from outside: its options, its life and death, its clients' lives and deaths, and peers that do not behave.

# shellcheck disable=SC2154 # stderr_lines is set by run --separate-stderr
# shellcheck disable=SC2030,SC2031 # each test has variables of its own
# shellcheck disable=SC2012 # names in /proc/PID/fd are numbers

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	build_clients
}

setup() {
	fm_setup
	faultd=$FM_BIN/fm-faultd
	sock=$FM_RUN_DIR/fm.sock
	go=$FM_TMP/go
	MOUNTS=() PUBLIC=()
}

teardown() {
	local m
	fm_teardown
	for m in "${MOUNTS[@]}"; do
		umount -l "$m" 2> /dev/null || true
	done
	for m in "${PUBLIC[@]}"; do
		rm -rf "$m"
	done
}

# tiny_tmpfs FOLDER SIZE: mount one there, or skip. Unmounted by teardown.
tiny_tmpfs() {
	mkdir -p "$1"
	mount -t tmpfs -o "size=$2" fm-test "$1" 2> /dev/null || skip "cannot mount a tmpfs here (needs root)"
	MOUNTS+=("$1")
}

# refused STATUS WHAT CMD...: that exit status, nothing on stdout, and one line `fm-faultd: ...: ...` on stderr that has WHAT.
refused() {
	local want=$1 what=$2
	shift 2
	run --separate-stderr timeout 20 "$@"
	echo "status $status: $output $stderr"
	[ "$status" -eq "$want" ] && [ -z "$output" ] && [ "${#stderr_lines[@]}" -eq 1 ] &&
		[[ $stderr == fm-faultd:\ *:\ * ]] && [[ $stderr == *"$what"* ]]
}

# How many lines the daemon has said.
log_lines() {
	wc -l < "$FM_TMP/faultd.log"
}

# A torture run that must go well, short, as a proof that the daemon serves.
serves() {
	timeout 60 "$BATS_FILE_TMPDIR/torture" --size 1048576 --threads 2 --seconds 1 > "$FM_TMP/torture.out" 2> "$FM_TMP/torture.err" || {
		cat "$FM_TMP/torture.out" "$FM_TMP/torture.err" >&2
		return 1
	}
	grep -q ', 0 wrong words' "$FM_TMP/torture.out"
}

start_torture() {
	timeout 300 "$BATS_FILE_TMPDIR/torture" "$@" > "$FM_TMP/torture.out" 2> "$FM_TMP/torture.err" 3>&- < /dev/null &
	TORTURE_PID=$!
	track "$TORTURE_PID"
}

torture_ends_well() {
	ends_well "$TORTURE_PID" 120 && grep -q ', 0 wrong words' "$FM_TMP/torture.out"
}

region_there() {
	[ -n "$(compgen -G "$FM_RUN_DIR/region-*.state")" ]
}

# stat_is FILTER VALUE: for wait_for
stat_is() {
	[ "$(region_stat "$1")" = "$2" ]
}

stat_above() {
	[ "$(region_stat "$1")" -gt "$2" ]
}

@test "fm-faultd: --help and --version" {
	run --separate-stderr "$faultd" --help
	[ "$status" -eq 0 ]
	[[ $output == *--store* ]]
	[[ $output == *--run-dir* ]]
	[ -z "$stderr" ]
	run --separate-stderr "$faultd" --version
	[ "$status" -eq 0 ]
	[[ $output =~ ^fm-faultd\ [0-9]+\.[0-9]+ ]]
	[ -z "$stderr" ]
}

@test "fm-faultd: usage errors are one line with the value, and exit 2" {
	local s
	run --separate-stderr "$faultd" --no-such-option
	[ "$status" -eq 2 ]
	[[ ${stderr_lines[0]} == fm-faultd:* ]]
	[ "${#stderr_lines[@]}" -eq 1 ]
	for s in 0 -1 5000 99999999T 12Q 4.5G 1e9 0x1000 '4096 ' 18446744073709551616 0% 101% %; do
		refused 2 "$s" "$faultd" --local "$s"
	done
	refused 2 '' "$faultd" --local ''
	refused 2 relative "$faultd" --store dir:relative
	refused 2 nosuch:/x "$faultd" --store nosuch:/x
	refused 2 '' "$faultd" --store ''
	refused 2 '' "$faultd" --store "dir:/$(printf 'x%.0s' {1..600})"
	refused 2 0 "$faultd" --shards 0
	refused 2 17 "$faultd" --shards 17
	refused 2 x "$faultd" --shards x
	refused 2 99 "$faultd" --ready-fd 99
	refused 2 -1 "$faultd" --ready-fd -1
	refused 2 0 "$faultd" --replicas 0
	refused 2 nosuch://h "$faultd" --registry nosuch://h
	refused 2 extra "$faultd" extra
}

@test "fm-faultd: a store or run directory that will not do: one line, exit 1" {
	[ "$(id -u)" -eq 0 ] || skip "not root"
	: > "$FM_TMP/file"
	refused 1 "$FM_TMP/file" "$faultd" --store "dir:$FM_TMP/file"
	refused 1 "$FM_TMP/no/such" "$faultd" --store "dir:$FM_TMP/no/such"
	refused 1 "$FM_TMP/file" "$faultd" --store "dir:$FM_TMP/store" --run-dir "$FM_TMP/file"
	refused 1 "$FM_TMP/no/such" "$faultd" --store "dir:$FM_TMP/store" --run-dir "$FM_TMP/no/such"
	mkdir "$FM_TMP/$(printf 'x%.0s' {1..120})"
	refused 1 xxx "$faultd" --store "dir:$FM_TMP/store" --run-dir "$FM_TMP/$(printf 'x%.0s' {1..120})"
	tiny_tmpfs "$FM_TMP/ro" 64k
	mount -o remount,ro "$FM_TMP/ro"
	refused 1 "$FM_TMP/ro" "$faultd" --store "dir:$FM_TMP/ro"
	refused 1 "$FM_TMP/ro" "$faultd" --store "dir:$FM_TMP/store" --run-dir "$FM_TMP/ro"
}

@test "fm-faultd --check: a line for each question, exit 0 or 1, and nothing is left behind" {
	[ "$(id -u)" -eq 0 ] || skip "not root"
	run --separate-stderr "$faultd" --check --store "dir:$FM_TMP/store"
	[ "$status" -eq 0 ]
	[ "${#lines[@]}" -ge 7 ]
	[ -z "$stderr" ]
	for what in kernel userfaultfd memfd CAP_SYS_PTRACE 'run directory' store registry; do
		[ "$(grep -cE "^$what +ok " <<< "$output")" -eq 1 ]
	done
	[ ! -e "$FM_RUN_DIR" ]
	: > "$FM_TMP/file"
	run --separate-stderr "$faultd" -n --store "dir:$FM_TMP/file"
	[ "$status" -eq 1 ]
	[[ $output =~ store\ +FAIL ]]
	[[ $output == *"$FM_TMP/file"* ]]
	[ -z "$stderr" ]
	requires setpriv || skip "no setpriv"
	run --separate-stderr setpriv --bounding-set=-sys_ptrace --inh-caps=-sys_ptrace "$faultd" --check --store "dir:$FM_TMP/store"
	[ "$status" -eq 1 ]
	[[ $output =~ CAP_SYS_PTRACE\ +FAIL ]]
}

@test "fm-faultd: a second one on the same run directory is refused and names the first" {
	start_faultd
	refused 1 "$FAULTD_PID" "$faultd" --store "dir:$FM_TMP/store2"
	alive "$FAULTD_PID"
	serves
	# Dead, it is in nobody's way.
	kill -KILL "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	start_faultd
	serves
	stop_faultd
}

@test "fm-faultd: SIGTERM and SIGINT end it with exit 0, and its evictor with it" {
	local evictor status=0
	start_faultd
	wait_for 10 test "$(children_of "$FAULTD_PID")"
	evictor=$(children_of "$FAULTD_PID")
	stop_faultd
	[ ! -e "$sock" ]
	wait_for 5 gone "$evictor"
	start_faultd --no-evictor
	[ -z "$(children_of "$FAULTD_PID")" ]
	kill -INT "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	wait "$FAULTD_PID" || status=$?
	[ "$status" -eq 0 ]
}

@test "fm-faultd: SIGTERM while a client waits for room; the next one serves it" {
	start_faultd --local 64p
	wait_for 10 test "$(children_of "$FAULTD_PID")"
	evictor=$(children_of "$FAULTD_PID")
	wait_for 10 stat_evictor_up
	kill -STOP "${evictor% }"
	start_client map:blocked:512 say:mapped fill:0:512:3 check:0:512:3 say:done
	client_says mapped
	wait_for 20 stat_above .held 0
	stop_faultd
	alive "$CLIENT_PID"
	start_faultd --local 64p
	client_says "done"
	ends_well "$CLIENT_PID"
	stop_faultd
}

# The evictor is up: it holds its lock.
stat_evictor_up() {
	grep -q " ${evictor% } " /proc/locks
}

@test "fm-faultd: a restart takes regions over; the client keeps on, every word right" {
	start_faultd --local 256p
	start_torture --size 8388608 --threads 4 --seconds 6
	wait_for 20 region_there
	for _ in 1 2 3; do
		wait_for 20 stat_above .evictions 500
		stop_faultd
		alive "$TORTURE_PID"
		start_faultd --local 256p
	done
	torture_ends_well
	wait_for 5 no_regions
	wait_for 5 store_is_empty
	stop_faultd
}

@test "fm-faultd: SIGKILL and a restart lose nothing" {
	start_faultd --local 256p
	start_torture --size 8388608 --threads 4 --seconds 600
	wait_for 20 region_there
	for _ in 1 2 3 4 5; do
		before=$(region_stat .evictions)
		wait_for 20 stat_above .evictions $((before + 300))
		kill -KILL "$FAULTD_PID"
		wait_for 5 gone "$FAULTD_PID"
		start_faultd --local 256p
	done
	kill -TERM "$TORTURE_PID"
	torture_ends_well
	wait_for 5 no_regions
	wait_for 5 store_is_empty
	stop_faultd
}

@test "fm-faultd: a client that is killed: its store pages and its state are freed within 5 s" {
	start_faultd --local 64p
	start_client map:victim:1024 fill:0:1024:5 say:filled until:"$go"
	client_says filled
	[ "$(blocks_of "$FM_TMP/store")" -gt 800 ]
	kill -KILL "$CLIENT_PID"
	wait_for 5 no_regions
	wait_for 5 store_is_empty
	[ "$("$FM_BIN/fm-stat" -j | jq .daemon.resident_pages)" -eq 0 ]
	stop_faultd
}

@test "fm-faultd: a client that died while no daemon ran: the next one frees what it left" {
	start_faultd --local 64p
	start_client map:victim:1024 fill:0:1024:5 say:filled until:"$go"
	client_says filled
	kill -KILL "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	kill -KILL "$CLIENT_PID"
	wait_for 5 gone "$CLIENT_PID"
	region_there
	start_faultd
	wait_for 5 no_regions
	wait_for 5 store_is_empty
	stop_faultd
}

@test "fm-faultd: a client that becomes another program by exec() is gone, too" {
	start_faultd --local 64p
	start_client map:execs:1024 fill:0:1024:5 say:filled until:"$go" exec
	client_says filled
	touch "$go"
	wait_for 5 no_regions
	wait_for 5 store_is_empty
	alive "$CLIENT_PID"
	serves
	stop_faultd
}

@test "fm_unmap: all at once, and in parts, frees the store" {
	start_faultd --local 64p
	start_client map:whole:1024 fill:0:1024:5 unmap:0:1024 say:unmapped until:"$go" \
		map:parts:1024 fill:0:1024:6 unmap:0:256 say:part until:"$go.2" check:256:768:6 unmap:512:512 check:256:256:6 \
		unmap:256:256 say:all until:"$go.3"
	client_says unmapped
	wait_for 5 no_regions
	wait_for 5 store_is_empty
	touch "$go"
	client_says part
	wait_for 5 stat_is '.pages - .resident_pages - .remote_pages' 256
	wait_for 5 blocks_at_most 768
	touch "$go.2"
	client_says all
	wait_for 5 no_regions
	wait_for 5 store_is_empty
	touch "$go.3"
	ends_well "$CLIENT_PID"
	stop_faultd
}

blocks_at_most() {
	[ "$(blocks_of "$FM_TMP/store")" -le "$1" ]
}

@test "fm_unmap of a part that the kernel refuses to cut out: -1 and ENOMEM, and the memory is as it was" {
	start_faultd --local 8p
	start_client map:a:64 fill:0:64:3 crowd must-fail:ENOMEM:unmap:10:1 check:0:64:3 unmap:0:64 say:all
	client_says all
	ends_well "$CLIENT_PID"
	no_regions
	stop_faultd
}

@test "libfm in a child that was forked while another thread was in libfm" {
	start_faultd --local 64p
	start_client map:a:16 forks:400 say:all
	client_says all
	ends_well "$CLIENT_PID"
	stop_faultd
}

@test "mremap of the whole: fm_unmap gives it back where it is now, in parts, too; and nothing else that is where it was" {
	local files
	start_faultd --local 256p
	start_client map:first:64 map:moved:1024 fill:0:1024:5 move:1024 check:0:1024:5 unmap:0:24 unmap:100:24 check:24:76:5 say:part until:"$go" \
		unmap:0:1024 say:all until:"$go.2" map:again:512 fill:0:512:6 move:512 old:EINVAL check:0:512:6 unmap:0:512 say:again until:"$go.3"
	client_says part
	touch "$go"
	client_says all
	files=$(find "/proc/$CLIENT_PID/fd" -lname '*fm:moved*' | wc -l)
	[ "$files" -eq 0 ]
	[ "$("$FM_BIN/fm-stat" -j | jq -r '[.regions[].name] | join(" ")')" = first ]
	touch "$go.2"
	client_says again
	[ "$("$FM_BIN/fm-stat" -j | jq -r '[.regions[].name] | join(" ")')" = first ]
	touch "$go.3"
	ends_well "$CLIENT_PID"
	stop_faultd
}

@test "mremap of a part: what is away raises SIGBUS there, also for the fm-faultd after; the rest is as it was" {
	local how
	for how in stays restarted; do
		start_faultd --local 256p
		start_client map:moved:1024 fill:0:1024:5 say:filled movepart:0:128 say:moved until:"$FM_TMP/$how" bus:128:5 check:128:896:5
		client_says moved
		grep -q 'moved by mremap' "$FM_TMP/faultd.log" || wait_for 10 grep -q 'moved by mremap' "$FM_TMP/faultd.log"
		if [ "$how" = restarted ]; then
			kill -KILL "$FAULTD_PID"
			wait "$FAULTD_PID" || true
			start_faultd --local 256p
		fi
		touch "$FM_TMP/$how"
		ends_well "$CLIENT_PID" 90
		wait_for 10 no_regions
		stop_faultd
	done
}

@test "munmap and MADV_REMOVE of a part free its pages, here and in the store" {
	start_faultd --local 64p
	start_client map:parts:1024 fill:0:1024:5 say:filled until:"$go" munmap:1000:24 remove:0:900 say:removed until:"$go.2" \
		check:900:100:5 check:0:900:0 fill:0:10:7 check:0:10:7 check:10:890:0 say:checked until:"$go.3"
	client_says filled
	[ "$(blocks_of "$FM_TMP/store")" -gt 900 ]
	touch "$go"
	client_says removed
	# What remains: 100 pages, here or there.
	wait_for 5 stat_is '.resident_pages + .remote_pages' 100
	wait_for 5 blocks_at_most 100
	touch "$go.2"
	client_says checked
	touch "$go.3"
	ends_well "$CLIENT_PID"
	wait_for 5 no_regions
	wait_for 5 store_is_empty
	stop_faultd
}

@test "memory that is never touched, only read, or zeroed again takes no store space" {
	start_faultd --local 64p
	start_client map:zeros:4096 check:0:2048:0 say:read until:"$go" fill:2048:512:9 say:filled until:"$go.2" zero:2048:512 \
		say:zeroed until:"$go.3" check:2048:512:0 fill:0:4:1 check:0:4:1
	client_says read
	[ "$(region_stat .store_puts)" -eq 0 ]
	store_is_empty
	stat_above .evictions_zero 1900
	touch "$go"
	client_says filled
	[ "$(blocks_of "$FM_TMP/store")" -gt 400 ]
	touch "$go.2"
	client_says zeroed
	# The last of them leave when they are evicted.
	"$FM_BIN/fm-evict" --all zeros
	wait_for 5 store_is_empty
	touch "$go.3"
	ends_well "$CLIENT_PID"
	stop_faultd
}

@test "registrations that must be refused are, each with a reason; nothing is left behind" {
	requires python3 || skip "no python3"
	start_faultd
	timeout 120 python3 "$BATS_TEST_DIRNAME/peer.py" "$sock" registers > "$FM_TMP/out"
	cat "$FM_TMP/out"
	[ "$(tail -n 2 "$FM_TMP/out")" = $'good REGISTERED\nmemory bytes' ]
	[ "$(grep -c REGISTERED "$FM_TMP/out")" -eq 1 ]
	[ "$(grep -vcE ' (error .*: .*|closed.*)$' <(head -n -2 "$FM_TMP/out"))" -eq 0 ]
	wait_for 5 no_regions
	alive "$FAULTD_PID"
	serves
	stop_faultd
}

@test "clients that die in the middle of registering" {
	requires python3 || skip "no python3"
	start_faultd
	for _ in 1 2 3 4 5; do
		timeout 60 python3 "$BATS_TEST_DIRNAME/peer.py" "$sock" half || true
	done
	wait_for 10 no_regions
	alive "$FAULTD_PID"
	serves
	stop_faultd
}

# Its own userfaultfd is closed: ours would be the last one, and with us the pages that are away would go.
@test "who leaves before his registration is served, and lives on, has none" {
	start_faultd -v
	timeout 60 python3 "$BATS_TEST_DIRNAME/peer.py" "$sock" leaves "$FAULTD_PID" > "$FM_TMP/out" 3>&-
	cat "$FM_TMP/out"
	[ "$(cat "$FM_TMP/out")" = 'bytes' ]
	no_regions
	grep -q 'client: did not wait for the answer$' "$FM_TMP/faultd.log"
	[ "$("$FM_BIN/fm-stat" -j | jq .daemon.resident_pages)" -eq 0 ]
	serves
	stop_faultd
}

@test "the modes of the run directory and its files do not depend on the umask" {
	local mask
	for mask in 000 077; do
		rm -rf "$FM_RUN_DIR"
		umask "$mask"
		start_faultd
		umask 022
		start_client map:a:16 fill:0:16:1 say:filled until:"$go"
		client_says filled
		wait_for 10 test -e "$FM_RUN_DIR/evict.lock"
		(cd "$FM_RUN_DIR" && stat -c '%a %n' . ./*) | sed 's/region-.*\.state/region/' > "$FM_TMP/modes"
		cat "$FM_TMP/modes"
		[ "$(cat "$FM_TMP/modes")" = $'750 .\n640 ./daemon.lock\n640 ./daemon.state\n640 ./evict.lock\n660 ./fm.sock\n640 ./region' ]
		kill "$CLIENT_PID"
		stop_faultd
	done
}

@test "garbage, truncated, oversized and torn messages on fm.sock" {
	requires python3 || skip "no python3"
	start_faultd
	fds=$(ls "/proc/$FAULTD_PID/fd" | wc -l)
	timeout 120 python3 "$BATS_TEST_DIRNAME/peer.py" "$sock" random 5 3>&-
	alive "$FAULTD_PID"
	wait_for 10 descriptors_at_most "$((fds + 1))"
	wait_for 5 no_regions
	[ "$(timeout 20 python3 "$BATS_TEST_DIRNAME/peer.py" "$sock" slow)" = 4 ]
	serves
	stop_faultd
}

descriptors_at_least() {
	[ "$(ls "/proc/$FAULTD_PID/fd" | wc -l)" -ge "$1" ]
}

descriptors_at_most() {
	[ "$(ls "/proc/$FAULTD_PID/fd" | wc -l)" -le "$1" ]
}

@test "a peer that does not read its answers is thrown out, and delays nobody" {
	requires python3 || skip "no python3"
	local i pids=()
	start_faultd
	start=$SECONDS
	for i in {1..16}; do
		timeout 120 python3 "$BATS_TEST_DIRNAME/peer.py" "$sock" flood > "$FM_TMP/flood.$i" 3>&- &
		pids+=($!)
		track "$!"
	done
	for i in {1..16}; do
		wait_for 20 grep -q floods "$FM_TMP/flood.$i"
	done
	serves
	for i in "${pids[@]}"; do
		wait_for 40 gone "$i"
	done
	[ "$(grep -l 'thrown out' "$FM_TMP"/flood.* | wc -l)" -eq 16 ]
	# Waiting two seconds for each of them would take more than thirty.
	[ $((SECONDS - start)) -lt 25 ]
	stop_faultd
}

@test "600 connections at once: those beyond the limit are closed, and root's evictor still gets in" {
	requires python3 && requires setpriv || skip "no python3 or no setpriv"
	[ "$(id -u)" -eq 0 ] || skip "not root"
	start_faultd --local 64p --user-connections 512
	wait_for 10 test "$(children_of "$FAULTD_PID")"
	chmod 711 "$FM_RUN_DIR" && chmod 666 "$sock"
	open_path "$sock"
	cp "$BATS_TEST_DIRNAME/peer.py" "$FM_PUBLIC/"
	setpriv --reuid=65534 --regid=65534 --clear-groups "$PYTHON" "$FM_PUBLIC/peer.py" "$FM_PUBLIC/sock" many 600 > "$FM_TMP/many" 3>&- &
	many=$!
	track "$many"
	wait_for 60 grep -q open "$FM_TMP/many"
	n=$(awk '{ print $2 }' "$FM_TMP/many")
	echo "$n stayed open"
	[ "$n" -ge 400 ]
	[ "$n" -lt 520 ]
	# The evictor dies, and its successor must be let in: else no budget is kept, and fills wait for ever.
	kill -KILL "$(children_of "$FAULTD_PID")"
	serves
	kill -KILL "$many"
	wait_for 10 gone "$many"
	serves
	stop_faultd
}

# open_path SOCKET: $FM_PUBLIC, a folder that other users may enter, with a link `sock` to it; and $PYTHON, for them too.
open_path() {
	FM_PUBLIC=$(mktemp -d /tmp/fm-public.XXXXXX)
	PUBLIC+=("$FM_PUBLIC")
	chmod 755 "$FM_PUBLIC"
	mkdir "$FM_PUBLIC/run"
	mount --bind "$FM_RUN_DIR" "$FM_PUBLIC/run" || skip "cannot mount here"
	MOUNTS+=("$FM_PUBLIC/run")
	ln -s run/fm.sock "$FM_PUBLIC/sock"
	PYTHON=/usr/bin/python3
	[ -x "$PYTHON" ] || PYTHON=$(command -v python3)
}

@test "a daemon that is out of descriptors refuses, and goes on when some are free" {
	requires python3 && requires prlimit || skip "no python3 or no prlimit"
	start_faultd
	prlimit --pid "$FAULTD_PID" --nofile=40:40
	timeout 120 python3 "$BATS_TEST_DIRNAME/peer.py" "$sock" many 30 > "$FM_TMP/many" 3>&- &
	many=$!
	track "$many"
	# The last eight are not for clients.
	wait_for 10 descriptors_at_least 32
	run timeout 20 "$BATS_FILE_TMPDIR/client" must-fail:EMFILE:map:x:64
	echo "$output"
	[ "$status" -eq 0 ]
	alive "$FAULTD_PID"
	# shellcheck disable=SC2046 # pids, one word each
	kill -KILL $(children_of "$many") "$many"
	wait_for 5 gone "$many"
	serves
	stop_faultd
}

@test "a full store: pages stay, fm-stat says so, nothing is lost, and it goes on when there is room" {
	tiny_tmpfs "$FM_TMP/store" 1M
	start_faultd --local 512p
	start_client map:full:700 fill:0:700:5 say:filled until:"$go" check:0:700:5 say:checked until:"$go.2" \
		zero:0:400 fill:400:300:6 check:0:400:0 check:400:300:6 say:again until:"$go.3"
	client_says filled
	# 256 places for some 300 pages: the budget cannot be made smaller.
	run --separate-stderr timeout 60 "$FM_BIN/fm-evict" --all full
	[ "$status" -eq 1 ]
	[[ $stderr == *full* ]]
	wait_for 10 stat_is '.flags | index("store_full") != null' true
	[[ $("$FM_BIN/fm-stat") == *"store full"* ]]
	[ "$(region_stat .store_errors)" -gt 0 ]
	[ "$(region_stat '.resident_pages + .remote_pages')" -eq 700 ]
	touch "$go"
	client_says checked
	mount -o remount,size=16M "$FM_TMP/store"
	[ "$("$FM_BIN/fm-evict" --all full)" -gt 0 ]
	wait_for 10 stat_is '.flags | length' 0
	touch "$go.2"
	client_says again
	touch "$go.3"
	ends_well "$CLIENT_PID"
	[[ $(region_stat .pages_lost) =~ ^(null|0)$ ]]
	stop_faultd
}

@test "a full store under a client that needs more: it waits, and goes on when there is room" {
	tiny_tmpfs "$FM_TMP/store" 256k
	start_faultd --local 64p
	start_client map:waits:512 fill:0:512:5 check:0:512:5 say:done
	wait_for 20 region_there
	wait_for 20 stat_is '.flags | index("store_full") != null' true
	wait_for 20 stat_above .held 0
	[ "$(region_stat .resident_pages)" -le 64 ]
	mount -o remount,size=16M "$FM_TMP/store"
	client_says "done"
	ends_well "$CLIENT_PID"
	stop_faultd
}

@test "a run directory on a full tmpfs: a registration is refused, the regions there are go on" {
	tiny_tmpfs "$FM_RUN_DIR" 400k
	start_faultd --local 64p
	start_client map:small:512 fill:0:512:5 say:filled until:"$go" check:0:512:5
	client_says filled
	run timeout 20 "$BATS_FILE_TMPDIR/client" must-fail:ENOSPC:map:large:1000000
	[ "$status" -eq 0 ]
	head -c 1M /dev/zero > "$FM_RUN_DIR/fill" 2> /dev/null || true
	run timeout 20 "$BATS_FILE_TMPDIR/client" must-fail:ENOSPC:map:small:1
	[ "$status" -eq 0 ]
	alive "$FAULTD_PID"
	touch "$go"
	ends_well "$CLIENT_PID"
	rm "$FM_RUN_DIR/fill"
	serves
	wait_for 5 no_regions
	stop_faultd
}

@test "fm_map: no daemon, a bad directory, no descriptors left" {
	run timeout 20 "$BATS_FILE_TMPDIR/client" must-fail:ENOENT:map:x:1
	[ "$status" -eq 0 ]
	start_faultd
	run timeout 20 "$BATS_FILE_TMPDIR/client" must-fail:EINVAL:map:x:0
	[ "$status" -eq 0 ]
	run timeout 20 "$BATS_FILE_TMPDIR/client" must-fail:EINVAL:map:x:4294967295
	[ "$status" -eq 0 ]
	run timeout 20 "$BATS_FILE_TMPDIR/client" "must-fail:EINVAL:map:a b:1"
	[ "$status" -eq 0 ]
	run timeout 20 "$BATS_FILE_TMPDIR/client" "must-fail:EINVAL:map:$(printf 'x%.0s' {1..64}):1"
	[ "$status" -eq 0 ]
	# Descriptors for the connection, the memfd, the userfaultfd: whichever is the first that there is none for.
	for n in 3 4 5; do
		run timeout 20 "$BATS_FILE_TMPDIR/client" "nofile:$n" must-fail:EMFILE:map:x:16
		echo "$n: $output"
		[ "$status" -eq 0 ]
	done
	run timeout 20 "$BATS_FILE_TMPDIR/client" maps:x:16:100 check:0:16:0
	[ "$status" -eq 0 ]
	wait_for 5 no_regions
	kill -KILL "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID"
	run timeout 20 "$BATS_FILE_TMPDIR/client" must-fail:ECONNREFUSED:map:x:1
	[ "$status" -eq 0 ]
}

@test "an unprivileged client borrows /dev/userfaultfd, and cannot touch another's region" {
	requires setpriv || skip "no setpriv"
	[ "$(id -u)" -eq 0 ] || skip "not root"
	[ -e /dev/userfaultfd ] || skip "no /dev/userfaultfd before Linux 6.1"
	start_faultd --local 64p
	chmod 711 "$FM_RUN_DIR" && chmod 666 "$sock"
	open_path "$sock"
	cp "$BATS_FILE_TMPDIR/client" "$BATS_FILE_TMPDIR/torture" "$FM_PUBLIC/"
	start_client map:roots:64 fill:0:64:5 say:filled until:"$go"
	client_says filled
	cd "$FM_PUBLIC"
	FM_RUN_DIR=$FM_PUBLIC/run timeout 60 setpriv --reuid=65534 --regid=65534 --clear-groups "$FM_PUBLIC/torture" --size 2097152 \
		--threads 2 --seconds 2 > "$FM_TMP/torture.out"
	grep -q ', 0 wrong words' "$FM_TMP/torture.out"
	cp "$FM_BIN/fm-evict" "$FM_PUBLIC/"
	chmod a+r "$FM_RUN_DIR"/*.state
	chmod a+r "$FM_RUN_DIR"
	FM_RUN_DIR=$FM_PUBLIC/run run setpriv --reuid=65534 --regid=65534 --clear-groups "$FM_PUBLIC/fm-evict" roots 4p
	[ "$status" -eq 1 ]
	[[ $output == *"another user"* ]]
	FM_RUN_DIR=$FM_PUBLIC/run run setpriv --reuid=65534 --regid=65534 --clear-groups "$FM_PUBLIC/fm-evict" --limit 1G
	[ "$status" -eq 1 ]
	[[ $output == *root* ]]
	stop_faultd
}
