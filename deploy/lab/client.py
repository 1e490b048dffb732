"""A client: one request after the other, each on a connection of its own.

It says of each what became of it, in a line of tab-separated fields:

    python client.py ADDRESS PORT [--mapped] [--count N] [--pause-seconds S]

`--mapped` connects to ::ffff:ADDRESS from an AF_INET6 socket, as a JVM does.
"""

from __future__ import annotations

import argparse
import errno
import socket
import sys
import time
from dataclasses import dataclass
from typing import Self

TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request. Times are of `time.monotonic`, the same for all processes."""

    started: float
    ended: float
    task_id: str
    """Who answered; empty when nobody did."""
    error: str
    """Name of the errno; empty when somebody answered."""
    peer: str
    """`address:port` that getpeername() tells; empty when nobody answered."""

    @classmethod
    def parse(cls, line: str) -> Self:
        """From a line of `format`."""
        started, ended, *texts = line.rstrip("\n").split("\t")
        return cls(float(started), float(ended), *texts)

    def format(self) -> str:
        """A line without its end."""
        fields = (f"{self.started:.6f}", f"{self.ended:.6f}", self.task_id, self.error, self.peer)
        return "\t".join(fields)


def request(address: str, port: int, *, mapped: bool) -> Answer:
    """Connect, ask, read the answer, close."""
    started = time.monotonic()
    family, host = (socket.AF_INET6, f"::ffff:{address}") if mapped else (socket.AF_INET, address)
    try:
        with socket.socket(family) as connection:
            connection.settimeout(TIMEOUT_SECONDS)
            connection.connect((host, port))
            peer = connection.getpeername()
            connection.sendall(b"GET / HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
            received = b"".join(iter(lambda: connection.recv(65536), b""))
    except TimeoutError:
        return Answer(started, time.monotonic(), "", "ETIMEDOUT", "")
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error))
        return Answer(started, time.monotonic(), "", name, "")
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        return Answer(started, time.monotonic(), "", "cut short", "")
    shown = f"{peer[0].removeprefix('::ffff:')}:{peer[1]}"
    return Answer(started, time.monotonic(), body.decode().strip(), "", shown)


def main(arguments: list[str]) -> None:
    """Send requests until there were `--count`, one of these timed out, or a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--mapped", action="store_true")
    parser.add_argument("--count", type=int, help="without end by default")
    parser.add_argument("--pause-seconds", type=float, default=0.0)
    options = parser.parse_args(arguments)
    for _ in range(options.count or sys.maxsize):
        answer = request(options.address, options.port, mapped=options.mapped)
        print(answer.format(), flush=True)
        if options.count and answer.error == "ETIMEDOUT":
            break  # the others would, too
        if options.pause_seconds:
            time.sleep(options.pause_seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
