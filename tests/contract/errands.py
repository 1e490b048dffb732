"""Children that do as a file says, for what has children do things again and again."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from lab.wait import until

DEADLINE_SECONDS = 20.0
MODULES = ("minuteman.errand", "minuteman.sweeper", "minuteman.reaper")


def program(text: str) -> list[str]:
    """The command of a child that executes `text`."""
    return [sys.executable, "-I", "-S", "-c", text]


def report(**fields: int) -> str:
    """A program that writes a report."""
    return f"print({json.dumps(fields)!r})"


class Script:
    """The command of children that execute a file, and put down that they have been there."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self._script = folder / "script"
        self._calls = folder / "calls"
        self._caplog = caplog
        self.command = program(
            "import sys\n"
            f"print(*sys.argv[1:], file=open({str(self._calls)!r}, 'a'))\n"
            f"exec(open({str(self._script)!r}).read())"
        )

    def behave(self, text: str) -> None:
        """From the next child on, all of them."""
        new = self._script.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self._script)

    def calls(self) -> list[str]:
        """The arguments of each child."""
        return self._calls.read_text(encoding="utf-8").splitlines() if self._calls.exists() else []

    def lines(self) -> list[str]:
        """What was logged."""
        return [
            f"{record.levelname} {record.getMessage()}"
            for record in self._caplog.records
            if record.name in MODULES
        ]

    def wait_for_calls(self, number: int) -> None:
        """So many more have begun, so all but the last have ended and were heard."""
        enough = len(self.calls()) + number
        until(f"{enough} calls", lambda: len(self.calls()) >= enough, DEADLINE_SECONDS)


def wait_for_the_end(name: str) -> None:
    """Until the threads of a name have ended."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()
