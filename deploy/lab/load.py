"""Requests from a process in the served cgroup: so many, or without end."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from lab import cgroup, client
from lab.client import Answer, Target
from lab.wait import LabError


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


class Load:
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
        self._command = _command(served, target, *options)
        self._answers: deque[Answer] = deque(maxlen=remembered)
        self._news = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for whoever started it
        )
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; the answers stay."""
        if self._process is not None:
            self._process.kill()
            self._reader.join()
            self._process.wait()

    def answers(self) -> list[Answer]:
        """All so far in the order of their ends, or the last `remembered` of them."""
        with self._news:
            return list(self._answers)

    def wait_for(
        self, what: str, condition: Callable[[Sequence[Answer]], bool], seconds: float
    ) -> None:
        """Return when `condition` holds for the answers so far, of which there is at least one.

        Errors: LabError.
        """
        with self._news:
            if not self._news.wait_for(
                lambda: bool(self._answers) and condition(self._answers), seconds
            ):
                raise LabError(f"no {what} within {seconds:g} s")

    def wait_for_more(self, count: int, seconds: float = 10.0) -> None:
        """Return after `count` further requests. Errors: LabError."""
        target = len(self.answers()) + count
        self.wait_for(f"{count} requests", lambda answers: len(answers) >= target, seconds)

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # the last one may be cut by its end
                    with self._news:
                        self._answers.append(Answer.parse(line))
                        self._news.notify_all()


def _command(served: Path, target: Target, *options: str) -> list[str]:
    words = program(sys.executable, target, *options)
    return cgroup.join_command(served, "setpriv", "--pdeathsig", "KILL", *words)
