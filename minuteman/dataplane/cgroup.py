"""The cgroup, version 2, that the programs attach to: all processes in it and below are served."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from functools import lru_cache
from pathlib import Path

from minuteman.dataplane.mounts import mount_of
from minuteman.errors import UnsupportedKernelError


def cgroup2_mount() -> Path:
    """Where cgroup version 2 is mounted: /sys/fs/cgroup, or beside version 1.

    Errors: UnsupportedKernelError when it is not mounted.
    """
    if (where := mount_of("cgroup2")) is not None:
        return where
    raise UnsupportedKernelError(
        "find cgroup2",
        errno.ENOENT,
        "mount it: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


def open_cgroup(path: Path) -> int:
    """Descriptor of the cgroup at `path`.

    Errors: UnsupportedKernelError when there is no such folder, or it is not of version 2.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise UnsupportedKernelError(f"open cgroup {path}", exc.errno or 0) from exc
    if not (path / "cgroup.procs").exists() or not path.resolve().is_relative_to(
        cgroup2_mount().resolve()
    ):
        os.close(fd)
        raise UnsupportedKernelError(
            f"open cgroup {path}", errno.EINVAL, f"it is not below {cgroup2_mount()}"
        )
    return fd


def cgroup_id(fd: int) -> int:
    """The kernel's number of an open cgroup: the inode of its folder."""
    return os.fstat(fd).st_ino


def find_cgroup(path: Path) -> int | None:
    """The kernel's number of the cgroup at `path`; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino if stat.S_ISDIR(found.st_mode) else None


FILEID_KERNFS = 0xFE
"""What names a file by its number. Source: linux/exportfs.h, Linux 5.5."""


class _FileHandle(ctypes.Structure):
    """Struct file_handle, with a number in it."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("number", ctypes.c_uint64),
    )


@lru_cache(4096)
def path_of_cgroup(mount: Path, number: int) -> str | None:
    """Path of a cgroup below the `mount` of version 2, `/a/b`, by the kernel's number.

    None: it is gone, or this process may not look for it. A number is never given away again.
    """
    handle = _FileHandle(ctypes.sizeof(ctypes.c_uint64), FILEID_KERNFS, number)
    at = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None)
        fd = libc.open_by_handle_at(at, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(at)
    if fd < 0:
        return None
    try:
        path = Path(f"/proc/self/fd/{fd}").readlink()
    finally:
        os.close(fd)
    if not path.is_relative_to(mount):
        return None
    return "/" + str(path.relative_to(mount)).removeprefix(".")
