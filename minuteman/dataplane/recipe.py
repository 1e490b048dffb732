"""What the programs are made of: C files and what the compiler is told. No compiler here.

Whoever finds programs pinned that were made of the same need not make them again: the digest in
`about` tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

import ebpf
from minuteman.dataplane import bpf, layout, probe
from minuteman.reconcile.kernelstate import Limits

SOURCES = (
    "maps.h",
    "find.h",
    "pick.h",
    "tell.h",
    "track.h",
    "address.h",
    "connect.c",
    "datagram.c",
    "getpeername.c",
    "observe.c",
    "release.c",
    "carry.c",
)
"""In this order one text: BCC rewrites map calls in the main text only."""

FAST = ("-g0", "-Xclang", "-disable-llvm-passes")
"""BCC optimizes what the compiler gives it. That it does so too, and what a debugger would need, is
a third of the time that all of it takes."""


@dataclass(frozen=True)
class Recipe:
    """How to make the programs for this kernel, with their maps in a certain folder."""

    text: str
    defines: Mapping[str, str | int]

    @classmethod
    def of(cls, maps: Path, limits: Limits) -> Recipe:
        """For maps that are pinned in `maps`, of these capacities."""
        has_retval = bpf.has_helper(bpf.PROG_CGROUP_SOCK_ADDR, bpf.SET_RETVAL) is True
        return cls(
            _text(),
            {
                "PIN_DIR": f'"{maps}"',
                "MAX_VIPS": limits.vips,
                "MAX_SLOTS": limits.slots,
                "MAX_BACKENDS": limits.backends,
                "MAX_PREFIXES": limits.prefixes,
                "MAX_CONNS": layout.conn_places(limits),
                "MAX_FLOWS": layout.FLOWS,
                "MAX_AFFINITIES": layout.AFFINITIES,
                "MAX_SKIPS": layout.SKIPS,
                "EVENT_BYTES": layout.EVENT_BYTES,
                "HAVE_SET_RETVAL": int(has_retval),
                "HAVE_COARSE_CLOCK": int(probe.has_coarse_clock()),
                "HAVE_CMPXCHG": int(probe.has_cmpxchg()),
                "HAVE_PROCESS": int(probe.has_process()),
            },
        )

    @property
    def flags(self) -> list[str]:
        """For the compiler."""
        defines = [f"-D{name}={value}" for name, value in self.defines.items()]
        return [*defines, "-Wall", "-Wno-macro-redefined", *FAST]

    @cached_property
    def digest(self) -> str:
        """Of all of it."""
        return hashlib.sha256(msgspec.json.encode((self.text, self.flags))).hexdigest()


def _text() -> str:
    folder = ebpf.sources()
    return "".join(
        line + "\n"
        for name in SOURCES
        for line in [f'#line 1 "{name}"', (folder / name).read_text(encoding="utf-8")]
    )
