"""A source under test, and waiting for what it will say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from minuteman.model import Snapshot, SourceHealth, Unit, UnitId
from minuteman.source.base import Source

T = TypeVar("T")

DEADLINE_SECONDS = 30.0


class Listener:
    """The one consumer of a source. It looks again only when the bell rang."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._bell = threading.Event()

    def start(self) -> None:
        self.source.start(self._bell.set)

    def until(self, condition: Callable[[], T | None]) -> T:
        """The first value of `condition` that is true."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            self._bell.clear()
            if found := condition():
                return found
            if not self._bell.wait(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"not so in {DEADLINE_SECONDS} s: {self.source.health()}")

    def until_rung(self) -> None:
        """Wait for the bell, and look at nothing."""
        assert self._bell.wait(DEADLINE_SECONDS), self.source.health()
        self._bell.clear()

    # ---- snapshots --------------------------------------------------------------------------
    def snapshot(self) -> Snapshot:
        """The first snapshot, and later the newest."""
        return self.until(self.source.snapshot)

    def newer(self, than: Snapshot) -> Snapshot:
        """The first snapshot that is another one."""

        def check() -> Snapshot | None:
            snapshot = self.source.snapshot()
            return None if snapshot is than else snapshot

        return self.until(check)

    def until_snapshot(self, condition: Callable[[Snapshot], object]) -> Snapshot:
        """The first snapshot for which `condition` is true."""

        def check() -> Snapshot | None:
            snapshot = self.source.snapshot()
            return snapshot if snapshot is not None and condition(snapshot) else None

        return self.until(check)

    # ---- units ------------------------------------------------------------------------------
    def units(self) -> Mapping[UnitId, Unit]:
        return self.snapshot().units

    def unit(self, unit_id: str, condition: Callable[[Unit], object] = bool) -> Unit:
        """The first value of this unit for which `condition` is true."""

        def check() -> Unit | None:
            snapshot = self.source.snapshot()
            unit = None if snapshot is None else snapshot.units.get(UnitId(unit_id))
            return unit if unit is not None and condition(unit) else None

        return self.until(check)

    def until_gone(self, unit_id: str) -> None:
        self.until_snapshot(lambda snapshot: unit_id not in snapshot.units)

    # ---- health -----------------------------------------------------------------------------
    def until_fresh(self) -> SourceHealth:
        self.until(lambda: self.source.health().fresh)
        return self.source.health()

    def until_stale(self, reason: str) -> SourceHealth:
        """Its health once it is stale with this in its reason."""

        def check() -> SourceHealth | None:
            health = self.source.health()
            return health if not health.fresh and reason in health.reason else None

        return self.until(check)


@contextmanager
def listening(source: Source) -> Iterator[Listener]:
    """The source, started, and closed in the end."""
    listener = Listener(source)
    listener.start()
    try:
        yield listener
    finally:
        source.close()
