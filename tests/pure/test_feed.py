"""The feed to the front: however it is cut and however slow the reader, it ends up the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.feed import Decoder, Message, Pending, Update, encode
from minuteman.model import Counters, Problem, SourceHealth, Task, Vip, VipKey
from minuteman.reader import Published
from minuteman.reconcile.delta import Condition, Delta

KEYS = [VipKey(ip_address(f"10.0.0.{i}"), 80, "tcp") for i in range(4)]
IDENTITIES = [("fw", f"task-{i}") for i in range(4)]


def vip(key: VipKey, affinity_seconds: int = 0) -> Vip:
    return Vip(key, (), (), affinity_seconds=affinity_seconds)


def task(identity: tuple[str, str], name: str = "") -> Task:
    return Task(*identity, "marathon", name, "agent", None, (), "running", None, ())


vips = st.builds(vip, st.sampled_from(KEYS), st.integers(0, 2))
tasks = st.builds(task, st.sampled_from(IDENTITIES), st.sampled_from("ab"))
problems = st.lists(st.builds(Problem, *[st.sampled_from("ab")] * 4), max_size=2).map(tuple)
updates = st.builds(
    Update,
    generation=st.integers(1, 9),
    whole=st.booleans(),
    vips=st.lists(vips, max_size=3).map(lambda found: {vip.key: vip for vip in found}),
    dropped_vips=st.frozensets(st.sampled_from(KEYS), max_size=3),
    tasks=st.lists(tasks, max_size=3).map(
        lambda found: {(task.framework_id, task.id): task for task in found}
    ),
    dropped_tasks=st.frozensets(st.sampled_from(IDENTITIES), max_size=3),
    problems=st.none() | problems,
    sources=st.just({"marathon": SourceHealth(True, 1.0)}),
    attached=st.booleans(),
    withheld=st.integers(0, 3),
    drift=st.integers(0, 3),
    repairs=st.integers(0, 3),
    without_room=st.integers(0, 3),
    sockets_ended=st.integers(0, 3),
).map(
    lambda update: replace(
        update,
        dropped_vips=update.dropped_vips - update.vips.keys(),
        dropped_tasks=update.dropped_tasks - update.tasks.keys(),
    )
)


def applied(updates: Iterable[Update], published: Published | None = None) -> Published:
    published = published or Published()
    for update in updates:
        published = update.applied_to(published)
    return published


def decoded(data: bytes, size: int) -> Iterator[Message]:
    decoder = Decoder()
    for start in range(0, len(data), size):
        yield from decoder.feed(data[start : start + size])


@given(st.lists(updates), st.integers(1, 200))
def test_what_was_encoded_comes_out_however_it_is_cut(sent: list[Update], size: int) -> None:
    assert list(decoded(b"".join(encode(update) for update in sent), size)) == sent


@given(st.lists(updates, max_size=4), st.lists(updates, min_size=1, max_size=4))
def test_folded_updates_do_what_they_did_one_after_another(
    before: list[Update], later: list[Update]
) -> None:
    published = applied(before)
    pending = Pending()
    for update in later:
        pending.add(update)
    assert pending.take().applied_to(published) == applied(later, published)
    assert not pending


@given(
    st.lists(updates, max_size=4),
    st.lists(st.tuples(updates, st.integers(0, 2)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_parts_arrive_as_one_update_whatever_is_folded_in_on_the_way(
    before: list[Update], later: list[tuple[Update, int]], entries: int
) -> None:
    published = applied(before)
    pending, frames = Pending(), list[bytes]()
    for update, parts in later:
        pending.add(update)
        for _ in range(parts):
            if pending:
                frames.append(encode(pending.take(entries)))
    while pending:
        frames.append(encode(pending.take(entries)))
    received = [message for message in decoded(b"".join(frames), 64) if isinstance(message, Update)]
    assert applied(received, published) == applied((update for update, _ in later), published)
    assert not any(message.more for message in received)


def test_a_part_is_as_big_as_asked_for() -> None:
    pending = Pending()
    pending.add(
        Update(
            1,
            whole=True,
            vips={key: vip(key) for key in KEYS},
            tasks={identity: task(identity) for identity in IDENTITIES},
        )
    )
    parts = [pending.take(3) for _ in range(3)]
    assert [len(part.vips) + len(part.tasks) for part in parts] == [3, 3, 2]
    assert [part.whole for part in parts] == [True, False, False]
    assert [part.more for part in parts] == [True, True, False]


def test_counters_may_come_between_the_parts() -> None:
    pending = Pending()
    pending.add(Update(1, whole=True, vips={key: vip(key) for key in KEYS}))
    counters = Counters(taken_monotonic=5.0)
    sent: list[Message] = [pending.take(2), counters, pending.take(2)]
    first, second = decoded(b"".join(encode(message) for message in sent), 1000)
    assert first == counters
    assert isinstance(second, Update)
    assert second.vips.keys() == set(KEYS)


def test_nothing_is_no_update() -> None:
    with pytest.raises(ValueError, match="nothing is pending"):
        Pending().take()


# ---- what is published ---------------------------------------------------------------------------
conditions = st.builds(
    Condition,
    problems,
    st.just({"marathon": SourceHealth(True, 1.0)}),
    st.booleans(),
    withheld=st.integers(0, 2),
    drift=st.integers(0, 2),
    repairs=st.integers(0, 2),
    without_room=st.integers(0, 2),
    sockets_ended=st.integers(0, 2),
)


@given(st.lists(st.tuples(st.lists(vips), st.lists(tasks), conditions), max_size=6))
def test_the_updates_of_a_delta_amount_to_the_whole(
    history: list[tuple[list[Vip], list[Task], Condition]],
) -> None:
    delta, published = Delta(40), Published()
    for found_vips, found_tasks, condition in history:
        world = {vip.key: vip for vip in found_vips}
        delta.show_vips(None, world)
        by_identity = {(task.framework_id, task.id): task for task in found_tasks}
        delta.show_tasks(IDENTITIES, by_identity)
        delta.show(condition)
        update = delta.take()
        if update is not None:
            assert update.generation == delta.generation > published.generation
            assert not update.whole
            published = update.applied_to(published)
        assert published == delta.whole().applied_to(Published())
        assert (published.vips, published.tasks) == (world, by_identity)
        assert published.problems == condition.problems
        assert delta.take() is None


def test_what_is_left_out_stays_as_it_was() -> None:
    delta = Delta()
    one, two = KEYS[:2]
    delta.show_vips({one, two}, {one: vip(one), two: vip(two)})
    delta.take()
    delta.show_vips({one, two}, {one: vip(one, 5)}, but=frozenset({two}))
    update = delta.take()
    assert update is not None
    assert update.vips == {one: vip(one, 5)}
    assert update.dropped_vips == frozenset()


def test_problems_are_told_only_when_they_changed() -> None:
    delta = Delta()
    found = (Problem("a", "b", "c", "d"),)
    told = []
    for withheld in range(3):
        delta.show(Condition(found if withheld else (), withheld=withheld))
        update = delta.take()
        assert update is not None
        told.append(update.problems)
    assert told == [(), found, None]
