"""The grammar of VIP labels; the successor's reading of each value is in the comments."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minuteman.errors import ModelError
from minuteman.labels import QUOTED_CHARACTERS, parse_vip, read_labels
from minuteman.model import Address, Transport, VipClaim, VipKey, VipName
from tests.pure.strategies import literal_addresses, ports, transports, vip_names


def vip(host: str, port: int, framework: str = "marathon", transport: Transport = "tcp") -> VipKey:
    """`host` is an address if it can be one."""
    address: Address | VipName
    try:
        address = ip_address(host)
    except ValueError:
        address = VipName(host, framework)
    return VipKey(address, port, transport)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1.2.3.4:80", vip("1.2.3.4", 80)),
        ("1.2.3.4:5000", vip("1.2.3.4", 5000)),
        ("fd01:c::1:80", vip("fd01:c::1", 80)),
        ("[fd01:c::1]:80", vip("fd01:c::1", 80)),  # a name there, fd01c1
        ("::1:80", vip("::1", 80)),
        ("[::ffff:1.2.3.4]:80", vip("1.2.3.4", 80)),
        ("::ffff:1.2.3.4:80", vip("1.2.3.4", 80)),
        ("/web:80", vip("web", 80)),
        ("web:80", vip("web", 80)),  # a VIP of its own there, beside /web
        ("/group/app:80", vip("groupapp", 80)),
        ("/api.hello-world:80", vip("api.hello-world", 80)),
        ("merp:5000", vip("merp", 5000)),
        ("invalid-port::1234", vip("invalid-port", 1234)),
        ("Web_Server:80", vip("web-server", 80)),
        ("$$.foo:80", vip("foo", 80)),
        ("/1.2.3.4:80", VipKey(VipName("1.2.3.4", "marathon"), 80, "tcp")),
        ("1.2:80", VipKey(VipName("1.2", "marathon"), 80, "tcp")),
        ("web:1", vip("web", 1)),
        ("web:65535", vip("web", 65535)),
        ("web:00080", vip("web", 80)),
    ],
)
def test_values(value: str, expected: VipKey) -> None:
    assert parse_vip(value, "tcp", "marathon") == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("foo", "no port"),
        ("", "no port"),
        ("foo:", "''"),
        ("foo:0", "'0' is not a number from 1 to 65535"),
        ("foo:70000", "'70000' is not a number from 1 to 65535"),
        ("foo:65536", "'65536'"),
        ("foo:-1", "'-1'"),
        ("foo:+80", "'+80'"),  # 80 there
        ("foo:http", "'http'"),
        ("foo:0x50", "'0x50'"),
        ("foo:80 ", "'80 '"),
        ("foo: 80", "' 80'"),
        ("foo:8_0", "'8_0'"),
        ("foo:000080", "'000080'"),
        ("foo:\u0668\u0660", "is not a number"),
        ("foo:" + 5000 * "9", "is not a number"),
        (":80", "no letter or digit"),  # the empty name there
        ("/:80", "no letter or digit"),
        ("...:80", "no letter or digit"),
        ("$$$:80", "no letter or digit"),
        ("-:80", "no letter or digit"),
        ("[web]:80", "'[web]' is not an IPv6 address in brackets"),
        ("[1.2.3.4]:80", "in brackets"),
        ("[fd01:c::1:80", "in brackets"),
        ("[]:80", "in brackets"),
        ("fe80::1%eth0:80", "zone"),
        ("[fe80::1%eth0]:80", "zone"),
        ("1.2.3.400:80", "'1.2.3.400' is not an IPv4 address"),
        ("1.2.3.04:80", "not an IPv4 address"),
        ("1..2.3:80", "not an IPv4 address"),
        ("tcp://1.2.3.4:80", "scheme"),
        ("tcp://1.:423", "scheme"),
        ("tcp://", "'//' is not a number"),
        ("://", "'//' is not a number"),
        (".".join(4 * ["a" * 63]) + ":80", "longer than 253 octets"),
    ],
)
def test_values_that_are_no_vip(value: str, reason: str) -> None:
    claims, [problem] = read_labels({"VIP_0": value}, "tcp", "marathon")
    assert claims == ()
    assert problem.label == "VIP_0"
    assert reason in problem.reason
    assert problem.reason.endswith(".")


def test_the_longest_name_fits() -> None:
    framework = "f" * 63
    room = 253 - len(f".{framework}.l4lb.thisdcos.directory")
    longest = ".".join(["a" * 63, "b" * 63, "c" * (room - 128)])
    key = parse_vip(f"{longest}:80", "tcp", framework)
    assert isinstance(key.host, VipName)
    assert len(key.host.fqdn) == 253
    with pytest.raises(ModelError, match="253"):
        parse_vip(f"{longest}d:80", "tcp", framework)


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        ("VIP_0", True),
        ("VIP_5f0a9a1e-7b1c", True),  # as the SDK's frameworks write it
        ("VIP", True),
        ("VIPER", True),
        ("vip_0", True),
        ("Vip_0", False),
        ("MY_VIP_0", False),
        ("MINUTEMAN_0_WEIGHT", False),
        ("network-scope", False),
        ("", False),
    ],
)
def test_keys(key: str, taken: bool) -> None:
    assert read_labels({key: "web:80"}, "tcp", "marathon").claims == (
        (VipClaim(vip("web", 80)),) if taken else ()
    )


def test_framework_and_transport_are_part_of_the_vip() -> None:
    [claim] = read_labels({"VIP_0": "broker:9092"}, "udp", "dev/kafka").claims
    assert claim.key == vip("broker", 9092, "devkafka", "udp")
    assert str(claim.key) == "broker.devkafka.l4lb.thisdcos.directory:9092"


def test_a_framework_without_a_name_has_no_named_vips_but_literal_ones() -> None:
    claims, [problem] = read_labels({"VIP_0": "web:80", "VIP_1": "10.0.0.1:80"}, "tcp", "///")
    assert claims == (VipClaim(vip("10.0.0.1", 80)),)
    assert "framework" in problem.reason


def test_all_labels_of_a_port_apply_and_a_bad_one_costs_only_itself() -> None:
    labels = {
        "VIP_3": "foo",
        "VIP_2": "/def:80",
        "VIP_1": "/abc:80",
        "VIP_0": "cbd:70000",
        "network-scope": "host",
    }
    claims, problems = read_labels(labels, "tcp", "marathon")
    assert claims == (VipClaim(vip("abc", 80)), VipClaim(vip("def", 80)))
    assert [problem.label for problem in problems] == ["VIP_0", "VIP_3"]


def test_labels_for_one_vip_are_one_claim() -> None:
    labels = {"VIP_0": "/web:80", "VIP_1": "web:80", "VIP_2": "/web:443"}
    claims = read_labels(labels, "tcp", "marathon").claims
    assert claims == (VipClaim(vip("web", 80)), VipClaim(vip("web", 443)))


def test_a_reason_quotes_a_long_value_in_part() -> None:
    [problem] = read_labels({"VIP_0": 100_000 * "x"}, "tcp", "marathon").problems
    assert len(problem.reason) < 2 * QUOTED_CHARACTERS


@given(vip_names(), ports, transports, st.booleans())
def test_names_round_trip(name: VipName, port: int, transport: Transport, slash: bool) -> None:
    assume(slash or name.label.strip("0123456789.") or name.label.count(".") != 3)
    written = f"{'/' * slash}{name.label}:{port}"
    assert parse_vip(written, transport, name.framework) == VipKey(name, port, transport)


@given(literal_addresses, ports, transports)
@example(IPv4Address("255.255.255.255"), 1, "tcp")
@example(IPv6Address("::"), 65535, "udp")
def test_addresses_round_trip(address: Address, port: int, transport: Transport) -> None:
    key = VipKey(address, port, transport)
    assert parse_vip(str(key), transport, "marathon") == key
    assert parse_vip(f"{address}:{port}", transport, "marathon") == key


KEYS = st.from_regex(r"(VIP|vip|Vip|)_?[0-9a-z]*", fullmatch=True)
VALUES = st.text() | st.from_regex(r".{0,9}:\d{0,6}", fullmatch=True)


@given(st.dictionaries(KEYS, VALUES))
def test_every_vip_label_is_a_claim_or_a_problem(labels: dict[str, str]) -> None:
    claims, problems = read_labels(labels, "tcp", "marathon")
    asked = {key for key in labels if key.startswith(("VIP", "vip"))}
    good = asked - {problem.label for problem in problems}
    assert len(good) + len(problems) == len(asked)
    assert len(claims) <= len(good)
    assert bool(claims) == bool(good)
