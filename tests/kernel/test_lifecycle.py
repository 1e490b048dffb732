"""Opening, restarting, detaching and removing: what stays, what goes, and what is said."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from minuteman.dataplane import bpf, layout, pins
from minuteman.dataplane.cgroup import cgroup2_mount
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.dataplane.loader import compile_and_pin, header_tree
from minuteman.dataplane.mounts import mounts
from minuteman.errors import DataplaneError, RunningError, UnsupportedKernelError
from minuteman.model import Tier
from minuteman.reconcile.kernelstate import Owner, PutBackend, PutPrefix, SwapVip, WriteRun
from tests.kernel.conftest import (
    LIMITS,
    Backends,
    Inside,
    Kernel,
    frontend,
    new_cgroup,
    who_answers,
)

VIP = frontend("1.2.3.4", 5000)


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


def test_what_a_killed_agent_did_not_free_is_nobodys_backend_any_more(
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
) -> None:
    """A client keeps its backend, so it would go on with one that has left the VIP."""
    gone, member = backends.listen(), backends.listen()
    old = kernel.serve(VIP, [(gone, Tier.UP)], affinity_seconds=60)
    with inside(cgroup):
        assert who_answers("1.2.3.4", 5000) == gone.port
        new = SwapVip(VIP, old.vip_id, old.base + 1, (1, 0, 0), affinity_seconds=60)
        kernel.apply(
            PutBackend(2, old.vip_id, member, 1, Tier.UP), WriteRun(new.base, (2,)), new
        )  # and no Release: it was killed
        kernel.dataplane.close()
        successor = KernelDataplane(cgroup, pin_root, tmp_path, LIMITS)
        successor.open()
        assert who_answers("1.2.3.4", 5000) == member.port
    successor.close()


def test_a_map_without_batches_is_read_one_by_one(kernel: Kernel, pin_root: Path) -> None:
    """No kernel has batches for an array of programs; before Linux 5.13 a trie has none."""
    programs = bpf.open_pin(kernel.where.maps / "again_connect4")
    prefixes = bpf.open_pin(kernel.where.maps / "prefixes")
    try:
        [(key, _)] = bpf.read_trie(programs, layout.SLOT.size, layout.SLOT.size)
        assert key == layout.SLOT.pack(0)
        sizes = layout.PREFIX.size, layout.OWNER.size
        assert not list(bpf.read_singly(prefixes, *sizes))
        networks = ("10.0.0.0/8", "10.1.2.3/32", "10.1.2.4/32", "fd00::/8", "fd00::7/128")
        kernel.apply(*(PutPrefix(ip_network(network), Owner.VIPS) for network in networks))
        one_by_one = dict(bpf.read_singly(prefixes, *sizes))
        assert one_by_one == dict(bpf.read_trie(prefixes, *sizes))
        assert len(one_by_one) == len(networks)
    finally:
        bpf.close_all((programs, prefixes))


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


# ---- what others do ------------------------------------------------------------------------------
@contextmanager
def opened(pin: Path) -> Iterator[int]:
    fd = bpf.open_pin(pin)
    try:
        yield fd
    finally:
        os.close(fd)


def detach(kernel: Kernel, name: str) -> None:
    with opened(kernel.where.links / name) as link:
        bpf.detach_link(link)


def remake_cgroup(kernel: Kernel, _: str) -> None:
    kernel.cgroup.rmdir()
    kernel.cgroup.mkdir()


def replace_program(kernel: Kernel, name: str) -> None:
    """With one that does nothing here."""
    with (
        opened(kernel.where.links / name) as link,
        opened(kernel.where.programs / "recvmsg4") as other,
    ):
        bpf.update_link(link, other)


def unpin_link(kernel: Kernel, name: str) -> None:
    (kernel.where.links / name).unlink()


def unpin_program(kernel: Kernel, name: str) -> None:
    (kernel.where.programs / name).unlink()


def unpin_map(kernel: Kernel, _: str) -> None:
    (kernel.where.maps / "vips").unlink()


def unpin_everything(kernel: Kernel, _: str) -> None:
    shutil.rmtree(kernel.where.root)


HARMS = (
    detach,
    remake_cgroup,
    replace_program,
    unpin_link,
    unpin_program,
    unpin_map,
    unpin_everything,
)


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (harm, name)
        for harm in HARMS
        for name in ("connect4", "sock_ops", "getpeername6")
        # A link takes only programs of its own type.
        if (harm, name) != (replace_program, "sock_ops")
    ],
)
def test_what_others_do_is_seen_and_put_right(
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
    tmp_path: Path,
    harm: Callable[[Kernel, str], None],
    name: str,
) -> None:
    member = backends.listen()
    kernel.serve(VIP, [(member, Tier.UP)])
    with inside(cgroup):
        who_answers("1.2.3.4", 5000)
    harm(kernel, name)
    assert kernel.dataplane.attached()
    kernel.dataplane.repair()
    assert kernel.dataplane.attached() == ()
    assert len(effective(cgroup)) == len(pins.PROGRAMS)
    with inside(cgroup):
        assert who_answers("1.2.3.4", 5000) == member.port
    kernel.dataplane.close()
    successor = KernelDataplane(cgroup, pin_root, tmp_path, LIMITS)
    assert successor.open() == kernel.state
    with inside(cgroup):
        assert who_answers("1.2.3.4", 5000) == member.port
    assert successor.counters().by_vip_backend[VIP, member].successes == 3
    successor.close()


def test_a_cgroup_that_is_gone_is_waited_for(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    member = backends.listen()
    kernel.serve(VIP, [(member, Tier.UP)])
    cgroup.rmdir()
    assert kernel.dataplane.attached()
    with pytest.raises(UnsupportedKernelError, match="No such file"):
        kernel.dataplane.repair()
    cgroup.mkdir()
    kernel.dataplane.repair()
    with inside(cgroup):
        assert who_answers("1.2.3.4", 5000) == member.port


def test_pins_that_were_removed_and_are_another_agents_now_are_left_to_it(
    kernel: Kernel, cgroup: Path, pin_root: Path, tmp_path: Path
) -> None:
    shutil.rmtree(pin_root)
    other = KernelDataplane(cgroup, pin_root, tmp_path, LIMITS)
    other.open()
    with pytest.raises(RunningError, match=str(pin_root)):
        kernel.dataplane.repair()
    other.close()


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


def test_one_agent_at_a_time_has_the_pins(
    kernel: Kernel, cgroup: Path, pin_root: Path, tmp_path: Path
) -> None:
    second = KernelDataplane(cgroup, pin_root, tmp_path / "elsewhere", LIMITS)
    with pytest.raises(RunningError, match=str(pin_root)):
        second.open()
    with pytest.raises(RunningError, match=str(pin_root)):
        second.remove()
    assert kernel.dataplane.attached() == ()


def test_remove_touches_nothing_outside_a_bpffs(cgroup: Path, tmp_path: Path) -> None:
    precious = tmp_path / "pins" / "v1" / "links" / "precious"
    precious.parent.mkdir(parents=True)
    precious.touch()
    with pytest.raises(UnsupportedKernelError, match="bpffs"):
        KernelDataplane(cgroup, tmp_path / "pins", tmp_path, LIMITS).remove()
    assert precious.exists()


def test_what_was_loaded_and_never_attached_does_not_serve(pin_root: Path, tmp_path: Path) -> None:
    """A loader that was killed, or whose agent was, leaves maps and programs at most."""
    where = pins.Pins.ours(pin_root, LIMITS)
    os.close(pins.own(pin_root))
    compile_and_pin(where, tmp_path, LIMITS)
    assert any(where.programs.iterdir())
    assert not where.serve
    pins.remove_all(pin_root)


def test_modules_of_the_working_folder_are_not_run(
    cgroup: Path, pin_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ebpf.py").write_text("raise SystemExit('foreign code')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    dataplane = KernelDataplane(cgroup, pin_root, tmp_path, LIMITS)
    dataplane.open()
    dataplane.close()
    dataplane.remove()


def test_a_kernel_without_a_feature_is_one_clear_line(
    cgroup: Path, pin_root: Path, tmp_path: Path
) -> None:
    """To a process without capabilities the kernel has none of the features."""
    program = (
        "from pathlib import Path\n"
        "from minuteman.dataplane.kernel import KernelDataplane\n"
        "from minuteman.errors import UnsupportedKernelError\n"
        "from minuteman.reconcile.kernelstate import Limits\n"
        "try:\n"
        f"    KernelDataplane(Path('{cgroup}'), Path('{pin_root}'), Path('{tmp_path}'), Limits())"
        ".open()\n"
        "except UnsupportedKernelError as exc:\n"
        "    print(exc)\n"
    )
    dropped = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-c", program]
    with nothing_is_left(pin_root):
        said = subprocess.run(dropped, check=True, capture_output=True, text=True).stdout
    [line] = said.splitlines()
    assert line.startswith("run on this kernel: programs at connect(): needs CONFIG_CGROUP_BPF")
    assert effective(cgroup) == []


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


def test_headers_that_were_upgraded_are_taken_anew(tmp_path: Path) -> None:
    headers = tmp_path / "include"
    for folder in ("linux", "asm", "asm-generic"):
        (headers / folder).mkdir(parents=True)
    (headers / "linux" / "in.h").touch()
    before = header_tree(tmp_path / "cache", headers)
    assert header_tree(tmp_path / "cache", headers) == before
    (headers / "linux" / "new.h").touch()
    os.utime(headers / "linux", ns=(1, 1))  # not within one tick of the clock
    after = header_tree(tmp_path / "cache", headers)
    assert not (before / "include" / "uapi" / "linux" / "new.h").exists()
    assert (after / "include" / "uapi" / "linux" / "new.h").exists()


def test_a_mount_point_with_a_space_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    try:
        assert mounts()[folder] == "tmpfs"
        assert not pins.is_on_bpffs(folder / "minuteman")
    finally:
        subprocess.run(["umount", folder], check=True)
