"""The sweep: settle what was given to sockets that went without any of our programs seeing it.

    python -m minuteman.dataplane.sweep --pins FOLDER

The programs follow each socket to its end. They miss one while they are not attached, when another
one's sock_ops program turns our callbacks off, and where the kernel has a UDP socket of its own. So
now and then the entries of `conns` are compared with the sockets that there are.

child.py says how this is run.

An entry is settled when

- its socket is in neither of two dumps of the sockets that are connected or about to be. One dump
  may miss a live socket, and a connect() may be under way;
- its network namespace was dumped, or its owner has closed the socket. That a namespace is gone is
  never certain: a socket alone keeps one alive, out of reach. The entries of one that is not found
  are left alone, unless they are abandoned: then nobody can ask the socket anything, and at worst
  its backend is taken for idle while the last bytes are on their way;
- it is still what it was before the dumps.

That includes sockets that are open, but not connected: a UDP socket after connect() to AF_UNSPEC,
or a socket whose connect() failed before a packet was sent. Their entries stand for no connection,
and the next connect() begins a new one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from minuteman.dataplane import child, conns, netns
from minuteman.dataplane.carry import Carrier
from minuteman.dataplane.conns import Entry
from minuteman.dataplane.diag import STATES, connected_sockets
from minuteman.dataplane.pins import Pins

CONFIRM_SECONDS = 0.2
"""Between two dumps."""
NICENESS = 10


@dataclass(frozen=True, slots=True)
class Report:
    """What a sweep did."""

    checked: int = 0
    """Entries."""
    namespaces: int = 0
    """Those that were dumped."""
    settled: int = 0
    """Entries of sockets that are gone."""


@dataclass(frozen=True, slots=True)
class Census:
    """Which sockets there are."""

    sockets: frozenset[int]
    """Cookies of those that are connected or about to be."""
    namespaces: frozenset[int]
    """Cookies of the network namespaces that they were looked for in."""

    def lacks(self, cookie: int, entry: Entry) -> bool:
        """Whether the socket is not among them, and would be, or matters to nobody."""
        return cookie not in self.sockets and (entry.abandoned or entry.netns in self.namespaces)


def sweep(where: Pins) -> Report:
    """Settle the entries of sockets that are gone. Errors: DataplaneError."""
    with ExitStack() as stack:
        found = stack.enter_context(conns.opened(where.maps))
        entries = {cookie: Entry.unpack(raw) for cookie, raw in found.entries().items()}
        if not entries:
            return Report()
        carrier = stack.enter_context(Carrier.opened(where))
        census = take_census(entries)
        suspects = {c: entry for c, entry in entries.items() if census.lacks(c, entry)}
        if suspects:
            time.sleep(CONFIRM_SECONDS)
            again = take_census(suspects)
            suspects = {c: entry for c, entry in suspects.items() if again.lacks(c, entry)}
        settled = 0
        for cookie, entry in suspects.items():
            if found.find(cookie) == entry.raw:
                settled += carrier.settle(cookie)
        return Report(len(entries), len(census.namespaces), settled)


def take_census(entries: Mapping[int, Entry]) -> Census:
    """Look for sockets in the network namespaces that `entries` are of. Errors: DataplaneError."""
    sockets: set[int] = set()
    namespaces: set[int] = set()
    for namespace, found in netns.in_each({e.netns for e in entries.values()}, connected_cookies):
        sockets |= found
        if namespace is not None:
            namespaces.add(namespace)
        else:  # known by the sockets that are found in it
            namespaces |= {entries[c].netns for c in found & entries.keys()}
    return Census(frozenset(sockets), frozenset(namespaces))


def connected_cookies() -> set[int]:
    """Those of this namespace's sockets. Errors: DataplaneError."""
    return {found.cookie for protocol in STATES for found in connected_sockets(protocol)}


if __name__ == "__main__":
    sys.exit(child.run("minuteman.dataplane.sweep", sweep, NICENESS))
