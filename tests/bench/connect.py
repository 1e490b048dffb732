"""What connect() to a VIP costs, beside a direct connection, nftables' DNAT and HAProxy.

Every way leads to the same ten servers on loopback: direct picks one at random itself. On loopback
the whole handshake happens inside connect(), and no network hides what is added to it.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tests.bench import rivals, stage
from tests.bench.report import Section, Table, Target, microseconds, percentile, spread
from tests.bench.stage import Seat
from tests.bench.traffic import Run, Traffic

SERVERS = tuple(f"127.0.1.{i}:8080" for i in range(1, 11))
VIP_ADDRESS = "10.53.0.1:80"
NFTABLES_ADDRESS = "10.53.0.2:80"
HAPROXY_ADDRESS = "127.0.2.1:80"

DIRECT, VIP, PASSING = "direct", "VIP", "direct, programs attached"
NFTABLES, HAPROXY = "nftables DNAT", "HAProxy"

ROUNDS = 15
ALONE_CONNECTIONS = 10_000
CROWD_CONNECTIONS = 4_000
CROWD = 4
"""Clients on each core, when every core is busy."""

Runs = dict[str, list[Run]]
"""Of one round: by way, one for each client."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to the servers."""

    targets: Sequence[str]
    cgroup: Path
    """Of its clients."""


@dataclass(frozen=True, slots=True)
class Course:
    """Every way, open, with servers on `cpus`."""

    traffic: Traffic
    ways: Mapping[str, Way]
    cpus: Sequence[int]

    def race(self, rounds: int, connections: int, crowd: int = 1) -> Iterator[Runs]:
        """Rounds in which every way has its turn, forwards and backwards by turns.

        `crowd` clients on each core go one way at once, each with `connections`.
        Errors: ValueError when a way does not lead to every server.
        """
        for number in range(rounds):
            runs = {}
            for name in list(self.ways)[:: 1 if number % 2 else -1]:
                way = self.ways[name]
                clients = [
                    Seat(frozenset([c]), way.cgroup) for c in self.cpus for _ in range(crowd)
                ]
                runs[name] = self.traffic.load(way.targets, connections, clients)
                reached = set().union(*(run.server for run in runs[name]))
                if len(reached) != len(SERVERS):
                    raise ValueError(f"{name}: reached {len(reached)} of {len(SERVERS)} servers")
            yield {name: runs[name] for name in self.ways}


@contextmanager
def course(folder: Path, cpus: Sequence[int]) -> Iterator[Course]:
    """The course while the block runs. `folder` is for its files."""
    traffic = Traffic(folder)
    stage.forget_closed_connections()
    ops = stage.filling(
        [(stage.frontend(VIP_ADDRESS), [stage.endpoint(server) for server in SERVERS])]
    )
    with ExitStack() as stack:
        served = stack.enter_context(stage.cgroup("served"))
        plain = stack.enter_context(stage.cgroup("plain"))
        servers = [Seat(frozenset([cpu]), plain, patient=True) for cpu in cpus]
        proxy = Seat(frozenset(cpus), plain, patient=True)
        stack.enter_context(traffic.serving(SERVERS, servers))
        stack.enter_context(stage.dataplane(served, ops, folder))
        stack.enter_context(rivals.nftables(NFTABLES_ADDRESS, SERVERS))
        stack.enter_context(rivals.haproxy(HAPROXY_ADDRESS, SERVERS, proxy, folder))
        ways = {
            DIRECT: Way(SERVERS, plain),
            VIP: Way((VIP_ADDRESS,), served),
            PASSING: Way(SERVERS, served),
            NFTABLES: Way((NFTABLES_ADDRESS,), plain),
            HAPROXY: Way((HAPROXY_ADDRESS,), plain),
        }
        yield Course(traffic, ways, cpus)


# ---- what the rounds say ------------------------------------------------------------------------
Measure = Callable[[Sequence[Run]], float]
"""One number of the clients that went one way at once."""


def connect_p50(runs: Sequence[Run]) -> float:
    """Median time of connect(), in ns."""
    return statistics.median(chain.from_iterable(run.connect_ns for run in runs))


def rate(runs: Sequence[Run]) -> float:
    """Connections a second, each with a request, an answer and its end."""
    return sum(run.rate for run in runs)


def ratios(rounds: Sequence[Runs], measure: Measure, way: str, base: str) -> list[float]:
    """`measure` of one way over that of another, for each round."""
    return [measure(runs[way]) / measure(runs[base]) for runs in rounds]


def _over_direct(rounds: Sequence[Runs], measure: Measure, way: str) -> str:
    return "1" if way == DIRECT else spread(ratios(rounds, measure, way, DIRECT))


def alone_table(rounds: Sequence[Runs]) -> Table:
    """Times of one connection after the other."""
    rows = []
    for way in rounds[0]:
        runs = [run for round_ in rounds for run in round_[way]]
        connect = sorted(chain.from_iterable(run.connect_ns for run in runs))
        answer = sorted(chain.from_iterable(run.answer_ns for run in runs))
        shares = [(connect, 0.5), (connect, 0.9), (connect, 0.99), (answer, 0.5), (answer, 0.99)]
        times = [microseconds(percentile(ordered, share)) for ordered, share in shares]
        rows.append([way, *times, _over_direct(rounds, connect_p50, way)])
    headings = ["connect() p50", "p90", "p99", "answer p50", "p99", "connect() p50 / direct"]
    return Table(["us", *headings], rows)


def crowd_table(rounds: Sequence[Runs]) -> Table:
    """Rates with every core busy."""
    rows = [
        (
            way,
            f"{statistics.median(rate(runs[way]) for runs in rounds):,.0f}",
            _over_direct(rounds, rate, way),
        )
        for way in rounds[0]
    ]
    return Table(("", "connections/s", "rate / direct"), rows)


def measure(folder: Path) -> Section:
    """Run both and say what was found."""
    cpus = sorted(os.sched_getaffinity(0))
    with course(folder, cpus[:1]) as one_core:
        alone = list(one_core.race(ROUNDS, ALONE_CONNECTIONS))
    with course(folder, cpus) as every_core:
        crowd = list(every_core.race(ROUNDS, CROWD_CONNECTIONS, CROWD))
    median = statistics.median
    return Section(
        "Connections",
        (
            f"One client, {ROUNDS} rounds of {ALONE_CONNECTIONS:,} connections each way, one after "
            "the other, on one core together with the servers: connect, request, answer, close. "
            "`answer` counts from the start of connect(). A connection to HAProxy is "
            "made before HAProxy makes its own, so there only the answer tells.",
            alone_table(alone),
            f"Every core busy: {CROWD} such clients and the servers on each of {len(cpus)} cores, "
            f"{ROUNDS} rounds of {CROWD_CONNECTIONS:,} connections for each client.",
            crowd_table(crowd),
        ),
        (
            Target(
                "connect() p50, VIP / direct", 1.15, median(ratios(alone, connect_p50, VIP, DIRECT))
            ),
            Target(
                "rate, VIP / direct", 0.95, median(ratios(crowd, rate, VIP, DIRECT)), at_least=True
            ),
            Target(
                "rate, VIP / nftables DNAT",
                1,
                median(ratios(crowd, rate, VIP, NFTABLES)),
                at_least=True,
            ),
            Target(
                "rate, VIP / HAProxy", 2, median(ratios(crowd, rate, VIP, HAPROXY)), at_least=True
            ),
        ),
    )
