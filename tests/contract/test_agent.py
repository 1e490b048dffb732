"""What the agent makes of its settings, and its claim on the state folder."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from minuteman.agent import hosts, locked, naming, zookeeper
from minuteman.errors import ConfigError, RunningError
from minuteman.settings import Settings
from minuteman.zookeeper.session import parse_url


def test_a_state_folder_has_one_agent_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    with locked(folder), pytest.raises(RunningError, match=str(folder)), locked(folder):
        pass
    with locked(folder):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="state_dir"), locked(tmp_path / "file" / "state"):
        pass


def test_zookeeper_must_be_named_and_well() -> None:
    with pytest.raises(ConfigError, match="--zookeeper"):
        zookeeper(Settings.load(zookeeper=""))
    with pytest.raises(ConfigError, match="zk://"):
        zookeeper(Settings.load(zookeeper="http://10.0.0.1"))


def test_hosts_are_the_servers_without_ports_and_credentials() -> None:
    location = parse_url("zk://user:password@10.0.0.1:2181,zk.example,[fd00::1]:2182/chroot")
    assert hosts(location) == ["10.0.0.1", "zk.example", "fd00::1"]


def test_a_network_that_is_allowed_inside_the_range_of_names_is_set_aside() -> None:
    settings = Settings.load(vip_allow="10.0.0.0/8,11.1.0.0/16")
    policy, homes = naming(settings)
    assert policy.refusal(ip_address("11.1.0.5")) is None
    assert policy.refusal(ip_address("11.2.0.5")) is not None
    assert ip_address("11.1.0.5") not in homes
    assert ip_address("11.2.0.5") in homes


def test_ranges_of_the_wrong_family_are_refused() -> None:
    with pytest.raises(ConfigError, match="family"):
        naming(Settings.load(named_range="fd01:c::-fd01:c::ffff"))


def test_a_thread_that_fails_takes_the_process_along() -> None:
    program = (
        "import threading, minuteman.agent as agent\n"
        "threading.excepthook = agent.end_process\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='reader')\n"
        "thread.start()\n"
        "thread.join()\n"
        "print('still here')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == os.EX_SOFTWARE
    assert "thread failed name=reader" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr
    assert not ended.stdout
