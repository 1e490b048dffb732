"""The agent's end of the front process: fed, asked, restarted, and never waited for."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from ast import literal_eval
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest

from minuteman.errors import ConfigError, DataplaneError
from minuteman.feed import Update
from minuteman.frontchild import (
    COUNTERS_SECONDS,
    END_SECONDS,
    FIRST_RESTART_SECONDS,
    POLL_SECONDS,
    FrontChild,
)
from minuteman.model import Counters, Vip, VipKey
from tests.contract import stub_front

DEADLINE_SECONDS = 20.0


def vips(count: int) -> dict[VipKey, Vip]:
    keys = [VipKey(ip_address(f"10.0.{i // 256}.{i % 256}"), 80, "tcp") for i in range(count)]
    return {key: Vip(key, (), ()) for key in keys}


class Rig:
    """A front child with a stub for a program, a selector, and a clock that only the test moves."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.selector = selectors.DefaultSelector()
        self.published = vips(0)
        self.generation = 1
        self.now = 0.0
        self.counted = 0
        self.listened = 0
        self.error: DataplaneError | None = None
        """What reading the counters raises."""
        self.command: list[str] = []
        self.behave("listen")
        self.child = FrontChild(self.command, self.selector, self.whole, self.counters, self.listen)

    def behave(self, how: str) -> None:
        """From its next start on."""
        self.command[:] = [sys.executable, stub_front.__file__, str(self.out), how]

    def exit(self, code: int) -> None:
        """From its next start on, do nothing but that."""
        self.command[:] = [sys.executable, "-I", "-S", "-c", f"raise SystemExit({code})"]

    def whole(self) -> Update:
        return Update(self.generation, whole=True, vips=self.published)

    def counters(self) -> Counters:
        self.counted += 1
        if self.error:
            raise self.error
        return Counters(taken_monotonic=self.now)

    def listen(self) -> None:
        self.listened += 1

    def publish(self, count: int) -> None:
        """As of the next generation there are so many VIPs."""
        self.published, self.generation = vips(count), self.generation + 1
        self.child.publish(Update(self.generation, whole=False, vips=self.published))

    def turn(self, seconds: float = 0.01) -> float:
        """One turn of the agent: what is due at `now`, then what is ready."""
        wake = self.child.tick(self.now)
        for key, events in self.selector.select(seconds):
            key.data(events)
        return wake

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, "it never happened"
            self.turn()

    def until_restarted(self) -> None:
        """Let it end, and time pass until it is started again."""
        self.until(lambda: self.child.pid is not None)
        pid = self.child.pid
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.child.pid in (None, pid):
            assert time.monotonic() < deadline, "it was never started again"
            wake = self.turn()
            if self.child.pid is None:
                self.now = wake

    def lines(self) -> list[str]:
        return self.out.read_text().splitlines() if self.out.exists() else []

    def last_line(self) -> str:
        return self.lines()[-1] if self.lines() else ""

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.child.pid is not None
        os.kill(self.child.pid, number)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """At the end no process is left."""
    rig = Rig(tmp_path)
    yield rig
    pid = rig.child.pid
    rig.child.close()
    if pid is not None:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not rig.selector.get_map()
    rig.selector.close()


def test_it_is_told_everything_and_then_each_change(rig: Rig) -> None:
    rig.published = vips(3)
    rig.until(lambda: rig.last_line() == "update 1 3")
    rig.publish(5)
    rig.until(lambda: rig.last_line() == "update 2 5")


def test_it_is_not_told_how_the_agent_is_set(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINUTEMAN_ZOOKEEPER", "zk://user:password@10.0.0.1")
    rig.until(lambda: rig.last_line() == "update 1 0")
    environment = Path(f"/proc/{rig.child.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"password" not in environment


def test_what_is_big_arrives_as_one_update(rig: Rig) -> None:
    rig.published = vips(5000)
    rig.until(lambda: bool(rig.lines()))
    assert rig.lines() == ["update 1 5000"]


def test_one_that_does_not_listen_holds_nobody_up_and_the_next_one_knows_all(rig: Rig) -> None:
    rig.behave("deaf")
    rig.published = vips(5000)  # more than a socket holds
    for count in range(100):
        rig.turn(0.0)
        rig.publish(5000 + count)
    rig.behave("listen")
    rig.kill()
    rig.until_restarted()
    rig.until(lambda: bool(rig.lines()))
    assert rig.lines() == ["update 101 5099"]


def test_counters_are_read_once_a_second_however_often_they_are_asked_for(rig: Rig) -> None:
    rig.behave("ask")
    rig.until(lambda: rig.last_line() == "counters 0.0")
    for _ in range(5):
        rig.turn()
    assert rig.counted == 1
    assert rig.turn() == 1.0
    rig.now = 1.0
    rig.until(lambda: rig.last_line() == "counters 1.0")
    assert rig.counted == 2


def test_counters_that_cannot_be_read_are_no_answer_yet(rig: Rig) -> None:
    rig.behave("ask")
    rig.error = DataplaneError("read the counters", 5)
    rig.until(lambda: rig.counted == 1)
    rig.publish(7)
    rig.until(lambda: rig.last_line() == "update 2 7")
    rig.error = None
    assert rig.turn() == rig.now + COUNTERS_SECONDS
    rig.now += COUNTERS_SECONDS
    rig.until(lambda: f"counters {rig.now}" in rig.lines())


def test_one_that_ends_is_started_again_later_and_later(rig: Rig) -> None:
    rig.exit(75)
    starts = []
    for _ in range(9):
        rig.until(lambda: rig.child.pid is not None)
        starts.append(rig.now)
        rig.until_restarted()
    waits = [later - earlier for earlier, later in pairwise(starts)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_one_that_ends_after_a_good_while_is_started_again_at_once(rig: Rig) -> None:
    rig.exit(75)
    for _ in range(4):
        rig.until_restarted()
    rig.behave("listen")
    rig.until_restarted()
    ended = rig.now = rig.now + 60.0
    rig.kill()
    rig.until_restarted()
    assert rig.now - ended == 0.5


def test_one_that_closes_its_socket_and_stays_is_killed(rig: Rig) -> None:
    rig.behave("hang-up")
    rig.until(lambda: rig.turn() == POLL_SECONDS)
    rig.now = END_SECONDS
    rig.until_restarted()
    assert rig.now == END_SECONDS + FIRST_RESTART_SECONDS


def test_settings_that_cannot_work_are_said_at_the_first_start(rig: Rig) -> None:
    rig.exit(78)
    with pytest.raises(ConfigError, match="front"):
        rig.until(lambda: False)


def test_settings_that_worked_once_do_not_end_the_agent(rig: Rig) -> None:
    rig.exit(75)
    rig.until_restarted()
    rig.exit(78)
    rig.until_restarted()
    rig.until_restarted()


def test_without_a_program_it_is_tried_again(rig: Rig) -> None:
    rig.command[0] = "/no/such/python"
    rig.turn()
    assert rig.child.pid is None
    assert rig.turn() == 0.5
    rig.command[0] = sys.executable
    rig.now = 0.5
    rig.until(lambda: bool(rig.lines()))


@pytest.mark.parametrize("behaviour", ["listen", "deaf", "stay"])
def test_closing_ends_it_whatever_it_does(rig: Rig, behaviour: str) -> None:
    rig.behave(behaviour)
    rig.turn()
    assert rig.child.pid is not None


# ---- events --------------------------------------------------------------------------------------
BLOCK = b"".join(b'{"time": %d}\n' % number for number in range(20_000))
"""More than a socket holds."""


def told(rig: Rig) -> list[str]:
    """The lines of events that the process was told, one after another."""
    blocks = [literal_eval(line.partition(" ")[2]) for line in rig.lines() if line[0] == "e"]
    return "".join(blocks).splitlines()


def test_events_are_passed_on_as_they_are(rig: Rig) -> None:
    rig.until(lambda: rig.last_line() == "update 1 0")
    rig.child.forward(b'{"time": 1}\nno JSON\n')
    rig.child.forward(b"")
    rig.until(lambda: bool(told(rig)))
    assert told(rig) == ['{"time": 1}', "no JSON"]


def test_it_says_that_it_listens(rig: Rig) -> None:
    rig.until(lambda: rig.last_line() == "update 1 0")
    assert rig.listened == 0
    rig.behave("eavesdrop")
    rig.kill()
    rig.until_restarted()
    rig.until(lambda: rig.listened == 1)
    assert rig.counted == 0


def test_events_come_after_the_updates_that_say_whose_addresses_are_in_them(rig: Rig) -> None:
    rig.behave("slow")
    rig.published = vips(5000)
    rig.turn(0.0)
    rig.child.forward(b"first\n")
    rig.publish(5001)
    rig.out.with_suffix(".go").touch()
    rig.until(lambda: bool(told(rig)))
    assert rig.lines()[-2:] == ["update 2 5001", "events 'first\\n'"]


def test_events_that_find_no_room_are_lost_and_counted(rig: Rig) -> None:
    rig.behave("slow")
    rig.turn(0.0)
    rig.child.forward(BLOCK)  # is on its way
    rig.turn(0.0)
    rig.child.forward(BLOCK)  # waits
    for _ in range(3):
        rig.child.forward(b"dropped\n" * 7)
        rig.turn(0.0)
    rig.out.with_suffix(".go").touch()
    rig.until(lambda: told(rig)[-1:] == ['{"lost": 21}'])
    assert told(rig) == [*BLOCK.decode().splitlines() * 2, '{"lost": 21}']
    rig.child.forward(b"next\n")
    rig.until(lambda: told(rig)[-1] == "next")


def test_a_new_process_is_not_told_what_the_last_one_missed(rig: Rig) -> None:
    rig.behave("deaf")
    rig.turn(0.0)
    for _ in range(3):
        rig.child.forward(BLOCK)
    rig.behave("listen")
    rig.kill()
    rig.until_restarted()
    rig.until(lambda: rig.last_line() == "update 1 0")
    rig.child.forward(b"next\n")
    rig.until(lambda: bool(told(rig)))
    assert told(rig) == ["next"]


def test_without_a_process_events_are_dropped(rig: Rig) -> None:
    rig.child.forward(b"nobody\n")
    rig.until(lambda: rig.last_line() == "update 1 0")
    rig.child.forward(b"somebody\n")
    rig.until(lambda: bool(told(rig)))
    assert told(rig) == ["somebody"]
