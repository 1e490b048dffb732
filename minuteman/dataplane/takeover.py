"""From the maps of another layout to ours, while its programs serve: an upgrade, or a way back.

    share      what is the same is pinned in both folders
    fill       the rest is copied into maps of our own, by the names of the fields
    (attach)   each link gets our program in one step, and its pin moves into our folder
    catch_up   what the other programs counted and gave after the copy is added to ours

Until the first link is in our folder, the other one counts, and ours can be thrown away; from then
on ours does. Ids of VIPs and backends stay what they are.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minuteman.dataplane import bpf, layout
from minuteman.dataplane.carry import Carrier
from minuteman.dataplane.conns import opened
from minuteman.dataplane.layout import About, AboutMap, MapLayout
from minuteman.dataplane.pins import Pins, others, read_about
from minuteman.dataplane.record import Record
from minuteman.errors import DataplaneError, LayoutError
from minuteman.reconcile.kernelstate import Limits

log = logging.getLogger(__name__)

COPIED = (
    "backends",
    "backend_stats",
    "inners",
    "slots",
    "vips",
    "vips4",
    "vips6",
    "prefixes",
    "skips",
    "flows",
    "affinities",
)
REMEMBERED = ("flows", "affinities")
"""Those of them that programs write, and can do without."""
GIVEN = ("conns", "more_conns", "spills")
"""What sockets were given is one thing in three maps: all of them are shared, or none."""
REASONS = "reasons"
SHAREABLE = (*COPIED, *GIVEN, REASONS)
BATCH = 4096

SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
MEMBARRIER_CMD_GLOBAL = 1
"""linux/membarrier.h"""
GRACE_SECONDS = 0.1
"""Longer than any program runs, unless it is stopped in between."""

_CONN_2 = (
    "vip_addr:16s backend_addr:16s vip_port:2s backend_port:2s backend_id:I epoch:I proto:B "
    "phase:B timeouts:B abandoned:B netns:I started_ms:I cookie:Q"
)
_INDEX_2 = "index:I"
SCHEMA_2 = About(
    2,
    {
        "vips4": AboutMap("addr:4s port:2s proto:B zero:x", "place:I"),
        "vips6": AboutMap("addr:16s port:2s proto:B zero:x", "place:I"),
        "vips": AboutMap(
            _INDEX_2,
            "turn:I id:I run0:4I run1:4I addr:16s port:2s proto:B zero:x affinity_seconds:I",
        ),
        "slots": AboutMap(_INDEX_2, "backend_id:I"),
        "backends": AboutMap(
            _INDEX_2, "addr:16s port:2s proto:B tier:B weight:H flags:H vip_id:I epoch:I"
        ),
        "backend_stats": AboutMap(
            _INDEX_2,
            "connecting:I active:I consecutive_failures:I zero:I ejected_until_ns:Q successes:Q "
            "failures:Q last_failure_ns:Q connect_log2_us:20Q",
        ),
        "inners": AboutMap("backend_id:I", "addr:16s port:2s zero:2x backend_id:I"),
        "prefixes": AboutMap("bits:I addr:16s", "owner:I"),
        "conns": AboutMap(_INDEX_2, _CONN_2),
        "more_conns": AboutMap("cookie:Q", _CONN_2),
        "spills": AboutMap(_INDEX_2, "spilled:I"),
        "flows": AboutMap(
            "cookie:Q addr:16s port:2s direction:B zero:x zeros:I",
            "addr:16s port:2s zero:2x backend_id:I epoch:I",
        ),
        "affinities": AboutMap(
            "cgroup:Q netns:Q vip_id:I zero:I", "backend_id:I epoch:I used_ns:Q"
        ),
        "skips": AboutMap("cookie:Q", "skip:I"),
        "reasons": AboutMap(_INDEX_2, "count:Q"),
        "meta": AboutMap(_INDEX_2, "schema:I zero:I generation:Q boot_id:16s"),
    },
    (
        "translated",
        "refused_empty",
        "refused_unknown",
        "refused_torn",
        "retried",
        "untracked",
        "ejected",
        "last_resort",
        "settled",
    ),
)
"""The maps of the folder `v2`, which do not describe themselves."""


def predecessor(ours: Pins) -> Pins | None:
    """The pins that serve while ours do not; None: ours do, or nothing does."""
    if ours.serve:
        return None
    return next((pins for pins in others(ours) if pins.serve), None)


@dataclass(frozen=True, slots=True)
class OpenMap:
    """A map, and what is in it."""

    fd: int
    layout: MapLayout

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key with its value; of an array, those that are not zero."""
        key_size, value_size = self.layout.key.size, self.layout.value.size
        match self.layout.kind:
            case layout.ARRAY:
                yield from self._used(bpf.read_array(self.fd, value_size, self.layout.max_entries))
            case layout.LPM_TRIE:
                yield from bpf.read_trie(self.fd, key_size, value_size)
            case _:
                yield from bpf.read_hash(self.fd, key_size, value_size)

    def _used(self, raw: bytes) -> Iterator[tuple[bytes, bytes]]:
        size = self.layout.value.size
        unused = bytes(size)
        # What was never used is one tail of zeros.
        for index in range(-(-len(raw.rstrip(b"\0")) // size)):
            value = raw[index * size : (index + 1) * size]
            if value != unused:
                yield layout.SLOT.pack(index), value

    def write(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Add entries. Errors: DataplaneError, E2BIG when there is no room."""
        if self.layout.kind == layout.LPM_TRIE:  # before Linux 5.13 it has no batches
            for key, value in entries:
                bpf.update(self.fd, key, value)
            return
        pairs = iter(entries)
        while batch := list(islice(pairs, BATCH)):
            keys, values = zip(*batch, strict=True)
            bpf.update_batch(self.fd, b"".join(keys), b"".join(values), len(batch))


class Takeover:
    """One takeover. Errors of all methods: DataplaneError.

    Args:
        old: What serves.
        new: Ours, which do not. What is left there of an attempt that failed must be gone.
        limits: Of ours.

    Errors: LayoutError when it is not known what is in the maps of `old`.
    """

    def __init__(self, old: Pins, new: Pins, limits: Limits) -> None:
        self._old_pins, self._new_pins = old, new
        self._about = SCHEMA_2 if old.folder.name == "v2" else read_about(old)
        self._ours = layout.map_layouts(limits)
        self._stack = ExitStack()
        self._old: Mapping[str, OpenMap] = {}
        self._new: Mapping[str, OpenMap] = {}
        """Ours that are not shared."""
        self._copied: dict[str, dict[bytes, bytes]] = {}
        """What the others had when it was copied, by map."""
        self._counts: dict[str, int] = {}
        self._conns: dict[int, bytes] = {}
        """What was copied."""

    def close(self) -> None:
        """Let go of descriptors."""
        self._stack.close()

    def share(self) -> None:
        """Pin the maps that stay what they are in our folder, too. Before ours are made."""
        self._old = {name: self._open(name) for name in self._about.maps if name in SHAREABLE}
        self._new_pins.make_folders()
        for name in SHAREABLE:
            if self._is_shared(name):
                bpf.pin(self._old[name].fd, self._new_pins.maps / name)

    def fill(self) -> None:
        """Copy what is not shared into our maps, which have been made and are empty."""
        self._new = {
            name: OpenMap(self._opened(self._new_pins.maps / name), self._ours[name])
            for name in (*SHAREABLE, "meta")
            if not self._is_shared(name)
        }
        for name in COPIED:
            if name in self._new:
                self._copy(name)
        if REASONS in self._new:
            self._copy_reasons()
        if "conns" in self._new:
            self._conns = self._read_conns()
            with Carrier.opened(self._new_pins) as carrier:
                for raw in self._conns.values():
                    carrier.keep_conn(raw)
        self._copy_generation()
        log.info(
            "maps taken over from=%s shared=%d copied=%d",
            self._old_pins.folder.name,
            len(SHAREABLE) - len(self._new),
            len(self._new),
        )

    def catch_up(self) -> None:
        """Add what the other programs did since the copy. After the links have our programs."""
        await_programs()
        with Carrier.opened(self._new_pins) as carrier:
            if "backend_stats" in self._new:
                self._catch_up_stats(carrier)
            if REASONS in self._new:
                self._catch_up_reasons(carrier)
            if "conns" in self._new:
                self._catch_up_conns(carrier)
        for name in REMEMBERED:
            if name in self._new:
                self._catch_up_remembered(name)

    # ---- what serves ----------------------------------------------------------------------------
    def _open(self, name: str) -> OpenMap:
        """A map of the others, as `about` describes it. Errors: LayoutError."""
        texts = self._about.maps[name]
        fd = self._opened(self._old_pins.maps / name)
        info = bpf.map_info(fd)
        try:
            key, value = Record(texts.key), Record(texts.value)
        except ValueError as exc:
            raise LayoutError(f"read {self._old_pins.maps / name}", 0, str(exc)) from exc
        if (key.size, value.size) != (info.key_size, info.value_size):
            raise LayoutError(
                f"read {self._old_pins.maps / name}", 0, "it is not what `about` says of it"
            )
        return OpenMap(fd, MapLayout(info.kind, key, value, info.max_entries, info.flags))

    def _opened(self, path: Path) -> int:
        fd = bpf.open_pin(path)
        self._stack.callback(os.close, fd)
        return fd

    def _is_shared(self, name: str) -> bool:
        if name in GIVEN:
            return all(self._is_same(each) for each in GIVEN)
        if name == REASONS:
            return self._is_same(name) and self._about.reasons == layout.REASONS
        return self._is_same(name)

    def _is_same(self, name: str) -> bool:
        return name in self._old and self._old[name].layout == self._ours[name]

    # ---- copies ---------------------------------------------------------------------------------
    def _copy(self, name: str) -> None:
        if name not in self._old:
            return
        old, new = self._old[name], self._new[name]
        entries = dict(old.entries())
        self._copied[name] = entries
        try:
            new.write(old.layout.converted(new.layout, *entry) for entry in entries.items())
        except DataplaneError as exc:
            raise DataplaneError(
                f"take {name} over",
                exc.errno,
                _need(old.layout, entries, new.layout.max_entries),
            ) from exc

    def _copy_reasons(self) -> None:
        for index, name in enumerate(self._about.reasons):
            counts = bpf.read_percpu(self._old[REASONS].fd, layout.SLOT.pack(index))
            self._counts[name] = sum(counts)
            if name in layout.REASONS:
                values = b"".join(map(layout.REASON.pack, counts))
                bpf.update(self._new[REASONS].fd, _reason_key(name), values)

    def _copy_generation(self) -> None:
        """`meta` says how often what the kernel has was changed; the rest of it is written anew."""
        old, new = self._open("meta"), self._new["meta"]
        new.write([old.layout.converted(new.layout, *entry) for entry in old.entries()])

    def _read_conns(self) -> dict[int, bytes]:
        """What sockets were given, by cookie, as ours has it."""
        found = {}
        for name in ("conns", "more_conns"):
            record = self._old[name].layout.value
            for _, value in self._old[name].entries():
                conn = record.read(value)
                if cookie := conn["cookie"][0]:
                    found[cookie] = layout.CONN.write(conn)
        return found

    # ---- what came after ------------------------------------------------------------------------
    def _catch_up_stats(self, carrier: Carrier) -> None:
        old, new = self._old["backend_stats"].layout.value, layout.BACKEND_STATS
        copied, unused = self._copied["backend_stats"], bytes(old.size)
        for key, now in self._old["backend_stats"].entries():
            before = copied.get(key, unused)
            if now != before:
                backend_id = layout.SLOT.unpack(key)[0]
                carrier.add_stats(backend_id, new.write(old.read(now)), new.write(old.read(before)))

    def _catch_up_reasons(self, carrier: Carrier) -> None:
        for index, name in enumerate(self._about.reasons):
            count = sum(bpf.read_percpu(self._old[REASONS].fd, layout.SLOT.pack(index)))
            if name in layout.REASONS and count != self._counts[name]:
                carrier.add_reason(layout.REASONS.index(name), count - self._counts[name])

    def _catch_up_conns(self, carrier: Carrier) -> None:
        conns = self._read_conns()
        with opened(self._new_pins.maps) as ours:
            for cookie, raw in conns.items():
                copied = self._conns.get(cookie)
                if raw == copied:
                    continue
                if copied and _given(raw) != _given(copied) == _given(ours.find(cookie)):
                    carrier.drop_conn(cookie)  # it connected elsewhere after the copy
                carrier.keep_conn(raw)
        for cookie in self._conns.keys() - conns.keys():
            carrier.drop_conn(cookie)

    def _catch_up_remembered(self, name: str) -> None:
        """Copy what is newer than the copy, but for what our programs have written since."""
        old, new, copied = self._old[name], self._new[name], self._copied[name]
        for key, now in old.entries():
            before = copied.get(key)
            if now == before:
                continue
            our_key, our_now = old.layout.converted(new.layout, key, now)
            found = bpf.lookup(new.fd, our_key, new.layout.value.size)
            if found is None or (
                before and found == old.layout.converted(new.layout, key, before)[1]
            ):
                bpf.update(new.fd, our_key, our_now)


def _need(made: MapLayout, entries: Collection[bytes], room: int) -> str:
    """How much room entries with these keys take, and how much there is."""
    if made.kind != layout.ARRAY:
        return f"{len(entries)} entries, room for {room}"
    highest = max(layout.SLOT.unpack(key)[0] for key in entries)
    return f"up to place {highest} was used, places end at {room - 1}"


def await_programs() -> None:
    """Return when no program runs any more that was running at the call.

    A kernel with `nohz_full` does not tell, nor does one without CONFIG_MEMBARRIER. By then our
    programs serve, so that is no reason to fail: it is given the time.
    """
    number = SYS_MEMBARRIER.get(platform.machine())
    if number is None or ctypes.CDLL(None).syscall(number, MEMBARRIER_CMD_GLOBAL, 0):
        time.sleep(GRACE_SECONDS)


def _given(conn: bytes | None) -> tuple[int, int] | None:
    """Id and epoch of the backend in a value of our `conns`."""
    if conn is None:
        return None
    *_, backend_id, epoch, _protocol, _phase, _timeouts, _abandoned, _netns, _ms, _cookie = (
        layout.CONN.unpack(conn)
    )
    return backend_id, epoch


def _reason_key(name: str) -> bytes:
    return layout.SLOT.pack(layout.REASONS.index(name))
