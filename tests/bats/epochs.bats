#!/usr/bin/env bats
# Placement epochs: servers that die for good, come back empty, join and leave, while every word of the memory is checked.

bats_require_minimum_version 1.5.0
load helper
load memcached

setup_file() {
	mc_build
	build_clients
}

# Every page that the store holds was moved to the newest epoch, which is at least $1.
settled() {
	"$FM_BIN/fm-stat" -j | jq -e --argjson least "$1" \
		'.placement.epoch >= $least and .placement.pages_left == 0 and .placement.epochs == 1' > /dev/null
}

epoch() {
	"$FM_BIN/fm-stat" -j | jq .placement.epoch
}

# $1 says what the state of the server $2 must be.
server_is() {
	"$FM_BIN/fm-stat" -j | jq -e --arg state "$1" --arg at "${MC_AT[$2]}" \
		'.stores[] | select(.uri == "memcached:" + $at) | .state == $state' > /dev/null
}

all_here() {
	[ "$(region_stat "$1" remote_pages)" -eq 0 ]
}

nothing_lost() {
	[ "$(region_stat torture pages_lost)" -eq 0 ]
}

@test "R=2: one server dies for good, then another; one joins, one is drained: 0 wrong words, 0 lost" {
	local name
	for name in a b c d; do
		mc_start "$name"
	done
	start_faultd --local 1024p --store "memcached:$(addresses a b c)?away=1&gone=1" --replicas 2
	torture_start 25 --size $((32 << 20))
	wait_for 10 settled 1

	mc_kill a
	wait_for 15 server_is dead a
	wait_for 30 settled 2
	nothing_lost
	# What a and b held together is on b and c by now: else this loses pages.
	mc_kill b
	rm -f "${MC_AT[a]}"
	mc_start a
	wait_for 15 server_is up a
	wait_for 15 server_is dead b
	wait_for 30 settled $(($(epoch)))
	nothing_lost

	"$FM_BIN/fm-evict" --add-server "${MC_AT[d]}"
	wait_for 30 test "$(mc_items d)" -gt 0 || wait_for 30 settled $(($(epoch)))
	timeout 60 "$FM_BIN/fm-evict" --drain-server "${MC_AT[c]}"
	mc_kill c
	torture_end 90
	wait_for 10 no_regions
	wait_for 15 mc_empty a d
	stop_faultd
}

@test "a server that comes back empty gets its copies again" {
	mc_start a
	mc_start b
	start_faultd --local 256p --store "memcached:$(addresses a b)?away=1" --replicas 2
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	away=$(region_stat one remote_pages)
	before=$(epoch)
	mc_kill a
	rm -f "${MC_AT[a]}"
	mc_start a
	wait_for 30 settled $((before + 1))
	wait_for 10 test "$(mc_items a)" -ge "$away"
	# Now the other one may go.
	mc_kill b
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	stop_faultd
}

@test "one copy: pages that are here, clean, outlive a server that comes back empty" {
	local before
	mc_start a
	start_faultd --local 64M --store "memcached:$(addresses a)?away=1"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	"$FM_BIN/fm-evict" --all one
	lost_say one 60 check
	wait_for 10 all_here one
	before=$(epoch)
	mc_kill a
	rm -f "${MC_AT[a]}"
	mc_start a
	wait_for 30 settled $((before + 1))
	"$FM_BIN/fm-evict" --all one
	[ "$(region_stat one remote_pages)" -eq 2048 ]
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	[ "$(region_stat one pages_lost)" -eq 0 ]
	lost_end one
	stop_faultd
}

@test "a page that is moved is the value that it was, byte for byte: sealed anew under its generation, two would tell of each other" {
	local p pages=()
	mc_start a
	mc_start b
	start_faultd --local 64p --store "memcached:${MC_AT[a]}"
	# Between pages that do not compress LZ4 is tried now and then only: when a page is written as it was, and when it was moved, at other times.
	for ((p = 5; p < 1024; p += 23)); do
		pages+=("plain:$p:1")
	done
	start_client map:mixed:1024 fill:0:1024:7 "${pages[@]}" say:filled until:"$FM_TMP/go"
	client_says filled
	"$FM_BIN/fm-evict" --all mixed
	mcctl dump "$FM_TMP/before" "${MC_AT[a]}"
	"$FM_BIN/fm-evict" --add-server "${MC_AT[b]}"
	timeout 60 "$FM_BIN/fm-evict" --drain-server "${MC_AT[a]}"
	mcctl dump "$FM_TMP/after" "${MC_AT[b]}"
	python3 - "$FM_TMP/before" "$FM_TMP/after" 3>&- <<- 'P'
		import re, sys
		def load(name):
		    d, out = open(name, "rb").read(), {}
		    for m in re.finditer(rb"(fm[0-9a-f]{35})\nfmpg", d):
		        at = m.end() - 4
		        out[m[1]] = d[at:at + 40 + int.from_bytes(d[at + 16:at + 20], "little")]
		    return out
		a, b = map(load, sys.argv[1:])
		packed = sum(v[5] for v in a.values())
		print(len(a), "values,", packed, "compressed,", sum(a[k] != b.get(k) for k in a), "changed")
		sys.exit(len(a) != 1024 or not 0 < packed < 1024 or a != b)
	P
	stop_faultd
}

@test "epochs outlive fm-faultd" {
	mc_start a
	mc_start b
	mc_start c
	start_faultd --local 256p --store "memcached:$(addresses a b)" --replicas 1
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	"$FM_BIN/fm-evict" --add-server "${MC_AT[c]}"
	wait_for 30 settled 2
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	# The URI still names two servers; the table knows three.
	start_faultd --local 256p --store "memcached:$(addresses a b)" --replicas 1
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	wait_for 10 mc_empty a b c
	stop_faultd
}

@test "pages move at a bounded rate" {
	local began took moved
	mc_start a
	mc_start b
	start_faultd --local 256p --store "memcached:${MC_AT[a]}"
	lost_start one --size $((96 << 20))
	lost_say one 60 fill
	"$FM_BIN/fm-evict" --all one
	moved=$("$FM_BIN/fm-stat" -j | jq .placement.pages_moved)
	began=${EPOCHREALTIME/./}
	"$FM_BIN/fm-evict" --add-server "${MC_AT[b]}"
	timeout 100 "$FM_BIN/fm-evict" --drain-server "${MC_AT[a]}"
	took=$((${EPOCHREALTIME/./} - began))
	moved=$(($("$FM_BIN/fm-stat" -j | jq .placement.pages_moved) - moved))
	echo "# $moved pages moved in $((took / 1000)) ms" >&3
	# 64 MiB/s at most, that is 60 us a page.
	[ "$moved" -ge 24576 ]
	[ "$took" -ge $((moved * 55)) ]
	lost_say one 60 check
	[ "$(lost_number right)" -eq 24576 ]
	lost_end one
	stop_faultd
}

@test "fewer servers than copies: said by who drains one, and by fm-faultd, as long as it is so" {
	mc_start a
	mc_start b
	start_faultd --local 256p --store "memcached:$(addresses a b)" --replicas 2
	run --separate-stderr timeout 60 "$FM_BIN/fm-evict" --drain-server "${MC_AT[b]}"
	[ "$status" -eq 0 ]
	# shellcheck disable=SC2154 # set by run
	[ "$stderr" = 'fm-evict: the store has 1 servers for 2 copies of each page: as many are kept' ]
	wait_for 10 grep -q -- '--replicas: 2: the store has 1 server that takes pages: as many copies are kept' "$FM_TMP/faultd.log"
	run --separate-stderr timeout 60 "$FM_BIN/fm-evict" --add-server "${MC_AT[b]}"
	[ "$status" -eq 0 ]
	[ -z "$stderr" ]
	wait_for 10 grep -q -- '--replicas: 2: the store has as many servers again' "$FM_TMP/faultd.log"
	stop_faultd
}

@test "adding and draining: what cannot be done is said in one line" {
	mc_start a
	start_faultd --store "memcached:${MC_AT[a]}"
	run "$FM_BIN/fm-evict" --drain-server /no/such.sock
	[ "$status" -eq 1 ]
	[ "${#lines[@]}" -eq 1 ]
	[[ $output == *"no such server"* ]]
	run "$FM_BIN/fm-evict" --add-server nonsense
	[ "$status" -eq 1 ]
	[ "${#lines[@]}" -eq 1 ]
	[[ $output == *"host:port"* ]]
	run "$FM_BIN/fm-evict" --add-server
	[ "$status" -eq 2 ]
	run "$FM_BIN/fm-evict" --add-server a:1 --daemon
	[ "$status" -eq 2 ]
	[ "${#lines[@]}" -eq 1 ]
	stop_faultd
	start_faultd
	run "$FM_BIN/fm-evict" --add-server "${MC_AT[a]}"
	[ "$status" -eq 1 ]
	[ "${#lines[@]}" -eq 1 ]
	[[ $output == *"no servers"* ]]
	stop_faultd
	run "$FM_BIN/fm-evict" --add-server "${MC_AT[a]}"
	[ "$status" -eq 3 ] && [ "${#lines[@]}" -eq 1 ]
}

@test "an evictor that dies in the middle of a drain does not say that it is done: no page is left behind" {
	local evictor drain
	mc_start a
	mc_start b
	# One copy: what is left on a when it is killed is lost.
	start_faultd --local 256p --store "memcached:$(addresses a b)"
	lost_start one --size $((32 << 20))
	lost_say one 30 fill
	wait_for 10 settled 1
	wait_for 5 has_child "$FAULTD_PID"
	evictor=$(children_of "$FAULTD_PID")
	# It stands still while the epoch begins, and dies before it has moved a page.
	kill -STOP "$evictor"
	timeout 120 "$FM_BIN/fm-evict" --drain-server "${MC_AT[a]}" 3>&- &
	drain=$!
	track $drain
	wait_for 20 epoch_is 2
	kill -KILL "$evictor"
	wait_for 60 gone $drain
	wait $drain
	mc_kill a
	lost_say one 60 check
	[ "$(lost_number right)" -eq 8192 ]
	lost_end one
	stop_faultd
}

has_child() {
	[ -n "$(children_of "$1")" ]
}

epoch_is() {
	[ "$(epoch)" -eq "$1" ]
}

@test "one server under two names is refused, at the start and later" {
	mc_start a
	mc_start b
	ln -s "${MC_AT[a]}" "$FM_TMP/alias.sock"
	run "$FM_BIN/fm-faultd" --run-dir "$FM_TMP/refused" --store "memcached:${MC_AT[a]},${MC_AT[b]},$FM_TMP/alias.sock" --replicas 2
	echo "$output"
	[ "$status" -eq 2 ]
	[ "${#lines[@]}" -eq 1 ]
	[[ $output == *"alias.sock: is the same server as ${MC_AT[a]}" ]]
	start_faultd --store "memcached:$(addresses a b)" --replicas 2
	run "$FM_BIN/fm-evict" --add-server "$FM_TMP/alias.sock"
	echo "$output"
	[ "$status" -eq 1 ]
	[ "${#lines[@]}" -eq 1 ]
	[[ $output == *"alias.sock: is the same server as ${MC_AT[a]}" ]]
	[ "$("$FM_BIN/fm-stat" -j | jq '.stores | length')" -eq 2 ]
	stop_faultd
}
