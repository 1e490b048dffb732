"""How large it may get: one VIP of 16,384 backends, and 100,000 backends behind 10,000 VIPs."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from minuteman.model import Backend, Endpoint, Frontend, Tier, Vip, VipKey
from minuteman.reconcile.plan import Planner
from tests.bench import programs, stage
from tests.bench.report import Section, Table, Target, spread
from tests.bench.stage import Plane, Seat
from tests.bench.traffic import Traffic

ROUNDS = 15
CONNECTIONS = 5_000
PORT = 8080
EVERYWHERE = f"0.0.0.0:{PORT}"
"""One server is every backend that connections go to: 127.0.0.0/8 is all of this host."""

BIG, SMALL = 16_384, 3
"""Backends of the two VIPs that are compared."""
BIG_VIP, SMALL_VIP = IPv4Address("10.64.0.1"), IPv4Address("10.64.0.2")
FIRST_BACKEND = IPv4Address("127.1.0.0")

VIPS, EACH = 10_000, 10
FILLS = 5
FIRST_VIP = IPv4Address("10.65.0.0")
FIRST_HOST = IPv4Address("10.20.0.0")

Desired = Mapping[VipKey, Vip]


def vip(address: IPv4Address, endpoints: Sequence[Endpoint]) -> Vip:
    """A literal VIP with a backend of weight 1 at each of its endpoints, which are sorted."""
    key = VipKey(address, 80, "tcp")
    backends = tuple(
        Backend(endpoint, 1, Tier.UP, "bench", "framework", str(endpoint)) for endpoint in endpoints
    )
    return Vip(key, (Frontend(address, 80, "tcp"),), backends)


def in_a_row(first: IPv4Address, count: int, port: int = PORT) -> list[Endpoint]:
    """An endpoint at each of `count` addresses from `first` on."""
    return [Endpoint((first + i).packed, port, "tcp") for i in range(count)]


def many(vips: int, each: int) -> Desired:
    """So many VIPs with so many backends each; no two share one."""
    wanted = (
        vip(FIRST_VIP + number, in_a_row(FIRST_HOST + number * each, each))
        for number in range(vips)
    )
    return {one.key: one for one in wanted}


@dataclass(frozen=True, slots=True)
class Step:
    """What a change of the table took."""

    plan_seconds: float
    write_seconds: float
    """Until the kernel had acknowledged everything."""
    ops: int


@dataclass(frozen=True, slots=True)
class Desk:
    """Brings the kernel to a desired table, as the agent's loop does."""

    plane: Plane
    planner: Planner = field(default_factory=Planner)

    def settle(self, desired: Desired, dirty: Collection[VipKey] | None = None) -> Step:
        """Plan and apply; `dirty` as of `Planner.plan`."""
        started = time.perf_counter()
        ops = self.planner.plan(desired, self.plane.state, dirty).ops
        planned = time.perf_counter()
        self.plane.apply(ops)
        return Step(planned - started, time.perf_counter() - planned, len(ops))


@contextmanager
def desk(folder: Path) -> Iterator[Desk]:
    """Empty maps of the usual size on a cgroup of their own, while the block runs."""
    with stage.cgroup("size") as served, stage.dataplane(served, [], folder) as plane:
        yield Desk(plane)


# ---- many VIPs -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Full:
    """What it takes to fill empty maps, and to empty them, for each time."""

    fills: Sequence[Step]
    clears: Sequence[Step]


def fill(here: Desk, vips: int, each: int, times: int) -> Full:
    """Fill the maps and empty them, so many times."""
    wanted = many(vips, each)
    steps = [here.settle(desired) for _ in range(times) for desired in (wanted, {})]
    return Full(steps[::2], steps[1::2])


# ---- one VIP of many backends --------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Large:
    """What one VIP of many backends costs, beside one of SMALL."""

    write: Step
    changes: Sequence[Step]
    """One backend of it was replaced."""
    small_ns: Sequence[float]
    """Mean run time of connect4 to the small one, for each round."""
    large_ns: Sequence[float]
    reached: int
    """Backends of it that connections went to."""


def enlarge(here: Desk, traffic: Traffic, big: int, rounds: int, connections: int) -> Large:
    """Write a VIP of `big` backends, change it, and connect to it and to a small one."""
    few = vip(SMALL_VIP, in_a_row(FIRST_BACKEND, SMALL))
    endpoints = in_a_row(FIRST_BACKEND, big + rounds)
    versions = [vip(BIG_VIP, endpoints[i : i + big]) for i in range(rounds + 1)]
    here.settle({few.key: few})
    write, *changes = (here.settle({few.key: few, v.key: v}, [v.key]) for v in versions)
    small_ns, large_ns = compare(here, traffic, rounds, connections)
    counters = here.plane.kernel.counters().by_vip_backend
    reached = sum(
        frontend.address == BIG_VIP and counted.successes > 0
        for (frontend, _), counted in counters.items()
    )
    return Large(write, changes, small_ns, large_ns, reached)


def compare(
    here: Desk, traffic: Traffic, rounds: int, connections: int
) -> tuple[list[float], list[float]]:
    """Mean run times of connect4 to the small VIP and to the large one, for each round."""
    cpu = min(os.sched_getaffinity(0))
    found: dict[IPv4Address, list[float]] = {SMALL_VIP: [], BIG_VIP: []}
    with (
        traffic.serving([EVERYWHERE], [Seat(frozenset([cpu]), patient=True)]),
        programs.observed(here.plane) as observed,
        programs.counting(),
    ):
        for number in range(rounds):
            for address in list(found)[:: 1 if number % 2 else -1]:
                case = programs.Case(f"{address}:80", observed)
                times = programs.run_case(traffic, case, connections, cpu)
                found[address].append(times["connect4"].mean_ns)
    return found[SMALL_VIP], found[BIG_VIP]


# ---- the bench -----------------------------------------------------------------------------------
def measure(folder: Path) -> Section:
    """Run both and say what was found."""
    traffic = Traffic(folder)
    stage.forget_closed_connections()
    with desk(folder) as here:
        full = fill(here, VIPS, EACH, FILLS)
        large = enlarge(here, traffic, BIG, ROUNDS, CONNECTIONS)
    return report(full, large)


def _milliseconds(seconds: Sequence[float]) -> str:
    """`median (least-greatest)`."""
    median, least, greatest = (1000 * f(seconds) for f in (statistics.median, min, max))
    return f"{median:.1f} ({least:.1f}-{greatest:.1f})"


def _row(what: str, steps: Sequence[Step]) -> tuple[str, ...]:
    plans = _milliseconds([step.plan_seconds for step in steps])
    return what, f"{steps[0].ops:,}", plans, _milliseconds([step.write_seconds for step in steps])


def report(full: Full, large: Large) -> Section:
    """Tables of what was found."""
    ratio = [one / other for one, other in zip(large.large_ns, large.small_ns, strict=True)]
    total = VIPS * EACH
    return Section(
        "Size",
        (
            f"{FILLS} times {VIPS:,} VIPs of {EACH} backends each are written into empty maps and "
            f"taken away; a VIP of {BIG:,} backends is written, and {len(large.changes)} times one "
            "of them is replaced, by a new run and one swap. The plan is made in memory; what is "
            "written counts until the kernel has acknowledged it.",
            Table(
                ("ms, median (least-greatest)", "operations", "plan", "write"),
                (
                    _row(f"{total:,} backends", full.fills),
                    _row("take them away", full.clears),
                    _row(f"one VIP of {BIG:,} backends", [large.write]),
                    _row("replace one of its backends", large.changes),
                ),
            ),
            f"Mean run time of connect4 to that VIP and to one of {SMALL} backends, by the "
            f"kernel's own count: {ROUNDS} rounds of {CONNECTIONS:,} connections. They reached "
            f"{large.reached:,} different backends.",
            Table(
                ("", "connect4, ns", f"connect4 / {SMALL} backends"),
                (
                    (f"{SMALL} backends", f"{statistics.median(large.small_ns):.0f}", "1"),
                    (
                        f"{BIG:,} backends",
                        f"{statistics.median(large.large_ns):.0f}",
                        spread(ratio),
                    ),
                ),
            ),
        ),
        (
            Target(
                f"{total:,} backends written",
                1,
                statistics.median(step.write_seconds for step in full.fills),
                " s",
            ),
        ),
    )
