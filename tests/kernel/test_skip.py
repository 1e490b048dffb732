"""Cgroups that are left alone: in them, a VIP is an address like any other.

A VIP is at an address without a route, so who is left alone is told that the network is unreachable
where others get a backend, or are refused.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from lab.sandbox import remove_cgroup
from minuteman.dataplane.cgroup import cgroup2_mount, find_cgroup
from minuteman.dataplane.layout import CGROUP_LEVELS, SKIPS
from minuteman.dataplane.maps import Maps
from minuteman.dataplane.netns import netns_cookie
from minuteman.errors import DataplaneError
from minuteman.model import Endpoint, Tier
from minuteman.reconcile.kernelstate import Owner, PutPrefix
from tests.kernel.churn import reset_on_close
from tests.kernel.conftest import (
    LIMITS,
    Backends,
    Inside,
    Kernel,
    connect,
    family_of,
    frontend,
)

PORT = 5000
EMPTY = 5001
"""A VIP without a backend."""
UNKNOWN = 5002
"""No VIP, at an address that is for VIPs alone."""
LEFT_ALONE = errno.ENETUNREACH

_numbers = count()


@dataclass(frozen=True, slots=True)
class Way:
    """One of the families, as a program meets it."""

    address: str
    vip: str
    home: str

    @property
    def family(self) -> int:
        return family_of(self.address)


IPV4 = Way("1.2.3.4", "1.2.3.4", "127.0.0.1")
IPV6 = Way("fd00::7", "fd00::7", "::1")
MAPPED = Way("::ffff:1.2.3.4", "1.2.3.4", "127.0.0.1")


@pytest.fixture(params=[IPV4, IPV6, MAPPED], ids=["ipv4", "ipv6", "mapped"])
def way(request: pytest.FixtureRequest) -> Way:
    assert isinstance(request.param, Way)
    return request.param


@pytest.fixture
def served(kernel: Kernel, backends: Backends, way: Way) -> Kernel:
    """TCP and UDP at `PORT` with one backend, at `EMPTY` without."""
    member = backends.listen(way.home)
    datagrams = Endpoint(member.address_packed, member.port, "udp")
    kernel.serve(frontend(way.vip, PORT), [(member, Tier.UP)])
    kernel.serve(frontend(way.vip, PORT, "udp"), [(datagrams, Tier.UP)])
    kernel.serve(frontend(way.vip, EMPTY), [])
    kernel.serve(frontend(way.vip, EMPTY, "udp"), [])
    kernel.apply(PutPrefix(ip_network(way.vip), Owner.VIPS))
    return kernel


class Below(Protocol):
    def __call__(self, place: str) -> Path: ...


@pytest.fixture
def below(cgroup: Path) -> Iterator[Below]:
    """Makes cgroups below the one that is served, all of them in one of the test's own."""
    top = cgroup / f"skip-{next(_numbers)}"

    def make(place: str) -> Path:
        (top / place).mkdir(parents=True, exist_ok=True)
        return top / place

    yield make
    remove_cgroup(top)


def skip(kernel: Kernel, *cgroups: Path) -> None:
    kernel.dataplane.skip([number for path in cgroups if (number := find_cgroup(path))])


def outcomes(way: Way) -> dict[str, int]:
    """What each kind of call ends with; 0 is a backend."""
    return {
        f"{call} {port}": _errno(way, port, call)
        for call in ("tcp connect", "udp connect", "udp sendto")
        for port in (PORT, EMPTY, UNKNOWN)
    }


def _errno(way: Way, port: int, call: str) -> int:
    kind = socket.SOCK_STREAM if call.startswith("tcp") else socket.SOCK_DGRAM
    with socket.socket(way.family, kind) as client:
        try:
            if call == "udp sendto":
                client.sendto(b"?", (way.address, port))
            else:
                client.connect((way.address, port))
        except OSError as exc:
            return exc.errno or 0
    return 0


SERVED = {
    f"{call} {port}": 0 if port == PORT else errno.ECONNREFUSED
    for call in ("tcp connect", "udp connect", "udp sendto")
    for port in (PORT, EMPTY, UNKNOWN)
}
ALONE = dict.fromkeys(SERVED, LEFT_ALONE)


@pytest.mark.parametrize("place", ["a", "a/b", "a/b/c/d"])
def test_whoever_is_in_a_skipped_cgroup_or_below_is_left_alone(
    served: Kernel, way: Way, below: Below, inside: Inside, place: str
) -> None:
    where = below(place)
    with inside(where):
        assert outcomes(way) == SERVED
        skip(served, below("a"))
        before = served.dataplane.counters().reasons
        assert outcomes(way) == ALONE
        assert served.dataplane.counters().reasons == before
        skip(served)
        assert outcomes(way) == SERVED


@pytest.mark.parametrize("place", [".", "a/b", "a/beside"])
def test_whoever_is_above_or_beside_a_skipped_cgroup_is_served(
    served: Kernel, way: Way, below: Below, inside: Inside, place: str
) -> None:
    skip(served, below("a/b/c"), below("other"))
    with inside(below(place)):
        assert outcomes(way) == SERVED


@pytest.mark.parametrize("way", [IPV4], ids=["ipv4"])
def test_as_deep_as_is_allowed(
    served: Kernel, way: Way, cgroup: Path, below: Below, inside: Inside
) -> None:
    above = len(below(".").relative_to(cgroup2_mount()).parts)
    deepest = below("/".join("deep" for _ in range(CGROUP_LEVELS - 1 - above)))
    assert len(deepest.relative_to(cgroup2_mount()).parts) == CGROUP_LEVELS - 1
    skip(served, deepest)
    with inside(deepest):
        assert outcomes(way) == ALONE
    with inside(deepest.parent):
        assert outcomes(way) == SERVED
    (deepest / "deeper").mkdir()
    with inside(deepest / "deeper"):
        assert outcomes(way) == ALONE


def test_a_process_is_judged_by_where_it_is_now(
    served: Kernel, way: Way, below: Below, inside: Inside
) -> None:
    skip(served, below("a"))
    with inside(below("b")):
        assert outcomes(way) == SERVED
    with inside(below("a")):
        assert outcomes(way) == ALONE
    with inside(below("b")):
        assert outcomes(way) == SERVED


def test_of_two_that_are_skipped_one_is_enough(
    served: Kernel, way: Way, below: Below, inside: Inside
) -> None:
    parent, child = below("a"), below("a/b")
    with inside(child):
        for skipped, expected in (
            ((parent, child), ALONE),
            ((parent,), ALONE),
            ((child,), ALONE),
            ((), SERVED),
        ):
            skip(served, *skipped)
            assert outcomes(way) == expected


def test_the_one_that_is_attached_to_can_be_skipped(
    served: Kernel, way: Way, cgroup: Path, below: Below, inside: Inside
) -> None:
    skip(served, cgroup)
    with inside(below("a")):
        assert outcomes(way) == ALONE


def test_sockets_made_before_are_left_alone_from_then_on_and_connections_go_on(
    served: Kernel, way: Way, below: Below, inside: Inside
) -> None:
    with (
        inside(below("a")),
        socket.socket(way.family) as early,
        socket.socket(way.family, socket.SOCK_DGRAM) as early_udp,
        socket.socket(way.family, socket.SOCK_DGRAM) as sender,
        connect(way.address, PORT) as connected,
    ):
        sender.sendto(b"?", (way.address, PORT))
        skip(served, below("a"))
        assert early.connect_ex((way.address, PORT)) == LEFT_ALONE
        with pytest.raises(OSError, match="Network is unreachable"):
            early_udp.sendto(b"?", (way.address, PORT))
        assert connected.getpeername()[:2] == (way.address, PORT)
        assert len(connected.recv(2, socket.MSG_WAITALL)) == 2
        assert sender.sendto(b"?", (way.address, PORT)) == 1  # it has its backend
        skip(served)
        assert early.connect_ex((way.address, PORT)) == 0
        assert early_udp.sendto(b"?", (way.address, PORT)) == 1


def test_a_connection_of_one_that_is_left_alone_is_counted_down(
    kernel: Kernel, backends: Backends, below: Below, inside: Inside
) -> None:
    vip = frontend("1.2.3.4", PORT)
    member = backends.listen()
    kernel.serve(vip, [(member, Tier.UP)])

    def active() -> int:
        return kernel.dataplane.counters().by_vip_backend[vip, member].active

    with inside(below("a")), connect("1.2.3.4", PORT) as client:
        assert active() == 1
        skip(kernel, below("a"))
        reset_on_close(client)
        client.close()
        assert active() == 0


@pytest.mark.parametrize("way", [IPV4], ids=["ipv4"])
def test_the_next_agent_leaves_the_same_alone_before_it_is_told(
    served: Kernel, way: Way, below: Below, inside: Inside
) -> None:
    skip(served, below("a"))
    successor = Maps.open(served.where.maps, LIMITS)
    try:
        successor.set_host(netns_cookie())
        with inside(below("a")):
            assert outcomes(way) == ALONE
    finally:
        successor.close()


def test_as_many_as_there_is_room_for_can_be_skipped(kernel: Kernel) -> None:
    kernel.dataplane.skip(range(1, SKIPS + 1))
    kernel.dataplane.skip(range(SKIPS + 1, 2 * SKIPS + 1))
    with pytest.raises(DataplaneError):
        kernel.dataplane.skip(range(1, SKIPS + 2))
