"""What connect() to a VIP costs, beside a direct connection, nftables' DNAT and HAProxy.

Every way leads to the same ten servers on loopback. There the whole handshake happens inside
connect(), and no network hides what is added to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.bench.course import (
    DIRECT,
    HAPROXY,
    NFTABLES,
    VIP,
    Course,
    Load,
    Rounds,
    all_of,
    call_p50,
    course,
    median_ratio,
    over_direct,
    rate,
    rates_table,
)
from tests.bench.report import Section, Table, Target, microseconds, percentile

ALONE_ROUNDS = 15
ALONE_CONNECTIONS = 6_000
CROWD_ROUNDS = 25
CROWD_CONNECTIONS = 1_500
CROWD = 4
"""Clients on each core, when every core is busy."""
RATE_FLOORS = {DIRECT: 0.95, NFTABLES: 1, HAPROXY: 2}
"""What the rate of the VIP is to be, over that of each of them."""


def race(
    here: Course, count: int, connections: int, cpus: Sequence[int], crowd: int = 1
) -> list[dict[str, Load]]:
    """Rounds of `crowd` clients on each of `cpus`, each with so many connections.

    Errors: ValueError when a way does not lead to every server.
    """
    rounds = list(here.race(count, lambda way: here.load(way, connections, cpus, crowd)))
    for name in here.ways:
        if any(len(by_way[name].servers) < len(here.servers) for by_way in rounds):
            raise ValueError(f"{name}: a round did not reach all of {len(here.servers)} servers")
    return rounds


# ---- what the rounds say ------------------------------------------------------------------------
def times_table(rounds: Rounds[Load]) -> Table:
    """Times of one connection after the other."""
    rows = []
    for way in rounds[0]:
        load = all_of(rounds, way)
        connect, answer = load.call_ns, load.answer_ns
        shares = [(connect, 0.5), (connect, 0.9), (connect, 0.99), (answer, 0.5), (answer, 0.99)]
        times = [microseconds(percentile(ordered, share)) for ordered, share in shares]
        rows.append([way, *times, over_direct(rounds, call_p50, way)])
    headings = ["connect() p50", "p90", "p99", "answer p50", "p99", "connect() p50 / direct"]
    return Table(["us", *headings], rows)


def measure(folder: Path) -> Section:
    """Run both and say what was found."""
    cpus = sorted(os.sched_getaffinity(0))
    first = cpus[:1]
    with course(folder, proxy_cpus=first) as here, here.serving(first):
        alone = race(here, ALONE_ROUNDS, ALONE_CONNECTIONS, first)
    with course(folder, proxy_cpus=cpus) as here, here.serving(cpus):
        crowd = race(here, CROWD_ROUNDS, CROWD_CONNECTIONS, cpus, CROWD)
    return report(alone, crowd, len(cpus))


def report(alone: Rounds[Load], crowd: Rounds[Load], cores: int) -> Section:
    """What the rounds say of one client, and of every core busy."""
    return Section(
        "Connections",
        (
            f"One client, {len(alone)} rounds of {ALONE_CONNECTIONS:,} connections each way, one "
            "after the other, on one core together with the servers: connect, request, answer, "
            "close. `answer` counts from the start of connect(). A connection to HAProxy is "
            "made before HAProxy makes its own, so there only the answer tells. DNAT brings "
            "connection tracking along; its rule is there only while it has its turn.",
            times_table(alone),
            f"Every core busy: {CROWD} such clients and the servers on each of {cores} cores, "
            f"{len(crowd)} rounds of {CROWD_CONNECTIONS:,} connections for each client. `CPU` is "
            "the time of clients, servers and HAProxy on the cores, as their cgroups count it.",
            rates_table(crowd, "connections"),
        ),
        (
            Target("connect() p50, VIP / direct", 1.10, median_ratio(alone, call_p50, VIP, DIRECT)),
            *(
                Target(
                    f"rate, VIP / {base}",
                    bound,
                    median_ratio(crowd, rate, VIP, base),
                    at_least=True,
                )
                for base, bound in RATE_FLOORS.items()
            ),
        ),
    )
