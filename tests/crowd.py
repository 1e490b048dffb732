"""Clients of every kind at once: what they tell of is each gap in a VIP's service.

A client with a new connection for each request, one that keeps its connection, and datagrams of a
connected socket and of one that is not. Backends are the servers of the sample cluster.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lab import server
from lab.client import ENDLESS, Answer, Target
from lab.load import Load
from lab.zookeeper import free_ports
from minuteman.model import Endpoint

PAUSE_SECONDS = 0.003
"""Between two requests of a client: it does not use up a core."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Clients of each kind, by a word for it."""

    loads: dict[str, Load]
    targets: dict[str, Target]

    def wait_for_more(self, count: int, seconds: float = 20.0) -> None:
        """Return when each of them made `count` further requests. Errors: LabError."""
        for load in self.loads.values():
            load.wait_for_more(count, seconds)

    def stop(self) -> None:
        """End them; their answers stay."""
        for load in self.loads.values():
            load.stop()

    def answers(self, kind: str) -> list[Answer]:
        return self.loads[kind].answers()

    def demand_no_gap(self, swaps: int) -> None:
        """Each request of each kind was answered, as the client sees it by its VIP.

        A connection that is made while programs with other maps are attached, `swaps` times, may
        be shown its backend by getpeername() for a moment: between connect() and that, the
        programs that know of it are gone.
        """
        for kind, load in self.loads.items():
            answers = load.answers()
            assert Counter(answer.error for answer in answers if answer.error) == {}, kind
            others = Counter(answer.peer for answer in answers)
            del others[str(self.targets[kind])]
            assert others.total() <= (swaps if kind == "short" else 0), others

    def demand_one_backend(self, *kinds: str) -> None:
        """Clients of these kinds were answered by one backend all the time."""
        for kind in kinds:
            assert len({answer.task_id for answer in self.answers(kind)}) == 1, kind


@contextmanager
def crowd(served: Path, tcp: Target, udp: Target) -> Iterator[Crowd]:
    """Clients in the cgroup `served`, of a VIP for each transport, while the block runs."""
    targets = {
        "short": tcp,
        "held": tcp,
        "datagrams": replace(udp, how="udp"),
        "connected datagrams": replace(udp, how="udp-connected"),
    }
    with ExitStack() as stack:
        loads = {}
        for kind, target in targets.items():
            keep = 1 if kind == "short" else ENDLESS
            load = Load(served, target, keep=keep, pause_seconds=PAUSE_SECONDS)
            loads[kind] = stack.enter_context(load)
        made = Crowd(loads, targets)
        made.wait_for_more(1)
        yield made


@contextmanager
def servers(count: int) -> Iterator[Sequence[tuple[Endpoint, Endpoint]]]:
    """So many servers of the sample cluster on the loopback: each for TCP and for UDP."""
    home = bytes((127, 0, 0, 1))
    with ExitStack() as stack:
        for number, port in enumerate(ports := free_ports(count)):
            words = [f"server.{number}", "127.0.0.1", f"{port}/tcp", f"{port}/udp"]
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-I", "-S", server.__file__, *words],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == server.READY
        yield [(Endpoint(home, port, "tcp"), Endpoint(home, port, "udp")) for port in ports]
