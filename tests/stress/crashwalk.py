#!/usr/bin/env python3
"""Have the daemons of a crash build (make SAN=crash, lib/crash.h) die at each crash point, under clients that check every word.

  crashwalk.py BIN CLIENTS DIR STORE POINT...

BIN: folder of the crash build's tools. CLIENTS: folder of torture, client, lost. DIR: an empty folder to work in. STORE: URI.
Prints a line a point, and last `crashwalk: N points, K deaths, W wrong words`. Exit 0 when each point was reached, no word was
wrong, and all was freed at the end.

A point is armed in a shared file. When a daemon has died there it is started again (fm-evict by fm-faultd), and the next one is
armed; torture (with discards) runs all the while, on a budget of an eighth, and small clients come and go.
"""
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time

SLOT, SLOTS = 64, 8
PATIENCE = 20  # seconds until a point must have been reached

# Which point another daemon's death leads to: the first is armed with it.
AFTER = {
    "mend-": ["stored-published", "take-owned", "punched-run"],
    "recover-": ["fill-busy", "unprotect-busy", "fill-installed"],
    "takeover-": ["fill-busy"],
    "recount-": ["fill-busy"],
    "start-": ["fill-busy"],
    "evictor-": ["take-owned"],
}

# Rare ones are taken at their first pass; of others, some of the passes are let go by.
OFTEN = ("fill-", "unprotect-", "take-", "protect-", "put-", "dir-", "stored-", "punched-", "leave-", "room-", "ring-", "due-", "grace-")


class Walk:
    def __init__(self, bin_dir, clients, work, store):
        self.bin, self.clients, self.dir, self.store = bin_dir, clients, work, store
        self.run = os.path.join(work, "run")
        self.log = open(os.path.join(work, "daemons.log"), "ab")
        path = os.path.join(work, "crash")
        with open(path, "wb") as f:
            f.write(bytes(SLOT * SLOTS))
        self.file = open(path, "r+b")
        self.map = mmap.mmap(self.file.fileno(), SLOT * SLOTS)
        self.env = dict(os.environ, FM_CRASH_FILE=path, FM_RUN_DIR=self.run)
        self.faultd = None
        self.deaths = 0
        self.stop = threading.Event()
        self.grace = 0
        self.wrong = []

    # --- the armed points

    def arm(self, slot, name, passes):
        at = slot * SLOT
        self.map[at:at + SLOT] = struct.pack("ii56s", 0, 0, name.encode())
        self.map[at:at + 4] = struct.pack("i", passes)

    def disarm(self):
        for slot in range(SLOTS):
            self.map[slot * SLOT:slot * SLOT + 4] = struct.pack("i", 0)

    def died(self, slot):
        return struct.unpack_from("i", self.map, slot * SLOT + 4)[0]

    # --- the daemons

    def start(self):
        """Start fm-faultd. Returns whether it became ready; it may die on the way there."""
        r, w = os.pipe()
        self.faultd = subprocess.Popen(
            [os.path.join(self.bin, "fm-faultd"), "--store", self.store, "--local", "256p", "--ready-fd", str(w), "--shards", "2",
             "--no-seccomp", "--grace", str(self.grace)] + (["--replicas", "2"] if self.store.startswith("memcached") else []),
            env=self.env, pass_fds=[w], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        os.close(w)
        ready = os.read(r, 1) == b"\n"
        os.close(r)
        return ready

    def keep_up(self):
        if self.faultd.poll() is not None:
            if self.faultd.returncode != -signal.SIGKILL:
                raise RuntimeError(f"fm-faultd ended with {self.faultd.returncode}")
            self.start()

    # --- clients

    def small_clients(self):
        """Regions that come and go: their clients see only that fm_map fails while no daemon is there."""
        n = 0
        while not self.stop.is_set():
            n += 1
            p = subprocess.run([os.path.join(self.clients, "client"), "map:small:96", "fill:0:96:%d" % n, "remove:10:20",
                                "check:0:10:%d" % n, "check:30:66:%d" % n, "munmap:64:32", "check:30:34:%d" % n, "unmap:0:64"],
                               env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, check=False)
            if p.returncode and "client: map:" not in p.stderr:
                self.wrong.append(p.stderr)
            time.sleep(0.01)

    def losers(self):
        """A client that loses a page now and then, as somebody destroys it in the store."""
        while not self.stop.is_set():
            p = subprocess.Popen([os.path.join(self.clients, "lost"), "--size", str(64 * 4096), "--name", "lost"], env=self.env,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            try:
                if not p.stdout.readline().startswith("lost: seed"):
                    continue
                self.ask(p, "fill")
                subprocess.run([os.path.join(self.bin, "fm-evict"), "--all", "lost"], env=self.env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, timeout=20, check=False)
                folder = self.store[len("dir:"):]
                for name in os.listdir(folder):
                    if os.path.getsize(os.path.join(folder, name)) <= 64 * 4096 and self.is_losers(name):
                        os.truncate(os.path.join(folder, name), 32 * 4096)
                if " 0 wrong" not in self.ask(p, "check"):
                    self.wrong.append("lost: a wrong page")
            except (BrokenPipeError, subprocess.TimeoutExpired, FileNotFoundError):
                pass
            finally:
                p.stdin.close()
                p.wait()
            time.sleep(0.02)

    @staticmethod
    def ask(p, what):
        p.stdin.write(what + "\n")
        p.stdin.flush()
        return p.stdout.readline()

    def is_losers(self, pages_file):
        out = subprocess.run([os.path.join(self.bin, "fm-stat")], env=self.env, capture_output=True, text=True, check=False).stdout
        names = [line.split() for line in out.splitlines()]
        return any(pages_file.startswith(w[0]) and "lost" in w for w in names if w)

    def homers(self):
        """Memory of a process that goes far and comes home again and again."""
        hotplug = os.path.join(self.bin, "fm-hotplug")
        p = subprocess.Popen([os.path.join(self.clients, "torture"), "--vm", "--size", str(512 * 4096), "--threads", "1", "--seconds", "3000"],
                             env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not self.stop.is_set():
            for what in "--attach", "--detach":
                try:
                    subprocess.run([hotplug, what, f"pid:{p.pid}"], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   timeout=10, check=False)
                except subprocess.TimeoutExpired:
                    pass
                time.sleep(0.1)
        p.send_signal(signal.SIGTERM)
        out, err = p.communicate()
        if p.returncode:
            self.wrong.append("torture --vm: " + out + err)

    def servers(self):
        """Pages that move between servers: one is drained and added again."""
        server = self.store[len("memcached:"):].split("?")[0].split(",")[0].removeprefix("//")
        what = "--drain-server"
        while not self.stop.is_set():
            try:
                subprocess.run([os.path.join(self.bin, "fm-evict"), what, server], env=self.env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, timeout=5, check=False)
            except subprocess.TimeoutExpired:
                pass
            what = "--add-server" if what == "--drain-server" else "--drain-server"
            time.sleep(0.1)

    # --- the walk

    def reach(self, point, rnd):
        first = next((rnd.choice(v) for k, v in AFTER.items() if point.startswith(k)), None)
        passes = rnd.randint(1, 30) if point.startswith(OFTEN) else 1
        self.disarm()
        self.arm(0, point, passes)
        if first:
            self.arm(1, first, 1)
        end = time.monotonic() + PATIENCE
        began = time.monotonic()
        while not self.died(0):
            self.keep_up()
            if first and self.died(1):  # the death that should lead there did not: another one
                if time.monotonic() > began + 1.5:
                    first = rnd.choice(next(v for k, v in AFTER.items() if point.startswith(k)))
                    self.arm(1, first, rnd.randint(1, 5))
                    began = time.monotonic()
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        self.disarm()
        self.deaths += 1
        # Whoever it was is waited for: the next death must not come before this one was mended.
        for _ in range(2000):
            self.keep_up()
            if self.evictor_lives():
                break
            time.sleep(0.005)
        return True

    def evictor_lives(self):
        with open(os.path.join(self.run, "daemon.state"), "rb") as f:
            f.seek(708)
            pid = struct.unpack("i", f.read(4))[0]
        return pid > 0 and os.path.exists(f"/proc/{pid}")

    def set_grace(self, ms):
        for _ in range(100):
            self.keep_up()
            if subprocess.run([os.path.join(self.bin, "fm-evict"), "--grace", str(ms), "torture"], env=self.env,
                              stderr=subprocess.DEVNULL, check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError("fm-evict --grace fails")

    def walk(self, points, seed):
        rnd = random.Random(seed)
        missed = []
        self.start()
        torture = subprocess.Popen([os.path.join(self.clients, "torture"), "--size", str(2048 * 4096), "--threads", "3", "--discard",
                                    "--seconds", "3000", "--seed", str(seed)], env=self.env, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2000):  # its region must be there before anything dies
            if any(f.startswith("region-") for f in os.listdir(self.run)):
                break
            time.sleep(0.01)
        time.sleep(0.2)
        jobs = [self.small_clients]
        jobs += [self.losers] if self.store.startswith("dir:") and any(p.startswith("lost-") for p in points) else []
        jobs += [self.homers] if any(p.startswith(("home-", "detach-")) for p in points) else []
        jobs += [self.servers] if self.store.startswith("memcached") else []
        threads = [threading.Thread(target=t, daemon=True) for t in jobs]
        for t in threads:
            t.start()
        for point in points:
            t0 = time.monotonic()
            # The grace's own points; the others are more often passed without.
            want = 40 if point.startswith(("grace-", "due-")) else 0
            if want != self.grace:
                self.grace = want
                self.set_grace(want)
            ok = self.reach(point, rnd)
            if not ok:
                missed.append(point)
            print(f"{'ok' if ok else 'NOT REACHED'} {point} {time.monotonic() - t0:.2f} s", flush=True)
            if torture.poll() is not None:
                print("torture has ended:", torture.stderr.read())
                break
        self.disarm()
        self.stop.set()
        torture.send_signal(signal.SIGTERM)
        while any(t.is_alive() for t in threads) or torture.poll() is None:
            self.keep_up()
            time.sleep(0.02)
        out, err = torture.communicate()
        print(out.strip(), err.strip(), *self.wrong, sep="\n")
        words = out.rsplit(",", 1)[-1].strip()
        return missed, torture.returncode == 0 and not self.wrong, words or "no words"

    def left(self):
        """What was not freed."""
        for _ in range(200):
            left = [f for f in os.listdir(self.run) if f.startswith("region-")]
            if self.store.startswith("dir:"):
                left += os.listdir(self.store[len("dir:"):])
            if not left:
                break
            time.sleep(0.1)
        return left


def main():
    bin_dir, clients, work, store, *points = sys.argv[1:]
    seed = int(os.environ.get("FM_SEED", "0")) or random.randrange(1 << 30)
    print(f"crashwalk: seed {seed}", flush=True)
    w = Walk(bin_dir, clients, work, store)
    try:
        missed, good, words = w.walk(points, seed)
        left = w.left()
        w.faultd.send_signal(signal.SIGTERM)
        ended = w.faultd.wait(10)
    finally:
        if w.faultd and w.faultd.poll() is None:
            w.faultd.kill()
    print(f"left behind: {left}" if left else "nothing left behind")
    print(f"crashwalk: {len(points)} points, {w.deaths} deaths, {words}")
    sys.exit(1 if missed or not good or left or ended else 0)


if __name__ == "__main__":
    main()
