"""What a child does for the agent, once and again, and how that is heard of."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Generic, TypeVar

from minuteman.errors import DataplaneError
from minuteman.model import Problem

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 120.0

R = TypeVar("R")


class Errand(Generic[R]):
    """One thing that children do. See minuteman/dataplane/child.py for their side.

    Args:
        name: A word for it.
        command: What does it; `--pins FOLDER` is added.
        pins: The folder of the maps.
        report: Makes a report of its fields.
        closing: Once it is set, a failure is nothing to speak of: children end with the agent.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        pins: Path,
        report: Callable[..., R],
        closing: Event,
    ) -> None:
        self._name = name
        self._command = [*command, "--pins", str(pins)]
        self._report = report
        self._closing = closing
        self.problems: tuple[Problem, ...] = ()
        """Why the last run failed, if it did."""

    def run(self) -> R | None:
        """Have it done, and return the report. None: it failed; see `problems`."""
        try:
            report = self.try_once()
        except DataplaneError as exc:
            if not (self.problems or self._closing.is_set()):
                log.warning("%s failed error=%s", self._name, exc)
            self.problems = (Problem("kernel", "", self._name, f"{exc}; it is tried again."),)
            return None
        if self.problems:
            log.info("%s done, after failures", self._name)
        self.problems = ()
        return report

    def try_once(self) -> R:
        """Have it done, and return the report. Errors: DataplaneError."""
        try:
            child = subprocess.run(  # noqa: S603 - the agent makes it up
                self._command,
                capture_output=True,
                check=False,
                timeout=TIMEOUT_SECONDS,
                encoding="utf-8",
                errors="replace",
                process_group=0,  # a Ctrl-C is for the agent
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise DataplaneError(f"run the {self._name}", 0, str(exc)) from exc
        if child.returncode:
            *_, last = child.stderr.strip().splitlines() or [f"it ended with {child.returncode}"]
            raise DataplaneError(self._name, 0, last)
        try:
            return self._report(**json.loads(child.stdout))
        except (ValueError, TypeError) as exc:  # one that was upgraded under a running agent
            raise DataplaneError(f"read the report of the {self._name}", 0, str(exc)) from exc
