"""Connects to every VIP all the time, and judges what came of it by what was allowed just then."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import errorcode
from pathlib import Path

from minuteman.model import Endpoint, Frontend
from tests.kernel.worlds import LISTENERS, TARGETS, Answers, either

SOURCE = Path(__file__).with_name("probe.c")
RECORD = struct.Struct("=QQii")
"""struct record: began_ns, ended_ns, target, answer."""
DEADLINE_SECONDS = 30.0


def text(where: Frontend | Endpoint) -> str:
    return f"{where.address}:{where.port}"


def compiled(source: Path, program: Path, *flags: str) -> Path:
    """`program`, made of `source`."""
    strict = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *strict, *flags, "-o", program, source], check=True)
    return program


@dataclass(frozen=True, slots=True)
class Probe:
    """One connection."""

    began_ns: int
    """On the monotonic clock, as is `ended_ns`."""
    ended_ns: int
    target: int
    """A place in `TARGETS`."""
    answer: int
    """A place in `LISTENERS`, or -errno."""

    def __str__(self) -> str:
        who = text(LISTENERS[self.answer]) if self.answer >= 0 else errorcode[-self.answer]
        return f"{text(TARGETS[self.target])} -> {who}"


class Prober:
    """Runs probe.c in a cgroup, which is all backends, too."""

    def __init__(self, program: Path, cgroup: Path, records: Path) -> None:
        self._records = records
        records.unlink(missing_ok=True)
        words = [*(text(each) for each in LISTENERS), "--", *(text(each) for each in TARGETS)]
        self._process = subprocess.Popen(
            [program, records, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: (cgroup / "cgroup.procs").write_text("0", encoding="ascii"),
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def look_at_all(self) -> None:
        """Return when every target was connected to, from begin to end."""
        size = self._records.stat().st_size + 2 * len(TARGETS) * RECORD.size
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._records.stat().st_size < size:
            assert self._process.poll() is None, "the prober is gone"
            assert time.monotonic() < deadline, "the prober does not move"
            os.sched_yield()

    def end(self) -> list[Probe]:
        """What came of every connection."""
        self._process.communicate(timeout=DEADLINE_SECONDS)
        assert self._process.returncode == 0
        raw = self._records.read_bytes()
        return [Probe(*fields) for fields in RECORD.iter_unpack(raw)]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Watch:
    """A prober, what it is allowed to meet from when on, and what it met."""

    def __init__(self, prober: Prober, allowed: Answers) -> None:
        self._prober = prober
        self._phases = [(0, allowed)]
        self.met: Counter[tuple[int, int]] = Counter()
        """How often each (target, answer) was met, once the watch is over."""

    def allow(self, allowed: Answers) -> None:
        """From now on."""
        self._phases.append((time.monotonic_ns(), allowed))

    def settle(self, allowed: Answers) -> None:
        """From now on, and see it."""
        self.allow(allowed)
        self._prober.look_at_all()

    def judge(self) -> None:
        """End the prober; fail at whatever was not allowed when it was met."""
        phases = iter([*self._phases[1:], (2**63, self._phases[-1][1])])
        now = self._phases[0][1]
        until_ns, following = next(phases)
        for probe in self._prober.end():
            while until_ns <= probe.began_ns:
                now = following
                until_ns, following = next(phases)
            allowed = now if probe.ended_ns < until_ns else self._during(probe)
            assert probe.answer in allowed[probe.target], (
                f"{probe} {probe.began_ns - self._phases[1][0]} ns into the watch; allowed: "
                f"{sorted(allowed[probe.target])}, phases: {len(self._phases)}"
            )
            self.met[probe.target, probe.answer] += 1

    def _during(self, probe: Probe) -> Answers:
        """What was allowed at any time of a connection."""
        allowed: Answers = (frozenset(),) * len(TARGETS)
        ends = [start for start, _ in self._phases[1:]] + [2**63]
        for (start, answers), end in zip(self._phases, ends, strict=True):
            if start <= probe.ended_ns and probe.began_ns < end:
                allowed = either(allowed, answers)
        return allowed


class Probing:
    """Watches in one cgroup, one after the other."""

    def __init__(self, cgroup: Path, folder: Path) -> None:
        self._cgroup = cgroup
        self._records = folder / "records"
        self._program = compiled(SOURCE, folder / "probe")

    @contextmanager
    def watch(self, allowed: Answers) -> Iterator[Watch]:
        """Connect while the block runs. It is not judged here."""
        prober = Prober(self._program, self._cgroup, self._records)
        try:
            prober.look_at_all()
            yield Watch(prober, allowed)
        finally:
            prober.kill()
