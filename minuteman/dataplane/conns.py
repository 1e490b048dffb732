"""What sockets were given: the maps `conns` and `more_conns` as one, by cookie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minuteman.dataplane import bpf
from minuteman.dataplane.layout import CONN, COOKIE, SLOT

_WORDS = CONN.size // COOKIE.size
"""The cookie is the last one; 0: the place is free."""


class Place(NamedTuple):
    """Where a backend listens."""

    address: bytes
    """16 bytes, network order; IPv4 as IPv4-mapped IPv6."""
    port: bytes
    """Network order."""
    protocol: int


class Entry(NamedTuple):
    """What a socket was given, as far as it matters for its end."""

    raw: bytes
    """All of it: struct conn."""
    backend: Place
    member: tuple[int, int]
    """Its id and epoch."""
    netns: int
    """The low half of a cookie."""
    abandoned: bool
    """Its owner has closed it."""

    @classmethod
    def unpack(cls, raw: bytes) -> Entry:
        """Source: struct conn."""
        (
            _vip_addr,
            address,
            _vip_port,
            port,
            backend_id,
            epoch,
            protocol,
            _phase,
            _timeouts,
            abandoned,
            netns,
            *_,
        ) = CONN.unpack(raw)
        place = Place(address, port, protocol)
        return cls(raw, place, (backend_id, epoch), netns, bool(abandoned))


@dataclass(frozen=True, slots=True)
class Conns:
    """Open descriptors. Values are as `struct conn` has them."""

    places: int
    """Descriptor of `conns`, an array: an entry is at the low bits of its cookie."""
    more: int
    """Descriptor of `more_conns`, a hash: entries whose place was taken."""
    size: int
    """Of `conns`: a power of two."""

    def entries(self) -> dict[int, bytes]:
        """Every entry; of those that come and go meanwhile, some. Errors: DataplaneError."""
        raw = bpf.read_array(self.places, CONN.size, self.size)
        cookies = memoryview(raw).cast("Q")[_WORDS - 1 :: _WORDS]
        found = {
            cookie: raw[place * CONN.size : (place + 1) * CONN.size]
            for place, cookie in enumerate(cookies)
            if cookie
        }
        more = bpf.read_hash(self.more, COOKIE.size, CONN.size)
        return found | {COOKIE.unpack(key)[0]: conn for key, conn in more}

    def find(self, cookie: int) -> bytes | None:
        """The entry of one socket. Errors: DataplaneError."""
        place = bpf.lookup(self.places, SLOT.pack(cookie % self.size), CONN.size)
        if place is not None and _cookie(place) == cookie:
            return place
        return bpf.lookup(self.more, COOKIE.pack(cookie), CONN.size)


@contextmanager
def opened(folder: Path) -> Iterator[Conns]:
    """The maps pinned in `folder`, while the block runs. Errors: DataplaneError."""
    with ExitStack() as stack:

        def opened_pin(name: str) -> int:
            fd = bpf.open_pin(folder / name)
            stack.callback(os.close, fd)
            return fd

        places = opened_pin("conns")
        yield Conns(places, opened_pin("more_conns"), bpf.map_info(places).max_entries)


def _cookie(raw: bytes) -> int:
    return int(COOKIE.unpack_from(raw, CONN.size - COOKIE.size)[0])
