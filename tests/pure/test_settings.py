"""Settings: who wins, what is refused, and how that is said."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import pytest

from minuteman.errors import ConfigError
from minuteman.names.home import AddressRange
from minuteman.reconcile.kernelstate import Limits
from minuteman.settings import PRIVATE, Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MINUTEMAN_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "minuteman.toml"


def test_without_anything_there_are_defaults() -> None:
    settings = Settings.load()
    assert settings.zookeeper == ""
    assert settings.api == "127.0.0.1:62080"
    assert settings.cgroup is None
    assert settings.vip_allow == PRIVATE
    assert str(settings.named_range) == "11.0.0.0-11.255.255.255"
    assert settings.limits == Limits()


def test_command_line_beats_environment_beats_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('api = "127.0.0.1:1"\nmarathon_root = "/file"\nresync_seconds = 7')
    monkeypatch.setenv("MINUTEMAN_API", "127.0.0.1:2")
    monkeypatch.setenv("MINUTEMAN_MARATHON_ROOT", "/environment")
    settings = Settings.load(config, api="127.0.0.1:3", marathon_root=None)
    assert settings.api == "127.0.0.1:3"
    assert settings.marathon_root == "/environment"
    assert settings.resync_seconds == 7.0
    assert settings.audit_seconds == 60.0


@pytest.mark.parametrize("given", ["environment", "file", "command line"])
def test_networks_ranges_and_paths_are_read_from_everywhere(
    given: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "vip_allow": "10.0.0.0/8, 1.2.3.4/32",
        "named_range": "12.0.0.0-12.0.0.255",
        "state_dir": "somewhere",
        "cgroup_skip": "mesh/sidecar, /sys/fs/cgroup/sandbox",
        "unreachable_route": "false",
        "max_slots": "1000",
    }
    match given:
        case "environment":
            for name, value in values.items():
                monkeypatch.setenv(f"MINUTEMAN_{name.upper()}", value)
            settings = Settings.load()
        case "file":
            config.write_text("\n".join(f'{name} = "{value}"' for name, value in values.items()))
            settings = Settings.load(config)
        case _:
            settings = Settings.load(None, **values)
    assert settings.vip_allow == (ip_network("10.0.0.0/8"), ip_network("1.2.3.4/32"))
    assert settings.named_range == AddressRange.parse("12.0.0.0-12.0.0.255")
    assert settings.state_dir == Path.cwd() / "somewhere"
    assert settings.cgroup_skip == (Path("mesh/sidecar"), Path("/sys/fs/cgroup/sandbox"))
    assert not settings.unreachable_route
    assert settings.limits.slots == 1000


def test_a_file_may_have_lists(config: Path) -> None:
    config.write_text('vip_allow = ["10.0.0.0/8", "fd00::/8"]\ncgroup_skip = ["mesh", "a,b"]')
    settings = Settings.load(config)
    assert settings.vip_allow == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert settings.cgroup_skip == (Path("mesh"), Path("a,b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resync_secons = 3", "resync_secons"),
        ("resync_seconds = 0", "resync_seconds"),
        ("audit_seconds = inf", "audit_seconds"),
        ('vip_allow = "10.0.0.1/8"', "vip_allow"),
        ('named_range = "11.0.0.0"', "named_range"),
        ('named_range = "11.0.0.9-11.0.0.1"', "named_range"),
        ('source = "zookeeper"', "source"),
        ('log_level = "loud"', "log_level"),
        ("max_vips = 0", "max_vips"),
        ("this is no TOML", "config"),
    ],
)
def test_what_cannot_work_is_one_line_that_names_it(config: Path, text: str, said: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Settings.load(config)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == os.EX_CONFIG


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        Settings.load(tmp_path / "missing.toml")


def test_credentials_are_never_shown(config: Path) -> None:
    secret = "zk://user:hunter2@10.0.0.1:2181"  # noqa: S105 - made up
    assert "hunter2" not in repr(Settings.load(zookeeper=secret))
    config.write_text(f'zookeeper = ["{secret}"]')
    with pytest.raises(ConfigError) as caught:
        Settings.load(config)
    assert "hunter2" not in str(caught.value)


def test_levels_are_read_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINUTEMAN_LOG_LEVEL", "DEBUG")
    assert Settings.load().log_level == "debug"
