"""One sample cluster for all tests here, with its agent healthy before each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.sandbox import VARIABLE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def sandbox() -> Path:
    """The sandbox's own cgroup."""
    return Path(os.environ[VARIABLE])


@pytest.fixture(scope="package")
def running(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    served = sandbox / "e2e"
    served.mkdir()
    try:
        with Cluster(tmp_path_factory.mktemp("cluster"), served) as cluster:
            yield cluster
    finally:
        served.rmdir()


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """With three tasks of /web, two of the others, and a healthy agent."""
    if running.agent.pid is None:
        running.agent.start()
    running.agent.wait_healthy()
    return running
