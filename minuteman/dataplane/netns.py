"""Network namespaces: each has its own sockets, addresses and routes."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TypeVar

from minuteman.dataplane.mounts import mounts

SO_NETNS_COOKIE = 71
"""asm-generic/socket.h, Linux 5.14."""
CLONE_NEWNET = 0x40000000
"""linux/sched.h"""
NAMED = Path("/run/netns")
"""Where `ip netns` keeps those that have a name."""
FIRST = Path("/proc/1/ns/net")
"""That of the first process."""
HERE = Path("/proc/thread-self/ns/net")
"""That of this thread."""

T = TypeVar("T")

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
    for path in chain(_of_processes(), _mounted()):
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


def _of_processes() -> Iterator[Path]:
    return (path / "ns" / "net" for path in Path("/proc").iterdir() if path.name.isdecimal())


def _mounted() -> Iterator[Path]:
    return (path for path, kind in mounts().items() if kind == "nsfs")


def names() -> dict[int, str]:
    """What a person calls each of `namespaces`, by its inode.

    That is `host` for the one of the first process, or its name for `ip netns`, or else the first
    process that is found in it, `pid 4711`, or where it is mounted.
    """
    called = chain(
        [(FIRST, "host")],
        ((path, path.name) for path in _mounted() if path.parent == NAMED),
        ((path, f"pid {path.parts[2]}") for path in _of_processes()),
        ((path, str(path)) for path in _mounted()),
    )
    found: dict[int, str] = {}
    for path, name in called:
        with suppress(OSError):  # its process has ended
            found.setdefault(path.stat().st_ino, name)
    return found


def in_each(wanted: Collection[int], look: Callable[[], T]) -> Iterator[tuple[int | None, T]]:
    """What `look` returns in each network namespace that is one of `wanted`, and which one it is.

    They are the low halves of cookies, as struct conn has them. Before Linux 5.14 the kernel tells
    no cookie: then it is every namespace, each as None. Errors: those of `look`, but an OSError.
    """
    missing: set[int | None] = {*wanted}
    for namespace in namespaces():
        if not missing:
            return
        for cookie, found in _look_inside(namespace, missing, look):
            missing.discard(cookie)
            yield cookie, found


def _look_inside(
    fd: int, wanted: Collection[int | None], look: Callable[[], T]
) -> list[tuple[int | None, T]]:
    """What is found in one of `wanted`, or in one of which nothing is known; else nothing."""
    with suppress(OSError), inside(fd):  # it may be no network namespace
        cookie = netns_cookie()
        low = None if cookie is None else cookie % 2**32
        if low is None or low in wanted:
            return [(low, look())]
    return []


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """The calling thread is in the namespace that `fd` refers to while the block runs.

    Errors: OSError; EINVAL when it is not a network namespace.
    """
    home = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
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
