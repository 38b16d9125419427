#!/usr/bin/env bats
# Pages in a RAMCloud: the coordinator found through a real ZooKeeper; coordinator and masters are tests/proxy/fakeramcloud.py, which
# misbehaves on command. Stock RAMCloud servers are not to be had as a package.

# shellcheck disable=SC2030,SC2031,SC2153 # each test is a subshell of its own; RC_AT is no MC_AT
bats_require_minimum_version 1.5.0
load helper
load memcached
load zookeeper

setup_file() {
	mc_build
}

setup() {
	fm_setup
	seconds=${FM_STRESS_SECONDS:-2}
}

# rc_start [MASTERS]: sets RC_AT, the coordinator's locator.
rc_start() {
	"$FM_PYTHON" "$FM_PROXY/fakeramcloud.py" "$FM_TMP/rc.ctl" "${1:-3}" 3>&- < /dev/null > "$FM_TMP/rc.out" 2>&1 &
	track $!
	wait_for 20 test -s "$FM_TMP/rc.out" || return 1
	RC_AT=$(head -1 "$FM_TMP/rc.out")
}

rc() {
	"$FM_PYTHON" "$FM_PROXY/fakeramcloud.py" ctl "$FM_TMP/rc.ctl" "$@"
}

# rc_did WHAT: how often; rc_did_some WHAT [N]: at least so often
rc_did() {
	local all
	all=" $(rc stats) "
	if [[ $all =~ " $1="([0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; else echo 0; fi
}
rc_did_some() {
	[ "$(rc_did "$1")" -ge "${2:-1}" ]
}
rc_has() {
	[ "$(rc count)" -ge "$1" ]
}
rc_has_no_table() {
	[ "$(rc tables)" = none ]
}

rc_servers() {
	[ "$("$FM_BIN/fm-stat" -j | jq '.stores[0].servers')" -eq "$1" ]
}

# Everything was as it must be: each frame understood, no object changed, nothing left behind; the fake lives.
rc_clean() {
	wait_for 20 rc_has_no_table
	[ "$(rc_did bad)" -eq 0 ]
	[ "$(rc_did changed)" -eq 0 ]
	[ "$(rc_did early)" -eq 0 ] # nobody was asked before the delay that it asked for
	! grep -q Traceback "$FM_TMP/rc.out"
}

rc_faultd() {
	start_faultd --local 512p --store "ramcloud:$RC_AT${rc_options-}" "$@"
}

# tortured SET...: under these faults
tortured() {
	rc_start
	rc_faultd
	rc set "$@"
	torture_start "$seconds" --size $((4 << 20))
	torture_end 200
	for ((i = 1; i < $#; i += 2)); do
		[[ ${!i} =~ ^(limit|recovery)$ ]] || rc_did_some "${!i}"
	done
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

# Maps are asked for seven times a second at most by each of a daemon's threads, while a tablet has no master.
# maps_from; sleep; maps_spaced: since maps_from
maps_from() {
	maps=$(rc_did config) maps_us=${EPOCHREALTIME/./}
}
maps_spaced() {
	local n=$(($(rc_did config) - maps)) ms=$(((${EPOCHREALTIME/./} - maps_us) / 1000))
	echo "$n maps in $ms ms"
	[ "$n" -ge 1 ]
	[ "$n" -lt $((20 + ms / 10)) ]
}

# --- it works

@test "the coordinator is found through ZooKeeper; torture: 0 wrong words, and the table is dropped" {
	zk_start z
	rc_start
	zk z create /ramcloud ''
	zk z create /ramcloud/main ''
	zk z create /ramcloud/main/coordinator "$RC_AT"
	start_faultd --local 512p --store "ramcloud:zk:${ZK_AT[z]}"
	torture_start "$seconds" --size $((4 << 20))
	wait_for 60 rc_has 100
	[[ $(rc tables) =~ ^fm[0-9a-f]{16}:[0-9]+$ ]]
	wait_for 20 rc_servers 3
	"$FM_BIN/fm-stat" -j | jq -e '.stores | length == 1 and .[0].up and (.[0].uri | startswith("ramcloud:zk:"))'
	torture_end 200
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "torture while the coordinator rolls over to another address, twice" {
	zk_start z
	rc_start
	zk z create /ramcloud ''
	zk z create /ramcloud/other ''
	zk z create /ramcloud/other/coordinator "$RC_AT"
	start_faultd --local 512p --store "ramcloud:zk:${ZK_AT[z]}?cluster=other"
	rc set unknown 20 # so that maps are asked for
	torture_start $((seconds + 3)) --size $((4 << 20))
	wait_for 60 rc_has 100
	rc coordinator
	sleep 1 # dead for a while, its address still in the node
	zk z set /ramcloud/other/coordinator "$(rc reborn)"
	n=$(rc_did config)
	wait_for 60 rc_did_some config $((n + 3))
	zk z set /ramcloud/other/coordinator "$(rc rollover)"
	n=$(rc_did config)
	wait_for 60 rc_did_some config $((n + 3))
	rc notready 500
	torture_end 200
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "in the clear (--no-seal), one tablet, one master" {
	rc_start 1
	rc_options='?span=1' rc_faultd --no-seal
	torture_start 1 --size $((4 << 20))
	torture_end 200
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

# --- torture under each kind of misbehaviour: 0 wrong words

@test "replies in any order, and some that nobody asked for" {
	tortured reorder 300 stray 200
}

@test "RETRY with a delay, for requests and for single objects" {
	tortured retry 100 partretry 50
}

@test "RETRY with long delays: no master is asked before" {
	rc_start
	rc_faultd
	torture_start $((seconds + 2)) --size $((4 << 20))
	wait_for 60 rc_has 100
	rc set retry 200 delay 600
	wait_for 60 rc_did_some retry 5
	sleep 1
	rc set retry 0
	torture_end 200
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "UNKNOWN_TABLET" {
	tortured unknown 50
}

@test "connections that end in the middle of a reply; requests that are executed, and no reply comes" {
	tortured cut 20 lost 20
}

@test "requests that are executed after their connection is gone" {
	tortured late 20
}

@test "truncated, short-counted and oversized replies" {
	tortured short 20 fewer 100 huge 10
}

@test "values that change on the way" {
	tortured corrupt 5
}

@test "servers that fall silent, and do not even answer pings" {
	rc_options='?timeout=300' tortured silent 2
}

@test "a server that answers nothing but pings is pinged, and keeps its connection; its pages wait" {
	rc_start
	rc_options='?timeout=2000' rc_faultd
	lost_start l --size $((4 << 20)) --seed 3
	lost_say l 100 fill
	lost_say l 100 check
	accepts=$(rc_did accept)
	rc set pings 1
	lost_send l check
	wait_for 60 rc_did_some ping 2
	wait_for 60 has_flag l store_down
	unanswered l
	rc set pings 0
	lost_answer l 100
	[[ $LOST_SAID =~ ' 1024 right, 0 lost, 0 wrong' ]]
	[ "$(rc_did accept)" -eq "$accepts" ]
	lost_end l
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "what a page had before goes: there are no more objects than pages" {
	rc_start
	rc_faultd
	lost_start l --size $((4 << 20)) --seed 4
	lost_say l 100 fill
	lost_say l 100 'churn 6000 1024'
	[ "$(region_stat l store_puts)" -gt 2000 ]
	wait_for 20 rc_has_at_most 1024
	lost_end l
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}
rc_has_at_most() {
	[ "$(rc count)" -le "$1" ]
}

@test "tablets split over two masters, tablets that recover, a coordinator without masters" {
	rc_start 2
	rc nomasters 1500
	rc_faultd
	torture_start $((seconds + 3)) --size $((4 << 20))
	wait_for 60 rc_did_some nomasters
	wait_for 60 rc_has 100
	n=$(rc_did foreign)
	rc split
	wait_for 60 rc_did_some foreign $((n + 1))
	maps_from
	rc recovering 2000
	sleep 1.5
	maps_spaced
	torture_end 200
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "a master dies, its objects come back on others; then the next" {
	rc_start 3
	rc_faultd
	torture_start $((seconds + 3)) --size $((4 << 20))
	wait_for 60 rc_has 100
	n=$(rc_did config)
	rc kill 1
	wait_for 60 rc_did_some config $((n + 2))
	sleep 1
	rc start 4
	n=$(rc_did config)
	rc kill 2
	wait_for 60 rc_did_some config $((n + 2))
	torture_end 200
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "a master dies, the coordinator finds out late, and recovery takes seconds: its pages wait, and others' do not; 0 lost" {
	rc_start 3
	rc set detect 800 recovery 2500
	rc_options='?timeout=200' rc_faultd
	lost_start l --size $((8 << 20)) --seed 8
	lost_say l 100 fill
	wait_for 60 rc_has 1500
	rc kill 1
	# Pages of other masters come and go meanwhile.
	gets=$(region_stat l store_gets)
	lost_send l check
	wait_for 60 has_flag l store_down
	[ "$(region_stat l store_gets)" -gt "$gets" ]
	lost_answer l 100
	[[ $LOST_SAID =~ ' 2048 right, 0 lost, 0 wrong' ]]
	wait_for 60 lacks_flag l store_down
	lost_end l
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "a full cluster: pages stay here, the region says so, and goes on when there is room" {
	rc_start
	rc set limit 300
	rc_faultd
	torture_start $((seconds + 4)) --size $((4 << 20)) --name full
	wait_for 60 has_flag full store_full
	rc set limit 0
	wait_for 60 lacks_flag full store_full
	torture_end 200
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "a master that denies a tablet which the map says is its own: its pages wait, others' do not; the map is not asked for all the time" {
	rc_start 3
	rc_options='?timeout=30000' rc_faultd
	lost_start l --size $((8 << 20)) --seed 8
	lost_say l 100 fill
	wait_for 60 rc_has 1500
	rc set deny 1
	gets=$(region_stat l store_gets)
	lost_send l check
	wait_for 20 has_flag l store_down # and not in a minute
	maps_from
	sleep 3
	maps_spaced
	unanswered l
	[ "$(region_stat l store_gets)" -gt "$gets" ]
	rc_did_some deny
	rc set deny 0
	lost_answer l 100
	[[ $LOST_SAID =~ ' 2048 right, 0 lost, 0 wrong' ]]
	wait_for 20 lacks_flag l store_down
	lost_end l
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

# full_at_once: a cluster that is full and refuses removes as well stalls nobody: the region says so, and the evictor goes on to other pages, long before
# any timeout.
full_at_once() {
	rc_start
	rc_options='?timeout=30000' rc_faultd
	torture_start 600 --size $((4 << 20)) --name full
	wait_for 60 rc_has 300
	rc set full 1 "$@"
	wait_for 20 has_flag full store_full
	puts=$(region_stat full store_errors)
	wait_for 20 has_errors full $((puts + 300))
	rc set full 0
	wait_for 20 lacks_flag full store_full
	gets=$(region_stat full store_gets)
	wait_for 20 has_gets full $((gets + 100))
	kill -KILL "$TORTURE_PID"
	wait_for 60 no_regions
	rc_clean
	stop_faultd
}
has_gets() {
	[ "$(region_stat "$1" store_gets)" -ge "$2" ]
}
has_errors() {
	[ "$(region_stat "$1" store_errors)" -ge "$2" ]
}

@test "a full cluster that refuses removes too: nobody waits for them" {
	full_at_once fullrm 1
	rc_did_some fullrm
}

@test "a full cluster: pages that are stored come and go, past those that must stay" {
	rc_start
	rc_options='?timeout=30000' rc_faultd
	lost_start l --size $((8 << 20)) --seed 9
	lost_say l 100 fill
	lost_say l 100 check
	rc set full 1 fullrm 1
	lost_say l 60 'churn 100 2048' # some 50 of 512 must stay
	lost_say l 60 check
	[[ $LOST_SAID =~ ' 2048 right, 0 lost, 0 wrong' ]]
	rc_did_some full
	rc set full 0
	lost_end l
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "a full cluster that refuses whole requests" {
	full_at_once fullrm 1 capacity 1
	rc_did_some capacity
}

# --- what is lost, and what waits

@test "a master dies without replicas: its pages are lost, no other" {
	rc_start 2
	rc_faultd --no-evictor
	lost_start l --size $((4 << 20)) --seed 5
	lost_say l 100 fill
	"$FM_BIN/fm-evict" --daemon --run-dir "$FM_RUN_DIR" 3>&- < /dev/null > "$FM_TMP/evictor.log" 2>&1 &
	track $!
	wait_for 60 rc_has 400
	rc forget 1
	wait_for 100 check_told l
	[[ $LOST_SAID =~ ' 0 wrong' ]]
	[ "$(lost_number lost)" -gt 50 ]
	[ "$(lost_number right)" -gt 300 ]
	lost_end l
}
check_told() {
	lost_say "$1" 100 check && [ "$(lost_number lost)" -gt 0 ]
}

@test "all masters gone: faults wait, the region says so; SIGTERM is obeyed; they go on when one is back" {
	rc_start 1
	rc set recovery 3000
	rc_options='?timeout=200' rc_faultd
	lost_start l --size $((4 << 20)) --seed 6
	lost_say l 100 fill
	wait_for 60 rc_has 300
	rc kill 1
	lost_send l check
	wait_for 60 has_flag l store_down
	unanswered l
	stop_faultd
	rc start 2
	rc recovering 100
	rc_options='?timeout=200' rc_faultd
	lost_answer l 100
	[[ $LOST_SAID =~ ' 0 lost, 0 wrong' ]]
	lost_end l
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

# --- deaths of ours

@test "SIGKILL of fm-faultd and fm-evict under torture: taken over, 0 wrong words, the table is dropped" {
	rc_start
	rc set lost 5 reorder 50
	rc_faultd
	torture_start $((seconds + 8)) --size $((4 << 20))
	wait_for 60 rc_has 100
	for _ in 1 2 3; do
		kill -KILL "$("$FM_BIN/fm-stat" -j | jq .daemon.pid)"
		wait_for 20 gone "$FAULTD_PID"
		rc_faultd
		n=$(rc count)
		evictor=$(children_of "$FAULTD_PID")
		[ -z "$evictor" ] || kill -KILL "$evictor"
		sleep 0.5
	done
	torture_end 200
	wait_for 20 no_regions
	rc_clean
	stop_faultd
}

@test "a region that ends while the coordinator is away: its table is dropped when it is back" {
	rc_start
	zk_start z
	zk z create /ramcloud ''
	zk z create /ramcloud/main ''
	zk z create /ramcloud/main/coordinator "$RC_AT"
	start_faultd --local 512p --store "ramcloud:zk:${ZK_AT[z]}"
	torture_start 2 --size $((4 << 20))
	wait_for 60 rc_has 100
	rc coordinator
	torture_end 200
	wait_for 20 no_regions
	[ "$(rc tables)" != none ]
	zk z set /ramcloud/main/coordinator "$(rc reborn)"
	rc_clean
	stop_faultd
}

# --- hosts

# second_host [ARGS...]: another fm-faultd, with a run directory of its own
second_host() {
	"$FM_BIN/fm-faultd" -v --run-dir "$FM_TMP/run2" "$@" 3>&- < /dev/null >> "$FM_TMP/second.log" 2>&1 &
	track $!
	wait_for 30 test -S "$FM_TMP/run2/fm.sock"
}
second_said() {
	grep -q -- "$1" "$FM_TMP/second.log"
}

@test "a host that is cut off from ZooKeeper is not collected; one that is dead is: its table is dropped" {
	zk_start z
	zk_link l z
	rc_start
	with=(--store "ramcloud:$RC_AT" --local 256p)
	start_faultd "${with[@]}" --registry "$(zk_uri l)?grace=2&timeout=1000"
	second_host "${with[@]}" --registry "$(zk_uri z)?grace=2&timeout=1000"
	lost_start one --size $((2 << 20))
	lost_say one 60 fill
	host=$(cat "$FM_RUN_DIR/host.id")
	[[ $(rc tables) =~ (fm[0-9a-f]{16}): ]]
	table=${BASH_REMATCH[1]}
	link_cut l
	wait_for 30 zk_lacks z "/fm/hosts/$host"
	wait_for 30 second_said 'not collected yet: whether the host still reaches the store'
	sleep 6 # longer than its sign of life lasts: nothing must happen
	run ! second_said collected:
	# Nor when that is not there for a moment.
	for _ in 1 2 3 4 5 6 7 8; do
		rc drop fmhosts
		sleep 0.7
	done
	run ! second_said collected:
	lost_say one 60 check
	[ "$(lost_number right)" -eq 512 ]
	kill -KILL "$FAULTD_PID" "${LOST_PID[one]}"
	# A host that never leaves one is dead in the end.
	rc drop fmhosts
	wait_for 60 second_said "host $host is gone: region ${table#fm}: collected"
	[[ $(rc tables) != *"$table"* ]]
	wait_for 20 zk_count z /fm/regions 0
}

hosts_are() {
	[[ " $(rc tables) " == *" fmhosts:$1 "* ]]
}

@test "a sign of life is not sent before the delay that a master asks for" {
	zk_start z
	rc_start 1
	start_faultd --store "ramcloud:$RC_AT" --local 256p --registry "$(zk_uri z)?grace=4" # one a second
	wait_for 20 hosts_are 1
	rc set retry 1000 delay 2000
	wait_for 20 rc_did_some retry
	sleep 2
	[ "$(rc_did early)" -eq 0 ]
	wait_for 20 rc_did_some retry 2
	stop_faultd
}

@test "a sign of life that could not be left is left as soon as it can be" {
	zk_start z
	rc_start
	rc nomasters 3000
	start_faultd --store "ramcloud:$RC_AT" --local 256p --registry "$(zk_uri z)?grace=600"
	wait_for 60 rc_did_some nomasters
	wait_for 60 hosts_are 1 # the next is due in 150 s
	stop_faultd
}

# --- bad input: one line, exit code 2 or 3

# refused STATUS WORDS URI
refused() {
	run "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "$3" "${@:4}"
	echo "$output"
	[ "$status" -eq "$1" ]
	[[ $output == *"$2"* ]]
	[ "${#lines[@]}" -eq 1 ]
}

@test "bad URIs and options: exit 2" {
	refused 2 'a coordinator is' ramcloud:
	refused 2 'a coordinator is' ramcloud:lc:a:1
	refused 2 'must be ramcloud:tcp:' ramcloud:tcp:host=h
	refused 2 'port' ramcloud:zk:a:99999
	refused 2 'unknown option' 'ramcloud:zk:a:1?what=1'
	refused 2 'span=1..256' 'ramcloud:zk:a:1?span=0'
	refused 2 '--replicas: 2: RAMCloud keeps copies of its own (--replicas of its servers)' ramcloud:zk:a:1 --replicas 2
}

@test "unreachable, no such znode, not a RAMCloud: exit 3; --check says so" {
	port=$(zkctl ports 1)
	refused 3 'cannot be reached: Connection refused' "ramcloud:tcp:host=127.0.0.1,port=$port"
	refused 3 'ZooKeeper does not answer' "ramcloud:zk:127.0.0.1:$port"
	zk_start z
	refused 3 '/ramcloud/main/coordinator: no such znode' "ramcloud:zk:${ZK_AT[z]}"
	refused 3 '/ramcloud/c7/coordinator: no such znode' "ramcloud:zk:${ZK_AT[z]}?cluster=c7"
	zk z create /ramcloud ''
	zk z create /ramcloud/main ''
	zk z create /ramcloud/main/coordinator nonsense
	refused 3 'holds no service locator' "ramcloud:zk:${ZK_AT[z]}"
	zk z set /ramcloud/main/coordinator 'infrc:host=a,port=1'
	refused 3 'no tcp: locator' "ramcloud:zk:${ZK_AT[z]}"
	mc_start m -l 127.0.0.1 -p -1 # which waits for the end of a line
	refused 3 'the coordinator cannot be reached' "ramcloud:tcp:host=127.0.0.1,port=${MC_AT[m]##*:}"
	"$FM_PYTHON" "$FM_PROXY/badserver.py" http 127.0.0.1:0 3>&- < /dev/null > "$FM_TMP/http" 2>&1 &
	track $!
	wait_for 20 test -s "$FM_TMP/http"
	refused 3 'is no RAMCloud' "ramcloud:tcp:host=$(sed 's/:/,port=/' "$FM_TMP/http")"
	run "$FM_BIN/fm-faultd" --check --store "ramcloud:tcp:host=127.0.0.1,port=$port"
	[ "$status" -eq 1 ]
	[[ $output == *'store          FAIL  tcp:host=127.0.0.1'*'Connection refused'* ]]
	rc_start
	run "$FM_BIN/fm-faultd" --check --store "ramcloud:$RC_AT"
	[[ $output == *'store          ok'*'3 servers'* ]]
}
