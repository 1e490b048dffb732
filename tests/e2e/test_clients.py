"""Programs that know nothing of the project connect to a VIP and reach every backend."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from lab import cgroup, facts, measure
from lab.client import Target
from lab.cluster import Cluster
from lab.load import ask

COUNT = 300

VIPS = [
    pytest.param(facts.LITERAL, "/shop/api", id="literal"),
    pytest.param(facts.NAMED, "/web", id="named"),
    pytest.param(facts.CONTAINER, "/store", id="container"),
]


def run_served(cluster: Cluster, *command: str) -> list[str]:
    """Lines that a command in the served cgroup prints."""
    ran = subprocess.run(
        cgroup.join_command(cluster.served, *command), capture_output=True, check=False, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.parametrize(("host_port", "app_id"), VIPS)
def test_curl(cluster: Cluster, host_port: str, app_id: str) -> None:
    vip = measure.vip_of(cluster, host_port, app_id)
    url = f"http://{vip.addresses[0]}:{vip.port}/[1-{COUNT}]"
    answered = Counter(run_served(cluster, "curl", "-fsS", "-H", "Connection: close", url))
    assert answered.total() == COUNT
    assert answered.keys() == cluster.scheduler.task_ids(app_id)


@pytest.mark.parametrize(("host_port", "app_id"), VIPS)
def test_jvm(cluster: Cluster, host_port: str, app_id: str) -> None:
    vip = measure.vip_of(cluster, host_port, app_id)
    program = str(Path(__file__).with_name("Clients.java"))
    arguments = (vip.addresses[0], str(vip.port), str(COUNT))
    answered = Counter(run_served(cluster, "java", "-XX:-UsePerfData", program, *arguments))
    assert answered.total() == COUNT
    assert answered.keys() == cluster.scheduler.task_ids(app_id)


@pytest.mark.parametrize(("host_port", "app_id"), VIPS)
def test_af_inet6_socket(cluster: Cluster, host_port: str, app_id: str) -> None:
    vip = measure.vip_of(cluster, host_port, app_id)
    target = Target(vip.addresses[0], vip.port, mapped=True)
    answers = ask(cluster.served, target, count=COUNT)
    measure.demand_answers(answers, app_id, target)
    assert len(answers) == COUNT
    assert {answer.task_id for answer in answers} == cluster.scheduler.task_ids(app_id)


def test_a_process_outside_of_the_cgroup_is_left_alone(cluster: Cluster) -> None:
    facts.outside(cluster)
