"""What a bench found, as Markdown: for a terminal, and for docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells below their headings; the first column is words, the others are numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table with its columns lined up."""
        widths = [max(map(len, column)) for column in zip(self.headings, *self.rows, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join(_line(cells, widths) for cells in (self.headings, rule, *self.rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = cells
    padded = [first.ljust(widths[0])]
    padded += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
    return f"| {' | '.join(padded)} |"


@dataclass(frozen=True, slots=True)
class Target:
    """A number that the project set itself."""

    what: str
    bound: float
    found: float
    unit: str = ""
    at_least: bool = False
    """The bound is a floor; else a ceiling."""

    def row(self) -> tuple[str, str, str, str]:
        """What, wanted, found, and whether it is met."""
        met = self.found >= self.bound if self.at_least else self.found <= self.bound
        sign = ">=" if self.at_least else "<="
        wanted = f"{sign} {_short(self.bound)}{self.unit}"
        return self.what, wanted, f"{_short(self.found)}{self.unit}", "yes" if met else "no"


def _short(value: float) -> str:
    """Four digits, of a large number all of those before the point."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Section:
    """What one bench found."""

    title: str
    parts: Sequence[str | Table]
    """Paragraphs and tables, in their order."""
    targets: Sequence[Target]

    def markdown(self) -> str:
        """Heading, paragraphs and tables."""
        texts = [part if isinstance(part, str) else part.markdown() for part in self.parts]
        return "\n\n".join([f"## {self.title}", *texts])


def document(sections: Sequence[Section], load: float) -> str:
    """The whole report of this machine and this day; `load` is the load average before."""
    targets = [target.row() for section in sections for target in section.targets]
    return "\n\n".join(
        [
            "# Benchmarks",
            f"Measured and written by `deploy/bench --write` on {datetime.now(UTC):%Y-%m-%d}. "
            "A ratio compares runs of one round, in which every way had its turn; it is the "
            "median of all rounds, followed by (least, first quarter, third quarter, greatest).",
            Table(("machine", ""), [*machine(), ("load before", f"{load:.2f}")]).markdown(),
            "## Targets",
            Table(("what", "target", "found", "met"), targets).markdown(),
            *(section.markdown() for section in sections),
        ]
    )


# ---- numbers ------------------------------------------------------------------------------------
def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` (0-1) of the sorted `ordered` do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def microseconds(nanoseconds: float) -> str:
    """One decimal."""
    return f"{nanoseconds / 1000:.1f}"


def spread(values: Iterable[float]) -> str:
    """`median (least, first quarter, third quarter, greatest)`."""
    ordered = sorted(values)
    others = (ordered[0], percentile(ordered, 0.25), percentile(ordered, 0.75), ordered[-1])
    return f"{statistics.median(ordered):.3f} ({', '.join(f'{value:.3f}' for value in others)})"


# ---- the machine --------------------------------------------------------------------------------
def machine() -> list[tuple[str, str]]:
    """What the numbers depend on."""
    cpu = _field("/proc/cpuinfo", "model name") or platform.processor()
    virtual = ", virtual" if "hypervisor" in _field("/proc/cpuinfo", "flags").split() else ""
    memory_kib = int(_field("/proc/meminfo", "MemTotal").split()[0])
    packages = ("nftables", "haproxy", "zookeeper", "default-jre-headless")
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="ascii")
    return [
        ("processor", f"{cpu}, {os.cpu_count()} cores{virtual}"),
        ("memory", f"{memory_kib / 2**20:.0f} GiB"),
        ("kernel", f"Linux {platform.release()}, congestion control {congestion.strip()}"),
        ("system", platform.freedesktop_os_release()["PRETTY_NAME"]),
        ("Python", platform.python_version()),
        *((package, _package_version(package)) for package in packages),
    ]


def _field(path: str, name: str) -> str:
    """The first value of `name` in a file of `name : value` lines; empty when there is none."""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _package_version(name: str) -> str:
    command = ["dpkg-query", "-W", "-f", "${Version}", name]
    return subprocess.run(command, capture_output=True, check=False, text=True).stdout or "-"
