"""Where it is kept what sockets were given: at the place of their cookie, or in the hash beside it.

Mostly a place is free. Here every place is taken, so that all goes to the hash.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab.wait import until
from minuteman.dataplane import bpf, conns
from minuteman.dataplane.conns import Conns
from minuteman.dataplane.layout import CONN, SLOT, SPILL_PLACES, SPILLED
from minuteman.model import Endpoint, Tier
from tests.kernel.conftest import Backends, Inside, Kernel, connect, frontend

VIP, PORT = "1.2.3.4", 5000
DEADLINE_SECONDS = 5.0
FAR = 2**40
"""No socket has a cookie as high as this."""


def occupy(found: Conns, *, by_others: bool) -> None:
    """Have somebody else at every place, or nobody."""
    places = range(found.size)
    entries = (
        CONN.pack(b"", b"", b"", b"", 0, 0, 0, 0, 0, 0, 0, 0, FAR + place if by_others else 0)
        for place in places
    )
    keys = b"".join(map(SLOT.pack, places))
    bpf.update_batch(found.places, keys, b"".join(entries), found.size)


@pytest.fixture
def crowded(kernel: Kernel) -> Iterator[Conns]:
    with conns.opened(kernel.where.maps) as found:
        occupy(found, by_others=True)
        yield found
        occupy(found, by_others=False)


def spilled(kernel: Kernel, found: Conns) -> int:
    """How many entries the programs believe to be in the hash."""
    fd = bpf.open_pin(kernel.where.maps / "spills")
    try:
        raw = bpf.read_array(fd, SPILLED.size, found.size // SPILL_PLACES)
    finally:
        os.close(fd)
    return sum(memoryview(raw).cast("I"))


def in_hash(found: Conns) -> set[int]:
    return {cookie for cookie in found.entries() if cookie < FAR}


def active(kernel: Kernel) -> int:
    return sum(c.active for c in kernel.dataplane.counters().by_vip_backend.values())


def test_who_finds_the_place_taken_is_connected_named_and_counted_all_the_same(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside, crowded: Conns
) -> None:
    kernel.serve(frontend(VIP, PORT), [(backends.listen(), Tier.UP)])
    with inside(cgroup):
        held = [connect(VIP, PORT) for _ in range(20)]
    assert all(client.getpeername() == (VIP, PORT) for client in held)
    assert len(in_hash(crowded)) == spilled(kernel, crowded) == active(kernel) == len(held)
    for client in held:
        client.close()
    until("end of every connection", lambda: not active(kernel), DEADLINE_SECONDS)
    assert not in_hash(crowded)
    assert spilled(kernel, crowded) == 0


def test_it_is_found_in_the_hash_when_its_place_has_become_free(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside, crowded: Conns
) -> None:
    kernel.serve(frontend(VIP, PORT), [(backends.listen(), Tier.UP)])
    with inside(cgroup):
        client = connect(VIP, PORT)
        occupy(crowded, by_others=False)
        assert client.getpeername() == (VIP, PORT)
        with connect(VIP, PORT) as another:
            assert another.getpeername() == (VIP, PORT)
            assert len(crowded.entries()) == 2
            assert spilled(kernel, crowded) == 1
    client.close()
    until("end of every connection", lambda: not active(kernel), DEADLINE_SECONDS)
    assert not crowded.entries()
    assert spilled(kernel, crowded) == 0


def test_a_udp_socket_leaves_the_hash_when_it_connects_elsewhere(
    kernel: Kernel, cgroup: Path, inside: Inside, crowded: Conns
) -> None:
    direct = ("127.0.0.1", 9)
    backend = Endpoint(ip_address(direct[0]).packed, direct[1], "udp")
    kernel.serve(frontend(VIP, PORT, "udp"), [(backend, Tier.UP)])
    with inside(cgroup), socket.socket(type=socket.SOCK_DGRAM) as client:
        for _ in range(3):
            client.connect((VIP, PORT))
            assert client.getpeername() == (VIP, PORT)
            assert (len(in_hash(crowded)), spilled(kernel, crowded), active(kernel)) == (1, 1, 1)
            client.connect(direct)
            assert client.getpeername() == direct
            assert (len(in_hash(crowded)), spilled(kernel, crowded), active(kernel)) == (0, 0, 0)
