#!/usr/bin/env python3
"""A RAMCloud that is none, for tests: a coordinator and masters in one process, that misbehave on command.

  fakeramcloud.py CTL [MASTERS]      serve; prints the coordinator's locator, then obeys CTL, a Unix socket
  fakeramcloud.py ctl CTL COMMAND... send one command, print the answer

Commands (numbers are chances in 1000 unless said otherwise):

  set NAME VALUE   reorder: hold a reply back and let later ones overtake it
                   retry: answer a whole request with RETRY and a delay, of `delay` ms (set) or more, else of 0.2 to 3 ms; partretry: one object of a request
                   unknown: answer one object with UNKNOWN_TABLET; deny N: master N says so of all, though the map names it (0: none)
                   cut: close the connection in the middle of a reply; short: end the reply's payload early; fewer: answer fewer objects
                   huge: announce a reply of more bytes than there may be; junk: a reply of random bytes
                   stray: answer twice; nobody asked for the second reply
                   lost: execute a request, then close the connection without a reply
                   late: close the connection at once, and execute its writes and removes only later
                   silent: never answer (pings neither); pings N: master N answers nothing but pings (0: none)
                   full 0|1: refuse every write for want of room; limit N: refuse them beyond N objects (0: no limit)
                   fullrm 1: while they are, refuse removes too; capacity 1: refuse whole requests of them, with a delay of 1 to 2 ms
                   corrupt: change one byte of a value that is read
  split            give every second tablet of each table to the next master
  kill N           master N dies; for `detect` ms (set) the coordinator does not know, then its tablets recover, without an owner, for
                   `recovery` ms (set), then others have them
  forget N         as kill, but its objects are lost
  start N          a master N again, empty
  recovering MS    all tablets have no owner for so long
  coordinator      the coordinator dies
  reborn           ... and another begins, on another port; prints its locator
  rollover         both at once
  notready MS      the coordinator answers everything with RETRY for so long
  nomasters MS     CREATE_TABLE is answered with RETRY of half a second or more for so long
  drop NAME        the table of that name is gone
  tables           names of the tables, and how many objects each has
  count            objects; stats: how often each thing was done
  locator          the coordinator's
"""
import os
import random
import selectors
import socket
import struct
import sys
import time

M64 = (1 << 64) - 1


def rotl(x, r):
    return ((x << r) | (x >> (64 - r))) & M64


def fmix(k):
    k ^= k >> 33
    k = k * 0xff51afd7ed558ccd & M64
    k ^= k >> 33
    k = k * 0xc4ceb9fe1a85ec53 & M64
    return k ^ (k >> 33)


def key_hash(table, key):
    """MurmurHash3 x64-128, first word."""
    c1, c2 = 0x87c37b91114253d5, 0x4cf5ad432745937f
    h1 = h2 = table & 0xffffffff
    n = len(key) // 16 * 16
    for k1, k2 in struct.iter_unpack('<QQ', key[:n]):
        h1 ^= rotl(k1 * c1 & M64, 31) * c2 & M64
        h1 = (rotl(h1, 27) + h2) * 5 + 0x52dce729 & M64
        h2 ^= rotl(k2 * c2 & M64, 33) * c1 & M64
        h2 = (rotl(h2, 31) + h1) * 5 + 0x38495ab5 & M64
    tail = key[n:].ljust(16, b'\0')
    k1, k2 = struct.unpack('<QQ', tail)
    h2 ^= rotl(k2 * c2 & M64, 33) * c1 & M64
    h1 ^= rotl(k1 * c1 & M64, 31) * c2 & M64
    h1 ^= len(key)
    h2 ^= len(key)
    h1 = (h1 + h2) & M64
    h2 = (h2 + h1) & M64
    h1, h2 = fmix(h1), fmix(h2)
    return (h1 + h2) & M64


def varint(n):
    out = b''
    while n > 0x7f:
        out += bytes([n & 0x7f | 0x80])
        n >>= 7
    return out + bytes([n])


def retry(low, high, text=b''):
    text = text + b'\0' if text else b''
    return struct.pack('<IIII', 17, low, high, len(text)) + text


class Conn:
    def __init__(self, sock, kind, number=0):
        self.sock, self.kind, self.number = sock, kind, number
        self.inp = self.out = b''
        self.held = []  # replies that others may overtake
        self.closing = self.deaf = False
        self.came = 0.0  # when it was last read
        self.wait = 0.0, 0.0  # it was asked to send nothing between these two


class Cloud:
    def __init__(self, ctl, masters):
        self.sel = selectors.DefaultSelector()
        self.random = random.Random(int.from_bytes(os.urandom(8), 'little'))
        self.faults = dict.fromkeys('reorder retry partretry unknown cut short fewer huge junk stray lost late silent full limit '
                                    'fullrm capacity deny pings '
                                    'corrupt'.split(), 0)
        self.faults['recovery'] = 500
        self.faults['detect'] = self.faults['delay'] = 0
        self.ports = {}
        self.did = {}
        self.timers = []
        self.conns = set()
        self.masters = {}  # number -> (listening socket, port)
        self.tables = {}  # name -> id
        self.tablets = {}  # id -> list of [start, end, master or None]
        self.objects = {}  # id -> {key: (value, version)}
        self.next_table, self.version, self.objects_n = 1, 1, 0
        self.notready = self.nomasters = 0
        self.coordinator = None
        for n in range(1, masters + 1):
            self.start_master(n)
        self.start_coordinator()
        server = socket.socket(socket.AF_UNIX)
        server.bind(ctl)
        server.listen(16)
        self.listen(server, 'ctl')
        print(self.locator(), flush=True)

    # --- servers

    def listen(self, sock, kind, number=0):
        sock.setblocking(False)
        self.sel.register(sock, selectors.EVENT_READ, ('listen', kind, number))

    def tcp(self, port=0):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(('127.0.0.1', port))
        s.listen(128)
        return s

    def start_coordinator(self):
        self.coordinator = self.tcp()
        self.listen(self.coordinator, 'coordinator')

    def locator(self):
        return 'tcp:host=127.0.0.1,port=%d' % self.coordinator.getsockname()[1]

    def start_master(self, n):
        s = self.tcp()
        self.masters[n] = (s, s.getsockname()[1])
        self.ports[n] = s.getsockname()[1]
        self.listen(s, 'master', n)

    def stop_listening(self, sock, kind, number=0):
        self.sel.unregister(sock)
        sock.close()
        for c in [c for c in self.conns if c.kind == kind and c.number == number]:
            self.drop(c)

    def kill_master(self, n, lose):
        self.stop_listening(self.masters.pop(n)[0], 'master', n)
        if self.faults['detect'] and not lose:
            self.after(self.faults['detect'], lambda: self.found_dead(n, lose))
        else:
            self.found_dead(n, lose)

    def found_dead(self, n, lose):
        for table, tablets in self.tablets.items():
            for t in tablets:
                if t[2] != n:
                    continue
                t[2] = None
                if lose:
                    for key in [k for k in self.objects[table] if t[0] <= key_hash(table, k) <= t[1]]:
                        del self.objects[table][key]
                        self.objects_n -= 1
        self.after(self.faults['recovery'], self.recovered)

    def recovered(self):
        for tablets in self.tablets.values():
            for t in tablets:
                if t[2] is None and self.masters:
                    t[2] = self.random.choice(sorted(self.masters))

    def after(self, ms, what):
        self.timers.append((time.monotonic() + ms / 1000, what))

    def chance(self, name):
        if self.faults[name] and self.random.randrange(1000) < self.faults[name]:
            self.count(name)
            return True
        return False

    def count(self, name):
        self.did[name] = self.did.get(name, 0) + 1

    # --- the coordinator

    def on_coordinator(self, op, service, body):
        if op == 7:
            return struct.pack('<I', 0 if body == b'\xff' * 8 else 26)
        if service != 2:
            return struct.pack('<I', 8)
        if time.monotonic() < self.notready:
            self.count('notready')
            return retry(30000, 60000, b'coordinator service not yet initialized')
        if op in (10, 11, 12):
            head = 8 if op == 10 else 4
            n, = struct.unpack_from('<I', body)
            name = body[head:]
            if len(name) != n or name[-1:] != b'\0':
                return struct.pack('<I', 9)
            name = name[:-1].decode()
        if op == 10:
            span, = struct.unpack_from('<I', body, 4)
            if name not in self.tables and (time.monotonic() < self.nomasters or not self.masters):
                self.count('nomasters')
                return retry(500000, 1000000, b'no masters in cluster')
            return struct.pack('<IQ', 0, self.create(name, max(1, span)))
        if op == 11:
            if name not in self.tables:
                return struct.pack('<IQ', 2, 0)
            return struct.pack('<IQ', 0, self.tables[name])
        if op == 12:
            self.drop_table(name)
            return struct.pack('<I', 0)
        if op == 18:
            table, = struct.unpack_from('<Q', body)
            self.count('config')
            pb = b''.join(self.tablet(table, t) for t in self.tablets.get(table, ()))
            return struct.pack('<II', 0, len(pb)) + pb
        if op == 17:
            pb = b''
            for n, (_, port) in sorted(self.masters.items()):
                text = b'tcp:host=127.0.0.1,port=%d' % port
                entry = b'\x0d' + struct.pack('<I', 3) + b'\x11' + struct.pack('<Q', n) + b'\x1a' + varint(len(text)) + text
                entry += b'\x2d' + struct.pack('<I', 100) + b'\x35' + struct.pack('<I', 0) + b'\x39' + struct.pack('<Q', 0)
                pb += b'\x0a' + varint(len(entry)) + entry
            pb += b'\x11' + struct.pack('<Q', 1) + b'\x18\x00'
            return struct.pack('<II', 0, len(pb)) + pb
        return struct.pack('<I', 8)

    def drop_table(self, name):
        table = self.tables.pop(name, None)
        if table:
            self.objects_n -= len(self.objects.pop(table))
            del self.tablets[table]
            self.count('drop')

    def create(self, name, span):
        if name not in self.tables:
            table = self.tables[name] = self.next_table
            self.next_table += 1
            alive = sorted(self.masters)
            size = (1 << 64) // span
            self.tablets[table] = [[i * size, M64 if i == span - 1 else (i + 1) * size - 1, alive[i % len(alive)]]
                                   for i in range(span)]
            self.objects[table] = {}
            self.count('create')
        return self.tables[name]

    def tablet(self, table, t):
        pb = b'\x08' + varint(table) + b'\x10' + varint(t[0]) + b'\x18' + varint(t[1])
        pb += b'\x20' + varint(0 if t[2] else 1) + b'\x29' + struct.pack('<Q', t[2] or 0)
        if t[2]:
            text = b'infrc:; tcp: host = "127.0.0.1", port=%d' % self.ports[t[2]]
            pb += b'\x32' + varint(len(text)) + text
        pb += b'\x40\x00\x48\x00'
        return b'\x0a' + varint(len(pb)) + pb

    # --- masters

    def on_master(self, n, op, service, body):
        if op == 7:
            return struct.pack('<I', 0 if body == b'\xff' * 8 else 26)
        if service != 0 or op != 25:
            return struct.pack('<I', 8)
        if self.chance('retry'):
            low = self.faults['delay'] * 1000
            return retry(low, 2 * low, b'busy') if low else retry(200, 3000, b'busy')
        count, kind = struct.unpack_from('<II', body)
        if self.faults['capacity'] and self.is_full() and (kind == 3 or (kind == 2 and self.faults['fullrm'])):
            self.count('capacity')
            return retry(1000, 2000, b'Memory capacity exceeded')
        # Stock clients send no more than 20; a server puts each on the stack of a thread.
        if kind not in (1, 2, 3) or not 1 <= count <= (20 if kind == 3 else 64):
            self.count('bad')
            return struct.pack('<I', 9)
        at, parts = 8, []
        for _ in range(count):
            table, = struct.unpack_from('<Q', body, at)
            if kind == 3:
                length, = struct.unpack_from('<I', body, at + 8)
                rules = body[at + 12:at + 24]
                blob = body[at + 24:at + 24 + length]
                keys, klen = struct.unpack_from('<BH', blob)
                key, value = blob[3:3 + klen], blob[3 + klen:]
                at += 24 + length
                bad = keys != 1 or len(blob) != length
            else:
                klen, = struct.unpack_from('<H', body, at + 8)
                rules = body[at + 10:at + 22]
                key, value = body[at + 22:at + 22 + klen], None
                at += 22 + klen
                bad = False
            if bad or len(key) != klen or rules != bytes(12):
                self.count('bad')
                return struct.pack('<I', 9)
            parts.append((table, key, value))
        if at != len(body):
            self.count('bad')
            return struct.pack('<I', 9)
        if kind == 1 and count > 1 and self.chance('fewer'):
            parts = parts[:self.random.randrange(count)]
        out = struct.pack('<II', 0, len(parts))
        for table, key, value in parts:
            out += self.one(n, kind, table, key, value)
        return out

    def is_full(self):
        return self.faults['full'] or (self.faults['limit'] and self.objects_n >= self.faults['limit'])

    def one(self, n, kind, table, key, value):
        status, version, blob = 0, 0, b''
        owner = None
        if table in self.tablets:
            h = key_hash(table, key)
            owner = next(t[2] for t in self.tablets[table] if t[0] <= h <= t[1])
        if owner == n == self.faults['deny']:
            self.count('deny')
            status = 1
        elif owner != n or self.chance('unknown'):
            self.count('foreign')
            status = 1
        elif self.chance('partretry'):
            status = 17
        elif kind == 1:
            found = self.objects[table].get(key)
            if found:
                data, version = found
                if data and self.chance('corrupt'):
                    i = self.random.randrange(len(data))
                    data = data[:i] + bytes([data[i] ^ 1]) + data[i + 1:]
                blob = struct.pack('<BH', 1, len(key)) + key + data
            else:
                status = 3
        elif kind == 2:
            if self.faults['fullrm'] and self.is_full():
                self.count('fullrm')
                return struct.pack('<IQ', 17, 0)
            found = self.objects[table].pop(key, None)
            if found:
                self.objects_n -= 1
                version = found[1]
        elif self.is_full():
            self.count('full')
            status = 17
        else:
            old = self.objects[table].get(key)
            if old is None:
                self.objects_n += 1
            elif old[0] != value:
                self.count('changed')  # never: an object is written once
            self.version += 1
            version = self.version
            self.objects[table][key] = (value, version)
        if kind == 1:
            return struct.pack('<IQI', status, version, len(blob)) + blob
        return struct.pack('<IQ', status, version)

    # --- requests

    def on_request(self, c, nonce, payload):
        op, service = struct.unpack_from('<HH', payload)
        master = c.kind == 'master'
        if op != 7 and c.wait[0] < c.came < c.wait[1]:
            self.count('early')
        if master and op == 7:
            self.count('ping')
        if c.deaf or (master and op != 7 and self.chance('silent')):
            c.deaf = True
            return
        if master and op != 7 and c.number == self.faults['pings']:
            return
        if master and self.chance('late'):
            self.drop(c)
            self.after(self.random.randrange(50), lambda: self.on_master(c.number, op, service, payload[4:]))
            return
        try:
            reply = self.on_master(c.number, op, service, payload[4:]) if master else self.on_coordinator(op, service, payload[4:])
        except (struct.error, StopIteration, IndexError):
            self.count('bad')
            reply = struct.pack('<I', 7)
        if reply[:4] == b'\x11\0\0\0':
            low, now = struct.unpack_from('<I', reply, 4)[0] / 1e6, time.monotonic()
            # A master may have been sent more than one request at a time: those are on their way.
            c.wait = now + (low / 4 if master else 0), now + (low if not master or low > 0.1 else 0)
        if master and self.chance('lost'):
            self.drop(c)
            return
        frame = struct.pack('<QI', nonce, len(reply)) + reply
        if master and self.chance('stray'):
            frame += struct.pack('<QI', nonce, 5) + b'stray'
        if master and self.chance('cut'):
            c.out += frame[:self.random.randrange(len(frame))]
            c.closing = True
        elif master and self.chance('short'):
            n = self.random.randrange(len(reply))
            c.out += struct.pack('<QI', nonce, n) + reply[:n]
        elif master and self.chance('huge'):
            c.out += struct.pack('<QI', nonce, 0x40000000) + reply
        elif master and self.chance('junk'):
            c.out += struct.pack('<QI', nonce, 100) + bytes(self.random.randrange(256) for _ in range(100))
        elif self.chance('reorder'):
            c.held.append(frame)
            self.after(self.random.randrange(1, 30), lambda: self.release(c))
        else:
            c.out += frame
        self.write(c)

    def release(self, c):
        if c.held and c in self.conns:
            c.out += c.held.pop(self.random.randrange(len(c.held)))
            self.write(c)

    # --- sockets

    def drop(self, c):
        if c in self.conns:
            self.conns.discard(c)
            self.sel.unregister(c.sock)
            c.sock.close()

    def write(self, c):
        if c not in self.conns:
            return
        try:
            while c.out:
                c.out = c.out[c.sock.send(c.out):]
        except BlockingIOError:
            pass
        except OSError:
            self.drop(c)
            return
        if c.closing and not c.out:
            self.drop(c)
            return
        self.sel.modify(c.sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if c.out else 0), ('conn', c))

    def read(self, c):
        try:
            data = c.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b''
        if not data:
            self.drop(c)
            return
        c.inp += data
        c.came = time.monotonic()
        if c.kind == 'ctl':
            if b'\n' in c.inp:
                line, c.inp = c.inp.split(b'\n', 1)
                try:
                    answer = self.command(line.decode().split())
                except (KeyError, IndexError, ValueError) as e:
                    answer = 'error: %r' % e
                c.out += (answer or 'ok').encode() + b'\n'
                c.closing = True
                self.write(c)
            return
        while len(c.inp) >= 12 and c in self.conns and not c.closing:
            nonce, length = struct.unpack_from('<QI', c.inp)
            if len(c.inp) < 12 + length:
                break
            payload, c.inp = c.inp[12:12 + length], c.inp[12 + length:]
            self.on_request(c, nonce, payload)

    def accept(self, sock, kind, number):
        s, _ = sock.accept()
        s.setblocking(False)
        if s.family == socket.AF_INET:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        c = Conn(s, kind, number)
        if kind == 'master':
            self.count('accept')
        self.conns.add(c)
        self.sel.register(s, selectors.EVENT_READ, ('conn', c))

    # --- commands

    def command(self, w):
        now = time.monotonic()
        if w[0] == 'set':
            for name, value in zip(w[1::2], w[2::2]):
                if name not in self.faults:
                    raise KeyError(name)
                self.faults[name] = int(value)
        elif w[0] == 'split':
            for tablets in self.tablets.values():
                for i, t in enumerate(tablets):
                    if t[2] and i % 2:
                        alive = sorted(self.masters)
                        t[2] = alive[(alive.index(t[2]) + 1) % len(alive)]
        elif w[0] in ('kill', 'forget'):
            self.kill_master(int(w[1]), w[0] == 'forget')
        elif w[0] == 'start':
            self.start_master(int(w[1]))
        elif w[0] == 'recovering':
            for tablets in self.tablets.values():
                for t in tablets:
                    t[2] = None
            self.after(int(w[1]), self.recovered)
        elif w[0] in ('coordinator', 'rollover', 'reborn'):
            if w[0] != 'reborn':
                self.stop_listening(self.coordinator, 'coordinator')
            if w[0] != 'coordinator':
                self.start_coordinator()
                return self.locator()
        elif w[0] == 'notready':
            self.notready = now + int(w[1]) / 1000
        elif w[0] == 'nomasters':
            self.nomasters = now + int(w[1]) / 1000
        elif w[0] == 'drop':
            self.drop_table(w[1])
        elif w[0] == 'tables':
            return ' '.join('%s:%d' % (name, len(self.objects[t])) for name, t in sorted(self.tables.items())) or 'none'
        elif w[0] == 'count':
            return str(self.objects_n)
        elif w[0] == 'stats':
            return ' '.join('%s=%d' % i for i in sorted(self.did.items()))
        elif w[0] == 'locator':
            return self.locator()
        else:
            raise KeyError(w[0])
        return None

    def run(self):
        while True:
            wait = min((t for t, _ in self.timers), default=None)
            events = self.sel.select(None if wait is None else max(0, wait - time.monotonic()))
            for key, mask in events:
                if key.data[0] == 'listen':
                    if key.fileobj.fileno() >= 0:
                        self.accept(key.fileobj, key.data[1], key.data[2])
                    continue
                c = key.data[1]
                if c in self.conns and mask & selectors.EVENT_WRITE:
                    self.write(c)
                if c in self.conns and mask & selectors.EVENT_READ:
                    self.read(c)
            now = time.monotonic()
            due = [t for t in self.timers if t[0] <= now]
            self.timers = [t for t in self.timers if t[0] > now]
            for _, what in due:
                what()


def main():
    if len(sys.argv) > 3 and sys.argv[1] == 'ctl':
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(60)
        s.connect(sys.argv[2])
        s.sendall(' '.join(sys.argv[3:]).encode() + b'\n')
        answer = s.makefile().readline().rstrip('\n')
        print(answer)
        sys.exit(answer.startswith('error'))
    Cloud(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3).run()


if __name__ == '__main__':
    main()
