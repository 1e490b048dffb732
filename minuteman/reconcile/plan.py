"""The operations that lead from what the kernel has to what it should have. Pure.

Backends are written first, then runs, then each VIP is pointed at its run by one write; only then
VIPs that are gone are dropped, and what nothing points at any more is released. So after any number
of the operations each VIP has its old or its new set.

Where no VIP is found, the prefixes say what to do: refuse, where addresses are for VIPs alone. They
are written once all VIPs are known, except for what keeps this host's own addresses out of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import chain
from math import gcd

from minuteman.model import (
    Address,
    Backend,
    Endpoint,
    Frontend,
    Problem,
    Tier,
    Vip,
    VipKey,
    VipName,
)
from minuteman.reconcile.kernelstate import (
    DropPrefix,
    DropVip,
    KernelState,
    Op,
    Owner,
    Prefix,
    PutBackend,
    PutPrefix,
    Release,
    SwapVip,
    WriteRun,
)


@dataclass(frozen=True, slots=True)
class Planned:
    """What to do, and what could not be planned."""

    ops: tuple[Op, ...]
    unplaced: frozenset[VipKey]
    """VIPs for which the maps have no room: they keep what they had, and are planned again with
    each further plan."""

    @property
    def frees(self) -> bool:
        """There is more room after it than before."""
        return any(isinstance(op, DropVip | Release) for op in self.ops)


class Gate(Enum):
    """What may be done to frontends that the kernel had before this run."""

    SHUT = "they stay as they are"
    ADDING = "backends may join them"
    OPEN = "they are like any other"


@dataclass(frozen=True, slots=True)
class Ground:
    """What a plan has to know beside the VIPs."""

    ranges: tuple[Prefix, ...] = ()
    """Addresses that are for VIPs alone, whether one has them or not."""
    host: frozenset[Address] = frozenset()
    """Addresses of this host: never for VIPs alone. Backends there may have an inner endpoint."""


NO_GROUND = Ground()


class Planner:
    """Plans, and remembers which VIP is behind which frontend, so that a change costs what it is.

    Two VIPs may ask for one frontend: a literal one for the address of a name. The name has it,
    because other hosts and DNS count on that; the literal one is a problem.
    """

    def __init__(self) -> None:
        self.problems: dict[Frontend, tuple[Problem, ...]] = {}
        """What is wrong with the frontends, as of the last plan."""
        self._frontends: dict[VipKey, tuple[Frontend, ...]] = {}
        self._claimants: dict[Frontend, tuple[VipKey, ...]] = {}
        """The VIPs that ask for a frontend; the first one has it."""
        self._at: defaultdict[Address, set[Frontend]] = defaultdict(set)
        """Address -> the frontends there that somebody asks for."""
        self._unplaced: dict[Frontend, VipKey] = {}

    def plan(
        self,
        desired: Mapping[VipKey, Vip],
        actual: KernelState,
        dirty: Collection[VipKey] | None = None,
        gate: Gate = Gate.OPEN,
        inherited: AbstractSet[Frontend] = frozenset(),
        ground: Ground = NO_GROUND,
    ) -> Planned:
        """The operations that make `actual` serve `desired`.

        `dirty` are the keys that may differ from the `desired` of the plan before; None compares
        everything, and sweeps leftovers up when the gate is open; a new `ground` needs None. `gate`
        says what may be done to the `inherited` frontends. Laws: applied whole, the next plan is
        empty; applied up to any operation, each VIP has its old or its new set; a plan of the dirty
        keys leads where a plan of all does.
        """
        gone = [key for key in self._frontends if key not in desired] if dirty is None else []
        touched = dict.fromkeys(self._unplaced)
        for key in chain(desired, gone) if dirty is None else dirty:
            touched |= dict.fromkeys(self._claim(key, desired.get(key)))
        if dirty is None:
            touched |= dict.fromkeys(actual.frontends)
        draft = _Draft(actual, suspects(actual) if dirty is None else frozenset(), ground)
        for frontend in touched:
            kept = gate is not Gate.OPEN and frontend in inherited and frontend in actual.frontends
            if not (kept and gate is Gate.SHUT):
                self._place(frontend, desired, draft, kept=kept)
        if dirty is None and gate is Gate.OPEN:
            draft.sweep()
        prefixes = {host_prefix(frontend.address) for frontend in touched}
        if dirty is None:
            prefixes |= {*ground.ranges, *map(host_prefix, ground.host), *actual.prefixes}
        for prefix in prefixes:
            draft.own(prefix, self._owner(prefix, ground), is_complete=gate is Gate.OPEN)
        return Planned(draft.ops(), frozenset(self._unplaced.values()))

    def _owner(self, prefix: Prefix, ground: Ground) -> Owner | None:
        """Whose the addresses of `prefix` are; None: nobody's, or as a shorter prefix says."""
        address = prefix.network_address
        is_one = prefix.prefixlen == prefix.max_prefixlen
        in_range = any(_contains(each, address) for each in ground.ranges)
        if is_one and address in ground.host:
            return Owner.HOST if in_range or address in self._at else None
        if prefix in ground.ranges:
            return Owner.VIPS
        return Owner.VIPS if is_one and address in self._at and not in_range else None

    def _claim(self, key: VipKey, vip: Vip | None) -> tuple[Frontend, ...]:
        """Note what `key` asks for now: the frontends that this may change."""
        old = self._frontends.pop(key, ())
        new = vip.frontends if vip else ()
        for frontend in old:
            others = tuple(k for k in self._claimants[frontend] if k != key)
            if others:
                self._claimants[frontend] = others
            else:
                del self._claimants[frontend]
                self._at[frontend.address].discard(frontend)
                if not self._at[frontend.address]:
                    del self._at[frontend.address]
        for frontend in new:
            self._at[frontend.address].add(frontend)
            claimants = {*self._claimants.get(frontend, ()), key}
            self._claimants[frontend] = tuple(sorted(claimants, key=_precedence))
        if new:
            self._frontends[key] = new
        return old + new

    def _place(
        self, frontend: Frontend, desired: Mapping[VipKey, Vip], draft: _Draft, *, kept: bool
    ) -> None:
        """Have `draft` give `frontend` to the VIP that has it, and note what is wrong with it.

        `kept`: what is behind it stays there.
        """
        self._unplaced.pop(frontend, None)
        problems: list[Problem] = []
        claimants = self._claimants.get(frontend, ())
        if claimants:
            owner, *others = claimants
            try:
                draft.put(frontend, desired[owner], kept=kept)
            except _FullError as full:
                self._unplaced[frontend] = owner
                problems.append(Problem("kernel", str(owner), "capacity", str(full)))
            reason = f"{frontend} is the address of {owner}, which comes first."
            problems += [Problem("kernel", str(other), "address", reason) for other in others]
        elif not kept:
            draft.drop(frontend)
        if problems:
            self.problems[frontend] = tuple(problems)
        else:
            self.problems.pop(frontend, None)


def host_prefix(address: Address) -> Prefix:
    """The prefix of one address."""
    return ip_network(address)


def _contains(prefix: Prefix, address: Address) -> bool:
    return prefix.version == address.version and address in prefix


def _precedence(key: VipKey) -> tuple[int, str, str, int, str]:
    """Sorts names before addresses, then by what is written."""
    match key.host:
        case VipName(label, framework):
            return (0, label, framework, key.port, key.transport)
        case IPv4Address() | IPv6Address():
            return (1, str(key.host), "", key.port, key.transport)


# ---- the layout of one run -----------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Member:
    """A backend as the kernel is to have it."""

    endpoint: Endpoint
    weight: int
    """1-100."""
    tier: Tier
    inner: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """What a run is to look like."""

    slots: tuple[Endpoint, ...]
    """A member has slots in proportion to its weight: each of a tier has one before one has two."""
    counts: tuple[int, int, int]
    """Slots per tier, in that order in `slots`."""


def as_member(backend: Backend, host: AbstractSet[Address]) -> Member:
    """`backend` as the kernel of a host with these addresses is to have it.

    One of weight 0 is draining.
    """
    tier = backend.tier if backend.weight else Tier.DRAINING
    inner = backend.inner if backend.inner and backend.endpoint.address in host else None
    return Member(backend.endpoint, max(backend.weight, 1), tier, inner)


def _same_family(member: Member, frontend: Frontend) -> bool:
    return len(member.endpoint.address_packed) == len(frontend.address.packed)


def lay_out(members: Sequence[Member]) -> Layout:
    """The run for `members`, which are sorted by endpoint.

    Each has weight / (greatest common divisor within its tier) slots, a draining one has one. When
    less than half of the weight is up, what may be up is taken for it: both form the first tier.
    """
    up, maybe, draining = ([m for m in members if m.tier is tier] for tier in Tier)
    if _weight(up) < _weight(maybe):
        up, maybe = [m for m in members if m.tier is not Tier.DRAINING], []
    tiers = (_in_proportion(up), _in_proportion(maybe), [m.endpoint for m in draining])
    counts = (len(tiers[0]), len(tiers[1]), len(tiers[2]))
    return Layout(tuple(chain(*tiers)), counts)


def _weight(members: Iterable[Member]) -> int:
    return sum(member.weight for member in members)


def _in_proportion(members: Sequence[Member]) -> list[Endpoint]:
    """In rounds: a program that looks for one that is not ejected sees most of them early."""
    divisor = gcd(*(member.weight for member in members))
    shares = [(member.endpoint, member.weight // divisor) for member in members]
    slots: list[Endpoint] = []
    while shares:
        slots += (endpoint for endpoint, _ in shares)
        shares = [(endpoint, share - 1) for endpoint, share in shares if share > 1]
    return slots


# ---- one plan in the making ----------------------------------------------------------------------
class _Draft:
    """Collects operations, in the order in which they are to be applied."""

    def __init__(self, actual: KernelState, suspect: Collection[Frontend], ground: Ground) -> None:
        self._actual = actual
        self._host = ground.host
        self._suspect = suspect
        self._room = _Room(actual)
        self._next_vip_id = actual.next_vip_id
        self._vip_ids: dict[Frontend, int | None] = {}
        """Of the frontends that were put or dropped."""
        self._puts: list[PutBackend] = []
        self._runs: list[WriteRun] = []
        self._swaps: list[SwapVip] = []
        self._host_puts: list[PutPrefix] = []
        self._prefix_puts: list[PutPrefix] = []
        self._drops: list[DropVip] = []
        self._prefix_drops: list[DropPrefix] = []
        self._free_runs: list[tuple[int, int]] = []
        self._free_ids: list[int] = []

    def put(self, frontend: Frontend, vip: Vip, *, kept: bool = False) -> None:
        """Have `frontend` serve those backends of `vip` that are of its family.

        `kept`: beside what it serves now. Errors: _FullError; then it stays as it is.
        """
        old = self._actual.frontends.get(frontend)
        swap = old if frontend not in self._suspect else None
        known = self._actual.members.get(swap.vip_id, {}) if swap else {}
        members = self._members(frontend, vip, known if kept else {})
        layout = lay_out(list(members.values()))
        missing = sum(endpoint not in known for endpoint in members)
        is_new_run = swap is None or missing > 0 or not self._has_run(swap, layout, known)
        if swap is None or is_new_run:
            base = self._room.reserve(len(layout.slots), missing, is_new=old is None)
            swap = SwapVip(frontend, self._vip_id(swap), base, layout.counts)
        swap = replace(swap, affinity_seconds=vip.affinity_seconds)
        ids = {endpoint: known.get(endpoint) or self._room.next_id() for endpoint in members}
        for endpoint, backend_id in ids.items():
            self._put_backend(backend_id, swap.vip_id, members[endpoint])
        if is_new_run:
            self._new_run(swap, tuple(ids[endpoint] for endpoint in layout.slots), old)
        if swap != old or frontend in self._suspect:
            self._swaps.append(swap)
        self._free_ids += (i for endpoint, i in known.items() if endpoint not in ids)
        self._vip_ids[frontend] = swap.vip_id

    def _members(
        self, frontend: Frontend, vip: Vip, kept: Mapping[Endpoint, int]
    ) -> dict[Endpoint, Member]:
        """What is to be behind `frontend`, sorted: of `vip`, and the backends that are `kept`."""
        wanted = (as_member(backend, self._host) for backend in vip.backends)
        members = {m.endpoint: m for m in wanted if _same_family(m, frontend)}
        if not kept:
            return members
        before = (self._actual.backends[backend_id] for backend_id in kept.values())
        members = {
            b.endpoint: Member(b.endpoint, b.weight, b.tier, b.inner) for b in before
        } | members
        return dict(sorted(members.items()))

    def own(self, prefix: Prefix, owner: Owner | None, *, is_complete: bool) -> None:
        """Have the kernel know `owner` of `prefix`, None as nobody.

        Until `is_complete`, when every VIP is known, nothing more is refused than before. Where
        there is no room for one more prefix, what is no VIP passes.
        """
        before = self._actual.prefixes.get(prefix)
        if owner is before or not (is_complete or owner is Owner.HOST):
            return
        if owner is None:
            self._prefix_drops.append(DropPrefix(prefix))
        elif before is not None or self._room.reserve_prefix():
            puts = self._host_puts if owner is Owner.HOST else self._prefix_puts
            puts.append(PutPrefix(prefix, owner))

    def drop(self, frontend: Frontend) -> None:
        """Have the kernel forget `frontend`, if it knows it."""
        old = self._actual.frontends.get(frontend)
        if old is None:
            return
        self._drops.append(DropVip(frontend))
        self._free_run(old)
        self._vip_ids[frontend] = None
        if frontend not in self._suspect:
            self._free_ids += self._actual.members.get(old.vip_id, {}).values()

    def sweep(self) -> None:
        """Free what no frontend has: leftovers of an agent that was killed, or foreign writes."""
        used = {vip.base for vip in self._actual.frontends.values() if vip.size}
        self._free_runs += (
            (base, len(run)) for base, run in self._actual.runs.items() if base not in used
        )
        before = {frontend: vip.vip_id for frontend, vip in self._actual.frontends.items()}
        living = {*(before | self._vip_ids).values()}
        self._free_ids += (
            backend.id
            for backend in self._actual.backends.values()
            if backend.vip_id not in living
            or self._actual.members[backend.vip_id][backend.endpoint] != backend.id
        )

    def ops(self) -> tuple[Op, ...]:
        """Everything collected, in the order in which it is to be applied."""
        runs, ids = tuple(dict.fromkeys(self._free_runs)), tuple(dict.fromkeys(self._free_ids))
        release = [Release(runs, ids)] if runs or ids else []
        return (
            *self._puts,
            *self._runs,
            *self._swaps,
            *self._host_puts,  # kept out of a range before the range is refused
            *self._prefix_puts,
            *self._prefix_drops,
            *self._drops,
            *release,
        )

    def _has_run(self, vip: SwapVip, layout: Layout, known: Mapping[Endpoint, int]) -> bool:
        """Whether `vip` has that layout already. Every member is in `known`."""
        run = self._actual.runs.get(vip.base, ()) if vip.size else ()
        return vip.counts == layout.counts and run == tuple(known[e] for e in layout.slots)

    def _vip_id(self, old: SwapVip | None) -> int:
        if old is not None:
            return old.vip_id
        self._next_vip_id += 1
        return self._next_vip_id - 1

    def _put_backend(self, backend_id: int, vip_id: int, member: Member) -> None:
        put = PutBackend(
            backend_id, vip_id, member.endpoint, member.weight, member.tier, member.inner
        )
        if self._actual.backends.get(backend_id) != put:
            self._puts.append(put)

    def _new_run(self, swap: SwapVip, run: tuple[int, ...], old: SwapVip | None) -> None:
        if run:
            self._runs.append(WriteRun(swap.base, run))
        if old is not None:
            self._free_run(old)

    def _free_run(self, vip: SwapVip) -> None:
        if vip.size:
            self._free_runs.append((vip.base, vip.size))


class _FullError(Exception):
    """A map has no room; the message is a sentence and becomes a problem."""


class _Room:
    """What is free in a state, less what a plan has reserved; the state stays as it is."""

    def __init__(self, actual: KernelState) -> None:
        self._limits = actual.limits
        self._vips = len(actual.frontends)
        self._ids = actual.free_ids()
        self._ids_left = actual.limits.backends - 1 - len(actual.backends)
        self._prefixes_left = actual.limits.prefixes - len(actual.prefixes)
        self._free = actual.free_slots
        self._reserved: dict[int, int] = {}
        """Index of a free piece -> slots reserved from its start on."""
        self._search_from: dict[int, int] = {}
        """Size -> index of the first free piece that may have room for it."""

    def reserve(self, slots: int, ids: int, *, is_new: bool) -> int:
        """Reserve room for one frontend: the base of its run, 0 for an empty one.

        Errors: _FullError, with nothing reserved.
        """
        if self._vips + is_new > self._limits.vips:
            raise _FullError(f"All {self._limits.vips} VIPs are in use (max_vips).")
        if ids > self._ids_left:
            raise _FullError(f"Fewer than {ids} backends are free (max_backends).")
        base = self._reserve_slots(slots) if slots else 0
        self._vips += is_new
        self._ids_left -= ids
        return base

    def reserve_prefix(self) -> bool:
        """Reserve room for a prefix, if there is any."""
        self._prefixes_left -= 1
        return self._prefixes_left >= 0

    def next_id(self) -> int:
        """One of the backend ids that were reserved."""
        return next(self._ids)

    def _reserve_slots(self, size: int) -> int:
        """The lowest piece with `size` free slots."""
        for i in range(self._search_from.get(size, 0), len(self._free.starts)):
            base = self._free.starts[i] + self._reserved.get(i, 0)
            if base + size <= self._free.ends[i]:
                self._reserved[i] = self._reserved.get(i, 0) + size
                self._search_from[size] = i
                return base
        self._search_from[size] = len(self._free.starts)
        raise _FullError(f"No {size} slots in a row are free (max_slots).")


def suspects(actual: KernelState) -> frozenset[Frontend]:
    """Frontends that share slots or a vip id with another one, which no plan of ours does.

    Somebody else wrote to the maps. Such frontends are written anew.
    """
    found: set[Frontend] = set()
    by_base = sorted((vip for vip in actual.frontends.values() if vip.size), key=lambda v: v.base)
    end, holder = 0, None
    for vip in by_base:
        if holder is not None and vip.base < end:
            found |= {holder.frontend, vip.frontend}
        if vip.base + vip.size > end:
            end, holder = vip.base + vip.size, vip
    by_id: dict[int, Frontend] = {}
    for vip in actual.frontends.values():
        if by_id.setdefault(vip.vip_id, vip.frontend) != vip.frontend:
            found |= {vip.frontend, by_id[vip.vip_id]}
    return frozenset(found)
