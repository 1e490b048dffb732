"""Has a child settle, now and then, what was given to sockets that are gone."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from minuteman.dataplane.sweep import Report
from minuteman.errors import DataplaneError

log = logging.getLogger(__name__)

SWEEP = (sys.executable, "-P", "-m", "minuteman.dataplane.sweep")
TIMEOUT_SECONDS = 120.0


class Sweeper:
    """One sweep after another, in a thread that does nothing but wait.

    Args:
        pins: The folder that is ours on the bpffs.
        seconds: From the end of a sweep to the next one, and to the first.
        command: What sweeps; `--pins FOLDER` is added.
    """

    def __init__(self, pins: Path, seconds: float, command: Sequence[str] = SWEEP) -> None:
        self._command = [*command, "--pins", str(pins)]
        self._seconds = seconds
        self._closing = threading.Event()
        self._is_failing = False

    def start(self) -> None:
        """Begin to wait for the first sweep."""
        threading.Thread(target=self._run, name="sweeper", daemon=True).start()

    def close(self) -> None:
        """Have the thread end. A sweep that is under way ends at the latest with this process."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._seconds):
            try:
                report = run_sweep(self._command)
            except DataplaneError as exc:
                self._note_failure(exc)
            else:
                self._note(report)

    def _note_failure(self, error: DataplaneError) -> None:
        if not (self._is_failing or self._closing.is_set()):
            log.warning("sweep failed error=%s", error)
        self._is_failing = True

    def _note(self, report: Report) -> None:
        if self._is_failing:
            log.info("sweep done, after failures")
        self._is_failing = False
        if report.settled:
            log.info("sockets settled count=%d checked=%d", report.settled, report.checked)


def run_sweep(command: Sequence[str]) -> Report:
    """Run `command` and read its report. Errors: DataplaneError."""
    try:
        child = subprocess.run(  # noqa: S603 - the agent makes it up
            command, capture_output=True, check=False, timeout=TIMEOUT_SECONDS, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DataplaneError("run the sweep", 0, str(exc)) from exc
    if child.returncode:
        *_, last = child.stderr.strip().splitlines() or [f"it ended with {child.returncode}"]
        raise DataplaneError("sweep", 0, last)
    try:
        return Report(**json.loads(child.stdout))
    except (ValueError, TypeError) as exc:  # one that was upgraded under a running agent
        raise DataplaneError("read the sweep's report", 0, str(exc)) from exc
