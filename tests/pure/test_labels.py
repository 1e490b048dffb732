"""The grammar of VIP labels; the successor's reading of each value is in the comments.

It knows no options: they are keys that it skips.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minuteman.errors import ModelError
from minuteman.labels import MAX_AFFINITY_SECONDS, QUOTED_CHARACTERS, parse_vip, read_labels
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
    long = 100_000 * "x"
    labels = {"VIP_0": long, "MINUTEMAN_0_WEIGHT": long, f"MINUTEMAN_0_{long}": "1"}
    problems = read_labels(labels | {f"MINUTEMAN_{long}_WEIGHT": "1"}, "tcp", "marathon").problems
    assert len(problems) == 4
    assert all(len(problem.reason) < 2 * QUOTED_CHARACTERS for problem in problems)


# ---- options -------------------------------------------------------------------------------------
def options(**labels: str) -> tuple[int, int]:
    """Weight and affinity of the VIP of `VIP_0` beside these labels, which are all good."""
    [claim], problems = read_labels({"VIP_0": "/web:80", **labels}, "tcp", "marathon")
    assert problems == ()
    return claim.weight, claim.affinity_seconds


def test_options_are_of_the_vip_of_the_same_number() -> None:
    labels = {
        "VIP_0": "/web:80",
        "VIP_1": "/api:80",
        "VIP_2": "/db:80",
        "MINUTEMAN_0_WEIGHT": "10",
        "MINUTEMAN_1_WEIGHT": "0",
        "MINUTEMAN_1_AFFINITY": "300s",
    }
    assert read_labels(labels, "udp", "marathon") == (
        (
            VipClaim(vip("web", 80, transport="udp"), weight=10),
            VipClaim(vip("api", 80, transport="udp"), weight=0, affinity_seconds=300),
            VipClaim(vip("db", 80, transport="udp")),
        ),
        (),
    )


@pytest.mark.parametrize(("text", "weight"), [("0", 0), ("1", 1), ("100", 100), ("007", 7)])
def test_weights(text: str, weight: int) -> None:
    assert options(MINUTEMAN_0_WEIGHT=text) == (weight, 0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("0d", 0),
        ("1s", 1),
        ("300s", 300),
        ("5m", 300),
        ("2h", 7_200),
        ("1d", 86_400),
        ("7d", MAX_AFFINITY_SECONDS),
        ("168h", MAX_AFFINITY_SECONDS),
        ("604800s", MAX_AFFINITY_SECONDS),
    ],
)
def test_affinities(text: str, seconds: int) -> None:
    assert options(MINUTEMAN_0_AFFINITY=text) == (1, seconds)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("WEIGHT", ""),
        ("WEIGHT", "101"),
        ("WEIGHT", "-1"),
        ("WEIGHT", "+1"),
        ("WEIGHT", "1.0"),
        ("WEIGHT", " 1"),
        ("WEIGHT", "1\n"),
        ("WEIGHT", "0x1"),
        ("WEIGHT", "ten"),
        ("WEIGHT", "\u0661"),
        ("WEIGHT", 5000 * "9"),
        ("AFFINITY", ""),
        ("AFFINITY", "0"),
        ("AFFINITY", "300"),
        ("AFFINITY", "s"),
        ("AFFINITY", "300 s"),
        ("AFFINITY", "300S"),
        ("AFFINITY", "300s\n"),
        ("AFFINITY", "5min"),
        ("AFFINITY", "1w"),
        ("AFFINITY", "500ms"),
        ("AFFINITY", "-5m"),
        ("AFFINITY", "1.5h"),
        ("AFFINITY", "1h30m"),
        ("AFFINITY", "\u0661s"),
        ("AFFINITY", "8d"),
        ("AFFINITY", "604801s"),
        ("AFFINITY", "999999d"),
        ("AFFINITY", 5000 * "9" + "s"),
        ("", "1"),
        ("weight", "1"),
        ("WEIGHTS", "1"),
        ("AFFINITY_SECONDS", "300"),
    ],
)
def test_an_option_that_makes_no_sense_costs_only_itself(option: str, value: str) -> None:
    labels = {"VIP_0": "/web:80", "MINUTEMAN_0_WEIGHT": "7", "MINUTEMAN_0_AFFINITY": "9s"}
    expected = {"WEIGHT": (1, 9), "AFFINITY": (7, 0)}.get(option, (7, 9))
    bad = f"MINUTEMAN_0_{option}"
    [claim], [problem] = read_labels({**labels, bad: value}, "tcp", "marathon")
    assert (claim.weight, claim.affinity_seconds) == expected
    assert problem.label == bad
    assert problem.reason.endswith(".")


@pytest.mark.parametrize(
    ("key", "option", "fits"),
    [
        ("VIP_0", "MINUTEMAN_0_WEIGHT", True),
        ("vip_0", "MINUTEMAN_0_WEIGHT", True),
        ("VIP0", "MINUTEMAN_0_WEIGHT", True),
        ("vip_web", "MINUTEMAN_web_WEIGHT", True),
        ("VIP_a_b", "MINUTEMAN_a_b_WEIGHT", True),
        ("VIP__0", "MINUTEMAN__0_WEIGHT", True),
        ("VIPER", "MINUTEMAN_ER_WEIGHT", True),
        ("VIP", "MINUTEMAN_WEIGHT", True),
        ("VIP_", "MINUTEMAN_WEIGHT", True),
        ("VIP_5f0a9a1e-7b1c", "MINUTEMAN_5f0a9a1e-7b1c_WEIGHT", True),
        ("VIP_0", "MINUTEMAN_1_WEIGHT", False),
        ("VIP_0", "MINUTEMAN_00_WEIGHT", False),
        ("VIP_0", "MINUTEMAN_WEIGHT", False),
        ("VIP_0", "MINUTEMAN_VIP_0_WEIGHT", False),
        ("VIP_web", "MINUTEMAN_WEB_WEIGHT", False),
        ("VIP__0", "MINUTEMAN_0_WEIGHT", False),
    ],
)
def test_which_vip_an_option_is_of(key: str, option: str, fits: bool) -> None:
    [claim], problems = read_labels({key: "/web:80", option: "7"}, "tcp", "marathon")
    assert claim.weight == (7 if fits else 1)
    assert [problem.label for problem in problems] == ([] if fits else [option])


@pytest.mark.parametrize("key", ["minuteman_0_WEIGHT", "MINUTEMAN0_WEIGHT", "MINUTEMAN", "WEIGHT"])
def test_what_is_no_option_is_somebody_elses(key: str) -> None:
    assert options(**{key: "none of ours"}) == (1, 0)


def test_an_option_of_a_label_that_is_no_vip_is_not_reported_too() -> None:
    labels = {"VIP_0": "/no-port", "MINUTEMAN_0_WEIGHT": "7", "MINUTEMAN_0_AFFINITY": "?"}
    claims, problems = read_labels(labels, "tcp", "marathon")
    assert claims == ()
    assert [problem.label for problem in problems] == ["MINUTEMAN_0_AFFINITY", "VIP_0"]


def test_of_two_labels_for_one_vip_the_first_counts() -> None:
    labels = {
        "VIP_1": "web:80",
        "VIP_0": "/web:80",
        "MINUTEMAN_1_AFFINITY": "9s",
        "MINUTEMAN_0_WEIGHT": "7",
    }
    claims, problems = read_labels(labels, "tcp", "marathon")
    assert claims == (VipClaim(vip("web", 80), weight=7),)
    assert problems == ()


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


OPTION_KEYS = st.from_regex(r"MINUTEMAN_[0-9a-z_]{0,2}(WEIGHT|AFFINITY|_|)", fullmatch=True)
OPTION_VALUES = VALUES | st.from_regex(r"[0-9]{1,3}[smhd]?", fullmatch=True)


@given(st.dictionaries(KEYS, VALUES), st.dictionaries(OPTION_KEYS, OPTION_VALUES))
def test_options_change_nothing_but_options(
    labels: dict[str, str], options: dict[str, str]
) -> None:
    plain = read_labels(labels, "tcp", "marathon")
    read = read_labels(labels | options, "tcp", "marathon")
    assert [claim.key for claim in read.claims] == [claim.key for claim in plain.claims]
    assert [p for p in read.problems if p.label not in options] == list(plain.problems)
    for claim in read.claims:
        assert 0 <= claim.weight <= 100
        assert 0 <= claim.affinity_seconds <= MAX_AFFINITY_SECONDS


@given(st.dictionaries(KEYS, VALUES))
def test_every_vip_label_is_a_claim_or_a_problem(labels: dict[str, str]) -> None:
    claims, problems = read_labels(labels, "tcp", "marathon")
    asked = {key for key in labels if key.startswith(("VIP", "vip"))}
    good = asked - {problem.label for problem in problems}
    assert len(good) + len(problems) == len(asked)
    assert len(claims) <= len(good)
    assert bool(claims) == bool(good)
