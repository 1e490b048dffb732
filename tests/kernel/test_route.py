"""The routes that end the way to named VIPs, in the sandbox's network namespace.

There is a way out here, to nowhere: without such a route a SYN would leave, and nobody answer.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from minuteman.barrier import Barrier
from minuteman.dataplane import sockets
from minuteman.dataplane.sockets import set_unreachable, unreachable_networks
from minuteman.model import Tier
from tests.kernel.conftest import Backends, Inside, Kernel, family_of, frontend, who_answers

RANGES = (ip_network("11.0.0.0/8"), ip_network("fd01:c::/64"))
UNCLAIMED = ("11.2.3.4", "fd01:c::204", "::ffff:11.2.3.4")
OUT = "out"

FORWARDING6 = "ipv6/conf/all/forwarding"

CONNECT = """
import errno, socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as client:
    client.settimeout(5)
    try:
        print(errno.errorcode[client.connect_ex((sys.argv[1], 80))])
    except TimeoutError:
        print("nothing")
"""
"""Says what a connection ends with."""

both_kinds = pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])


def ip(*lines: str) -> None:
    """Run lines of ip(8)."""
    text = "".join(f"{line}\n" for line in lines)
    subprocess.run(["ip", "-batch", "-"], input=text, encoding="ascii", check=True)


def routes(version: int, *words: str) -> list[str]:
    """What ip(8) says of the routes of an IP version."""
    command = ["ip", f"-{version}", "route", "show", *words]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()


@pytest.fixture(autouse=True)
def way_out() -> Iterator[None]:
    """Default routes, and no route of ours, before and after."""
    ip(
        f"link add {OUT} arp off type veth peer name beyond",
        f"address add 192.0.2.1/32 dev {OUT}",
        f"address add 2001:db8::1/128 dev {OUT} nodad",
        f"link set {OUT} up",
        "link set beyond up",
        f"route add default dev {OUT} src 192.0.2.1",
        f"route add ::/0 dev {OUT}",
    )
    yield
    ip(f"link delete {OUT}")
    set_unreachable(())
    assert unreachable_networks() == frozenset()


def outcome(address: str, kind: int = socket.SOCK_STREAM) -> int:
    """What connect() ends with at once; for TCP EINPROGRESS when a SYN was sent, for UDP 0."""
    with socket.socket(family_of(address), kind) as client:
        client.setblocking(False)
        return client.connect_ex((address, 80))


@both_kinds
@pytest.mark.parametrize("address", UNCLAIMED)
def test_there_is_no_way_to_an_address_of_the_ranges(address: str, kind: int) -> None:
    assert outcome(address, kind) in (0, errno.EINPROGRESS)
    set_unreachable(RANGES)
    assert outcome(address, kind) == errno.EHOSTUNREACH
    assert outcome("12.0.0.1", kind) in (0, errno.EINPROGRESS)
    set_unreachable(())
    assert outcome(address, kind) in (0, errno.EINPROGRESS)


def test_a_datagram_to_there_is_not_sent() -> None:
    set_unreachable(RANGES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        with pytest.raises(OSError, match="No route to host"):
            client.sendto(b"?", ("11.2.3.4", 53))
        assert client.sendto(b"?", ("12.2.3.4", 53)) == 1


@pytest.mark.parametrize(
    ("vip", "address"),
    [("11.1.2.3", "11.1.2.3"), ("11.1.2.3", "::ffff:11.1.2.3"), ("fd01:c::7", "fd01:c::7")],
)
def test_who_is_served_gets_a_backend_and_others_are_told(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside, vip: str, address: str
) -> None:
    set_unreachable(RANGES)
    member = backends.listen("127.0.0.1" if ip_address(vip).version == 4 else "::1")
    kernel.serve(frontend(vip, 80), [(member, Tier.UP)])
    with inside(cgroup):
        assert who_answers(address, 80) == member.port
    assert outcome(address) == errno.EHOSTUNREACH


@pytest.fixture
def routed() -> Iterator[list[str]]:
    """The start of a command that runs where this host is the router."""
    ip(
        "netns add routed",
        "link add to-routed type veth peer name eth0 netns routed",
        "address add 192.0.2.9/31 dev to-routed",
        "address add 2001:db8::9/127 dev to-routed nodad",
        "link set to-routed up",
    )
    inside = ["ip", "-netns", "routed", "-batch", "-"]
    lines = (
        "address add 192.0.2.8/31 dev eth0",
        "address add 2001:db8::8/127 dev eth0 nodad",
        "link set eth0 up",
        "route add default via 192.0.2.9",
        "route add ::/0 via 2001:db8::9",
    )
    subprocess.run(inside, input="\n".join(lines), encoding="ascii", check=True)
    switches = [Path(f"/proc/sys/net/{name}") for name in ("ipv4/ip_forward", FORWARDING6)]
    for switch in switches:
        switch.write_text("1", encoding="ascii")
    yield ["ip", "netns", "exec", "routed"]
    for switch in switches:
        switch.write_text("0", encoding="ascii")
    ip("link delete to-routed", "netns delete routed")


@pytest.mark.parametrize(
    ("address", "error"), [("11.2.3.4", "EHOSTUNREACH"), ("fd01:c::204", "ENETUNREACH")]
)
def test_a_client_that_this_host_routes_for_is_told(
    routed: list[str], address: str, error: str
) -> None:
    set_unreachable(RANGES)
    command = [*routed, sys.executable, "-I", "-S", "-c", CONNECT, address]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert said.strip() == error


@pytest.mark.parametrize("address", ["11.5.5.5", "fd01:c::55"])
def test_an_address_of_this_host_inside_a_range_can_be_reached(
    backends: Backends, address: str
) -> None:
    set_unreachable(RANGES)
    ip(
        f"address add {address} dev {OUT} nodad"
        if ":" in address
        else f"address add {address} dev lo"
    )
    try:
        member = backends.listen(address)
        assert who_answers(address, member.port) == member.port
    finally:
        ip(f"address delete {address} dev {OUT if ':' in address else 'lo'}")


@pytest.mark.parametrize("metric", ["", "metric 1000000", f"metric {2**32 - 2}"])
@pytest.mark.parametrize(
    ("version", "network", "address"),
    [(4, "11.0.0.0/8", "11.2.3.4"), (6, "fd01:c::/64", "fd01:c::204")],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_route_of_an_operator_goes_before_and_is_left_alone(
    is_first: bool, version: int, network: str, address: str, metric: str
) -> None:
    theirs = f"route add {network} dev {OUT} {metric}"
    if is_first:
        ip(theirs)
    set_unreachable(RANGES)
    if not is_first:
        ip(theirs)
    assert outcome(address) == errno.EINPROGRESS
    set_unreachable(())
    assert outcome(address) == errno.EINPROGRESS
    [route] = routes(version, network)
    assert f"dev {OUT}" in route


@pytest.mark.parametrize(("version", "network"), [(4, "11.0.0.0/8"), (6, "fd01:c::/64")])
def test_a_route_of_an_operator_with_our_metric_is_left_in_place(
    version: int, network: str
) -> None:
    ip(f"route add {network} dev {OUT} metric {2**32 - 1}")
    before = routes(version)
    set_unreachable(RANGES)
    set_unreachable(())
    assert routes(version) == before


@pytest.mark.parametrize(
    ("more_specific", "inside", "beside"),
    [("11.7.0.0/16", "11.7.0.1", "11.8.0.1"), ("fd01:c::7:0/112", "fd01:c::7:1", "fd01:c::8:1")],
)
def test_a_part_of_a_range_can_be_routed(more_specific: str, inside: str, beside: str) -> None:
    set_unreachable(RANGES)
    ip(f"route add {more_specific} dev {OUT}")
    assert outcome(inside) == errno.EINPROGRESS
    assert outcome(beside) == errno.EHOSTUNREACH


def test_unreachable_routes_of_others_are_left_alone() -> None:
    ip("route add unreachable 11.9.0.0/16", "route add unreachable fd01:c::9:0/112 metric 5")
    set_unreachable(RANGES)
    assert unreachable_networks() == set(RANGES)
    set_unreachable(())
    assert len(routes(4, "type", "unreachable")) == len(routes(6, "type", "unreachable")) == 1
    ip("route delete unreachable 11.9.0.0/16", "route delete unreachable fd01:c::9:0/112")


def test_what_is_there_is_not_made_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    set_unreachable(RANGES)
    before = routes(4), routes(6)
    assert len(caplog.records) == len(RANGES)
    set_unreachable(RANGES)
    assert (routes(4), routes(6)) == before
    assert len(caplog.records) == len(RANGES)


def test_other_ranges_take_the_place_of_the_last_ones() -> None:
    set_unreachable(RANGES)
    others = [ip_network("12.0.0.0/30"), ip_network("12.0.0.4/31"), RANGES[1]]
    set_unreachable(others)
    assert unreachable_networks() == set(others)
    assert outcome("11.2.3.4") == errno.EINPROGRESS
    assert outcome("12.0.0.5") == errno.EHOSTUNREACH


def test_where_there_is_no_ipv6_its_route_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sockets, "IF_INET6", tmp_path / "missing")
    caplog.set_level(logging.DEBUG, sockets.__name__)
    set_unreachable(RANGES)
    assert unreachable_networks() == {RANGES[0]}
    assert routes(6, "type", "unreachable") == []
    assert caplog.records[0].levelno == logging.DEBUG
    assert "fd01:c::/64" in caplog.text


# ---- kept by the agent ---------------------------------------------------------------------------
def test_what_somebody_removes_is_put_back() -> None:
    barrier = Barrier(RANGES)
    assert not barrier.keep()
    ip("route flush table main proto 109")
    assert unreachable_networks() == {RANGES[1]}
    assert not barrier.keep()
    assert unreachable_networks() == set(RANGES)


def test_once_lifted_it_stays_so() -> None:
    barrier = Barrier(RANGES)
    barrier.keep()
    barrier.lift()
    assert unreachable_networks() == frozenset()
    assert not barrier.keep()
    assert unreachable_networks() == frozenset()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the capabilities of root."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_failure_is_a_problem_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "minuteman.barrier")
    barrier = Barrier(RANGES)
    with as_nobody():
        assert barrier.keep()
        assert not barrier.keep()
    [problem] = barrier.problems
    assert os.strerror(errno.EPERM) in problem.reason
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert barrier.keep()
    assert barrier.problems == ()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert unreachable_networks() == set(RANGES)
