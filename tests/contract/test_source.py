"""What every source promises to the loop: the fake and Marathon's state in a real ZooKeeper."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from ipaddress import ip_address
from itertools import count
from typing import Protocol

import pytest

from lab.marathon import Marathon
from lab.zookeeper import Server
from minuteman.model import Snapshot, Task, Unit, UnitId
from minuteman.source.base import Source
from minuteman.source.marathon import MarathonSource
from minuteman.zookeeper.session import parse_url
from tests.contract.fake_source import FakeSource
from tests.zookeeper.listener import Listener

_numbers = count()


class Scene(Protocol):
    """A source, and the hand that moves what it reads."""

    @property
    def source(self) -> Source: ...

    def add(self) -> UnitId:
        """A new unit with a task."""

    def change(self, unit_id: UnitId) -> None:
        """Its task is another value than before."""

    def remove(self, unit_id: UnitId) -> None: ...

    def silence(self) -> None:
        """From now on what the source knows may be old."""

    def speak(self) -> None:
        """The end of `silence`."""


class FakeScene:
    def __init__(self) -> None:
        self.source = FakeSource()
        self._units: dict[UnitId, Unit] = {}
        self._numbers = count()

    def add(self) -> UnitId:
        unit_id = UnitId(f"unit/{next(self._numbers)}")
        self._put(unit_id, 1)
        return unit_id

    def change(self, unit_id: UnitId) -> None:
        self._put(unit_id, self._units[unit_id].revision + 1)

    def remove(self, unit_id: UnitId) -> None:
        del self._units[unit_id]
        self.source.drop(unit_id)

    def silence(self) -> None:
        self.source.silence("nobody writes")

    def speak(self) -> None:
        self.source.read(self._units.values())

    def _put(self, unit_id: UnitId, revision: int) -> None:
        healthy, address = revision % 2 == 1, ip_address("10.0.0.1")
        task = Task("f", unit_id, "fake", "task", "a", address, (address,), "running", healthy, ())
        self._units[unit_id] = Unit(unit_id, revision, (task,))
        self.source.put(self._units[unit_id])


class MarathonScene:
    def __init__(self, marathon: Marathon, server: Server) -> None:
        self._marathon = marathon
        self._marathon.publish({"id": "/web", "healthChecks": [{"protocol": "MESOS_HTTP"}]})
        self.source = MarathonSource(parse_url(server.url), root=marathon.root)

    def add(self) -> UnitId:
        instance_id = self._marathon.launch(
            "/web", "10.0.0.1", host_ports=[31000], ips=["10.0.0.1"], healthy=True
        )
        return UnitId(f"instance/{instance_id}")

    def change(self, unit_id: UnitId) -> None:
        instance_id = unit_id.removeprefix("instance/")
        healthy = self._marathon.instances[instance_id].healthy
        self._marathon.update(instance_id, healthy=not healthy)

    def remove(self, unit_id: UnitId) -> None:
        self._marathon.remove(unit_id.removeprefix("instance/"))

    def silence(self) -> None:
        self._marathon.resign()

    def speak(self) -> None:
        self._marathon.lead()


@pytest.fixture(params=["fake", pytest.param("marathon", marks=pytest.mark.zookeeper)])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    if request.param == "fake":
        yield FakeScene()
        return
    server: Server = request.getfixturevalue("server")
    with Marathon(server.address, root=f"/contract-{next(_numbers)}") as marathon:
        yield MarathonScene(marathon, server)


@pytest.fixture
def listener(scene: Scene) -> Iterator[Listener]:
    listener = Listener(scene.source)
    with ExitStack() as ending:
        ending.callback(scene.source.close)
        yield listener


def healthy(units: Mapping[UnitId, Unit], unit_id: UnitId) -> bool | None:
    """Health of the unit's only task; None: there is no such unit."""
    unit = units.get(unit_id)
    return None if unit is None else unit.tasks[0].healthy


def test_nothing_is_known_before_the_first_read(scene: Scene, listener: Listener) -> None:
    assert scene.source.snapshot() is None
    health = scene.source.health()
    assert not health.fresh
    assert health.reason


def test_the_first_snapshot_has_everything(scene: Scene, listener: Listener) -> None:
    added = {scene.add() for _ in range(60)}
    listener.start()
    first = listener.snapshot()
    assert added <= first.units.keys()
    assert first.source == scene.source.name
    assert (first.serial, first.touched) == (1, None)
    health = listener.until_fresh()
    assert health.reason == ""


def test_it_is_the_same_object_while_nothing_changes(scene: Scene, listener: Listener) -> None:
    unit = scene.add()
    listener.start()
    first = listener.snapshot()
    assert scene.source.snapshot() is first
    # The bell may ring for nothing; health that changes is no news about units.
    listener.until_fresh()
    scene.silence()
    listener.until_stale("")
    scene.speak()
    listener.until_fresh()
    assert scene.source.snapshot() is first
    assert unit in first.units


def test_a_change_rings_and_touches_its_unit_only(scene: Scene, listener: Listener) -> None:
    changed, other = scene.add(), scene.add()
    listener.start()
    first = listener.snapshot()
    scene.change(changed)
    second = listener.newer(first)
    assert second.serial == first.serial + 1
    assert second.touched == frozenset({changed})
    assert second.units[changed] != first.units[changed]
    assert second.units[changed].revision > first.units[changed].revision
    assert second.units[other] is first.units[other]
    assert second.origin.incarnation == first.origin.incarnation
    assert second.origin.position >= first.origin.position


def test_a_removed_unit_is_gone_and_touched(scene: Scene, listener: Listener) -> None:
    removed, other = scene.add(), scene.add()
    listener.start()
    first = listener.snapshot()
    scene.remove(removed)
    second = listener.newer(first)
    assert removed not in second.units
    assert second.touched == frozenset({removed})
    assert second.units[other] is first.units[other]


def test_what_nobody_looked_at_is_still_touched(scene: Scene, listener: Listener) -> None:
    units = [scene.add() for _ in range(5)]
    listener.start()
    first = listener.snapshot()
    listener.until_fresh()
    for unit in units:
        scene.change(unit)
        listener.until_rung()
    second = listener.snapshot()
    check_touched(first, second)
    assert len(second.touched or ()) > 1


def test_touched_tells_every_difference(scene: Scene, listener: Listener) -> None:
    chance = random.Random(7)  # noqa: S311
    alive = [scene.add() for _ in range(10)]
    listener.start()
    seen = listener.snapshot()
    for _ in range(60):
        match chance.choice(("add", "change", "change", "remove")):
            case "add":
                alive.append(scene.add())
            case "change":
                scene.change(chance.choice(alive))
            case "remove" if len(alive) > 1:
                scene.remove(alive.pop(chance.randrange(len(alive))))
        if (now := listener.snapshot()) is not seen:
            check_touched(seen, now)
            seen = now
    last = scene.add()
    while last not in seen.units:
        now = listener.newer(seen)
        check_touched(seen, now)
        seen = now
    assert seen.units.keys() >= {*alive, last}


def check_touched(before: Snapshot, now: Snapshot) -> None:
    """What is not touched is the same object."""
    assert now.serial == before.serial + 1
    assert now.touched is not None
    for unit_id in before.units.keys() | now.units.keys():
        if unit_id not in now.touched:
            assert now.units[unit_id] is before.units[unit_id]


def test_silence_keeps_every_unit_and_dates_itself(scene: Scene, listener: Listener) -> None:
    scene.add()
    listener.start()
    first = listener.snapshot()
    fresh = listener.until_fresh()
    scene.silence()
    stale = listener.until_stale("")
    assert stale.since_monotonic > fresh.since_monotonic
    assert stale.reason
    assert scene.source.snapshot() is first
    assert scene.source.health() == stale
    scene.speak()
    again = listener.until_fresh()
    assert again.since_monotonic > stale.since_monotonic


def test_close_may_be_called_twice_and_keeps_the_last_snapshot(
    scene: Scene, listener: Listener
) -> None:
    scene.add()
    listener.start()
    first = listener.snapshot()
    listener.until_fresh()
    scene.source.close()
    scene.source.close()
    assert scene.source.snapshot() is first
    assert not scene.source.health().fresh


def test_close_without_a_start(scene: Scene, listener: Listener) -> None:
    scene.source.close()
    assert scene.source.snapshot() is None
