"""Which entries are taken for those of dead backends."""

from __future__ import annotations

from pathlib import Path

from minuteman.dataplane.layout import CONN
from minuteman.dataplane.reap import find_dead

NOWHERE = Path("/nonexistent")
"""There are no maps: nothing is to be read."""


def test_an_entry_that_is_being_written_is_nobodys() -> None:
    """It has its cookie first; a place that was never used has nothing else yet."""
    assert find_dead({7: CONN.pack(*(b"",) * 4, *(0,) * 8, 7)}, NOWHERE) == {}
