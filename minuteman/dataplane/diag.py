"""The kernel's list of sockets, and the end of some of them: SOCK_DIAG, which is netlink.

Of this thread's network namespace, always. pyroute2 could ask the same, but its parser takes 80
microseconds and 4 kB for each socket, hides errors, and has no word for the end of one.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from struct import Struct
from typing import NamedTuple

from minuteman.dataplane.layout import mapped
from minuteman.errors import DataplaneError

NETLINK_SOCK_DIAG = 4
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
"""linux/netlink.h"""
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
"""Types of messages; linux/sock_diag.h."""
HEADER = Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
ID = Struct("=2s2s16s16sIQ")
"""struct inet_diag_sockid: ports and addresses of both ends, interface, cookie."""
REQUEST = Struct("=BBBxI")
"""What struct inet_diag_req_v2 has before the id: family, protocol, extensions, states."""
FOUND = Struct("=Bxxx2s2s16s16sIQ")
"""What struct inet_diag_msg begins with: family, state and timer of TCP, the id."""
ERROR = Struct("=i")
"""What other messages begin with: minus an errno, or 0."""

STATES: Mapping[int, Sequence[int]] = {
    # ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING
    socket.IPPROTO_TCP: (1, 2, 3, 4, 5, 8, 9, 11),
    socket.IPPROTO_UDP: (1,),
}
"""By protocol: connected or about to be; linux/tcp_states.h. A socket in TIME_WAIT is not: nobody
has it any more."""
PACKET_BYTES = 1 << 16
"""More than a packet of a dump."""
ENDS_AT_ONCE = 64
"""Requests in a packet; the answers have to fit into the buffer of a socket."""
GONE = (errno.ENOENT, errno.EOPNOTSUPP)
"""What ending a socket meets that has ended: it is nowhere, or in TIME_WAIT of an older kernel."""
NO_DESTROY = "the kernel was built without CONFIG_INET_DIAG_DESTROY"


class Socket(NamedTuple):
    """Which one it is. Bytes are network order; an IPv4 address is filled up with zeros."""

    protocol: int
    family: int
    port: bytes
    peer_port: bytes
    address: bytes
    peer: bytes
    interface: int
    cookie: int

    @property
    def mapped_peer(self) -> bytes:
        """The address that it is connected to, IPv4 as IPv4-mapped IPv6."""
        return mapped(self.peer[:4] if self.family == socket.AF_INET else self.peer)

    def request(self) -> bytes:
        """Struct inet_diag_req_v2 of this very socket."""
        return REQUEST.pack(self.family, self.protocol, 0, 0) + ID.pack(*self[2:])


NOBODYS = Socket(socket.IPPROTO_TCP, socket.AF_INET, b"", b"", b"", b"", 0, 0)
"""There is none like it: it has no ports."""


def connected_sockets(protocol: int) -> Iterator[Socket]:
    """This namespace's sockets of a protocol, TCP or UDP, that are connected or about to be.

    A dump of many sockets is made in pieces, and a live one may slip through between two of them.

    Source: SOCK_DIAG.   Errors: DataplaneError.
    """
    for data, at in dump(protocol):
        yield Socket(protocol, *FOUND.unpack_from(data, at))


def dump(protocol: int, extensions: int = 0) -> Iterator[tuple[bytes, int]]:
    """A packet and where in it struct inet_diag_msg begins, for each of `connected_sockets`.

    `extensions` are the bits of attributes that follow it. Errors: DataplaneError.
    """
    states = sum(1 << state for state in STATES[protocol])
    with opened("list sockets") as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = REQUEST.pack(family, protocol, extensions, states) + bytes(ID.size)
            netlink.send(_message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request))
            for kind, data, at in _messages(netlink):
                if kind != SOCK_DIAG_BY_FAMILY:
                    _check_end(_error(data, at))
                    break
                yield data, at


def end_sockets(found: Sequence[Socket]) -> int:
    """End sockets of this namespace, as if their peers had: with ECONNABORTED.

    One that has ended since it was found, or has another peer now, is left alone. Returns how many
    were ended. Errors: DataplaneError; EOPNOTSUPP when the kernel cannot do it.
    """
    with opened("end sockets") as netlink:
        if found and not _can_end(netlink):
            raise DataplaneError("end sockets", errno.EOPNOTSUPP, NO_DESTROY)
        return sum(
            number == 0
            for at in range(0, len(found), ENDS_AT_ONCE)
            for number in _end(netlink, found[at : at + ENDS_AT_ONCE])
        )


def can_end_sockets() -> bool | None:
    """Whether the kernel can end other processes' sockets; None: cannot tell."""
    try:
        with opened("end no socket") as netlink:
            return _can_end(netlink)
    except DataplaneError:
        return None


def _can_end(netlink: socket.socket) -> bool:
    nobodys = [NOBODYS._replace(protocol=protocol) for protocol in STATES]
    return errno.EOPNOTSUPP not in _end(netlink, nobodys)


def _end(netlink: socket.socket, found: Sequence[Socket]) -> list[int]:
    """End sockets with one packet: the errno for each, 0 or one of GONE. Errors: OSError."""
    netlink.send(b"".join(_message(SOCK_DESTROY, NLM_F_ACK, one.request()) for one in found))
    answers = islice(_messages(netlink), len(found))
    numbers = [_error(data, at) for _, data, at in answers]
    for number in set(numbers).difference(GONE):
        _check(number)
    return numbers


@contextmanager
def opened(operation: str) -> Iterator[socket.socket]:
    """A socket for SOCK_DIAG of this namespace. Errors: DataplaneError for an OSError in there."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
            yield netlink
    except OSError as exc:
        raise DataplaneError(operation, exc.errno or 0) from exc


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def _messages(netlink: socket.socket) -> Iterator[tuple[int, bytes, int]]:
    """Each message that comes, without end; see `split`."""
    while True:
        yield from split(netlink.recv(PACKET_BYTES))


def split(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """The messages in a packet: the type of each, the packet, and where its body begins there."""
    at = 0
    while at < len(data):
        length, kind, *_ = HEADER.unpack_from(data, at)
        yield kind, data, at + HEADER.size
        at += -(-length // 4) * 4


def _error(data: bytes, at: int) -> int:
    """The errno in an answer, or at the end of a dump; 0: none."""
    return -int(ERROR.unpack_from(data, at)[0])


def _check_end(number: int) -> None:
    """Of a dump; where the kernel cannot list sockets of a protocol, it lists none."""
    if number != errno.ENOENT:
        _check(number)


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
