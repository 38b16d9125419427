#!/usr/bin/env bats
# What contrib has for guests, in boots of the distribution's own tools: initramfs-tools, systemd.
# shellcheck disable=SC2016 # what stands in single quotes is for the shell of the guest

load ../bats/helper
load lib

setup() {
	fm_setup
	[ "$(id -u)" -eq 0 ] || skip "not root"
	unshare --mount true 2> /dev/null || skip "no mount namespaces"
}

teardown() {
	guest_kill
	fm_teardown
}

hotplug() {
	timeout 180 "$FM_BIN/fm-hotplug" "$@" 3>&-
}

# guest_says WANT LINE: run a line in the guest until it prints something that contains WANT.
guest_says() {
	local want=$1
	shift
	says_now() { [[ $(guest_cmd "$@") == *"$want"* ]]; }
	wait_for 90 says_now "$@" || {
		guest_cmd "$@"
		guest_cmd 'journalctl --no-pager -n 30 2> /dev/null || dmesg | tail -n 30'
		return 1
	}
}

@test "an initramfs of initramfs-tools: its boot has DIMMs online before anything is mounted, and the driver of virtio-mem" {
	requires mkinitramfs || skip "no initramfs-tools"
	unshare --mount "$FM_ROOT/tests/guest/initramfs-tools.sh" "$FM_TMP/initramfs" "$FM_BIN/fm-online"
	guest_start --initramfs "$FM_TMP/initramfs" -- -object memory-backend-ram,id=m0,size=128M -device pc-dimm,id=d0,memdev=m0 \
		-object memory-backend-ram,id=m1,size=128M -device virtio-mem-pci,id=v0,memdev=m1,requested-size=128M
	run guest_cmd 'fm-online --status'
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output =~ memory32\ +online\ +Movable ]]
	# Its driver adds its memory a little later, perhaps after the boot script.
	guest_says 'online 512M (movable 256M)' 'fm-online > /dev/null; fm-online --status'
	guest_stop
}

@test "under systemd: the unit of fm-online takes DIMMs at boot and later, and comes back; the unit of fm-faultd serves, also after kill -9" {
	requires systemctl || skip "no systemd"
	cc -O1 -static -std=c11 -D_GNU_SOURCE -I"$FM_ROOT/lib" -o "$FM_TMP/client" "$FM_ROOT/tests/stress/client.c" "$FM_LIB/libfm.a" -lpthread
	"$FM_ROOT/tests/guest/systemd.sh" "$FM_TMP/initramfs" "$FM_BIN"/fm-{online,faultd,evict,stat} "$FM_TMP/client"
	start_faultd --local 16M
	guest_start --mem 512M --initramfs "$FM_TMP/initramfs" -- -object memory-backend-ram,id=m0,size=128M -device pc-dimm,id=d0,memdev=m0
	guest_says 'online 640M (movable 128M)' 'fm-online --status'
	guest_says active 'systemctl is-active fm-online'
	guest_cmd 'kill -9 $(systemctl show -P MainPID fm-online)'
	guest_says 1 'systemctl show -P NRestarts fm-online'
	guest_says active 'systemctl is-active fm-online'
	hotplug "$GUEST_QMP" 128M
	guest_says 'online 768M (movable 256M)' 'fm-online --status'
	hotplug --remove "$GUEST_QMP" fm0
	guest_says 'online 640M' 'fm-online --status'
	guest_cmd 'systemctl stop fm-online'
	guest_says 'Result=success' 'systemctl show -p Result fm-online'

	# A host this time.
	guest_cmd 'echo "FM_OPTIONS=--store dir:/var/lib/fm/store --local 4M" > /etc/default/fm-faultd; systemctl start fm-faultd'
	guest_says there '[ ! -S /run/fm/fm.sock ] || echo there'
	guest_cmd 'client map:one:4096 fill:0:4096:7 say:filled until:/tmp/go check:0:4096:7 fill:0:4096:8 until:/tmp/on check:0:4096:8 say:right > /tmp/client 2>&1 < /dev/null & true'
	guest_says filled 'cat /tmp/client'
	guest_cmd 'kill -9 $(systemctl show -P MainPID fm-faultd); touch /tmp/go'
	guest_says 1 'systemctl show -P NRestarts fm-faultd'
	# Stopped in order and started again: the memory waits in between.
	guest_cmd 'systemctl restart fm-faultd && touch /tmp/on'
	guest_says right 'cat /tmp/client'
	guest_cmd 'systemctl stop fm-faultd'
	guest_says 'Result=success' 'systemctl show -p Result fm-faultd'
	[ "$(guest_cmd 'systemctl --failed --no-legend')" = '' ]
	guest_stop
}

@test "systemd finds nothing wrong with the unit of fm-online" {
	requires systemd-analyze || skip "no systemd-analyze"
	sed "s|/usr/local/bin|$(realpath "$FM_BIN")|; /^Documentation=/d" "$FM_ROOT/contrib/systemd/fm-online.service" > "$FM_TMP/fm-online.service"
	run systemd-analyze verify "$FM_TMP/fm-online.service"
	echo "$output"
	[ "$status" -eq 0 ] && [ -z "$output" ]
}
