"""What is mounted where, in this mount namespace. Source: /proc/mounts."""

from __future__ import annotations

import re
from pathlib import Path


def mounts() -> dict[Path, str]:
    """The file system at each mount point; a later mount covers an earlier one."""
    found = {}
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, where, kind, *_ = line.split()
        found[Path(_plain(where))] = kind
    return found


def mount_of(kind: str) -> Path | None:
    """Where a file system of `kind` is mounted first; None: nowhere."""
    return next((where for where, found in mounts().items() if found == kind), None)


def _plain(text: str) -> str:
    r"""`text` with its spaces, which the kernel writes as \040, and the like."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
