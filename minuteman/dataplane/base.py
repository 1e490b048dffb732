"""What a dataplane offers to the loop: the kernel's, and the fake that passes the same tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from minuteman.errors import DataplaneError
from minuteman.model import Counters, Problem
from minuteman.reconcile.kernelstate import KernelState, Op


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a list of operations."""

    done: int
    """Operations that the kernel acknowledged, from the first on; `state` moved by these."""
    error: DataplaneError | None = None
    """Why the next one failed; the ones after it were not tried."""


class Dataplane(Protocol):
    """Called from the loop's thread only."""

    def open(self) -> KernelState:
        """Load, attach, and read back what is there.

        Programs and maps of another version, or of another capacity, serve until the new ones do,
        which have the same content.

        Errors: UnsupportedKernelError when this host cannot run the programs; LayoutError when it
        is not known what is in the maps that serve; DataplaneError, E2BIG, when they hold more than
        there is to be room for; RunningError. What served before goes on to serve, and nothing is
        left attached that was not.
        """

    def apply(self, ops: Sequence[Op], state: KernelState) -> Applied:
        """Do the operations in their order and move `state` along with what was acknowledged."""

    def audit(self) -> KernelState:
        """Read the maps back whole. Errors: DataplaneError."""

    def attached(self) -> tuple[Problem, ...]:
        """() when the effective query shows each of our programs on the cgroup."""

    def repair(self) -> None:
        """Put right what `attached` complains of, as far as it can be.

        Errors: DataplaneError; RunningError when another agent has the pins, after somebody removed
        ours.
        """

    def counters(self) -> Counters:
        """Read the counters of the backends in the last known state, where one is not zero."""

    def skip(self, cgroups: Collection[int]) -> None:
        """Leave the processes in these cgroups, and below them, alone: these and no others.

        A cgroup is named by the inode of its folder.   Errors: DataplaneError.
        """

    def listen_until(self, monotonic_ns: int) -> None:
        """Have the programs tell of connections until then; 0: not at all. See `events`.

        Errors: DataplaneError.
        """

    def close(self) -> None:
        """Let go of descriptors. Programs, links and maps stay and keep serving."""

    def remove(self) -> None:
        """Close, and take every program, link, map and pin of ours away, of an older schema too."""
