#!/usr/bin/env python3
"""Servers that are not memcached, for tests.

  badserver.py MODE ADDRESS     ADDRESS: a Unix socket's path, or 127.0.0.1:0 for a free port

Prints the address when it listens. MODE: http (answers like a web server), close (closes at once), endless (a line without
end), silent (never answers), old (memcached 1.2.0), tiny (items of 1 KiB at most).
"""

import socket
import sys
import threading

STATS = b"STAT pid 7\r\nSTAT uptime 5\r\nSTAT time 1000\r\nSTAT version %s\r\nSTAT limit_maxbytes 67108864\r\nEND\r\n"
SETTINGS = b"STAT evictions off\r\nSTAT item_size_max %d\r\nEND\r\n"


def serve(mode, s):
    try:
        if mode == "close":
            return
        if mode == "silent":
            while s.recv(4096):
                pass
            return
        if mode == "endless":
            while True:
                s.sendall(b"STAT " + b"x" * 65536)
        while True:
            if not s.recv(4096):
                return
            if mode == "http":
                s.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<h1>Bad Request</h1>\n")
                return
            s.sendall(STATS % (b"1.2.0" if mode == "old" else b"1.6.18") + SETTINGS % (1024 if mode == "tiny" else 1 << 20))
    except OSError:
        pass
    finally:
        s.close()


def main(mode, address):
    if address.startswith("/"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
    else:
        host, port = address.rsplit(":", 1)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        address = "%s:%d" % listener.getsockname()
    listener.listen(64)
    print(address, flush=True)
    while True:
        s, _ = listener.accept()
        threading.Thread(target=serve, args=(mode, s), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
