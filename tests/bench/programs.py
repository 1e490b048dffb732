"""Mean run time of the programs, as the kernel counts it.

The kernel counts while somebody holds a descriptor of BPF_ENABLE_STATS: it ends with this process,
however that ends, while the sysctl kernel.bpf_stats_enabled would stay.
"""

from __future__ import annotations

import ctypes
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from minuteman.dataplane import bpf
from minuteman.model import Endpoint, Frontend
from minuteman.reconcile.kernelstate import Limits
from tests.bench import stage
from tests.bench.course import SERVERS
from tests.bench.report import Section, Table, Target, spread
from tests.bench.stage import Seat
from tests.bench.traffic import Kind, Traffic

FIRST_VIP = IPv4Address("10.64.0.0")
VIPS = 65_536
SLOTS_EACH = 4
LIMITS = Limits(vips=VIPS, slots=VIPS * SLOTS_EACH, backends=VIPS * SLOTS_EACH + 1)
ROUNDS = 15
CONNECTIONS = 5_000

STATS_RUN_TIME = 0
"""enum bpf_stats_type."""

EMPTY, NEITHER = "no VIP, empty maps", "no VIP, full maps"
ALONE, HOT, RANDOM = "the only VIP", "one VIP, full maps", "random VIPs, full maps"

Listed = tuple[Frontend, Sequence[Endpoint]]
"""A VIP and where its backends are."""


@contextmanager
def counting() -> Iterator[None]:
    """The kernel counts the run time of every program while the block runs."""
    fd = ctypes.CDLL("libbpf.so.1", use_errno=True).bpf_enable_stats(STATS_RUN_TIME)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "bpf_enable_stats")
    try:
        yield
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class RunTime:
    """How long a program ran, and how often."""

    ns: int
    runs: int

    @property
    def mean_ns(self) -> float:
        """Of one run."""
        return self.ns / self.runs

    def __add__(self, other: RunTime) -> RunTime:
        return RunTime(self.ns + other.ns, self.runs + other.runs)

    def __sub__(self, other: RunTime) -> RunTime:
        return RunTime(self.ns - other.ns, self.runs - other.runs)

    @classmethod
    def read(cls, program: int) -> RunTime:
        """Since `program`, a descriptor, was loaded. Source: /proc/self/fdinfo, Linux 5.1."""
        text = Path(f"/proc/self/fdinfo/{program}").read_text(encoding="ascii")
        fields = dict(line.split(":", 1) for line in text.splitlines())
        return cls(int(fields["run_time_ns"]), int(fields["run_cnt"]))


@dataclass(frozen=True, slots=True)
class Observed:
    """A cgroup and the programs on it."""

    served: Path
    programs: Mapping[str, int]
    """Descriptors by name."""


@dataclass(frozen=True, slots=True)
class Case:
    """What clients connect to, and whose programs they meet."""

    target: str
    observed: Observed


@contextmanager
def observed(plane: stage.Plane) -> Iterator[Observed]:
    """The programs of `plane` while the block runs."""
    with ExitStack() as stack:
        fds = {}
        for pin in sorted(plane.where.programs.iterdir()):
            fds[pin.name] = bpf.open_pin(pin)
            stack.callback(os.close, fds[pin.name])
        yield Observed(plane.served, fds)


@contextmanager
def _filled(name: str, vips: Sequence[Listed], folder: Path) -> Iterator[Observed]:
    """Programs with `vips` in their maps, on a cgroup of their own, while the block runs."""
    with (
        stage.cgroup(name) as served,
        stage.dataplane(served, stage.filling(vips), folder, LIMITS) as plane,
        observed(plane) as found,
    ):
        yield found


@contextmanager
def cases(folder: Path, vip_count: int = VIPS) -> Iterator[dict[str, Case]]:
    """Maps with no VIP, with one and with `vip_count`, while the block runs."""
    vips = [_vip(i) for i in range(vip_count)]
    with (
        _filled("empty", [], folder) as empty,
        _filled("alone", vips[:1], folder) as alone,
        _filled("full", vips, folder) as full,
    ):
        hot = f"{FIRST_VIP}:80"
        yield {
            EMPTY: Case(SERVERS[0], empty),
            NEITHER: Case(SERVERS[0], full),
            ALONE: Case(hot, alone),
            HOT: Case(hot, full),
            RANDOM: Case(f"{hot}*{vip_count}", full),
        }


def _vip(number: int) -> Listed:
    endpoints = [SERVERS[(number + i) % len(SERVERS)] for i in range(SLOTS_EACH)]
    return Frontend(FIRST_VIP + number, 80, "tcp"), [stage.endpoint(text) for text in endpoints]


def run_case(
    traffic: Traffic, case: Case, count: int, cpu: int, kind: Kind = "connect"
) -> dict[str, RunTime]:
    """How long and how often each program ran for `count` requests of one client."""
    before = {name: RunTime.read(fd) for name, fd in case.observed.programs.items()}
    traffic.load([case.target], count, [Seat(frozenset([cpu]), case.observed.served)], kind)
    return {name: RunTime.read(fd) - before[name] for name, fd in case.observed.programs.items()}


def _sum_but(program: str, times: Mapping[str, RunTime]) -> RunTime:
    """Of all programs but one."""
    return sum((time for name, time in times.items() if name != program), start=RunTime(0, 0))


def measure(folder: Path) -> Section:
    """Run every case in turn, and say what was found."""
    cpu = min(os.sched_getaffinity(0))
    traffic = Traffic(folder)
    stage.forget_closed_connections()
    rounds = []
    with (
        traffic.serving(SERVERS, [Seat(frozenset([cpu]), patient=True)]),
        cases(folder) as course,
        counting(),
    ):
        for number in range(ROUNDS):
            names = list(course) if number % 2 else reversed(course)
            rounds.append({n: run_case(traffic, course[n], CONNECTIONS, cpu) for n in names})
    return report(rounds)


def report(rounds: Sequence[Mapping[str, Mapping[str, RunTime]]]) -> Section:
    """What the rounds say: for each case, by program."""

    def connect4(case: str) -> list[float]:
        return [times[case]["connect4"].mean_ns for times in rounds]

    def ratio(case: str, base: str) -> list[float]:
        return [one / other for one, other in zip(connect4(case), connect4(base), strict=True)]

    rows = []
    for case in (EMPTY, NEITHER, ALONE, HOT, RANDOM):
        ordered = sorted(connect4(case))
        others = [_sum_but("connect4", times[case]) for times in rounds]
        other_ns = statistics.median(other.ns for other in others) / CONNECTIONS
        other_runs = statistics.median(other.runs for other in others) / CONNECTIONS
        rows.append(
            (
                case,
                f"{statistics.median(ordered):.0f}",
                f"{ordered[0]:.0f}-{ordered[-1]:.0f}",
                "1" if case == ALONE else spread(ratio(case, ALONE)),
                f"{other_ns:.0f} in {other_runs:.0f}",
            )
        )
    headings = ("ns, clients connect to", "connect4", "least-greatest", "connect4 / the only VIP")
    return Section(
        "Programs",
        (
            f"Mean run time of a program by the kernel's own count, which includes reading the "
            f"clock twice: {ROUNDS} rounds of {CONNECTIONS:,} connections. Full maps "
            f"hold {VIPS:,} VIPs and {VIPS * SLOTS_EACH:,} slots. The last column is what all "
            "other programs take for one connection, and in how many runs.",
            Table((*headings, "others a connection"), rows),
        ),
        (
            Target(
                "connect4, one hot VIP / the only VIP", 1.10, statistics.median(ratio(HOT, ALONE))
            ),
            Target("connect4, random VIPs", 600, statistics.median(connect4(RANDOM)), " ns"),
        ),
    )
