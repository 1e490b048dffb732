"""Agents of several versions, each from a wheel of its own, take over while clients run."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from api import schemas
from lab import facts, measure
from lab.agent import Agent, environment
from lab.cluster import PINS, Cluster
from lab.load import ask
from lab.versions import Version, Versions
from minuteman.dataplane.pins import read_about, serving
from tests.crowd import crowd
from tests.inventory import Key, demand_one_of_each, entries

MODULES = (
    "agent",
    "front",
    "dataplane.loader",
    "dataplane.sweep",
    "dataplane.reap",
    "dataplane.events",
)
"""What runs as a process of its own."""
LONGEST_SECONDS = 4.0
"""A start takes less, where nobody else uses the cores."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def installed(cluster: Cluster, versions: Versions) -> Iterator[Versions]:
    """Nobody's agent runs, before or after; the one of this tree has served."""
    cluster.agent.stop()
    yield versions
    cluster.agent.kill()


def start(cluster: Cluster, version: Version) -> None:
    """Have an agent of `version` serve all that there is."""
    cluster.agent.start(version.environment)
    cluster.agent.wait_healthy()
    page = cluster.agent.page("/v1/version")
    assert msgspec.json.decode(page.content, type=schemas.Version).Version == version.number
    where = serving(PINS)
    assert where is not None
    assert read_about(where).schema == version.schema
    demand_one_of_each(cluster.served, PINS)


def detach(cluster: Cluster, version: Version) -> None:
    """Run the command of `version`."""
    command = cluster.agent.command("--detach-all")
    subprocess.run(command, env={**environment(), **version.environment}, check=True)


def members() -> dict[Key, tuple[object, ...]]:
    """Address, port, VIP and epoch of each backend id."""
    fields = ("addr", "port", "proto", "vip_id", "epoch")
    found = entries(PINS, "backends")
    return {key: tuple(entry[field] for field in fields) for key, entry in found.items()}


def kept() -> dict[Key, tuple[object, ...]]:
    """Which backend each client keeps."""
    found = entries(PINS, "affinities")
    return {key: (entry["backend_id"], entry["epoch"]) for key, entry in found.items()}


def successes(cluster: Cluster) -> dict[str, int]:
    """Of each task of /web."""
    backends = cluster.agent.vip(facts.NAMED).backends
    return {backend.task_id: backend.counters.successes for backend in backends}


def end_anywhere(cluster: Cluster, version: Version) -> None:
    """Start an agent of `version`, and kill it wherever it is after a while."""
    cluster.agent.start(version.environment)
    time.sleep(random.uniform(0.0, LONGEST_SECONDS))  # noqa: S311 - no secret
    cluster.agent.kill()


@pytest.mark.parametrize("module", MODULES)
def test_each_process_of_a_version_is_of_that_version(versions: Versions, module: str) -> None:
    for version in versions:
        said = version.run("-c", f"import minuteman.{module} as m, api, ebpf; print(m.__file__)")
        assert Path(said.strip()).is_relative_to(version.folder)


def test_an_upgrade_and_the_way_back_fail_no_connect(cluster: Cluster, installed: Versions) -> None:
    start(cluster, installed.this)
    measure.vip_of(cluster, facts.NAMED, "/web")
    (sticky,) = ask(cluster.served, cluster.resolve(facts.STICKY))
    tcp, udp = cluster.resolve(facts.NAMED), cluster.resolve(facts.DATAGRAMS, "udp")
    backends, affinities = members(), kept()
    with crowd(cluster.served, tcp, udp) as clients:
        for end, version in (
            (Agent.kill, installed.next),
            (Agent.stop, installed.this),
            (Agent.kill, installed.fix),
            (Agent.stop, installed.next),
        ):
            before = successes(cluster)
            end(cluster.agent)
            start(cluster, version)
            clients.wait_for_more(20)
            after = successes(cluster)
            assert before.keys() == after.keys() == cluster.scheduler.task_ids("/web")
            assert all(before[task_id] <= after[task_id] for task_id in before)
            assert sum(before.values()) < sum(after.values())
            assert members() == backends
            assert affinities.items() <= kept().items()
        clients.demand_no_gap(swaps=3)
        clients.demand_one_backend("held", "datagrams", "connected datagrams")
    again = ask(cluster.served, cluster.resolve(facts.STICKY), count=20)
    assert {answer.task_id for answer in again} == {sticky.task_id}


@pytest.mark.parametrize("is_older", [True, False])
def test_either_version_removes_what_the_other_one_left(
    cluster: Cluster, installed: Versions, *, is_older: bool
) -> None:
    pair = (installed.this, installed.next)
    one, other = pair if is_older else pair[::-1]
    start(cluster, other)
    cluster.agent.kill()
    detach(cluster, one)
    assert cluster.leftovers() == []


def test_whatever_is_left_of_a_takeover_that_was_killed_either_version_removes_it_or_goes_on(
    cluster: Cluster, installed: Versions
) -> None:
    for version in (installed.this, installed.next):
        start(cluster, installed.this)
        cluster.agent.kill()
        end_anywhere(cluster, installed.next)
        start(cluster, version)
        measure.reach_every_backend(cluster, facts.NAMED, "/web")
        cluster.agent.kill()
        end_anywhere(cluster, installed.this if version is installed.next else installed.next)
        detach(cluster, version)
        assert cluster.leftovers() == []
