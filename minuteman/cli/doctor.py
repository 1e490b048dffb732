"""`minuteman doctor`: whether this host can run the agent, and what to do when it cannot."""

from __future__ import annotations

import typer

from minuteman.cli.options import Api, Bpffs, Cgroup, Config, MarathonRoot, Zookeeper
from minuteman.cli.output import console, table


def doctor(
    config: Config = None,
    zookeeper: Zookeeper = None,
    marathon_root: MarathonRoot = None,
    cgroup: Cgroup = None,
    bpffs: Bpffs = None,
    api: Api = None,
) -> None:
    """Say what this host lacks for the agent, and what to do.

    The exit code is 1 when something is missing that the agent needs.
    """
    from minuteman.cli.checks import examine  # here: see minuteman.cli
    from minuteman.settings import Settings

    settings = Settings.load(
        config,
        zookeeper=zookeeper,
        marathon_root=marathon_root,
        cgroup=cgroup,
        bpffs=bpffs,
        api=api,
    )
    rows = list(examine(settings))
    shown = table("Check", "", "What was found, or what to do")
    for row in rows:
        shown.add_row(row.name, row.finding, row.text)
    console().print(shown)
    if any(row.fatal for row in rows):
        raise typer.Exit(1)
