"""Fixed places for values, each with a name: what a C struct is to Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from struct import Struct
from typing import Any

_FIELD = re.compile(r"(?P<name>\w+):(?P<form>(?P<count>\d*)(?P<kind>[a-zA-Z]))")
_BITS = {"B": 8, "H": 16, "I": 32, "Q": 64, "s": 0, "x": 0}
_ONE_VALUE, _NO_VALUE = "s", "x"
"""Kinds whose count is that of bytes."""


class Record:
    """The layout of some bytes. The numbers in them are in this host's order.

    `text` has a word for each field, `name:form`, with forms of the module `struct`: what it
    packs and unpacks is what a `Struct` of the forms does. A field of several numbers, as `runs:4I`
    has them, is several values under one name.
    """

    def __init__(self, text: str) -> None:
        """Errors: ValueError when `text` is no layout."""
        self.text = text
        self._counts: dict[str, int] = {}
        forms = []
        for word in text.split():
            field = _FIELD.fullmatch(word)
            if field is None or field["kind"] not in _BITS or field["name"] in self._counts:
                raise ValueError(f"{word!r} is no further field of a record")
            forms.append(field["form"])
            self._counts[field["name"]] = _values(field["kind"], field["count"])
        self._struct = Struct("=" + "".join(forms))
        self.format = self._struct.format
        self.size = self._struct.size
        self.pack = self._struct.pack
        self.unpack = self._struct.unpack
        self.unpack_from = self._struct.unpack_from
        self._bits = [_BITS[kind] for kind in _one_by_one(self.format)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Record({self.text!r})"

    def read(self, raw: bytes) -> dict[str, tuple[Any, ...]]:
        """The values of each field by its name."""
        values = self.unpack(raw)
        found, at = {}, 0
        for name, count in self._counts.items():
            found[name] = values[at : at + count]
            at += count
        return found

    def write(self, values: Mapping[str, tuple[Any, ...]]) -> bytes:
        """The bytes of these values; what has none of its own, or another number of them, is zero.

        Values of fields that are not in here are left out.
        """
        flat: list[Any] = []
        for name, zeros in self.read(bytes(self.size)).items():
            given = values.get(name, zeros)
            flat += given if len(given) == len(zeros) else zeros
        return self.pack(*flat)

    def difference(self, after: bytes, before: bytes) -> bytes:
        """Number by number, wrapping around. All fields are numbers without a sign."""
        numbers = zip(self.unpack(after), self.unpack(before), self._bits, strict=True)
        return self.pack(*((new - old) % 2**bits for new, old, bits in numbers))


def _one_by_one(form: str) -> str:
    """The kinds of a format, each as often as it has a value."""
    words = re.findall(r"(\d*)([a-zA-Z])", form)
    return "".join(kind * _values(kind, count) for count, kind in words)


def _values(kind: str, count: str) -> int:
    """How many values a form is."""
    if kind == _NO_VALUE:
        return 0
    return 1 if kind == _ONE_VALUE else int(count or 1)
