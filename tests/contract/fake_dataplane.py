"""A dataplane whose maps are dictionaries.

It keeps the promises of the kernel's, and says where a connection goes from the maps alone, as the
programs do.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from minuteman.dataplane.base import Applied
from minuteman.errors import DataplaneError
from minuteman.model import Address, Counters, Endpoint, Frontend, Problem
from minuteman.reconcile.kernelstate import (
    DropPrefix,
    DropVip,
    KernelState,
    Limits,
    Op,
    Owner,
    Prefix,
    PutBackend,
    PutPrefix,
    Release,
    SwapVip,
    WriteRun,
)


class Verdict(Enum):
    """How a connection can end without a backend."""

    REFUSED = "the VIP has no backend, or the address is for VIPs alone"
    PASSED = "not a VIP"


@dataclass
class Maps:
    """What outlives an agent, as pins do."""

    vips: dict[Frontend, SwapVip] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    backends: dict[int, PutBackend] = field(default_factory=dict)
    prefixes: dict[Prefix, Owner] = field(default_factory=dict)
    skips: frozenset[int] = frozenset()
    listening_until_ns: int = 0
    generation: int = 0
    attached: bool = False

    def clear(self) -> None:
        self.vips.clear()
        self.slots.clear()
        self.backends.clear()
        self.prefixes.clear()
        self.skips = frozenset()
        self.listening_until_ns = 0
        self.generation = 0
        self.attached = False


class FakeDataplane:
    """Implements `Dataplane`. `maps` of an earlier one make it a successor."""

    def __init__(self, limits: Limits | None = None, maps: Maps | None = None) -> None:
        self.limits = limits or Limits()
        self.maps = maps or Maps()
        self.done: list[Op] = []
        """Every operation that was acknowledged."""
        self.fail_after: int | None = None
        """How many more operations will do; then each fails until this is None again."""
        self.failed = 0
        """How many operations did."""
        self.beyond_repair = False
        """What is detached stays so."""
        self._is_open = False

    # ---- Dataplane ------------------------------------------------------------------------------
    def open(self) -> KernelState:
        self._is_open = True
        self.maps.attached = True
        return self.audit()

    def apply(self, ops: Sequence[Op], state: KernelState) -> Applied:
        self._check_open()
        for done, op in enumerate(ops):
            try:
                self._write(op)
            except DataplaneError as exc:
                return Applied(done, exc)
            state.apply(op)
            self.done.append(op)
        if ops:
            state.generation += 1
            self.maps.generation = state.generation
        return Applied(len(ops))

    def audit(self) -> KernelState:
        self._check_open()
        vips = self.maps.vips.values()
        runs = {
            vip.base: tuple(self.maps.slots.get(vip.base + i, 0) for i in range(vip.size))
            for vip in vips
            if vip.size
        }
        used = sorted({backend_id for run in runs.values() for backend_id in run})
        backends = [self.maps.backends[i] for i in used if i in self.maps.backends]
        return KernelState(
            self.limits,
            generation=self.maps.generation,
            frontends=vips,
            runs=runs,
            backends=backends,
            prefixes=self.maps.prefixes,
        )

    def attached(self) -> tuple[Problem, ...]:
        attached = self._is_open and self.maps.attached
        return () if attached else (Problem("fake", "", "attached", "It is not."),)

    def counters(self) -> Counters:
        self._check_open()
        return Counters()  # nobody connects here

    def repair(self) -> None:
        if self.beyond_repair:
            raise DataplaneError("attach", errno.EPERM)
        self.maps.attached = True

    def skip(self, cgroups: Collection[int]) -> None:
        self._check_open()
        self.maps.skips = frozenset(cgroups)

    def listen_until(self, monotonic_ns: int) -> None:
        self._check_open()
        self.maps.listening_until_ns = monotonic_ns

    def close(self) -> None:
        self._is_open = False

    def remove(self) -> None:
        self.maps.clear()

    # ---- what a program would do ----------------------------------------------------------------
    def reachable(self, frontend: Frontend) -> frozenset[Endpoint] | Verdict:
        """The backends that a connection may be given now."""
        candidates = self._candidates(frontend)
        return candidates if isinstance(candidates, Verdict) else frozenset(candidates)

    def choose(self, frontend: Frontend, chance: random.Random) -> Endpoint | Verdict:
        """Where one connection goes."""
        candidates = self._candidates(frontend)
        return candidates if isinstance(candidates, Verdict) else chance.choice(candidates)

    def _candidates(self, frontend: Frontend) -> list[Endpoint] | Verdict:
        """The slots of the best tier that has any."""
        vip = self.maps.vips.get(frontend)
        if vip is None:
            return self._where_no_vip_is(frontend.address)
        first = vip.base
        for size in vip.counts:
            if size:
                return [self._member_at(slot, vip).endpoint for slot in range(first, first + size)]
        return Verdict.REFUSED

    def _where_no_vip_is(self, address: Address) -> Verdict:
        """As the longest prefix says."""
        found = [p for p in self.maps.prefixes if p.version == address.version and address in p]
        longest = max(found, key=lambda prefix: prefix.prefixlen, default=None)
        refused = longest is not None and self.maps.prefixes[longest] is Owner.VIPS
        return Verdict.REFUSED if refused else Verdict.PASSED

    def _member_at(self, slot: int, vip: SwapVip) -> PutBackend:
        backend = self.maps.backends.get(self.maps.slots.get(slot, 0))
        assert backend is not None, f"slot {slot} of {vip.frontend} names no backend"
        assert backend.vip_id == vip.vip_id, f"slot {slot} of {vip.frontend} is another VIP's"
        return backend

    # ---- writing --------------------------------------------------------------------------------
    def _write(self, op: Op) -> None:
        if self.fail_after is not None:
            if self.fail_after == 0:
                self.failed += 1
                raise DataplaneError(type(op).__name__, errno.ENOMEM)
            self.fail_after -= 1
        match op:
            case PutBackend():
                self._check_index("put backend", op.id, self.limits.backends)
                self.maps.backends[op.id] = op
            case WriteRun():
                self._check_index(
                    "write slots", op.base + len(op.backend_ids) - 1, self.limits.slots
                )
                for i, backend_id in enumerate(op.backend_ids):
                    self.maps.slots[op.base + i] = backend_id
            case SwapVip():
                if op.frontend not in self.maps.vips and len(self.maps.vips) >= self.limits.vips:
                    raise DataplaneError("swap vip", errno.E2BIG)
                self.maps.vips[op.frontend] = op
            case DropVip():
                self.maps.vips.pop(op.frontend, None)
            case Release():
                for backend_id in op.backend_ids:
                    self.maps.backends.pop(backend_id, None)
            case PutPrefix():
                self.maps.prefixes[op.prefix] = op.owner
            case DropPrefix():
                self.maps.prefixes.pop(op.prefix, None)

    def _check_index(self, operation: str, index: int, limit: int) -> None:
        if not 0 <= index < limit:
            raise DataplaneError(operation, errno.E2BIG)

    def _check_open(self) -> None:
        if not self._is_open:
            raise DataplaneError("use the maps", 0, "the dataplane is not open")
