from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from random import Random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minuteman.labels import parse_vip
from minuteman.model import (
    Address,
    Backend,
    Claims,
    Endpoint,
    Frontend,
    Origin,
    Problem,
    Snapshot,
    Task,
    TaskPort,
    TaskState,
    Tier,
    Transport,
    Unit,
    UnitId,
    Vip,
    VipClaim,
    VipKey,
    VipName,
)
from minuteman.names.home import AddressRange, HomeBook, Homes
from minuteman.table import Change, Identity, Place, Refusal, Table
from tests.pure import strategies as small

ORIGIN = Origin("1:1", 1)
WEB = VipName("web", "marathon")
WEB_ADDRESS = IPv4Address("11.0.0.7")
WEB_ADDRESS6 = IPv6Address("fd01:c::7")
NO_CLAIMS = Claims()
CLAIMS = Claims({WEB: (WEB_ADDRESS, WEB_ADDRESS6)})


def allow(_address: Address) -> None:
    return None


def vip(text: str) -> VipKey:
    return parse_vip(text, "tcp", "marathon")


def port(
    number: int,
    *labels: str,
    container: bool = False,
    transport: Transport = "tcp",
    behind: int | None = None,
) -> TaskPort:
    claims = tuple(VipClaim(parse_vip(label, transport, "marathon")) for label in labels)
    scope: Literal["host", "container"] = "container" if container else "host"
    return TaskPort(transport, number, scope, container_port=behind, claims=claims)


def task(
    task_id: str,
    *ports: TaskPort,
    agent: str | None = "10.0.0.1",
    ips: Sequence[str] = (),
    state: TaskState = "running",
    healthy: bool | None = None,
    framework: str = "marathon",
) -> Task:
    return Task(
        framework_id="f1",
        id=task_id,
        framework=framework,
        name="web",
        agent_id="a1",
        agent_ip=ip_address(agent) if agent else None,
        ips=tuple(map(ip_address, ips)),
        state=state,
        healthy=healthy,
        ports=ports,
    )


def snapshot(*units: Unit, source: str = "marathon", lost: Sequence[str] = ()) -> Snapshot:
    lost_agents = frozenset(map(ip_address, lost))
    return Snapshot(source, ORIGIN, {unit.id: unit for unit in units}, lost_agents)


def unit(unit_id: str, *tasks: Task, revision: int = 1, declares: Sequence[str] = ()) -> Unit:
    claims = tuple(VipClaim(vip(label)) for label in declares)
    return Unit(UnitId(unit_id), revision, tasks, claims)


def told(*units: Unit, lost: Sequence[str] = (), claims: Claims = CLAIMS) -> Change:
    """What a new table makes of these units."""
    return Table(allow).update([snapshot(*units, lost=lost)], claims)


def members(found: Vip) -> list[tuple[str, int, str, Tier, int]]:
    return [
        (str(b.endpoint.address), b.endpoint.port, b.task_id, b.tier, b.weight)
        for b in found.backends
    ]


def reasons(change: Change) -> list[str]:
    return [problem.reason for problems in change.problems.values() for problem in problems]


# ---- which endpoints ----------------------------------------------------------------------------
def test_a_host_port_is_reached_at_its_agent() -> None:
    change = told(unit("i1", task("t1", port(31001, "/web:80"), ips=["9.0.0.1"])))
    assert change.vips == {
        vip("web:80"): Vip(
            key=vip("web:80"),
            frontends=(Frontend(WEB_ADDRESS, 80, "tcp"),),
            backends=(
                Backend(
                    Endpoint(IPv4Address("10.0.0.1").packed, 31001, "tcp"),
                    weight=1,
                    tier=Tier.UP,
                    source="marathon",
                    framework_id="f1",
                    task_id="t1",
                    agent_id="a1",
                ),
            ),
            framework="marathon",
        )
    }
    assert change.problems == {}


def test_a_container_port_is_reached_at_each_address_of_the_task() -> None:
    ips = ["9.0.0.1", "fd00::1", "9.0.0.1"]
    change = told(unit("i1", task("t1", port(8080, "/web:80", container=True), ips=ips)))
    assert members(change.vips[vip("web:80")]) == [
        ("9.0.0.1", 8080, "t1", Tier.UP, 1),
        ("fd00::1", 8080, "t1", Tier.UP, 1),
    ]


# Source: validate_backend_ip of dcos-net, with IPv6 enabled.
@pytest.mark.parametrize(
    ("label", "address", "fits"),
    [
        ("web:80", "10.0.0.1", True),
        ("web:80", "fd00::1", True),
        ("1.2.3.4:80", "10.0.0.1", True),
        ("1.2.3.4:80", "fd00::1", False),
        ("fd02::4:80", "10.0.0.1", False),
        ("fd02::4:80", "fd00::1", True),
    ],
)
@pytest.mark.parametrize("container", [True, False])
def test_the_family_rule(label: str, address: str, fits: bool, container: bool) -> None:
    server = task("t1", port(80, label, container=container), agent=address, ips=[address])
    change = told(unit("i1", server))
    assert len(change.vips[vip(label)].backends) == fits
    assert change.problems.keys() == (set() if fits else {("marathon", "i1")})
    for found in change.problems.get(("marathon", UnitId("i1")), ()):
        assert (found.where, found.subject) == ("marathon/i1", "t1")
        assert address in found.reason


def test_a_literal_vip_takes_what_fits_and_leaves_the_rest_without_a_problem() -> None:
    server = task("t1", port(80, "1.2.3.4:80", container=True), ips=["fd00::1", "9.0.0.1"])
    change = told(unit("i1", server))
    assert members(change.vips[vip("1.2.3.4:80")]) == [("9.0.0.1", 80, "t1", Tier.UP, 1)]
    assert change.problems == {}


@pytest.mark.parametrize("container", [True, False])
def test_a_task_without_an_address_costs_only_itself(container: bool) -> None:
    lost = task("t1", port(80, "/web:80", container=container), port(81), agent=None)
    good = task("t2", port(31001, "/web:80"))
    change = told(unit("i1", lost), unit("i2", good))
    assert members(change.vips[vip("web:80")]) == [("10.0.0.1", 31001, "t2", Tier.UP, 1)]
    [problem] = change.problems["marathon", UnitId("i1")]
    assert (problem.subject, problem.field) == ("t1", "ips" if container else "agent_ip")
    assert "no address" in problem.reason


def test_two_transports_are_two_vips() -> None:
    dns = task("t1", port(53, "/dns:53"), port(53, "/dns:53", transport="udp"))
    change = told(unit("i1", dns))
    assert {(key.transport, len(found.backends)) for key, found in change.vips.items()} == {
        ("tcp", 1),
        ("udp", 1),
    }


def test_an_endpoint_is_one_backend_of_a_vip_however_often_it_is_named() -> None:
    weighted = TaskPort("tcp", 80, "host", claims=(VipClaim(vip("web:80"), weight=7),))
    server = task("t1", port(80, "/web:80", "web:80"), weighted, port(80, "db:80"))
    change = told(unit("i1", server))
    assert members(change.vips[vip("web:80")]) == [("10.0.0.1", 80, "t1", Tier.UP, 7)]
    assert members(change.vips[vip("db:80")]) == [("10.0.0.1", 80, "t1", Tier.UP, 1)]
    assert change.problems == {}


def test_backends_are_sorted_by_endpoint() -> None:
    agents = ["10.0.0.9", "10.0.0.10", "9.255.0.1"]
    units = [
        unit(f"i{n}", task(f"t{n}", port(31001, "/web:80"), agent=agent))
        for n, agent in enumerate(agents)
    ]
    found = told(*units).vips[vip("web:80")]
    assert [str(b.endpoint.address) for b in found.backends] == sorted(
        agents, key=lambda text: ip_address(text).packed
    )


def only_backend(change: Change) -> Backend:
    [found] = change.vips.values()
    [backend] = found.backends
    return backend


@pytest.mark.parametrize(
    ("agent", "ips", "behind", "inner"),
    [
        ("10.0.0.1", ["172.17.0.2"], 8080, "172.17.0.2"),
        ("10.0.0.1", ["172.17.0.2", "172.18.0.2"], 8080, "172.17.0.2"),
        ("10.0.0.1", ["fd00::2", "10.0.0.1", "172.17.0.2"], 8080, "172.17.0.2"),
        ("fd00::1", ["172.17.0.2", "fd00::2"], 8080, "fd00::2"),
        ("10.0.0.1", ["172.17.0.2"], None, None),
        ("10.0.0.1", ["172.17.0.2"], 0, None),
        ("10.0.0.1", ["10.0.0.1"], 8080, None),
        ("10.0.0.1", ["fd00::2"], 8080, None),
        ("10.0.0.1", [], 8080, None),
    ],
)
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_where_the_container_listens_behind_a_host_port(
    agent: str, ips: list[str], behind: int | None, inner: str | None, transport: Transport
) -> None:
    mapped = port(31001, "/web:80", behind=behind, transport=transport)
    backend = only_backend(told(unit("i1", task("t1", mapped, agent=agent, ips=ips))))
    assert backend.endpoint == Endpoint(ip_address(agent).packed, 31001, transport)
    assert backend.inner == (Endpoint(ip_address(inner).packed, 8080, transport) if inner else None)


def test_a_container_port_has_nothing_behind_it() -> None:
    own = port(8080, "/web:80", container=True, behind=80)
    assert only_backend(told(unit("i1", task("t1", own, ips=["9.0.0.1"])))).inner is None


def test_two_containers_that_listen_at_the_same_address_are_two_backends() -> None:
    """Networks of containers are each host's own: their addresses mean nothing to the others."""
    units = [
        unit(
            f"i{n}", task(f"t{n}", port(31001, "/web:80", behind=80), agent=agent, ips=["9.0.0.1"])
        )
        for n, agent in enumerate(("10.0.0.1", "10.0.0.2"))
    ]
    change = told(*units)
    [found] = change.vips.values()
    assert [backend.task_id for backend in found.backends] == ["t0", "t1"]
    assert len({backend.inner for backend in found.backends}) == 1
    assert change.problems == {}


# ---- how good they are --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("state", "healthy", "tier", "weight"),
    [
        ("running", None, Tier.UP, 1),
        ("running", True, Tier.UP, 1),
        ("running", False, Tier.DRAINING, 0),
        ("unreachable", None, Tier.MAYBE, 1),
        ("unreachable", True, Tier.MAYBE, 1),
        ("unreachable", False, Tier.MAYBE, 1),
        ("killing", None, Tier.DRAINING, 0),
        ("killing", True, Tier.DRAINING, 0),
        ("killing", False, Tier.DRAINING, 0),
    ],
)
def test_tiers(state: TaskState, healthy: bool | None, tier: Tier, weight: int) -> None:
    server = task("t1", port(31001, "/web:80"), state=state, healthy=healthy)
    change = told(unit("i1", server))
    assert members(change.vips[vip("web:80")]) == [("10.0.0.1", 31001, "t1", tier, weight)]


def test_a_starting_task_asks_but_does_not_serve() -> None:
    change = told(unit("i1", task("t1", port(31001, "/web:80"), agent=None, state="starting")))
    assert change.vips[vip("web:80")].backends == ()
    assert change.vips[vip("web:80")].frontends == (Frontend(WEB_ADDRESS, 80, "tcp"),)
    assert change.problems == {}
    assert change.tasks.keys() == {("f1", "t1")}


def test_weight_0_is_draining() -> None:
    asked = TaskPort("tcp", 80, "host", claims=(VipClaim(vip("web:80"), weight=0),))
    change = told(unit("i1", task("t1", asked)))
    assert members(change.vips[vip("web:80")]) == [("10.0.0.1", 80, "t1", Tier.DRAINING, 0)]


def test_a_lost_agent_demotes_its_tasks_and_its_return_promotes_them() -> None:
    units = (
        unit("i1", task("t1", port(1, "/web:80"))),
        unit("i2", task("t2", port(2, "/web:80"), healthy=False)),
        unit("i3", task("t3", port(3, "/web:80"), agent="10.0.0.3")),
    )
    tiers = {1: Tier.UP, 2: Tier.DRAINING, 3: Tier.UP}
    table = Table(allow)

    def tell(*lost: str) -> dict[int, Tier]:
        change = table.update([snapshot(*units, lost=lost)], CLAIMS)
        return {b.endpoint.port: b.tier for b in change.vips[vip("web:80")].backends}

    assert tell() == tiers
    assert tell("10.0.0.1") == tiers | {1: Tier.MAYBE}
    assert tell("10.0.0.1", "10.0.0.3") == tiers | {1: Tier.MAYBE, 3: Tier.MAYBE}
    assert tell("10.0.0.3") == tiers | {3: Tier.MAYBE}
    assert tell() == tiers


def test_an_agent_is_lost_to_the_source_that_says_so() -> None:
    first = snapshot(unit("i1", task("t1", port(1, "/web:80"))), lost=["10.0.0.1"])
    second = snapshot(unit("i1", task("t2", port(2, "/web:80"))), source="other")
    change = Table(allow).update([first, second], CLAIMS)
    assert members(change.vips[vip("web:80")]) == [
        ("10.0.0.1", 1, "t1", Tier.MAYBE, 1),
        ("10.0.0.1", 2, "t2", Tier.UP, 1),
    ]


# ---- whose endpoint it is -----------------------------------------------------------------------
def test_a_reused_address_belongs_to_the_fresher_task() -> None:
    stale = unit("i1", task("t1", port(31001, "/web:80")), revision=5)
    fresh = unit("i2", task("t2", port(31001, "/db:80")), revision=6)
    change = told(stale, fresh)
    assert change.vips[vip("web:80")].backends == ()
    assert members(change.vips[vip("db:80")]) == [("10.0.0.1", 31001, "t2", Tier.UP, 1)]
    [problem] = [p for problems in change.problems.values() for p in problems]
    assert (problem.where, problem.subject) == ("marathon/i1", "t1")
    assert problem.reason == "tcp 10.0.0.1:31001 now belongs to a fresher task, t2."


def test_all_but_the_freshest_are_told_in_their_order() -> None:
    units = [unit(f"i{n}", task(f"t{n}", port(31001, "/web:80")), revision=n) for n in range(1, 10)]
    change = told(*reversed(units))
    assert [b.task_id for b in change.vips[vip("web:80")].backends] == ["t9"]
    [problems] = change.problems.values()
    assert [problem.subject for problem in problems] == [f"t{n}" for n in range(1, 9)]


def test_who_loses_one_endpoint_again_costs_no_other_that_it_lost() -> None:
    stale = unit("i1", task("t1", port(1, "/web:80"), port(2, "/web:80")), revision=1)
    one = unit("i2", task("t2", port(1, "/web:80")), revision=2)
    two = unit("i3", task("t3", port(2, "/web:80")), revision=2)
    table = Table(allow)
    table.update([snapshot(stale, one, two)], CLAIMS)
    again = replace(one, revision=3, tasks=(replace(one.tasks[0], healthy=True),))
    change = table.update([snapshot(stale, again, two)], CLAIMS)
    assert [b.task_id for b in change.vips[vip("web:80")].backends] == ["t2", "t3"]


def test_a_task_without_labels_takes_an_address_over_and_gives_it_back() -> None:
    stale = unit("i1", task("t1", port(31001, "/web:80")), revision=5)
    table = Table(allow)
    table.update([snapshot(stale)], CLAIMS)
    taken = table.update([snapshot(stale, unit("i2", task("t2", port(31001)), revision=6))], CLAIMS)
    assert taken.dirty == {vip("web:80")}
    assert taken.vips[vip("web:80")].backends == ()
    assert len(reasons(taken)) == 1
    back = table.update([snapshot(stale)], CLAIMS)
    assert len(back.vips[vip("web:80")].backends) == 1
    assert back.problems_changed
    assert back.problems == {}


@pytest.mark.parametrize("state", ["unreachable", "killing"])
def test_giving_a_task_up_does_not_make_it_fresher(state: TaskState) -> None:
    given_up = unit("i1", task("t1", port(31001, "/web:80"), state=state), revision=9)
    runs = unit("i2", task("t2", port(31001, "/web:80")), revision=6)
    change = told(given_up, runs)
    assert members(change.vips[vip("web:80")]) == [("10.0.0.1", 31001, "t2", Tier.UP, 1)]


def test_a_starting_task_takes_nothing_over() -> None:
    runs = unit("i1", task("t1", port(31001, "/web:80")), revision=5)
    starts = unit("i2", task("t2", port(31001, "/web:80"), state="starting"), revision=6)
    assert [b.task_id for b in told(runs, starts).vips[vip("web:80")].backends] == ["t1"]


def test_a_task_in_two_units_is_what_the_fresher_one_says() -> None:
    old = unit("i1", task("t1", port(1, "/web:80")), revision=5)
    new = unit("i2", task("t1", port(2, "/db:80")), revision=6)
    table = Table(allow)
    change = table.update([snapshot(old, new)], CLAIMS)
    assert change.vips.keys() == {vip("db:80")}
    assert change.tasks == {("f1", "t1"): new.tasks[0]}
    change = table.update([snapshot(old)], CLAIMS)
    assert change.vips.keys() == {vip("web:80")}
    assert change.tasks_changed == {("f1", "t1"): old.tasks[0]}
    assert change.tasks_gone == frozenset()


# ---- which VIPs there are -----------------------------------------------------------------------
def test_a_declared_vip_exists_without_a_task_and_after_the_last_one() -> None:
    app = unit("app/web", declares=["/web:80", "1.2.3.4:80"])
    table = Table(allow)
    before = table.update([snapshot(app)], CLAIMS)
    assert {key: found.backends for key, found in before.vips.items()} == {
        vip("web:80"): (),
        vip("1.2.3.4:80"): (),
    }
    assert before.vips[vip("web:80")].frontends == (Frontend(WEB_ADDRESS, 80, "tcp"),)
    instance = unit("i1", task("t1", port(31001, "/web:80")))
    during = table.update([snapshot(app, instance)], CLAIMS)
    assert during.dirty == {vip("web:80")}
    after = table.update([snapshot(app)], CLAIMS)
    assert after.dirty == {vip("web:80")}
    assert after.vips.keys() == {vip("web:80"), vip("1.2.3.4:80")}


def test_a_vip_that_nobody_asks_for_is_gone() -> None:
    table = Table(allow)
    table.update([snapshot(unit("i1", task("t1", port(31001, "/web:80"))))], CLAIMS)
    change = table.update([snapshot()], CLAIMS)
    assert change.dirty == {vip("web:80")}
    assert change.vips == {}
    assert change.tasks == {}
    assert change.tasks_gone == {("f1", "t1")}
    assert table.names() == {}


def test_a_source_that_is_no_longer_given_is_gone() -> None:
    table = Table(allow)
    mine = snapshot(unit("i1", task("t1", port(1, "/web:80"))))
    other = snapshot(unit("i1", task("t2", port(2, "/web:80"))), source="other")
    table.update([mine, other], CLAIMS)
    change = table.update([mine], CLAIMS)
    assert [b.task_id for b in change.vips[vip("web:80")].backends] == ["t1"]
    assert change.tasks_gone == {("f1", "t2")}


def test_the_framework_is_that_of_the_tasks_by_its_raw_name() -> None:
    app = unit("app/web", declares=["/web:80", "1.2.3.4:80"])
    assert {found.framework for found in told(app).vips.values()} == {"marathon", ""}
    labels = port(1, "/web:80", "1.2.3.4:80")
    change = told(app, unit("i1", task("t1", labels, framework="Marathon!")))
    assert {found.framework for found in change.vips.values()} == {"Marathon!"}


def test_affinity_is_the_longest_that_is_asked_for() -> None:
    def asking(task_id: str, number: int, *seconds: int) -> Unit:
        claims = tuple(VipClaim(vip("web:80"), affinity_seconds=wish) for wish in seconds)
        return unit(task_id, task(task_id, TaskPort("tcp", number, "host", claims=claims)))

    for units in (
        [asking("t1", 1, 0), asking("t2", 2, 30), asking("t3", 3, 9)],
        [asking("t1", 1, 0, 30, 9)],
    ):
        assert told(*units).vips[vip("web:80")].affinity_seconds == 30


def test_apps_that_share_a_vip_keep_their_weights_and_get_the_longest_affinity() -> None:
    def app(name: str, number: int, weight: int, seconds: int) -> list[Unit]:
        claims = (VipClaim(vip("web:80"), weight, seconds),)
        server = task(name, TaskPort("tcp", number, "host", claims=claims))
        return [Unit(UnitId(f"app/{name}"), 1, declares=claims), unit(f"instance/{name}", server)]

    one, two, three = app("one", 1, 10, 30), app("two", 2, 20, 300), app("three", 3, 0, 0)
    table = Table(allow)

    def tell(*units: Unit) -> tuple[int, list[tuple[int, Tier]]]:
        found = table.update([snapshot(*units)], CLAIMS).vips[vip("web:80")]
        return found.affinity_seconds, [(b.weight, b.tier) for b in found.backends]

    all_three = [(10, Tier.UP), (20, Tier.UP), (0, Tier.DRAINING)]
    assert tell(*one, *two, *three) == (300, all_three)
    assert tell(*one, *three, two[0]) == (300, [all_three[0], all_three[2]])
    assert tell(*one, *three) == (30, [all_three[0], all_three[2]])
    assert tell(*three) == (0, [all_three[2]])


def test_problems_of_a_unit_are_passed_on() -> None:
    found = Problem("/marathon/state/apps/0/web", "VIP_0", "labels", "It has no port.")
    change = told(replace(unit("app/web", declares=["/web:80"]), problems=(found,)))
    assert change.problems == {("marathon", "app/web"): (found,)}
    assert change.vips.keys() == {vip("web:80")}


# ---- where they are -----------------------------------------------------------------------------
def test_a_name_has_an_ipv6_frontend_only_with_an_ipv6_backend() -> None:
    table = Table(allow)
    four = unit("i1", task("t1", port(80, "/web:80", container=True), ips=["9.0.0.1"]))
    six = unit("i2", task("t2", port(80, "/web:80", container=True), ips=["fd00::1"]))
    change = table.update([snapshot(four)], CLAIMS)
    assert [f.address for f in change.vips[vip("web:80")].frontends] == [WEB_ADDRESS]
    assert table.names() == {WEB: (4,)}
    change = table.update([snapshot(four, six)], CLAIMS)
    frontends = change.vips[vip("web:80")].frontends
    assert [f.address for f in frontends] == [WEB_ADDRESS, WEB_ADDRESS6]
    assert table.names() == {WEB: (4, 6)}
    change = table.update([snapshot(four)], CLAIMS)
    assert [f.address for f in change.vips[vip("web:80")].frontends] == [WEB_ADDRESS]


def test_all_ports_of_a_name_have_its_address() -> None:
    change = told(unit("app/web", declares=["/web:80", "web:443"]))
    assert {f for found in change.vips.values() for f in found.frontends} == {
        Frontend(WEB_ADDRESS, 80, "tcp"),
        Frontend(WEB_ADDRESS, 443, "tcp"),
    }


def test_names_are_the_same_object_while_they_are_the_same() -> None:
    table = Table(allow)
    app = unit("app/web", declares=["/web:80"])
    table.update([snapshot(app)], NO_CLAIMS)
    names = table.names()
    table.update([snapshot(app, unit("i1", task("t1", port(1, "/web:80"))))], CLAIMS)
    assert table.names() is names


def test_a_name_that_waits_has_no_frontend_and_says_why() -> None:
    app = unit("app/web", declares=["/web:80"])
    table = Table(allow)
    waiting = Claims(waiting={WEB: "Its home address is taken."})
    change = table.update([snapshot(app)], waiting)
    assert change.vips[vip("web:80")].frontends == ()
    assert change.problems == {
        vip("web:80"): (
            Problem(
                "marathon/app/web", str(vip("web:80")), "address", "Its home address is taken."
            ),
        )
    }
    change = table.update([snapshot(app)], CLAIMS)
    assert change.dirty == {vip("web:80")}
    assert change.problems == {}


def test_names_settle_in_two_updates() -> None:
    homes = Homes(
        AddressRange.parse("11.0.0.0-11.0.0.254"),
        AddressRange.parse("fd01:c::-fd01:c::ffff:ffff:ffff:ffff"),
    )
    book, table = HomeBook(homes), Table(allow)
    sources = [
        snapshot(
            Unit(UnitId("foo"), 1, declares=(VipClaim(parse_vip("/foo:80", "tcp", "bar")),)),
            Unit(UnitId("baz"), 1, declares=(VipClaim(parse_vip("/baz:80", "tcp", "qux")),)),
        )
    ]
    first = table.update(sources, book.claims())
    book.want(table.names())
    second = table.update(sources, book.claims())
    assert first.dirty == second.dirty == second.vips.keys()
    addresses = {str(f.address) for found in second.vips.values() for f in found.frontends}
    assert addresses == {"11.0.0.37", "11.0.0.39"}


# ---- literal VIPs that are refused --------------------------------------------------------------
def test_a_refused_literal_is_no_vip_and_costs_no_other() -> None:
    server = task("t1", port(31001, "8.8.8.8:53", "/web:80"))
    table = Table(lambda address: f"{address} is not allowed.")
    change = table.update([snapshot(unit("i1", server), unit("i2", server))], CLAIMS)
    assert change.vips.keys() == {vip("web:80")}
    assert len(change.vips[vip("web:80")].backends) == 1
    assert change.problems == {
        vip("8.8.8.8:53"): (
            Problem("marathon/i2", "8.8.8.8:53", "address", "8.8.8.8 is not allowed."),
        )
    }


def test_another_policy_judges_literals_again() -> None:
    table = Table(allow)
    sources = [snapshot(unit("app/web", declares=["1.2.3.4:80", "/web:80"]))]
    table.update(sources, CLAIMS)
    table.obey(lambda address: f"{address} is not allowed.")
    change = table.update(sources, CLAIMS)
    assert change.dirty == {vip("1.2.3.4:80")}
    assert change.vips.keys() == {vip("web:80")}
    table.obey(allow)
    assert table.update(sources, CLAIMS).vips.keys() == {vip("web:80"), vip("1.2.3.4:80")}


def test_the_address_of_an_agent_is_no_vip_while_a_task_is_there() -> None:
    app = unit("app/web", declares=["10.0.0.2:80"])
    there = unit("i1", task("t1", agent="10.0.0.2", state="starting"))
    table = Table(allow)
    assert table.update([snapshot(app)], CLAIMS).vips.keys() == {vip("10.0.0.2:80")}
    change = table.update([snapshot(app, there)], CLAIMS)
    assert change.vips == {}
    assert change.dirty == {vip("10.0.0.2:80")}
    assert reasons(change) == ["10.0.0.2 is the address of an agent."]
    assert table.update([snapshot(app)], CLAIMS).vips.keys() == {vip("10.0.0.2:80")}


# ---- what an update looks at --------------------------------------------------------------------
def test_only_touched_units_are_read_when_the_serial_follows() -> None:
    table = Table(allow)
    first = snapshot(unit("i1", task("t1", port(1, "/web:80"))), unit("i2"))
    table.update([replace(first, serial=3)], CLAIMS)
    second = snapshot(unit("i2", task("t2", port(2, "/db:80"))))
    touched = frozenset({UnitId("i2")})
    change = table.update([replace(second, serial=4, touched=touched)], CLAIMS)
    assert change.vips.keys() == {vip("web:80"), vip("db:80")}  # i1 was not looked at


@pytest.mark.parametrize(("before", "after"), [(3, 5), (3, 3), (3, 1), (0, 1)])
def test_all_units_are_compared_when_the_serial_does_not_follow(before: int, after: int) -> None:
    table = Table(allow)
    first = snapshot(unit("i1", task("t1", port(1, "/web:80"))), unit("i2"))
    table.update([replace(first, serial=before)], CLAIMS)
    second = snapshot(unit("i2", task("t2", port(2, "/db:80"))))
    touched = frozenset({UnitId("i2")})
    change = table.update([replace(second, serial=after, touched=touched)], CLAIMS)
    assert change.vips.keys() == {vip("db:80")}


def test_the_same_input_changes_nothing() -> None:
    table = Table(allow)
    sources = [snapshot(unit("i1", task("t1", port(1, "/web:80", "8.8.8.8:53"))))]
    first = table.update(sources, CLAIMS)
    before = dict(first.vips)
    again = table.update(sources, CLAIMS)
    rebuilt = table.update([replace(sources[0], units=dict(sources[0].units))], replace(CLAIMS))
    for change in (again, rebuilt):
        assert change.dirty == frozenset()
        assert change.tasks_changed == {}
        assert change.tasks_gone == frozenset()
        assert not change.problems_changed
        assert all(found is before[key] for key, found in change.vips.items())


# ---- laws ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class World:
    """The whole input of an update."""

    snapshots: tuple[Snapshot, ...]
    claims: Claims
    refusal: Refusal


@dataclass(frozen=True)
class State:
    """All that a table says of a world."""

    vips: Mapping[VipKey, Vip]
    tasks: Mapping[Identity, Task]
    problems: Mapping[Place, tuple[Problem, ...]]
    names: Mapping[VipName, tuple[int, ...]]


def state_of(table: Table, change: Change) -> State:
    return State(dict(change.vips), dict(change.tasks), dict(change.problems), dict(table.names()))


def computed(world: World) -> State:
    """What a table that was never fed before says."""
    table = Table(world.refusal)
    return state_of(table, table.update(world.snapshots, world.claims))


def refuse(_address: Address) -> str:
    return "Not today."


UNIT_IDS = tuple(map(UnitId, ("u1", "u2", "u3")))
SOURCES = ("marathon", "other")
claims_of_names = st.builds(
    Claims,
    addresses=st.dictionaries(
        st.sampled_from(small.NAMES),
        st.sampled_from(((WEB_ADDRESS,), (WEB_ADDRESS, WEB_ADDRESS6))),
    ),
    waiting=st.dictionaries(st.sampled_from(small.NAMES), st.sampled_from(("Taken.", "Full."))),
)


@st.composite
def worlds(draw: st.DrawFn, before: World | None = None) -> World:
    """Any world; after another one, differing from it in some units, agents, claims or rules."""
    latest = {last.source: last for last in before.snapshots} if before else {}
    for source in draw(st.sets(st.sampled_from(SOURCES), min_size=1)):
        last = latest.get(source, Snapshot(source, ORIGIN, {}))
        touched = draw(st.sets(st.sampled_from(UNIT_IDS), min_size=not before))
        units = {key: value for key, value in last.units.items() if key not in touched}
        for unit_id in touched:
            if found := draw(st.none() | small.units(unit_id)):
                units[unit_id] = found
        latest[source] = replace(
            last,
            units=units,
            lost_agents=draw(st.frozensets(st.sampled_from(small.AGENTS), max_size=1)),
            serial=last.serial + draw(st.integers(1, 2)),
            touched=draw(st.sampled_from((None, frozenset(touched)))),
        )
    if before and len(latest) == 2 and draw(st.booleans()):
        del latest[draw(st.sampled_from(SOURCES))]
    claims = draw(claims_of_names | st.just(before.claims) if before else claims_of_names)
    return World(tuple(latest.values()), claims, draw(st.sampled_from((allow, refuse))))


@st.composite
def histories(draw: st.DrawFn) -> list[World]:
    """Worlds that follow one another."""
    history = [draw(worlds())]
    for _ in range(draw(st.integers(0, 3))):
        history.append(draw(worlds(history[-1])))
    return history


@settings(max_examples=50)
@given(histories())
def test_after_any_history_it_is_what_a_new_table_computes(history: list[World]) -> None:
    table = Table(allow)
    before = State({}, {}, {}, {})
    for world in history:
        table.obey(world.refusal)
        change = table.update(world.snapshots, world.claims)
        now = state_of(table, change)
        assert now == computed(world)

        keys = before.vips.keys() | now.vips.keys()
        assert change.dirty == {k for k in keys if before.vips.get(k) != now.vips.get(k)}
        assert all(now.vips[k] is before.vips[k] for k in now.vips.keys() - change.dirty)
        assert change.tasks_gone == before.tasks.keys() - now.tasks.keys()
        assert change.tasks_changed == {
            k: found for k, found in now.tasks.items() if before.tasks.get(k) != found
        }
        assert change.problems_changed == (before.problems != now.problems)
        before = now


@settings(max_examples=50)
@given(st.lists(st.sampled_from(UNIT_IDS).flatmap(small.contenders), max_size=8))
def test_tasks_that_contend_for_endpoints_one_change_at_a_time(changes: list[Unit]) -> None:
    table = Table(allow)
    world = World((Snapshot("marathon", ORIGIN, {}),), CLAIMS, allow)
    for found in changes:
        [last] = world.snapshots
        units = {**last.units, found.id: found}
        world = replace(world, snapshots=(replace(last, units=units),))
        change = table.update(world.snapshots, world.claims)
        assert state_of(table, change) == computed(world)


@given(worlds(), st.randoms(use_true_random=False))
def test_no_order_of_units_or_sources_matters(world: World, random: Random) -> None:
    shuffled = []
    for given_snapshot in world.snapshots:
        units = list(given_snapshot.units.items())
        random.shuffle(units)
        shuffled.append(replace(given_snapshot, units=dict(units)))
    random.shuffle(shuffled)
    assert computed(replace(world, snapshots=tuple(shuffled))) == computed(world)


@given(worlds())
def test_what_is_behind_a_host_port_decides_nothing(world: World) -> None:
    bare = computed(replace(world, snapshots=tuple(map(without_container_ports, world.snapshots))))
    state = computed(world)
    assert (state.problems, state.names) == (bare.problems, bare.names)
    assert bare.vips == {
        key: replace(found, backends=tuple(replace(b, inner=None) for b in found.backends))
        for key, found in state.vips.items()
    }


def without_container_ports(given_snapshot: Snapshot) -> Snapshot:
    def bare(found: Task) -> Task:
        ports = tuple(replace(listening, container_port=None) for listening in found.ports)
        return replace(found, ports=ports)

    units = {
        unit_id: replace(found, tasks=tuple(map(bare, found.tasks)))
        for unit_id, found in given_snapshot.units.items()
    }
    return replace(given_snapshot, units=units)


# The rules once more, written down without any regard to cost.


@dataclass(frozen=True)
class Said:
    """What one unit says of a task."""

    source: str
    unit: Unit
    task: Task
    lost: bool

    @property
    def tier(self) -> Tier:
        if self.task.state == "unreachable":
            return Tier.MAYBE
        if self.task.state == "killing" or self.task.healthy is False:
            return Tier.DRAINING
        return Tier.MAYBE if self.lost else Tier.UP

    @property
    def age(self) -> tuple[int, str]:
        return self.unit.revision, f"{self.source}/{self.unit.id}"

    @property
    def evidence(self) -> tuple[bool, int, int, str, str]:
        revision, where = self.age
        runs = self.task.state == "running" and self.tier is not Tier.MAYBE
        return runs, revision, -self.tier, where, self.task.id

    def endpoints(self) -> list[tuple[Endpoint, TaskPort]]:
        return [
            (Endpoint(address.packed, listening.number, listening.transport), listening)
            for listening in self.task.ports
            for address in (
                self.task.ips if listening.scope == "container" else [self.task.agent_ip]
            )
            if address is not None and self.task.state != "starting"
        ]

    def inner(self, listening: TaskPort) -> Endpoint | None:
        agent_ip, container_port = self.task.agent_ip, listening.container_port
        if listening.scope == "container" or agent_ip is None or not container_port:
            return None
        own = [ip for ip in self.task.ips if ip != agent_ip and ip.version == agent_ip.version]
        return Endpoint(own[0].packed, container_port, listening.transport) if own else None


def everything_said(world: World) -> list[Said]:
    return [
        Said(s.source, found, claimant, claimant.agent_ip in s.lost_agents)
        for s in world.snapshots
        for found in s.units.values()
        for claimant in {claimant.id: claimant for claimant in found.tasks}.values()
    ]


def asked(world: World, tasks: Collection[Said]) -> dict[VipKey, int]:
    """Each VIP that there is, with its affinity."""
    agents = {one.task.agent_ip for one in everything_said(world)}
    units = [found for s in world.snapshots for found in s.units.values()]
    claims = {claim for found in units for claim in found.declares}
    claims |= {claim for one in tasks for p in one.task.ports for claim in p.claims}
    return {
        claim.key: claim.affinity_seconds
        for claim in sorted(claims, key=lambda claim: claim.affinity_seconds)
        if isinstance(host := claim.key.host, VipName)
        or (host not in agents and world.refusal(host) is None)
    }


@given(worlds())
def test_the_vips_are_those_that_the_rules_name(world: World) -> None:
    newest = sorted(everything_said(world), key=lambda one: one.age)
    tasks = {one.task.id: one for one in newest}.values()
    owners: dict[Endpoint, Said] = {}
    for one in sorted(tasks, key=lambda one: one.evidence):
        owners |= {endpoint: one for endpoint, _ in one.endpoints()}
    affinities = asked(world, tasks)
    expected: dict[VipKey, dict[Endpoint, tuple[str, Tier, int, Endpoint | None]]] = {
        key: {} for key in affinities
    }
    for one in tasks:
        for endpoint, listening in one.endpoints():
            for claim in listening.claims if owners[endpoint] is one else ():
                host = claim.key.host
                fits = isinstance(host, VipName) or host.version == endpoint.address.version
                if not fits or claim.key not in expected:
                    continue
                tier = one.tier if claim.weight else Tier.DRAINING
                weight = 0 if tier is Tier.DRAINING else claim.weight
                there = expected[claim.key].get(endpoint)
                if there is None or there[2] < weight:
                    inner = one.inner(listening)
                    expected[claim.key][endpoint] = one.task.id, tier, weight, inner

    vips = computed(world).vips
    assert {key: found.affinity_seconds for key, found in vips.items()} == affinities
    assert {
        key: {b.endpoint: (b.task_id, b.tier, b.weight, b.inner) for b in found.backends}
        for key, found in vips.items()
    } == expected
