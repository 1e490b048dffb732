"""Has the kernel's programs tell of connections while somebody listens, and only then.

They do until a time that they are given. It is moved on, a few seconds ahead, while the front
process asks: whatever is killed, they fall silent by themselves.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from minuteman.errors import DataplaneError
from minuteman.eventschild import EventsChild

log = logging.getLogger(__name__)

EVENTS = (sys.executable, "-P", "-m", "minuteman.dataplane.events")
"""What reads them; `--pins FOLDER` is added."""
SILENCE_SECONDS = 3.0
"""Without being asked: nobody listens any more."""
RENEW_SECONDS = 1.0
AHEAD_SECONDS = 3.0
"""So long the programs go on when they are not told again."""


class Listening:
    """Whether somebody listens, and what that takes.

    Args:
        listen_until: Tells the programs until when, in nanoseconds of the monotonic clock; 0: no
            more. It may raise DataplaneError.
        child: Reads what they tell.
    """

    def __init__(self, listen_until: Callable[[int], None], child: EventsChild) -> None:
        self._listen_until = listen_until
        self._child = child
        self._is_asked = False
        self._silent_at = float("-inf")
        """When nobody listens any more."""
        self._renew_at: float | None = None
        """None: the programs tell nothing."""
        self._is_failing = False

    def ask(self) -> None:
        """Somebody listens: go on for `SILENCE_SECONDS`."""
        self._is_asked = True

    def tick(self, now: float) -> float:
        """Do what is due; returns when to come back."""
        if self._is_asked:
            self._is_asked = False
            self._silent_at = now + SILENCE_SECONDS
        is_wanted = now < self._silent_at
        wake = self._renew(now) if is_wanted else self._hush()
        return min(wake, self._child.tick(now, is_wanted=is_wanted))

    def close(self) -> None:
        """Nobody listens any more: have the programs be silent, and the child end."""
        self._hush()
        self._child.close()

    def _renew(self, now: float) -> float:
        """Have the programs go on."""
        if self._renew_at is None or now >= self._renew_at:
            self._renew_at = now + RENEW_SECONDS
            self._tell(int((now + AHEAD_SECONDS) * 1e9))
        return min(self._renew_at, self._silent_at)

    def _hush(self) -> float:
        """Have the programs be silent, if they are not."""
        if self._renew_at is not None:
            self._renew_at = None
            self._tell(0)
        return float("inf")

    def _tell(self, monotonic_ns: int) -> None:
        try:
            self._listen_until(monotonic_ns)
        except DataplaneError as exc:
            if not self._is_failing:
                log.warning("events not switched error=%s", exc)
            self._is_failing = True
        else:
            self._is_failing = False
