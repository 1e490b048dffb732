"""What one connection carries: nothing of ours is on the way of a packet."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from tests.bench import stage
from tests.bench.course import (
    DIRECT,
    PASSING,
    VIP,
    Course,
    Rounds,
    Stream,
    course,
    median_ratio,
    over_direct,
)
from tests.bench.report import Section, Table, Target

ROUNDS = 40
SECONDS = 0.15
CONGESTION_CONTROL = "reno"
"""Every kernel has it, and it does not model the path: bbr is now and then very wrong about it."""


def race(here: Course, rounds: int, seconds: float, cpu: int) -> list[dict[str, Stream]]:
    """Rounds of one client on `cpu` that sends for so long."""
    return list(here.race(rounds, lambda way: here.stream(way, seconds, cpu)))


def throughput(stream: Stream) -> float:
    """In bytes a second."""
    return stream.throughput


def cpu_per_gb(stream: Stream) -> float:
    """Processor seconds for 10^9 bytes."""
    return stream.cpu_per_gb


def table(rounds: Rounds[Stream]) -> Table:
    """Throughput by way, and what it costs."""
    rows = [
        (
            way,
            f"{statistics.median(by_way[way].throughput for by_way in rounds) / 1e9:.2f}",
            over_direct(rounds, throughput, way),
            f"{1000 * statistics.median(by_way[way].cpu_per_gb for by_way in rounds):.0f}",
            over_direct(rounds, cpu_per_gb, way),
        )
        for way in rounds[0]
    ]
    headings = ("GB/s", "throughput / direct", "CPU ms a GB", "CPU / direct")
    return Table(("", *headings), rows)


def measure(folder: Path) -> Section:
    """Run it and say what was found."""
    cpus = sorted(os.sched_getaffinity(0))[:1]
    with (
        stage.sysctl("ipv4/tcp_congestion_control", CONGESTION_CONTROL),
        course(folder, proxy_cpus=cpus) as here,
        here.serving(cpus),
    ):
        return report(race(here.without(PASSING), ROUNDS, SECONDS, cpus[0]))


def report(rounds: Rounds[Stream]) -> Section:
    """What the rounds say."""
    return Section(
        "Bulk",
        (
            f"One connection that sends for {SECONDS} s, {len(rounds)} rounds, on one core "
            f"together with the servers, congestion control {CONGESTION_CONTROL}. It counts until "
            "the server has received everything. `CPU` is the time of both ends and of HAProxy on "
            "the core.",
            table(rounds),
        ),
        (
            Target(
                "throughput, VIP / direct",
                0.98,
                median_ratio(rounds, throughput, VIP, DIRECT),
                at_least=True,
            ),
        ),
    )
