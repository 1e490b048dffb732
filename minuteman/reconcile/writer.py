"""Brings the kernel to the VIPs that are wanted, and keeps it there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from minuteman.dataplane.base import Dataplane
from minuteman.errors import DataplaneError
from minuteman.model import Backend, Problem, Vip, VipKey
from minuteman.reconcile.kernelstate import KernelState, Op, PutBackend, Release
from minuteman.reconcile.plan import NO_GROUND, Gate, Ground, Planner

log = logging.getLogger(__name__)

ATTACHED_SECONDS = 2.0
"""Between two looks at whether the programs are still attached."""
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Written:
    """What the kernel has now as it was wanted."""

    keys: frozenset[VipKey] | None
    """VIPs that changed; None: any may have."""
    unplaced: frozenset[VipKey]
    """VIPs for which there was no room; the kernel has what it had."""
    released: bool
    """Backends have gone since the last time; sockets may still be connected to them."""


class Writer:
    """The only one who changes the maps. For one thread."""

    def __init__(
        self, dataplane: Dataplane, state: KernelState, *, audit_seconds: float, now: float
    ) -> None:
        """`dataplane` is open, and `state` is what it returned then."""
        self._dataplane = dataplane
        self._state = state
        self._is_mirror = True
        """`state` is what the maps hold. Not after a failed operation."""
        self._planner = Planner()
        self._gate = Gate.SHUT
        self._ground = NO_GROUND
        self._inherited = frozenset(state.frontends)
        self._dirty: set[VipKey] | None = None
        """VIPs to be planned; None: all of them."""
        self._unplaced: frozenset[VipKey] = frozenset()
        self._has_released = True
        """Backends may have gone that `Written` did not tell of; at first, in earlier runs."""
        self._audit_seconds = audit_seconds
        self._audit_at = now + audit_seconds
        self._attached_at = now
        self._retry_at: float | None = None
        """None: nothing failed."""
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._failure: tuple[Problem, ...] = ()
        self._detached: tuple[Problem, ...] = ()
        self._complaint: tuple[Problem, ...] = ()
        """What the last look at the attachment found."""
        self.attached = False
        """Every program is effective on the cgroup, as of the last look."""
        self.drift = 0
        """How often the maps were not as they had been written."""
        self.repairs = 0
        """How often the programs were not in effect, and were attached again."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What the kernel refuses, and what there is no room for."""
        unplaced = (problem for found in self._planner.problems.values() for problem in found)
        return (*unplaced, *self._failure, *self._detached)

    @property
    def without_room(self) -> int:
        """VIPs that keep what they had, because the maps are full."""
        return len(self._unplaced)

    @property
    def has_vips(self) -> bool:
        """The kernel serves something."""
        return bool(self._state.frontends)

    @property
    def is_settled(self) -> bool:
        """Everything that was noted is in the kernel, or there is no room for it."""
        return self._dirty is not None and not self._dirty

    def note(self, dirty: AbstractSet[VipKey]) -> None:
        """These VIPs may be wanted in another way than before."""
        if self._dirty is not None:
            self._dirty |= dirty

    def set_gate(self, gate: Gate) -> None:
        """What may be done to the VIPs of earlier runs. An open gate stays open."""
        if self._gate in (Gate.OPEN, gate):
            return
        log.info("gate moved to=%s inherited=%d", gate.name.lower(), len(self._inherited))
        self._gate = gate
        self._dirty = None

    def stand_on(self, ground: Ground) -> None:
        """What a plan has to know beside the VIPs is now this."""
        if ground != self._ground:
            self._ground = ground
            self._dirty = None

    def write(self, vips: Mapping[VipKey, Vip], now: float) -> Written | None:
        """Make the kernel serve `vips`. None: nothing was to do, or it will be tried again."""
        if self.is_settled or (self._retry_at is not None and now < self._retry_at):
            return None
        try:
            if not self._is_mirror:
                self._state = self._dataplane.audit()
                self._is_mirror = True
            written = self._apply(vips)
        except DataplaneError as exc:
            self._fail(exc, now)
            return None
        self._succeed()
        return written

    def served(self, vips: Mapping[VipKey, Vip]) -> Mapping[VipKey, Vip]:
        """`vips` as the kernel has them now that they were written.

        While the gate is shut those of earlier runs are as they were, whatever is wanted.
        """
        if self._gate is not Gate.SHUT:
            return vips
        return {
            key: vip if self._inherited.isdisjoint(vip.frontends) else as_served(vip, self._state)
            for key, vip in vips.items()
        }

    def watch(self, now: float) -> None:
        """Audit the maps and look at the attachment, each when it is due."""
        if now >= self._audit_at:
            self._audit_at = now + self._audit_seconds
            if self._is_mirror:
                self._audit(now)
        if now >= self._attached_at:
            self._attached_at = now + ATTACHED_SECONDS
            self._look_at_attachment()

    def wake_monotonic(self) -> float:
        """When there is something to do though nothing rings."""
        times = [self._audit_at, self._attached_at]
        if self._retry_at is not None:
            times.append(self._retry_at)
        return min(times)

    def _apply(self, vips: Mapping[VipKey, Vip]) -> Written:
        """Plan and apply, until what was freed on the way helps no VIP any more."""
        keys = self._dirty
        while True:
            planned = self._planner.plan(
                vips, self._state, self._dirty, self._gate, self._inherited, self._ground
            )
            if planned.ops:
                self._has_released |= any(releases(op, self._state) for op in planned.ops)
                applied = self._dataplane.apply(planned.ops, self._state)
                log.debug("applied operations=%d of=%d", applied.done, len(planned.ops))
                if applied.error:
                    raise applied.error
            self._dirty = set()
            if not (planned.unplaced and planned.frees):
                break
        if keys is not None:
            keys |= self._unplaced
        self._unplaced = planned.unplaced
        return Written(
            None if keys is None else frozenset(keys), planned.unplaced, self._take_released()
        )

    def _take_released(self) -> bool:
        """Whether backends have gone, once it is known which ones are to stay."""
        released = self._has_released and self._gate is Gate.OPEN
        self._has_released = self._has_released and not released
        return released

    def _fail(self, error: DataplaneError, now: float) -> None:
        if self._retry_at is None:
            log.warning("kernel refused operation=%r error=%r", error.operation, str(error))
        self._failure = (Problem("kernel", "", error.operation, f"{error}; it is tried again."),)
        self._is_mirror = False
        self._has_released = True
        self._dirty = None
        self._retry_at = now + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)

    def _succeed(self) -> None:
        if self._retry_at is not None:
            log.info("kernel obeys again")
        self._failure = ()
        self._retry_at = None
        self._retry_seconds = FIRST_RETRY_SECONDS

    def _audit(self, now: float) -> None:
        """Compare the maps with what was written, and have all planned anew when they differ."""
        try:
            found = self._dataplane.audit()
        except DataplaneError as exc:
            self._fail(exc, now)
            return
        if found == self._state:
            return
        self.drift += 1
        log.warning("maps were changed by somebody else drift=%d", self.drift)
        self._state = found
        self._has_released = True
        self._dirty = None

    def _look_at_attachment(self) -> None:
        found = self._dataplane.attached()
        if found and found != self._complaint:
            log.warning("programs are not attached reason=%r", found[0].reason)
        self._complaint = found
        self._detached = self._repair(found) if found else ()
        attached = not self._detached
        if attached and not self.attached:
            log.info("programs are attached")
        self.attached = attached

    def _repair(self, found: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """Have the dataplane put right what it has found, and look again."""
        try:
            self._dataplane.repair()
        except DataplaneError as exc:
            reason = f"{exc}; it is tried again."
            return (*found, Problem("kernel", "", exc.operation, reason))
        left = self._dataplane.attached()
        if not left:
            self.repairs += 1
            log.warning("programs attached again repairs=%d", self.repairs)
        return left


def as_served(vip: Vip, state: KernelState) -> Vip:
    """`vip` with the backends that are behind its frontends in `state`.

    Of those that it does not have itself, the task is not known.
    """
    swaps = [state.frontends[f] for f in vip.frontends if f in state.frontends]
    backends = {
        put.endpoint: Backend(put.endpoint, put.weight, put.tier, "", "", "")
        for swap in swaps
        for i in (state.runs.get(swap.base, ()) if swap.size else ())
        if (put := state.backends.get(i)) and put.vip_id == swap.vip_id
    }
    backends |= {b.endpoint: b for b in vip.backends if b.endpoint in backends}
    return replace(vip, backends=tuple(backends[endpoint] for endpoint in sorted(backends)))


def releases(op: Op, state: KernelState) -> bool:
    """Whether `op`, done to `state`, takes a backend away, or where one listens itself."""
    match op:
        case Release(backend_ids=backend_ids):
            return bool(backend_ids)
        case PutBackend():
            old = state.backends.get(op.id)
            return old is not None and old.inner not in (None, op.inner)
    return False
