"""Connections through VIPs that there are now: what sockets were given, and how they fare.

The maps know what each socket was given, by its cookie. Whether it is still there, and what it is
at, can be told in its network namespace only. Both together are a connection.

A socket that sends datagrams without being connected has none, and is not here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from minuteman.dataplane import conns, netns
from minuteman.dataplane.layout import CONN, TRANSPORT, unmapped
from minuteman.dataplane.pins import Pins, read_about
from minuteman.dataplane.traffic import (
    ESTABLISHED,
    SYN_RECV,
    SYN_SENT,
    OpenSocket,
    Traffic,
    open_sockets,
)
from minuteman.errors import LayoutError
from minuteman.model import Address, Endpoint, Frontend

State = Literal["connecting", "established", "closing"]
STATES: dict[int, State] = {
    SYN_SENT: "connecting",
    SYN_RECV: "connecting",
    ESTABLISHED: "established",
}
"""All others are closing: one side, at least, has ended what it sends."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a socket was given."""

    vip: Frontend
    backend: Endpoint
    netns: int
    """The low half of the cookie of the socket's network namespace."""
    started_ms: int | None
    """On the monotonic clock, modulo 2**32; None: it is not known, as for UDP."""

    @classmethod
    def unpack(cls, raw: bytes) -> Given | None:
        """Source: struct conn. None: it is half written."""
        vip, backend, vip_port, backend_port, _, _, protocol, *_, netns, started_ms, _ = (
            CONN.unpack(raw)
        )
        if (transport := TRANSPORT.get(protocol)) is None:
            return None
        return cls(
            Frontend(ip_address(unmapped(vip)), int.from_bytes(vip_port, "big"), transport),
            Endpoint(unmapped(backend), int.from_bytes(backend_port, "big"), transport),
            netns,
            started_ms or None,
        )


@dataclass(frozen=True, slots=True)
class Connection:
    """A socket and its backend."""

    vip: Frontend
    backend: Endpoint
    client: Address
    """The socket's own."""
    client_port: int
    state: State
    network: str
    """The client's namespace, as `netns.names` calls it."""
    uid: int
    inode: int
    """Of the socket; 0: no descriptor refers to it any more."""
    age_seconds: float | None
    """Since connect(), modulo 49 days; None: it is not known, as for UDP."""
    traffic: Traffic | None
    """None for UDP."""


def join(
    given: dict[int, Given], sockets: Iterable[OpenSocket], network: str, now_ms: int
) -> Iterator[Connection]:
    """The connections of those `sockets` that are in `given`, out of which they are taken."""
    for found in sockets:
        if (what := given.pop(found.cookie, None)) is None:
            continue
        yield Connection(
            what.vip,
            what.backend,
            ip_address(unmapped(found.address_packed)),
            found.port,
            STATES.get(found.state, "closing"),
            network,
            found.uid,
            found.inode,
            None if what.started_ms is None else (now_ms - what.started_ms) % 2**32 / 1_000,
            found.traffic,
        )


class Survey:
    """One look at every connection."""

    def __init__(self, where: Pins, wanted: Callable[[Given], bool]) -> None:
        """Of the maps in `where`, entries that are `wanted`."""
        self._where = where
        self._wanted = wanted
        self.unfound = 0
        """Sockets that the maps know and that were in no namespace, once all were looked at."""

    def connections(self) -> Iterator[Connection]:
        """Each that is found, namespace by namespace.

        Errors: LayoutError when the maps are of another version; DataplaneError.
        """
        if read_about(self._where).maps["conns"].value != CONN.text:
            reason = "programs of another version serve; `minuteman` of that one can read it"
            raise LayoutError(f"read conns in {self._where.folder}", 0, reason)
        with conns.opened(self._where.maps) as maps:
            given = {
                cookie: what
                for cookie, raw in maps.entries().items()
                if (what := Given.unpack(raw)) is not None and self._wanted(what)
            }
            names = netns.names()

            def look() -> tuple[int, list[OpenSocket]]:
                return netns.HERE.stat().st_ino, open_sockets(given)

            for _, (inode, sockets) in netns.in_each({each.netns for each in given.values()}, look):
                network = names.get(inode, f"net:[{inode}]")
                yield from join(given, sockets, network, time.monotonic_ns() // 1_000_000)
            self.unfound = sum(maps.find(cookie) is not None for cookie in given)
