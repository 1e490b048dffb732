"""The mirror of the maps: what is free in it is what nothing uses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minuteman.model import Endpoint, Tier
from minuteman.reconcile.kernelstate import (
    FreeSlots,
    KernelState,
    Limits,
    PutBackend,
    Release,
    WriteRun,
)

SLOTS = 32
runs = st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 8)).map(
    lambda run: (run[0], min(run[1], SLOTS - run[0]))
)


def as_set(free: FreeSlots) -> set[int]:
    pieces = list(zip(free.starts, free.ends, strict=True))
    assert all(start < end for start, end in pieces)
    ends_then_starts = zip(free.ends, free.starts[1:], strict=False)
    assert all(end < start for end, start in ends_then_starts), "pieces touch or are out of order"
    return {slot for start, end in pieces for slot in range(start, end)}


@given(st.lists(runs))
def test_what_is_around_runs_is_free(used: list[tuple[int, int]]) -> None:
    taken = {slot for base, size in used for slot in range(base, base + size)}
    assert as_set(FreeSlots.around(used, SLOTS)) == set(range(SLOTS)) - taken


@given(st.lists(st.tuples(st.booleans(), runs)))
def test_free_slots_are_a_set_whatever_is_taken_and_given(
    history: list[tuple[bool, tuple[int, int]]],
) -> None:
    free, model = FreeSlots.around((), SLOTS), set(range(SLOTS))
    for is_given, (base, size) in history:
        run = set(range(base, base + size))
        if is_given:
            free.give(base, size)
            model |= run
        else:
            free.take(base, size)
            model -= run
        assert as_set(free) == model


def put(backend_id: int, vip_id: int = 1, port: int = 80) -> PutBackend:
    return PutBackend(backend_id, vip_id, Endpoint(bytes(4), port, "tcp"), 1, Tier.UP)


def test_ids_that_were_never_used_come_after_those_that_were_released_first() -> None:
    state = KernelState(Limits(backends=7))
    for backend_id in (1, 2, 3):
        state.apply(put(backend_id, port=backend_id))
    state.apply(Release((), (3,)))
    state.apply(Release((), (1,)))
    assert list(state.free_ids()) == [3, 1, 4, 5, 6]
    state.apply(put(3, port=9))
    assert list(state.free_ids()) == [1, 4, 5, 6]


def test_ids_that_were_skipped_are_free() -> None:
    state = KernelState(Limits(backends=7))
    state.apply(put(4))
    assert list(state.free_ids()) == [1, 2, 3, 5, 6]
    assert list(KernelState(Limits(backends=7), backends=[put(4)]).free_ids()) == [1, 2, 3, 5, 6]


def test_an_id_that_is_put_again_names_its_new_member_only() -> None:
    state = KernelState(backends=[put(1, vip_id=1, port=80)])
    state.apply(put(1, vip_id=2, port=81))
    assert state.members == {2: {Endpoint(bytes(4), 81, "tcp"): 1}}


def test_what_is_free_does_not_make_states_differ_but_content_does() -> None:
    one, other = KernelState(generation=1), KernelState(generation=2)
    one.apply(put(5))
    one.apply(Release((), (5,)))
    assert one == other
    one.apply(WriteRun(0, (5,)))
    assert one != other
    assert one != "a state"
