"""The lab's ZooKeeper: on loopback only, and gone with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab.wait import LabError
from lab.zookeeper import Ensemble, Server, ask, free_ports
from minuteman.model import Address

LISTENING = "0A"
LOOPBACK = ip_address("::ffff:127.0.0.1")


def listeners(pid: int) -> set[Address]:
    """Addresses that a process listens on. Source: /proc/net/tcp and tcp6, words in host order."""
    folder = Path(f"/proc/{pid}/fd")
    sockets = {link.readlink().name for link in folder.iterdir() if link.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENING and f"socket:[{rest[5]}]" in sockets:
                words = bytes.fromhex(local.partition(":")[0])
                address = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.add(ip_address(address))
    return found


def test_a_server_listens_on_loopback_only(server: Server) -> None:
    assert server.pid is not None
    assert listeners(server.pid) == {LOOPBACK}
    assert ask(server.port, "ruok") == "imok"


@pytest.mark.slow
def test_an_ensemble_listens_on_loopback_only(tmp_path: Path) -> None:
    with Ensemble(tmp_path) as ensemble:
        assert ensemble.leader() in ensemble.servers
        for member in ensemble.servers:
            assert member.pid is not None
            assert listeners(member.pid) == {LOOPBACK}


def test_a_server_keeps_its_data_and_its_port(own_server: Server) -> None:
    address = own_server.address
    own_server.kill()
    assert own_server.pid is None
    assert ask(own_server.port, "ruok") == ""
    own_server.start()
    assert own_server.address == address
    own_server.stop()
    own_server.stop()
    assert own_server.pid is None


def test_a_server_that_cannot_start_says_why(server: Server, tmp_path: Path) -> None:
    second = Server(tmp_path, port=server.port)
    with pytest.raises(LabError, match="Address already in use"):
        second.start()
    assert second.pid is None


def test_a_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from lab.zookeeper import Server\n"
        "server = Server(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    deploy = Path(__file__).parents[2] / "deploy"
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(deploy)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10.0
    while is_running(pid):
        assert time.monotonic() < deadline, f"{pid} outlives its parent"
        time.sleep(0.01)  # it is nobody's child whose end we could wait for


def is_running(pid: int) -> bool:
    """A zombie that its new parent has not buried yet does not run."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_free_ports_are_below_those_of_clients() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    first, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    assert max(ports) < max(int(first), 20_000)
