"""An agent that cannot work says why, ends with the right code, and attaches nothing."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.agent import MINUTEMAN
from minuteman.dataplane import bpf, pins
from minuteman.dataplane import cgroup as served_cgroup


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    code: int
    lines: Sequence[str]
    """What it said."""

    @property
    def last_line(self) -> str:
        """The reason."""
        return self.lines[-1]

    @property
    def is_clear(self) -> bool:
        """Whether no stack trace is in the way."""
        return not any("Traceback" in line for line in self.lines)


@pytest.fixture
def served(sandbox: Path) -> Iterator[Path]:
    """A cgroup that nobody serves."""
    served = sandbox / "bad-start"
    served.mkdir()
    yield served
    served.rmdir()


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A bpffs with nothing in it."""
    mount = tmp_path / "bpf"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


def run_agent(
    tmp_path: Path, served: Path, bpffs: Path | None, *, before: str = "", **settings: str
) -> Outcome:
    """Run an agent that is expected to end by itself, in a mount namespace of its own.

    `before` is a command that changes that one first.
    """
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and not listening: it refuses
        variables = {
            "ZOOKEEPER": f"zk://127.0.0.1:{nobody.getsockname()[1]}",
            "CGROUP": str(served),
            "STATE_DIR": str(tmp_path / "state"),
            "API": "127.0.0.1:62081",
            "START_TIMEOUT_SECONDS": "1",
            **({"BPFFS": str(bpffs)} if bpffs else {}),
            **{name.upper(): value for name, value in settings.items()},
        }
        agent = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", f'{before}\nexec "$0" agent', MINUTEMAN],
            env={**os.environ, **{f"MINUTEMAN_{key}": text for key, text in variables.items()}},
            capture_output=True,
            check=False,
            text=True,
            timeout=30,
        )
    return Outcome(agent.returncode, agent.stderr.splitlines())


def attached(cgroup: Path) -> list[str]:
    """Programs in effect on a cgroup."""
    fd = served_cgroup.open_cgroup(cgroup)
    try:
        return [name for name, hook in pins.PROGRAMS.items() if bpf.effective_programs(fd, hook)]
    finally:
        os.close(fd)


def test_without_a_cgroup(tmp_path: Path, served: Path, bpffs: Path) -> None:
    missing = served / "missing"
    outcome = run_agent(tmp_path, missing, bpffs)
    assert outcome.code == os.EX_OSERR
    assert str(missing) in outcome.last_line
    assert outcome.is_clear
    assert not (bpffs / "minuteman").exists()


def test_with_a_folder_that_is_no_cgroup(tmp_path: Path, bpffs: Path) -> None:
    outcome = run_agent(tmp_path, tmp_path, bpffs)
    assert outcome.code == os.EX_OSERR
    assert str(tmp_path) in outcome.last_line
    assert outcome.is_clear
    assert not (bpffs / "minuteman").exists()


def test_with_a_folder_that_is_no_bpffs(tmp_path: Path, served: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    outcome = run_agent(tmp_path, served, folder)
    assert outcome.code == os.EX_OSERR
    assert str(folder) in outcome.last_line
    assert "bpffs" in outcome.last_line
    assert outcome.is_clear
    assert not attached(served)
    assert not list(folder.rglob("*"))


def test_without_any_bpffs(tmp_path: Path, served: Path) -> None:
    outcome = run_agent(tmp_path, served, None, before="umount --all --types bpf")
    assert outcome.code == os.EX_OSERR
    assert "mount -t bpf" in outcome.last_line
    assert outcome.is_clear
    assert not attached(served)


def test_without_zookeeper(tmp_path: Path, served: Path, bpffs: Path) -> None:
    outcome = run_agent(tmp_path, served, bpffs)
    assert outcome.code == os.EX_UNAVAILABLE
    assert "127.0.0.1" in outcome.last_line
    assert outcome.is_clear
    assert not attached(served)
    assert not (bpffs / "minuteman").exists()


def test_with_a_setting_that_has_no_meaning(tmp_path: Path, served: Path, bpffs: Path) -> None:
    outcome = run_agent(tmp_path, served, bpffs, named_range="11.0.0.9-11.0.0.1")
    assert outcome.code == os.EX_CONFIG
    assert "named_range" in outcome.last_line
    assert outcome.is_clear
    assert not attached(served)
    assert not (bpffs / "minuteman").exists()
