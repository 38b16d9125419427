#!/usr/bin/env bats
# Writes behind the page tables (O_DIRECT, aio, io_uring) into pages that are being evicted: the DMA grace.

bats_require_minimum_version 1.5.0
load helper

setup_file() {
	cc -O1 -std=c11 -D_GNU_SOURCE -I"$FM_ROOT/lib" -o "$BATS_FILE_TMPDIR/dma" "$FM_ROOT"/tests/stress/dma.c \
		"$FM_ROOT"/lib/shmfile.c "$FM_ROOT"/lib/page.c "$FM_LIB/libfm.a" -lpthread
	cc -O1 -std=c11 -D_GNU_SOURCE -I"$FM_ROOT/lib" -o "$BATS_FILE_TMPDIR/client" "$FM_ROOT/tests/stress/client.c" \
		"$FM_LIB/libfm.a" -lpthread
}

setup() {
	fm_setup
	[ "$(id -u)" -eq 0 ] || skip "no root"
	[ -e /dev/fuse ] || skip "no /dev/fuse"
	[ "$(cat /proc/sys/kernel/io_uring_disabled 2> /dev/null || echo 0)" -ne 2 ] || skip "io_uring is disabled here"
}

start_dma() {
	"$BATS_FILE_TMPDIR/dma" "$@" > "$FM_TMP/client.out" 2> "$FM_TMP/client.err" 3>&- < /dev/null &
	CLIENT_PID=$!
	track "$CLIENT_PID"
}

dma_result() {
	ends_well "$CLIENT_PID" 120
	cat "$FM_TMP/client.out"
}

@test "without a grace, a read that is answered after its page has left is lost" {
	start_faultd
	start_dma hold dma 0
	client_says held
	run -0 "$FM_BIN/fm-evict" --all dma
	run -0 dma_result
	[[ $output =~ "dma: 3 reads, "([0-9]+)" wrong bytes" ]]
	# All three pages, but for bytes that are the same by chance.
	[ "${BASH_REMATCH[1]}" -gt $((3 * 4000)) ]
	stop_faultd
}

@test "with a grace it is kept: read, aio and io_uring with O_DIRECT" {
	start_faultd
	start_dma hold dma 4000
	client_says held
	[ "$(region_stat .grace_ms)" -eq 4000 ]
	# Until all pages have left, after a second grace for those that were written behind their protection.
	run -0 timeout 60 "$FM_BIN/fm-evict" --all dma
	[ "$output" -eq 3 ]
	run -0 dma_result
	[[ $output == *"dma: 3 reads, 0 wrong bytes"* ]]
	stop_faultd
}

cooling() {
	[ "$(region_stat '.cooling_pages // 0')" -ge "$1" ]
}

@test "the evictor dies in the grace: what it knew of its pages is not needed" {
	local evictor
	start_faultd
	start_dma hold dma 3000
	client_says held
	"$FM_BIN/fm-evict" --all dma 3>&- > /dev/null 2>&1 &
	track $!
	wait_for 30 cooling 3
	evictor=$(children_of "$FAULTD_PID")
	kill -KILL "${evictor% }"
	for _ in 1 2 3; do
		timeout 60 "$FM_BIN/fm-evict" --all dma && break
	done
	run -0 dma_result
	[[ $output == *"dma: 3 reads, 0 wrong bytes"* ]]
	stop_faultd
}

@test "reads answered at random times within the grace, everything always on its way out: no byte wrong" {
	local late=0 n
	start_faultd --local 512p
	start_dma random dma 2000 10
	# Who has not registered yet, or is gone again, has no region.
	while alive "$CLIENT_PID"; do
		timeout 60 "$FM_BIN/fm-evict" --all dma 3>&- > /dev/null 2>&1 || sleep 0.05
		n=$(region_stat '.late_writes // 0')
		late=$((n > late ? n : late))
	done
	run -0 dma_result
	echo "# ${lines[-1]}, $late pages kept that were written behind their protection" >&3
	[ "$late" -gt 0 ]
	[[ $output == *" 0 wrong bytes"* ]]
	[[ $output != *"dma: 0 reads"* ]]
	stop_faultd
}

@test "the grace is set by the daemon, by kind, and for one region" {
	start_faultd
	start_client map:one:64 fill:0:64:3 say:filled until:"$FM_TMP/go"
	client_says filled
	[ "$(region_stat .grace_ms)" -eq 0 ]
	run -0 "$FM_BIN/fm-evict" --grace 1500 one
	[ "$(region_stat .grace_ms)" -eq 1500 ]
	run -2 "$FM_BIN/fm-evict" --grace 60001 one
	[[ $output == "fm-evict: --grace: 60001: must be a number of ms from 0 to 60000" ]]
	run -2 "$FM_BIN/fm-evict" --grace -1 one
	run -2 "$FM_BIN/fm-evict" --grace 10
	run -1 "$FM_BIN/fm-evict" --grace 10 two
	touch "$FM_TMP/go"
	ends_well "$CLIENT_PID"
	wait_for 10 no_regions
	stop_faultd
	run -2 "$FM_BIN/fm-faultd" --grace 60001
	start_faultd --grace 700
	start_client map:two:64 say:mapped until:"$FM_TMP/go.2"
	client_says mapped
	[ "$(region_stat .grace_ms)" -eq 700 ]
	stop_faultd
}

@test "a budget of 16 pages, all written again and again within their grace: everybody gets on" {
	start_faultd --local 16p --grace 500
	# Two programs: each wants all of the budget for itself.
	"$BATS_FILE_TMPDIR/client" map:a:48 fill:0:48:1 fill:0:48:2 check:0:48:2 3>&- > /dev/null 2> "$FM_TMP/a.err" &
	local a=$!
	track "$a"
	"$BATS_FILE_TMPDIR/client" map:b:48 fill:0:48:3 fill:0:48:4 check:0:48:4 3>&- > /dev/null 2> "$FM_TMP/b.err" &
	local b=$!
	track "$b"
	ends_well "$a" 120
	ends_well "$b" 120
	stop_faultd
}
