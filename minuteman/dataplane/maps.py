"""The pinned maps as typed stores: values of the model go in and come out, bytes stay here."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minuteman.dataplane import bpf, layout
from minuteman.dataplane.places import Places
from minuteman.errors import DataplaneError
from minuteman.model import BackendCounters, Frontend
from minuteman.reconcile.kernelstate import (
    KernelState,
    Limits,
    Owner,
    Prefix,
    PutBackend,
    SwapVip,
)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class Maps:
    """Open descriptors of every map of one schema. Errors of all methods: DataplaneError."""

    fds: Mapping[str, int]
    limits: Limits
    places: Places
    epochs: dict[int, int] = field(default_factory=dict)
    """Backend id -> epoch, for ids that were ever used."""
    _host_netns: int = 0
    _listening_until_ns: int = 0
    _skips: int = 0

    @classmethod
    def open(cls, folder: Path, limits: Limits) -> Maps:
        """The maps pinned in `folder`."""
        fds: dict[str, int] = {}
        try:
            for name in layout.map_layouts(limits):
                fds[name] = bpf.open_pin(folder / name)
            skips = len(_read_skips(fds["skips"]))
            places = Places(fds["vips"], limits.vips)
        except OSError as exc:
            bpf.close_all(fds.values())
            raise DataplaneError("map vips into memory", exc.errno or 0) from exc
        except DataplaneError:
            bpf.close_all(fds.values())
            raise
        return cls(fds, limits, places, _skips=skips)

    def close(self) -> None:
        self.places.close()
        bpf.close_all(self.fds.values())
        self.fds = {}

    # ---- writing --------------------------------------------------------------------------------
    def put_backends(self, backends: Sequence[PutBackend], state: KernelState) -> None:
        """Write backends; one that is new under its id gets zero counters and a new epoch."""
        new = [backend for backend in backends if _is_new(backend, state)]
        used_before = [backend for backend in new if backend.id in self.epochs]
        for backend in new:
            self.epochs[backend.id] = self.epochs.get(backend.id, 0) + 1
        # Sockets of the member before must find that they count no more before it counts from zero.
        unused = bytes(layout.BACKEND_STATS.size)
        self._write_array("backends", [(b.id, self._pack_free(b)) for b in used_before])
        self._write_array("backend_stats", [(b.id, unused) for b in used_before])
        for backend in backends:
            if backend.inner:
                inner = layout.pack_inner(backend.inner, backend.id)
                bpf.update(self.fds["inners"], layout.SLOT.pack(backend.id), inner)
        self._write_array(
            "backends",
            [
                (backend.id, layout.pack_backend(backend, self.epochs[backend.id]))
                for backend in backends
            ],
        )
        for backend in backends:
            if not backend.inner:
                self._forget_inner(backend, state)

    def _forget_inner(self, backend: PutBackend, state: KernelState) -> None:
        old = state.backends.get(backend.id)
        if old is not None and old.inner:
            bpf.delete(self.fds["inners"], layout.SLOT.pack(backend.id))

    def _pack_free(self, backend: PutBackend) -> bytes:
        epoch = self.epochs.get(backend.id, 0)
        return layout.pack_free_backend(layout.pack_backend(backend, epoch))

    def free_backends(self, backends: Sequence[PutBackend]) -> None:
        """Mark the ids of `backends` as free; sockets that still hold one count no more."""
        self._write_array("backends", [(b.id, self._pack_free(b)) for b in backends])
        for backend in backends:
            if backend.inner:
                bpf.delete(self.fds["inners"], layout.SLOT.pack(backend.id))

    def write_slots(self, base: int, backend_ids: Sequence[int]) -> None:
        """Write a run."""
        pack = layout.SLOT.pack
        self._write_array(
            "slots", [(base + i, pack(backend_id)) for i, backend_id in enumerate(backend_ids)]
        )

    def swap_vip(self, vip: SwapVip) -> None:
        """The one write that connections can see. Errors: E2BIG when there is no place left."""
        try:
            place = self.places.write(vip)
        except IndexError as exc:
            raise DataplaneError(f"add {vip.frontend}", errno.E2BIG) from exc
        if place is not None:
            key = layout.pack_frontend(vip.frontend)
            bpf.update(self._vips(vip.frontend), key, layout.PLACE.pack(place))

    def drop_vip(self, frontend: Frontend) -> None:
        """Connections to `frontend` pass untouched from now on."""
        bpf.delete(self._vips(frontend), layout.pack_frontend(frontend))
        self.places.forget(frontend)

    def put_prefix(self, prefix: Prefix, owner: Owner) -> None:
        """Note whose the addresses of `prefix` are. Errors: ENOSPC when there is no place left."""
        bpf.update(self.fds["prefixes"], layout.pack_prefix(prefix), layout.OWNER.pack(owner))

    def drop_prefix(self, prefix: Prefix) -> None:
        """Nothing is known of the addresses of `prefix` as a whole any more."""
        bpf.delete(self.fds["prefixes"], layout.pack_prefix(prefix))

    def set_host(self, netns_cookie: int | None) -> None:
        """Note which network namespace is this host's own; None: it is not known."""
        self._host_netns = netns_cookie or 0
        self._write_options()

    def set_skips(self, cgroups: Collection[int]) -> None:
        """Have exactly these cgroups be left alone. Errors: E2BIG when they are too many."""
        pack = layout.COOKIE.pack
        there = _read_skips(self.fds["skips"])
        for cgroup in there.difference(cgroups):
            bpf.delete(self.fds["skips"], pack(cgroup))
        for cgroup in set(cgroups) - there:
            bpf.update(self.fds["skips"], pack(cgroup), layout.SKIP.pack(1))
        self._skips = len(set(cgroups))
        self._write_options()

    def listen_until(self, monotonic_ns: int) -> None:
        """Have the programs tell of connections in `events` until then; 0: not at all."""
        self._listening_until_ns = monotonic_ns
        self._write_options()

    def _write_options(self) -> None:
        options = layout.OPTIONS.pack(self._host_netns, self._listening_until_ns, self._skips, 0)
        self._write_array("options", [(0, options)])

    def write_meta(self, generation: int) -> None:
        """Sign what is there with the schema, the generation and this boot."""
        boot_id = bytes.fromhex(BOOT_ID.read_text(encoding="ascii").strip().replace("-", ""))
        self._write_array("meta", [(0, layout.META.pack(layout.SCHEMA, 0, generation, boot_id))])

    # ---- their pins -----------------------------------------------------------------------------
    def unpinned(self, folder: Path) -> list[str]:
        """Maps that are not pinned in `folder` any more."""
        return [name for name in self.fds if not (folder / name).exists()]

    def pin_again(self, folder: Path) -> None:
        """Pin those."""
        for name in self.unpinned(folder):
            bpf.pin(self.fds[name], folder / name)

    # ---- reading --------------------------------------------------------------------------------
    def read_state(self) -> KernelState:
        """Everything the maps say.

        A backend that is in no VIP's run is a leftover of an agent that was killed, or of a write
        that failed. It is freed here: a client or a socket that keeps its backend would go on with
        it. Likewise an inner endpoint that no backend has goes.
        """
        vips = self.read_vips()
        end = max((vip.base + vip.size for vip in vips), default=0)
        slots = memoryview(bpf.read_array(self.fds["slots"], layout.SLOT.size, end)).cast("I")
        runs = {vip.base: tuple(slots[vip.base : vip.base + vip.size]) for vip in vips if vip.size}
        backends = self._read_backends()
        used = {backend_id for run in runs.values() for backend_id in run}
        self.free_backends([backend for i, backend in backends.items() if i not in used])
        return KernelState(
            self.limits,
            generation=self._read_generation(),
            frontends=vips,
            runs=runs,
            backends=[backends[i] for i in sorted(used) if i in backends],
            prefixes=self._read_prefixes(),
        )

    def digest(self, state: KernelState) -> bytes:
        """Of all that a program may come across, if the maps are as `state` says.

        As long as it is the same, nobody has written anything that matters.
        """
        made = hashlib.blake2b(self.places.raw(), digest_size=16)
        layouts = layout.map_layouts(self.limits)
        slots = max((base + len(run) for base, run in state.runs.items()), default=0)
        for name, count in (("slots", slots), ("backends", state.next_backend_id)):
            made.update(bpf.read_array(self.fds[name], layouts[name].value.size, count))
        for name in ("vips4", "vips6", "inners"):
            for raw in bpf.read_raw(
                self.fds[name], layouts[name].key.size, layouts[name].value.size
            ):
                made.update(raw)
        for prefix in bpf.read_trie(self.fds["prefixes"], layout.PREFIX.size, layout.OWNER.size):
            made.update(b"".join(prefix))
        return made.digest()

    def read_vips(self) -> list[SwapVip]:
        """Every VIP with its run."""
        places = {}
        for name, key in (("vips4", layout.VIP4_KEY), ("vips6", layout.VIP6_KEY)):
            for raw, place in bpf.read_hash(self.fds[name], key.size, layout.PLACE.size):
                if (frontend := layout.unpack_frontend(raw)) is not None:
                    places[frontend] = layout.PLACE.unpack(place)[0]
        places = {f: place for f, place in places.items() if place < self.limits.vips}
        self.places.adopt(places)
        return [self.places.read(frontend) for frontend in places]

    def _read_prefixes(self) -> dict[Prefix, Owner]:
        raw = bpf.read_trie(self.fds["prefixes"], layout.PREFIX.size, layout.OWNER.size)
        return {
            layout.unpack_prefix(key): owner
            for key, value in raw
            if (owner := layout.unpack_owner(value)) is not None
        }

    def _read_backends(self) -> dict[int, PutBackend]:
        size = layout.BACKEND.size
        inners = {
            layout.SLOT.unpack(key)[0]: value
            for key, value in bpf.read_hash(self.fds["inners"], 4, layout.INNER.size)
        }
        raw = bpf.read_array(self.fds["backends"], size, self.limits.backends)
        backends = {}
        # Ids are given out from 1 on, so what was never used is one tail of zeros.
        for backend_id in range(1, -(-len(raw.rstrip(b"\0")) // size)):
            backend, epoch = layout.unpack_backend(
                backend_id, raw[backend_id * size : (backend_id + 1) * size], inners.get(backend_id)
            )
            self.epochs[backend_id] = epoch
            if backend is not None:
                backends[backend_id] = backend
        for backend_id in inners.keys() - {i for i, backend in backends.items() if backend.inner}:
            bpf.delete(self.fds["inners"], layout.SLOT.pack(backend_id))
        return backends

    def _read_generation(self) -> int:
        raw = bpf.lookup(self.fds["meta"], layout.SLOT.pack(0), layout.META.size)
        return int(layout.META.unpack(raw)[2]) if raw else 0

    def read_counters(self, end: int) -> dict[int, BackendCounters]:
        """The counters of backend ids below `end`, where one is not zero."""
        size = layout.BACKEND_STATS.size
        raw = bpf.read_array(self.fds["backend_stats"], size, end)
        unused = bytes(size)
        now_ns = time.monotonic_ns()
        return {
            i // size: layout.unpack_stats(stats, now_ns)
            for i in range(0, len(raw), size)
            if (stats := raw[i : i + size]) != unused
        }

    def read_reasons(self) -> dict[str, int]:
        """How often each decision was taken, on all CPUs together."""
        return {
            name: sum(bpf.read_percpu(self.fds["reasons"], layout.SLOT.pack(i)))
            for i, name in enumerate(layout.REASONS)
        }

    def _vips(self, frontend: Frontend) -> int:
        return self.fds["vips4" if frontend.address.version == 4 else "vips6"]

    def _write_array(self, name: str, entries: Sequence[tuple[int, bytes]]) -> None:
        if not entries:
            return
        keys = b"".join(layout.SLOT.pack(index) for index, _ in entries)
        values = b"".join(value for _, value in entries)
        bpf.update_batch(self.fds[name], keys, values, len(entries))


def _read_skips(fd: int) -> set[int]:
    """The cgroups in the map `skips`."""
    raw = bpf.read_hash(fd, layout.COOKIE.size, layout.SKIP.size)
    return {layout.COOKIE.unpack(cgroup)[0] for cgroup, _ in raw}


def _is_new(backend: PutBackend, state: KernelState) -> bool:
    old = state.backends.get(backend.id)
    return old is None or (old.vip_id, old.endpoint) != (backend.vip_id, backend.endpoint)
