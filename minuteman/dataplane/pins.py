"""Where the kernel keeps what is ours: a folder under bpffs for each schema.

    <bpffs>/minuteman/v2/maps/<map>       <bpffs>/minuteman/v2/programs/<program>
    <bpffs>/minuteman/v2/links/<program>

Pins outlive the agent: programs keep translating while it is away, and the next one finds its maps.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minuteman.dataplane import bpf
from minuteman.dataplane.layout import SCHEMA, MapShape
from minuteman.dataplane.mounts import mount_of, mounts
from minuteman.errors import DataplaneError, LayoutError, RunningError, UnsupportedKernelError

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

SETTLE = "settle"
"""A program that is attached nowhere: it is run for a socket that is gone."""


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
    """The pins of one schema under `root`, which is ours alone."""

    root: Path
    schema: int = SCHEMA

    @property
    def folder(self) -> Path:
        return self.root / f"v{self.schema}"

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

    def check_alone(self) -> None:
        """Look for programs of another schema that are attached.

        They would run before ours, and go by maps that nobody writes any more.

        Errors: LayoutError when there are.
        """
        for link in self.root.glob("v*/links/*"):
            if link.parent != self.links:
                raise LayoutError(
                    f"use {self.root}",
                    errno.EEXIST,
                    f"programs of another version serve from {link.parent.parent.name}; "
                    "`minuteman detach` removes them",
                )

    def serve(self) -> bool:
        """Whether programs of ours are attached, of any schema."""
        return any(self.root.glob("v*/links/*"))


def own(root: Path) -> int:
    """A descriptor that keeps every other agent away from `root` until it is closed.

    `root` is made. Two agents would give the same ids and slots to different VIPs.

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
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise RunningError(f"another agent runs with the pins in {root}") from exc
    return fd


def attach(pins: Pins, cgroup: int, cgroup_id: int) -> None:
    """Have each link run the pinned program on the cgroup.

    A link that is there gets the program in one step. One whose cgroup is gone, or is another one,
    is made anew.
    """
    for name, attach_type in PROGRAMS.items():
        if not (pins.programs / name).exists():  # this kernel cannot run it
            continue
        program = bpf.open_pin(pins.programs / name)
        try:
            _attach_one(pins.links / name, program, cgroup, cgroup_id, attach_type)
        finally:
            os.close(program)


def _attach_one(path: Path, program: int, cgroup: int, cgroup_id: int, attach_type: int) -> None:
    if path.exists():
        link = bpf.open_pin(path)
        try:
            if bpf.link_info(link).cgroup_id == cgroup_id:
                bpf.update_link(link, program)
                return
            _detach(link)
        finally:
            os.close(link)
        path.unlink()
    link = bpf.create_link(program, cgroup, attach_type)
    try:
        bpf.pin(link, path)
    finally:
        os.close(link)


def _detach(link: int) -> None:
    with suppress(DataplaneError):  # its cgroup is gone, and the attachment with it
        bpf.detach_link(link)


def remove_all(root: Path) -> None:
    """Remove every link, program and map under `root`, of any schema, links first.

    Errors: RunningError while an agent has `root`; UnsupportedKernelError when it is on no bpffs.
    """
    if not root.is_dir():
        return
    lock = own(root)
    try:
        _remove_all(root)
    finally:
        os.close(lock)


def _remove_all(root: Path) -> None:
    for path in root.glob("v*/links/*"):
        link = bpf.open_pin(path)
        try:
            _detach(link)
        finally:
            os.close(link)
        path.unlink()
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            (Path(folder) / name).unlink()
        Path(folder).rmdir()


def program_ids(pins: Pins) -> dict[str, int]:
    """The kernel's number of each pinned program that has a hook, by name."""
    ids = {}
    for name in PROGRAMS:
        if not (pins.programs / name).exists():
            continue
        fd = bpf.open_pin(pins.programs / name)
        try:
            ids[name] = bpf.program_id(fd)
        finally:
            os.close(fd)
    return ids
