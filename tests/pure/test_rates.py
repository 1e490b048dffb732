"""Rates out of two readings of counters, which may have begun anew in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import schemas
from minuteman.cli.rates import NONE, Increase, increase, rows

ZERO = schemas.Counters(
    connecting=0,
    active=0,
    attempts=0,
    successes=0,
    failures=0,
    consecutive_failures=0,
    bytes_sent=0,
    bytes_received=0,
    retransmits=0,
    connect_log2_us=(),
)
numbers = st.integers(0, 1_000)
counters = st.builds(
    schemas.Counters,
    connecting=numbers,
    active=numbers,
    attempts=numbers,
    successes=numbers,
    failures=numbers,
    consecutive_failures=numbers,
    bytes_sent=numbers,
    bytes_received=numbers,
    retransmits=numbers,
    connect_log2_us=st.just(()) | st.tuples(numbers, numbers, numbers),
)


def backend(port: int, counted: schemas.Counters, *, ejected: bool = False) -> schemas.Backend:
    return schemas.Backend(
        address="10.0.0.1",
        port=port,
        weight=1,
        tier="up",
        ejected=ejected,
        source="marathon",
        framework_id="fw",
        task_id=f"task.{port}",
        task_name=None,
        task_state=None,
        healthy=None,
        agent_id="",
        agent_address=None,
        counters=counted,
    )


def vip(name: str, *backends: schemas.Backend) -> schemas.Vip:
    return schemas.Vip(
        vip=f"{name}:80",
        protocol="tcp",
        port=80,
        names=(),
        addresses=(),
        framework="",
        affinity_seconds=0,
        backends=backends,
    )


def reading(seconds: float, *vips: schemas.Vip) -> schemas.VipList:
    return schemas.VipList(generation=1, counted_monotonic=seconds, vips=vips)


def flat(grown: Increase) -> list[int]:
    *plain, buckets = astuple(grown)
    return [*plain, *buckets]


def added(one: schemas.Counters, other: schemas.Counters) -> schemas.Counters:
    """What a backend has counted after both."""
    buckets = zip(one.connect_log2_us or (0,) * 3, other.connect_log2_us or (0,) * 3, strict=True)
    return replace(
        one,
        attempts=one.attempts + other.attempts,
        failures=one.failures + other.failures,
        bytes_sent=one.bytes_sent + other.bytes_sent,
        bytes_received=one.bytes_received + other.bytes_received,
        retransmits=one.retransmits + other.retransmits,
        connect_log2_us=tuple(this + that for this, that in buckets),
    )


@given(st.none() | counters, counters)
def test_nothing_is_ever_less_than_nothing(
    before: schemas.Counters | None, now: schemas.Counters
) -> None:
    assert min(flat(increase(before, now))) >= 0


@given(counters, counters)
def test_what_was_counted_in_between_is_the_difference(
    before: schemas.Counters, more: schemas.Counters
) -> None:
    now = added(before, more)
    assert flat(increase(before, now))[:5] == [
        more.attempts,
        more.failures,
        more.bytes_sent,
        more.bytes_received,
        more.retransmits,
    ]
    assert sum(increase(before, now).connect_log2_us) == sum(more.connect_log2_us)


@given(st.lists(counters, min_size=1, max_size=5))
def test_all_differences_amount_to_what_there_is(growth: Sequence[schemas.Counters]) -> None:
    history = [ZERO]
    for more in growth:
        history.append(added(history[-1], more))
    total = sum((increase(before, now) for before, now in pairwise(history)), NONE)
    assert total.attempts == history[-1].attempts
    assert total.connect_log2_us == history[-1].connect_log2_us


@pytest.mark.parametrize(
    "before",
    [
        None,
        replace(ZERO, attempts=8),
        replace(ZERO, bytes_sent=1),
        replace(ZERO, connect_log2_us=(0, 1)),
    ],
)
def test_counters_that_are_new_or_began_anew_tell_nothing(before: schemas.Counters | None) -> None:
    now = replace(ZERO, attempts=7, failures=3)
    assert increase(before, now) == NONE


def test_the_busiest_vip_comes_first_and_its_backends_are_added_up() -> None:
    one, other = (replace(ZERO, attempts=10, bytes_sent=1_000, active=n) for n in (1, 2))
    before = reading(
        100.0, vip("idle", backend(1, ZERO)), vip("web", backend(2, ZERO), backend(3, ZERO))
    )
    now = reading(
        104.0,
        vip("idle", backend(1, replace(ZERO, active=5))),
        vip("web", backend(2, one), backend(3, other, ejected=True)),
    )
    web, idle = rows(before, now, backends=False)
    assert (web.vip, web.backend, web.active, web.ejected) == ("web:80", "", 3, 1)
    assert web.per_second(web.increase.attempts) == 5.0
    assert web.per_second(web.increase.bytes_sent) == 500.0
    assert (idle.vip, idle.active, idle.increase) == ("idle:80", 5, NONE)


def test_each_backend_alone() -> None:
    before = reading(0.0, vip("web", backend(2, ZERO), backend(3, ZERO)))
    now = reading(
        1.0, vip("web", backend(2, ZERO), backend(3, replace(ZERO, attempts=4))), vip("empty")
    )
    found = rows(before, now, backends=True)
    assert [(row.backend, row.increase.attempts) for row in found] == [
        ("10.0.0.1:3", 4),
        ("10.0.0.1:2", 0),
    ]


def test_a_backend_of_another_vip_is_another_one() -> None:
    busy = replace(ZERO, attempts=100)
    before = reading(0.0, vip("web", backend(2, busy)))
    now = reading(1.0, vip("api", backend(2, busy)))
    (row,) = rows(before, now, backends=False)
    assert row.increase == NONE
