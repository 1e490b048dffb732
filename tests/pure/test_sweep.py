"""Which sockets are taken for gone, and how a dump of sockets is read."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.dataplane.layout import CONN
from minuteman.dataplane.sockets import CookieReader
from minuteman.dataplane.sweep import Census, Entry

HERE, ELSEWHERE = 3, 4
DONE, ERROR = 3, 2
"""Types of netlink messages."""


def entry(netns: int, *, abandoned: bool = False) -> Entry:
    return Entry.unpack(CONN.pack(b"", b"", b"", b"", 1, 1, 6, 2, 0, abandoned, netns, 5, 1))


@pytest.mark.parametrize(
    ("cookie", "found", "is_gone"),
    [
        (1, entry(HERE), False),
        (1, entry(HERE, abandoned=True), False),
        (1, entry(ELSEWHERE, abandoned=True), False),
        (2, entry(HERE), True),
        (2, entry(HERE, abandoned=True), True),
        (2, entry(ELSEWHERE), False),
        (2, entry(ELSEWHERE, abandoned=True), True),
    ],
)
def test_who_is_taken_for_gone(cookie: int, found: Entry, is_gone: bool) -> None:
    assert Census(frozenset({1}), frozenset({HERE})).lacks(cookie, found) is is_gone


# ---- a dump --------------------------------------------------------------------------------------
def message(kind: int, body: bytes) -> bytes:
    """A netlink message, filled up to four bytes."""
    return pack("=IHHII", 16 + len(body), kind, 2, 7, 0) + body + bytes(-len(body) % 4)


def of_socket(cookie: int, attributes: bytes) -> bytes:
    return message(20, bytes(44) + pack("=Q", cookie) + bytes(20) + attributes)


sockets = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=9)))
end = st.sampled_from([b"", message(DONE, pack("=i", 0))])


@given(sockets, end)
def test_every_cookie_of_a_packet_is_read(found: Sequence[tuple[int, bytes]], end: bytes) -> None:
    reader = CookieReader()
    packets = list(reader.parse(b"".join(of_socket(*one) for one in found) + end, 7, None))
    assert [c for packet in packets for c in packet["cookies"]] == [cookie for cookie, _ in found]
    assert [reader.is_enough(packet) for packet in packets] == [False] + [True] * bool(end)
    assert not any(packet["header"].get("error") for packet in packets)


@pytest.mark.parametrize("kind", [DONE, ERROR])
def test_what_ends_a_dump_before_its_end_is_an_error(kind: int) -> None:
    reader = CookieReader()
    data = of_socket(1, b"") + message(kind, pack("=i", -errno.ENOENT))
    *_, last = reader.parse(data, 7, None)
    assert reader.is_enough(last)
    error = last["header"]["error"]
    assert isinstance(error, FileNotFoundError)
