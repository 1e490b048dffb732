"""What was believed, on disk: what a start without any live source serves from.

One file of JSON lines, replaced as a whole. JSON because root reads it: a file cannot run anything.

    {"format":1,"generation":412,"sources":[{"source":"marathon","origin":{...},"units":2,...}]}
    {"id":"app/web",...}                                  each unit, in the order of the sources
    {"id":"instance/web.1",...}
    {"sha256":"..."}                                      of all the bytes before
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter, ValidationError

from minuteman.model import Address, Origin, Problem, Snapshot, Unit, VipName

log = logging.getLogger(__name__)

FORMAT = 1
"""Goes up with every change that an older reader would misread."""
SAVE_SECONDS = 5.0
"""Between two saves, at least."""
PAUSES_PER_SAVE = 20
"""And at least so many times as long as the last one took: a save costs a twentieth of a core."""
SLICE_UNITS = 50
PAUSE_SECONDS = 0.001
"""After each slice: while units are encoded, no other thread runs."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What an earlier run believed."""

    generation: int = 0
    snapshots: Sequence[Snapshot] = ()
    """One for each source, with serial 0."""
    addresses: Mapping[VipName, tuple[Address, ...]] = field(default_factory=dict)
    """Which each name had: where two have one home, a restart must not change who lives there."""


@dataclass(frozen=True, slots=True)
class _SourceHeader:
    source: str
    origin: Origin
    units: int
    lost_agents: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class _Home:
    name: VipName
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class _Header:
    generation: int
    sources: tuple[_SourceHeader, ...]
    homes: tuple[_Home, ...] = ()
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class _Format:
    format: int


@dataclass(frozen=True, slots=True)
class _Trailer:
    sha256: str


_FORMAT = TypeAdapter(_Format)
_HEADER = TypeAdapter(_Header)
_UNIT = TypeAdapter(Unit)
_TRAILER = TypeAdapter(_Trailer)


class Store:
    """The file. `save` and `load` may be called from any thread, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> tuple[Memory, tuple[Problem, ...]]:
        """What is there, and why it is not used: a damaged file is as good as none."""
        try:
            return _read(self.path.read_bytes()), ()
        except FileNotFoundError:
            return Memory(), ()
        except (OSError, ValueError) as exc:
            log.warning("snapshot unusable path=%s reason=%s", self.path, exc)
            return Memory(), (Problem(str(self.path), "", "snapshot", f"It is not used: {exc}"),)

    def save(self, memory: Memory, hurry: threading.Event | None = None) -> None:
        """Replace the file, with pauses for other threads until `hurry` is set.

        Errors: OSError; then the file is what it was.
        """
        with replaced(self.path) as file:
            _write(file, memory, hurry)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and is on the disk then.

    Errors: OSError; then `path` is what it was.
    """
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(file: BinaryIO, memory: Memory, hurry: threading.Event | None) -> None:
    digest = hashlib.sha256()
    for lines in _slices(_lines(memory)):
        block = b"".join(lines)
        digest.update(block)
        file.write(block)
        if hurry:
            hurry.wait(PAUSE_SECONDS)
    file.write(_TRAILER.dump_json(_Trailer(digest.hexdigest())) + b"\n")


def _slices(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    while block := list(islice(lines, SLICE_UNITS)):
        yield block


def _lines(memory: Memory) -> Iterator[bytes]:
    sources = (
        _SourceHeader(s.source, s.origin, len(s.units), tuple(sorted(s.lost_agents, key=str)))
        for s in memory.snapshots
    )
    homes = (_Home(name, addresses) for name, addresses in memory.addresses.items())
    yield _HEADER.dump_json(_Header(memory.generation, tuple(sources), tuple(homes))) + b"\n"
    for snapshot in memory.snapshots:
        for unit in snapshot.units.values():
            yield _UNIT.dump_json(unit) + b"\n"


def _read(text: bytes) -> Memory:
    """What the file says. Errors: ValueError."""
    body, newline, trailer = text.removesuffix(b"\n").rpartition(b"\n")
    first, *units = body.split(b"\n")
    try:
        found = _FORMAT.validate_json(first).format
        if found != FORMAT:
            raise ValueError(f"it is of format {found}, and this version reads {FORMAT}")
        signed = _TRAILER.validate_json(trailer).sha256
        if hashlib.sha256(body + newline).hexdigest() != signed:
            raise ValueError("its checksum is wrong")
        header = _HEADER.validate_json(first)
        remaining = iter(units)
        snapshots = tuple(_snapshot(source, remaining) for source in header.sources)
    except ValidationError as exc:
        raise ValueError("it is damaged or cut off") from exc
    return Memory(
        header.generation, snapshots, {home.name: home.addresses for home in header.homes}
    )


def _snapshot(header: _SourceHeader, lines: Iterator[bytes]) -> Snapshot:
    units = [_UNIT.validate_json(line) for line in islice(lines, header.units)]
    return Snapshot(
        header.source,
        header.origin,
        {unit.id: unit for unit in units},
        frozenset(header.lost_agents),
    )


class Saver:
    """Saves what it was offered last, in a thread of its own, at most every few seconds."""

    def __init__(self, store: Store, every_seconds: float = SAVE_SECONDS) -> None:
        self._store = store
        self._every_seconds = every_seconds
        self._changed = threading.Condition()
        self._offered: Memory | None = None
        self._closing = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)
        self._thread.start()

    def offer(self, memory: Memory) -> None:
        """Have `memory` saved soon. Returns at once."""
        with self._changed:
            self._offered = memory
            self._changed.notify()

    def close(self) -> None:
        """Save what is left, now, and end the thread."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (memory := self._next()) is not None:
            started = time.monotonic()
            self._save(memory)
            took = time.monotonic() - started
            self._closing.wait(max(self._every_seconds, PAUSES_PER_SAVE * took))

    def _next(self) -> Memory | None:
        """What is to be saved, when there is something; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._offered or self._closing.is_set())
            memory, self._offered = self._offered, None
            return memory

    def _save(self, memory: Memory) -> None:
        try:
            self._store.save(memory, hurry=self._closing)
        except (OSError, ValueError) as exc:  # ValueError: text that is no Unicode
            if not self._failing:
                log.warning("snapshot not saved path=%s reason=%s", self._store.path, exc)
            self._failing = True
        else:
            if self._failing:
                log.info("snapshot saved again path=%s", self._store.path)
            self._failing = False
