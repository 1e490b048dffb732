"""The agent's end of the sweep: a child again and again, heard when there is something to say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.wait import until
from minuteman.sweeper import Sweeper
from tests.contract.errands import DEADLINE_SECONDS, Script, program, report, wait_for_the_end

NOTHING_SETTLED = report(checked=9, namespaces=2, settled=0)


@pytest.fixture
def script(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Script]:
    """What a sweeper has executed."""
    caplog.set_level(logging.INFO)
    made = Script(tmp_path, caplog)
    made.behave(NOTHING_SETTLED)
    sweeper = Sweeper(Path("/pins"), 0.001, made.command)
    sweeper.start()
    yield made
    sweeper.close()
    wait_for_the_end("sweeper")


def test_what_was_settled_is_said_and_nothing_else(script: Script) -> None:
    script.wait_for_calls(3)
    assert set(script.calls()) == {"--pins /pins"}
    assert script.lines() == []
    script.behave(report(checked=9, namespaces=2, settled=3))
    said = "INFO sockets settled count=3 checked=9"
    until("line", lambda: said in script.lines(), DEADLINE_SECONDS)


def test_trouble_is_said_when_it_begins_and_when_it_ends(script: Script) -> None:
    script.behave("sys.exit('first line\\nno such map')")
    until("warning", script.lines, DEADLINE_SECONDS)
    script.wait_for_calls(3)
    assert script.lines() == ["WARNING sweep failed error=sweep: no such map"]
    script.behave(NOTHING_SETTLED)
    until("second line", lambda: len(script.lines()) > 1, DEADLINE_SECONDS)
    script.wait_for_calls(3)
    assert script.lines()[1:] == ["INFO sweep done, after failures"]


def test_it_ends_without_waiting_for_the_next_sweep(tmp_path: Path) -> None:
    sweeper = Sweeper(tmp_path, 3600, program("raise SystemExit(1)"))
    sweeper.start()
    sweeper.close()
    wait_for_the_end("sweeper")
