# Shared by all bats files: `load helper` (tests/guest: `load ../bats/helper`).
#
#   FM_BIN       folder of the tools under test (default: build/bin of this tree)
#   FM_LIB       folder of libfm.a and fluidmem.pc
#   FM_TEST_TMP  folder for the tests' files instead of bats' own (say, one on tmpfs)
#
# A file that starts with the comment `# sanitizers: asan` (or `asan tsan`) is run a second time with FM_BIN set to that
# sanitizer's build.
#
# A process that waits on a userfaultfd which nobody serves hangs whoever reads its memory or command line: no ps, pgrep
# or pkill in tests. What a test starts in the background it gives to `track`, and teardown ends it by its pid.

FM_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
: "${FM_BIN:=$FM_ROOT/build/bin}" "${FM_LIB:=$FM_ROOT/build/lib}"
export FM_BIN FM_LIB

# bats runs both around each test. A file with its own setup or teardown calls fm_setup and fm_teardown there.
setup() {
	fm_setup
}
teardown() {
	fm_teardown
}

# Give the test a folder of its own: $FM_TMP, with FM_RUN_DIR below it.
fm_setup() {
	FM_TMP=$BATS_TEST_TMPDIR
	# A Unix socket's path has 107 bytes at most, and folders of folders of CI systems are long.
	if [ -n "${FM_TEST_TMP-}" ] || [ ${#FM_TMP} -gt 80 ]; then
		FM_TMP=$(mktemp -d "${FM_TEST_TMP:-/tmp}/fm.XXXXXX")
	fi
	export FM_TMP FM_RUN_DIR=$FM_TMP/run
	FM_PIDS=()
	FAULTD_PID=
}

# Kill what the test left running: first clients, which need no daemon to die, then the rest.
fm_teardown() {
	local i pid
	for ((i = ${#FM_PIDS[@]} - 1; i >= 0; i--)); do
		pid=${FM_PIDS[i]}
		for pid in "$pid" $(children_of "$pid"); do
			kill -KILL "$pid" 2> /dev/null || true
		done
		wait "${FM_PIDS[i]}" 2> /dev/null || true
	done
	[ "$FM_TMP" = "$BATS_TEST_TMPDIR" ] || rm -rf "$FM_TMP"
}

# End these processes at teardown, with their children.
track() {
	FM_PIDS+=("$@")
}

# Pids of the children of a process, without touching their memory.
children_of() {
	cat "/proc/$1/task/"*/children 2> /dev/null || true
}

# `requires socat || skip "no socat"`
requires() {
	command -v "$1" > /dev/null
}

alive() {
	kill -0 "$1" 2> /dev/null
}

gone() {
	! alive "$1"
}

# wait_for SECONDS CMD...: poll until the command succeeds. Fails, and says so, when it did not in that time.
wait_for() {
	local end=$((${EPOCHREALTIME/./} + $1 * 1000000))
	local seconds=$1
	shift
	until "$@"; do
		if [ "${EPOCHREALTIME/./}" -gt "$end" ]; then
			echo "after $seconds s still not: $*" >&2
			return 1
		fi
		sleep 0.05
	done
}

# start_faultd [ARGS...]: start fm-faultd on FM_RUN_DIR and a store in the test's folder (later options override these), and
# wait until it is ready. Sets FAULTD_PID; its messages go to $FM_TMP/faultd.log.
start_faultd() {
	# A file, not a pipe: bash's read -t may lose the one byte that comes when its time is up.
	local ready=$FM_TMP/ready.${#FM_PIDS[@]}
	: > "$ready"
	# Without 3>&- bats would wait for the daemon to end.
	"$FM_BIN/fm-faultd" --run-dir "$FM_RUN_DIR" --store "dir:$FM_TMP/store" --ready-fd 4 "$@" \
		4> "$ready" 3>&- < /dev/null >> "$FM_TMP/faultd.log" 2>&1 &
	FAULTD_PID=$!
	track "$FAULTD_PID"
	for _ in {1..400}; do
		if [ -s "$ready" ]; then
			rm -f "$ready"
			return 0
		fi
		gone "$FAULTD_PID" && break
		sleep 0.05
	done
	rm -f "$ready"
	echo "fm-faultd did not get ready:" >&2
	cat "$FM_TMP/faultd.log" >&2
	return 1
}

# SIGTERM to fm-faultd: fails unless it ends within 5 s with exit status 0.
stop_faultd() {
	local status=0
	kill -TERM "$FAULTD_PID"
	wait_for 5 gone "$FAULTD_PID" || return 1
	wait "$FAULTD_PID" || status=$?
	[ "$status" -eq 0 ] || {
		echo "fm-faultd ended with status $status:" >&2
		cat "$FM_TMP/faultd.log" >&2
		return 1
	}
}

# build_clients: compile tests/stress/{client,torture}.c against libfm.a into $BATS_FILE_TMPDIR. For setup_file.
build_clients() {
	local c
	for c in client torture; do
		cc -O1 -std=c11 -D_GNU_SOURCE -I"$FM_ROOT/lib" -o "$BATS_FILE_TMPDIR/$c" "$FM_ROOT/tests/stress/$c.c" "$FM_LIB/libfm.a" \
			-lpthread || return 1
	done
}

# start_client STEP...: start it in the background; sets CLIENT_PID. Its lines go to $FM_TMP/client.out and .err.
start_client() {
	: > "$FM_TMP/client.out" # at once: what the one before said must not be taken for this one's
	"$BATS_FILE_TMPDIR/client" "$@" > "$FM_TMP/client.out" 2> "$FM_TMP/client.err" 3>&- < /dev/null &
	CLIENT_PID=$!
	track "$CLIENT_PID"
}

# said WORD: the client has said it. client_says WORD: wait for that, at most a minute; fails at once when the client ended.
said() {
	grep -qx "$1" "$FM_TMP/client.out" || gone "$CLIENT_PID"
}
client_says() {
	if ! wait_for 60 said "$1" || ! grep -qx "$1" "$FM_TMP/client.out"; then
		cat "$FM_TMP/client.err" >&2
		return 1
	fi
}

# ends_well PID [SECONDS]: the process ends by itself, with exit status 0.
ends_well() {
	local status=0
	wait_for "${2:-60}" gone "$1" || return 1
	wait "$1" || status=$?
	[ "$status" -eq 0 ] || {
		echo "process $1 ended with status $status" >&2
		cat "$FM_TMP"/*.err >&2
		return 1
	}
}

# region_stat FILTER: what jq finds in the first region of fm-stat -j.
region_stat() {
	"$FM_BIN/fm-stat" -j | jq -r ".regions[0] | $1"
}

# Page frames of 4 KiB that the files in a folder take on their file system.
blocks_of() {
	local n=0 f
	for f in "$1"/*; do
		[ ! -f "$f" ] || n=$((n + $(stat -c %b "$f") / 8))
	done
	echo "$n"
}

no_regions() {
	[ -z "$(compgen -G "$FM_RUN_DIR/region-*.state")" ]
}

store_is_empty() {
	[ "$(blocks_of "$FM_TMP/store")" -eq 0 ]
}

# Descriptors that fm-faultd and its children have open.
daemon_files() {
	local pid n=0
	for pid in "$FAULTD_PID" $(children_of "$FAULTD_PID"); do
		n=$((n + $(find "/proc/$pid/fd" -type l 2> /dev/null | wc -l)))
	done
	echo "$n"
}

# As many as there were when the daemons had long been up: `before=$(daemon_files)`, and later `wait_for 20 daemon_files_are "$before"`.
daemon_files_are() {
	[ "$(daemon_files)" = "$1" ]
}
