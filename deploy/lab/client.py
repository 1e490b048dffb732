"""A client: request after request, and what became of each in a line of tab-separated fields.

    python client.py ADDRESS PORT [--how HOW] [--mapped]
                     [--clients N] [--keep N] [--count N] [--pause-seconds S]
                     [--timeout-seconds S]

A request is one of HTTP, with `--how udp` a datagram, with `--how udp-connected` one of a socket
that is connected. `--mapped` goes to ::ffff:ADDRESS from an AF_INET6 socket, as a JVM does. Each of
the clients makes `--keep` requests with one socket and takes a new one then, `--count` in all.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self, get_args

TIMEOUT_SECONDS = 2.0
MAX_BYTES = 65_536
DATAGRAM = b"who is there?"
END_OF_HEAD = b"\r\n\r\n"

ENDLESS = sys.maxsize

How = Literal["tcp", "udp", "udp-connected"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request. Times are of `time.monotonic`, the same for all processes."""

    client: int
    """Which of several clients of one process, from 0."""
    started: float
    """The first one of a socket connects it, too."""
    ended: float
    task_id: str
    """Who answered; empty when nobody did."""
    error: str
    """Name of the errno; empty when somebody answered."""
    peer: str
    """`address:port`, IPv6 in brackets, that getpeername() tells, or recvfrom() of a socket that is
    not connected; empty when nobody answered."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.started

    @classmethod
    def parse(cls, line: str) -> Self:
        """From a line of `format`."""
        client, started, ended, *texts = line.rstrip("\n").split("\t")
        return cls(int(client), float(started), float(ended), *texts)

    def format(self) -> str:
        """A line without its end."""
        times = f"{self.started:.6f}\t{self.ended:.6f}"
        return "\t".join((str(self.client), times, self.task_id, self.error, self.peer))


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and how."""

    address: str
    port: int
    how: How = "tcp"
    mapped: bool = False
    timeout_seconds: float = TIMEOUT_SECONDS
    """After so long without an answer a client gives up."""

    def words(self) -> list[str]:
        """The same for the command line."""
        options = [f"--how={self.how}", f"--timeout-seconds={self.timeout_seconds}"]
        options += ["--mapped"] if self.mapped else []
        return [self.address, str(self.port), *options]

    def open(self) -> socket.socket:
        """A socket that has not been used yet."""
        family = socket.AF_INET6 if self.mapped or ":" in self.address else socket.AF_INET
        kind = socket.SOCK_STREAM if self.how == "tcp" else socket.SOCK_DGRAM
        opened = socket.socket(family, kind)
        opened.settimeout(self.timeout_seconds)
        return opened

    def __str__(self) -> str:
        """`address:port`, IPv6 in brackets."""
        return _shown(self.address, self.port)

    @property
    def host_port(self) -> tuple[str, int]:
        """For connect() and sendto()."""
        return f"::ffff:{self.address}" if self.mapped else self.address, self.port


# ---- requests ------------------------------------------------------------------------------------
def visit(target: Target, keep: int, client: int = 0) -> Iterator[Answer]:
    """Make `keep` requests with one socket; one that fails is the last."""
    with target.open() as opened:
        for number in range(keep):
            started, task_id, peer = time.monotonic(), "", ""
            first, last = number == 0, number == keep - 1
            try:
                task_id, peer = _ask(opened, target, is_first=first, is_last=last)
                error = "" if task_id else "cut short"
            except TimeoutError:
                error = "ETIMEDOUT"
            except OSError as exc:
                error = errno.errorcode.get(exc.errno or 0, str(exc))
            yield Answer(client, started, time.monotonic(), task_id, error, peer)
            if error:
                return


def _ask(
    opened: socket.socket, target: Target, *, is_first: bool, is_last: bool
) -> tuple[str, str]:
    """Who answered, and from where. Errors: OSError."""
    if target.how == "udp":
        opened.sendto(DATAGRAM, target.host_port)
        received, sender = opened.recvfrom(MAX_BYTES)
        return received.decode().strip(), _shown(*sender[:2])
    if is_first:
        opened.connect(target.host_port)
    peer = _shown(*opened.getpeername()[:2])
    if target.how == "tcp":
        return _ask_http(opened, is_last=is_last), peer
    opened.send(DATAGRAM)
    return opened.recv(MAX_BYTES).decode().strip(), peer


def _ask_http(connection: socket.socket, *, is_last: bool) -> str:
    """Who answered; empty when the answer does not come to its end. Errors: OSError."""
    wish = b"close" if is_last else b"keep-alive"
    connection.sendall(b"GET / HTTP/1.1\r\nHost: vip\r\nConnection: %s\r\n\r\n" % wish)
    received = b""
    # Who closes first keeps the port for a minute: that is to be the server.
    while is_last or not _is_whole(received):
        chunk = connection.recv(MAX_BYTES)
        if not chunk:
            break
        received += chunk
    if not (received.startswith(b"HTTP/1.1 200 ") and _is_whole(received)):
        return ""
    return received.partition(END_OF_HEAD)[2].decode().strip()


def _is_whole(response: bytes) -> bool:
    """Whether the body is as long as the head says."""
    head, end, body = response.partition(END_OF_HEAD)
    length = re.search(rb"Content-Length: (\d+)", head)
    return bool(end and length and len(body) == int(length[1]))


def _shown(host: str, port: int) -> str:
    plain = host.removeprefix("::ffff:")
    return f"[{plain}]:{port}" if ":" in plain else f"{plain}:{port}"


# ---- the command ---------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Order:
    """What each client is to do."""

    target: Target
    keep: int
    count: int | None
    """None: without end, whatever becomes of them."""
    pause_seconds: float


def run(client: int, order: Order) -> None:
    """Be one client."""
    left = order.count or ENDLESS
    while left:
        for answer in visit(order.target, min(order.keep, left), client):
            os.write(1, f"{answer.format()}\n".encode())  # one line at a time, whoever writes
            left -= 1
            if order.count and answer.error == "ETIMEDOUT":
                return  # the others would, too
            if order.pause_seconds:
                time.sleep(order.pause_seconds)


def main(arguments: list[str]) -> None:
    """Be as many clients as there shall be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--how", choices=get_args(How), default="tcp")
    parser.add_argument("--mapped", action="store_true")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--keep", type=int, default=1)
    parser.add_argument("--count", type=int, help="without end by default")
    parser.add_argument("--pause-seconds", type=float, default=0.0)
    parser.add_argument("--timeout-seconds", type=float, default=TIMEOUT_SECONDS)
    options = parser.parse_args(arguments)
    target = Target(
        options.address, options.port, options.how, options.mapped, options.timeout_seconds
    )
    order = Order(target, options.keep, options.count, options.pause_seconds)
    clients = [
        threading.Thread(target=run, args=(number, order)) for number in range(options.clients)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()


if __name__ == "__main__":
    main(sys.argv[1:])
