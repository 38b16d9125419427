# Rows of `make bench` on what to keep: misses counted by bench/policy. Sourced by bench/run.sh.

cc "${CF[@]}" -Ilib -o "$OUT/policy" bench/policy.c lib/victims.c -lm

# Misses are counted, not timed: the same in every run, so one is enough. Its whole table goes to $B/bench-policy.json.
choices_rows() {
  "$OUT/policy" -j > "$B/bench-policy.json"
  tr -d '\n' < "$B/bench-policy.json" | sed 's/},{/}\n{/g' | awk -F '[":,}]+' '
    { trace = $3; share = $5; fifo = $11; ours = $15; ratio = ours / fifo }
    ratio > worst { worst = ratio; wo = ours; wf = fifo; which = trace ", " share " % local" }
    trace == "scan-polluted zipf" { po += ours; pf += fifo }
    END {
      printf "misses, scan-polluted zipf, sum of 25, 50 and 75 %% local, to FIFO\t-\t1\t%d\t%d\t%.3f\t<=0.80\n", po, pf, po / pf
      printf "misses, worst of all traces (%s), to FIFO\t-\t1\t%d\t%d\t%.3f\t<=1.02\n", which, wo, wf, worst
    }'
}
