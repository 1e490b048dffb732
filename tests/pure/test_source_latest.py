"""Snapshots on their way from the thread that reads to the one that acts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from minuteman.model import Origin, Snapshot, Unit, UnitId
from minuteman.source.latest import Latest

A, B = UnitId("a"), UnitId("b")
ORIGIN = Origin("1:1", 10)


def test_none_before_the_first() -> None:
    assert Latest("s").take() is None


def test_the_first_may_be_empty_and_asks_to_compare_everything() -> None:
    latest = Latest("s")
    assert latest.put(ORIGIN, {}, ())
    assert latest.take() == Snapshot("s", ORIGIN, {}, serial=1, touched=None)


def test_it_keeps_a_copy() -> None:
    latest = Latest("s")
    units = {A: Unit(A, 1)}
    latest.put(ORIGIN, units, [A])
    del units[A]
    snapshot = latest.take()
    assert snapshot is not None
    assert snapshot.units == {A: Unit(A, 1)}


def test_a_grown_position_alone_is_no_news() -> None:
    latest = Latest("s")
    latest.put(ORIGIN, {}, ())
    first = latest.take()
    assert not latest.put(replace(ORIGIN, position=11), {}, ())
    assert latest.take() is first


def test_another_world_is_news_though_no_unit_differs() -> None:
    for other in (replace(ORIGIN, position=9), Origin("2:2", 11)):
        latest = Latest("s")
        latest.put(ORIGIN, {}, ())
        latest.take()
        assert latest.put(other, {}, ())
        assert latest.take() == Snapshot("s", other, {}, serial=2, touched=frozenset())


def test_a_world_that_went_back_and_forth_is_not_lost() -> None:
    latest = Latest("s")
    latest.put(ORIGIN, {}, ())
    latest.take()
    latest.put(replace(ORIGIN, position=5), {}, ())
    latest.put(replace(ORIGIN, position=6), {}, ())
    snapshot = latest.take()
    assert snapshot is not None
    assert snapshot.origin.position < ORIGIN.position


step = st.tuples(
    st.dictionaries(st.sampled_from([A, B]), st.integers(0, 3), max_size=2), st.booleans()
)


@given(st.lists(step))
def test_touched_covers_every_difference_however_seldom_one_looks(
    steps: list[tuple[dict[UnitId, int], bool]],
) -> None:
    latest = Latest("s")
    units: dict[UnitId, Unit] = {}
    latest.put(ORIGIN, units, ())
    before = latest.take()
    assert before is not None
    for revisions, look in steps:
        new = {unit_id: Unit(unit_id, revision) for unit_id, revision in revisions.items()}
        touched = {each for each in (A, B) if units.get(each) != new.get(each)}
        units = new
        latest.put(ORIGIN, units, touched)
        if look:
            now = latest.take()
            assert now is not None
            assert now.units == units
            differ = {each for each in (A, B) if before.units.get(each) != units.get(each)}
            if now is before:
                assert not differ
            else:
                assert now.serial == before.serial + 1
                assert now.touched is not None
                assert differ <= now.touched
            before = now
