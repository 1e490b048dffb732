"""Addresses of this host, its resolvers and ZooKeeper are never literal VIPs."""

from __future__ import annotations

import threading
from ipaddress import ip_address, ip_network
from pathlib import Path

from minuteman.guard import Guard
from minuteman.model import Address
from minuteman.policy import LiteralPolicy

PATIENCE_SECONDS = 10.0
EVERYWHERE = LiteralPolicy((ip_network("0.0.0.0/0"), ip_network("::/0")))
GIVEN = ip_address("10.0.0.7")
RESOLVED = ip_address("10.0.0.8")


def lookup(name: str) -> list[Address]:
    if name != "zk.example":
        raise OSError(f"no {name}")
    return [RESOLVED]


def test_what_needs_no_resolver_is_known_at_once() -> None:
    guard = Guard(EVERYWHERE, [str(GIVEN), "zk.example"], lookup)
    assert guard.policy.forbidden[ip_address("127.0.0.1")] == "this host"
    assert guard.policy.refusal(GIVEN) == f"{GIVEN} is an address of ZooKeeper."
    assert guard.policy.refusal(RESOLVED) is None


def test_a_resolver_is_no_vip(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("search example\nnameserver 10.0.0.2\n# nameserver 10.0.0.3\nnameserver\n")
    guard = Guard(EVERYWHERE, [], lookup, conf)
    assert guard.policy.refusal(ip_address("10.0.0.2")) == "10.0.0.2 is an address of a resolver."
    assert guard.policy.refusal(ip_address("10.0.0.3")) is None
    assert Guard(EVERYWHERE, [], lookup, tmp_path / "missing").policy.refusal(GIVEN) is None


def test_names_follow_and_the_bell_says_so() -> None:
    guard, rung = Guard(EVERYWHERE, ["missing.example", "zk.example"], lookup), threading.Event()
    guard.start(rung.set, lambda: False)
    assert rung.wait(PATIENCE_SECONDS)
    guard.close()
    assert guard.policy.refusal(RESOLVED) == f"{RESOLVED} is an address of ZooKeeper."
    assert guard.policy.allowed == EVERYWHERE.allowed


def test_what_is_done_beside_rings_the_bell_when_it_has_news(tmp_path: Path) -> None:
    guard, rung = Guard(EVERYWHERE, [], lookup, tmp_path / "missing"), threading.Event()
    before = guard.policy
    guard.start(rung.set, lambda: True)
    assert rung.wait(PATIENCE_SECONDS)
    guard.close()
    assert guard.policy is before
