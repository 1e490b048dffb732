"""The loop: from what the sources say to what the kernel has, one step at a time, on one thread.

    sources -> trust -> table -> plan -> dataplane -> what is published

Rules, each tested:

- Nothing is written before something is known. What the kernel had when it was opened stays as it
  is until every source has given a whole read, then only gains backends while one is in doubt, and
  is like any other after that. A snapshot from disk fills gaps and takes nothing away.
- After an operation that failed, the maps are read back, and everything is planned anew, later and
  later. Nothing is forgotten in between.
- The maps are read back every now and then; what somebody else changed is repaired and counted.
- When nothing changes, nothing is done and nothing is said.
- What is published is in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minuteman.dataplane.base import Dataplane
from minuteman.feed import Identity, Update
from minuteman.model import Problem
from minuteman.reconcile.delta import Condition, Delta
from minuteman.reconcile.intake import Intake, NameBook, News
from minuteman.reconcile.kernelstate import KernelState
from minuteman.reconcile.plan import Gate, Ground
from minuteman.reconcile.store import Memory
from minuteman.reconcile.writer import Writer
from minuteman.source.base import Source
from minuteman.table import Refusal, Table


class Loop:
    """Everything between the sources and the kernel.

    Args:
        sources: Started by somebody else.
        table: Empty.
        book: Of names.
        dataplane: Open.
        state: What `dataplane.open()` returned.
        memory: What an earlier run believed.
        publish: Takes each change of what is published; `whole` gives all of it.
        remember: Takes what is believed, when that has changed.
        reap: Told when backends have gone: sockets may still be connected to them.
        problems: Found before the start.
        audit_seconds: Between two audits of the maps.
        now: Monotonic, here and in all methods.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source],
        table: Table,
        book: NameBook,
        dataplane: Dataplane,
        state: KernelState,
        memory: Memory,
        publish: Callable[[Update], None],
        remember: Callable[[Memory], None],
        reap: Callable[[], None],
        problems: tuple[Problem, ...] = (),
        audit_seconds: float = 60.0,
        now: float,
    ) -> None:
        self._intake = Intake(
            sources, table, book, memory.snapshots, kernel_has_vips=bool(state.frontends)
        )
        self._writer = Writer(dataplane, state, audit_seconds=audit_seconds, now=now)
        self._delta = Delta(max(state.generation, memory.generation))
        self._book = book
        self._publish = publish
        self._remember = remember
        self._reap = reap
        self._found_problems = problems
        self._host_problems: tuple[Problem, ...] = ()
        self._sockets_ended = 0
        self._news = News({}, {})
        """The last ones."""
        self._pending_tasks: set[Identity] = set()
        """Changed tasks that are not published yet."""

    def step(self, now: float) -> float:
        """Do everything that is to do; return when to come back though nothing rings."""
        self._look(now)
        self._writer.watch(now)
        self._write(now)
        self._tell()
        recheck = self._intake.recheck_monotonic
        wake = self._writer.wake_monotonic()
        return wake if recheck is None else min(wake, recheck)

    def stand_on(self, ground: Ground) -> None:
        """Plan with this beside the VIPs, from the next step on."""
        self._writer.stand_on(ground)

    def believe(self, source: str, now: float) -> None:
        """Believe what `source` reads, whatever it lacks, at the next step. Errors: SourceError."""
        self._intake.believe(source, now)

    def report(self, problems: tuple[Problem, ...], sockets_ended: int) -> None:
        """Publish what is so on the host, in place of what was, from the next step on.

        `sockets_ended`: how many were connected to backends that had gone, in all.
        """
        self._host_problems = problems
        self._sockets_ended = sockets_ended

    def obey(self, refusal: Refusal) -> None:
        """Replace the judge of literal VIPs, from the next step on."""
        self._intake.obey(refusal)

    def whole(self) -> Update:
        """Everything that was published, for somebody new."""
        return self._delta.whole()

    @property
    def is_settled(self) -> bool:
        """The kernel has what the sources say, and each of them was read and is believed."""
        return self._intake.gate is Gate.OPEN and self._writer.is_settled

    @property
    def has_a_purpose(self) -> bool:
        """A source was read, or there are VIPs to keep serving."""
        return self._intake.has_read or self._writer.has_vips or bool(self._news.vips)

    def memory(self) -> Memory:
        """What a later run has to know."""
        return Memory(self._delta.generation, self._intake.memory(), self._book.claims().addresses)

    def _look(self, now: float) -> None:
        news = self._intake.take(now)
        self._writer.set_gate(self._intake.gate)
        if news is None:
            return
        self._news = news
        self._writer.note(news.dirty)
        self._pending_tasks |= news.tasks_changed
        if self._intake.has_read:
            self._remember(self.memory())

    def _write(self, now: float) -> None:
        written = self._writer.write(self._news.vips, now)
        if written is not None:
            served = self._writer.served(self._news.vips)
            self._delta.show_vips(written.keys, served, but=written.unplaced)
            if written.released:
                self._reap()
        if self._writer.is_settled:
            self._delta.show_tasks(self._pending_tasks, self._news.tasks)
            self._pending_tasks.clear()

    def _tell(self) -> None:
        self._delta.show(
            Condition(
                problems=(
                    *self._found_problems,
                    *self._host_problems,
                    *self._intake.problems,
                    *self._writer.problems,
                ),
                sources=self._intake.health(),
                attached=self._writer.attached,
                withheld=self._intake.withheld,
                drift=self._writer.drift,
                repairs=self._writer.repairs,
                without_room=self._writer.without_room,
                sockets_ended=self._sockets_ended,
            )
        )
        if (update := self._delta.take()) is not None:
            self._publish(update)
