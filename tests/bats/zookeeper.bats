#!/usr/bin/env bats
# Cluster state in real ZooKeeper servers: region ids and records, servers and sessions that die, hosts that die.

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

# The id of the region of that name.
region_id() {
	"$FM_BIN/fm-stat" --run-dir "${2:-$FM_RUN_DIR}" -j | jq -r --arg n "$1" '.regions[] | select(.name == $n) | .id'
}

has_region() {
	[ -n "$(region_id "$1")" ]
}

# refused STATUS TEXT ARGS...: fm-faultd does not start, with that exit status and one line that has that text.
refused() {
	local want=$1 text=$2
	shift 2
	run timeout 30 "$FM_BIN/fm-faultd" --run-dir "$FM_TMP/refused" --store "dir:$FM_TMP/store" "$@"
	echo "$status: $output"
	[ "$status" -eq "$want" ]
	[ "${#lines[@]}" -eq 1 ]
	[[ $output == "fm-faultd: --registry: "*"$text"* ]]
}

# A client that cannot register says why.
no_new_regions() {
	run timeout 20 "$BATS_FILE_TMPDIR/lost" --name late --size $((1 << 20)) < /dev/null
	echo "$output"
	[ "$status" -ne 0 ]
	faultd_said 'registry is away: no new regions until it is back'
}

new_regions_work() {
	timeout 20 "$BATS_FILE_TMPDIR/lost" --name probe --size $((1 << 20)) < /dev/null > /dev/null 2>&1
}

# --- regions and hosts

@test "a host has a node, a region a record, and both go with them" {
	zk_start z
	start_faultd -v --registry "$(zk_uri z)"
	zk z get "/fm/hosts/$(host_id)" | tee "$FM_TMP/host"
	grep -qx "hostname=$(hostname)" "$FM_TMP/host"
	grep -qx "pid=$FAULTD_PID" "$FM_TMP/host"
	grep -qE '^start=[0-9]+$' "$FM_TMP/host"
	lost_start one --size $((1 << 20))
	lost_start two --size $((2 << 20))
	id=$(region_id two)
	zk z get "/fm/regions/$id" | tee "$FM_TMP/record"
	grep -qx "host=$(host_id)" "$FM_TMP/record"
	grep -qx 'pages=512' "$FM_TMP/record"
	grep -qx "store=dir:$FM_TMP/store" "$FM_TMP/record"
	grep -qE '^epoch=[0-9]+$' "$FM_TMP/record"
	grep -qE '^created=[0-9]+$' "$FM_TMP/record"
	zk_count z /fm/regions 2
	[ "$(region_id one)" != "$id" ]
	lost_end two
	wait_for 10 zk_lacks z "/fm/regions/$id"
	lost_end one
	wait_for 10 zk_count z /fm/regions 0
	id=$(host_id)
	stop_faultd
	zk_lacks z "/fm/hosts/$id"
	zk_lacks z "/fm/stopped/$id"
	# The same host comes back under the same id.
	start_faultd --registry "$(zk_uri z)"
	zk_has z "/fm/hosts/$id"
	stop_faultd
}

@test "everything lies below the chroot" {
	zk_start z
	mc_start a
	zk z create /cloud ''
	zk z create /cloud/fm-test ''
	start_faultd -v --registry "$(zk_uri z)/cloud/fm-test" --store "memcached:${MC_AT[a]}"
	zk_has z "/cloud/fm-test/fm/hosts/$(host_id)"
	wait_for 10 zk_has z /cloud/fm-test/fm/store/members
	zk_has z /cloud/fm-test/fm/store/epoch
	zk_lacks z /fm
	stop_faultd
}

@test "what somebody removed is made again" {
	zk_start z
	start_faultd --registry "$(zk_uri z)?grace=2"
	lost_start one --size $((1 << 20))
	id=$(region_id one)
	zk z rm "/fm/hosts/$(host_id)"
	wait_for 10 zk_has z "/fm/hosts/$(host_id)"
	zk z rm "/fm/regions/$id"
	wait_for 10 zk_has z "/fm/regions/$id"
	wait_for 5 faultd_said "had no record, $id for one: made again"
	lost_end one
	stop_faultd
}

@test "an fm-faultd that is killed keeps its host's id, and its regions their records" {
	zk_start z
	start_faultd --registry "$(zk_uri z)"
	lost_start one --size $((1 << 20))
	id=$(region_id one) host=$(host_id)
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	start_faultd --registry "$(zk_uri z)"
	[ "$(host_id)" = "$host" ]
	wait_for 10 zk_has z "/fm/regions/$id"
	zk z get "/fm/hosts/$host" | grep -qx "pid=$FAULTD_PID"
	# The node of the session before does not take the new one with it when that session ends.
	wait_for 20 zk_count z /fm/hosts 1
	zk z get "/fm/hosts/$host" | grep -qx "pid=$FAULTD_PID"
	lost_end one
	wait_for 10 zk_count z /fm/regions 0
	stop_faultd
}

@test "no region's name can be read in the traffic with ZooKeeper or in its files" {
	zk_start z
	zk_link l z
	mc_start a
	start_faultd --registry "$(zk_uri l)" --store "memcached:${MC_AT[a]}"
	lost_start unmistakable-name --size $((1 << 20))
	id=$(region_id unmistakable-name)
	wait_for 5 zk_has z "/fm/regions/$id"
	lost_end unmistakable-name
	wait_for 5 zk_lacks z "/fm/regions/$id"
	stop_faultd
	# The capture does hold what was said.
	grep -qa "$id" "$FM_TMP/l.capture"
	run ! grep -qa unmistakable-name "$FM_TMP/l.capture"
	run ! grep -rqa unmistakable-name "$FM_TMP/zk-z"
}

@test "with auth= nobody else reads or writes what the hosts keep there, and who is not of them is refused" {
	zk_start z
	mc_start a
	echo hosts:secret-of-ours > "$FM_TMP/auth"
	refused 1 'may be read by others: chmod 600' --registry "$(zk_uri z)?auth=$FM_TMP/auth"
	chmod 600 "$FM_TMP/auth"
	zk_link l z
	with=(--store "memcached:${MC_AT[a]}" --registry "$(zk_uri l)?timeout=2000&auth=$FM_TMP/auth")
	start_faultd -v "${with[@]}"
	lost_start one --size $((1 << 20))
	id=$(region_id one)
	for path in /fm /fm/hosts "/fm/hosts/$(host_id)" "/fm/regions/$id" /fm/store/members /fm/store/epoch; do
		echo "$path"
		[ "$(zk z get "$path" 2>&1)" = 'not allowed' ]
		[ "$(zk z set "$path" x 2>&1)" = 'not allowed' ]
	done
	[ "$(zk z create /fm/regions/00000000000000ff x 2>&1)" = 'not allowed' ]
	run ! env ZK_AUTH=hosts:guess "$FM_ROOT/tests/proxy/zkctl.py" "${ZK_AT[z]}" get /fm/store/members
	export ZK_AUTH=hosts:secret-of-ours
	zk z get /fm/store/members | grep -q "^${MC_AT[a]} member"
	# Another server of the ensemble, or the same one again: it is told anew.
	zk_kill z
	zk_run z
	zk_serves z
	wait_for 30 new_regions_work
	second_host "${with[@]}"
	stop_second_host
	unset ZK_AUTH
	refused 1 'is not open to us: is ?auth= what the other hosts have?' --registry "$(zk_uri z)"
	echo hosts:guess > "$FM_TMP/auth2"
	chmod 600 "$FM_TMP/auth2"
	refused 1 'is not open to us' --registry "$(zk_uri z)?auth=$FM_TMP/auth2"
	echo nonsense > "$FM_TMP/auth2"
	refused 1 'is not one line user:password' --registry "$(zk_uri z)?auth=$FM_TMP/auth2"
	refused 1 'No such file' --registry "$(zk_uri z)?auth=$FM_TMP/none"
	refused 2 'must be auth=/path/of/a/file' --registry "$(zk_uri z)?auth=secret"
	run ! grep -rq secret-of-ours "$FM_TMP/faultd.log" "$FM_RUN_DIR"
	lost_end one
	stop_faultd
}

@test "--check says whether the registry can be used" {
	zk_start z
	run "$FM_BIN/fm-faultd" --check --run-dir "$FM_TMP/refused" --store "dir:$FM_TMP/store" --registry "$(zk_uri z)"
	echo "$output"
	[[ $output == *"registry       ok    zookeeper://"* ]]
	run "$FM_BIN/fm-faultd" --check --run-dir "$FM_TMP/refused" --store "dir:$FM_TMP/store" --registry "$(zk_uri z)/none"
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == *"registry       FAIL  /none: no such znode"* ]]
}

@test "--check looks at the servers of --store and at those that the registry has" {
	zk_start z
	mc_start a
	mc_start b
	start_faultd --store "memcached:${MC_AT[a]}" --registry "$(zk_uri z)"
	wait_for 10 zk_has z /fm/store/members
	run "$FM_BIN/fm-faultd" --check --run-dir "$FM_TMP/other" --store "memcached:${MC_AT[b]}" --registry "$(zk_uri z)"
	echo "$output"
	[[ $output == *"store          ok    memcached:${MC_AT[b]}"* ]]
	[[ $output == *"registry store ok    the registry's members: "* ]]
	stop_faultd
	mc_kill a
	run "$FM_BIN/fm-faultd" --check --run-dir "$FM_TMP/other" --store "memcached:${MC_AT[b]}" --registry "$(zk_uri z)"
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == *"store          ok    memcached:${MC_AT[b]}"* ]]
	[[ $output == *"registry store FAIL  ${MC_AT[a]}: cannot be reached"* ]]
}

@test "bad registries: one line, exit 2 or 3" {
	refused 2 'unknown registry; known are none zookeeper://' --registry etcd://x
	refused 2 'empty server address' --registry zookeeper://
	refused 2 'a port is 1 to 65535' --registry zookeeper://a:99999
	refused 2 'not a path of a znode' --registry zookeeper://a//b
	refused 2 'unknown option' --registry 'zookeeper://a?gracious=1'
	refused 3 'no server answers' --registry zookeeper://127.0.0.1:1
	refused 3 'no such host' --registry zookeeper://no-such-host.invalid:2181
	mc_start a -l 127.0.0.1 -p -1
	refused 3 'no server answers' --registry "zookeeper://${MC_AT[a]}"
	zk_start z
	refused 3 '/nowhere: no such znode (chroot): make it first' --registry "$(zk_uri z)/nowhere"
	mkdir "$FM_TMP/run"
	echo nonsense > "$FM_TMP/run/host.id"
	run "$FM_BIN/fm-faultd" --run-dir "$FM_TMP/run" --store "dir:$FM_TMP/store" --registry "$(zk_uri z)"
	[ "$status" -eq 1 ]
	[[ $output == *"host.id: is not a host's id: remove it" ]]
}

# --- ZooKeeper dies

@test "ZooKeeper killed and started again under load: no fault fails, new regions are refused, and it comes back" {
	zk_start z
	mc_start a
	start_faultd -v --local 512p --store "memcached:${MC_AT[a]}" --registry "$(zk_uri z)?timeout=4000"
	lost_start short --size $((1 << 20))
	id=$(region_id short)
	torture_start 300 --size $((16 << 20)) --name tortured
	wait_for 20 has_region tortured
	zk_kill z
	wait_for 20 faultd_said 'registry: away'
	no_new_regions
	# One that ends meanwhile is forgotten later.
	lost_end short
	alive "$TORTURE_PID"
	zk_run z
	zk_serves z
	wait_for 30 new_regions_work
	wait_for 20 zk_lacks z "/fm/regions/$id"
	zk_has z "/fm/regions/$(region_id tortured)"
	zk_has z "/fm/hosts/$(host_id)"
	kill -TERM "$TORTURE_PID"
	torture_end 60
	wait_for 20 zk_count z /fm/regions 0
	stop_faultd
}

@test "ZooKeeper that hangs keeps nobody waiting: a new region is refused after 2 s, fm-faultd ends when told" {
	zk_start z
	start_faultd -v --local 512p --registry "$(zk_uri z)?timeout=10000"
	torture_start 300 --size $((16 << 20)) --name tortured
	wait_for 20 has_region tortured
	kill -STOP "${ZK_PID[z]}"
	start=${EPOCHREALTIME/./}
	no_new_regions
	took=$((${EPOCHREALTIME/./} - start))
	echo "refused after $took us"
	[ "$took" -gt 1500000 ]
	alive "$TORTURE_PID"
	kill -CONT "${ZK_PID[z]}"
	wait_for 30 new_regions_work
	kill -STOP "${ZK_PID[z]}"
	kill -TERM "$TORTURE_PID"
	torture_end 60
	stop_faultd
}

@test "an ensemble loses its leader, then all of it, under load: no fault fails" {
	zk_start_ensemble z1 z2 z3
	mc_start a
	start_faultd -v --local 512p --store "memcached:${MC_AT[a]}" --registry "$(zk_uri z1 z2 z3)?timeout=8000"
	torture_start 300 --size $((16 << 20)) --name tortured
	wait_for 20 has_region tortured
	wait_for 20 zk_leader
	first=$ZK_LEADER
	zk_kill "$first"
	unset "ZK_PID[$first]"
	wait_for 60 zk_leader
	echo "$first was the leader, now it is $ZK_LEADER"
	wait_for 60 new_regions_work
	zk_has "$ZK_LEADER" "/fm/regions/$(region_id tortured)"
	alive "$TORTURE_PID"
	zk_kill "${!ZK_PID[@]}"
	wait_for 20 faultd_said 'registry: away'
	no_new_regions
	for name in z1 z2 z3; do
		zk_run "$name"
	done
	for name in z1 z2 z3; do
		zk_serves "$name"
	done
	wait_for 60 new_regions_work
	wait_for 60 zk_has z1 "/fm/hosts/$(host_id)"
	alive "$TORTURE_PID"
	kill -TERM "$TORTURE_PID"
	torture_end 60
	stop_faultd
}

@test "a session that expires is made anew: host node and records are there again" {
	zk_start z
	start_faultd -v --registry "$(zk_uri z)?timeout=1000"
	lost_start one --size $((1 << 20))
	id=$(region_id one)
	kill -STOP "$FAULTD_PID"
	wait_for 20 zk_lacks z "/fm/hosts/$(host_id)"
	kill -CONT "$FAULTD_PID"
	wait_for 20 zk_has z "/fm/hosts/$(host_id)"
	wait_for 20 faultd_said 'the session had expired'
	zk_has z "/fm/regions/$id"
	wait_for 20 new_regions_work
	lost_end one
	wait_for 20 zk_count z /fm/regions 0
	stop_faultd
}

@test "regions are taken over while ZooKeeper is away" {
	zk_start z
	start_faultd -v --registry "$(zk_uri z)?timeout=2000"
	lost_start one --size $((1 << 20))
	lost_say one 20 fill
	id=$(region_id one)
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	zk_kill z
	start_faultd -v --registry "$(zk_uri z)?timeout=2000"
	lost_say one 20 check
	[ "$(lost_number right)" -eq 256 ]
	no_new_regions
	zk_run z
	zk_serves z
	wait_for 30 new_regions_work
	zk_has z "/fm/regions/$id"
	lost_end one
	wait_for 20 zk_count z /fm/regions 0
	stop_faultd
}

# --- hosts die

@test "the keys and records of a host that died are deleted by another one, those of others are not" {
	zk_start z
	mc_start a
	mc_start b
	with=(--store "memcached:$(addresses a b)" --replicas 2 --local 256p --registry "$(zk_uri z)?grace=2&timeout=2000")
	start_faultd -v "${with[@]}"
	second_host "${with[@]}"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	lost_start three --size $((8 << 20))
	lost_say three 30 fill
	FM_RUN_DIR=$FM_RUN_DIR_2 lost_start two --size $((8 << 20))
	lost_say two 30 fill
	kept=$(mc_items a b)
	id=$(region_id one) id3=$(region_id three) host=$(host_id)
	# The host dies: its daemons and its clients.
	kill -KILL "$FAULTD_PID" "${LOST_PID[one]}" "${LOST_PID[three]}"
	wait "$FAULTD_PID" "${LOST_PID[one]}" "${LOST_PID[three]}" || true
	wait_for 60 zk_lacks z "/fm/regions/$id"
	wait_for 60 zk_lacks z "/fm/regions/$id3"
	zk_lacks z "/fm/collect/$host"
	no_keys_of a "$id"
	no_keys_of b "$id"
	no_keys_of a "$id3"
	no_keys_of b "$id3"
	faultd_said "host $host is gone: region $id: collected: [1-9]"
	# The second host's own region is whole.
	zk_count z /fm/regions 1
	echo "$kept items before, $(mc_items a b) after"
	[ "$(mc_items a b)" -gt 1000 ]
	lost_say two 30 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end two
	wait_for 10 zk_count z /fm/regions 0
	stop_second_host
}

# no_keys_of SERVER REGION
no_keys_of() {
	mcctl dump "$FM_TMP/dump" "${MC_AT[$1]}"
	run ! grep -qa "fm$2" "$FM_TMP/dump"
}

@test "a host that was stopped in order and still has regions is not collected" {
	zk_start z
	mc_start a
	with=(--store "memcached:${MC_AT[a]}" --local 256p --registry "$(zk_uri z)?grace=1&timeout=8000")
	start_faultd -v "${with[@]}"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	host=$(host_id)
	stop_faultd
	zk_has z "/fm/stopped/$host"
	second_host "${with[@]}"
	sleep 6 # grace, life signs and two looks round: nothing must happen
	run ! faultd_said collected
	zk_count z /fm/regions 1
	start_faultd -v "${with[@]}"
	wait_for 10 zk_lacks z "/fm/stopped/$host"
	lost_say one 30 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	stop_faultd
	stop_second_host
}

@test "a host that is cut off from ZooKeeper alone is not collected: it still reaches its store" {
	zk_start z
	zk_link l z
	mc_start a
	with=(--store "memcached:${MC_AT[a]}" --local 256p)
	start_faultd -v "${with[@]}" --registry "$(zk_uri l)?grace=2&timeout=1000"
	second_host "${with[@]}" --registry "$(zk_uri z)?grace=2&timeout=1000"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	host=$(host_id)
	link_cut l
	wait_for 20 zk_lacks z "/fm/hosts/$host"
	wait_for 30 faultd_said 'not collected yet: the host still reaches the store'
	lost_say one 30 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	stop_faultd
	# Now it is gone altogether: what it could not tell the registry any more is collected.
	wait_for 60 zk_count z /fm/regions 0
	stop_second_host
}

@test "nor by one with another store, which does not know where its signs of life are; nor while a server is silent that may have them" {
	local s host
	zk_start z
	zk_link l z
	for s in a b c d; do
		mc_start "$s"
	done
	start_faultd -v --local 256p --store "memcached:$(addresses a b c d)" --registry "$(zk_uri l)?grace=2&timeout=1000"
	stop_faultd
	rm -rf "$FM_RUN_DIR"
	# It says --store d, and leaves its signs of life on the first three of the membership.
	start_faultd -v --local 256p --store "memcached:$(addresses d)" --registry "$(zk_uri l)?grace=2&timeout=1000"
	second_host --registry "$(zk_uri z)?grace=2&timeout=1000" --store "dir:$FM_TMP/store2"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	host=$(host_id)
	link_cut l
	wait_for 20 zk_lacks z "/fm/hosts/$host"
	wait_for 30 faultd_said "not collected yet: its servers are not this host's store"
	stop_second_host
	rm -rf "$FM_RUN_DIR_2"
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	# It dies; one who knows the servers hears nothing of one of them.
	second_host --registry "$(zk_uri z)?grace=2&timeout=1000" --store "memcached:$(addresses d)"
	kill -STOP "${MC_PID[a]}"
	kill -KILL "${LOST_PID[one]}" "$FAULTD_PID"
	wait_for 60 faultd_said "not collected yet: ${MC_AT[a]}: does not say whether the host still reaches the store"
	kill -CONT "${MC_PID[a]}"
	wait_for 60 zk_count z /fm/regions 0
	stop_second_host
}

@test "a host that reboots is collected by itself, under its new id" {
	zk_start z
	mc_start a
	with=(--store "memcached:${MC_AT[a]}" --local 256p --registry "$(zk_uri z)?grace=2&timeout=1000")
	start_faultd -v "${with[@]}"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	id=$(region_id one)
	kill -KILL "$FAULTD_PID" "${LOST_PID[one]}"
	wait "$FAULTD_PID" "${LOST_PID[one]}" || true
	wait_for 10 evictor_gone
	rm -rf "$FM_RUN_DIR" # it was on tmpfs
	start_faultd -v "${with[@]}"
	wait_for 60 zk_lacks z "/fm/regions/$id"
	wait_for 10 mc_has_only_life a
	stop_faultd
}

# Its lock can be had.
evictor_gone() {
	"${FM_PYTHON:-python3}" -c 'import fcntl, sys; fcntl.lockf(open(sys.argv[1], "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)' \
		"$FM_RUN_DIR/evict.lock" 2> /dev/null
}

# Nothing but signs of life is left.
mc_has_only_life() {
	mcctl dump "$FM_TMP/dump" "${MC_AT[$1]}" > /dev/null && ! grep -qaE 'fm[0-9a-f]{35}' "$FM_TMP/dump"
}
