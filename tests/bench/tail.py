"""What a slow backend does to the clients of a VIP, beside a choice at random.

Servers that attend to one connection at a time, like a task with one worker; one of them takes ten
times as long. Who chooses at random sends it as much as every other, and waits there.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.bench.course import (
    DIRECT,
    PASSING,
    SERVERS,
    VIP,
    Course,
    Load,
    Rounds,
    all_of,
    course,
    median_ratio,
    over_direct,
)
from tests.bench.report import Section, Table, Target, percentile
from tests.bench.stage import Seat

QUICK_US, SLOW_US = 1_000, 10_000
"""How long a connection is attended to."""
SLOW = 0
"""Place of the slow one among the servers."""
CROWD = 6
"""Clients on each core."""
ROUNDS = 15
CONNECTIONS = 100
"""Of one client in a round."""


def race(here: Course, rounds: int, connections: int, cpus: Sequence[int]) -> list[dict[str, Load]]:
    """Rounds of CROWD clients on each of `cpus`, which connect again once they are answered."""
    servers = Seat(frozenset(cpus), here.ways[DIRECT].cgroup)
    service_us = [SLOW_US if i == SLOW else QUICK_US for i in range(len(here.servers))]
    with here.traffic.attending(here.servers, service_us, servers):
        return list(here.race(rounds, lambda way: here.load(way, connections, cpus, CROWD)))


# ---- what the rounds say ------------------------------------------------------------------------
def answer_p99(load: Load) -> float:
    """In ns."""
    return percentile(load.answer_ns, 0.99)


def slow_percent(load: Load) -> float:
    """How much of the connections the slow server got."""
    return 100 * load.servers[SLOW] / load.servers.total()


def table(rounds: Rounds[Load]) -> Table:
    """Times to the answer, and who gave it."""
    rows = []
    for way in rounds[0]:
        load = all_of(rounds, way)
        answer = load.answer_ns
        rows.append(
            (
                way,
                *(f"{percentile(answer, share) / 1e6:.1f}" for share in (0.5, 0.9, 0.99)),
                over_direct(rounds, answer_p99, way),
                f"{statistics.median(by_way[way].rate for by_way in rounds):,.0f}",
                f"{slow_percent(load):.1f}",
            )
        )
    headings = ("p50", "p90", "p99", "p99 / direct", "connections/s", "% to the slow one")
    return Table(("ms to the answer", *headings), rows)


def measure(folder: Path) -> Section:
    """Run it and say what was found."""
    cpus = sorted(os.sched_getaffinity(0))
    with course(folder, proxy_cpus=cpus) as here:
        return report(race(here.without(PASSING), ROUNDS, CONNECTIONS, cpus))


def report(rounds: Rounds[Load]) -> Section:
    """What the rounds say."""
    fair = 100 / len(SERVERS)
    clients = len(rounds[0][VIP].runs)
    return Section(
        "One slow backend",
        (
            f"{len(SERVERS)} servers that attend to one connection at a time, for "
            f"{QUICK_US / 1000:g} ms each, one of them for {SLOW_US / 1000:g} ms, and {clients} "
            f"clients that connect again once they are answered. {len(rounds)} rounds of "
            f"{CONNECTIONS} connections for each client. Direct and nftables choose at random, so "
            f"the slow one gets its share, {fair:g} %; HAProxy's `balance random` compares two "
            "servers, as the VIP does.",
            table(rounds),
        ),
        (
            Target(
                "one slow backend, p99, VIP / at random",
                1,
                median_ratio(rounds, answer_p99, VIP, DIRECT),
            ),
            Target(
                "one slow backend, its share through the VIP",
                fair / 2,
                slow_percent(all_of(rounds, VIP)),
                " %",
            ),
        ),
    )
