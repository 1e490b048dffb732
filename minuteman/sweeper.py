"""Has a child settle, now and then, what was given to sockets that are gone."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from minuteman.dataplane.sweep import Report
from minuteman.errand import Errand

log = logging.getLogger(__name__)

SWEEP = (sys.executable, "-P", "-m", "minuteman.dataplane.sweep")


class Sweeper:
    """One sweep after another, in a thread that does nothing but wait.

    Args:
        pins: The folder of the maps.
        seconds: From the end of a sweep to the next one, and to the first.
        command: What sweeps; `--pins FOLDER` is added.
    """

    def __init__(self, pins: Path, seconds: float, command: Sequence[str] = SWEEP) -> None:
        self._seconds = seconds
        self._closing = threading.Event()
        self._errand = Errand("sweep", command, pins, Report, self._closing)

    def start(self) -> None:
        """Begin to wait for the first sweep."""
        threading.Thread(target=self._run, name="sweeper", daemon=True).start()

    def close(self) -> None:
        """Have the thread end. A sweep that is under way ends at the latest with this process."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._seconds):
            report = self._errand.run()
            if report and report.settled:
                log.info("sockets settled count=%d checked=%d", report.settled, report.checked)
