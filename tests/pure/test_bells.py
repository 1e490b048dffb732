"""Bells: what rang, for one thread that waits."""

from __future__ import annotations

import math
import threading

from minuteman.zookeeper.watch import Bells


def test_what_rang_before_is_there_at_once_and_only_once() -> None:
    bells = Bells()
    for path in ("/a", "/b", "/a"):
        bells.ring(path)
    assert bells.wait(math.inf) == {"/a", "/b"}
    assert bells.wait(0.0) == set()
    assert bells.wait(-1.0) == set()


def test_a_ring_wakes_the_one_who_waits() -> None:
    bells = Bells()
    ringer = threading.Timer(0.05, bells.ring, ["/a"])
    ringer.start()
    assert bells.wait(10.0) == {"/a"}
    ringer.join()


def test_wake_wakes_with_nothing() -> None:
    bells = Bells()
    bells.wake()
    assert bells.wait(math.inf) == set()
    bells.wake()
    bells.ring("/a")
    assert bells.wait(math.inf) == {"/a"}
