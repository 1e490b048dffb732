"""Has jobs done by processes whose kernel refuses, or which end, at any request to it."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO

from minuteman.reconcile.kernelstate import Limits
from tests.kernel.conftest import LIMITS, new_cgroup
from tests.kernel.probing import compiled
from tests.kernel.victim import Job, Report
from tests.kernel.worlds import GROUND, Desired, answers, found, wished

SOURCE = Path(__file__).with_name("fault.c")
ROOT = Path(__file__).parents[2]
PLAN = struct.Struct("=QQIiI4x48s")
"""struct plan: seen, at, kind, error, writes_only, hit."""


class Kind(IntEnum):
    """What becomes of a request; enum kind."""

    FAIL = 0
    FAIL_HALF = 1
    KILL_BEFORE = 2
    KILL_AFTER = 3
    KILL_HALF = 4
    KILL_ALONE = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to happen at one request."""

    kind: Kind
    at: int
    """Its number, from 1 on."""
    error: int = 0
    """What the kernel is to say."""
    writes_only: bool = False
    """Only what writes to a map, or is about a link, counts."""


NO_FAULT = Fault(Kind.FAIL, 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job."""

    report: Report | None
    """None: it was killed."""
    requests: int
    """Those that count."""
    hit: str
    """The one that the fault was for; empty: there were fewer."""


class Host:
    """Agents on one cgroup and one folder of pins, one after the other."""

    def __init__(self, cgroup: Path, pins: Path, folder: Path) -> None:
        """`folder`: for what agents keep on disk, and ours."""
        self.cgroup = cgroup
        self.pins = pins
        self._folder = folder
        library = compiled(SOURCE, folder / "fault.so", "-shared", "-fPIC")
        plan = folder / "plan"
        plan.write_bytes(bytes(PLAN.size))
        with plan.open("r+b") as file:
            self._plan = mmap.mmap(file.fileno(), PLAN.size)
        faults = {"LD_PRELOAD": str(library), "FAULT_PLAN": str(plan), "FAULT_PINS": str(pins)}
        self._forker = subprocess.Popen(
            [sys.executable, "-c", "from tests.kernel.victim import main; main()"],
            cwd=ROOT,
            env=os.environ | faults | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def end(self) -> None:
        self._forker.kill()
        self._forker.communicate()
        self._plan.close()

    def serve(
        self,
        world: Desired,
        fault: Fault = NO_FAULT,
        *,
        limits: Limits = LIMITS,
        operations: int | None = None,
        lines: int = 0,
    ) -> Outcome:
        """Start an agent that writes `world`, all of it or up to a point, and ends."""
        place = self.cgroup, self.pins, self._folder, limits
        return self._run(Job(*place, "serve", world, GROUND, operations, lines), fault)

    def remove(self, fault: Fault = NO_FAULT) -> Outcome:
        """Take away all that is ours."""
        place = self.cgroup, self.pins, self._folder, LIMITS
        return self._run(Job(*place, "remove", {}, GROUND), fault)

    def complete(self, world: Desired, limits: Limits = LIMITS) -> Report:
        """Serve `world` with nothing in the way, and make sure that it is so."""
        report = self.serve(world, limits=limits).report
        assert report is not None
        assert not report.error, report.error
        assert report.detached == ()
        assert report.left_to_do == 0
        assert report.state is not None
        wish = wished(world)
        assert report.state.frontends.keys() == wish.vips.keys()
        assert report.state.prefixes == wish.prefixes
        assert answers(found(report.state)) == answers(wish)
        with_inner = {b.id for b in report.state.backends.values() if b.inner}
        assert report.inners == with_inner
        return report

    def _run(self, job: Job, fault: Fault) -> Outcome:
        self._plan[:] = PLAN.pack(0, fault.at, fault.kind, fault.error, fault.writes_only, b"")
        jobs, reports = self._forker.stdin, self._forker.stdout
        assert jobs is not None
        assert reports is not None
        pickle.dump(job, jobs)
        jobs.flush()
        code, report = _read(reports)
        assert code in (0, -signal.SIGKILL)
        requests, *_, hit = PLAN.unpack(self._plan)
        return Outcome(report, requests, hit.rstrip(b"\0").decode())


@contextmanager
def new_host(pins: Path, folder: Path) -> Iterator[Host]:
    """One with a cgroup of its own, of which nothing is left afterwards."""
    with new_cgroup() as cgroup:
        made = Host(cgroup, pins, folder)
        try:
            yield made
            made.remove()
        finally:
            made.end()


def _read(reports: IO[bytes]) -> tuple[int, Report | None]:
    code, raw = pickle.load(reports)  # noqa: S301 - our own child's
    return code, pickle.loads(raw) if code == 0 else None  # noqa: S301
