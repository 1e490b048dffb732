"""What this kernel can do, found by trying, never by comparing versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minuteman.dataplane import bpf
from minuteman.dataplane.layout import SK_STORAGE
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
            "state on sockets",
            bpf.has_map_type(SK_STORAGE),
            "needs a kernel with BPF_MAP_TYPE_SK_STORAGE, Linux 5.2 or newer",
        ),
        _feature(
            "state on sockets, from connect()",
            bpf.has_helper(sock_addr, bpf.SK_STORAGE_GET),
            "needs bpf_sk_storage_get for sock_addr programs, Linux 5.10 or newer",
        ),
        _feature(
            "state on sockets, from TCP events",
            bpf.has_helper(sock_ops, bpf.SK_STORAGE_GET),
            "needs bpf_sk_storage_get for sock_ops programs, Linux 5.3 or newer",
        ),
        _feature(
            "choice of the error of a refused connect()",
            bpf.has_helper(sock_addr, bpf.SET_RETVAL),
            "a VIP without backends refuses with EPERM instead of ECONNREFUSED before Linux 5.18",
            needed=False,
        ),
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
