"""Maps that are full: who is served goes on to be, and who is not has no name."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from api import views
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.feed import Update
from minuteman.model import (
    Counters,
    Endpoint,
    Task,
    TaskPort,
    Unit,
    UnitId,
    VipClaim,
    VipKey,
    VipName,
)
from minuteman.names.home import AddressRange, HomeBook, Homes
from minuteman.reader import Published
from minuteman.reconcile.kernelstate import Limits
from minuteman.reconcile.loop import Loop
from minuteman.reconcile.store import Memory
from minuteman.table import Table
from tests.contract.fake_source import FakeSource
from tests.kernel.conftest import Backends, Inside, new_cgroup, who_answers

HOMES = Homes(
    AddressRange.parse("11.0.0.0-11.255.255.255"),
    AddressRange.parse("fd01:c::-fd01:c::ffff:ffff:ffff:ffff"),
)
LIMITS = Limits(vips=2, slots=64, backends=6, conns=64)
"""Backend 0 is nobody's: there are five."""


def key_of(name: str) -> VipKey:
    return VipKey(VipName(name, "marathon"), 80, "tcp")


def address_of(name: str) -> str:
    return str(HOMES.ipv4.home(VipName(name, "marathon")))


def task_of(name: str, endpoint: Endpoint) -> Unit:
    """A task of an app that listens there."""
    port = TaskPort("tcp", endpoint.port, "host", claims=(VipClaim(key_of(name)),))
    task_id = f"{name}.{endpoint.port}"
    host = ip_address("127.0.0.1")
    task = Task("fw", task_id, "marathon", name, "agent", host, (), "running", None, (port,))
    return Unit(UnitId(task_id), 1, (task,))


class Host:
    """A loop over maps with very little room."""

    def __init__(self, dataplane: KernelDataplane) -> None:
        self.source = FakeSource("marathon")
        self.updates: list[Update] = []
        self._now = 0.0
        self._loop = Loop(
            sources=[self.source],
            table=Table(lambda _: None),
            book=HomeBook(HOMES),
            dataplane=dataplane,
            state=dataplane.open(),
            memory=Memory(),
            publish=self.updates.append,
            remember=lambda _: None,
            reap=lambda: None,
            now=self._now,
        )

    def step(self) -> Published:
        """What is published after one step."""
        self._now += 1.0
        self._loop.step(self._now)
        return self._loop.whole().applied_to(Published())


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with new_cgroup() as made:
        yield made


@pytest.fixture
def host(cgroup: Path, pin_root: Path, tmp_path: Path) -> Iterator[Host]:
    dataplane = KernelDataplane(cgroup, pin_root, tmp_path, LIMITS)
    yield Host(dataplane)
    dataplane.remove()


def shown_ports(published: Published, name: str) -> set[int]:
    """Ports of the backends that `/api/vips` has for a VIP."""
    shown = views.vip(published.vips[key_of(name)], published.tasks, Counters())
    return {backend.port for backend in shown.backends}


def reached(name: str) -> set[int]:
    """Ports of the backends that answer a few connections."""
    return {who_answers(address_of(name), 80) for _ in range(20)}


def test_a_vip_that_does_not_fit_is_not_served_and_has_no_name(
    host: Host, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    listening = {name: backends.listen() for name in ("web", "api", "db")}
    host.source.read(task_of(name, listening[name]) for name in ("web", "api"))
    assert host.step().without_room == 0
    host.source.put(task_of("db", listening["db"]))
    published = host.step()
    assert published.vips.keys() == {key_of("web"), key_of("api")}
    assert published.without_room == 1
    with inside(cgroup):
        assert [reached(name) for name in ("web", "api")] == [
            {listening["web"].port},
            {listening["api"].port},
        ]
        with pytest.raises(ConnectionRefusedError):  # its address is for VIPs alone all the same
            who_answers(address_of("db"), 80)
        host.source.drop(UnitId(f"api.{listening['api'].port}"))
        published = host.step()
        assert published.vips.keys() == {key_of("web"), key_of("db")}
        assert published.without_room == 0
        assert reached("db") == {listening["db"].port}


def test_a_vip_whose_change_does_not_fit_keeps_its_backends(
    host: Host, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    old, *new = [backends.listen() for _ in range(6)]
    host.source.read([task_of("web", old)])
    before = host.step()
    host.source.drop(UnitId(f"web.{old.port}"))
    host.source.put(*(task_of("web", endpoint) for endpoint in new))
    published = host.step()
    assert published.vips == before.vips
    assert shown_ports(published, "web") == {old.port}
    assert published.without_room == 1
    assert [problem.reason for problem in published.problems] == [
        "Fewer than 5 backends are free (max_backends)."
    ]
    with inside(cgroup):
        assert reached("web") == {old.port}
        host.source.drop(UnitId(f"web.{new[-1].port}"))
        published = host.step()
        served = {endpoint.port for endpoint in new[:-1]}
        assert shown_ports(published, "web") == served
        assert reached("web") <= served
    assert published.without_room == 0
