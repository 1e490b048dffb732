"""What it costs to end the connections to dead backends, and how soon their programs know."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from lab.wait import until
from minuteman.dataplane.reap import Report
from minuteman.model import Tier, Transport
from minuteman.reaper import REAP
from minuteman.reconcile.kernelstate import PutBackend, Release, SwapVip, WriteRun
from tests.bench import crowd, stage
from tests.bench.course import SERVERS, TRANSPORTS, VIP_ADDRESS
from tests.bench.report import Section, Table, Target, spread
from tests.bench.stage import Plane, Seat
from tests.bench.traffic import Traffic

ROUNDS = 5
CLIENTS = 5
EACH = 10_000
"""Sockets of a client: less than the 20,000 descriptors that a process may have here."""
BACKENDS = SERVERS[:4]
DYING = 2
"""So many of them go."""
SEEN_SECONDS = 10.0
MOST_SECONDS = 2.0
"""A run with all these sockets shall not take longer."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """One run of the child."""

    report: Report
    seconds: float
    """From its start to its end."""
    cpu_seconds: float
    resident_mb: float
    """The most that it had."""
    seen_seconds: float = 0.0
    """From its start to the last abort that a client saw."""

    @property
    def rate(self) -> float:
        """Sockets ended in a second of all of it."""
        return self.report.ended / self.seconds


@dataclass(frozen=True, slots=True)
class Round:
    """Two runs with the same sockets."""

    idle: Reaped
    """While all their backends are members."""
    dead: Reaped
    """When some were gone."""


class Service:
    """A VIP with BACKENDS, some of which come and go."""

    def __init__(self, plane: Plane, transport: Transport) -> None:
        self._plane = plane
        self.vip = stage.frontend(VIP_ADDRESS, transport)
        self._puts = [
            PutBackend(i, 1, stage.endpoint(backend, transport), 1, Tier.UP)
            for i, backend in enumerate(BACKENDS, start=1)
        ]

    def have_all(self) -> None:
        """Every backend is a member. None is before."""
        ids = tuple(put.id for put in self._puts)
        run = WriteRun(0, ids)
        self._plane.apply([*self._puts, run, SwapVip(self.vip, 1, 0, (len(ids), 0, 0))])

    def have_survivors(self) -> None:
        """Some are gone."""
        ids = tuple(put.id for put in self._puts)
        base = len(ids)
        self._plane.apply(
            [
                WriteRun(base, ids[DYING:]),
                SwapVip(self.vip, 1, base, (base - DYING, 0, 0)),
                Release(((0, base),), ids[:DYING]),
            ]
        )

    def have_none(self) -> None:
        """What `have_survivors` left is gone, too."""
        ids = tuple(put.id for put in self._puts)
        base = len(ids)
        self._plane.apply(
            [SwapVip(self.vip, 1, 0, (0, 0, 0)), Release(((base, base - DYING),), ids[DYING:])]
        )


def run_child(plane: Plane) -> tuple[Reaped, int]:
    """One run, and when it began: `monotonic_ns`. Errors: CalledProcessError."""
    began_ns = time.monotonic_ns()
    child = subprocess.Popen([*REAP, "--pins", str(plane.where.folder)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout as said:
        text = said.read()
    _, status, usage = os.wait4(child.pid, 0)
    ended_ns = time.monotonic_ns()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)
    reaped = Reaped(
        msgspec.json.decode(text, type=Report),
        (ended_ns - began_ns) / 1e9,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 1024,
    )
    return reaped, began_ns


@contextmanager
def crowds(
    transport: Transport, clients: int, each: int, seat: Seat
) -> Iterator[Sequence[subprocess.Popen[str]]]:
    """Processes with connected sockets while the block runs."""
    address, _, port = VIP_ADDRESS.partition(":")
    with ExitStack() as stack:
        started = []
        for number in range(clients):
            words = (transport, f"127.0.3.{1 + number}", address, port, each)
            client = subprocess.Popen(
                [sys.executable, "-I", "-S", crowd.__file__, *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=seat.take,
            )
            stack.enter_context(client)
            stack.callback(client.kill)
            started.append(client)
        for client in started:
            if _hear(client) != "ready":
                raise OSError("the clients of the bench did not start")
        yield started


def seen(clients: Sequence[subprocess.Popen[str]], number: int) -> int:
    """When a client saw the last of so many aborts: `monotonic_ns`. Errors: LabError."""
    last_ns = 0

    def all_are() -> bool:
        nonlocal last_ns
        answers = [_ask(client) for client in clients]
        last_ns = max(moment for _, moment in answers)
        return sum(count for count, _ in answers) == number

    until(f"{number} aborts seen", all_are, SEEN_SECONDS)
    return last_ns


def _ask(client: subprocess.Popen[str]) -> tuple[int, int]:
    assert client.stdin is not None
    client.stdin.write("\n")
    client.stdin.flush()
    count, last_ns = _hear(client).split()
    return int(count), int(last_ns)


def _hear(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


def reap_once(plane: Plane, transport: Transport, clients: int, each: int) -> Round:
    """Connect `clients` with `each` sockets, and run the child before and after backends go."""
    service = Service(plane, transport)
    service.have_all()
    seat = Seat(frozenset(os.sched_getaffinity(0)), plane.served)
    with crowds(transport, clients, each, seat) as started:
        idle, _ = run_child(plane)
        service.have_survivors()
        dead, began_ns = run_child(plane)
        last_ns = seen(started, dead.report.ended)
    service.have_none()
    return Round(idle, replace(dead, seen_seconds=(last_ns - began_ns) / 1e9))


def race(
    traffic: Traffic, plane: Plane, rounds: int, clients: int, each: int
) -> Mapping[Transport, Sequence[Round]]:
    """Rounds with TCP, and with UDP, whose backends need not even listen."""
    cpus = frozenset(os.sched_getaffinity(0))
    with traffic.serving(BACKENDS, [Seat(cpus, patient=True)] * len(BACKENDS)):
        return {
            transport: [reap_once(plane, transport, clients, each) for _ in range(rounds)]
            for transport in TRANSPORTS
        }


# ---- what the rounds say ------------------------------------------------------------------------
def table(rounds: Mapping[Transport, Sequence[Round]]) -> Table:
    """What runs cost with dead backends and without."""
    rows = []
    for transport, found in rounds.items():
        for name, runs in (
            (f"{transport}, nothing is dead", [one.idle for one in found]),
            (f"{transport}, {DYING} of {len(BACKENDS)} backends are", [one.dead for one in found]),
        ):
            ended = statistics.median(run.report.ended for run in runs)
            rows.append(
                (
                    name,
                    f"{statistics.median(run.report.checked for run in runs):,.0f}",
                    f"{ended:,.0f}",
                    spread(run.seconds for run in runs),
                    spread(run.cpu_seconds for run in runs),
                    spread(run.seen_seconds for run in runs) if ended else "-",
                    f"{statistics.median(run.rate for run in runs):,.0f}" if ended else "-",
                    f"{max(run.resident_mb for run in runs):.0f}",
                )
            )
    headings = ("sockets", "ended", "s", "s of a core", "s until the last is told", "ended/s", "MB")
    return Table(("", *headings), rows)


def measure(folder: Path) -> Section:
    """Run it and say what was found."""
    traffic = Traffic(folder)
    stage.forget_closed_connections()
    with stage.cgroup("served") as served, stage.dataplane(served, [], folder) as plane:
        return report(race(traffic, plane, ROUNDS, CLIENTS, EACH))


def report(rounds: Mapping[Transport, Sequence[Round]]) -> Section:
    """What the rounds say."""
    first = next(iter(rounds.values()))
    return Section(
        "Dead backends",
        (
            f"Processes hold connections to a VIP with {len(BACKENDS)} backends, of which {DYING} "
            f"go. {len(first)} rounds for either protocol, each with new connections and two runs "
            "of the child that ends what is connected to dead backends, one before they go and "
            "one after. Its start, a fresh Python, is in all of it. What a process is told of is "
            "`ECONNABORTED`.",
            table(rounds),
        ),
        tuple(
            Target(
                f"end {one.report.ended:,} of {one.report.checked:,} {transport} sockets, slowest",
                MOST_SECONDS,
                max(found.dead.seen_seconds for found in rounds[transport]),
                " s",
            )
            for transport, one in ((name, found[0].dead) for name, found in rounds.items())
        ),
    )
