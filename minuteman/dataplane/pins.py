"""Where the kernel keeps what is ours: a folder under bpffs for each layout of the maps.

    <bpffs>/minuteman/v3-0a1b2c3d/maps/<map>       .../programs/<program>       .../links/<program>

Pins outlive the agent: programs keep translating while it is away, and the next one finds its maps.
The folder with links is the one that serves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minuteman.dataplane import bpf
from minuteman.dataplane.layout import SLOT, About, MapShape, folder_name
from minuteman.dataplane.mounts import mount_of, mounts
from minuteman.dataplane.probe import has_release
from minuteman.errors import DataplaneError, LayoutError, RunningError, UnsupportedKernelError
from minuteman.reconcile.kernelstate import Limits

PROGRAMS: Mapping[str, int] = {
    "connect4": bpf.CGROUP_INET4_CONNECT,
    "connect6": bpf.CGROUP_INET6_CONNECT,
    "sendmsg4": bpf.CGROUP_UDP4_SENDMSG,
    "sendmsg6": bpf.CGROUP_UDP6_SENDMSG,
    "recvmsg4": bpf.CGROUP_UDP4_RECVMSG,
    "recvmsg6": bpf.CGROUP_UDP6_RECVMSG,
    "getpeername4": bpf.CGROUP_INET4_GETPEERNAME,
    "getpeername6": bpf.CGROUP_INET6_GETPEERNAME,
    "sock_release": bpf.CGROUP_INET_SOCK_RELEASE,
    "sock_ops": bpf.CGROUP_SOCK_OPS,
}
"""Each program by the name of its C function, with the hook that it attaches to.

The IPv6 ones are always attached: a dual-stack socket that connects to ::ffff:a.b.c.d meets only
those."""

LOCK_SECONDS = 5.0
"""Longer than a loader takes."""
LOCK_POLL_SECONDS = 0.05

UNATTACHED = ("settle", "carry_stats", "carry_conn", "drop_conn")
"""Programs that are attached nowhere: the agent and its children run them; see `carry`."""


def bpffs_mount() -> Path:
    """Where bpffs is mounted. Errors: UnsupportedKernelError when it is not."""
    if (where := mount_of("bpf")) is not None:
        return where
    raise UnsupportedKernelError(
        "find bpffs", errno.ENOENT, "mount it: mount -t bpf bpf /sys/fs/bpf"
    )


def is_on_bpffs(path: Path) -> bool:
    """Whether `path`, which need not exist, would be a file of a bpffs."""
    kinds = mounts()
    for folder in (path, *path.parents):
        if folder in kinds:
            return kinds[folder] == "bpf"
    return False


@dataclass(frozen=True, slots=True)
class Pins:
    """The pins of one layout of the maps: `folder` is in a folder that is ours alone."""

    folder: Path

    @classmethod
    def ours(cls, root: Path, limits: Limits) -> Pins:
        """Those below `root` that this version uses with these capacities."""
        return cls(root / folder_name(limits))

    @property
    def root(self) -> Path:
        return self.folder.parent

    @property
    def maps(self) -> Path:
        return self.folder / "maps"

    @property
    def programs(self) -> Path:
        return self.folder / "programs"

    @property
    def links(self) -> Path:
        return self.folder / "links"

    def make_folders(self) -> None:
        """Make what is missing below `root`. Errors: UnsupportedKernelError."""
        try:
            for folder in (self.maps, self.programs, self.links):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise UnsupportedKernelError(f"make {self.root}", exc.errno or 0) from exc

    def check_maps(self, shapes: Mapping[str, MapShape]) -> None:
        """Compare each pinned map with what it must be; one that is missing is fine.

        Errors: LayoutError.
        """
        for name, shape in shapes.items():
            if not (self.maps / name).exists():
                continue
            fd = bpf.open_pin(self.maps / name)
            try:
                found = bpf.map_info(fd)
            finally:
                os.close(fd)
            pinned = MapShape(
                found.kind, found.key_size, found.value_size, found.max_entries, found.flags
            )
            if pinned != shape:
                raise LayoutError(
                    f"use {self.maps / name}",
                    errno.EINVAL,
                    f"it is {pinned}, wanted is {shape}; `minuteman detach` removes it",
                )

    @property
    def serve(self) -> bool:
        """Whether programs are attached from here."""
        return self.links.is_dir() and any(self.links.iterdir())


def others(ours: Pins) -> list[Pins]:
    """Those of other layouts that have the same root, the ones that serve first."""
    found = [Pins(folder) for folder in sorted(ours.root.glob("v*")) if folder != ours.folder]
    return sorted(found, key=lambda pins: not pins.serve)


def serving(root: Path) -> Pins | None:
    """The pins below `root` that programs are attached from; None: there are none."""
    found = (Pins(folder) for folder in sorted(root.glob("v*")))
    return next((pins for pins in found if pins.serve), None)


def read_about(pins: Pins) -> About:
    """What the maps of a folder are, and the programs. Errors: LayoutError when it does not say."""
    try:
        fd = bpf.open_pin(pins.maps / "about")
        try:
            raw = bpf.lookup(fd, SLOT.pack(0), bpf.map_info(fd).value_size)
        finally:
            os.close(fd)
        return About.unpack(raw or b"")
    except (DataplaneError, ValueError) as exc:
        reason = "it does not say what its maps are; `minuteman detach` removes it"
        raise LayoutError(f"use {pins.folder}", 0, reason) from exc


def loadable() -> list[str]:
    """The programs that this kernel can run."""
    return [name for name in (*PROGRAMS, *UNATTACHED) if name != "sock_release" or has_release()]


def is_same_folder(fd: int, path: Path) -> bool:
    """Whether `path` is still the folder that `fd` was opened for."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def own(root: Path) -> int:
    """A descriptor that keeps every other agent away from `root` until it is closed.

    `root` is made. Two agents would give the same ids and slots to different VIPs. The loader child
    has it, too: one whose agent was killed is waited for, until it has ended.

    Errors: RunningError while another agent has it, UnsupportedKernelError when `root` is not on a
    bpffs.
    """
    if not is_on_bpffs(root):
        raise UnsupportedKernelError(
            f"pin in {root}",
            errno.EINVAL,
            "it is not on a bpffs; mount one: mount -t bpf bpf /sys/fs/bpf",
        )
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise UnsupportedKernelError(f"make {root}", exc.errno or 0) from exc
    if not _locked(fd):
        os.close(fd)
        raise RunningError(f"another agent runs with the pins in {root}")
    if not is_same_folder(fd, root):  # `remove_all` had it: what we have keeps nobody away
        os.close(fd)
        return own(root)
    return fd


def _locked(fd: int) -> bool:
    """Whether the folder `fd` is ours now; it is waited for."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return True


def discard(pins: Pins, keep: Collection[int] = ()) -> None:
    """Remove every link, program and map that is pinned there, links first.

    A link whose number is in `keep` is only unpinned: it is pinned elsewhere, too.

    Errors: DataplaneError.
    """
    try:
        _discard(pins, keep)
    except OSError as exc:
        raise DataplaneError(f"remove {pins.folder}", exc.errno or 0) from exc


def _discard(pins: Pins, keep: Collection[int]) -> None:
    for path in pins.links.glob("*"):
        link = bpf.open_pin(path)
        try:
            if bpf.link_info(link).id not in keep:
                _detach(link)
        finally:
            os.close(link)
        path.unlink()
    for folder, _, names in os.walk(pins.folder, topdown=False):
        for name in names:
            (Path(folder) / name).unlink()
        Path(folder).rmdir()


def _remove_folder(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as exc:
        raise DataplaneError(f"remove {folder}", exc.errno or 0) from exc


def _detach(link: int) -> None:
    with suppress(DataplaneError):  # its cgroup is gone, and the attachment with it
        bpf.detach_link(link)


def remove_all(root: Path) -> None:
    """Remove every link, program and map under `root`, of any layout, links first.

    Errors: RunningError while an agent has `root`; UnsupportedKernelError when it is on no bpffs.
    """
    if not root.is_dir():
        return
    lock = own(root)
    try:
        for folder in root.iterdir():
            discard(Pins(folder))
        _remove_folder(root)
    finally:
        os.close(lock)
