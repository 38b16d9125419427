#!/usr/bin/env bats
# sanitizers: asan
# A proxy between fm and a real memcached that spoils, delays, drops and reorders (tests/proxy/mcproxy.py): never a wrong word.

load helper
load memcached

setup_file() {
	mc_build
}

setup() {
	fm_setup
	seconds=${FM_STRESS_SECONDS:-8}
}

samples_start() {
	"$FM_BIN/fm-stat" -j -i 0.1 > "$FM_TMP/samples" 3>&- &
	track $!
}

# Greatest value of a region's field in all samples.
sampled() {
	jq -s "[.[].regions[].$1] | max" "$FM_TMP/samples"
}

# Proxy p in front of server a, and a daemon that knows only it.
one_proxied() {
	mc_start a
	proxy_start p a
	daemon=(--local 128p --store "memcached:${MC_AT[p]}?timeout=300")
	start_faultd "${daemon[@]}"
}

@test "R=2, one server behind a proxy that does everything wrong: 0 wrong words, 0 lost pages" {
	mc_start a
	mc_start b
	proxy_start p b
	start_faultd --local 512p --store "memcached:$(addresses a p)?timeout=2000" --replicas 2
	torture_start "$seconds" --size $((16 << 20))
	samples_start
	# All at once until each was done, then one after the other.
	proxy p set flip=0.1 swap=0.1 replay=0.1 trunc=0.1 garbage=0.003 tear=0.003 drop=0.003 delay=0.003 dup=0.1
	wait_for "$seconds" did_all
	while alive "$TORTURE_PID"; do
		for faults in flip=0.3 swap=0.5 replay=0.5 trunc=0.3 garbage=0.01 tear=0.01 drop=0.01 delay=0.002 dup=0.2; do
			proxy p set "$faults"
			wait_for 1 did_some "${faults%%=*}" || gone "$TORTURE_PID" || echo "not much $faults"
		done
	done
	proxy p stats
	proxy p set
	torture_end 60
	[ "$(sampled pages_lost)" -eq 0 ]
	stop_faultd
}

# Every fault was done once at least.
did_all() {
	local all
	all=$(proxy p stats)
	echo "$all"
	[[ ${all% held=*} =~ ^([a-z]+=[1-9][0-9]* ?)+$ ]]
}

# The proxy has done it ten times more than when this was asked first.
did_some() {
	local n
	n=$(proxy_did p "$1")
	if [ "${asked-}" != "$1" ]; then
		asked=$1 before=$n
	fi
	[ "$n" -ge $((before + 10)) ]
}

@test "R=1, values spoilt by a proxy: asked for again; spoilt always, each is lost and counted; none is wrong" {
	one_proxied
	for fault in flip swap replay trunc; do
		echo "--- $fault"
		proxy p set
		lost_start "$fault" --size $((2 << 20))
		lost_say "$fault" 30 fill
		lost_say "$fault" 30 'churn 1000 512'
		[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
		# Four in a row, which would cost a page: once in 5,000 runs.
		before=$(proxy_did p "$fault")
		proxy p set "$fault=0.02"
		lost_say "$fault" 60 'churn 1500 512'
		[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
		proxy p set
		lost_say "$fault" 60 check
		[ "$(lost_number right)" -eq 512 ]
		done=$(($(proxy_did p "$fault") - before))
		echo "$fault: $done values, no page lost"
		[ "$done" -gt 3 ]
		before=$(proxy_did p "$fault")
		proxy p set "$fault=1"
		lost_say "$fault" 60 'churn 100 512'
		[ "$(lost_number wrong)" -eq 0 ]
		proxy p set
		lost_say "$fault" 60 check
		[ "$(lost_number wrong)" -eq 0 ]
		lost=$(lost_number lost) done=$(($(proxy_did p "$fault") - before))
		echo "$fault: $done values, $lost pages lost"
		[ "$lost" -gt 10 ]
		[ $((4 * lost)) -le "$done" ]
		[ "$(region_stat "$fault" pages_lost)" -eq "$lost" ]
		lost_end "$fault"
	done
	wait_for 10 mc_empty a
	stop_faultd
}

@test "R=1, a proxy that tears, drops, delays and babbles: nothing is wrong, and nothing lost" {
	one_proxied
	lost_start one --size $((2 << 20))
	lost_say one 30 fill
	for fault in garbage=0.01 tear=0.01 drop=0.01 delay=0.005 'drop=0.005 delay=0.005 dup=0.3'; do
		echo "--- $fault"
		# shellcheck disable=SC2086 # words
		proxy p set $fault
		lost_say one 60 'churn 1500 512'
		[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
		[ "$(proxy_did p "${fault%%=*}")" -gt 0 ]
	done
	proxy p set
	lost_say one 60 check
	[ "$(lost_number right)" -eq 512 ]
	[ "$(region_stat one pages_lost)" -eq 0 ]
	lost_end one
	stop_faultd
}

# A request that comes late: hold it and what follows, work on, release it, work on.
late() {
	one_proxied
	lost_start one --size $((2 << 20))
	lost_say one 30 fill
	lost_say one 30 'churn 1000 512'
	for _ in 1 2 3; do
		proxy p hold "$1"
		lost_send one 'churn 1000 512'
		wait_for 10 proxy_holds p 1
		[ -z "${2-}" ] || "$2"
		lost_answer one 60
		[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
		proxy p stats
		released=$(proxy p release)
		echo "$released"
		[[ $released == 'released '[1-9]* ]]
		lost_say one 60 check
		[ "$(lost_number right)" -eq 512 ]
		lost_say one 60 'churn 1000 512'
		[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
	done
	lost_say one 60 check
	[ "$(lost_number right)" -eq 512 ]
	[ "$(region_stat one pages_lost)" -eq 0 ]
	lost_end one
	stop_faultd
}

kill_daemon() {
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	start_faultd "${daemon[@]}"
}

@test "a put that arrives late, when newer ones were made: costs no page" {
	late set
}

@test "a delete that arrives late, when newer puts were made: costs no page" {
	late delete
}

@test "a put of a killed fm-faultd that arrives when the next one works: costs no page" {
	late set kill_daemon
}

@test "a delete of a killed fm-faultd that arrives when the next one works: costs no page" {
	late delete kill_daemon
}

# --- secrecy

# Fill the store with pages that hold a text, through a recording proxy. Then $FM_TMP/{traffic,items,memory} is what can be seen.
seen() {
	mc_start a
	proxy_start p a --record "$FM_TMP/traffic"
	text=the-pages-secret-$RANDOM$RANDOM$RANDOM
	name=the-regions-name-$RANDOM
	start_faultd --local 128p --store "memcached:${MC_AT[p]}" "$@"
	lost_start "$name" --size $((2 << 20)) --text "$text"
	lost_say "$name" 30 fill
	lost_say "$name" 30 'churn 2000 512'
	lost_say "$name" 30 check
	[ "$(lost_number right)" -eq 512 ]
	[ "$(mcctl dump "$FM_TMP/items" "${MC_AT[a]}")" -ge 384 ]
	mcctl memory "$FM_TMP/memory" "${MC_PID[a]}"
	lost_end "$name"
	stop_faultd
	ls -l "$FM_TMP/traffic" "$FM_TMP/items" "$FM_TMP/memory"
	[ "$(stat -c %s "$FM_TMP/traffic")" -gt 4000000 ]
	[ "$(stat -c %s "$FM_TMP/items")" -gt 1500000 ]
	# The right memory, and all of it: it holds the values.
	in_hex "$(head -c 37 "$FM_TMP/items")"
	mcctl find "$FM_TMP/memory" "$HEX"
}

# HEX: the bytes of a text.
in_hex() {
	HEX=$(printf %s "$1" | od -An -v -tx1 | tr -d ' \n')
}

@test "sealed: no page content, no key and no region name in the traffic or in the server's memory" {
	[ "$(id -u)" -eq 0 ] || skip 'needs root to read the memory of memcached'
	(umask 077 && head -c 32 /dev/urandom > "$FM_TMP/key")
	seen --key-file "$FM_TMP/key"
	key=$(od -An -v -tx1 "$FM_TMP/key" | tr -d ' \n')
	in_hex "$text"
	secrets=("$HEX" "${key:0:32}" "${key:32}")
	in_hex "$name"
	secrets+=("$HEX")
	in_hex "$key" # as text
	secrets+=("$HEX")
	for place in traffic items memory; do
		run mcctl find "$FM_TMP/$place" "${secrets[@]}"
		echo "$place: $output"
		[ "$status" -eq 1 ]
		[[ $output == *'found: nothing' ]]
	done
}

@test "not sealed: the same search finds the pages' content, and still no region name" {
	[ "$(id -u)" -eq 0 ] || skip 'needs root to read the memory of memcached'
	seen --no-seal
	for place in traffic items memory; do
		in_hex "$text"
		mcctl find "$FM_TMP/$place" "$HEX"
		in_hex "$name"
		run mcctl find "$FM_TMP/$place" "$HEX"
		[ "$status" -eq 1 ]
		[[ $output == *"found: nothing" ]]
	done
}
