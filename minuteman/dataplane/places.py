"""The `vips` map, written through a mapping: a change is seen whole, by one store of one word."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from itertools import chain

from minuteman.dataplane import layout
from minuteman.model import Frontend
from minuteman.reconcile.kernelstate import SwapVip

_ENTRY = layout.VIP.size
_WORDS = _ENTRY // 4
_TURN, _ID, _RUNS, _RUN_WORDS = 0, 1, 2, 4
"""Words of struct vip."""
_IDENTITY = 40
"""Offset of its address, in bytes."""
_AFFINITY = 15
"""Its last word."""


class Places:
    """Every VIP's place in the map, and what stands there.

    The programs read an entry while it is written. So a change goes into the run that is not in
    use, and `turn` is stored last; it only ever counts up, in a place that is used again too.
    """

    def __init__(self, fd: int, capacity: int) -> None:
        """`fd`: of the map, which has `capacity` entries. It may be closed afterwards."""
        pages = -(-capacity * _ENTRY // mmap.PAGESIZE)
        self._mapping = mmap.mmap(fd, pages * mmap.PAGESIZE)
        self._bytes = memoryview(self._mapping)
        self._words = self._bytes.cast("I")
        self._capacity = capacity
        self._places: dict[Frontend, int] = {}
        self._freed: dict[int, None] = {}
        """Places of VIPs that are gone, longest unused first."""
        self._next = 0
        """The lowest place that was never used."""

    def close(self) -> None:
        """Let go of the mapping."""
        self._words.release()
        self._bytes.release()
        self._mapping.close()

    def adopt(self, places: dict[Frontend, int]) -> None:
        """Start from what the kernel has."""
        self._places = dict(places)
        self._next = 1 + max(places.values(), default=-1)
        used = set(places.values())
        self._freed = dict.fromkeys(place for place in range(self._next) if place not in used)

    def raw(self) -> memoryview:
        """All that was ever written, in every place that has one now."""
        return self._bytes[: self._next * _ENTRY]

    def read(self, frontend: Frontend) -> SwapVip:
        """What the entry of a VIP says."""
        at = self._places[frontend] * _WORDS
        base, *counts = self._words[self._run_at(at) : self._run_at(at) + _RUN_WORDS]
        up, maybe, draining = counts
        affinity_seconds = self._words[at + _AFFINITY]
        return SwapVip(
            frontend, self._words[at + _ID], base, (up, maybe, draining), affinity_seconds
        )

    def write(self, vip: SwapVip) -> int | None:
        """Have the entry say `vip`. For a VIP without a place, the place that it got; else None.

        Errors: IndexError when every place is taken.
        """
        place = self._places.get(vip.frontend)
        if place is not None:
            self._words[place * _WORDS + _AFFINITY] = vip.affinity_seconds
            self._flip(place, vip)
            return None
        place = self._free_place()
        at = place * _ENTRY + _IDENTITY
        self._bytes[at : at + layout.VIP6_KEY.size] = layout.pack_identity(vip.frontend)
        self._words[place * _WORDS + _ID] = vip.vip_id
        self._words[place * _WORDS + _AFFINITY] = vip.affinity_seconds
        self._flip(place, vip)
        self._places[vip.frontend] = place
        self._freed.pop(place, None)
        self._next = max(self._next, place + 1)
        return place

    def forget(self, frontend: Frontend) -> None:
        """The VIP is gone; its place may be used again."""
        place = self._places.pop(frontend, None)
        if place is not None:
            self._freed[place] = None

    def _free_place(self) -> int:
        never_used = range(self._next, self._capacity)
        candidates: Iterator[int] = chain(self._freed, never_used)
        place = next(candidates, None)
        if place is None:
            raise IndexError
        return place

    def _flip(self, place: int, vip: SwapVip) -> None:
        at = place * _WORDS
        turn = (self._words[at + _TURN] + 1) % 2**32
        run = at + _RUNS + turn % 2 * _RUN_WORDS
        for i, word in enumerate((vip.base, *vip.counts)):
            self._words[run + i] = word
        self._words[at + _TURN] = turn

    def _run_at(self, at: int) -> int:
        """Where the run in use begins, of the entry at word `at`."""
        return at + _RUNS + self._words[at + _TURN] % 2 * _RUN_WORDS
