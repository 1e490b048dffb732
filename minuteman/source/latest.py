"""Hands snapshots from the thread that reads to the one that acts on them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from itertools import chain

from minuteman.model import Origin, Snapshot, Unit, UnitId

SHARDS = 256


class Units(Mapping[UnitId, Unit]):
    """An immutable mapping. A changed one shares with it what did not change.

    So a snapshot costs in what changed, and the one before it stays what it was.
    """

    __slots__ = ("_shards",)

    def __init__(self, shards: tuple[dict[UnitId, Unit], ...] = ({},) * SHARDS) -> None:
        self._shards = shards

    def __getitem__(self, unit_id: UnitId) -> Unit:
        return self._shards[hash(unit_id) % SHARDS][unit_id]

    def __iter__(self) -> Iterator[UnitId]:
        return chain.from_iterable(self._shards)

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __repr__(self) -> str:
        return f"Units({dict(self)!r})"

    def changed(self, unit_ids: Collection[UnitId], now: Mapping[UnitId, Unit]) -> Units:
        """The mapping that has these units as they are in `now`, or does not have them either."""
        shards = list(self._shards)
        for number in {hash(unit_id) % SHARDS for unit_id in unit_ids}:
            shards[number] = dict(shards[number])
        for unit_id in unit_ids:
            shard = shards[hash(unit_id) % SHARDS]
            if (unit := now.get(unit_id)) is None:
                shard.pop(unit_id, None)
            else:
                shard[unit_id] = unit
        return Units(tuple(shards))


class Latest:
    """The newest complete read of a source, for one consumer.

    It keeps the promise of `Snapshot.touched`: what changed in reads that the consumer never saw is
    among what may differ from the snapshot that it took last.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._taken: Snapshot | None = None
        self._origin: Origin | None = None
        self._units = Units()
        self._touched: set[UnitId] = set()
        self._is_new = False

    def put(
        self, origin: Origin, units: Mapping[UnitId, Unit], touched: Collection[UnitId]
    ) -> bool:
        """Offer a complete read; False: it says nothing new.

        Args:
            origin: Of this read. A position that only grew is no news by itself.
            units: All of them. Only those that were touched are looked at.
            touched: The ids of those that are other objects than in the read before, gone ones too.
        """
        if self._origin is not None and not touched and _continues(self._origin, origin):
            return False
        changed = self._units.changed(touched, units)
        with self._lock:
            self._origin = origin
            self._units = changed
            self._touched.update(touched)
            self._is_new = True
        return True

    def take(self) -> Snapshot | None:
        """The newest snapshot, the same one until there is a newer; None before the first."""
        with self._lock:
            if self._is_new and self._origin is not None:
                last = self._taken
                self._taken = Snapshot(
                    self._source,
                    self._origin,
                    self._units,
                    serial=1 if last is None else last.serial + 1,
                    touched=None if last is None else frozenset(self._touched),
                )
                self._touched.clear()
                self._is_new = False
            return self._taken


def _continues(before: Origin, now: Origin) -> bool:
    """Whether trust in `before` covers `now`."""
    return now.incarnation == before.incarnation and now.position >= before.position
