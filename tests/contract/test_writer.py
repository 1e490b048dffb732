"""What the writer says of programs that somebody detaches."""

from __future__ import annotations

import pytest

from minuteman.reconcile.writer import ATTACHED_SECONDS, Writer
from tests.contract.fake_dataplane import FakeDataplane

NOT_ATTACHED = "programs are not attached"


def test_what_cannot_be_repaired_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    dataplane = FakeDataplane()
    writer = Writer(dataplane, dataplane.open(), audit_seconds=60.0, now=0.0)
    dataplane.beyond_repair = True
    dataplane.maps.attached = False
    for look in range(4):
        writer.watch(look * ATTACHED_SECONDS)
    assert not writer.attached
    assert sum(record.message.startswith(NOT_ATTACHED) for record in caplog.records) == 1


def test_what_was_repaired_and_is_detached_again_is_logged_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataplane = FakeDataplane()
    writer = Writer(dataplane, dataplane.open(), audit_seconds=60.0, now=0.0)
    for look in range(6):
        dataplane.maps.attached = look % 2 == 0
        writer.watch(look * ATTACHED_SECONDS)
    assert writer.repairs == 3
    assert sum(record.message.startswith(NOT_ATTACHED) for record in caplog.records) == 3
