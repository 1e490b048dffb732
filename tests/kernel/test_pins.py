"""The folder of pins, and who has it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from minuteman.dataplane import pins
from minuteman.errors import RunningError


def test_a_folder_that_is_removed_while_it_is_taken_is_taken_anew(
    pin_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one's `remove_all` ends between the opening of the folder and its lock."""
    flock = fcntl.flock

    def flock_after_removal(fd: int, operation: int) -> None:
        monkeypatch.undo()
        pin_root.rmdir()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_removal)
    lock = pins.own(pin_root)
    try:
        assert pins.is_same_folder(lock, pin_root)
        with pytest.raises(RunningError):
            pins.own(pin_root)
    finally:
        os.close(lock)
        pin_root.rmdir()
