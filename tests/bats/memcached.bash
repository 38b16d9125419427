# Real memcached servers, clients and proxies for bats tests: `load memcached` after `load helper`.
#
#   mc_build                      in setup_file: compile tests/stress/{torture,lost}.c into $BATS_FILE_TMPDIR
#   mc_start NAME [ARGS...]       start memcached on a Unix socket (or with `-l 127.0.0.1 -p -1` on a free port), wait for it;
#                                 sets MC_PID[NAME] and MC_AT[NAME], its address
#   mc_kill NAME                  SIGKILL, and wait until it is gone
#   mc_items NAME...              items that these servers hold together
#   torture_start/torture_end     the checker client in the background
#   lost_start NAME [ARGS...]     tests/stress/lost.c; lost_say NAME SECONDS COMMAND sets LOST_SAID, its answer
#   region_stat NAME FIELD        a number of a region, by fm-stat
#   proxy_start NAME SERVER       tests/proxy/mcproxy.py in front of a server; MC_AT[NAME] is where it listens

FM_PROXY=$FM_ROOT/tests/proxy
FM_PYTHON=$(command -v /usr/bin/python3 || command -v python3)
declare -gA MC_PID MC_AT LOST_PID LOST_FD

mc_build() {
	local program
	for program in torture lost; do
		cc -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -pthread -I"$FM_ROOT/lib" -o "$BATS_FILE_TMPDIR/$program" \
			"$FM_ROOT/tests/stress/$program.c" "$FM_LIB/libfm.a"
	done
}

mcctl() {
	"$FM_PYTHON" "$FM_PROXY/mcctl.py" "$@"
}

mc_answers() {
	mcctl stat pid "$1" > /dev/null 2>&1
}

mc_start() {
	local name=$1 port at=("-s" "$FM_TMP/$1.sock") as=()
	shift
	[[ " $* " != *' -p '* ]] || at=()
	[ "$(id -u)" -ne 0 ] || as=(-u root)
	MEMCACHED_PORT_FILENAME=$FM_TMP/$name.port memcached "${as[@]}" -M -t 1 -m 256 "${at[@]}" "$@" \
		3>&- < /dev/null >> "$FM_TMP/$name.log" 2>&1 &
	MC_PID[$name]=$!
	track $!
	if [ ${#at[@]} -gt 0 ]; then
		MC_AT[$name]=$FM_TMP/$name.sock
	else
		wait_for 5 test -s "$FM_TMP/$name.port" || return 1
		port=$(sed -n 's/^TCP INET: //p' "$FM_TMP/$name.port")
		MC_AT[$name]=127.0.0.1:$port
	fi
	wait_for 5 mc_answers "${MC_AT[$name]}" || {
		cat "$FM_TMP/$name.log" >&2
		return 1
	}
}

mc_kill() {
	kill -KILL "${MC_PID[$1]}"
	wait "${MC_PID[$1]}" 2> /dev/null || true
}

mc_items() {
	local name at=()
	for name; do
		at+=("${MC_AT[$name]}")
	done
	mcctl sum curr_items "${at[@]}"
}

# Nothing was left behind on these servers.
mc_empty() {
	[ "$(mc_items "$@")" -eq 0 ]
}

# torture_start SECONDS [ARGS...]
torture_start() {
	"$BATS_FILE_TMPDIR/torture" --seconds "$1" "${@:2}" 3>&- < /dev/null > "$FM_TMP/torture.log" 2>&1 &
	TORTURE_PID=$!
	track $!
}

# It ends within that many seconds and found no wrong word.
torture_end() {
	local status=0
	wait_for "$1" gone "$TORTURE_PID" || {
		cat "$FM_TMP/torture.log" "$FM_TMP/faultd.log" >&2
		return 1
	}
	wait "$TORTURE_PID" || status=$?
	cat "$FM_TMP/torture.log"
	# Above 128: SIGBUS, a lost page.
	if [ "$status" -ne 0 ] || ! grep -q ' operations, 0 wrong words$' "$FM_TMP/torture.log"; then
		echo "torture ended with status $status" >&2
		cat "$FM_TMP/faultd.log" >&2
		return 1
	fi
}

lost_start() {
	local name=$1 fd
	shift
	mkfifo "$FM_TMP/$name.in"
	exec {fd}<> "$FM_TMP/$name.in"
	"$BATS_FILE_TMPDIR/lost" --name "$name" "$@" < "$FM_TMP/$name.in" > "$FM_TMP/$name.out" 2> "$FM_TMP/$name.err" \
		3>&- {fd}>&- &
	LOST_PID[$name]=$!
	LOST_FD[$name]=$fd
	track $!
	wait_for 10 said_or_gone "$name" || true
	if [ ! -s "$FM_TMP/$name.out" ]; then
		cat "$FM_TMP/$name.err" >&2
		return 1
	fi
	cat "$FM_TMP/$name.out"
}

said_or_gone() {
	[ -s "$FM_TMP/$1.out" ] || gone "${LOST_PID[$1]}"
}

has_lines() {
	[ "$(wc -l < "$1")" -ge "$2" ]
}

answered_or_gone() {
	has_lines "$FM_TMP/$1.out" "$LOST_NEXT" || gone "${LOST_PID[$1]}"
}

# It has not answered the last command yet.
unanswered() {
	[ "$(wc -l < "$FM_TMP/$1.out")" -lt "$LOST_NEXT" ]
}

# Send a command and do not wait.
lost_send() {
	LOST_NEXT=$(($(wc -l < "$FM_TMP/$1.out") + 1))
	echo "$2" >&"${LOST_FD[$1]}"
}

# The answer to the last command sent, within so many seconds.
lost_answer() {
	wait_for "$2" answered_or_gone "$1" || true
	if ! has_lines "$FM_TMP/$1.out" "$LOST_NEXT"; then
		cat "$FM_TMP/$1.err" "$FM_TMP/faultd.log" >&2
		"$FM_BIN/fm-stat" -j >&2
		return 1
	fi
	LOST_SAID=$(sed -n "${LOST_NEXT}p" "$FM_TMP/$1.out")
	echo "$1: $LOST_SAID"
	cat "$FM_TMP/$1.err"
}

lost_say() {
	lost_send "$1" "$3"
	lost_answer "$1" "$2"
}

lost_end() {
	local status=0
	lost_say "$1" 20 end || return 1
	wait_for 5 gone "${LOST_PID[$1]}" || return 1
	wait "${LOST_PID[$1]}" || status=$?
	[ "$status" -eq 0 ]
}

# The number before a word of LOST_SAID: lost_number right
lost_number() {
	[[ $LOST_SAID =~ ([0-9]+)\ $1 ]] && echo "${BASH_REMATCH[1]}"
}

region_stat() {
	"$FM_BIN/fm-stat" -j | jq -r --arg n "$1" ".regions[] | select(.name == \$n) | .$2"
}

has_flag() {
	[[ $(region_stat "$1" 'flags | join(" ")') == *"$2"* ]]
}

lacks_flag() {
	! has_flag "$@"
}

no_regions() {
	[ "$("$FM_BIN/fm-stat" -j | jq '.regions | length')" -eq 0 ]
}

# Servers' addresses joined by commas.
addresses() {
	local name list=
	for name; do
		list+=${list:+,}${MC_AT[$name]}
	done
	echo "$list"
}

# proxy_start NAME SERVER [ARGS...]: tests/proxy/mcproxy.py in front of that server.
proxy_start() {
	local name=$1 server=${MC_AT[$2]}
	shift 2
	"$FM_PYTHON" "$FM_PROXY/mcproxy.py" "$FM_TMP/$name.sock" "$server" "$FM_TMP/$name.ctl" "$@" \
		3>&- < /dev/null > "$FM_TMP/$name.log" 2>&1 &
	track $!
	wait_for 5 grep -q listening "$FM_TMP/$name.log" || {
		cat "$FM_TMP/$name.log" >&2
		return 1
	}
	head -1 "$FM_TMP/$name.log"
	MC_AT[$name]=$FM_TMP/$name.sock
}

# proxy NAME COMMAND...
proxy() {
	"$FM_PYTHON" "$FM_PROXY/mcproxy.py" ctl "$FM_TMP/$1.ctl" "${@:2}"
}

# How often the proxy did something: proxy_did NAME FAULT
proxy_did() {
	local all
	all=" $(proxy "$1" stats) "
	[[ $all =~ " $2="([0-9]+) ]] && echo "${BASH_REMATCH[1]}"
}

# proxy_holds NAME N: at least that many requests wait there.
proxy_holds() {
	[ "$(proxy_did "$1" held)" -ge "$2" ]
}
