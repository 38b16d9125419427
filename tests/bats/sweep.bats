#!/usr/bin/env bats
# Keys that no page has any more, on servers that a put or a delete did not reach: they go when the server is back.

load helper
load memcached

setup_file() {
	mc_build
}

# $1 and $2 have as many items, which do not change any more.
same_items() {
	local a b
	a=$(mc_items "$1") b=$(mc_items "$2")
	[ "$a" -eq "$b" ] && sleep 0.3 && [ "$(mc_items "$1")" -eq "$a" ]
	[ "$(mc_items "$2")" -eq "$a" ]
}

swept() {
	grep -q "${MC_AT[$1]}: swept" "$FM_TMP/faultd.log"
}

@test "R=2: a server that stood still while pages were written anew has no key too many when it is back" {
	mc_start a
	mc_start b
	start_faultd -v --local 256p --store "memcached:$(addresses a b)?timeout=500&away=60" --replicas 2
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	kill -STOP "${MC_PID[b]}"
	lost_say one 60 'churn 6000 2048'
	[ "$(lost_number wrong)" -eq 0 ]
	kill -CONT "${MC_PID[b]}"
	wait_for 60 swept b
	wait_for 30 same_items a b
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	# What is there is needed: each page's only other copy.
	wait_for 30 same_items a b
	mc_kill a
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	stop_faultd
}

@test "a region that ended while a server stood still, and fm-faultd after it: its keys go when the server is back" {
	mc_start a
	mc_start b
	start_faultd -v --local 256p --store "memcached:$(addresses a b)?timeout=500&away=60"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	[ "$(mc_items b)" -gt 500 ]
	kill -STOP "${MC_PID[b]}"
	lost_end one
	wait_for 20 no_regions
	[ -s "$FM_RUN_DIR/ended" ]
	stop_faultd
	kill -CONT "${MC_PID[b]}"
	# Somebody else's keys are nobody's business.
	"$FM_PYTHON" -c 'import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"set fm0123456789abcdef0000000000000000001 0 0 1\r\n1\r\n")
assert s.recv(64) == b"STORED\r\n"' "${MC_AT[b]}"
	start_faultd -v --local 256p --store "memcached:$(addresses a b)?timeout=500&away=60"
	wait_for 30 mc_empty a
	wait_for 30 one_item b
	wait_for 10 test ! -s "$FM_RUN_DIR/ended"
	stop_faultd
}
one_item() {
	[ "$(mc_items "$1")" -eq 1 ]
}

@test "fm-evict killed again and again under torture: no key is left, and no server was restarted" {
	mc_start a
	mc_start b
	start_faultd -v --local 512p --store "memcached:$(addresses a b)" --replicas 2
	torture_start 5 --size $((16 << 20))
	for _ in 1 2 3 4 5 6; do
		sleep 0.5
		pid=$("$FM_BIN/fm-stat" -j | jq -r '.daemon.pid')
		for pid in $(children_of "$pid"); do
			kill -KILL "$pid" || true
		done
	done
	torture_end 60
	wait_for 20 no_regions
	wait_for 90 mc_empty a b
	stop_faultd
}
