"""What a datagram to a VIP costs, beside a direct one and nftables' DNAT.

One socket asks one server again and again and waits for each answer. Unconnected, it names the
server each time and must find the answer to come from there: both calls meet a program. Connected,
neither does. HAProxy does not carry UDP.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path

from tests.bench import programs
from tests.bench.course import (
    DIRECT,
    NFTABLES,
    PASSING,
    VIP,
    Course,
    Load,
    Rounds,
    all_of,
    course,
    median_ratio,
    rate,
    rates_table,
)
from tests.bench.programs import Case, RunTime
from tests.bench.report import Section, Table, Target, microseconds, percentile
from tests.bench.traffic import Kind

ROUNDS = 30
REQUESTS = 5_000
RATE_FLOORS = {DIRECT: 0.95, NFTABLES: 1}
"""What the rate of the VIP is to be, over that of each of them."""
KINDS: Mapping[str, Kind] = {"unconnected": "ask", "connected": "ask-connected"}

PROGRAMS = ("sendmsg4", "recvmsg4")
"""What a datagram of an unconnected socket meets, and its answer."""

ByKind = Mapping[str, Rounds[Load]]


def race(here: Course, rounds: int, requests: int, cpu: int) -> dict[str, list[dict[str, Load]]]:
    """For both kinds of socket, rounds of one client on `cpu` with so many requests."""

    def rounds_of(kind: Kind) -> list[dict[str, Load]]:
        return list(here.race(rounds, lambda way: here.load(way, requests, [cpu], kind=kind)))

    return {name: rounds_of(kind) for name, kind in KINDS.items()}


def run_times(here: Course, rounds: int, requests: int, cpu: int) -> Rounds[Mapping[str, RunTime]]:
    """How long each program ran for the requests of one unconnected socket, by way."""
    with programs.observed(here.plane) as observed, programs.counting():
        return [
            {
                way: programs.run_case(
                    here.traffic,
                    Case(here.ways[way].targets[0], observed),
                    requests,
                    cpu,
                    "ask",
                )
                for way in (VIP, PASSING)
            }
            for _ in range(rounds)
        ]


# ---- what the rounds say ------------------------------------------------------------------------
def times_table(rounds_by_kind: ByKind) -> Table:
    """Times of one request after the other."""
    rows = []
    for kind, rounds in rounds_by_kind.items():
        for way in rounds[0]:
            load = all_of(rounds, way)
            sending, answer = load.call_ns, load.answer_ns
            shares = [(sending, 0.5), (sending, 0.99), (answer, 0.5), (answer, 0.99)]
            times = [microseconds(percentile(ordered, share)) for ordered, share in shares]
            rows.append((f"{kind}, {way}", *times))
    return Table(("us", "send p50", "p99", "answer p50", "p99"), rows)


def programs_table(rounds: Rounds[Mapping[str, RunTime]]) -> Table:
    """Mean run times of the programs of datagrams."""
    rows = []
    for way in (VIP, PASSING):
        means = (
            statistics.median(by_way[way][name].mean_ns for by_way in rounds) for name in PROGRAMS
        )
        rows.append((way, *(f"{mean:.0f}" for mean in means)))
    return Table(("ns", *PROGRAMS), rows)


def measure(folder: Path) -> Section:
    """Run it and say what was found."""
    cpu = min(os.sched_getaffinity(0))
    with course(folder) as here, here.serving([cpu]):
        rounds = race(here, ROUNDS, REQUESTS, cpu)
        return report(rounds, run_times(here, ROUNDS, REQUESTS, cpu))


def report(rounds_by_kind: ByKind, times: Rounds[Mapping[str, RunTime]]) -> Section:
    """What the rounds say, and the programs."""
    return Section(
        "UDP",
        (
            "A client that asks one server again and again and waits for each answer, on one core "
            "together with the servers; unconnected by sendto() and recvfrom(), connected by "
            f"send() and recv(). {ROUNDS} rounds of {REQUESTS:,} requests each way. "
            "HAProxy has no UDP.",
            times_table(rounds_by_kind),
            "Unconnected:",
            rates_table(rounds_by_kind["unconnected"], "requests"),
            "Connected:",
            rates_table(rounds_by_kind["connected"], "requests"),
            "Mean run time of the programs for an unconnected socket, by the kernel's own count.",
            programs_table(times),
        ),
        [
            Target(
                f"UDP {kind}, rate, VIP / {base}",
                bound,
                median_ratio(rounds, rate, VIP, base),
                at_least=True,
            )
            for kind, rounds in rounds_by_kind.items()
            for base, bound in RATE_FLOORS.items()
        ],
    )
