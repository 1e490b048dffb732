"""What is told of connections while somebody listens: each outcome, of sockets that meet it."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab.wait import until
from minuteman.dataplane import bpf, layout
from minuteman.dataplane.cgroup import cgroup2_mount
from minuteman.model import Endpoint, Frontend, Tier, Transport
from minuteman.reconcile.kernelstate import Owner, PutPrefix
from tests.kernel.churn import drop_all, hear_again
from tests.kernel.conftest import (
    Backends,
    Inside,
    Kernel,
    connect,
    endpoint_of,
    family_of,
    frontend,
)
from tests.kernel.conftest import reasons as reasons_of

DEADLINE_SECONDS = 10.0
COMMAND = (sys.executable, "-P", "-m", "minuteman.dataplane.events")
LISTEN_NS = 60 * 10**9
MARKER = frontend("1.2.3.9", 9)
"""It has no backend: who is refused there shows that events are read."""
UNREACHABLE = {4: ip_address("10.99.0.1"), 6: ip_address("fd00:99::1")}
"""There is no route to them."""
CURRENT_TGID = bytes.fromhex(
    "850000000e000000"  # call bpf_get_current_pid_tgid
    "7700000020000000"  # r0 >>= 32
    "9500000000000000"  # exit
)
TCP_USER_TIMEOUT = 18
"""linux/tcp.h"""
HEADER_BYTES = 8
"""Of a record in a ring buffer."""
RECORDS = layout.EVENT_BYTES // (layout.EVENT.size + HEADER_BYTES)
"""What has room in `events`."""

Line = dict[str, Any]


class Way(NamedTuple):
    """How a client gets to a VIP."""

    vip: str
    target: str
    """The same, as the client writes it."""
    host: str
    """Of the backend."""

    def vip_at(self, port: int, transport: Transport = "tcp") -> Frontend:
        return frontend(self.vip, port, transport)

    def client(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A client's socket, that waits for nothing."""
        sock = socket.socket(family_of(self.target), kind)
        sock.setblocking(False)
        return sock

    def server(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A backend's socket."""
        sock = socket.socket(family_of(self.host), kind)
        sock.bind((self.host, 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock


WAYS = {
    "ipv4": Way("1.2.3.4", "1.2.3.4", "127.0.0.1"),
    "mapped": Way("1.2.3.4", "::ffff:1.2.3.4", "127.0.0.1"),
    "ipv6": Way("fd00::7", "fd00::7", "::1"),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def text(of: Frontend | Endpoint) -> str:
    """As an event writes it."""
    host = f"[{of.address}]" if of.address.version == 6 else str(of.address)
    return f"{host}:{of.port}"


# ---- who listens ---------------------------------------------------------------------------------
class Listener:
    """The child that reads events, and a thread that reads what it writes."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([*COMMAND, "--pins", folder], stdout=subprocess.PIPE)
        self.lines: list[Line] = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    def hear(self) -> None:
        """Begin to read."""
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def of(self, vip: Frontend) -> list[Line]:
        return [line for line in self.lines if line.get("vip") == text(vip)]

    @property
    def lost(self) -> int:
        return sum(line.get("lost", 0) for line in self.lines)

    def stop(self) -> None:
        """Have it do nothing, until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{self.process.pid}/stat")
        until("stop", lambda: " T " in state.read_text(encoding="ascii"), DEADLINE_SECONDS)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._thread.ident:
            self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def listening(kernel: Kernel) -> Iterator[None]:
    """The programs tell of connections while the block runs."""
    kernel.dataplane.listen_until(time.monotonic_ns() + LISTEN_NS)
    try:
        yield
    finally:
        kernel.dataplane.listen_until(0)


def refused_at(vip: Frontend) -> None:
    with socket.socket(family_of(str(vip.address))) as sock:
        assert sock.connect_ex((str(vip.address), vip.port)) == errno.ECONNREFUSED


@pytest.fixture
def mute(kernel: Kernel, cgroup: Path, inside: Inside) -> Iterator[Listener]:
    """One that has begun to read events. What it writes is not read yet."""
    kernel.serve(MARKER, [])
    with inside(cgroup), listening(kernel):
        listener = Listener(kernel.where.folder)
        try:
            yield listener
        finally:
            listener.kill()


@pytest.fixture
def listener(mute: Listener) -> Listener:
    """One that hears of all that happens from now on."""
    mute.hear()

    def hears() -> bool:
        refused_at(MARKER)
        return bool(mute.of(MARKER))

    until("event", hears, DEADLINE_SECONDS)
    return mute


@pytest.fixture
def told(listener: Listener) -> Callable[..., list[Line]]:
    """Waits for the lines of a VIP, of these outcomes and no others."""

    def wait(vip: Frontend, *outcomes: str) -> list[Line]:
        def are_told() -> list[Line]:
            lines = listener.of(vip)
            return lines if len(lines) >= len(outcomes) else []

        lines = until(f"{outcomes}", are_told, DEADLINE_SECONDS)
        assert tuple(line["outcome"] for line in lines) == outcomes
        return lines

    return wait


Told = Callable[..., list[Line]]


def own_pid() -> int:
    """Of this process, as the host numbers it."""
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    program = lib.bpf_prog_load(bpf.PROG_SCHED_CLS, b"tgid", b"GPL", CURRENT_TGID, 3, None)
    assert program >= 0
    try:
        return bpf.run_on(program, bytes(14))
    finally:
        os.close(program)


def own_command() -> str:
    return Path("/proc/thread-self/comm").read_text(encoding="utf-8").strip()


def caller(cgroup: Path) -> Line:
    """What a line says of this process."""
    path = "/" + str(cgroup.relative_to(cgroup2_mount()))
    return {"cgroup": path, "pid": own_pid(), "command": own_command()}


def check(
    line: Line, cgroup: Path, vip: Frontend, backend: Endpoint | None, *, waited: bool
) -> None:
    """All of a line but its outcome."""
    assert line.keys() == {
        "time", "protocol", "vip", "backend", "outcome", "waited_us", "cgroup", "pid", "command",
    }  # fmt: skip
    assert line["protocol"] == vip.transport
    assert line["vip"] == text(vip)
    assert line["backend"] == (text(backend) if backend else None)
    assert (line["waited_us"] is not None) == waited
    assert {name: line[name] for name in ("cgroup", "pid", "command")} == caller(cgroup)
    age = datetime.now(UTC) - datetime.fromisoformat(line["time"])
    assert -1 < age.total_seconds() < 60


# ---- TCP -----------------------------------------------------------------------------------------
def test_a_connection_is_told_of_when_it_is_made_and_when_it_ends(
    way: Way, told: Told, kernel: Kernel, cgroup: Path
) -> None:
    vip = way.vip_at(5000)
    with way.server() as server:
        member = endpoint_of(server)
        kernel.serve(vip, [(member, Tier.UP)])
        with connect(way.target, vip.port):
            (line,) = told(vip, "connected")
            check(line, cgroup, vip, member, waited=True)
            assert 0 <= line["waited_us"] < 10**6
    _, line = told(vip, "connected", "closed")
    check(line, cgroup, vip, member, waited=False)


def test_a_backend_that_refuses(way: Way, told: Told, kernel: Kernel, cgroup: Path) -> None:
    vip = way.vip_at(5000)
    with way.server() as server:
        member = endpoint_of(server)
    kernel.serve(vip, [(member, Tier.UP)])
    with pytest.raises(ConnectionRefusedError):
        connect(way.target, vip.port)
    (line,) = told(vip, "refused")
    check(line, cgroup, vip, member, waited=True)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_vip_without_a_backend(
    kind: socket.SocketKind, way: Way, told: Told, kernel: Kernel, cgroup: Path
) -> None:
    vip = way.vip_at(5000, "tcp" if kind == socket.SOCK_STREAM else "udp")
    kernel.serve(vip, [])
    with way.client(kind) as sock:
        assert sock.connect_ex((way.target, vip.port)) == errno.ECONNREFUSED
    (line,) = told(vip, "refused_empty")
    check(line, cgroup, vip, None, waited=False)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_no_vip_where_only_vips_are(
    kind: socket.SocketKind, way: Way, told: Told, kernel: Kernel, cgroup: Path
) -> None:
    vip = way.vip_at(5000, "tcp" if kind == socket.SOCK_STREAM else "udp")
    kernel.apply(PutPrefix(ip_network(way.vip), Owner.VIPS))
    with way.client(kind) as sock:
        assert sock.connect_ex((way.target, vip.port)) == errno.ECONNREFUSED
    (line,) = told(vip, "refused_unknown")
    check(line, cgroup, vip, None, waited=False)


def tear_vips(kernel: Kernel) -> None:
    """Have every place in `vips` say that it is somebody else's, as while a change is made."""
    fd = bpf.open_pin(kernel.where.maps / "vips")
    try:
        for place in range(kernel.state.limits.vips):
            raw = bpf.lookup(fd, layout.SLOT.pack(place), layout.VIP.size)
            assert raw is not None
            bpf.update(fd, layout.SLOT.pack(place), raw[:40] + bytes(16) + raw[56:])
    finally:
        os.close(fd)


def tear_backends(kernel: Kernel) -> None:
    """Have the backends be members of nothing, as after a change."""
    fd = bpf.open_pin(kernel.where.maps / "backends")
    try:
        for backend in kernel.state.backends.values():
            free = layout.pack_free_backend(layout.pack_backend(backend, 0))
            bpf.update(fd, layout.SLOT.pack(backend.id), free)
    finally:
        os.close(fd)


def program_in(array: int) -> int:
    """A descriptor of the program that a tail call through `array` leads to."""
    raw = bpf.lookup(array, layout.SLOT.pack(0), layout.SLOT.size)
    assert raw is not None
    fd: int = ctypes.CDLL("libbpf.so.1").bpf_prog_get_fd_by_id(layout.SLOT.unpack(raw)[0])
    assert fd >= 0
    return fd


@pytest.mark.parametrize("tear", [tear_vips, tear_backends])
@pytest.mark.parametrize("datagram", [False, True], ids=["connect", "sendto"])
def test_a_vip_that_is_changed_under_every_look(
    datagram: bool,
    tear: Callable[[Kernel], None],
    way: Way,
    told: Told,
    kernel: Kernel,
    cgroup: Path,
) -> None:
    vip = way.vip_at(5000, "udp" if datagram else "tcp")
    with way.server() as server:
        kernel.serve(vip, [(endpoint_of(server), Tier.UP)])
    before = reasons_of(kernel).get("retried", 0)
    tear(kernel)
    try:
        kind = socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM
        with way.client(kind) as sock, pytest.raises(ConnectionRefusedError):
            (partial(sock.sendto, b"x") if datagram else sock.connect)((way.target, vip.port))
        found = reasons_of(kernel)
        # The first look, and as many as the kernel allows.
        assert (found["refused_torn"], found["retried"] - before) == (1, 1 + 33)
        (line,) = told(vip, "refused_torn")
        check(line, cgroup, vip, None, waited=False)
    finally:
        kernel.drop(MARKER)
        kernel.drop(vip)


def test_who_cannot_look_again_is_refused_and_told_why(
    way: Way, told: Told, kernel: Kernel, cgroup: Path
) -> None:
    vip = way.vip_at(5000)
    with way.server() as server:
        kernel.serve(vip, [(endpoint_of(server), Tier.UP)])
    name = "again_connect4" if family_of(way.target) == socket.AF_INET else "again_connect6"
    fd = bpf.open_pin(kernel.where.maps / name)
    program = program_in(fd)
    tear_vips(kernel)
    bpf.delete(fd, layout.SLOT.pack(0))
    try:
        with way.client() as sock:
            assert sock.connect_ex((way.target, vip.port)) == errno.ECONNREFUSED
        assert reasons_of(kernel)["refused_torn"] == 1
        (line,) = told(vip, "refused_torn")
        check(line, cgroup, vip, None, waited=False)
    finally:
        bpf.update(fd, layout.SLOT.pack(0), layout.SLOT.pack(program))
        os.close(program)
        os.close(fd)
        kernel.drop(MARKER)
        kernel.drop(vip)


def test_a_client_that_gives_up(way: Way, told: Told, kernel: Kernel, cgroup: Path) -> None:
    vip = way.vip_at(5000)
    with way.server() as server:
        drop_all(server)
        member = endpoint_of(server)
        kernel.serve(vip, [(member, Tier.UP)])
        with way.client() as sock:
            assert sock.connect_ex((way.target, vip.port)) == errno.EINPROGRESS
        (line,) = told(vip, "given_up")
    check(line, cgroup, vip, member, waited=True)


def answer(listener: Listener, vip: Frontend) -> list[Line]:
    """The line that tells of a connection, if there is one."""
    return [line for line in listener.of(vip) if line["outcome"] == "connected"]


def test_a_backend_that_answers_late(
    way: Way, told: Told, listener: Listener, kernel: Kernel, cgroup: Path
) -> None:
    vip = way.vip_at(5000)
    with way.server() as server:
        drop_all(server)
        member = endpoint_of(server)
        kernel.serve(vip, [(member, Tier.UP)])
        with way.client() as sock:
            assert sock.connect_ex((way.target, vip.port)) == errno.EINPROGRESS
            (line,) = told(vip, "unanswered")
            check(line, cgroup, vip, member, waited=True)
            assert line["waited_us"] > 900_000
            hear_again(server)
            # Another SYN may go unanswered before the one that is heard.
            (line,) = until("answer", lambda: answer(listener, vip), DEADLINE_SECONDS)
            check(line, cgroup, vip, member, waited=True)
            assert line["waited_us"] > 900_000


def test_a_backend_that_never_answers(told: Told, kernel: Kernel, cgroup: Path) -> None:
    way = WAYS["ipv4"]
    vip = way.vip_at(5000)
    with way.server() as server:
        drop_all(server)
        member = endpoint_of(server)
        kernel.serve(vip, [(member, Tier.UP)])
        with way.client() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 1500)
            sock.settimeout(DEADLINE_SECONDS)
            assert sock.connect_ex((way.target, vip.port)) == errno.ETIMEDOUT
        for line in told(vip, "unanswered", "timed_out"):
            check(line, cgroup, vip, member, waited=True)


def test_a_backend_that_there_is_no_way_to(
    way: Way, told: Told, kernel: Kernel, cgroup: Path
) -> None:
    vip = way.vip_at(5000)
    member = Endpoint(UNREACHABLE[vip.address.version].packed, 80, "tcp")
    kernel.serve(vip, [(member, Tier.UP)])
    with way.client() as sock:
        assert sock.connect_ex((way.target, vip.port)) == errno.ENETUNREACH
    (line,) = told(vip, "not_sent")
    check(line, cgroup, vip, member, waited=False)


# ---- UDP -----------------------------------------------------------------------------------------
def test_a_connected_udp_socket_is_told_of_once(
    way: Way, told: Told, kernel: Kernel, cgroup: Path
) -> None:
    vip = way.vip_at(53, "udp")
    with way.server(socket.SOCK_DGRAM) as server, way.client(socket.SOCK_DGRAM) as sock:
        member = endpoint_of(server)
        kernel.serve(vip, [(member, Tier.UP)])
        sock.connect((way.target, vip.port))
        for _ in range(3):
            sock.send(b"x")
    (line,) = told(vip, "chosen")
    check(line, cgroup, vip, member, waited=False)


def test_the_first_datagram_of_an_unconnected_udp_socket_is_told_of(
    way: Way, told: Told, kernel: Kernel, cgroup: Path
) -> None:
    vip, empty = way.vip_at(53, "udp"), way.vip_at(54, "udp")
    kernel.serve(empty, [])
    with way.server(socket.SOCK_DGRAM) as server, way.client(socket.SOCK_DGRAM) as sock:
        member = endpoint_of(server)
        kernel.serve(vip, [(member, Tier.UP)])
        for _ in range(3):
            sock.sendto(b"x", (way.target, vip.port))
        with pytest.raises(ConnectionRefusedError):
            sock.sendto(b"x", (way.target, empty.port))
    (line,) = told(empty, "refused_empty")
    check(line, cgroup, empty, None, waited=False)
    (line,) = told(vip, "chosen")
    check(line, cgroup, vip, member, waited=False)


# ---- whose it is ---------------------------------------------------------------------------------
def test_of_a_connection_of_before_the_client_is_not_known(
    kernel: Kernel, backends: Backends, mute: Listener
) -> None:
    vip = frontend("1.2.3.4", 5000)
    kernel.serve(vip, [(backends.listen(), Tier.UP)])
    kernel.dataplane.listen_until(0)
    client = connect("1.2.3.4", 5000)
    with listening(kernel):
        mute.hear()

        def hears() -> bool:
            refused_at(MARKER)
            return bool(mute.of(MARKER))

        until("event", hears, DEADLINE_SECONDS)
        client.close()
        until("end", lambda: mute.of(vip), DEADLINE_SECONDS)
    (line,) = mute.of(vip)
    assert (line["outcome"], line["cgroup"], line["pid"], line["command"]) == (
        "closed",
        *[None] * 3,
    )


def test_a_cgroup_that_is_gone_has_no_path(
    listener: Listener, kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    vip = frontend("1.2.3.4", 5000)
    kernel.serve(vip, [])
    below = cgroup / "below"
    below.mkdir()
    listener.stop()
    with inside(below):
        refused_at(vip)
    below.rmdir()
    listener.go_on()
    until("event", lambda: listener.of(vip), DEADLINE_SECONDS)
    (line,) = listener.of(vip)
    assert line["cgroup"] is None
    assert line["pid"] == own_pid()


# ---- nobody listens ------------------------------------------------------------------------------
@pytest.mark.parametrize("ago", [None, 0.02], ids=["nobody", "too late"])
def test_nothing_is_told_when_nobody_listens(
    ago: float | None, kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    vip, empty = frontend("1.2.3.4", 5000), frontend("1.2.3.5", 5000)
    kernel.serve(vip, [(backends.listen(), Tier.UP)])
    kernel.serve(empty, [])
    kernel.dataplane.listen_until(0 if ago is None else time.monotonic_ns() - int(ago * 10**9))
    fd = bpf.open_pin(kernel.where.maps / "events")
    try:
        with inside(cgroup), bpf.RingBuffer(fd) as ring:
            while ring.read(1000):
                pass
            connect("1.2.3.4", 5000).close()
            refused_at(empty)
            assert ring.read(1000) == []
            with listening(kernel):
                refused_at(empty)
            assert len(ring.read(1000)) == 1
    finally:
        os.close(fd)


def test_what_is_in_the_buffer_from_before_is_not_told(
    kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    vip = frontend("1.2.3.5", 5000)
    kernel.serve(vip, [])
    kernel.serve(MARKER, [])
    with inside(cgroup), listening(kernel):
        refused_at(vip)
        listener = Listener(kernel.where.folder)
        try:
            listener.hear()

            def hears() -> bool:
                refused_at(MARKER)
                return bool(listener.of(MARKER))

            until("event", hears, DEADLINE_SECONDS)
            assert not listener.of(vip)
        finally:
            listener.kill()


# ---- no room -------------------------------------------------------------------------------------
def test_what_has_no_room_in_the_buffer_is_counted_and_told(
    listener: Listener, kernel: Kernel
) -> None:
    vip = frontend("1.2.3.5", 5000)
    kernel.serve(vip, [])
    attempts = RECORDS + 1000
    listener.stop()
    for _ in range(attempts):
        refused_at(vip)
    lost = reasons_of(kernel)["event_lost"]
    assert 1000 <= lost < attempts
    listener.go_on()
    until("rest", lambda: len(listener.of(vip)) + listener.lost >= attempts, DEADLINE_SECONDS)
    assert (len(listener.of(vip)), listener.lost) == (attempts - lost, lost)


def test_a_pipe_that_nobody_reads_does_not_hold_it_up(mute: Listener, kernel: Kernel) -> None:
    vip = frontend("1.2.3.5", 5000)
    kernel.serve(vip, [])
    until("reader", lambda: is_read(mute), DEADLINE_SECONDS)
    refusals = 5 * RECORDS
    for _ in range(refusals):
        refused_at(vip)
    mute.hear()
    until("rest", lambda: len(mute.of(vip)) + mute.lost >= refusals, DEADLINE_SECONDS)
    assert mute.lost > 0
    assert len(mute.of(vip)) + mute.lost == refusals


def is_read(listener: Listener) -> bool:
    """Whether the child has written a line of the marker. Its first one is read."""
    refused_at(MARKER)
    assert listener.process.stdout is not None
    ready, _, _ = select.select([listener.process.stdout], [], [], 0)
    return bool(ready) and bool(listener.process.stdout.readline())


# ---- the child's end -----------------------------------------------------------------------------
def test_it_ends_when_nobody_has_its_output_open(mute: Listener) -> None:
    until("reader", lambda: is_read(mute), DEADLINE_SECONDS)
    assert mute.process.stdout is not None
    mute.process.stdout.close()
    assert mute.process.wait(DEADLINE_SECONDS) == 0


def test_it_says_in_a_line_what_it_lacks(tmp_path: Path) -> None:
    child = subprocess.run(
        [*COMMAND, "--pins", tmp_path], capture_output=True, text=True, check=False
    )
    assert child.returncode == os.EX_OSERR
    assert len(child.stderr.splitlines()) == 1
    assert child.stdout == ""
