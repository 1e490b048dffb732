"""Clients and backends in Docker containers, each with a network namespace and a cgroup of its own.

this namespace     the host: docker0, and 10.77.0.1 that ports are published on
outside/<id>       the container `greeter`, out of reach of the programs
<cgroup>/<id>      containers that are served
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

import pytest

from lab.cgroup import join_command
from lab.docker import BRIDGE_INTERFACE, Container, Docker
from lab.sandbox import VARIABLE
from lab.wait import LabError, until
from minuteman.dataplane.cgroup import cgroup_id, open_cgroup
from minuteman.model import Endpoint, Tier, Transport
from tests.kernel.conftest import Kernel, frontend

VIP = "1.2.3.4"
VIP6 = "fd00::7"
PORT = 5000
HOST = "10.77.0.1"
"""An address of the host, as an agent of Mesos has one."""
INNER_PORT = 8080
"""What a container listens on."""

PYTHON = ("/usr/bin/python3", "-I", "-S", "-u", "-c")

GREETER = f"""
import selectors, socket
tcp = socket.create_server(("::", {INNER_PORT}), family=socket.AF_INET6, dualstack_ipv6=True)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", {INNER_PORT}))
print("ready")
name = socket.gethostname().encode()
selector = selectors.DefaultSelector()
selector.register(tcp, selectors.EVENT_READ)
selector.register(udp, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is tcp:
            with tcp.accept()[0] as connection:
                connection.sendall(name)
        else:
            udp.sendto(name, udp.recvfrom(64)[1])
"""
"""Greets each connection and each datagram with the container's name."""

CONNECT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as client:
    print(*client.getpeername()[:2], client.recv(64, socket.MSG_WAITALL).decode())
"""
"""Says who the peer is, and what it said."""

COME_FROM = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as client:
    print(client.getsockname()[0], client.recv(64, socket.MSG_WAITALL).decode())
"""
"""Says from where it was connected, and what the peer said."""

SEND = """
import socket, sys
[(family, kind, _, _, to)] = socket.getaddrinfo(*sys.argv[1:], type=socket.SOCK_DGRAM)
with socket.socket(family, kind) as client:
    client.settimeout(5)
    client.sendto(b"?", to)
    answer, sender = client.recvfrom(64)
    print(*sender[:2], answer.decode())
"""
"""The same of a datagram from a socket that is not connected."""


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with Docker(tmp_path_factory.mktemp("docker"), Path(os.environ[VARIABLE])) as running:
        yield running


@pytest.fixture(scope="module")
def host_address() -> Iterator[str]:
    subprocess.run(["ip", "address", "add", f"{HOST}/32", "dev", "lo"], check=True)
    yield HOST
    subprocess.run(["ip", "address", "delete", f"{HOST}/32", "dev", "lo"], check=True)


def start_greeter(docker: Docker, cgroup: Path) -> Container:
    container = docker.run(
        *PYTHON, GREETER, cgroup=cgroup, publish=[f"{INNER_PORT}/tcp", f"{INNER_PORT}/udp"]
    )
    until("greeter that listens", lambda: "ready" in container.logs(), 5)
    return container


@pytest.fixture(scope="module")
def greeter(docker: Docker, host_address: str) -> Iterator[Container]:
    """A backend for all tests; what it connects to is not served."""
    with start_greeter(docker, Path(os.environ[VARIABLE]) / "outside") as container:
        yield container


@pytest.fixture
def client(docker: Docker, cgroup: Path) -> Iterator[Container]:
    """A container that is served."""
    with docker.run("sleep", "infinity", cgroup=cgroup) as container:
        yield container


def at_container(container: Container, transport: Transport = "tcp") -> Endpoint:
    return Endpoint(container.address.packed, INNER_PORT, transport)


def at_published_port(container: Container, transport: Transport = "tcp") -> Endpoint:
    port = container.ports[f"{INNER_PORT}/{transport}"]
    return Endpoint(ip_address(HOST).packed, port, transport)


class Place(Protocol):
    """Where a container can be reached."""

    def __call__(self, container: Container, transport: Transport = "tcp") -> Endpoint: ...


every_place = pytest.mark.parametrize("place", [at_container, at_published_port])


def name_of(container: Container) -> str:
    """What Docker calls the host inside."""
    return container.id[:12]


def say_in(cgroup: Path, program: str, *words: str) -> str:
    """What a program prints on the host, in a cgroup."""
    command = join_command(cgroup, *PYTHON, program, *words)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@every_place
def test_a_container_reaches_another_through_a_vip(
    place: Place, kernel: Kernel, greeter: Container, client: Container
) -> None:
    kernel.serve(frontend(VIP, PORT), [(place(greeter), Tier.UP)])
    said = client.exec(*PYTHON, CONNECT, VIP, str(PORT))
    assert said == f"{VIP} {PORT} {name_of(greeter)}\n"


@every_place
def test_a_process_of_the_host_reaches_a_container_through_a_vip(
    place: Place, kernel: Kernel, cgroup: Path, greeter: Container
) -> None:
    kernel.serve(frontend(VIP, PORT), [(place(greeter), Tier.UP)])
    said = say_in(cgroup, CONNECT, VIP, str(PORT))
    assert said == f"{VIP} {PORT} {name_of(greeter)}\n"


@every_place
def test_a_container_reaches_itself_through_its_own_vip(
    place: Place, kernel: Kernel, docker: Docker, cgroup: Path, host_address: str
) -> None:
    with start_greeter(docker, cgroup) as container:
        kernel.serve(frontend(VIP, PORT), [(place(container), Tier.UP)])
        said = container.exec(*PYTHON, CONNECT, VIP, str(PORT))
        assert said == f"{VIP} {PORT} {name_of(container)}\n"


def test_the_host_reaches_a_published_port_of_its_own_at_the_container_itself(
    kernel: Kernel, cgroup: Path, greeter: Container, client: Container
) -> None:
    kernel.serve(frontend(VIP, PORT), [(at_published_port(greeter), Tier.UP)])
    (backend,) = kernel.state.backends.values()
    bridge, _, _ = BRIDGE_INTERFACE.partition("/")
    for inner, source in ((None, HOST), (at_container(greeter), bridge)):
        kernel.apply(replace(backend, inner=inner))
        assert say_in(cgroup, COME_FROM, VIP, str(PORT)) == f"{source} {name_of(greeter)}\n"
        # In another network namespace it is the published port, as before.
        said = client.exec(*PYTHON, COME_FROM, VIP, str(PORT))
        assert said == f"{client.address} {name_of(greeter)}\n"


def test_an_ipv6_socket_in_a_container_reaches_an_ipv4_vip(
    kernel: Kernel, greeter: Container, client: Container
) -> None:
    kernel.serve(frontend(VIP, PORT), [(at_container(greeter), Tier.UP)])
    said = client.exec(*PYTHON, CONNECT, f"::ffff:{VIP}", str(PORT))
    assert said == f"::ffff:{VIP} {PORT} {name_of(greeter)}\n"


def test_a_container_reaches_another_through_an_ipv6_vip(
    kernel: Kernel, greeter: Container, client: Container
) -> None:
    backend = Endpoint(greeter.address6.packed, INNER_PORT, "tcp")
    kernel.serve(frontend(VIP6, PORT), [(backend, Tier.UP)])
    said = client.exec(*PYTHON, CONNECT, VIP6, str(PORT))
    assert said == f"{VIP6} {PORT} {name_of(greeter)}\n"


@pytest.mark.parametrize("address", [VIP, f"::ffff:{VIP}"])
def test_a_datagram_of_a_container_is_answered_from_the_vip(
    address: str, kernel: Kernel, greeter: Container, client: Container
) -> None:
    # Not at its published port: Docker's proxy answers another container from docker0's address.
    kernel.serve(frontend(VIP, PORT, "udp"), [(at_container(greeter, "udp"), Tier.UP)])
    said = client.exec(*PYTHON, SEND, address, str(PORT))
    assert said == f"{address} {PORT} {name_of(greeter)}\n"


def test_a_datagram_of_a_container_is_answered_from_an_ipv6_vip(
    kernel: Kernel, greeter: Container, client: Container
) -> None:
    backend = Endpoint(greeter.address6.packed, INNER_PORT, "udp")
    kernel.serve(frontend(VIP6, PORT, "udp"), [(backend, Tier.UP)])
    said = client.exec(*PYTHON, SEND, VIP6, str(PORT))
    assert said == f"{VIP6} {PORT} {name_of(greeter)}\n"


@every_place
def test_a_datagram_of_the_host_to_a_container_is_answered_from_the_vip(
    place: Place, kernel: Kernel, cgroup: Path, greeter: Container
) -> None:
    kernel.serve(frontend(VIP, PORT, "udp"), [(place(greeter, "udp"), Tier.UP)])
    said = say_in(cgroup, SEND, VIP, str(PORT))
    assert said == f"{VIP} {PORT} {name_of(greeter)}\n"


def test_a_container_sends_itself_a_datagram_through_its_own_vip(
    kernel: Kernel, docker: Docker, cgroup: Path, host_address: str
) -> None:
    with start_greeter(docker, cgroup) as container:
        kernel.serve(frontend(VIP, PORT, "udp"), [(at_container(container, "udp"), Tier.UP)])
        said = container.exec(*PYTHON, SEND, VIP, str(PORT))
        assert said == f"{VIP} {PORT} {name_of(container)}\n"


def test_a_container_outside_of_the_cgroup_is_not_served(
    kernel: Kernel, greeter: Container, client: Container
) -> None:
    kernel.serve(frontend(VIP, PORT), [(at_container(greeter), Tier.UP)])
    with pytest.raises(LabError, match="Network is unreachable"):
        greeter.exec(*PYTHON, CONNECT, VIP, str(PORT))
    assert kernel.dataplane.counters().reasons["translated"] == 0


def test_each_container_has_a_cgroup_of_its_own_below_the_attached_one(
    docker: Docker, cgroup: Path, client: Container
) -> None:
    with docker.run("sleep", "infinity", cgroup=cgroup) as other:
        ids = set()
        for container in (client, other):
            # As the kernel says it, not as Docker was asked.
            [line] = [
                line
                for line in Path(f"/proc/{container.pid}/cgroup").read_text("ascii").splitlines()
                if line.startswith("0::")
            ]
            assert line.endswith(f"/{cgroup.name}/{container.id}")
            fd = open_cgroup(container.cgroup)
            ids.add(cgroup_id(fd))
            os.close(fd)
            here, there = (
                Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", container.pid)
            )
            assert here != there
        assert len(ids) == 2


def test_what_is_executed_in_a_container_is_in_its_cgroup(client: Container) -> None:
    # A namespace of cgroups of its own: what is below the container's is not beside it.
    assert client.exec("cat", "/proc/self/cgroup").splitlines()[-1] == "0::/"
