# Boot a stock Linux guest under a stock QEMU and talk to it: sourced by tests/guest/*.bats and demo.sh.
#
#   guest_start [--mem SIZE] [--share] [--initramfs FILE] [--accel A] [-- QEMU-ARGS...]
#   guest_cmd [-t SECONDS] LINE     run a shell line in the guest (200 s); prints its output, returns its status (124: no answer)
#   check_begin BYTES [PASSES...]   memcheck in the guest beside other things, until it is told to end
#   check_end                       ... and its verdict: fails when a byte was wrong, or when it had ended before
#   guest_wait_mib MIB              wait until the guest's MemTotal has come up to that, 200 s at most
#   guest_stop                      power it off; fails unless QEMU ends within 20 s
#   guest_kill                      SIGKILL, for teardown
#
# Set by guest_start: GUEST_DIR (a folder of its own below ${FM_TMP:-/tmp}), GUEST_QMP (QMP socket's path), GUEST_PID (of QEMU).
# One guest at a time. The guest gets lines from its second serial port and answers `@done STATUS` (tests/guest/init).

GUEST_HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
GUEST_PID='' GUEST_DIR='' GUEST_QMP='' GUEST_TIMEOUT_PID='' GUEST_FD=''

guest_start() {
	local mem=256M share=() accel=tcg initramfs=${GUEST_INITRAMFS-} kernel
	while [ $# -gt 0 ]; do
		case $1 in
		--mem) mem=$2 && shift 2 ;;
		--share) share=(yes) && shift ;;
		--accel) accel=$2 && shift 2 ;;
		--initramfs) initramfs=$2 && shift 2 ;;
		--) shift && break ;;
		*) echo "guest_start: $1: unknown option" >&2 && return 2 ;;
		esac
	done
	# Boot RAM that fm-hotplug --attach can take over.
	[ ${#share[@]} -eq 0 ] ||
		share=(-object "memory-backend-memfd,id=ram0,size=$mem,share=on" -machine memory-backend=ram0)
	kernel=$("$GUEST_HERE/kernel.sh") || return 1
	GUEST_DIR=$(mktemp -d "${FM_TMP:-/tmp}/guest.XXXXXX")
	GUEST_QMP=$GUEST_DIR/qmp.sock
	mkfifo "$GUEST_DIR/serial.in" "$GUEST_DIR/serial.out"
	# Bounded, whatever happens to this shell. Without 3>&- bats would wait for QEMU to end.
	timeout --foreground --kill-after=5 "${GUEST_TIMEOUT:-900}" \
		qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
		-machine q35 -accel "$accel" -smp 1 -m "$mem,slots=16,maxmem=16G" "${share[@]}" \
		-kernel "$kernel/vmlinux" -initrd "$initramfs" \
		-append 'console=ttyS0 loglevel=4 panic=-1 no_timer_check mitigations=off' \
		-chardev "file,id=console,path=$GUEST_DIR/console.log" -serial chardev:console \
		-chardev "pipe,id=lines,path=$GUEST_DIR/serial" -serial chardev:lines \
		-chardev "socket,id=qmp,path=$GUEST_QMP,server=on,wait=off" -mon chardev=qmp,mode=control \
		-pidfile "$GUEST_DIR/pid" "$@" \
		3>&- < /dev/null > "$GUEST_DIR/qemu.log" 2>&1 &
	GUEST_TIMEOUT_PID=$!
	# Both ends of both pipes stay open here, so that no open() and no write() waits for QEMU.
	exec {GUEST_FD}<> "$GUEST_DIR/serial.out" {GUEST_IN}<> "$GUEST_DIR/serial.in"
	guest_answer 240 '@ready' > /dev/null || {
		echo 'guest_start: the guest did not come up' >&2
		tail -n 20 "$GUEST_DIR/qemu.log" "$GUEST_DIR/console.log" >&2
		guest_kill
		return 1
	}
	GUEST_PID=$(cat "$GUEST_DIR/pid")
}

# Print the guest's lines up to the one that begins with $2, within $1 seconds. Sets GUEST_LAST to that line.
guest_answer() {
	local end=$((SECONDS + $1)) line='' part
	while [ "$SECONDS" -le "$end" ]; do
		part=''
		if IFS= read -r -t 1 -u "$GUEST_FD" part; then
			line+=$part
			if [[ $line == "$2"* ]]; then
				GUEST_LAST=$line
				return 0
			fi
			printf '%s\n' "$line"
			line=''
		else
			line+=$part
			kill -0 "$GUEST_TIMEOUT_PID" 2> /dev/null || break
		fi
	done
	return 124
}

guest_cmd() {
	local limit=200 GUEST_LAST
	if [ "$1" = -t ]; then
		limit=$2
		shift 2
	fi
	printf '%s\n' "$*" >&"$GUEST_IN"
	guest_answer "$limit" '@done ' || {
		echo "guest_cmd: no answer within $limit s: $*" >&2
		tail -n 20 "$GUEST_DIR/qemu.log" "$GUEST_DIR/console.log" >&2
		return 124
	}
	return "${GUEST_LAST#@done }"
}

# Returns when it has filled its memory, and goes on until it is told: however fast the machine, it runs beside what comes next.
check_begin() {
	# shellcheck disable=SC2016 # the guest's shell expands it
	guest_cmd -t 200 'rm -f /tmp/enough /tmp/verdict; (MEMCHECK_UNTIL=/tmp/enough memcheck '"$1 ${2-1} ${*:3}"' > /tmp/check 2>&1; echo $? > /tmp/verdict) > /dev/null 2>&1 < /dev/null & until [ -e /tmp/verdict ] || awk "/^AnonPages:/ { exit \$2 < '$(($1 / 1024))' }" /proc/meminfo; do sleep 0.1; done'
}

check_end() {
	local out status=0
	# shellcheck disable=SC2016
	out=$(guest_cmd -t 200 '[ ! -e /tmp/verdict ] || echo "memcheck had ended before"; touch /tmp/enough; until [ -s /tmp/verdict ]; do sleep 0.1; done; cat /tmp/check; exit $(cat /tmp/verdict)') ||
		status=$?
	printf '%s\n' "$out"
	[ "$status" -eq 0 ] || guest_cmd 'dmesg | tail -n 30'
	[[ $out == 'memcheck: checked '*', 0 wrong bytes' ]]
}

guest_wait_mib() {
	# shellcheck disable=SC2016 # the guest's shell expands it
	guest_cmd 'until awk "/^MemTotal:/ { exit \$2 < '$(($1 * 1024))' }" /proc/meminfo; do sleep 0.1; done'
}

guest_stop() {
	local i
	printf 'poweroff -f\n' >&"$GUEST_IN"
	for ((i = 0; i < 400; i++)); do
		kill -0 "$GUEST_TIMEOUT_PID" 2> /dev/null || break
		sleep 0.05
	done
	[ "$i" -lt 400 ] || {
		echo 'guest_stop: QEMU did not end within 20 s' >&2
		guest_kill
		return 1
	}
	guest_forget
}

guest_kill() {
	local pid
	[ -n "$GUEST_DIR" ] || return 0
	# QEMU first: its parent then ends by itself, and is killed in case QEMU never started.
	for pid in $(cat "$GUEST_DIR/pid" 2> /dev/null || true) "$GUEST_TIMEOUT_PID"; do
		[ -z "$pid" ] || kill -KILL "$pid" 2> /dev/null || true
	done
	[ -z "$GUEST_TIMEOUT_PID" ] || wait "$GUEST_TIMEOUT_PID" 2> /dev/null || true
	guest_forget
}

guest_forget() {
	[ -z "$GUEST_FD" ] || exec {GUEST_FD}>&- {GUEST_IN}>&-
	# shellcheck disable=SC2034 # for the callers
	GUEST_PID=''
	GUEST_TIMEOUT_PID='' GUEST_FD=''
	# The logs stay: GUEST_DIR goes with the test's folder.
}
