"""Versions of the product: what is in this tree, and what may come after it. Each is a real wheel.

A later version is a copy of this tree with some texts replaced. A text that is not there any more
fails: whoever changes it says here what comes after it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

ROOT = Path(__file__).parents[2]
PARTS = ("minuteman", "ebpf", "api", "pyproject.toml", "README.md", "LICENSE")
SAY = """
import minuteman
from minuteman.dataplane import layout
print(minuteman.__version__, layout.SCHEMA)
"""


@dataclass(frozen=True, slots=True)
class Edit:
    """One text of a file, a regular expression, that becomes another one."""

    file: str
    old: str
    new: str

    def apply(self, tree: Path) -> None:
        path = tree / self.file
        text, times = re.subn(self.old, self.new, path.read_text(encoding="utf-8"))
        if times != 1:
            raise ValueError(f"{self.file} has {self.old!r} {times} times: edit {__file__}")
        path.write_text(text, encoding="utf-8")


def _numbered(number: str) -> Edit:
    return Edit("pyproject.toml", r'\nversion = "[\d.]+"\n', f'\nversion = "{number}"\n')


FIX = (
    _numbered("90.0.1"),
    Edit(
        "ebpf/release.c", r"\Z", "\n/* Other programs: this says nothing new to the compiler. */\n"
    ),
)
"""Other programs for the same maps."""

NEXT = (
    _numbered("91.0.0"),
    Edit("minuteman/dataplane/layout.py", r"\nSCHEMA = \d+\n", "\nSCHEMA = 91\n"),
    # struct backend_stats: two fields change places, one is new, one is gone.
    Edit(
        "ebpf/maps.h",
        r"    u32 connecting;\n(    u32 active; .*\n)",
        r"\1    u32 connecting;\n",
    ),
    Edit("ebpf/maps.h", r"(    u64 attempts; .*\n)", r"\1    u64 postponed_ns;\n"),
    Edit("ebpf/maps.h", r"    u64 retransmits;\n", ""),
    Edit("ebpf/carry.c", r".*->retransmits, .*\n", ""),
    Edit("ebpf/observe.c", r".*->retransmits, .*\n", ""),
    Edit(
        "minuteman/dataplane/layout.py",
        r'"connecting:I active:I (.*) attempts:Q "',
        r'"active:I connecting:I \1 attempts:Q postponed_ns:Q "',
    ),
    Edit("minuteman/dataplane/layout.py", r' retransmits:Q "', r' "'),
    Edit(
        "minuteman/dataplane/layout.py",
        r"        connecting,\n        active,\n",
        "        active,\n        connecting,\n",
    ),
    Edit(
        "minuteman/dataplane/layout.py",
        r"        attempts,\n",
        "        attempts,\n        _postponed_ns,\n",
    ),
    Edit("minuteman/dataplane/layout.py", r"        retransmits,\n", ""),
    Edit("minuteman/dataplane/layout.py", r"retransmits=retransmits", "retransmits=0"),
    # struct conn: two fields change places, two are new.
    Edit(
        "ebpf/maps.h",
        r"    u32 backend_id;\n    u32 epoch;\n(    u8 proto;\n    u8 phase;)",
        r"    u32 epoch;\n    u32 backend_id;\n\1",
    ),
    Edit("ebpf/maps.h", r"(    u32 started_ms; .*\n)", r"    u32 pid;\n    u32 uid;\n\1"),
    Edit("ebpf/maps.h", r"sizeof\(struct conn\) == 64", "sizeof(struct conn) == 72"),
    Edit(
        "minuteman/dataplane/layout.py",
        r"backend_id:I epoch:I proto:B \"\n(.*) started_ms:I cookie:Q",
        r'epoch:I backend_id:I proto:B "\n\1 pid:I uid:I started_ms:I cookie:Q',
    ),
    # One more reason, before some others.
    Edit("ebpf/maps.h", r"(    RETRIED, .*\n)", r"    POSTPONED,\n\1"),
    Edit("minuteman/dataplane/layout.py", r'(    "retried",\n)', r'    "postponed",\n\1'),
    Edit("api/metrics.py", r'(    "retried": .*\n)', r'    "postponed": "later",\n\1'),
)
"""Other maps, of which some are as they were."""


@dataclass(frozen=True, slots=True)
class Version:
    """One that is installed in a folder of its own, beside the dependencies of this tree."""

    folder: Path
    number: str
    schema: int

    @classmethod
    def at(cls, folder: Path) -> Self:
        """What is installed there."""
        number, schema = _run(folder, "-c", SAY).split()
        return cls(folder, number, int(schema))

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables with which this Python, and all that it starts, runs this version."""
        return _environment(self.folder)

    def run(self, *words: str) -> str:
        """What this Python prints, with this version."""
        return _run(self.folder, *words)


def _environment(folder: Path) -> Mapping[str, str]:
    return {"PYTHONPATH": str(folder)}


def _run(folder: Path, *words: str) -> str:
    command = [sys.executable, "-P", *words]
    environment = {**os.environ, **_environment(folder)}
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


class Versions(NamedTuple):
    """In the order in which they would come."""

    this: Version
    fix: Version
    """The same maps, other programs."""
    next: Version
    """Other maps."""


def install_all(folder: Path) -> Versions:
    """Build and install all of them below `folder`."""
    return Versions(
        install("this", (), folder), install("fix", FIX, folder), install("next", NEXT, folder)
    )


def write_tree(edits: Sequence[Edit], tree: Path) -> None:
    """This tree with `edits`. Errors: ValueError when one does not fit it any more."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, tree / part)
    for edit in edits:
        edit.apply(tree)


def install(name: str, edits: Sequence[Edit], folder: Path) -> Version:
    """Build and install this tree with `edits`. Errors: ValueError, OSError."""
    tree, installed = folder / name / "tree", folder / name / "installed"
    tree.mkdir(parents=True)
    write_tree(edits, tree)
    _python(tree, "-m", "hatchling", "build", "-t", "wheel", "-d", tree.parent)
    (wheel,) = tree.parent.glob("*.whl")
    offline = ("--no-index", "--no-deps", "--disable-pip-version-check")
    _python(tree, "-m", "pip", "install", *offline, "--target", installed, wheel)
    return Version.at(installed)


def _python(folder: Path, *words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(done.stderr)
