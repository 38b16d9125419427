#!/bin/bash
# Every check there is (`make check`): builds, unit tests, bats tests, guest tests, lint.
#
#   tests/check.sh [SUITE...]    build unit fuzz bats guest lint (default: all; the others need a build to be there)
#
# B is the build folder (default build; sanitizer builds get -asan and -tsan appended). Each suite's output is kept in
# $B/check; failures are shown in full. The last line is `N passed, N failed[, N skipped]`; exit status 1 when a check
# failed or nothing ran.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

B=${B:-build}
unset MAKEFLAGS MFLAGS MAKEOVERRIDES
jobs=$(nproc)
out=$B/check
passed=0 failed=0 skipped=0

# --- counting

# What one suite did: numbers, seconds, and when it failed its output.
report() {
	local name=$1 ok=$2 bad=$3 skip=$4 seconds=$5
	passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
	printf '%-40s %4d passed' "$name" "$ok"
	[ "$bad" -eq 0 ] || printf ', %d FAILED' "$bad"
	[ "$skip" -eq 0 ] || printf ', %d skipped' "$skip"
	printf '  (%d s)\n' "$seconds"
}

# One check: a command that must succeed. check NAME CMD...
check() {
	local name=$1 log=$out/${1//[ \/]/-}.log start=$SECONDS status=0
	shift
	"$@" > "$log" 2>&1 < /dev/null || status=$?
	if [ "$status" -eq 0 ]; then
		report "$name" 1 0 0 $((SECONDS - start))
	else
		report "$name" 0 1 0 $((SECONDS - start))
		cat "$log"
		printf '(exit status %d)\n' "$status"
		return 1
	fi
}

# Many checks: a program that prints TAP. tap NAME TIMEOUT CMD... It runs beside others, one a processor at a time (most of them wait more than
# they compute); tap_end waits for all of them.
declare -A running=() # NAME by pid
tap() {
	[ ${#running[@]} -lt "$jobs" ] || tap_reap
	tap_run "$@" &
	running[$!]=$1
}

tap_run() {
	local log=$out/${1//[ \/]/-}.tap limit=$2 start=$SECONDS status=0
	shift 2
	timeout --kill-after=10 "$limit" "$@" > "$log" 2>&1 < /dev/null || status=$?
	echo "$status $limit $((SECONDS - start))" > "$log.status"
}

tap_reap() {
	local pid
	wait -n -p pid "${!running[@]}" || true
	tap_report "${running[$pid]}"
	unset "running[$pid]"
}

tap_end() {
	while [ ${#running[@]} -gt 0 ]; do
		tap_reap
	done
}

tap_report() {
	local name=$1 log=$out/${1//[ \/]/-}.tap status limit seconds ok bad skip plan
	read -r status limit seconds < "$log.status"
	skip=$(grep -ciE '^ok .*# skip' "$log" || true)
	ok=$(($(grep -c '^ok ' "$log" || true) - skip))
	bad=$(grep -c '^not ok ' "$log" || true)
	plan=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$log" | tail -1)
	# A program that crashed, hung or left checks out has failed, whatever it printed before.
	if [ "$bad" -eq 0 ] && { [ "$status" -ne 0 ] || [ "${plan:-x}" != $((ok + skip)) ]; }; then
		bad=1
		printf '# exit status %d (124: timed out after %s), plan %s, ran %d\n' "$status" "$limit" "${plan:-missing}" \
			$((ok + skip)) >> "$log"
	fi
	report "$name" "$ok" "$bad" "$skip" "$seconds"
	[ "$bad" -eq 0 ] || grep -v '^ok ' "$log" || true
}

# --- suites

# A build that fails leaves nothing to test with.
suite_build() {
	check 'build' make -j"$jobs" "B=$B" CI=1 all units guest || finish
	check 'build asan' make -j"$jobs" SAN=asan "B=$B-asan" CI=1 tools units || finish
	check 'build crash' make -j"$jobs" SAN=crash "B=$B-crash" CI=1 tools || finish
	check 'build tsan' make -j"$jobs" SAN=tsan "B=$B-tsan" CI=1 tools units || finish
}

suite_unit() {
	local src test fixed=()
	# gcc 12's TSan does not start when the kernel randomises more address bits than it knows of.
	! setarch -R true 2> /dev/null || fixed=(setarch -R)
	for src in tests/unit/test_*.c; do
		test=$(basename "$src" .c)
		tap "unit $test" 240 "$B/tests/$test"
		tap "unit $test asan" 480 "$B-asan/tests/$test"
		tap "unit $test tsan" 480 "${fixed[@]}" "$B-tsan/tests/$test"
	done
	tap_end
}

# bats_file NAME TIMEOUT FILE BIN
bats_file() {
	local fixed=()
	# As for unit tests: a sanitizer needs addresses where it expects them.
	[[ $4 == "$B/bin" ]] || ! setarch -R true 2> /dev/null || fixed=(setarch -R)
	tap "$1" "$2" "${fixed[@]}" env "FM_BIN=$(realpath "$4")" "FM_LIB=$(realpath "$B/lib")" bats --tap --timing "$3"
}

suite_bats() {
	local f san
	for f in tests/bats/*.bats; do
		bats_file "bats $(basename "$f" .bats)" 1200 "$f" "$B/bin"
		for san in asan tsan; do
			! grep -qE "^# sanitizers:.*\<$san\>" "$f" ||
				bats_file "bats $(basename "$f" .bats) $san" 1200 "$f" "$B-$san/bin"
		done
	done
	tap_end
}

# Every parser of outside bytes for FM_FUZZ_SECONDS, beginning with tests/fuzz/corpus/NAME; one a processor at a time: seven minutes of two
# processors. `make fuzz-long` takes longer. A file of tests/fuzz names what it needs beyond lib/ in a line ` * with: GLOB`.
suite_fuzz() {
	local src name seconds=${FM_FUZZ_SECONDS:-60} fuzzers=() flags='-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -std=c11 -D_GNU_SOURCE' libs more
	flags+=' -DFM_VERSION=__FILE__ -Ilib -Wno-unused-command-line-argument'
	libs=$(sed -n 's/^LIBS *:= *//p' Makefile)
	if [ ! -e "$(clang -print-file-name=libclang_rt.fuzzer-x86_64.a)" ]; then
		report 'fuzz: no libFuzzer here' 0 0 1 0
		return 0
	fi
	check 'build fuzz' make -j"$jobs" SAN=asan "B=$B-fuzz" CC=clang "TOOLCF=$flags -fsanitize=fuzzer-no-link" "$B-fuzz/lib/libfmcore.a" ||
		return 0
	shopt -s extglob
	for src in tests/fuzz/fuzz_*.c; do
		name=$(basename "$src" .c)
		more=$(sed -n 's/^ \* with: //p' "$src")
		# shellcheck disable=SC2086 # words and globs, all of them
		check "build $name" clang $flags -fsanitize=fuzzer -o "$B-fuzz/$name" "$src" $more "$B-fuzz/lib/libfmcore.a" $libs || continue
		fuzzers+=("$name")
	done
	shopt -u extglob
	fuzz_all "$seconds" "${fuzzers[@]}"
}

fuzz_one() {
	local name=$1 seconds=$2 corpus=$B-fuzz/corpus.$1 seeds=tests/fuzz/corpus/${1#fuzz_}
	mkdir -p "$corpus"
	[ -d "$seeds" ] || seeds=
	# A machine that does many things at once may stop a run for a long while: only what hangs takes a minute for one input.
	timeout --kill-after=10 $((seconds * 8 + 120)) "$B-fuzz/$name" "-max_total_time=$seconds" -timeout=60 -rss_limit_mb=4096 \
		-print_final_stats=1 "-artifact_prefix=$out/$name-" "$corpus" ${seeds:+"$seeds"} > "$out/fuzz-$name.log" 2>&1 < /dev/null
}

# fuzz_all SECONDS NAME...: $jobs at a time
fuzz_all() {
	local seconds=$1 name pids=() status i start
	shift
	while [ $# -gt 0 ]; do
		start=$SECONDS pids=()
		for name in "${@:1:jobs}"; do
			fuzz_one "$name" "$seconds" &
			pids+=($!)
		done
		i=0
		for name in "${@:1:jobs}"; do
			status=0
			wait "${pids[i++]}" || status=$?
			if [ "$status" -eq 0 ]; then
				report "fuzz ${name#fuzz_}" 1 0 0 $((SECONDS - start))
			else
				report "fuzz ${name#fuzz_}" 0 1 0 $((SECONDS - start))
				tail -40 "$out/fuzz-$name.log"
				printf '(exit status %d)\n' "$status"
			fi
		done
		shift $(($# < jobs ? $# : jobs))
	done
}

suite_guest() {
	local f
	for f in tests/guest/*.bats; do
		[ ! -e "$f" ] || bats_file "guest $(basename "$f" .bats)" 1800 "$f" "$B/bin"
	done
	tap_end
}

suite_lint() {
	# As the Makefile's.
	local c sh flags=(-D_GNU_SOURCE -DTHREADED '-DFM_VERSION="0"' -Ilib)
	mapfile -t c < <(find lib cmd tests bench -name '*.c' | sort)
	mapfile -t sh < <(find deps tests bench .ci -name '*.sh' -o -name '*.bash' -o -name '*.bats' -o -path .ci/run | sort)
	sh+=(tests/guest/init)
	check 'lint shellcheck' shellcheck -x "${sh[@]}" || true
	check 'lint cppcheck' cppcheck -q -j "$jobs" --std=c11 --error-exitcode=1 --inline-suppr \
		--enable=warning,performance,portability \
		-D__x86_64__ "${flags[@]}" "${c[@]}" || true
	check 'lint clang-tidy' each_c clang-tidy --quiet '{}' -- -std=c11 "${flags[@]}" || true
	# gcc 12 takes what an array or a structure points to for leaked, and does not believe that an error is never 0:
	# leaks are found by the ASan runs, and uninitialised values by clang-tidy.
	check 'lint gcc -fanalyzer' each_c gcc -fanalyzer -Wno-analyzer-malloc-leak \
		-Wno-analyzer-use-of-uninitialized-value -Werror -O1 -std=c11 "${flags[@]}" -c \
		-o /dev/null '{}' || true
	# Of `[ a ] && [ b ]` in the middle of a test nobody notices that a is false: a line each. Nor that `! a` is: `! a || false`.
	# shellcheck disable=SC2016 # awk's own
	check 'lint assertions' awk '
		FNR == 1 { line = "" }
		line && NF { if ($1 !~ /^}/) { print at ": " line; bad = 1 } line = "" }
		/^\t+\[.*\] && !?\[/ && !/\|\|/ && !/&&$/ { line = $0; at = FILENAME ":" FNR }
		/^\t+! / && !/\|\|/ && !/&&$/ { line = $0; at = FILENAME ":" FNR }
		END { exit bad }' tests/*/*.bats tests/*/*.bash || true
	check 'lint mandoc' mandoc -Tlint -W warning man/*.8 || true
}

# Run a command once for each C file, {} being its name; fails when one of them fails.
each_c() {
	# shellcheck disable=SC2317 # it is reached, through check()
	find lib cmd tests bench -name '*.c' -print0 | sort -z | xargs -0 -P "$jobs" -I '{}' "$@"
}

finish() {
	local line="$passed passed, $failed failed"
	[ "$skipped" -eq 0 ] || line+=", $skipped skipped"
	# Nothing run is nothing checked.
	[ $((passed + failed)) -gt 0 ] || line="0 passed, 1 failed" failed=1
	printf '%s\n' "$line" | tee "$out/summary"
	[ "$failed" -eq 0 ] || exit 1
	exit 0
}

# --- main

tests/install.sh check
mkdir -p "$out"
rm -f "$out"/*
[ $# -gt 0 ] || set -- build unit fuzz bats guest lint
for suite; do
	case $suite in
	build) suite_build ;;
	unit) suite_unit ;;
	fuzz) suite_fuzz ;;
	bats) suite_bats ;;
	guest) suite_guest ;;
	lint) suite_lint ;;
	*)
		echo "tests/check.sh: $suite: no such suite (build unit fuzz bats guest lint)" >&2
		exit 2
		;;
	esac
done
finish
