"""What changes in ZooKeeper, and what happens to the agent, while requests run."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lab import cgroup, facts, measure
from lab.client import Target
from lab.cluster import EXAMPLES, Cluster
from lab.load import Load
from lab.wait import until

CHANGES = 60
LISTENER = """
import errno, socket, sys
client = socket.socket(type=socket.SOCK_DGRAM)
client.connect((sys.argv[1], int(sys.argv[2])))
client.send(b"who is there?")
print(client.recv(64).decode().strip(), flush=True)
try:
    client.recv(64)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
client.connect((sys.argv[1], int(sys.argv[2])))
client.send(b"who is there?")
print(client.recv(64).decode().strip(), flush=True)
"""
"""Asks who is there over one socket, waits, and asks again once that has failed."""

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def load(cluster: Cluster) -> Iterator[Load]:
    """Requests to /web."""
    vip = measure.vip_of(cluster, facts.NAMED, "/web")
    with Load(cluster.served, Target(vip.addresses[0], vip.port)) as load:
        load.wait_for_more(measure.REQUESTS)
        yield load


def answered_by(load: Load) -> set[str]:
    """Who answered the last requests."""
    load.wait_for_more(measure.REQUESTS)
    return {answer.task_id for answer in load.answers()[-measure.REQUESTS // 2 :]}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("restarts", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killing_the_agent_over_and_over_loses_no_request(
    cluster: Cluster, load: Load, restarts: int
) -> None:
    for _ in range(restarts):
        cluster.agent.kill()
        load.wait_for_more(measure.REQUESTS)
        cluster.agent.start()
        cluster.agent.wait_healthy()
        load.wait_for_more(measure.REQUESTS)
    answers = load.answers()
    measure.demand_answers(answers, "/web")
    assert len(answers) > 2 * restarts * measure.REQUESTS


def test_what_changed_while_the_agent_was_dead_is_right_when_it_is_back(
    cluster: Cluster, load: Load
) -> None:
    cluster.agent.kill()
    cluster.scheduler.scale("/web", 4)
    cluster.agent.start()
    cluster.agent.wait_healthy()
    measure.vip_of(cluster, facts.NAMED, "/web")
    assert answered_by(load) == cluster.scheduler.task_ids("/web")
    cluster.scheduler.scale("/web", 3)
    assert answered_by(load) == cluster.scheduler.task_ids("/web")
    measure.demand_answers(load.answers(), "/web")


def test_an_upgrade_of_an_app_loses_no_request(cluster: Cluster, load: Load) -> None:
    before = cluster.scheduler.task_ids("/web")
    cluster.scheduler.deploy(json.loads((EXAMPLES / "web.json").read_text(encoding="utf-8")))
    after = cluster.scheduler.task_ids("/web")
    assert not before & after
    assert answered_by(load) == after
    measure.demand_answers(load.answers(), "/web")


def test_an_app_scaled_to_zero_refuses_and_sends_nothing(cluster: Cluster) -> None:
    try:
        facts.zero(cluster)
    finally:
        cluster.scheduler.scale("/web", 3)
    measure.reach_every_backend(cluster, facts.NAMED, "/web")


def test_a_udp_client_hears_of_the_end_of_its_backend_and_connects_to_another(
    cluster: Cluster,
) -> None:
    vip = measure.vip_of(cluster, facts.DATAGRAMS, "/clock", "udp")
    place = vip.addresses[0], vip.port
    command = cgroup.join_command(cluster.served, sys.executable, "-I", "-S", "-c", LISTENER)
    with subprocess.Popen(
        [*command, *map(str, place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        first = client.stdout.readline().strip()
        cluster.scheduler.kill(first)
        assert client.stdout.readline() == "ECONNABORTED\n"
        second = client.stdout.readline().strip()
    assert second in cluster.scheduler.task_ids("/clock")
    until("count", lambda: ended(cluster) > 0, measure.SETTLE_SECONDS)
    cluster.scheduler.scale("/clock", 2)
    measure.vip_of(cluster, facts.DATAGRAMS, "/clock", "udp")


def ended(cluster: Cluster) -> float:
    """Sockets that the agent says to have ended."""
    [line] = re.findall(
        "^minuteman_sockets_ended_total (.*)$", cluster.agent.page("/metrics").text, re.M
    )
    return float(line)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_sequence_of_changes_loses_no_request(cluster: Cluster, load: Load) -> None:
    chance = random.Random(CHANGES)  # noqa: S311 - the same every time
    web = json.loads((EXAMPLES / "web.json").read_text(encoding="utf-8"))
    for _ in range(CHANGES):
        tasks = sorted(cluster.scheduler.task_ids("/web"))
        match chance.choice(["scale", "kill", "upgrade", "restart"]):
            case "kill" if len(tasks) > 1:
                cluster.scheduler.kill(chance.choice(tasks))
            case "upgrade":
                cluster.scheduler.deploy(web)
            case "restart":
                cluster.agent.kill()
                cluster.agent.start()
                cluster.agent.wait_healthy()
            case _:
                cluster.scheduler.scale("/web", chance.randint(1, 6))
        load.wait_for_more(measure.REQUESTS)
    cluster.scheduler.scale("/web", 3)
    measure.vip_of(cluster, facts.NAMED, "/web")
    assert answered_by(load) == cluster.scheduler.task_ids("/web")
    measure.demand_answers(load.answers(), "/web")
