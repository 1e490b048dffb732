"""Killed anywhere in a plan and started again, while every VIP is connected to all the time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from minuteman.model import BackendCounters, Endpoint, Frontend
from tests.contract.fake_dataplane import Maps
from tests.kernel.fault import Host, new_host
from tests.kernel.probing import Probing, Watch
from tests.kernel.victim import Report
from tests.kernel.worlds import (
    INNERS,
    LISTENERS,
    MEMBERS,
    TARGETS,
    Desired,
    answers,
    changed,
    members_of,
    new_chance,
    random_world,
    wished,
)

MOST_LINES = 100
"""Of code for one operation: most take fewer."""

Member = tuple[Frontend, Endpoint]


@pytest.fixture
def host(pin_root: Path, tmp_path: Path) -> Iterator[Host]:
    with new_host(pin_root, tmp_path) as made:
        yield made


@pytest.fixture
def probing(host: Host, tmp_path: Path) -> Probing:
    return Probing(host.cgroup, tmp_path)


@pytest.mark.parametrize(
    "plans",
    [
        pytest.param(5, marks=pytest.mark.timeout(300)),
        pytest.param(200, marks=(pytest.mark.slow, pytest.mark.timeout(3600))),
    ],
)
def test_killed_after_any_operation_each_vip_has_its_old_or_its_new_set(
    plans: int, host: Host, probing: Probing
) -> None:
    chance = new_chance()
    world = random_world(chance)
    for _ in range(plans):
        after = changed(world, chance)
        there_and_back(host, probing, world, after, chance)
        host.complete(after)
        world = after


def there_and_back(
    host: Host, probing: Probing, world: Desired, after: Desired, chance: random.Random
) -> None:
    """Killed on the way to `after` when so many operations are done, from none on, and on the way
    back in the midst of the next one; started again each time, to complete it.
    """
    old, new = wished(world), wished(after)
    before = host.complete(world)
    stay = ids(before).keys() & members(new)

    def complete(wanted: Desired) -> None:
        found = ids(host.complete(wanted))
        assert {member: found[member] for member in stay} == {m: ids(before)[m] for m in stay}

    with probing.watch(answers(old)) as watch:
        for operations in count():
            watch.allow(answers(old, new))
            outcome = host.serve(after, operations=operations)
            complete(after)
            watch.settle(answers(new))
            watch.allow(answers(old, new))
            host.serve(world, operations=operations, lines=chance.randint(1, MOST_LINES))
            complete(world)
            watch.settle(answers(old))
            if outcome.report is not None:  # it was done before
                break
        watch.judge()
    last = host.complete(world)
    for member in stay:
        assert successes(last, member) - successes(before, member) == met(watch, member)


def ids(report: Report) -> dict[Member, int]:
    """Under which id each member of each VIP is."""
    state = report.state
    assert state is not None
    return {
        (frontend, endpoint): backend_id
        for frontend, vip in state.frontends.items()
        for endpoint, backend_id in state.members.get(vip.vip_id, {}).items()
    }


def members(maps: Maps) -> set[Member]:
    return {(vip, each.endpoint) for vip in maps.vips for each in members_of(vip, maps)}


def successes(report: Report, member: Member) -> int:
    assert report.counters is not None
    return report.counters.get(member, BackendCounters()).successes


def met(watch: Watch, member: Member) -> int:
    """How often a connection to its VIP met `member`, at its inner endpoint or at the other one."""
    frontend, endpoint = member
    target, place = TARGETS.index(frontend), MEMBERS.index(endpoint)
    return sum(watch.met[target, LISTENERS.index(at[place])] for at in (MEMBERS, INNERS))
