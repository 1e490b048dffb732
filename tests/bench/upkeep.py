"""What a host pays while nothing happens, and what a start pays for programs of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minuteman.dataplane.kernel import KernelDataplane, loader_command
from minuteman.dataplane.pins import Pins, remove_all
from minuteman.reconcile.kernelstate import Limits
from minuteman.reconcile.writer import ATTACHED_SECONDS
from minuteman.settings import Settings
from tests.bench import stage
from tests.bench.report import Section, Table, Target
from tests.bench.size import desk, many
from tests.bench.stage import BPFFS

VIPS, EACH = 1_000, 10
CALLS = 200
STARTS = 7


@dataclass(frozen=True, slots=True)
class Start:
    """One run of a process, or of what stands for one."""

    seconds: float
    cpu_seconds: float


def cpu_milliseconds(call: Callable[[], object], times: int) -> list[float]:
    """What each call takes of this process, in the kernel too."""
    found = []
    for _ in range(times):
        started = time.process_time()
        call()
        found.append(1000 * (time.process_time() - started))
    return found


def looks(folder: Path, calls: int) -> tuple[list[float], list[float]]:
    """Looks at the attachment, and audits of maps that nobody writes to."""
    with desk(folder) as here:
        here.settle(many(VIPS, EACH))
        kernel = here.plane.kernel
        kernel.audit()  # after a write it reads all of it
        return cpu_milliseconds(kernel.attached, calls), cpu_milliseconds(kernel.audit, calls)


def load(folder: Path) -> Start:
    """Have the loader child make and pin maps and programs where there are none."""
    pins = BPFFS / "upkeep"
    pins.mkdir()
    before, started = os.times(), time.monotonic()
    try:
        where = Pins.ours(pins, Limits())
        subprocess.run(loader_command(where, folder / "cache", Limits()), check=True)
        seconds, after = time.monotonic() - started, os.times()
    finally:
        remove_all(pins)
    children = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return Start(seconds, children)


def open_again(folder: Path, times: int) -> list[Start]:
    """Start over programs that are those that would be made."""
    found = []
    with stage.cgroup("upkeep") as served, stage.dataplane(served, [], folder) as plane:
        plane.kernel.close()
        for _ in range(times):
            kernel = KernelDataplane(served, plane.where.root, folder / "state", Limits())
            started, cpu = time.monotonic(), time.process_time()
            kernel.open()
            found.append(Start(time.monotonic() - started, time.process_time() - cpu))
            kernel.close()
    return found


def measure(folder: Path) -> Section:
    """Run all of it and say what was found."""
    attached, audits = looks(folder, CALLS)
    load(folder)  # fills the cache
    return report(
        attached, audits, [load(folder) for _ in range(STARTS)], open_again(folder, STARTS)
    )


def report(
    attached: Sequence[float],
    audits: Sequence[float],
    loads: Sequence[Start],
    again: Sequence[Start],
) -> Section:
    """Tables of what was found."""
    defaults = Settings()
    periods = ((attached, ATTACHED_SECONDS), (audits, defaults.audit_seconds))
    shares = [statistics.mean(found) / 1000 / seconds for found, seconds in periods]
    return Section(
        "Upkeep",
        (
            f"Of an agent with {VIPS * EACH:,} backends behind {VIPS:,} VIPs that has nothing to "
            f"do: {len(attached)} looks whether all programs are attached, and as many audits of "
            "the maps. CPU time, that of the kernel too.",
            Table(
                ("ms, median (least-greatest)", "each", "every, s", "% of a core"),
                [
                    (what, _spread(found), f"{seconds:g}", f"{100 * share:.4f}")
                    for what, (found, seconds), share in zip(
                        ("attachment", "audit"), periods, shares, strict=True
                    )
                ],
            ),
            f"{len(loads)} runs of the loader child with an empty folder of pins, and as many "
            "starts of the dataplane over programs that it has pinned.",
            Table(
                ("s, median (least-greatest)", "wall", "CPU"),
                [
                    (
                        what,
                        _spread([start.seconds for start in starts]),
                        _spread([start.cpu_seconds for start in starts]),
                    )
                    for what, starts in (("loader child", loads), ("start without it", again))
                ],
            ),
        ),
        (
            Target("attachment check and audit together", 0.1, 100 * sum(shares), " % of a core"),
            Target("loader child", 1.5, statistics.median(start.seconds for start in loads), " s"),
        ),
    )


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"
