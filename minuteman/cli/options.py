"""Options that are settings, for more than one command. None: not given on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def setting(value: str, text: str, default: str = "") -> object:
    """The typer option of a setting: `value` stands for what is given.

    The default is `Settings`' own, and only said here.
    """
    return typer.Option(
        metavar=value, help=f"{text} [default: {default}]" if default else text, show_default=False
    )


Config = Annotated[
    Path | None, setting("FILE", "TOML file with settings, by the names of these options.")
]
Zookeeper = Annotated[
    str | None,
    setting("URL", "zk://[user:password@]host:port[,host:port][/chroot] of the cluster."),
]
MarathonRoot = Annotated[
    str | None, setting("PATH", "The path in Marathon's --zk, below the chroot.", "/marathon")
]
Cgroup = Annotated[
    Path | None,
    setting("PATH", "Serve the processes in this cgroup v2 and below.", "the root of cgroup v2"),
]
Bpffs = Annotated[
    Path | None,
    setting("PATH", "Keep what is ours in this folder of a bpffs.", "where bpffs is mounted"),
]
StateDir = Annotated[
    Path | None,
    setting("PATH", "Folder for snapshot, cache and control socket.", "/var/lib/minuteman"),
]
Api = Annotated[
    str | None,
    setting("ADDRESS:PORT", "Where REST listens, on the loopback.", "127.0.0.1:62080"),
]
