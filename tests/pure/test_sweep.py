"""Which sockets are taken for gone."""

from __future__ import annotations

import pytest

from minuteman.dataplane.conns import Entry
from minuteman.dataplane.layout import CONN
from minuteman.dataplane.sweep import Census

HERE, ELSEWHERE = 3, 4


def entry(netns: int, *, abandoned: bool = False) -> Entry:
    return Entry.unpack(CONN.pack(b"", b"", b"", b"", 1, 1, 6, 2, 0, abandoned, netns, 5, 1))


@pytest.mark.parametrize(
    ("cookie", "found", "is_gone"),
    [
        (1, entry(HERE), False),
        (1, entry(HERE, abandoned=True), False),
        (1, entry(ELSEWHERE, abandoned=True), False),
        (2, entry(HERE), True),
        (2, entry(HERE, abandoned=True), True),
        (2, entry(ELSEWHERE), False),
        (2, entry(ELSEWHERE, abandoned=True), True),
    ],
)
def test_who_is_taken_for_gone(cookie: int, found: Entry, is_gone: bool) -> None:
    assert Census(frozenset({1}), frozenset({HERE})).lacks(cookie, found) is is_gone
