"""The sweep: settle what was given to sockets that went without any of our programs seeing it.

    python -m minuteman.dataplane.sweep --pins FOLDER

The programs follow each socket to its end. They miss one while they are not attached, when another
one's sock_ops program turns our callbacks off, and where the kernel has a UDP socket of its own. So
now and then the entries of `conns` are compared with the sockets that there are.

It is a process of its own: the agent's threads do not wait for it, and its memory is not theirs. It
writes what it did to standard output, one line of JSON, and what went wrong to standard error; it
returns an exit code of errors.py.

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

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from minuteman.dataplane import bpf, conns, netns
from minuteman.dataplane.layout import CONN, COOKIE
from minuteman.dataplane.pins import SETTLE, Pins
from minuteman.dataplane.sockets import connected_sockets
from minuteman.errors import MinutemanError
from minuteman.privileges import end_with_parent

CONFIRM_SECONDS = 0.2
"""Between two dumps."""
NICENESS = 10
PACKET_SIZE = 14
"""The least that a program for packets is run on: an Ethernet header."""


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
class Entry:
    """What `conns` has for a socket, of use here."""

    raw: bytes
    netns: int
    abandoned: bool

    @classmethod
    def unpack(cls, raw: bytes) -> Entry:
        """Source: struct conn."""
        *_, abandoned, netns_cookie, _started_ms, _cookie = CONN.unpack(raw)
        return cls(raw, netns_cookie, bool(abandoned))


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
        settle = bpf.open_pin(where.programs / SETTLE)
        stack.callback(os.close, settle)
        census = take_census(entries)
        suspects = {c: entry for c, entry in entries.items() if census.lacks(c, entry)}
        if suspects:
            time.sleep(CONFIRM_SECONDS)
            again = take_census(suspects)
            suspects = {c: entry for c, entry in suspects.items() if again.lacks(c, entry)}
        settled = 0
        for cookie, entry in suspects.items():
            if found.find(cookie) == entry.raw:
                packet = COOKIE.pack(cookie).ljust(PACKET_SIZE, b"\0")
                settled += bpf.run_on(settle, packet)
        return Report(len(entries), len(census.namespaces), settled)


def take_census(entries: Mapping[int, Entry]) -> Census:
    """Look for sockets in the network namespaces that `entries` are of. Errors: DataplaneError."""
    wanted = {entry.netns for entry in entries.values()}
    sockets: set[int] = set()
    namespaces: set[int] = set()
    for namespace in netns.namespaces():
        with suppress(OSError), netns.inside(namespace):  # it may be something else
            cookie = netns.netns_cookie()
            if cookie is None:  # before Linux 5.14: known by the sockets that are found in it
                found = connected_sockets()
                namespaces |= {entries[c].netns for c in found & entries.keys()}
                sockets |= found
            elif (low := cookie % 2**32) in wanted:  # of which struct conn has the low half
                namespaces.add(low)
                sockets |= connected_sockets()
    return Census(frozenset(sockets), frozenset(namespaces))


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m minuteman.dataplane.sweep`."""
    parser = argparse.ArgumentParser(prog="minuteman.dataplane.sweep", description=__doc__)
    parser.add_argument("--pins", type=Path, required=True)
    options = parser.parse_args(arguments)
    end_with_parent()
    os.nice(NICENESS)
    try:
        report = sweep(Pins(options.pins))
    except MinutemanError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
