"""From maps of one layout to those of another: what was there is there, and traffic never stops."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from lab.wait import until
from minuteman.dataplane import bpf, layout, pins
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.errors import DataplaneError, LayoutError
from minuteman.model import Tier
from minuteman.reconcile.kernelstate import Limits, Owner, PutPrefix
from tests.kernel.conftest import (
    LIMITS,
    Backends,
    Inside,
    Kernel,
    connect,
    frontend,
    new_cgroup,
    who_answers,
)

VIP = frontend("1.2.3.4", 5000)
DEADLINE_SECONDS = 20.0
LARGER = Limits(vips=512, slots=8192, backends=2048, conns=8192)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with new_cgroup() as made:
        yield made


@pytest.fixture
def kernel(cgroup: Path, pin_root: Path, tmp_path: Path) -> Iterator[Kernel]:
    """One whose life ends with the test."""
    made = Kernel(cgroup, pin_root, tmp_path)
    yield made
    made.dataplane.close()
    made.dataplane.remove()


def active(dataplane: KernelDataplane) -> int:
    return sum(stats.active for stats in dataplane.counters().by_vip_backend.values())


def folders(pin_root: Path) -> list[str]:
    return [folder.name for folder in pin_root.iterdir()]


@pytest.mark.parametrize(
    "limits",
    [
        LARGER,
        replace(LIMITS, vips=512),
        replace(LIMITS, conns=64),
        replace(LIMITS, backends=4, slots=8, vips=2),
    ],
    ids=["larger", "vips", "fewer conns", "just enough"],
)
def test_maps_of_another_capacity_take_over_all_that_there_is(
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
    limits: Limits,
) -> None:
    member, other = backends.listen(), backends.listen("::1")
    kernel.serve(VIP, [(member, Tier.UP)], affinity_seconds=60)
    kernel.serve(frontend("fd00::7", 80), [(other, Tier.MAYBE, 3)])
    kernel.apply(PutPrefix(ip_network("11.0.0.0/8"), Owner.VIPS))
    with inside(cgroup), ExitStack() as held:
        kept = [held.enter_context(connect("1.2.3.4", 5000)) for _ in range(70)]
        with pytest.raises(ConnectionRefusedError):
            connect("11.1.1.1", 80)
        before = kernel.dataplane.counters()
        kernel.dataplane.close()
        successor = KernelDataplane(cgroup, pin_root, tmp_path, limits)
        state = successor.open()
        assert successor.counters().by_vip_backend == before.by_vip_backend
        assert who_answers("1.2.3.4", 5000) == member.port
        assert who_answers("fd00::7", 80) == other.port
        with pytest.raises(ConnectionRefusedError):
            connect("11.1.1.1", 80)
        assert {sock.getpeername() for sock in kept} == {("1.2.3.4", 5000)}
        counters = successor.counters()
        assert counters.by_vip_backend[VIP, member].successes == 70 + 1
        assert counters.reasons["refused_unknown"] == before.reasons["refused_unknown"] + 1
    assert state == kernel.state
    assert state.generation == kernel.state.generation
    backends.stop_all()  # until then the connections are half open
    until("end of all connections", lambda: not active(successor), DEADLINE_SECONDS)
    assert successor.attached() == ()
    assert folders(pin_root) == [layout.folder_name(limits)]
    fd = os.open(cgroup, os.O_RDONLY)
    for hook in pins.PROGRAMS.values():
        assert len(bpf.effective_programs(fd, hook)) == 1
    os.close(fd)
    successor.close()


def test_there_and_back_again(
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
) -> None:
    member = backends.listen()
    kernel.serve(VIP, [(member, Tier.UP)])
    kernel.dataplane.close()
    with inside(cgroup):
        for turn, limits in enumerate([LARGER, LIMITS] * 3):
            successor = KernelDataplane(cgroup, pin_root, tmp_path, limits)
            assert successor.open() == kernel.state
            assert who_answers("1.2.3.4", 5000) == member.port
            assert successor.counters().by_vip_backend[VIP, member].successes == turn + 1
            successor.close()


def test_what_does_not_fit_goes_on_to_serve(
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
) -> None:
    members = [backends.listen() for _ in range(3)]
    kernel.serve(VIP, [(member, Tier.UP) for member in members])
    kernel.dataplane.close()
    with pytest.raises(DataplaneError, match="places end at 2"):
        KernelDataplane(cgroup, pin_root, tmp_path, replace(LIMITS, backends=3)).open()
    assert folders(pin_root) == [kernel.where.folder.name]
    with inside(cgroup):
        assert who_answers("1.2.3.4", 5000) in {member.port for member in members}


def test_maps_that_do_not_say_what_they_are_go_on_to_serve(
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
) -> None:
    member = backends.listen()
    kernel.serve(VIP, [(member, Tier.UP)])
    kernel.dataplane.close()
    (kernel.where.maps / "about").unlink()
    (pin_root / kernel.where.folder.name).rename(pin_root / "v1")
    with pytest.raises(LayoutError, match=r"v1.*`minuteman detach`"):
        KernelDataplane(cgroup, pin_root, tmp_path, LIMITS).open()
    with inside(cgroup):
        assert who_answers("1.2.3.4", 5000) == member.port
    kernel.dataplane.remove()
    assert not pin_root.exists()
    with inside(cgroup), socket.socket() as sock, pytest.raises(OSError, match="unreachable"):
        sock.connect(("1.2.3.4", 5000))


def test_a_datagram_socket_and_a_client_keep_their_backend(
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
) -> None:
    members = [backends.listen() for _ in range(8)]
    kernel.serve(VIP, [(member, Tier.UP) for member in members], affinity_seconds=600)
    with inside(cgroup):
        mine = who_answers("1.2.3.4", 5000)
        kernel.dataplane.close()
        successor = KernelDataplane(cgroup, pin_root, tmp_path, LARGER)
        successor.open()
        assert {who_answers("1.2.3.4", 5000) for _ in range(20)} == {mine}
        successor.close()
