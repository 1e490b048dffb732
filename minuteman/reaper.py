"""Has a child end the connections to backends that are gone, as soon as they are."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from minuteman.dataplane.reap import Report
from minuteman.errand import Errand
from minuteman.model import Problem

log = logging.getLogger(__name__)

REAP = (sys.executable, "-P", "-m", "minuteman.dataplane.reap")
GATHER_SECONDS = 0.05
"""Between a call and its run: backends seldom go alone."""
REST = 1.0
"""A run is followed by so many times its duration without one: at most half of a core."""
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 30.0


class Reaper:
    """One run after a call, or after several, again and again until it has succeeded.

    And now and then one without a call: a connect() may be under way while its backend goes and
    the run comes, and a dump of many sockets may miss one.

    Args:
        pins: The folder of the maps.
        seconds: From one run to the next without a call; not before the first call.
        command: What reaps; `--pins FOLDER` is added.
    """

    def __init__(self, pins: Path, seconds: float, command: Sequence[str] = REAP) -> None:
        self._seconds = seconds
        self._called = threading.Event()
        self._closing = threading.Event()
        self._errand = Errand("reaping", command, pins, Report, self._closing)
        self._ring: Callable[[], None] = lambda: None
        self.ended = 0
        """Sockets, in all runs."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why the last run failed, if it did."""
        return self._errand.problems

    def start(self, ring: Callable[[], None]) -> None:
        """Begin to wait for the first call. `ring` says that `ended` or `problems` have changed."""
        self._ring = ring
        threading.Thread(target=self._serve, name="reaper", daemon=True).start()

    def reap(self) -> None:
        """Have a run soon: backends have gone. Never waits; from any thread."""
        self._called.set()

    def close(self) -> None:
        """Have the thread end. A run that is under way ends at the latest with this process."""
        self._closing.set()
        self._called.set()

    def _serve(self) -> None:
        retry_seconds = FIRST_RETRY_SECONDS
        self._called.wait()
        while not self._closing.wait(GATHER_SECONDS):
            self._called.clear()
            began = time.monotonic()
            if self._run():
                retry_seconds = FIRST_RETRY_SECONDS
                self._closing.wait(REST * (time.monotonic() - began))
                self._called.wait(self._seconds)
            else:
                self._closing.wait(retry_seconds)
                retry_seconds = min(2 * retry_seconds, LAST_RETRY_SECONDS)

    def _run(self) -> bool:
        """Whether a run has succeeded."""
        before = self.problems, self.ended
        report = self._errand.run()
        if report and report.ended:
            self.ended += report.ended
            log.info(
                "sockets of dead backends ended count=%d namespaces=%d",
                report.ended,
                report.namespaces,
            )
        if before != (self.problems, self.ended):
            self._ring()
        return report is not None
