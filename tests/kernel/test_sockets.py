"""What a program meets at a VIP, whatever its socket: the numbered cases of docs/conformance.md."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from lab.cgroup import join_command
from lab.sandbox import remove_cgroup
from lab.wait import until
from minuteman.model import BackendCounters, Endpoint, Tier
from minuteman.reconcile.kernelstate import Owner, PutBackend, PutPrefix
from tests.kernel import conftest
from tests.kernel.churn import disconnect
from tests.kernel.conftest import (
    Backends,
    Inside,
    Kernel,
    connect,
    endpoint_of,
    family_of,
    frontend,
    ports,
    reasons,
    who_answers,
)
from tests.kernel.uring import SETUP_SQPOLL, SQE_ASYNC, Ring

VIP = "1.2.3.4"
MAPPED = f"::ffff:{VIP}"
VIP6 = "fd00::7"
PORT = 5000
HOST, HOST6 = "10.77.1.1", "fd00:77::1"
"""Addresses of this host, as an agent of Mesos has one."""
OUTER = "10.78.0.1"
"""An address of this host that the neighbour reaches, too."""

IPPROTO_MPTCP = 262
TCP_FASTOPEN_CONNECT = 30
"""linux/tcp.h"""

PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as client:
    print(*client.getpeername()[:2], int.from_bytes(client.recv(2, socket.MSG_WAITALL), "big"))
"""
"""Says who the peer is, and who answered."""

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM

every_address = pytest.mark.parametrize("address", [VIP, MAPPED, VIP6])
every_kind = pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])


@pytest.fixture
def served(kernel: Kernel, cgroup: Path, inside: Inside) -> Iterator[Kernel]:
    """A dataplane, and this process in the cgroup that it serves."""
    with inside(cgroup):
        yield kernel


def run_all(*lines: str) -> None:
    for line in lines:
        subprocess.run(line.split(), check=True)


@pytest.fixture(scope="module")
def dead_end() -> Iterator[Callable[[], int]]:
    """A device that the addresses of VIPs are routed to, and the packets that it has been given."""
    run_all(
        "ip link add mm-out type veth peer name mm-in",
        # Else the devices say hello to each other on their own, and ask who is there.
        "sysctl -qw net.ipv6.conf.mm-in.disable_ipv6=1",
        "ip link set mm-out arp off addrgenmode none",
        "ip link set mm-out up",
        "ip link set mm-in up",
        "ip address add 192.0.2.1/32 dev lo",
        "ip address add 2001:db8::1/128 dev lo nodad",
        "ip route add 1.2.3.0/24 dev mm-out src 192.0.2.1",
        "ip route add fd00::/64 dev mm-out src 2001:db8::1",
    )

    def packets() -> int:
        lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
        [counters] = [line.split() for line in lines if "mm-out:" in line]
        return int(counters[10])

    yield packets
    run_all(
        "ip link delete mm-out",
        "ip address delete 192.0.2.1/32 dev lo",
        "ip address delete 2001:db8::1/128 dev lo",
    )


@pytest.fixture(scope="module")
def host_addresses() -> Iterator[None]:
    """HOST and HOST6 on the loopback."""
    run_all(
        f"ip address add {HOST}/32 dev lo",
        f"ip address add {HOST6}/128 dev lo nodad",
    )
    yield
    run_all(
        f"ip address delete {HOST}/32 dev lo",
        f"ip address delete {HOST6}/128 dev lo",
    )


@pytest.fixture(scope="module")
def neighbour() -> Iterator[tuple[str, ...]]:
    """How to run a command in a network namespace that has a route to OUTER and nothing else."""
    run_all(
        "ip netns add mm-neighbour",
        "ip link add mm-host type veth peer name eth0 netns mm-neighbour",
        f"ip address add {OUTER}/24 dev mm-host",
        "ip link set mm-host up",
        "ip -n mm-neighbour address add 10.78.0.2/24 dev eth0",
        "ip -n mm-neighbour link set eth0 up",
    )
    yield ("nsenter", "--net=/run/netns/mm-neighbour")
    run_all("ip link delete mm-host", "ip netns delete mm-neighbour")


@contextmanager
def sysctl(name: str, value: str) -> Iterator[None]:
    """A setting of this network namespace, while the block runs."""
    path = Path("/proc/sys", name)
    before = path.read_text(encoding="ascii")
    path.write_text(value, encoding="ascii")
    try:
        yield
    finally:
        path.write_text(before, encoding="ascii")


def loopback_of(address: str) -> str:
    """Where the backends of a VIP listen in these tests."""
    return "::1" if address == VIP6 else "127.0.0.1"


def vip_of(address: str) -> str:
    """The VIP that `address` means."""
    return VIP if address == MAPPED else address


def peer_of(sock: socket.socket) -> tuple[str, int]:
    host, port, *_ = sock.getpeername()
    return host, port


def greeting(sock: socket.socket) -> int:
    """The port of the backend at the other end."""
    return int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")


def run_client(*wrapper: str, address: str = VIP) -> str:
    """What CLIENT says when `wrapper` runs it."""
    command = [*wrapper, *PYTHON, CLIENT, address, str(PORT)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def listed(condition: str) -> list[tuple[str, str, str]]:
    """State, local and peer address of the TCP sockets that ss(8) shows."""
    command = ["ss", "-tanH", condition]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [(w[0], w[3], w[4]) for w in map(str.split, lines.splitlines())]


def counted(kernel: Kernel, endpoint: Endpoint, port: int = PORT) -> BackendCounters:
    return conftest.counted(kernel, endpoint, frontend(VIP, port, endpoint.transport))


def wait_for_end(kernel: Kernel, endpoint: Endpoint) -> None:
    """Until no connection to the backend counts any more."""
    until("end of it", lambda: not (c := counted(kernel, endpoint)).active | c.connecting, 5)


# ---- 1: a VIP with a backend ---------------------------------------------------------------------


@every_address
def test_case_01_bytes_go_both_ways_and_the_peer_is_the_vip(address: str, served: Kernel) -> None:
    host = loopback_of(address)
    with socket.create_server((host, 0), family=family_of(host)) as server:
        served.serve(frontend(vip_of(address), PORT), [(endpoint_of(server), Tier.UP)])
        with connect(address, PORT) as client, server.accept()[0] as other:
            client.sendall(b"question")
            assert other.recv(8, socket.MSG_WAITALL) == b"question"
            other.sendall(b"answer")
            assert client.recv(6, socket.MSG_WAITALL) == b"answer"
            assert peer_of(client) == (address, PORT)


def test_case_01_ss_shows_the_backend(served: Kernel, backends: Backends) -> None:
    member = backends.listen()
    served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
    with connect(VIP, PORT) as client:
        host, port = client.getsockname()
        shown = ("ESTAB", f"{host}:{port}", f"127.0.0.1:{member.port}")
        assert shown in listed(f"sport = :{port}")  # maybe with what others left behind


# ---- 3: a VIP without backends -------------------------------------------------------------------


@every_kind
@every_address
def test_case_03_a_vip_without_backends_refuses_at_once_and_sends_nothing(
    address: str, kind: socket.SocketKind, served: Kernel, dead_end: Callable[[], int]
) -> None:
    served.serve(frontend(vip_of(address), PORT, "tcp" if kind == STREAM else "udp"), [])
    before = dead_end()
    for blocks in (True, False):
        with socket.socket(family_of(address), kind) as sock:
            sock.setblocking(blocks)
            # Not EINPROGRESS: who waits for the socket to become writable would wait in vain.
            assert sock.connect_ex((address, PORT)) == errno.ECONNREFUSED
    assert dead_end() == before
    assert reasons(served) == {"refused_empty": 2}


# ---- 4: what is no VIP, where only VIPs are ------------------------------------------------------

Attempt = Callable[[str, int], int]
"""Sends something to an address and port: the errno."""


def connect_tcp(address: str, port: int) -> int:
    with socket.socket(family_of(address)) as sock:
        sock.setblocking(False)
        return sock.connect_ex((address, port))


def connect_udp(address: str, port: int) -> int:
    with socket.socket(family_of(address), DGRAM) as sock:
        return sock.connect_ex((address, port))


def send_udp(address: str, port: int) -> int:
    with socket.socket(family_of(address), DGRAM) as sock:
        try:
            sock.sendto(b"?", (address, port))
        except OSError as error:
            return error.errno or 0
        return 0


every_attempt = pytest.mark.parametrize("attempt", [connect_tcp, connect_udp, send_udp])


@every_attempt
@every_address
def test_case_04_an_unknown_port_is_refused_at_once_and_nothing_is_sent(
    address: str, attempt: Attempt, served: Kernel, dead_end: Callable[[], int]
) -> None:
    served.serve(frontend(vip_of(address), PORT), [])
    served.serve(frontend(vip_of(address), PORT, "udp"), [])
    served.apply(PutPrefix(ip_network(vip_of(address)), Owner.VIPS))
    before = dead_end()
    assert attempt(address, PORT + 1) == errno.ECONNREFUSED
    assert dead_end() == before
    assert reasons(served) == {"refused_unknown": 1}


@every_attempt
@pytest.mark.parametrize("address", ["1.2.3.200", "::ffff:1.2.3.200", "fd00::f:1"])
def test_case_04_an_unclaimed_address_of_a_range_is_refused_at_once_and_nothing_is_sent(
    address: str, attempt: Attempt, served: Kernel, dead_end: Callable[[], int]
) -> None:
    served.apply(
        PutPrefix(ip_network("1.2.3.128/25"), Owner.VIPS),
        PutPrefix(ip_network("fd00::f:0/112"), Owner.VIPS),
    )
    before = dead_end()
    assert attempt(address, PORT) == errno.ECONNREFUSED
    assert dead_end() == before
    assert reasons(served) == {"refused_unknown": 1}


@every_attempt
@every_address
def test_case_04_an_unknown_port_passes_where_not_only_vips_are(
    address: str, attempt: Attempt, served: Kernel, dead_end: Callable[[], int]
) -> None:
    served.serve(frontend(vip_of(address), PORT), [])
    before = dead_end()
    assert attempt(address, PORT + 1) in {0, errno.EINPROGRESS}
    if attempt is not connect_udp:
        assert dead_end() > before
    assert reasons(served) == {}


# ---- 5: a VIP at an address of the host ----------------------------------------------------------


@pytest.mark.usefixtures("host_addresses")
@pytest.mark.parametrize("address", [HOST, HOST6])
def test_case_05_what_is_no_vip_at_an_address_of_the_host_is_untouched(
    address: str, served: Kernel, backends: Backends
) -> None:
    member, other = backends.listen(loopback_of(address)), backends.listen(address)
    served.serve(frontend(address, PORT), [(member, Tier.UP)])
    served.apply(
        PutPrefix(ip_network("10.77.0.0/16"), Owner.VIPS),
        PutPrefix(ip_network("fd00:77::/32"), Owner.VIPS),
        PutPrefix(ip_network(address), Owner.HOST),
    )
    assert who_answers(address, other.port) == other.port
    # Nobody listens there: it is the kernel that refuses, with a reset.
    backends.stop(other)
    with pytest.raises(ConnectionRefusedError):
        connect(address, other.port)
    assert connect_udp(address, PORT) == 0
    assert send_udp(address, PORT) == 0
    assert reasons(served) == {}


# ---- 6: connects that do not wait ----------------------------------------------------------------


@every_address
def test_case_06_a_nonblocking_connect_lands(
    address: str, served: Kernel, backends: Backends
) -> None:
    member = backends.listen(loopback_of(address))
    served.serve(frontend(vip_of(address), PORT), [(member, Tier.UP)])
    with socket.socket(family_of(address)) as sock:
        sock.setblocking(False)
        assert sock.connect_ex((address, PORT)) in {0, errno.EINPROGRESS}
        sock.settimeout(5)
        assert greeting(sock) == member.port
        assert peer_of(sock) == (address, PORT)


@pytest.mark.parametrize(
    ("ring_flags", "flags"),
    [(0, 0), (SETUP_SQPOLL, 0), (0, SQE_ASYNC)],
    ids=["self", "poll", "worker"],
)
@every_address
def test_case_06_a_connect_of_an_io_uring_lands(
    address: str, ring_flags: int, flags: int, served: Kernel, backends: Backends
) -> None:
    member = backends.listen(loopback_of(address))
    served.serve(frontend(vip_of(address), PORT), [(member, Tier.UP)])
    with socket.socket(family_of(address)) as sock, Ring(ring_flags) as ring:
        ring.submit(sock, address, PORT, flags)
        assert ring.result() == 0
        assert peer_of(sock) == (address, PORT)
        sock.settimeout(5)
        assert greeting(sock) == member.port
    served.serve(frontend(vip_of(address), PORT), [])
    with socket.socket(family_of(address)) as sock, Ring(ring_flags) as ring:
        ring.submit(sock, address, PORT, flags)
        assert ring.result() == errno.ECONNREFUSED
    assert reasons(served) == {"translated": 1, "refused_empty": 1}


def test_case_06_a_connect_that_has_to_wait_lands(served: Kernel) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        served.serve(frontend(VIP, PORT), [(endpoint_of(server), Tier.UP)])
        stack.enter_context(connect(VIP, PORT))
        assert select.select([server], [], [], 5)[0]  # Now there is no room for a second one.
        sock, asked = (stack.enter_context(socket.socket()) for _ in range(2))
        ring = stack.enter_context(Ring())
        sock.setblocking(False)
        assert sock.connect_ex((VIP, PORT)) == errno.EINPROGRESS
        ring.submit(asked, VIP, PORT)
        assert counted(served, endpoint_of(server)).connecting == 2
        server.listen(8)
        assert select.select([], [sock], [], 5)[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert ring.result() == 0
        assert peer_of(sock) == peer_of(asked) == (VIP, PORT)
        assert counted(served, endpoint_of(server)).active == 3
    assert reasons(served) == {"translated": 3}


# ---- 7, 8: IPv6 sockets --------------------------------------------------------------------------


def test_case_07_an_ipv6_socket_reaches_an_ipv4_vip_at_its_mapped_address(
    served: Kernel, backends: Backends
) -> None:
    member = backends.listen()
    served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
    with socket.create_connection((MAPPED, PORT), 5) as sock:
        assert sock.family == socket.AF_INET6
        assert peer_of(sock) == (MAPPED, PORT)
        assert greeting(sock) == member.port
        assert sock.getsockname()[0] == "::ffff:127.0.0.1"


def v6_only(kind: socket.SocketKind = STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def test_case_08_a_socket_of_ipv6_only_reaches_an_ipv6_vip(
    served: Kernel, backends: Backends
) -> None:
    member = backends.listen("::1")
    served.serve(frontend(VIP6, PORT), [(member, Tier.UP)])
    with v6_only() as sock:
        sock.settimeout(5)
        sock.connect((VIP6, PORT))
        assert peer_of(sock) == (VIP6, PORT)
        assert greeting(sock) == member.port


@every_kind
def test_case_08_a_socket_of_ipv6_only_reaches_no_mapped_address_be_it_a_vip_or_not(
    kind: socket.SocketKind, served: Kernel, backends: Backends
) -> None:
    member = replace(backends.listen(), transport="tcp" if kind == STREAM else "udp")
    served.serve(frontend(VIP, PORT, member.transport), [(member, Tier.UP)])
    for address, port in (("::ffff:127.0.0.1", member.port), (MAPPED, PORT)):
        with v6_only(kind) as sock:
            assert sock.connect_ex((address, port)) == errno.ENETUNREACH
    after = counted(served, member)
    assert (after.connecting, after.active, after.failures) == (0, 0, 0)


# ---- 9: a source of the client's choice ----------------------------------------------------------


def from_port(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A socket that connects from `port`, whatever else does."""
    sock = socket.socket()
    sock.settimeout(5)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


def wait_for_time_wait(port: int) -> None:
    """Until the one connection from `port` is in TIME_WAIT."""
    until(
        "TIME_WAIT", lambda: [state for state, *_ in listed(f"sport = :{port}")] == ["TIME-WAIT"], 5
    )


def test_case_09_a_source_port_is_used_again_while_its_last_connection_is_in_time_wait(
    served: Kernel,
) -> None:
    source = 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        member = endpoint_of(server)
        served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
        for _ in range(3):
            with from_port(source) as client:
                client.connect((VIP, PORT))
                source = client.getsockname()[1]
                other, _ = server.accept()
            with other:
                assert other.recv(1) == b""  # The client closes first: it is the one that waits.
            wait_for_time_wait(source)
    assert counted(served, member).successes == 3


def test_case_09_one_source_port_reaches_two_backends_at_once(
    served: Kernel, backends: Backends
) -> None:
    members = [backends.listen() for _ in range(2)]
    served.serve(frontend(VIP, PORT), [(member, Tier.UP) for member in members])
    with from_port(0) as one, from_port(one.getsockname()[1]) as two:
        for sock in (one, two):
            sock.connect((VIP, PORT))
        assert one.getsockname() == two.getsockname()
        assert one.getpeername() == two.getpeername() == (VIP, PORT)
        # The second one goes to the backend with less to do, so their four-tuples differ.
        assert {greeting(one), greeting(two)} == {member.port for member in members}
        # Nothing is left for a third, as nothing would be for a second at one address.
        with from_port(one.getsockname()[1]) as three:
            assert three.connect_ex((VIP, PORT)) == errno.EADDRNOTAVAIL
        assert [counted(served, member).active for member in members] == [1, 1]
        assert [counted(served, member).failures for member in members] == [0, 0]


@pytest.mark.usefixtures("host_addresses")
def test_case_09_a_source_address_is_kept(served: Kernel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, from_port(0, HOST) as client:
        served.serve(frontend(VIP, PORT), [(endpoint_of(server), Tier.UP)])
        client.connect((VIP, PORT))
        with server.accept()[0] as other:
            assert other.getpeername() == client.getsockname()
            assert other.getpeername()[0] == HOST


# ---- 10, 11: backends on this host ---------------------------------------------------------------


@pytest.mark.usefixtures("host_addresses")
@pytest.mark.parametrize(("address", "vip"), [(HOST, VIP), (HOST6, VIP6)])
def test_case_10_a_backend_reaches_itself_through_its_own_vip(
    address: str, vip: str, served: Kernel
) -> None:
    with socket.create_server((address, 0), family=family_of(address)) as server:
        served.serve(frontend(vip, PORT), [(endpoint_of(server), Tier.UP)])
        with connect(vip, PORT) as client, server.accept()[0] as other:
            assert peer_of(client) == (vip, PORT)
            assert other.getpeername() == client.getsockname()
            assert other.getpeername()[0] == other.getsockname()[0] == address


def test_case_11_the_port_of_a_container_here_is_its_own_address_for_this_namespace_alone(
    served: Kernel, backends: Backends, neighbour: tuple[str, ...]
) -> None:
    outer, inner = backends.listen(OUTER), backends.listen()
    run = served.serve(frontend(VIP, PORT), [(outer, Tier.UP)])
    (backend_id,) = served.state.runs[run.base]
    put = PutBackend(backend_id, run.vip_id, outer, 1, Tier.UP)
    served.apply(replace(put, inner=inner))
    assert run_client() == f"{VIP} {PORT} {inner.port}\n"
    assert run_client(address=MAPPED) == f"{MAPPED} {PORT} {inner.port}\n"
    assert run_client(*neighbour) == f"{VIP} {PORT} {outer.port}\n"
    assert counted(served, outer).successes == 3
    served.apply(put)
    assert run_client() == f"{VIP} {PORT} {outer.port}\n"


@pytest.mark.parametrize("connects", [True, False])
def test_case_11_datagrams_go_to_the_containers_own_address(connects: bool, served: Kernel) -> None:
    with (
        socket.socket(type=DGRAM) as outer,
        socket.socket(type=DGRAM) as inner,
        socket.socket(type=DGRAM) as client,
    ):
        for sock in (outer, inner, client):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5)
        member = endpoint_of(outer)
        run = served.serve(frontend(VIP, PORT, "udp"), [(member, Tier.UP)])
        (backend_id,) = served.state.runs[run.base]
        served.apply(
            PutBackend(backend_id, run.vip_id, member, 1, Tier.UP, inner=endpoint_of(inner))
        )
        if connects:
            client.connect((VIP, PORT))
            client.send(b"?")
        else:
            client.sendto(b"?", (VIP, PORT))
        inner.sendto(*inner.recvfrom(1))
        assert client.recvfrom(1) == (b"?", (VIP, PORT))


# ---- 18: VIPs are independent of each other ------------------------------------------------------


@pytest.mark.parametrize("affinity_seconds", [0, 300])
def test_case_18_a_vip_that_comes_back_with_others_has_only_those(
    affinity_seconds: int, served: Kernel, backends: Backends, dead_end: Callable[[], int]
) -> None:
    vip = frontend(VIP, PORT)
    old, new = backends.listen(), [backends.listen() for _ in range(2)]

    def serve(*members: Endpoint) -> None:
        swap = served.serve(vip, [(member, Tier.UP) for member in members])
        served.apply(replace(swap, affinity_seconds=affinity_seconds))

    serve(old)
    with connect(VIP, PORT) as held:
        assert greeting(held) == old.port
        served.drop(vip)
        before = dead_end()
        assert connect_tcp(VIP, PORT) == errno.EINPROGRESS  # It is nobody's now.
        assert dead_end() > before
        serve(*new)
        reached = {who_answers(VIP, PORT) for _ in range(40)}
        assert reached < ports(new) if affinity_seconds else reached == ports(new)
        assert held.getpeername() == (VIP, PORT)


def test_case_18_two_ports_of_one_address_are_independent(
    served: Kernel, backends: Backends
) -> None:
    one, two = backends.listen(), backends.listen()
    served.serve(frontend(VIP, 80), [(one, Tier.UP)])
    served.serve(frontend(VIP, 81), [(two, Tier.UP)])
    assert who_answers(VIP, 80) == one.port
    assert who_answers(VIP, 81) == two.port
    served.drop(frontend(VIP, 80))
    assert who_answers(VIP, 81) == two.port


def test_case_18_udp_and_tcp_of_one_port_are_independent(
    served: Kernel, backends: Backends
) -> None:
    member = backends.listen()
    served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
    with socket.socket(type=DGRAM) as server, socket.socket(type=DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        served.serve(frontend(VIP, PORT, "udp"), [(endpoint_of(server), Tier.UP)])
        client.connect((VIP, PORT))
        assert client.getpeername() == (VIP, PORT)
        client.send(b"hello")
        assert server.recv(16) == b"hello"
        assert who_answers(VIP, PORT) == member.port
        served.serve(frontend(VIP, PORT), [])
        assert connect_udp(VIP, PORT) == 0
        assert connect_tcp(VIP, PORT) == errno.ECONNREFUSED


def test_case_18_one_endpoint_behind_two_vips_is_two_backends(
    served: Kernel, backends: Backends
) -> None:
    member = backends.listen()
    for port in (80, 81):
        served.serve(frontend(VIP, port), [(member, Tier.UP)])
    with connect(VIP, 80) as one, connect(VIP, 81) as two:
        assert (one.getpeername(), two.getpeername()) == ((VIP, 80), (VIP, 81))
        assert greeting(one) == greeting(two) == member.port
        served.drop(frontend(VIP, 80))
        assert one.getpeername() == (VIP, 80)
        assert counted(served, member, 81).active == 1
        assert who_answers(VIP, 81) == member.port


# ---- 20: sockets of other kinds ------------------------------------------------------------------


def fast_opens() -> int:
    """Connections of this namespace that had data in their first packet, and got it accepted."""
    names, values = (
        line.split()
        for line in Path("/proc/net/netstat").read_text(encoding="ascii").splitlines()
        if line.startswith("TcpExt:")
    )
    return int(values[names.index("TCPFastOpenActive")])


@pytest.fixture
def fast_server() -> Iterator[socket.socket]:
    """A listener on the loopback that takes data from the first packet."""
    with sysctl("net/ipv4/tcp_fastopen", "3"), socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        yield server


def open_by_send(sock: socket.socket, address: str) -> None:
    sock.sendto(b"hello", socket.MSG_FASTOPEN, (address, PORT))


def open_by_connect(sock: socket.socket, address: str) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    sock.connect((address, PORT))
    sock.sendall(b"hello")


@pytest.mark.parametrize("fast_open", [open_by_send, open_by_connect])
@pytest.mark.parametrize("address", [VIP, MAPPED])
def test_case_20_tcp_fast_open_reaches_a_backend_with_its_first_packet(
    address: str,
    fast_open: Callable[[socket.socket, str], None],
    served: Kernel,
    fast_server: socket.socket,
) -> None:
    member = endpoint_of(fast_server)
    served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
    before = fast_opens()
    for _ in range(2):  # The first one may still have to ask for a cookie.
        with socket.socket(family_of(address)) as client:
            fast_open(client, address)
            with fast_server.accept()[0] as other:
                assert other.recv(5, socket.MSG_WAITALL) == b"hello"
                other.sendall(b"answer")
                assert client.recv(6, socket.MSG_WAITALL) == b"answer"
                assert peer_of(client) == (address, PORT)
    assert fast_opens() > before
    wait_for_end(served, member)
    assert counted(served, member).successes == 2
    served.serve(frontend(VIP, PORT), [])
    with socket.socket(family_of(address)) as client, pytest.raises(ConnectionRefusedError):
        fast_open(client, address)
    assert reasons(served) == {"translated": 2, "refused_empty": 1}


def test_case_20_a_fast_open_that_never_sends_counts_for_nothing(
    served: Kernel, fast_server: socket.socket
) -> None:
    member = endpoint_of(fast_server)
    served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
    with socket.socket() as client:  # Brings the cookie.
        open_by_connect(client, VIP)
        fast_server.accept()[0].close()
    wait_for_end(served, member)
    before = counted(served, member)
    with socket.socket() as client:
        client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        client.connect((VIP, PORT))
    assert reasons(served) == {"translated": 2}
    assert counted(served, member) == before


@pytest.mark.parametrize("address", [VIP, MAPPED])
@pytest.mark.parametrize("server_protocol", [socket.IPPROTO_TCP, IPPROTO_MPTCP])
def test_case_20_an_mptcp_socket_is_translated_and_its_peer_is_the_backend(
    address: str, server_protocol: int, served: Kernel
) -> None:
    with (
        socket.socket(proto=server_protocol) as server,
        socket.socket(family_of(address), proto=IPPROTO_MPTCP) as client,
    ):
        server.bind(("127.0.0.1", 0))
        server.listen()
        member = endpoint_of(server)
        served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
        client.settimeout(5)
        client.connect((address, PORT))
        with server.accept()[0] as other:
            client.sendall(b"hello")
            assert other.recv(5, socket.MSG_WAITALL) == b"hello"
            # What connects is a TCP socket inside, what is asked is the one around it.
            backend = "127.0.0.1" if address == VIP else "::ffff:127.0.0.1"
            assert peer_of(client) == (backend, member.port)
            assert counted(served, member).active == 1
    wait_for_end(served, member)
    assert counted(served, member).successes == 1
    served.serve(frontend(VIP, PORT), [])
    with (
        socket.socket(family_of(address), proto=IPPROTO_MPTCP) as client,
        pytest.raises(ConnectionRefusedError),
    ):
        client.connect((address, PORT))


@pytest.fixture
def two_paths() -> Iterator[None]:
    """MPTCP sockets of this namespace use a second address of it, too."""
    run_all("ip mptcp limits set subflows 2", "ip mptcp endpoint add 127.0.0.2 dev lo subflow")
    yield
    run_all("ip mptcp endpoint flush")


@pytest.mark.usefixtures("two_paths")
def test_case_20_a_further_path_of_an_mptcp_socket_leads_to_the_same_backend(
    served: Kernel, backends: Backends
) -> None:
    with socket.socket(proto=IPPROTO_MPTCP) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        member = endpoint_of(server)
        members = [member, *(backends.listen() for _ in range(3))]
        served.serve(frontend(VIP, PORT), [(each, Tier.UP) for each in members])
        with ExitStack() as stack:

            def reach_the_server() -> bool:
                client = stack.enter_context(socket.socket(proto=IPPROTO_MPTCP))
                client.connect((VIP, PORT))
                return peer_of(client)[1] == member.port

            until("connection to the server", reach_the_server, 5)
            other = stack.enter_context(server.accept()[0])
            other.sendall(b"hello")
            until("second path", lambda: len(listed(f"dport = :{member.port}")) == 2, 5)
            # The kernel connects it, to where the first one leads; it is one connection to the VIP.
            assert counted(served, member).active == 1


@pytest.mark.usefixtures("host_addresses")
@pytest.mark.parametrize(
    ("address", "protocol", "question", "answer"),
    [(HOST, socket.IPPROTO_ICMP, 8, 0), (HOST6, socket.IPPROTO_ICMPV6, 128, 129)],
)
def test_case_20_a_ping_is_untouched(
    address: str, protocol: int, question: int, answer: int, served: Kernel
) -> None:
    served.serve(frontend(address, PORT), [])
    served.serve(frontend(address, PORT, "udp"), [])
    served.apply(PutPrefix(ip_network(address), Owner.VIPS))
    with (
        sysctl("net/ipv4/ping_group_range", "0 0"),
        socket.socket(family_of(address), DGRAM, protocol) as connected,
        socket.socket(family_of(address), DGRAM, protocol) as unconnected,
    ):
        connected.connect((address, PORT))
        assert peer_of(connected) == (address, PORT)
        for sock in (connected, unconnected):
            sock.settimeout(5)
        connected.send(bytes([question]) + bytes(7))
        unconnected.sendto(bytes([question]) + bytes(7), (address, PORT))
        for sock in (connected, unconnected):
            reply, sender = sock.recvfrom(64)
            assert (reply[0], sender[0]) == (answer, address)
    assert reasons(served) == {}


def test_case_20_a_raw_socket_is_untouched(served: Kernel, dead_end: Callable[[], int]) -> None:
    served.serve(frontend(VIP, PORT), [])
    before = dead_end()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        sock.connect((VIP, PORT))
        assert sock.getpeername() == (VIP, PORT)
        sock.send(bytes(20))
    assert dead_end() > before
    assert reasons(served) == {}


# ---- 22: whose socket it is ----------------------------------------------------------------------


def test_case_22_a_process_outside_of_the_cgroup_is_not_served(
    kernel: Kernel, backends: Backends, dead_end: Callable[[], int]
) -> None:
    for address in (VIP, VIP6):
        member = backends.listen(loopback_of(address))
        kernel.serve(frontend(address, PORT), [(member, Tier.UP)])
        before = dead_end()
        assert connect_tcp(address, PORT) == errno.EINPROGRESS
        assert dead_end() > before
    assert reasons(kernel) == {}


@pytest.mark.parametrize(
    "wrapper",
    [
        "setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all",
        "unshare --user --map-root-user",
        "unshare --cgroup --mount --pid --fork --ipc --uts",
        "unshare --user --map-root-user --cgroup --mount --pid --fork",
    ],
)
def test_case_22_any_process_in_the_cgroup_is_served(
    wrapper: str, served: Kernel, backends: Backends
) -> None:
    member = backends.listen()
    served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
    assert run_client(*wrapper.split()) == f"{VIP} {PORT} {member.port}\n"


@pytest.mark.parametrize("wrapper", [(), ("unshare", "--cgroup", "--mount")], ids=["bare", "own"])
def test_case_22_a_process_in_a_nested_cgroup_is_served(
    wrapper: tuple[str, ...], kernel: Kernel, backends: Backends, cgroup: Path
) -> None:
    member = backends.listen()
    kernel.serve(frontend(VIP, PORT), [(member, Tier.UP)])
    nested = cgroup / "framework" / "executor" / "task"
    nested.mkdir(parents=True)
    try:
        assert run_client(*join_command(nested, *wrapper)) == f"{VIP} {PORT} {member.port}\n"
    finally:
        remove_cgroup(cgroup / "framework")


def test_case_22_a_process_in_another_network_namespace_is_served(
    served: Kernel, backends: Backends, neighbour: tuple[str, ...]
) -> None:
    member = backends.listen(OUTER)
    served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
    assert run_client(*neighbour) == f"{VIP} {PORT} {member.port}\n"
    assert run_client(*neighbour, address=MAPPED) == f"{MAPPED} {PORT} {member.port}\n"


# ---- 26: a socket that moves on ------------------------------------------------------------------


@every_kind
@every_address
def test_case_26_a_socket_that_was_disconnected_is_connected_to_what_it_asks_for(
    address: str, kind: socket.SocketKind, served: Kernel, backends: Backends
) -> None:
    member = replace(
        backends.listen(loopback_of(address)), transport="tcp" if kind == STREAM else "udp"
    )
    direct = f"::ffff:{member.address}" if address == MAPPED else str(member.address)
    served.serve(frontend(vip_of(address), PORT, member.transport), [(member, Tier.UP)])
    with socket.socket(family_of(address), kind) as sock:
        for target in ((address, PORT), (direct, member.port), (address, PORT)):
            sock.connect(target)
            assert peer_of(sock) == target
            disconnect(sock)


def test_case_26_a_socket_that_was_refused_is_connected_to_what_it_asks_for(
    served: Kernel, backends: Backends
) -> None:
    member = backends.listen()
    served.serve(frontend(VIP, PORT), [])
    with socket.socket() as sock:
        assert sock.connect_ex((VIP, PORT)) == errno.ECONNREFUSED
        sock.connect(("127.0.0.1", member.port))
        assert sock.getpeername() == ("127.0.0.1", member.port)
    backends.stop(member)
    served.serve(frontend(VIP, PORT), [(member, Tier.UP)])
    with socket.socket() as sock:
        # This time it is the backend that refuses.
        assert sock.connect_ex((VIP, PORT)) == errno.ECONNREFUSED
        with socket.create_server(("127.0.0.1", member.port)):
            sock.connect(("127.0.0.1", member.port))
            assert sock.getpeername() == ("127.0.0.1", member.port)
    after = counted(served, member)
    assert (after.connecting, after.active, after.successes, after.failures) == (0, 0, 0, 1)


def test_case_26_a_udp_socket_moves_on_without_being_disconnected(served: Kernel) -> None:
    direct = ("127.0.0.1", 9)
    member = Endpoint(bytes([127, 0, 0, 1]), 9, "udp")
    served.serve(frontend(VIP, PORT, "udp"), [(member, Tier.UP)])
    with socket.socket(type=DGRAM) as sock:
        sock.connect((VIP, PORT))
        assert counted(served, member).active == 1
        # The very backend that stood behind the VIP, but asked for by its own address.
        sock.connect(direct)
        assert sock.getpeername() == direct
        assert counted(served, member).active == 0


def test_case_26_a_udp_socket_that_is_refused_stays_with_its_vip(served: Kernel) -> None:
    with socket.socket(type=DGRAM) as server, socket.socket(type=DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        member = endpoint_of(server)
        served.serve(frontend(VIP, PORT, "udp"), [(member, Tier.UP)])
        served.serve(frontend(VIP, PORT + 1, "udp"), [])
        client.connect((VIP, PORT))
        assert client.connect_ex((VIP, PORT + 1)) == errno.ECONNREFUSED
        assert client.getpeername() == (VIP, PORT)
        assert counted(served, member).active == 1
        for sock in (server, client):
            sock.settimeout(5)
        client.send(b"?")
        server.sendto(*server.recvfrom(1))
        assert client.recvfrom(1) == (b"?", (VIP, PORT))
