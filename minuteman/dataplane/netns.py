"""Network namespaces: each has its own sockets, addresses and routes."""

from __future__ import annotations

import errno
import socket
import sys

SO_NETNS_COOKIE = 71
"""asm-generic/socket.h, Linux 5.14."""


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
