"""Events are written and read while somebody listens, whatever the child does."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from minuteman.errors import DataplaneError
from minuteman.eventschild import END_SECONDS, READ_BYTES, READ_SECONDS, EventsChild
from minuteman.listening import AHEAD_SECONDS, RENEW_SECONDS, SILENCE_SECONDS, Listening

DEADLINE_SECONDS = 20.0
TELL = """
import sys, signal
sys.stdout.buffer.write(b'one\\ntwo\\nthr')
sys.stdout.buffer.flush()
signal.pause()
"""
FLOOD = """
import os
while True:
    os.write(1, b'x' * 1023 + b'\\n')
"""
STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b'here\\n')
while True:
    signal.pause()
"""
SILENT = "import signal; signal.pause()"


class Rig:
    """A child that does what it is told, a selector, and a clock that only the test moves."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.now = 100.0
        self.blocks: list[bytes] = []
        self.told: list[int] = []
        """Until when the kernel was to write, in nanoseconds."""
        self.error: DataplaneError | None = None
        """What telling the kernel raises."""
        self.command: list[str] = []
        self.behave(SILENT)
        self.child = EventsChild(self.command, self.selector, self.blocks.append)
        self.listening = Listening(self.listen_until, self.child)

    def behave(self, text: str) -> None:
        """From its next start on, execute `text`."""
        self.command[:] = [sys.executable, "-I", "-S", "-c", text]

    def listen_until(self, monotonic_ns: int) -> None:
        self.told.append(monotonic_ns)
        if self.error:
            raise self.error

    def turn(self, seconds: float = 0.01) -> float:
        """One turn of the agent: what is due at `now`, then what is ready."""
        wake = self.listening.tick(self.now)
        for key, events in self.selector.select(seconds):
            key.data(events)
        return wake

    def until(self, holds: Callable[[], bool]) -> None:
        """Turn on, while somebody listens, and no time passes."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, "it never happened"
            self.turn()

    def start(self) -> int:
        """Have somebody listen; returns the child's process id."""
        self.listening.ask()
        self.until(lambda: self.child.pid is not None)
        assert self.child.pid is not None
        return self.child.pid

    def until_blocks(self, count: int) -> None:
        self.until(lambda: len(self.blocks) == count)

    def until_ended(self) -> None:
        self.until(lambda: self.child.pid is None)


@pytest.fixture
def rig() -> Iterator[Rig]:
    """At the end no process is left, and the kernel is silent."""
    rig = Rig()
    yield rig
    pid = rig.child.pid
    rig.listening.close()
    if pid is not None:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert rig.told[-1:] in ([], [0])
    assert not rig.selector.get_map()
    rig.selector.close()


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def test_nobody_listens_and_nothing_is_done(rig: Rig) -> None:
    for _ in range(3):
        assert rig.turn(0.0) == float("inf")
        rig.now += 1000.0
    assert rig.child.pid is None
    assert rig.told == []


def test_the_kernel_writes_a_few_seconds_ahead_while_it_is_asked_for(rig: Rig) -> None:
    rig.start()
    assert rig.turn(0.0) == 100.0 + RENEW_SECONDS
    for second in range(1, 6):
        rig.now = 100.0 + second
        rig.listening.ask()
        rig.turn(0.0)
    assert rig.told == [nanoseconds(100.0 + second + AHEAD_SECONDS) for second in range(6)]


def test_a_terminals_ctrl_c_is_not_for_it(rig: Rig) -> None:
    pid = rig.start()
    assert os.getpgid(pid) == pid


def test_silence_ends_it(rig: Rig) -> None:
    rig.start()
    rig.now += SILENCE_SECONDS - 0.01
    rig.turn(0.0)
    assert rig.told[-1] == nanoseconds(rig.now + AHEAD_SECONDS)
    assert rig.turn(0.0) == 100.0 + SILENCE_SECONDS
    rig.now = 100.0 + SILENCE_SECONDS
    rig.turn(0.0)
    assert rig.told[-1] == 0
    rig.until_ended()
    told = len(rig.told)
    assert rig.turn(0.0) == float("inf")
    assert len(rig.told) == told, "it is silent already"


def test_it_starts_again_at_once_for_the_next_who_listens(rig: Rig) -> None:
    first = rig.start()
    rig.now += SILENCE_SECONDS
    rig.until_ended()
    assert rig.start() != first
    assert rig.told[-2:] == [0, nanoseconds(rig.now + AHEAD_SECONDS)]


def test_somebody_may_listen_while_the_last_child_ends(rig: Rig) -> None:
    rig.behave(STUBBORN)
    first = rig.start()
    rig.until(lambda: rig.blocks == [b"here\n"])
    rig.now += SILENCE_SECONDS
    rig.turn()
    rig.listening.ask()
    rig.turn()
    assert rig.child.pid == first
    rig.now += END_SECONDS
    rig.listening.ask()
    rig.until(lambda: rig.child.pid not in (None, first))


def test_whole_lines_are_passed_on(rig: Rig) -> None:
    rig.behave(TELL)
    rig.start()
    rig.until(lambda: bool(rig.blocks))
    rig.until(lambda: b"".join(rig.blocks) == b"one\ntwo\n")


def test_lines_stay_whole_however_they_are_cut(rig: Rig) -> None:
    lines = [b"%06d\n" % number for number in range(100_000)]
    rig.behave(
        "import signal, sys\n"
        "sys.stdout.write(''.join('%06d\\n' % number for number in range(100_000)))\n"
        "sys.stdout.flush()\n"
        "signal.pause()\n"
    )
    rig.start()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while sum(map(len, rig.blocks)) < 7 * len(lines):
        assert time.monotonic() < deadline
        rig.now += READ_SECONDS
        rig.listening.ask()
        rig.turn()
    assert b"".join(rig.blocks) == b"".join(lines)
    assert len(rig.blocks) >= 7 * len(lines) // READ_BYTES
    assert all(block.endswith(b"\n") for block in rig.blocks)


def test_however_much_there_is_a_turn_takes_a_block_and_then_lets_it_be(rig: Rig) -> None:
    rig.behave(FLOOD)
    rig.start()
    rig.until(lambda: bool(rig.blocks))
    rig.blocks.clear()
    for number in range(1, 5):
        rig.now += READ_SECONDS
        rig.listening.ask()
        rig.until_blocks(number)
        for _ in range(5):
            assert rig.turn(0.0) == pytest.approx(rig.now + READ_SECONDS)
        assert len(rig.blocks) == number
    assert max(map(len, rig.blocks)) <= READ_BYTES + 1024


def test_one_that_fails_is_started_again_later_and_later_and_said_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.behave("raise SystemExit(70)")
    starts: list[float] = []
    while len(starts) < 9:
        rig.listening.ask()
        wake = rig.turn()
        if rig.child.pid is not None:
            starts.append(rig.now)
            rig.until_ended()
        else:
            rig.now = max(rig.now, wake)
    waits = [later - earlier for earlier, later in pairwise(starts)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [record.getMessage() for record in caplog.records] == ["events reader failed code=70"]


def test_one_that_failed_is_started_at_once_for_the_next_who_listens(rig: Rig) -> None:
    rig.behave("raise SystemExit(70)")
    rig.start()
    rig.until_ended()
    rig.now += SILENCE_SECONDS
    rig.turn()
    rig.start()


def test_one_that_is_killed_is_replaced(rig: Rig) -> None:
    pid = rig.start()
    os.kill(pid, signal.SIGKILL)
    rig.until_ended()
    assert rig.turn() == rig.now + 0.5
    rig.now += 0.5
    rig.until(lambda: rig.child.pid not in (None, pid))


def test_without_a_program_it_is_tried_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.command[:] = ["/no/such/program"]
    rig.listening.ask()
    assert rig.turn() == 100.5
    assert rig.child.pid is None
    [record] = caplog.records
    assert "No such file" in record.getMessage()
    rig.behave(TELL)
    rig.now = 100.5
    rig.until(lambda: bool(rig.blocks))


def test_one_that_does_not_end_is_killed(rig: Rig) -> None:
    rig.behave(STUBBORN)
    rig.start()
    rig.until(lambda: rig.blocks == [b"here\n"])
    rig.now += SILENCE_SECONDS
    rig.turn()
    rig.turn()
    assert rig.child.pid is not None
    rig.now += END_SECONDS
    rig.until_ended()


@pytest.mark.parametrize("behaviour", [SILENT, FLOOD, TELL])
def test_closing_ends_it_whatever_it_does(rig: Rig, behaviour: str) -> None:
    rig.behave(behaviour)
    rig.start()


def test_a_kernel_that_cannot_be_told_is_said_once_a_time(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    rig.error = DataplaneError("write options", 1)
    for _ in range(3):
        rig.listening.ask()
        rig.turn(0.0)
        rig.now += RENEW_SECONDS
    assert len(caplog.records) == 1
    rig.error = None
    rig.turn(0.0)
    rig.error = DataplaneError("write options", 1)
    rig.now += RENEW_SECONDS
    rig.turn(0.0)
    assert len(caplog.records) == 2
    rig.error = None
