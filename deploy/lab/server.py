"""A task of the sample cluster: a server that answers every request with its own id.

    python server.py TASK_ID ADDRESS PORT...        such as  web.1 10.77.0.11 31000/tcp 31001/udp

Over TCP a request is one of HTTP, over UDP it is any datagram. It says `ready` when it listens. On
SIGTERM it serves on for a second and then ends, as a task does that means well by its clients:
until all of them know, some connect to it still.
"""

from __future__ import annotations

import selectors
import signal
import socket
import sys
from collections.abc import Iterable

DRAIN_SECONDS = 1.0
READY = "ready\n"
BACKLOG = 1024
END_OF_REQUEST = b"\r\n\r\n"


class Connection:
    """One client: requests without a body, one after the other."""

    def __init__(self, socket: socket.socket) -> None:
        self.socket = socket
        self._unfinished = b""

    def answer(self, body: bytes) -> bool:
        """Answer what has arrived. False: the connection is over."""
        try:
            received = self.socket.recv(65536)
            *requests, self._unfinished = (self._unfinished + received).split(END_OF_REQUEST)
            last = not received or any(_wants_close(request) for request in requests)
            if requests:
                self.socket.sendall(_response(body, last=last) * len(requests))
        except OSError:
            return False
        return not last


def _wants_close(request: bytes) -> bool:
    head = request.lower()
    old = b" http/1.0" in head and b"connection: keep-alive" not in head
    return old or b"connection: close" in head


def _response(body: bytes, *, last: bool) -> bytes:
    connection = b"close" if last else b"keep-alive"
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
        b"Content-Length: %d\r\nConnection: %s\r\n\r\n%s" % (len(body), connection, body)
    )


def listen(address: str, port: str) -> socket.socket:
    """A socket for what comes to `address` at `port`, which is `NUMBER/tcp` or `NUMBER/udp`."""
    number, _, transport = port.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if transport == "tcp":
        return socket.create_server((address, int(number)), family=family, backlog=BACKLOG)
    listener = socket.socket(family, socket.SOCK_DGRAM)
    listener.bind((address, int(number)))
    return listener


def serve(task_id: str, address: str, ports: Iterable[str]) -> None:
    """Answer until a signal ends the process."""
    body = f"{task_id}\n".encode()
    selector = selectors.DefaultSelector()
    for port in ports:
        selector.register(listen(address, port), selectors.EVENT_READ)
    print(READY, end="", flush=True)
    while True:
        for key, _ in selector.select():
            if isinstance(key.data, Connection):
                if not key.data.answer(body):
                    selector.unregister(key.fileobj)
                    key.data.socket.close()
            elif isinstance(key.fileobj, socket.socket) and key.fileobj.type == socket.SOCK_DGRAM:
                _, sender = key.fileobj.recvfrom(65536)
                key.fileobj.sendto(body, sender)
            elif isinstance(key.fileobj, socket.socket):
                client, _ = key.fileobj.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(client, selectors.EVENT_READ, Connection(client))


def drain_on_sigterm() -> None:
    """Let SIGTERM start a timer whose signal ends the process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, DRAIN_SECONDS))


if __name__ == "__main__":
    drain_on_sigterm()
    serve(sys.argv[1], sys.argv[2], sys.argv[3:])
