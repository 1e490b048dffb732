"""From the sources to the table: what they say, as far as it is believed, as VIPs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from minuteman.errors import SourceError
from minuteman.feed import Identity
from minuteman.model import Claims, Problem, Snapshot, SourceHealth, Task, Vip, VipKey, VipName
from minuteman.reconcile.plan import Gate
from minuteman.reconcile.trust import Admitted, Trust
from minuteman.source.base import Source
from minuteman.table import Change, Refusal, Table

log = logging.getLogger(__name__)


class NameBook(Protocol):
    """Who has which address."""

    def want(self, names: Mapping[VipName, tuple[int, ...]]) -> None:
        """Replace the names in use, each with the IP versions it needs. Returns at once."""

    def claims(self) -> Claims:
        """The addresses now: the same object until one changes."""


@dataclass(slots=True)
class News:
    """What a look at the sources changed. The mappings over everything move with the next one."""

    vips: Mapping[VipKey, Vip]
    tasks: Mapping[Identity, Task]
    dirty: set[VipKey] = field(default_factory=set)
    """VIPs that are new, changed or gone."""
    tasks_changed: set[Identity] = field(default_factory=set)
    """Tasks that are new, changed or gone."""


class Intake:
    """Asks every source, decides what to believe, and keeps the table."""

    def __init__(
        self,
        sources: Sequence[Source],
        table: Table,
        book: NameBook,
        memory: Sequence[Snapshot],
        *,
        kernel_has_vips: bool,
    ) -> None:
        """`memory`: what an earlier run believed; `kernel_has_vips`: it left some there."""
        self._sources = sources
        self._table = table
        self._book = book
        remembered = {snapshot.source: snapshot for snapshot in memory}
        self._trusts = {
            source.name: Trust(remembered.get(source.name), kernel_has_vips=kernel_has_vips)
            for source in sources
        }
        self._admitted = {
            source.name: Admitted(remembered[source.name], complete=False)
            for source in sources
            if source.name in remembered
        }
        self._reads: dict[str, Snapshot] = {}
        """The last one of each source that gave any."""
        self._is_new = bool(self._admitted)
        """The table does not know yet what is admitted."""
        self._claims: Claims | None = None
        """Those that the table knows."""
        self._table_problems: tuple[Problem, ...] = ()

    def take(self, now: float) -> News | None:
        """Look at the sources and at the book; None: nothing is new, or nothing is known yet."""
        for source in self._sources:
            self._read(source, now)
        moved = self._claims is not None and self._claims is not self._book.claims()
        if not (self._is_new or moved):
            return None
        changes = self._update_table()
        if any(change.problems_changed for change in changes):
            found = changes[-1].problems.values()
            self._table_problems = tuple(problem for place in found for problem in place)
        return News(
            changes[-1].vips,
            changes[-1].tasks,
            {key for change in changes for key in change.dirty},
            {i for change in changes for i in (*change.tasks_changed, *change.tasks_gone)},
        )

    def believe(self, name: str, now: float) -> None:
        """Have the world that source `name` reads now believed, whatever it lacks.

        Errors: SourceError when there is no doubt that a person could end.
        """
        if name not in self._trusts:
            known = ", ".join(self._trusts)
            raise SourceError(f"there is no source {name!r}; there is {known}")
        if name not in self._reads:
            raise SourceError(f"{name} was not read yet")
        if not self._trusts[name].believe():
            raise SourceError(f"{name} is believed already")
        self._admit(self._reads[name], now)

    def obey(self, refusal: Refusal) -> None:
        """Replace the judge of literal VIPs."""
        self._table.obey(refusal)
        self._is_new = bool(self._admitted)

    @property
    def gate(self) -> Gate:
        """What the sources are good for: each must have given a whole read that is not doubted."""
        if len(self._reads) < len(self._sources):
            return Gate.SHUT
        complete = all(admitted.complete for admitted in self._admitted.values())
        return Gate.OPEN if complete else Gate.ADDING

    @property
    def has_read(self) -> bool:
        """Some source has given a read."""
        return bool(self._reads)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with labels, znodes and worlds."""
        doubts = (p for admitted in self._admitted.values() for p in admitted.problems)
        return (*self._table_problems, *doubts)

    @property
    def withheld(self) -> int:
        """Removals that are not believed yet."""
        return sum(admitted.withheld for admitted in self._admitted.values())

    @property
    def recheck_monotonic(self) -> float | None:
        """When to look again though nothing rings."""
        times = (admitted.recheck_monotonic for admitted in self._admitted.values())
        return min((time for time in times if time is not None), default=None)

    def health(self) -> dict[str, SourceHealth]:
        """Of each source."""
        return {source.name: source.health() for source in self._sources}

    def memory(self) -> tuple[Snapshot, ...]:
        """What a later run has to know."""
        memories = (trust.memory for trust in self._trusts.values())
        return tuple(memory for memory in memories if memory is not None)

    def _read(self, source: Source, now: float) -> None:
        """Take in what a source says, if that is new."""
        read = source.snapshot()
        if read is None:
            return
        admitted = self._admitted.get(source.name)
        recheck = admitted.recheck_monotonic if admitted else None
        if read is not self._reads.get(source.name) or (recheck is not None and now >= recheck):
            self._admit(read, now)

    def _admit(self, read: Snapshot, now: float) -> None:
        name = read.source
        before = self._admitted.get(name)
        self._reads[name] = read
        self._admitted[name] = self._trusts[name].admit(read, now)
        self._is_new = True
        _log_doubt(name, before, self._admitted[name])

    def _update_table(self) -> list[Change]:
        """Bring the table to what is admitted, and once more when that moved a name."""
        snapshots = [admitted.snapshot for admitted in self._admitted.values()]
        changes: list[Change] = []
        while not changes or self._claims is not self._book.claims():
            self._claims = self._book.claims()
            changes.append(self._table.update(snapshots, self._claims))
            self._book.want(self._table.names())
        self._is_new = False
        return changes


def _log_doubt(name: str, before: Admitted | None, after: Admitted) -> None:
    """One line when doubt begins, and one when it ends."""
    if after.problems and not (before and before.problems):
        log.warning("source is doubted source=%s reason=%r", name, after.problems[0].reason)
    elif before and before.problems and not after.problems:
        log.info("source is believed again source=%s", name)
