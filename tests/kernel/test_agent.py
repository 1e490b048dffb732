"""The control process as a whole, without any ZooKeeper that answers."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import httpx
import pytest

from lab.wait import until
from minuteman.dataplane.sockets import set_unreachable, unreachable_networks
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
from tests.kernel.conftest import Backends, Inside, new_cgroup, who_answers

API = "127.0.0.1:62090"
NOBODY_THERE = "zk://127.0.0.1:9"
DEADLINE_SECONDS = 60.0
"""A start takes a few seconds of a core: longer, where others use it too."""
MINUTEMAN = Path(sys.executable).with_name("minuteman")
VIP = VipKey(ip_address("10.9.9.9"), 80, "tcp")

pytestmark = pytest.mark.timeout(180)


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

    def start(self, **settings: str) -> subprocess.Popen[str]:
        """An agent that answers at its REST interface."""
        agent = subprocess.Popen(
            [str(MINUTEMAN), "agent"],
            env=self._environment(settings),
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._started.append(agent)
        eventually(lambda: agent.poll() is not None or self.answers)
        assert agent.poll() is None
        return agent

    def kill(self, agent: subprocess.Popen[str]) -> None:
        """End an agent as a crash would; return when its front process has followed."""
        agent.kill()
        agent.wait()
        eventually(lambda: not self.answers)

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
def agents(cgroup: Path, pin_root: Path, tmp_path: Path) -> Iterator[Agents]:
    agents = Agents(cgroup, pin_root, tmp_path)
    yield agents
    agents.end_all()
    code, _ = agents.run("detach")
    assert code == 0
    assert unreachable_networks() == frozenset()
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


# ---- cgroups that are left alone -----------------------------------------------------------------
@pytest.fixture
def served(inside: Inside) -> Callable[[Path], bool]:
    """Whether a process in a cgroup gets to the backend of the VIP."""

    def is_served(cgroup: Path) -> bool:
        with inside(cgroup):
            try:
                return who_answers("10.9.9.9", 80) > 0
            except OSError as exc:
                if exc.errno != errno.ENETUNREACH:
                    raise
                return False

    return is_served


def test_a_cgroup_is_left_alone_from_when_root_says_so_until_root_says_otherwise(
    agents: Agents, backends: Backends, cgroup: Path, served: Callable[[Path], bool]
) -> None:
    sidecar = cgroup / "sidecar"
    sidecar.mkdir()
    agents.remember(backends.listen().port)
    agent = agents.start()
    eventually(lambda: served(sidecar))
    assert agents.run("cgroup", "skip", str(sidecar)) == (0, f"{sidecar} is left alone.")
    assert not served(sidecar)
    agents.kill(agent)
    assert not served(sidecar)
    agents.start()
    assert not served(sidecar)
    assert served(cgroup)
    sidecar.rmdir()
    sidecar.mkdir()
    eventually(lambda: not served(sidecar))
    assert agents.run("cgroup", "serve", str(sidecar)) == (0, f"{sidecar} is served.")
    assert served(sidecar)
    assert agents.run("cgroup", "list") == (0, "No cgroup is left alone.")


def test_a_cgroup_of_the_settings_is_left_alone_whatever_root_says(
    agents: Agents, backends: Backends, cgroup: Path, served: Callable[[Path], bool]
) -> None:
    sandbox = cgroup / "sandbox"
    sandbox.mkdir()
    agents.remember(backends.listen().port)
    agents.start(CGROUP_SKIP=str(sandbox))
    eventually(lambda: served(cgroup))
    assert not served(sandbox)
    code, line = agents.run("cgroup", "serve", str(sandbox))
    assert code == os.EX_UNAVAILABLE
    assert "take it out of the settings" in line
    assert not served(sandbox)
    code, line = agents.run("cgroup", "skip", str(cgroup / "nobody"))
    assert code == os.EX_UNAVAILABLE
    assert "there is none" in line
    [found] = json.loads(agents.run("cgroup", "list", "--json")[1])
    assert found == {"path": str(sandbox), "id": sandbox.stat().st_ino, "wanted_by": "settings"}


def test_a_setting_that_cannot_be_skipped_is_said_and_nothing_is_left(agents: Agents) -> None:
    code, line = agents.run("agent", CGROUP_SKIP="/etc")
    assert code == os.EX_CONFIG
    assert "cgroup_skip: cgroup '/etc': it is not below" in line
    assert not (agents.bpffs / "minuteman").exists()


# ---- the way to named VIPs -----------------------------------------------------------------------
NAMED6 = ip_network("fd01:c::/64")


def test_the_way_to_named_vips_ends_here_until_all_is_detached(
    agents: Agents, backends: Backends
) -> None:
    agents.remember(backends.listen().port)
    agent = agents.start()
    eventually(lambda: unreachable_networks() == {ip_network("11.0.0.0/8"), NAMED6})
    agents.kill(agent)
    assert unreachable_networks() == {ip_network("11.0.0.0/8"), NAMED6}
    agents.start(NAMED_RANGE="12.0.0.0-12.0.255.255")
    eventually(lambda: unreachable_networks() == {ip_network("12.0.0.0/16"), NAMED6})


def test_an_agent_that_never_served_leaves_every_way_open(agents: Agents) -> None:
    code, _ = agents.run("agent", START_TIMEOUT_SECONDS="3")
    assert code == os.EX_UNAVAILABLE
    assert unreachable_networks() == frozenset()


def test_the_way_to_named_vips_can_be_left_open(agents: Agents, backends: Backends) -> None:
    set_unreachable([NAMED6])  # as an agent with another setting has left it
    agents.remember(backends.listen().port)
    agents.start(UNREACHABLE_ROUTE="false")
    eventually(lambda: unreachable_networks() == frozenset())
