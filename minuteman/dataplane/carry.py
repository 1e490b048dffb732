"""Changes to entries that the programs change too: programs of our own make them, run one by one.

They are pinned beside the others and attached nowhere. A write of the maps from here would undo
what a connection does to the same entry at the same moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from minuteman.dataplane import bpf
from minuteman.dataplane.layout import BACKEND_STATS, CARRIED_STATS, COOKIE, REASONS
from minuteman.dataplane.pins import UNATTACHED, Pins

PACKET_SIZE = 14
"""The least that a program for packets is run on: an Ethernet header."""
MOMENTS = ("ejected_until_ns", "last_failure_ns")
"""Fields of `backend_stats` that count nothing."""
NO_BACKEND = 0
NO_REASON = len(REASONS)


@dataclass(frozen=True, slots=True)
class Carrier:
    """Descriptors of the programs by name. Errors of all methods: DataplaneError."""

    programs: Mapping[str, int]

    @classmethod
    @contextmanager
    def opened(cls, where: Pins) -> Iterator[Carrier]:
        """The programs that are pinned there, while the block runs."""
        with ExitStack() as stack:
            programs = {}
            for name in UNATTACHED:
                programs[name] = bpf.open_pin(where.programs / name)
                stack.callback(os.close, programs[name])
            yield cls(programs)

    def settle(self, cookie: int) -> bool:
        """A socket is gone that no program saw going: its entry goes, and counts no more.

        False: it has none.
        """
        return self._run("settle", COOKIE.pack(cookie))

    def add_stats(self, backend_id: int, after: bytes, before: bytes) -> bool:
        """Add what was counted for a backend elsewhere, from `before` to `after`.

        Both are values of `backend_stats`. What went down there goes down here; of two moments the
        later one stays. False: there is no such id.
        """
        return self._add(backend_id, NO_REASON, 0, counted(after, before))

    def add_reason(self, reason: int, count: int) -> bool:
        """Add to how often a decision was taken: the one at a place in `REASONS`."""
        return self._add(NO_BACKEND, reason, count, bytes(BACKEND_STATS.size))

    def _add(self, backend_id: int, reason: int, count: int, stats: bytes) -> bool:
        values = {"backend_id": (backend_id,), "reason": (reason,), "count": (count,)}
        return self._run("carry_stats", CARRIED_STATS.write(BACKEND_STATS.read(stats) | values))

    def keep_conn(self, conn: bytes) -> bool:
        """Keep what a socket was given, a value of `conns`; no counter changes.

        Where that is kept already: note what has become of it since. False: the socket has been
        given something else meanwhile, or there is no room.
        """
        return self._run("carry_conn", conn)

    def drop_conn(self, cookie: int) -> bool:
        """Forget what a socket was given; no counter changes. False: nothing is known of it."""
        return self._run("drop_conn", COOKIE.pack(cookie))

    def _run(self, program: str, request: bytes) -> bool:
        return bool(bpf.run_on(self.programs[program], request.ljust(PACKET_SIZE, b"\0")))


def counted(after: bytes, before: bytes) -> bytes:
    """How much two values of `backend_stats` differ, wrapping around; a moment as it is `after`."""
    known = BACKEND_STATS.read(after)
    difference = BACKEND_STATS.read(BACKEND_STATS.difference(after, before))
    return BACKEND_STATS.write(difference | {name: known[name] for name in MOMENTS})
