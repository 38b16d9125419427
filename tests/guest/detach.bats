#!/usr/bin/env bats
# fm-hotplug --detach: a guest's memory comes home while the guest checks it, and goes out again.
# shellcheck disable=SC2016 # what stands in single quotes is for the shell of the guest

load ../bats/helper
load lib

setup() {
	fm_setup
	export GUEST_INITRAMFS=$FM_BIN/../guest/initramfs
}

teardown() {
	guest_kill
	fm_teardown
}

hotplug() {
	timeout 120 "$FM_BIN/fm-hotplug" "$@" 3>&-
}

# Userfaultfds open in QEMU.
uffds() {
	find "/proc/$GUEST_PID/fd" -lname '*userfaultfd*' | wc -l
}

# How many of QEMU's mappings are registered with one.
registered() {
	grep -cE '^VmFlags:.* (um|uw)( |$)' "/proc/$GUEST_PID/smaps" || true
}

remote_above() {
	[ "$(region_stat .remote_pages)" -gt "$1" ]
}

@test "attach, detach, attach under a checker in the guest: 0 wrong bytes, and nothing is left behind" {
	local before files
	start_faultd --local 48M
	guest_start --share
	files=$(daemon_files)
	check_begin 100663296
	for _ in 1 2 3; do
		hotplug --attach "$GUEST_QMP"
		[ "$(registered)" -gt 0 ]
		wait_for 60 remote_above 4096
		before=$(region_stat .remote_pages)
		run hotplug --detach "$GUEST_QMP"
		echo "$output"
		[ "$status" -eq 0 ]
		[ "$output" = 'ram0: detached' ]
		echo "# $before pages came home" >&3
		no_regions
		store_is_empty
		[ "$(registered)" = 0 ]
		[ "$(uffds)" = 0 ]
		wait_for 20 daemon_files_are "$files"
	done
	hotplug --attach "$GUEST_QMP"
	wait_for 60 remote_above 4096
	check_end
	[ "$(region_stat .pages_lost)" = 0 ]
	guest_stop
	wait_for 60 no_regions
	stop_faultd
}
