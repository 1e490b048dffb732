"""Bytes of the maps: what is packed comes back, in the byte order that the programs read."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ebpf
from minuteman.dataplane import layout
from minuteman.model import Address, BackendCounters, Endpoint, Frontend, Tier, Transport
from minuteman.reconcile.kernelstate import Limits, PutBackend

# An IPv4-mapped address is IPv4 here, so no mapped IPv6 one occurs.
ADDRESSES: st.SearchStrategy[Address] = st.one_of(
    st.ip_addresses(v=4), st.integers(2**120, 2**128 - 1).map(IPv6Address)
)
PORTS = st.integers(1, 65535)
TRANSPORTS = st.sampled_from(("tcp", "udp"))
COUNTS = st.integers(0, 2**32 - 1)


@given(ADDRESSES, PORTS, TRANSPORTS)
def test_frontend_round_trips(address: Address, port: int, transport: Transport) -> None:
    frontend = Frontend(address, port, transport)
    assert layout.unpack_frontend(layout.pack_frontend(frontend)) == frontend


@given(
    ADDRESSES,
    PORTS,
    TRANSPORTS,
    st.integers(1, 100),
    st.sampled_from(Tier),
    COUNTS,
    COUNTS,
    st.none() | st.tuples(ADDRESSES, PORTS),
)
def test_backend_round_trips(
    address: Address,
    port: int,
    transport: Transport,
    weight: int,
    tier: Tier,
    vip_id: int,
    epoch: int,
    inner: tuple[Address, int] | None,
) -> None:
    endpoint = Endpoint(address.packed, port, transport)
    inside = Endpoint(inner[0].packed, inner[1], transport) if inner else None
    backend = PutBackend(7, vip_id, endpoint, weight, tier, inside)
    packed_inner = layout.pack_inner(inside, 7) if inside else None
    packed = layout.pack_backend(backend, epoch)
    assert layout.unpack_backend(7, packed, packed_inner) == (backend, epoch)


@given(ADDRESSES.flatmap(lambda a: st.tuples(st.just(a), st.integers(0, a.max_prefixlen))))
def test_prefix_round_trips(prefix: tuple[Address, int]) -> None:
    network = ip_network(prefix, strict=False)
    assert layout.unpack_prefix(layout.pack_prefix(network)) == network


def test_an_ipv4_prefix_is_one_of_mapped_addresses() -> None:
    packed = layout.pack_prefix(ip_network("11.0.0.0/8"))
    assert packed == layout.PREFIX.pack(104, bytes.fromhex("00000000 00000000 0000ffff 0b000000"))


@given(COUNTS)
def test_a_free_id_keeps_its_epoch_and_the_address_that_may_be_in_use(epoch: int) -> None:
    backend = PutBackend(7, 9, Endpoint(bytes([10, 0, 0, 1]), 80, "tcp"), 1, Tier.UP)
    raw = layout.pack_backend(backend, epoch)
    freed = layout.pack_free_backend(raw)
    assert layout.unpack_backend(7, freed) == (None, epoch)
    assert freed[:20] == raw[:20]


def test_the_bytes_of_one_vip_typed_by_hand() -> None:
    frontend = Frontend(IPv4Address("1.2.3.4"), 5000, "tcp")
    assert layout.pack_frontend(frontend) == bytes.fromhex("01020304 1388 06 00")
    frontend6 = Frontend(IPv6Address("fd01:c::1"), 80, "udp")
    assert layout.pack_frontend(frontend6) == bytes.fromhex(
        "fd01000c 00000000 00000000 00000001 0050 11 00"
    )
    backend = PutBackend(3, 9, Endpoint(bytes([10, 0, 0, 1]), 31001, "tcp"), 1, Tier.DRAINING)
    assert layout.pack_backend(backend, 5)[:20] == bytes.fromhex(
        "00000000 00000000 0000ffff 0a000001 7919 06 02"
    )


def test_counters_of_one_backend() -> None:
    raw = layout.BACKEND_STATS.pack(1, 2, 3, 0, 100, 11, 4, 5, 6, 7, 8, 9, *range(20))
    counters = BackendCounters(
        connecting=1,
        active=2,
        attempts=11,
        successes=4,
        failures=5,
        consecutive_failures=3,
        ejected=True,
        bytes_sent=7,
        bytes_received=8,
        retransmits=9,
        connect_log2_us=tuple(range(20)),
    )
    assert layout.unpack_stats(raw, 99) == counters
    assert layout.unpack_stats(raw, 100) == replace(counters, ejected=False)


def test_what_somebody_else_wrote_is_none_of_ours() -> None:
    frontend = Frontend(IPv4Address("1.2.3.4"), 80, "tcp")
    raw = bytearray(layout.pack_frontend(frontend))
    raw[6] = 99
    assert layout.unpack_frontend(bytes(raw)) is None
    backend = PutBackend(7, 9, Endpoint(bytes(4), 80, "tcp"), 1, Tier.UP)
    for place in (18, 19):  # protocol, tier
        raw = bytearray(layout.pack_backend(backend, 3))
        raw[place] = 99
        assert layout.unpack_backend(7, bytes(raw)) == (None, 3)
    assert layout.unpack_owner(layout.OWNER.pack(9)) is None


def test_what_was_counted_down_too_often_is_nothing() -> None:
    raw = layout.BACKEND_STATS.pack(2**32 - 1, 2**32 - 2, *[0] * 10, *range(20))
    counters = layout.unpack_stats(raw, 0)
    assert (counters.connecting, counters.active) == (0, 0)


FORMATS = {
    "vip4_key": layout.VIP4_KEY,
    "vip6_key": layout.VIP6_KEY,
    "vip": layout.VIP,
    "backend": layout.BACKEND,
    "backend_stats": layout.BACKEND_STATS,
    "carried_stats": layout.CARRIED_STATS,
    "inner": layout.INNER,
    "prefix": layout.PREFIX,
    "conn": layout.CONN,
    "flow_key": layout.FLOW_KEY,
    "flow": layout.FLOW,
    "client": layout.CLIENT,
    "affinity": layout.AFFINITY,
    "options": layout.OPTIONS,
    "event": layout.EVENT,
    "about": layout.ABOUT,
    "meta": layout.META,
}


@pytest.mark.parametrize("struct", FORMATS)
def test_c_says_the_same_format(struct: str) -> None:
    header = (ebpf.sources() / "maps.h").read_text(encoding="utf-8")
    found = re.search(rf'struct {struct} {{\s*/\* "([^"]+)" in layout.py \*/', header)
    assert found is not None
    assert one_by_one(found[1]) == one_by_one(FORMATS[struct].format)


def one_by_one(form: str) -> str:
    """A format with a letter for each number: IIII for 4I."""
    return re.sub(r"(\d+)([BHIQ])", lambda several: int(several[1]) * several[2], form)


def test_reasons_are_in_the_order_of_the_enum() -> None:
    header = (ebpf.sources() / "maps.h").read_text(encoding="utf-8")
    found = re.search(r"enum reason {(.*?)REASON_COUNT", header, re.DOTALL)
    assert found is not None
    names = re.findall(r"^\s+([A-Z_]+),", found[1], re.MULTILINE)
    assert tuple(name.lower() for name in names) == layout.REASONS


def test_kinds_are_in_the_order_of_the_enum() -> None:
    header = (ebpf.sources() / "maps.h").read_text(encoding="utf-8")
    found = re.search(r"enum kind {(.*?)KIND_COUNT", header, re.DOTALL)
    assert found is not None
    names = re.findall(r"^\s+KIND_([A-Z_]+),", found[1], re.MULTILINE)
    assert tuple(name.lower() for name in names) == layout.KINDS


def test_every_map_has_a_shape() -> None:
    header = (ebpf.sources() / "maps.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^PINNED\(.*, (\w+), [A-Z_0-9 /]+, \w+\);", header, re.MULTILINE))
    ring = re.findall(r'PIN_DIR "/(\w+)"', header)
    assert {*declared, *ring} == set(layout.map_layouts(Limits()))
