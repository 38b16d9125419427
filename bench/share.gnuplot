# bench/share.bash gives T (folder of plot.NAME: share, ours, swap), B (bench-latency-*.txt: sorted nanoseconds) and swap (0 or 1).
set terminal pngcairo size 1300,560 font "sans,10"
set output B."/bench.png"
set multiplot layout 1,2
set grid
set key bottom right
set title "a fault as the program sees it (zipf, 25 % local, dir: store on tmpfs)"
set xlabel "microseconds"
set ylabel "share of faults"
fm = B."/bench-latency-fm.txt"
sw = B."/bench-latency-swap.txt"
stats fm using 1 name "FM" nooutput
n = FM_records
if (swap) {
  stats sw using 1 name "SW" nooutput
  m = SW_records
}
set logscale x
set xrange [1:10000]
set yrange [0:1]
if (swap) {
  plot fm using ($1/1000):($0/n) with lines lw 2 title "fm", sw using ($1/1000):($0/m) with lines lw 2 title "kernel swap, zram"
} else {
  plot fm using ($1/1000):($0/n) with lines lw 2 title "fm"
}
set title "slowdown against local memory"
set key top right
set xlabel "local memory, %"
set ylabel "time over all-local"
unset logscale x
set logscale y
set xrange [20:105]
set yrange [0.8:*]
names = "uniform zipf scan sort sqlite"
if (swap) {
  plot for [i=1:words(names)] T."/plot.".word(names, i) using 1:2 with linespoints lw 2 lc i title word(names, i).", fm", \
       for [i=1:words(names)] T."/plot.".word(names, i) using 1:3 with linespoints dt 2 lc i title word(names, i).", zram"
} else {
  plot for [i=1:words(names)] T."/plot.".word(names, i) using 1:2 with linespoints lw 2 lc i title word(names, i).", fm"
}
unset multiplot
