"""Tables on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 200
"""Columns when nobody looks: in a pipe nothing is cut."""


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
