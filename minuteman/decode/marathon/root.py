"""What Marathon says about itself: the version of its storage, and its framework id."""

from __future__ import annotations

from typing import Literal

from minuteman.decode import marathon_pb2 as pb
from minuteman.decode import wire
from minuteman.errors import ModelError

OLDEST = (1, 4)
"""Before it everything lies in one flat folder, in other messages."""
NEWEST = (110, 100)
"""Marathon 1.11, which is the last."""


def check_storage_version(data: bytes) -> Literal["known", "newer"]:
    """Whether `internal:storage:version` names a layout that this package was checked against.

    Shape: 1.4 to 1.6 are (1, 4) to (1, 6), 1.7 to 1.11 are (17, 0) to (110, 100).
    Errors: ModelError for an older one, and when there is none in it.
    """
    stored = wire.message(pb.StorageVersion, wire.message(pb.StoreEntry, data).value)
    version = (stored.major, stored.minor)
    if version < OLDEST:
        shown = f"{stored.major}.{stored.minor}.{stored.patch}"
        raise ModelError("storage version", shown, "it is older than Marathon 1.4")
    return "known" if version <= NEWEST else "newer"


def read_framework_id(data: bytes) -> str:
    """The id in `framework-id/b/id`. Errors: ModelError."""
    value = wire.text("framework id", wire.message(pb.FrameworkID, data).value)
    if not value:
        raise ModelError("framework id", value, "there is none")
    return value
