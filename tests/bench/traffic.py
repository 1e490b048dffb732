"""Runs traffic.c and reads what it measured."""

from __future__ import annotations

import subprocess
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Self

from tests.bench.stage import Seat

SOURCE = Path(__file__).with_name("traffic.c")
MEASURED = Struct("=QQQ")
"""struct measured: started_ns, ended_ns, count. Three arrays of `count` u32 follow."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one client measured; the arrays have an entry for each connection, in their order."""

    seconds: float
    connect_ns: array[int]
    answer_ns: array[int]
    """From the start of connect() to the answer."""
    server: array[int]
    """Who answered: a place in the list of `Traffic.serving`."""

    @property
    def rate(self) -> float:
        """Connections a second, each with a request, an answer and its end."""
        return len(self.server) / self.seconds

    def answers(self) -> Counter[int]:
        """How often each server answered."""
        return Counter(self.server)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """The run that `traffic load` wrote."""
        started_ns, ended_ns, count = MEASURED.unpack_from(raw)
        values = array("I", raw[MEASURED.size :])
        if len(values) != 3 * count:
            raise ValueError(f"traffic: {len(values)} values for {count} connections")
        connect_ns, answer_ns, server = (values[i * count : (i + 1) * count] for i in range(3))
        return cls((ended_ns - started_ns) / 1e9, connect_ns, answer_ns, server)


class Traffic:
    """The program, compiled into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "traffic"
        flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *flags, "-o", self._program, SOURCE], check=True)

    @contextmanager
    def serving(self, addresses: Sequence[str], seats: Iterable[Seat]) -> Iterator[None]:
        """Servers at each ADDRESS:PORT while the block runs: a process on each of `seats`."""
        servers = [self._start_servers(addresses, seat) for seat in seats]
        try:
            yield
        finally:
            for server in servers:
                _end(server)

    def _start_servers(self, addresses: Sequence[str], seat: Seat) -> subprocess.Popen[bytes]:
        server = subprocess.Popen(
            [self._program, "serve", *addresses],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            preexec_fn=seat.take,
        )
        assert server.stdout is not None
        if server.stdout.readline() != b"ready\n":
            _end(server)
            raise OSError("the servers of the bench did not start")
        return server

    def load(self, targets: Sequence[str], count: int, seats: Sequence[Seat]) -> list[Run]:
        """A client on each of `seats`, all at once, each with `count` connections to `targets`.

        A target is ADDRESS:PORT, or ADDRESS:PORT*N for N addresses from there on; each connection
        goes to a random one. Errors: CalledProcessError when a single one fails.
        """
        command = [str(self._program), "load", str(count), *targets]
        clients = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=seat.take
            )
            for seat in seats
        ]
        try:
            for client in clients:
                assert client.stdin is not None
                client.stdin.close()  # that is what it waits for
            return [Run.unpack(_output(client)) for client in clients]
        finally:
            for client in clients:
                _end(client)

    @contextmanager
    def watching(self, target: str, gap_us: int, seat: Seat) -> Iterator[Watcher]:
        """A client that can tell when a server is first reached."""
        process = subprocess.Popen(
            [self._program, "watch", str(gap_us), target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=seat.take,
        )
        try:
            yield Watcher(process)
        finally:
            _end(process)


class Watcher:
    """Connects again and again, on demand, until a given server answers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._findings = process.stdin, process.stdout

    def watch_for(self, server: int) -> None:
        """Begin to connect, until `server` answers."""
        self._orders.write(f"{server}\n")
        self._orders.flush()

    def found(self) -> tuple[int, int]:
        """When the connect() that reached it began, as `monotonic_ns`, and how many it took."""
        started_ns, tries = self._findings.readline().split()
        return int(started_ns), int(tries)


def _output(client: subprocess.Popen[bytes]) -> bytes:
    assert client.stdout is not None
    raw = client.stdout.read()
    if client.wait():
        raise subprocess.CalledProcessError(client.returncode, client.args)
    return raw


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
