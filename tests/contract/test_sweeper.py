"""The agent's end of the sweep: a child again and again, heard when there is something to say."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.wait import until
from minuteman.dataplane.sweep import Report
from minuteman.errors import DataplaneError
from minuteman.sweeper import Sweeper, run_sweep

DEADLINE_SECONDS = 20.0


def program(text: str) -> list[str]:
    """The command of a child that executes `text`."""
    return [sys.executable, "-I", "-S", "-c", text]


def report(settled: int) -> str:
    return f"""print('{{"checked": 9, "namespaces": 2, "settled": {settled}}}')"""


class Rig:
    """A sweeper whose children do what a file says, and put down that they have been there."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self._script = folder / "script"
        self._calls = folder / "calls"
        self._caplog = caplog
        self.behave(report(0))
        child = program(
            "import sys\n"
            f"print(*sys.argv[1:], file=open({str(self._calls)!r}, 'a'))\n"
            f"exec(open({str(self._script)!r}).read())"
        )
        self.sweeper = Sweeper(Path("/pins"), 0.001, child)

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
            if record.name == "minuteman.sweeper"
        ]

    def wait_for_calls(self, number: int) -> None:
        """So many more have begun, so all but the last have ended and were heard."""
        enough = len(self.calls()) + number
        until(f"{enough} calls", lambda: len(self.calls()) >= enough, DEADLINE_SECONDS)


@pytest.fixture
def rig(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    caplog.set_level(logging.INFO)
    made = Rig(tmp_path, caplog)
    made.sweeper.start()
    yield made
    made.sweeper.close()
    wait_for_the_end()


def wait_for_the_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "sweeper":
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()


def test_what_was_settled_is_said_and_nothing_else(rig: Rig) -> None:
    rig.wait_for_calls(3)
    assert set(rig.calls()) == {"--pins /pins"}
    assert rig.lines() == []
    rig.behave(report(3))
    until("line", lambda: "INFO sockets settled count=3 checked=9" in rig.lines(), DEADLINE_SECONDS)


def test_trouble_is_said_when_it_begins_and_when_it_ends(rig: Rig) -> None:
    rig.behave("sys.exit('first line\\nno such map')")
    until("warning", rig.lines, DEADLINE_SECONDS)
    rig.wait_for_calls(3)
    assert rig.lines() == ["WARNING sweep failed error=sweep: no such map"]
    rig.behave(report(0))
    until("second line", lambda: len(rig.lines()) > 1, DEADLINE_SECONDS)
    rig.wait_for_calls(3)
    assert rig.lines()[1:] == ["INFO sweep done, after failures"]


def test_it_ends_without_waiting_for_the_next_sweep(tmp_path: Path) -> None:
    sweeper = Sweeper(tmp_path, 3600, program("raise SystemExit(1)"))
    sweeper.start()
    sweeper.close()
    wait_for_the_end()


def test_the_report_is_read() -> None:
    assert run_sweep(program(report(1))) == Report(checked=9, namespaces=2, settled=1)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (program("raise SystemExit('open conns: gone')"), "sweep: open conns: gone"),
        (program("raise SystemExit(71)"), "sweep: it ended with 71"),
        (program("print('{')"), "report"),
        (program("""print('{"swept": 1}')"""), "report"),
        (["/nonexistent/python"], "No such file"),
    ],
)
def test_what_goes_wrong_is_one_line(command: list[str], said: str) -> None:
    with pytest.raises(DataplaneError, match=said) as caught:
        run_sweep(command)
    assert "\n" not in str(caught.value)
