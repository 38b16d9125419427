# shellcheck shell=bash
# Rows of `make bench` on scale: faults/s against threads and shards, CPU time a fault, a region of 1 TiB, 1,000 regions. Sourced by
# bench/run.sh. Nothing is pinned: on two CPUs client, shards and the wake-ups between them compete, and that is what is shown.

cc "${CF[@]}" -Ilib -o "$OUT/scale" bench/scale.c "$B/lib/libfm.a" -lpthread

SCALE_FAULTD=()

scale_start() {
  local s
  for s in 1 4; do
    start_faultd "shards$s" --shards "$s" --store "dir:$T/store.shards$s"
    SCALE_FAULTD[s]=$FAULTD
  done
}

scale_round() {
  local s t
  for s in 1 4; do
    for t in 1 2 4 8 16; do
      FM_RUN_DIR=$T/run.shards$s run "scale.$s.$t" "$OUT/scale" faults -p "${SCALE_FAULTD[s]}" -e "$BIN/fm-evict" -n 8192 -t "$t"
    done
  done
}

# Once: a sparse region of 1 TiB and what its state file takes; 1,000 regions beside one.
scale_sizes() {
  local line in out state
  local -x FM_RUN_DIR=$T/run.shards1
  coproc BIG { "$OUT/scale" map $((1 << 40)); }
  out=${BIG[0]} in=${BIG[1]}
  while read -r -t 60 -u "$out" line; do
    [ "$line" != ready ] || break
    keep scale.big "$line"
  done
  state=$(echo "$FM_RUN_DIR"/region-*.state)
  keep scale.big "state_kib=$(($(stat -c %b "$state") / 2))" "words_kib=$(($(stat -c %s "$state") / 1024))"
  echo >&"$in"
  cat <&"$out" > /dev/null
  run scale.one "$OUT/scale" regions 1
  run scale.thousand "$OUT/scale" regions 1000
  run scale.one "$OUT/scale" regions 1
  run scale.thousand "$OUT/scale" regions 1000
}

scale_rows() {
  local s t
  for s in 1 4; do
    for t in 1 2 4 8 16; do
      row "faults/s, $s shards, $t threads; to 1 thread" 1/s 1 "scale.$s.$t.faults_s" "scale.$s.1.faults_s" -
    done
  done
  row "faults/s, 16 threads: 4 shards; to 1 shard" 1/s 1 scale.4.16.faults_s scale.1.16.faults_s -
  row "CPU time a fault, 16 threads, 4 shards: fm-faultd; the program" us 1000 scale.4.16.faultd_cpu_ns scale.4.16.client_cpu_ns -
  row "CPU time a fault, 1 thread, 1 shard: fm-faultd; the program" us 1000 scale.1.1.faultd_cpu_ns scale.1.1.client_cpu_ns -
  row "1 TiB sparse: time to map; a region of 1 MiB" ms 1 scale.big.register_ms scale.one.ms_per_region -
  row "1 TiB sparse: state file, real; apparent size" KiB 1 scale.big.state_kib scale.big.words_kib -
  row "time to map a region: the mean of 1,000; one" us 1 scale.thousand.us_per_region scale.one.us_per_region -
  row "first touch: of 1,000 regions in turn; of one" us 1000 scale.thousand.ns_per_touch scale.one.ns_per_touch -
}
