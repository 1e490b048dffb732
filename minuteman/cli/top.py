"""`minuteman top`: what goes on at the VIPs, live."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from api import schemas
from minuteman.cli.client import Rest, decode
from minuteman.cli.output import console, lines, print_lines, while_read
from minuteman.cli.rates import Row, rows
from minuteman.cli.text import connect_time, rate, short, size
from minuteman.cli.vips import DEFAULT_API, Api
from minuteman.errors import SourceError

if TYPE_CHECKING:
    from rich.text import Text

NUMBERS = (
    "Connects/s",
    "Failures/s",
    "Active",
    "Connecting",
    "Ejected",
    "Sent/s",
    "Received/s",
    "Resent/s",
    "p50",
    "p99",
)
MARGIN = 3
"""Lines of a screen that are no rows."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment."""

    rows: list[Row]
    trouble: str = ""
    """Why nothing was."""


def top(
    api: Api = DEFAULT_API,
    vip: Annotated[str, typer.Option(help="Only VIPs with this in their name or address.")] = "",
    backends: Annotated[bool, typer.Option("--backends", help="Show each backend alone.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many looks.", show_default=False)
    ] = None,
) -> None:
    """Show what goes on at the VIPs, the busiest first, until Ctrl-C.

    What a TCP connection has sent and received counts in the moment when it closes. p50 and p99 are
    of the connects since the last look.
    """
    looks = islice(watch(Rest(api), vip, interval, backends=backends), count)
    with while_read():
        if sys.stdout.isatty():
            show(looks, backends=backends)
        else:
            write(looks, backends=backends)


def watch(rest: Rest, name: str, interval: float, *, backends: bool) -> Iterator[Look]:
    """What was between each two readings of the counters, which are at most one in a second.

    Errors: SourceError when no agent answers the first time; later it may be restarting.
    """
    before = read(rest, name)
    while True:
        time.sleep(interval)
        try:
            now = read(rest, name)
        except SourceError as exc:
            yield Look([], str(exc))
            continue
        if now.counted_monotonic > before.counted_monotonic:
            yield Look(rows(before, now, backends=backends))
            before = now


def read(rest: Rest, name: str) -> schemas.VipList:
    """The VIPs with `name` in their name or address, and their counters. Errors: SourceError."""
    return decode(rest.get("/api/vips", {"name": name}), schemas.VipList)


def write(looks: Iterable[Look], *, backends: bool) -> None:
    """One table after another, whole, with an empty line behind each."""
    for look in looks:
        if look.trouble:
            typer.echo(look.trouble, err=True)
        else:
            print_lines([*_table(look.rows, backends=backends), ""])


def show(looks: Iterable[Look], *, backends: bool) -> None:
    """The newest table, as much of it as the terminal has room for."""
    from rich.live import Live  # here: see minuteman.cli

    out = console()
    with Live(console=out, screen=True, auto_refresh=False) as live:
        for look in looks:
            live.update(_screen(look, out.height - MARGIN, backends=backends), refresh=True)


def _screen(look: Look, height: int, *, backends: bool) -> Text:
    """So many rows, each one line: what is wider than the terminal is cut."""
    from rich.text import Text  # here: see minuteman.cli

    shown = look.rows[: max(height, 0)]
    head = look.trouble or f"{len(shown)} of {len(look.rows)}"
    text = "\n".join([head, "", *_table(shown, backends=backends)])
    return Text(text, no_wrap=True, overflow="ellipsis")


def _table(shown: Iterable[Row], *, backends: bool) -> Iterator[str]:
    cells = (_cells(row, backends=backends) for row in shown)
    return lines(_columns(backends=backends), cells, NUMBERS)


def _columns(*, backends: bool) -> tuple[str, ...]:
    return ("VIP", "Protocol", *(("Backend",) if backends else ()), *NUMBERS)


def _cells(row: Row, *, backends: bool) -> tuple[str, ...]:
    grown = row.increase
    return (
        short(row.vip),
        row.protocol,
        *((row.backend,) if backends else ()),
        rate(row.per_second(grown.attempts)),
        rate(row.per_second(grown.failures)),
        str(row.active),
        str(row.connecting),
        str(row.ejected),
        size(row.per_second(grown.bytes_sent)),
        size(row.per_second(grown.bytes_received)),
        rate(row.per_second(grown.retransmits)),
        connect_time(grown.connect_log2_us, 0.50),
        connect_time(grown.connect_log2_us, 0.99),
    )
