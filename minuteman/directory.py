"""Whose the addresses in events are: VIPs by where clients connect, tasks by where they listen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minuteman.feed import Update
from minuteman.model import Vip, VipName
from minuteman.reader import Published


@dataclass(slots=True)
class Entry:
    """A VIP, and the tasks behind it once somebody asks for one."""

    vip: Vip
    tasks: dict[str, str] | None = None
    """Task ids, by `host:port`."""

    @property
    def name(self) -> str | None:
        """The VIP's `host:port`, if its host is a name."""
        key = self.vip.key
        return str(key) if isinstance(key.host, VipName) else None

    def task_id(self, backend: str) -> str | None:
        """Of the task that listens at `backend`, a `host:port`; None: not known."""
        if self.tasks is None:
            self.tasks = {str(b.endpoint).partition(" ")[2]: b.task_id for b in self.vip.backends}
        return self.tasks.get(backend) or None


class Directory:
    """Made once of everything that is published, then kept up by what changes."""

    def __init__(self, published: Published) -> None:
        self._entries: dict[str, Entry] = {}
        """By `protocol host:port`."""
        self._add(published.vips.values())

    def follow(self, before: Published, update: Update) -> None:
        """Know what `before` says after `update`."""
        if update.whole:
            self._entries.clear()
        else:
            changed = (*update.dropped_vips, *update.vips)
            self._drop(before.vips[key] for key in changed if key in before.vips)
        self._add(update.vips.values())

    def names(self, protocol: str, vip: str, backend: str | None) -> tuple[str | None, str | None]:
        """Name of the VIP and id of the task at these addresses, `host:port`; None: not known."""
        entry = self._entries.get(f"{protocol} {vip}")
        if entry is None:
            return None, None
        return entry.name, entry.task_id(backend) if backend else None

    def _add(self, vips: Iterable[Vip]) -> None:
        for vip in vips:
            entry = Entry(vip)
            for frontend in vip.frontends:
                self._entries[str(frontend)] = entry

    def _drop(self, vips: Iterable[Vip]) -> None:
        for vip in vips:
            for frontend in vip.frontends:
                self._entries.pop(str(frontend), None)
