"""Cgroups whose processes are left alone: a sidecar that translates by itself, a sandbox."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable
from math import inf
from pathlib import Path, PurePath

from minuteman.control import SkippedCgroup
from minuteman.dataplane.cgroup import find_cgroup
from minuteman.dataplane.layout import CGROUP_LEVELS, SKIPS
from minuteman.errors import ConfigError, DataplaneError, ModelError
from minuteman.model import Problem
from minuteman.reconcile.store import replaced

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Between two looks at which of the paths exist."""
ADVICE = "/proc/PID/cgroup has the path of a process's, after 0::/"


class Skips:
    """Has the kernel leave alone what is at certain paths, whatever cgroup that is.

    A cgroup that is removed and made anew, as a container's is, has another number under the same
    path. So the paths are what is remembered, and they are looked up again and again.

    Args:
        mount: Where cgroup version 2 is mounted; paths are below it.
        settings: Paths that are skipped for as long as this runs.
        file: Keeps the paths that root asks for, one a line, relative to `mount`.
        obey: Takes the numbers of all cgroups to be skipped. Errors: DataplaneError.

    Errors: ConfigError.
    """

    def __init__(
        self,
        mount: Path,
        settings: Iterable[Path],
        file: Path,
        obey: Callable[[Collection[int]], None],
    ) -> None:
        self._mount = mount
        self._file = file
        self._obey = obey
        self._asked, self._file_problems = self._load()
        try:
            self._settings = frozenset(self._place(str(path)) for path in settings)
            _check_number(self._all)
        except ModelError as exc:
            raise ConfigError(f"cgroup_skip: {exc}") from exc
        self._skipped: frozenset[int] | None = None
        """What the kernel has; None: it is not known."""
        self._kernel_problems: tuple[Problem, ...] = ()
        self._look_at = -inf

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why what was asked for is not in force."""
        return (*self._file_problems, *self._kernel_problems)

    def skip(self, path: str) -> None:
        """Leave a cgroup alone, also after a restart.

        Errors: ModelError, ConfigError; DataplaneError, after which it is tried again.
        """
        place = self._place(path)
        if find_cgroup(self._mount / place) is None:
            raise ModelError("cgroup", path, f"there is none below {self._mount}; {ADVICE}")
        if place not in self._all:
            _check_number(self._all | {place})
            self._save(self._asked | {place})
        self._put_in_force()

    def serve(self, path: str) -> None:
        """Leave a cgroup alone no more. It need not exist any more.

        Errors: ModelError, ConfigError; DataplaneError, after which it is tried again.
        """
        place = self._place(path)
        if reason := self._why_not_served(place):
            raise ModelError("cgroup", path, reason)
        self._save(self._asked - {place})
        self._put_in_force()

    def found(self) -> tuple[SkippedCgroup, ...]:
        """All that are skipped, by path."""
        return tuple(
            SkippedCgroup(
                str(self._mount / place),
                find_cgroup(self._mount / place),
                "settings" if place in self._settings else "root",
            )
            for place in sorted(self._all)
        )

    def tick(self, now: float) -> float:
        """Look the paths up, if it is time to; returns when it is again."""
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            try:
                self._put_in_force()
            except DataplaneError as exc:
                self._fail(exc)
        return self._look_at if self._all or self._skipped is None else inf

    @property
    def _all(self) -> frozenset[PurePath]:
        return self._settings | self._asked

    def _put_in_force(self) -> None:
        """Have the kernel skip what is at the paths now. Errors: DataplaneError."""
        found = frozenset(
            number for place in self._all if (number := find_cgroup(self._mount / place))
        )
        if found == self._skipped:
            return
        before, self._skipped = self._skipped, None
        self._obey(found)
        self._skipped = found
        self._kernel_problems = ()
        if found or before:
            log.info("cgroups skipped existing=%d of=%d", len(found), len(self._all))

    def _fail(self, error: DataplaneError) -> None:
        if not self._kernel_problems:
            log.warning("cgroups not skipped error=%s", error)
        reason = f"{error}; the processes in these cgroups may be served. It is tried again."
        self._kernel_problems = (Problem("kernel", "", "skipped cgroups", reason),)

    def _place(self, path: str) -> PurePath:
        """Where `path` is below the mount. Errors: ModelError."""
        if not path.isprintable():
            raise ModelError("cgroup", path, "no cgroup is named so")
        # Without a look: what is named need not exist, and there are no links in this file system.
        absolute = PurePath(os.path.normpath(self._mount / path))
        if absolute == self._mount or not absolute.is_relative_to(self._mount):
            raise ModelError("cgroup", path, f"it is not below {self._mount}; {ADVICE}")
        place = absolute.relative_to(self._mount)
        if len(place.parts) >= CGROUP_LEVELS:
            reason = f"it is too deep; skip one at most {CGROUP_LEVELS - 1} levels below the mount"
            raise ModelError("cgroup", path, reason)
        return place

    def _why_not_served(self, place: PurePath) -> str | None:
        """Why `serve` can do nothing for `place`; None: it can."""
        if place in self._settings:
            return "cgroup_skip names it; take it out of the settings and restart the agent"
        for above in place.parents:
            if above in self._all:
                return f"{self._mount / above} is skipped, and so is all below it"
        return None if place in self._asked else "it is not skipped"

    def _load(self) -> tuple[frozenset[PurePath], tuple[Problem, ...]]:
        """What root has asked for, and what of the file is not used: a bad line costs itself."""
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return frozenset(), ()
        except (OSError, ValueError) as exc:
            return frozenset(), (self._unused(exc),)
        places, problems = set(), []
        for line in lines:
            try:
                places.add(self._place(line))
            except ModelError as exc:
                problems.append(self._unused(exc))
        return frozenset(places), tuple(problems)

    def _unused(self, error: Exception) -> Problem:
        log.warning("skipped cgroups unknown path=%s reason=%s", self._file, error)
        return Problem(str(self._file), "", "skipped cgroups", f"It is not used: {error}")

    def _save(self, asked: frozenset[PurePath]) -> None:
        """Errors: ConfigError; then nothing has changed."""
        try:
            with replaced(self._file) as file:
                file.write("".join(f"{place}\n" for place in sorted(asked)).encode())
        except OSError as exc:
            raise ConfigError(f"state_dir: {exc}") from exc
        self._asked = asked
        self._file_problems = ()


def _check_number(places: Collection[PurePath]) -> None:
    """Errors: ModelError when the kernel has no room for all of them."""
    if len(places) > SKIPS:
        raise ModelError(
            "cgroups", len(places), f"at most {SKIPS} can be skipped; skip one above them instead"
        )
