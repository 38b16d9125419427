"""A peer on fm.sock that does not keep to the protocol. Prints what it saw; a seed first when it rolls dice.

   peer.py SOCKET registers          REGISTER messages that must be refused; one line each: NAME error|closed|REGISTERED
   peer.py SOCKET half               half a REGISTER with descriptors, then leave
   peer.py SOCKET random SECONDS [SEED]
   peer.py SOCKET many N             N connections at once; prints how many stayed open, then waits for its end
   peer.py SOCKET slow               a valid HELLO, one byte at a time; prints the reply's type
   peer.py SOCKET flood              HELLOs whose answers nobody reads, until it is thrown out
   peer.py SOCKET device             DEVICE; prints `lent` or the error
   peer.py SOCKET others PID REGION  act on what is others': one line for each try, NAME: answer
   peer.py SOCKET leaves PID         REGISTER while fm-faultd of that pid is stopped, and leave before it goes on; then use the memory
   peer.py SOCKET holds              be the evictor, which answers the HOLD of a request that went away when there is another
   peer.py SOCKET clings PID LOCK    an evictor that closes its connection and keeps its lock, when fm-faultd has no descriptors left;
                                     succeeds when it is killed
"""
import ctypes
import fcntl
import mmap
import os
import random
import resource
import signal
import socket
import struct
import sys
import time

MAGIC, VERSION = 0x314D4600, 1
OK, ERROR, HELLO, HELLO_OK, DEVICE, REGISTER, REGISTERED, UNREGISTER, EVICT, EVICTED, LIMIT, EVICTOR = range(1, 13)
LENGTHS = {OK: 0, ERROR: 256, HELLO: 8, HELLO_OK: 8, DEVICE: 0, REGISTER: 240, REGISTERED: 8, UNREGISTER: 8, EVICT: 24,
           EVICTED: 24, LIMIT: 24, EVICTOR: 0, 14: 8, 15: 8, 16: 8, 17: 8}
PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)


def connect():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.connect(sys.argv[1])  # blocking: with a timeout a full queue would be an error
    s.settimeout(20)
    return s


def header(kind, length, nfds=0, magic=MAGIC, version=VERSION):
    return struct.pack("<IHHII", magic, version, kind, length, nfds)


def reply(s):
    """(type, body), or None when the connection was closed."""
    def read(n):
        data = b""
        while len(data) < n:
            more = s.recv(n - len(data))
            if not more:
                return None
            data += more
        return data
    try:
        head = read(16)
        if head is None:
            return None
        _, _, kind, length, _ = struct.unpack("<IHHII", head)
        return kind, read(length)
    except (ConnectionError, TimeoutError):
        return None


def uffd():
    fd = libc.syscall(323, 0o2000000 | 0o4000)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    return fd


class Memory:
    """A memfd, mapped shared, and a userfaultfd: what a REGISTER needs."""

    def __init__(self, pages=16):
        self.pages = pages
        self.memfd = os.memfd_create("peer")
        os.ftruncate(self.memfd, pages * PAGE)
        self.map = mmap.mmap(self.memfd, pages * PAGE)
        self.hva = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.uffd = uffd()

    def body(self, **change):
        f = dict(hva=self.hva, pages=self.pages, offset=0, limit=0, kind=1, pid=0, nshards=1, client_memfd=self.memfd,
                 name=b"peer", vm_id=b"")
        f.update(change)
        uffds = [self.uffd] + [-1] * 15
        return struct.pack("<QQQQIiIi16i64s64s", f["hva"], f["pages"], f["offset"], f["limit"], f["kind"], f["pid"],
                           f["nshards"] & 0xFFFFFFFF, f["client_memfd"], *uffds, f["name"], f["vm_id"])

    def fds(self):
        return [self.memfd, self.uffd]


def verdict(s):
    r = reply(s)
    if r is None:
        return "closed"
    return "error " + r[1][4:].split(b"\0")[0].decode() if r[0] == ERROR else "REGISTERED" if r[0] == REGISTERED else str(r[0])


def registers():
    m = Memory()
    small = os.memfd_create("small")
    os.ftruncate(small, PAGE)
    other = os.memfd_create("other")
    os.ftruncate(other, 16 * PAGE)
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(sealed, 16 * PAGE)
    libc.fcntl(sealed, 1033, 0x0010)  # F_ADD_SEALS, F_SEAL_FUTURE_WRITE
    disk = os.open(sys.argv[0], os.O_RDONLY)
    readonly = os.open("/proc/self/fd/%d" % m.memfd, os.O_RDONLY)
    pipe = os.pipe()[0]
    used = uffd()
    cases = [
        ("garbage-fds", m.body(), [pipe, pipe]),
        ("memfd-as-uffd", m.body(), [m.memfd, m.memfd]),
        ("uffd-as-memfd", m.body(), [m.uffd, m.uffd]),
        ("no-fds", m.body(), []),
        ("one-fd", m.body(), [m.memfd]),
        ("too-many-fds", m.body(), [m.memfd, m.uffd, m.uffd]),
        ("disk-file", m.body(), [disk, m.uffd]),
        ("short-memfd", m.body(), [small, m.uffd]),
        ("other-memfd", m.body(), [other, m.uffd]),
        ("sealed-memfd", m.body(), [sealed, m.uffd]),
        ("readonly-memfd", m.body(), [readonly, m.uffd]),
        ("hva-zero", m.body(hva=0), m.fds()),
        ("hva-odd", m.body(hva=m.hva + 1), m.fds()),
        ("hva-wrong", m.body(hva=m.hva + 16 * PAGE), m.fds()),
        ("hva-kernel", m.body(hva=0xFFFF800000000000), m.fds()),
        ("hva-top", m.body(hva=2**64 - PAGE), m.fds()),
        ("pages-zero", m.body(pages=0), m.fds()),
        ("pages-one-more", m.body(pages=17), m.fds()),
        ("pages-huge", m.body(pages=2**32 - 2), m.fds()),
        ("pages-too-huge", m.body(pages=2**32), m.fds()),
        ("pages-overflow", m.body(pages=2**52), m.fds()),
        ("pages-max", m.body(pages=2**64 - 1), m.fds()),
        ("offset-odd", m.body(offset=1), m.fds()),
        ("offset-page", m.body(offset=PAGE), m.fds()),
        ("offset-max", m.body(offset=2**64 - PAGE), m.fds()),
        ("nshards-0", m.body(nshards=0), [m.memfd]),
        ("nshards-2-fds-1", m.body(nshards=2), m.fds()),
        ("nshards-17", m.body(nshards=17), [m.memfd] + [m.uffd] * 17),
        ("nshards-max", m.body(nshards=2**32 - 1), m.fds()),
        ("uffd-twice", m.body(nshards=2), [m.memfd, used, used]),
        ("kind-0", m.body(kind=0), m.fds()),
        ("kind-9", m.body(kind=9), m.fds()),
        ("pid-negative", m.body(pid=-5), m.fds()),
        ("pid-none", m.body(pid=2**22 + 12345), m.fds()),
        ("name-empty", m.body(name=b""), m.fds()),
        ("name-space", m.body(name=b"a b"), m.fds()),
        ("name-newline", m.body(name=b"a\nb"), m.fds()),
        ("name-endless", m.body(name=b"x" * 64), m.fds()),
        ("name-utf8", m.body(name="\u00e4".encode()), m.fds()),
        ("vm-id-endless", m.body(vm_id=b"x" * 64), m.fds()),
    ]
    for name, body, fds in cases:
        s = connect()
        try:
            socket.send_fds(s, [header(REGISTER, len(body), len(fds)) + body], fds)
            print(name, verdict(s))
        except OSError as e:
            print(name, "closed", e)
        s.close()
    # After all that the same memory registers, with a fresh userfaultfd: nothing was left behind.
    m.uffd = uffd()
    s = connect()
    socket.send_fds(s, [header(REGISTER, 240, 2) + m.body()], m.fds())
    print("good", verdict(s))
    m.map[0:5] = b"bytes"
    print("memory", m.map[0:5].decode())


def half():
    m = Memory()
    message = header(REGISTER, 240, 2) + m.body()
    for n in (1, 8, 16, 17, 100, 255):
        s = connect()
        socket.send_fds(s, [message[:n]], m.fds())
        s.close()
    # And one that is whole, whose sender is gone before the answer.
    s = connect()
    socket.send_fds(s, [message], m.fds())
    os.kill(os.getpid(), signal.SIGKILL)


def random_message(rnd, memory):
    kind = rnd.choice(list(LENGTHS) + [0, 18, 99, 65535])
    length = LENGTHS.get(kind, 0)
    body = rnd.randbytes(length)
    if kind == REGISTER:
        fields = {}
        for name in ("hva", "pages", "offset", "limit", "kind", "pid", "nshards", "client_memfd"):
            if rnd.random() < 0.2:
                fields[name] = rnd.choice([0, 1, 2, 3, 17, PAGE, 2**31 - 1])
        # Never a good one: it would be served, and that is not what is tried here.
        fields.setdefault("kind", rnd.randrange(3, 100))
        body = memory.body(**fields)
    elif kind == LIMIT:
        body = struct.pack("<QQQ", rnd.randrange(1, 2**64), rnd.getrandbits(64), 0)  # of a region that does not exist
    elif kind in (EVICT, UNREGISTER, 14, 15, 16, 17):
        body = rnd.randbytes(LENGTHS[kind])
    elif kind == EVICTOR:
        kind, body = 13, rnd.randbytes(24)
    fds = [rnd.choice([memory.memfd, memory.uffd, 0]) for _ in range(rnd.choice([0, 0, 0, 1, 2, 3, 18, 19, 40]))]
    nfds = len(fds) if rnd.random() < 0.8 else rnd.getrandbits(32)
    magic = MAGIC if rnd.random() < 0.9 else rnd.getrandbits(32)
    version = VERSION if rnd.random() < 0.95 else rnd.getrandbits(16)
    if rnd.random() < 0.1:
        length = rnd.choice([0, 1, 1023, 1024, 1025, 2**31, 2**32 - 1])
    data = header(kind, length, nfds, magic, version) + body
    if rnd.random() < 0.2:
        data = data[:rnd.randrange(1, len(data) + 1)]
    if rnd.random() < 0.1:
        data = rnd.randbytes(rnd.randrange(1, 5000))
    return data, fds


def fuzz():
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else int(time.time() * 1000)
    rnd, end, n = random.Random(seed), time.monotonic() + float(sys.argv[3]), 0
    print("seed", seed, flush=True)
    memory = Memory()
    while time.monotonic() < end:
        s = connect()
        s.settimeout(0.001)
        try:
            for _ in range(rnd.randrange(1, 6)):
                data, fds = random_message(rnd, memory)
                at = 0
                while at < len(data):
                    k = len(data) - at if rnd.random() < 0.7 else rnd.randrange(1, len(data) - at + 1)
                    socket.send_fds(s, [data[at:at + k]], fds if at == 0 or rnd.random() < 0.1 else [])
                    at += k
                n += 1
                if rnd.random() < 0.5:
                    s.recv(4096)
        except OSError:
            pass
        s.close()
    print(n, "messages")


def many():
    socks = []
    for _ in range(int(sys.argv[3])):
        try:
            socks.append(connect())
        except OSError:
            break
    opened = 0
    for s in socks:
        s.settimeout(20)
        try:
            s.sendall(header(HELLO, 8) + struct.pack("<Q", 1))
            r = reply(s)
            opened += r is not None and r[0] == HELLO_OK
        except OSError:
            pass
    print("open", opened, flush=True)
    signal.pause()


def slow():
    s = connect()
    for b in header(HELLO, 8) + struct.pack("<Q", 1):
        s.sendall(bytes([b]))
        time.sleep(0.005)
    print(reply(s)[0])


def flood():
    s = connect()
    hello = (header(HELLO, 8) + struct.pack("<Q", 1)) * 100
    n = 0
    print("floods", flush=True)
    try:
        while True:
            n += s.send(hello)
    except OSError as e:
        print("thrown out after", n // 24, e)


def device():
    s = connect()
    s.sendall(header(DEVICE, 0))
    data, fds, _, _ = socket.recv_fds(s, 16, 1)
    print("lent" if fds else "refused")


def others():
    pid, region = int(sys.argv[3]), int(sys.argv[4], 16)
    memfd = os.memfd_create("peer")
    os.ftruncate(memfd, 16 * PAGE)
    uffds = [-1] * 16
    body = struct.pack("<QQQQIiIi16i64s64s", 1 << 32, 16, 0, 0, 1, pid, 1, memfd, *uffds, b"peer", b"")
    three = struct.pack("<QQQ", region, 1, 0)
    tries = [
        ("register", REGISTER, body, [memfd, memfd]),
        ("unregister", UNREGISTER, struct.pack("<Q", region), []),
        ("evict", EVICT, three, []),
        ("limit", LIMIT, three, []),
        ("limit-host", LIMIT, struct.pack("<QQQ", 0, 1000, 0), []),
        ("detach", 17, struct.pack("<Q", region), []),
        ("server", 18, struct.pack("<128sII", b"/tmp/x.sock", 0, 0), []),
        ("evictor", EVICTOR, b"", []),
    ]
    for name, kind, what, fds in tries:
        with connect() as s:
            socket.send_fds(s, [header(kind, len(what), len(fds)) + what], fds)
            print(name + ":", verdict(s), flush=True)


def leaves():
    pid, m = int(sys.argv[3]), Memory()
    s = connect()
    os.kill(pid, signal.SIGSTOP)
    socket.send_fds(s, [header(REGISTER, 240, 2) + m.body()], m.fds())
    s.close()
    os.close(m.uffd)
    os.kill(pid, signal.SIGCONT)
    with connect() as other:  # answered after that was looked at
        other.sendall(header(HELLO, 8) + struct.pack("<Q", 1))
        reply(other)
    m.map[0:5] = b"bytes"
    print(m.map[0:5].decode())


def holds():
    run = os.path.dirname(sys.argv[1])
    m, client, evictor = Memory(), connect(), connect()
    socket.send_fds(client, [header(REGISTER, 240, 2) + m.body(kind=2)], m.fds())
    region = struct.unpack("<Q", reply(client)[1])[0]
    evictor.sendall(header(EVICTOR, 0))
    assert [reply(evictor)[0] for _ in range(2)] == [13, 14]

    def flags():
        try:
            with open("%s/region-%016x.state" % (run, region), "rb") as f:
                return struct.unpack_from("<Q", f.read(256), 248)[0]
        except FileNotFoundError:
            return None

    def detach():
        s = connect()
        s.sendall(header(17, 8) + struct.pack("<Q", region))
        assert reply(evictor)[0] == 20
        return s

    def held():
        evictor.sendall(header(21, 8) + struct.pack("<Q", region))
    detach().close()
    while flags() != 0:  # it goes back
        time.sleep(0.01)
    second = detach()
    held()
    # Answered in turn, and after the answer that we sent was looked at.
    for _ in range(20):
        with connect() as s:
            s.sendall(header(HELLO, 8) + struct.pack("<Q", 1))
            assert reply(s)[0] == HELLO_OK
        assert flags() == 8, flags()
        time.sleep(0.01)
    held()
    while not (flags() or 16) & 4:  # home, and ended: an evictor forgets it
        time.sleep(0.01)
    evictor.sendall(header(16, 8) + struct.pack("<Q", region))
    assert reply(second)[0] == OK


def clings():
    pid, child = int(sys.argv[3]), os.fork()
    if child == 0:
        lock = os.open(sys.argv[4], os.O_RDWR | os.O_CREAT, 0o640)
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        s = connect()
        s.sendall(header(EVICTOR, 0))
        assert reply(s)[0] == 13
        os.kill(os.getpid(), signal.SIGSTOP)
        s.close()
        time.sleep(60)
        os._exit(1)
    os.waitpid(child, os.WUNTRACED)
    used = [int(n) for n in os.listdir("/proc/%d/fd" % pid)]
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    kept = [connect() for _ in range(max(used) + 1 - len(used))]
    while len(os.listdir("/proc/%d/fd" % pid)) <= max(used):
        time.sleep(0.01)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(used) + 1, limit[1]))
    os.kill(child, signal.SIGCONT)
    status = os.waitpid(child, 0)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    for s in kept:
        s.close()
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


{"leaves": leaves, "holds": holds, "clings": clings, "others": others, "registers": registers, "half": half, "random": fuzz, "many": many, "slow": slow, "flood": flood, "device": device}[sys.argv[2]]()
