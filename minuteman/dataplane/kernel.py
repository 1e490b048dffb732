"""The kernel's dataplane: pinned programs and maps, links on one cgroup."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import cast

from minuteman.dataplane import bpf, cgroup, pins, probe
from minuteman.dataplane.base import Applied
from minuteman.dataplane.maps import Maps
from minuteman.dataplane.netns import netns_cookie
from minuteman.errors import DataplaneError, RunningError, UnsupportedKernelError
from minuteman.model import Counters, Problem
from minuteman.reconcile.kernelstate import (
    DropPrefix,
    DropVip,
    KernelState,
    Limits,
    Op,
    PutBackend,
    PutPrefix,
    Release,
    SwapVip,
    WriteRun,
)

log = logging.getLogger(__name__)

LOAD_TIMEOUT_SECONDS = 60
NOT_EFFECTIVE = (
    "The program is not effective on this cgroup: it was detached, or the cgroup was removed."
)


class KernelDataplane:
    """Implements `Dataplane` with the real kernel.

    `cgroup` is served with all below it; `pins` is a folder of our own on a bpffs; `state_dir`
    caches what the compiler needs.
    """

    def __init__(self, cgroup: Path, pins: Path, state_dir: Path, limits: Limits) -> None:
        self._cgroup = cgroup
        self._root = pins
        self._state_dir = state_dir
        self._limits = limits
        self._cgroup_fd = -1
        self._lock_fd = -1
        self._maps: Maps | None = None
        self._state = KernelState(limits)
        self._programs: dict[str, int] = {}

    def open(self) -> KernelState:
        """Load, attach and read back; see `Dataplane.open`."""
        if reasons := probe.missing():
            raise UnsupportedKernelError("run on this kernel", 0, "; ".join(reasons))
        self._cgroup_fd = cgroup.open_cgroup(self._cgroup)
        where = pins.Pins(self._root)
        served_before = where.serve()
        try:
            self._lock_fd = pins.own(self._root)
            where.check_alone()
            _load(where, self._state_dir / "cache", self._limits)
            self._maps = Maps.open(where.maps, self._limits)
            self._state = self._maps.read_state()
            self._maps.set_host(netns_cookie())
            pins.attach(where, self._cgroup_fd, cgroup.cgroup_id(self._cgroup_fd))
            self._programs = pins.program_ids(where)
        except RunningError:
            self.close()
            raise
        except DataplaneError:
            self.close()
            if not served_before:
                self._remove_if_ours()
            raise
        log.info(
            "programs attached cgroup=%s vips=%d backends=%d generation=%d",
            self._cgroup,
            len(self._state.frontends),
            len(self._state.backends),
            self._state.generation,
        )
        return self._state

    def apply(self, ops: Sequence[Op], state: KernelState) -> Applied:
        """Do `ops` in their order, neighbours of one kind in one call; see `Dataplane.apply`."""
        self._state = state
        done = 0
        try:
            for acknowledged in self._write(ops, state):
                for op in acknowledged:
                    state.apply(op)
                done += len(acknowledged)
            if ops:
                state.generation += 1
                self._opened().write_meta(state.generation)
        except DataplaneError as exc:
            return Applied(done, exc)
        return Applied(done)

    def _write(self, ops: Sequence[Op], state: KernelState) -> Iterator[Sequence[Op]]:
        """Write `ops`; yields them as the kernel acknowledges them."""
        maps = self._opened()
        for kind, group in groupby(ops, key=type):
            if kind is PutBackend:
                backends = cast(list[PutBackend], list(group))
                maps.put_backends(backends, state)
                yield backends
                continue
            for op in group:
                match op:
                    case WriteRun():
                        maps.write_slots(op.base, op.backend_ids)
                    case SwapVip():
                        maps.swap_vip(op)
                    case DropVip():
                        maps.drop_vip(op.frontend)
                    case Release():
                        maps.free_backends(
                            [state.backends[i] for i in op.backend_ids if i in state.backends]
                        )
                    case PutPrefix():
                        maps.put_prefix(op.prefix, op.owner)
                    case DropPrefix():
                        maps.drop_prefix(op.prefix)
                yield (op,)

    def audit(self) -> KernelState:
        """Read the maps back whole."""
        self._state = self._opened().read_state()
        return self._state

    def attached(self) -> tuple[Problem, ...]:
        """What is missing of our programs in the effective query of the cgroup."""
        problems = []
        for name, program in self._programs.items():
            try:
                effective = bpf.effective_programs(self._cgroup_fd, pins.PROGRAMS[name])
            except DataplaneError as exc:
                problems.append(Problem(str(self._cgroup), name, "attached", str(exc)))
                continue
            if program not in effective:
                problems.append(Problem(str(self._cgroup), name, "attached", NOT_EFFECTIVE))
        return tuple(problems)

    def counters(self) -> Counters:
        """The counters of every backend that is behind a VIP and was ever connected to."""
        maps = self._opened()
        state = self._state
        counted = maps.read_counters(state.next_backend_id)
        frontends = {vip.vip_id: vip.frontend for vip in state.frontends.values()}
        return Counters(
            taken_monotonic=time.monotonic(),
            by_vip_backend={
                (frontends[backend.vip_id], backend.endpoint): counted[backend.id]
                for backend in state.backends.values()
                if backend.vip_id in frontends and backend.id in counted
            },
            reasons=maps.read_reasons(),
        )

    def skip(self, cgroups: Collection[int]) -> None:
        """Leave the processes in these cgroups alone; see `Dataplane.skip`."""
        self._opened().set_skips(cgroups)

    def close(self) -> None:
        """Let go of descriptors; programs, links and maps stay and keep serving."""
        if self._maps is not None:
            self._maps.close()
            self._maps = None
        bpf.close_all(fd for fd in (self._cgroup_fd, self._lock_fd) if fd >= 0)
        self._cgroup_fd = self._lock_fd = -1

    def remove(self) -> None:
        """Take away every program, link, map and pin of ours, of any schema.

        Errors: RunningError while another agent has the pins.
        """
        self.close()
        pins.remove_all(self._root)
        log.info("programs removed pins=%s", self._root)

    def _remove_if_ours(self) -> None:
        """Take away what a failed start has pinned."""
        if pins.is_on_bpffs(self._root):
            self.remove()

    def _opened(self) -> Maps:
        if self._maps is None:
            raise DataplaneError("use the maps", 0, "the dataplane is not open")
        return self._maps


def _load(where: pins.Pins, cache: Path, limits: Limits) -> None:
    """Run the loader child. Errors: UnsupportedKernelError with its last line."""
    command = [sys.executable, "-P", "-m", "minuteman.dataplane.loader"]
    command += ["--pins", str(where.root), "--cache", str(cache)]
    command += ["--vips", str(limits.vips), "--slots", str(limits.slots)]
    command += ["--backends", str(limits.backends), "--conns", str(limits.conns)]
    started = time.monotonic()
    try:
        child = subprocess.run(  # noqa: S603 - our own module, our own arguments
            command, capture_output=True, check=False, timeout=LOAD_TIMEOUT_SECONDS, text=True
        )
    except subprocess.TimeoutExpired as exc:
        raise UnsupportedKernelError(
            "load the programs", 0, f"not done after {LOAD_TIMEOUT_SECONDS} s"
        ) from exc
    if child.returncode:
        *words, last = child.stderr.strip().splitlines() or ["the loader said nothing"]
        for line in words:
            log.debug("loader: %s", line)
        raise UnsupportedKernelError("load the programs", 0, last)
    log.info("programs loaded seconds=%.2f", time.monotonic() - started)
