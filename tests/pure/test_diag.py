"""How what SOCK_DIAG sends is read, and what it is sent."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.dataplane import diag
from minuteman.dataplane.diag import (
    FOUND,
    NOBODYS,
    Socket,
    can_end_sockets,
    connected_sockets,
    end_sockets,
    split,
)
from minuteman.errors import DataplaneError

DONE, ERROR, SOCKET = 3, 2, 20
"""Types of netlink messages."""

messages = st.lists(st.tuples(st.integers(0, 65_535), st.binary(max_size=200)))


def message(kind: int, body: bytes) -> bytes:
    """A netlink message, filled up to four bytes."""
    return pack("=IHHII", 16 + len(body), kind, 2, 7, 0) + body + bytes(-len(body) % 4)


def told() -> bytes:
    """A message with a socket in it."""
    return message(SOCKET, bytes(72))


@given(messages)
def test_every_message_of_a_packet_is_found(sent: Sequence[tuple[int, bytes]]) -> None:
    packet = b"".join(message(*one) for one in sent)
    found = list(split(packet))
    assert [kind for kind, _, _ in found] == [kind for kind, _ in sent]
    for (_, data, at), (_, body) in zip(found, sent, strict=True):
        assert data[at : at + len(body)] == body


class Kernel:
    """Sends what it is told to, whatever it is asked."""

    def __init__(self) -> None:
        self._netlink, self._end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    @contextmanager
    def opened(self, operation: str) -> Iterator[socket.socket]:
        """In place of a socket for SOCK_DIAG."""
        try:
            yield self._netlink
        except OSError as exc:
            raise DataplaneError(operation, exc.errno or 0) from exc

    def answer(self, *numbers: int) -> None:
        """One packet with an errno for each request."""
        self._end.send(b"".join(message(ERROR, pack("=i", -number)) for number in numbers))

    def send(self, packet: bytes) -> None:
        self._end.send(packet)

    def close(self) -> None:
        self._netlink.close()
        self._end.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    monkeypatch.setattr(diag, "opened", made.opened)
    yield made
    made.close()


@pytest.mark.parametrize("kind", [DONE, ERROR])
def test_what_ends_a_dump_before_its_end_is_an_error(kind: int, kernel: Kernel) -> None:
    kernel.send(told() + message(kind, pack("=i", -errno.ENOMEM)))
    with pytest.raises(DataplaneError, match="Cannot allocate memory"):
        list(connected_sockets(socket.IPPROTO_TCP))


def test_a_kernel_that_cannot_list_a_protocol_has_no_sockets_of_it(kernel: Kernel) -> None:
    for _ in range(2):  # families
        kernel.send(message(ERROR, pack("=i", -errno.ENOENT)))
    assert list(connected_sockets(socket.IPPROTO_UDP)) == []


def test_a_dump_has_the_sockets_of_both_families(kernel: Kernel) -> None:
    for count in 2, 3:
        kernel.send(told() * count)
        kernel.send(message(DONE, pack("=i", 0)))
    assert len(list(connected_sockets(socket.IPPROTO_TCP))) == 5


def test_a_kernel_that_cannot_end_sockets_says_so(kernel: Kernel) -> None:
    kernel.answer(errno.ENOENT, errno.EOPNOTSUPP)
    assert can_end_sockets() is False
    kernel.answer(errno.EOPNOTSUPP, errno.ENOENT)
    with pytest.raises(DataplaneError, match="CONFIG_INET_DIAG_DESTROY") as caught:
        end_sockets([NOBODYS])
    assert caught.value.errno == errno.EOPNOTSUPP


def test_what_is_gone_is_not_counted_and_anything_else_is_an_error(kernel: Kernel) -> None:
    kernel.answer(errno.ENOENT, errno.ENOENT)
    kernel.answer(0, errno.ENOENT)
    kernel.answer(errno.EOPNOTSUPP, 0)  # in TIME_WAIT of an older kernel
    assert end_sockets([NOBODYS] * 4) == 2
    kernel.answer(errno.ENOENT, errno.ENOENT)
    kernel.answer(0, errno.EPERM)
    with pytest.raises(DataplaneError, match="not permitted"):
        end_sockets([NOBODYS] * 2)
    kernel.answer(errno.EPERM, errno.EPERM)
    assert can_end_sockets() is None


def test_a_socket_is_asked_for_as_it_was_told_of() -> None:
    """Source: struct inet_diag_msg, inet_diag_sockid and inet_diag_req_v2 of linux/inet_diag.h."""
    sockid = pack("=HH16s16sIII", 1, 2, b"here", b"there", 3, 4, 5)
    told = pack("=BBBB", socket.AF_INET, 1, 9, 9) + sockid + pack("=IIIII", 6, 7, 8, 9, 10)
    found = Socket(socket.IPPROTO_TCP, *FOUND.unpack_from(told))
    assert found.cookie == 4 + (5 << 32)
    asked = found.request()
    assert asked == pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0) + sockid


def test_a_peer_is_mapped_from_the_family_of_the_socket() -> None:
    four, six = ip_address("10.0.0.1").packed, ip_address("fd00::1").packed
    found = Socket(6, socket.AF_INET, b"", b"", b"", four + bytes(12), 0, 1)
    assert found.mapped_peer == ip_address("::ffff:10.0.0.1").packed
    found = Socket(6, socket.AF_INET6, b"", b"", b"", six, 0, 1)
    assert found.mapped_peer == six
