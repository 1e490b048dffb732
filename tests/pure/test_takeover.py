"""A kernel that does not tell when its programs have ended."""

from __future__ import annotations

import platform

import pytest

from minuteman.dataplane import takeover


@pytest.mark.parametrize("number", [1 << 20, None], ids=["not built in", "another machine"])
def test_programs_are_given_time_where_the_kernel_does_not_tell(
    number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {} if number is None else {platform.machine(): number}
    monkeypatch.setattr(takeover, "SYS_MEMBARRIER", known)
    monkeypatch.setattr(takeover, "GRACE_SECONDS", 0.0)
    takeover.await_programs()
