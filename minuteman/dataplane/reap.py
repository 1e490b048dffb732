"""The reaper's work: end the connections to backends that are gone.

    python -m minuteman.dataplane.reap --pins FOLDER

A program whose backend is gone may not hear of it: TCP waits until it gives up, and a connected UDP
socket sends into the void for ever. So such a socket is ended, with ECONNABORTED; the program
connects again, and gets another backend. child.py says how this is run.

A socket is ended when

- what it was given is nobody's: no member of any VIP has this address and port, neither as its own
  nor as those of its container. What there was before does not count, so it does not matter what
  was missed; and what is connected to an endpoint that any VIP still has, be it draining, is left
  alone. So is what was given a member that is one still, if its container is not known any more,
  as when an address of this host comes and goes;
- it is connected to that, or about to be. No program sees a socket disconnect, so it may be
  somewhere else by now. And one whose process connected to the backend itself, or that sends
  datagrams without a connection, was never given anything;
- its owner has it. Nobody waits at one that was closed, and older kernels have one stay for ever
  that is ended after that.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minuteman.dataplane import bpf, child, conns, netns
from minuteman.dataplane.conns import Entry, Place
from minuteman.dataplane.diag import STATES, connected_sockets, end_sockets
from minuteman.dataplane.layout import BACKEND, BACKEND_ID, HAS_INNER, INNER
from minuteman.dataplane.pins import Pins


@dataclass(frozen=True, slots=True)
class Report:
    """What was found and done."""

    checked: int = 0
    """Entries."""
    dead: int = 0
    """Those of backends that are gone, unless their sockets are closed."""
    ended: int = 0
    """Sockets."""
    namespaces: int = 0
    """Those that were looked into."""


def reap(where: Pins) -> Report:
    """End the sockets whose backends are gone. Errors: DataplaneError."""
    with conns.opened(where.maps) as found:
        entries = found.entries()
    dead = find_dead(entries, where.maps)
    ended = [
        count
        for _, count in netns.in_each(
            {entry.netns for entry in dead.values()}, lambda: end_in_namespace(dead)
        )
    ]
    return Report(len(entries), len(dead), sum(ended), len(ended))


def find_dead(entries: Mapping[int, bytes], maps: Path) -> dict[int, Entry]:
    """The entries of backends that are gone, by cookie. Errors: DataplaneError.

    `entries` were read before: what was given since then is not in there.
    """
    found = ((cookie, Entry.unpack(raw)) for cookie, raw in entries.items())
    # One that is being written has its cookie before the rest, which may be nothing yet.
    dead = {c: e for c, e in found if not e.abandoned and e.backend.protocol in STATES}
    for _ in range(2):  # a look may miss an endpoint that moves from one id to another meanwhile
        if dead:
            members = read_members(maps)
            dead = {cookie: entry for cookie, entry in dead.items() if not members.have(entry)}
    return dead


@dataclass(frozen=True, slots=True)
class Members:
    """The backends of all VIPs."""

    places: frozenset[Place]
    """Where they listen, and the containers inside."""
    plain: frozenset[tuple[int, int]]
    """Id and epoch of those of which no container inside is known: it may be as it was."""

    def have(self, entry: Entry) -> bool:
        """Whether what a socket was given is one of them."""
        return entry.backend in self.places or entry.member in self.plain


def read_members(maps: Path) -> Members:
    """Who is a member now. Errors: DataplaneError."""
    backends, inners = bpf.open_pin(maps / "backends"), bpf.open_pin(maps / "inners")
    try:
        raw = bpf.read_array(backends, BACKEND.size, bpf.map_info(backends).max_entries)
        inside = dict(bpf.read_hash(inners, BACKEND_ID.size, INNER.size))
    finally:
        bpf.close_all((backends, inners))
    places, plain = set(), set()
    # Ids are given out from 1 on, so what was never used is one tail of zeros.
    for at in range(0, len(raw.rstrip(b"\0")), BACKEND.size):
        address, port, protocol, _tier, weight, flags, _vip_id, epoch = BACKEND.unpack_from(raw, at)
        if not weight:  # the id is free
            continue
        backend_id = at // BACKEND.size
        places.add(Place(address, port, protocol))
        inner = inside.get(BACKEND_ID.pack(backend_id))
        if inner and flags & HAS_INNER:
            address, port, _backend_id = INNER.unpack(inner)
            places.add(Place(address, port, protocol))
        else:
            plain.add((backend_id, epoch))
    return Members(frozenset(places), frozenset(plain))


def end_in_namespace(dead: Mapping[int, Entry]) -> int:
    """End the sockets of this namespace that are connected as `dead` says; how many were."""
    protocols = {entry.backend.protocol for entry in dead.values()}
    return end_sockets(
        [
            found
            for protocol in protocols
            for found in connected_sockets(protocol)
            if (entry := dead.get(found.cookie))
            and entry.backend == (found.mapped_peer, found.peer_port, protocol)
        ]
    )


if __name__ == "__main__":
    sys.exit(child.run("minuteman.dataplane.reap", reap))
