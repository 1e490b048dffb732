"""What may take a backend away: a read of the same world, or a person, or time."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.model import Origin, Snapshot, Task, Unit, UnitId, VipClaim, VipKey
from minuteman.reconcile.trust import QUIET_SECONDS, Admitted, Trust

HOME = Origin("c1:1000", 100)
LATER = replace(HOME, position=101)
OLDER = replace(HOME, position=99)
WIPED = Origin("c2:2000", 3)


def task(name: str) -> Task:
    return Task("fw", name, "marathon", "web", "a1", None, (), "running", None, ())


def unit(name: str, *tasks: str, revision: int = 1) -> Unit:
    return Unit(UnitId(name), revision, tuple(task(t) for t in tasks or (name,)))


def claim(port: int) -> VipClaim:
    return VipClaim(VipKey(ip_address("10.0.0.1"), port, "tcp"))


def read(origin: Origin, *units: Unit, serial: int = 1) -> Snapshot:
    by_id = {unit.id: unit for unit in units}
    return Snapshot("marathon", origin, by_id, serial=serial, touched=frozenset(by_id))


A, B, C = unit("a"), unit("b"), unit("c")


def names(admitted: Admitted) -> set[str]:
    return {task.id for unit in admitted.snapshot.units.values() for task in unit.tasks}


def believing(*units: Unit) -> Trust:
    """A trust that has believed these units of `HOME`."""
    trust = Trust()
    trust.admit(read(HOME, *units), 0.0)
    return trust


# ---- one world -----------------------------------------------------------------------------------
def test_in_one_world_a_read_is_believed_as_it_is_down_to_nothing() -> None:
    trust = believing(A, B)
    for later in (read(LATER, A), read(LATER)):
        admitted = trust.admit(later, 1.0)
        assert admitted == Admitted(later)
        assert admitted.snapshot is later


def test_the_first_read_is_believed_when_there_is_nothing_to_lose() -> None:
    for trust in (Trust(), Trust(kernel_has_vips=False)):
        assert trust.admit(read(HOME), 0.0).complete
    assert Trust(kernel_has_vips=True).admit(read(HOME, A), 0.0).complete


def test_a_memory_of_the_same_world_makes_the_first_read_believed() -> None:
    trust = Trust(read(HOME, A, B, serial=0), kernel_has_vips=True)
    assert names(trust.admit(read(HOME, B), 0.0)) == {"b"}


# ---- another world -------------------------------------------------------------------------------
@pytest.mark.parametrize("origin", [WIPED, OLDER])
def test_another_world_adds_at_once_and_removes_after_it_was_quiet(origin: Origin) -> None:
    trust = believing(A, B)
    found = read(origin, B, C)
    admitted = trust.admit(found, 10.0)
    assert names(admitted) == {"a", "b", "c"}
    assert admitted.snapshot.units[A.id].kept
    assert (admitted.complete, admitted.withheld) == (False, 1)
    assert admitted.recheck_monotonic == 10.0 + QUIET_SECONDS
    assert names(trust.admit(found, 10.0 + QUIET_SECONDS - 0.1)) == {"a", "b", "c"}
    assert names(trust.admit(found, 10.0 + QUIET_SECONDS)) == {"b", "c"}


def test_what_grows_is_not_quiet_and_what_changes_is() -> None:
    trust = believing(A, B)
    trust.admit(read(WIPED, unit("x")), 0.0)
    admitted = trust.admit(read(WIPED, unit("x"), unit("y")), 20.0)
    assert admitted.recheck_monotonic == 20.0 + QUIET_SECONDS
    admitted = trust.admit(read(WIPED, unit("x"), unit("z")), 40.0)
    assert admitted.recheck_monotonic == 20.0 + QUIET_SECONDS
    assert trust.admit(read(WIPED, unit("x"), unit("z")), 50.0).complete


def test_an_empty_world_waits_for_a_person() -> None:
    trust = believing(A)
    empty = read(WIPED, Unit(UnitId("x"), 1))  # a unit that says nothing
    admitted = trust.admit(empty, 0.0)
    assert admitted.recheck_monotonic is None
    assert "minuteman believe marathon" in admitted.problems[0].reason
    assert names(trust.admit(empty, 1e6)) == {"a"}
    assert trust.believe()
    assert names(trust.admit(empty, 1e6)) == set()
    assert not trust.believe()


def test_without_memory_an_empty_read_is_not_complete_while_the_kernel_has_vips() -> None:
    trust = Trust(kernel_has_vips=True)
    admitted = trust.admit(read(WIPED), 0.0)
    assert (admitted.complete, admitted.recheck_monotonic) == (False, None)
    assert trust.memory is None
    admitted = trust.admit(read(WIPED, A), 5.0)
    assert (admitted.complete, names(admitted)) == (False, {"a"})
    assert trust.admit(read(WIPED, A), 5.0 + QUIET_SECONDS).complete


def test_what_came_back_and_goes_again_is_gone() -> None:
    trust = believing(A, B)
    trust.admit(read(WIPED, A, C), 0.0)
    assert names(trust.admit(read(WIPED, C), 1.0)) == {"b", "c"}


def test_a_third_world_keeps_what_the_second_had() -> None:
    trust = believing(A)
    trust.admit(read(WIPED, B), 0.0)
    admitted = trust.admit(read(Origin("c3:3000", 1), C), QUIET_SECONDS - 1)
    assert names(admitted) == {"a", "b", "c"}
    assert admitted.recheck_monotonic == 2 * QUIET_SECONDS - 1


def test_a_server_that_catches_up_ends_the_doubt() -> None:
    trust = believing(A, B)
    assert not trust.admit(read(OLDER, A), 0.0).complete
    admitted = trust.admit(read(LATER, A, serial=2), 0.1)
    assert names(admitted) == {"a"}


def test_a_task_that_a_unit_lost_is_kept_in_it() -> None:
    trust = believing(replace(unit("doc", "t1", "t2"), declares=(claim(1), claim(2))))
    found = replace(unit("doc", "t2", "t3"), declares=(claim(2),))
    admitted = trust.admit(read(WIPED, found), 0.0)
    kept = admitted.snapshot.units[UnitId("doc")]
    assert names(admitted) == {"t1", "t2", "t3"}
    assert kept.declares == (claim(2), claim(1))
    assert kept.kept
    assert admitted.withheld == 1
    assert trust.admit(read(WIPED, found), QUIET_SECONDS).snapshot.units[UnitId("doc")] is found


def test_touched_is_never_relative_to_a_snapshot_that_the_table_did_not_see() -> None:
    trust = believing(A, B)
    assert trust.admit(read(WIPED, C, serial=2), 0.0).snapshot.touched is None
    assert trust.admit(read(WIPED, C, serial=2), QUIET_SECONDS).snapshot.touched is None
    last = read(replace(WIPED, position=4), C, serial=3)
    assert trust.admit(last, QUIET_SECONDS + 1).snapshot is last


# ---- memory --------------------------------------------------------------------------------------
def test_memory_is_what_is_admitted_under_the_world_that_is_believed() -> None:
    trust = believing(A)
    trust.admit(read(WIPED, B), 0.0)
    assert trust.memory is not None
    assert trust.memory.origin == HOME
    assert trust.memory.units.keys() == {"a", "b"}
    later = Trust(trust.memory, kernel_has_vips=True)
    assert names(later.admit(read(WIPED, B), 0.0)) == {"a", "b"}
    assert names(later.admit(read(WIPED, B), QUIET_SECONDS)) == {"b"}


# ---- any history ---------------------------------------------------------------------------------
origins = st.builds(Origin, st.sampled_from(["c1", "c2", "c3"]), st.integers(1, 3))
found_units = st.lists(st.sampled_from("abcdef"), max_size=4, unique=True)


@given(st.lists(st.tuples(origins, found_units, st.floats(0, 40)), min_size=1, max_size=12))
def test_nothing_is_lost_but_to_a_read_of_a_world_that_is_believed(
    history: list[tuple[Origin, list[str], float]],
) -> None:
    trust, now = Trust(kernel_has_vips=True), 0.0
    believed: Origin | None = None
    promised: set[str] = set()
    """Believed once, and not seen in another world since: that must not vanish with a doubt."""
    for origin, found, seconds in history:
        now += seconds
        admitted = trust.admit(read(origin, *(unit(name) for name in found)), now)
        if admitted.complete:
            assert names(admitted) == set(found)
            believed, promised = origin, set(found)
            continue
        assert believed is None or not (
            believed.incarnation == origin.incarnation and believed.position <= origin.position
        ), "the world that is believed is believed whole"
        promised -= set(found)
        assert names(admitted) >= promised | set(found)
        assert bool(admitted.withheld) == bool(names(admitted) - set(found))
        assert admitted.problems
