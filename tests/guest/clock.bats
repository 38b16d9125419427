#!/usr/bin/env bats
# The wall clock jumps, by decades and back, under both daemons: in a guest, for there it is theirs alone. What they decide goes by
# CLOCK_MONOTONIC; CLOCK_REALTIME is only printed.
# shellcheck disable=SC2016 # what stands in single quotes is for the shell of the guest

bats_require_minimum_version 1.5.0
load ../bats/helper
load lib

# The guest's initramfs with fm's programs and the checker on top: the kernel takes several archives in a row.
setup_file() {
	local dir=$BATS_FILE_TMPDIR/more p
	mkdir -p "$dir/bin"
	cc -O1 -static -std=c11 -D_GNU_SOURCE -I"$FM_ROOT/lib" -o "$dir/bin/torture" "$FM_ROOT/tests/stress/torture.c" "$FM_LIB/libfm.a" -lpthread
	strip "$dir/bin/torture"
	for p in fm-faultd fm-evict fm-stat; do
		strip -o "$dir/bin/$p" "$FM_BIN/$p"
	done
	(cd "$dir" && find . -mindepth 1 | sort | cpio -o -H newc -R 0:0 --quiet) > "$BATS_FILE_TMPDIR/more.cpio"
	cat "$FM_BIN/../guest/initramfs" "$BATS_FILE_TMPDIR/more.cpio" > "$BATS_FILE_TMPDIR/initramfs"
}

setup() {
	fm_setup
	export GUEST_INITRAMFS=$BATS_FILE_TMPDIR/initramfs
}

teardown() {
	guest_kill
	fm_teardown
}

# In the guest: a number that fm-stat has of the first region.
guest_stat() {
	guest_cmd "fm-stat -j -d /tmp/run | sed -n 's/.*\"$1\":\\([0-9]*\\).*/\\1/p'"
}

@test "the wall clock jumps forth and back by decades: faults, evictions and graces go on, every word is right" {
	local date n before
	guest_start
	guest_cmd 'mkdir /tmp/run /tmp/store && mount -t tmpfs none /tmp/run && mount -t tmpfs none /tmp/store'
	guest_cmd 'fm-faultd -d /tmp/run --store dir:/tmp/store --local 256p --grace 200 > /tmp/faultd.log 2>&1 &'
	guest_cmd 'until [ -S /tmp/run/fm.sock ]; do sleep 0.1; done'
	guest_cmd 'torture --run-dir /tmp/run --size 4194304 --threads 4 --seconds 600 --discard > /tmp/torture.log 2>&1 & echo $! > /tmp/torture.pid'
	guest_cmd 'until fm-stat -j -d /tmp/run | grep -q "\"evictions\":[1-9]"; do sleep 0.1; done'
	before=$(guest_cmd 'pidof fm-faultd fm-evict')
	for date in '2037-01-01 00:00:00' '1971-01-01 00:00:00' '2026-06-01 12:00:00' '2026-06-01 11:59:00' '2036-02-07 06:28:15' '1970-01-02 00:00:00'; do
		guest_cmd "date -s '$date'"
		n=$(guest_stat evictions)
		# A thousand pages more leave, each of which cooled for its grace if it was written.
		guest_cmd -t 120 "until [ \$(fm-stat -j -d /tmp/run | sed -n 's/.*\"evictions\":\\([0-9]*\\).*/\\1/p') -gt $((n + 1000)) ]; do sleep 0.1; done"
	done
	[ "$(guest_stat pages_lost)" -eq 0 ]
	# The same daemons, with nothing to say; and the next ones come up in another year.
	[ "$(guest_cmd 'pidof fm-faultd fm-evict')" = "$before" ]
	[ -z "$(guest_cmd 'cat /tmp/faultd.log')" ]
	guest_cmd 'kill -KILL $(pidof fm-faultd); date -s "2030-01-01 00:00:00"; fm-faultd -d /tmp/run --store dir:/tmp/store --local 256p --grace 200 > /tmp/faultd.log 2>&1 &'
	n=$(guest_stat evictions)
	guest_cmd -t 120 "until [ \$(fm-stat -j -d /tmp/run | sed -n 's/.*\"evictions\":\\([0-9]*\\).*/\\1/p') -gt $((n + 1000)) ]; do sleep 0.1; done"
	guest_cmd -t 120 'kill -TERM $(cat /tmp/torture.pid); while kill -0 $(cat /tmp/torture.pid) 2> /dev/null; do sleep 0.1; done; cat /tmp/torture.log'
	guest_cmd 'grep -q " operations, 0 wrong words$" /tmp/torture.log'
	guest_stop
}
