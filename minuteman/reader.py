"""What REST, metrics and the command line see of the agent: values that the kernel already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
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
    repairs: int = 0
    """How often programs were found not to be in effect, and attached again."""
    without_room: int = 0
    """VIPs that do not fit into the maps: the kernel has what it had of them."""
    sockets_ended: int = 0
    """Those that were connected to backends that had gone."""


@dataclass(frozen=True, slots=True)
class Event:
    """What became of one connection."""

    json: bytes
    """All that is known of it, as an object."""
    vip: str
    """`host:port`, the host is an address."""
    name: str | None
    """The VIP's own `host:port`, if its host is a name."""
    backend: str | None
    """`host:port`; None: it was given none."""
    task_id: str | None
    outcome: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Events of which nothing is known but that there were so many."""

    count: int


class Listener(Protocol):
    """Somebody who hears of events from when they began to listen."""

    async def heard(self, seconds: float) -> Sequence[Event | Lost] | None:
        """The next ones; waits so long for one. None: the agent is gone, there will be no more."""


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

    def listen(self) -> AbstractContextManager[Listener]:
        """Hear of events while the block runs.

        Errors: SourceError when too many listen.
        """
