"""Cgroups of the sample cluster, below the sandbox's: one is served, one runs the rest.

<sandbox>/served     the programs are attached here; clients join it
<sandbox>/cluster    ZooKeeper, the agent, tasks: found there by `deploy/run exec`
"""

from __future__ import annotations

import os
from pathlib import Path

from lab.sandbox import VARIABLE

SERVED = "served"
CLUSTER = "cluster"


def prepare() -> Path:
    """Make both in this sandbox and move this process to the second: the path of the first."""
    sandbox = Path(os.environ[VARIABLE])
    for name in (SERVED, CLUSTER):
        (sandbox / name).mkdir()
    join(sandbox / CLUSTER)
    return sandbox / SERVED


def join_command(cgroup: Path, *words: str) -> list[str]:
    """`words` as a command that runs in `cgroup`."""
    return ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(cgroup), *words]


def join(cgroup: Path) -> None:
    """Move this process to `cgroup`; what it starts from now on is there too."""
    (cgroup / "cgroup.procs").write_text("0", encoding="ascii")


def members(cgroup: Path) -> list[int]:
    """Processes in `cgroup`, as they are numbered here; none when there is no such cgroup."""
    try:
        listed = (cgroup / "cgroup.procs").read_text(encoding="ascii").split()
    except OSError:
        return []
    return [int(pid) for pid in listed]
