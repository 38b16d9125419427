#!/bin/bash
# How little of its memory can an idle guest keep on the host? A stock Linux guest of 512 MiB (TCG), all its RAM attached, the local budget
# halved step by step: the time to shrink to it, and then the time in which the guest answers a line on its serial port, five times. As root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
B=${B:-build}
FM_TMP=$(mktemp -d)
export FM_TMP FM_RUN_DIR=$FM_TMP/run GUEST_INITRAMFS=$B/guest/initramfs
# shellcheck source=tests/guest/lib.bash
. tests/guest/lib.bash
faultd=
# shellcheck disable=SC2329 # the trap calls it
stop() {
	guest_kill
	[ -z "$faultd" ] || kill -TERM "$faultd" 2> /dev/null || true
	[ -z "$faultd" ] || wait "$faultd" || true
	rm -rf "$FM_TMP"
}
trap stop EXIT

ms() {
	echo $(((${EPOCHREALTIME/./} - $1) / 1000))
}

"$B/bin/fm-faultd" --store "dir:$FM_TMP/store" --local 1G --ready-fd 4 4> "$FM_TMP/ready" < /dev/null &
faultd=$!
until [ -s "$FM_TMP/ready" ]; do sleep 0.05; done
guest_start --share --mem 512M
"$B/bin/fm-hotplug" --attach "$GUEST_QMP" > /dev/null
printf '%8s %12s %14s   %s\n' budget 'shrunk in ms' 'resident pages' 'answers in ms'
smallest=none quick=none
for limit in 64M 32M 16M 8M 4M 2M 1M 512K 256K; do
	start=${EPOCHREALTIME/./}
	timeout 120 "$B/bin/fm-evict" --limit "$limit" > "$FM_TMP/evict" 2>&1 || {
		printf '%8s %s\n' "$limit" "not reached within 120 s: $(cat "$FM_TMP/evict")"
		break
	}
	shrunk=$(ms "$start")
	answers=()
	for i in 1 2 3 4 5; do
		start=${EPOCHREALTIME/./}
		out=$(guest_cmd -t 60 "echo here $i") || break 2
		[[ $out == "here $i" ]] || break 2
		answers+=("$(ms "$start")")
	done
	printf '%8s %12s %14s   %s\n' "$limit" "$shrunk" "$("$B/bin/fm-stat" -j | jq .daemon.resident_pages)" "${answers[*]}"
	smallest=$limit
	[ "$(printf '%s\n' "${answers[@]}" | sort -n | tail -1)" -ge 1000 ] || quick=$limit
done
echo "smallest budget at which the guest still answers: $smallest (within a minute), $quick (within a second)"
"$B/bin/fm-evict" --limit 64M
guest_stop
