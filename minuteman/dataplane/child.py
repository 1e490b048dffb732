"""A child of the agent that does one thing with the maps and says what came of it.

    python -m MODULE --pins FOLDER

It is a process of its own: the agent's threads do not wait for it, and its memory is not theirs. It
writes what it did to standard output, one line of JSON, and what went wrong to standard error; it
returns an exit code of errors.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from minuteman.dataplane.pins import Pins
from minuteman.errors import MinutemanError
from minuteman.privileges import end_with_parent

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def run(module: str, work: Callable[[Pins], DataclassInstance], niceness: int = 0) -> int:
    """Do `work` as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog=module, description="started by the agent")
    parser.add_argument("--pins", type=Path, required=True, help="folder of one layout")
    options = parser.parse_args()
    end_with_parent()
    os.nice(niceness)
    try:
        report = work(Pins(options.pins))
    except MinutemanError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    return os.EX_OK
