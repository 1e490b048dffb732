"""What a child is asked for, and what is heard of it."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from minuteman.dataplane.sweep import Report
from minuteman.errand import Errand
from minuteman.errors import DataplaneError
from tests.contract.errands import program, report


def errand(command: list[str]) -> Errand[Report]:
    return Errand("sweep", command, Path("/pins"), Report, Event())


def test_the_report_is_read() -> None:
    asked = program(f"import sys; assert sys.argv[1:] == ['--pins', '/pins']\n{report(checked=9)}")
    assert errand(asked).run() == Report(checked=9)


def test_a_terminals_ctrl_c_is_not_for_the_child() -> None:
    alone = program(f"import os; assert os.getpgrp() == os.getpid()\n{report(checked=9)}")
    assert errand(alone).run() == Report(checked=9)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (program("raise SystemExit('open conns: gone')"), "sweep: open conns: gone"),
        (program("raise SystemExit(71)"), "sweep: it ended with 71"),
        (program("import os; os.kill(os.getpid(), 9)"), "sweep: it ended with -9"),
        (program("print('{')"), "report"),
        (program("""print('{"swept": 1}')"""), "report"),
        (["/nonexistent/python"], "No such file"),
    ],
)
def test_what_goes_wrong_is_one_line(command: list[str], said: str) -> None:
    with pytest.raises(DataplaneError, match=said) as caught:
        errand(command).try_once()
    assert "\n" not in str(caught.value)


def test_a_failure_is_a_problem_until_it_is_done(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    tried = errand(program(f"open({str(flag)!r})\n{report(checked=1)}"))
    assert not tried.problems
    assert tried.run() is None
    [problem] = tried.problems
    assert (problem.where, problem.field) == ("kernel", "sweep")
    assert "No such file" in problem.reason
    flag.touch()
    assert tried.run() == Report(checked=1)
    assert not tried.problems
