#!/usr/bin/env bats
# fm-hotplug and domains of a real libvirtd (started by hand, in a mount namespace of its own) with guests that run.
# shellcheck disable=SC2016 # what stands in single quotes is for the shell of the guest

load ../bats/helper
load lib
load libvirt

setup_file() {
	libvirt_start
}

teardown_file() {
	libvirt_stop
}

setup() {
	fm_setup
}

teardown() {
	local id
	for id in $(v list --id); do
		v destroy "$id" > /dev/null || true
	done
	for id in $(v list --all --name); do
		v undefine "$id" > /dev/null || true
	done
	fm_teardown
}

# hotplug STATUS ARGS...: run fm-hotplug; fails unless it ends with that status and, when that is not 0, one line on stderr.
hotplug() {
	local want=$1 status=0
	shift
	in_libvirt timeout 120 env "${WITH[@]}" "$FM_BIN/fm-hotplug" "$@" > "$FM_TMP/out" 2> "$FM_TMP/err" || status=$?
	output=$(cat "$FM_TMP/out" "$FM_TMP/err")
	echo "$ fm-hotplug $*: $status"
	echo "$output"
	[ "$status" -eq "$want" ] || return 1
	[ "$want" -eq 0 ] || [ "$(wc -l < "$FM_TMP/err")" -eq 1 ]
}
WITH=()

says() {
	[[ $output == *"$1"* ]] || {
		echo "not said: $1"
		return 1
	}
}

regions() {
	"$FM_BIN/fm-stat" -j | jq '.regions | length'
}

no_region() {
	[ "$(regions)" = 0 ]
}

remote_pages() {
	"$FM_BIN/fm-stat" -j | jq '[.regions[].remote_pages] | add // 0'
}

# Userfaultfds open in the VM.
uffds() {
	find "/proc/$GUEST_PID/fd" -lname '*userfaultfd*' | wc -l
}

# Run memcheck in the guest beside other things: check_begin BYTES PASSES, then check_end.
check_begin() {
	guest_cmd "(memcheck $1 $2 > /tmp/log 2>&1; echo \$? > /tmp/status) > /dev/null 2>&1 < /dev/null &"
}
check_end() {
	guest_cmd -t 200 'until [ -s /tmp/status ]; do sleep 0.1; done; cat /tmp/log; s=$(cat /tmp/status); rm /tmp/status; exit $s' \
		> "$FM_TMP/check"
	cat "$FM_TMP/check"
	grep -q ', 0 wrong bytes' "$FM_TMP/check"
}

@test "a DIMM by name, another by UUID: libvirt knows them, every byte is right, and out again" {
	start_faultd --local 24M
	domain_start one
	uuid=$(v domuuid one)
	guest_cmd 'fm-online --watch > /tmp/online 2>&1 &'
	hotplug 0 one 128M
	[[ $output == 'fm0: 128M at 0x100000000, node 0, region '* ]]
	hotplug 0 "$uuid" 128M --id two_2 --node 0
	[[ $output == 'two_2: 128M at 0x108000000, node 0, region '* ]]
	v dumpxml one > "$FM_TMP/xml"
	grep -q "<alias name='ua-fm0'/>" "$FM_TMP/xml"
	grep -q "<alias name='ua-two_2'/>" "$FM_TMP/xml"
	[ "$(grep -c "<memory model='dimm' access='shared'" "$FM_TMP/xml")" = 2 ]
	guest_wait_mib 350
	run guest_cmd -t 200 'memcheck 201326592 2'
	echo "$output"
	[[ $output == *', 0 wrong bytes'* ]]
	[ "$(remote_pages)" -gt 20000 ]
	hotplug 1 one 128M --id fm0
	says "id 'fm0': taken already"
	hotplug 2 one 128M --id a.b
	says "no '.'"
	hotplug 0 --list one
	grep -qE '^ram-node0 +boot +256M +- +no +- +-$' "$FM_TMP/out"
	grep -qE '^fm0 +dimm +128M +0 +yes ' "$FM_TMP/out"
	grep -qE '^two_2 +dimm +128M +0 +yes ' "$FM_TMP/out"
	hotplug 0 --remove one two_2
	hotplug 1 --remove one two_2
	says 'no memory device of this id'
	hotplug 0 --remove "$uuid" fm0
	[ "$(regions)" = 0 ]
	[ "$(v dumpxml one | grep -c '<memory model')" = 0 ]
	[ "$(uffds)" = 0 ]
	wait_for 5 store_is_empty
	# Once more: the same id and place.
	hotplug 0 one 128M
	says 'fm0: 128M at 0x100000000'
	v destroy one
	domain_forget one
	wait_for 10 no_region
	wait_for 5 store_is_empty
	stop_faultd
}
