"""What is said of an event, and who is remembered for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.dataplane import events
from minuteman.dataplane.events import PENDING_BYTES, Line, Lost, Outlet, Teller, rfc3339
from minuteman.dataplane.layout import EVENT, KINDS, mapped
from minuteman.model import Address

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
SINCE_NS = 1_000
VIP, BACKEND = ip_address("11.0.0.1"), ip_address("10.0.0.1")


def event(
    kind: str,
    cookie: int = 1,
    pid: int = 0,
    command: bytes = b"",
    time_ns: int = SINCE_NS,
    vip: Address = VIP,
    protocol: int = 6,
) -> bytes:
    """A struct event."""
    port = b"\0\0" if kind.startswith("refused_") else b"\0\x50"
    return EVENT.pack(
        time_ns, cookie, 0, command, mapped(vip.packed), mapped(BACKEND.packed), b"\0\x50", port,
        pid, 300, KINDS.index(kind), protocol,
    )  # fmt: skip


@pytest.fixture
def teller() -> Teller:
    return Teller(SINCE_NS, Path("/"))


def test_the_process_that_asked_is_that_of_all_that_comes_of_it(teller: Teller) -> None:
    later = [event(kind) for kind in ("unanswered", "connected", "closed", "closed")]
    lines = list(teller.tell([event("chosen", pid=7, command=b"curl"), *later]))
    assert [(line.outcome, line.pid, line.command) for line in lines] == [
        ("unanswered", 7, "curl"),
        ("connected", 7, "curl"),
        ("closed", 7, "curl"),
        ("closed", None, None),
    ]
    assert [line.waited_us for line in lines] == [300, 300, None, None]


def test_as_many_are_remembered_as_there_is_room_for(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "REMEMBERED", 2)
    chosen = [event("chosen", cookie, pid=cookie) for cookie in (1, 2, 1, 3)]
    ends = [event("closed", cookie) for cookie in (1, 2, 3)]
    assert [line.pid for line in teller.tell([*chosen, *ends])] == [1, None, 3]


def test_only_of_udp_is_told_that_a_backend_was_chosen(teller: Teller) -> None:
    assert not list(teller.tell([event("chosen", protocol=6)]))
    (line,) = teller.tell([event("chosen", protocol=17)])
    assert (line.protocol, line.backend, line.waited_us) == ("udp", "10.0.0.1:80", None)


def test_who_is_refused_has_no_backend(teller: Teller) -> None:
    (line,) = teller.tell([event("refused_torn")])
    assert line.backend is None


def test_what_was_before_is_not_told(teller: Teller) -> None:
    before = [event(kind, time_ns=SINCE_NS - 1) for kind in ("chosen", "closed")]
    assert not list(teller.tell(before))


def test_a_name_may_be_any_bytes(teller: Teller) -> None:
    (line,) = teller.tell([event("refused_empty", pid=1, command=b"\xff a")])
    assert line.command == "\N{REPLACEMENT CHARACTER} a"


@given(st.one_of(st.builds(IPv4Address, st.integers(0, 2**32 - 1)), st.ip_addresses(v=6)))
def test_an_address_is_as_a_client_writes_it(address: Address) -> None:
    (line,) = Teller(SINCE_NS, Path("/")).tell([event("closed", vip=address)])
    host, _, port = line.vip.rpartition(":")
    assert port == "80"
    assert host.startswith("[") == (":" in host)
    if not (isinstance(address, IPv6Address) and address.ipv4_mapped):
        assert ip_address(host.strip("[]")) == address


@given(st.integers(0, 2**63 - 1))
def test_a_time_has_microseconds(time_ns: int) -> None:
    said = datetime.fromisoformat(rfc3339(time_ns))
    assert said == BEGINNING + timedelta(microseconds=time_ns // 1000)


def test_the_clock_is_that_of_today(teller: Teller) -> None:
    (line,) = teller.tell([event("closed", time_ns=time.monotonic_ns())])
    assert abs(datetime.now(UTC) - datetime.fromisoformat(line.time)) < timedelta(seconds=10)


# ---- the pipe ------------------------------------------------------------------------------------
@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        os.close(fd)


def test_a_pipe_that_is_full_gets_the_rest_later_and_whole(
    pipe: tuple[int, int], teller: Teller
) -> None:
    reading, writing = pipe
    os.set_blocking(reading, False)
    outlet = Outlet(writing)
    lines = list(teller.tell([event("closed", cookie) for cookie in range(5_000)]))
    taken = 0
    while outlet.put(lines):
        taken += len(lines)
    assert not outlet.put([Lost(1)])
    read = b""
    while len(read) < PENDING_BYTES:
        read += os.read(reading, 1 << 20)
        assert outlet.wait(60.0)  # there is room
        outlet.flush()
    assert outlet.put([Lost(3)])
    while not read.endswith(b'{"lost":3}\n'):
        read += os.read(reading, 1 << 20)
        outlet.flush()
    *told, last = read.splitlines()
    assert last == b'{"lost":3}'
    assert [msgspec.json.decode(line, type=Line) for line in told[:3]] == lines[:3]
    assert len(told) == taken


def test_nobody_waits_for_who_has_closed_the_pipe() -> None:
    reading, writing = os.pipe()
    outlet = Outlet(writing)
    assert outlet.wait(0.0)
    os.close(reading)
    assert not outlet.wait(60.0)
    with pytest.raises(BrokenPipeError):
        outlet.put([Lost(1)])
    os.close(writing)
