#!/usr/bin/env python3
"""Everything at once, at random, for a time: `make soak`.

  soak.py BIN CLIENTS DIR SECONDS

BIN: folder of the tools. CLIENTS: folder of torture and client. DIR: an empty folder to work in. FM_SEED: repeat a run.

Two checkers run all the while (4 threads with discards; 64 threads on 256 small regions) and small programs come and go, while fm-faultd
and fm-evict are killed, stopped and continued, and replaced by --takeover; budgets and graces change, and everything is evicted. In the
last third nothing is killed: what daemons that live long hold is looked at when that begins and when it ends.
Prints what was done, faults served, deaths survived, wrong words, and memory and descriptors of the daemons at the start and at the end.
Exit 0 when no word was wrong, everything was freed, and the daemons hold no more descriptors, and no more memory, than at the start.
"""
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time


class Soak:
    def __init__(self, bin_dir, clients, work, seconds, seed):
        self.bin, self.clients, self.dir, self.seconds = bin_dir, clients, work, seconds
        self.rnd = random.Random(seed)
        self.seed = seed
        self.run = os.path.join(work, "run")
        self.store = os.path.join(work, "store")
        self.env = dict(os.environ, FM_RUN_DIR=self.run)
        self.log = open(os.path.join(work, "daemons.log"), "ab")
        self.faultd = None
        self.done = {}
        self.programs = 0
        self.faults = {}
        self.wrong = []
        self.stop = threading.Event()

    def start(self, *more):
        r, w = os.pipe()
        old = self.faultd
        self.faultd = subprocess.Popen([os.path.join(self.bin, "fm-faultd"), "--store", "dir:" + self.store, "--local", "2048p",
                                        "--shards", "2", "--ready-fd", str(w), *more], env=self.env, pass_fds=[w],
                                       stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        os.close(w)
        if os.read(r, 1) != b"\n":
            raise RuntimeError("fm-faultd does not start")
        os.close(r)
        if old:
            old.wait(30)

    def tool(self, *args):
        return subprocess.run([os.path.join(self.bin, args[0]), *args[1:]], env=self.env, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=120, check=False)

    def evictor(self):
        with open(f"/proc/{self.faultd.pid}/task/{self.faultd.pid}/children", encoding="ascii") as f:
            pids = f.read().split()
        return int(pids[0]) if pids else None

    def signal_evictor(self, what):
        pid = self.evictor()
        if pid:
            try:
                os.kill(pid, what)
            except ProcessLookupError:
                pass

    # --- what is done

    def kill_faultd(self):
        self.faultd.kill()
        self.faultd.wait()
        time.sleep(self.rnd.random() * 0.1)
        self.start()

    def kill_evictor(self):
        self.signal_evictor(signal.SIGKILL)

    def freeze_evictor(self):
        self.signal_evictor(signal.SIGSTOP)
        time.sleep(self.rnd.random() * 0.5)
        self.signal_evictor(signal.SIGCONT)

    def replace_faultd(self):
        self.start("--takeover")

    def change_limit(self):
        self.tool("fm-evict", "--limit", self.rnd.choice(["1024p", "2048p", "4096p"]))

    def change_grace(self):
        self.tool("fm-evict", "--grace", self.rnd.choice(["0", "50", "300"]), "torture")

    def evict_all(self):
        self.tool("fm-evict", "--all", "torture")

    def count_faults(self):
        out = self.tool("fm-stat", "-j").stdout
        for r in json.loads(out)["regions"] if out else []:
            self.faults[r["id"]] = max(self.faults.get(r["id"], 0), r["faults"])

    def storm(self):
        n = 0
        while not self.stop.is_set():
            n += 1
            last = ["exec"] if n % 7 == 0 else ["unmap:0:40"] if n % 2 else ["check:0:40:%d" % n]
            p = subprocess.Popen([os.path.join(self.clients, "client"), "map:small:64", "fill:0:64:%d" % n, "check:0:64:%d" % n,
                                  "remove:40:8", "munmap:40:24", "check:0:40:%d" % n, *last], env=self.env, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if n % 7 == 0:
                time.sleep(0.2)
                p.kill()
            err = p.communicate()[1]
            if p.returncode == 1 and "client: map:" not in err:
                self.wrong.append(err)
            self.programs += 1

    def usage(self):
        """(RSS in KiB, of that anonymous memory, descriptors) of both daemons."""
        out = []
        for pid in (self.faultd.pid, self.evictor()):
            try:
                with open(f"/proc/{pid}/status", encoding="ascii") as f:
                    kib = dict(line.split()[:2] for line in f if "Rss" in line or "RSS" in line)
                out.append((int(kib["VmRSS:"]), int(kib["RssAnon:"]), len(os.listdir(f"/proc/{pid}/fd"))))
            except (OSError, KeyError):
                out.append((0, 0, 0))
        return out

    def steady_usage(self):
        """The least of many looks, while programs come and go."""
        looks = []
        for _ in range(40):
            looks.append(self.usage())
            time.sleep(0.05)
        return [tuple(min(look[i][k] for look in looks) for k in range(3)) for i in range(2)]

    def torture(self, *args):
        return subprocess.Popen([os.path.join(self.clients, "torture"), "--seconds", "100000", "--seed", str(self.seed), *args],
                                env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def act(self, acts, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            act = self.rnd.choice(acts)
            act()
            self.done[act.__name__] = self.done.get(act.__name__, 0) + 1
            self.count_faults()
            time.sleep(self.rnd.random() * 0.4)

    def regions(self):
        return [f for f in os.listdir(self.run) if f.startswith("region-")]

    def enlisted(self):
        with open(os.path.join(self.run, "daemon.state"), "rb") as f:
            pid = int.from_bytes(f.read(712)[708:], sys.byteorder)
        return pid and pid == self.evictor()

    def settle(self):
        """Nothing but the daemons is there. Returns their usage, or None when something was not freed."""
        end = time.monotonic() + 60
        while self.regions() or os.listdir(self.store) or not self.enlisted():
            if time.monotonic() > end:
                return None
            time.sleep(0.05)
        return self.usage()

    def go(self):
        os.mkdir(self.store)
        self.start()
        before = self.settle()
        checkers = [self.torture("--size", str(8192 * 4096), "--threads", "4", "--discard"),
                    self.torture("--size", str(4 * 4096), "--regions", "256", "--threads", "64", "--name", "many", "--rest", "5000")]
        while len(self.regions()) < 257 and all(c.poll() is None for c in checkers):
            time.sleep(0.05)
        storm = threading.Thread(target=self.storm, daemon=True)
        storm.start()
        calm_acts = [self.freeze_evictor, self.change_limit, self.change_grace, self.evict_all]
        self.act([self.kill_faultd, self.kill_evictor, self.kill_evictor, self.replace_faultd, *calm_acts], self.seconds * 2 / 3)
        self.act(calm_acts, self.seconds / 30)
        calm = [self.steady_usage()]
        self.act(calm_acts, self.seconds * 0.3)
        calm.append(self.steady_usage())
        self.stop.set()
        self.tool("fm-evict", "--limit", "4096p")
        storm.join()
        ok, words = True, []
        for c in checkers:
            c.send_signal(signal.SIGTERM)
            out, err = c.communicate(timeout=600)
            print(out.strip(), err.strip(), sep="\n")
            words.append(out.rsplit(",", 1)[-1].strip())
            ok &= c.returncode == 0
        self.kill_faultd()  # so that both ends are those of young daemons with the same past
        after = self.settle()
        self.faultd.send_signal(signal.SIGTERM)
        ok &= self.faultd.wait(30) == 0 and not self.wrong
        deaths = sum(self.done.get(n, 0) for n in ("kill_faultd", "kill_evictor", "replace_faultd"))
        print(*self.wrong, sep="\n")
        print("soak: " + ", ".join(f"{n} {k}" for n, k in sorted(self.done.items())) + f", programs {self.programs}")
        def show(u):
            return f"{u[0]} KiB ({u[1]} anonymous), {u[2]} descriptors"
        for i, name in enumerate(("fm-faultd", "fm-evict")):
            print(f"soak: {name}: {show(before[i])} at the start, " +
                  (f"{show(after[i])} at the end" if after else "something was not freed in the end"))
            print(f"soak: {name}: under load without deaths {show(calm[0][i])}, {self.seconds * 0.3:.0f} s later {show(calm[1][i])}")
        print(f"soak: {sum(self.faults.values())} faults served, {deaths} deaths survived, {' and '.join(words)}")
        # A region more or less is under way at any time; allocators keep what they had once; a shard gets its waker, with a descriptor
        # (shard_near.c), when one thread faults alone.
        grown = any(b[2] > a[2] + 16 + 257 or b[1] > a[1] * 1.25 + 1024 for a, b in zip(*calm))
        return ok and after and not grown and all(a[2] <= b[2] for a, b in zip(after, before))


def main():
    bin_dir, clients, work, seconds = sys.argv[1:]
    seed = int(os.environ.get("FM_SEED", "0")) or random.randrange(1 << 30)
    print(f"soak: seed {seed}, {seconds} s", flush=True)
    soak = Soak(bin_dir, clients, work, float(seconds), seed)
    try:
        good = soak.go()
    finally:
        if soak.faultd and soak.faultd.poll() is None:
            soak.faultd.kill()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
