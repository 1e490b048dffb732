"""What was skipped while something was decoded."""

from __future__ import annotations

from collections.abc import Iterator

from minuteman.errors import ModelError
from minuteman.model import Problem


class Notes:
    """Gathers the problems of one znode, each of them once."""

    def __init__(self, where: str, subject: str = "") -> None:
        self._where = where
        self._subject = subject
        self._problems: dict[Problem, None] = {}

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._problems)

    def about(self, subject: str) -> Notes:
        """Notes about a part of it; what is added to them is added here."""
        part = Notes(self._where, subject)
        part._problems = self._problems
        return part

    def add(self, field: str, reason: str, subject: str = "") -> None:
        """One more; it is about `subject` if given, else about what these notes are about."""
        self._problems[Problem(self._where, subject or self._subject, field, reason)] = None

    def refuse(self, error: ModelError, subject: str = "") -> None:
        """The part that raised `error` is skipped."""
        sentence = f"{error.reason[:1].upper()}{error.reason[1:]}: {error.value!r}."
        self.add(error.field, sentence, subject)
