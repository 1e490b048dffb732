"""Events from the kernel to a person, through a whole agent, and nothing while nobody listens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from minuteman.dataplane import bpf, layout
from minuteman.dataplane.pins import serving
from minuteman.listening import AHEAD_SECONDS
from tests.kernel.conftest import Backends, Inside, who_answers
from tests.kernel.test_agent import (
    API,
    DEADLINE_SECONDS,
    MINUTEMAN,
    Agents,
    agents,
    cgroup,
    eventually,
)

__all__ = ["agents", "cgroup"]

pytestmark = pytest.mark.timeout(180)

READER = b"minuteman.dataplane.events"
FRONT = b"minuteman.front"


def children(agent: subprocess.Popen[str], module: bytes) -> list[int]:
    """Process ids of the agent's children that run a module."""
    pids = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text(encoding="ascii")
    found = []
    for pid in map(int, pids.split()):
        with suppress(OSError):  # it has just ended
            if module in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def reader_of(agent: subprocess.Popen[str]) -> int | None:
    """Process id of the child that reads events, if there is one."""
    return next(iter(children(agent, READER)), None)


def listening_until(agents: Agents) -> float:
    """Until when the programs write events, on the monotonic clock; 0: they do not."""
    where = serving(agents.bpffs / "minuteman")
    assert where is not None
    fd = bpf.open_pin(where.maps / "options")
    try:
        raw = bpf.read_array(fd, layout.OPTIONS.size, 1)
    finally:
        os.close(fd)
    _, until_ns, *_ = layout.OPTIONS.unpack(raw)
    return int(until_ns) / 1e9


@contextmanager
def events(*options: str) -> Iterator[subprocess.Popen[str]]:
    """`minuteman events`, once it listens."""
    command = subprocess.Popen(
        [MINUTEMAN, "events", "--api", API, *options], stdout=subprocess.PIPE, text=True
    )
    try:
        yield command
    finally:
        command.kill()
        command.communicate()


def test_a_person_sees_real_connections_and_leaves_nothing_behind(
    agents: Agents, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    member = backends.listen()
    agents.remember(member.port)
    agent = agents.start()
    assert listening_until(agents) == 0
    assert reader_of(agent) is None

    def connect_until_it_ends() -> bool:
        assert who_answers("10.9.9.9", 80) == member.port
        return command.poll() is not None

    with events("--json", "--count", "3", "--outcome", "connected") as command, inside(cgroup):
        eventually(connect_until_it_ends)
        assert command.stdout is not None
        told = [json.loads(line) for line in command.stdout]
    assert command.returncode == 0
    assert [event["vip"] for event in told] == ["10.9.9.9:80"] * 3
    for event in told:
        assert event["backend"] == f"127.0.0.1:{member.port}"
        assert event["task_id"] == "web.1"
        assert event["name"] is None
        assert event["pid"] > 0
        assert event["command"] == Path("/proc/self/comm").read_text(encoding="utf-8").strip()
        assert cgroup.name in event["cgroup"]
    eventually(lambda: listening_until(agents) == 0 and reader_of(agent) is None)


def test_an_agent_that_is_killed_leaves_nothing_that_writes(
    agents: Agents, backends: Backends
) -> None:
    agents.remember(backends.listen().port)
    agent = agents.start()
    with events() as command:
        eventually(lambda: reader_of(agent) is not None)
        reader = reader_of(agent)
        before = listening_until(agents)
        eventually(lambda: listening_until(agents) > before > time.monotonic())
        agents.kill(agent)
        assert command.wait(DEADLINE_SECONDS) == os.EX_UNAVAILABLE
        assert listening_until(agents) <= time.monotonic() + AHEAD_SECONDS
        eventually(lambda: not Path(f"/proc/{reader}").exists())


def test_a_front_that_is_killed_ends_the_listening_until_somebody_asks_again(
    agents: Agents, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    agents.remember(backends.listen().port)
    agent = agents.start()
    with events() as command:
        eventually(lambda: reader_of(agent) is not None)
        [front] = children(agent, FRONT)
        os.kill(front, signal.SIGKILL)
        assert command.wait(DEADLINE_SECONDS) == os.EX_UNAVAILABLE
        eventually(lambda: listening_until(agents) == 0 and reader_of(agent) is None)
    eventually(lambda: agents.answers)
    with events("--count", "1") as command, inside(cgroup):
        eventually(lambda: who_answers("10.9.9.9", 80) > 0 and command.poll() == 0)


def test_an_agent_that_is_stopped_ends_the_listening_at_once(
    agents: Agents, backends: Backends
) -> None:
    agents.remember(backends.listen().port)
    agent = agents.start()
    with events() as command:
        eventually(lambda: reader_of(agent) is not None)
        reader = reader_of(agent)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(DEADLINE_SECONDS) == 0
        assert listening_until(agents) == 0
        assert not Path(f"/proc/{reader}").exists()
        assert command.wait(DEADLINE_SECONDS) == os.EX_UNAVAILABLE
