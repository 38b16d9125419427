#!/usr/bin/env bats
# Three store hosts and a VM host, each in a network namespace of its own, and links that are cut: for a moment, for good, silently, in
# one direction. Every word of the memory is checked meanwhile.

load helper
load memcached
load netns

setup_file() {
	mc_build
}

setup() {
	fm_setup
	if ! net_possible; then
		[ "${CI-}" != true ] || {
			echo "$NET_WHY, and CI=true" >&2
			return 1
		}
		skip "$NET_WHY"
	fi
	net_start a b c vm
	for name in a b c; do
		net_mc_start "$name"
	done
}

# server STATE NAME: what fm-stat stores says of it
server() {
	"$FM_BIN/fm-stat" stores > "$FM_TMP/stores" && grep -qE "^$1 .* memcached://${MC_AT[$2]}$" "$FM_TMP/stores"
}

settled() {
	"$FM_BIN/fm-stat" -j | jq -e --argjson least "$1" \
		'.placement.epoch >= $least and .placement.pages_left == 0 and .placement.epochs == 1' > /dev/null
}

epoch() {
	"$FM_BIN/fm-stat" -j | jq .placement.epoch
}

# moved_on N: the torture has made N more page-ins and write-backs than at the last call.
worked() {
	[ "$(region_stat torture faults_store)" -ge "$page_ins" ] && [ "$(region_stat torture store_puts)" -ge "$puts" ]
}
works() {
	page_ins=$(($(region_stat torture faults_store) + $1)) puts=$(($(region_stat torture store_puts) + $1))
	wait_for 60 worked || {
		"$FM_BIN/fm-stat" -j >&2
		cat "$FM_TMP/faultd.log" >&2
		return 1
	}
	[ "$(region_stat torture pages_lost)" -eq 0 ]
}

longest_us() {
	sed -n 's/^torture: longest operation \([0-9]*\) us$/\1/p' "$FM_TMP/torture.log"
}

end_torture() {
	[ "$(region_stat torture pages_lost)" -eq 0 ]
	kill -TERM "$TORTURE_PID"
	torture_end 120
	wait_for 20 no_regions
}

@test "R=2, a host's link cut for a moment, then for long, then mended: 0 wrong words, 0 lost; fm-stat says down and up" {
	net_faultd vm --local 512p --store "memcached://$(addresses a b c)?timeout=500&away=3" --replicas 2
	torture_start 600 --size $((16 << 20))
	wait_for 20 settled 1
	works 500

	net_down b
	wait_for 20 server down b
	works 500
	net_up b
	wait_for 20 server up b
	# What it missed meanwhile it has again.
	wait_for 60 settled 2
	works 500

	before=$(epoch)
	net_down b
	wait_for 20 server down b
	wait_for 60 settled $((before + 1))
	works 500
	net_up b
	wait_for 20 server up b
	wait_for 60 settled $((before + 2))
	works 500
	end_torture
	stop_faultd
}

@test "R=2, packets silently dropped, in both directions and in one: no operation waits as long as the cut lasts" {
	net_faultd vm --local 512p --store "memcached://$(addresses a b c)?timeout=500&away=600" --replicas 2
	torture_start 600 --size $((16 << 20))
	wait_for 20 settled 1
	works 500
	shortest=999999999 n=1
	for cut in 'b to from' 'c from'; do
		read -ra ways <<< "$cut"
		start=${EPOCHREALTIME/./}
		for way in "${ways[@]:1}"; do
			net_drop "${ways[0]}" "$way"
		done
		wait_for 20 server down "${ways[0]}"
		works 300
		sleep 5 # the cut is longer than any operation may take
		works 300
		for way in "${ways[@]:1}"; do
			net_pass "${ways[0]}" "$way"
		done
		took=$((${EPOCHREALTIME/./} - start))
		echo "cut $cut: $took us"
		[ "$took" -ge "$shortest" ] || shortest=$took
		wait_for 30 server up "${ways[0]}"
		# Before the next one is cut off, the one before must have the copies that it missed.
		n=$((n + 1))
		wait_for 60 settled "$n"
	done
	end_torture
	echo "longest operation $(longest_us) us"
	# Of a fault: one time-out of its own get, one of a batch before it, two of a write-back (put, delete) it waits for to have room.
	[ "$(longest_us)" -lt "$shortest" ]
	stop_faultd
}

@test "R=2, what was written while a host was cut off for a moment has two copies again: another one may then die" {
	net_faultd vm --local 128p --store "memcached://$(addresses a b)?timeout=300&away=600" --replicas 2
	lost_start one --size $((8 << 20))
	net_down b
	wait_for 20 server down b
	lost_say one 60 fill
	net_up b
	wait_for 20 server up b
	wait_for 60 both_hold_all
	net_down a
	wait_for 20 server down a
	lost_say one 120 check
	[ "$(lost_number right)" -eq 2048 ]
	[ "$(region_stat one pages_lost)" -eq 0 ]
	net_up a
	wait_for 20 server up a
	lost_end one
	wait_for 20 mc_empty a b
	stop_faultd
}

both_hold_all() {
	local away
	away=$(region_stat one remote_pages)
	[ "$away" -gt 1500 ] && [ "$(mc_items a)" -ge "$away" ] && [ "$(mc_items b)" -ge "$away" ]
}
