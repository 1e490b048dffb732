"""What this kernel can do, found by trying, never by comparing versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minuteman.dataplane import bpf
from minuteman.dataplane.diag import can_end_sockets
from minuteman.dataplane.layout import LPM_TRIE, RINGBUF
from minuteman.errors import DataplaneError

Finding = Literal["ok", "missing", "unknown"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that the programs use."""

    name: str
    finding: Finding
    needed: bool
    """Without it nothing works; else something works less well."""
    advice: str
    """What its absence means, or what to do; empty when it is there."""


def features() -> tuple[Feature, ...]:
    """Every feature that the programs use, the needed ones first.

    Errors: UnsupportedKernelError when libbpf is missing.
    """
    sock_addr, sock_ops = bpf.PROG_CGROUP_SOCK_ADDR, bpf.PROG_SOCK_OPS
    return (
        _feature(
            "programs at connect()",
            bpf.has_program_type(sock_addr),
            "needs CONFIG_CGROUP_BPF, Linux 5.10 or newer, and CAP_BPF with CAP_NET_ADMIN",
        ),
        _feature(
            "programs at TCP events",
            bpf.has_program_type(sock_ops),
            "needs CONFIG_CGROUP_BPF, Linux 5.10 or newer, and CAP_BPF with CAP_NET_ADMIN",
        ),
        _feature(
            "longest prefix of an address",
            bpf.has_map_type(LPM_TRIE),
            "needs a kernel with BPF_MAP_TYPE_LPM_TRIE, Linux 4.11 or newer",
        ),
        _feature(
            "ring buffer for events",
            bpf.has_map_type(RINGBUF),
            "needs a kernel with BPF_MAP_TYPE_RINGBUF, Linux 5.8 or newer",
        ),
        _feature(
            "number of a socket's network",
            bpf.has_helper(sock_addr, bpf.GET_NETNS_COOKIE),
            "needs bpf_get_netns_cookie for sock_addr programs, Linux 5.7 or newer",
        ),
        _feature(
            "cgroup of a process",
            bpf.has_helper(sock_addr, bpf.GET_CURRENT_ANCESTOR_CGROUP_ID),
            "needs bpf_get_current_ancestor_cgroup_id, Linux 5.7 or newer",
        ),
        _feature(
            "choice of the error of a refused connect()",
            bpf.has_helper(sock_addr, bpf.SET_RETVAL),
            "a VIP without backends refuses with EPERM instead of ECONNREFUSED before Linux 5.18",
            needed=False,
        ),
        _feature(
            "end of a socket",
            has_release(),
            "before Linux 5.9 what a UDP socket was given is forgotten minutes after its end",
            needed=False,
        ),
        _feature(
            "compare and exchange",
            has_cmpxchg(),
            "before Linux 5.12 what a socket was given is kept in a hash only, which costs more",
            needed=False,
        ),
        _feature(
            "process that connects",
            has_process(),
            "before Linux 6.0 an event does not say which process its connection is of",
            needed=False,
        ),
        _feature(
            "cheap clock",
            has_coarse_clock(),
            "before Linux 5.11 each connection reads the exact clock, which costs more",
            needed=False,
        ),
        _feature(
            "end of connections to dead backends",
            can_end_sockets(),
            "without CONFIG_INET_DIAG_DESTROY a program must find out by itself what has died",
            needed=False,
        ),
    )


def has_release() -> bool:
    """The end of a socket can be seen, and which one it is."""
    return bpf.has_helper(bpf.PROG_CGROUP_SOCK, bpf.GET_SOCKET_COOKIE) is True


def has_coarse_clock() -> bool:
    """The time of the last tick can be read."""
    return bpf.has_helper(bpf.PROG_CGROUP_SOCK_ADDR, bpf.KTIME_GET_COARSE_NS) is True


def has_process() -> bool:
    """A program can tell which process calls connect()."""
    helpers = (bpf.GET_CURRENT_PID_TGID, bpf.GET_CURRENT_COMM)
    return all(bpf.has_helper(bpf.PROG_CGROUP_SOCK_ADDR, helper) is True for helper in helpers)


def has_cmpxchg() -> bool:
    """A program can claim what is free, without a lock."""
    return bpf.has_instructions(
        bytes.fromhex(
            "b700000000000000"  # r0 = 0
            "b701000001000000"  # r1 = 1
            "7b0af8ff00000000"  # *(u64 *)(r10 - 8) = r0
            "db1af8fff1000000"  # r0 = cmpxchg((u64 *)(r10 - 8), r0, r1)
            "9500000000000000"  # exit
        )
    )


def _feature(name: str, found: bool | None, advice: str, *, needed: bool = True) -> Feature:
    finding: Finding = "unknown" if found is None else "ok" if found else "missing"
    return Feature(name, finding, needed, "" if found else advice)


def missing() -> tuple[str, ...]:
    """What is needed and certainly missing, as sentences."""
    try:
        found = features()
    except DataplaneError as exc:
        return (str(exc),)
    return tuple(f"{f.name}: {f.advice}" for f in found if f.needed and f.finding == "missing")
