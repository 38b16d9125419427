#!/usr/bin/env bats
# What a table of servers cannot know: addresses that refuse connections though the server lives, and what an older table said.

bats_require_minimum_version 1.5.0
load helper
load memcached

setup_file() {
	mc_build
}

server_is() {
	"$FM_BIN/fm-stat" -j | jq -e --arg state "$1" --arg at "${MC_AT[$2]}" \
		'.stores[] | select(.uri == "memcached:" + $at) | .state == $state' > /dev/null
}

# Every page that the store holds was moved to the newest epoch, which is at least $1.
settled() {
	"$FM_BIN/fm-stat" -j | jq -e --argjson least "$1" \
		'.placement.epoch >= $least and .placement.pages_left == 0 and .placement.epochs == 1' > /dev/null
}

epoch() {
	"$FM_BIN/fm-stat" -j | jq .placement.epoch
}

epoch_is_over() {
	[ "$(epoch)" -gt "$1" ]
}

# So many pages could not be moved to the newest epoch.
pages_wait() {
	[ "$("$FM_BIN/fm-stat" -j | jq .placement.pages_left)" -ge "$1" ]
}

# To whoever connects, its address refuses; the server lives on.
hide() {
	mv "${MC_AT[$1]}" "${MC_AT[$1]}.away"
}
show() {
	mv "${MC_AT[$1]}.away" "${MC_AT[$1]}"
}

kill_faultd() {
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	wait_for 10 no_evictor
}

no_evictor() {
	flock -n "$FM_RUN_DIR/evict.lock" true
}

@test "R=1: a server that refuses connections for longer than ?gone= and comes back: what was not touched meanwhile is there" {
	mc_start a
	mc_start b
	start_faultd --local 256p --store "memcached:$(addresses a b)?gone=1"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	# A connection that is there already goes on: let all be made anew.
	hide b
	kill_faultd
	start_faultd --local 256p --store "memcached:$(addresses a b)?gone=1"
	wait_for 15 server_is dead b
	# The evictor has looked at all of them, and left those of b where they are.
	wait_for 20 pages_wait 500
	[ "$(region_stat one pages_lost)" -eq 0 ]
	show b
	wait_for 15 server_is up b
	wait_for 30 settled 2
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	[ "$(lost_number lost)" -eq 0 ]
	lost_end one
	wait_for 20 no_regions
	stop_faultd
}

@test "R=1: a server that refuses connections is drained: what it held is given up, and the epochs go on" {
	mc_start a
	mc_start b
	start_faultd --local 256p --store "memcached:$(addresses a b)?gone=1"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	mc_kill b
	wait_for 15 server_is dead b
	wait_for 20 pages_wait 500
	timeout 60 "$FM_BIN/fm-evict" --drain-server "${MC_AT[b]}"
	wait_for 30 settled 2
	lost_say one 60 check
	[ "$(lost_number lost)" -ge 500 ]
	[ "$(lost_number wrong)" -eq 0 ]
	[ "$(region_stat one pages_lost)" -eq "$(lost_number lost)" ]
	lost_end one
	stop_faultd
}

@test "daemon.state is lost: the first epochs of the new table are taken for none of the old" {
	mc_start a
	mc_start b
	mc_start c
	start_faultd --local 256p --store "memcached:$(addresses a b)"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	"$FM_BIN/fm-evict" --add-server "${MC_AT[c]}"
	wait_for 30 settled 2
	kill_faultd
	rm "$FM_RUN_DIR/daemon.state"
	# Nobody moves the pages, and a second epoch without b is opened.
	start_faultd --no-evictor --local 256p --store "memcached:$(addresses a b c)"
	grep -q 'daemon.state: is new, but there are regions' "$FM_TMP/faultd.log"
	first=$(epoch)
	run timeout 3 "$FM_BIN/fm-evict" --drain-server "${MC_AT[b]}"
	wait_for 10 epoch_is_over "$first"
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	stop_faultd
}

@test "daemon.state is lost, and there are more servers than a page can have copies: each is asked before a page is lost" {
	local name names=(a b c d e f g h i j k)
	for name in "${names[@]}"; do
		mc_start "$name" -m 64
	done
	start_faultd --local 256p --store "memcached:$(addresses a b)"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	kill_faultd
	rm "$FM_RUN_DIR/daemon.state"
	start_faultd --no-evictor --local 256p --store "memcached:$(addresses "${names[@]}")"
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	kill_faultd
	start_faultd --local 256p --store "memcached:$(addresses "${names[@]}")"
	wait_for 30 settled 1
	lost_end one
	wait_for 20 no_regions
	stop_faultd
}

@test "another --replicas than before: what is stored gets as many copies, more or fewer, and no page is lost meanwhile" {
	mc_start a
	mc_start b
	start_faultd --local 256p --store "memcached:$(addresses a b)" --replicas 2
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	kill_faultd
	# One of the two restarts empty: of half the pages the first copy is gone, and the second one counts.
	mc_kill a
	rm -f "${MC_AT[a]}"
	mc_start a
	start_faultd --no-evictor --local 256p --store "memcached:$(addresses a b)" --replicas 1
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	# Perhaps before it could open the epoch that is due.
	kill_faultd
	start_faultd --local 256p --store "memcached:$(addresses a b)" --replicas 1
	wait_for 30 settled 2
	away=$(region_stat one remote_pages)
	kill_faultd
	start_faultd --local 256p --store "memcached:$(addresses a b)" --replicas 2
	wait_for 30 settled 3
	wait_for 10 test "$(mc_items a)" -ge "$away"
	mc_kill a
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	stop_faultd
}

@test "a name service that does not answer holds nobody up: what needs it is refused, faults and SIGTERM are not" {
	mc_start a
	echo 'nameserver 127.0.0.1' > "$FM_TMP/resolv.conf"
	echo '127.0.0.1 localhost' > "$FM_TMP/hosts"
	# Whoever asks gets no answer: not even that nobody listens.
	cat > "$FM_TMP/inside" <<- 'EOF'
		mount --bind "$FM_TMP/resolv.conf" /etc/resolv.conf
		mount --bind "$FM_TMP/hosts" /etc/hosts
		ip link set lo up
		"$FM_PYTHON" -c 'import socket, time
		s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
		s.bind(("127.0.0.1", 53))
		time.sleep(600)' 3>&- &
		deaf=$!
		"$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "memcached:$1" --ready-fd 1 > "$FM_TMP/ready" 2> "$FM_TMP/faultd.log" 3>&- &
		faultd=$!
		for _ in {1..200}; do [ -s "$FM_TMP/ready" ] && break; sleep 0.1; done
		"$FM_BIN/fm-evict" --add-server no-such-host.example:11211 2> "$FM_TMP/said"
		echo "$?" >> "$FM_TMP/said"
		# A look-up is under way, and will be for seconds.
		"$FM_BIN/fm-evict" --add-server nor-this.example:11211 2>> "$FM_TMP/said" &
		kill -TERM "$faultd"
		for _ in {1..50}; do kill -0 "$faultd" 2> /dev/null || break; sleep 0.1; done
		kill -0 "$faultd" 2> /dev/null && echo 'it still runs' >> "$FM_TMP/said"
		kill -KILL "$faultd" 2> /dev/null
		kill "$deaf"
		wait
	EOF
	FM_PYTHON=$FM_PYTHON timeout 120 unshare -mn bash "$FM_TMP/inside" "${MC_AT[a]}"
	cat "$FM_TMP/said" "$FM_TMP/faultd.log"
	grep -q 'no-such-host.example:11211: cannot be resolved: the name service does not answer' "$FM_TMP/said"
	grep -qx 1 "$FM_TMP/said"
	run ! grep -q 'still runs' "$FM_TMP/said"
}
