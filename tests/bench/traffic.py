"""Runs traffic.c and reads what it measured."""

from __future__ import annotations

import subprocess
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Literal

from tests.bench.stage import Seat

SOURCE = Path(__file__).with_name("traffic.c")
MEASURED = Struct("=QQQ")
"""struct measured: started_ns, ended_ns, count."""
ARRAYS = 4
"""Of `count` u32 each that follow it: call_ns, answer_ns, server, started_us."""

Kind = Literal["connect", "ask", "ask-connected"]
"""What a client does again and again: a connection; a datagram, unconnected or connected."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one client measured; the arrays have an entry for each request, in their order."""

    started_ns: int
    ended_ns: int
    """By `time.monotonic_ns`, as is `started_ns`."""
    call_ns: array[int]
    """Of the call that names the server: connect(), or the sending of a datagram."""
    answer_ns: array[int]
    """From the start of that call to the answer."""
    server: array[int]
    """Who answered: a place in the list of `Traffic.serving`."""
    started_us: array[int]
    """When that call began, from `started_ns` on."""

    @property
    def seconds(self) -> float:
        """From the start of the first request to the end of the last one."""
        return (self.ended_ns - self.started_ns) / 1e9

    @property
    def rate(self) -> float:
        """Requests a second, each with its answer; of connections, with their begin and end."""
        return len(self.server) / self.seconds

    def answers(self) -> Counter[int]:
        """How often each server answered."""
        return Counter(self.server)


class Traffic:
    """The program, compiled into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "traffic"
        flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *flags, "-o", self._program, SOURCE], check=True)

    # ---- servers --------------------------------------------------------------------------------
    @contextmanager
    def serving(self, addresses: Sequence[str], seats: Sequence[Seat]) -> Iterator[None]:
        """Servers at each ADDRESS:PORT while the block runs: a process on each of `seats`."""
        with self._servers([(["serve", *addresses], seat) for seat in seats]):
            yield

    @contextmanager
    def attending(
        self, addresses: Sequence[str], service_us: Sequence[int], seat: Seat
    ) -> Iterator[None]:
        """Servers that take one connection after the other, each for its time of `service_us`."""
        commands = [
            (["attend", str(us), str(number), address], seat)
            for number, (address, us) in enumerate(zip(addresses, service_us, strict=True))
        ]
        with self._servers(commands):
            yield

    @contextmanager
    def _servers(self, commands: Sequence[tuple[Sequence[str], Seat]]) -> Iterator[None]:
        with ExitStack() as stack:
            for words, seat in commands:
                server = subprocess.Popen(
                    [self._program, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    preexec_fn=seat.take,
                )
                stack.callback(_end, server)
                assert server.stdout is not None
                if server.stdout.readline() != b"ready\n":
                    raise OSError("the servers of the bench did not start")
            yield

    # ---- clients --------------------------------------------------------------------------------
    def load(
        self, targets: Sequence[str], count: int, seats: Sequence[Seat], kind: Kind = "connect"
    ) -> list[Run]:
        """A client on each of `seats`, all at once, each with `count` requests to `targets`.

        A target is ADDRESS:PORT, or ADDRESS:PORT*N for N addresses from there on; each connection
        goes to a random one, all datagrams of a client to the same. Errors: CalledProcessError
        when a single one fails.
        """
        with self._clients(kind, count, targets, seats) as clients:
            return [_run_of(client) for client in clients]

    def pace(
        self, targets: Sequence[str], rate: int, count: int, seats: Sequence[Seat]
    ) -> list[Run]:
        """As `load`, each client with `rate` connections a second, as far as it keeps up."""
        with self._clients("pace", count, targets, seats, str(rate)) as clients:
            return [_run_of(client) for client in clients]

    @contextmanager
    def holding(
        self, targets: Sequence[str], count: int, seats: Sequence[Seat]
    ) -> Iterator[list[Run]]:
        """A client on each of `seats` with `count` connections that are open while the block runs.

        A client has fewer when no port is left for one more. Errors: CalledProcessError when one
        fails otherwise.
        """
        with self._clients("hold", count, targets, seats) as clients:
            yield [_run_of(client) for client in clients]

    def stream(self, targets: Sequence[str], seconds: float, seat: Seat) -> tuple[int, float]:
        """How many bytes one connection to one of `targets` carries in so long.

        With the seconds that it took until the server had them all, which is a little longer.
        """
        with self._clients("stream", round(1000 * seconds), targets, [seat]) as (client,):
            started_ns, ended_ns, count = MEASURED.unpack(_read(client, MEASURED.size))
        return count, (ended_ns - started_ns) / 1e9

    @contextmanager
    def _clients(
        self, kind: str, count: int, targets: Sequence[str], seats: Sequence[Seat], *words: str
    ) -> Iterator[list[subprocess.Popen[bytes]]]:
        """A client on each of `seats`, started all at once, ended with the block.

        `words` follow the `kind`.
        """
        with ExitStack() as stack:
            clients = []
            for seed, seat in enumerate(seats):
                client = subprocess.Popen(
                    [self._program, kind, *words, str(seed), str(count), *targets],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    preexec_fn=seat.take,
                )
                stack.callback(_end, client)
                clients.append(client)
            for client in clients:
                assert client.stdin is not None
                client.stdin.write(b"\n")
                client.stdin.flush()
            yield clients

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


def _run_of(client: subprocess.Popen[bytes]) -> Run:
    """What `client` measured, once it is done. Errors: CalledProcessError when it ended early."""
    started_ns, ended_ns, count = MEASURED.unpack(_read(client, MEASURED.size))
    values = array("I", _read(client, ARRAYS * count * array("I").itemsize))
    return Run(started_ns, ended_ns, *(values[i * count : (i + 1) * count] for i in range(ARRAYS)))


def _read(client: subprocess.Popen[bytes], size: int) -> bytes:
    assert client.stdout is not None
    raw = client.stdout.read(size)
    if len(raw) < size:
        raise subprocess.CalledProcessError(client.wait(), client.args)
    return raw


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
