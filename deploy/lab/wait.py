"""Waiting for something to become true, for so long and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02
"""What is waited for has no event of its own: a page of the agent, the end of a process."""


class LabError(Exception):
    """Something is not as it should be; the message says what."""


def until(what: str, condition: Callable[[], T], seconds: float) -> T:
    """The first value of `condition` that is true; while it raises LabError, it is not.

    Errors: LabError, "no WHAT within SECONDS s", and what the last one of `condition` said.
    """
    deadline = time.monotonic() + seconds
    while True:
        reason = ""
        try:
            if found := condition():
                return found
        except LabError as error:
            reason = f": {error}"
        if time.monotonic() > deadline:
            raise LabError(f"no {what} within {seconds:g} s{reason}")
        time.sleep(POLL_SECONDS)
