#!/usr/bin/env python3
"""A proxy before one memcached that does what networks and bad servers do.

  mcproxy.py LISTEN SERVER CONTROL [--record FILE] [--seed N]     paths of Unix sockets; prints a line when it listens
  mcproxy.py ctl CONTROL WORDS...                                 send one command, print the answer

It speaks memcached's text protocol in whole requests and replies; one connection to the server for each client connection.

Commands:
  set [FAULT=P...]  from now on these faults, each with its probability (of each value, or each reply); all others none
                    values: flip (one bit), swap (another page's value), replay (an older value of the page),
                    trunc (shorter, with a length that fits); replies: garbage (a line of noise), tear (half a reply, then
                    the end), drop (the end), delay (some time, up to 0.3 s);
                    requests: dup (a set or delete is sent once more, up to 1 s later, over another connection)
  hold set|delete   the next request of that kind, and all that follows it on its connection, waits for `release`, even when
                    its sender is long gone; other connections work
  release           hold back no more, and send what was held
  slow SECONDS [TEXT]  every request with TEXT in its first line is passed on that much later; those behind it on its connection wait with it
  stats             FAULT=N...: what was done so far; held=N requests are held now

With --record every byte that passes, in both directions, is appended to FILE.
"""

import asyncio
import random
import socket
import sys

VALUE_FAULTS = ("flip", "swap", "replay", "trunc")
REPLY_FAULTS = ("garbage", "tear", "drop", "delay")
FAULTS = VALUE_FAULTS + REPLY_FAULTS + ("dup",)
GENERATION = 11  # hex digits at a key's end


class Proxy:
    def __init__(self, server, record, seed):
        self.server = server
        self.record = open(record, "ab", buffering=0) if record else None
        self.random = random.Random(seed)
        self.faults = {}
        self.done = dict.fromkeys(FAULTS, 0)
        self.history = {}  # page's part of the key -> values, oldest first
        self.last = None  # page and value seen last
        self.other = None  # the same, of the page seen before that one
        self.hold = None
        self.slow = (0, b"")  # seconds, for requests with that text
        self.slowed = 0
        self.holding = set()  # connections that hold requests back
        self.tasks = set()

    def spawn(self, coroutine):
        task = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def hits(self, fault):
        p = self.faults.get(fault)
        if not p or self.random.random() >= p:
            return False
        self.done[fault] += 1
        return True

    def keep(self, data):
        if self.record:
            self.record.write(data)

    async def upstream(self):
        return await asyncio.open_unix_connection(self.server, limit=1 << 20)

    def spoil(self, key, value):
        """What the client gets for a value."""
        page, good = key[:-GENERATION], value
        if self.last and self.last[0] != page:
            self.other = self.last
        self.last = (page, value)
        older = [v for v in self.history.get(page, ()) if v != good]
        if self.other and self.other[0] != page and self.hits("swap"):
            value = self.other[1]
        if older and self.hits("replay"):
            value = self.random.choice(older)
        if value and self.hits("flip"):
            i = self.random.randrange(len(value))
            value = value[:i] + bytes([value[i] ^ 1 << self.random.randrange(8)]) + value[i + 1 :]
        if value and self.hits("trunc"):
            value = value[: self.random.randrange(len(value))]
        return value

    def remember(self, key, value):
        versions = self.history.setdefault(key[:-GENERATION], [])
        versions.append(value)
        del versions[:-3]

    async def again(self, request):
        """The same request once more, later, over another connection."""
        await asyncio.sleep(self.random.random())
        try:
            r, w = await self.upstream()
            w.write(request)
            await asyncio.wait_for(r.readline(), 5)
            w.close()
        except (OSError, asyncio.TimeoutError):
            pass

    async def release(self):
        self.hold = None
        for c in list(self.holding):
            await c.release()

    async def command(self, reader, writer):
        words = (await reader.readline()).decode().split()
        answer = "ok"
        try:
            if words[0] == "set":
                faults = dict(w.split("=") for w in words[1:])
                if not set(faults) <= set(FAULTS):
                    raise ValueError
                self.faults = {k: float(v) for k, v in faults.items()}
            elif words[0] == "hold" and words[1] in ("set", "delete"):
                self.hold = words[1].encode()
            elif words[0] == "slow":
                self.slow = (float(words[1]), words[2].encode() if len(words) > 2 else b"")
            elif words[0] == "release":
                answer = f"released {sum(len(c.backlog) for c in self.holding)}"
                await self.release()
            elif words[0] == "stats":
                held = sum(len(c.backlog) for c in self.holding)
                answer = " ".join(f"{k}={v}" for k, v in {**self.done, "held": held, "slowed": self.slowed}.items())
            else:
                raise ValueError
        except (ValueError, IndexError):
            answer = "error: " + " ".join(words)
        writer.write(answer.encode() + b"\n")
        writer.close()


class Connection:
    def __init__(self, proxy, reader, writer):
        self.proxy, self.client_r, self.client_w = proxy, reader, writer
        self.backlog = []
        self.held = self.ended = False
        self.due = 0  # when what was slowed last goes on, by the event loop's clock
        self.queue = asyncio.Queue()

    async def request(self):
        line = await self.client_r.readline()
        words = line.split()
        if not line.endswith(b"\n"):
            raise EOFError
        if words and words[0] == b"set":
            data = await self.client_r.readexactly(int(words[4]) + 2)
            self.proxy.remember(words[1], data[:-2])
            return b"set", line + data
        return words[0] if words else b"", line

    async def requests(self):
        proxy = self.proxy
        while True:
            kind, whole = await self.request()
            proxy.keep(whole)
            if kind == proxy.hold:
                proxy.hold = None
                self.held = True
                proxy.holding.add(self)
            if self.held:
                self.backlog.append(whole)
                continue
            seconds, text = proxy.slow
            now = asyncio.get_running_loop().time()
            if seconds and text in whole[: whole.index(b"\n")]:
                self.due = now + seconds
                proxy.slowed += 1
            if self.due > now or not self.queue.empty():
                self.queue.put_nowait((self.due, whole))
            else:
                self.server_w.write(whole)
            if kind in (b"set", b"delete") and proxy.hits("dup"):
                proxy.spawn(proxy.again(whole))
            await self.server_w.drain()

    async def passes_on(self):
        while True:
            due, whole = await self.queue.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            self.server_w.write(whole)

    async def release(self):
        self.held = False
        self.proxy.holding.discard(self)
        self.server_w.write(b"".join(self.backlog))
        self.backlog = []
        await self.server_w.drain()
        if self.ended:
            self.proxy.spawn(self.linger())

    async def linger(self):
        """The sender is gone, but the server shall have read all of it."""
        await asyncio.sleep(0.5)
        self.server_w.close()

    async def replies(self):
        proxy = self.proxy
        while True:
            line = await self.server_r.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            whole = line
            if line.startswith(b"VALUE "):
                words = line.split()
                value = (await self.server_r.readexactly(int(words[3]) + 2))[:-2]
                proxy.keep(line + value)
                value = proxy.spoil(words[1], value)
                whole = b"VALUE %s %s %d\r\n%s\r\n" % (words[1], words[2], len(value), value)
            else:
                proxy.keep(line)
            if line.startswith(b"STAT "):  # a hundred of them make one reply
                self.client_w.write(line)
                continue
            if proxy.hits("delay"):
                await asyncio.sleep(proxy.random.random() * 0.3)
            if proxy.hits("garbage"):
                self.client_w.write(proxy.random.randbytes(20).replace(b"\n", b"x") + b"\r\n")
            if proxy.hits("tear"):
                self.client_w.write(whole[: len(whole) // 2])
                raise EOFError
            if proxy.hits("drop"):
                raise EOFError
            self.client_w.write(whole)
            await self.client_w.drain()

    async def run(self):
        try:
            self.server_r, self.server_w = await self.proxy.upstream()
        except OSError:
            self.client_w.close()
            return
        both = [asyncio.ensure_future(self.requests()), asyncio.ensure_future(self.replies()),
                asyncio.ensure_future(self.passes_on())]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        for error in await asyncio.gather(*both, return_exceptions=True):
            if not isinstance(error, (EOFError, OSError, asyncio.CancelledError)):
                print(f"mcproxy.py: {error!r}", file=sys.stderr, flush=True)
        self.client_w.close()
        self.ended = True
        if not self.held:
            self.server_w.close()


async def serve(listen, server, control, record, seed):
    proxy = Proxy(server, record, seed)
    print(f"mcproxy.py: seed {seed}", flush=True)
    await asyncio.start_unix_server(lambda r, w: Connection(proxy, r, w).run(), listen, limit=1 << 20, backlog=128)
    await asyncio.start_unix_server(proxy.command, control)
    print("listening", flush=True)
    await asyncio.Event().wait()


def control(path, *words):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect(path)
    s.sendall(" ".join(words).encode() + b"\n")
    answer = s.makefile().readline().strip()
    print(answer)
    return 1 if answer.startswith("error") or not answer else 0


def main(*args):
    if args and args[0] == "ctl":
        return control(*args[1:])
    args, options = list(args), {"--record": None, "--seed": random.randrange(1 << 32)}
    for name in list(options):
        if name in args:
            i = args.index(name)
            options[name] = args[i + 1]
            del args[i : i + 2]
    if len(args) != 3:
        sys.exit(__doc__)
    asyncio.run(serve(*args, options["--record"], int(options["--seed"])))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
