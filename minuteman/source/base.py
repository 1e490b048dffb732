"""What every source of tasks offers to the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from minuteman.model import Snapshot, SourceHealth


class Source(Protocol):
    """Owns its threads and its connection. Errors never leave it: they are its health."""

    name: str

    def start(self, bell: Callable[[], None]) -> None:
        """Return at once and read in the background.

        `bell` only sets an event: it may ring from any thread, and for nothing.
        """

    def snapshot(self) -> Snapshot | None:
        """Latest complete read, never half of one; None before the first. Never blocks.

        For one consumer: `Snapshot.touched` is relative to the snapshot returned last. The same
        object again means that nothing changed.
        """

    def health(self) -> SourceHealth:
        """Whether that read is current, and since when."""

    def close(self) -> None:
        """End threads and connection; may be called twice."""
