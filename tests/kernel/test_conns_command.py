"""`minuteman conns` beside real sockets: every connection through a VIP, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from msgspec.structs import replace

from lab.wait import until
from minuteman.dataplane import bpf, netns
from minuteman.dataplane.layout import CONN, SLOT, AboutMap, mapped
from minuteman.dataplane.pins import read_about
from minuteman.model import Endpoint, Frontend, Tier
from tests.contract.fronts import USER, start, update
from tests.kernel.conftest import (
    Backends,
    Inside,
    Kernel,
    connect,
    cookie_of,
    endpoint_of,
    frontend,
    new_pins,
)

MINUTEMAN = Path(sys.executable).with_name("minuteman")
DEADLINE_SECONDS = 20.0
VIP4, VIP6, VIP_UDP = (
    frontend("1.2.3.4", 80),
    frontend("fd02::4", 80),
    frontend("1.2.3.4", 53, "udp"),
)
NEIGHBOUR = "mm-conns"
NO_AGENT = "127.0.0.1:1"
"""Where nothing answers."""
FAR = 2**40
"""No socket has a cookie as high as this."""


@pytest.fixture
def bpffs(kernel: Kernel) -> Iterator[Path]:
    """Where the command finds the pins of `kernel`."""
    folder = new_pins()
    folder.mkdir()
    (folder / "minuteman").symlink_to(kernel.pins)
    yield folder
    (folder / "minuteman").unlink()
    folder.rmdir()


def run(bpffs: Path, *words: str, wrap: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*wrap, MINUTEMAN, "conns", f"--bpffs={bpffs}", f"--api={NO_AGENT}", *words],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


def listed(bpffs: Path, *words: str) -> list[dict[str, object]]:
    """What the command says, which is nothing but the list."""
    done = run(bpffs, "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


@contextmanager
def in_network(path: str) -> Iterator[None]:
    """This thread is in a network namespace while the block runs."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with netns.inside(fd):
            yield
    finally:
        os.close(fd)


@pytest.fixture
def neighbour() -> Iterator[str]:
    """Another network, which has a name."""
    subprocess.run(["ip", "netns", "add", NEIGHBOUR], check=True)
    subprocess.run(["ip", "-netns", NEIGHBOUR, "link", "set", "lo", "up"], check=True)
    yield f"/run/netns/{NEIGHBOUR}"
    subprocess.run(["ip", "netns", "delete", NEIGHBOUR], check=True)


def mapped_client(vip: Frontend) -> socket.socket:
    """An IPv6 socket that is connected to an IPv4 VIP."""
    client = socket.socket(socket.AF_INET6)
    client.connect((f"::ffff:{vip.address}", vip.port))
    return client


def udp_client(vip: Frontend) -> socket.socket:
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.connect((str(vip.address), vip.port))
    return client


def as_listed(client: socket.socket, vip: Frontend, given: Endpoint, network: str) -> set[object]:
    """What is to be said of a client, as far as it is known."""
    host, port, *_ = client.getsockname()
    return {
        ("protocol", vip.transport),
        ("client", host.removeprefix("::ffff:")),
        ("client_port", port),
        ("vip", str(vip.address)),
        ("vip_port", vip.port),
        ("name", None),
        ("backend", str(given.address)),
        ("backend_port", given.port),
        ("state", "established"),
        ("network", network),
        ("uid", os.geteuid()),
        ("inode", os.fstat(client.fileno()).st_ino),
    }


@pytest.mark.usefixtures("neighbour")
def test_every_connection_is_listed_and_nothing_else(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside, bpffs: Path, neighbour: str
) -> None:
    with ExitStack() as stack:
        tcp4, tcp6 = backends.listen(), backends.listen("::1")
        udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        kernel.serve(VIP4, [(tcp4, Tier.UP)])
        kernel.serve(VIP6, [(tcp6, Tier.UP)])
        kernel.serve(VIP_UDP, [(endpoint_of(udp), Tier.UP)])
        with in_network(neighbour):
            away = stack.enter_context(socket.create_server(("127.0.0.1", tcp4.port)))
        stack.enter_context(inside(cgroup))
        found = [
            as_listed(stack.enter_context(client), vip, given, "host")
            for client, vip, given in [
                (connect("1.2.3.4", 80), VIP4, tcp4),
                (connect("1.2.3.4", 80), VIP4, tcp4),
                (connect("fd02::4", 80), VIP6, tcp6),
                (mapped_client(VIP4), VIP4, tcp4),
                (udp_client(VIP_UDP), VIP_UDP, endpoint_of(udp)),
            ]
        ]
        with in_network(neighbour):
            client = stack.enter_context(connect("1.2.3.4", 80))
        found.append(as_listed(client, VIP4, endpoint_of(away), NEIGHBOUR))
        stack.enter_context(connect("127.0.0.1", tcp4.port))  # directly
        direct = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        direct.connect(udp.getsockname())
        unconnected = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        unconnected.sendto(b"", ("1.2.3.4", 53))
        with connect("1.2.3.4", 80):
            pass
        until("end of a connection", lambda: len(listed(bpffs)) == len(found), DEADLINE_SECONDS)
        shown = [set(one.items()) for one in listed(bpffs)]
    assert all(any(expected <= one for one in shown) for expected in found), (found, shown)


def test_what_a_connection_is_at(kernel: Kernel, cgroup: Path, inside: Inside, bpffs: Path) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        kernel.serve(VIP4, [(endpoint_of(listener), Tier.UP)])
        with inside(cgroup):
            client = stack.enter_context(connect("1.2.3.4", 80))
        server = stack.enter_context(listener.accept()[0])

        def said() -> tuple[object, ...]:
            (one,) = listed(bpffs)
            return one["state"], one["bytes_sent"], one["bytes_received"]

        assert said() == ("established", 0, 0)
        client.sendall(bytes(100_000))
        server.recv(100_000, socket.MSG_WAITALL)
        server.sendall(bytes(1_234))
        client.recv(1_234, socket.MSG_WAITALL)
        until("all bytes", lambda: said() == ("established", 100_000, 1_234), DEADLINE_SECONDS)
        (one,) = listed(bpffs)
        age, rtt_us = one["age_seconds"], one["rtt_us"]
        assert isinstance(age, float)
        assert 0 <= age < DEADLINE_SECONDS
        assert isinstance(rtt_us, int)
        assert 0 < rtt_us < 1_000_000
        assert one["retransmits"] == 0
        server.shutdown(socket.SHUT_WR)
        until("the end of one half", lambda: said()[0] == "closing", DEADLINE_SECONDS)
        assert said() == ("closing", 100_000, 1_234)
    until("the end of the other", lambda: not listed(bpffs), DEADLINE_SECONDS)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_waits_for_an_answer_is_connecting(
    kernel: Kernel, cgroup: Path, inside: Inside, bpffs: Path, family: int
) -> None:
    host, vip = ("127.0.0.1", VIP4) if family == socket.AF_INET else ("::1", VIP6)
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket(family))
        full.bind((host, 0))
        full.listen(0)
        kernel.serve(vip, [(endpoint_of(full), Tier.UP)])
        stack.enter_context(inside(cgroup))
        stack.enter_context(connect(str(vip.address), vip.port))  # takes the only place
        waiting = stack.enter_context(socket.socket(family))
        waiting.setblocking(False)
        waiting.connect_ex((str(vip.address), vip.port))
        states = sorted(str(one["state"]) for one in listed(bpffs))
    assert states == ["connecting", "established"]


def test_filters_and_the_table(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside, bpffs: Path
) -> None:
    here, there = backends.listen(), backends.listen("::1")
    kernel.serve(VIP4, [(here, Tier.UP)])
    kernel.serve(VIP6, [(there, Tier.UP)])
    with inside(cgroup), connect("1.2.3.4", 80) as client, connect("fd02::4", 80):
        assert len(listed(bpffs)) == 2
        assert [one["vip"] for one in listed(bpffs, "--vip=1.2.3.4:80")] == ["1.2.3.4"]
        assert [one["vip"] for one in listed(bpffs, f"--backend=[::1]:{there.port}")] == ["fd02::4"]
        assert listed(bpffs, "--vip=1.2.3.4", "--backend=::1") == []
        done = run(bpffs, "--vip=1.2.3.4")
        assert (done.returncode, done.stderr) == (0, "")
        _head, line = done.stdout.splitlines()
        port = client.getsockname()[1]
        assert line.split()[:6] == [
            *("tcp", f"127.0.0.1:{port}", "1.2.3.4:80", f"127.0.0.1:{here.port}"),
            *("established", "host"),
        ]
    assert run(bpffs).stdout == "No connections.\n"


def test_a_network_without_a_name_is_called_after_a_process(
    kernel: Kernel, cgroup: Path, inside: Inside, bpffs: Path
) -> None:
    program = (
        "import socket, subprocess\n"
        "subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)\n"
        "server = socket.create_server(('127.0.0.1', 31999))\n"
        "client = socket.create_connection(('1.2.3.4', 80))\n"
        "print('connected', flush=True)\n"
        "input()\n"
    )
    kernel.serve(VIP4, [(Endpoint(ip_address("127.0.0.1").packed, 31_999, "tcp"), Tier.UP)])
    with inside(cgroup):
        unshared = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    assert unshared.stdout is not None
    assert unshared.stdout.readline() == "connected\n"
    assert [one["network"] for one in listed(bpffs)] == [f"pid {unshared.pid}"]
    unshared.communicate("\n", timeout=DEADLINE_SECONDS)


def test_names_are_those_that_the_agent_knows(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside, bpffs: Path
) -> None:
    kernel.serve(frontend("11.0.0.37", 80), [(backends.listen(), Tier.UP)])
    kernel.serve(VIP4, [(backends.listen(), Tier.UP)])
    with start(USER) as front, ExitStack() as stack:
        front.await_listening()
        front.publish(update())
        stack.enter_context(front.answering())
        stack.enter_context(inside(cgroup))
        stack.enter_context(connect("11.0.0.37", 80))
        stack.enter_context(connect("1.2.3.4", 80))
        api = f"--api={front.address}"
        named = {one["vip"]: one["name"] for one in listed(bpffs, api)}
        only = [one["vip"] for one in listed(bpffs, api, "--vip=WEB.marathon")]
    assert named == {
        "11.0.0.37": "web.marathon.l4lb.thisdcos.directory:80",
        "1.2.3.4": None,
    }
    assert only == ["11.0.0.37"]


def test_what_the_maps_have_without_a_socket_is_said(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside, bpffs: Path
) -> None:
    kernel.serve(VIP4, [(backends.listen(), Tier.UP)])
    places = bpf.open_pin(kernel.where.maps / "conns")
    size = bpf.map_info(places).max_entries
    lost = CONN.pack(mapped(VIP4.address.packed), b"", b"", b"", 0, 0, 6, 1, 0, 0, 0, 0, FAR)
    try:
        with inside(cgroup), connect("1.2.3.4", 80) as client:
            free = next(p for p in range(size) if p != cookie_of(client) % size)
            cookie = FAR + free
            bpf.update(places, SLOT.pack(free), lost[:-8] + cookie.to_bytes(8, sys.byteorder))
            done = run(bpffs, "--json")
            bpf.update(places, SLOT.pack(free), bytes(CONN.size))
    finally:
        os.close(places)
    assert len(json.loads(done.stdout)) == 1
    assert done.stderr.startswith("1 more sockets were given a backend")


def test_maps_of_another_version_are_not_guessed_at(kernel: Kernel, bpffs: Path) -> None:
    about = read_about(kernel.where)
    others = about.maps | {"conns": AboutMap(SLOT.text, "cookie:Q")}
    fd = bpf.open_pin(kernel.where.maps / "about")
    try:
        bpf.update(fd, SLOT.pack(0), replace(about, maps=others).pack())
        done = run(bpffs)
        bpf.update(fd, SLOT.pack(0), about.pack())
    finally:
        os.close(fd)
    assert done.returncode == os.EX_OSERR
    assert "programs of another version serve" in done.stderr
    assert run(bpffs).stdout == "No connections.\n"


def test_it_needs_root(bpffs: Path) -> None:
    done = run(bpffs, wrap=("setpriv", "--inh-caps=-all", "--bounding-set=-all"))
    assert done.returncode == os.EX_NOPERM
    assert done.stderr.startswith("minuteman: run it as root; missing are CAP_")
