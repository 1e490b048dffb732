"""sendmmsg(2) and recvmmsg(2), which Python lacks: many datagrams in one call."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Sequence
from ctypes import c_int, c_size_t, c_uint32, c_void_p
from ipaddress import ip_address
from struct import Struct

Name = tuple[str, int]
"""Address and port."""

FAMILY = Struct("=H")
NAMES = {socket.AF_INET: Struct("=H2s4s8x"), socket.AF_INET6: Struct("=H2s4x16s4x")}
"""Struct sockaddr_in and sockaddr_in6."""
ROOM = 64
"""Bytes of a datagram that are received."""


class _Vector(ctypes.Structure):
    """Struct iovec."""

    _fields_ = (("base", c_void_p), ("len", c_size_t))


class _Header(ctypes.Structure):
    """Struct msghdr."""

    _fields_ = (
        ("name", c_void_p),
        ("namelen", c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vectors_len", c_size_t),
        ("control", c_void_p),
        ("control_len", c_size_t),
        ("flags", c_int),
    )


class _Message(ctypes.Structure):
    """Struct mmsghdr."""

    _fields_ = (("header", _Header), ("len", c_uint32))


class _Batch:
    """Messages in memory, each with a buffer for its name and one for its text."""

    def __init__(self, names: Sequence[bytes], texts: Sequence[bytes]) -> None:
        self.names = [ctypes.create_string_buffer(name, len(name)) for name in names]
        self.texts = [ctypes.create_string_buffer(text, len(text)) for text in texts]
        self.messages = (_Message * len(names))()
        for message, name, text in zip(self.messages, self.names, self.texts, strict=True):
            vector = _Vector(ctypes.addressof(text), len(text))
            message.header.name, message.header.namelen = ctypes.addressof(name), len(name)
            message.header.vectors, message.header.vectors_len = ctypes.pointer(vector), 1

    def call(self, function: str, sock: socket.socket, *arguments: object) -> int:
        """How many of the messages it did. Errors: OSError."""
        call = getattr(ctypes.CDLL(None, use_errno=True), function)
        done: int = call(sock.fileno(), self.messages, len(self.messages), *arguments)
        if done < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return done


def send_many(sock: socket.socket, datagrams: Sequence[tuple[bytes, Name]]) -> int:
    """Send each text to its name; how many were sent. Errors: OSError of the first."""
    batch = _Batch([_pack(to) for _, to in datagrams], [text for text, _ in datagrams])
    return batch.call("sendmmsg", sock, 0)


def receive_many(sock: socket.socket, count: int) -> list[tuple[bytes, Name]]:
    """Wait for `count` datagrams in one call: each text, and who sent it."""
    room = NAMES[socket.AF_INET6].size
    batch = _Batch([bytes(room)] * count, [bytes(ROOM)] * count)
    done = batch.call("recvmmsg", sock, 0, None)
    return [
        (batch.texts[i].raw[: batch.messages[i].len], _unpack(batch.names[i].raw))
        for i in range(done)
    ]


def _pack(name: Name) -> bytes:
    address, port = ip_address(name[0]), name[1]
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return NAMES[family].pack(family, port.to_bytes(2, "big"), address.packed)


def _unpack(raw: bytes) -> Name:
    """The name at the start of `raw`, which has room for both families."""
    family = socket.AddressFamily(FAMILY.unpack_from(raw)[0])
    _, port, packed = NAMES[family].unpack_from(raw)
    return socket.inet_ntop(family, packed), int.from_bytes(port, "big")
