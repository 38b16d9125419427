# shellcheck shell=bash
# Rows of `make bench` with less local memory than a program uses, next to what a user would take instead: kernel swap on zram
# under a cgroup's limit at the same share. Sourced by bench/run.sh. Needs root for both; where zram or the memory controller cannot be
# had, the reference is missing, and the row says so ("no zram"): never a made-up figure, and never swap on tmpfs.
#
# Time over the same program's with all of its memory local, ours by fm_map() memory, the reference's by anonymous memory.
# Swap without read-ahead (vm.page-cluster=0), as is recommended for zram: with it, random accesses take longer.
#
#   uniform, zipf, scan-polluted zipf   bench/share.c, 64 MiB
#   sort, sqlite                        /usr/bin/sort and sqlite3 with their heap in such memory (bench/shim.c)

SHARE_MB=64 SHARE_N=${SHARE_N:-60000}
SWAP='' CG='' CG_LIMIT='' CG_PEAK='' CLUSTER='' NO_SWAP=''

cc "${CF[@]}" -Ilib -o "$OUT/share" bench/share.c lib/victims.c "$B/lib/libfm.a" -lpthread -lm
cc "${CF[@]}" -o "$OUT/timed" bench/timed.c
cc "${CF[@]}" -shared -fPIC -Ilib -o "$OUT/shim.so" bench/shim.c "$B/lib/libfm.a" -lpthread

# A cgroup with a memory limit, of version 2 or 1. Sets CG, or NO_SWAP.
share_cgroup() {
  local at
  if [ -f /sys/fs/cgroup/cgroup.controllers ] && grep -qw memory /sys/fs/cgroup/cgroup.controllers; then
    at=/sys/fs/cgroup/fm-bench.$$ CG_LIMIT=memory.max CG_PEAK=memory.peak
    echo +memory > /sys/fs/cgroup/cgroup.subtree_control 2> /dev/null || true
  else
    at=/sys/fs/cgroup/memory/fm-bench.$$ CG_LIMIT=memory.limit_in_bytes CG_PEAK=memory.max_usage_in_bytes
  fi
  if ! mkdir "$at" 2> /dev/null || [ ! -w "$at/$CG_LIMIT" ] || [ ! -e "$at/$CG_PEAK" ]; then
    rmdir "$at" 2> /dev/null || true
    NO_SWAP="no memory cgroup"
    return
  fi
  CG=$at
}

# A zram device of our own as swap. Sets SWAP, or NO_SWAP.
share_zram() {
  local n=0
  [ -d /sys/class/zram-control ] || modprobe zram 2> /dev/null || true
  # zram0 may be somebody's.
  if [ "$(cat /sys/block/zram0/disksize 2> /dev/null)" != 0 ]; then
    n=$(cat /sys/class/zram-control/hot_add 2> /dev/null) || { NO_SWAP="no zram"; return; }
  fi
  if ! echo 1G > "/sys/block/zram$n/disksize" 2> /dev/null; then
    NO_SWAP="no zram"
    return
  fi
  SWAP=/dev/zram$n
  if ! mkswap "$SWAP" > /dev/null 2>&1 || ! swapon -p 100 "$SWAP" 2> /dev/null; then
    echo 1 > "/sys/block/zram$n/reset"
    SWAP='' NO_SWAP="swapon refused"
    return
  fi
  CLUSTER=$(cat /proc/sys/vm/page-cluster)
  echo 0 > /proc/sys/vm/page-cluster
}

share_stop() {
  if [ -n "$SWAP" ]; then
    swapoff "$SWAP" && echo 1 > "/sys/block/${SWAP#/dev/}/reset"
    echo "$CLUSTER" > /proc/sys/vm/page-cluster
  fi
  [ -z "$CG" ] || rmdir "$CG" || true
}

share_start() {
  if [ "$(id -u)" -ne 0 ]; then
    NO_SWAP="not root"
  else
    share_cgroup
    [ -n "$NO_SWAP" ] || share_zram
  fi
}

# share_limited BYTES COMMAND...: in the cgroup. BYTES: of heap, plus what the program needs besides; max: no limit.
share_limited() {
  local limit=$1
  shift
  [ "$limit" != max ] || [ "$CG_LIMIT" = memory.max ] || limit=-1
  echo "$limit" > "$CG/$CG_LIMIT"
  (
    echo "$BASHPID" > "$CG/cgroup.procs"
    exec "$@"
  )
}

# share_besides BYTES COMMAND...: what the command needs besides so many bytes of heap
share_besides() {
  local heap=$1
  shift
  if [ "$CG_LIMIT" = memory.max ]; then
    # memory.peak cannot be reset before Linux 6.12: a fresh cgroup.
    rmdir "$CG" && mkdir "$CG"
  else
    echo 0 > "$CG/$CG_PEAK"
  fi
  share_limited max "$@" > /dev/null
  echo $(($(cat "$CG/$CG_PEAK") - heap))
}

# swapped NAME BYTES COMMAND...: run, limited. With little memory the kernel's out-of-memory killer may end the command although swap is
# free: three tries, then it is noted, and the round has no figure.
swapped() {
  local name=$1 limit=$2 got i
  shift 2
  for i in 1 2 3; do
    if got=$(share_limited "$limit" "$@" 2> "$T/err"); then
      # shellcheck disable=SC2086 # words are the pairs
      keep "$name" $got
      return
    fi
  done
  echo "bench: $name: killed in $i tries of $i" >&2
  echo killed >> "$T/v/$name.killed"
  keep "$name" ns=0
}

# over NAME LOCAL SHARE: a round's times as a multiple of the local one's
over() {
  awk -v a="$(tail -n 1 "$T/v/$2.ns")" -v b="$(tail -n 1 "$T/v/$1.ns")" 'BEGIN { printf "over=%.4f\n", b / a }'
}

# One round of bench/share.c. ROUND 0 also keeps latencies for the plot.
share_round() {
  local a share ours bytes=$((SHARE_MB << 20))
  local -a go args=()
  for a in uniform zipf scan; do
    go=("$OUT/share" -m "$SHARE_MB" -n "$SHARE_N" -a "$a")
    export FM_RUN_DIR=$T/run.dir
    run "share.$a.fm.all" "${go[@]}" -k fm
    run "share.$a.swap.all" "${go[@]}" -k anon
    [ -n "$NO_SWAP" ] || [ -n "${share_base-}" ] || share_base=$(share_besides "$bytes" "${go[@]}" -k anon)
    for share in 25 50 75; do
      ours=share.$a.fm.$share args=()
      [ "$a.$share" != zipf.25 ] || args=(-o "$B/bench-latency-fm.txt")
      run "$ours" "${go[@]}" -k fm -l $((SHARE_MB * share / 100)) "${args[@]}"
      run "$ours" over "$ours" "share.$a.fm.all"
      [ -z "$NO_SWAP" ] || continue
      [ "$a.$share" != zipf.25 ] || args=(-o "$B/bench-latency-swap.txt")
      swapped "share.$a.swap.$share" $((bytes * share / 100 + share_base)) "${go[@]}" -k anon "${args[@]}"
      run "share.$a.swap.$share" over "share.$a.swap.$share" "share.$a.swap.all"
    done
  done
}

# program NAME COMMAND...: one round of a program with its heap in far memory
share_program() {
  local name=$1 heap share base
  shift
  local -a anon=(env FM_SHIM=anon LD_PRELOAD="$PWD/$OUT/shim.so") fm=(env FM_SHIM=fm LD_PRELOAD="$PWD/$OUT/shim.so")
  "${anon[@]}" FM_SHIM_REPORT="$T/heap" "$@" > /dev/null
  heap=$(cat "$T/heap")
  run "$name.fm.all" "$OUT/timed" "${fm[@]}" "$@"
  run "$name.swap.all" "$OUT/timed" "${anon[@]}" "$@"
  [ -n "$NO_SWAP" ] || base=$(share_besides "$heap" "${anon[@]}" "$@")
  for share in 25 50 75; do
    run "$name.fm.$share" "$OUT/timed" "${fm[@]}" FM_SHIM_LOCAL=$((heap * share / 100)) "$@"
    run "$name.fm.$share" over "$name.fm.$share" "$name.fm.all"
    [ -z "$NO_SWAP" ] || continue
    swapped "$name.swap.$share" $((heap * share / 100 + base)) "$OUT/timed" "${anon[@]}" "$@"
    run "$name.swap.$share" over "$name.swap.$share" "$name.swap.all"
  done
}

share_programs() {
  [ -s "$T/lines" ] ||
    awk 'BEGIN { srand(7); for (i = 0; i < 300000; i++) printf "%08d%08d some text that makes the line as long as lines are\n", rand() * 1e8, rand() * 1e8 }' \
      > "$T/lines"
  export LC_ALL=C
  share_program sort sort -S 64M --parallel=1 "$T/lines"
  command -v sqlite3 > /dev/null || return 0
  share_program sqlite sqlite3 :memory: \
    "create table t(a integer primary key, b blob);
     with recursive c(x) as (select 1 union all select x + 1 from c where x < 100000) insert into t select x, randomblob(300) from c;
     with recursive c(x) as (select 1 union all select x + 1 from c where x < 100000)
       select sum(length(b)) from c join t on t.a = 1 + (c.x * 7919 % 1000) * (c.x * 104729 % 100);"
}

share_rows() {
  local a share name
  for a in share.uniform share.zipf share.scan sort sqlite; do
    for share in 25 50 75; do
      name="${a#share.}, $share % local: time over all-local; zram swap"
      if [ -n "$NO_SWAP" ] && [ -s "$T/v/$a.fm.$share.over" ]; then
        printf '%s\t%s\t1\t%s\t-\t-\t-\n' "$name: $NO_SWAP" x "$(median "$T/v/$a.fm.$share.over")"
      elif [ -s "$T/v/$a.swap.$share.killed" ]; then
        printf '%s\t%s\t1\t%s\t-\t-\t-\n' "$name: killed, out of memory in $(wc -l < "$T/v/$a.swap.$share.killed") rounds" x \
          "$(median "$T/v/$a.fm.$share.over")"
      else
        row "$name" x 1 "$a.fm.$share.over" "$a.swap.$share.over" -
      fi
    done
  done
  row "zipf, 25 % local: a fault as the program sees it, p50; zram swap" us 1000 share.zipf.fm.25.p50_ns share.zipf.swap.25.p50_ns -
  row "zipf, 25 % local: a fault as the program sees it, p99; zram swap" us 1000 share.zipf.fm.25.p99_ns share.zipf.swap.25.p99_ns -
}

# $B/bench.png: latencies of faults as the program sees them, and slowdown against local share. Without gnuplot, or figures: none.
share_plot() {
  local a share v swap
  for a in uniform zipf scan sort sqlite; do
    v=$a
    [ -s "$T/v/$v.fm.25.over" ] || v=share.$a
    for share in 25 50 75; do
      [ -s "$T/v/$v.fm.$share.over" ] || continue
      swap=NaN
      [ -n "$NO_SWAP" ] || swap=$(median "$T/v/$v.swap.$share.over")
      printf '%s %s %s\n' "$share" "$(median "$T/v/$v.fm.$share.over")" "$swap"
    done > "$T/plot.$a"
    echo "100 1 1" >> "$T/plot.$a"
  done
  command -v gnuplot > /dev/null || { echo "bench: no gnuplot, no $B/bench.png (tests/install.sh bench)" >&2; return 0; }
  swap=0
  [ -n "$NO_SWAP" ] || swap=1
  gnuplot -e "T='$T'; B='$B'; swap=$swap" bench/share.gnuplot
}
