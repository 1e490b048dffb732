"""What connections notice while the agent below them is started again, upgraded and rolled back.

Clients begin RATE connections a second through one of VIPS VIPs, whatever becomes of the ones
before. Meanwhile agents take over from each other: each is killed when its dataplane is open. A
connection that fails ends the bench.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import ip_address
from itertools import chain, cycle
from pathlib import Path
from statistics import mean, median

from lab.versions import install_all
from minuteman.dataplane.pins import remove_all
from minuteman.reconcile.kernelstate import Limits
from tests.bench import stage
from tests.bench.report import Section, Table, Target, microseconds, percentile
from tests.bench.stage import BPFFS, Seat
from tests.bench.traffic import Run, Traffic
from tests.opening import Opener

RATE = 10_000
VIPS = 100
SERVERS = tuple(f"127.0.1.{i}:8080" for i in range(1, 11))
VIP = "10.53.0.1:80"
LEG_SECONDS = 10.0
CYCLES = 1_000
UPGRADE_EVERY = 100
"""Cycles; all the others find their own maps and programs."""
SWAP_US = 250_000
"""The end of a takeover: maps are copied, links updated, and the counters carried."""

LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Takeover:
    """One agent after another."""

    ended_ns: int
    """By `time.monotonic_ns`."""
    seconds: float
    """Until its dataplane was open."""


@dataclass(frozen=True, slots=True)
class Leg:
    """What clients measured while agents came and went."""

    runs: Sequence[Run]
    clients: int
    """How many ran at once."""
    takeovers: Sequence[Takeover]

    @property
    def rate(self) -> float:
        """Connections a second of all clients."""
        return self.clients * mean(run.rate for run in self.runs)

    @property
    def connect_ns(self) -> list[int]:
        """Of each connect(), sorted."""
        return sorted(chain.from_iterable(run.call_ns for run in self.runs))

    @property
    def swap_ns(self) -> list[int]:
        """Of each that began in the last moments of a takeover, sorted."""
        found: list[int] = []
        for run in self.runs:
            for takeover in self.takeovers:
                end_us = (takeover.ended_ns - run.started_ns) // 1000
                start = bisect_left(run.started_us, end_us - SWAP_US)
                found += run.call_ns[start : bisect_left(run.started_us, end_us)]
        return sorted(found)


Turn = Callable[[], float]
"""What is done while clients connect; returns the seconds until a dataplane was open."""


class Stand:
    """Clients of one cgroup, and agents that serve it one after the other."""

    def __init__(self, traffic: Traffic, seats: Sequence[Seat], openers: Sequence[Opener]) -> None:
        self._traffic = traffic
        self._seats = seats
        self._this, self._fix, self._next = openers

    def leg(self, seconds: float, turns: Iterator[Turn]) -> Leg:
        """Load for so long, and until one of `turns` is taken; take as many as that is time for."""
        each = RATE // len(self._seats)
        runs: list[Run] = []
        taken: list[Takeover] = []
        ending = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            taking = pool.submit(_take, turns, taken, ending)
            try:
                while not (runs and (taken or taking.done())):
                    targets, count = [f"{VIP}*{VIPS}"], int(each * seconds)
                    runs += self._traffic.pace(targets, each, count, self._seats)
            finally:
                ending.set()
        taking.result()
        return Leg(runs, len(self._seats), taken)

    def restarts(self) -> Iterator[Turn]:
        """This version finds what it left."""
        return cycle([partial(_open, self._this)])

    def fixes(self) -> Iterator[Turn]:
        """Other programs for the same maps, and back."""
        return cycle([partial(_open, self._fix), partial(_open, self._this)])

    def upgrades(self) -> Iterator[Turn]:
        """Other maps, and back."""
        return cycle([partial(_open, self._next), partial(_open, self._this)])

    def cycles(self, number: int) -> Iterator[Turn]:
        """So many, of which some are upgrades or ways back."""
        versions = cycle((self._fix, self._next, self._this))
        opener = self._this
        for turn in range(number):
            if turn % UPGRADE_EVERY == UPGRADE_EVERY - 1:
                opener = next(versions)
            yield partial(_open, opener)


def _take(turns: Iterator[Turn], taken: list[Takeover], ending: threading.Event) -> None:
    while not ending.is_set() and (turn := next(turns, None)):
        seconds = turn()
        taken.append(Takeover(time.monotonic_ns(), seconds))


def _open(opener: Opener) -> float:
    """Open the dataplane of one version, and kill the process."""
    report = opener.open(LIMITS, end="kill")
    if report.error or report.detached or len(report.ids) != VIPS * len(SERVERS):
        raise ValueError(f"{len(report.ids)} backends, {report.error or report.detached}")
    return report.seconds


@contextmanager
def stand(folder: Path, cpus: Sequence[int]) -> Iterator[Stand]:
    """Servers and VIPs for clients on each of `cpus`, while the block runs."""
    traffic = Traffic(folder)
    stage.forget_closed_connections()
    versions = install_all(folder / "versions")
    with ExitStack() as stack:
        served = stack.enter_context(stage.cgroup("upgraded"))
        plain = stack.enter_context(stage.cgroup("serving"))
        servers = [Seat(frozenset([cpu]), plain, patient=True) for cpu in cpus]
        stack.enter_context(traffic.serving(SERVERS, servers))
        first = ip_address(VIP.partition(":")[0])
        vips = [f"{first + number}:80" for number in range(VIPS)]
        members = [stage.endpoint(server) for server in SERVERS]
        ops = stage.filling((stage.frontend(vip), members) for vip in vips)
        plane = stack.enter_context(stage.dataplane(served, ops, folder, LIMITS))
        plane.kernel.close()
        places = (served, plane.where.root, folder / "state")
        openers = [stack.enter_context(Opener(version, *places)) for version in versions]
        yield Stand(traffic, [Seat(frozenset([cpu]), served) for cpu in cpus], openers)


def compiling(folder: Path) -> Iterator[Turn]:
    """The compiler takes its part of a core, and nothing is attached."""
    root = BPFFS / "compiled"
    command = [sys.executable, "-P", "-m", "minuteman.dataplane.loader"]
    command += ["--pins", str(root), "--cache", str(folder / "state" / "cache")]
    command += [f"--{name}={value}" for name, value in asdict(LIMITS).items()]

    def compile_once() -> float:
        started = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - started
        remove_all(root)
        return seconds

    return cycle([compile_once])


# ---- the bench ----------------------------------------------------------------------------------
QUIET, COMPILING, RESTARTED = "no agent comes or goes", "a compiler runs", "killed and started"
FIXED, UPGRADED = "other programs, same maps", "other maps, and back"


def measure(folder: Path) -> Section:
    """Run it and say what was found."""
    with stand(folder, sorted(os.sched_getaffinity(0))) as here:
        return report(legs(here, folder, LEG_SECONDS), *cycles(here, CYCLES, LEG_SECONDS))


def legs(here: Stand, folder: Path, seconds: float) -> dict[str, Leg]:
    """The same load each time, and something else meanwhile."""
    return {
        QUIET: here.leg(seconds, iter(())),
        COMPILING: here.leg(seconds, compiling(folder)),
        RESTARTED: here.leg(seconds, here.restarts()),
        FIXED: here.leg(seconds, here.fixes()),
        UPGRADED: here.leg(seconds, here.upgrades()),
    }


def cycles(here: Stand, number: int, seconds: float) -> tuple[int, int, float]:
    """Load until so many agents have come and gone: them, connections, and seconds."""
    started = time.monotonic()
    turns = here.cycles(number)
    taken = connections = 0
    while taken < number:
        leg = here.leg(seconds, turns)
        taken += len(leg.takeovers)
        connections += len(leg.connect_ns)
    return taken, connections, time.monotonic() - started


def report(found: Mapping[str, Leg], taken: int, connections: int, seconds: float) -> Section:
    """Tables of what was found."""
    swaps = f"{UPGRADED}: last {SWAP_US // 1000} ms of each"
    rows = [_row(name, leg.connect_ns) for name, leg in found.items()]
    rows.append(_row(swaps, found[UPGRADED].swap_ns))
    reached = [
        (
            name,
            f"{leg.rate:,.0f}",
            str(len(leg.takeovers)),
            f"{median([each.seconds for each in leg.takeovers] or [0.0]):.2f}",
        )
        for name, leg in found.items()
    ]
    slowest = found[UPGRADED].swap_ns[-1] / 1e6
    total = connections + sum(len(leg.connect_ns) for leg in found.values())
    return Section(
        "Upgrade",
        (
            f"Connections to {VIPS} VIPs of {len(SERVERS)} backends each begin at a rate of "
            f"{RATE:,} a second, while processes open the dataplane and are killed, one after the "
            "other; one with other programs or maps compiles them first, on the same cores.",
            Table(("connect(), us", "p50", "p99", "p99.9", "greatest"), rows),
            "The rate that was reached, on cores that the clients share with the compiler and the "
            "agents, and how many of them there were.",
            Table(("", "connections/s", "agents", "s to open"), reached),
            f"{taken:,} agents came and went in {seconds:.0f} s under the same load, every "
            f"{UPGRADE_EVERY}th of another version: none of {connections:,} connections failed.",
        ),
        (
            Target(f"failed of {total:,} connections, upgrades", 0, 0),
            Target("agents killed under load", CYCLES, taken, at_least=True),
            Target("slowest connect() of a swap", 100, slowest, " ms"),
        ),
    )


def _row(name: str, ordered: Sequence[int]) -> tuple[str, ...]:
    found = [percentile(ordered, share) for share in (0.5, 0.99, 0.999)]
    return (name, *map(microseconds, (*found, ordered[-1])))
