"""What is published, and how it differs from what was published last. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeVar

from minuteman.feed import Identity, Update
from minuteman.model import Problem, SourceHealth, Task, Vip, VipKey

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Condition:
    """What is published beside VIPs and tasks."""

    problems: tuple[Problem, ...] = ()
    sources: Mapping[str, SourceHealth] = field(default_factory=dict)
    attached: bool = False
    withheld: int = 0
    drift: int = 0
    repairs: int = 0
    without_room: int = 0
    sockets_ended: int = 0


class Delta:
    """Collects what is to be published, until `take` makes an update of it.

    Law: the updates, applied one after another, amount to what `whole` gives.
    """

    def __init__(self, generation: int = 0) -> None:
        """`generation`: of the last update of an earlier run."""
        self.generation = generation
        """Of the last update."""
        self._vips: dict[VipKey, Vip] = {}
        self._tasks: dict[Identity, Task] = {}
        self._condition = Condition()
        self._changed_vips: set[VipKey] = set()
        self._changed_tasks: set[Identity] = set()
        self._told: Condition | None = None
        """The condition in the last update."""

    def show_vips(
        self,
        keys: AbstractSet[VipKey] | None,
        vips: Mapping[VipKey, Vip],
        but: AbstractSet[VipKey] = frozenset(),
    ) -> None:
        """Publish `keys` as they are in `vips`, or absent; None: all. `but` stay as they are."""
        keys = self._vips.keys() | vips.keys() if keys is None else keys
        self._changed_vips |= _move(self._vips, keys - but, vips)

    def show_tasks(self, identities: Iterable[Identity], tasks: Mapping[Identity, Task]) -> None:
        """Publish these as they are in `tasks`, or absent."""
        self._changed_tasks |= _move(self._tasks, identities, tasks)

    def show(self, condition: Condition) -> None:
        """Publish `condition`."""
        self._condition = condition

    def take(self) -> Update | None:
        """What changed since the last call; None: nothing."""
        if not (self._changed_vips or self._changed_tasks or self._condition != self._told):
            return None
        self.generation += 1
        same_problems = self._told and self._told.problems == self._condition.problems
        update = Update(
            generation=self.generation,
            whole=False,
            vips={key: self._vips[key] for key in self._changed_vips if key in self._vips},
            dropped_vips=frozenset(k for k in self._changed_vips if k not in self._vips),
            tasks={i: self._tasks[i] for i in self._changed_tasks if i in self._tasks},
            dropped_tasks=frozenset(i for i in self._changed_tasks if i not in self._tasks),
            problems=None if same_problems else self._condition.problems,
            sources=self._condition.sources,
            attached=self._condition.attached,
            withheld=self._condition.withheld,
            drift=self._condition.drift,
            repairs=self._condition.repairs,
            without_room=self._condition.without_room,
            sockets_ended=self._condition.sockets_ended,
        )
        self._told = self._condition
        self._changed_vips.clear()
        self._changed_tasks.clear()
        return update

    def whole(self) -> Update:
        """Everything, as of the last update."""
        condition = self._told or Condition()
        return Update(
            generation=self.generation,
            whole=True,
            vips=self._vips,
            tasks=self._tasks,
            problems=condition.problems,
            sources=condition.sources,
            attached=condition.attached,
            withheld=condition.withheld,
            drift=condition.drift,
            repairs=condition.repairs,
            without_room=condition.without_room,
            sockets_ended=condition.sockets_ended,
        )


def _move(shown: dict[K, V], keys: Iterable[K], now: Mapping[K, V]) -> set[K]:
    """Make `shown` equal `now` at `keys`: those where it did not."""
    changed = set()
    for key in keys:
        value = now.get(key)
        if value == shown.get(key):
            continue
        changed.add(key)
        if value is None:
            del shown[key]
        else:
            shown[key] = value
    return changed
