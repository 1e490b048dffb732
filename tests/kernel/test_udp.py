"""Datagrams to a VIP: what a program sees of its UDP sockets, connected or not.

Every test is run for an IPv4 VIP, an IPv6 one, and an IPv4 one that an AF_INET6 socket sends to as
::ffff:a.b.c.d, where that makes a difference. A number in a name is that of the case in the table
"Sockets" of docs/conformance.md.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.wait import until
from minuteman.dataplane import bpf, layout
from minuteman.model import Backend, Endpoint, Frontend, Tier, Vip, VipKey
from minuteman.reconcile.kernelstate import PutBackend, Release, SwapVip, WriteRun
from minuteman.reconcile.plan import Planner
from tests.kernel.churn import disconnect
from tests.kernel.conftest import (
    Inside,
    Kernel,
    cookie_of,
    counted,
    endpoint_of,
    family_of,
    frontend,
)
from tests.kernel.mmsg import Name, receive_many, send_many

DEADLINE_SECONDS = 10.0
FIXED_PORT = 20_053
"""Of a client. The kernel gives none below 32,768 by itself."""
IP_PKTINFO = 8
"""Of linux/in.h; Python has it from 3.12."""
IP_RECVERR = 11
TO_VIP, FROM_BACKEND = 0, 1
"""Enum direction, maps.h."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a client gets to a VIP, and where its backends are."""

    vip: Frontend
    other_vip: Frontend
    host: str
    """Of the backends."""
    prefix: str = ""
    """Of an address, as the client writes it."""

    def name(self, of: Frontend | Endpoint) -> Name:
        """What a client sends to, and is to be told that an answer is from."""
        return f"{self.prefix}{of.address}", of.port

    def socket(self) -> socket.socket:
        """A client's socket, with a deadline."""
        made = socket.socket(family_of(self.name(self.vip)[0]), socket.SOCK_DGRAM)
        made.settimeout(5)
        return made


IPV4 = Way(frontend("1.2.3.4", 53, "udp"), frontend("1.2.3.5", 54, "udp"), "127.0.0.1")
IPV6 = Way(frontend("fd00::7", 53, "udp"), frontend("fd00::8", 54, "udp"), "::1")
MAPPED = replace(IPV4, prefix="::ffff:")


@pytest.fixture(params=[IPV4, IPV6, MAPPED], ids=["ipv4", "ipv6", "mapped"])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture(autouse=True)
def _served(cgroup: Path, inside: Inside) -> Iterator[None]:
    """This process is one that the programs serve."""
    with inside(cgroup):
        yield


class Echoes:
    """UDP servers that answer each datagram with their own port, and with what it said."""

    def __init__(self) -> None:
        self._threads: dict[Endpoint, threading.Thread] = {}

    def start(self, host: str) -> Endpoint:
        server = bound(host)
        endpoint = endpoint_of(server)
        thread = threading.Thread(target=_echo, args=(server, endpoint.port), daemon=True)
        thread.start()
        self._threads[endpoint] = thread
        return endpoint

    def stop(self, endpoint: Endpoint) -> None:
        """End a server once it has answered what has arrived."""
        with socket.socket(family_of(str(endpoint.address)), socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", (str(endpoint.address), endpoint.port))
        self._threads.pop(endpoint).join()

    def stop_all(self) -> None:
        for endpoint in list(self._threads):
            self.stop(endpoint)


def _echo(server: socket.socket, port: int) -> None:
    server.settimeout(None)
    with server:
        while True:
            said, client = server.recvfrom(64)
            if not said:
                return
            server.sendto(port.to_bytes(2, "big") + said, client)


@pytest.fixture
def echoes() -> Iterator[Echoes]:
    made = Echoes()
    yield made
    made.stop_all()


def bound(host: str) -> socket.socket:
    """A socket of a server that the test answers for itself."""
    server = socket.socket(family_of(host), socket.SOCK_DGRAM)
    server.settimeout(5)
    server.bind((host, 0))
    return server


def serve(
    kernel: Kernel, vip: Frontend, *members: Endpoint, draining: Sequence[Endpoint] = ()
) -> None:
    """Have `vip` served by these as the agent has it: a member that stays keeps its id."""
    tiers = dict.fromkeys(members, Tier.UP) | dict.fromkeys(draining, Tier.DRAINING)
    backends = tuple(
        Backend(member, 1, tiers[member], "test", "", str(member)) for member in sorted(tiers)
    )
    key = VipKey(vip.address, vip.port, vip.transport)
    kernel.apply(*Planner().plan({key: Vip(key, (vip,), backends)}, kernel.state, [key]).ops)


def active(kernel: Kernel, vip: Frontend, member: Endpoint) -> int:
    return counted(kernel, member, vip).active


def reason(kernel: Kernel, name: str) -> int:
    return kernel.dataplane.counters().reasons[name]


class Answer(NamedTuple):
    """What comes back from an echo."""

    port: int
    """Of the backend, as it says itself."""
    sender: Name
    """As the kernel says it."""


def read_answer(sock: socket.socket, said: bytes = b"?", flags: int = 0) -> Answer:
    text, sender = sock.recvfrom(64, flags)
    assert text[2:] == said
    return Answer(int.from_bytes(text[:2], "big"), sender[:2])


def ask(sock: socket.socket, to: Name, said: bytes = b"?") -> Answer:
    """Send a datagram with an address on it, and wait for the answer."""
    sock.sendto(said, to)
    return read_answer(sock, said)


def ask_peer(sock: socket.socket, said: bytes = b"?") -> Answer:
    """The same with none."""
    sock.send(said)
    return read_answer(sock, said)


def who_answers(way: Way, vip: Frontend) -> int:
    """The port of the backend that a fresh socket reaches without connecting."""
    with way.socket() as sock:
        return ask(sock, way.name(vip)).port


def datagrams_sent() -> int:
    """By all sockets of this network namespace since it was made, of both families."""
    rows = Path("/proc/self/net/snmp").read_text(encoding="ascii").splitlines()
    names, values = (row.split() for row in rows if row.startswith("Udp:"))
    rows = Path("/proc/self/net/snmp6").read_text(encoding="ascii").splitlines()
    return int(values[names.index("OutDatagrams")]) + int(
        dict(map(str.split, rows))["Udp6OutDatagrams"]
    )


# ---- 23: a socket that is not connected ----------------------------------------------------------
def test_case_23_an_answer_comes_from_the_vip(kernel: Kernel, echoes: Echoes, way: Way) -> None:
    member = echoes.start(way.host)
    serve(kernel, way.vip, member)
    with way.socket() as sock:
        assert ask(sock, way.name(way.vip)) == (member.port, way.name(way.vip))


def test_case_23_a_socket_keeps_its_backend_while_others_join_and_load_changes(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    members = [echoes.start(way.host) for _ in range(2)]
    serve(kernel, way.vip, *members)
    with way.socket() as sock, ExitStack() as crowd:
        first = ask(sock, way.name(way.vip)).port
        for _ in range(5):
            members.append(echoes.start(way.host))
            serve(kernel, way.vip, *members)
            busy = crowd.enter_context(way.socket())
            busy.connect(way.name(way.vip))
            for _ in range(10):
                assert ask(sock, way.name(way.vip)) == (first, way.name(way.vip))
        # Its own backend has more to do than any other, now.
        while active(kernel, way.vip, next(m for m in members if m.port == first)) < 2:
            busy = crowd.enter_context(way.socket())
            busy.connect(way.name(way.vip))
        assert ask(sock, way.name(way.vip)) == (first, way.name(way.vip))


def test_case_23_different_sockets_spread(kernel: Kernel, echoes: Echoes, way: Way) -> None:
    members = [echoes.start(way.host) for _ in range(3)]
    serve(kernel, way.vip, *members)
    landed = Counter(who_answers(way, way.vip) for _ in range(300))
    # A third each; six standard deviations are 49.
    assert set(landed) == {member.port for member in members}
    assert all(51 <= count <= 149 for count in landed.values()), landed


def test_case_23_a_socket_has_a_backend_of_its_own_for_each_vip(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    one, other = echoes.start(way.host), echoes.start(way.host)
    serve(kernel, way.vip, one)
    serve(kernel, way.other_vip, other)
    with way.socket() as sock:
        for _ in range(3):
            assert ask(sock, way.name(way.vip)) == (one.port, way.name(way.vip))
            assert ask(sock, way.name(way.other_vip)) == (other.port, way.name(way.other_vip))


# ---- 24: a socket that is connected --------------------------------------------------------------
def test_case_24_the_peer_of_a_connected_socket_is_the_vip(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    serve(kernel, way.vip, echoes.start(way.host), echoes.start(way.host))
    with way.socket() as sock:
        sock.connect(way.name(way.vip))
        assert sock.getpeername()[:2] == way.name(way.vip)
        first = ask_peer(sock)
        assert first.sender == way.name(way.vip)
        for _ in range(20):
            assert ask_peer(sock) == first
        # Where it is connected to is where an address on a datagram leads, too.
        for _ in range(20):
            assert ask(sock, way.name(way.vip)) == first


def test_case_24_a_dead_backend_is_an_error_and_connecting_again_goes_elsewhere(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    dying, heir = echoes.start(way.host), echoes.start(way.host)
    serve(kernel, way.vip, dying)
    with way.socket() as sock:
        sock.connect(way.name(way.vip))
        assert ask_peer(sock).port == dying.port
        echoes.stop(dying)
        with pytest.raises(ConnectionRefusedError):
            ask_peer(sock)
        serve(kernel, way.vip, heir)
        sock.connect(way.name(way.vip))
        assert sock.getpeername()[:2] == way.name(way.vip)
        assert ask_peer(sock) == (heir.port, way.name(way.vip))


def test_case_24_a_connected_socket_stays_with_a_backend_that_is_a_vip_itself(
    kernel: Kernel, way: Way
) -> None:
    with way.socket() as sock, bound(way.host) as server, bound(way.host) as other:
        member = endpoint_of(server)
        serve(kernel, way.vip, member)
        itself = Frontend(member.address, member.port, "udp")
        kernel.serve(itself, [(endpoint_of(other), Tier.UP)])  # without a word on other ports there
        sock.connect(way.name(way.vip))
        sock.send(b"?")
        _, client = server.recvfrom(64)
        server.sendto(b"!", client)
        assert sock.recvfrom(64)[1][:2] == way.name(way.vip)


# ---- 25: a connected socket that sends elsewhere ------------------------------------------------
def test_case_25_a_connected_socket_hears_nobody_but_its_peer(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    member = echoes.start(way.host)
    serve(kernel, way.vip, member)
    with way.socket() as sock, bound(way.host) as other:
        serve(kernel, way.other_vip, endpoint_of(other))
        sock.connect(way.name(way.vip))
        sock.sendto(b"from afar", way.name(way.other_vip))
        said, client = other.recvfrom(64)
        assert said == b"from afar"
        assert sock.getpeername()[:2] == way.name(way.vip)
        # The kernel lets a connected socket have nothing from elsewhere: as if nobody was there.
        other.connect(client)
        other.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            other.recv(64)
        assert ask_peer(sock) == (member.port, way.name(way.vip))


def test_case_25_after_disconnecting_each_answer_comes_from_its_vip(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    one, other = echoes.start(way.host), echoes.start(way.host)
    serve(kernel, way.vip, one)
    serve(kernel, way.other_vip, other)
    with way.socket() as sock:
        sock.connect(way.name(way.vip))
        ask_peer(sock)
        disconnect(sock)
        with pytest.raises(OSError, match="not connected"):
            sock.getpeername()
        for _ in range(2):
            assert ask(sock, way.name(way.other_vip)) == (other.port, way.name(way.other_vip))
            assert ask(sock, way.name(way.vip)) == (one.port, way.name(way.vip))


def test_case_25_an_answer_that_comes_after_disconnecting_is_from_the_backend(
    kernel: Kernel, way: Way
) -> None:
    with way.socket() as sock, bound(way.host) as server:
        serve(kernel, way.vip, endpoint_of(server))
        sock.bind(("", FIXED_PORT))  # else it loses its port with its peer
        sock.connect(way.name(way.vip))
        sock.send(b"?")
        _, client = server.recvfrom(64)
        disconnect(sock)
        server.sendto(b"late", client)
        said, sender = sock.recvfrom(64)
        assert (said, sender[:2]) == (b"late", way.name(endpoint_of(server)))


def test_case_25_of_two_vips_with_one_backend_the_last_used_is_shown(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    member = echoes.start(way.host)
    serve(kernel, way.vip, member)
    serve(kernel, way.other_vip, member)
    with way.socket() as sock:
        for vip in (way.vip, way.other_vip, way.vip, way.other_vip):
            assert ask(sock, way.name(vip)).sender == way.name(vip)
        # But what a connected socket receives is from its peer, always.
        sock.connect(way.name(way.vip))
        assert ask_peer(sock).sender == way.name(way.vip)
        assert ask(sock, way.name(way.other_vip)).sender == way.name(way.vip)
        assert ask_peer(sock).sender == way.name(way.vip)
        disconnect(sock)
        assert ask(sock, way.name(way.other_vip)).sender == way.name(way.other_vip)


# ---- 26: the very backend, asked for by its own address ------------------------------------------
def test_case_26_connecting_to_a_backend_itself_shows_no_vip(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    member = echoes.start(way.host)
    serve(kernel, way.vip, member)
    with way.socket() as sock:
        ask(sock, way.name(way.vip))
        sock.connect(way.name(way.vip))
        ask_peer(sock)
        disconnect(sock)
        sock.connect(way.name(member))
        assert sock.getpeername()[:2] == way.name(member)
        assert ask_peer(sock) == (member.port, way.name(member))
        assert ask(sock, way.name(member)) == (member.port, way.name(member))
        # And back, without disconnecting.
        sock.connect(way.name(way.vip))
        assert sock.getpeername()[:2] == way.name(way.vip)
        assert ask_peer(sock) == (member.port, way.name(way.vip))


def test_case_26_sending_to_a_backend_itself_shows_no_vip(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    members = [echoes.start(way.host) for _ in range(3)]
    serve(kernel, way.vip, *members)
    with way.socket() as sock:
        first = ask(sock, way.name(way.vip))
        for _ in range(3):
            for member in members:
                assert ask(sock, way.name(member)) == (member.port, way.name(member))
            # It still has the backend that it had.
            assert ask(sock, way.name(way.vip)) == first


# ---- 27: what was noted of a socket is gone ------------------------------------------------------
def forget_flows(kernel: Kernel, sock: socket.socket, *directions: int) -> int:
    """Remove what `flows` has of the socket, as if evicted; how many entries that were."""
    cookie = cookie_of(sock)
    flows = bpf.open_pin(kernel.where.maps / "flows")
    forgotten = 0
    try:
        for key, _ in list(bpf.read_hash(flows, layout.FLOW_KEY.size, layout.FLOW.size)):
            owner, _, _, direction, _ = layout.FLOW_KEY.unpack(key)
            if owner == cookie and direction in directions:
                bpf.delete(flows, key)
                forgotten += 1
    finally:
        os.close(flows)
    return forgotten


def test_case_27_a_connected_socket_needs_no_flow(kernel: Kernel, echoes: Echoes, way: Way) -> None:
    serve(kernel, way.vip, echoes.start(way.host), echoes.start(way.host))
    with way.socket() as sock:
        ask(sock, way.name(way.vip))
        sock.connect(way.name(way.vip))
        first = ask_peer(sock)
        sock.send(b"?")
        assert forget_flows(kernel, sock, TO_VIP, FROM_BACKEND)
        assert read_answer(sock) == first
        assert first.sender == sock.getpeername()[:2] == way.name(way.vip)
        assert ask(sock, way.name(way.vip)) == first


def test_case_27_without_its_flow_an_answer_comes_from_the_backend(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    with way.socket() as sock, bound(way.host) as server:
        member = endpoint_of(server)
        serve(kernel, way.vip, member)
        sock.sendto(b"?", way.name(way.vip))
        _, client = server.recvfrom(64)
        assert forget_flows(kernel, sock, TO_VIP, FROM_BACKEND) == 2
        server.sendto(b"late", client)
        said, sender = sock.recvfrom(64)
        assert (said, sender[:2]) == (b"late", way.name(member))
        # The next datagram is as a first one.
        sock.sendto(b"?", way.name(way.vip))
        _, client = server.recvfrom(64)
        server.sendto(b"in time", client)
        said, sender = sock.recvfrom(64)
        assert (said, sender[:2]) == (b"in time", way.name(way.vip))


def test_case_27_one_half_of_a_flow_is_made_good_by_the_next_datagram(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    serve(kernel, way.vip, *(echoes.start(way.host) for _ in range(3)))
    with way.socket() as sock:
        first = ask(sock, way.name(way.vip))
        for _ in range(5):
            assert forget_flows(kernel, sock, FROM_BACKEND) == 1
            assert ask(sock, way.name(way.vip)) == first
        assert forget_flows(kernel, sock, TO_VIP) == 1
        assert ask(sock, way.name(way.vip)).sender == way.name(way.vip)


# ---- 28: a socket whose backend is gone ----------------------------------------------------------
def test_case_28_a_socket_whose_backend_died_goes_on_with_a_live_one(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    dying, heir = echoes.start(way.host), echoes.start(way.host)
    serve(kernel, way.vip, dying)
    with way.socket() as sock:
        assert ask(sock, way.name(way.vip)).port == dying.port
        echoes.stop(dying)
        # Nobody has noticed yet: what is sent is lost, without an error.
        for _ in range(3):
            sock.sendto(b"lost", way.name(way.vip))
        serve(kernel, way.vip, heir)
        for _ in range(3):
            assert ask(sock, way.name(way.vip)) == (heir.port, way.name(way.vip))


def move_id(kernel: Kernel, vip: Frontend, to: Frontend, member: Endpoint) -> None:
    """Give the id of the only backend of `vip` to `member`, as one of `to`."""
    run = kernel.state.frontends[vip]
    (backend_id,) = kernel.state.runs[run.base]
    vip_id = run.vip_id if to == vip else kernel.state.next_vip_id
    kernel.apply(
        SwapVip(vip, run.vip_id, run.base, (0, 0, 0)),
        Release(((run.base, 1),), (backend_id,)),
        PutBackend(backend_id, vip_id, member, 1, Tier.UP),
        WriteRun(run.base, (backend_id,)),
        SwapVip(to, vip_id, run.base, (1, 0, 0)),
    )


def test_case_28_an_id_that_went_to_another_member_is_no_backend_of_the_socket(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    leaver, successor = echoes.start(way.host), echoes.start(way.host)
    serve(kernel, way.vip, leaver)
    with way.socket() as sock:
        assert ask(sock, way.name(way.vip)).port == leaver.port
        move_id(kernel, way.vip, way.vip, successor)
        assert ask(sock, way.name(way.vip)) == (successor.port, way.name(way.vip))


def test_case_28_an_id_that_went_to_another_vip_is_no_backend_of_the_socket(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    leaver, stranger, heir = (echoes.start(way.host) for _ in range(3))
    serve(kernel, way.vip, leaver)
    with way.socket() as sock:
        assert ask(sock, way.name(way.vip)).port == leaver.port
        move_id(kernel, way.vip, way.other_vip, stranger)
        with pytest.raises(ConnectionRefusedError):
            sock.sendto(b"?", way.name(way.vip))
        serve(kernel, way.vip, heir)
        assert ask(sock, way.name(way.vip)) == (heir.port, way.name(way.vip))
        assert ask(sock, way.name(way.other_vip)) == (stranger.port, way.name(way.other_vip))


def test_case_28_a_socket_follows_the_container_behind_a_port_of_this_host(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    published, inner, replacement = (echoes.start(way.host) for _ in range(3))
    serve(kernel, way.vip, published)
    (backend,) = kernel.state.backends.values()
    with way.socket() as sock:
        for there in (inner, replacement, None):
            kernel.apply(replace(backend, inner=there))
            expected = (there or published).port
            assert ask(sock, way.name(way.vip)) == (expected, way.name(way.vip))


# ---- 29: every call that sends and receives ------------------------------------------------------
def test_case_29_a_peek_shows_the_vip_and_takes_nothing(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    member = echoes.start(way.host)
    serve(kernel, way.vip, member)
    with way.socket() as sock:
        sock.sendto(b"?", way.name(way.vip))
        for flags in (socket.MSG_PEEK, socket.MSG_PEEK, 0):
            assert read_answer(sock, flags=flags) == (member.port, way.name(way.vip))
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(64)


def test_case_29_what_is_too_long_is_cut_and_comes_from_the_vip(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    serve(kernel, way.vip, echoes.start(way.host))
    with way.socket() as sock:
        sock.sendto(b"a long question", way.name(way.vip))
        text, _, flags, sender = sock.recvmsg(4)
        assert (len(text), sender[:2]) == (4, way.name(way.vip))
        assert flags & socket.MSG_TRUNC


def test_case_29_packet_info_is_beside_the_vip(kernel: Kernel, echoes: Echoes, way: Way) -> None:
    member = echoes.start(way.host)
    serve(kernel, way.vip, member)
    is_ipv6 = member.address.version == 6
    with way.socket() as sock:
        if is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.sendto(b"?", way.name(way.vip))
        text, ancillary, _, sender = sock.recvmsg(64, 256)
        assert (text[2:], sender[:2]) == (b"?", way.name(way.vip))
        [(level, _, info)] = ancillary
        # struct in6_pktinfo begins with the address, struct in_pktinfo ends with it.
        assert level == (socket.IPPROTO_IPV6 if is_ipv6 else socket.IPPROTO_IP)
        assert ip_address(info[:16] if is_ipv6 else info[8:]) == ip_address(way.host)


def test_case_29_packet_info_chooses_the_source_of_what_goes_to_a_vip(kernel: Kernel) -> None:
    with IPV4.socket() as sock, bound(IPV4.host) as server:
        serve(kernel, IPV4.vip, endpoint_of(server))
        info = struct.pack("=i4s4x", 0, IPv4Address("127.0.0.2").packed)
        sock.sendmsg([b"?"], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, IPV4.name(IPV4.vip))
        assert server.recvfrom(64) == (b"?", ("127.0.0.2", sock.getsockname()[1]))


def test_case_29_many_datagrams_in_one_call_each_have_their_vip(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    one, other, stranger = (echoes.start(way.host) for _ in range(3))
    serve(kernel, way.vip, one)
    serve(kernel, way.other_vip, other)
    with way.socket() as sock:
        sock.settimeout(None)
        deadline = struct.pack("@ll", 5, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, deadline)
        names = [way.name(to) for to in (way.vip, way.other_vip, stranger)] * 4
        questions = [(str(i).encode(), name) for i, name in enumerate(names)]
        assert send_many(sock, questions) == len(questions)
        answers = receive_many(sock, len(questions))
    assert {text[2:]: sender for text, sender in answers} == dict(questions)


def test_case_29_one_socket_sends_to_vips_of_both_families(kernel: Kernel, echoes: Echoes) -> None:
    expected = {}
    for way in (IPV6, MAPPED):
        for vip in (way.vip, way.other_vip):
            member = echoes.start(way.host)
            serve(kernel, vip, member)
            expected[way.name(vip)] = member.port
    with IPV6.socket() as sock:
        for _ in range(3):
            for name, port in expected.items():
                sock.sendmsg([b"to ", b"you"], [], 0, name)
                assert read_answer(sock, b"to you") == (port, name)


@pytest.mark.parametrize("connected", [False, True])
def test_case_29_a_long_conversation_is_with_one_backend(
    connected: bool, kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    members = [echoes.start(way.host) for _ in range(3)]
    serve(kernel, way.vip, *members)
    with way.socket() as sock:
        if connected:
            sock.connect(way.name(way.vip))
        first = ask(sock, way.name(way.vip))
        (mine,) = (member for member in members if member.port == first.port)
        for turn in range(200):
            if turn % 20 == 0:
                serve(kernel, way.vip, mine, *members[: turn // 20 % 3])
            said = f"packet {turn}".encode()
            answer = ask_peer(sock, said) if connected else ask(sock, way.name(way.vip), said)
            assert answer == first


def test_case_29_the_error_queue_names_the_backend(kernel: Kernel, echoes: Echoes) -> None:
    """No program is asked when an error is read: it says where the datagram really went."""
    dead = echoes.start(IPV4.host)
    echoes.stop(dead)
    serve(kernel, IPV4.vip, dead)
    with IPV4.socket() as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.sendto(b"?", IPV4.name(IPV4.vip))
        text, _, flags, about = sock.recvmsg(64, 256, socket.MSG_ERRQUEUE)
        assert flags & socket.MSG_ERRQUEUE
        assert (text, about) == (b"?", IPV4.name(dead))


# ---- 30: backends come and go under a client that never stops -----------------------------------
@dataclass(slots=True)
class Client:
    """Asks on and on, and connects again when it is refused, if it is connected at all."""

    way: Way
    connected: bool
    ending: threading.Event
    last_port: int = 0
    lost: int = 0

    def run(self) -> None:
        with self.way.socket() as sock:
            sock.settimeout(0.25)
            if self.connected:
                sock.connect(self.way.name(self.way.vip))
            turn = 0
            while not self.ending.is_set():
                turn += 1
                try:
                    self.last_port = self._ask(sock, str(turn).encode())
                except TimeoutError:
                    self.lost += 1
                except ConnectionRefusedError:
                    self.lost += 1
                    sock.connect(self.way.name(self.way.vip))

    def _ask(self, sock: socket.socket, said: bytes) -> int:
        name = self.way.name(self.way.vip)
        if self.connected:
            sock.send(said)
        else:
            sock.sendto(said, name)
        while True:
            text, sender = sock.recvfrom(64)
            assert sender[:2] == name
            if text[2:] == said:  # else it is late, and was given up
                return int.from_bytes(text[:2], "big")


def test_case_30_datagrams_go_on_when_a_server_is_replaced(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    cycles = 4
    old = echoes.start(way.host)
    serve(kernel, way.vip, old)
    ending = threading.Event()
    clients = [Client(way, connected, ending) for connected in (False, True)]

    def all_answered_by(member: Endpoint) -> bool:
        return all(client.last_port == member.port for client in clients)

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(client.run) for client in clients]
        try:
            for _ in range(cycles):
                new = echoes.start(way.host)
                serve(kernel, way.vip, new)
                echoes.stop(old)
                until("answers of the new server", partial(all_answered_by, new), DEADLINE_SECONDS)
                old = new
        finally:
            ending.set()
        for client in running:
            client.result()
    # When a server ends, one datagram is on its way, one more finds that it has ended, and one may
    # be late on a busy machine.
    assert all(client.lost <= 3 * cycles for client in clients), clients


# ---- 3: refusals ---------------------------------------------------------------------------------
def refused(sock: socket.socket, name: Name) -> None:
    """Sending and connecting to `name` is refused at once, and nothing leaves."""
    before = datagrams_sent()
    with pytest.raises(ConnectionRefusedError):
        sock.sendto(b"?", name)
    with pytest.raises(ConnectionRefusedError):
        sock.connect(name)
    assert datagrams_sent() == before


def test_case_03_a_vip_without_backends_refuses_datagrams(kernel: Kernel, way: Way) -> None:
    serve(kernel, way.vip)
    with way.socket() as sock:
        refused(sock, way.name(way.vip))
    assert reason(kernel, "refused_empty") == 2


def test_case_03_a_vip_that_lost_its_backends_refuses_a_socket_that_had_one(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    serve(kernel, way.vip, echoes.start(way.host))
    with way.socket() as sock:
        ask(sock, way.name(way.vip))
        serve(kernel, way.vip)
        refused(sock, way.name(way.vip))
        member = echoes.start(way.host)
        serve(kernel, way.vip, member)
        assert ask(sock, way.name(way.vip)) == (member.port, way.name(way.vip))


def test_datagrams_to_what_is_no_vip_pass_untouched(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    serve(kernel, way.vip, echoes.start(way.host))
    server = echoes.start(way.host)
    with way.socket() as sock:
        assert ask(sock, way.name(server)) == (server.port, way.name(server))
        sock.connect(way.name(server))
        assert sock.getpeername()[:2] == way.name(server)
        assert ask_peer(sock) == (server.port, way.name(server))
    assert reason(kernel, "translated") == 0


# ---- counters ------------------------------------------------------------------------------------
def test_a_connected_socket_is_active_until_it_is_closed(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    member = echoes.start(way.host)
    serve(kernel, way.vip, member)
    with way.socket() as one, way.socket() as other:
        one.connect(way.name(way.vip))
        other.connect(way.name(way.vip))
        assert active(kernel, way.vip, member) == 2
        one.close()
        assert active(kernel, way.vip, member) == 1
    assert active(kernel, way.vip, member) == 0


def test_a_socket_that_is_not_connected_does_not_count(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    member = echoes.start(way.host)
    serve(kernel, way.vip, member)
    with way.socket() as sock:
        ask(sock, way.name(way.vip))
        assert active(kernel, way.vip, member) == 0


def test_a_socket_that_connects_elsewhere_counts_there(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    one, other, stranger = (echoes.start(way.host) for _ in range(3))
    serve(kernel, way.vip, one)
    serve(kernel, way.other_vip, other)
    with way.socket() as sock:

        def counts() -> tuple[int, int]:
            return active(kernel, way.vip, one), active(kernel, way.other_vip, other)

        for _ in range(3):
            sock.connect(way.name(way.vip))
            assert counts() == (1, 0)
            sock.connect(way.name(way.other_vip))
            assert counts() == (0, 1)
            sock.connect(way.name(stranger))
            assert counts() == (0, 0)
        sock.connect(way.name(way.vip))
        # No program is asked when a socket is disconnected, but when it connects again.
        disconnect(sock)
        sock.connect(way.name(way.other_vip))
        assert counts() == (0, 1)


def test_the_sockets_of_a_killed_process_do_not_count(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    member = echoes.start(way.host)
    serve(kernel, way.vip, member)
    program = (
        "import signal, socket, sys\n"
        "held = [socket.socket(int(sys.argv[1]), socket.SOCK_DGRAM) for _ in range(20)]\n"
        "for sock in held:\n"
        "    sock.connect((sys.argv[2], int(sys.argv[3])))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    address, port = way.name(way.vip)
    command = [
        sys.executable,
        "-S",
        "-c",
        program,
        str(int(family_of(address))),
        address,
        str(port),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert active(kernel, way.vip, member) == 20
        child.kill()
    until("end of its sockets", lambda: not active(kernel, way.vip, member), DEADLINE_SECONDS)


def test_connected_sockets_go_where_there_are_fewer(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    members = [echoes.start(way.host) for _ in range(2)]
    serve(kernel, way.vip, *members)
    with ExitStack() as held:
        for _ in range(30):
            held.enter_context(way.socket()).connect(way.name(way.vip))
            one, other = (active(kernel, way.vip, member) for member in members)
            # With two backends both are always compared, so neither gets ahead by more than one.
            assert abs(one - other) <= 1


# ---- draining ------------------------------------------------------------------------------------
def test_a_draining_backend_keeps_what_it_has_and_gets_nothing_new(
    kernel: Kernel, echoes: Echoes, way: Way
) -> None:
    leaving, staying = echoes.start(way.host), echoes.start(way.host)
    serve(kernel, way.vip, leaving)
    with way.socket() as loose, way.socket() as fixed:
        fixed.connect(way.name(way.vip))
        first = ask(loose, way.name(way.vip))
        assert first == ask_peer(fixed) == (leaving.port, way.name(way.vip))
        serve(kernel, way.vip, staying, draining=[leaving])
        for _ in range(20):
            assert ask(loose, way.name(way.vip)) == ask_peer(fixed) == first
            assert who_answers(way, way.vip) == staying.port
            with way.socket() as sock:
                sock.connect(way.name(way.vip))
                assert ask_peer(sock).port == staying.port
        # Better than to refuse.
        serve(kernel, way.vip, draining=[leaving])
        assert who_answers(way, way.vip) == leaving.port
