#!/bin/bash
# `make demo`: a stock QEMU guest gets 512 MiB of far memory, of which 64 MiB stay on this host, and checks every byte.
#
# Installs what is missing, builds, and leaves nothing behind. B is the build folder, FM_DEMO_DIR one to work in (default: a
# temporary one). Exit status 1 when a byte was wrong or more stayed on the host than the budget, 2 % and 1 MiB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

B=${B:-build}
added=512M check_mib=448 passes=3
budget_mib=64
unset MAKEFLAGS MFLAGS MAKEOVERRIDES

say() {
	printf '\n== %s\n' "$*"
}

die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

# Clients first: a guest needs no daemon to be killed. What is still there after 5 s is killed.
cleanup() {
	local pid
	guest_kill
	for pid in $pids; do
		kill -TERM "$pid" 2> /dev/null || true
		for _ in {1..100}; do
			kill -0 "$pid" 2> /dev/null || break
			sleep 0.05
		done
		kill -KILL "$pid" 2> /dev/null || true
	done
	rm -rf "$FM_TMP"
}

say 'install and build'
tests/install.sh demo
make -s -j"$(nproc)" "B=$B" tools guest
PATH=$(realpath "$B/bin"):$PATH

# shellcheck source=tests/guest/lib.bash
. tests/guest/lib.bash
pids=''
FM_TMP=$(mktemp -d "${FM_DEMO_DIR:-/tmp}/fm-demo.XXXXXX")
export FM_TMP FM_RUN_DIR=$FM_TMP/run
trap cleanup EXIT

say "fm-faultd: ${budget_mib} MiB on this host, the rest in a folder"
mkfifo "$FM_TMP/ready"
exec {ready}<> "$FM_TMP/ready"
fm-faultd --store "dir:$FM_TMP/store" --local "${budget_mib}M" --ready-fd 4 4> "$FM_TMP/ready" {ready}>&- < /dev/null &
pids=$!
read -r -t 20 -u "$ready" _ || die 'fm-faultd did not get ready'
# A sample ten times a second, for the peak.
fm-stat -j -i 0.1 > "$FM_TMP/samples" &
pids="$! $pids"

say 'a stock guest boots (QEMU, TCG)'
start=${EPOCHREALTIME/./}
guest_start --mem 256M --initramfs "$B/guest/initramfs"
printf 'up in %d ms; its memory:\n' $(((${EPOCHREALTIME/./} - start) / 1000))
guest_cmd 'free -m'
guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'

say "fm-hotplug: $added more, and fm-online in the guest"
fm-hotplug "$GUEST_QMP" "$added"
guest_wait_mib 600
guest_cmd 'cat /tmp/online; free -m'

say "memcheck in the guest: $check_mib MiB, $passes passes"
guest_cmd -t 150 "memcheck $((check_mib << 20)) $passes" > "$FM_TMP/memcheck" &
check=$!
sleep 3
fm-stat
wait "$check" || true
cat "$FM_TMP/memcheck"
verdict=$(sed -n 's/^memcheck: \(checked .*\)/\1/p' "$FM_TMP/memcheck")
[ -n "$verdict" ] || die 'memcheck did not end well'

say 'fm-stat afterwards'
fm-stat
fm-stat latency
guest_stop

peak=$(jq -s 'map(.daemon.resident_pages) | max' "$FM_TMP/samples")
tenths=$(((peak * 10 + 128) / 256))
printf '\ndemo: %s, peak resident %d.%d MiB of %d MiB\n' "$verdict" $((tenths / 10)) $((tenths % 10)) "$budget_mib"
[[ $verdict == *', 0 wrong bytes' ]] || exit 1
[ "$peak" -le $((budget_mib * 256 * 102 / 100 + 256)) ] || exit 1
