"""The command line. `main` is the console script `minuteman`.

One module for each group of commands. What only some commands need and is large they import when
they run: `minuteman agent` becomes the control process, which has no use for a web server or for
tables, and `minuteman vips` is quicker without ZooKeeper and the kernel.
"""

from __future__ import annotations

from typing import Annotated

import typer

from minuteman import __version__
from minuteman.cli import agent, cgroup, conns, control, doctor, events, top, vips
from minuteman.errors import MinutemanError

app = typer.Typer(
    name="minuteman",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Example: minuteman agent --zookeeper zk://10.0.0.1:2181",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"minuteman {__version__}")
        raise typer.Exit


@app.callback()
def minuteman(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Virtual IPs for Mesos and Marathon: one fixed address for a service, kept by the kernel."""


app.command(epilog="Example: minuteman agent --zookeeper zk://10.0.0.1:2181,10.0.0.2:2181")(
    agent.agent
)
app.command(epilog="Example: minuteman vips --name web")(vips.vips)
app.command(epilog="Example: minuteman vip web.marathon:80")(vips.vip)
app.command(epilog="Example: minuteman top --vip web.marathon")(top.top)
app.command(epilog="Example: minuteman conns --vip web.marathon")(conns.conns)
app.command(epilog="Example: minuteman events --vip web.marathon --outcome refused")(events.events)
app.command(epilog="Example: minuteman problems")(vips.problems)
app.command(epilog="Example: minuteman believe marathon")(control.believe)
app.add_typer(cgroup.app, name="cgroup")
app.command(epilog="Example: minuteman doctor --zookeeper zk://10.0.0.1:2181")(doctor.doctor)
app.command(epilog="Example: minuteman detach")(agent.detach)


def main() -> int:
    """Run a command; return its exit code. What was expected to go wrong is one line."""
    try:
        app()
    except MinutemanError as exc:
        typer.echo(f"minuteman: {exc}", err=True)
        return exc.exit_code
    return 0
