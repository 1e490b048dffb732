"""The links that run our programs on a cgroup: made, moved, looked at, repaired.

Descriptors of programs and links are held: what somebody deletes of the pins works on, and is
pinned again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from minuteman.dataplane import bpf
from minuteman.dataplane.cgroup import cgroup_id, find_cgroup, open_cgroup
from minuteman.dataplane.pins import PROGRAMS, Pins, discard, others
from minuteman.errors import DataplaneError
from minuteman.model import Problem

NOT_EFFECTIVE = (
    "The program is not effective on this cgroup: it was detached, or the cgroup was removed."
)
NOT_PINNED = "Its pin was removed: without the agent it would end."


class Attachment:
    """Every program of `where` on the cgroup at `path`, which others may remove and make anew.

    Errors of all methods but `look`: DataplaneError.
    """

    def __init__(self, where: Pins, path: Path) -> None:
        """Opens the programs; attaches nothing. Errors: also UnsupportedKernelError."""
        self._where = where
        self._path = path
        self._links: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        """All of them, also those that are attached nowhere."""
        self._cgroup = open_cgroup(path)
        try:
            for path in where.programs.iterdir():
                self._programs[path.name] = bpf.open_pin(path)
        except DataplaneError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of descriptors; what is pinned stays and works on."""
        bpf.close_all((self._cgroup, *self._links.values(), *self._programs.values()))
        self._cgroup = -1
        self._links.clear()
        self._programs.clear()

    def attach(self) -> None:
        """Have a link run each program.

        A link that is there, whosever of ours, gets the program in one step: no connection meets
        none or two. One whose cgroup is gone, or is another one, is made anew.
        """
        for name in self._hooked:
            self._hold(name)
        # In one go: what one program notes of a connection, another one looks for in the same maps.
        for name in self._hooked:
            bpf.update_link(self._links[name], self._programs[name])

    def discard_others(self) -> None:
        """Take away what else of ours is pinned: nothing runs from there any more."""
        for other in others(self._where):
            discard(other, keep=self._link_ids())

    def look(self) -> tuple[Problem, ...]:
        """What is not as `attach` left it; () when all is well."""
        with suppress(DataplaneError):  # it says so below
            self._follow_cgroup()
        found = ((name, self._find_fault(name)) for name in self._hooked)
        return tuple(
            Problem(str(self._path), name, "attached", fault) for name, fault in found if fault
        )

    def repair(self) -> None:
        """Attach and pin again what is not."""
        self._follow_cgroup()
        self._where.make_folders()
        for name, program in self._programs.items():
            _pin_again(program, self._where.programs / name)
        for name in self._hooked:
            if self._find_fault(name):
                self._attach(name)

    @property
    def _hooked(self) -> list[str]:
        """Those of the programs that this kernel can run at a hook."""
        return [name for name in PROGRAMS if name in self._programs]

    def _follow_cgroup(self) -> None:
        """Open what is at the path now."""
        if find_cgroup(self._path) == cgroup_id(self._cgroup):
            return
        fd = open_cgroup(self._path)
        os.close(self._cgroup)
        self._cgroup = fd

    def _find_fault(self, name: str) -> str | None:
        try:
            effective = bpf.effective_programs(self._cgroup, PROGRAMS[name])
        except DataplaneError as exc:
            return str(exc)
        if bpf.program_id(self._programs[name]) not in effective:
            return NOT_EFFECTIVE
        pins = (self._where.links / name, self._where.programs / name)
        return None if all(pin.exists() for pin in pins) else NOT_PINNED

    def _attach(self, name: str) -> None:
        self._hold(name)
        bpf.update_link(self._links[name], self._programs[name])

    def _hold(self, name: str) -> None:
        """Have a link for `name` on our cgroup, whatever it runs.

        It is pinned before it is updated: from here on these maps are the ones that count, wherever
        this is killed.
        """
        link = self._take_link(name)
        if link is None:
            link = bpf.create_link(self._programs[name], self._cgroup, PROGRAMS[name])
            self._links[name] = link
        _pin_again(link, self._where.links / name)

    def _take_link(self, name: str) -> int | None:
        """The link for `name` on our cgroup that is there; any other one of ours is ended."""
        if (held := self._links.get(name)) is not None:
            if bpf.link_info(held).cgroup_id == cgroup_id(self._cgroup):
                return held
            self._end(name)
        for pins in (self._where, *others(self._where)):
            path = pins.links / name
            if not path.exists():
                continue
            self._links[name] = bpf.open_pin(path)
            if bpf.link_info(self._links[name]).cgroup_id == cgroup_id(self._cgroup):
                return self._links[name]
            self._end(name)
            path.unlink(missing_ok=True)
        return None

    def _end(self, name: str) -> None:
        """Detach the link that is held, and take its pin away."""
        link = self._links.pop(name)
        with suppress(DataplaneError):  # its cgroup is gone, and the attachment with it
            bpf.detach_link(link)
        os.close(link)
        (self._where.links / name).unlink(missing_ok=True)

    def _link_ids(self) -> frozenset[int]:
        return frozenset(bpf.link_info(link).id for link in self._links.values())


def _pin_again(fd: int, path: Path) -> None:
    if not path.exists():
        bpf.pin(fd, path)
