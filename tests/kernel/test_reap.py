"""Connections to backends that are gone are ended, and no others.

All of a test runs in the cgroup that is served. A number in a name is that of the case in the table
"Sockets" of docs/conformance.md.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import count
from pathlib import Path

import pytest

from lab.wait import until
from minuteman.dataplane import bpf, conns, netns
from minuteman.dataplane.diag import can_end_sockets, connected_sockets, end_sockets
from minuteman.dataplane.layout import SLOT
from minuteman.dataplane.reap import Report
from minuteman.errand import Errand
from minuteman.errors import DataplaneError
from minuteman.model import Endpoint, Frontend, Tier, Transport
from minuteman.reaper import REAP, Reaper
from minuteman.reconcile.kernelstate import PutBackend, SwapVip, WriteRun
from tests.contract.errands import wait_for_the_end
from tests.kernel import churn
from tests.kernel.conftest import Inside, Kernel, cookie_of, endpoint_of, family_of, frontend

DEADLINE_SECONDS = 20.0
VIP4, VIP6, OTHER_VIP4 = "1.2.3.4", "fd00::7", "1.2.3.5"
IPPROTO_MPTCP = 262
CLOSE_TIMEOUT = Path("/proc/sys/net/mptcp/close_timeout")
"""Seconds for which an MPTCP socket without a path waits for one."""
_ports = count(6000)


@dataclass(frozen=True, slots=True)
class Way:
    """How a client gets to a VIP, and where its backends are."""

    address: str
    """Of the VIP."""
    host: str
    """Of the backends."""
    prefix: str = ""
    """Of an address, as the client writes it."""

    def name(self, address: str, port: int) -> tuple[str, int]:
        """What a client connects to."""
        return f"{self.prefix}{address}", port


IPV4, IPV6 = Way(VIP4, "127.0.0.1"), Way(VIP6, "::1")
MAPPED = replace(IPV4, prefix="::ffff:")
WAYS = pytest.mark.parametrize("way", [IPV4, IPV6, MAPPED], ids=["ipv4", "ipv6", "mapped"])
TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "udp"])


@pytest.fixture(autouse=True)
def _served(cgroup: Path, inside: Inside) -> Iterator[None]:
    with inside(cgroup):
        yield


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Closes what is left at the end of a test."""
    with ExitStack() as stack:
        yield stack


class Service:
    """A VIP whose backends are sockets of the test's own."""

    def __init__(
        self, kernel: Kernel, held: ExitStack, way: Way = IPV4, transport: Transport = "tcp"
    ) -> None:
        self.vip = frontend(way.address, next(_ports), transport)
        self.way = way
        self._kernel = kernel
        self._held = held
        self._kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM

    def listen(self) -> tuple[Endpoint, socket.socket]:
        """A backend that is behind no VIP."""
        server = socket.socket(family_of(self.way.host), self._kind)
        self._held.enter_context(server).bind((self.way.host, 0))
        server.settimeout(DEADLINE_SECONDS)
        if self._kind == socket.SOCK_STREAM:
            server.listen(64)
        return endpoint_of(server), server

    def have(self, *members: Endpoint, draining: Sequence[Endpoint] = ()) -> None:
        """These are the VIP's backends from now on."""
        tiers = [(member, Tier.UP) for member in members]
        tiers += [(member, Tier.DRAINING) for member in draining]
        self._kernel.serve(self.vip, tiers, keep_ids=True)

    @property
    def name(self) -> tuple[str, int]:
        """What a client connects to."""
        return self.way.name(self.way.address, self.vip.port)

    def direct(self, endpoint: Endpoint) -> tuple[str, int]:
        """The backend itself, as a client writes it."""
        return self.way.name(str(endpoint.address), endpoint.port)

    def new_client(self) -> socket.socket:
        """A socket that is not connected."""
        client = self._held.enter_context(socket.socket(family_of(self.name[0]), self._kind))
        client.settimeout(DEADLINE_SECONDS)
        return client

    def connect(self, name: tuple[str, int] | None = None) -> socket.socket:
        """One that is connected to the VIP, or to `name`."""
        client = self.new_client()
        client.connect(name or self.name)
        return client


def reap(kernel: Kernel) -> Report:
    return Errand("reaping", REAP, kernel.where.folder, Report, threading.Event()).try_once()


def is_ended(client: socket.socket) -> bool:
    """Whether a socket has been ended; its process is told so once."""
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED


def is_alive(client: socket.socket) -> bool:
    client.getpeername()
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def state_of(client: socket.socket) -> int:
    return churn.state_of(client)


# ---- who is ended --------------------------------------------------------------------------------
@WAYS
@TRANSPORTS
def test_case_13_and_24_a_socket_of_a_dead_backend_is_aborted_and_connects_elsewhere(
    way: Way, transport: Transport, kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held, way, transport)
    (dying, _), (other, server) = service.listen(), service.listen()
    service.have(dying)
    clients = [service.connect() for _ in range(3)]
    service.have(dying, other)
    assert reap(kernel) == Report(checked=3)
    service.have(other)
    heard: list[int] = []

    def wait_for_an_error() -> None:
        try:
            clients[0].recv(1)
        except OSError as exc:
            heard.append(exc.errno or 0)

    waiting = threading.Thread(target=wait_for_an_error)
    waiting.start()
    assert reap(kernel) == Report(checked=3, dead=3, ended=3, namespaces=1)
    waiting.join(DEADLINE_SECONDS)
    assert heard == [errno.ECONNABORTED]
    assert all(is_ended(client) for client in clients[1:])
    again = clients[0] if transport == "udp" else service.connect()
    again.connect(service.name)
    again.send(b"x")
    if transport == "tcp":
        server = held.enter_context(server.accept()[0])
    assert server.recv(1) == b"x"
    assert again.getpeername()[:2] == service.name
    reap(kernel)
    assert is_alive(again)


@WAYS
def test_case_13_a_connect_to_a_dead_backend_is_aborted_while_it_waits(
    way: Way, kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held, way)
    (hole, silent), (other, _) = service.listen(), service.listen()
    churn.drop_all(silent)
    service.have(hole)
    heard: list[int] = []
    client = service.new_client()

    def wait_for_an_answer() -> None:
        client.settimeout(None)
        heard.append(client.connect_ex(service.name))

    waiting = threading.Thread(target=wait_for_an_answer)
    waiting.start()
    until("SYN", lambda: state_of(client) == churn.SYN_SENT, DEADLINE_SECONDS)
    service.have(other)
    assert reap(kernel) == Report(checked=1, dead=1, ended=1, namespaces=1)
    waiting.join(DEADLINE_SECONDS)
    assert heard == [errno.ECONNABORTED]
    assert service.connect().getpeername()[:2] == service.name


@TRANSPORTS
def test_case_13_connections_of_every_network_namespace_are_aborted(
    transport: Transport, kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held, transport=transport)
    dying, _ = service.listen()
    service.have(dying)
    here, there, visitors = service.connect(), [], []
    for name in "mm-reap-1", "mm-reap-2":
        with namespace(name, held):
            _listen_like(dying, held)
            visitors.append(service.connect())
            there.append(service.connect(service.direct(dying)))
    service.have()
    assert reap(kernel) == Report(checked=3, dead=3, ended=3, namespaces=3)
    assert all(is_ended(client) for client in (here, *visitors))
    assert all(is_alive(client) for client in there)


def test_half_closed_connections_are_aborted_too(kernel: Kernel, held: ExitStack) -> None:
    service = Service(kernel, held)
    dying, server = service.listen()
    service.have(dying)
    first = service.connect()
    first_peer = held.enter_context(server.accept()[0])
    first.shutdown(socket.SHUT_WR)
    assert first_peer.recv(1) == b""
    second = service.connect()
    held.enter_context(server.accept()[0]).shutdown(socket.SHUT_WR)
    assert second.recv(1) == b""
    service.have()
    assert reap(kernel).ended == 2
    assert is_ended(first)
    assert is_ended(second)


@pytest.mark.skipif(not CLOSE_TIMEOUT.exists(), reason="Linux 6.7 has this setting")
def test_case_20_an_mptcp_socket_waits_for_another_path_to_a_dead_backend(
    kernel: Kernel, held: ExitStack
) -> None:
    before = CLOSE_TIMEOUT.read_text(encoding="ascii")
    held.callback(CLOSE_TIMEOUT.write_text, before, encoding="ascii")
    CLOSE_TIMEOUT.write_text("1", encoding="ascii")
    service = Service(kernel, held)
    server = held.enter_context(socket.socket(proto=IPPROTO_MPTCP))
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    service.have(endpoint_of(server))
    client = held.enter_context(socket.socket(proto=IPPROTO_MPTCP))
    client.settimeout(DEADLINE_SECONDS)
    client.connect(service.name)
    with server.accept()[0] as connection:
        connection.sendall(b"x")
        assert client.recv(1) == b"x"
        service.have()
        assert reap(kernel).ended == 1
        with pytest.raises(OSError, match="not connected"):
            client.recv(1)


# ---- who is spared -------------------------------------------------------------------------------
@WAYS
@TRANSPORTS
def test_case_13_a_direct_connection_to_a_dead_backend_is_untouched(
    way: Way, transport: Transport, kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held, way, transport)
    dying, server = service.listen()
    service.have(dying)
    direct, managed = service.connect(service.direct(dying)), service.connect()
    service.have()
    assert reap(kernel).ended == 1
    assert is_ended(managed)
    direct.send(b"x")
    if transport == "tcp":
        server = held.enter_context(server.accept()[0])
    assert server.recv(1) == b"x"


@WAYS
def test_case_28_an_unconnected_socket_is_untouched_and_its_next_datagram_goes_to_a_live_backend(
    way: Way, kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held, way, "udp")
    (dying, first), (other, second) = service.listen(), service.listen()
    service.have(dying)
    client = service.new_client()
    client.sendto(b"1", service.name)
    assert first.recv(1) == b"1"
    service.have(other)
    assert reap(kernel) == Report()
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    client.sendto(b"2", service.name)
    assert second.recv(1) == b"2"


@TRANSPORTS
def test_case_13_a_draining_backend_keeps_its_connections(
    transport: Transport, kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held, transport=transport)
    (leaving, _), (other, _) = service.listen(), service.listen()
    service.have(leaving)
    client = service.connect()
    service.have(other, draining=[leaving])
    assert reap(kernel) == Report(checked=1)
    assert is_alive(client)
    service.have(other)
    assert reap(kernel).ended == 1
    assert is_ended(client)


@TRANSPORTS
def test_case_14_where_all_backends_drain_they_serve_and_keep_what_they_have(
    transport: Transport, kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held, transport=transport)
    members = [service.listen()[0] for _ in range(2)]
    service.have(*members)
    before = service.connect()
    service.have(draining=members)
    after = service.connect()
    assert reap(kernel) == Report(checked=2)
    assert is_alive(before)
    assert is_alive(after)


def test_an_endpoint_that_another_vip_has_is_spared_for_both(
    kernel: Kernel, held: ExitStack
) -> None:
    one, another = Service(kernel, held), Service(kernel, held, replace(IPV4, address=OTHER_VIP4))
    shared, _ = one.listen()
    one.have(shared)
    another.have(shared)
    clients = [one.connect(), another.connect()]
    kernel.drop(one.vip)
    assert reap(kernel) == Report(checked=2)
    assert all(is_alive(client) for client in clients)
    kernel.drop(another.vip)
    assert reap(kernel).ended == 2
    assert all(is_ended(client) for client in clients)


def test_the_same_address_and_port_of_the_other_protocol_is_another_backend(
    kernel: Kernel, held: ExitStack
) -> None:
    streams, datagrams = Service(kernel, held), Service(kernel, held, transport="udp")
    dying, _ = streams.listen()
    streams.have(dying)
    datagrams.have(replace(dying, transport="udp"))
    stream, dgram = streams.connect(), datagrams.connect()
    streams.have()
    assert reap(kernel).ended == 1
    assert is_ended(stream)
    assert is_alive(dgram)


def test_a_container_inside_is_spared_while_its_backend_is_a_member(
    kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held)
    inner, _ = service.listen()
    outer = Endpoint(ip_address("127.0.0.9").packed, 31_000, "tcp")
    behind(kernel, service.vip, outer, inner)
    client = service.connect()
    assert reap(kernel) == Report(checked=1)
    replacement, _ = service.listen()
    behind(kernel, service.vip, outer, replacement)
    assert reap(kernel).ended == 1
    assert is_ended(client)
    client = service.connect()
    assert reap(kernel).ended == 0
    behind(kernel, service.vip, outer, None)  # an address of this host is gone for a moment
    assert reap(kernel).ended == 0
    assert is_alive(client)
    service.have()
    assert reap(kernel).ended == 1
    assert is_ended(client)


def test_a_socket_that_went_elsewhere_unseen_is_spared(kernel: Kernel, held: ExitStack) -> None:
    service = Service(kernel, held, transport="udp")
    (dying, _), (other, server) = service.listen(), service.listen()
    service.have(dying)
    client = service.connect()
    [(cookie, raw)] = entries(kernel).items()
    assert cookie == cookie_of(client)
    client.connect(service.direct(other))  # the program forgets the entry; we put it back
    put(kernel, cookie, raw)
    service.have()
    assert reap(kernel) == Report(checked=1, dead=1, ended=0, namespaces=1)
    client.send(b"x")
    assert server.recv(1) == b"x"


def test_a_socket_that_its_owner_has_closed_is_left_to_the_kernel(
    kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held)
    dying, _ = service.listen()
    service.have(dying)
    client = service.connect()
    client.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            client.send(bytes(65_536))
    client.close()
    service.have()
    assert reap(kernel) == Report(checked=1)


def test_what_was_ended_is_no_connection_any_more(kernel: Kernel, held: ExitStack) -> None:
    service, datagrams = Service(kernel, held), Service(kernel, held, transport="udp")
    for each in service, datagrams:
        each.have(each.listen()[0])
        each.connect()
    service.have()
    datagrams.have()
    assert reap(kernel).ended == 2
    # The kernel tells the programs of the end of a TCP connection. Of a UDP socket that is still
    # open it does not: its entry stands until that is used or closed, or the next sweep.
    assert reap(kernel) == Report(checked=1, dead=1, ended=0, namespaces=1)


def test_nothing_is_looked_for_where_nothing_is_dead(kernel: Kernel, held: ExitStack) -> None:
    service = Service(kernel, held)
    assert reap(kernel) == Report()
    service.have(service.listen()[0])
    service.connect()
    assert reap(kernel) == Report(checked=1, dead=0, ended=0, namespaces=0)


# ---- the reaper ----------------------------------------------------------------------------------
def test_the_reaper_ends_them_soon_after_a_call(kernel: Kernel, held: ExitStack) -> None:
    reaper = Reaper(kernel.where.folder, 3600)
    held.callback(wait_for_the_end, "reaper")
    held.callback(reaper.close)
    service = Service(kernel, held)
    (dying, _), (other, _) = service.listen(), service.listen()
    service.have(dying)
    clients = [service.connect() for _ in range(10)]
    reaper.start(lambda: None)
    service.have(other)
    reaper.reap()
    for client in clients:
        with pytest.raises(ConnectionAbortedError):
            client.recv(1)
    until("count", lambda: reaper.ended == len(clients), DEADLINE_SECONDS)


def test_maps_that_are_not_there_are_a_failure_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataplaneError, match="conns: No such file"):
        Errand("reaping", REAP, tmp_path, Report, threading.Event()).try_once()


# ---- the kernel's list of sockets ----------------------------------------------------------------
def test_a_socket_is_ended_once_and_by_its_own_number_only(held: ExitStack) -> None:
    server = held.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = held.enter_context(socket.create_connection(server.getsockname()))
    assert can_end_sockets()
    [found] = [one for one in connected_sockets(6) if one.cookie == cookie_of(client)]
    assert end_sockets([found._replace(cookie=found.cookie + 1)]) == 0
    assert is_alive(client)
    assert end_sockets([found]) == 1
    assert is_ended(client)
    assert end_sockets([found]) == 0
    assert end_sockets([]) == 0


def test_more_sockets_than_fit_into_a_packet_are_found_and_ended(held: ExitStack) -> None:
    server = held.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    server.bind(("127.0.0.1", 0))
    clients = [held.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(1000)]
    for client in clients:
        client.connect(server.getsockname())
    cookies = {cookie_of(client) for client in clients}
    found = [one for one in connected_sockets(17) if one.cookie in cookies]
    assert {one.cookie for one in found} == cookies
    assert end_sockets(found) == len(clients)
    assert all(is_ended(client) for client in clients)


# ---- parts ---------------------------------------------------------------------------------------
@contextmanager
def namespace(name: str, held: ExitStack) -> Iterator[None]:
    """This thread is in a new network namespace while the block runs; the test deletes it."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    held.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
    subprocess.run(["ip", "-netns", name, "link", "set", "lo", "up"], check=True)
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        with netns.inside(fd):
            yield
    finally:
        os.close(fd)


def _listen_like(endpoint: Endpoint, held: ExitStack) -> None:
    """Have this namespace have the same backend."""
    kind = socket.SOCK_STREAM if endpoint.transport == "tcp" else socket.SOCK_DGRAM
    server = held.enter_context(socket.socket(socket.AF_INET, kind))
    server.bind((str(endpoint.address), endpoint.port))
    if kind == socket.SOCK_STREAM:
        server.listen(64)


def behind(kernel: Kernel, vip: Frontend, outer: Endpoint, inner: Endpoint | None) -> None:
    """Have `vip` have a port of this host, behind which a container listens at `inner`."""
    kernel.apply(
        PutBackend(1, 1, outer, 1, Tier.UP, inner),
        WriteRun(0, (1,)),
        SwapVip(vip, 1, 0, (1, 0, 0)),
    )


def entries(kernel: Kernel) -> dict[int, bytes]:
    with conns.opened(kernel.where.maps) as found:
        return found.entries()


def put(kernel: Kernel, cookie: int, raw: bytes) -> None:
    """Write to the place of a cookie."""
    with conns.opened(kernel.where.maps) as found:
        bpf.update(found.places, SLOT.pack(cookie % found.size), raw)
