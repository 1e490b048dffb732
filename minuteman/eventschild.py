"""The child that reads what the kernel's programs tell of connections, as the agent sees it.

What it writes is passed on in blocks of whole lines, and looked at by nobody here.
"""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
from collections.abc import Callable, Sequence
from fcntl import F_SETPIPE_SZ, fcntl

log = logging.getLogger(__name__)

READ_BYTES = 1 << 18
READ_SECONDS = 0.05
"""From one read to the next. The two bound what events cost here: what is more waits in the kernel,
and is lost there when there is no room."""
FIRST_RESTART_SECONDS = 0.5
LAST_RESTART_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""After such a life the next one is started soon."""
END_SECONDS = 3.0
"""After its pipe closed it may run so long."""
POLL_SECONDS = 0.05


class EventsChild:
    """One child after another, while they are wanted.

    Args:
        command: Its command line. It writes whole lines, and ends at SIGTERM.
        selector: Calls back through the data of its keys, with what is ready.
        forward: Takes whole lines; returns at once.
    """

    def __init__(
        self,
        command: Sequence[str],
        selector: selectors.BaseSelector,
        forward: Callable[[bytes], None],
    ) -> None:
        self._command = command
        self._selector = selector
        self._forward = forward
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        """None: the process has ended, or is about to."""
        self._is_paused = False
        """The selector does not know the pipe, until `_read_at`."""
        self._read_at = float("-inf")
        self._line = b""
        """The beginning of a line whose end was not read yet."""
        self._now = float("-inf")
        self._is_dismissed = False
        """It ends because it was told to."""
        self._started_at = float("-inf")
        self._start_at = float("-inf")
        self._kill_at: float | None = None
        """When to stop hoping that it ends by itself."""
        self._restart_seconds = FIRST_RESTART_SECONDS
        self._is_failing = False

    # ---- for the agent --------------------------------------------------------------------------
    @property
    def pid(self) -> int | None:
        """Of the process that runs, or has ended and is not buried yet."""
        return None if self._process is None else self._process.pid

    def tick(self, now: float, *, is_wanted: bool) -> float:
        """Do what is due: start it, read on, end it, bury it. Returns when to come back."""
        self._now = now
        if self._process is None:
            return self._want(now) if is_wanted else self._rest()
        if self._pipe is None:
            return self._bury(self._process, now)
        if not is_wanted:
            self._dismiss(self._process, self._pipe)
            return now
        if not self._is_paused:
            return float("inf")
        if now < self._read_at:
            return self._read_at
        self._watch(self._pipe)
        return float("inf")

    def close(self) -> None:
        """End it, and see that it has ended."""
        if self._process is None:
            return
        if self._pipe is not None:
            self._dismiss(self._process, self._pipe)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    # ---- its life -------------------------------------------------------------------------------
    def _want(self, now: float) -> float:
        """Start it, unless the last one failed just now; returns when to come back."""
        if now < self._start_at:
            return self._start_at
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl(ours, F_SETPIPE_SZ, READ_BYTES)
            self._process = subprocess.Popen(  # noqa: S603 - the agent makes it up
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                cwd="/",
                process_group=0,  # a Ctrl-C is for the agent
            )
        except OSError as exc:
            os.close(ours)
            self._fail(now, f"error={exc}")
            return self._start_at
        finally:
            os.close(theirs)
        os.set_blocking(ours, False)
        self._started_at = now
        self._is_dismissed = False
        self._kill_at = None
        self._pipe = ours
        self._watch(ours)
        log.debug("events reader started pid=%d", self._process.pid)
        return float("inf")

    def _rest(self) -> float:
        """Nobody wants it; when somebody does, it starts at once."""
        self._start_at = float("-inf")
        self._restart_seconds = FIRST_RESTART_SECONDS
        self._is_failing = False
        return float("inf")

    def _dismiss(self, process: subprocess.Popen[bytes], pipe: int) -> None:
        """Have it end; it is buried later."""
        self._is_dismissed = True
        self._hang_up(pipe)
        process.terminate()

    def _bury(self, process: subprocess.Popen[bytes], now: float) -> float:
        """See whether it has ended; returns when to come back."""
        code = process.poll()
        if code is None:
            self._kill_at = self._kill_at or now + END_SECONDS
            if now >= self._kill_at:
                process.kill()
            return now + POLL_SECONDS
        self._process = None
        if now >= self._started_at + STEADY_SECONDS:
            self._restart_seconds = FIRST_RESTART_SECONDS
        if not self._is_dismissed:
            self._fail(now, f"code={code}")
        return now

    def _fail(self, now: float, reason: str) -> None:
        """Start the next one later; say so, once."""
        if not self._is_failing:
            log.warning("events reader failed %s", reason)
        self._is_failing = True
        self._start_at = now + self._restart_seconds
        self._restart_seconds = min(2 * self._restart_seconds, LAST_RESTART_SECONDS)

    # ---- its pipe -------------------------------------------------------------------------------
    def _watch(self, pipe: int) -> None:
        self._selector.register(pipe, selectors.EVENT_READ, lambda _: self._read(pipe))
        self._is_paused = False

    def _pause(self, pipe: int) -> None:
        """Let the pipe be until `READ_SECONDS` have passed."""
        self._selector.unregister(pipe)
        self._is_paused = True
        self._read_at = self._now + READ_SECONDS

    def _read(self, pipe: int) -> None:
        """Pass on what is there, up to its last whole line."""
        received = os.read(pipe, READ_BYTES)
        if not received:
            self._hang_up(pipe)
            return
        self._pause(pipe)
        lines, end, self._line = (self._line + received).rpartition(b"\n")
        if end:
            self._forward(lines + end)

    def _hang_up(self, pipe: int) -> None:
        if not self._is_paused:
            self._selector.unregister(pipe)
        os.close(pipe)
        self._pipe = None
        self._line = b""
