"""What sockets do while the maps are copied, before the links have our programs."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from lab.wait import until
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.dataplane.takeover import Takeover
from minuteman.model import BackendCounters, Endpoint, Frontend, Tier
from tests.kernel.conftest import LIMITS, Inside, Kernel, endpoint_of, frontend, new_cgroup

FILLERS = 2
DEADLINE_SECONDS = 20.0
VIPS = [frontend("1.2.3.4", 53, "udp"), frontend("1.2.3.5", 53, "udp")]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with new_cgroup() as made:
        yield made


@pytest.fixture
def kernel(cgroup: Path, pin_root: Path, tmp_path: Path) -> Iterator[Kernel]:
    """One whose life ends with the test."""
    made = Kernel(cgroup, pin_root, tmp_path)
    yield made
    made.dataplane.close()
    made.dataplane.remove()


@pytest.fixture
def members() -> Iterator[list[Endpoint]]:
    """Where a datagram socket listens, one for each VIP."""
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        for server in (one, two):
            server.bind(("127.0.0.1", 0))
        yield [endpoint_of(one), endpoint_of(two)]


def test_a_socket_that_connects_elsewhere_after_the_copy_has_what_it_was_given_last(
    kernel: Kernel,
    members: list[Endpoint],
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for vip, member in zip(VIPS, members, strict=True):
        kernel.serve(vip, [(member, Tier.UP)])
    kernel.dataplane.close()
    successor = KernelDataplane(cgroup, pin_root, tmp_path, replace(LIMITS, conns=8192))

    def active() -> list[int]:
        found = successor.counters().by_vip_backend
        return [found[each].active for each in zip(VIPS, members, strict=True) if each in found]

    fill = Takeover.fill
    with inside(cgroup), closing(successor):
        client = socket.socket(type=socket.SOCK_DGRAM)

        def fill_and_connect(takeover: Takeover) -> None:
            fill(takeover)
            client.connect(("1.2.3.5", 53))

        monkeypatch.setattr(Takeover, "fill", fill_and_connect)
        client.connect(("1.2.3.4", 53))
        successor.open()
        assert client.getpeername() == ("1.2.3.5", 53)
        assert active() == [0, 1]
        client.close()
        assert active() == [0, 0]


def test_an_answer_that_nobody_saw_is_a_success(
    kernel: Kernel,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The SYN meets the programs of before, its end ours, and what is between neither's maps."""
    vip = frontend("1.2.3.4", 80)
    successor = KernelDataplane(cgroup, pin_root, tmp_path, replace(LIMITS, conns=8192))
    catch_up = Takeover.catch_up
    with inside(cgroup), closing(successor), socket.socket() as server, ExitStack() as held:
        server.settimeout(DEADLINE_SECONDS)
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        member = endpoint_of(server)
        kernel.serve(vip, [(member, Tier.UP)])
        kernel.dataplane.close()
        client = held.enter_context(socket.socket())
        client.setblocking(False)

        def connect_in_vain(takeover: Takeover) -> None:
            fill(takeover)
            for _ in range(FILLERS):  # the server takes no further one
                filler = held.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(server.getsockname())
            assert client.connect_ex(("1.2.3.4", 80)) == errno.EINPROGRESS

        def be_accepted(takeover: Takeover) -> None:
            for _ in range(FILLERS):
                held.enter_context(server.accept()[0])
            assert select.select([], [client], [], DEADLINE_SECONDS)[1]
            catch_up(takeover)

        fill = Takeover.fill
        monkeypatch.setattr(Takeover, "fill", connect_in_vain)
        monkeypatch.setattr(Takeover, "catch_up", be_accepted)
        successor.open()
        assert client.getpeername() == ("1.2.3.4", 80)
        held.close()
        until("end of it", lambda: counted(successor, vip, member).successes, DEADLINE_SECONDS)
        counters = counted(successor, vip, member)
        assert (counters.connecting, counters.failures, counters.consecutive_failures) == (0, 0, 0)


def counted(dataplane: KernelDataplane, vip: Frontend, member: Endpoint) -> BackendCounters:
    return dataplane.counters().by_vip_backend.get((vip, member), BackendCounters())
