#!/usr/bin/python3
"""Look at ZooKeeper from tests, without a JVM for each question; and a link to it that can be cut and that is captured.

  zkctl.py ports N                       N free TCP ports
  zkctl.py mode HOST:PORT                standalone, leader or follower (exit 1: does not serve)
  zkctl.py HOST:PORT ls PATH             names, one a line, sorted
  zkctl.py HOST:PORT get PATH            data
  zkctl.py HOST:PORT stat PATH           version and ephemeral owner
  zkctl.py HOST:PORT create|set PATH DATA
  zkctl.py HOST:PORT rm PATH
  zkctl.py link HOST:PORT CAPTURE        forward a free port, printed first, to there; every byte also goes to the file CAPTURE

With ZK_AUTH=user:password in the environment, as that.

Exit status 1: no such znode, or another error, which is printed. The protocol is ZooKeeper's own (zookeeper.jute).
"""
import os
import selectors
import socket
import struct
import sys

CREATE, DELETE, EXISTS, GET, SET, CHILDREN, CLOSE, AUTH = 1, 2, 3, 4, 5, 8, -11, 100


def fail(text):
    print(text, file=sys.stderr)
    sys.exit(1)


def address(text):
    host, port = text.rsplit(':', 1)
    return host, int(port)


def text_of(s):
    b = s if isinstance(s, bytes) else s.encode()
    return struct.pack('>i', len(b)) + b


class Client:
    def __init__(self, at):
        self.socket = socket.create_connection(address(at), timeout=5)
        self.socket.settimeout(5)
        self.send(struct.pack('>iqiq', 0, 0, 10000, 0) + text_of(bytes(16)) + b'\0')
        self.receive()
        if 'ZK_AUTH' in os.environ:
            self.send(struct.pack('>iii', -4, AUTH, 0) + text_of('digest') + text_of(os.environ['ZK_AUTH']))
            self.receive()

    def send(self, body):
        self.socket.sendall(struct.pack('>i', len(body)) + body)

    def exactly(self, n):
        out = b''
        while len(out) < n:
            got = self.socket.recv(n - len(out))
            if not got:
                raise OSError('closed')
            out += got
        return out

    def receive(self):
        return self.exactly(struct.unpack('>i', self.exactly(4))[0])

    def call(self, kind, body):
        self.send(struct.pack('>ii', 1, kind) + body)
        reply = self.receive()
        error = struct.unpack('>i', reply[12:16])[0]
        if error:
            fail('no such znode' if error == -101 else 'not allowed' if error == -102 else 'error %d' % error)
        return reply[16:]


def take(body, at):
    n = struct.unpack('>i', body[at:at + 4])[0]
    return body[at + 4:at + 4 + max(n, 0)], at + 4 + max(n, 0)


def question(at, command, path, data=''):
    c = Client(at)
    if command == 'ls':
        body = c.call(CHILDREN, text_of(path) + b'\0')
        names, where = [], 4
        for _ in range(struct.unpack('>i', body[:4])[0]):
            name, where = take(body, where)
            names.append(name.decode())
        print(''.join(n + '\n' for n in sorted(names)), end='')
    elif command == 'get':
        sys.stdout.write(take(c.call(GET, text_of(path) + b'\0'), 0)[0].decode())
    elif command == 'stat':
        version, = struct.unpack('>i', c.call(EXISTS, text_of(path) + b'\0')[32:36])
        owner, = struct.unpack('>q', c.call(EXISTS, text_of(path) + b'\0')[44:52])
        print(version, owner)
    elif command == 'create':
        acl = struct.pack('>ii', 1, 31) + text_of('world') + text_of('anyone')
        c.call(CREATE, text_of(path) + text_of(data) + acl + struct.pack('>i', 0))
    elif command == 'set':
        c.call(SET, text_of(path) + text_of(data) + struct.pack('>i', -1))
    elif command == 'rm':
        c.call(DELETE, text_of(path) + struct.pack('>i', -1))
    else:
        fail('usage')
    c.call(CLOSE, b'')


def mode(at):
    with socket.create_connection(address(at), timeout=2) as s:
        s.settimeout(2)
        s.sendall(b'srvr')
        out = b''
        while got := s.recv(4096):
            out += got
    for line in out.decode().splitlines():
        if line.startswith('Mode: '):
            print(line[6:])
            return
    fail('does not serve')


def ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(('127.0.0.1', 0))
    for s in sockets:
        print(s.getsockname()[1])


def link(at, capture):
    listen = socket.create_server(('127.0.0.1', 0))
    print(listen.getsockname()[1], flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listen, selectors.EVENT_READ, None)
    with open(capture, 'ab', buffering=0) as out:
        while True:
            for key, _ in selector.select():
                if key.fileobj is listen:
                    one, _ = listen.accept()
                    try:
                        other = socket.create_connection(address(at), timeout=2)
                    except OSError:
                        one.close()
                        continue
                    other.settimeout(None)
                    selector.register(one, selectors.EVENT_READ, other)
                    selector.register(other, selectors.EVENT_READ, one)
                    continue
                try:
                    data = key.fileobj.recv(65536)
                    out.write(data)
                    if data:
                        key.data.sendall(data)
                except OSError:
                    data = b''
                if not data:
                    for s in (key.fileobj, key.data):
                        try:
                            selector.unregister(s)
                        except KeyError:
                            pass
                        s.close()
                    break  # the other end may be among these events


def main(args):
    try:
        if args[:1] == ['ports']:
            ports(int(args[1]))
        elif args[:1] == ['mode']:
            mode(args[1])
        elif args[:1] == ['link']:
            link(args[1], args[2])
        elif len(args) >= 3:
            question(*args)
        else:
            fail(__doc__)
    except OSError as e:
        fail(str(e))


main(sys.argv[1:])
