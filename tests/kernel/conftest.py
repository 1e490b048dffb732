"""A cgroup, pins and listeners of the test's own, in the sandbox's network namespace."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from lab.sandbox import VARIABLE, remove_cgroup
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.model import Endpoint, Frontend, Tier, Transport
from minuteman.reconcile.kernelstate import (
    DropVip,
    KernelState,
    Limits,
    Op,
    PutBackend,
    Release,
    SwapVip,
    WriteRun,
)

LIMITS = Limits(vips=256, slots=4096, backends=1024)
_numbers = count()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """An empty cgroup to attach to."""
    path = Path(os.environ[VARIABLE]) / f"test-{next(_numbers)}"
    path.mkdir()
    yield path
    remove_cgroup(path)


@pytest.fixture
def pin_root() -> Path:
    """A folder of our own on the sandbox's bpffs; the dataplane makes it."""
    return Path("/sys/fs/bpf") / f"test-{next(_numbers)}"


class Inside(Protocol):
    def __call__(self, cgroup: Path) -> AbstractContextManager[None]: ...


@pytest.fixture
def inside() -> Inside:
    """Puts this process into a cgroup for a while."""

    @contextmanager
    def enter(cgroup: Path) -> Iterator[None]:
        home = cgroup.parent / "outside"
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

    def listen(self, host: str = "127.0.0.1") -> Endpoint:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family, backlog=1024)
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


def connect(address: str, port: int) -> socket.socket:
    """A connected TCP socket of the family of `address`, with a deadline."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
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


class Kernel:
    """A dataplane under test with a small writer of whole VIPs."""

    def __init__(self, cgroup: Path, pins: Path, state_dir: Path, limits: Limits = LIMITS) -> None:
        self.dataplane = KernelDataplane(cgroup, pins, state_dir, limits)
        self.state: KernelState = self.dataplane.open()

    def apply(self, *ops: Op) -> None:
        applied = self.dataplane.apply(ops, self.state)
        assert applied.error is None
        assert applied.done == len(ops)

    def serve(
        self, vip: Frontend, members: Sequence[tuple[Endpoint, Tier] | tuple[Endpoint, Tier, int]]
    ) -> SwapVip:
        """Give `vip` a fresh run of `members` in one go, and free what it had."""
        old = self.state.frontends.get(vip)
        vip_id = old.vip_id if old else self.state.next_vip_id
        free_ids = self.state.free_ids()
        puts, ids = [], []
        counts = [0, 0, 0]
        for endpoint, tier, *weight in sorted(members, key=lambda member: member[1]):
            slots = weight[0] if weight else 1
            puts.append(PutBackend(next(free_ids), vip_id, endpoint, slots, tier))
            ids += [puts[-1].id] * slots
            counts[tier] += slots
        free = self.state.free_slots
        base = next(
            start
            for start, end in zip(free.starts, free.ends, strict=True)
            if end - start >= len(ids)
        )
        swap = SwapVip(vip, vip_id, base, (counts[0], counts[1], counts[2]))
        run = [WriteRun(base, tuple(ids))] if ids else []
        self.apply(*puts, *run, swap)
        if old and old.size:
            freed = tuple(set(self.state.runs[old.base]))
            self.apply(Release(((old.base, old.size),), freed))
        return swap

    def drop(self, vip: Frontend) -> None:
        """Forget `vip`, and free what it had."""
        old = self.state.frontends[vip]
        ids = tuple(set(self.state.runs.get(old.base, ())))
        self.apply(DropVip(vip), Release(((old.base, old.size),), ids))


@pytest.fixture
def kernel(cgroup: Path, pin_root: Path, tmp_path: Path) -> Iterator[Kernel]:
    """An open dataplane on a cgroup of its own."""
    made = Kernel(cgroup, pin_root, tmp_path)
    yield made
    made.dataplane.close()
    made.dataplane.remove()
