"""What happened between two answers of `/api/vips`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from api import schemas
from minuteman.cli.text import host_port


@dataclass(frozen=True, slots=True)
class Increase:
    """What the counters of a backend, or of several, grew by."""

    attempts: int = 0
    failures: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    retransmits: int = 0
    connect_log2_us: tuple[int, ...] = ()

    def __add__(self, other: Increase) -> Increase:
        return Increase(
            self.attempts + other.attempts,
            self.failures + other.failures,
            self.bytes_sent + other.bytes_sent,
            self.bytes_received + other.bytes_received,
            self.retransmits + other.retransmits,
            _each(self.connect_log2_us, other.connect_log2_us, sign=1),
        )


NONE = Increase()


@dataclass(frozen=True, slots=True)
class Row:
    """A VIP, or one of its backends."""

    vip: str
    protocol: schemas.Protocol
    backend: str
    """`host:port`; empty for the VIP as a whole."""
    connecting: int
    active: int
    ejected: int
    """Backends."""
    increase: Increase
    seconds: float
    """In which that was."""

    def per_second(self, count: int) -> float:
        """`count`, a number of the increase, as a rate."""
        return count / self.seconds


def increase(before: schemas.Counters | None, now: schemas.Counters) -> Increase:
    """How much was counted in between, never less than nothing.

    Counters of a backend that is new, or that began anew, do not tell what of them was in between:
    then it is nothing.
    """
    if before is None or before == now:  # most are idle
        return NONE
    grown = Increase(
        now.attempts - before.attempts,
        now.failures - before.failures,
        now.bytes_sent - before.bytes_sent,
        now.bytes_received - before.bytes_received,
        now.retransmits - before.retransmits,
        _each(now.connect_log2_us, before.connect_log2_us, sign=-1),
    )
    numbers = (
        grown.attempts,
        grown.failures,
        grown.bytes_sent,
        grown.bytes_received,
        grown.retransmits,
        *grown.connect_log2_us,
    )
    return NONE if min(numbers) < 0 else grown


def rows(before: schemas.VipList, now: schemas.VipList, *, backends: bool) -> list[Row]:
    """What was between the answers, the busiest first: by VIP, or each of its `backends` alone.

    `now` was counted after `before`.
    """
    known = {
        _identity(vip, backend): backend.counters for vip in before.vips for backend in vip.backends
    }
    seconds = now.counted_monotonic - before.counted_monotonic
    found = []
    for vip in now.vips:
        parts = [
            _row(vip, backend, known.get(_identity(vip, backend)), seconds)
            for backend in vip.backends
        ]
        found += parts if backends else [_whole(vip, parts, seconds)]
    return sorted(found, key=lambda row: (-row.increase.attempts, -row.active - row.connecting))


def _identity(vip: schemas.Vip, backend: schemas.Backend) -> tuple[str, str, str, int]:
    return vip.vip, vip.protocol, backend.address, backend.port


def _row(
    vip: schemas.Vip, backend: schemas.Backend, before: schemas.Counters | None, seconds: float
) -> Row:
    counted = backend.counters
    return Row(
        vip.vip,
        vip.protocol,
        host_port(backend.address, backend.port),
        counted.connecting,
        counted.active,
        int(backend.ejected),
        increase(before, counted),
        seconds,
    )


def _whole(vip: schemas.Vip, parts: list[Row], seconds: float) -> Row:
    return Row(
        vip.vip,
        vip.protocol,
        "",
        sum(part.connecting for part in parts),
        sum(part.active for part in parts),
        sum(part.ejected for part in parts),
        sum((part.increase for part in parts if part.increase is not NONE), NONE),
        seconds,
    )


def _each(these: Iterable[int], those: Iterable[int], *, sign: int) -> tuple[int, ...]:
    """Bucket by bucket: the sum, or the difference."""
    return tuple(this + sign * that for this, that in zip_longest(these, those, fillvalue=0))
