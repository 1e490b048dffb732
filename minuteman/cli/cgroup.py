"""`minuteman cgroup`: whose connections a running agent leaves alone."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from minuteman.cli.client import call_agent
from minuteman.cli.control import DEFAULT_STATE_DIR, StateDir
from minuteman.cli.output import console, table
from minuteman.control import Request

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Leave the processes of a cgroup alone, as sidecars and sandboxes need it.",
    epilog="Example: minuteman cgroup skip mesh/sidecar",
)

Path = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="Of a cgroup v2: below its mount, or relative, as /proc/PID/cgroup has it after 0::/.",
    ),
]


@app.command(epilog="Example: minuteman cgroup skip mesh/sidecar")
def skip(path: Path, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Leave the processes in a cgroup and below alone from now on.

    What they connect or send to is not looked at; connections that they have go on. It holds for
    the path: after a restart of the agent, too, and for a cgroup that is made anew there.
    """
    call_agent(state_dir, Request(call="skip", path=path))
    typer.echo(f"{path} is left alone.")


@app.command(epilog="Example: minuteman cgroup serve mesh/sidecar")
def serve(path: Path, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Serve the processes in a cgroup again, after `skip`."""
    call_agent(state_dir, Request(call="serve", path=path))
    typer.echo(f"{path} is served.")


@app.command("list", epilog="Example: minuteman cgroup list")
def list_skipped(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List the cgroups that are left alone, and who wants that."""
    cgroups = call_agent(state_dir, Request(call="skipped")).cgroups
    if as_json:
        typer.echo(msgspec.json.encode(cgroups))
        return
    shown = table("Cgroup", "Id", "Wanted by", numbers=("Id",))
    for cgroup in cgroups:
        shown.add_row(cgroup.path, str(cgroup.id or "gone"), cgroup.wanted_by)
    console().print(shown if shown.row_count else "No cgroup is left alone.")
