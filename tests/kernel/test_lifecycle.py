"""Opening, restarting, detaching and removing: what stays, what goes, and what is said."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minuteman.dataplane import bpf, pins
from minuteman.dataplane.cgroup import cgroup2_mount
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.dataplane.loader import header_tree
from minuteman.errors import DataplaneError, UnsupportedKernelError
from minuteman.model import Tier
from minuteman.reconcile.kernelstate import Limits, SwapVip
from tests.kernel.conftest import LIMITS, Backends, Inside, Kernel, frontend, who_answers

VIP = frontend("1.2.3.4", 5000)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def effective(cgroup: Path) -> list[int]:
    fd = os.open(cgroup, os.O_RDONLY)
    try:
        hooks = pins.PROGRAMS.values()
        return [number for hook in hooks for number in bpf.effective_programs(fd, hook)]
    finally:
        os.close(fd)


def test_the_next_agent_finds_everything_and_traffic_never_stops(
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
) -> None:
    member = backends.listen()
    kernel.serve(VIP, [(member, Tier.UP)])
    kernel.serve(frontend("fd00::7", 80), [])
    with inside(cgroup):
        who_answers("1.2.3.4", 5000)
        kernel.dataplane.close()
        assert who_answers("1.2.3.4", 5000) == member.port
        successor = KernelDataplane(cgroup, pin_root, tmp_path, LIMITS)
        state = successor.open()
        assert who_answers("1.2.3.4", 5000) == member.port
    assert state == kernel.state
    assert state.generation == kernel.state.generation
    assert successor.counters().by_vip_backend[VIP, member].successes == 3
    assert successor.attached() == ()
    assert len(effective(cgroup)) == len(pins.PROGRAMS)
    successor.close()


def test_another_cgroup_takes_the_links_along(
    kernel: Kernel, backends: Backends, cgroup: Path, pin_root: Path, tmp_path: Path
) -> None:
    moved = cgroup.parent / f"{cgroup.name}-moved"
    moved.mkdir()
    kernel.dataplane.close()
    successor = KernelDataplane(moved, pin_root, tmp_path, LIMITS)
    successor.open()
    assert successor.attached() == ()
    assert effective(cgroup) == []
    assert len(effective(moved)) == len(pins.PROGRAMS)
    successor.close()
    successor.remove()
    moved.rmdir()


def test_a_link_on_a_dead_cgroup_is_made_anew(
    kernel: Kernel, cgroup: Path, pin_root: Path, tmp_path: Path
) -> None:
    kernel.dataplane.close()
    cgroup.rmdir()
    cgroup.mkdir()
    successor = KernelDataplane(cgroup, pin_root, tmp_path, LIMITS)
    successor.open()
    assert successor.attached() == ()
    successor.close()


def test_somebody_elses_detach_is_seen(kernel: Kernel, pin_root: Path) -> None:
    assert kernel.dataplane.attached() == ()
    link = bpf.open_pin(pins.Pins(pin_root).links / "connect4")
    bpf.detach_link(link)
    os.close(link)
    (problem,) = kernel.dataplane.attached()
    assert problem.subject == "connect4"


def test_remove_leaves_nothing(kernel: Kernel, cgroup: Path, pin_root: Path) -> None:
    kernel.dataplane.close()
    kernel.dataplane.remove()
    assert not pin_root.exists()
    assert effective(cgroup) == []
    kernel.dataplane.remove()


@contextmanager
def nothing_is_left(pin_root: Path) -> Iterator[None]:
    before = open_descriptors()
    yield
    assert not pin_root.exists()
    assert open_descriptors() == before


def test_a_cgroup_that_does_not_exist_is_one_clear_line(pin_root: Path, tmp_path: Path) -> None:
    wrong = cgroup2_mount() / "no-such-cgroup"
    with nothing_is_left(pin_root), pytest.raises(UnsupportedKernelError) as caught:
        KernelDataplane(wrong, pin_root, tmp_path, LIMITS).open()
    assert str(caught.value) == f"open cgroup {wrong}: No such file or directory"
    assert caught.value.exit_code == os.EX_OSERR


def test_a_folder_that_is_no_cgroup_is_one_clear_line(pin_root: Path, tmp_path: Path) -> None:
    with nothing_is_left(pin_root), pytest.raises(UnsupportedKernelError, match="is not below"):
        KernelDataplane(tmp_path, pin_root, tmp_path, LIMITS).open()


def test_pins_outside_a_bpffs_are_one_clear_line(cgroup: Path, tmp_path: Path) -> None:
    root = tmp_path / "pins"
    with nothing_is_left(root), pytest.raises(UnsupportedKernelError) as caught:
        KernelDataplane(cgroup, root, tmp_path / "state", LIMITS).open()
    assert "\n" not in str(caught.value)
    assert "bpffs" in str(caught.value)
    assert effective(cgroup) == []


def test_maps_of_another_size_are_refused_and_keep_serving(
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
) -> None:
    member = backends.listen()
    kernel.serve(VIP, [(member, Tier.UP)])
    other = Limits(vips=LIMITS.vips * 2, slots=LIMITS.slots, backends=LIMITS.backends)
    with pytest.raises(UnsupportedKernelError, match="minuteman detach"):
        KernelDataplane(cgroup, pin_root, tmp_path, other).open()
    with inside(cgroup):
        assert who_answers("1.2.3.4", 5000) == member.port


def test_missing_headers_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedKernelError, match="linux-libc-dev"):
        header_tree(tmp_path / "cache", headers=tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_full_map_is_an_error_that_says_how_far_it_got(kernel: Kernel) -> None:
    ops = [
        SwapVip(frontend(f"10.0.{i // 256}.{i % 256}", 80), i + 1, 0, (0, 0, 0))
        for i in range(LIMITS.vips + 1)
    ]
    applied = kernel.dataplane.apply(ops, kernel.state)
    assert applied.done == LIMITS.vips
    assert isinstance(applied.error, DataplaneError)
    assert applied.error.errno == errno.E2BIG
    assert len(kernel.state.frontends) == LIMITS.vips
    assert kernel.dataplane.audit() == kernel.state


def test_open_and_close_leak_no_descriptor(
    kernel: Kernel, cgroup: Path, pin_root: Path, tmp_path: Path
) -> None:
    kernel.dataplane.close()
    before = open_descriptors()
    for _ in range(3):
        dataplane = KernelDataplane(cgroup, pin_root, tmp_path, LIMITS)
        dataplane.open()
        dataplane.counters()
        dataplane.attached()
        dataplane.close()
    assert open_descriptors() == before


def test_what_was_never_opened_says_so(cgroup: Path, pin_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataplaneError, match="not open"):
        KernelDataplane(cgroup, pin_root, tmp_path, LIMITS).counters()
