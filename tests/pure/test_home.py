"""Home addresses, and who has one.

Vectors: dcos-net's suites, and values of Erlang's phash2.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.errors import ModelError
from minuteman.model import Claims, VipName
from minuteman.names.home import AddressRange, HomeBook, Homes, Wanted, assign, phash2
from tests.pure.strategies import vip_names

DEFAULT4 = AddressRange.parse("11.0.0.0-11.255.255.255")
DEFAULT6 = AddressRange.parse("fd01:c::-fd01:c::ffff:ffff:ffff:ffff")
HOMES = Homes(DEFAULT4, DEFAULT6)


def name(text: str) -> VipName:
    return VipName(*text.split("."))


# erlang:phash2(list_to_binary(lists:seq(1, N)), 4294967296) for N from 0, by Erlang/OTP 25.
PHASH2_BY_LENGTH = [
    *(147926629, 881997586, 114275383, 4167228639, 308326433, 2363616619, 3885929932, 2020565756),
    *(4246438880, 3670266394, 2481598754, 21612627, 1714375065, 92101820, 1623863247, 1364643677),
    *(2776853412, 1446913777, 1841781563, 2350063511, 1217819825, 609995758, 1045697770),
    *(1614497893, 2463735162, 4036649905, 644213235, 3643881976, 1707241957, 1345569775),
]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a", 1589197455),
        (b"foo.bar", 1166686807),
        (b"db.marathon", 437356500),
        (bytes((0, 255, 128, 1, 2, 3, 4, 5, 6, 7, 8)), 103737829),
        (253 * b"x", 3229707311),
        *((bytes(range(1, n + 1)), expected) for n, expected in enumerate(PHASH2_BY_LENGTH)),
    ],
)
def test_phash2(data: bytes, expected: int) -> None:
    assert phash2(data) == expected


@pytest.mark.parametrize(
    ("named", "last", "expected"),
    [
        ("foo.bar", "11.0.0.254", "11.0.0.37"),
        ("baz.qux", "11.0.0.254", "11.0.0.39"),
        ("foo.marathon", "11.0.0.254", "11.0.0.35"),
        ("de8b9dc86.marathon", "11.0.0.254", "11.0.0.90"),
        ("foo.bar", "11.255.255.254", "11.138.58.225"),
        ("foo.bar", "11.255.255.255", "11.138.58.156"),
        ("foo.marathon", "11.255.255.254", "11.64.239.61"),
        ("foo.marathon", "11.255.255.255", "11.64.238.105"),
        ("broker.kafka", "11.255.255.254", "11.175.100.165"),
        ("broker.kafka", "11.255.255.255", "11.175.100.139"),
        ("baz.qux", "11.255.255.254", "11.95.65.165"),
        ("web.marathon", "11.255.255.254", "11.225.37.143"),
        ("groupapp.marathon", "11.255.255.254", "11.101.236.127"),
    ],
)
def test_ipv4_homes(named: str, last: str, expected: str) -> None:
    assert AddressRange.parse(f"11.0.0.0-{last}").home(name(named)) == ip_address(expected)


def test_ipv6_home() -> None:
    assert DEFAULT6.home(name("qux.ipv6")) == ip_address("fd01:c::6d6d:9c64:fd19:f251")


# ---- ranges -------------------------------------------------------------------------------------
def test_both_ends_are_in_a_range() -> None:
    assert IPv4Address("11.0.0.0") in DEFAULT4
    assert IPv4Address("11.255.255.255") in DEFAULT4
    assert IPv4Address("12.0.0.0") not in DEFAULT4
    assert IPv6Address("::b00:0") not in DEFAULT4  # the same number as 11.0.0.0
    assert str(DEFAULT4) == "11.0.0.0-11.255.255.255"
    assert AddressRange.parse(" 11.0.0.0 - 11.255.255.255 ") == DEFAULT4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "hyphen"),
        ("11.0.0.0", "hyphen"),
        ("11.0.0.0/8", "hyphen"),
        ("11.0.0.0-", "''"),
        ("11.0.0.0-11.0.0.256", "'11.0.0.256'"),
        ("11.0.0.0-11.0.0.1-11.0.0.2", "'11.0.0.1-11.0.0.2'"),
        ("11.0.0.0-fd01:c::1", "two families"),
        ("11.0.0.1-11.0.0.0", "does not come after"),
        ("11.0.0.1-11.0.0.1", "does not come after"),
        ("11.0.0.0-255.255.255.254", "127.0.0.0/8"),
        ("127.0.0.1-127.0.0.9", "127.0.0.0/8"),
        ("239.0.0.0-239.0.0.9", "224.0.0.0/4"),
        ("fe80::1-fe80::9", "fe80::/10"),
    ],
)
def test_nonsense_is_no_range(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match="range") as caught:
        AddressRange.parse(text)
    assert reason in caught.value.reason


def test_each_family_has_its_range() -> None:
    with pytest.raises(ModelError, match="IPv4"):
        Homes(DEFAULT6, DEFAULT6)
    with pytest.raises(ModelError, match="IPv6"):
        Homes(DEFAULT4, DEFAULT4)


@given(vip_names())
def test_a_home_is_in_its_range(named: VipName) -> None:
    for addresses in (DEFAULT4, DEFAULT6, AddressRange.parse("11.0.0.7-11.0.0.8")):
        assert addresses.home(named) in addresses
        assert addresses.home(named) != addresses.last


# ---- who has which ------------------------------------------------------------------------------
CROWDED = Homes(AddressRange.parse("11.0.0.0-11.0.0.1"), AddressRange.parse("fd01:c::-fd01:c::1"))
"""One home for all."""
FOUR, BOTH = (4,), (4, 6)
A, B, C = name("a.marathon"), name("b.marathon"), name("c.marathon")
HOME4, HOME6 = IPv4Address("11.0.0.0"), IPv6Address("fd01:c::")


def test_ipv6_only_where_it_is_asked_for() -> None:
    claims = assign({A: FOUR, B: BOTH}, Claims(), HOMES)
    assert claims.addresses == {
        A: (DEFAULT4.home(A),),
        B: (DEFAULT4.home(B), DEFAULT6.home(B)),
    }
    assert claims.provisional == {A, B}
    assert claims.waiting == {}


def test_of_newcomers_the_smaller_name_wins_and_the_others_wait_with_a_reason() -> None:
    claims = assign({C: FOUR, B: FOUR}, Claims(), CROWDED)
    assert claims.addresses == {B: (HOME4,)}
    assert claims.waiting == {
        C: "Its home address 11.0.0.0 is that of b.marathon.l4lb.thisdcos.directory."
    }


def test_who_holds_an_address_keeps_it_until_it_is_not_used() -> None:
    held = assign({B: FOUR}, Claims(), CROWDED)
    joined = assign({A: FOUR, B: FOUR, C: FOUR}, held, CROWDED)
    assert joined.addresses == {B: (HOME4,)}
    assert joined.waiting.keys() == {A, C}
    left = assign({A: FOUR, C: FOUR}, joined, CROWDED)
    assert left.addresses == {A: (HOME4,)}
    assert left.waiting.keys() == {C}


def test_each_family_for_itself() -> None:
    held = assign({B: FOUR}, Claims(), CROWDED)
    claims = assign({A: BOTH, B: FOUR}, held, CROWDED)
    assert claims.addresses == {A: (HOME6,), B: (HOME4,)}
    assert "11.0.0.0" in claims.waiting[A]
    both = assign({A: BOTH, B: BOTH}, claims, CROWDED)
    assert "fd01:c::" in both.waiting[B]
    assert assign({A: FOUR, B: BOTH}, both, CROWDED).addresses == {B: (HOME4, HOME6)}


def test_names_that_dns_cannot_tell_apart() -> None:
    one, other = VipName("a", "b.c"), VipName("a.b", "c")
    claims = assign({other: FOUR, one: FOUR}, Claims(), HOMES)
    assert claims.addresses == {one: (DEFAULT4.home(one),)}
    assert "label 'a' of framework 'b.c'" in claims.waiting[other]


def test_what_is_reserved_is_nobodys_home() -> None:
    reserved = Homes(DEFAULT4, DEFAULT6, (ip_network(f"{DEFAULT4.home(A)}/32"),))
    before = assign({A: FOUR, B: FOUR}, Claims(), HOMES)
    claims = assign({A: FOUR, B: FOUR}, before, reserved)
    assert claims.addresses == {B: (DEFAULT4.home(B),)}
    assert "literal VIPs" in claims.waiting[A]


def test_an_address_outside_the_range_is_not_kept() -> None:
    elsewhere = Claims({A: (IPv4Address("12.0.0.1"),), B: (IPv4Address("11.0.0.7"),)})
    claims = assign({A: FOUR, B: FOUR}, elsewhere, HOMES)
    assert claims.addresses == {A: (DEFAULT4.home(A),), B: (IPv4Address("11.0.0.7"),)}


def test_of_two_names_that_hold_one_address_only_one_keeps_it() -> None:
    damaged = Claims({A: (HOME4,), B: (HOME4,)})
    claims = assign({A: FOUR, B: FOUR}, damaged, CROWDED)
    assert claims.addresses == {A: (HOME4,)}
    assert claims.waiting.keys() == {B}


def test_a_book_keeps_what_was_held_and_its_object_while_nothing_changes() -> None:
    book = HomeBook(CROWDED, Claims({B: (HOME4,)}))
    book.want({A: FOUR, B: FOUR})
    claims = book.claims()
    assert claims.addresses == {B: (HOME4,)}
    book.want({A: FOUR, B: FOUR})
    assert book.claims() is claims
    book.want({A: FOUR})
    assert book.claims().addresses == {A: (HOME4,)}


TIGHT = Homes(AddressRange.parse("11.0.0.0-11.0.0.4"), AddressRange.parse("fd01:c::-fd01:c::3"))
NAMES = [VipName(label, "marathon") for label in "abcdefgh"]
wanted_names = st.dictionaries(st.sampled_from(NAMES), st.sampled_from((FOUR, BOTH)))


@given(st.lists(wanted_names, min_size=1, max_size=5))
def test_laws(history: list[Wanted]) -> None:
    claims = Claims()
    for wanted in history:
        before, claims = claims, assign(wanted, claims, TIGHT)

        given_out = [address for mine in claims.addresses.values() for address in mine]
        assert len(given_out) == len(set(given_out))
        assert claims.addresses.keys() | claims.waiting.keys() == wanted.keys()
        assert claims.provisional == claims.addresses.keys()
        for named, versions in wanted.items():
            mine = claims.addresses.get(named, ())
            assert [a.version for a in mine] == [
                v for v in versions if TIGHT.of(v).home(named) in mine
            ]
            assert (len(mine) < len(versions)) == (named in claims.waiting)
            kept = {a for a in before.addresses.get(named, ()) if a.version in versions}
            assert kept <= set(mine)
            # Nobody waits for an address that is free.
            for version in versions:
                assert TIGHT.of(version).home(named) in given_out

        assert assign(wanted, claims, TIGHT) == claims
        assert assign(dict(reversed([*wanted.items()])), before, TIGHT) == claims


@given(st.integers(2**24, 2**26), st.integers(1, 2**16))
def test_prefixes_hold_the_range_and_nothing_else(first: int, size: int) -> None:
    addresses = AddressRange(IPv4Address(first), IPv4Address(first + size))
    prefixes = addresses.prefixes()
    assert sum(prefix.num_addresses for prefix in prefixes) == size + 1
    assert all(addresses.contains_network(prefix) for prefix in prefixes)


def test_prefixes_of_the_default_ranges() -> None:
    assert AddressRange.parse("11.0.0.0-11.255.255.255").prefixes() == (ip_network("11.0.0.0/8"),)
    six = AddressRange.parse("fd01:c::-fd01:c::ffff:ffff:ffff:ffff")
    assert six.prefixes() == (ip_network("fd01:c::/64"),)
