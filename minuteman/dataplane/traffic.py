"""What the kernel says of a socket beside its addresses: whose it is, and what TCP has counted.

Source: struct inet_diag_msg of linux/inet_diag.h, struct tcp_info of linux/tcp.h.
"""

from __future__ import annotations

import socket
from collections.abc import Container, Iterator
from dataclasses import dataclass
from struct import Struct

from minuteman.dataplane import diag

COOKIE = Struct("=44xQ")
"""What struct inet_diag_msg begins with, up to the cookie."""
MESSAGE = Struct("=BB2x2s2x16s20xQ12xII")
"""All of it: family and state, port and address of this end, the cookie; user and inode."""
ATTRIBUTE = Struct("=HH")
"""Length, itself included, and type; what is next begins at a multiple of four."""
INFO = 2
"""The attribute that is a struct tcp_info."""
TCP_INFO = Struct("=68xI28xI16xQQ")
"""Microseconds of a round trip, segments sent again; bytes acknowledged and received."""

ESTABLISHED, SYN_SENT, SYN_RECV = 1, 2, 3
FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING = 5, 8, 9, 11
"""States; linux/tcp_states.h."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What TCP has counted for a connection."""

    bytes_sent: int
    """Those that the other side has acknowledged."""
    bytes_received: int
    retransmits: int
    """Segments."""
    rtt_us: int
    """A round trip, smoothed; 0: there was none yet."""


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """A socket that is connected or about to be."""

    cookie: int
    state: int
    address_packed: bytes
    """4 or 16 bytes, network order: its own."""
    port: int
    uid: int
    inode: int
    """0: no descriptor refers to it any more."""
    traffic: Traffic | None
    """None: it is not TCP."""


def open_sockets(cookies: Container[int]) -> list[OpenSocket]:
    """This namespace's sockets that are connected or about to be and have one of `cookies`.

    Source: SOCK_DIAG.   Errors: DataplaneError.
    """
    return [
        read_socket(data, at)
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        for data, at in diag.dump(protocol, extensions=1 << (INFO - 1))
        if COOKIE.unpack_from(data, at)[0] in cookies
    ]


def read_socket(data: bytes, at: int) -> OpenSocket:
    """The socket whose struct inet_diag_msg begins there; before it is the header of a message."""
    family, state, port, address, cookie, uid, inode = MESSAGE.unpack_from(data, at)
    return OpenSocket(
        cookie,
        state,
        address[:4] if family == socket.AF_INET else address,
        int.from_bytes(port, "big"),
        uid,
        inode,
        next((_read_traffic(data, info, state) for info in _infos(data, at)), None),
    )


def _infos(data: bytes, at: int) -> Iterator[int]:
    """Where a struct tcp_info begins, among the attributes."""
    length, *_ = diag.HEADER.unpack_from(data, at - diag.HEADER.size)
    end = at - diag.HEADER.size + length
    at += MESSAGE.size
    while at < end:
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if kind == INFO and length >= ATTRIBUTE.size + TCP_INFO.size:
            yield at + ATTRIBUTE.size
        at += max(-(-length // 4) * 4, ATTRIBUTE.size)


def _read_traffic(data: bytes, at: int, state: int) -> Traffic:
    """The struct tcp_info that begins there. The kernel counts each SYN and FIN as a byte."""
    rtt_us, retransmits, acknowledged, received = TCP_INFO.unpack_from(data, at)
    sent = acknowledged - 1 - (state == FIN_WAIT2)
    received -= state in (CLOSE_WAIT, LAST_ACK, CLOSING)
    return Traffic(max(sent, 0), max(received, 0), retransmits, rtt_us)
