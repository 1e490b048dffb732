"""What a datagram to a VIP costs, beside a direct one and nftables' DNAT.

One socket asks one server again and again and waits for each answer. Unconnected, it names the
server each time and must find the answer to come from there: both calls meet a program. Connected,
neither does. HAProxy does not carry UDP.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
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
    over_direct,
    rate,
    rates_table,
)
from tests.bench.programs import Case, RunTime
from tests.bench.report import Section, Table, Target, microseconds, percentile
from tests.bench.traffic import Kind

ROUNDS = 15
ALONE_REQUESTS = 6_000
CROWD_REQUESTS = 3_000
CROWD = 4
"""Clients on each core, when every core is busy."""
RATE_FLOORS = {DIRECT: 0.95, NFTABLES: 1}
"""What the rate of the VIP is to be, over that of each of them."""
KINDS: Mapping[str, Kind] = {"unconnected": "ask", "connected": "ask-connected"}

PROGRAMS = ("sendmsg4", "recvmsg4")
"""What a datagram of an unconnected socket meets, and its answer."""

ByKind = Mapping[str, Rounds[Load]]


def race(
    here: Course, rounds: int, requests: int, cpus: Sequence[int], crowd: int = 1
) -> dict[str, list[dict[str, Load]]]:
    """For both kinds of socket, rounds of `crowd` clients on each of `cpus`."""

    def rounds_of(kind: Kind) -> list[dict[str, Load]]:
        return list(here.race(rounds, lambda way: here.load(way, requests, cpus, crowd, kind)))

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
def times_table(found: ByKind) -> Table:
    """Times of one request after the other."""
    rows = []
    for kind, rounds in found.items():
        for way in rounds[0]:
            load = all_of(rounds, way)
            sending, answer = load.call_ns, load.answer_ns
            shares = [(sending, 0.5), (answer, 0.5), (answer, 0.99)]
            times = [microseconds(percentile(ordered, share)) for ordered, share in shares]
            rows.append((f"{kind}, {way}", *times, over_direct(rounds, answer_p50, way)))
    return Table(("us", "send p50", "answer p50", "p99", "answer p50 / direct"), rows)


def answer_p50(load: Load) -> float:
    """Median time to the answer, in ns."""
    return statistics.median(load.answer_ns)


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
    """Run everything and say what was found."""
    cpus = sorted(os.sched_getaffinity(0))
    with course(folder) as here:
        with here.serving(cpus[:1]):
            alone = race(here, ROUNDS, ALONE_REQUESTS, cpus[:1])
            times = run_times(here, ROUNDS, ALONE_REQUESTS, cpus[0])
        with here.serving(cpus):
            crowd = race(here, ROUNDS, CROWD_REQUESTS, cpus, CROWD)
    return report(alone, crowd, times, len(cpus))


def report(
    alone: ByKind, crowd: ByKind, times: Rounds[Mapping[str, RunTime]], cores: int
) -> Section:
    """What the rounds say of one client, of every core busy, and of the programs."""
    return Section(
        "UDP",
        (
            "A request and its answer, one after the other, on one core together with the "
            "servers; unconnected, by sendto() and recvfrom(), and connected, by send() and "
            f"recv(). {ROUNDS} rounds of {ALONE_REQUESTS:,} requests each way. Each client asks "
            "one server. HAProxy has no UDP.",
            times_table(alone),
            f"Every core busy: {CROWD} such clients and the servers on each of {cores} cores, "
            f"{ROUNDS} rounds of {CROWD_REQUESTS:,} requests for each client, unconnected:",
            rates_table(crowd["unconnected"], "requests"),
            "Connected:",
            rates_table(crowd["connected"], "requests"),
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
            for kind, rounds in crowd.items()
            for base, bound in RATE_FLOORS.items()
        ],
    )
