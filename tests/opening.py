"""Opens the dataplane of any version, and is told what came of it: the other side of opener.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, Self

import msgspec

from lab.versions import Version
from minuteman.model import BackendCounters
from minuteman.reconcile.kernelstate import Limits

OPENER = Path(__file__).with_name("opener.py")
PATIENCE_SECONDS = 60.0

End = Literal["close", "kill"]
"""How a process ends that has opened the dataplane."""


class Report(msgspec.Struct, frozen=True):
    """What an opened dataplane tells. Source: opener.py."""

    error: str = ""
    """Why it is not open."""
    version: str = ""
    seconds: float = 0.0
    """Until it was open."""
    generation: int = 0
    ids: dict[str, int] = {}
    """Of each backend by `vip backend`."""
    counters: dict[str, BackendCounters] = {}
    """By the same."""
    reasons: dict[str, int] = {}
    detached: tuple[str, ...] = ()
    """What is missing of the programs."""

    @property
    def was_killed(self) -> bool:
        """Before it was open."""
        return not (self.version or self.error)


class Opener:
    """Opens the dataplane of one version, each time in a process of its own, while the block runs.

    Args:
        version: Which one.
        cgroup: It serves this one.
        pins: Its pins are there.
        state_dir: Of its files.
    """

    def __init__(self, version: Version, cgroup: Path, pins: Path, state_dir: Path) -> None:
        self.version = version
        self._process = subprocess.Popen(
            [sys.executable, "-P", OPENER, cgroup, pins, state_dir],
            env={**os.environ, **version.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def open(
        self,
        limits: Limits,
        end: End = "close",
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Report:
        """Open it with these capacities, and `end` the process then.

        It is killed when it is not open in `patience_seconds`.
        """
        order = {"limits": limits, "end": end, "patience_seconds": patience_seconds}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Report)
