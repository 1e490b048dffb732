"""A source that reads znodes and watches them: its thread, its health, its snapshots."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Set
from typing import Protocol

from minuteman.errors import SourceError
from minuteman.model import Origin, Snapshot, SourceHealth, Unit, UnitId
from minuteman.source.latest import Latest
from minuteman.zookeeper.session import Session
from minuteman.zookeeper.watch import Bells

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
RETRY_MOST_SECONDS = 30.0
"""After an error the pause doubles from the one to the other."""
CLOSE_SECONDS = 5.0
RESYNC_SPREAD = 0.1
"""Hosts that started together do not read everything together for ever."""


class World(Protocol):
    """What the znodes of one kind of state amount to. All methods are called from one thread.

    `read_all` and `read` may stop at any point with a SourceError. Then, and when the session is
    another, `forget` and `read_all` follow, and until that is complete nothing is published.
    """

    @property
    def origin(self) -> Origin | None:
        """Of what was read; None: nothing was, ever."""

    @property
    def units(self) -> Mapping[UnitId, Unit]:
        """All units."""

    @property
    def stale(self) -> str:
        """Why what was read may be out of date, though ZooKeeper answers; empty: it is not."""

    def read_all(self) -> None:
        """Read everything and leave watches on it. Errors: SourceError."""

    def read(self, rung: Set[str]) -> None:
        """Read again what rang, and whatever else asked for it. Errors: SourceError."""

    def forget(self) -> None:
        """Decode everything anew at the next `read_all`. The units stay until then."""

    def take_touched(self) -> Collection[UnitId]:
        """Ids of the units that changed or went since the last call."""

    def close(self) -> None:
        """End what runs beside."""


class WatchedSource:
    """A `Source` over a `World` in ZooKeeper. One thread of its own does all reading.

    Args:
        name: Of the source, as users configure it.
        session: Not started yet; it rings `bells`, and it is closed with this.
        bells: What the thread waits for.
        world: Reads over `session`.
        resync_seconds: Everything is read again so often, rung or not.
        jitter_seconds: After a reconnect, everything is read after a random time up to this: the
            other hosts have lost their watches too.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        bells: Bells,
        world: World,
        *,
        resync_seconds: float = 300.0,
        jitter_seconds: float = 1.0,
    ) -> None:
        self.name = name
        self._session = session
        self._bells = bells
        self._world = world
        self._resync_seconds = resync_seconds
        self._jitter_seconds = jitter_seconds
        self._latest = Latest(name)
        self._bell: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name=f"source-{name}", daemon=True)
        self._closing = threading.Event()
        self._health = SourceHealth(False, time.monotonic(), "not read yet")
        self._connection = session.connection
        """Under which the last complete read was made, or was tried."""
        self._complete = False
        """Everything was read under that connection, so the watches tell all that changes."""
        self._read_all_at = 0.0
        self._retry_seconds = RETRY_SECONDS

    # ---- for any thread ---------------------------------------------------------------------
    def start(self, bell: Callable[[], None]) -> None:
        """Start to read; see `Source`."""
        self._bell = bell
        self._thread.start()

    def snapshot(self) -> Snapshot | None:
        """The latest complete read; see `Source`."""
        return self._latest.take()

    def health(self) -> SourceHealth:
        """Whether the snapshot is current; see `Source`."""
        return self._health

    def close(self) -> None:
        """End the thread and the session. One that is stuck is left to end with the process."""
        self._closing.set()
        self._bells.wake()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    # ---- the thread -------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            self._session.start()
            wait_seconds = 0.0
            while not self._closing.is_set():
                rung = self._bells.wait(wait_seconds)
                wait_seconds = self._turn(rung)
        finally:
            self._report("its thread has ended")
            self._world.close()
            self._session.close()

    def _turn(self, rung: Set[str]) -> float:
        """Do what is due; return the seconds until the next turn if nothing rings."""
        if not self._session.connection.connected:
            self._report(f"no connection to {self._session.location}")
            return self._session.tend()
        self._notice_reconnect()
        try:
            if time.monotonic() >= self._read_all_at:
                self._read_all()
            elif self._complete:
                self._world.read(rung)
        except SourceError as error:
            self._world.forget()
            self._complete = False
            self._read_all_at = time.monotonic() + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, RETRY_MOST_SECONDS)
            self._report(str(error))
        else:
            self._publish()
        return max(0.0, self._read_all_at - time.monotonic())

    def _notice_reconnect(self) -> None:
        """The watches went with the old connection; with the session went what zxids mean."""
        connection = self._session.connection
        if connection.number == self._connection.number:
            return
        if connection.session != self._connection.session:
            self._world.forget()
        self._connection = connection
        self._complete = False
        self._report("connected, and not read again yet")
        jitter = self._jitter_seconds if self._world.origin is not None else 0.0
        self._read_all_at = time.monotonic() + random.uniform(0.0, jitter)  # noqa: S311

    def _read_all(self) -> None:
        self._world.read_all()
        self._complete = True
        self._retry_seconds = RETRY_SECONDS
        spread = random.uniform(1.0 - RESYNC_SPREAD, 1.0 + RESYNC_SPREAD)  # noqa: S311
        self._read_all_at = time.monotonic() + self._resync_seconds * spread

    def _publish(self) -> None:
        """Hand out what was read, if it is complete: a reconnect in between loses watches."""
        if not self._complete or self._session.connection.number != self._connection.number:
            return
        origin = self._world.origin
        if origin is not None and self._latest.put(
            origin, self._world.units, self._world.take_touched()
        ):
            self._bell()
        self._report(self._world.stale)

    def _report(self, stale: str) -> None:
        """Note why the source is stale; empty: it is fresh."""
        old = self._health
        fresh = not stale
        if fresh == old.fresh and stale == old.reason:
            return
        since = old.since_monotonic if fresh == old.fresh else time.monotonic()
        self._health = SourceHealth(fresh, since, stale)
        if fresh:
            seconds = since - old.since_monotonic
            log.info("source is fresh source=%s stale_seconds=%.1f", self.name, seconds)
        elif not self._closing.is_set():
            level = logging.WARNING if old.fresh else logging.INFO
            log.log(level, "source is stale source=%s reason=%r", self.name, stale)
        self._bell()
