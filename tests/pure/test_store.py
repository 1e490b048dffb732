"""The snapshot on disk: what was saved comes back, and nothing that is there can hurt."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.model import (
    Origin,
    Problem,
    Snapshot,
    Task,
    TaskPort,
    Unit,
    UnitId,
    VipClaim,
    VipKey,
    VipName,
)
from minuteman.reconcile.store import FORMAT, Memory, Saver, Store

PATIENCE_SECONDS = 10.0

TASK = Task(
    "fw-1",
    "web.1",
    "marathon",
    "web",
    "agent-1",
    ip_address("10.0.0.1"),
    (ip_address("9.0.0.1"), ip_address("fd00::1")),
    "running",
    None,
    (
        TaskPort(
            "udp",
            31001,
            "host",
            "http",
            8080,
            (
                VipClaim(VipKey(VipName("web", "marathon"), 80, "tcp"), weight=0),
                VipClaim(VipKey(ip_address("1.2.3.4"), 80, "udp"), affinity_seconds=5),
            ),
        ),
    ),
)
UNIT = Unit(
    UnitId("instance/web.1"),
    2**63,
    (TASK, replace(TASK, id="web.2", agent_ip=None, healthy=False)),
    (VipClaim(VipKey(ip_address("fd00::7"), 80, "tcp")),),
    (Problem("/a", "b", "c", 'It says "d",\nand é.'),),
    kept=True,
)
SNAPSHOT = Snapshot(
    "marathon",
    Origin("c1:1000", 2**63),
    {UNIT.id: UNIT, UnitId("app/x"): Unit(UnitId("app/x"), 1)},
    frozenset({ip_address("10.0.0.9"), ip_address("fd00::9")}),
)
MEMORY = Memory(
    412,
    (SNAPSHOT, Snapshot("sdk", Origin("", 0), {})),
    {VipName("web", "marathon"): (ip_address("11.0.0.1"), ip_address("fd01:c::1"))},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "snapshot.jsonl")


def test_what_was_saved_comes_back(store: Store) -> None:
    store.save(MEMORY)
    assert store.load() == (MEMORY, ())
    assert [path.name for path in store.path.parent.iterdir()] == ["snapshot.jsonl"]


def test_a_snapshot_comes_back_as_one_that_nobody_read(store: Store) -> None:
    store.save(Memory(1, (replace(SNAPSHOT, serial=7, touched=frozenset({UNIT.id})),)))
    (loaded,) = store.load()[0].snapshots
    assert (loaded.serial, loaded.touched) == (0, None)


names = st.text(max_size=20)
units = st.builds(
    Unit,
    names.map(UnitId),
    st.integers(0, 2**64),
    problems=st.lists(st.builds(Problem, names, names, names, names), max_size=2).map(tuple),
    kept=st.booleans(),
)


@given(st.lists(units, max_size=5, unique_by=lambda unit: unit.id), st.integers(0))
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, found: list[Unit], generation: int
) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "snapshot.jsonl")
    memory = Memory(generation, (replace(SNAPSHOT, units={unit.id: unit for unit in found}),))
    store.save(memory)
    assert store.load() == (memory, ())


def test_without_a_file_there_is_no_memory_and_no_problem(store: Store) -> None:
    assert store.load() == (Memory(), ())


def cut(text: bytes) -> bytes:
    return text[: len(text) // 2]


def flip(text: bytes) -> bytes:
    return text.replace(b"web.1", b"web.7", 1)


def newer(text: bytes) -> bytes:
    first, _, rest = text.partition(b"\n")
    header = {"format": FORMAT + 1, "anything": "else"}
    assert json.loads(first)["format"] == FORMAT
    return json.dumps(header).encode() + b"\n" + rest


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "damaged"),
        (flip, "checksum"),
        (newer, f"format {FORMAT + 1}"),
        (lambda _: b"", "damaged"),
        (lambda _: b"\n", "damaged"),
        (lambda _: b"\xff\xfe\n{}\n", "damaged"),
        (lambda text: text + b"x", "damaged"),
        (lambda text: text + text, "checksum"),
    ],
)
def test_a_damaged_file_is_a_problem_and_no_memory(
    store: Store, damage: Callable[[bytes], bytes], reason: str
) -> None:
    store.save(MEMORY)
    store.path.write_bytes(damage(store.path.read_bytes()))
    memory, (problem,) = store.load()
    assert memory == Memory()
    assert problem.where == str(store.path)
    assert reason in problem.reason
    assert "\n" not in problem.reason


@given(st.binary(max_size=200))
def test_no_bytes_are_a_crash(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "snapshot.jsonl")
    store.path.write_bytes(junk)
    memory, problems = store.load()
    assert memory == Memory()
    assert len(problems) == 1


def test_a_file_that_cannot_be_read_is_a_problem(store: Store) -> None:
    store.path.mkdir()
    memory, (problem,) = store.load()
    assert memory == Memory()
    assert "directory" in problem.reason


def test_a_save_that_fails_leaves_what_was_there(store: Store) -> None:
    store.save(MEMORY)
    store.path.with_suffix(".new").mkdir()
    with pytest.raises(IsADirectoryError):
        store.save(Memory(413))
    assert store.load() == (MEMORY, ())


# ---- the saver -----------------------------------------------------------------------------------
class ObservedStore(Store):
    """A store that tells what it saves, and may be made to wait before it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.saved: list[int] = []
        self.go = threading.Semaphore(0)
        self.done = threading.Semaphore(0)

    def save(self, memory: Memory, hurry: threading.Event | None = None) -> None:
        assert self.go.acquire(timeout=PATIENCE_SECONDS)
        try:
            super().save(memory, hurry)
            self.saved.append(memory.generation)
        finally:
            self.done.release()


def test_the_newest_offer_is_saved_and_those_it_overtook_are_not(tmp_path: Path) -> None:
    store = ObservedStore(tmp_path / "snapshot.jsonl")
    saver = Saver(store, every_seconds=0.0)
    for generation in range(1, 6):
        saver.offer(Memory(generation))
    store.go.release()
    assert store.done.acquire(timeout=PATIENCE_SECONDS)
    store.go.release()
    saver.close()
    assert store.saved[-1] == 5
    assert len(store.saved) <= 2
    assert store.load() == (Memory(5), ())


def test_closing_saves_at_once_what_would_have_waited(tmp_path: Path) -> None:
    store = ObservedStore(tmp_path / "snapshot.jsonl")
    saver = Saver(store, every_seconds=3600.0)
    saver.offer(Memory(1))
    store.go.release()
    assert store.done.acquire(timeout=PATIENCE_SECONDS)
    saver.offer(MEMORY)
    store.go.release()
    saver.close()
    assert store.saved == [1, MEMORY.generation]
    assert store.load() == (MEMORY, ())


def test_what_cannot_be_saved_does_not_end_the_saver_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ObservedStore(tmp_path / "missing" / "snapshot.jsonl")
    caplog.set_level("INFO")
    saver = Saver(store, every_seconds=0.0)
    for generation in (1, 2):
        saver.offer(Memory(generation))
        store.go.release()
        assert store.done.acquire(timeout=PATIENCE_SECONDS)
    store.path.parent.mkdir()
    saver.offer(Memory(3))
    store.go.release()
    saver.close()
    assert store.saved == [3]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
