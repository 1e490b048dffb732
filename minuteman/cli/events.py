"""`minuteman events`: what becomes of connections, as it happens."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated

import typer

from api import schemas
from minuteman.cli.client import Rest, decode
from minuteman.cli.output import while_read
from minuteman.cli.text import duration, printable
from minuteman.cli.vips import DEFAULT_API, Api

COLUMNS = {
    "Time": 12,
    "Outcome": 15,
    "Waited": 7,
    "VIP": 40,
    "Backend": 21,
    "Task": 24,
    "Process": 12,
    "Cgroup": 0,
}
"""With widths that are enough for most."""
LOST = b'{"lost":'


def events(
    api: Api = DEFAULT_API,
    vip: Annotated[str, typer.Option(help="Only VIPs with this in their name or address.")] = "",
    backend: Annotated[
        str, typer.Option(help="Only backends with this in their address or task id.")
    ] = "",
    outcome: Annotated[
        schemas.Outcome | None, typer.Option(help="Only this.", show_choices=True)
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many events.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object in each line.")] = False,
) -> None:
    """Show what becomes of connections through VIPs, as it happens, until Ctrl-C.

    The kernel tells of them only while somebody listens.
    """
    query = {"vip": vip, "backend": backend} | ({"outcome": outcome} if outcome else {})
    with while_read(), Rest(api).stream("/api/events", query) as stream:
        told = first(stream, count)
        if as_json:
            for line in told:
                _print(line.decode())
        else:
            _show(told)


def first(stream: Iterable[bytes], count: int | None) -> Iterator[bytes]:
    """`stream` up to its event number `count`; those that are lost are not counted."""
    seen = 0
    for line in stream:
        yield line
        seen += not line.startswith(LOST)
        if seen == count:
            return


def _show(stream: Iterable[bytes]) -> None:
    """A table without an end: its columns become wider as need be."""
    widths = list(COLUMNS.values())
    _print(aligned(tuple(COLUMNS), widths))
    for line in stream:
        if line.startswith(LOST):
            lost = decode(line, schemas.LostEvents).lost
            typer.echo(f"{lost} events were lost: there were too many at once", err=True)
        else:
            _print(aligned(_cells(decode(line, schemas.Event)), widths))


def aligned(cells: Sequence[str], widths: list[int]) -> str:
    """`cells` as a line, each at least as wide as those before it; `widths` are kept up to date."""
    for column, cell in enumerate(cells):
        widths[column] = max(widths[column], len(cell))
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def _cells(event: schemas.Event) -> tuple[str, ...]:
    time = datetime.fromisoformat(event.time).astimezone()
    cells = (
        f"{time:%H:%M:%S}.{time.microsecond // 1000:03}",
        event.outcome,
        "" if event.waited_us is None else duration(event.waited_us),
        event.name or event.vip,
        event.backend or "",
        event.task_id or "",
        "" if event.pid is None else f"{event.command or ''}[{event.pid}]",
        event.cgroup or "",
    )
    return tuple(printable(cell) for cell in cells)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
