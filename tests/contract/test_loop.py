"""The loop with real parts inside; only the source and the maps are fakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import views
from minuteman.errors import SourceError
from minuteman.feed import Update
from minuteman.model import (
    Claims,
    Counters,
    Endpoint,
    Frontend,
    Origin,
    Problem,
    Snapshot,
    Task,
    TaskPort,
    TaskState,
    Unit,
    UnitId,
    VipClaim,
    VipKey,
    VipName,
)
from minuteman.names.home import AddressRange, HomeBook, Homes
from minuteman.reader import Published
from minuteman.reconcile.kernelstate import Limits, SwapVip
from minuteman.reconcile.loop import Loop
from minuteman.reconcile.plan import Ground
from minuteman.reconcile.store import Memory
from minuteman.reconcile.trust import QUIET_SECONDS
from minuteman.table import Table
from tests.contract.fake_dataplane import FakeDataplane, Maps, Verdict
from tests.contract.fake_source import FakeSource

HOMES = Homes(
    AddressRange.parse("11.0.0.0-11.255.255.255"),
    AddressRange.parse("fd01:c::-fd01:c::ffff:ffff:ffff:ffff"),
)
NAMES = ("web", "api", "db")
KEYS = {name: VipKey(VipName(name, "marathon"), 80, "tcp") for name in NAMES}
FRONTENDS = {
    name: Frontend(HOMES.ipv4.home(VipName(name, "marathon")), 80, "tcp") for name in NAMES
}
WEB, API, DB = (FRONTENDS[name] for name in NAMES)


def app(name: str, revision: int = 1) -> Unit:
    return Unit(UnitId(f"app/{name}"), revision, declares=(VipClaim(KEYS[name]),))


def instance(name: str, number: int, state: TaskState = "running", revision: int = 1) -> Unit:
    """A task of `name` that listens at `endpoint(name, number)`."""
    where = endpoint(name, number)
    port = TaskPort("tcp", where.port, "host", claims=(VipClaim(KEYS[name]),))
    task_id = f"{name}.{number}"
    address = where.address
    task = Task("fw", task_id, "marathon", name, "agent-1", address, (), state, None, (port,))
    return Unit(UnitId(f"instance/{task_id}"), revision, (task,))


def endpoint(name: str, number: int) -> Endpoint:
    return Endpoint(ip_address("10.0.0.1").packed, 1000 * NAMES.index(name) + number, "tcp")


def endpoints(name: str, *numbers: int) -> frozenset[Endpoint]:
    return frozenset(endpoint(name, number) for number in numbers)


def snapshot(*units: Unit, source: str = "marathon") -> Snapshot:
    """One that an earlier run saved, of the world that `FakeSource` begins with."""
    return Snapshot(source, Origin("1:1", 0), {unit.id: unit for unit in units})


class Host:
    """A loop on a host of its own, with a clock that only `step` moves."""

    def __init__(
        self,
        maps: Maps | None = None,
        memory: Memory | None = None,
        sources: Sequence[FakeSource] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.sources = sources or [FakeSource("marathon")]
        self.source = self.sources[0]
        self.dataplane = FakeDataplane(limits, maps)
        self.now = 1000.0
        self.wake = self.now
        self.published = Published()
        self.updates: list[Update] = []
        self.memories: list[Memory] = []
        self.reaps: list[float] = []
        """When backends had gone."""
        self.loop = Loop(
            sources=self.sources,
            table=Table(lambda _: None),
            book=HomeBook(HOMES),
            dataplane=self.dataplane,
            state=self.dataplane.open(),
            memory=memory or Memory(),
            publish=self.updates.append,
            remember=self.memories.append,
            reap=lambda: self.reaps.append(self.now),
            audit_seconds=60.0,
            now=self.now,
        )

    def step(self, seconds: float = 0.0) -> None:
        """Let time pass, then run one step, and read what it published as the front does."""
        self.now += seconds
        before = len(self.updates)
        self.wake = self.loop.step(self.now)
        for update in self.updates[before:]:
            assert update.generation > self.published.generation
            self.published = update.applied_to(self.published)
        assert self.published == self.loop.whole().applied_to(Published())

    def step_when_due(self) -> None:
        self.step(max(0.0, self.wake - self.now))

    @property
    def reach(self) -> dict[Frontend, frozenset[Endpoint] | Verdict]:
        return {
            frontend: self.dataplane.reachable(frontend) for frontend in self.dataplane.maps.vips
        }

    @property
    def reasons(self) -> list[str]:
        return [problem.reason for problem in self.published.problems]

    def successor(self, memory: Memory | None = None) -> Host:
        """The next agent on this host, with a source that was not read yet."""
        return Host(self.dataplane.maps, memory)


def serving(*units: Unit) -> Host:
    """A host whose kernel has these units, from a source that was read."""
    host = Host()
    host.source.read(units)
    host.step()
    return host


# ---- from a source to connections ----------------------------------------------------------------
def test_a_task_is_behind_its_vip_after_one_step() -> None:
    host = serving(app("web"), instance("web", 1), instance("web", 2))
    assert host.reach == {WEB: endpoints("web", 1, 2)}
    assert [b.task_id for b in host.published.vips[KEYS["web"]].backends] == ["web.1", "web.2"]
    assert host.published.tasks.keys() == {("fw", "web.1"), ("fw", "web.2")}


def test_an_app_scaled_to_zero_refuses_at_once_and_is_still_published() -> None:
    host = serving(app("web"), instance("web", 1))
    host.source.drop(instance("web", 1).id)
    host.step()
    assert host.reach == {WEB: Verdict.REFUSED}
    assert host.published.vips[KEYS["web"]].backends == ()
    assert host.published.tasks == {}


def test_an_app_that_is_gone_takes_its_vip_along() -> None:
    host = serving(app("web"), instance("web", 1), app("api"))
    host.source.read([app("api")])
    host.step()
    assert host.reach == {API: Verdict.REFUSED}
    assert host.published.vips.keys() == {KEYS["api"]}


def test_a_silent_source_changes_nothing_but_its_health() -> None:
    host = serving(instance("web", 1))
    host.source.silence("connection lost")
    done = len(host.dataplane.done)
    host.step(3600)
    assert host.reach == {WEB: endpoints("web", 1)}
    assert len(host.dataplane.done) == done
    assert host.published.sources["marathon"].reason == "connection lost"


def test_a_converged_loop_is_silent() -> None:
    host = serving(app("web"), instance("web", 1))
    done, updates, memories = len(host.dataplane.done), len(host.updates), len(host.memories)
    for _ in range(30):
        host.step_when_due()
    assert host.now > 1040
    assert len(host.dataplane.done) == done
    assert (len(host.updates), len(host.memories)) == (updates, memories)


def test_a_read_that_says_the_same_is_no_reason_to_write_or_to_speak() -> None:
    units = [app("web"), instance("web", 1)]
    host = serving(*units)
    done, updates = len(host.dataplane.done), len(host.updates)
    host.source.read([replace(unit, revision=2) for unit in units])
    host.step()
    assert (len(host.dataplane.done), len(host.updates)) == (done, updates)


def test_an_update_holds_what_changed_and_nothing_else() -> None:
    host = serving(instance("web", 1), instance("api", 1), instance("db", 1))
    host.source.put(instance("web", 2))
    host.source.drop(instance("db", 1).id)
    host.step()
    update = host.updates[-1]
    assert update.vips.keys() == {KEYS["web"]}
    assert update.dropped_vips == {KEYS["db"]}
    assert update.tasks.keys() == {("fw", "web.2")}
    assert update.dropped_tasks == {("fw", "db.1")}
    assert update.problems is None


def test_problems_of_the_host_are_published_and_end() -> None:
    bad = Problem("kernel", "", "unreachable_route", "It is not there.")
    host = serving(app("web"))
    host.loop.report((bad,), 0)
    host.step()
    assert host.published.problems == (bad,)
    host.loop.report((bad,), 0)
    told = len(host.updates)
    host.step()
    assert len(host.updates) == told
    host.loop.report((), 0)
    host.step()
    assert bad not in host.published.problems


def test_problems_of_units_are_published_and_end() -> None:
    bad = Problem("/marathon/state/apps/a", "", "VIP_0", "It has no port.")
    host = serving(replace(app("web"), problems=(bad,)))
    assert bad in host.published.problems
    host.source.put(app("web", 2))
    host.step()
    assert host.published.problems == ()


# ---- the first full read -------------------------------------------------------------------------
def test_what_pins_hold_stays_until_the_source_was_read_and_goes_then() -> None:
    before = serving(instance("web", 1), instance("api", 1))
    host = before.successor()
    host.step()
    host.step(3600)
    assert host.reach == before.reach
    assert host.dataplane.done == []
    assert host.loop.has_a_purpose
    host.source.read([instance("web", 1)])
    host.step()
    assert host.reach == {WEB: endpoints("web", 1)}


def test_a_restart_writes_nothing_that_is_there_already() -> None:
    units = [app("web"), instance("web", 1), instance("web", 2), instance("api", 1)]
    before = serving(*units)
    host = before.successor(before.memories[-1])
    host.step()
    host.source.read(units)
    host.step()
    assert host.dataplane.done == []
    assert host.published.vips == before.published.vips
    assert host.published.generation > before.published.generation


def test_an_unknown_address_is_refused_once_all_vips_are_known_and_not_before() -> None:
    host = Host()
    own = ip_address("11.1.2.3")
    host.loop.stand_on(Ground((ip_network("11.0.0.0/8"),), frozenset([own])))
    unknown, of_host = (Frontend(a, 7, "tcp") for a in (ip_address("11.9.9.9"), own))
    host.step()
    assert host.dataplane.reachable(unknown) is Verdict.PASSED
    host.source.read([app("web")])
    host.step()
    assert host.dataplane.reachable(unknown) is Verdict.REFUSED
    assert host.dataplane.reachable(of_host) is Verdict.PASSED
    host.loop.stand_on(Ground((ip_network("11.0.0.0/8"),)))
    host.step()
    assert host.dataplane.reachable(of_host) is Verdict.REFUSED


def test_every_source_must_have_been_read_before_anything_goes() -> None:
    before = serving(instance("web", 1), instance("api", 1))
    host = Host(before.dataplane.maps, sources=[FakeSource("marathon"), FakeSource("tasks")])
    marathon, tasks = host.sources
    marathon.read([instance("web", 2), instance("db", 1)])
    host.step()
    assert host.reach == before.reach | {DB: endpoints("db", 1)}
    tasks.read([instance("api", 2)])
    host.step()
    assert host.reach == {
        WEB: endpoints("web", 2),
        API: endpoints("api", 2),
        DB: endpoints("db", 1),
    }


def test_without_a_read_or_anything_to_serve_there_is_no_purpose() -> None:
    host = Host()
    host.step()
    assert not host.loop.has_a_purpose
    host.source.read()
    host.step()
    assert host.loop.has_a_purpose


# ---- the snapshot on disk ------------------------------------------------------------------------
def test_a_snapshot_from_disk_fills_an_empty_kernel() -> None:
    memory = Memory(7, (snapshot(instance("web", 1), instance("api", 1)),))
    host = Host(memory=memory)
    host.step()
    assert host.reach == {WEB: endpoints("web", 1), API: endpoints("api", 1)}
    assert host.loop.has_a_purpose
    assert host.published.generation > 7
    assert host.published.vips.keys() == {KEYS["web"], KEYS["api"]}


def test_a_snapshot_from_disk_neither_removes_nor_changes_what_pins_hold() -> None:
    before = serving(instance("web", 2), instance("api", 1))
    older = Memory(1, (snapshot(instance("web", 1), instance("web", 2), instance("db", 1)),))
    host = before.successor(older)
    host.step()
    assert host.reach == before.reach | {DB: endpoints("db", 1)}


def test_what_is_believed_is_remembered_and_a_file_is_not_believed() -> None:
    memory = Memory(7, (snapshot(instance("web", 1)),))
    host = Host(memory=memory)
    host.step()
    assert host.memories == []
    host.source.read([instance("web", 1), instance("web", 2)])
    host.step()
    (remembered,) = host.memories[-1].snapshots
    assert remembered.units.keys() == {"instance/web.1", "instance/web.2"}


def test_a_later_run_knows_where_each_name_lives() -> None:
    host = serving(app("web"), app("api"))
    addresses = host.memories[-1].addresses
    assert addresses == {KEYS[name].host: (FRONTENDS[name].address,) for name in ("web", "api")}


def test_a_remembered_source_that_is_not_configured_any_more_is_forgotten() -> None:
    memory = Memory(7, (snapshot(instance("web", 1), source="sdk"),))
    host = Host(memory=memory)
    host.step()
    assert host.reach == {}


# ---- another world -------------------------------------------------------------------------------
OTHER = "9:9000"


def test_a_wiped_world_takes_nothing_until_it_was_quiet() -> None:
    host = serving(app("web"), instance("web", 1), app("api"), instance("api", 1))
    host.source.replace(OTHER, app("web"), instance("web", 2))
    host.step()
    assert host.reach == {WEB: endpoints("web", 1, 2), API: endpoints("api", 1)}
    assert host.published.withheld == 3
    assert any("another root" in reason for reason in host.reasons)
    assert host.wake <= host.now + QUIET_SECONDS
    host.step(QUIET_SECONDS - 1)
    assert API in host.reach
    host.step(1)
    assert host.reach == {WEB: endpoints("web", 2)}
    assert (host.published.withheld, host.reasons) == (0, [])


def test_an_empty_world_waits_for_a_person() -> None:
    host = serving(app("web"), instance("web", 1))
    host.source.replace(OTHER)
    host.step()
    host.step(3600)
    assert host.reach == {WEB: endpoints("web", 1)}
    assert any("minuteman believe marathon" in reason for reason in host.reasons)
    host.loop.believe("marathon", host.now)
    host.step()
    assert host.reach == {}


def test_there_must_be_a_doubt_to_believe() -> None:
    host = serving(app("web"))
    with pytest.raises(SourceError, match="believed already"):
        host.loop.believe("marathon", host.now)
    with pytest.raises(SourceError, match="no source 'sdk'; there is marathon"):
        host.loop.believe("sdk", host.now)
    with pytest.raises(SourceError, match="not read yet"):
        Host().loop.believe("marathon", 0.0)


def test_without_any_memory_an_empty_world_does_not_empty_the_kernel() -> None:
    before = serving(instance("web", 1), instance("api", 1))
    host = before.successor()
    host.source.read()
    host.step()
    host.step(3600)
    assert host.reach == before.reach
    host.source.put(instance("web", 2), instance("db", 1))
    host.step()
    assert host.reach == {
        WEB: endpoints("web", 1, 2),
        API: endpoints("api", 1),
        DB: endpoints("db", 1),
    }
    host.step(QUIET_SECONDS)
    assert host.reach == {WEB: endpoints("web", 2), DB: endpoints("db", 1)}


def test_a_world_that_is_doubted_at_a_restart_only_adds() -> None:
    before = serving(instance("web", 1), instance("api", 1))
    host = before.successor(before.memories[-1])
    host.source.replace(OTHER, instance("web", 2))
    host.step()
    assert host.reach == {WEB: endpoints("web", 1, 2), API: endpoints("api", 1)}
    host.step(QUIET_SECONDS)
    assert host.reach == {WEB: endpoints("web", 2)}


def test_what_is_withheld_is_remembered_under_the_world_that_was_believed() -> None:
    host = serving(instance("web", 1))
    believed = host.memories[-1].snapshots[0].origin
    host.source.replace(OTHER, instance("web", 2))
    host.step()
    (remembered,) = host.memories[-1].snapshots
    assert remembered.origin == believed
    assert remembered.units.keys() == {"instance/web.1", "instance/web.2"}


# ---- failures ------------------------------------------------------------------------------------
@pytest.mark.parametrize("successes", range(5))
def test_after_a_failed_operation_everything_is_read_back_and_reached(successes: int) -> None:
    host = serving(instance("web", 1), instance("api", 1))
    published = host.published.vips
    host.source.read([instance("web", 2), instance("db", 1)])
    host.dataplane.fail_after = successes
    host.step()
    assert host.published.vips == published
    assert any("tried again" in reason for reason in host.reasons)
    assert host.wake == pytest.approx(host.now + 0.1)
    host.dataplane.fail_after = None
    host.step_when_due()
    assert host.reach == {WEB: endpoints("web", 2), DB: endpoints("db", 1)}
    assert host.published.vips.keys() == {KEYS["web"], KEYS["db"]}
    assert host.reasons == []


def test_while_any_operation_fails_each_vip_has_its_old_or_its_new_set() -> None:
    before = [instance("web", 1), instance("web", 2), instance("api", 1)]
    after = [instance("web", 2), instance("web", 3), instance("db", 1)]
    old, new = serving(*before).reach, serving(*after).reach
    for successes in count():
        host = serving(*before)
        published = host.published.vips
        host.source.read(after)
        host.dataplane.fail_after = successes
        host.step()
        if not host.dataplane.failed:
            break
        assert host.published.vips == published
        assert any("tried again" in reason for reason in host.reasons)
        for _ in range(3):
            for vip in FRONTENDS.values():
                now = host.dataplane.reachable(vip)
                assert now in (old.get(vip, Verdict.PASSED), new.get(vip, Verdict.PASSED))
            host.step_when_due()
        host.dataplane.fail_after = None
        host.step_when_due()
        assert host.reach == new
        assert host.published.vips.keys() == {KEYS["web"], KEYS["db"]}
        assert host.reasons == []
    assert successes > 5


def test_tries_come_later_and_later_and_news_do_not_hasten_them() -> None:
    host = serving(instance("web", 1))
    host.dataplane.fail_after = 0
    tried: list[float] = []
    while len(tried) < 9:
        host.source.put(instance("web", 2, revision=len(tried)), instance("api", 1))
        failed = host.dataplane.failed
        host.step_when_due()
        if host.dataplane.failed > failed:
            tried.append(host.now)
    waits = [round(later - earlier, 3) for earlier, later in pairwise(tried)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    host.dataplane.fail_after = None
    host.step(5.0)
    assert host.reach == {WEB: endpoints("web", 1, 2), API: endpoints("api", 1)}
    host.dataplane.fail_after = 0
    host.source.drop(instance("api", 1).id)
    host.step()
    assert host.wake == pytest.approx(host.now + 0.1)


def test_maps_that_cannot_be_read_back_are_tried_again() -> None:
    host = serving(instance("web", 1))
    host.source.put(instance("web", 2))
    host.dataplane.close()
    host.step()
    assert any("not open" in reason for reason in host.reasons)
    host.step_when_due()
    assert host.reach == {WEB: endpoints("web", 1)}
    host.dataplane.open()
    host.step_when_due()
    assert host.reach == {WEB: endpoints("web", 1, 2)}


def test_maps_that_cannot_be_audited_are_tried_again_before_anything_is_known() -> None:
    host = Host()
    host.step()
    host.dataplane.close()
    host.step(60)
    assert any("not open" in reason for reason in host.reasons)
    assert host.wake == pytest.approx(host.now + 0.1)
    host.dataplane.open()
    host.step_when_due()
    assert not any("not open" in reason for reason in host.reasons)
    assert host.wake > host.now


def test_a_vip_without_room_is_not_published_until_there_is_room() -> None:
    host = Host(limits=Limits(vips=2, slots=64, backends=64))
    host.source.read([instance("web", 1), instance("api", 1)])
    host.step()
    assert host.published.without_room == 0
    host.source.put(instance("db", 1))
    host.step()
    assert host.reach.keys() == {WEB, API}
    assert KEYS["db"] not in host.published.vips
    assert host.published.without_room == 1
    assert any("max_vips" in reason for reason in host.reasons)
    host.source.drop(instance("web", 1).id)
    host.step()
    assert host.reach == {API: endpoints("api", 1), DB: endpoints("db", 1)}
    assert host.published.vips.keys() == {KEYS["api"], KEYS["db"]}
    assert (host.published.without_room, host.reasons) == (0, [])


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (Limits(vips=8, slots=64, backends=5), "max_backends"),
        (Limits(vips=8, slots=6, backends=64), "max_slots"),
    ],
)
def test_a_vip_whose_change_has_no_room_stays_as_it_was(limits: Limits, named: str) -> None:
    host = Host(limits=limits)
    host.source.read([instance("web", 1), instance("web", 2), instance("api", 1)])
    host.step()
    before, reach = host.published.vips, host.reach
    host.source.drop(instance("web", 1).id)
    host.source.put(*(instance("web", number) for number in range(3, 7)))
    host.step()
    assert host.reach == reach == {WEB: endpoints("web", 1, 2), API: endpoints("api", 1)}
    assert host.published.vips == before
    assert host.published.without_room == 1
    assert any(named in reason for reason in host.reasons)
    assert shown_backends(host, "web") == {1, 2}
    host.source.drop(instance("api", 1).id)
    host.source.drop(instance("web", 5).id, instance("web", 6).id)
    host.step()
    host.step()
    assert host.reach == {WEB: endpoints("web", 2, 3, 4)}
    assert (host.published.without_room, host.reasons) == (0, [])
    assert shown_backends(host, "web") == {2, 3, 4}


def test_a_successor_publishes_what_the_kernel_has_of_a_vip_whose_change_has_no_room() -> None:
    limits = Limits(vips=8, slots=6, backends=64)
    host = Host(limits=limits)
    host.source.read([instance("web", 1), instance("web", 2), instance("api", 1)])
    host.step()
    host.source.drop(instance("web", 1).id)
    host.source.put(*(instance("web", number) for number in range(3, 7)))
    host.step()
    world = [instance("api", 1), *(instance("web", number) for number in range(2, 7))]
    later = Host(host.dataplane.maps, host.memories[-1], limits=limits)
    for is_read in (False, True):
        if is_read:
            later.source.read(world)
        later.step()
        assert later.reach == {WEB: endpoints("web", 1, 2), API: endpoints("api", 1)}
        shown = later.published.vips
        assert [b.task_id for b in shown[KEYS["web"]].backends] == ["", "web.2"]
        assert [b.task_id for b in shown[KEYS["api"]].backends] == ["api.1"]
        assert later.published.without_room == is_read
    later.source.drop(*(instance("web", number).id for number in range(4, 7)))
    later.step()
    assert later.reach[WEB] == endpoints("web", 2, 3)
    assert shown_backends(later, "web") == {2, 3}


def shown_backends(host: Host, name: str) -> set[int]:
    """The numbers of the backends that `/api/vips` has for a VIP."""
    shown = views.vip(host.published.vips[KEYS[name]], host.published.tasks, Counters())
    return {backend.port - 1000 * NAMES.index(name) for backend in shown.backends}


# ---- backends that have gone ---------------------------------------------------------------------
def test_who_ends_connections_is_told_when_backends_have_gone() -> None:
    host = serving(instance("web", 1), instance("web", 2))
    assert len(host.reaps) == 1  # those of earlier runs
    host.source.put(instance("web", 3))
    host.step()
    host.source.put(instance("web", 3, "killing"))
    host.step(60)
    assert len(host.reaps) == 1
    host.source.drop(instance("web", 1).id)
    host.step()
    assert len(host.reaps) == 2
    host.step(60)
    assert len(host.reaps) == 2


def test_who_ends_connections_is_not_told_before_all_backends_are_known() -> None:
    before = serving(instance("web", 1), instance("api", 1))
    host = Host(before.dataplane.maps, sources=[FakeSource("marathon"), FakeSource("tasks")])
    marathon, tasks = host.sources
    host.step()
    marathon.read([instance("web", 2)])
    host.step()
    assert host.reaps == []
    tasks.read([instance("api", 1)])
    host.step()
    assert len(host.reaps) == 1


def test_who_ends_connections_is_told_when_a_container_inside_is_replaced() -> None:
    def bridged(number: int) -> Unit:
        inner = ip_address(f"172.17.0.{number}")
        port = TaskPort("tcp", 31_000, "host", container_port=80, claims=(VipClaim(KEYS["web"]),))
        home = ip_address("10.0.0.1")
        task = Task(
            *("fw", "web.1", "marathon", "web", "agent-1", home, (inner,), "running", None, (port,))
        )
        return Unit(UnitId("instance/web.1"), number, (task,))

    host = Host()
    host.loop.stand_on(Ground((), frozenset([ip_address("10.0.0.1")])))
    host.source.read([bridged(1)])
    host.step()
    [(_, only)] = host.dataplane.maps.backends.items()
    assert only.inner is not None
    host.source.put(bridged(2))
    host.step()
    assert len(host.reaps) == 2
    host.loop.stand_on(Ground((), frozenset()))
    host.step()
    assert len(host.reaps) == 3


def test_after_a_failure_backends_may_have_gone_unnoticed() -> None:
    host = serving(instance("web", 1), instance("web", 2))
    host.dataplane.fail_after = 2
    host.source.put(instance("web", 3))
    host.step()
    assert len(host.reaps) == 1
    host.dataplane.fail_after = None
    host.step_when_due()
    assert len(host.reaps) == 2


def test_how_many_sockets_were_ended_is_published() -> None:
    host = serving(instance("web", 1))
    host.loop.report((), 3)
    host.step()
    assert host.published.sockets_ended == 3


# ---- what somebody else does ---------------------------------------------------------------------
def test_an_audit_repairs_what_somebody_else_wrote_and_counts_it() -> None:
    host = serving(instance("web", 1), instance("api", 1))
    vips = host.dataplane.maps.vips
    vips[WEB] = replace(vips[WEB], base=vips[API].base)
    del vips[API]
    vips[DB] = SwapVip(DB, 99, 0, (0, 0, 0))
    host.step(59)
    assert host.published.drift == 0
    host.step(1)
    assert host.reach == {WEB: endpoints("web", 1), API: endpoints("api", 1)}
    assert host.published.drift == 1
    host.step(60)
    assert host.published.drift == 1


@pytest.mark.parametrize("attached", [False, True])
def test_programs_that_are_not_attached_are_noticed_and_that_they_are_again(attached: bool) -> None:
    """Here nobody but somebody else can attach them."""
    host = serving(instance("web", 1))
    host.dataplane.beyond_repair = True
    for state in (not attached, attached):
        host.dataplane.maps.attached = state
        host.step(5)
    assert host.published.attached is attached
    assert bool(host.published.problems) is not attached


def test_programs_that_somebody_detached_are_attached_again() -> None:
    host = serving(instance("web", 1))
    for repairs in (1, 2):
        host.dataplane.maps.attached = False
        host.step(2)
        assert host.dataplane.maps.attached
        assert host.published.attached
        assert host.published.repairs == repairs
        assert not host.published.problems
    host.step(60)
    assert host.published.repairs == 2


def test_a_name_that_moves_takes_its_vip_along() -> None:
    class MovableBook(HomeBook):
        moved: Claims | None = None

        def claims(self) -> Claims:
            return self.moved or super().claims()

    book = MovableBook(HOMES)
    source, dataplane = FakeSource("marathon"), FakeDataplane()
    loop = Loop(
        sources=[source],
        table=Table(lambda _: None),
        book=book,
        dataplane=dataplane,
        state=dataplane.open(),
        memory=Memory(),
        publish=lambda _: None,
        remember=lambda _: None,
        reap=lambda: None,
        now=0.0,
    )
    source.read([instance("web", 1)])
    loop.step(0.0)
    assert dataplane.reachable(WEB) == endpoints("web", 1)
    address = ip_address("11.0.0.77")
    book.moved = Claims({VipName("web", "marathon"): (address,)})
    loop.step(1.0)
    assert dataplane.reachable(WEB) is Verdict.PASSED
    assert dataplane.reachable(Frontend(address, 80, "tcp")) == endpoints("web", 1)


# ---- any history ---------------------------------------------------------------------------------
units = st.one_of(
    st.builds(app, st.sampled_from(NAMES), st.integers(1, 3)),
    st.builds(
        instance,
        st.sampled_from(NAMES),
        st.integers(1, 3),
        st.sampled_from(["starting", "running", "killing", "unreachable"]),
        st.integers(1, 3),
    ),
)
reads = st.lists(units, max_size=6, unique_by=lambda unit: unit.id)


@dataclass(frozen=True)
class Read:
    units: list[Unit]


@dataclass(frozen=True)
class Fail:
    after: int


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Restart:
    with_memory: bool


events = st.one_of(
    st.builds(Read, reads),
    st.builds(Fail, st.integers(0, 6)),
    st.builds(Wait, st.sampled_from([0.0, 0.1, 5.0, 60.0])),
    st.builds(Restart, st.booleans()),
)


@given(st.lists(events, max_size=12), reads)
def test_after_any_history_the_kernel_is_as_after_one_read(
    history: list[Read | Fail | Wait | Restart], last: list[Unit]
) -> None:
    host = Host()
    for event in history:
        match event:
            case Read(found):
                host.source.read(found)
                host.step()
            case Fail(after):
                host.dataplane.fail_after = after
            case Wait(seconds):
                host.step(seconds)
            case Restart(with_memory):
                host = host.successor(host.memories[-1] if host.memories and with_memory else None)
                host.step()
    host.dataplane.fail_after = None
    world = [*last, app("web", 9)] if all(unit.id != "app/web" for unit in last) else last
    host.source.read(world)
    for _ in range(2):
        host.step(QUIET_SECONDS)
    fresh = serving(*world)
    assert host.reach == fresh.reach
    assert host.published.vips == fresh.published.vips
    assert host.published.tasks == fresh.published.tasks
