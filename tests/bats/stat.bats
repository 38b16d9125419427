#!/usr/bin/env bats
# sanitizers: asan
# fm-stat on run directories that tests/bats/mkstate.c makes: the daemon is not needed. The last tests use the real one.

load helper

setup_file() {
	local root
	root=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
	cc -std=c11 -D_GNU_SOURCE -I"$root/lib" -o "$BATS_FILE_TMPDIR/mkstate" "$root/tests/bats/mkstate.c" "$root/lib/shmfile.c" \
		"$root/lib/stats.c"
}

setup() {
	fm_setup
	mkdir -p "$FM_RUN_DIR"
	stat=$FM_BIN/fm-stat
	mkstate=$BATS_FILE_TMPDIR/mkstate
}

state() {
	"$mkstate" "$FM_RUN_DIR" "$@"
}

# A run directory of two regions, as a daemon that ended would leave it.
two_regions() {
	state daemon pid=4711 uri=dir:/srv/fm limit_pages=16384 resident=1234 store_up=1 store_used_bytes=122880000 store_errors=3
	state region ab vm1 pages=131072 pid=77 kind=2 resident=1000 remote=30000 limit_pages=2048 faults=5000 faults_zero=2900 \
		faults_store=2000 faults_wp=100 faults_stale=7 held=8 store_gets=2001 pages_lost=1 discarded=9 get_errors=2 \
		prefetched=700 zeroed_ahead=800 prefetch_hits=1200 prefetch_wasted=250 \
		put_errors=4 evictions=31000 evictions_clean=600 evictions_zero=400 cancelled=11 store_puts=30000 store_deletes=12 \
		lat=7700:4900 lat=12000:90 lat=800000:10 latency_max_ns=811111
	state region ffffffffffffffff 'we"i\rd name' pages=1 pid=78
}

hold_lock() {
	"$mkstate" "$FM_RUN_DIR" lock > "$FM_TMP/locked" 3>&- &
	lock_pid=$!
	track "$lock_pid"
	wait_for 5 test -s "$FM_TMP/locked"
}

# lines_of WORD N FILE: at least N lines have the word.
lines_of() {
	[ "$(grep -c "$1" "$3")" -ge "$2" ]
}

# One line on stderr (that is all of $output), and this exit status.
refused() {
	local want=$1
	shift
	run "$@"
	[ "$status" -eq "$want" ] && [ "${#lines[@]}" -eq 1 ] && [[ $output == fm-stat:* ]]
}

@test "fm-stat --help and --version" {
	run "$stat" --help
	[ "$status" -eq 0 ]
	[[ $output == *"--run-dir"* ]]
	run "$stat" --version
	[ "$status" -eq 0 ] && [[ $output == "fm-stat "[0-9]* ]]
}

@test "fm-stat: usage errors are one line and exit 2" {
	refused 2 "$stat" nonsense
	[[ $output == *"'nonsense'"* ]]
	refused 2 "$stat" regions latency
	refused 2 "$stat" -i 0
	refused 2 "$stat" -i -1
	refused 2 "$stat" -i 1x
	refused 2 "$stat" -i ''
	refused 2 "$stat" -i .5
	refused 2 "$stat" -i 1.
	refused 2 "$stat" -i inf
	refused 2 "$stat" -i 0.001
	refused 2 "$stat" -i 99999999999999999999
	refused 2 "$stat" -i 1 -c 0
	refused 2 "$stat" -i 1 -c -1
	refused 2 "$stat" -i 1 -c 1.5
	refused 2 "$stat" -i 1 -c 99999999999999999999
	refused 2 "$stat" -c 1
	refused 2 "$stat" -j -p
	refused 2 "$stat" -j clear
	refused 2 "$stat" -i 1 clear
	run "$stat" --no-such-option
	[ "$status" -eq 2 ]
	run "$stat" -i
	[ "$status" -eq 2 ]
}

@test "fm-stat: no run directory exits 3, no directory exits 1" {
	refused 3 "$stat" --run-dir "$FM_TMP/nowhere"
	[[ $output == *"$FM_TMP/nowhere"* ]]
	refused 3 "$stat" --run-dir "$FM_TMP/nowhere" clear
	: > "$FM_TMP/file"
	refused 1 "$stat" --run-dir "$FM_TMP/file"
}

@test "fm-stat: an empty run directory" {
	run "$stat"
	[ "$status" -eq 0 ]
	[ "${#lines[@]}" -eq 2 ]
	[[ ${lines[0]} == "daemon: not running"* ]]
	[[ ${lines[1]} == ID*NAME*PID*SIZE*RESIDENT*REMOTE*FAULTS*PAGE-INS*EVICTIONS*P50*P99*FLAGS ]]
	requires jq || skip "no jq"
	[ "$("$stat" -j | jq -c '[.version, .daemon.pid, .regions, .stores]')" = '[1,0,[],[]]' ]
}

@test "fm-stat: the table of regions" {
	two_regions
	state region ab vm1 flags=3
	run "$stat" regions
	[ "$status" -eq 0 ]
	[ "${#lines[@]}" -eq 4 ]
	[ "${lines[0]}" = "daemon: not running, local limit 64M, resident 4.8M" ]
	read -r -a f <<< "${lines[2]}"
	[ "${f[*]:0:11}" = "00000000000000ab vm1 77 512M 3.9M 117M 5000 2000 31000 8.2us 12.3us" ]
	[[ ${lines[2]} == *"store full, store down" ]]
	[[ ${lines[3]} == 'ffffffffffffffff  we"i\rd name '* ]]
	run "$stat"
	[ "${#lines[@]}" -eq 4 ]
}

@test "fm-stat: a daemon that runs is told by its lock" {
	two_regions
	hold_lock
	run "$stat"
	[[ ${lines[0]} == "daemon: pid $lock_pid, up "*"s, local limit 64M, resident 4.8M" ]]
	kill -KILL "$lock_pid"
	wait_for 5 gone "$lock_pid"
	run "$stat"
	[[ ${lines[0]} == "daemon: not running,"* ]]
}

@test "fm-stat: JSON has every field of the contract, numbers are integers" {
	requires jq || skip "no jq"
	two_regions
	hold_lock
	"$stat" -j > "$FM_TMP/json"
	[ "$(wc -l < "$FM_TMP/json")" -eq 1 ]
	jq -e --argjson pid "$lock_pid" '.version == 1 and .daemon.pid == $pid and .daemon.uptime_s >= 0
		and .daemon.local_limit_pages == 16384 and .daemon.resident_pages == 1234' "$FM_TMP/json"
	jq -e '.regions | length == 2' "$FM_TMP/json"
	jq -e '.regions[0] | .id == "00000000000000ab" and .name == "vm1" and .kind == "vm" and .pid == 77 and .pages == 131072
		and .resident_pages == 1000 and .remote_pages == 30000 and .local_limit_pages == 2048 and .faults == 5000
		and .faults_zero == 2900 and .faults_store == 2000 and .faults_wp == 100 and .faults_stale == 7 and .held == 8
		and .prefetched == 700 and .zeroed_ahead == 800 and .prefetch_hits == 1200 and .prefetch_wasted == 250
		and .discarded == 9 and .evictions == 31000 and .evictions_clean == 600 and .evictions_zero == 400
		and .cancelled == 11 and .store_puts == 30000 and .store_gets == 2001 and .store_deletes == 12
		and .store_errors == 6 and .pages_lost == 1 and .flags == []' "$FM_TMP/json"
	jq -e '.regions[0].latency_ns == {"p50": 8191, "p90": 8191, "p99": 12287, "p999": 811111, "max": 811111}' "$FM_TMP/json"
	jq -e '.regions[1].name == "we\"i\\rd name" and .regions[1].local_limit_pages == 0' "$FM_TMP/json"
	jq -e '.stores == [{"uri": "dir:/srv/fm", "up": true, "used_bytes": 122880000, "limit_bytes": 0, "errors": 3,
		"state": "up", "drained": false, "full": false, "items": 0, "restarts": 0, "rtt_ns": 0, "servers": 0}]
		and .placement == {"epoch": 0, "epochs": 0, "pages_left": 0, "pages_moved": 0}' \
		"$FM_TMP/json"
	jq -e '[.. | numbers | . == floor] | all' "$FM_TMP/json"
	[ "$(grep -cE '[0-9]\.[0-9]|:-?[0-9]+[eE]' "$FM_TMP/json")" -eq 0 ]
}

@test "fm-stat: JSON of huge counts and of flags" {
	requires jq || skip "no jq"
	state daemon uri=dir:/x limit_pages=0xffffffffffffffff
	state region 1 r faults=0xffffffffffffffff flags=7 limit_pages=0xffffffffffffffff
	[ "$("$stat" -j | jq -c '[.regions[0].faults >= 9223372036854775000, .regions[0].flags]')" = \
		'[true,["store_full","store_down","gone"]]' ]
	[ "$("$stat" -j | jq -c '[.daemon.local_limit_pages, .regions[0].local_limit_pages]')" = '[0,0]' ]
}

@test "fm-stat latency: a histogram" {
	two_regions
	run "$stat" latency
	[ "$status" -eq 0 ]
	[[ $output == *"vm1 (00000000000000ab): 5000 faults, p50 8.2us, p90 8.2us, p99 12.3us, p99.9 811us, max 811us"* ]]
	[[ $output == *" 4900  98.0% |########################################"* ]]
	[[ $output == *'we"i\rd name (ffffffffffffffff): 0 faults'* ]]
	# Every fault is in one row, the rows are few, and a row with faults has a bar.
	[ "$(awk '$2 == ".." { n += $4 } END { print n }' <<< "$output")" -eq 5000 ]
	[ "$(grep -c ' \.\. ' <<< "$output")" -le 18 ]
	[ "$(awk '$2 == ".." && $4 > 0 && !/#/' <<< "$output")" = "" ]
	requires jq || skip "no jq"
	[ "$("$stat" -j latency | jq -c '.regions[0].latency_histogram')" = '[[8191,4900],[12287,90],[851967,10]]' ]
}

@test "fm-stat latency: values at both ends" {
	state region 1 r lat=0:1 lat=5:1 lat=0xffffffffffffffff:2
	run "$stat" latency
	[ "$status" -eq 0 ]
	[ "$(awk '$2 == ".." { n += $4 } END { print n }' <<< "$output")" -eq 4 ]
	[[ $output == *".. more "* ]]
}

@test "fm-stat stores" {
	two_regions
	run "$stat" stores
	[ "$status" -eq 0 ]
	[ "${#lines[@]}" -eq 2 ]
	read -r -a f <<< "${lines[1]}"
	[ "${f[*]:0:7}" = "up 117M - 0 - 3 dir:/srv/fm" ]
	state daemon uri=dir:/srv/fm store_limit_bytes=1073741824
	run "$stat" stores
	read -r -a f <<< "${lines[1]}"
	[ "${f[*]:0:7}" = "down 0 1.0G 0 - 0 dir:/srv/fm" ] || [ "${f[*]:0:7}" = "down 0 1G 0 - 0 dir:/srv/fm" ]
}

# A strict reader of the text format 0.0.4: names, labels, numbers; HELP and TYPE once and before the samples; the samples of a
# metric together; no series twice; counters named _total; histograms cumulative and ending in +Inf = _count.
check_prometheus() {
	awk '
	function bad(why) { print "line " NR ": " why ": " $0; failed = 1; exit 1 }
	/^# HELP / { if ($3 in help) bad("HELP twice"); help[$3] = 1; if (NF < 4) bad("empty HELP"); next }
	/^# TYPE / {
		if ($3 in type) bad("TYPE twice")
		if (!($3 in help)) bad("TYPE without HELP")
		if ($4 !~ /^(counter|gauge|histogram)$/ || NF != 4) bad("type")
		if (($4 == "counter") != ($3 ~ /_total$/)) bad("counters and only they end in _total")
		type[$3] = $4; current = $3; next
	}
	{
		if (!match($0, /^[a-zA-Z_:][a-zA-Z0-9_:]*/)) bad("name")
		name = substr($0, 1, RLENGTH); rest = substr($0, RLENGTH + 1); labels = ""; le = ""
		if (name !~ /^fm_/) bad("prefix")
		base = name
		if (!(base in type)) sub(/_(bucket|sum|count)$/, "", base)
		if (base != current) bad("not below its TYPE")
		if (base != name && type[base] != "histogram") bad("suffix")
		if (substr(rest, 1, 1) == "{") {
			rest = substr(rest, 2)
			while (match(rest, /^[a-zA-Z_][a-zA-Z0-9_]*="([^"\\]|\\["\\n])*"/)) {
				l = substr(rest, 1, RLENGTH); rest = substr(rest, RLENGTH + 1)
				if (l ~ /^le=/) le = substr(l, 5, length(l) - 5); else labels = labels "," l
				if (substr(rest, 1, 1) == ",") rest = substr(rest, 2); else break
			}
			if (substr(rest, 1, 1) != "}") bad("labels")
			rest = substr(rest, 2)
		}
		if (rest !~ /^ [0-9]+(\.[0-9]+)?$/) bad("value")
		v = rest + 0
		if (seen[name labels le]++) bad("series twice")
		if (name ~ /_bucket$/) {
			if (le == "") bad("no le")
			if (base labels in last && (v < last[base labels] || ended[base labels])) bad("not cumulative")
			if (le != "+Inf" && base labels in lastle && le + 0 <= lastle[base labels] + 0) bad("le does not grow")
			last[base labels] = v; lastle[base labels] = le
			if (le == "+Inf") ended[base labels] = 1
		}
		if (name == base "_count" && (!ended[base labels] || last[base labels] != v)) bad("_count is not +Inf")
		n++
	}
	END { if (!failed && !n) { print "no samples"; exit 1 } }'
}

@test "the check of the Prometheus format finds faults" {
	head=$'# HELP fm_x x\n# TYPE fm_x gauge'
	check_prometheus <<< "$head"$'\nfm_x{a="b\\"c",d=""} 1'
	for bad in 'fm_x 1 2 3' 'fm_x{a="b"c"} 1' 'fm_x{a=b} 1' 'fm_y 1' 'fm_x -' 'fm_x{a="\q"} 1' '# HELP fm_x again' $'fm_x 1\nfm_x 1'; do
		run check_prometheus <<< "$head"$'\n'"$bad"
		[ "$status" -ne 0 ] || { echo "passed: $bad"; return 1; }
	done
	head=$'# HELP fm_h x\n# TYPE fm_h histogram'
	run check_prometheus <<< "$head"$'\nfm_h_bucket{le="1"} 2\nfm_h_bucket{le="+Inf"} 1\nfm_h_count 1'
	[ "$status" -ne 0 ]
	run check_prometheus <<< "$head"$'\nfm_h_bucket{le="+Inf"} 1\nfm_h_count 2'
	[ "$status" -ne 0 ]
}

@test "fm-stat -p: Prometheus text format" {
	two_regions
	"$stat" -p > "$FM_TMP/prom"
	check_prometheus < "$FM_TMP/prom"
	grep -qxF 'fm_daemon_up 0' "$FM_TMP/prom"
	grep -qxF 'fm_local_limit_bytes 67108864' "$FM_TMP/prom"
	grep -qxF 'fm_region_resident_bytes{region="00000000000000ab",name="vm1"} 4096000' "$FM_TMP/prom"
	grep -qxF 'fm_region_faults_total{region="00000000000000ab",name="vm1"} 5000' "$FM_TMP/prom"
	grep -qxF 'fm_region_faults_total{region="ffffffffffffffff",name="we\"i\\rd name"} 0' "$FM_TMP/prom"
	grep -qxF 'fm_region_fault_latency_seconds_bucket{region="00000000000000ab",name="vm1",le="0.000008191"} 4900' "$FM_TMP/prom"
	grep -qxF 'fm_region_fault_latency_seconds_count{region="00000000000000ab",name="vm1"} 5000' "$FM_TMP/prom"
	grep -qxF 'fm_store_up{store="dir:/srv/fm"} 1' "$FM_TMP/prom"
	rm "$FM_RUN_DIR"/*
	"$stat" -p | check_prometheus
}

@test "INTERFACES.md has every metric and every JSON field" {
	requires jq || skip "no jq"
	two_regions
	doc=$BATS_TEST_DIRNAME/../../INTERFACES.md
	for word in $("$stat" -p | sed -n 's/^# TYPE \([a-z_]*\) .*/\1/p') \
		$("$stat" -j latency | jq -r '[.. | objects | keys[]] | unique[]'); do
		grep -qE "\`\.?([a-z]+\.)?$word(\[\]|\.[a-z_]+)?\`" "$doc" || {
			echo "INTERFACES.md lacks $word"
			return 1
		}
	done
}

@test "fm-stat -i -c: so many samples, with rates" {
	two_regions
	run "$stat" -i 0.05 -c 3
	[ "$status" -eq 0 ]
	[ "$(grep -c ^daemon: <<< "$output")" -eq 3 ]
	[[ $output == *FAULTS/S*PAGE-INS/S*EVICTIONS/S* ]]
	# Nothing happened between the samples.
	read -r -a f <<< "$(grep vm1 <<< "$output" | tail -n 1)"
	[ "${f[*]:6:3}" = "0 0 0" ]
	"$stat" -j -i 0.02 -c 4 > "$FM_TMP/json"
	[ "$(wc -l < "$FM_TMP/json")" -eq 4 ]
}

@test "fm-stat -i: a rate is events a second" {
	two_regions
	"$stat" -i 0.5 > "$FM_TMP/out" 3>&- &
	pid=$!
	track "$pid"
	wait_for 5 grep -q vm1 "$FM_TMP/out"
	state region ab vm1 faults=6000 faults_store=2500 evictions=31100
	wait_for 5 lines_of vm1 2 "$FM_TMP/out"
	read -r -a f <<< "$(grep vm1 "$FM_TMP/out" | sed -n 2p)"
	# 1000, 500 and 100 events in 0.5 s or, on a busy machine, in more; always in this ratio.
	[ "${f[6]}" -gt 20 ]
	[ "${f[6]}" -le 2000 ]
	[ "$((f[6] - 2 * f[7]))" -le 2 ]
	[ "$((2 * f[7] - f[6]))" -le 2 ]
	[ "$((f[6] - 10 * f[8]))" -le 10 ]
	[ "$((10 * f[8] - f[6]))" -le 10 ]
	kill -INT "$pid" || return 1
	wait_for 5 gone "$pid"
}

@test "fm-stat -i without -c: endless until a signal or a closed pipe" {
	two_regions
	"$stat" -j -i 0.02 > "$FM_TMP/json" 3>&- &
	pid=$!
	track "$pid"
	wait_for 5 lines_of version 5 "$FM_TMP/json"
	kill -TERM "$pid"
	wait_for 5 gone "$pid"
	wait "$pid"
	# head ends after two lines; fm-stat must end, too.
	[ "$(timeout 10 "$stat" -j -i 0.02 | head -n 2 | wc -l)" -eq 2 ]
}

@test "fm-stat -i: regions come and go between samples" {
	two_regions
	"$stat" -i 0.02 > "$FM_TMP/out" 2> "$FM_TMP/err" 3>&- &
	pid=$!
	track "$pid"
	wait_for 5 grep -q vm1 "$FM_TMP/out"
	rm "$FM_RUN_DIR/region-00000000000000ab.state"
	state region cd vm2
	wait_for 5 grep -q vm2 "$FM_TMP/out"
	kill -TERM "$pid"
	wait_for 5 gone "$pid"
	[ ! -s "$FM_TMP/err" ]
}

@test "fm-stat clear: counters and percentiles begin anew" {
	requires jq || skip "no jq"
	two_regions
	run "$stat" clear
	[ "$status" -eq 0 ]
	[ "$output" = "2 regions cleared in $FM_RUN_DIR" ]
	jq -e '.regions[0] | [.faults, .faults_zero, .faults_store, .faults_wp, .faults_stale, .held, .discarded, .evictions,
		.prefetched, .zeroed_ahead, .prefetch_hits, .prefetch_wasted,
		.evictions_clean, .evictions_zero, .cancelled, .store_puts, .store_gets, .store_deletes, .store_errors, .pages_lost,
		.latency_ns.p50, .latency_ns.p999, .latency_ns.max] | all(. == 0)' <("$stat" -j)
	[ "$("$stat" -j | jq '.regions[0].resident_pages')" -eq 1000 ]
	state region ab vm1 faults=5003 evictions=31001 lat=100000:3 clear_seen=1 latency_max_ns=99999
	[ "$("$stat" -j | jq -c '.regions[0] | [.faults, .evictions, .latency_ns.p50, .latency_ns.max]')" = '[3,1,99999,99999]' ]
	"$stat" clear
	[ "$("$stat" -j | jq -c '.regions[0] | [.faults, .latency_ns.max]')" = '[0,0]' ]
}

@test "fm-stat clear: no permission is one line and exits 1; reading still works" {
	requires setpriv || skip "no setpriv"
	[ "$(id -u)" -eq 0 ] || skip "not root"
	dir=$(mktemp -d /tmp/fm-stat.XXXXXX)
	cp "$stat" "$dir/fm-stat"
	FM_RUN_DIR=$dir two_regions
	chmod -R a+rX "$dir"
	run setpriv --reuid=65534 --regid=65534 --clear-groups "$dir/fm-stat" --run-dir "$dir" clear
	out=$output st=$status
	run setpriv --reuid=65534 --regid=65534 --clear-groups "$dir/fm-stat" --run-dir "$dir"
	rm -rf "$dir"
	[ "$status" -eq 0 ]
	[[ $output == *vm1* ]]
	[ "$st" -eq 1 ] && [[ $out == "fm-stat: clear: "*"Permission denied" ]] && [ "$(wc -l <<< "$out")" -eq 1 ]
}

@test "fm-stat: damaged and unfinished files are left out" {
	two_regions
	state region cd good
	truncate -s 100 "$FM_RUN_DIR/region-00000000000000ab.state"
	: > "$FM_RUN_DIR/region-00000000000000ee.state"
	: > "$FM_RUN_DIR/region-nonsense.state"
	"$stat" > "$FM_TMP/out" 2> "$FM_TMP/err"
	grep -q good "$FM_TMP/out"
	[ "$(grep -c vm1 "$FM_TMP/out")" -eq 0 ]
	[ "$(cat "$FM_TMP/err")" = "fm-stat: region-00000000000000ab.state: shorter than its header" ]
	truncate -s 10 "$FM_RUN_DIR/daemon.state"
	run "$stat"
	[ "$status" -eq 0 ]
	[[ $output == *"daemon.state: shorter than its header"* ]]
	run "$stat" clear
	[ "$status" -eq 1 ] && [ "${#lines[@]}" -eq 1 ] && [[ $output == *"region-00000000000000ab.state: shorter than its header" ]]
}

@test "fm-stat: reading a huge region does not fill its file" {
	state region 1 huge pages=0xfffffffe
	before=$(command stat -c %b "$FM_RUN_DIR/region-0000000000000001.state")
	"$stat" > "$FM_TMP/out"
	grep -q ' 16T ' "$FM_TMP/out" || grep -q ' 16.0T ' "$FM_TMP/out"
	[ "$(command stat -c %b "$FM_RUN_DIR/region-0000000000000001.state")" -eq "$before" ]
}

@test "fm-stat: a full standard output is an error" {
	[ -w /dev/full ] || skip "no /dev/full"
	run bash -c '"$1" -j > /dev/full' - "$stat"
	[ "$status" -eq 1 ]
	run bash -c '"$1" > /dev/full' - "$stat"
	[ "$status" -eq 1 ]
}

# The evictor has nothing left to do: sums agree, and the budget of 1024 pages holds.
settled() {
	"$stat" -j | jq -e '.daemon.resident_pages == .regions[0].resident_pages and .regions[0].resident_pages <= 1024
		and .regions[0].resident_pages + .regions[0].remote_pages == 4096 and .stores[0].used_bytes > 0' > /dev/null
}

no_regions() {
	[ "$("$stat" -j | jq '.regions | length')" -eq 0 ]
}

@test "fm-stat with the daemon, then without it" {
	[ -x "$FM_BIN/fm-faultd" ] || skip "no fm-faultd in this tree yet"
	requires jq || skip "no jq"
	rmdir "$FM_RUN_DIR"
	start_faultd --local 64M
	jq -e --argjson pid "$FAULTD_PID" '.daemon.pid == $pid and .daemon.local_limit_pages == 16384 and .regions == []
		and .stores[0].up == true' <("$stat" -j)
	"$stat" -p | check_prometheus
	stop_faultd
	[ "$("$stat" -j | jq .daemon.pid)" -eq 0 ]
	run "$stat"
	[ "$status" -eq 0 ] && [[ $output == "daemon: not running"* ]]
}

@test "fm-stat counts what a client does" {
	[ -x "$FM_BIN/fm-faultd" ] && [ -e "$FM_LIB/libfm.a" ] || skip "no fm-faultd or no libfm.a in this tree"
	requires jq || skip "no jq"
	cat > "$FM_TMP/client.c" <<-'END'
		#include <fluidmem.h>
		#include <stdio.h>
		#include <unistd.h>
		int main(void)
		{
			struct fm_options o = { .name = "client" };
			volatile char *p = fm_map(4096 * 4096, &o);
			if (!p)
				return perror("fm_map"), 1;
			for (int i = 0; i < 4096; i++)
				p[i * 4096] = 1 + i % 100;
			for (int i = 0; i < 4096; i++)
				if (p[i * 4096] != 1 + i % 100)
					return 1;
			puts("finished");
			fflush(stdout);
			pause();
			return 0;
		}
	END
	cc -o "$FM_TMP/client" -I"$FM_ROOT/lib" "$FM_TMP/client.c" "$FM_LIB/libfm.a" -lpthread
	rmdir "$FM_RUN_DIR"
	start_faultd --local 4M
	"$FM_TMP/client" > "$FM_TMP/out" 3>&- &
	pid=$!
	track "$pid"
	wait_for 60 grep -q finished "$FM_TMP/out"
	"$stat" -j > "$FM_TMP/json"
	jq -e --argjson pid "$pid" '.regions[0] | .name == "client" and .kind == "map" and .pid == $pid and .pages == 4096
		and .faults + .prefetched + .zeroed_ahead >= 4096 and .faults_zero == 4096 and .faults_store > 0 and .evictions > 0
		and .store_puts > 0 and .store_gets >= .faults_store and .pages_lost == 0 and .store_errors == 0
		and .latency_ns.p50 > 0 and .latency_ns.p50 <= .latency_ns.p99 and .latency_ns.p99 <= .latency_ns.max' "$FM_TMP/json"
	wait_for 5 settled
	"$stat" -p | check_prometheus
	"$stat" latency | grep -q '#'
	"$stat" clear
	[ "$("$stat" -j | jq '.regions[0].faults')" -eq 0 ]
	kill -KILL "$pid"
	wait_for 5 no_regions
	stop_faultd
}
