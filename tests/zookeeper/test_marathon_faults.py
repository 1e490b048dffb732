"""A ZooKeeper that dies, hangs, forgets and comes back: no unit is lost, no change is missed."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from lab.marathon import Condition, Marathon
from lab.zookeeper import Ensemble, Server, ask
from minuteman.model import Snapshot, UnitId
from minuteman.source.marathon import MarathonSource
from minuteman.zookeeper.session import parse_url
from tests.zookeeper.listener import Listener, listening

WEB: dict[str, object] = {
    "id": "/web",
    "portDefinitions": [{"name": "http", "labels": {"VIP_0": "/web:80"}}],
    "healthChecks": [{"protocol": "MESOS_HTTP"}],
}
HOST = "10.0.0.1"


def new_source(
    url: str, *, restart_seconds: float = 60.0, session_timeout_seconds: float = 4.0
) -> MarathonSource:
    return MarathonSource(
        parse_url(url),
        jitter_seconds=0.2,
        restart_seconds=restart_seconds,
        session_timeout_seconds=session_timeout_seconds,
    )


def launch(marathon: Marathon, port: int = 31000, app_id: str = "/web") -> str:
    return marathon.launch(app_id, HOST, host_ports=[port], ips=[HOST], healthy=True)


@pytest.fixture
def marathon(own_server: Server) -> Iterator[Marathon]:
    """A Marathon with three instances of one app."""
    with Marathon(own_server.address) as leading:
        leading.publish(WEB)
        for port in range(31000, 31003):
            launch(leading, port)
        yield leading


@contextmanager
def loaded(source: MarathonSource) -> Iterator[tuple[Listener, Snapshot]]:
    """The source once it has all that the fixture wrote."""
    with listening(source) as listener:
        listener.until_fresh()
        yield listener, listener.until_snapshot(lambda snapshot: len(snapshot.units) == 4)


def check_complete(listener: Listener, url: str) -> None:
    """Wait until the units are those that a source finds which reads everything for the first time.

    Nothing may be written meanwhile.
    """
    with listening(new_source(url)) as other:
        expected = other.units()
    listener.until_snapshot(lambda snapshot: snapshot.units == expected)


# ---- it goes away --------------------------------------------------------------------------------
def test_a_server_that_dies_makes_it_stale_and_nothing_else(
    own_server: Server, marathon: Marathon
) -> None:
    with loaded(new_source(own_server.url)) as (listener, before):
        own_server.kill()
        stale = listener.until_stale("no connection")
        assert stale.since_monotonic <= time.monotonic()
        assert listener.source.snapshot() is before
        own_server.start()
        listener.until_fresh()
        assert listener.source.snapshot() is before
        launch(marathon, 31003)
        listener.until_snapshot(lambda snapshot: len(snapshot.units) == 5)


def test_what_changed_while_it_was_away_is_read(own_server: Server, marathon: Marathon) -> None:
    first, second, _ = marathon.instances
    with loaded(new_source(own_server.url)) as (listener, before):
        own_server.kill()
        listener.until_stale("no connection")
        own_server.start()
        marathon.update(first, healthy=False)
        marathon.remove(second)
        third = launch(marathon, 31003)
        marathon.scale("/web", 7)
        check_complete(listener, own_server.url)
        after = listener.snapshot()
        assert f"instance/{second}" not in after.units
        assert f"instance/{third}" in after.units
        assert after.origin.incarnation == before.origin.incarnation


def test_a_server_that_hangs(own_server: Server, marathon: Marathon) -> None:
    with loaded(new_source(own_server.url, session_timeout_seconds=3.0)) as (listener, before):
        own_server.pause()
        listener.until_stale("no connection")
        assert listener.source.snapshot() is before
        own_server.resume()
        listener.until_fresh()
        assert listener.source.snapshot() is before
        marathon.update(next(iter(marathon.instances)), healthy=False)
        listener.newer(before)


def test_a_session_that_expires(own_server: Server, marathon: Marathon) -> None:
    source = new_source(own_server.url)
    with loaded(source) as (listener, before):
        client = source._session._client
        assert client is not None
        thief = KazooClient(own_server.address, client_id=client.client_id)
        thief.start()
        thief.stop()
        thief.close()
        listener.until_stale("")
        listener.until_fresh()
        # Everything was decoded anew and is equal, so it is the same.
        assert listener.source.snapshot() is before
        marathon.update(next(iter(marathon.instances)), healthy=False)
        listener.newer(before)


def test_a_server_that_comes_later(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with listening(new_source(server.url)) as listener:
        listener.until_stale("no connection")
        assert listener.source.snapshot() is None
        with server, Marathon(server.address) as marathon:
            marathon.publish(WEB)
            listener.unit("app/web")
            listener.until_fresh()


@pytest.mark.parametrize("fault", [Server.kill, Server.pause])
def test_close_waits_for_no_server(
    own_server: Server, marathon: Marathon, fault: Callable[[Server], None]
) -> None:
    source = new_source(own_server.url, session_timeout_seconds=3.0)
    with loaded(source) as (_, before):
        fault(own_server)
        began = time.monotonic()
        source.close()
        assert time.monotonic() - began < 8.0
        assert source.snapshot() is before
        own_server.resume()
    assert not [each for each in threading.enumerate() if each.name == "source-marathon"]


# ---- another world -------------------------------------------------------------------------------
def test_a_wiped_server_is_another_world(own_server: Server, marathon: Marathon) -> None:
    with loaded(new_source(own_server.url, restart_seconds=1.5)) as (listener, before):
        own_server.kill()
        own_server.wipe()
        own_server.start()
        listener.until_stale("/marathon/state does not exist")
        assert listener.source.snapshot() is before
        with Marathon(own_server.address) as reborn:
            reborn.publish(WEB | {"id": "/other"})
            first = listener.newer(before)
            assert first.origin.incarnation != before.origin.incarnation
            assert first.touched is not None
            assert first.touched >= before.units.keys()
            after = listener.until_snapshot(lambda snapshot: "app/other" in snapshot.units)
            assert after.units.keys() == {"app/other"}
            listener.until_fresh()


def test_a_restored_backup_is_an_older_position_of_the_same_world(
    own_server: Server, marathon: Marathon, tmp_path: Path
) -> None:
    first, second, _ = marathon.instances
    own_server.stop()
    shutil.copytree(own_server.folder / "data", tmp_path / "backup")
    own_server.start()
    with loaded(new_source(own_server.url, restart_seconds=1.5)) as (listener, _):
        marathon.update(first, healthy=False)
        marathon.remove(second)
        later = listener.until_snapshot(lambda snapshot: len(snapshot.units) == 3)
        own_server.kill()
        own_server.wipe()
        shutil.copytree(tmp_path / "backup", own_server.folder / "data")
        own_server.start()
        restored = listener.until_snapshot(lambda snapshot: len(snapshot.units) == 4)
        assert restored.origin.incarnation == later.origin.incarnation
        assert restored.origin.position < later.origin.position
        assert restored.units[UnitId(f"instance/{first}")].tasks[0].healthy is True
        # Zxids are used for a second time now. They name other contents than the first time.
        with Marathon(own_server.address) as again:
            again.publish(WEB)
            check_complete(listener, own_server.url)


# ---- storms --------------------------------------------------------------------------------------
class Storm:
    """Random changes, valid ones and nonsense, one after the other."""

    def __init__(self, marathon: Marathon, seed: int) -> None:
        self._marathon = marathon
        self._chance = random.Random(seed)  # noqa: S311
        self._damaged: set[str] = set()

    def change(self) -> None:
        """Change something."""
        match self._chance.choices(KINDS, WEIGHTS)[0]:
            case "update" if self._marathon.instances:
                condition = self._chance.choice(CONDITIONS)
                healthy = self._chance.random() < 0.5
                self._marathon.update(self._instance(), condition=condition, healthy=healthy)
            case "remove" if self._marathon.instances:
                self._marathon.remove(self._instance())
            case "damage" if self._marathon.instances:
                self._damage()
            case "launch" if self._marathon.apps:
                port = self._chance.randrange(31000, 32000)
                launch(self._marathon, port, self._app())
            case "scale" if self._marathon.apps:
                self._marathon.scale(self._app(), self._chance.randrange(10))
            case "delete" if len(self._marathon.apps) > 4:
                self._marathon.delete(self._app())
            case _:
                self._publish()

    def repair(self) -> None:
        """Let everything make sense again."""
        for instance_id in self._damaged & self._marathon.instances.keys():
            self._marathon.update(instance_id)

    def _app(self) -> str:
        return self._chance.choice(list(self._marathon.apps))

    def _instance(self) -> str:
        return self._chance.choice(list(self._marathon.instances))

    def _publish(self) -> None:
        app_id = f"/web{self._chance.randrange(8)}"
        labels = {
            "VIP_0": f"/web{self._chance.randrange(2)}:80",
            "MINUTEMAN_0_WEIGHT": str(self._chance.randrange(3)),
            "MINUTEMAN_0_AFFINITY": f"{self._chance.randrange(3)}m",
        }
        self._marathon.publish(WEB | {"id": app_id, "portDefinitions": [{"labels": labels}]})

    def _damage(self) -> None:
        instance_id = self._instance()
        nonsense = self._chance.choice((b"", b"{", bytes(range(256))))
        path = self._marathon.instance_path(instance_id)
        self._marathon.client.retry(self._marathon.client.set, path, nonsense)
        self._damaged.add(instance_id)


KINDS = ("update", "launch", "remove", "publish", "scale", "damage", "delete")
WEIGHTS = (30, 20, 15, 15, 10, 5, 5)
CONDITIONS: tuple[Condition, ...] = ("Running", "Killing", "Unreachable", "Finished")


def test_no_change_is_lost_in_a_storm(own_server: Server, marathon: Marathon) -> None:
    storm = Storm(marathon, seed=1)
    with loaded(new_source(own_server.url)) as (listener, _):
        for _ in range(500):
            storm.change()
        storm.repair()
        check_complete(listener, own_server.url)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_no_change_is_lost_while_connections_come_and_go(
    own_server: Server, marathon: Marathon, seed: int
) -> None:
    storm = Storm(marathon, seed)
    source = new_source(own_server.url, session_timeout_seconds=3.0)
    with loaded(source) as (listener, _):
        for step in range(500):
            match step % 125:
                case 40:
                    own_server.kill()
                    own_server.start()
                case 80 if step > 250:
                    own_server.pause()
                    listener.until_stale("")
                    own_server.resume()
            storm.change()
        storm.repair()
        listener.until_fresh()
        check_complete(listener, own_server.url)


# ---- an ensemble ---------------------------------------------------------------------------------
@pytest.fixture
def ensemble(tmp_path: Path) -> Iterator[Ensemble]:
    with Ensemble(tmp_path) as ensemble:
        yield ensemble


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_leader_that_dies(ensemble: Ensemble) -> None:
    storm_url = ensemble.url
    with Marathon(ensemble.address) as marathon:
        marathon.publish(WEB)
        for port in range(31000, 31003):
            launch(marathon, port)
        storm = Storm(marathon, seed=4)
        with loaded(new_source(storm_url)) as (listener, before):
            for _ in range(3):
                leader = ensemble.leader()
                leader.kill()
                for _ in range(50):
                    storm.change()
                leader.start()
            storm.repair()
            listener.until_fresh()
            check_complete(listener, storm_url)
            assert listener.snapshot().origin.incarnation == before.origin.incarnation


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_lost_quorum_is_silence_though_one_server_still_answers_readers(
    ensemble: Ensemble,
) -> None:
    with Marathon(ensemble.address) as marathon:
        marathon.publish(WEB)
        for port in range(31000, 31003):
            launch(marathon, port)
        with loaded(new_source(ensemble.url)) as (listener, before):
            alone, *others = ensemble.servers
            for server in others:
                server.kill()
            listener.until_stale("no connection")
            until_read_only(alone)
            assert listener.source.snapshot() is before
            assert not listener.source.health().fresh
            ensemble.start()
            listener.until_fresh()
            launch(marathon, 31003)
            check_complete(listener, ensemble.url)


def until_read_only(server: Server) -> None:
    deadline = time.monotonic() + 30.0
    while ask(server.port, "isro") != "ro":
        assert time.monotonic() < deadline, "the server does not serve readers"
