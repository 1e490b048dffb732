"""Changes that programs of our own make to entries, as those of connections do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minuteman.dataplane import bpf, conns
from minuteman.dataplane.carry import Carrier
from minuteman.dataplane.layout import BACKEND_STATS, CONN, REASONS, SLOT
from minuteman.model import Tier
from tests.kernel.conftest import Backends, Inside, Kernel, connect, cookie_of, counted, frontend
from tests.kernel.conftest import reasons as reasons_of
from tests.kernel.test_conns import crowded, spilled

__all__ = ["crowded"]

VIP = frontend("1.2.3.4", 5000)
CHOSEN, CONNECTING, ACTIVE = 0, 1, 2
"""Source: enum phase in maps.h."""
BACKEND_ID = 1000
"""One that no test uses."""
FAR = 2**41
"""No socket has a cookie as high as this."""


@pytest.fixture
def carrier(kernel: Kernel) -> Iterator[Carrier]:
    with Carrier.opened(kernel.where) as found:
        yield found


def read_stats(kernel: Kernel, backend_id: int) -> bytes:
    fd = bpf.open_pin(kernel.where.maps / "backend_stats")
    try:
        raw = bpf.lookup(fd, SLOT.pack(backend_id), BACKEND_STATS.size)
    finally:
        os.close(fd)
    assert raw is not None
    return raw


def stats(**fields: int) -> bytes:
    """A value of `backend_stats`."""
    return BACKEND_STATS.write({name: (value,) for name, value in fields.items()})


def given_out(cookie: int, **fields: int) -> bytes:
    """A value of `conns`."""
    values = {"backend_id": 7, "epoch": 3, "proto": 6, **fields, "cookie": cookie}
    return CONN.write({name: (value,) for name, value in values.items()})


NUMBERS = st.builds(
    lambda gauges, counters: BACKEND_STATS.pack(*gauges, 0, 0, *counters[:3], 0, *counters[3:]),
    st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3),
    st.lists(st.integers(0, 2**64 - 1), min_size=26, max_size=26),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(old=NUMBERS, new=NUMBERS)
def test_what_was_counted_elsewhere_is_added_in_however_many_steps(
    carrier: Carrier, kernel: Kernel, old: bytes, new: bytes
) -> None:
    here = read_stats(kernel, BACKEND_ID)
    nothing = bytes(BACKEND_STATS.size)
    assert carrier.add_stats(BACKEND_ID, old, nothing)
    assert carrier.add_stats(BACKEND_ID, new, old)
    assert BACKEND_STATS.difference(read_stats(kernel, BACKEND_ID), here) == new


def test_of_two_moments_the_later_one_stays(carrier: Carrier, kernel: Kernel) -> None:
    for ejected, failed in ((5, 20), (9, 10), (2, 30)):
        now = stats(ejected_until_ns=ejected, last_failure_ns=failed)
        assert carrier.add_stats(BACKEND_ID + 1, now, now)
    assert read_stats(kernel, BACKEND_ID + 1) == stats(ejected_until_ns=9, last_failure_ns=30)


def test_there_are_no_counters_of_an_id_that_there_is_not(carrier: Carrier, kernel: Kernel) -> None:
    far = kernel.state.limits.backends
    assert not carrier.add_stats(far, stats(attempts=1), stats())


def test_how_often_a_decision_was_taken_is_added_too(carrier: Carrier, kernel: Kernel) -> None:
    for _ in range(2):
        for i in range(len(REASONS)):
            assert carrier.add_reason(i, 2**40 + i)
    assert reasons_of(kernel) == {r: 2 * (2**40 + i) for i, r in enumerate(REASONS)}


@pytest.mark.parametrize("places", ["free", "taken"])
def test_what_a_socket_was_given_comes_with_it_and_goes_without_a_count(
    places: str, carrier: Carrier, kernel: Kernel, request: pytest.FixtureRequest
) -> None:
    if places == "taken":
        request.getfixturevalue("crowded")
    cookie = FAR + 77
    first = given_out(cookie, phase=CHOSEN)
    later = given_out(cookie, phase=CONNECTING, timeouts=2, abandoned=1, started_ms=9)
    another = given_out(cookie, backend_id=8, phase=ACTIVE)
    with conns.opened(kernel.where.maps) as found:
        assert carrier.keep_conn(first)
        assert found.find(cookie) == first
        assert carrier.keep_conn(later)
        assert found.find(cookie) == later
        assert not carrier.keep_conn(another)
        assert not carrier.keep_conn(given_out(cookie, epoch=4))
        assert found.find(cookie) == later
        assert spilled(kernel, found) == (places == "taken")
        assert carrier.drop_conn(cookie)
        assert found.find(cookie) is None
        assert spilled(kernel, found) == 0
        assert not carrier.drop_conn(cookie)
        assert carrier.keep_conn(another)
        assert carrier.drop_conn(cookie)
    assert not carrier.keep_conn(given_out(0))
    assert not reasons_of(kernel)


def test_a_socket_goes_on_with_what_was_brought_for_it(
    carrier: Carrier, kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    member = backends.listen()
    kernel.serve(VIP, [(member, Tier.UP)])
    with inside(cgroup), connect("1.2.3.4", 5000) as client:
        with conns.opened(kernel.where.maps) as found:
            conn = found.find(cookie_of(client))
            assert conn is not None
            assert carrier.drop_conn(cookie_of(client))
            assert client.getpeername() == ("127.0.0.1", member.port)
            assert carrier.keep_conn(conn)
        assert client.getpeername() == ("1.2.3.4", 5000)
        assert counted(kernel, member, VIP).active == 1
        assert carrier.settle(cookie_of(client))
        assert not carrier.settle(cookie_of(client))
        assert counted(kernel, member, VIP).active == 0
    assert reasons_of(kernel) == {"translated": 1, "settled": 1}
