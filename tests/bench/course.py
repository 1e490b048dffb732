"""The ways to the same servers, and races between them.

Direct picks a server at random itself. What is compared are runs of one round: whatever else the
machine does at that time happens to all of them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from minuteman.model import Transport
from tests.bench import rivals, stage
from tests.bench.report import Table, spread
from tests.bench.stage import Plane, Seat
from tests.bench.traffic import Kind, Run, Traffic

T = TypeVar("T")

TRANSPORTS: Sequence[Transport] = ("tcp", "udp")
SERVERS = tuple(f"127.0.1.{i}:8080" for i in range(1, 11))
VIP_ADDRESS = "10.53.0.1:80"
NFTABLES_ADDRESS = "10.53.0.2:80"
HAPROXY_ADDRESS = "127.0.2.1:80"

DIRECT, VIP, PASSING = "direct", "VIP", "direct, programs attached"
NFTABLES, HAPROXY = "nftables DNAT", "HAProxy"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to the servers."""

    targets: Sequence[str]
    cgroup: Path
    """Of its clients."""
    opened: Callable[[], AbstractContextManager[None]] = nullcontext
    """What there is only while somebody goes this way."""


@dataclass(frozen=True, slots=True)
class Load:
    """What clients measured that went one way at once."""

    runs: Sequence[Run]
    cpu_seconds: float
    """Of the clients, the servers, and a proxy between them; whatever else the cores did."""

    @property
    def rate(self) -> float:
        """Requests a second of all clients."""
        return sum(run.rate for run in self.runs)

    @property
    def cpu_us(self) -> float:
        """Of one request."""
        return 1e6 * self.cpu_seconds / sum(len(run.server) for run in self.runs)

    @property
    def call_ns(self) -> list[int]:
        """Of the call that names the server, sorted."""
        return sorted(chain.from_iterable(run.call_ns for run in self.runs))

    @property
    def answer_ns(self) -> list[int]:
        """From the start of that call to the answer, sorted."""
        return sorted(chain.from_iterable(run.answer_ns for run in self.runs))

    @property
    def servers(self) -> Counter[int]:
        """How often each server answered."""
        return sum((run.answers() for run in self.runs), start=Counter())


@dataclass(frozen=True, slots=True)
class Stream:
    """What one connection carried."""

    size: int
    """In bytes."""
    seconds: float
    cpu_seconds: float
    """As of `Load`."""

    @property
    def throughput(self) -> float:
        """In bytes a second."""
        return self.size / self.seconds

    @property
    def cpu_per_gb(self) -> float:
        """Processor seconds for 10^9 bytes."""
        return 1e9 * self.cpu_seconds / self.size


@dataclass(frozen=True, slots=True)
class Course:
    """Every way to `servers`, open."""

    traffic: Traffic
    servers: Sequence[str]
    ways: Mapping[str, Way]
    plane: Plane
    """Of the VIP."""

    def without(self, *names: str) -> Course:
        """The same course with fewer ways."""
        ways = {name: way for name, way in self.ways.items() if name not in names}
        return replace(self, ways=ways)

    def serving(self, cpus: Sequence[int]) -> AbstractContextManager[None]:
        """All servers in one process for each of `cpus`, while the block runs."""
        plain = self.ways[DIRECT].cgroup
        seats = [Seat(frozenset([cpu]), plain, patient=True) for cpu in cpus]
        return self.traffic.serving(self.servers, seats)

    def load(
        self, way: Way, count: int, cpus: Sequence[int], crowd: int = 1, kind: Kind = "connect"
    ) -> Load:
        """`crowd` clients on each of `cpus` go `way` at once, each with `count` requests."""
        seats = [Seat(frozenset([cpu]), way.cgroup) for cpu in cpus for _ in range(crowd)]
        with way.opened():
            before = self._cpu_seconds()
            runs = self.traffic.load(way.targets, count, seats, kind)
            return Load(runs, self._cpu_seconds() - before)

    def _cpu_seconds(self) -> float:
        """Of all processes of the course so far, but for us."""
        return sum(stage.cpu_seconds(cgroup) for cgroup in {w.cgroup for w in self.ways.values()})

    def stream(self, way: Way, seconds: float, cpu: int) -> Stream:
        """A client on `cpu` sends over one connection for so long."""
        seat = Seat(frozenset([cpu]), way.cgroup)
        with way.opened():
            before = self._cpu_seconds()
            count, took = self.traffic.stream(way.targets, seconds, seat)
            return Stream(count, took, self._cpu_seconds() - before)

    def race(self, rounds: int, run: Callable[[Way], T]) -> Iterator[dict[str, T]]:
        """Rounds in which every way has its turn, forwards and backwards by turns."""
        for number in range(rounds):
            names = list(self.ways)[:: 1 if number % 2 else -1]
            found = {name: run(self.ways[name]) for name in names}
            yield {name: found[name] for name in self.ways}


@contextmanager
def course(
    folder: Path, servers: Sequence[str] = SERVERS, proxy_cpus: Sequence[int] = ()
) -> Iterator[Course]:
    """The course while the block runs, for TCP and for UDP. `folder` is for its files.

    HAProxy, which carries no datagrams, has a thread on each of `proxy_cpus`; without any it is
    left out.
    """
    traffic = Traffic(folder)
    stage.forget_closed_connections()
    ops = stage.filling(
        (stage.frontend(VIP_ADDRESS, kind), [stage.endpoint(server, kind) for server in servers])
        for kind in TRANSPORTS
    )
    with ExitStack() as stack:
        served = stack.enter_context(stage.cgroup("served"))
        plain = stack.enter_context(stage.cgroup("plain"))
        plane = stack.enter_context(stage.dataplane(served, ops, folder))
        nftables = partial(rivals.nftables, NFTABLES_ADDRESS, servers)
        ways = {
            DIRECT: Way(servers, plain),
            VIP: Way((VIP_ADDRESS,), served),
            PASSING: Way(servers, served),
            NFTABLES: Way((NFTABLES_ADDRESS,), plain, nftables),
        }
        if proxy_cpus:
            proxy = Seat(frozenset(proxy_cpus), plain, patient=True)
            stack.enter_context(rivals.haproxy(HAPROXY_ADDRESS, servers, proxy, folder))
            ways[HAPROXY] = Way((HAPROXY_ADDRESS,), plain)
        yield Course(traffic, servers, ways, plane)


# ---- what the rounds say ------------------------------------------------------------------------
Rounds = Sequence[Mapping[str, T]]
"""What was found, for each round by way."""


def ratios(rounds: Rounds[T], measure: Callable[[T], float], way: str, base: str) -> list[float]:
    """`measure` of one way over that of another, for each round."""
    return [measure(found[way]) / measure(found[base]) for found in rounds]


def median_ratio(rounds: Rounds[T], measure: Callable[[T], float], way: str, base: str) -> float:
    """The median of `ratios`."""
    return statistics.median(ratios(rounds, measure, way, base))


def over_direct(rounds: Rounds[T], measure: Callable[[T], float], way: str) -> str:
    """The cell of a table with the ratios of `way` over direct."""
    return "1" if way == DIRECT else spread(ratios(rounds, measure, way, DIRECT))


def call_p50(load: Load) -> float:
    """Median time of the call that names the server, in ns."""
    return statistics.median(load.call_ns)


def rate(load: Load) -> float:
    """Requests a second of all clients that ran at once."""
    return load.rate


def cpu_us(load: Load) -> float:
    """Processor time of one request."""
    return load.cpu_us


def all_of(rounds: Rounds[Load], way: str) -> Load:
    """What all rounds measured of `way`, as one."""
    loads = [by_way[way] for by_way in rounds]
    runs = list(chain.from_iterable(load.runs for load in loads))
    return Load(runs, sum(load.cpu_seconds for load in loads))


def rates_table(rounds: Rounds[Load], unit: str) -> Table:
    """Rates of `unit`, and what one of them costs."""
    rows = [
        (
            way,
            f"{statistics.median(by_way[way].rate for by_way in rounds):,.0f}",
            over_direct(rounds, rate, way),
            f"{statistics.median(by_way[way].cpu_us for by_way in rounds):.1f}",
            over_direct(rounds, cpu_us, way),
        )
        for way in rounds[0]
    ]
    return Table(("", f"{unit}/s", "rate / direct", "CPU us each", "CPU / direct"), rows)
