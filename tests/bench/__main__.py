"""Entry of `python -m tests.bench`, inside the sandbox: see deploy/bench."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench import (
    agent,
    bulk,
    connect,
    events,
    held,
    programs,
    reap,
    size,
    tail,
    udp,
    upgrade,
    upkeep,
)
from tests.bench.report import Section, document

REPORT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BENCHES: Mapping[str, Callable[[Path], Section]] = {
    "connect": connect.measure,
    "udp": udp.measure,
    "bulk": bulk.measure,
    "held": held.measure,
    "tail": tail.measure,
    "reap": reap.measure,
    "size": size.measure,
    "programs": programs.measure,
    "events": events.measure,
    "agent": agent.measure,
    "upkeep": upkeep.measure,
    "upgrade": upgrade.measure,
}


def main(arguments: list[str]) -> int:
    """Run the benches that are named, or all, and print or write what they found."""
    parser = argparse.ArgumentParser(prog="deploy/bench", description="Measure on this machine.")
    parser.add_argument("bench", nargs="*", help=f"one of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--write", action="store_true", help=f"write docs/{REPORT.name}")
    options = parser.parse_args(arguments)
    if unknown := set(options.bench) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # to clean up
    load, _, _ = os.getloadavg()
    text = document([_run(name) for name in options.bench or BENCHES], load)
    if options.write:
        REPORT.write_text(f"{text}\n", encoding="utf-8")
    else:
        print(text)
    return 0


def _run(name: str) -> Section:
    """The section of one bench; how it goes is said on standard error."""
    print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="minuteman-bench-") as folder:
        section = BENCHES[name](Path(folder))
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    return section


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
