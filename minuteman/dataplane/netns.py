"""Network namespaces: each has its own sockets, addresses and routes."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from minuteman.dataplane.mounts import mounts

SO_NETNS_COOKIE = 71
"""asm-generic/socket.h, Linux 5.14."""
CLONE_NEWNET = 0x40000000
"""linux/sched.h"""

_libc = ctypes.CDLL(None, use_errno=True)


def netns_cookie() -> int | None:
    """The kernel's number of this thread's network namespace; None: it does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError as exc:
            if exc.errno != errno.ENOPROTOOPT:
                raise
            return None
    return int.from_bytes(raw, sys.byteorder)


def namespaces() -> Iterator[int]:
    """Each network namespace that a process is in, and each that is mounted: a descriptor.

    It is closed when the next one is asked for. One that nothing but a socket keeps alive is not
    found, and without CAP_SYS_PTRACE none that only processes of others are in.
    """
    seen = set()
    processes = (path for path in Path("/proc").iterdir() if path.name.isdecimal())
    mounted = (path for path, kind in mounts().items() if kind == "nsfs")
    for path in chain((process / "ns" / "net" for process in processes), mounted):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # its process has ended, or is not ours to look at
            continue
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                yield fd
        finally:
            os.close(fd)


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """The calling thread is in the namespace that `fd` refers to while the block runs.

    Errors: OSError; EINVAL when it is not a network namespace.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(fd)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
