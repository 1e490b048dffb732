"""Names of agents: resolved in the background, the last good answer is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

import pytest

from minuteman.model import Address
from minuteman.source.hostnames import HostNames, system_lookup

DEADLINE_SECONDS = 10.0


class Resolver:
    """Answers from a table, and waits where it is told to."""

    def __init__(self) -> None:
        self.table: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.open = threading.Event()
        self.open.set()

    def lookup(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        assert self.open.wait(DEADLINE_SECONDS)
        if name not in self.table:
            raise OSError(name)
        return [ip_address(text) for text in self.table[name]]


class Names:
    """Host names under test, and waiting for answers."""

    def __init__(self) -> None:
        self.resolver = Resolver()
        self.answered = threading.Semaphore(0)
        self.hosts = HostNames(self.answered.release, self.resolver.lookup)

    def until_changed(self, answers: int) -> set[str]:
        """What changed by that many answers."""
        for _ in range(answers):
            assert self.answered.acquire(timeout=DEADLINE_SECONDS)
        return self.hosts.changed()


@pytest.fixture
def names() -> Iterator[Names]:
    names = Names()
    yield names
    names.hosts.close()


def test_a_name_is_asked_for_once_and_known_after_changed(names: Names) -> None:
    names.resolver.table["a"] = ["10.0.0.1"]
    for _ in range(3):
        names.hosts.want("a")
    assert names.hosts.known == {}
    assert names.until_changed(1) == {"a"}
    assert names.hosts.known == {"a": ip_address("10.0.0.1")}
    assert names.hosts.changed() == set()
    assert names.resolver.asked == ["a"]


@pytest.mark.parametrize(
    ("answers", "best"),
    [
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1"),
        (["fd00::1", "10.0.0.2"], "10.0.0.2"),
        (["127.0.1.1", "10.0.0.2"], "10.0.0.2"),
        (["127.0.1.1", "fd00::1"], "fd00::1"),
        (["fe80::1", "fd00::1"], "fd00::1"),
        (["127.0.1.1"], "127.0.1.1"),
    ],
)
def test_the_best_of_several_addresses(names: Names, answers: list[str], best: str) -> None:
    names.resolver.table["a"] = answers
    names.hosts.want("a")
    names.until_changed(1)
    assert names.hosts.known["a"] == ip_address(best)


def test_a_failure_keeps_the_last_good_answer(names: Names) -> None:
    names.resolver.table["a"] = ["10.0.0.1"]
    names.hosts.want("a")
    names.until_changed(1)
    for worse in ({"a": list[str]()}, {}):
        names.resolver.table = worse
        names.hosts.refresh({"a"})
        assert names.until_changed(1) == set()
        assert names.hosts.known == {"a": ip_address("10.0.0.1")}


def test_refresh_finds_another_address_and_forgets_what_is_not_in_use(names: Names) -> None:
    names.resolver.table.update(a=["10.0.0.1"], b=["10.0.0.2"])
    names.hosts.want("a")
    names.hosts.want("b")
    assert names.until_changed(2) == {"a", "b"}
    names.resolver.table["a"] = ["10.0.0.9"]
    names.hosts.refresh({"a"})
    assert names.hosts.known.keys() == {"a"}
    assert names.until_changed(1) == {"a"}
    assert names.hosts.known == {"a": ip_address("10.0.0.9")}


def test_a_name_that_failed_is_asked_for_again(names: Names) -> None:
    names.hosts.want("a")
    assert names.until_changed(1) == set()
    names.resolver.table["a"] = ["10.0.0.1"]
    names.hosts.refresh({"a"})
    assert names.until_changed(1) == {"a"}


def test_a_slow_resolver_is_not_asked_twice(names: Names) -> None:
    names.resolver.table["a"] = ["10.0.0.1"]
    names.resolver.open.clear()
    names.hosts.want("a")
    names.hosts.refresh({"a"})
    names.hosts.refresh({"a"})
    names.resolver.open.set()
    assert names.until_changed(1) == {"a"}
    assert names.resolver.asked == ["a"]


def test_close_waits_for_no_answer(names: Names) -> None:
    names.resolver.open.clear()
    names.hosts.want("a")
    names.hosts.close()
    assert names.hosts.changed() == set()
    names.resolver.open.set()


@pytest.mark.parametrize("name", ["a..b", f"{'a' * 64}.example"])
def test_what_can_be_no_name_is_one_that_is_not_found(name: str) -> None:
    with pytest.raises(OSError, match="name"):
        system_lookup(name)


def test_the_system_knows_localhost() -> None:
    assert all(address.is_loopback for address in system_lookup("localhost"))
