"""The agent's end of the reaper: calls become runs, and a run is repeated until it succeeds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.wait import until
from minuteman.reaper import Reaper
from tests.contract.errands import DEADLINE_SECONDS, Script, report, wait_for_the_end

NOTHING_DEAD = report(checked=9)
THREE_DEAD = report(checked=9, dead=3, ended=3, namespaces=2)
NEVER = 3600.0


class Rig:
    """A reaper whose children do as a script says."""

    def __init__(self, script: Script, seconds: float = NEVER) -> None:
        self.script = script
        self.rung = 0
        self.reaper = Reaper(Path("/pins"), seconds, script.command)
        script.behave(NOTHING_DEAD)

    def ring(self) -> None:
        self.rung += 1

    def begins_another(self, calls: int) -> None:
        until(f"{calls} runs", lambda: len(self.script.calls()) == calls, DEADLINE_SECONDS)


@pytest.fixture
def script(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Script:
    caplog.set_level(logging.INFO)
    return Script(tmp_path, caplog)


@pytest.fixture
def rig(script: Script) -> Iterator[Rig]:
    made = Rig(script)
    made.reaper.start(made.ring)
    yield made
    made.reaper.close()
    wait_for_the_end("reaper")


def test_calls_that_come_together_are_one_run(script: Script) -> None:
    rig = Rig(script)
    script.behave(THREE_DEAD)
    for _ in range(5):
        rig.reaper.reap()
    rig.reaper.start(rig.ring)
    until("end of sockets", lambda: rig.reaper.ended == 3, DEADLINE_SECONDS)
    rig.reaper.close()
    wait_for_the_end("reaper")
    assert script.calls() == ["--pins /pins"]
    assert script.lines() == ["INFO sockets of dead backends ended count=3 namespaces=2"]
    assert rig.rung == 1


def test_a_call_while_a_run_is_under_way_is_another_run(rig: Rig, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    rig.script.behave(wait + THREE_DEAD)
    rig.reaper.reap()
    rig.begins_another(1)
    rig.reaper.reap()
    gate.touch()
    until("both ends", lambda: rig.reaper.ended == 6, DEADLINE_SECONDS)
    rig.begins_another(2)


def test_without_a_call_there_is_no_run_and_after_one_there_are_more(script: Script) -> None:
    rig = Rig(script, 0.001)
    rig.reaper.start(rig.ring)
    rig.reaper.reap()
    script.wait_for_calls(3)
    assert script.lines() == []
    assert rig.rung == 0
    rig.reaper.close()
    wait_for_the_end("reaper")


@pytest.mark.parametrize(
    "failure", ["sys.exit('no such map')", "import os; os.kill(os.getpid(), 9)"]
)
def test_a_run_that_fails_is_repeated_until_one_succeeds(rig: Rig, failure: str) -> None:
    rig.script.behave(failure)
    rig.reaper.reap()
    rig.script.wait_for_calls(3)
    [problem] = rig.reaper.problems
    assert problem.field == "reaping"
    rig.script.behave(THREE_DEAD)
    until("end of sockets", lambda: rig.reaper.ended == 3, DEADLINE_SECONDS)
    until("good news", lambda: rig.rung >= 2, DEADLINE_SECONDS)
    assert rig.reaper.problems == ()
    first, *others = rig.script.lines()
    assert first.startswith("WARNING reaping failed error=reaping: ")
    assert others == [
        "INFO reaping done, after failures",
        "INFO sockets of dead backends ended count=3 namespaces=2",
    ]
    calls = len(rig.script.calls())
    rig.reaper.reap()
    rig.begins_another(calls + 1)


def test_it_ends_while_it_waits_for_a_call(script: Script) -> None:
    rig = Rig(script)
    rig.reaper.start(rig.ring)
    rig.reaper.close()
    wait_for_the_end("reaper")
    assert script.calls() == []
