# Domains of a real libvirtd, started by hand: sourced by tests/guest/libvirt*.bats after ../bats/helper and lib.
#
#   libvirt_start             for setup_file: start libvirtd (see libvirtd.sh)
#   libvirt_again             for setup: know the one that runs
#   libvirt_restart PID       end it, and start another in the mount namespace of PID, a domain's process
#   libvirt_stop              for teardown_file: end its domains, then itself
#   in_libvirt CMD...         run a command where its sockets and files are (mount namespace; the working directory is /)
#   v ARGS...                 virsh there
#   domain_xml NAME [OPTION]  print a domain's XML. Options: --plain (no far memory's elements), --mib N (256), --cells N, --file
#                             (memory in files, as Nova writes it), --user UID, --extra XML (devices), --top XML (elements of <domain>)
#   domain_start NAME [...]   start such a domain, with a guest that is up; sets GUEST_PID and all that guest_cmd needs
#   domain_use NAME           guest_cmd talks to this one from here on
#   domain_wait NAME          the guest has come up (again)
#   domain_process NAME       it has another process, whose guest goes on
#   guest_send LINE           a line for the guest that it does not answer
#   domain_forget NAME        it ended: close its pipes
#
# A domain's name is also that of its files in /run/guest.

LV_HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
declare -gA DOM_IN DOM_OUT DOM_PID

libvirt_start() {
	local p
	unshare --mount true 2> /dev/null || skip "no mount namespaces"
	for p in libvirtd virsh unshare nsenter qemu-system-x86_64; do
		requires "$p" || skip "no $p"
	done
	[ "$(id -u)" -eq 0 ] || skip "not root"
	export LV_DIR=$BATS_FILE_TMPDIR/libvirt
	mkdir -p "$LV_DIR/guest"
	chmod 755 "$LV_DIR" "$LV_DIR/guest"
	cp "$("$LV_HERE/kernel.sh")/vmlinux" "$FM_BIN/../guest/initramfs" "$LV_DIR/guest"
	chmod a+r "$LV_DIR"/guest/*
	# It becomes libvirtd by exec: this pid is libvirtd's.
	unshare --mount "$LV_HERE/libvirtd.sh" "$LV_DIR" > "$LV_DIR/libvirtd.log" 2>&1 3>&- < /dev/null &
	libvirt_ready $!
}

libvirt_ready() {
	LV_PID=$1
	echo "$LV_PID" > "$LV_DIR/pid"
	# shellcheck disable=SC2317 # wait_for calls it
	libvirt_answers() { v version > /dev/null 2>&1; }
	wait_for 60 libvirt_answers || {
		cat "$LV_DIR/libvirtd.log" >&2
		return 1
	}
}

libvirt_again() {
	LV_PID=$(cat "$LV_DIR/pid")
}

libvirt_restart() {
	kill -TERM "$LV_PID"
	# Who has to reap it may have ended.
	# shellcheck disable=SC2317 # wait_for calls it
	ended() { ! grep -qs '^State:.[^ZX]' "/proc/$LV_PID/status"; }
	wait_for 30 ended
	nsenter -t "$1" -m libvirtd --config /etc/libvirt/libvirtd.conf >> "$LV_DIR/libvirtd.log" 2>&1 3>&- < /dev/null &
	libvirt_ready $!
}

libvirt_stop() {
	local id
	[ ! -e "$LV_DIR/pid" ] || libvirt_again
	[ -n "${LV_PID-}" ] && alive "$LV_PID" || return 0
	for id in $(v list --id); do
		v destroy "$id" || true
	done
	kill -TERM "$LV_PID"
	wait_for 10 gone "$LV_PID" || kill -KILL "$LV_PID"
}

in_libvirt() {
	nsenter -t "$LV_PID" -m -r "$@" 3>&-
}

v() {
	in_libvirt timeout 120 virsh -q -c qemu:///system "$@"
}

domain_xml() {
	local name=$1 plain='' mib=256 cells=1 source=memfd user='' extra='' top='' i numa='' nova=''
	shift
	while [ $# -gt 0 ]; do
		case $1 in
		--plain) plain=1 && shift ;;
		--mib) mib=$2 && shift 2 ;;
		--cells) cells=$2 && shift 2 ;;
		--file) source='file' nova="<allocation mode='immediate'/><discard/>" && shift ;;
		--user) user=$2 && shift 2 ;;
		--extra) extra=$2 && shift 2 ;;
		--top) top=$2 && shift 2 ;;
		*) echo "domain_xml: $1: unknown option" >&2 && return 2 ;;
		esac
	done
	for ((i = 0; i < cells; i++)); do
		numa+="<cell id='$i' cpus='$i' memory='$((mib / cells))' unit='MiB'/>"
	done
	cat << EOT
<domain type='qemu'>
<name>$name</name>
<memory unit='MiB'>$mib</memory>
<vcpu>$cells</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>/run/guest/vmlinux</kernel><initrd>/run/guest/initramfs</initrd>
<cmdline>console=ttyS0 loglevel=4 panic=-1 no_timer_check mitigations=off</cmdline></os>
<features><acpi/></features>
EOT
	[ -n "$plain" ] || cat << EOT
<maxMemory slots='4' unit='MiB'>2048</maxMemory>
<memoryBacking><source type='$source'/><access mode='shared'/>$nova</memoryBacking>
<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model><numa>$numa</numa></cpu>
EOT
	[ -z "$user" ] || echo "<seclabel type='static' model='dac' relabel='no'><label>+$user:+$user</label></seclabel>"
	cat << EOT
$top
<on_reboot>restart</on_reboot>
<devices>
<serial type='file'><source path='/run/guest/$name.console'/><target port='0'/></serial>
<serial type='pipe'><source path='/run/guest/$name'/><target port='1'/></serial>
<controller type='usb' model='none'/><memballoon model='none'/>
$extra
</devices>
</domain>
EOT
}

# Both ends of both pipes stay open here, as in guest_start.
domain_pipes() {
	local fd
	rm -f "$LV_DIR/guest/$1".{in,out}
	mkfifo -m 666 "$LV_DIR/guest/$1".{in,out}
	exec {fd}<> "$LV_DIR/guest/$1.out"
	DOM_OUT[$1]=$fd
	exec {fd}<> "$LV_DIR/guest/$1.in"
	DOM_IN[$1]=$fd
}

domain_start() {
	local name=$1
	domain_pipes "$name"
	domain_xml "$@" > "$LV_DIR/guest/$name.xml"
	v create "/run/guest/$name.xml" || return 1
	domain_wait "$name"
}

# QEMU's process, by the file that libvirt has written for it.
domain_pid() {
	in_libvirt cat "/run/libvirt/qemu/$1.pid"
}

# It has a process, or another one than before.
domain_process() {
	DOM_PID[$1]=$(domain_pid "$1")
	domain_use "$1"
}

# A line for the guest that it does not answer.
guest_send() {
	printf '%s\n' "$1" >&"$GUEST_IN"
}

domain_wait() {
	domain_process "$1"
	guest_answer 240 '@ready' > /dev/null || {
		echo "domain_wait: the guest of $1 did not come up" >&2
		tail -n 20 "$LV_DIR/guest/$1.console" "$LV_DIR/libvirtd.log" >&2
		return 1
	}
}

# shellcheck disable=SC2034 # lib.bash uses them
domain_use() {
	GUEST_FD=${DOM_OUT[$1]} GUEST_IN=${DOM_IN[$1]} GUEST_TIMEOUT_PID=${DOM_PID[$1]} GUEST_PID=${DOM_PID[$1]}
	GUEST_DIR=$LV_DIR/guest
	: > "$GUEST_DIR/qemu.log"
	ln -sf "$1.console" "$GUEST_DIR/console.log"
}

domain_forget() {
	local fd=${DOM_OUT[$1]} fd2=${DOM_IN[$1]}
	exec {fd}>&- {fd2}>&-
	unset "DOM_OUT[$1]" "DOM_IN[$1]" "DOM_PID[$1]"
}
