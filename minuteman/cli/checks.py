"""What the agent needs of a host, looked at one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from api import schemas
from minuteman import capabilities
from minuteman.cli.client import Rest, decode
from minuteman.dataplane import probe
from minuteman.dataplane.cgroup import cgroup2_mount, open_cgroup
from minuteman.dataplane.pins import bpffs_mount, is_on_bpffs
from minuteman.errors import ConfigError, DataplaneError, MinutemanError, PrivilegeError
from minuteman.front import ListenError, listen
from minuteman.settings import Settings
from minuteman.zookeeper import session

UAPI_HEADER = Path("/usr/include/linux/bpf.h")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    name: str
    finding: probe.Finding
    text: str
    """What was found, or what to do."""
    needed: bool = True

    @property
    def fatal(self) -> bool:
        """The agent cannot work."""
        return self.needed and self.finding == "missing"


def examine(settings: Settings) -> Iterator[Row]:
    """Every check, in the order in which the agent needs what it looks at."""
    yield look("capabilities", check_capabilities)
    yield from kernel_features()
    yield look("cgroup v2", lambda: check_cgroup(settings.cgroup))
    yield look("bpffs", lambda: check_bpffs(settings.bpffs))
    yield look("BCC", check_bcc)
    yield look("headers of the kernel", check_headers)
    yield look("REST port", lambda: check_api(settings.api))
    if settings.zookeeper:
        yield look("ZooKeeper", lambda: check_zookeeper(settings.zookeeper, settings.marathon_root))
    else:
        yield Row("ZooKeeper", "unknown", "none was named: --zookeeper zk://host:2181")


def look(name: str, check: Callable[[], str]) -> Row:
    """What `check` finds; when it raises, the message says what to do."""
    try:
        return Row(name, "ok", check())
    except MinutemanError as exc:
        return Row(name, "missing", str(exc))


def kernel_features() -> Iterator[Row]:
    """What the programs use of the kernel, by trying it."""
    try:
        features = probe.features()
    except DataplaneError as exc:
        yield Row("kernel features", "missing", str(exc))
        return
    for feature in features:
        yield Row(feature.name, feature.finding, feature.advice, feature.needed)


def check_capabilities() -> str:
    """Whether this process may do what the agent does."""
    if missing := capabilities.missing():
        raise PrivilegeError(f"run it as root; missing are {', '.join(missing)}")
    return f"user {os.geteuid()}"


def check_cgroup(wanted: Path | None) -> str:
    """The cgroup that would be served."""
    path = wanted or cgroup2_mount()
    os.close(open_cgroup(path))
    return str(path)


def check_bpffs(wanted: Path | None) -> str:
    """Where the pins would be."""
    path = wanted or bpffs_mount()
    if not is_on_bpffs(path):
        raise ConfigError(f"{path} is not on a bpffs; mount one: mount -t bpf bpf /sys/fs/bpf")
    return str(path)


def check_bcc() -> str:
    """Whether BCC can be imported, by a child: it brings a whole compiler along."""
    child = subprocess.run(
        [sys.executable, "-P", "-c", "import bcc; print(bcc.__version__)"],
        capture_output=True,
        check=False,
        text=True,
    )
    if child.returncode:
        raise ConfigError("install the package python3-bpfcc and run deploy/setup")
    return child.stdout.strip()


def check_headers() -> str:
    """Where the definitions are that the programs compile against."""
    if not UAPI_HEADER.exists():
        raise ConfigError(f"{UAPI_HEADER} is missing: install the package linux-libc-dev")
    return str(UAPI_HEADER.parent)


def check_api(api: str) -> str:
    """Whether the agent can listen, or already does."""
    try:
        listen(api).close()
    except ListenError as exc:
        if is_agent(api):
            return f"an agent answers at {api}"
        raise exc from None
    return f"{api} is free"


def is_agent(api: str) -> bool:
    """Whether what listens at `api` is an agent."""
    try:
        version = decode(Rest(api).get("/v1/version"), schemas.Version)
    except MinutemanError:
        return False
    return version.Service == "minuteman"


def check_zookeeper(url: str, marathon_root: str) -> str:
    """Whether ZooKeeper takes a session from here, and has Marathon's znodes."""
    location = session.parse_url(url)
    path = location.chroot + marathon_root.rstrip("/")
    if session.probe(location, path) is None:
        raise ConfigError(f"{location} answers, but has no {path}: check --marathon-root")
    return f"{location} has {path}"
