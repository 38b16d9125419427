#!/usr/bin/env bats
# sanitizers: asan
# Pages in real memcached servers: over TCP and Unix sockets, with servers that die, stop, fill up, or are none.

load helper
load memcached

setup_file() {
	mc_build
}

setup() {
	fm_setup
	seconds=${FM_STRESS_SECONDS:-5}
}

# torture on what is given to fm-faultd; at the end no region and, on the servers named after --, no key is left.
tortured() {
	local args=()
	while [ "$1" != -- ]; do
		args+=("$1")
		shift
	done
	shift
	start_faultd --local 512p "${args[@]}"
	torture_start 2 --size $((16 << 20))
	torture_end 60
	wait_for 10 no_regions
	wait_for 10 mc_empty "$@"
	stop_faultd
}

# --- it works

@test "torture over a Unix socket: 0 wrong words, and no key is left" {
	mc_start a
	tortured --store "memcached:${MC_AT[a]}" -- a
}

@test "torture over TCP: 0 wrong words, and no key is left" {
	mc_start a -l 127.0.0.1 -p -1
	mc_start b -l 127.0.0.1 -p -1
	tortured --store "memcached://$(addresses a b)" --replicas 2 -- a b
}

@test "torture over libmemcached's option string: 0 wrong words, and no key is left" {
	mc_start a -l 127.0.0.1 -p -1
	mc_start b -l 127.0.0.1 -p -1
	tortured --store "memcached:--SERVER=${MC_AT[a]} --SERVER=${MC_AT[b]}" -- a b
}

@test "torture in the clear (--no-seal): 0 wrong words, and no key is left" {
	mc_start a
	tortured --store "memcached:${MC_AT[a]}" --no-seal -- a
}

@test "pages lie on every server, each on R of them" {
	mc_start a
	mc_start b
	mc_start c
	start_faultd --local 256p --store "memcached:$(addresses a b c)" --replicas 2
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	away=$(region_stat one remote_pages)
	for name in a b c; do
		items=$(mc_items "$name")
		echo "$name: $items of $away pages"
		[ "$items" -gt $((away / 2)) ]
		[ "$items" -lt $((away * 5 / 6)) ]
	done
	[ "$(mc_items a b c)" -ge $((2 * away)) ]
	[ "$(mc_items a b c)" -le $((2 * 2048)) ]
	lost_say one 30 check
	[ "$(lost_number right)" -eq 2048 ]
	lost_end one
	wait_for 10 mc_empty a b c
	stop_faultd
}

# --- servers that die or stop

@test "R=2 of three servers, one killed and restarted empty again and again: 0 wrong words, 0 lost pages" {
	mc_start a
	mc_start b
	mc_start c
	start_faultd --local 1024p --store "memcached:$(addresses a b c)" --replicas 2
	torture_start $((2 * seconds)) --size $((32 << 20))
	"$FM_BIN/fm-stat" -j -i 0.1 > "$FM_TMP/samples" 3>&- &
	track $!
	kills=0
	while alive "$TORTURE_PID"; do
		mc_kill b
		sleep 0.2 # away for a moment
		mc_start b
		sleep 0.3 # and there for a moment
		kills=$((kills + 1))
	done
	torture_end 60
	echo "killed $kills times"
	[ "$kills" -ge 2 ]
	[ "$(jq -s 'map(.regions[].pages_lost) | max' "$FM_TMP/samples")" -eq 0 ]
	[ "$(jq -s 'map(.regions[].store_puts) | max' "$FM_TMP/samples")" -gt 5000 ]
	wait_for 10 no_regions
	wait_for 10 mc_empty a c
	stop_faultd
}

@test "R=1 and the server stands still for a while: faults wait, and go on" {
	mc_start a
	start_faultd --local 256p --store "memcached:${MC_AT[a]}"
	lost_start one --size $((4 << 20))
	lost_say one 30 fill
	kill -STOP "${MC_PID[a]}"
	lost_send one 'check'
	wait_for 10 has_flag one store_down
	sleep "${FM_STOP_SECONDS:-10}" # much longer than the store's timeout
	unanswered one
	[ "$(region_stat one pages_lost)" -eq 0 ]
	kill -CONT "${MC_PID[a]}"
	lost_answer one 30
	[ "$(lost_number right)" -eq 1024 ]
	lost_say one 30 'churn 2000 1024'
	[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
	wait_for 5 lacks_flag one store_down
	[ "$(region_stat one pages_lost)" -eq 0 ]
	lost_end one
	wait_for 10 mc_empty a
	stop_faultd
}

@test "R=1 of two servers and one killed for good: exactly its pages are lost, counted, and raise SIGBUS" {
	mc_start a
	mc_start b
	start_faultd --local 256p --store "memcached:$(addresses a b)?gone=1"
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	wait_for 30 still
	held=$(mc_items b)
	[ "$held" -gt 500 ]
	pages_on b > "$FM_TMP/held"
	pages_away > "$FM_TMP/away"
	sort "$FM_TMP/held" "$FM_TMP/away" | uniq -d > "$FM_TMP/must"
	mc_kill b
	lost_say one 120 which
	tr ' ' '\n' <<< "${LOST_SAID#lost: }" | sort > "$FM_TMP/lost"
	# Every page that was on this server and nowhere else, and none that was not on it.
	[ "$(wc -l < "$FM_TMP/must")" -gt 500 ]
	[ -z "$(comm -23 "$FM_TMP/must" "$FM_TMP/lost")" ]
	[ -z "$(comm -13 <(sort "$FM_TMP/held") "$FM_TMP/lost")" ]
	lost_say one 60 check
	lost=$(lost_number lost)
	[ "$(lost_number wrong)" -eq 0 ]
	[[ $LOST_SAID == *' 0 of them zeros' ]]
	[ $((lost + $(lost_number right))) -eq 2048 ]
	echo "$held pages on b, $lost lost"
	[ "$(wc -l < "$FM_TMP/lost")" -eq "$lost" ]
	[ "$(region_stat one pages_lost)" -eq "$lost" ]
	# The same pages again, no more and no less.
	lost_say one 60 check
	[ "$(lost_number lost)" -eq "$lost" ]
	[ "$(lost_number wrong)" -eq 0 ]
	[ "$(region_stat one pages_lost)" -eq "$lost" ]
	# The rest works, and is stored where there is a server.
	lost_say one 60 'churn 4000 2048'
	[ "$(lost_number wrong)" -eq 0 ]
	lost_say one 60 check
	[ "$(lost_number lost)" -eq "$lost" ]
	[ "$(lost_number wrong)" -eq 0 ]
	lost_end one
	wait_for 20 no_regions
	wait_for 10 mc_empty a
	stop_faultd
}

# Each page that is away is on server a, and on c.
on_both() {
	local away
	away=$(region_stat one remote_pages)
	[ "$(mc_items a)" -ge "$away" ] && [ "$(mc_items c)" -ge "$away" ]
}

@test "R=2 of three servers, one killed for good and then another: 0 lost pages, for copies were made anew between" {
	mc_start a
	mc_start b
	mc_start c
	start_faultd --local 256p --store "memcached:$(addresses a b c)?gone=1" --replicas 2
	lost_start one --size $((8 << 20))
	lost_say one 30 fill
	mc_kill b
	wait_for 30 on_both
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	wait_for 30 on_both
	mc_kill c
	lost_say one 60 check
	[ "$(lost_number right)" -eq 2048 ]
	[ "$(region_stat one pages_lost)" -eq 0 ]
	lost_end one
	wait_for 20 no_regions
	wait_for 10 mc_empty a
	stop_faultd
}

# Numbers of the pages that have a key on a server.
pages_on() {
	mcctl dump "$FM_TMP/dump" "${MC_AT[$1]}" > "$FM_TMP/n"
	grep -aoE 'fm[0-9a-f]{35}' "$FM_TMP/dump" | while read -r key; do echo $((16#${key:18:8})); done | sort -u
}

# Numbers of the pages of the only region that are in the store alone (INTERFACES.md: page words, state REMOTE).
pages_away() {
	local file=("$FM_RUN_DIR"/region-*.state) pages at
	pages=$(od -An -t u8 -j 24 -N 8 "${file[0]}") at=$(od -An -t u8 -j 40 -N 8 "${file[0]}")
	od -An -v -w8 -t u1 -j "$((at))" -N $((8 * pages)) "${file[0]}" | awk '$1 % 8 == 3 { print NR - 1 }' | sort
}

# Nothing is evicted any more.
still() {
	local before
	before=$(region_stat one evictions)
	sleep 0.3
	[ "$(region_stat one evictions)" -eq "$before" ]
}

# --- a full store

@test "store full: pages stay, nothing is lost, fm-stat says so; it goes on when there is room again" {
	mc_start a -m 2
	room=$(mcctl room 4136 "${MC_AT[a]}")
	echo "room for $room pages"
	[ "$room" -gt 300 ]
	start_faultd --local 128p --store "memcached:${MC_AT[a]}"
	lost_start first --size $(((room / 2 + 64) * 4096))
	lost_say first 30 fill
	lost_start second --size $(((room / 2 + 256) * 4096))
	lost_send second fill
	wait_for 20 has_flag second store_full
	# It waits: there is no room anywhere.
	unanswered second
	[ "$(region_stat second pages_lost)" -eq 0 ]
	[ "$(region_stat first pages_lost)" -eq 0 ]
	next=$LOST_NEXT
	lost_end first
	LOST_NEXT=$next
	lost_answer second 30
	[[ $LOST_SAID == 'filled 0' ]]
	wait_for 5 lacks_flag second store_full
	lost_say second 30 check
	[ "$(lost_number right)" -eq $((room / 2 + 256)) ]
	lost_end second
	wait_for 10 mc_empty a
	stop_faultd
}

# says_full YES NO: of these two servers
says_full() {
	"$FM_BIN/fm-stat" stores > "$FM_TMP/stores"
	grep -qE "memcached:${MC_AT[$1]}  full$" "$FM_TMP/stores" && grep -qE "memcached:${MC_AT[$2]}$" "$FM_TMP/stores" &&
		"$FM_BIN/fm-stat" -j | jq -e --arg a "memcached:${MC_AT[$1]}" '[.stores[] | select(.full) | .uri] == [$a]' > /dev/null
}

says_none_full() {
	"$FM_BIN/fm-stat" -j | jq -e '[.stores[] | select(.full)] == []' > /dev/null
}

@test "one of two servers full: fm-stat says which; what belongs on it stays here, and nothing is lost" {
	mc_start a -m 2
	mc_start b
	room=$(mcctl room 4136 "${MC_AT[a]}")
	start_faultd --local 128p --store "memcached:$(addresses a b)"
	says_none_full
	# Twice what fits a: the half that is a's does not.
	lost_start one --size $((room * 3 * 4096))
	lost_send one fill
	wait_for 30 says_full a b
	has_flag one store_full
	unanswered one
	[ "$(region_stat one pages_lost)" -eq 0 ]
	"$FM_BIN/fm-evict" --limit none
	lost_answer one 60
	[[ $LOST_SAID == 'filled 0' ]]
	lost_say one 60 check
	[ "$(lost_number right)" -eq $((room * 3)) ]
	lost_end one
	wait_for 10 mc_empty a b
	stop_faultd
}

# --- keys

@test "no key is left after fm_unmap, after a client's death, and after fm-faultd's" {
	mc_start a
	mc_start b
	mc_start c
	args=(--local 256p --store "memcached:$(addresses a b c)" --replicas 2)
	start_faultd "${args[@]}"

	lost_start one --size $((4 << 20))
	lost_say one 30 fill
	lost_say one 30 'churn 3000 1024'
	[ "$(mc_items a b c)" -gt 1000 ]
	lost_end one
	wait_for 10 mc_empty a b c

	lost_start two --size $((4 << 20))
	lost_say two 30 fill
	lost_send two 'churn 100000000 1024'
	[ "$(mc_items a b c)" -gt 1000 ]
	kill -KILL "${LOST_PID[two]}"
	wait_for 10 no_regions
	wait_for 10 mc_empty a b c

	lost_start three --size $((4 << 20))
	lost_say three 30 fill
	lost_send three 'churn 20000 1024'
	for _ in 1 2 3; do
		kill -KILL "$FAULTD_PID"
		wait "$FAULTD_PID" || true
		start_faultd "${args[@]}"
		sleep 0.2 # some work
	done
	lost_answer three 60
	[[ $LOST_SAID == 'churned: 0 lost, 0 wrong' ]]
	[ "$(mc_items a b c)" -gt 1000 ]
	lost_end three
	wait_for 10 mc_empty a b c
	stop_faultd
}

@test "a client that dies while fm-faultd is away: its keys go when fm-faultd is back" {
	mc_start a
	args=(--local 256p --store "memcached:${MC_AT[a]}")
	start_faultd "${args[@]}"
	lost_start one --size $((4 << 20))
	lost_say one 30 fill
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	kill -KILL "${LOST_PID[one]}"
	[ "$(mc_items a)" -gt 500 ]
	start_faultd "${args[@]}"
	wait_for 10 no_regions
	wait_for 10 mc_empty a
	stop_faultd
}

# --- bad input

# refused STATUS TEXT FAULTD-ARGS...: one line that holds the text, and that exit status.
refused() {
	local want=$1 text=$2 status=0 dir
	shift 2
	dir=$(mktemp -d "$FM_TMP/run.XXXXXX")
	timeout 30 "$FM_BIN/fm-faultd" --run-dir "$dir" "$@" > "$FM_TMP/out" 2> "$FM_TMP/err" 3>&- || status=$?
	echo "fm-faultd $*: status $status: $(cat "$FM_TMP/err")"
	[ "$status" -eq "$want" ] && [ "$(wc -l < "$FM_TMP/err")" -eq 1 ] && [ ! -s "$FM_TMP/out" ] &&
		[[ $(cat "$FM_TMP/err") == "fm-faultd: "*"$text"* ]]
}

@test "bad URIs and options are refused with the reason, exit 2" {
	refused 2 'names no server' --store memcached:--BINARY-PROTOCOL ||
		refused 2 'option string' --store memcached:--BINARY-PROTOCOL
	refused 2 'option string' --store memcached:--NO-SUCH-OPTION
	refused 2 'option string' --store memcached:--SERVER=
	refused 2 'empty server address' --store memcached://
	refused 2 'empty server address' --store memcached://127.0.0.1:1,
	refused 2 'memcached://host:port' --store memcached:
	refused 2 'memcached://host:port' --store memcached:host:11211
	refused 2 'host:port' --store memcached://127.0.0.1:0
	refused 2 'host:port' --store memcached://127.0.0.1:65536
	refused 2 'host:port' --store memcached://127.0.0.1:x
	refused 2 'named twice' --store memcached://127.0.0.1:11211,127.0.0.1
	refused 2 'named twice' --store memcached:/a.sock,/b.sock,/a.sock
	refused 2 'unknown option' --store 'memcached:/a.sock?nonsense=1'
	refused 2 'timeout=10..60000' --store 'memcached:/a.sock?timeout=1'
	refused 2 'gone=1..86400' --store 'memcached:/a.sock?gone=0'
	refused 2 'lossy=1' --store 'memcached:/a.sock?lossy=yes'
	refused 2 'more than the 2 servers' --store memcached:/a.sock,/b.sock --replicas 3
	refused 2 'more than the 1 server of' --store memcached:/a.sock --replicas 2
	refused 2 'from 1 to' --store memcached:/a.sock --replicas 0
	refused 2 'at most 107 bytes' --store "memcached:/$(printf 'x%.0s' {1..110})"
}

@test "servers that cannot be reached are refused, exit 3" {
	mc_start a
	refused 3 'refused' --store memcached://127.0.0.1:1
	refused 3 'No such file' --store "memcached:$FM_TMP/none.sock"
	refused 3 'no-such-host.invalid:11211: cannot be resolved' --store memcached://no-such-host.invalid
	refused 3 'cannot be reached' --store memcached://192.0.2.1:11211
	# One of two.
	refused 3 "$FM_TMP/none.sock: cannot be reached" --store "memcached:${MC_AT[a]},$FM_TMP/none.sock"
	kill -STOP "${MC_PID[a]}"
	refused 3 'cannot be reached' --store "memcached:${MC_AT[a]}"
	kill -CONT "${MC_PID[a]}"
}

@test "a start that was refused leaves nothing behind: the next one with another store works" {
	mc_start a
	mc_start b
	run timeout 30 "$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "memcached:$FM_TMP/none.sock"
	[ "$status" -eq 3 ]
	start_faultd --store "memcached:${MC_AT[a]}"
	stop_faultd
	# Nor does one that had no region when it ended.
	mc_kill a
	start_faultd --local 128p --store "memcached:${MC_AT[b]}"
	lost_start one --size $((2 << 20))
	lost_say one 30 fill
	[ "$(mc_items b)" -gt 300 ]
	lost_end one
	stop_faultd
}

# bad_server MODE ADDRESS: sets BAD_AT
bad_server() {
	"$FM_PYTHON" "$FM_PROXY/badserver.py" "$1" "$2" > "$FM_TMP/bad.$1" 2>&1 3>&- < /dev/null &
	track $!
	wait_for 5 test -s "$FM_TMP/bad.$1"
	BAD_AT=$(cat "$FM_TMP/bad.$1")
}

@test "servers that are not memcached are refused, exit 3" {
	bad_server http 127.0.0.1:0
	refused 3 'not speak memcached' --store "memcached://$BAD_AT"
	bad_server endless "$FM_TMP/endless.sock"
	refused 3 'not speak memcached' --store "memcached:$BAD_AT"
	bad_server close "$FM_TMP/close.sock"
	refused 3 'cannot be reached' --store "memcached:$BAD_AT"
	bad_server silent "$FM_TMP/silent.sock"
	refused 3 'cannot be reached' --store "memcached:$BAD_AT"
	bad_server old "$FM_TMP/old.sock"
	refused 3 '1.4.4 or newer' --store "memcached:$BAD_AT"
	bad_server tiny "$FM_TMP/tiny.sock"
	refused 3 'item size' --store "memcached:$BAD_AT"
}

@test "a server that evicts is refused with the reason, unless ?lossy=1" {
	memcached -u root -t 1 -s "$FM_TMP/evicts.sock" 3>&- < /dev/null &
	track $!
	wait_for 5 mc_answers "$FM_TMP/evicts.sock"
	refused 3 '?lossy=1' --store "memcached:$FM_TMP/evicts.sock"
	start_faultd --local 256p --store "memcached:$FM_TMP/evicts.sock?lossy=1"
	torture_start 1 --size $((4 << 20))
	torture_end 30
	stop_faultd
}

@test "a key that is gone is not made anew while regions' pages are sealed with it" {
	mc_start a
	args=(--local 64p --store "memcached:${MC_AT[a]}" --key-file "$FM_TMP/key")
	start_faultd "${args[@]}"
	lost_start one --size $((2 << 20))
	lost_say one 30 fill
	mv "$FM_TMP/key" "$FM_TMP/kept"
	# The evictor's successor and new regions need it, too.
	read -r evictor _ <<< "$(children_of "$FAULTD_PID")"
	kill -KILL "$evictor"
	wait_for 20 grep -q "$FM_TMP/key: the key that pages are sealed with: No such file" "$FM_TMP/faultd.log"
	[ ! -e "$FM_TMP/key" ]
	kill -KILL "$FAULTD_PID"
	wait "$FAULTD_PID" || true
	run timeout 30 "$FM_BIN/fm-faultd" "${args[@]}"
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == *"--key-file: $FM_TMP/key: No such file or directory: pages of 1 region in $FM_RUN_DIR are sealed with it"* ]]
	[ ! -e "$FM_TMP/key" ]
	mv "$FM_TMP/kept" "$FM_TMP/key"
	start_faultd "${args[@]}"
	lost_say one 60 check
	[ "$(lost_number right)" -eq 512 ]
	lost_end one
	stop_faultd
}

# refused_key TEXT FILE
refused_key() {
	refused 2 "$1" --store "memcached:${MC_AT[a]}" --key-file "$2" ||
		refused 3 "$1" --store "memcached:${MC_AT[a]}" --key-file "$2"
}

@test "bad key files are refused, exit 2 or 3; a missing one is made for the owner alone" {
	mc_start a
	key=$FM_TMP/key
	head -c 31 /dev/urandom > "$key" && chmod 600 "$key"
	refused_key 32 "$key"
	head -c 33 /dev/urandom > "$key"
	refused_key 32 "$key"
	head -c 32 /dev/zero > "$key"
	refused_key zero "$key"
	head -c 32 /dev/urandom > "$key" && chmod 644 "$key"
	refused_key 600 "$key"
	refused_key 'not a regular file' "$FM_TMP"
	refused_key 'No such file' "$FM_TMP/none/key"
	refused 2 'cannot be used with --no-seal' --store "memcached:${MC_AT[a]}" --key-file "$key" --no-seal
	start_faultd --store "memcached:${MC_AT[a]}" --key-file "$FM_TMP/new"
	[ "$(stat -c '%s %a' "$FM_TMP/new")" = '32 600' ]
	stop_faultd
}
