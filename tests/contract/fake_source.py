"""A source in memory, that says what a test wants it to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from minuteman.model import Origin, Snapshot, SourceHealth, Unit, UnitId
from minuteman.source.latest import Latest


class FakeSource:
    """Keeps the promises of `Source`. Until the test says something, it was not read."""

    def __init__(self, name: str = "fake", incarnation: str = "1:1") -> None:
        self.name = name
        self._latest = Latest(name)
        self._units: dict[UnitId, Unit] = {}
        self._origin = Origin(incarnation, 0)
        self._health = SourceHealth(False, time.monotonic(), "not read yet")
        self._bell: Callable[[], None] = lambda: None

    # ---- what the loop sees -----------------------------------------------------------------
    def start(self, bell: Callable[[], None]) -> None:
        self._bell = bell
        bell()

    def snapshot(self) -> Snapshot | None:
        return self._latest.take()

    def health(self) -> SourceHealth:
        return self._health

    def close(self) -> None:
        self.silence("closed")

    # ---- what the test says -----------------------------------------------------------------
    def read(self, units: Iterable[Unit] = ()) -> None:
        """A complete read: there are these units, and no others."""
        found = {unit.id: unit for unit in units}
        self._say([each for each in self._units if each not in found], found.values())

    def put(self, *units: Unit) -> None:
        """These units are new, or changed."""
        self._say((), units)

    def drop(self, *unit_ids: UnitId) -> None:
        """These units are gone."""
        self._say(unit_ids, ())

    def replace(self, incarnation: str, *units: Unit, position: int = 0) -> None:
        """From now on another world is read, with these units in it."""
        self._origin = Origin(incarnation, position)
        self.read(units)

    def silence(self, reason: str) -> None:
        """What it said last may be old."""
        old = self._health
        if old.fresh or old.reason != reason:
            since = time.monotonic() if old.fresh else old.since_monotonic
            self._health = SourceHealth(False, since, reason)
            self._bell()

    def _say(self, gone: Iterable[UnitId], found: Iterable[Unit]) -> None:
        touched = set(gone)
        for unit_id in touched:
            del self._units[unit_id]
        for unit in found:
            if self._units.get(unit.id) != unit:
                self._units[unit.id] = unit
                touched.add(unit.id)
        self._latest.put(self._origin, self._units, touched)
        if not self._health.fresh:
            self._health = SourceHealth(True, time.monotonic())
        self._bell()
