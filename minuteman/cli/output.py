"""Tables on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 10_000
"""Columns when nobody looks: in a pipe nothing is cut, and each row is a line."""
BLOCK = 1_000
"""Lines that are aligned together."""


def console() -> Console:
    """Standard output; as wide as the terminal, if it is one."""
    from rich.console import Console  # here: see minuteman.cli

    return Console(
        width=None if sys.stdout.isatty() else WIDE, markup=False, emoji=False, highlight=False
    )


def table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table; `numbers` are the columns that are aligned to the right."""
    from rich.box import SIMPLE_HEAD  # here: see minuteman.cli
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def lines(
    columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: tuple[str, ...] = ()
) -> Iterator[str]:
    """A table of any length, line by line as `rows` come; `numbers` are aligned to the right.

    A `Table` has to have seen all of it, and takes a millisecond for each line.
    """
    rows = iter(rows)
    widths = [len(column) for column in columns]
    head: list[Sequence[str]] = [columns]
    while block := head + list(islice(rows, BLOCK)):
        widths = [
            max(width, *map(len, cells)) for width, *cells in zip(widths, *block, strict=True)
        ]
        for row in block:
            cells = (
                cell.rjust(width) if column in numbers else cell.ljust(width)
                for column, cell, width in zip(columns, row, widths, strict=True)
            )
            yield "  ".join(cells).rstrip()
        head = []


def print_lines(made: Iterable[str]) -> None:
    """Write lines to standard output as they come."""
    sys.stdout.writelines(f"{line}\n" for line in made)
    sys.stdout.flush()


@contextmanager
def while_read() -> Iterator[None]:
    """Leave the block at Ctrl-C, and when nobody reads standard output any more."""
    try:
        yield
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # what is still to be flushed has to go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
