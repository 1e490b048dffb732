"""What is counted for a connection ends with it, however it ends; if unseen, with the next sweep.

All of a test runs in the cgroup that is served. `Service` is a VIP with one backend, which accepts
when the test says so.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from itertools import count, product
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol

import pytest

from lab.cgroup import join_command
from lab.wait import LabError, until
from minuteman.agent import PINS
from minuteman.dataplane import bpf, conns, netns, pins
from minuteman.dataplane.layout import CONN, SLOT, pack_identity
from minuteman.dataplane.sweep import Report
from minuteman.errand import Errand
from minuteman.model import BackendCounters, Endpoint, Tier, Transport
from minuteman.reconcile.kernelstate import Limits
from minuteman.sweeper import SWEEP
from tests.kernel import churn
from tests.kernel.conftest import Inside, Kernel, cookie_of, frontend, new_cgroup, new_pins
from tests.kernel.test_agent import Agents

DEADLINE_SECONDS = 30.0
ADDRESS, ADDRESS6 = "1.2.3.4", "fd00::7"
LOOPBACK = ip_address("127.0.0.1").packed
UNREACHABLE = Endpoint(ip_address("10.99.0.1").packed, 80, "tcp")
"""There is no route to it."""
TCP_USER_TIMEOUT = 18
CHOSEN = 0
"""Source: enum phase in maps.h."""
STATES: tuple[str, ...] = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2")
STATES += ("TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING")
"""Of TCP, by number. Source: linux/tcp_states.h."""
_ports = count(5000)


class Books(NamedTuple):
    """What the kernel has for a VIP."""

    connecting: int
    active: int
    entries: int
    """Of `conns`."""


NOTHING = Books(0, 0, 0)
ONE_CONNECTS = Books(1, 0, 1)
ONE_IS_CONNECTED = Books(0, 1, 1)


@pytest.fixture(autouse=True)
def served(cgroup: Path, inside: Inside) -> Iterator[None]:
    with inside(cgroup):
        yield


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Closes what is left at the end of a test."""
    with ExitStack() as stack:
        yield stack


class Service:
    """A VIP with one backend."""

    def __init__(self, kernel: Kernel, held: ExitStack, transport: Transport = "tcp") -> None:
        self.vip = frontend(ADDRESS, next(_ports), transport)
        self._kernel = kernel
        self._held = held
        kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
        self.backend = held.enter_context(socket.socket(socket.AF_INET, kind))
        # What is sent to one that does not read soon has nowhere to go.
        self.backend.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.backend.bind(("127.0.0.1", 0))
        self.port = int(self.backend.getsockname()[1])
        if transport == "tcp":
            self.backend.listen(64)
        kernel.serve(self.vip, [(Endpoint(LOOPBACK, self.port, transport), Tier.UP)])

    @property
    def address(self) -> tuple[str, int]:
        return ADDRESS, self.vip.port

    def new_client(self) -> socket.socket:
        """A socket that is not connected."""
        sock = self._held.enter_context(socket.socket(type=self.backend.type))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.settimeout(DEADLINE_SECONDS)
        return sock

    def connect(self) -> socket.socket:
        """A client that is connected, to nobody as yet."""
        client = self.new_client()
        client.connect(self.address)
        return client

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection."""
        client = self.connect()
        return client, self._held.enter_context(self.backend.accept()[0])

    def begin(self) -> socket.socket:
        """A client whose SYN nobody answers."""
        churn.drop_all(self.backend)
        client = self.new_client()
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.connect(self.address)
        return client

    def entries(self) -> dict[int, bytes]:
        """What `conns` has of this VIP, by cookie."""
        identity = pack_identity(self.vip)
        found = {}
        for key, raw in read_conns(self._kernel.where).items():
            address, _, port, _, _, _, protocol, *_ = CONN.unpack(raw)
            if address + port + bytes((protocol, 0)) == identity:
                found[key] = raw
        return found

    def books(self) -> Books:
        counted = self._kernel.dataplane.counters().by_vip_backend
        mine = next((c for (vip, _), c in counted.items() if vip == self.vip), BackendCounters())
        return Books(mine.connecting, mine.active, len(self.entries()))

    def comes_to(self, expected: Books) -> None:
        """What the kernel learns from packets takes it a moment."""

        def is_so() -> bool:
            if (found := self.books()) != expected:
                raise LabError(f"it is {found}")
            return True

        until(f"{expected}", is_so, DEADLINE_SECONDS)


def read_conns(where: pins.Pins) -> dict[int, bytes]:
    """What each socket was given, by cookie."""
    with conns.opened(where.maps) as found:
        return found.entries()


def put_conn(where: pins.Pins, cookie: int, raw: bytes) -> None:
    """Write to the place of a cookie."""
    with conns.opened(where.maps) as found:
        bpf.update(found.places, SLOT.pack(cookie % found.size), raw)


@pytest.fixture
def tcp(kernel: Kernel, held: ExitStack) -> Service:
    return Service(kernel, held)


@pytest.fixture
def udp(kernel: Kernel, held: ExitStack) -> Service:
    return Service(kernel, held, "udp")


# ---- other processes -----------------------------------------------------------------------------
class Puppet:
    """A process that is served, and answers each line with a line."""

    def __init__(self, cgroup: Path, *command: str, pass_fds: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            join_command(cgroup, *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )

    def __call__(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> str:
        """The next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        """Give it nothing more to answer, and wait for its end."""
        self._process.communicate()


PYTHON = """
import errno, socket, sys
for line in sys.stdin:
    try:
        exec(line)
        print("done", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


class NewPython(Protocol):
    """Starts a process that executes lines: it answers "done", or the name of an error."""

    def __call__(self, *wrap: str) -> Puppet: ...


@pytest.fixture
def python(cgroup: Path, held: ExitStack) -> NewPython:
    def start(*wrap: str) -> Puppet:
        made = Puppet(cgroup, *wrap, sys.executable, "-I", "-S", "-c", PYTHON)
        held.callback(made.kill)
        return made

    return start


def enter(name: str) -> tuple[str, ...]:
    """What runs a command in a network namespace."""
    return ("nsenter", f"--net=/run/netns/{name}", "--")


@pytest.fixture
def neighbour() -> Iterator[str]:
    """The name of another network namespace, until the test deletes it."""
    name = "mm-drift"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-netns", name, "link", "set", "lo", "up"], check=True)
    yield name
    if Path("/run/netns", name).exists():
        subprocess.run(["ip", "netns", "delete", name], check=True)


# ---- how connections end -------------------------------------------------------------------------
def client_closes_first(client: socket.socket, server: socket.socket) -> None:
    client.close()
    server.close()


def server_closes_first(client: socket.socket, server: socket.socket) -> None:
    server.close()
    assert client.recv(1) == b""
    client.close()


def half_by_half(client: socket.socket, server: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.sendall(b"x")
    assert client.recv(1) == b"x"
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def client_resets(client: socket.socket, server: socket.socket) -> None:
    churn.reset_on_close(client)
    client.close()


def server_resets(client: socket.socket, server: socket.socket) -> None:
    churn.reset_on_close(server)
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def server_resets_unheard(client: socket.socket, server: socket.socket) -> None:
    churn.reset_on_close(server)
    server.close()


def is_disconnected(client: socket.socket, server: socket.socket) -> None:
    churn.disconnect(client)


def is_destroyed(client: socket.socket, server: socket.socket) -> None:
    port = client.getsockname()[1]
    subprocess.run(["ss", "-K", "-H", "-t", f"sport = {port}"], check=True, capture_output=True)
    with pytest.raises(ConnectionAbortedError):
        client.recv(1)


TCP_ENDS = (
    client_closes_first,
    server_closes_first,
    half_by_half,
    client_resets,
    server_resets,
    server_resets_unheard,
    is_disconnected,
    is_destroyed,
)


@pytest.mark.parametrize("end", TCP_ENDS, ids=lambda end: end.__name__)
def test_a_connection_counts_until_it_ends(
    end: Callable[[socket.socket, socket.socket], None], tcp: Service
) -> None:
    client, server = tcp.pair()
    assert tcp.books() == ONE_IS_CONNECTED
    end(client, server)
    tcp.comes_to(NOTHING)


def test_a_connection_counts_while_one_half_of_it_is_open(tcp: Service) -> None:
    client, server = tcp.pair()
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    assert tcp.books() == ONE_IS_CONNECTED
    client, server = tcp.pair()
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert tcp.books() == Books(0, 2, 2)


def test_a_connection_that_waits_for_its_time_to_pass_counts_no_more(tcp: Service) -> None:
    client, server = tcp.pair()
    ours = [f"{sock.getsockname()[1]:04X}" for sock in (client, server)]
    client_closes_first(client, server)
    lines = Path("/proc/thread-self/net/tcp").read_text(encoding="ascii").splitlines()
    sockets = [line.split() for line in lines]
    states = [
        state for _, *ends, state in (s[:4] for s in sockets) if [e[-4:] for e in ends] == ours
    ]
    assert states == ["06"]  # TIME_WAIT
    assert tcp.books() == NOTHING


def test_a_process_that_is_killed_counts_no_more(
    tcp: Service, udp: Service, python: NewPython
) -> None:
    victim = python()
    assert victim(f"stream = socket.create_connection({tcp.address})") == "done"
    assert victim("dgram = socket.socket(type=socket.SOCK_DGRAM)") == "done"
    assert victim(f"dgram.connect({udp.address})") == "done"
    assert tcp.books() == udp.books() == ONE_IS_CONNECTED
    victim.kill()
    tcp.comes_to(NOTHING)
    udp.comes_to(NOTHING)


def test_a_network_namespace_that_is_deleted_counts_to_the_end_of_its_sockets(
    tcp: Service, udp: Service, python: NewPython, neighbour: str
) -> None:
    there = python(*enter(neighbour))
    assert there(f"listener = socket.create_server(('127.0.0.1', {tcp.port}))") == "done"
    assert there(f"stream = socket.create_connection({tcp.address})") == "done"
    assert there("dgram = socket.socket(type=socket.SOCK_DGRAM)") == "done"
    assert there(f"dgram.connect({udp.address})") == "done"
    subprocess.run(["ip", "netns", "delete", neighbour], check=True)
    assert tcp.books() == udp.books() == ONE_IS_CONNECTED
    there.kill()
    tcp.comes_to(NOTHING)
    udp.comes_to(NOTHING)


def test_a_connection_counts_while_any_process_holds_it(tcp: Service) -> None:
    client, _server = tcp.pair()
    heir = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[client.fileno()])
    client.close()
    assert tcp.books() == ONE_IS_CONNECTED
    heir.communicate()
    tcp.comes_to(NOTHING)


@pytest.mark.parametrize("is_received", [True, False])
def test_a_connection_counts_while_it_is_on_its_way_to_another_process(
    is_received: bool, tcp: Service, held: ExitStack
) -> None:
    sender, receiver = map(held.enter_context, socket.socketpair())
    client, _server = tcp.pair()
    socket.send_fds(sender, [b"x"], [client.fileno()])
    client.close()
    assert tcp.books() == ONE_IS_CONNECTED
    if is_received:
        _, [fd], _, _ = socket.recv_fds(receiver, 1, 1)
        assert tcp.books() == ONE_IS_CONNECTED
        os.close(fd)
    else:
        receiver.close()
    tcp.comes_to(NOTHING)


# ---- connections that do not come about ----------------------------------------------------------
def test_a_client_that_gives_up_counts_no_more(tcp: Service) -> None:
    for give_up in (
        socket.socket.close,
        churn.disconnect,
        lambda client: client.shutdown(socket.SHUT_RDWR),
    ):
        client = tcp.begin()
        assert tcp.books() == ONE_CONNECTS
        give_up(client)
        assert tcp.books() == NOTHING


def test_a_process_that_is_killed_while_it_connects_counts_no_more(
    tcp: Service, python: NewPython
) -> None:
    churn.drop_all(tcp.backend)
    victim = python()
    assert victim("stream = socket.socket(); stream.setblocking(False)") == "done"
    assert victim(f"stream.connect({tcp.address})") == "EINPROGRESS"
    assert tcp.books() == ONE_CONNECTS
    victim.kill()
    tcp.comes_to(NOTHING)


def test_a_connect_that_times_out_counts_no_more(tcp: Service) -> None:
    churn.drop_all(tcp.backend)
    client = tcp.new_client()
    client.settimeout(None)
    client.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 100)
    with pytest.raises(TimeoutError):
        client.connect(tcp.address)
    assert tcp.books() == NOTHING


def test_a_socket_that_was_refused_can_try_again(tcp: Service) -> None:
    client = tcp.new_client()
    client.settimeout(None)
    tcp.backend.close()
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            client.connect(tcp.address)
        assert tcp.books() == NOTHING
    with socket.create_server(("127.0.0.1", tcp.port)):
        client.connect(tcp.address)
        assert tcp.books() == ONE_IS_CONNECTED
        client.close()
        tcp.comes_to(NOTHING)


def test_a_socket_can_be_disconnected_and_connected_again(tcp: Service) -> None:
    client, _server = tcp.pair()
    for _ in range(3):
        churn.disconnect(client)
        assert tcp.books() == NOTHING
        client.connect(tcp.address)
        assert tcp.books() == ONE_IS_CONNECTED
    client.close()
    tcp.comes_to(NOTHING)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_what_fails_before_a_packet_is_sent_is_forgotten_with_the_socket(
    transport: Transport, kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held, transport)
    kernel.serve(service.vip, [(UNREACHABLE, Tier.UP)])
    client = service.new_client()
    with pytest.raises(OSError, match="unreachable"):
        client.connect(service.address)
    assert service.books() == (Books(0, 0, 1) if transport == "tcp" else ONE_IS_CONNECTED)
    client.close()
    assert service.books() == NOTHING


def test_a_source_port_that_is_taken_costs_nobody_the_count(tcp: Service) -> None:
    first, second = tcp.new_client(), tcp.new_client()
    for client in first, second:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    first.bind(("127.0.0.1", 0))
    second.bind(first.getsockname())
    first.connect(tcp.address)
    with pytest.raises(OSError, match="Cannot assign"):
        second.connect(tcp.address)
    assert tcp.books() == Books(0, 1, 2)
    churn.reset_on_close(first)
    first.close()
    assert tcp.books() == Books(0, 0, 1)
    second.connect(tcp.address)
    assert tcp.books() == ONE_IS_CONNECTED
    second.close()
    tcp.comes_to(NOTHING)


# ---- UDP -----------------------------------------------------------------------------------------
def test_a_connected_datagram_socket_counts_until_it_is_closed(udp: Service) -> None:
    client = udp.connect()
    assert udp.books() == ONE_IS_CONNECTED
    client.close()
    assert udp.books() == NOTHING


def test_a_datagram_socket_that_connects_again_counts_once(udp: Service) -> None:
    client = udp.connect()
    client.connect(udp.address)
    assert udp.books() == ONE_IS_CONNECTED
    client.connect(("127.0.0.1", udp.port))
    assert udp.books() == NOTHING
    client.connect(udp.address)
    assert udp.books() == ONE_IS_CONNECTED


def test_a_datagram_socket_that_is_disconnected_counts_until_it_is_used_or_closed(
    udp: Service,
) -> None:
    client = udp.connect()
    churn.disconnect(client)
    assert udp.books() == ONE_IS_CONNECTED  # no program sees this one
    client.connect(udp.address)
    assert udp.books() == ONE_IS_CONNECTED
    churn.disconnect(client)
    client.close()
    assert udp.books() == NOTHING


# ---- all of it at once ---------------------------------------------------------------------------
TCP_PORT, REFUSED_PORT, HOLE_PORT, UDP_PORT = PORTS = (21_001, 21_002, 21_003, 21_004)
"""Of VIPs and of their backends alike; not among those that the kernel gives out."""


class NewChurn(Protocol):
    """Starts a process that does as tests/kernel/churn.py says."""

    def __call__(
        self, *words: object, wrap: Sequence[str] = (), pass_fds: Sequence[int] = ()
    ) -> Puppet: ...


@pytest.fixture
def new_churn(cgroup: Path, held: ExitStack) -> NewChurn:
    def start(*words: object, wrap: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> Puppet:
        command = (sys.executable, "-I", "-S", churn.__file__, *map(str, words))
        made = Puppet(cgroup, *wrap, *command, pass_fds=pass_fds)
        held.callback(made.kill)
        return made

    return start


def start_crowd(new_churn: NewChurn, neighbour: str, seed: int) -> list[Puppet]:
    """Clients of each family, here and in another network namespace; backends in both."""
    clients = []
    for where in (), enter(neighbour):
        backends = new_churn("serve", TCP_PORT, HOLE_PORT, UDP_PORT, wrap=where)
        assert backends.hear() == "ready"
        for address in ADDRESS, f"::ffff:{ADDRESS}", ADDRESS6:
            clients.append(new_churn("connect", seed, address, *PORTS, wrap=where))
            seed += 1
    return clients


@pytest.mark.parametrize("seed", [1, 1001])
def test_after_any_history_the_counters_are_what_the_sockets_stand_for(
    seed: int, kernel: Kernel, new_churn: NewChurn, neighbour: str
) -> None:
    for address, port in product((ADDRESS, ADDRESS6), PORTS):
        transport: Transport = "udp" if port == UDP_PORT else "tcp"
        member = Endpoint(LOOPBACK, port, transport)
        kernel.serve(frontend(address, port, transport), [(member, Tier.UP)])
    clients = start_crowd(new_churn, neighbour, seed)
    assert [client.hear() for client in clients] == ["ready"] * len(clients)

    def agree() -> bool:
        answers = [client("?").split() for client in clients]
        expected = tuple(sum(map(int, column)) for column in zip(*answers, strict=True))
        found = kernel.dataplane.counters().by_vip_backend.values()
        counted = sum(c.connecting for c in found), sum(c.active for c in found)
        if counted != expected or len(read_conns(kernel.where)) != sum(expected):
            raise LabError(
                f"{counted} are counted, it is {expected}; {len(read_conns(kernel.where))}"
            )
        return True

    until("agreement", agree, DEADLINE_SECONDS)
    for i, client in enumerate(clients):
        (client.kill if i % 2 else client.end)()

    def is_over() -> bool:
        found = kernel.dataplane.counters().by_vip_backend.values()
        return not (any(c.connecting or c.active for c in found) or read_conns(kernel.where))

    until("end of it all", is_over, DEADLINE_SECONDS)
    assert kernel.dataplane.counters().reasons["settled"] == 0


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_processes_that_share_sockets_do_not_lose_the_count(
    transport: Transport, kernel: Kernel, new_churn: NewChurn, held: ExitStack
) -> None:
    service = Service(kernel, held, transport)
    shared = [service.new_client() for _ in range(3)]
    fds = [sock.fileno() for sock in shared]
    sharers = [
        new_churn("share", seed, *service.address, service.port, *fds, pass_fds=fds)
        for seed in range(3)
    ]
    assert [sharer.hear() for sharer in sharers] == ["ready"] * len(sharers)
    assert service.books().entries <= len(shared)
    for sock in shared:
        sock.close()
    for sharer in sharers:
        sharer.end()
    service.comes_to(NOTHING)


# ---- the sweep -----------------------------------------------------------------------------------
def sweep(kernel: Kernel) -> Report:
    return Errand("sweep", SWEEP, kernel.where.folder, Report, Event()).try_once()


def settled(kernel: Kernel) -> int:
    return kernel.dataplane.counters().reasons["settled"]


@contextmanager
def unseen(kernel: Kernel, *programs: str) -> Iterator[None]:
    """Detach programs, all of them if none is named, while the block runs."""
    for name in programs or pins.PROGRAMS:
        link = bpf.open_pin(kernel.where.links / name)
        bpf.detach_link(link)
        os.close(link)
    try:
        yield
    finally:
        kernel.dataplane.repair()


@contextmanager
def inside_of(name: str) -> Iterator[None]:
    """This thread is in a network namespace while the block runs."""
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        with netns.inside(fd):
            yield
    finally:
        os.close(fd)


def phases(service: Service) -> list[int]:
    return [CONN.unpack(raw)[7] for raw in service.entries().values()]


def fill(sock: socket.socket) -> None:
    """Send until there is no more room; what is sent after that stays here."""
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(65_536))


def sockets_in_each_state(tcp: Service) -> dict[str, socket.socket]:
    """Clients, all of them open."""
    pairs = {}
    for state in "ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT2", "FIN_WAIT1", "CLOSING", "LAST_ACK":
        client, server = pairs[state] = tcp.pair()
        if state in ("CLOSE_WAIT", "LAST_ACK"):
            server.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        if state in ("FIN_WAIT1", "CLOSING", "LAST_ACK"):
            fill(client)
        if state not in ("ESTABLISHED", "CLOSE_WAIT"):
            client.shutdown(socket.SHUT_WR)
        if state == "CLOSING":
            server.shutdown(socket.SHUT_WR)
    clients = {state: client for state, (client, _) in pairs.items()}
    return clients | {"SYN_SENT": tcp.begin()}


def state_of(client: socket.socket) -> str:
    return STATES[churn.state_of(client)]


def test_the_sweep_finds_nothing_to_do_where_there_is_nothing(kernel: Kernel) -> None:
    assert sweep(kernel) == Report()


def test_the_sweep_spares_connections_in_every_state(
    tcp: Service, udp: Service, kernel: Kernel
) -> None:
    orphan, _server = tcp.pair()
    fill(orphan)
    orphan.close()
    udp.connect()
    clients = sockets_in_each_state(tcp)
    until("states", lambda: all(state_of(c) == s for s, c in clients.items()), DEADLINE_SECONDS)
    everything = Books(1, len(clients), len(clients) + 1)
    assert tcp.books() == everything
    assert sweep(kernel) == Report(checked=len(clients) + 2, namespaces=1, settled=0)
    assert tcp.books() == everything
    assert udp.books() == ONE_IS_CONNECTED


def test_the_sweep_settles_what_ended_unseen_and_nothing_else(
    tcp: Service, udp: Service, kernel: Kernel, python: NewPython
) -> None:
    victim = python()
    assert victim(f"stream = socket.create_connection({tcp.address})") == "done"
    tcp.backend.accept()[0].close()
    ends = (client_closes_first, server_closes_first, client_resets, server_resets)
    pairs = [tcp.pair() for _ in ends]
    alive = [tcp.connect(), udp.connect()]
    datagrams = udp.connect()
    impatient = tcp.begin()
    with unseen(kernel):
        for end, pair in zip(ends, pairs, strict=True):
            end(*pair)
        datagrams.close()
        impatient.close()
        victim.kill()
    assert tcp.books() == Books(1, 6, 7)
    assert udp.books() == Books(0, 2, 2)
    assert sweep(kernel) == Report(checked=9, namespaces=1, settled=7)
    assert settled(kernel) == 7
    assert set(read_conns(kernel.where)) == {cookie_of(sock) for sock in alive}
    assert tcp.books() == udp.books() == ONE_IS_CONNECTED
    assert sweep(kernel) == Report(checked=2, namespaces=1, settled=0)
    for sock in alive:
        sock.close()
    tcp.comes_to(NOTHING)
    udp.comes_to(NOTHING)


def test_the_sweep_settles_what_another_program_kept_from_us(tcp: Service, kernel: Kernel) -> None:
    client, server = tcp.pair()
    with unseen(kernel, "sock_ops"):  # as if our callbacks had been turned off
        early = tcp.connect()
        client_resets(client, server)
    assert tcp.books() == Books(0, 1, 2)
    assert sweep(kernel).settled == 1
    assert phases(tcp) == [CHOSEN]
    early.close()
    assert tcp.books() == NOTHING


def test_a_connection_that_came_about_unseen_counts_as_one_that_connects(
    tcp: Service, kernel: Kernel
) -> None:
    client = tcp.begin()
    with unseen(kernel, "sock_ops"):
        churn.hear_again(tcp.backend)
        until("connection", lambda: state_of(client) == "ESTABLISHED", DEADLINE_SECONDS)
    assert sweep(kernel).settled == 0
    assert tcp.books() == ONE_CONNECTS
    client.close()
    tcp.comes_to(NOTHING)


def test_the_sweep_looks_into_every_network_namespace(
    tcp: Service, udp: Service, kernel: Kernel, python: NewPython, neighbour: str
) -> None:
    there = python(*enter(neighbour))
    assert there(f"listener = socket.create_server(('127.0.0.1', {tcp.port}))") == "done"
    for name in "alive", "dead":
        assert there(f"{name} = socket.create_connection({tcp.address})") == "done"
    # Sockets of there that a process of here has.
    with inside_of(neighbour):
        visitor = tcp.connect()
        datagrams, dead = udp.connect(), udp.connect()
    with unseen(kernel):
        assert there(f"dead.setsockopt(1, 13, {churn.RESET_ON_CLOSE!r})") == "done"
        assert there("dead.close()") == "done"
        dead.close()
    assert tcp.books() == Books(0, 3, 3)
    assert udp.books() == Books(0, 2, 2)
    assert sweep(kernel) == Report(checked=5, namespaces=1, settled=2)
    assert cookie_of(visitor) in tcp.entries()
    assert cookie_of(datagrams) in udp.entries()
    here = udp.connect()
    assert sweep(kernel) == Report(checked=4, namespaces=2, settled=0)
    for sock in visitor, datagrams, here:
        sock.close()
    there.kill()
    tcp.comes_to(NOTHING)
    udp.comes_to(NOTHING)


def test_what_is_in_a_namespace_that_cannot_be_found_is_left_alone(
    udp: Service, kernel: Kernel, neighbour: str
) -> None:
    with inside_of(neighbour):
        alive, dead = udp.connect(), udp.connect()
    subprocess.run(["ip", "netns", "delete", neighbour], check=True)
    with unseen(kernel):
        dead.close()
    assert sweep(kernel) == Report(checked=2, namespaces=0, settled=0)
    alive.close()
    assert udp.books() == ONE_IS_CONNECTED
    [left] = udp.entries()
    put_conn(kernel.where, left, bytes(CONN.size))


def test_what_nobody_has_any_more_needs_no_namespace_to_be_settled(
    tcp: Service, kernel: Kernel, python: NewPython, neighbour: str
) -> None:
    there = python(*enter(neighbour))
    assert there(f"listener = socket.create_server(('127.0.0.1', {tcp.port}))") == "done"
    assert there(f"client = socket.create_connection({tcp.address})") == "done"
    subprocess.run(["ip", "netns", "delete", neighbour], check=True)
    with unseen(kernel, "sock_ops"):
        there.kill()
    assert tcp.books() == ONE_IS_CONNECTED
    assert sweep(kernel) == Report(checked=1, namespaces=0, settled=1)
    assert tcp.books() == NOTHING


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_socket_that_is_not_connected_counts_no_more_after_a_sweep_and_can_begin_anew(
    transport: Transport, kernel: Kernel, held: ExitStack
) -> None:
    service = Service(kernel, held, transport)
    backend = Endpoint(LOOPBACK, service.port, transport)
    client = service.new_client()
    if transport == "udp":
        client.bind(("127.0.0.1", UDP_PORT))  # so it stays among the sockets that can be dumped
        client.connect(service.address)
        churn.disconnect(client)
    else:
        kernel.serve(service.vip, [(UNREACHABLE, Tier.UP)])
        with pytest.raises(OSError, match="unreachable"):
            client.connect(service.address)
        kernel.serve(service.vip, [(backend, Tier.UP)])
    assert service.books().entries == 1
    assert sweep(kernel).settled == 1
    assert service.books() == NOTHING
    client.connect(service.address)
    assert service.books() == ONE_IS_CONNECTED
    assert sweep(kernel).settled == 0
    assert service.books() == ONE_IS_CONNECTED


def test_the_agent_sweeps(tmp_path: Path, held: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINUTEMAN_SWEEP_SECONDS", "0.1")
    agents = Agents(held.enter_context(new_cgroup()), new_pins(), tmp_path)
    held.callback(agents.run, "detach")
    held.callback(agents.end_all)
    agents.remember(TCP_PORT)
    agents.start()
    where = pins.Pins.ours(agents.bpffs / PINS, Limits())
    put_conn(where, 1, CONN.pack(b"", b"", b"", b"", 0, 0, 6, CHOSEN, 0, 1, 0, 0, 1))
    until("sweep", lambda: not read_conns(where), DEADLINE_SECONDS)
    assert 'reason="settled"} 1' in agents.page("/metrics").text
