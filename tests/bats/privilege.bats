#!/usr/bin/env bats
# Least privilege: what the daemons give up, what clients of one user may do to others' memory (nothing) and how much they may have.

bats_require_minimum_version 1.5.0
load helper
load memcached
load zookeeper

setup_file() {
	mc_build
}

setup() {
	fm_setup
	[ "$(id -u)" -eq 0 ] || skip "not root: there is nothing to give up, and nobody else to be"
	requires setpriv || skip "no setpriv"
	PUBLIC=$(mktemp -d /tmp/fm-public.XXXXXX)
	chmod 755 "$PUBLIC"
	export FM_RUN_DIR=$PUBLIC/run
	cp "$BATS_FILE_TMPDIR/torture" "$BATS_FILE_TMPDIR/lost" "$BATS_TEST_DIRNAME/peer.py" "$FM_BIN/fm-stat" "$PUBLIC"
}

teardown() {
	fm_teardown
	[ -z "${PUBLIC-}" ] || rm -rf "$PUBLIC"
}

@test "a run directory that everybody may write is not left so; one with the sticky bit is told of" {
	mkdir "$FM_RUN_DIR"
	chmod 777 "$FM_RUN_DIR"
	start_faultd
	grep -q 'the run directory could be written by everybody: not any more' "$FM_TMP/faultd.log"
	[ "$(stat -c %a "$FM_RUN_DIR")" = 775 ]
	stop_faultd
	# As a tmpfs is mounted.
	chmod 1777 "$FM_RUN_DIR"
	start_faultd -v
	grep -q 'the run directory may be written by everybody' "$FM_TMP/faultd.log"
	[ "$(stat -c %a "$FM_RUN_DIR")" = 1777 ]
	stop_faultd
}

@test "fm-stat, who may not read the daemon's files, does not say that it does not run" {
	start_faultd
	chmod 755 "$FM_RUN_DIR"
	run setpriv --reuid=65534 --regid=65534 --clear-groups "$PUBLIC/fm-stat"
	[ "$status" -eq 1 ]
	[ "$output" = "fm-stat: run directory '$FM_RUN_DIR': Permission denied" ]
	stop_faultd
}

@test "fm-faultd --check: a run directory that cannot be made, or has no room for a socket's name" {
	cp "$FM_BIN/fm-faultd" "$PUBLIC"
	run setpriv --reuid=65534 --regid=65534 --clear-groups "$PUBLIC/fm-faultd" --check --run-dir "$PUBLIC/none" --store "dir:$FM_TMP/store"
	[ "$status" -eq 1 ]
	[[ $output == *"run directory"*"$PUBLIC/none: cannot be made: Permission denied"* ]]
	run "$FM_BIN/fm-faultd" --check --run-dir "$PUBLIC/a/b" --store "dir:$FM_TMP/store"
	[ "$status" -eq 1 ]
	[[ $output == *"run directory"*"$PUBLIC/a/b: cannot be made: No such file or directory"* ]]
	run "$FM_BIN/fm-faultd" --check --run-dir "$PUBLIC/$(printf 'a%.0s' {1..100})" --store "dir:$FM_TMP/store"
	[ "$status" -eq 1 ]
	[[ $output == *"run directory"*"too long for a socket's path"* ]]
}

# Everybody may come to fm.sock.
open_to_all() {
	chmod 755 "$FM_RUN_DIR" && chmod 666 "$FM_RUN_DIR/fm.sock"
}

# as UID CMD...: as another user, with no group of ours
as() {
	local uid=$1
	shift
	(cd "$PUBLIC" && exec setpriv --reuid="$uid" --regid="${AS_GID:-$uid}" "${AS_GROUPS:---clear-groups}" "$@")
}

# In status of every thread of a process, a field has that value: all_have PID FIELD VALUE
all_have() {
	local task got
	for task in "/proc/$1/task/"*; do
		got=$(awk -v f="$2:" '$1 == f { print $2 }' "$task/status") || return 1
		[ "$got" = "$3" ] || {
			echo "$task ($(cat "$task/comm")): $2 is $got, must be $3"
			return 1
		}
	done
}

sandboxed() {
	local pid=$1 caps=$2
	all_have "$pid" CapPrm "$caps" && all_have "$pid" CapEff "$caps" && all_have "$pid" CapAmb 0000000000000000 &&
		all_have "$pid" NoNewPrivs 1 && all_have "$pid" Seccomp 2
}

has_evictor() {
	read -r EVICTOR _ <<< "$(children_of "$FAULTD_PID")"
	[ -n "$EVICTOR" ] && sandboxed "$EVICTOR" "${1:-0000000000000000}" > /dev/null
}

# The torture has its region, and pages of it leave.
evicts() {
	[ "$(region_stat torture evictions)" -gt 0 ]
}

PTRACE=0000000000080000 NONE=0000000000000000 DAC=0000000000000002 DAC_PTRACE=0000000000080002

@test "with memcached, ZooKeeper, threads that live before, after SIGKILLs: every thread has only what it needs" {
	zk_start z
	mc_start a
	mc_start b -l 127.0.0.1 -p -1
	args=(--local 256p --store "memcached:${MC_AT[a]}" --registry "$(zk_uri z)")
	start_faultd -v "${args[@]}"
	sandboxed "$FAULTD_PID" "$PTRACE"
	wait_for 20 has_evictor
	torture_start 600 --size $((8 << 20))
	wait_for 60 evicts
	for _ in 1 2; do
		# The evictor is started from inside of the sandbox.
		kill -KILL "$EVICTOR"
		wait_for 20 gone "$EVICTOR"
		wait_for 20 has_evictor
		# Shards of regions that are taken over, and ZooKeeper's threads, are older than it.
		kill -KILL "$FAULTD_PID"
		wait "$FAULTD_PID" || true
		start_faultd -v "${args[@]}"
		threads=("/proc/$FAULTD_PID/task/"*)
		[ ${#threads[@]} -ge 4 ]
		sandboxed "$FAULTD_PID" "$PTRACE"
		wait_for 20 has_evictor
	done
	kill -TERM "$TORTURE_PID"
	torture_end 60
	wait_for 20 no_regions
	# What comes in later works, too.
	lost_start one --size $((2 << 20))
	"$FM_BIN/fm-evict" --add-server "${MC_AT[b]}"
	lost_say one 30 fill
	lost_say one 30 check
	[ "$(lost_number right)" -eq 512 ]
	lost_end one
	sandboxed "$FAULTD_PID" "$PTRACE"
	stop_faultd
	run ! grep -q seccomp: "$FM_TMP/faultd.log"
}

@test "a store that others own keeps CAP_DAC_OVERRIDE, and works across restarts of the evictor" {
	id memcache > /dev/null || skip "no user memcache"
	mkdir "$PUBLIC/mc" && chown memcache "$PUBLIC/mc" && chmod 700 "$PUBLIC/mc"
	setpriv --reuid=memcache --regid=memcache --clear-groups memcached -M -t 1 -m 64 -s "$PUBLIC/mc/s" 3>&- < /dev/null > /dev/null 2>&1 &
	track $!
	wait_for 10 mc_answers "$PUBLIC/mc/s"
	start_faultd --local 64p --store "memcached:$PUBLIC/mc/s"
	sandboxed "$FAULTD_PID" "$DAC_PTRACE"
	wait_for 20 has_evictor "$DAC"
	lost_start one --size $((2 << 20))
	lost_say one 30 fill
	kill -KILL "$EVICTOR"
	wait_for 20 gone "$EVICTOR"
	wait_for 20 has_evictor "$DAC"
	lost_say one 30 check
	[ "$(lost_number right)" -eq 512 ]
	lost_end one
	stop_faultd
}

@test "--no-seccomp leaves the filter out of both, and nothing else" {
	start_faultd --no-seccomp
	all_have "$FAULTD_PID" Seccomp 0 && all_have "$FAULTD_PID" NoNewPrivs 1 && all_have "$FAULTD_PID" CapPrm "$PTRACE"
	wait_for 20 test "$(children_of "$FAULTD_PID")"
	read -r EVICTOR _ <<< "$(children_of "$FAULTD_PID")"
	wait_for 20 all_have "$EVICTOR" CapPrm "$NONE"
	all_have "$EVICTOR" Seccomp 0
	stop_faultd
}

@test "--check says what the sandbox would be" {
	run "$FM_BIN/fm-faultd" --check --store "dir:$FM_TMP"
	echo "$output"
	[[ $output == *$'\nsandbox        ok    capabilities: CAP_SYS_PTRACE; seccomp filter: on; no_new_privs\n'* ]]
	run "$FM_BIN/fm-faultd" --check --store "dir:$FM_TMP" --no-seccomp
	[[ $output == *'seccomp filter: off'* ]]
	mc_start a -l 127.0.0.1 -p -1
	run "$FM_BIN/fm-faultd" --check --store "memcached://${MC_AT[a]}"
	echo "$output"
	[ "$status" -eq 0 ]
	[ ! -e "$FM_RUN_DIR" ]
}

@test "a client cannot act on another's memory, region or process, nor on what is the host's" {
	start_faultd -v --local 64p
	open_to_all
	lost_start mine --size $((1 << 20))
	lost_say mine 30 fill
	id=$("$FM_BIN/fm-stat" -j | jq -r '.regions[0].id')
	as 65534 "$FM_PYTHON" peer.py "$FM_RUN_DIR/fm.sock" others "${LOST_PID[mine]}" "$id" > "$FM_TMP/said"
	cat "$FM_TMP/said"
	[ "$(wc -l < "$FM_TMP/said")" -eq 8 ]
	run ! grep -v ': error ' "$FM_TMP/said"
	grep -q "^register: error permission: only root or group fm may register another process's memory" "$FM_TMP/said"
	grep -q '^unregister: error .*belongs to another process' "$FM_TMP/said"
	[ "$(grep -cE '^(evict|limit|detach): error .*belongs to another user' "$FM_TMP/said")" -eq 3 ]
	[ "$(grep -cE '^(limit-host|server|evictor): error .*only root' "$FM_TMP/said")" -eq 3 ]
	lost_say mine 30 check
	[ "$(lost_number right)" -eq 256 ]
	lost_end mine
	stop_faultd
}

@test "who connects with group fm may act on others' regions, but is not root; who merely belongs to it may not" {
	# A group fm, seen by the daemon alone.
	printf 'fm:x:54321:\n' | cat /etc/group - > "$PUBLIC/group"
	chmod 644 "$PUBLIC/group"
	unshare --mount true 2> /dev/null || skip "no mount namespaces here"
	mkdir "$PUBLIC/bin"
	ln -s "$FM_BIN"/* "$PUBLIC/bin/"
	rm "$PUBLIC/bin/fm-faultd"
	printf '#!/bin/sh\nmount --bind %s/group /etc/group && exec %s/fm-faultd "$@"\n' "$PUBLIC" "$FM_BIN" > "$PUBLIC/inner"
	printf '#!/bin/sh\nexec unshare --mount %s/inner "$@"\n' "$PUBLIC" > "$PUBLIC/bin/fm-faultd"
	chmod +x "$PUBLIC/inner" "$PUBLIC/bin/fm-faultd"
	FM_BIN=$PUBLIC/bin start_faultd -v --local 64p
	[ "$(stat -c '%g %a' "$FM_RUN_DIR/fm.sock")" = '54321 660' ]
	[ "$(stat -c '%g %a' "$FM_RUN_DIR")" = '54321 750' ]
	lost_start mine --size $((1 << 20))
	id=$("$FM_BIN/fm-stat" -j | jq -r '.regions[0].id')
	AS_GROUPS=--groups=54321 as 65534 "$FM_PYTHON" peer.py "$FM_RUN_DIR/fm.sock" others "${LOST_PID[mine]}" "$id" > "$FM_TMP/said"
	cat "$FM_TMP/said"
	run ! grep -v ': error ' "$FM_TMP/said"
	AS_GID=54321 as 65534 "$FM_PYTHON" peer.py "$FM_RUN_DIR/fm.sock" others "${LOST_PID[mine]}" "$id" > "$FM_TMP/said"
	cat "$FM_TMP/said"
	grep -q '^register: error message: a descriptor is not a userfaultfd' "$FM_TMP/said"
	grep -qE '^unregister: [0-9]' "$FM_TMP/said"
	[ "$(grep -cE '^(limit-host|server|evictor): error .*only root' "$FM_TMP/said")" -eq 3 ]
	stop_faultd
}

# userfaultfds of other users come from /dev/userfaultfd, which the daemon lends.
@test "regions and memory of one user are limited, each refused with one line; others are not locked out" {
	[ -e /dev/userfaultfd ] || skip "no /dev/userfaultfd"
	start_faultd -v --local 256p --user-regions 3 --user-memory 1M
	open_to_all
	run as 65534 ./torture --run-dir "$FM_RUN_DIR" --regions 4 --size 65536 --seconds 1
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == *'torture: region 3: Disk quota exceeded'* ]]
	[ "$(grep -c 'regions: user 65534 has 3 already: no more at a time (--user-regions)$' "$FM_TMP/faultd.log")" -eq 1 ]
	wait_for 20 no_regions
	run as 65534 ./torture --run-dir "$FM_RUN_DIR" --regions 3 --size 524288 --seconds 1
	[ "$status" -eq 1 ]
	[[ $output == *'torture: region 2: Disk quota exceeded'* ]]
	[ "$(grep -c 'memory: user 65534 has 256 pages already, and may have 256 (--user-memory)$' "$FM_TMP/faultd.log")" -eq 1 ]
	wait_for 20 no_regions
	# Within its limits, beside another user and root, who has none.
	as 65534 ./torture --run-dir "$FM_RUN_DIR" --regions 2 --size 524288 --seconds 3 > "$FM_TMP/one" 2>&1 3>&- &
	track $!
	wait_for 20 grep -q seed "$FM_TMP/one"
	run as 65533 ./torture --run-dir "$FM_RUN_DIR" --regions 3 --size 65536 --seconds 1
	echo "$output"
	[ "$status" -eq 0 ]
	run "$PUBLIC/torture" --regions 5 --size 1048576 --seconds 1
	echo "$output"
	[ "$status" -eq 0 ]
	ends_well "${FM_PIDS[-1]}" 60
	stop_faultd
}

@test "a flood of connections of one user: the rest is told why and closed, and another user gets in" {
	start_faultd -v --local 256p --user-connections 5
	open_to_all
	as 65534 "$FM_PYTHON" peer.py "$FM_RUN_DIR/fm.sock" many 300 > "$FM_TMP/many" 3>&- &
	track $!
	wait_for 60 grep -q open "$FM_TMP/many"
	cat "$FM_TMP/many"
	[ "$(awk '{ print $2 }' "$FM_TMP/many")" -eq 5 ]
	[ "$(grep -c 'connections: user 65534 has 5 already: no more at a time (--user-connections)$' "$FM_TMP/faultd.log")" -eq 295 ]
	run as 65534 ./torture --run-dir "$FM_RUN_DIR" --size 65536 --seconds 1
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == *'torture: region 0: Resource temporarily unavailable'* ]]
	as 65533 "$FM_PYTHON" peer.py "$FM_RUN_DIR/fm.sock" slow > "$FM_TMP/other"
	[ "$(cat "$FM_TMP/other")" -eq 4 ]
	lost_start roots --size $((1 << 20))
	lost_end roots
	stop_faultd
}

@test "limits that are none are refused, exit 2" {
	local args
	for args in '--user-connections 0' '--user-connections x' '--user-regions -1' '--user-memory 0' '--user-memory 5'; do
		# shellcheck disable=SC2086 # words
		run "$FM_BIN/fm-faultd" $args
		echo "$output"
		[ "$status" -eq 2 ]
		[ "${#lines[@]}" -eq 1 ]
		[[ $output == "fm-faultd: ${args% *}: "* ]]
	done
}

@test "the systemd unit is one" {
	requires systemd-analyze || skip "no systemd-analyze"
	# Its program is elsewhere in a test, and its man page not installed.
	sed "s|/usr/local/sbin|$FM_BIN|; /^Documentation=/d" "$FM_ROOT/contrib/fm-faultd.service" > "$PUBLIC/fm-faultd.service"
	run systemd-analyze verify "$PUBLIC/fm-faultd.service"
	echo "$output"
	[ "$status" -eq 0 ] && [ -z "$output" ]
}
