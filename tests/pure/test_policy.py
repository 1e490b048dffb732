from ipaddress import ip_address, ip_network

import pytest

from minuteman.names.home import AddressRange
from minuteman.policy import LiteralPolicy

NAMED = (
    AddressRange.parse("11.0.0.0-11.255.255.255"),
    AddressRange.parse("fd01:c::-fd01:c::ffff:ffff:ffff:ffff"),
)


def policy(*allowed: str) -> LiteralPolicy:
    return LiteralPolicy(
        allowed=tuple(map(ip_network, allowed)),
        forbidden={ip_address("10.0.0.2"): "ZooKeeper", ip_address("fd00::2"): "this host"},
        named=NAMED,
    )


PRIVATE = policy("10.0.0.0/8", "192.168.0.0/16", "fc00::/7", "1.2.3.4/32")
EVERYTHING = policy("0.0.0.0/0", "::/0")


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.255.255", "fd02::1", "1.2.3.4"])
def test_inside_the_allowed_networks(address: str) -> None:
    assert PRIVATE.refusal(ip_address(address)) is None


@pytest.mark.parametrize("address", ["8.8.8.8", "1.2.3.5", "192.169.0.0", "2001:db8::1"])
def test_outside_the_allowed_networks(address: str) -> None:
    reason = PRIVATE.refusal(ip_address(address))
    assert reason == f"{address} is in none of the networks that are allowed for literal VIPs."
    assert EVERYTHING.refusal(ip_address(address)) is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("0.0.0.1", "0.0.0.0/8"),
        ("127.0.0.1", "127.0.0.0/8"),
        ("127.255.0.1", "127.0.0.0/8"),
        ("169.254.169.254", "169.254.0.0/16"),
        ("224.0.0.1", "224.0.0.0/4"),
        ("239.255.255.255", "224.0.0.0/4"),
        ("255.255.255.255", "255.255.255.255/32"),
        ("::", "::/128"),
        ("::1", "::1/128"),
        ("::ffff:10.0.0.1", "::ffff:0:0/96"),
        ("fe80::1", "fe80::/10"),
        ("ff02::1", "ff00::/8"),
    ],
)
def test_never_whatever_is_allowed(address: str, network: str) -> None:
    assert EVERYTHING.refusal(ip_address(address)) == f"No VIP can be in {network}."


@pytest.mark.parametrize("rules", [PRIVATE, EVERYTHING])
def test_never_a_machine_of_the_cluster(rules: LiteralPolicy) -> None:
    assert rules.refusal(ip_address("10.0.0.2")) == "10.0.0.2 is an address of ZooKeeper."
    assert rules.refusal(ip_address("fd00::2")) == "fd00::2 is an address of this host."


@pytest.mark.parametrize("address", ["11.0.0.0", "11.255.255.255", "fd01:c::1"])
def test_a_network_that_reaches_over_a_named_range_allows_nothing_there(address: str) -> None:
    for rules in (PRIVATE, EVERYTHING):
        reason = rules.refusal(ip_address(address))
        assert reason is not None
        assert "in the range of named VIPs" in reason
    assert EVERYTHING.reserved == ()


def test_a_network_inside_a_named_range_is_set_aside_for_literal_vips() -> None:
    rules = policy("11.9.0.0/16", "fd01:c::7/128", "10.0.0.0/8")
    assert rules.reserved == (ip_network("11.9.0.0/16"), ip_network("fd01:c::7/128"))
    assert rules.refusal(ip_address("11.9.1.2")) is None
    assert rules.refusal(ip_address("fd01:c::7")) is None
    assert rules.refusal(ip_address("11.8.1.2")) is not None
