"""What is broken on purpose, to show that the check notices.

Each is done before one fact, and that fact, and none before it, must fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lab import facts
from lab.cluster import EXAMPLES, Cluster
from lab.facts import Fact


@dataclass(frozen=True, slots=True)
class Break:
    """What is done, and the fact that must fail for it."""

    do: Callable[[Cluster], None]
    fact: Fact


def _label(cluster: Cluster) -> None:
    """The app's label loses its port."""
    app = (EXAMPLES / "api.json").read_text(encoding="utf-8")
    cluster.scheduler.deploy(json.loads(app.replace(facts.LITERAL, "1.2.3.4")))


def _agent(cluster: Cluster) -> None:
    """The agent is killed and not started again."""
    cluster.agent.kill()


def _programs(cluster: Cluster) -> None:
    """Somebody else takes a program off the cgroup, as often as the agent attaches it."""
    cluster.keep_detached("connect4")


def _backend(cluster: Cluster) -> None:
    """A task has crashed, and ZooKeeper says that it runs: until it is ejected, requests fail."""
    cluster.scheduler.crash(min(cluster.scheduler.task_ids("/web")))


def _udp(cluster: Cluster) -> None:
    """Somebody else takes off the program that shows from where a datagram came."""
    cluster.keep_detached("recvmsg4")


def _swap(cluster: Cluster) -> None:
    """What changes from now on does not come to the kernel."""
    cluster.agent.pause()


def _ejection(cluster: Cluster) -> None:
    """Somebody else takes off the program that sees what becomes of connections."""
    cluster.keep_detached("sock_ops")


BREAKS: Mapping[str, Break] = {
    "label": Break(_label, facts.literal),
    "agent": Break(_agent, facts.rest),
    "programs": Break(_programs, facts.literal),
    "backend": Break(_backend, facts.named),
    "udp": Break(_udp, facts.udp),
    "swap": Break(_swap, facts.added),
    "ejection": Break(_ejection, facts.refusing),
}
