"""What it costs that somebody listens to events, beside nobody doing so.

The same programs and the same clients have their turn with and without a listener: a reader as the
agent starts it, whose lines go nowhere.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minuteman.dataplane.events import READ_SECONDS
from tests.bench import stage
from tests.bench.course import SERVERS
from tests.bench.programs import RunTime, counting, observed
from tests.bench.report import Section, Table, Target, microseconds, percentile, spread
from tests.bench.stage import Plane, Seat
from tests.bench.traffic import Run, Traffic

QUIET, HEARD = "nobody listens", "somebody listens"
VIP = "10.64.0.0:80"
ROUNDS = 25
CONNECTIONS = 4_000
"""Of one client in a round."""
EVENTS_EACH = 3
"""What is told of a connection: chosen, connected, closed."""
LISTEN_SECONDS = 600
COMMAND = (sys.executable, "-P", "-m", "minuteman.dataplane.events")


@dataclass(frozen=True, slots=True)
class Turn:
    """One round of one of the two."""

    run: Run
    connect4: RunTime
    reader_seconds: float
    """Its time on the cores, until all of it was read."""


Rounds = Sequence[dict[str, Turn]]


@contextmanager
def reading(plane: Plane, reader: Path) -> Iterator[None]:
    """A reader in the cgroup `reader` while the block runs."""
    seat = Seat(frozenset(os.sched_getaffinity(0)), reader)
    command = [*COMMAND, "--pins", str(plane.where.folder)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=seat.take) as child,
        subprocess.Popen(["cat"], stdin=child.stdout, stdout=subprocess.DEVNULL) as drain,
    ):
        try:
            yield
        finally:
            child.terminate()
            child.wait()
            drain.wait()


def race(
    traffic: Traffic, plane: Plane, reader: Path, count: int, connections: int, cpu: int
) -> list[dict[str, Turn]]:
    """Rounds of a client with so many connections, without and with a listener in turn."""
    seat = Seat(frozenset([cpu]), plane.served)
    with observed(plane) as found, reading(plane, reader), counting():

        def turn(name: str) -> Turn:
            until = time.monotonic_ns() + LISTEN_SECONDS * 10**9
            plane.kernel.listen_until(until if name == HEARD else 0)
            program, seconds = found.programs["connect4"], stage.cpu_seconds(reader)
            before = RunTime.read(program)
            (run,) = traffic.load([VIP], connections, [seat])
            ran = RunTime.read(program) - before
            time.sleep(3 * READ_SECONDS)  # the rest is read
            return Turn(run, ran, stage.cpu_seconds(reader) - seconds)

        names = (QUIET, HEARD)
        return [{n: turn(n) for n in (names if i % 2 else names[::-1])} for i in range(count)]


def measure(folder: Path) -> Section:
    """Run it and say what was found."""
    cpu = min(os.sched_getaffinity(0))
    traffic = Traffic(folder)
    stage.forget_closed_connections()
    with (
        traffic.serving(SERVERS, [Seat(frozenset([cpu]), patient=True)]),
        stand(folder) as (plane, reader),
    ):
        return report(race(traffic, plane, reader, ROUNDS, CONNECTIONS, cpu))


@contextmanager
def stand(folder: Path) -> Iterator[tuple[Plane, Path]]:
    """A dataplane with one VIP, and a cgroup for the reader, while the block runs."""
    ops = stage.filling([(stage.frontend(VIP), [stage.endpoint(text) for text in SERVERS])])
    with (
        stage.cgroup("heard") as served,
        stage.cgroup("reader") as reader,
        stage.dataplane(served, ops, folder) as plane,
    ):
        yield plane, reader


def call_p50(turn: Turn) -> float:
    """Of connect(), in ns."""
    return percentile(sorted(turn.run.call_ns), 0.5)


def report(rounds: Rounds) -> Section:
    """What the rounds say."""
    rates = [by_name[HEARD].run.rate / by_name[QUIET].run.rate for by_name in rounds]
    calls = [call_p50(by_name[HEARD]) / call_p50(by_name[QUIET]) for by_name in rounds]
    rows = []
    for name in (QUIET, HEARD):
        turns = [by_name[name] for by_name in rounds]
        means = sorted(turn.connect4.mean_ns for turn in turns)
        call_ns = sorted(ns for turn in turns for ns in turn.run.call_ns)
        rows.append(
            (
                name,
                f"{statistics.median(means):.0f}",
                f"{means[0]:.0f}-{means[-1]:.0f}",
                *(microseconds(percentile(call_ns, share)) for share in (0.5, 0.9, 0.99)),
                f"{statistics.median(turn.run.rate for turn in turns):,.0f}",
                spread(calls) if name == HEARD else "1",
                spread(rates) if name == HEARD else "1",
            )
        )
    connections = len(rounds[0][HEARD].run.call_ns)
    reader_us = statistics.median(
        1e6 * (by_name[HEARD].reader_seconds - by_name[QUIET].reader_seconds) for by_name in rounds
    )
    each_us = reader_us / (connections * EVENTS_EACH)
    headings = ("connect4, ns", "least-greatest", "connect() p50, us", "p90", "p99")
    return Section(
        "Events",
        (
            f"One client on one core together with the servers, {len(rounds)} rounds of "
            f"{connections:,} connections each, without and with a listener in turn. The "
            "reader may run on any core; its lines go nowhere. It takes "
            f"{each_us:.1f} us for an event.",
            Table(("", *headings, "connections/s", "p50 / quiet", "rate / quiet"), rows),
        ),
        (
            Target("connect() p50, somebody listens / nobody", 1.10, statistics.median(calls)),
            Target(
                "rate, somebody listens / nobody", 0.90, statistics.median(rates), at_least=True
            ),
            Target("30,000 events a second, of a core", 1, 0.03 * each_us),
        ),
    )
