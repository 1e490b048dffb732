"""The control process as a whole, without any ZooKeeper that answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest

from lab.wait import until
from minuteman.model import (
    Origin,
    Snapshot,
    Task,
    TaskPort,
    Unit,
    UnitId,
    VipClaim,
    VipKey,
)
from minuteman.reconcile.store import Memory, Store
from tests.kernel.conftest import Backends, Inside, new_cgroup, new_pins, who_answers

API = "127.0.0.1:62090"
NOBODY_THERE = "zk://127.0.0.1:9"
DEADLINE_SECONDS = 30.0
MINUTEMAN = Path(sys.executable).with_name("minuteman")
VIP = VipKey(ip_address("10.9.9.9"), 80, "tcp")


def eventually(holds: Callable[[], bool]) -> None:
    until("what was expected", holds, DEADLINE_SECONDS)


class Agents:
    """Runs agents with one state folder, one cgroup and one folder of pins."""

    def __init__(self, cgroup: Path, bpffs: Path, state_dir: Path) -> None:
        self.bpffs = bpffs
        self.state_dir = state_dir
        self._settings = {
            "ZOOKEEPER": NOBODY_THERE,
            "CGROUP": str(cgroup),
            "BPFFS": str(bpffs),
            "STATE_DIR": str(state_dir),
            "API": API,
            "START_TIMEOUT_SECONDS": "1",
        }
        self._started: list[subprocess.Popen[str]] = []

    def run(self, *command: str, wrap: tuple[str, ...] = (), **settings: str) -> tuple[int, str]:
        """Exit code and last line of a command that ends by itself."""
        done = subprocess.run(
            [*wrap, str(MINUTEMAN), *command],
            env=self._environment(settings),
            capture_output=True,
            check=False,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, (done.stderr or done.stdout).splitlines()[-1]

    def start(self) -> subprocess.Popen[str]:
        """An agent that answers at its REST interface."""
        agent = subprocess.Popen(
            [str(MINUTEMAN), "agent"],
            env=self._environment({}),
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._started.append(agent)
        eventually(lambda: agent.poll() is not None or self.answers)
        assert agent.poll() is None
        return agent

    @property
    def answers(self) -> bool:
        try:
            return bool(self.page("/api/health"))
        except httpx.TransportError:
            return False

    def page(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{API}{path}", trust_env=False, timeout=DEADLINE_SECONDS)

    def remember(self, port: int) -> None:
        """Have the state folder know one VIP with one task on the loopback."""
        home = ip_address("127.0.0.1")
        ports = (TaskPort("tcp", port, "host", claims=(VipClaim(VIP),)),)
        task = Task("fw", "web.1", "marathon", "web", "a1", home, (), "running", None, ports)
        unit = Unit(UnitId("instance/web.1"), 1, (task,))
        snapshot = Snapshot("marathon", Origin("1:1", 1), {unit.id: unit})
        Store(self.state_dir / "snapshot.jsonl").save(Memory(7, (snapshot,)))

    def end_all(self) -> None:
        for agent in self._started:
            agent.kill()
            agent.wait()

    def _environment(self, settings: dict[str, str]) -> dict[str, str]:
        given = {f"MINUTEMAN_{name}": value for name, value in (self._settings | settings).items()}
        return {**os.environ, **given}


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with new_cgroup() as made:
        yield made


@pytest.fixture
def pin_root() -> Path:
    return new_pins()


@pytest.fixture
def agents(cgroup: Path, pin_root: Path, tmp_path: Path) -> Iterator[Agents]:
    agents = Agents(cgroup, pin_root, tmp_path)
    yield agents
    agents.end_all()
    code, _ = agents.run("detach")
    assert code == 0
    if pin_root.exists():
        pin_root.rmdir()


def test_what_the_disk_remembers_is_served_and_stays_when_the_agent_ends(
    agents: Agents, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    member = backends.listen()
    agents.remember(member.port)
    agent = agents.start()
    assert agents.page("/api/health").json()["status"] == "degraded"
    eventually(lambda: agents.page("/api/vips").json()["vips"] != [])
    with inside(cgroup):
        assert who_answers("10.9.9.9", 80) == member.port
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(DEADLINE_SECONDS) == 0
        assert who_answers("10.9.9.9", 80) == member.port
        # What the pins hold is reason enough to run on, also without the file.
        (agents.state_dir / "snapshot.jsonl").unlink()
        agents.start()
        assert who_answers("10.9.9.9", 80) == member.port


def test_a_second_agent_is_told_that_there_is_one(agents: Agents, backends: Backends) -> None:
    agents.remember(backends.listen().port)
    agents.start()
    code, line = agents.run("agent")
    assert code == os.EX_TEMPFAIL
    assert str(agents.state_dir) in line
    code, line = agents.run("detach")
    assert code == os.EX_TEMPFAIL
    assert agents.answers


def test_a_front_that_was_killed_comes_back(agents: Agents, backends: Backends) -> None:
    agents.remember(backends.listen().port)
    agent = agents.start()
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    front = int(children.read_text(encoding="ascii").split()[0])
    os.kill(front, signal.SIGKILL)
    eventually(lambda: children.read_text(encoding="ascii").split() not in ([], [str(front)]))
    eventually(lambda: agents.answers)
    assert len(agents.page("/api/vips").json()["vips"]) == 1


def test_root_is_told_why_a_source_cannot_be_believed(agents: Agents, backends: Backends) -> None:
    agents.remember(backends.listen().port)
    agents.start()
    code, line = agents.run("believe", "marathon")
    assert (code, line) == (os.EX_UNAVAILABLE, "minuteman: marathon was not read yet")


def test_a_user_that_does_not_exist_is_said_and_nothing_is_left(agents: Agents) -> None:
    code, line = agents.run("agent", FRONT_USER="no-such-user", START_TIMEOUT_SECONDS="20")
    assert code == os.EX_CONFIG
    assert "front" in line
    assert not (agents.bpffs / "minuteman").exists()


@pytest.mark.parametrize(
    ("setting", "value"), [("FRONT_USER", "no-such-user"), ("API", "10.0.0.1:80")]
)
def test_a_front_that_cannot_work_leaves_nothing_though_there_was_something_to_serve(
    agents: Agents, backends: Backends, setting: str, value: str
) -> None:
    agents.remember(backends.listen().port)
    code, _ = agents.run("agent", wrap=(), **{setting: value})
    assert code == os.EX_CONFIG
    assert not (agents.bpffs / "minuteman").exists()


def test_a_state_folder_too_deep_for_a_socket_is_named(agents: Agents, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 108)
    code, line = agents.run("agent", STATE_DIR=str(deep))
    assert code == os.EX_CONFIG
    assert str(deep) in line
    assert not (agents.bpffs / "minuteman").exists()


def test_who_is_not_root_is_told_so(agents: Agents) -> None:
    code, line = agents.run("agent", wrap=("setpriv", "--reuid=65534", "--clear-groups"))
    assert code == os.EX_NOPERM
    assert "CAP_SYS_ADMIN" in line
