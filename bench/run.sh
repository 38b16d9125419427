#!/usr/bin/env bash
# `make bench`: our figures beside their references, as a table and as JSON in $B/bench.json.
#
# Machines differ, and a shared one changes its speed from second to second: so only ratios of one run count. Ours and its
# references take turns in short rounds; a ratio is the median of the rounds' own ratios, while the two columns before it
# are the medians of each. Exit 0 unless something broke: a missed goal is a figure, not a failure.
#
# The three variants of the fault rows: who runs where decides more than anything else (DESIGN.md).
#   one CPU    client and fault thread pinned to CPU 0
#   two CPUs   client on CPU 0, fault thread on CPU 1: each fault wakes a halted CPU twice
#   free       the scheduler's choice
set -euo pipefail
shopt -s inherit_errexit

cd "$(dirname "$0")/.."
B=${B:-build}
BIN=$B/bin OUT=$B/bench
ROUNDS=${ROUNDS:-25}
PAGES=4096 TOUCHES=2048

umask 077
for dir in /dev/shm /tmp; do
  [ -w "$dir" ] && [ "$(stat -fc %T "$dir")" = tmpfs ] && break
  dir=''
done
[ -n "${dir-}" ] || { echo "bench: no tmpfs that can be written: the figures are of a store on one" >&2; exit 1; }
T=$(mktemp -d "$dir/fm-bench.XXXXXX")
export FM_RUN_DIR=$T/run.dir
TRACER=''
pids=() # in the order in which they were started

# Clients have an alarm of their own; servers go last.
stop() {
  local i
  [ -z "$TRACER" ] || kill -INT "$TRACER" 2> /dev/null || true
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    kill "${pids[i]}" 2> /dev/null || true
    wait "${pids[i]}" || echo "bench: process ${pids[i]} ended with status $?" >&2
  done
  ! declare -F share_stop > /dev/null || share_stop
  rm -rf "$T"
}
trap stop EXIT
trap 'exit 1' INT TERM

mkdir -p "$OUT" "$T/v"
CF=(-std=c11 -D_GNU_SOURCE -O2 -g -Wall -Wextra)
for p in bare_uffd mc_stream pwrite_stream; do
  cc "${CF[@]}" -o "$OUT/$p" "bench/$p.c"
done
for p in fault_latency first_touch; do
  cc "${CF[@]}" -Ilib -o "$OUT/$p" "bench/$p.c" "$B/lib/libfm.a" -lpthread
done

# shellcheck source=bench/lib.bash
. bench/lib.bash
# shellcheck source=bench/memcached.bash
. bench/memcached.bash
# shellcheck source=bench/choices.bash
. bench/choices.bash
# shellcheck source=bench/share.bash
. bench/share.bash
# shellcheck source=bench/scale.bash
. bench/scale.bash
start_faultd dir --store "dir:$T/store"
DIR_FAULTD=$FAULTD
mc_start
share_start
scale_start

ours() {
  "$OUT/fault_latency" -p "$DIR_FAULTD" -e "$BIN/fm-evict" "$@"
}

cpus=(one:0:0)
[ "$(nproc)" -lt 2 ] || cpus+=(two:0:1 free:-1:-1)
for ((round = 0; round < ROUNDS; round++)); do
  for v in "${cpus[@]}"; do
    IFS=: read -r name c s <<< "$v"
    args=(-n "$PAGES" -t "$TOUCHES" -c "$c" -s "$s")
    # A wake-up across CPUs takes long, and long again to average out.
    [ "$name" = one ] || args[3]=$((TOUCHES / 2))
    run "$name.copy" "$OUT/bare_uffd" "${args[@]}"
    run "$name.fm" ours "${args[@]}"
    run "$name.pread" "$OUT/bare_uffd" "${args[@]}" -f "$T/pages"
  done
  args=(-n "$PAGES" -t "$TOUCHES" -c 0 -s 0 -w)
  run write.fm ours "${args[@]}"
  run write.pread "$OUT/bare_uffd" "${args[@]}" -f "$T/pages"
  run touch.fm "$OUT/first_touch" fm 4096 "$DIR_FAULTD"
  run touch.memfd "$OUT/first_touch" memfd 4096
  if ((round % 3 == 0)); then
    run out.fm ours -n 32768 -t 0
    run out.pwrite "$OUT/pwrite_stream" "$T/stream" 32768
    mc_round
  fi
  ((round % 5)) || { share_round; scale_round; }
  ((round % 12)) || share_programs
done
scale_sizes

# System calls a fault takes, counted by strace between the program's two stops.
syscalls() {
  local name=$1 in out where pid
  shift
  command -v strace > /dev/null || return 0
  coproc PROG { "$@" -i -n 1024 -t 1024 -c 0 -s 0; }
  out=${PROG[0]} in=${PROG[1]}
  while read -r -t 30 -u "$out" where pid; do
    [ "$where" != ready ] || break
  done
  strace -f -c -U calls,name -o "$T/strace" -p "$pid" 2> "$T/attached" &
  TRACER=$!
  for ((i = 0; i < 100; i++)); do
    ! grep -q attached "$T/attached" || break
    sleep 0.02
  done
  echo >&"$in"
  read -r -t 30 -u "$out" where pid
  kill -INT "$TRACER"
  wait "$TRACER" || true
  TRACER=''
  echo >&"$in"
  cat <&"$out" > /dev/null
  # What is below one call in a hundred faults is not the faults' (the fault that is open as strace comes and goes).
  # Fewer calls than faults: what was traced is not what served them, and that is no figure.
  awk -v name="$name" '$1 + 0 > 10 && $2 != "total" { n += $1; what = what sprintf(" %s %.2f", $2, $1 / 1024) }
    END { if (n < 1024) exit 1; printf "%.2f\n", n / 1024; printf "%s:%s\n", name, what > (to ".what") }
  ' to="$T/v/$name" "$T/strace" > "$T/v/$name.calls" || {
    echo "bench: system calls a fault, $name: strace saw none of process $pid" >&2
    rm -f "$T/v/$name.calls"
  }
}
syscalls fm "$OUT/fault_latency" -p "$DIR_FAULTD" -e "$BIN/fm-evict"
syscalls bare "$OUT/bare_uffd" -f "$T/pages"

{
  for v in "one CPU" "two CPUs" free; do
    f=${v%% *} floor="<=1.50" same="<=1.10"
    # Where the scheduler puts two processes is chance, different in each run of them: a ratio of it says nothing.
    [ "$v" != free ] || floor=- same=-
    row "remote fault p50, $v, to bare uffd" us 1000 "$f.fm.p50_ns" "$f.copy.p50_ns" "$floor"
    row "remote fault p50, $v, to bare uffd + pread" us 1000 "$f.fm.p50_ns" "$f.pread.p50_ns" "$same"
    row "remote fault p99, $v, to bare uffd + pread" us 1000 "$f.fm.p99_ns" "$f.pread.p99_ns" -
  done
  row "remote write fault p50, one CPU, to bare uffd + pread" us 1000 write.fm.p50_ns write.pread.p50_ns "<=1.10"
  row "server CPU time a fault, one CPU" us 1000 one.fm.server_cpu_ns one.pread.server_cpu_ns -
  row "server sleeps a fault, two CPUs" - 1 two.fm.server_sleeps two.pread.server_sleeps -
  row "server system calls a fault" - 1 fm.calls bare.calls -
  row "first touch, sequential, one CPU, to plain memfd" us/page 1000 touch.fm.ns_per_page touch.memfd.ns_per_page "<=2.00"
  row "write-back (evict --all), to pwrite stream" MB/s 1 out.fm.evict_mb_s out.pwrite.mb_s ">=0.80"
  mc_rows
  choices_rows
  share_rows
  scale_rows
} > "$T/rows"

awk -F '\t' 'BEGIN { printf "%-64s %-8s %10s %10s %7s  %s\n", "name", "unit", "ours", "reference", "ratio", "goal" }
  function ok(r, g) { return g == "-" ? "" : g ~ /^<=/ ? r <= substr(g, 3) + 0 : r >= substr(g, 3) + 0 }
  $5 == "-" { printf "%-64s %-8s %10.2f %10s %7s  -\n", $1, $2, $4 / $3, "-", "-"; next } # no reference here
  { met = ok($6 + 0, $7); printf "%-64s %-8s %10.2f %10.2f %7.2f  %s%s\n", $1, $2, $4 / $3, $5 / $3, $6, $7,
      met == "" ? "" : met ? " met" : " missed" }' "$T/rows"
cat "$T"/v/*.what 2> /dev/null | sed 's/^/system calls a fault, /' || true

awk -F '\t' -v rounds="$ROUNDS" -v kernel="$(uname -r)" -v cpus="$(nproc)" '
  BEGIN { printf "{\"version\":1,\"kernel\":\"%s\",\"cpus\":%d,\"rounds\":%d,\"rows\":[", kernel, cpus, rounds }
  function or_null(v) { return v == "-" ? "null" : sprintf("%.3f", v) }
  { printf "%s\n{\"name\":\"%s\",\"unit\":\"%s\",\"ours\":%.3f,\"reference\":%s,\"ratio\":%s,\"goal\":%s}", (NR > 1 ? "," : ""),
      $1, $2, $4 / $3, $5 == "-" ? "null" : or_null($5 / $3), or_null($6), ($7 == "-" ? "null" : "\"" $7 "\"") }
  END { print "\n]}" }' "$T/rows" > "$B/bench.json"
share_plot
