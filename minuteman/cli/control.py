"""`minuteman believe`: what root asks of a running agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minuteman.cli.client import call_agent
from minuteman.control import Request

DEFAULT_STATE_DIR = Path("/var/lib/minuteman")

StateDir = Annotated[
    Path,
    typer.Option("--state-dir", envvar="MINUTEMAN_STATE_DIR", help="State folder of the agent."),
]


def believe(
    source: Annotated[str, typer.Argument(help="Name of the source, such as marathon.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Take what a source says now as the truth.

    For a ZooKeeper that was wiped or restored on purpose: until then the agent keeps what it no
    longer has.
    """
    call_agent(state_dir, Request(call="believe", source=source))
    typer.echo(f"{source} is believed.")
