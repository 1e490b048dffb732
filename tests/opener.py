"""An agent without anything around its dataplane, of whichever version Python finds first.

    python -P opener.py CGROUP PINS STATE_DIR

A process that has all code loaded forks one for each order, so that it begins at once. An order is
a line of JSON, as is the answer to it: what came of that process. It imports nothing of the tests.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypedDict

import minuteman
from minuteman.dataplane import bpf
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.errors import MinutemanError
from minuteman.privileges import end_with_parent
from minuteman.reconcile.kernelstate import Limits


class Order(TypedDict):
    """What one process is to do."""

    limits: dict[str, int]
    """Capacities: those of `Limits` by their names."""
    end: Literal["close", "kill"]
    """How it ends, once the dataplane is open."""
    patience_seconds: float
    """It is killed when it is not open by then."""


def opened(dataplane: KernelDataplane) -> dict[str, object]:
    """Open it and tell what is there."""
    started = time.monotonic()
    try:
        state = dataplane.open()
    except MinutemanError as exc:
        return {"error": str(exc)}
    seconds = time.monotonic() - started
    counters = dataplane.counters()
    return {
        "version": minuteman.__version__,
        "seconds": seconds,
        "generation": state.generation,
        "ids": {
            f"{frontend} {member.address}:{member.port}": backend_id
            for frontend, vip in state.frontends.items()
            for member, backend_id in state.members.get(vip.vip_id, {}).items()
        },
        "counters": {
            f"{frontend} {member.address}:{member.port}": asdict(counted)
            for (frontend, member), counted in counters.by_vip_backend.items()
        },
        "reasons": dict(counters.reasons),
        "detached": [problem.reason for problem in dataplane.attached()],
    }


def open_and_end(order: Order, pipe: int, *words: str) -> None:
    """Be the process of an order."""
    end_with_parent()
    cgroup, pins, state_dir = map(Path, words)
    dataplane = KernelDataplane(cgroup, pins, state_dir, Limits(**order["limits"]))
    os.write(pipe, json.dumps(opened(dataplane)).encode())
    if order["end"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    dataplane.close()


def carry_out(order: Order, *words: str) -> dict[str, object]:
    """Have a process do it: its report, which is empty when it was killed before it had one."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            open_and_end(order, writing, *words)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    if not select.select([reading], [], [], order["patience_seconds"])[0]:
        os.kill(pid, signal.SIGKILL)
    with open(reading, encoding="utf-8") as pipe:  # noqa: PTH123 - it is a descriptor
        raw = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status not in (0, signal.SIGKILL):
        sys.exit(f"the process of an order ended with {status}")
    return json.loads(raw) if raw else {}


def main(*words: str) -> None:
    bpf.has_program_type(bpf.PROG_SOCK_OPS)  # loads libbpf
    for line in sys.stdin:
        sys.stdout.write(json.dumps(carry_out(json.loads(line), *words)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
