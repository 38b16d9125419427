#!/usr/bin/env python3
"""Ask memcached servers something, over a Unix socket (/path) or TCP (host:port).

  mcctl.py stat NAME SERVER...    one number a server, of its `stats` (exit 1 when one does not answer)
  mcctl.py sum NAME SERVER...     ... and their sum
  mcctl.py dump FILE SERVER...    write every key and value that the servers hold to FILE; prints their number
  mcctl.py flush SERVER...        delete every item by its key
  mcctl.py room BYTES SERVER      how many values of that size the server takes before it is full; deletes them again
  mcctl.py memory FILE PID...     write the whole anonymous memory of these processes to FILE (as root)
  mcctl.py find FILE HEX...       exit 0 when FILE holds one of these byte strings, and print them; 1 when none
"""

import re
import socket
import sys


def connect(server):
    if server.startswith("/"):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(5)
        s.connect(server)
    else:
        host, port = server.rsplit(":", 1)
        s = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
    return s.makefile("rwb")


def stats(server, *what):
    """Yields (name, value) of `stats`."""
    f = connect(server)
    f.write(b" ".join((b"stats",) + what) + b"\r\n")
    f.flush()
    for line in f:
        words = line.split()
        if words[0] != b"STAT":
            return
        yield words[1].decode(), words[2].decode()


def keys(server):
    f = connect(server)
    f.write(b"lru_crawler metadump all\r\n")
    f.flush()
    found = []
    for line in f:
        if not line.startswith(b"key="):
            break
        found.append(line.split()[0][4:])
    return found


def items(server):
    f = connect(server)
    for key in keys(server):
        f.write(b"get " + key + b"\r\n")
        f.flush()
        line = f.readline()
        if line.startswith(b"VALUE"):
            value = f.read(int(line.split()[3]))
            f.readline()
            f.readline()
            yield key, value


def room(size, server):
    f = connect(server)
    n = 0
    while True:
        f.write(b"set room%d 0 0 %d\r\n%s\r\n" % (n, size, bytes(size)))
        f.flush()
        if f.readline() != b"STORED\r\n":
            break
        n += 1
    for i in range(n):
        f.write(b"delete room%d\r\n" % i)
        f.flush()
        f.readline()
    return n


def memory(pid):
    """Private and anonymous memory, as much of it as can be read."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            m = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw.. \S+ \S+ (\d+)", line)
            if not m:
                continue
            start, end = int(m[1], 16), int(m[2], 16)
            try:
                mem.seek(start)
                while start < end:
                    part = mem.read(min(end - start, 1 << 20))
                    start += len(part)
                    yield part
            except OSError:
                pass


def main(verb, *args):
    if verb in ("stat", "sum"):
        numbers = []
        for server in args[1:]:
            numbers.append(int(dict(stats(server))[args[0]]))
        print(sum(numbers) if verb == "sum" else "\n".join(map(str, numbers)))
    elif verb == "dump":
        n = 0
        with open(args[0], "wb") as out:
            for server in args[1:]:
                for key, value in items(server):
                    out.write(key + b"\n" + value + b"\n")
                    n += 1
        print(n)
    elif verb == "flush":
        for server in args:
            f = connect(server)
            for key in keys(server):
                f.write(b"delete " + key + b"\r\n")
                f.flush()
                f.readline()
    elif verb == "room":
        print(room(int(args[0]), args[1]))
    elif verb == "memory":
        with open(args[0], "wb") as out:
            for pid in args[1:]:
                for part in memory(pid):
                    out.write(part)
    elif verb == "find":
        with open(args[0], "rb") as f:
            data = f.read()
        found = [a for a in args[1:] if bytes.fromhex(a) in data]
        print(f"{len(data)} bytes searched, found: {' '.join(found) or 'nothing'}")
        return 0 if found else 1
    else:
        sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (OSError, KeyError, ValueError) as e:
        sys.exit(f"mcctl.py: {' '.join(sys.argv[1:4])}: {e}")
