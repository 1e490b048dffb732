"""The one-way feed from the control process to the front process, over a socket pair.

Down go `Update`s, with the changed entries only, and `Counters` and `Events` when asked. Up goes
nothing but single bytes, `COUNTERS_PLEASE` and `EVENTS_PLEASE`, so the process with the
capabilities parses nothing that the listening process could forge.

Nobody waits for a slow reader: what it has not been told yet is folded together (`Pending`), and a
big update goes out in parts, so that the sender is never busy for long.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

from minuteman.model import Counters, Problem, SourceHealth, Task, Vip, VipKey
from minuteman.reader import Published

COUNTERS_PLEASE = b"c"
EVENTS_PLEASE = b"e"
"""For the next seconds: who goes on to listen asks again each second."""
HEADER = struct.Struct("!I")
PART_SIZE = 500
"""Backends and tasks in one part of a big update: a few milliseconds of work."""

Identity = tuple[str, str]
"""Of a task: (framework id, task id)."""


@dataclass(frozen=True, slots=True)
class Update:
    """What changed from one `Published` to the next."""

    generation: int
    whole: bool
    """The entries are everything there is, not a change."""
    vips: Mapping[VipKey, Vip] = field(default_factory=dict)
    dropped_vips: frozenset[VipKey] = frozenset()
    tasks: Mapping[Identity, Task] = field(default_factory=dict)
    dropped_tasks: frozenset[Identity] = frozenset()
    problems: tuple[Problem, ...] | None = None
    """None: as before."""
    sources: Mapping[str, SourceHealth] = field(default_factory=dict)
    attached: bool = False
    withheld: int = 0
    drift: int = 0
    repairs: int = 0
    without_room: int = 0
    sockets_ended: int = 0
    more: bool = False
    """A part; the next one belongs to it. `Decoder` puts them together."""

    def applied_to(self, published: Published) -> Published:
        """`published` after this change."""
        vips = {} if self.whole else dict(published.vips)
        tasks = {} if self.whole else dict(published.tasks)
        for key in self.dropped_vips:
            vips.pop(key, None)
        for identity in self.dropped_tasks:
            tasks.pop(identity, None)
        vips.update(self.vips)
        tasks.update(self.tasks)
        return Published(
            generation=self.generation,
            vips=vips,
            tasks=tasks,
            problems=published.problems if self.problems is None else self.problems,
            sources=self.sources,
            attached=self.attached,
            withheld=self.withheld,
            drift=self.drift,
            repairs=self.repairs,
            without_room=self.without_room,
            sockets_ended=self.sockets_ended,
        )


class Pending:
    """Updates folded into one: applied, it does what they would have done one after another."""

    def __init__(self) -> None:
        self._last: Update | None = None
        self._whole = False
        self._vips: dict[VipKey, Vip | None] = {}
        """None: dropped."""
        self._tasks: dict[Identity, Task | None] = {}
        self._problems: tuple[Problem, ...] | None = None

    def __bool__(self) -> bool:
        return self._last is not None

    def add(self, update: Update) -> None:
        """Fold `update` in, which comes after all the others."""
        if update.whole:
            self._whole = True
            self._vips.clear()
            self._tasks.clear()
        self._vips |= dict.fromkeys(update.dropped_vips)
        self._vips |= update.vips
        self._tasks |= dict.fromkeys(update.dropped_tasks)
        self._tasks |= update.tasks
        if update.problems is not None:
            self._problems = update.problems
        self._last = update

    def take(self, size: float = inf) -> Update:
        """Remove all of it, or a part of about so many backends and tasks. There must be some."""
        if self._last is None:
            raise ValueError("nothing is pending")
        last, whole, problems = self._last, self._whole, self._problems
        vips: dict[VipKey, Vip | None] = {}
        tasks: dict[Identity, Task | None] = {}
        while self._vips and size > 0:
            key, vip = self._vips.popitem()
            vips[key] = vip
            size -= 1 + len(vip.backends) if vip else 1
        while self._tasks and size > 0:
            identity, task = self._tasks.popitem()
            tasks[identity] = task
            size -= 1
        more = bool(self._vips or self._tasks)
        self._whole = False
        if not more:
            self._last = self._problems = None
        return Update(
            generation=last.generation,
            whole=whole,
            vips={key: vip for key, vip in vips.items() if vip},
            dropped_vips=frozenset(key for key, vip in vips.items() if not vip),
            tasks={identity: task for identity, task in tasks.items() if task},
            dropped_tasks=frozenset(identity for identity, task in tasks.items() if not task),
            problems=None if more else problems,
            sources={} if more else last.sources,
            attached=last.attached,
            withheld=last.withheld,
            drift=last.drift,
            repairs=last.repairs,
            without_room=last.without_room,
            sockets_ended=last.sockets_ended,
            more=more,
        )


@dataclass(frozen=True, slots=True)
class Events:
    """What became of connections, as the child that reads them has written it."""

    lines: bytes
    """Whole lines, one object of JSON each: an event, or `{"lost": n}` for events that are not
    here."""


def lost(count: int) -> bytes:
    """The line that stands for `count` events."""
    return b'{"lost": %d}\n' % count


Message = Update | Counters | Events


def encode(message: Message) -> bytes:
    """`message` as a frame: length(4, network order), pickle."""
    body = pickle.dumps(message, protocol=5)
    return HEADER.pack(len(body)) + body


class Decoder:
    """Turns received bytes into messages. For the front process only: it trusts its parent."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._parts = Pending()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes; an update that came in parts is one message."""
        self._buffer += data
        while (message := self._next()) is not None:
            match message:
                case Update(more=True):
                    self._parts.add(message)
                case Update() if self._parts:
                    self._parts.add(message)
                    yield self._parts.take()
                case _:
                    yield message

    def _next(self) -> Message | None:
        if len(self._buffer) < HEADER.size:
            return None
        (size,) = HEADER.unpack_from(self._buffer)
        end = HEADER.size + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        message: Message = pickle.loads(body)  # noqa: S301 - written by our own parent process
        return message
