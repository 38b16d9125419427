#!/bin/bash
# For how long QEMU stands still when far memory is attached to it: 100 attaches to an idle one, and to one whose vCPUs are
# busy; with 1 and with 4 userfaultfds; and to one without privileges, which is given /dev/userfaultfd. As root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
B=${B:-build}
T=$(mktemp -d)
pids=()
# shellcheck disable=SC2329 # the trap calls it
stop() {
	# SIGTERM, which timeout hands on; SIGKILL would leave QEMU behind.
	for pid in "${pids[@]}"; do
		kill -TERM "$pid" 2> /dev/null || true
		wait "$pid" || true
	done
	rm -rf "$T"
}
trap stop EXIT

mkdir -p "$B/bench"
cc -std=c11 -D_GNU_SOURCE -O2 -g -Wall -Wextra -Ilib -o "$B/bench/attach" bench/attach.c lib/attach.c lib/inject.c lib/proc.c
chmod 755 "$T"

# vm NAME QEMU-ARGS...: starts one and sets VM.
vm() {
	local name=$1
	shift
	"${as[@]}" timeout 120 qemu-system-x86_64 -accel tcg,tb-size=32 -machine q35 -nodefaults -display none -m 256M \
		-object memory-backend-memfd,id=ram0,size=256M,share=on -machine memory-backend=ram0 "$@" 2> "$T/log" &
	pids+=($!)
	for _ in {1..100}; do
		VM=$(cat "/proc/$!/task/$!/children")
		VM=${VM%% *}
		[ -z "$VM" ] || [ "$(wc -l < "/proc/$VM/maps")" -lt 100 ] || break
		sleep 0.1
	done
	sleep 1
	echo "$name:"
}

# Firmware without a disk, then a loop: `jmp .` as a boot sector keeps the vCPU busy.
printf '\xeb\xfe' > "$T/disk"
head -c 508 /dev/zero >> "$T/disk"
printf '\x55\xaa' >> "$T/disk"
truncate -s 1M "$T/disk"

as=(env)
vm 'QEMU, paused' -S
"$B/bench/attach" "$VM" 100 1
"$B/bench/attach" "$VM" 100 4
vm 'QEMU, a busy vCPU' -drive "file=$T/disk,format=raw,if=ide"
"$B/bench/attach" "$VM" 100 1
"$B/bench/attach" "$VM" 100 4
as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
vm 'QEMU without privileges, paused' -S
"$B/bench/attach" "$VM" 100 1
"$B/bench/attach" "$VM" 100 4
