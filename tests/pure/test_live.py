"""Connections: what a socket was given and what the kernel says of it, as one; and as lines."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.cli.conns import COLUMNS, NUMBERS, Filter, json_lines, table_lines
from minuteman.cli.output import BLOCK, lines
from minuteman.dataplane import diag, traffic
from minuteman.dataplane.layout import CONN, mapped
from minuteman.dataplane.live import Connection, Given, join
from minuteman.dataplane.traffic import OpenSocket, Traffic, read_socket
from minuteman.model import Endpoint, Frontend

WEB = Frontend(ip_address("11.0.0.37"), 80, "tcp")
BACKEND = Endpoint(ip_address("10.0.0.1").packed, 31001, "tcp")
GIVEN = Given(WEB, BACKEND, netns=3, started_ms=1_000)
SOCKET = OpenSocket(
    7, traffic.ESTABLISHED, ip_address("10.0.0.9").packed, 40_000, 0, 99, Traffic(10, 20, 1, 300)
)
CONNECTION = Connection(
    WEB,
    BACKEND,
    ip_address("10.0.0.9"),
    40_000,
    "established",
    "host",
    0,
    99,
    61.5,
    Traffic(1_500, 20, 1, 300),
)


# ---- what is in the maps -------------------------------------------------------------------------
def entry(protocol: int = 6, started_ms: int = 1_000) -> bytes:
    vip, backend = mapped(WEB.address.packed), mapped(BACKEND.address_packed)
    ports = (port.to_bytes(2, "big") for port in (WEB.port, BACKEND.port))
    return CONN.pack(vip, backend, *ports, 1, 1, protocol, 2, 0, 0, 3, started_ms, 7)


def test_what_a_socket_was_given_is_read() -> None:
    assert Given.unpack(entry()) == GIVEN


def test_when_a_udp_socket_was_connected_is_not_known() -> None:
    found = Given.unpack(entry(protocol=17, started_ms=0))
    assert found is not None
    assert (found.vip.transport, found.backend.transport, found.started_ms) == ("udp", "udp", None)


def test_an_entry_that_is_half_written_is_none() -> None:
    assert Given.unpack(entry(protocol=0)) is None


# ---- what the kernel says ------------------------------------------------------------------------
def attribute(kind: int, body: bytes) -> bytes:
    length = traffic.ATTRIBUTE.size + len(body)
    return (traffic.ATTRIBUTE.pack(length, kind) + body).ljust(-(-length // 4) * 4, b"\0")


def message(address: str, state: int, *attributes: bytes) -> bytes:
    where = ip_address(address)
    family = socket.AF_INET if where.version == 4 else socket.AF_INET6
    body = (
        struct.pack("=BBBB", family, state, 0, 0)
        + struct.pack("!HH", 40_000, 80)
        + where.packed.ljust(16, b"\0")
        + bytes(16 + 4)
        + struct.pack("=Q", 2**40 + 7)
        + struct.pack("=5I", 0, 0, 0, 1000, 99)
        + b"".join(attributes)
    )
    return diag.HEADER.pack(diag.HEADER.size + len(body), 20, 2, 0, 0) + body


def tcp_info(sent: int, received: int, size: int = 240) -> bytes:
    """A struct tcp_info as the kernel counts: `sent` and `received` with SYN and FIN."""
    info = bytearray(240)
    struct.pack_into("=I", info, 68, 1_234)
    struct.pack_into("=I", info, 100, 5)
    struct.pack_into("=QQ", info, 120, sent, received)
    return attribute(traffic.INFO, bytes(info[:size]))


@pytest.mark.parametrize("address", ["10.0.0.9", "fd00::9", "::ffff:10.0.0.9"])
@pytest.mark.parametrize("before", [(), (attribute(8, b"\1"),), (attribute(4, b"cubic\0"),)])
def test_a_socket_is_read_whatever_else_is_said(address: str, before: tuple[bytes, ...]) -> None:
    data = bytes(12) + message(
        address, traffic.ESTABLISHED, *before, tcp_info(101, 50), attribute(15, bytes(4))
    )
    found = read_socket(data, 12 + diag.HEADER.size)
    assert found == OpenSocket(
        2**40 + 7,
        traffic.ESTABLISHED,
        ip_address(address).packed,
        40_000,
        1_000,
        99,
        Traffic(bytes_sent=100, bytes_received=50, retransmits=5, rtt_us=1_234),
    )


@pytest.mark.parametrize("attributes", [(), (attribute(8, b"\1"),), (tcp_info(1, 1, size=104),)])
def test_without_what_tcp_counts(attributes: tuple[bytes, ...]) -> None:
    """UDP has none, and that of Linux 4.0 is too short."""
    data = message("10.0.0.9", traffic.ESTABLISHED, *attributes) + message("10.0.0.8", 1)
    assert read_socket(data, diag.HEADER.size).traffic is None


@pytest.mark.parametrize(
    ("state", "sent", "received"),
    [
        (traffic.SYN_SENT, 0, 0),
        (traffic.ESTABLISHED, 100, 50),
        (traffic.FIN_WAIT2, 100, 50),
        (traffic.CLOSE_WAIT, 100, 50),
    ],
)
def test_a_syn_and_a_fin_are_no_bytes(state: int, sent: int, received: int) -> None:
    acknowledged = sent + (state != traffic.SYN_SENT) + (state == traffic.FIN_WAIT2)
    data = message("10.0.0.9", state, tcp_info(acknowledged, received + (state == 8)))
    found = read_socket(data, diag.HEADER.size).traffic
    assert found is not None
    assert (found.bytes_sent, found.bytes_received) == (sent, received)


# ---- both as one ---------------------------------------------------------------------------------
@given(st.sets(st.integers(1, 9)), st.lists(st.integers(1, 9)))
def test_a_connection_is_in_both_and_is_shown_once(known: set[int], found: list[int]) -> None:
    left = dict.fromkeys(known, GIVEN)
    sockets = [replace(SOCKET, cookie=cookie, port=cookie) for cookie in found]
    shown = [connection.client_port for connection in join(left, sockets, "host", 2_000)]
    assert sorted(shown) == sorted(known & set(found))
    assert left.keys() == known - set(found)


@pytest.mark.parametrize(
    ("started_ms", "now_ms", "age"),
    [(1_000, 3_500, 2.5), (2**32 - 500, 2**32 * 3 + 500, 1.0), (None, 3_500, None)],
)
def test_ages(started_ms: int | None, now_ms: int, age: float | None) -> None:
    known = {7: replace(GIVEN, started_ms=started_ms)}
    (connection,) = join(known, [SOCKET], "host", now_ms)
    assert connection.age_seconds == age


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (traffic.SYN_SENT, "connecting"),
        (traffic.SYN_RECV, "connecting"),
        (traffic.ESTABLISHED, "established"),
        (traffic.FIN_WAIT2, "closing"),
        (traffic.CLOSE_WAIT, "closing"),
        (traffic.LAST_ACK, "closing"),
    ],
)
def test_states(state: int, shown: str) -> None:
    (connection,) = join({7: GIVEN}, [replace(SOCKET, state=state)], "host", 0)
    assert connection.state == shown


def test_a_mapped_client_is_an_ipv4_one() -> None:
    found = replace(SOCKET, address_packed=ip_address("::ffff:10.0.0.9").packed)
    (connection,) = join({7: GIVEN}, [found], "host", 0)
    assert connection.client == ip_address("10.0.0.9")


# ---- which are shown -----------------------------------------------------------------------------
NAMES = {("tcp", "11.0.0.37", 80): "web.marathon.l4lb.thisdcos.directory"}


@pytest.mark.parametrize(
    ("vip", "backend", "wanted"),
    [
        ("", "", True),
        ("11.0.0.37", "", True),
        ("11.0.0.37:80", "10.0.0.1:31001", True),
        ("web.marathon", "", True),
        ("directory:80", ":31001", True),
        ("11.0.0.38", "", False),
        ("", "10.0.0.2", False),
        ("web.marathon", "10.0.0.2", False),
    ],
)
def test_filters(vip: str, backend: str, wanted: bool) -> None:
    assert Filter(vip, backend, NAMES).wants(GIVEN) is wanted


def test_a_name_is_that_of_the_vip_and_no_other() -> None:
    shown = Filter("", "", NAMES)
    assert shown.name_of(WEB) == "web.marathon.l4lb.thisdcos.directory:80"
    for other in (replace(WEB, transport="udp"), replace(WEB, port=81)):
        assert shown.name_of(other) == ""


# ---- as lines ------------------------------------------------------------------------------------
def test_a_table() -> None:
    udp = replace(CONNECTION, vip=replace(WEB, transport="udp"), age_seconds=None, traffic=None)
    head, tcp_line, udp_line = table_lines([CONNECTION, udp], Filter("", "", NAMES))
    assert head.split() == [*COLUMNS, *NUMBERS, "Name"]
    assert tcp_line.split() == [
        "tcp",
        "10.0.0.9:40000",
        "11.0.0.37:80",
        "10.0.0.1:31001",
        "established",
        "host",
        "1m",
        "1.5kB",
        "20B",
        "1",
        "300us",
        "web.marathon.l4lb.thisdcos.directory:80",
    ]
    assert udp_line.split()[0] == "udp"
    assert udp_line.split()[-1] == "host"


def test_no_connection() -> None:
    assert list(table_lines([], Filter("", ""))) == ["No connections."]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_json(count: int) -> None:
    found = json.loads("\n".join(json_lines([CONNECTION] * count, Filter("", "", NAMES))))
    assert len(found) == count
    for one in found:
        assert one == {
            "protocol": "tcp",
            "client": "10.0.0.9",
            "client_port": 40_000,
            "vip": "11.0.0.37",
            "vip_port": 80,
            "name": "web.marathon.l4lb.thisdcos.directory:80",
            "backend": "10.0.0.1",
            "backend_port": 31_001,
            "state": "established",
            "network": "host",
            "uid": 0,
            "inode": 99,
            "age_seconds": 61.5,
            "bytes_sent": 1_500,
            "bytes_received": 20,
            "retransmits": 1,
            "rtt_us": 300,
        }


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_lines_of_any_number(count: int) -> None:
    made = list(lines(("Name", "Size"), ((str(i), "x" * (i % 7)) for i in range(count)), ("Size",)))
    assert len(made) == 1 + count
    assert [line.split()[0] for line in made] == ["Name", *map(str, range(count))]


def test_lines_are_aligned_and_do_not_wait_for_the_last_one() -> None:
    made = lines(("Name", "Size"), [("a", "1"), ("bcdef", "23")], ("Size",))
    assert list(made) == ["Name   Size", "a         1", "bcdef    23"]
    endless = lines(("Name",), iter(lambda: ("a",), None))
    assert [next(endless), next(endless)] == ["Name", "a"]
