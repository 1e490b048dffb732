"""connect() as programs with an io_uring do it, with raw system calls: one request at a time.

Source: linux/io_uring.h. The numbers of the system calls are those of every architecture.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from ipaddress import ip_address
from types import TracebackType
from typing import Self

SYS_SETUP, SYS_ENTER = 425, 426
OFF_SQ_RING, OFF_CQ_RING, OFF_SQES = 0, 0x8000000, 0x10000000
ENTER_GETEVENTS, ENTER_SQ_WAKEUP = 1, 2
OP_CONNECT = 16

SETUP_SQPOLL = 2
"""Flag of a ring: a thread of the kernel's takes what is submitted."""
SQE_ASYNC = 16
"""Flag of a request: a worker thread of the ring does it from the start."""

PARAMS = struct.Struct("=7I12x8IQ8IQ")
"""Entries of both rings, flags, CPU and idle milliseconds of the thread; offsets in both rings."""
SQE = struct.Struct("=BBHiQQIIQ24x")
"""Operation, flags, priority, descriptor, length of the address, address; the rest is zero."""
CQE = struct.Struct("=QiI")
"""Name of the request, result, flags."""
WORD = struct.Struct("=I")

_libc = ctypes.CDLL(None, use_errno=True)


class Ring:
    """An io_uring with room for one request. Errors of all methods: OSError."""

    def __init__(self, flags: int = 0) -> None:
        params = ctypes.create_string_buffer(PARAMS.pack(0, 0, flags, 0, 1, *[0] * 20), PARAMS.size)
        self._fd = _call(SYS_SETUP, 1, params)
        entries, completions, *fields = PARAMS.unpack(params.raw)
        _, self._tail, _, _, _, _, array, _, _ = fields[5:14]
        self._head, _, mask, _, _, self._cqes, _, _, _ = fields[14:]
        self._mask_at = mask
        self._requests = self._map(OFF_SQ_RING, array + WORD.size * entries)
        self._results = self._map(OFF_CQ_RING, self._cqes + CQE.size * completions)
        self._request = self._map(OFF_SQES, SQE.size * entries)
        self._address = ctypes.create_string_buffer(0)

    def _map(self, offset: int, size: int) -> mmap.mmap:
        return mmap.mmap(self._fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for mapping in (self._requests, self._results, self._request):
            mapping.close()
        os.close(self._fd)

    def submit(self, sock: socket.socket, address: str, port: int, flags: int = 0) -> None:
        """Ask for `sock` to be connected; `result` says what became of it."""
        raw = _sockaddr(address, port)
        self._address = ctypes.create_string_buffer(raw, len(raw))  # read when the kernel likes
        where = ctypes.addressof(self._address)
        entry = SQE.pack(OP_CONNECT, flags, 0, sock.fileno(), len(raw), where, 0, 0, 0)
        self._request[: SQE.size] = entry
        _advance(self._requests, self._tail)
        _call(SYS_ENTER, self._fd, 1, 0, ENTER_SQ_WAKEUP, None, 0)

    def result(self) -> int:
        """0 or the errno of the request, once it is done."""
        _call(SYS_ENTER, self._fd, 0, 1, ENTER_GETEVENTS, None, 0)
        (head,) = WORD.unpack_from(self._results, self._head)
        (mask,) = WORD.unpack_from(self._results, self._mask_at)
        _, result, _ = CQE.unpack_from(self._results, self._cqes + CQE.size * (head & mask))
        _advance(self._results, self._head)
        return -int(result)


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def _advance(ring: mmap.mmap, offset: int) -> None:
    """Add one to the word at `offset`."""
    (value,) = WORD.unpack_from(ring, offset)
    WORD.pack_into(ring, offset, (value + 1) & 0xFFFFFFFF)


def _sockaddr(address: str, port: int) -> bytes:
    """struct sockaddr_in or sockaddr_in6. The kernel writes into a copy of its own."""
    packed = ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    start = struct.pack("=H", family) + port.to_bytes(2, "big")
    return start + (packed + bytes(8) if len(packed) == 4 else bytes(4) + packed + bytes(4))
