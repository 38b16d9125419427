# shellcheck shell=bash
# Rows over a real memcached: fm beside a raw client of the same server that sends and receives values of the same length.
# Sourced by run.sh. The pages do not compress. "sealed" is what a user gets (AES-256-GCM), "unsealed" is --no-seal.
#
# Fault rows: client, fault thread and server all on CPU 0: three processes in turn, no wake-up of a halted CPU.
# Stream rows: the server on CPU 1; fault thread, evictor and raw client on CPU 0 (with one CPU: all there).

MC_VARIANTS=()
declare -A MC_FAULTD MC_EVICTOR MC_ADDRESS MC_PID

# mc_server NAME ADDRESS ARGUMENT...: a memcached with room for all that is measured
mc_server() {
  local name=$1 address=$2 user=()
  shift 2
  [ "$(id -u)" != 0 ] || user=(-u root)
  memcached "${user[@]}" -t 1 -M -m 1024 "$@" &
  pids+=($!)
  MC_PID[$name]=$!
  MC_ADDRESS[$name]=$address
}

# A port that nobody uses now.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

mc_variant() {
  local name=$1 server=$2
  shift 2
  start_faultd "$name" --store "memcached:${MC_ADDRESS[$server]/#127/\/\/127}" "$@"
  MC_VARIANTS+=("$name:$server")
  MC_FAULTD[$name]=$FAULTD
  MC_EVICTOR[$name]=$EVICTOR
}

mc_start() {
  local port
  command -v memcached > /dev/null || { echo "bench: no memcached here: no rows over it" >&2; return 0; }
  port=$(free_port)
  mc_server unix "$T/mc.sock" -s "$T/mc.sock"
  mc_server tcp "127.0.0.1:$port" -l 127.0.0.1 -p "$port"
  for ((i = 0; i < 100; i++)); do
    [ ! -S "$T/mc.sock" ] || ! "$OUT/mc_stream" "$T/mc.sock" 64 > "$T/log" 2>&1 ||
      ! "$OUT/mc_stream" "127.0.0.1:$port" 64 >> "$T/log" 2>&1 || break
    sleep 0.05
  done
  mc_variant sealed unix
  mc_variant unsealed unix --no-seal
  mc_variant tcp tcp
}

# on CPU PID...: let whole processes run there
on() {
  local cpu=$1 pid
  shift
  for pid in "$@"; do
    taskset -a -c -p "$cpu" "$pid" > /dev/null
  done
}

mc_round() {
  local v name server fm
  for v in "${MC_VARIANTS[@]}"; do
    name=${v%:*} server=${v#*:}
    fm=(env FM_RUN_DIR="$T/run.$name" "$OUT/fault_latency" -p "${MC_FAULTD[$name]}" -e "$BIN/fm-evict")
    on 0 "${MC_PID[$server]}"
    run "mc.$name.fault" "${fm[@]}" -n "$PAGES" -t "$TOUCHES" -c 0 -s 0
    run "mc.$name.raw" "$OUT/bare_uffd" -m "${MC_ADDRESS[$server]}" -n "$PAGES" -t "$TOUCHES" -c 0 -s 0
    on $(($(nproc) > 1)) "${MC_PID[$server]}"
    on 0 "${MC_EVICTOR[$name]}"
    run "mc.$name.stream" "${fm[@]}" -n 32768 -t 0 -q -c 0 -s 0
    run "mc.$name.stream" "$OUT/mc_stream" "${MC_ADDRESS[$server]}" 32768 0
  done
}

mc_rows() {
  local v name what
  for v in "${MC_VARIANTS[@]}"; do
    name=${v%:*}
    case $name in
      tcp) what="memcached, TCP, sealed" ;;
      *) what="memcached, Unix, $name" ;;
    esac
    row "remote fault p50, $what, to bare uffd + get" us 1000 "mc.$name.fault.p50_ns" "mc.$name.raw.p50_ns" "<=1.10"
    row "write-back, $what, to set stream" MB/s 1 "mc.$name.stream.evict_mb_s" "mc.$name.stream.set_mb_s" ">=0.80"
    row "sequential read, $what, to get stream" MB/s 1 "mc.$name.stream.read_mb_s" "mc.$name.stream.get_mb_s" ">=0.80"
    row "strided read, every third page, $what, to get stream" MB/s 1 "mc.$name.stream.stride_mb_s" "mc.$name.stream.get_mb_s" ">=0.80"
  done
}
