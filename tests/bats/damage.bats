#!/usr/bin/env bats
# sanitizers: asan
# State files that are damaged while no fm-faultd runs: what can be told is refused and left alone, and the client goes on once it is put right; nothing is
# followed out of its bounds. Offsets are those of INTERFACES.md.

bats_require_minimum_version 1.5.0
load helper
load memcached

PAGES=2048

setup_file() {
	build_clients
	mc_build
}

setup() {
	fm_setup
}

# A client with most of its pages away, and no fm-faultd. Sets STATE.
begin() {
	start_faultd --local 256p --shards 1
	start_client "map:one:$PAGES" "fill:0:$PAGES:7" say:filled until:"$FM_TMP/go" "check:0:$PAGES:7"
	client_says filled
	stop_faultd
	STATE=$(compgen -G "$FM_RUN_DIR/region-*.state")
	: > "$FM_TMP/faultd.log"
}

# number OFFSET BYTES: of the state file
number() {
	od -An "-tu$2" "-j$1" "-N$2" "$STATE" | tr -d ' '
}

# put OFFSET BYTES NUMBER [FILE]
put() {
	python3 -c 'import sys; at, n, v = map(int, sys.argv[2:]); f = open(sys.argv[1], "r+b"); f.seek(at); f.write(v.to_bytes(n, sys.byteorder))' \
		"${4:-$STATE}" "$1" "$2" "$3"
}

# What a client must see when all is right (again).
all_right() {
	touch "$FM_TMP/go"
	ends_well "$CLIENT_PID" 30
	wait_for 10 no_regions
	stop_faultd
}

# refused_until_mended WHAT: fm-faultd leaves the region alone, with its file and its pages; it serves it when `mend` has put the bytes back.
refused_until_mended() {
	local stored
	stored=$(blocks_of "$FM_TMP/store")
	start_faultd --local 256p --shards 1
	grep -q "$(basename "$STATE"): $1.*: left alone" "$FM_TMP/faultd.log"
	[ -e "$STATE" ]
	stop_faultd
	[ "$(blocks_of "$FM_TMP/store")" -eq "$stored" ]
	mend
	start_faultd --local 256p --shards 1
	all_right
}

@test "what never changes: another place, client, userfaultfd: refused and left alone, and served when put right" {
	local at
	begin
	for at in 48:8 64:8 80:4 84:4 88:8 4120:4; do
		put "${at%:*}" "${at#*:}" $(($(number "${at%:*}" "${at#*:}") ^ 4096))
	done
	mend() {
		for at in 48:8 64:8 80:4 84:4 88:8 4120:4; do
			put "${at%:*}" "${at#*:}" $(($(number "${at%:*}" "${at#*:}") ^ 4096))
		done
	}
	refused_until_mended 'damaged: its checksum is wrong'
}

@test "a range that is being discarded lies outside of the shard: refused and left alone, and served when put right" {
	local slot=$((4096 + 392 + 3 * 40))
	begin
	put "$slot" 8 $((PAGES - 8))
	put $((slot + 8)) 8 $((PAGES - 8))
	put $((slot + 16)) 8 $((PAGES + 4096))
	mend() {
		put $((slot + 16)) 8 0
	}
	refused_until_mended 'damaged: a range that is being discarded'
}

@test "it says that its memory is home, and pages are away: they are not given up for it" {
	begin
	put 248 8 $(($(number 248 8) | 16))
	start_faultd --local 256p --shards 1
	grep -q 'it says that its memory is home, and pages are away' "$FM_TMP/faultd.log"
	all_right
}

# lost.c with pages on a memcached, and no fm-faultd.
begin_memcached() {
	mc_start a
	start_faultd --local 256p --store "memcached:$(addresses a)"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	stop_faultd
	: > "$FM_TMP/faultd.log"
}

@test "a table of servers that goes out of its bounds: made anew, and every page found" {
	begin_memcached
	put 768 4 $((0x7fffffff)) "$FM_RUN_DIR/daemon.state"
	start_faultd --local 256p --store "memcached:$(addresses a)"
	grep -q 'every server of the store is asked' "$FM_TMP/faultd.log"
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	stop_faultd
}

@test "started without --no-seal where pages were stored with it, or the other way round: refused, and nothing is lost" {
	local with without name=one
	for with in '--no-seal --grace 0' '--grace 0'; do
		[ "$with" = '--grace 0' ] && without='--no-seal --grace 0' || without='--grace 0'
		mc_start a
		# shellcheck disable=SC2086 # words
		start_faultd --local 256p --store "memcached:$(addresses a)" $with
		lost_start "$name" --size $((8 << 20))
		lost_say "$name" 30 fill
		stop_faultd
		# shellcheck disable=SC2086
		run -1 "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "memcached:$(addresses a)" $without
		echo "$output"
		[ "${#lines[@]}" -eq 1 ]
		[[ $output == 'fm-faultd: --no-seal: '*': pages of the regions there are were stored with'* ]]
		# shellcheck disable=SC2086
		start_faultd --local 256p --store "memcached:$(addresses a)" $with
		lost_say "$name" 60 check
		[ "$(lost_number right)" -eq 2048 ]
		lost_end "$name"
		wait_for 10 no_regions
		stop_faultd
		name=two
		mc_kill a
		rm -f "${MC_AT[a]}"
	done
}

@test "another key than that of the regions there are: refused, also by --takeover, and nothing is lost" {
	local other
	begin_memcached
	head -c 32 /dev/urandom > "$FM_TMP/other.key"
	chmod 600 "$FM_TMP/other.key"
	# With nobody there, and with one that runs.
	for other in 1 2; do
		run -1 "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "memcached:$(addresses a)" --key-file "$FM_TMP/other.key" --takeover
		[ "${#lines[@]}" -eq 1 ]
		[[ $output == *"--key-file: $FM_TMP/other.key: is not the key that pages of the regions there are sealed with" ]]
		[ "$other" = 2 ] || start_faultd --local 256p --store "memcached:$(addresses a)"
	done
	alive "$FAULTD_PID"
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	wait_for 10 no_regions
	stop_faultd
	start_faultd --store "memcached:$(addresses a)" --key-file "$FM_TMP/other.key"
	stop_faultd
}

@test "daemon.state of another version: refused and left alone while there are regions" {
	local before
	begin_memcached
	put 8 4 77 "$FM_RUN_DIR/daemon.state"
	before=$(sha256sum < "$FM_RUN_DIR/daemon.state")
	run -1 "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "memcached:$(addresses a)"
	[ "${#lines[@]}" -eq 1 ]
	[[ $output == *'daemon.state: made by another version of fm (77, '* ]]
	[ "$(sha256sum < "$FM_RUN_DIR/daemon.state")" = "$before" ]
	put 8 4 3 "$FM_RUN_DIR/daemon.state"
	start_faultd --local 256p --store "memcached:$(addresses a)"
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	wait_for 10 no_regions
	stop_faultd
	# Nobody is left who would miss it.
	put 8 4 77 "$FM_RUN_DIR/daemon.state"
	start_faultd --local 256p --store "memcached:$(addresses a)"
	stop_faultd
}
