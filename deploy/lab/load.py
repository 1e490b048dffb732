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
from lab.client import Answer
from lab.wait import LabError


def ask(
    served: Path, address: str, port: int, *, count: int = 1, mapped: bool = False
) -> list[Answer]:
    """Send `count` requests from a process in the cgroup `served`."""
    options = [f"--count={count}", *(["--mapped"] if mapped else [])]
    run = subprocess.run(
        _command(served, address, port, *options), stdout=subprocess.PIPE, check=True, text=True
    )
    return [Answer.parse(line) for line in run.stdout.splitlines()]


class Load:
    """Requests from a process in the cgroup `served`, without end.

    with Load(served, "1.2.3.4", 5000) as load:
        load.wait_for("answer of a new task", lambda answers: ..., seconds=5)
    answers = load.answers()
    """

    def __init__(
        self,
        served: Path,
        address: str,
        port: int,
        *,
        pause_seconds: float = 0.0,
        keep: int | None = None,
    ) -> None:
        self._command = _command(served, address, port, f"--pause-seconds={pause_seconds}")
        self._answers: deque[Answer] = deque(maxlen=keep)
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
        """All so far in their order, or the last `keep` of them."""
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


def _command(served: Path, address: str, port: int, *options: str) -> list[str]:
    # Isolated, without site-packages: it starts in no time.
    program = [sys.executable, "-I", "-S", client.__file__, address, str(port), *options]
    return cgroup.join_command(served, "setpriv", "--pdeathsig", "KILL", *program)
