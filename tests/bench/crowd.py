"""Sockets that wait for their end. A program that imports nothing of ours:

crowd.py tcp|udp SOURCE ADDRESS PORT COUNT
    Connects so many sockets from an address to one place, and says "ready". Answers each line with
    how many of them were aborted, and when it saw the last one: CLOCK_MONOTONIC, in ns. Any other
    event ends it.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import time

IP_BIND_ADDRESS_NO_PORT = 24
"""linux/in.h: a port is chosen at connect(), and shared by connections to different places."""
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def open_one(kind: socket.SocketKind, source: str, target: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    if kind == socket.SOCK_STREAM:
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    made.bind((source, 0))
    made.connect(target)
    return made


def main(kind: str, source: str, address: str, port: str, count: str) -> None:
    sockets = [open_one(KINDS[kind], source, (address, int(port))) for _ in range(int(count))]
    by_fd = {made.fileno(): made for made in sockets}
    poller = select.epoll()
    for fd in by_fd:
        poller.register(fd, 0)  # an error is always told
    poller.register(sys.stdin.fileno(), select.EPOLLIN)
    say("ready")
    aborted, last_ns = 0, 0
    while True:
        for fd, _ in poller.poll():
            if fd == sys.stdin.fileno():
                if not sys.stdin.readline():
                    return
                say(aborted, last_ns)
                continue
            error = by_fd[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error != errno.ECONNABORTED:
                raise SystemExit(f"a socket ended with {errno.errorcode.get(error, error)}")
            last_ns = time.monotonic_ns()
            aborted += 1
            poller.unregister(fd)


if __name__ == "__main__":
    main(*sys.argv[1:])
