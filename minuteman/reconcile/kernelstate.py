"""What the kernel's maps hold, as a mirror that moves with each acknowledged operation.

A VIP's entry points at a *run*: a contiguous piece of the slot array, sorted by tier, of backend
ids. A backend is a member of one VIP: its id names the pair (VIP, endpoint), so that two VIPs on
the same endpoint count, weigh and eject it each on their own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network
from itertools import chain

from minuteman.model import Endpoint, Frontend, Tier

Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class PutBackend:
    """Write backend `id`. A new (vip_id, endpoint) under an id starts with zero counters."""

    id: int
    vip_id: int
    endpoint: Endpoint
    weight: int
    """Of the load comparison: 1-100."""
    tier: Tier
    inner: Endpoint | None = None
    """Where processes of this host's own network reach it; None: at `endpoint` like all others."""


@dataclass(frozen=True, slots=True)
class WriteRun:
    """Write a run into slots that no VIP uses."""

    base: int
    backend_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SwapVip:
    """Point a VIP at its run: the one write that connections can see."""

    frontend: Frontend
    vip_id: int
    base: int
    counts: tuple[int, int, int]
    """Slots per tier, in that order in the run."""
    affinity_seconds: int = 0
    """How long a client keeps its backend after its last connection; 0: it does not."""

    @property
    def size(self) -> int:
        """Slots of the run."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class DropVip:
    """Forget a VIP: connections to its address pass untouched from now on."""

    frontend: Frontend


@dataclass(frozen=True, slots=True)
class Release:
    """Free runs, as (base, size), and backend ids. Nothing points at them any more."""

    runs: tuple[tuple[int, int], ...] = ()
    backend_ids: tuple[int, ...] = ()


class Owner(IntEnum):
    """Who answers at the addresses of a prefix."""

    VIPS = 1
    """VIPs alone: what is no VIP there is refused."""
    HOST = 2
    """This host: what is no VIP there passes."""


@dataclass(frozen=True, slots=True)
class PutPrefix:
    """Note whose the addresses of a prefix are. The longest prefix of an address counts."""

    prefix: Prefix
    owner: Owner


@dataclass(frozen=True, slots=True)
class DropPrefix:
    """Forget a prefix."""

    prefix: Prefix


Op = PutBackend | WriteRun | SwapVip | DropVip | Release | PutPrefix | DropPrefix


@dataclass(frozen=True, slots=True)
class Limits:
    """Capacity of the maps. Backend ids run from 1 to `backends - 1`: 0 names none."""

    vips: int = 65_536
    slots: int = 524_288
    backends: int = 131_072
    conns: int = 131_072
    """Sockets with a connection to a VIP: there is room for at least so many. One for which there
    is none is connected, but not counted."""

    @property
    def prefixes(self) -> int:
        """One for the address of each VIP, and more for the ranges and this host."""
        return self.vips + 1024


@dataclass(slots=True)
class FreeSlots:
    """The pieces of the slot array that no run holds. No two of them touch."""

    starts: list[int] = field(default_factory=list)
    """Ascending."""
    ends: list[int] = field(default_factory=list)
    """`ends[i]` is the first slot behind the piece that begins at `starts[i]`."""

    @classmethod
    def around(cls, runs: Iterable[tuple[int, int]], limit: int) -> FreeSlots:
        """What is left of `limit` slots between `runs`, given as (base, size)."""
        free = cls()
        end = 0
        for base, size in sorted(runs):
            if base > end:
                free._append(end, base)
            end = max(end, base + size)
        if limit > end:
            free._append(end, limit)
        return free

    def _append(self, start: int, end: int) -> None:
        self.starts.append(start)
        self.ends.append(end)

    def take(self, base: int, size: int) -> None:
        """Remove a run. Slots of it that are not free stay as they are."""
        self.give(base, size)  # now one piece holds all of it
        i = bisect_right(self.starts, base) - 1
        start, end = self.starts[i], self.ends[i]
        left = [start] if start < base else []
        right = [base + size] if base + size < end else []
        self.starts[i : i + 1] = left + right
        self.ends[i : i + 1] = [base] * len(left) + [end] * len(right)

    def give(self, base: int, size: int) -> None:
        """Add a run, joined with the pieces that it touches."""
        end = base + size
        first = bisect_right(self.starts, base)
        if first and self.ends[first - 1] >= base:
            first -= 1
            base = self.starts[first]
        last = bisect_right(self.starts, end, lo=first)
        if last > first:
            end = max(end, self.ends[last - 1])
        self.starts[first:last] = [base]
        self.ends[first:last] = [end]


class KernelState:
    """Mirror of the maps, with what is free in them.

    Low slots and ids are used first: what is read back then stays short. A connection that meets a
    run while it is written over notices, because a backend names its VIP.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        generation: int = 0,
        frontends: Iterable[SwapVip] = (),
        runs: Mapping[int, tuple[int, ...]] | None = None,
        backends: Iterable[PutBackend] = (),
        prefixes: Mapping[Prefix, Owner] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.generation = generation
        self.frontends: dict[Frontend, SwapVip] = {vip.frontend: vip for vip in frontends}
        self.runs: dict[int, tuple[int, ...]] = dict(runs or {})
        """base -> backend ids; an empty run has no base"""
        self.backends: dict[int, PutBackend] = {}
        self.members: dict[int, dict[Endpoint, int]] = defaultdict(dict)
        """vip_id -> endpoint -> backend id"""
        for backend in backends:
            self._put(backend)
        self.prefixes: dict[Prefix, Owner] = dict(prefixes or {})
        self.next_vip_id = 1 + max(
            chain(
                (vip.vip_id for vip in self.frontends.values()),
                (backend.vip_id for backend in self.backends.values()),
            ),
            default=0,
        )
        self.next_backend_id = 1 + max(self.backends, default=0)
        self.released_ids: OrderedDict[int, None] = OrderedDict.fromkeys(
            i for i in range(1, self.next_backend_id) if i not in self.backends
        )
        """Below `next_backend_id`, longest unused first."""
        self.free_slots = FreeSlots.around(
            ((base, len(run)) for base, run in self.runs.items()), self.limits.slots
        )

    def free_ids(self) -> Iterator[int]:
        """Backend ids that name nothing, in the order in which they are to be used."""
        yield from self.released_ids
        yield from range(self.next_backend_id, self.limits.backends)

    def apply(self, op: Op) -> None:
        """Move along with one operation that the kernel acknowledged."""
        match op:
            case PutBackend():
                self._put(op)
                self._use_id(op.id)
            case WriteRun():
                self.runs[op.base] = op.backend_ids
                self.free_slots.take(op.base, len(op.backend_ids))
            case SwapVip():
                self.frontends[op.frontend] = op
                self.next_vip_id = max(self.next_vip_id, op.vip_id + 1)
            case DropVip():
                self.frontends.pop(op.frontend, None)
            case Release():
                for base, size in op.runs:
                    self.runs.pop(base, None)
                    self.free_slots.give(base, size)
                for backend_id in op.backend_ids:
                    self._forget(backend_id)
                    self.released_ids[backend_id] = None
            case PutPrefix():
                self.prefixes[op.prefix] = op.owner
            case DropPrefix():
                self.prefixes.pop(op.prefix, None)

    def _use_id(self, backend_id: int) -> None:
        self.released_ids.pop(backend_id, None)
        while self.next_backend_id <= backend_id:
            if self.next_backend_id != backend_id:
                self.released_ids[self.next_backend_id] = None
            self.next_backend_id += 1

    def _put(self, backend: PutBackend) -> None:
        self._forget(backend.id)
        self.backends[backend.id] = backend
        self.members[backend.vip_id][backend.endpoint] = backend.id

    def _forget(self, backend_id: int) -> None:
        old = self.backends.pop(backend_id, None)
        if old is None:
            return
        members = self.members[old.vip_id]
        if members.get(old.endpoint) == backend_id:
            del members[old.endpoint]
        if not members:
            del self.members[old.vip_id]

    def __eq__(self, other: object) -> bool:
        """Same content of the maps; what is free, and the generation, do not count."""
        if not isinstance(other, KernelState):
            return NotImplemented
        return (
            self.frontends == other.frontends
            and self.runs == other.runs
            and self.backends == other.backends
            and self.prefixes == other.prefixes
        )

    __hash__ = None  # type: ignore[assignment]
