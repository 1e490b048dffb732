"""Agents without anything around their dataplane, which end where they are told to.

A process that has all code loaded forks one for each job, so that it begins at once. It is started
with fault.c in it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

import minuteman.dataplane
from minuteman.dataplane import bpf, layout
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.dataplane.pins import Pins
from minuteman.errors import DataplaneError
from minuteman.model import BackendCounters, Endpoint, Frontend, Problem, Vip, VipKey
from minuteman.reconcile.kernelstate import KernelState, Limits
from minuteman.reconcile.plan import Gate, Ground, Planner
from minuteman.reconcile.writer import Writer

if TYPE_CHECKING:
    from _typeshed import TraceFunction

FOLDER = str(Path(minuteman.dataplane.__file__).parent)
MOST_TRIES = 5


@dataclass(frozen=True, slots=True)
class Job:
    """What to do with the dataplane of these arguments."""

    cgroup: Path
    pins: Path
    state_dir: Path
    limits: Limits
    deed: Literal["serve", "remove"]
    world: Mapping[VipKey, Vip]
    ground: Ground
    operations: int | None = None
    """End after so many of the plan; None: do all of it, as the loop does."""
    lines: int = 0
    """End after so many more lines of the dataplane's code."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a job that was done."""

    error: str = ""
    """Why it failed: what a `DataplaneError` says."""
    state: KernelState | None = None
    counters: Mapping[tuple[Frontend, Endpoint], BackendCounters] | None = None
    detached: tuple[Problem, ...] = ()
    left_to_do: int = 0
    """Operations of one more plan for the same world."""
    inners: frozenset[int] = frozenset()
    """Ids of backends in the map of that name."""


def do(job: Job) -> Report:
    dataplane = KernelDataplane(job.cgroup, job.pins, job.state_dir, job.limits)
    try:
        if job.deed == "remove":
            dataplane.remove()
            return Report()
        state = dataplane.open()
        if job.operations is not None:
            return die_within(dataplane, state, job)
        return serve(dataplane, state, job)
    except DataplaneError as exc:
        return Report(error=str(exc))


def serve(dataplane: KernelDataplane, state: KernelState, job: Job) -> Report:
    """Bring the world about as the loop does: what fails is tried again."""
    now = 0.0
    tries = 0
    writer = Writer(dataplane, state, audit_seconds=60.0, now=now)
    writer.set_gate(Gate.OPEN)
    writer.stand_on(job.ground)
    while not writer.is_settled and tries < MOST_TRIES:
        writer.watch(now)
        writer.write(job.world, now)
        now = writer.wake_monotonic()
        tries += 1
    if writer.problems:
        return Report(error=writer.problems[0].reason)
    found = dataplane.audit()
    report = Report(
        state=found,
        counters=dataplane.counters().by_vip_backend,
        detached=dataplane.attached(),
        left_to_do=len(Planner().plan(job.world, found, ground=job.ground).ops),
        inners=read_inners(job),
    )
    dataplane.close()
    return report


def read_inners(job: Job) -> frozenset[int]:
    fd = bpf.open_pin(Pins.ours(job.pins, job.limits).maps / "inners")
    try:
        entries = bpf.read_hash(fd, layout.BACKEND_ID.size, layout.INNER.size)
        return frozenset(layout.BACKEND_ID.unpack(key)[0] for key, _ in entries)
    finally:
        os.close(fd)


def die_within(dataplane: KernelDataplane, state: KernelState, job: Job) -> Report:
    """End in the midst of the plan; a report says that it was done before."""
    planned = Planner().plan(job.world, state, ground=job.ground).ops
    dataplane.apply(planned[: job.operations], state)
    if job.lines:
        die_after(job.lines)
        dataplane.apply(planned[job.operations :], state)
        sys.settrace(None)
    elif len(planned) > (job.operations or 0):
        os.kill(os.getpid(), signal.SIGKILL)
    return Report()


def die_after(lines: int) -> None:
    """End this process when so many lines of the dataplane's code have run."""
    left = lines

    def count(_frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        nonlocal left
        left -= event == "line"
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    def enter(frame: FrameType, _event: str, _argument: object) -> TraceFunction | None:
        return count if frame.f_code.co_filename.startswith(FOLDER) else None

    sys.settrace(enter)


def run(job: Job) -> tuple[int, bytes]:
    """Do a job in a process, and a process group, of its own: exit code and pickled report."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            os.close(reading)
            with open(writing, "wb") as pipe:  # noqa: PTH123 - it is a descriptor
                pickle.dump(do(job), pipe)
            code = 0
        except BaseException:  # noqa: BLE001 - nothing of it may reach the loop below
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123
        raw = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), raw


def main() -> None:
    """Do each job of standard input, and write what came of it."""
    jobs, reports = sys.stdin.buffer, sys.stdout.buffer
    bpf.has_program_type(bpf.PROG_SOCK_OPS)  # loads libbpf
    while True:
        try:
            job = pickle.load(jobs)  # noqa: S301 - the test's own
        except EOFError:
            return
        pickle.dump(run(job), reports)
        reports.flush()
