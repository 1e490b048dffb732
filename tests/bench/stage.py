"""Where a bench runs: cgroups, cores, the network of its namespace, a dataplane with VIPs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from lab.sandbox import VARIABLE
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.dataplane.pins import Pins
from minuteman.model import Endpoint, Frontend, Tier, Transport
from minuteman.reconcile.kernelstate import (
    KernelState,
    Limits,
    Op,
    PutBackend,
    SwapVip,
    WriteRun,
)

BPFFS = Path("/sys/fs/bpf")
SYSCTL = Path("/proc/sys/net")


@dataclass(frozen=True, slots=True)
class Seat:
    """A place for a process.

    `patient` processes run when their core is free: being woken, they interrupt nobody. Servers
    are, so that what a client times is its own call.
    """

    cpus: frozenset[int]
    cgroup: Path | None = None
    """None: where its parent is."""
    patient: bool = False

    def take(self) -> None:
        """Move this process there. For `preexec_fn`."""
        os.sched_setaffinity(0, self.cpus)
        if self.patient:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        if self.cgroup is not None:
            (self.cgroup / "cgroup.procs").write_text("0", encoding="ascii")


@contextmanager
def cgroup(name: str) -> Iterator[Path]:
    """A cgroup of that name in this sandbox while the block runs; its processes must have ended."""
    path = Path(os.environ[VARIABLE]) / f"bench-{name}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


def cpu_seconds(cgroup: Path) -> float:
    """Processor time of all that ever ran in `cgroup`."""
    fields = (cgroup / "cpu.stat").read_text(encoding="ascii").split()
    return int(fields[fields.index("usage_usec") + 1]) / 1e6


def set_sysctls(settings: dict[str, str]) -> None:
    """Write settings of this network namespace, by their path below /proc/sys/net."""
    for name, value in settings.items():
        (SYSCTL / name).write_text(value, encoding="ascii")


@contextmanager
def sysctl(name: str, value: str) -> Iterator[None]:
    """A setting of this network namespace has another value while the block runs."""
    before = (SYSCTL / name).read_text(encoding="ascii")
    set_sysctls({name: value})
    try:
        yield
    finally:
        set_sysctls({name: before})


def forget_closed_connections() -> None:
    """Keep no TIME_WAIT sockets: a run shall not depend on the ones before it."""
    set_sysctls({"ipv4/tcp_max_tw_buckets": "0"})


def filling(vips: Iterable[tuple[Frontend, Sequence[Endpoint]]]) -> list[Op]:
    """What writes VIPs, each with a backend at each of its endpoints, into empty maps."""
    puts: list[Op] = []
    runs: list[Op] = []
    swaps: list[Op] = []
    used = 0
    for vip_id, (frontend, endpoints) in enumerate(vips, start=1):
        ids = tuple(range(used + 1, used + 1 + len(endpoints)))
        puts += [
            PutBackend(backend_id, vip_id, endpoint, 1, Tier.UP)
            for backend_id, endpoint in zip(ids, endpoints, strict=True)
        ]
        runs.append(WriteRun(used, ids))
        swaps.append(SwapVip(frontend, vip_id, used, (len(ids), 0, 0)))
        used += len(ids)
    return [*puts, *runs, *swaps]


@dataclass(frozen=True, slots=True)
class Plane:
    """A dataplane that serves a cgroup."""

    kernel: KernelDataplane
    state: KernelState
    served: Path
    where: Pins

    def apply(self, ops: Sequence[Op]) -> None:
        """Do `ops`. Errors: DataplaneError of the first that fails."""
        if error := self.kernel.apply(ops, self.state).error:
            raise error


@contextmanager
def dataplane(
    served: Path, ops: Sequence[Op], folder: Path, limits: Limits | None = None
) -> Iterator[Plane]:
    """Programs on `served`, with `ops` done, while the block runs."""
    pins = BPFFS / served.name
    limits = limits or Limits()
    kernel = KernelDataplane(served, pins, folder / "state", limits)
    plane = Plane(kernel, kernel.open(), served, Pins.ours(pins, limits))
    try:
        plane.apply(ops)
        yield plane
    finally:
        kernel.remove()
        kernel.close()


def endpoint(text: str, transport: Transport = "tcp") -> Endpoint:
    """The endpoint of ADDRESS:PORT."""
    address, _, port = text.partition(":")
    return Endpoint(IPv4Address(address).packed, int(port), transport)


def frontend(text: str, transport: Transport = "tcp") -> Frontend:
    """The frontend of ADDRESS:PORT."""
    address, _, port = text.partition(":")
    return Frontend(IPv4Address(address), int(port), transport)
