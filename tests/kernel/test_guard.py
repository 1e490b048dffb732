"""The addresses of this host, as they come and go while an agent runs."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest

from minuteman.dataplane.sockets import local_addresses
from minuteman.guard import Guard
from minuteman.policy import LiteralPolicy

PATIENCE_SECONDS = 10.0
EVERYWHERE = LiteralPolicy((ip_network("0.0.0.0/0"),))
LATE = IPv4Address("10.79.0.1")


@contextmanager
def address_of_this_host(address: IPv4Address) -> Iterator[None]:
    """`address` is on the loopback while the block runs."""
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"], check=True)


@pytest.mark.parametrize("zookeeper", [[], [str(LATE)]], ids=["alone", "zookeeper"])
def test_an_address_that_this_host_gets_late_is_its_own_from_then_on(zookeeper: list[str]) -> None:
    guard, rung = Guard(EVERYWHERE, zookeeper, resolv_conf=Path("/missing")), threading.Event()
    before = guard.policy
    assert LATE not in guard.local
    with address_of_this_host(LATE):
        guard.start(rung.set, lambda: False)
        assert rung.wait(PATIENCE_SECONDS)
        guard.close()
    assert guard.policy is not before
    assert LATE in guard.local


@pytest.mark.parametrize(
    ("own", "peer"), [("10.79.1.1", "10.79.1.2/32"), ("fd79::1", "fd79::2/128")], ids=["v4", "v6"]
)
def test_of_a_link_with_two_ends_only_the_near_one_is_this_hosts(own: str, peer: str) -> None:
    address = [own, "peer", peer, "dev", "lo"]
    subprocess.run(["ip", "address", "add", *address], check=True)
    try:
        found = local_addresses()
    finally:
        subprocess.run(["ip", "address", "delete", *address], check=True)
    assert ip_address(own) in found
    assert ip_network(peer).network_address not in found
