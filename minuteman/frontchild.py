"""The front process as the agent sees it: started, fed, started again when it ends.

It is never waited for. What it was not told yet is folded together (`minuteman.feed`), and goes out
a part at a time whenever its socket has room. Events are not kept for it: what finds no room is
lost, and it is told how many.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence

from minuteman.errors import ConfigError, DataplaneError
from minuteman.feed import (
    COUNTERS_PLEASE,
    EVENTS_PLEASE,
    PART_SIZE,
    Events,
    Pending,
    Update,
    encode,
    lost,
)
from minuteman.model import Counters
from minuteman.settings import ENV_PREFIX

log = logging.getLogger(__name__)

COUNTERS_SECONDS = 1.0
"""Between two answers, however often it asks."""
FIRST_RESTART_SECONDS = 0.5
LAST_RESTART_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""One that lived so long is started again at once."""
END_SECONDS = 3.0
"""After its socket closed it may run so long."""
POLL_SECONDS = 0.05
RECEIVE_BYTES = 4096


class FrontChild:
    """One front process after another.

    Args:
        command: Its command line; `--fd N` is added, its end of the socket pair.
        selector: Calls back through the data of its keys, with what is ready.
        whole: Everything that is published.
        counters: Reads the counters.
        listen: Called when it wants events, for some seconds more.
    """

    def __init__(
        self,
        command: Sequence[str],
        selector: selectors.BaseSelector,
        whole: Callable[[], Update],
        counters: Callable[[], Counters],
        listen: Callable[[], None],
    ) -> None:
        self._command = command
        self._selector = selector
        self._whole = whole
        self._counters = counters
        self._listen = listen
        self._process: subprocess.Popen[bytes] | None = None
        self._feed: socket.socket | None = None
        """None: the process has ended, or is about to."""
        self._pending = Pending()
        self._frame = b""
        """What is left of the frame that is being sent."""
        self._answer = b""
        """The frame that goes next, before updates."""
        self._events = b""
        """Lines that go when nothing else is waiting."""
        self._lost = 0
        """Lines that were not sent, and of which it was not told."""
        self._is_asked = False
        self._answered_at = float("-inf")
        self._started_at = 0.0
        self._start_at = float("-inf")
        self._kill_at: float | None = None
        """When to stop hoping that it ends by itself."""
        self._restart_seconds = FIRST_RESTART_SECONDS
        self._is_first = True

    # ---- for the agent --------------------------------------------------------------------------
    @property
    def pid(self) -> int | None:
        """Of the process that runs, or has ended and is not buried yet."""
        return None if self._process is None else self._process.pid

    def publish(self, update: Update) -> None:
        """Tell the process what changed, as soon as its socket has room. Returns at once."""
        if self._feed is not None:
            self._pending.add(update)
            self._send(self._feed)

    def forward(self, lines: bytes) -> None:
        """Pass lines of events on, or drop them when others wait already. Returns at once."""
        if self._feed is None:
            return
        if self._events:
            self._lost += lines.count(b"\n")
            return
        self._events = lines
        self._send(self._feed)

    def tick(self, now: float) -> float:
        """Do what is due: start it, bury it, answer it. Returns when to come back.

        Errors: ConfigError when it says at its first start that its settings cannot work.
        """
        if self._process is None:
            if now < self._start_at:
                return self._start_at
            self._start(now)
            return now
        if self._feed is None:
            return self._bury(self._process, now)
        if self._is_asked and now >= self._answered_at + COUNTERS_SECONDS:
            self._answer_it(self._feed, now)
        return self._answered_at + COUNTERS_SECONDS if self._is_asked else float("inf")

    def close(self) -> None:
        """End it, and see that it has ended."""
        self._hang_up()
        if self._process is None:
            return
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    # ---- its life -------------------------------------------------------------------------------
    def _start(self, now: float) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - the agent makes it up
                    [*self._command, "--fd", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    cwd="/",
                    env=_without_settings(os.environ),
                    process_group=0,  # a Ctrl-C is for the agent
                )
        except OSError as exc:
            ours.close()
            log.warning("front not started error=%s", exc)
            self._start_later(now)
            return
        self._feed = ours
        self._started_at = now
        self._kill_at = None
        self._selector.register(ours, selectors.EVENT_READ, self._ready)
        self._pending = Pending()
        self._pending.add(self._whole())
        self._send(ours)
        log.info("front started pid=%d", self._process.pid)

    def _hang_up(self) -> None:
        """Close our end: the process ends by itself when it notices."""
        if self._feed is None:
            return
        self._selector.unregister(self._feed)
        self._feed.close()
        self._feed = None
        self._frame = self._answer = self._events = b""
        self._lost = 0
        self._is_asked = False

    def _bury(self, process: subprocess.Popen[bytes], now: float) -> float:
        """See whether it has ended, and when to start another."""
        code = process.poll()
        if code is None:
            self._kill_at = self._kill_at or now + END_SECONDS
            if now >= self._kill_at:
                process.kill()
            return now + POLL_SECONDS
        if code == os.EX_CONFIG and self._is_first:
            raise ConfigError("the front process says that a setting of it cannot work, see above")
        self._is_first = False
        if now >= self._started_at + STEADY_SECONDS:
            self._restart_seconds = FIRST_RESTART_SECONDS
        log.warning("front ended code=%d restart_seconds=%.1f", code, self._restart_seconds)
        self._process = None
        self._start_later(now)
        return self._start_at

    def _start_later(self, now: float) -> None:
        self._start_at = now + self._restart_seconds
        self._restart_seconds = min(2 * self._restart_seconds, LAST_RESTART_SECONDS)

    # ---- its socket -----------------------------------------------------------------------------
    def _ready(self, events: int) -> None:
        if self._feed is not None and events & selectors.EVENT_READ:
            self._receive(self._feed)
        if self._feed is not None and events & selectors.EVENT_WRITE:
            self._send(self._feed)

    def _receive(self, feed: socket.socket) -> None:
        try:
            received = feed.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._hang_up()
            return
        self._is_asked = self._is_asked or COUNTERS_PLEASE in received
        if EVENTS_PLEASE in received:
            self._listen()

    def _answer_it(self, feed: socket.socket, now: float) -> None:
        """Answer, or try again later: it does not ask twice."""
        self._answered_at = now
        try:
            self._answer = encode(self._counters())
        except DataplaneError as exc:
            log.debug("counters not read error=%s", exc)
            return
        self._is_asked = False
        self._send(feed)

    def _send(self, feed: socket.socket) -> None:
        """Send one frame, or what there is room for, and have the selector call for the rest."""
        self._frame = self._frame or self._next_frame()
        try:
            self._frame = self._frame[feed.send(self._frame) :]
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up()
            return
        waiting = self._frame or self._answer or self._pending or self._events or self._lost
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0)
        self._selector.modify(feed, events, self._ready)

    def _next_frame(self) -> bytes:
        """The answer first; events after the updates, which say whose addresses are in them."""
        if self._answer:
            frame, self._answer = self._answer, b""
            return frame
        if self._pending:
            return encode(self._pending.take(PART_SIZE))
        if self._events or self._lost:
            lines = self._events + (lost(self._lost) if self._lost else b"")
            self._events, self._lost = b"", 0
            return encode(Events(lines))
        return b""


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` less what configures the agent: ZooKeeper's password may be in there."""
    return {k: v for k, v in environment.items() if not k.startswith(ENV_PREFIX)}
