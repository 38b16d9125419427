#!/usr/bin/env bats
# The membership of the store in a real ZooKeeper: published, followed, changed by any host, while every word of the memory is checked.

# shellcheck disable=SC2016,SC2030,SC2031 # $at and its like are jq's; ${LOST_PID[one]} is no variable `one`
bats_require_minimum_version 1.5.0
load helper
load memcached
load zookeeper

setup_file() {
	mc_build
}

setup() {
	zk_setup
}

# --- what must be there, for wait_for; $1: a run directory

evict() {
	local dir=$1
	shift
	timeout 60 "$FM_BIN/fm-evict" --run-dir "$dir" "$@"
}

# change DIR ARGS...: the same, again while the registry is away, as it may be for a moment on a busy machine.
change() {
	local dir=$1 status=0 i
	shift
	for ((i = 0; i < 30; i++)); do
		status=0
		timeout 300 "$FM_BIN/fm-evict" -v --run-dir "$dir" "$@" || status=$?
		[ "$status" -eq 3 ] || return "$status"
		wait_for 60 stat_is "$dir" .registry.here || return 1
	done
	return "$status"
}

# figure DIR FILTER: what jq says of a host; stat_is DIR FILTER: ... is true.
figure() {
	"$FM_BIN/fm-stat" --run-dir "$1" -j | jq -r "${@:3}" "$2"
}
stat_is() {
	"$FM_BIN/fm-stat" --run-dir "$1" -j | jq -e "${@:3}" "$2" > /dev/null
}

# role_is DIR ROLE SERVER: that host has the server in that role.
role_is() {
	stat_is "$1" '.stores[] | select(.uri == "memcached:" + $at) | .role == $role' --arg at "${MC_AT[$3]}" --arg role "$2"
}

# lacks DIR SERVER: that host does not have it, or nothing on it any more.
lacks() {
	stat_is "$1" '[.stores[] | select(.uri == "memcached:" + $at)] | length == 0' --arg at "${MC_AT[$2]}"
}

# goes_by DIR EPOCH: that host has applied that membership epoch, and has no page by an older one.
goes_by() {
	stat_is "$1" '.registry.epoch == $e and .registry.settled == $e' --argjson e "$2"
}

# says NODE LINE: the znode has that line.
says() {
	zk z get "$1" 2> /dev/null | grep -qxF -- "$2"
}

member_line() {
	zk z get /fm/store/members 2> /dev/null | grep -qE "^${MC_AT[$1]} $2( |\$)"
}

no_line() {
	zk_has z /fm/store/members && ! zk z get /fm/store/members | grep -qF "${MC_AT[$1]} "
}

epoch() {
	zk z get /fm/store/epoch
}

# A command that fails with one line: one_line STATUS TEXT CMD...
one_line() {
	local want=$1 text=$2
	shift 2
	run "$@"
	echo "$status: $output"
	[ "$status" -eq "$want" ] && [ "${#lines[@]}" -eq 1 ] && [[ $output == *"$text"* ]]
}

# --- tests

@test "the first host publishes the membership, others follow it and not their --store, and a host that comes later" {
	zk_start z
	mc_start a
	mc_start b
	mc_start c
	start_faultd -v --store "memcached:$(addresses a b)" --replicas 2 --registry "$(zk_uri z)"
	wait_for 60 says /fm/store/members "${MC_AT[a]} member 1"
	wait_for 60 says /fm/store/members "${MC_AT[b]} member 1"
	wait_for 60 says /fm/store/members epoch=1
	wait_for 60 says /fm/store/members replicas=2
	[ "$(epoch)" -eq 1 ]
	wait_for 60 says "/fm/hosts/$(host_id)" epoch=1

	second_host --store "memcached:$(addresses b c)" --registry "$(zk_uri z)"
	faultd_said "--store: differs from the registry, which is followed: it also has ${MC_AT[a]}; no members of it are ${MC_AT[c]}"
	faultd_said "--replicas: 1: other hosts keep 2 copies of a page; this one keeps 1 of its own"
	role_is "$FM_RUN_DIR_2" member a
	lacks "$FM_RUN_DIR_2" c
	# Asked of the second host, done by both.
	change "$FM_RUN_DIR_2" --add-server "${MC_AT[c]}"
	role_is "$FM_RUN_DIR_2" member c
	[ "$(epoch)" -eq 2 ]
	wait_for 60 member_line c member
	wait_for 60 role_is "$FM_RUN_DIR" member c
	wait_for 60 goes_by "$FM_RUN_DIR" 2
	wait_for 60 says "/fm/hosts/$(host_id_2)" epoch=2
	# What is so already begins no epoch.
	change "$FM_RUN_DIR" --add-server "${MC_AT[c]}"
	[ "$(epoch)" -eq 2 ]
	"$FM_BIN/fm-stat" stores | tee "$FM_TMP/stores"
	grep -qx 'registry: here, membership epoch 2, this host.s pages by 2' "$FM_TMP/stores"
	"$FM_BIN/fm-stat" -p | tee "$FM_TMP/metrics" | grep -qx 'fm_registry_epoch 2'
	grep -qx 'fm_registry_up 1' "$FM_TMP/metrics"
	grep -qx 'fm_registry_settled_epoch 2' "$FM_TMP/metrics"

	# A region's record says by which epoch its pages are.
	lost_start one --size $((8 << 20))
	id=$(figure "$FM_RUN_DIR" '.regions[0].id')
	wait_for 60 says "/fm/regions/$id" epoch=2
	# Drained and gone; a later host whose --store still names it does without.
	change "$FM_RUN_DIR" --drain-server "${MC_AT[a]}"
	wait_for 60 no_line a
	# Asked again, it is done already.
	change "$FM_RUN_DIR" --drain-server "${MC_AT[a]}"
	wait_for 60 says "/fm/regions/$id" "epoch=$(epoch)"
	mc_kill a
	stop_second_host
	second_host --store "memcached:${MC_AT[a]}" --registry "$(zk_uri z)"
	role_is "$FM_RUN_DIR_2" member b
	role_is "$FM_RUN_DIR_2" member c
	lacks "$FM_RUN_DIR_2" a
	stat_is "$FM_RUN_DIR_2" '[.stores[].up] | all'
	# What somebody removes is made again; what nobody can read is left alone.
	before=$(epoch)
	zk z rm /fm/store/members
	wait_for 60 zk_has z /fm/store/members
	[ "$(epoch)" -gt "$before" ]
	wait_for 60 goes_by "$FM_RUN_DIR" "$(epoch)"
	# A membership of another beginning: nothing that was said of such epochs before holds.
	was=$(zk z get /fm/store/members)
	kill -STOP "$(children_of "$FAULTD_PID")"
	zk z set /fm/store/members "epoch=1
${MC_AT[c]} member 1"
	wait_for 60 faultd_said "the store's membership went back from epoch $(epoch) to 1"
	wait_for 60 says "/fm/hosts/$(host_id)" epoch=0
	wait_for 60 says "/fm/regions/$id" epoch=0
	kill -CONT "$(children_of "$FAULTD_PID")"
	wait_for 60 says "/fm/regions/$id" epoch=1
	zk z set /fm/store/members "$was"
	wait_for 60 goes_by "$FM_RUN_DIR" "$(epoch)"
	wait_for 60 member_line b member
	wait_for 60 no_line a
	zk z set /fm/store/members nonsense
	wait_for 60 faultd_said "/fm/store/members: 'nonsense': not a line of a membership: the store stays as it is"
	one_line 1 "not a line of a membership" evict "$FM_RUN_DIR" --drain-server "${MC_AT[b]}"
	role_is "$FM_RUN_DIR" member b
	lost_end one
	stop_faultd
	stop_second_host
}

# racer DIR ARGS...: an fm-faultd that nobody waits for; sets RACER.
racer() {
	local dir=$1
	shift
	"$FM_BIN/fm-faultd" -v --run-dir "$dir" --ready-fd 4 "$@" 4> "$dir.ready" 3>&- < /dev/null >> "$FM_TMP/faultd.log" 2>&1 &
	RACER=$!
	track $RACER
}

@test "hosts that start at the same moment publish one membership, and both go by it" {
	zk_start z
	mc_start a
	mc_start b
	racer "$FM_RUN_DIR" --store "memcached:${MC_AT[a]}" --registry "$(zk_uri z)"
	FAULTD_PID=$RACER
	racer "$FM_RUN_DIR_2" --store "memcached:${MC_AT[b]}" --registry "$(zk_uri z)"
	FAULTD_2=$RACER
	wait_for 60 test -s "$FM_RUN_DIR.ready"
	wait_for 60 test -s "$FM_RUN_DIR_2.ready"
	wait_for 60 goes_by "$FM_RUN_DIR" 1
	wait_for 60 goes_by "$FM_RUN_DIR_2" 1
	wait_for 60 stat_is "$FM_RUN_DIR" '.stores | length == 1'
	wait_for 60 stat_is "$FM_RUN_DIR_2" '.stores | length == 1'
	servers=$(figure "$FM_RUN_DIR" '.stores[].uri')
	[ "$(figure "$FM_RUN_DIR_2" '.stores[].uri')" = "$servers" ]
	wait_for 60 says /fm/store/members "${servers#memcached:} member 1"
	[ "$(zk z get /fm/store/members | wc -l)" -eq 3 ]
	faultd_said '--store: differs from the registry, which is followed'
	# Nobody saw it otherwise, or changed it.
	[ "$(zk z stat /fm/store/members)" = '0 0' ]
	stop_faultd
	stop_second_host
}

# torture_on DIR NAME: the checker on that host; torture_ends NAME: ended by SIGTERM, it had found no wrong word.
declare -gA TORTURER
torture_on() {
	FM_RUN_DIR=$1 "$BATS_FILE_TMPDIR/torture" --seconds 600 --size $((16 << 20)) --name "$2" 3>&- < /dev/null > "$FM_TMP/$2.log" 2>&1 &
	TORTURER[$2]=$!
	track $!
}
torture_ends() {
	local status=0
	alive "${TORTURER[$1]}"
	kill -TERM "${TORTURER[$1]}"
	wait "${TORTURER[$1]}" || status=$?
	cat "$FM_TMP/$1.log"
	[ "$status" -eq 0 ] # not SIGBUS
	grep -q ' operations, 0 wrong words$' "$FM_TMP/$1.log"
}

# moved DIR N: that host has re-written N pages at least.
moved() {
	stat_is "$1" '.placement.pages_moved >= $n' --argjson n "$2"
}

# remote DIR N: N of its pages are away at least.
remote() {
	stat_is "$1" '[.regions[].remote_pages] | add >= $n' --argjson n "$2"
}

@test "a server that one host drains is left by all, ZooKeeper killed meanwhile: 0 wrong words, 0 lost" {
	zk_start z
	mc_start a
	mc_start b
	# One copy: what is left behind on the drained server is lost.
	with=(--store "memcached:$(addresses a b)" --local 512p --registry "$(zk_uri z)")
	start_faultd -v "${with[@]}"
	second_host -v "${with[@]}"
	torture_on "$FM_RUN_DIR" first
	torture_on "$FM_RUN_DIR_2" second
	wait_for 60 remote "$FM_RUN_DIR" 2000
	wait_for 60 remote "$FM_RUN_DIR_2" 2000
	# One joins, asked of the first: pages of both move there.
	mc_start c
	change "$FM_RUN_DIR" --add-server "${MC_AT[c]}"
	wait_for 60 moved "$FM_RUN_DIR" 100
	wait_for 60 moved "$FM_RUN_DIR_2" 100

	# It cannot end before ZooKeeper dies: the second host stands still until then.
	kill -STOP "$FAULTD_2"
	change "$FM_RUN_DIR" --drain-server "${MC_AT[a]}" 3>&- > "$FM_TMP/drain.log" 2>&1 &
	drain=$!
	track $drain
	wait_for 60 member_line a drained
	zk_kill z
	kill -CONT "$FAULTD_2"
	alive $drain
	one_line 3 "the registry is away: not changed" evict "$FM_RUN_DIR" --drain-server "${MC_AT[b]}"
	role_is "$FM_RUN_DIR" member b
	# The second host hears of it then, but its evictor moves nothing: everybody waits.
	evictor=$(children_of "$FAULTD_2")
	kill -STOP "$evictor"
	zk_run z
	zk_serves z
	wait_for 60 stat_is "$FM_RUN_DIR_2" '.registry.epoch == $e and .placement.epochs >= 2' --argjson e "$(epoch)"
	run ! wait_for 3 gone $drain
	wait_for 60 stat_is "$FM_RUN_DIR" '.registry.behind == $h' --arg h "$(host_id_2)"
	wait_for 60 member_line a drained
	kill -CONT "$evictor"
	wait_for 120 gone $drain
	cat "$FM_TMP/drain.log"
	wait $drain
	wait_for 60 no_line a
	mc_kill a
	wait_for 60 goes_by "$FM_RUN_DIR_2" "$(epoch)"
	wait_for 60 lacks "$FM_RUN_DIR" a
	for dir in "$FM_RUN_DIR" "$FM_RUN_DIR_2"; do
		stat_is "$dir" '[.regions[].pages_lost] | add == 0'
		stat_is "$dir" '[.stores[].up] | all'
	done
	torture_ends first
	torture_ends second
	stop_faultd
	stop_second_host
	wait_for 60 zk_count z /fm/regions 0
}

@test "hosts that add at the same moment both succeed; without ZooKeeper nothing changes anywhere" {
	zk_start z
	mc_start a
	with=(--store "memcached:${MC_AT[a]}" --registry "$(zk_uri z)")
	start_faultd -v "${with[@]}"
	second_host -v "${with[@]}"
	for name in b c d e; do
		mc_start $name
	done
	for pair in 'b c' 'd e'; do
		# shellcheck disable=SC2086 # two words
		set -- $pair
		change "$FM_RUN_DIR" --add-server "${MC_AT[$1]}" 3>&- &
		one=$!
		change "$FM_RUN_DIR_2" --add-server "${MC_AT[$2]}" 3>&- &
		two=$!
		wait $one
		wait $two
		wait_for 60 member_line "$1" member
		wait_for 60 member_line "$2" member
	done
	[ "$(epoch)" -eq 5 ]
	for dir in "$FM_RUN_DIR" "$FM_RUN_DIR_2"; do
		wait_for 60 goes_by "$dir" 5
		[ "$(figure "$dir" '[.stores[] | select(.role == "member")] | length')" -eq 5 ]
	done
	zk_kill z
	mc_start f
	one_line 3 "the registry is away: not changed" evict "$FM_RUN_DIR" --add-server "${MC_AT[f]}"
	one_line 3 "the registry is away: not changed" evict "$FM_RUN_DIR_2" --drain-server "${MC_AT[b]}"
	for dir in "$FM_RUN_DIR" "$FM_RUN_DIR_2"; do
		lacks "$dir" f
		role_is "$dir" member b
	done
	zk_run z
	zk_serves z
	change "$FM_RUN_DIR" --add-server "${MC_AT[f]}"
	wait_for 60 role_is "$FM_RUN_DIR_2" member f
	# The last one cannot go.
	for name in a b c d e; do
		change "$FM_RUN_DIR" --drain-server "${MC_AT[$name]}"
		wait_for 60 no_line $name
	done
	one_line 1 "is the last server of the store" evict "$FM_RUN_DIR" --drain-server "${MC_AT[f]}"
	one_line 1 "no such server" evict "$FM_RUN_DIR" --drain-server /no/such.sock
	one_line 1 "cannot be reached" evict "$FM_RUN_DIR" --add-server "$FM_TMP/no.sock"
	stop_faultd
	stop_second_host
}

@test "a drained server stays until a dead host's keys are deleted there, too" {
	zk_start z
	mc_start a
	mc_start b
	with=(--local 256p --registry "$(zk_uri z)?grace=2&timeout=4000")
	start_faultd -v "${with[@]}" --store "memcached:$(addresses a b)"
	# The second host's --store does not name a: it knows it by the registry alone.
	second_host -v "${with[@]}" --store "memcached:${MC_AT[b]}"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	id=$(figure "$FM_RUN_DIR" '.regions[0].id')
	wait_for 60 says "/fm/regions/$id" epoch=1
	kill -STOP "${MC_PID[a]}"
	kill -KILL "$FAULTD_PID" "${LOST_PID[one]}"
	wait "$FAULTD_PID" "${LOST_PID[one]}" || true
	change "$FM_RUN_DIR_2" --drain-server "${MC_AT[a]}" 3>&- &
	drain=$!
	track $drain
	wait_for 60 faultd_said "region $id: not collected yet"
	# The living host has nothing there; the dead one still has.
	wait_for 60 stat_is "$FM_RUN_DIR_2" '.registry.settled == 2 and .registry.oldest == 1 and .registry.behind == $h' --arg h "$(host_id)"
	alive $drain
	wait_for 60 member_line a drained
	wait_for 60 zk_has z "/fm/regions/$id"
	kill -CONT "${MC_PID[a]}"
	wait_for 120 gone $drain
	wait $drain
	wait_for 60 no_line a
	wait_for 60 zk_lacks z "/fm/regions/$id"
	faultd_said "region $id: collected: [1-9]"
	mcctl dump "$FM_TMP/dump" "${MC_AT[a]}"
	run ! grep -qa "fm$id" "$FM_TMP/dump"
	stop_second_host
}

@test "a registry that knows the only server by another name: its pages are moved to where they are, and none is deleted" {
	zk_start z
	mc_start a
	start_faultd -v --store "memcached:${MC_AT[a]}" --local 256p
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	# Two paths: no address tells that they are one.
	ln -s "${MC_AT[a]}" "$FM_TMP/alias.sock"
	second_host --store "memcached:$FM_TMP/alias.sock" --registry "$(zk_uri z)"
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	start_faultd -v --store "memcached:${MC_AT[a]}" --local 256p --registry "$(zk_uri z)"
	wait_for 60 goes_by "$FM_RUN_DIR" 1
	wait_for 60 lacks "$FM_RUN_DIR" a
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	stop_faultd
	stop_second_host
}
