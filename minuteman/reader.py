"""What REST, metrics and the command line see of the agent: values that the kernel already has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from minuteman.model import Counters, Problem, SourceHealth, Task, Vip, VipKey


@dataclass(frozen=True, slots=True)
class Published:
    """What the kernel has, as of `generation`."""

    generation: int = 0
    vips: Mapping[VipKey, Vip] = field(default_factory=dict)
    tasks: Mapping[tuple[str, str], Task] = field(default_factory=dict)
    """By (framework id, task id)."""
    problems: tuple[Problem, ...] = ()
    sources: Mapping[str, SourceHealth] = field(default_factory=dict)
    attached: bool = False
    """Every program is effective on the cgroup."""
    withheld: int = 0
    """Removals that are not believed yet."""
    drift: int = 0
    """How often the maps were found to differ from what was written, and repaired."""


class Reader(Protocol):
    """Where `Published` comes from."""

    def current(self) -> Published:
        """The newest value; never blocks."""

    async def counters(self) -> Counters:
        """At most one second old; the agent is asked once, whoever asks.

        Errors: SourceError when the agent does not answer in time.
        """

    async def changed(self, after: int) -> Published:
        """Wait for a generation higher than `after`."""
