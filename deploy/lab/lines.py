"""A process that writes line after line, read while it runs."""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Self, TypeVar

from lab.wait import LabError

T = TypeVar("T")


class Lines(Generic[T]):
    """What a process has written so far, each line as `parse` reads it; it ends with the block.

    A line that is None then is none.
    Of the lines the last `remembered` ones are there to be read. The process has the variables
    `environment`, or ours.
    """

    def __init__(
        self,
        command: Sequence[str],
        parse: Callable[[str], T | None],
        *,
        environment: Mapping[str, str] | None = None,
        remembered: int | None = None,
    ) -> None:
        self._command = command
        self._parse = parse
        self._environment = environment
        self._lines: deque[T] = deque(maxlen=remembered)
        self._news = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, name="lines", daemon=True)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
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
        """End it; the lines stay."""
        if self._process is not None:
            self._process.kill()
            self._reader.join()
            self._process.wait()

    def so_far(self) -> list[T]:
        """All of them, or the last `remembered` ones."""
        with self._news:
            return list(self._lines)

    def wait_for(self, what: str, condition: Callable[[Sequence[T]], bool], seconds: float) -> None:
        """Return when `condition` holds for the lines so far, of which there is at least one.

        Errors: LabError.
        """
        with self._news:
            if not self._news.wait_for(
                lambda: bool(self._lines) and condition(self._lines), seconds
            ):
                raise LabError(f"no {what} within {seconds:g} s")

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with self._process.stdout as lines:
            for line in lines:
                # The last one may be cut by its end.
                if line.endswith("\n") and (parsed := self._parse(line)) is not None:
                    with self._news:
                        self._lines.append(parsed)
                        self._news.notify_all()
