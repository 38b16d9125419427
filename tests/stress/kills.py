#!/usr/bin/env python3
"""SIGKILL for fm-faultd or fm-evict, at random, every 0.2 to 1 s, under a checker: `make kills`.

  kills.py BIN CLIENTS DIR SECONDS dir|memcached [guest]

BIN: folder of the tools. CLIENTS: folder of torture. DIR: an empty folder to work in. memcached: three servers, two copies of each page.
FM_SEED: repeat a run's choices.

The checker is torture with 4 threads on four times the budget. With `guest` it is whoever uses the daemons of DIR/run: the kills begin when
there is a file DIR/go and some thousand faults were served; the last fm-faultd serves until there is a file DIR/end.

Prints the kills, the wrong words, and the longest pauses of the checker: in all, and beyond the time that no fm-faultd ran, which is from
its SIGKILL until the next one is started (a supervisor's time, not ours). An operation of the checker is one page, of which it may
need several faults. Exit 0 when no word was wrong, no page lost, and everything was freed.
"""
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time


def die_with_us():
    """For what is started here: SIGKILL when this program ends, whatever ends it (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def wait_for(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"after {seconds} s still not: {what}")
        time.sleep(0.02)


def quantile(sorted_values, q):
    return sorted_values[min(len(sorted_values) - 1, int(q * len(sorted_values)))] if sorted_values else 0


class Kills:
    def __init__(self, bin_dir, clients, work, seconds, store, guest):
        self.bin, self.clients, self.dir, self.seconds, self.guest = bin_dir, clients, work, seconds, guest
        self.seed = int(os.environ.get("FM_SEED", "0")) or random.randrange(1 << 30)
        self.rnd = random.Random(self.seed)
        self.run = os.path.join(work, "run")
        self.env = dict(os.environ, FM_RUN_DIR=self.run)
        self.log = open(os.path.join(work, "daemons.log"), "ab")
        # An evictor that lives no longer than a VM's grace (1 s) lets no written page go: the guest would stand still until the end.
        self.grace = ["--grace", "100"] if guest else []
        self.faultd, self.checker, self.servers = None, None, []
        self.kills = {"fm-faultd": 0, "fm-evict": 0}
        self.deaths = []  # (when, who)
        self.down = []  # (SIGKILL, the next one's start) of fm-faultd, seconds of CLOCK_MONOTONIC
        self.ready = []  # from its start until it was ready
        if store == "memcached":
            self.store = ["--store", "memcached:" + ",".join(self.memcached(i) for i in range(3)), "--replicas", "2"]
        else:
            self.store = ["--store", "dir:" + os.path.join(work, "store")]

    def file(self, name):
        return os.path.join(self.dir, name)

    def memcached(self, i):
        at = self.file(f"mc{i}")
        user = ["-u", "root"] if os.getuid() == 0 else []
        self.servers.append(subprocess.Popen(["memcached", *user, "-M", "-t", "1", "-m", "1024", "-s", at], stdin=subprocess.DEVNULL,
                                             stdout=self.log, stderr=self.log, preexec_fn=die_with_us))
        wait_for(f"memcached on {at}", lambda: os.path.exists(at))
        return at

    def start(self):
        r, w = os.pipe()
        began = time.monotonic()
        self.faultd = subprocess.Popen([os.path.join(self.bin, "fm-faultd"), *self.store, "--local", "2048p", "--shards", "2", *self.grace,
                                        "--ready-fd", str(w)], env=self.env, pass_fds=[w], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, preexec_fn=die_with_us)
        os.close(w)
        if os.read(r, 1) != b"\n":
            raise RuntimeError("fm-faultd does not start")
        os.close(r)
        self.ready.append(time.monotonic() - began)
        return began

    def stat(self):
        out = subprocess.run([os.path.join(self.bin, "fm-stat"), "-j"], env=self.env, stdin=subprocess.DEVNULL, capture_output=True,
                             text=True, timeout=120, check=True).stdout
        return json.loads(out)["regions"]

    def served(self):
        return sum(r["faults"] for r in self.stat())

    def kill_faultd(self):
        killed = time.monotonic()
        self.deaths.append((killed, "fm-faultd"))
        self.faultd.kill()
        self.faultd.wait()
        self.down.append((killed, self.start()))
        self.kills["fm-faultd"] += 1

    def kill_evictor(self):
        with open(f"/proc/{self.faultd.pid}/task/{self.faultd.pid}/children", encoding="ascii") as f:
            pids = f.read().split()
        if pids:
            try:
                self.deaths.append((time.monotonic(), "fm-evict"))
                os.kill(int(pids[0]), signal.SIGKILL)
                self.kills["fm-evict"] += 1
            except ProcessLookupError:
                pass

    def kill_for(self, seconds):
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            self.rnd.choice([self.kill_faultd, self.kill_evictor])()
            # From kill to kill, but a fm-faultd that is not ready yet is waited for.
            time.sleep(max(0, now + self.rnd.uniform(0.2, 1) - time.monotonic()))

    def pauses(self, calm_end):
        """(without kills, in all, beyond): sorted, milliseconds; and what was killed around the longest of the last ones."""
        before, whole, beyond, longest, when = [], [], [], 0, "nothing"
        with open(self.file("pauses"), encoding="ascii") as f:
            for line in f:
                a, b = (int(n) / 1e9 for n in line.split())
                if a < calm_end:
                    before.append((b - a) * 1000)
                    continue
                away = sum(max(0, min(b, t) - max(a, s)) for s, t in self.down)
                whole.append((b - a) * 1000)
                beyond.append((b - a - away) * 1000)
                if beyond[-1] > longest:
                    longest = beyond[-1]
                    near = [f"{who} after {(t - a) * 1000:.0f} ms" for t, who in self.deaths if a - 0.5 < t < b]
                    when = "SIGKILL of " + ", ".join(near)
        return sorted(before), sorted(whole), sorted(beyond), when

    def go(self):
        self.start()
        if self.guest:
            print("kills: ready", flush=True)
            wait_for("go", lambda: os.path.exists(self.file("go")), 600)
        else:
            self.checker = subprocess.Popen([os.path.join(self.clients, "torture"), "--seconds", "100000", "--size", str(8192 * 4096),
                                             "--threads", "4", "--seed", str(self.seed), "--discard", "--pauses", self.file("pauses")],
                                            env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                            preexec_fn=die_with_us)
        wait_for("faults", lambda: self.served() > 3000, 600)
        time.sleep(self.seconds / 10)
        calm_end = time.monotonic()
        self.kill_for(self.seconds)
        time.sleep(0.5)
        stat = self.stat()
        lost = sum(r["pages_lost"] for r in stat)
        good = lost == 0 and len(stat) >= 1
        print(f"kills: {self.kills['fm-faultd']} of fm-faultd, {self.kills['fm-evict']} of fm-evict in {self.seconds:.0f} s, {lost} pages lost, "
              f"{sum(r['evictions'] for r in stat)} evictions")
        ready = sorted(1000 * t for t in self.ready[1:])
        print(f"kills: fm-faultd was ready {quantile(ready, 0.5):.0f} ms after its start (half of them), {ready[-1] if ready else 0:.0f} ms at most",
              flush=True)
        if self.guest:
            wait_for("end", lambda: os.path.exists(self.file("end")), 1200)
        else:
            self.checker.send_signal(signal.SIGTERM)
            out = self.checker.communicate(timeout=300)[0]
            good &= self.checker.returncode == 0 and out.rstrip().endswith(", 0 wrong words")
            print(out, end="")
            before, whole, beyond, when = self.pauses(calm_end)
            print(f"kills: longest pause {quantile(whole, 1):.0f} ms; beyond the time that no fm-faultd ran {quantile(beyond, 1):.0f} ms ({when}), "
                  f"99 % of {len(beyond)} pauses above 20 ms: {quantile(beyond, 0.99):.0f} ms, above 150 ms: {sum(p > 150 for p in beyond)}; "
                  f"the longest before the first kill {quantile(before, 1):.0f} ms")
        wait_for("all freed", lambda: not [f for f in os.listdir(self.run) if f.startswith("region-")])
        self.faultd.send_signal(signal.SIGTERM)
        return self.faultd.wait(60) == 0 and good

    def end(self):
        for p in [self.checker, self.faultd, *self.servers]:
            if p and p.poll() is None:
                p.kill()
                p.wait()


def main():
    bin_dir, clients, work, seconds, store, *guest = sys.argv[1:]
    kills = Kills(bin_dir, clients, work, float(seconds), store, guest == ["guest"])
    print(f"kills: seed {kills.seed}, {store}", flush=True)
    try:
        good = kills.go()
    finally:
        kills.end()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
