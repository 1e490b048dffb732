"""Marathon's znodes become units: what a reader of a healthy, odd or broken Marathon is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from kazoo.client import KazooClient
from kazoo.security import make_digest_acl

from lab.marathon import FRAMEWORK_ID, Condition, Marathon, field, storage_version
from lab.zookeeper import Server
from minuteman.model import (
    Address,
    Task,
    TaskPort,
    TaskState,
    Unit,
    UnitId,
    VipClaim,
    VipKey,
    VipName,
)
from minuteman.source.marathon import STORAGE_UNIT, MarathonSource
from minuteman.zookeeper.session import parse_url
from tests.zookeeper.listener import Listener, listening

WEB: dict[str, object] = {
    "id": "/prod/web",
    "portDefinitions": [{"name": "http", "labels": {"VIP_0": "/web:80"}}],
    "healthChecks": [{"protocol": "MESOS_HTTP"}],
}
HOST = "10.0.0.1"

NewSource = Callable[[], MarathonSource]


@pytest.fixture
def new_source(server: Server, marathon: Marathon) -> NewSource:
    return lambda: MarathonSource(parse_url(server.url), root=marathon.root)


@pytest.fixture
def listener(new_source: NewSource) -> Iterator[Listener]:
    """A source that has read the empty Marathon."""
    with listening(new_source()) as listener:
        listener.until_fresh()
        yield listener


def web(label: str) -> dict[str, object]:
    """A version of the app with this label."""
    return WEB | {"portDefinitions": [{"name": "http", "labels": {"VIP_0": label}}]}


def launch(marathon: Marathon, host: str = HOST, *, port: int = 31000) -> str:
    return marathon.launch("/prod/web", host, host_ports=[port], ips=[HOST], healthy=True)


def claim(name: str, port: int = 80) -> VipClaim:
    return VipClaim(VipKey(VipName(name, "marathon"), port, "tcp"))


def claims(unit: Unit) -> list[str]:
    """Names of the VIPs that the unit's tasks are behind."""
    return [str(each.key) for task in unit.tasks for port in task.ports for each in port.claims]


def is_behind(label: str) -> Callable[[Unit], bool]:
    return lambda unit: claims(unit) == [f"{label}.marathon.l4lb.thisdcos.directory:80"]


def is_in(state: TaskState) -> Callable[[Unit], bool]:
    return lambda unit: [task.state for task in unit.tasks] == [state]


def is_healthy(healthy: bool) -> Callable[[Unit], bool]:
    return lambda unit: [task.healthy for task in unit.tasks] == [healthy]


def is_at(address: str) -> Callable[[Unit], bool]:
    return lambda unit: [task.agent_ip for task in unit.tasks] == [ip_address(address)]


def is_kept(unit: Unit) -> bool:
    return unit.kept


def is_good(unit: Unit) -> bool:
    return not unit.kept and not unit.problems


def mzxid(client: KazooClient, path: str) -> int:
    stat = client.exists(path)
    assert stat is not None
    return stat.mzxid


# ---- a healthy Marathon --------------------------------------------------------------------------
def test_an_app_and_its_instance(listener: Listener, marathon: Marathon) -> None:
    marathon.publish(WEB)
    instance_id = launch(marathon)
    app = listener.unit("app/prod_web")
    assert app == Unit(
        UnitId("app/prod_web"),
        mzxid(marathon.client, marathon.app_path("/prod/web")),
        declares=(claim("web"),),
    )
    instance = listener.unit(f"instance/{instance_id}")
    task = Task(
        framework_id=FRAMEWORK_ID,
        id=f"{instance_id}._app.1",
        framework="marathon",
        name="web.prod",
        agent_id=f"{FRAMEWORK_ID}-S-{HOST}",
        agent_ip=ip_address(HOST),
        ips=(ip_address(HOST),),
        state="running",
        healthy=True,
        ports=(TaskPort("tcp", 31000, "host", "http", claims=(claim("web"),)),),
    )
    assert instance == Unit(
        UnitId(f"instance/{instance_id}"),
        mzxid(marathon.client, marathon.instance_path(instance_id)),
        tasks=(task,),
    )


def test_a_life(listener: Listener, marathon: Marathon) -> None:
    marathon.publish(WEB)
    instance_id = marathon.launch("/prod/web", HOST, condition="Scheduled")
    unit_id = f"instance/{instance_id}"
    assert listener.unit(unit_id).tasks == ()
    life: Sequence[tuple[Condition, TaskState]] = (
        ("Staging", "starting"),
        ("Running", "running"),
        ("Unreachable", "unreachable"),
        ("Running", "running"),
        ("Killing", "killing"),
    )
    for condition, state in life:
        marathon.update(instance_id, condition=condition)
        listener.unit(unit_id, is_in(state))
    marathon.update(instance_id, condition="Killed")
    listener.unit(unit_id, lambda unit: not unit.tasks)
    marathon.remove(instance_id)
    listener.until_gone(unit_id)


def test_health_follows_mesos(listener: Listener, marathon: Marathon) -> None:
    marathon.publish(WEB)
    instance_id = marathon.launch("/prod/web", HOST, host_ports=[31000])
    unit_id = f"instance/{instance_id}"
    assert listener.unit(unit_id).tasks[0].healthy is False  # a check, and no result yet
    for healthy in (True, False):
        marathon.update(instance_id, healthy=healthy)
        listener.unit(unit_id, is_healthy(healthy))


def test_an_app_at_zero_declares_its_vips(listener: Listener, marathon: Marathon) -> None:
    marathon.publish(WEB)
    instance_id = launch(marathon)
    listener.unit(f"instance/{instance_id}")
    marathon.scale("/prod/web", 0)
    marathon.remove(instance_id)
    listener.until_gone(f"instance/{instance_id}")
    assert listener.units()[UnitId("app/prod_web")].declares == (claim("web"),)


def test_a_deleted_app_is_an_empty_znode(listener: Listener, marathon: Marathon) -> None:
    marathon.publish(WEB)
    instance_id = launch(marathon)
    listener.unit(f"instance/{instance_id}")
    marathon.delete("/prod/web")
    listener.until_gone("app/prod_web")
    # It is still being killed, and its version is still there.
    marathon.kill(instance_id)
    unit = listener.unit(f"instance/{instance_id}", is_in("killing"))
    assert is_behind("web")(unit)
    marathon.publish(web("/again:80"))
    assert listener.unit("app/prod_web").declares == (claim("again"),)


def test_an_app_below_a_chroot(server: Server, client: KazooClient, chroot: str) -> None:
    client.ensure_path(chroot)
    with Marathon(server.address + chroot, root="/apps/marathon") as marathon:
        marathon.publish(WEB)
        source = MarathonSource(parse_url(server.url + chroot), root="/apps/marathon/")
        with listening(source) as listener:
            assert listener.unit("app/prod_web").declares


def test_marathon_that_starts_later(server: Server, chroot: str) -> None:
    source = MarathonSource(parse_url(server.url), root=chroot)
    with listening(source) as listener:
        listener.until_stale(f"{chroot}/state does not exist")
        assert source.snapshot() is None
        with Marathon(server.address, root=chroot) as marathon:
            marathon.publish(WEB)
            listener.unit("app/prod_web")
            listener.until_fresh()


def test_without_a_leader_it_is_stale_and_follows_what_is_there(
    listener: Listener, marathon: Marathon
) -> None:
    marathon.publish(WEB)
    listener.unit("app/prod_web")
    marathon.resign()
    listener.until_stale("no Marathon leads")
    marathon.publish(web("/other:80"))
    listener.unit("app/prod_web", lambda unit: unit.declares == (claim("other"),))
    assert not listener.source.health().fresh
    marathon.lead()
    listener.until_fresh()


# ---- versions of an app --------------------------------------------------------------------------
def test_each_instance_has_the_ports_of_its_own_version(
    listener: Listener, marathon: Marathon, new_source: NewSource
) -> None:
    marathon.publish(web("/old:80"))
    old = launch(marathon)
    before = listener.unit(f"instance/{old}", is_behind("old"))
    marathon.publish(web("/new:80"))
    new = launch(marathon, port=31001)
    listener.unit(f"instance/{new}", is_behind("new"))
    assert listener.units()[before.id] is before
    assert listener.unit("app/prod_web").declares == (claim("new"),)
    marathon.kill(old)
    listener.unit(f"instance/{old}", is_in("killing"))
    # One that starts now has to find the old version by itself.
    with listening(new_source()) as late:
        assert late.units() == listener.units()
        assert is_behind("old")(late.units()[before.id])


def test_a_version_that_was_cleaned_up(marathon: Marathon, new_source: NewSource) -> None:
    old_version = marathon.publish(web("/old:80"))
    instance_id = launch(marathon)
    marathon.publish(web("/middle:80"))
    marathon.publish(web("/new:80"))
    app_path = marathon.app_path("/prod/web")
    [old_path] = [
        f"{app_path}/{name}"
        for name in marathon.client.get_children(app_path)
        if old_version.startswith(name.removesuffix("Z"))
    ]
    definition, _ = marathon.client.get(old_path)
    marathon.client.delete(old_path)
    with listening(new_source()) as listener:
        unit = listener.unit(f"instance/{instance_id}")
        assert is_behind("new")(unit)
        assert [problem.field for problem in unit.problems] == ["runSpecVersion"]
        # It is looked for again whenever the app changes.
        marathon.client.create(old_path, definition)
        marathon.publish(web("/newer:80"))
        assert is_good(listener.unit(f"instance/{instance_id}", is_behind("old")))


def test_an_app_without_any_version(marathon: Marathon, new_source: NewSource) -> None:
    marathon.publish(web("/old:80"))
    instance_id = launch(marathon)
    marathon.publish(web("/new:80"))
    app_path = marathon.app_path("/prod/web")
    for name in marathon.client.get_children(app_path):
        marathon.client.delete(f"{app_path}/{name}")
    with listening(new_source()) as listener:
        assert is_behind("new")(listener.unit(f"instance/{instance_id}"))


def test_an_instance_without_any_app(marathon: Marathon, new_source: NewSource) -> None:
    marathon.publish(WEB)
    instance_id = launch(marathon)
    marathon.client.delete(marathon.app_path("/prod/web"), recursive=True)
    with listening(new_source()) as listener:
        unit = listener.unit(f"instance/{instance_id}")
        assert unit.tasks[0].ports == ()
        assert [problem.field for problem in unit.problems] == ["runSpecVersion"]
        assert "app/prod_web" not in listener.units()
        marathon.publish(web("/again:80"))
        listener.unit(f"instance/{instance_id}", is_behind("again"))


def test_a_version_that_cannot_be_read(marathon: Marathon, new_source: NewSource) -> None:
    marathon.publish(web("/old:80"))
    instance_id = launch(marathon)
    app_path = marathon.app_path("/prod/web")
    [name] = marathon.client.get_children(app_path)
    definition, _ = marathon.client.get(f"{app_path}/{name}")
    marathon.client.set(f"{app_path}/{name}", b"\xff" * 20)
    marathon.publish(web("/new:80"))
    with listening(new_source()) as listener:
        unit = listener.unit(f"instance/{instance_id}")
        assert (unit.tasks, unit.kept, len(unit.problems)) == ((), False, 1)
        marathon.client.set(f"{app_path}/{name}", definition)
        marathon.publish(web("/newer:80"))
        listener.unit(f"instance/{instance_id}", is_behind("old"))


# ---- options of VIPs -----------------------------------------------------------------------------
def with_options(weight: int, affinity: str) -> dict[str, object]:
    """A version of the app whose label has these options."""
    options = {"MINUTEMAN_0_WEIGHT": str(weight), "MINUTEMAN_0_AFFINITY": affinity}
    return WEB | {"portDefinitions": [{"labels": {"VIP_0": "/web:80", **options}}]}


def is_served(weight: int, affinity_seconds: int) -> Callable[[Unit], bool]:
    expected = replace(claim("web"), weight=weight, affinity_seconds=affinity_seconds)
    return lambda unit: [task.ports[0].claims for task in unit.tasks] == [(expected,)]


def test_options_of_the_newest_version_count_for_all_instances(
    listener: Listener, marathon: Marathon, new_source: NewSource
) -> None:
    marathon.publish(with_options(10, "60s"))
    old = launch(marathon)
    marathon.publish(WEB | {"id": "/other"})
    other = marathon.launch("/other", HOST, host_ports=[31009])
    before = listener.until_snapshot(lambda snapshot: len(snapshot.units) == 4)
    assert is_served(10, 60)(before.units[UnitId(f"instance/{old}")])

    marathon.publish(with_options(20, "5m"))
    after = listener.newer(before)
    assert after.touched == frozenset(map(UnitId, ("app/prod_web", f"instance/{old}")))
    assert is_served(20, 300)(after.units[UnitId(f"instance/{old}")])
    new = launch(marathon, port=31001)
    listener.unit(f"instance/{new}", is_served(20, 300))

    marathon.publish(with_options(10, "60s"))
    for instance_id in (old, new):
        listener.unit(f"instance/{instance_id}", is_served(10, 60))
    marathon.kill(new)
    listener.unit(
        f"instance/{new}", lambda unit: is_in("killing")(unit) and is_served(10, 60)(unit)
    )
    unit_id = UnitId(f"instance/{other}")
    assert listener.units()[unit_id] is before.units[unit_id]
    with listening(new_source()) as late:
        assert late.units() == listener.units()


def test_a_version_with_the_same_options_touches_no_instance(
    listener: Listener, marathon: Marathon
) -> None:
    marathon.publish(with_options(10, "60s"))
    instance_id = launch(marathon)
    before = listener.unit(f"instance/{instance_id}", is_served(10, 60))
    marathon.publish(with_options(10, "1m") | {"instances": 2})
    marathon.publish(WEB | {"id": "/other"})
    # Watches fire in the order of the changes: when the last is seen, the others were.
    listener.unit("app/other")
    assert listener.units()[before.id] is before


def test_options_of_the_newest_instance_count_when_the_app_asks_no_more(
    listener: Listener, marathon: Marathon, new_source: NewSource
) -> None:
    marathon.publish(with_options(10, "60s"))
    old = launch(marathon)
    marathon.publish(with_options(20, "5m"))
    new = launch(marathon, port=31001)
    marathon.publish(with_options(30, "1h"))
    for instance_id in (old, new):
        listener.unit(f"instance/{instance_id}", is_served(30, 3600))
    marathon.publish(web("/renamed:80"))
    for instance_id in (old, new):
        listener.unit(f"instance/{instance_id}", is_served(20, 300))
    marathon.delete("/prod/web")
    listener.until_gone("app/prod_web")
    with listening(new_source()) as late:
        assert late.units() == listener.units()
        for instance_id in (old, new):
            late.unit(f"instance/{instance_id}", is_served(20, 300))
        marathon.remove(new)
        for each in (late, listener):
            each.unit(f"instance/{old}", is_served(10, 60))


def test_an_option_that_makes_no_sense_costs_only_itself(
    listener: Listener, marathon: Marathon
) -> None:
    marathon.publish(with_options(101, "60s"))
    instance_id = launch(marathon)
    listener.unit(f"instance/{instance_id}", is_served(1, 60))
    app = listener.unit("app/prod_web")
    assert [problem.subject for problem in app.problems] == ["MINUTEMAN_0_WEIGHT"]


# ---- znodes that make no sense -------------------------------------------------------------------
NONSENSE = {
    "zero bytes": lambda _: b"",
    "random bytes": lambda _: bytes(range(256)),
    "truncated": lambda data: data[: len(data) // 2],
    "another shape": lambda _: b'{"instanceId":[1,2,3]}',
    "not UTF-8": lambda data: data.replace(b"Running", b"Run\xff\xfe"),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_an_instance_that_cannot_be_read_any_more_is_kept(
    listener: Listener, marathon: Marathon, nonsense: Callable[[bytes], bytes]
) -> None:
    marathon.publish(WEB)
    broken, other = launch(marathon), launch(marathon, port=31001)
    good = listener.unit(f"instance/{broken}")
    neighbour = listener.unit(f"instance/{other}")
    path = marathon.instance_path(broken)
    data, _ = marathon.client.get(path)
    marathon.client.set(path, nonsense(data))
    kept = listener.unit(good.id, is_kept)
    assert kept.tasks == good.tasks
    assert [problem.where for problem in kept.problems] == [path]
    assert kept.revision == mzxid(marathon.client, path)
    assert listener.units()[neighbour.id] is neighbour
    assert listener.source.health().fresh
    marathon.client.set(path, data)
    assert listener.unit(good.id, is_good).tasks == good.tasks


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_an_instance_that_never_could_be_read(
    marathon: Marathon, new_source: NewSource, nonsense: Callable[[bytes], bytes]
) -> None:
    marathon.publish(WEB)
    broken, other = launch(marathon), launch(marathon, port=31001)
    path = marathon.instance_path(broken)
    data, _ = marathon.client.get(path)
    marathon.client.set(path, nonsense(data))
    with listening(new_source()) as listener:
        unit = listener.unit(f"instance/{broken}")
        assert (unit.tasks, unit.kept) == ((), False)
        assert [problem.where for problem in unit.problems] == [path]
        assert is_good(listener.unit(f"instance/{other}"))
        marathon.client.set(path, data)
        assert listener.unit(unit.id, is_good).tasks


def test_an_app_that_cannot_be_read_any_more_is_kept(
    listener: Listener, marathon: Marathon
) -> None:
    marathon.publish(WEB)
    instance_id = launch(marathon)
    instance = listener.unit(f"instance/{instance_id}")
    path = marathon.app_path("/prod/web")
    data, _ = marathon.client.get(path)
    marathon.client.set(path, b"\xff" * 20)
    kept = listener.unit("app/prod_web", is_kept)
    assert kept.declares == (claim("web"),)
    assert [problem.where for problem in kept.problems] == [path]
    assert listener.units()[instance.id] is instance
    marathon.client.set(path, data)
    assert listener.unit("app/prod_web", is_good).declares == (claim("web"),)


def test_an_app_that_never_could_be_read(marathon: Marathon, new_source: NewSource) -> None:
    marathon.publish(WEB)
    instance_id = launch(marathon)
    path = marathon.app_path("/prod/web")
    for name in marathon.client.get_children(path):
        marathon.client.delete(f"{path}/{name}")
    marathon.client.set(path, b"\xff" * 20)
    with listening(new_source()) as listener:
        app = listener.unit("app/prod_web")
        assert (app.declares, app.kept, len(app.problems)) == ((), False, 1)
        # There is a definition, so what the instance runs is not known to be nothing.
        instance = listener.unit(f"instance/{instance_id}")
        assert (instance.tasks, instance.kept, len(instance.problems)) == ((), False, 1)


def test_an_instance_that_may_not_be_read_is_kept(listener: Listener, marathon: Marathon) -> None:
    marathon.publish(WEB)
    instance_id = launch(marathon)
    good = listener.unit(f"instance/{instance_id}")
    path = marathon.instance_path(instance_id)
    data, _ = marathon.client.get(path)
    marathon.client.delete(path)
    listener.until_gone(good.id)
    secret = make_digest_acl("somebody", "else", all=True)
    marathon.client.create(path, data, acl=[secret])
    unit = listener.unit(good.id)
    assert (unit.tasks, unit.kept) == ((), False)
    assert "not allowed" in unit.problems[0].reason


def test_a_label_that_makes_no_sense_costs_only_itself(
    listener: Listener, marathon: Marathon
) -> None:
    labels = {"VIP_0": "/no-port", "VIP_1": "/web:80"}
    marathon.publish(WEB | {"portDefinitions": [{"labels": labels}]})
    instance_id = launch(marathon)
    listener.unit(f"instance/{instance_id}", is_behind("web"))
    app = listener.unit("app/prod_web")
    assert [problem.subject for problem in app.problems] == ["VIP_0"]


# ---- the state as a whole ------------------------------------------------------------------------
def test_removals_wait_for_the_end_of_a_migration(listener: Listener, marathon: Marathon) -> None:
    marathon.publish(WEB)
    marathon.publish(WEB | {"id": "/other"})
    kept, gone = launch(marathon), launch(marathon, port=31001)
    listener.until_snapshot(lambda snapshot: len(snapshot.units) == 4)
    marathon.begin_migration()
    listener.until_stale("migration")
    marathon.remove(gone)
    marathon.delete("/other")
    marathon.update(kept, healthy=False)
    # Watches fire in the order of the changes: when the last is seen, the others were.
    listener.unit(f"instance/{kept}", is_healthy(False))
    assert len(listener.units()) == 4
    assert not listener.source.health().fresh
    marathon.end_migration()
    listener.until_fresh()
    assert listener.units().keys() == {"app/prod_web", f"instance/{kept}"}


def test_a_first_read_during_a_migration(marathon: Marathon, new_source: NewSource) -> None:
    marathon.publish(WEB)
    marathon.begin_migration()
    with listening(new_source()) as listener:
        listener.unit("app/prod_web")
        listener.until_stale("migration")
        marathon.end_migration()
        listener.until_fresh()


def test_another_framework_id_is_another_identity_of_every_task(
    listener: Listener, marathon: Marathon
) -> None:
    marathon.publish(WEB)
    instance_id = launch(marathon)
    listener.unit(f"instance/{instance_id}")
    path = f"{marathon.root}/state/framework-id/b/id"
    marathon.client.set(path, field(1, "another-0001"))
    listener.unit(
        f"instance/{instance_id}", lambda unit: unit.tasks[0].framework_id == "another-0001"
    )
    marathon.client.set(path, b"\xff\xff")
    assert [problem.where for problem in listener.unit(STORAGE_UNIT).problems] == [path]
    assert listener.units()[UnitId(f"instance/{instance_id}")].tasks[0].framework_id == (
        "another-0001"
    )
    marathon.client.set(path, field(1, "another-0001"))
    listener.until_gone(STORAGE_UNIT)


@pytest.mark.parametrize(
    ("version", "word"), [((111, 0, 0), "newer"), ((1, 3, 9), "older"), (None, "StoreEntry")]
)
def test_a_storage_version_that_was_not_checked_is_a_problem_and_is_read(
    listener: Listener, marathon: Marathon, version: tuple[int, int, int] | None, word: str
) -> None:
    path = f"{marathon.root}/state/internal:storage:version"
    marathon.client.set(path, storage_version(version) if version else b"\xff\xff")
    [problem] = listener.unit(STORAGE_UNIT).problems
    assert problem.where == path
    assert word in f"{problem.field} {problem.reason}"
    marathon.publish(WEB)
    assert listener.unit("app/prod_web").declares


def test_credentials(server: Server, client: KazooClient, chroot: str) -> None:
    owner = make_digest_acl("marathon", "secret", all=True)
    client.ensure_path(chroot)
    client.create(f"{chroot}/state", acl=[owner])
    stranger = MarathonSource(parse_url(server.url), root=chroot)
    with listening(stranger) as listener:
        listener.until_stale("check the credentials")
        assert stranger.snapshot() is None
    friend = MarathonSource(parse_url(f"zk://marathon:secret@{server.address}"), root=chroot)
    with listening(friend) as listener:
        assert listener.snapshot().units == {}


def test_the_origin_is_that_of_the_state(
    listener: Listener, marathon: Marathon, new_source: NewSource
) -> None:
    marathon.publish(WEB)
    first, second = launch(marathon), launch(marathon, port=31001)
    snapshot = listener.until_snapshot(lambda snapshot: len(snapshot.units) == 3)
    state = marathon.client.exists(f"{marathon.root}/state")
    assert state is not None
    assert snapshot.origin.incarnation == f"{state.czxid}:{state.ctime}"
    assert snapshot.origin.position == mzxid(marathon.client, marathon.instance_path(second))
    marathon.remove(second)
    after = listener.newer(snapshot)
    assert after.origin.incarnation == snapshot.origin.incarnation
    # The highest zxid that was ever seen is not there any more: who starts now is not behind.
    with listening(new_source()) as late:
        assert late.snapshot().origin.position >= after.origin.position
        assert late.units().keys() == {"app/prod_web", f"instance/{first}"}


# ---- containers with an address of their own -----------------------------------------------------
BRIDGE: dict[str, object] = {
    "id": "/prod/web",
    "networks": [{"mode": "container/bridge"}],
    "container": {"portMappings": [{"containerPort": 80, "labels": {"VIP_0": "/web:80"}}]},
}


def test_a_task_on_a_bridge_has_a_host_port_and_the_address_of_its_container(
    listener: Listener, marathon: Marathon
) -> None:
    marathon.publish(BRIDGE)
    instance_id = marathon.launch("/prod/web", HOST, host_ports=[31000], ips=["172.17.0.2"])
    [task] = listener.unit(f"instance/{instance_id}").tasks
    assert (task.agent_ip, task.ips) == (ip_address(HOST), (ip_address("172.17.0.2"),))
    assert task.ports == (TaskPort("tcp", 31000, "host", "", 80, (claim("web"),)),)


# ---- agents with names ---------------------------------------------------------------------------
NAME = "agent-7.example"


class Resolver:
    """Knows what the test tells it, and lets it wait until it was asked."""

    def __init__(self) -> None:
        self.address = ""
        self.asked = threading.Semaphore(0)

    def __call__(self, name: str) -> Sequence[Address]:
        assert name == NAME
        self.asked.release()
        return [ip_address(self.address)] if self.address else []

    def until_asked(self, times: int) -> None:
        for _ in range(times):
            assert self.asked.acquire(timeout=30)


@pytest.fixture
def resolver() -> Resolver:
    return Resolver()


@pytest.fixture
def resyncing(server: Server, marathon: Marathon, resolver: Resolver) -> MarathonSource:
    """A source that reads everything, and asks for every name, all the time."""
    return MarathonSource(
        parse_url(server.url), root=marathon.root, lookup=resolver, resync_seconds=0.02
    )


def test_the_name_of_an_agent_is_resolved_in_the_background(
    resyncing: MarathonSource, marathon: Marathon, resolver: Resolver
) -> None:
    marathon.publish(BRIDGE)
    first = launch(marathon, NAME)
    with listening(resyncing) as listener:
        [task] = listener.unit(f"instance/{first}").tasks
        assert task.agent_ip is None
        resolver.address = "10.0.0.7"
        listener.unit(f"instance/{first}", is_at("10.0.0.7"))
        second = launch(marathon, NAME, port=31001)
        listener.unit(f"instance/{second}", is_at("10.0.0.7"))
        resolver.address = "10.0.0.8"
        for instance_id in (first, second):
            listener.unit(f"instance/{instance_id}", is_at("10.0.0.8"))


def test_reading_everything_again_changes_nothing(
    resyncing: MarathonSource, marathon: Marathon, resolver: Resolver
) -> None:
    marathon.publish(BRIDGE)
    instance_id = launch(marathon, NAME)
    resolver.address = "10.0.0.7"
    with listening(resyncing) as listener:
        listener.unit(f"instance/{instance_id}", is_at("10.0.0.7"))
        first = listener.snapshot()
        resolver.until_asked(times=5)  # so often everything was read again
        assert listener.snapshot() is first
