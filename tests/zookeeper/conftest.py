"""A real ZooKeeper for the whole run, a part of it for each test, and servers to harm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from lab.marathon import Marathon
from lab.zookeeper import Server

_numbers = count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests share and none harms."""
    with Server(tmp_path_factory.mktemp("zookeeper")) as shared:
        yield shared


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A running server to kill, pause and wipe."""
    with Server(tmp_path / "zookeeper") as own:
        yield own


@pytest.fixture
def chroot() -> str:
    """A path of the test's own."""
    return f"/test-{next(_numbers)}"


@pytest.fixture
def client(server: Server) -> Iterator[KazooClient]:
    """A client of the shared server, for the test to write with."""
    zookeeper = KazooClient(server.address)
    zookeeper.start()
    yield zookeeper
    zookeeper.stop()
    zookeeper.close()


@pytest.fixture
def marathon(server: Server, chroot: str) -> Iterator[Marathon]:
    """A Marathon that leads, on the shared server."""
    with Marathon(server.address, root=chroot) as leading:
        yield leading
