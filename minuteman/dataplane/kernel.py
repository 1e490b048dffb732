"""The kernel's dataplane: pinned programs and maps, links on one cgroup."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from itertools import groupby
from pathlib import Path
from typing import cast

from minuteman.dataplane import cgroup, pins, probe, takeover
from minuteman.dataplane.attachment import Attachment
from minuteman.dataplane.base import Applied
from minuteman.dataplane.layout import map_layouts
from minuteman.dataplane.maps import Maps
from minuteman.dataplane.netns import netns_cookie
from minuteman.dataplane.recipe import Recipe
from minuteman.dataplane.takeover import Takeover
from minuteman.errors import DataplaneError, LayoutError, RunningError, UnsupportedKernelError
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
NOT_PINNED = "The pins of {} maps were removed: without the agent they would end."


class KernelDataplane:
    """Implements `Dataplane` with the real kernel.

    `cgroup` is served with all below it; `pins_root` is a folder of our own on a bpffs; `state_dir`
    caches what the compiler needs.
    """

    def __init__(self, cgroup: Path, pins_root: Path, state_dir: Path, limits: Limits) -> None:
        self._cgroup = cgroup
        self._root = pins_root
        self._state_dir = state_dir
        self._limits = limits
        self._where = pins.Pins.ours(pins_root, limits)
        self._lock_fd = -1
        self._maps: Maps | None = None
        self._attachment: Attachment | None = None
        self._state = KernelState(limits)
        self._audited: bytes | None = None
        """Digest of the maps that `state` was read from; None: they were written since."""

    def open(self) -> KernelState:
        """Load, attach and read back; see `Dataplane.open`."""
        if reasons := probe.missing():
            raise UnsupportedKernelError("run on this kernel", 0, "; ".join(reasons))
        os.close(cgroup.open_cgroup(self._cgroup))
        served_before = True
        try:
            self._lock_fd = pins.own(self._root)
            served_before = pins.serving(self._root) is not None
            self._open()
        except RunningError:
            self.close()
            raise
        except DataplaneError:
            if self._lock_fd >= 0 and not (served_before and self._where.serve):
                self._throw_away()
            self.close()
            raise
        log.info(
            "programs attached cgroup=%s vips=%d backends=%d generation=%d",
            self._cgroup,
            len(self._state.frontends),
            len(self._state.backends),
            self._state.generation,
        )
        return self._state

    def _open(self) -> None:
        before = takeover.predecessor(self._where)
        if before is None:
            if not (self._where.serve or _is_current(self._where, self._limits)):
                # Of a start or a removal that was killed: its maps do not belong together.
                pins.discard(self._where)
            self._load()
            self._start().discard_others()
            return
        pins.discard(self._where)  # what is there is of an attempt that failed
        with closing(Takeover(before, self._where, self._limits)) as change:
            change.share()
            self._load()
            change.fill()
            attachment = self._start()
            change.catch_up()
            attachment.discard_others()

    def _load(self) -> None:
        """Have programs and maps pinned in our folder."""
        self._where.make_folders()
        if not _is_current(self._where, self._limits):
            _run_loader(self._where, self._state_dir / "cache", self._limits, self._lock_fd)

    def _start(self) -> Attachment:
        """Read what the maps hold, and attach the programs."""
        self._maps = Maps.open(self._where.maps, self._limits)
        self._state = self._maps.read_state()
        self._maps.write_meta(self._state.generation)
        self._maps.set_host(netns_cookie())
        self._attachment = Attachment(self._where, self._cgroup)
        self._attachment.attach()
        return self._attachment

    def apply(self, ops: Sequence[Op], state: KernelState) -> Applied:
        """Do `ops` in their order, neighbours of one kind in one call; see `Dataplane.apply`."""
        self._state = state
        self._audited = None
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
        """Read the maps back whole, unless every byte is as it was the last time."""
        maps = self._opened()
        if self._audited is None or maps.digest(self._state) != self._audited:
            self._state = maps.read_state()
            self._audited = maps.digest(self._state)
        return self._state

    def attached(self) -> tuple[Problem, ...]:
        """What is missing of our programs on the cgroup, and of our pins."""
        maps, attachment = self._opened(), self._attachment
        found = attachment.look() if attachment else ()
        if unpinned := maps.unpinned(self._where.maps):
            reason = NOT_PINNED.format(len(unpinned))
            found = (*found, Problem(str(self._where.maps), "", "pins", reason))
        return found

    def repair(self) -> None:
        """Attach and pin again; see `Dataplane.repair`."""
        if not pins.is_same_folder(self._lock_fd, self._root):
            lock_fd = pins.own(self._root)
            os.close(self._lock_fd)
            self._lock_fd = lock_fd
        if self._attachment:
            self._attachment.repair()
        self._opened().pin_again(self._where.maps)

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

    def listen_until(self, monotonic_ns: int) -> None:
        """Have the programs tell of connections in `events` until then; 0: not at all."""
        self._opened().listen_until(monotonic_ns)

    def close(self) -> None:
        """Let go of descriptors; programs, links and maps stay and keep serving."""
        if self._maps is not None:
            self._maps.close()
            self._maps = None
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def remove(self) -> None:
        """Take away every program, link, map and pin of ours, of any version.

        Errors: RunningError while another agent has the pins.
        """
        self.close()
        pins.remove_all(self._root)
        log.info("programs removed pins=%s", self._root)

    def _throw_away(self) -> None:
        """Take away what a failed start has pinned."""
        pins.discard(self._where)
        with suppress(OSError):  # others of ours are in there
            self._root.rmdir()

    def _opened(self) -> Maps:
        if self._maps is None:
            raise DataplaneError("use the maps", 0, "the dataplane is not open")
        return self._maps


def _is_current(where: pins.Pins, limits: Limits) -> bool:
    """Whether what is pinned is complete, and what the loader would make."""
    try:
        made_of = pins.read_about(where).programs
    except LayoutError:
        return False
    is_complete = all(
        path.exists()
        for path in (
            *(where.maps / name for name in map_layouts(limits)),
            *(where.programs / name for name in pins.loadable()),
        )
    )
    return is_complete and made_of == Recipe.of(where.maps, limits).digest


def loader_command(where: pins.Pins, cache: Path, limits: Limits) -> list[str]:
    """The command line of the loader child."""
    command = [sys.executable, "-P", "-m", "minuteman.dataplane.loader"]
    command += ["--pins", str(where.root), "--cache", str(cache)]
    command += ["--vips", str(limits.vips), "--slots", str(limits.slots)]
    return [*command, "--backends", str(limits.backends), "--conns", str(limits.conns)]


def _run_loader(where: pins.Pins, cache: Path, limits: Limits, lock_fd: int) -> None:
    """Run the loader child, which has the lock, too: it may outlive us.

    Errors: UnsupportedKernelError with its last line.
    """
    command = loader_command(where, cache, limits)
    started = time.monotonic()
    try:
        child = subprocess.run(  # noqa: S603 - our own module, our own arguments
            command,
            capture_output=True,
            check=False,
            timeout=LOAD_TIMEOUT_SECONDS,
            text=True,
            pass_fds=(lock_fd,),
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
