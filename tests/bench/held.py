"""How many connections to one VIP can be open at once.

A client address has so many ports, and a connection needs one that no other one to the same place
has. Behind a VIP that is a matter of each backend, behind DNAT of the one address that all
connections name.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tests.bench import stage
from tests.bench.course import (
    PASSING,
    SERVERS,
    VIP,
    Course,
    Rounds,
    Way,
    course,
)
from tests.bench.report import Section, Table, Target
from tests.bench.stage import Seat

ROUNDS = 3
CLIENTS = 3
EACH = 10_000
"""Connections of a client: less than the 20,000 descriptors that a process may have here."""
TCP = Path("/proc/net/tcp")
ESTABLISHED = "01"


@dataclass(frozen=True, slots=True)
class Held:
    """Connections that were open at once."""

    by_server: Sequence[int]
    """How many each server had, as the kernel counts its sockets."""
    seconds: float
    """From the first connect() to the last answer."""
    connect_us: float
    """Median time of connect()."""
    slab_bytes: int
    """What the kernel took for both ends of all of them."""

    @property
    def count(self) -> int:
        return sum(self.by_server)

    @property
    def rate(self) -> float:
        """Connections opened a second."""
        return self.count / self.seconds


def race(here: Course, rounds: int, clients: int, each: int) -> list[dict[str, Held]]:
    """Rounds of `hold`."""
    return list(here.race(rounds, lambda way: hold(here, way, clients, each)))


def hold(here: Course, way: Way, clients: int, each: int) -> Held:
    """Let `clients` at once open `each` connections, and count them while all are open.

    Errors: ValueError when a server has another number than the clients say.
    """
    seats = [Seat(frozenset(os.sched_getaffinity(0)), way.cgroup)] * clients
    before = slab_bytes()
    with way.opened(), here.traffic.holding(way.targets, each, seats) as runs:
        by_server = established(here.servers)
        after = slab_bytes()
    said = [sum(run.answers()[i] for run in runs) for i in range(len(here.servers))]
    if by_server != said:
        raise ValueError(f"the servers have {by_server} connections, the clients {said}")
    seconds = (max(run.ended_ns for run in runs) - min(run.started_ns for run in runs)) / 1e9
    connect_us = statistics.median(chain.from_iterable(run.call_ns for run in runs)) / 1000
    return Held(by_server, seconds, connect_us, after - before)


def established(servers: Sequence[str]) -> list[int]:
    """Open connections at each ADDRESS:PORT, by the sockets of this network namespace."""
    counts = dict.fromkeys(map(_as_in_proc, servers), 0)
    for line in TCP.read_text(encoding="ascii").splitlines()[1:]:
        _, local, _, state, *_ = line.split(maxsplit=4)
        if state == ESTABLISHED and local in counts:
            counts[local] += 1
    return list(counts.values())


def _as_in_proc(server: str) -> str:
    """`0101007F:1F90`: the address as a number of this machine, the port as a number."""
    endpoint = stage.endpoint(server)
    address = int.from_bytes(endpoint.address_packed, sys.byteorder)
    return f"{address:08X}:{endpoint.port:04X}"


def slab_bytes() -> int:
    """What the kernel's own objects take now. Source: /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo has no Slab")


# ---- what the rounds say ------------------------------------------------------------------------
def table(rounds: Rounds[Held]) -> Table:
    """What each way could hold."""
    rows = []
    for way in rounds[0]:
        held = [by_way[way] for by_way in rounds]
        first = held[0]
        rows.append(
            (
                way,
                f"{min(one.count for one in held):,}",
                " + ".join(f"{count:,}" for count in first.by_server),
                f"{statistics.median(one.seconds for one in held):.2f}",
                f"{statistics.median(one.rate for one in held):,.0f}",
                f"{statistics.median(one.connect_us for one in held):.1f}",
                f"{statistics.median(one.slab_bytes / one.count for one in held):,.0f}",
            )
        )
    headings = ("open at once", "at the servers", "s to open", "connections/s", "connect() p50, us")
    return Table(("", *headings, "bytes a connection"), rows)


def measure(folder: Path) -> Section:
    """Run it and say what was found."""
    cpus = sorted(os.sched_getaffinity(0))
    with course(folder, SERVERS[:2]) as here, here.serving(cpus):
        return report(race(here.without(PASSING), ROUNDS, CLIENTS, EACH))


def report(rounds: Rounds[Held]) -> Section:
    """What the rounds say."""
    return Section(
        "Held connections",
        (
            f"{CLIENTS} processes with one client address open {EACH:,} connections each, at "
            f"once, to two backends, and keep them. {len(rounds)} rounds; the fewest of them "
            "count, and the split is that of the first. Direct picks a backend at random. "
            "Connections through DNAT all name one address and port, so they end with the ports "
            "of the client address. Most of the time goes into the last ones, for which the kernel "
            "searches a free port. `bytes` is what the kernel's objects grew by for both ends, "
            "sockets and files.",
            table(rounds),
        ),
        (
            Target(
                "connections held by one VIP, two backends",
                CLIENTS * EACH,
                min(by_way[VIP].count for by_way in rounds),
                at_least=True,
            ),
        ),
    )
