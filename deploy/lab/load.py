"""Requests from a process in the served cgroup: so many, or without end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lab import cgroup, client
from lab.client import Answer, Target
from lab.lines import Lines


def ask(served: Path, target: Target, *, count: int = 1) -> list[Answer]:
    """Send `count` requests from a process in the cgroup `served`."""
    command = _command(served, target, f"--count={count}")
    return read_answers(
        subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    )


def program(python: str, target: Target, *options: str) -> list[str]:
    """The command that makes requests."""
    # Isolated, without site-packages: it starts in no time.
    return [python, "-I", "-S", client.__file__, *target.words(), *options]


def read_answers(output: str) -> list[Answer]:
    """What it printed."""
    return [Answer.parse(line) for line in output.splitlines()]


class Load(Lines[Answer]):
    """Requests from a process in the cgroup `served`, without end.

    with Load(served, Target("1.2.3.4", 5000)) as load:
        load.wait_for("answer of a new task", lambda answers: ..., seconds=5)
    answers = load.answers()

    Each of `clients` makes `keep` requests with one socket, then takes a new one; of their answers
    the last `remembered` ones are there to be read.
    """

    def __init__(
        self,
        served: Path,
        target: Target,
        *,
        clients: int = 1,
        keep: int = 1,
        pause_seconds: float = 0.0,
        remembered: int | None = None,
    ) -> None:
        self.clients = clients
        options = (f"--clients={clients}", f"--keep={keep}", f"--pause-seconds={pause_seconds}")
        super().__init__(_command(served, target, *options), Answer.parse, remembered=remembered)

    def answers(self) -> list[Answer]:
        """All so far in the order of their ends, or the last `remembered` of them."""
        return self.so_far()

    def wait_for_more(self, count: int, seconds: float = 10.0) -> None:
        """Return after `count` further requests. Errors: LabError."""
        target = len(self.answers()) + count
        self.wait_for(f"{count} requests", lambda answers: len(answers) >= target, seconds)


def _command(served: Path, target: Target, *options: str) -> list[str]:
    words = program(sys.executable, target, *options)
    return cgroup.join_command(served, "setpriv", "--pdeathsig", "KILL", *words)
