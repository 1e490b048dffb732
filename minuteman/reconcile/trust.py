"""What to believe of a read. Pure.

Within one world a source is believed whole, down to zero. A world is an incarnation of its root,
at a position that never falls. What is read of another one (wiped, restored, another chroot,
filtered by a permission) is believed at once in what it adds. What it lacks is kept until it had
something to say and has not grown for 30 s, or until a person believes it.

A source without any memory is believed too. Only when it has nothing to say while the kernel serves
VIPs of an earlier run, these stay until the same holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minuteman.model import Origin, Problem, Snapshot, Unit, UnitId

QUIET_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the table is to see of a source."""

    snapshot: Snapshot
    complete: bool = True
    """What is not in it may be taken from the kernel."""
    withheld: int = 0
    """Units whose loss is not believed yet; they are in the snapshot, marked kept."""
    problems: tuple[Problem, ...] = ()
    recheck_monotonic: float | None = None
    """When time alone can change the answer."""


@dataclass(slots=True)
class _Doubt:
    """A world that is not the one that was believed."""

    origin: Origin
    missed: dict[UnitId, Unit]
    """What was admitted before and is not there. It only shrinks."""
    largest: int = 0
    """Most units that it was seen to have."""
    quiet_since: float | None = None
    """When it last grew; None while nothing was ever in it."""
    told: bool = False
    """A person believes it."""

    def look_at(self, read: Snapshot, now: float) -> None:
        """Take in a later read of this world."""
        self.origin = read.origin
        self.missed = {
            unit_id: unit
            for unit_id, unit in self.missed.items()
            if _loses(unit, read.units.get(unit_id))
        }
        size = sum(1 for unit in read.units.values() if unit.tasks or unit.declares)
        if size > self.largest:
            self.largest = size
            self.quiet_since = now

    @property
    def over_monotonic(self) -> float | None:
        """When it will be believed if it stays as it is; None: never."""
        return None if self.quiet_since is None else self.quiet_since + QUIET_SECONDS

    def is_over(self, now: float) -> bool:
        over = self.over_monotonic
        return self.told or (over is not None and now >= over)


class Trust:
    """The memory of one source: what was believed last, and the doubt in what is read now."""

    def __init__(self, memory: Snapshot | None = None, *, kernel_has_vips: bool = False) -> None:
        """`memory`: what was believed in an earlier run, as it was saved."""
        self._believed = memory
        self._admitted = memory
        self._kernel_has_vips = kernel_has_vips
        self._doubt: _Doubt | None = None

    @property
    def memory(self) -> Snapshot | None:
        """What a later run has to know: what is admitted, under the origin that is believed."""
        if self._believed is None or self._admitted is None:
            return None
        return replace(self._admitted, origin=self._believed.origin)

    def believe(self) -> bool:
        """A person believes the world that is being read. False: it is not doubted."""
        if self._doubt is None:
            return False
        self._doubt.told = True
        return True

    def admit(self, read: Snapshot, now: float) -> Admitted:
        """What to believe of `read`; ask again with the same one at `recheck_monotonic`."""
        if not self._is_credible(read):
            if self._doubt is None or not _continues(self._doubt.origin, read.origin):
                missed = dict(self._admitted.units) if self._admitted else {}
                self._doubt = _Doubt(read.origin, missed)
            self._doubt.look_at(read, now)
            if not self._doubt.is_over(now):
                return self._admit_partly(read, self._doubt)
        if self._doubt is not None:  # what was admitted last is not what `touched` starts from
            read = replace(read, touched=None)
            self._doubt = None
        self._believed = self._admitted = read
        return Admitted(read)

    def _is_credible(self, read: Snapshot) -> bool:
        if self._believed is not None:
            return _continues(self._believed.origin, read.origin)
        has_something = any(unit.tasks or unit.declares for unit in read.units.values())
        return self._doubt is None and (has_something or not self._kernel_has_vips)

    def _admit_partly(self, read: Snapshot, doubt: _Doubt) -> Admitted:
        units = dict(read.units)
        for unit_id, unit in doubt.missed.items():
            units[unit_id] = _with_lost(unit, read.units.get(unit_id))
        self._admitted = replace(read, units=units, touched=None)
        return Admitted(
            self._admitted,
            complete=False,
            withheld=len(doubt.missed),
            problems=(self._problem(read, doubt),),
            recheck_monotonic=doubt.over_monotonic,
        )

    def _problem(self, read: Snapshot, doubt: _Doubt) -> Problem:
        """Why `read` is doubted, for an operator."""
        kept = f"what it lacks ({len(doubt.missed)} units)"
        if self._believed is None:
            what, kept = "Nothing was read before, and this was empty", "what the kernel has"
        elif self._believed.origin.incarnation != read.origin.incarnation:
            what = "This is another root than before, or one that was made anew"
        else:
            what = "This is older than what was read before"
        if doubt.quiet_since is None:
            until = f"somebody runs `minuteman believe {read.source}`"
        else:
            until = f"it has not grown for {QUIET_SECONDS:.0f} s"
        return Problem(read.source, "", "origin", f"{what}: {kept} is kept until {until}.")


def _continues(before: Origin, after: Origin) -> bool:
    """Whether `after` is of the same world as `before`, and not older."""
    return before.incarnation == after.incarnation and before.position <= after.position


def _lost(old: Unit, new: Unit) -> Unit:
    """`old`, less what `new` has too."""
    tasks = {(task.framework_id, task.id) for task in new.tasks}
    declared = {claim.key for claim in new.declares}
    return replace(
        old,
        tasks=tuple(task for task in old.tasks if (task.framework_id, task.id) not in tasks),
        declares=tuple(claim for claim in old.declares if claim.key not in declared),
        kept=True,
    )


def _loses(old: Unit, new: Unit | None) -> bool:
    if new is None:
        return True
    lost = _lost(old, new)
    return bool(lost.tasks or lost.declares)


def _with_lost(old: Unit, new: Unit | None) -> Unit:
    """`new` with what only `old` has."""
    if new is None:
        return old if old.kept else replace(old, kept=True)
    lost = _lost(old, new)
    return replace(
        new, tasks=new.tasks + lost.tasks, declares=new.declares + lost.declares, kept=True
    )
