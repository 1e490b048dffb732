"""Everybody who listens to events, around one ring of the last ones.

An event is looked at once, however many listen. Nobody waits for a slow listener: what it has not
heard when the ring comes round again is lost to it, and it is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice

import msgspec

from minuteman.directory import Directory
from minuteman.errors import SourceError
from minuteman.feed import Update
from minuteman.reader import Event, Lost, Published

ASK_SECONDS = 1.0
RING_SIZE = 8192
"""Events that wait for slow listeners."""
HEARD_SIZE = 500
"""Events that a listener is given at once: a few milliseconds of work."""
LISTENERS = 16
"""Each may cost as much as the events themselves."""


class Line(msgspec.Struct, frozen=True):
    """What counts here of a line of `minuteman.feed.Events`."""

    protocol: str = ""
    vip: str = ""
    backend: str | None = None
    outcome: str = ""
    lost: int = 0


class Names(msgspec.Struct, frozen=True):
    """What is added to it."""

    name: str | None
    task_id: str | None


class Audience:
    """Those who listen now.

    Args:
        ask: Has the agent tell of events for some seconds more. Called when somebody comes, and
            each `ASK_SECONDS` from then on until nobody is left.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._ring = Ring()
        self._listeners = 0
        self._directory: Directory | None = None
        """None: nobody listens."""
        self._asking: asyncio.TimerHandle | None = None

    @contextmanager
    def listen(self, published: Published) -> Iterator[Seat]:
        """Hear of events while the block runs. Errors: SourceError when too many do."""
        if self._listeners == LISTENERS:
            raise SourceError(f"{LISTENERS} listen to events now, and no more can")
        self._listeners += 1
        self._directory = self._directory or Directory(published)
        if self._asking is None:
            self._keep_asking()
        try:
            yield Seat(self._ring)
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._directory = None
                self._ring.clear()

    def take(self, lines: bytes) -> None:
        """Let everybody hear what the agent has sent."""
        if self._directory is not None:
            self._ring.add([_read(line, self._directory) for line in lines.splitlines()])

    def follow(self, before: Published, update: Update) -> None:
        """Know whose the addresses are that `update` changes."""
        if self._directory is not None:
            self._directory.follow(before, update)

    def end(self) -> None:
        """There will be no more."""
        self._ring.end()

    def _keep_asking(self) -> None:
        self._asking = None
        if self._listeners:
            self._ask()
            self._asking = asyncio.get_running_loop().call_later(ASK_SECONDS, self._keep_asking)


class Ring:
    """The last events, numbered from 0."""

    def __init__(self) -> None:
        self.end_number = 0
        """One past the last one."""
        self.has_ended = False
        self._events: deque[Event | Lost] = deque(maxlen=RING_SIZE)
        self._news = asyncio.Event()

    def add(self, events: Sequence[Event | Lost]) -> None:
        self._events.extend(events)
        self.end_number += len(events)
        self._ring_bell()

    def clear(self) -> None:
        """Forget them; nobody wants to hear them."""
        self._events.clear()

    def end(self) -> None:
        """There will be no more."""
        self.has_ended = True
        self._ring_bell()

    async def wait(self, number: int) -> None:
        """Until number `number` is there, or there will be no more."""
        while self.end_number <= number and not self.has_ended:
            await self._news.wait()

    def from_number(self, number: int) -> tuple[int, list[Event | Lost]]:
        """How many of the events from `number` on are gone, and the first ones that are not."""
        first = self.end_number - len(self._events)
        start = max(0, number - first)
        return max(0, first - number), list(islice(self._events, start, start + HEARD_SIZE))

    def _ring_bell(self) -> None:
        self._news.set()
        self._news.clear()


class Seat:
    """One listener. Implements `minuteman.reader.Listener`."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._number = ring.end_number
        """Of the event that comes next."""

    async def heard(self, seconds: float) -> Sequence[Event | Lost] | None:
        """See `minuteman.reader.Listener`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ring.wait(self._number)
        lost, events = self._ring.from_number(self._number)
        self._number += lost + len(events)
        if self._ring.has_ended and not events:
            return None
        return [Lost(lost), *events] if lost else events


def _read(line: bytes, directory: Directory) -> Event | Lost:
    """`line` as an event, with the names behind its addresses."""
    try:
        found = msgspec.json.decode(line, type=Line)
    except msgspec.MsgspecError:  # of another version, which was installed under a running agent
        return Lost(1)
    if found.lost:
        return Lost(found.lost)
    name, task_id = directory.names(found.protocol, found.vip, found.backend)
    return Event(
        json=line[:-1] + b"," + msgspec.json.encode(Names(name, task_id))[1:],
        vip=found.vip,
        name=name,
        backend=found.backend,
        task_id=task_id,
        outcome=found.outcome,
    )
