# shellcheck shell=bash
# What the scripts of `make bench` share: figures kept by rounds, medians, rows. Sourced by run.sh, which has made $T.

# keep NAME KEY=VALUE...: append each value to the file of NAME.KEY, a line a round
keep() {
  local name=$1 pair
  shift
  for pair in "$@"; do
    echo "${pair#*=}" >> "$T/v/$name.${pair%%=*}"
  done
}

# run NAME COMMAND...: keep the KEY=VALUE lines that it prints
run() {
  local name=$1 got
  shift
  got=$("$@")
  # shellcheck disable=SC2086 # words are the pairs
  keep "$name" $got
}

median() {
  sort -g "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# row NAME UNIT SCALE OURS REFERENCE GOAL: files below $T/v, values divided by SCALE; GOAL as <=1.50, >=0.80 or -
row() {
  local ours=$T/v/$4 ref=$T/v/$5
  [ -s "$ours" ] && [ -s "$ref" ] || return 0
  paste "$ours" "$ref" | awk '$2 > 0 { print $1 / $2 }' > "$T/ratios"
  [ -s "$T/ratios" ] || return 0
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(median "$ours")" "$(median "$ref")" "$(median "$T/ratios")" "$6"
}

# start_faultd NAME ARGUMENT...: run directory $T/run.NAME; sets FAULTD and EVICTOR to its processes
start_faultd() {
  local name=$1
  shift
  mkfifo "$T/ready.$name"
  "$BIN/fm-faultd" --run-dir "$T/run.$name" --local none --ready-fd 3 "$@" 3> "$T/ready.$name" &
  FAULTD=$!
  pids+=("$FAULTD")
  read -r -t 10 < "$T/ready.$name" || { echo "bench: fm-faultd is not ready after 10 s" >&2; exit 1; }
  EVICTOR=''
  for ((i = 0; i < 100; i++)); do
    EVICTOR=$(cat "/proc/$FAULTD/task/$FAULTD/children")
    EVICTOR=${EVICTOR// /}
    [ -z "$EVICTOR" ] || break
    sleep 0.02
  done
}
