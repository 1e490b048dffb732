"""A cgroup, pins and listeners of the test's own, in the sandbox's network namespace."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from lab.sandbox import VARIABLE, remove_cgroup
from minuteman.dataplane import bpf, layout
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.dataplane.pins import Pins
from minuteman.model import BackendCounters, Endpoint, Frontend, Tier, Transport
from minuteman.reconcile.kernelstate import (
    DropPrefix,
    DropVip,
    KernelState,
    Limits,
    Op,
    PutBackend,
    Release,
    SwapVip,
    WriteRun,
)

LIMITS = Limits(vips=256, slots=4096, backends=1024, conns=4096)
SO_COOKIE = 57
"""asm-generic/socket.h"""
_numbers = count()


@contextmanager
def new_cgroup() -> Iterator[Path]:
    """An empty cgroup to attach to, while the block runs."""
    path = Path(os.environ[VARIABLE]) / f"test-{next(_numbers)}"
    path.mkdir()
    try:
        yield path
    finally:
        remove_cgroup(path)


def new_pins() -> Path:
    """A folder of our own on the sandbox's bpffs; the dataplane makes it."""
    return Path("/sys/fs/bpf") / f"test-{next(_numbers)}"


@pytest.fixture
def pin_root() -> Path:
    """Pins for a dataplane of the test's own."""
    return new_pins()


class Inside(Protocol):
    def __call__(self, cgroup: Path) -> AbstractContextManager[None]: ...


@pytest.fixture
def inside() -> Inside:
    """Puts this process into a cgroup for a while."""

    @contextmanager
    def enter(cgroup: Path) -> Iterator[None]:
        home = Path(os.environ[VARIABLE]) / "outside"
        home.mkdir(exist_ok=True)
        (cgroup / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        try:
            yield
        finally:
            (home / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    return enter


class Backends:
    """TCP listeners that greet each connection with their own port."""

    def __init__(self) -> None:
        self._listeners: dict[Endpoint, tuple[socket.socket, threading.Thread]] = {}

    def listen(self, host: str = "127.0.0.1", port: int = 0) -> Endpoint:
        """Start one; without a `port`, at one that is free."""
        listener = socket.create_server((host, port), family=family_of(host), backlog=1024)
        port = listener.getsockname()[1]
        endpoint = Endpoint(ip_address(host).packed, port, "tcp")
        thread = threading.Thread(target=_greet, args=(listener, port), daemon=True)
        thread.start()
        self._listeners[endpoint] = listener, thread
        return endpoint

    def stop(self, endpoint: Endpoint) -> None:
        listener, thread = self._listeners.pop(endpoint)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()

    def stop_all(self) -> None:
        for endpoint in list(self._listeners):
            self.stop(endpoint)


def _greet(listener: socket.socket, port: int) -> None:
    with ExitStack() as held:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # shut down
                return
            held.enter_context(connection)
            with suppress(ConnectionError):  # a client that was in a hurry
                connection.sendall(port.to_bytes(2, "big"))


@pytest.fixture
def backends() -> Iterator[Backends]:
    made = Backends()
    yield made
    made.stop_all()


def frontend(text: str, port: int, transport: Transport = "tcp") -> Frontend:
    return Frontend(ip_address(text), port, transport)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def endpoint_of(server: socket.socket) -> Endpoint:
    """Where a socket is bound to."""
    host, port, *_ = server.getsockname()
    transport: Transport = "tcp" if server.type == socket.SOCK_STREAM else "udp"
    return Endpoint(ip_address(host).packed, port, transport)


def ports(endpoints: Iterable[Endpoint]) -> set[int]:
    return {endpoint.port for endpoint in endpoints}


def cookie_of(sock: socket.socket) -> int:
    """The kernel's number of a socket."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)


def connect(address: str, port: int) -> socket.socket:
    """A connected TCP socket of the family of `address`, with a deadline."""
    sock = socket.socket(family_of(address))
    sock.settimeout(5)
    try:
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def who_answers(address: str, port: int) -> int:
    """The port of the backend that a fresh connection reaches."""
    with connect(address, port) as sock:
        return int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")


def in_rounds(shares: Sequence[tuple[int, int]]) -> list[int]:
    """Each id as often as its share says, all of them once before one comes a second time."""
    rounds = max((share for _, share in shares), default=0)
    return [i for turn in range(rounds) for i, share in shares if turn < share]


class Kernel:
    """A dataplane under test with a small writer of whole VIPs."""

    def __init__(self, cgroup: Path, pins: Path, state_dir: Path, limits: Limits = LIMITS) -> None:
        self.cgroup = cgroup
        self.pins = pins
        self.where = Pins.ours(pins, limits)
        self.dataplane = KernelDataplane(cgroup, pins, state_dir, limits)
        self.state: KernelState = self.dataplane.open()

    def apply(self, *ops: Op) -> None:
        applied = self.dataplane.apply(ops, self.state)
        assert applied.error is None
        assert applied.done == len(ops)

    def serve(
        self,
        vip: Frontend,
        members: Sequence[tuple[Endpoint, Tier] | tuple[Endpoint, Tier, int]],
        *,
        affinity_seconds: int = 0,
        keep_ids: bool = False,
    ) -> SwapVip:
        """Give `vip` a fresh run of `members` in one go, and free what it had.

        `keep_ids`: a member that it had keeps its id, as when the planner makes a change.
        """
        old = self.state.frontends.get(vip)
        vip_id = old.vip_id if old else self.state.next_vip_id
        known = dict(self.state.members.get(vip_id, {})) if keep_ids else {}
        free_ids = self.state.free_ids()
        puts, ids = [], []
        counts = [0, 0, 0]
        for tier in Tier:
            shares = []
            for endpoint, _, *weight in (member for member in members if member[1] is tier):
                slots = weight[0] if weight else 1
                backend_id = known.get(endpoint) or next(free_ids)
                puts.append(PutBackend(backend_id, vip_id, endpoint, slots, tier))
                shares.append((backend_id, slots))
            ids += in_rounds(shares)
            counts[tier] = sum(slots for _, slots in shares)
        free = self.state.free_slots
        base = next(
            start
            for start, end in zip(free.starts, free.ends, strict=True)
            if end - start >= len(ids)
        )
        swap = SwapVip(vip, vip_id, base, (counts[0], counts[1], counts[2]), affinity_seconds)
        run = [WriteRun(base, tuple(ids))] if ids else []
        self.apply(*puts, *run, swap)
        if old and old.size:
            freed = tuple(set(self.state.runs[old.base]) - set(ids))
            self.apply(Release(((old.base, old.size),), freed))
        return swap

    def drop(self, vip: Frontend) -> None:
        """Forget `vip`, and free what it had."""
        old = self.state.frontends[vip]
        ids = tuple(set(self.state.runs.get(old.base, ())))
        self.apply(DropVip(vip), Release(((old.base, old.size),), ids))

    def clear(self) -> None:
        """Forget everything that a test has left in the maps."""
        self.state = self.dataplane.audit()
        drops = [DropVip(vip) for vip in self.state.frontends]
        runs = tuple((base, len(run)) for base, run in self.state.runs.items())
        prefixes = [DropPrefix(prefix) for prefix in self.state.prefixes]
        self.apply(*drops, Release(runs, tuple(self.state.backends)), *prefixes)
        self.dataplane.skip([])
        reasons = bpf.open_pin(self.where.maps / "reasons")
        for reason in range(len(layout.REASONS)):
            key = layout.SLOT.pack(reason)
            bpf.update(reasons, key, bytes(8 * len(bpf.read_percpu(reasons, key))))
        os.close(reasons)


def counted(kernel: Kernel, endpoint: Endpoint, vip: Frontend) -> BackendCounters:
    """What is counted for a backend of `vip`; nothing when it has none there."""
    return kernel.dataplane.counters().by_vip_backend.get((vip, endpoint), BackendCounters())


def reasons(kernel: Kernel) -> dict[str, int]:
    """How often each decision was taken, of those that were taken at all."""
    return {name: count for name, count in kernel.dataplane.counters().reasons.items() if count}


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A dataplane for all tests that do not care about its life: it takes a while to load."""
    with new_cgroup() as cgroup:
        made = Kernel(cgroup, new_pins(), tmp_path_factory.mktemp("plane"))
        yield made
        made.dataplane.remove()


@pytest.fixture
def cgroup(plane: Kernel) -> Path:
    """The cgroup that `kernel` serves; empty."""
    return plane.cgroup


@pytest.fixture
def kernel(plane: Kernel) -> Iterator[Kernel]:
    """An open dataplane with empty maps."""
    yield plane
    plane.clear()
