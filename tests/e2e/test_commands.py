"""The command line beside a running agent."""

from __future__ import annotations

import json

import pytest

from lab import facts, measure
from lab.cluster import Cluster
from lab.wait import LabError


def test_doctor_finds_nothing_to_do(cluster: Cluster) -> None:
    cluster.minuteman(
        "doctor", f"--zookeeper={cluster.zookeeper.url}", f"--cgroup={cluster.served}"
    )


def test_doctor_says_what_is_wrong(cluster: Cluster) -> None:
    with pytest.raises(LabError):
        cluster.minuteman("doctor", f"--cgroup={cluster.served / 'missing'}")


def test_vips_have_their_tasks(cluster: Cluster) -> None:
    measure.vip_of(cluster, facts.NAMED, "/web")
    shown = json.loads(cluster.minuteman("vips", "--json"))
    tasks = {
        vip["vip"]: {backend["task_id"] for backend in vip["backends"]} for vip in shown["vips"]
    }
    assert tasks[facts.NAMED] == cluster.scheduler.task_ids("/web")
    assert tasks[facts.LITERAL] == cluster.scheduler.task_ids("/shop/api")


def test_problems_name_the_label(cluster: Cluster) -> None:
    assert "/the-port-is-missing" in cluster.minuteman("problems")


def test_detach_waits_for_the_agent_to_be_stopped(cluster: Cluster) -> None:
    assert cluster.agent.detach().returncode != 0
    measure.reach_every_backend(cluster, facts.NAMED, "/web")
